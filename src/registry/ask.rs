//! What a request asks, with what decides about it.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, Method};
use tokio::sync::watch;

use super::Registry;
use super::access::Rights;
use super::query::Query;
use crate::config::RegistryConfig;

/// A request, with what decides about it.
pub(super) struct Ask<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) query: Query,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
    pub(super) peer: SocketAddr,
    /// Where the registry listens.
    pub(super) address: SocketAddr,
    pub(super) rights: Rights,
    pub(super) config: Arc<RegistryConfig>,
    pub(super) registry: &'a Arc<Registry>,
    /// Closed at the stop.
    pub(super) stopped: watch::Receiver<()>,
}
