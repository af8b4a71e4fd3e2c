//! Sockets to connections.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use arc_swap::ArcSwap;

use crate::config::{ListenerConfig, ListenerName};
use crate::telemetry::metrics::{ListenerMetrics, Sharded};

/// A bound socket and its protocol settings, shared by the workers that accept on it.
#[derive(Debug)]
pub struct Listener {
    /// Its name.
    pub name: ListenerName,
    /// Where it is bound: the configured address, with the port that was taken for 0.
    pub address: SocketAddr,
    /// Its settings; new connections take the ones of the moment.
    pub config: ArcSwap<ListenerConfig>,
    /// Client connections open now, over all workers.
    pub open: AtomicUsize,
    /// Set when it was removed: its connections end as soon as they are idle.
    pub draining: AtomicBool,
    /// A shard per worker.
    pub metrics: Sharded<ListenerMetrics>,
}

/// A listener with the sockets that are to be handed to the workers, one each.
#[derive(Debug)]
pub struct Bound {
    /// The shared part.
    pub listener: Arc<Listener>,
    /// One socket a worker, all on the same address.
    pub sockets: Vec<TcpListener>,
}

/// Binds a socket for each of `workers`, without accepting on any.
///
/// # Errors
/// When the address cannot be bound, or another process listens there.
pub fn bind(config: &Arc<ListenerConfig>, workers: usize) -> io::Result<Bound> {
    let _ = (config, workers);
    todo!()
}
