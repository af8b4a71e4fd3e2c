//! One request with its response: who asked, through what, until when, and the bodies on their way.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;

use crate::config::{ListenerConfig, ListenerName};
use crate::telemetry::metrics::{ListenerMetrics, Sharded};

pub mod body;
pub mod watch;

use watch::Watch;

/// What all exchanges of a client connection share.
pub struct Client {
    /// The address the connection comes from.
    pub peer: SocketAddr,
    /// The address it came to.
    pub local: SocketAddr,
    /// Whether `peer` is one of the listener's trusted proxies.
    pub trusted: bool,
    /// `peer` without its port, as a header holds it.
    pub peer_text: HeaderValue,
    /// The port of `local`, as a header holds it.
    pub port_text: HeaderValue,
    /// The settings of the listener when the connection was accepted.
    pub listener: Arc<ListenerConfig>,
    /// What the listener counts.
    pub metrics: Arc<Sharded<ListenerMetrics>>,
    /// What the connection waits for.
    pub watch: Rc<Watch>,
    /// The connection itself.
    pub side: Rc<dyn ClientSide>,
}

impl Client {
    /// The listener's name.
    pub fn listener_name(&self) -> &ListenerName {
        &self.listener.name
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("peer", &self.peer).field("local", &self.local).finish_non_exhaustive()
    }
}

/// What an exchange asks of its client's connection.
pub trait ClientSide {
    /// An exchange begins.
    fn begin(&self);
    /// The response's body begins; each piece of it may take `idle`.
    fn body(&self, idle: Duration);
    /// The exchange is over.
    fn end(&self);
    /// Sends an informational response now.
    fn inform(&self, head: &[u8]);
}

/// One request with its response, as middleware sees it.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The connection it came by.
    pub client: Rc<Client>,
    /// When the request's head was read.
    pub started: Instant,
    /// The client's address: the connection's, or the one that a trusted proxy reports.
    pub client_ip: IpAddr,
}
