//! New connections to backends.

use std::io;
use std::rc::Rc;

use tokio::net::TcpStream;

use crate::backend::BackendState;
use crate::config::{Address, PoolConfig};

use super::{Connection, Link, Transport};

/// Connects to `backend`. Names are looked up again each time, and their addresses tried in turn.
///
/// # Errors
/// The last address's, when none can be connected to.
pub async fn connect(transport: &Rc<Transport>, backend: &BackendState, pool: PoolConfig) -> io::Result<Connection> {
    let tcp = match &backend.address {
        Address::Ip(address) => TcpStream::connect(address).await?,
        Address::Name(host, port) => TcpStream::connect((&**host, *port)).await?,
    };
    tcp.set_nodelay(true)?;
    let link = Link::new(tcp, Rc::clone(&transport.space));
    Ok(Connection::new(link, false, transport, backend, pool))
}
