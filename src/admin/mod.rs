//! Reads and steers a running process over HTTP.
//!
//! An HTTP/1.1 server beside the data plane, on the control thread: what it does costs the workers nothing but reads of the
//! counters they keep anyway. It knows the process only by [`Control`], which the supervisor implements.
//!
//! Every client that can connect may read; `authority` decides which client may change something, and each change has its line in the audit
//! log. That the server cannot be tied up by clients follows from its limits: connections at a time, of which those go first that stand
//! still (`room`), apart for the address and the socket; the time for a head, and for a whole connection; one request a connection; and
//! listeners to events, reloads and pages of metrics at a time.

use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

mod process_control;
mod endpoint;
mod answer;
mod cross_site;
mod authority;
mod refusal;
mod params;
mod unix_socket;
mod connections;
mod content_negotiation;
mod probe;
mod metrics;
mod upstreams;
mod limits;
mod load_balancing;
mod config;
mod reload;
mod backend_actions;
mod pushed;
mod log_level;
mod events;
#[cfg(test)]
mod fixture;

use authority::Peer;
use connections::{ConnectionProgress, ConnectionRoom, Stage};
use cross_site::Site;
use unix_socket::BoundSocket;

use crate::file_descriptors::DescriptorPlan;
use crate::telemetry::audit::Strangers;
use crate::telemetry::log_throttle::LogThrottle;

pub use process_control::{Control, Fate, ProcessStatus, ReloadFailed, ReloadReport, ReloadResult, UpstreamChange};

/// Reloads that may be asked for at a time: fewer than connections, of which some are then left for probes.
const RELOADS_MAX: usize = 16;
/// How soon a connection that finds no room looks for it again.
const ROOM_PAUSE: Duration = Duration::from_millis(50);
/// From the connection to the end of the request's head.
const HEADER_LIMIT: Duration = Duration::from_secs(5);
/// From the connection to its end.
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);
/// How long responses may go on after the stop.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// Bytes of a request head, or it is answered 431.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Header fields of a request, or it is answered 431.
const HEADERS_MAX: usize = 64;
/// How long to wait after a connection could not be accepted: mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The admin address, bound, or a Unix socket, or both.
#[derive(Debug)]
pub struct Admin {
    listener: Option<(std::net::TcpListener, SocketAddr)>,
    socket: Option<BoundSocket>,
    connections_max: usize,
    closing: Option<oneshot::Sender<()>>,
}

impl Default for Admin {
    /// Neither an address nor a socket.
    fn default() -> Self {
        Self { listener: None, socket: None, connections_max: DescriptorPlan::ADMIN_MAX, closing: None }
    }
}

impl Admin {
    /// Binds the address, without accepting on it. Needs no runtime.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Self::of(listener)
    }

    /// Takes over a socket that the process before listens on.
    ///
    /// # Errors
    /// When it is not bound.
    pub fn inherited(listener: std::net::TcpListener) -> io::Result<Self> {
        Self::of(listener)
    }

    fn of(listener: std::net::TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        Ok(Self { listener: Some((listener, address)), ..Self::default() })
    }

    /// The socket of the address once more, for the next process. As long as it is open, connections wait there. `None` where there is
    /// only a Unix socket.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn lend(&self) -> io::Result<Option<(SocketAddr, OwnedFd)>> {
        let lend =
            |(listener, address): &(std::net::TcpListener, SocketAddr)| Ok((*address, listener.try_clone()?.into()));
        self.listener.as_ref().map(lend).transpose()
    }

    /// Binds a Unix socket too, for this user alone. [`Admin::default`] has no address beside it. Clients find it when it is at its
    /// [place](Self::place). Its file is removed at the end. `replacing`: the process that listens there now is about to stop.
    ///
    /// # Errors
    /// When another process listens there, something else than a socket is there, or the folder cannot be written to.
    pub fn with_socket(self, path: &Path, replacing: bool) -> io::Result<Self> {
        Ok(Self { socket: Some(BoundSocket::bind(path, replacing)?), ..self })
    }

    /// Moves the Unix socket to where clients look for it, where there is one.
    ///
    /// # Errors
    /// The file system's.
    pub fn place(&mut self) -> io::Result<()> {
        self.socket.as_mut().map_or(Ok(()), BoundSocket::place)
    }

    /// Takes so many connections at a time; further ones wait. As many as there may ever be where this is not called.
    #[must_use]
    pub fn with_connections(self, connections_max: usize) -> Self {
        Self { connections_max, ..self }
    }

    /// Drops `closing` when it accepts nothing more.
    #[must_use]
    pub fn telling(self, closing: oneshot::Sender<()>) -> Self {
        Self { closing: Some(closing), ..self }
    }

    /// The address, with the port that was taken for 0; `None` where there is only a socket.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.as_ref().map(|&(_, address)| address)
    }

    /// Answers until `stop`, then lets the responses under way end and returns. To have `/readyz` say that the process is
    /// stopping, stop this last.
    ///
    /// # Errors
    /// When the socket cannot be handed to the runtime, before the first connection.
    pub async fn serve(self, control: Arc<dyn Control>, stop: impl Future<Output = ()> + Send) -> io::Result<()> {
        let site = self.address().map_or(Site::Socket, Site::of);
        let listener = self.listener.map(|(listener, _)| TcpListener::from_std(listener)).transpose()?;
        // The file is removed when this returns.
        let (socket, _file) = match self.socket.map(BoundSocket::into_parts) {
            Some((socket, file)) => (Some(UnixListener::from_std(socket)?), Some(file)),
            None => (None, None),
        };
        let most = self.connections_max;
        let (stopping, stopped) = watch::channel(());
        let mut connections = JoinSet::new();
        let accept_failing = LogThrottle::new(1);
        let mut stop = pin!(stop);
        let shared = Context {
            control,
            site,
            // Of each connection its own.
            peer: Peer::Address(SocketAddr::from(([0, 0, 0, 0], 0))),
            listeners: Arc::new(Semaphore::new(events::LISTENERS_MAX)),
            reloads: Arc::new(Semaphore::new(RELOADS_MAX)),
            scrapes: Arc::new(Semaphore::new(1)),
            strangers: Arc::new(Strangers::default()),
            stopped,
            progress: Arc::default(),
        };
        let context = |site, peer| Context { site, peer, progress: Arc::default(), ..shared.clone() };
        // One for each entrance: what comes by the one leaves the other its room.
        let (mut at_address, mut at_socket) = (ConnectionRoom::new(most), ConnectionRoom::new(most));
        loop {
            let now = Instant::now();
            let accepted = tokio::select! {
                () = &mut stop => break,
                Some(ended) = connections.join_next_with_id() => {
                    let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                    at_address.leave(id);
                    at_socket.leave(id);
                    continue;
                }
                accepted = accept(listener.as_ref()), if at_address.admits(now) => accepted.map(|(stream, peer)| {
                    let context = context(site, Peer::Address(peer));
                    let progress = Arc::clone(&context.progress);
                    at_address.enter(connections.spawn(serve_connection(stream, context)), progress, Instant::now());
                }),
                accepted = accept_local(socket.as_ref()), if at_socket.admits(now) => accepted.map(|(stream, peer)| {
                    let context = context(Site::Socket, peer);
                    let progress = Arc::clone(&context.progress);
                    at_socket.enter(connections.spawn(serve_connection(stream, context)), progress, Instant::now());
                }),
                () = sleep(ROOM_PAUSE), if !at_address.admits(now) || !at_socket.admits(now) => continue,
            };
            match accepted {
                // Those that are there get their turn before they have to go for the next.
                Ok(()) => yield_now().await,
                Err(error) => {
                    if let Some(times) = accept_failing.happened() {
                        warn!(%error, times, "could not accept a connection on the admin address; trying on");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop((listener, socket));
        drop(self.closing);
        drop(stopping);
        // Whatever is left after the limit is aborted with the set.
        let _ = timeout(STOP_LIMIT, async { while connections.join_next().await.is_some() {} }).await;
        Ok(())
    }
}

/// A connection to the address, and from where; never where there is no address.
async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => pending().await,
    }
}

/// A connection to the socket, and whose it is; never where there is no socket.
async fn accept_local(socket: Option<&UnixListener>) -> io::Result<(UnixStream, Peer)> {
    let Some(socket) = socket else { return pending().await };
    let (stream, _) = socket.accept().await?;
    let uid = stream.peer_cred()?.uid();
    Ok((stream, Peer::User { uid }))
}

/// What the answers to a connection's request depend on.
#[derive(Clone, Debug)]
struct Context {
    control: Arc<dyn Control>,
    site: Site,
    peer: Peer,
    /// Places for listeners to events.
    listeners: Arc<Semaphore>,
    /// Places for reloads.
    reloads: Arc<Semaphore>,
    /// Turns of pages of metrics.
    scrapes: Arc<Semaphore>,
    /// Changes that are refused for want of permission.
    strangers: Arc<Strangers>,
    /// Closed at the stop.
    stopped: watch::Receiver<()>,
    /// How far the connection has come.
    progress: Arc<ConnectionProgress>,
}

/// Serves one request. With keep-alive, a client that connects and sends nothing could hold a connection for as long as it
/// likes; and no client asks often enough here to need it.
async fn serve_connection(stream: impl AsyncRead + AsyncWrite + Unpin, context: Context) {
    let Context { mut stopped, progress, .. } = context.clone();
    let service = service_fn(move |request| endpoint::answer(request, context.clone()));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut limit = pin!(sleep(CONNECTION_LIMIT));
    let (mut stopping, mut unlimited) = (false, false);
    let served = loop {
        tokio::select! {
            result = &mut connection => break result,
            // The sender is dropped at the stop.
            _ = stopped.changed(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut limit, if !unlimited => {
                if !progress.is(Stage::Streaming) {
                    return debug!("a connection to the admin address took too long");
                }
                unlimited = true;
            }
        }
    };
    if let Err(error) = served {
        debug!(%error, "a connection to the admin address ended early");
    }
}

#[cfg(test)]
mod openapi_tests;
#[cfg(test)]
mod tests;
