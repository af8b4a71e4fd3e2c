//! A service in the registry of this process.

use std::future::pending;
use std::sync::Arc;

use tokio::sync::watch;

use super::listing::{Listed, Listing, ListsServices};
use super::reading::Reading;
use super::{Answer, Answered, AnyDiscovery, DiscoveryError};
use crate::config::RegistrySourceConfig;
use crate::registry::{FoundInstances, Registry};

/// Says what is registered, whenever that changes.
pub(super) struct RegistrySource {
    config: Arc<RegistrySourceConfig>,
    reading: Reading,
    registry: Option<(Arc<Registry>, watch::Receiver<u64>)>,
    /// The index of the service that was said last.
    said: u64,
}

impl RegistrySource {
    /// Of `registry`, which a process that was started without one does not have.
    pub(super) fn new(config: Arc<RegistrySourceConfig>, reading: Reading, registry: Option<&Arc<Registry>>) -> Self {
        let registry = registry.map(|registry| (Arc::clone(registry), registry.changes()));
        Self { config, reading, registry, said: 0 }
    }

    async fn changed(&mut self) -> Result<Answer, DiscoveryError> {
        let Some((registry, changes)) = &mut self.registry else {
            return Err(DiscoveryError::new("the registry begins when the process is started again"));
        };
        while registry.index_of(&self.config.service) == self.said {
            if changes.changed().await.is_err() {
                return pending().await;
            }
        }
        let FoundInstances { set, refused, index } = registry.find(&self.config, &self.reading.zone_label);
        self.said = index;
        Ok(Answer { set, refused, revision: Some(index.to_string().into()), hold: None })
    }
}

/// Lists the services of the registry.
pub(super) struct RegistryServices {
    registry: Arc<Registry>,
    changes: watch::Receiver<u64>,
    has_said: bool,
}

impl RegistryServices {
    pub(super) fn new(registry: &Arc<Registry>) -> Self {
        Self { registry: Arc::clone(registry), changes: registry.changes(), has_said: false }
    }

    async fn changed(&mut self) -> Result<Listing, DiscoveryError> {
        if self.has_said && self.changes.changed().await.is_err() {
            return pending().await;
        }
        self.has_said = true;
        Ok(Listing::of(self.registry.services()))
    }
}

impl ListsServices for RegistryServices {
    fn next(&mut self) -> Listed<'_> {
        Box::pin(self.changed())
    }
}

impl AnyDiscovery for RegistrySource {
    fn next(&mut self) -> Answered<'_> {
        Box::pin(self.changed())
    }
}
