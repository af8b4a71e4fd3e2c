//! Reads and steers a running process over HTTP.
//!
//! An HTTP/1.1 server beside the data plane, on the control thread: what it does costs the workers nothing but reads of the
//! counters they keep anyway. It knows the process only by [`Control`], which the supervisor implements.
//!
//! There are no passwords here; who may connect is decided by the address it is bound to. That it cannot be tied up by one
//! client follows from four limits: connections at a time, the time for a head, the time for a whole connection, and one
//! request a connection.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

mod control;
mod endpoint;
mod browser;
mod probe;
mod exposition;
mod upstreams;
mod limits;
mod picking;
mod config;
mod reload;
#[cfg(test)]
mod fixture;

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

/// The admin address, bound.
#[derive(Debug)]
pub struct Admin {
    listener: std::net::TcpListener,
    address: SocketAddr,
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
        Ok(Self { listener, address })
    }

    /// Where it is bound, with the port that was taken for 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop`, then lets the responses under way end and returns. To have `/readyz` say that the process is
    /// stopping, stop this last.
    ///
    /// # Errors
    /// When the socket cannot be handed to the runtime, before the first connection.
    pub async fn serve(self, control: Arc<dyn Control>, stop: impl Future<Output = ()> + Send) -> io::Result<()> {
        let listener = TcpListener::from_std(self.listener)?;
        let site = browser::Site::of(self.address);
        let (stopping, stopped) = watch::channel(());
        let mut connections = JoinSet::new();
        let mut accept_failing = false;
        let mut stop = pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    accept_failing = false;
                    connections.spawn(serve_connection(stream, Arc::clone(&control), site, stopped.clone()));
                }
                Err(error) => {
                    if !accept_failing {
                        warn!(%error, "could not accept a connection on the admin address; trying on");
                    }
                    accept_failing = true;
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

/// Serves one request. With keep-alive, whoever connects and asks for nothing could hold a connection for as long as he
/// likes; and nobody asks often enough here to want it.
async fn serve_connection(
    stream: TcpStream,
    control: Arc<dyn Control>,
    site: browser::Site,
    mut stopped: watch::Receiver<()>,
) {
    let service = service_fn(|request| endpoint::answer(request, Arc::clone(&control), site));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let served = timeout(CONNECTION_LIMIT, async {
        tokio::select! {
            result = &mut connection => return result,
            // The sender is dropped at the stop.
            _ = stopped.changed() => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    });
    match served.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a connection to the admin address ended early"),
        Err(_) => debug!("a connection to the admin address took too long"),
    }
}

#[cfg(test)]
mod tests;
