//! New connections to backends.

use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;

use crate::backend::{BackendState, Connected};
use crate::config::Address;
use crate::socket::Socket;

use super::tls::{BackendTls, HandshakeFailed};
use super::{Connection, Link, Manner, Transport, multiplex};

/// Why there is no connection. Nothing of a request was sent.
#[derive(Debug)]
pub enum NoConnection {
    /// The backend does not take it, or is not found.
    Tcp(io::Error),
    /// It takes it, and there is no secure one over it.
    Tls(HandshakeFailed),
}

impl From<io::Error> for NoConnection {
    fn from(error: io::Error) -> Self {
        Self::Tcp(error)
    }
}

impl fmt::Display for NoConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(error) => error.fmt(f),
            Self::Tls(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for NoConnection {}

/// Connects to `backend`, as soon as there may be another connection to it, or to a stream of one that is being made. Names are
/// looked up again each time, and their addresses tried in turn. With TLS it is ready when the handshake is over.
///
/// # Errors
/// The last address's, when none can be connected to; or the handshake's.
pub async fn connect(
    transport: &Rc<Transport>,
    backend: &Arc<BackendState>,
    manner: Manner<'_>,
) -> Result<Connection, NoConnection> {
    if manner.multiplexes() {
        return Box::pin(multiplex::connect(transport, backend, manner)).await;
    }
    let connected = match Connected::try_new(backend) {
        Some(connected) => connected,
        None => transport.ask_back(backend).await,
    };
    let socket = reach(backend, manner).await?;
    let link = Link::new(socket, BackendTls::identity(manner.tls), Rc::clone(&transport.space), connected);
    Ok(Connection::new(link, false, transport, backend, manner.pool))
}

/// A socket to the backend, secure where it is to be.
pub(super) async fn reach(backend: &BackendState, manner: Manner<'_>) -> Result<Socket, NoConnection> {
    let tcp = match &backend.address {
        Address::Ip(address) => TcpStream::connect(address).await?,
        Address::Name(host, port) => TcpStream::connect((&**host, *port)).await?,
    };
    tcp.set_nodelay(true)?;
    let Some(tls) = manner.tls else { return Ok(Socket::Plain(tcp)) };
    // Boxed, so that exchanges in the clear do not carry the room for it.
    Box::pin(tls.handshake(&backend.address, tcp, manner.alone)).await.map_err(NoConnection::Tls)
}
