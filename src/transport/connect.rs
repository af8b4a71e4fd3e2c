//! New connections to backends.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::backend::{BackendState, Connected};
use crate::config::Address;
use crate::file_descriptors::{DescriptorSeat, DescriptorSeats, HeldDescriptor, is_ours};
use crate::socket::Socket;

use super::tls::{BackendTls, HandshakeFailed};
use super::wear::Wear;
use super::{Connection, Link, Manner, Transport, http2};

/// Why there is no connection. Nothing of a request was sent.
#[derive(Debug)]
pub enum NoConnection {
    /// The backend does not take it, or is not found.
    Tcp(io::Error),
    /// It takes it, and there is no secure one over it.
    Tls(HandshakeFailed),
    /// This process or machine has not what it takes: descriptors, memory, local ports. It says nothing about the backend.
    Ours(io::Error),
}

impl From<io::Error> for NoConnection {
    fn from(error: io::Error) -> Self {
        Self::Tcp(error)
    }
}

impl fmt::Display for NoConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(error) | Self::Ours(error) => error.fmt(f),
            Self::Tls(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for NoConnection {}

/// What a connection is made for.
#[derive(Debug)]
pub struct Dialling<'a> {
    seats: &'a Rc<DescriptorSeats>,
    short: Cell<bool>,
}

impl<'a> Dialling<'a> {
    /// For an exchange of the client that has these seats.
    pub fn new(seats: &'a Rc<DescriptorSeats>) -> Self {
        Self { seats, short: Cell::new(false) }
    }

    /// Whether it waits for something that this process has not enough of, and not for the backend.
    pub fn is_short(&self) -> bool {
        self.short.get()
    }

    /// A seat, as soon as there is one.
    pub(super) async fn seat(&self) -> DescriptorSeat {
        self.short.set(true);
        let seat = self.seats.wait().await;
        self.short.set(false);
        seat
    }
}

/// Connects to `backend`, as soon as there may be another connection to it, or to a stream of one that is being made. With TLS it is
/// ready when the handshake is over.
///
/// # Errors
/// When it cannot be connected to, or the handshake fails.
pub async fn connect(
    transport: &Rc<Transport>,
    backend: &Arc<BackendState>,
    manner: Manner<'_>,
    dialling: &Dialling<'_>,
) -> Result<Connection, NoConnection> {
    if manner.multiplexes() {
        return Box::pin(http2::connect(transport, backend, manner, dialling)).await;
    }
    let seat = dialling.seat().await;
    let connected = match Connected::try_new(backend) {
        Some(connected) => connected,
        None => transport.ask_back(backend).await,
    };
    let (socket, held) = reach(transport, backend, manner, dialling).await?;
    let (identity, space) = (BackendTls::identity(manner.tls), Rc::clone(&transport.space));
    let wear = Wear::new(manner.pool, transport.clock.now_ms(), rand::random);
    let link = Link::new(socket, identity, space, (connected, held), Some(seat), wear);
    Ok(Connection::new(link, false, transport, backend, manner.pool))
}

/// How long to wait before the system is asked again for what it did not have.
const PAUSE: Duration = Duration::from_millis(20);

/// A socket to the backend, secure where it is to be.
pub(super) async fn reach(
    transport: &Rc<Transport>,
    backend: &BackendState,
    manner: Manner<'_>,
    dialling: &Dialling<'_>,
) -> Result<(Socket, HeldDescriptor), NoConnection> {
    if transport.room.is_full() {
        transport.make_room();
    }
    let held = transport.room.hold();
    let tcp = loop {
        match open(&backend.address).await {
            // Descriptors and memory come back, in a moment mostly; the exchange has a deadline. Ports to this backend may not, and
            // there are others.
            Err(NoConnection::Ours(error)) if error.kind() != io::ErrorKind::AddrNotAvailable => {
                transport.room.exhausted();
                dialling.short.set(true);
                transport.close_one();
                sleep(PAUSE).await;
                dialling.short.set(false);
            }
            Err(error) => {
                if matches!(error, NoConnection::Ours(_)) {
                    transport.room.exhausted();
                }
                return Err(error);
            }
            Ok(tcp) => break tcp,
        }
    };
    tcp.set_nodelay(true)?;
    let Some(tls) = manner.tls else { return Ok((Socket::Plain(tcp), held)) };
    // Boxed, so that exchanges in the clear do not carry the room for it.
    let secured = Box::pin(tls.of(backend.server_name.as_ref()).handshake(&backend.address, tcp, manner.alone)).await;
    secured.map(|socket| (socket, held)).map_err(NoConnection::Tls)
}

/// Connects to an address. That of a backend is never a name: what is found of a name are backends of their own.
///
/// # Errors
/// When it cannot be connected to, or this process has not what it takes.
pub async fn open(address: &Address) -> Result<TcpStream, NoConnection> {
    let Some(address) = address.socket() else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name was not looked up").into());
    };
    TcpStream::connect(address).await.map_err(|error| match is_ours(&error, Some(address)) {
        true => NoConnection::Ours(error),
        false => NoConnection::Tcp(error),
    })
}
