//! Reads and steers a running process over HTTP.
//!
//! An HTTP/1.1 server beside the data plane, on the control thread: what it does costs the workers nothing but reads of the
//! counters they keep anyway. It knows the process only by [`Control`], which the supervisor implements.
//!
//! Whoever can connect may read; who may change something is decided in `authority`, and each change has its line in the audit
//! log. That the server cannot be tied up by one client follows from five limits: connections at a time, the time for a head,
//! the time for a whole connection, one request a connection, and listeners to events at a time.

use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

mod control;
mod endpoint;
mod browser;
mod authority;
mod refusal;
mod wish;
mod socket;
mod probe;
mod exposition;
mod upstreams;
mod limits;
mod picking;
mod config;
mod reload;
mod levers;
mod level;
mod stream;
#[cfg(test)]
mod fixture;

use authority::Peer;
use browser::Site;
use socket::BoundSocket;

use crate::telemetry::audit::Strangers;
use crate::telemetry::seldom::Seldom;

pub use control::{Control, Fate, ReloadFailed, ReloadReport, ReloadResult, Status, UpstreamChange};

/// Connections at a time. Further ones wait to be accepted: the limits below see to it that they soon are, and a probe that
/// is answered late is better than one that is refused.
const CONNECTIONS_MAX: usize = 64;
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
#[derive(Debug, Default)]
pub struct Admin {
    listener: Option<(std::net::TcpListener, SocketAddr)>,
    socket: Option<BoundSocket>,
}

impl Admin {
    /// Binds the address, without accepting on it. Needs no runtime.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener: Some((listener, address)), socket: None })
    }

    /// Binds a Unix socket too, for this user alone. Its file is removed at the end. [`Admin::default`] has no address beside it.
    ///
    /// # Errors
    /// When another process listens there, something else than a socket is there, or the folder cannot be written to.
    pub fn with_socket(self, path: &Path) -> io::Result<Self> {
        Ok(Self { socket: Some(BoundSocket::bind(path)?), ..self })
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
        let listeners = Arc::new(Semaphore::new(stream::LISTENERS_MAX));
        let (stopping, stopped) = watch::channel(());
        let mut connections = JoinSet::new();
        let accept_failing = Seldom::new(1);
        let mut stop = pin!(stop);
        let strangers = Arc::new(Strangers::default());
        let context = |site, peer| Context {
            control: Arc::clone(&control),
            site,
            peer,
            listeners: Arc::clone(&listeners),
            strangers: Arc::clone(&strangers),
            stopped: stopped.clone(),
            streaming: Arc::default(),
        };
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                Some(_) = connections.join_next() => continue,
                accepted = accept(listener.as_ref()), if connections.len() < CONNECTIONS_MAX => {
                    accepted.map(|(stream, peer)| {
                        connections.spawn(serve_connection(stream, context(site, Peer::Address(peer))));
                    })
                }
                accepted = accept_local(socket.as_ref()), if connections.len() < CONNECTIONS_MAX => {
                    accepted.map(|(stream, peer)| {
                        connections.spawn(serve_connection(stream, context(Site::Socket, peer)));
                    })
                }
            };
            match accepted {
                Ok(()) => {}
                Err(error) => {
                    if let Some(times) = accept_failing.happened() {
                        warn!(%error, times, "could not accept a connection on the admin address; trying on");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
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
    /// What is refused to those who may not.
    strangers: Arc<Strangers>,
    /// Closed at the stop.
    stopped: watch::Receiver<()>,
    /// Set when the answer goes on for as long as the client likes.
    streaming: Arc<AtomicBool>,
}

/// Serves one request. With keep-alive, whoever connects and asks for nothing could hold a connection for as long as he
/// likes; and nobody asks often enough here to want it.
async fn serve_connection(stream: impl AsyncRead + AsyncWrite + Unpin, context: Context) {
    let Context { mut stopped, streaming, .. } = context.clone();
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
                if !streaming.load(Relaxed) {
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
mod described;
#[cfg(test)]
mod tests;
