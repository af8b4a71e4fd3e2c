//! New connections to backends.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;

use crate::backend::{BackendState, Connected};
use crate::config::{Address, PoolConfig};
use crate::socket::Socket;

use super::{Connection, Link, Transport};

/// Connects to `backend`, as soon as there may be another connection to it. Names are looked up again each time, and their addresses tried in turn.
///
/// # Errors
/// The last address's, when none can be connected to.
pub async fn connect(
    transport: &Rc<Transport>,
    backend: &Arc<BackendState>,
    pool: PoolConfig,
) -> io::Result<Connection> {
    let connected = match Connected::try_new(backend) {
        Some(connected) => connected,
        None => transport.ask_back(backend).await,
    };
    let tcp = match &backend.address {
        Address::Ip(address) => TcpStream::connect(address).await?,
        Address::Name(host, port) => TcpStream::connect((&**host, *port)).await?,
    };
    tcp.set_nodelay(true)?;
    let link = Link::new(Socket::Plain(tcp), Rc::clone(&transport.space), connected);
    Ok(Connection::new(link, false, transport, backend, pool))
}
