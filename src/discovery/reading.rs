//! What all sources of the configuration do with an answer.

use std::sync::Arc;

use super::{Answer, DiscoveryError};
use crate::backend::BackendSet;
use crate::backend::document::Document;
use crate::config::DiscoveryConfig;

/// What of a source's answer is the same for all kinds.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// The label that says in which zone a backend is.
    pub(super) zone_label: Arc<str>,
    /// Bytes of an answer.
    pub(super) bytes_max: usize,
}

impl Reading {
    pub(super) fn new(config: &DiscoveryConfig) -> Self {
        Self { zone_label: Arc::clone(&config.zone_label), bytes_max: config.max_bytes }
    }
}

impl From<Document> for Answer {
    fn from(Document { instances, refused }: Document) -> Self {
        Self { set: BackendSet::new(instances), refused, revision: None, hold: None }
    }
}

/// Runs what takes its time for a large answer, beside the thread that all of the control plane has.
pub(super) async fn beside<T: Send + 'static>(
    bytes: usize,
    read: impl FnOnce() -> Result<T, DiscoveryError> + Send + 'static,
) -> Result<T, DiscoveryError> {
    /// What takes less than a millisecond.
    const SMALL: usize = 64 * 1024;
    if bytes <= SMALL {
        return read();
    }
    tokio::task::spawn_blocking(read).await.map_err(DiscoveryError::from)?
}
