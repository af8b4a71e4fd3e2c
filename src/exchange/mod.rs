//! One request with its response: who asked, when, and how it ended.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::config::ListenerName;

pub mod body;

/// Who is at the other end of a client connection, and through which listener it came.
#[derive(Debug)]
pub struct Client {
    /// The address the connection comes from.
    pub peer: SocketAddr,
    /// The address it came to.
    pub local: SocketAddr,
    /// Whether `peer` is one of the listener's trusted proxies.
    pub trusted: bool,
    /// The listener.
    pub listener: ListenerName,
}

/// One request with its response, as middleware sees it.
#[derive(Debug)]
pub struct Exchange {
    /// The connection's client.
    pub client: Arc<Client>,
    /// When the request's head was read.
    pub started: Instant,
    /// The client's address: the connection's, or the one that a trusted proxy reports.
    pub client_ip: IpAddr,
}
