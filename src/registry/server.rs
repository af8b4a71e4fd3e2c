//! The HTTP server of the registry: connections, and which request is for which API.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, StatusCode, request};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use super::access::{Rights, UnknownToken};
use super::answer::{RegistryAnswer, RegistryRefusal, body};
use super::ask::Ask;
use super::query::{Query, segments};
use super::{Registry, consul, eureka};
use crate::config::RegistryConfig;
use crate::telemetry::log_throttle::LogThrottle;

/// How long a connection may stand still between requests, and how long a head may take: longer than the pause between two heartbeats.
const IDLE_LIMIT: Duration = Duration::from_secs(75);
/// How long a body may take.
const BODY_LIMIT: Duration = Duration::from_secs(10);
/// How long responses may go on after the stop.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// Bytes of a request's head, and its header fields.
const HEAD_BYTES_MAX: usize = 32 * 1024;
const HEADERS_MAX: usize = 64;
/// How long to wait after a connection could not be accepted: mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often it is tried to bind an address that the process before still has.
const BIND_EVERY: Duration = Duration::from_millis(20);

const INDEX: &str = "\
isobar's registry

/v1/agent, /v1/catalog, /v1/health, /v1/status   what clients of Consul's API register and look up by
/eureka/apps, /eureka/vips, /eureka/instances    the same for clients of Eureka
";

/// The address of the registry, bound.
#[derive(Debug)]
pub struct BoundRegistry {
    address: SocketAddr,
    /// `None` as long as another process has it, which this one is to replace.
    listener: Option<std::net::TcpListener>,
}

impl BoundRegistry {
    /// Binds the address, without accepting on it. `replacing`: another process that has it is about to stop, and it is bound then. Needs no
    /// runtime.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(address: SocketAddr, replacing: bool) -> io::Result<Self> {
        match listen(address) {
            Ok(listener) => Ok(Self { address: listener.local_addr()?, listener: Some(listener) }),
            Err(error) if replacing && error.kind() == io::ErrorKind::AddrInUse => Ok(Self { address, listener: None }),
            Err(error) => Err(error),
        }
    }

    /// The address, with the port that was taken for 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Keeps the registry and answers until `stop`; then lets the responses under way end, and returns when all is on disk.
    ///
    /// # Errors
    /// When the socket cannot be handed to the runtime, before the first connection.
    pub async fn serve(self, registry: Arc<Registry>, stop: impl Future<Output = ()> + Send) -> io::Result<()> {
        let mut stop = pin!(stop);
        let listener = match self.listener {
            Some(listener) => listener,
            None => {
                info!(address = %self.address, "registry: waiting for the address of the process before");
                let bound = tokio::select! {
                    bound = bind_later(self.address) => bound,
                    () = &mut stop => return Ok(()),
                };
                // What that process has taken in meanwhile.
                let reading = Arc::clone(&registry);
                tokio::task::spawn_blocking(move || reading.read_again()).await?;
                bound
            }
        };
        let listener = TcpListener::from_std(listener)?;
        info!(address = %self.address, "registry listening");
        // Kept open until all is written: a process that takes the place of this one reads the file when it can bind the address.
        tokio::select! {
            () = accept_all(&listener, self.address, &registry, &mut stop) => {}
            () = registry.keep_time() => {}
            () = registry.run_checks() => {}
            () = registry.write_behind() => {}
        }
        let flushing = Arc::clone(&registry);
        if let Err(error) = tokio::task::spawn_blocking(move || flushing.flush()).await? {
            error!(%error, "registry: could not be written at the end");
        }
        drop(listener);
        Ok(())
    }
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn bind_later(address: SocketAddr) -> std::net::TcpListener {
    let failing = LogThrottle::new(1);
    loop {
        match listen(address) {
            Ok(listener) => return listener,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => {
                if let Some(times) = failing.happened() {
                    warn!(%address, %error, times, "registry: could not bind its address; trying on");
                }
            }
        }
        sleep(BIND_EVERY).await;
    }
}

async fn accept_all(
    listener: &TcpListener,
    address: SocketAddr,
    registry: &Arc<Registry>,
    mut stop: impl Future<Output = ()> + Unpin,
) {
    let most = registry.settings().max_connections;
    let (stopping, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let failing = LogThrottle::new(1);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < most => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let context = Context { registry: Arc::clone(registry), address, peer, stopped: stopped.clone() };
                connections.spawn(serve_connection(stream, context));
                // Those that are there get their turn before they have to wait for the next.
                yield_now().await;
            }
            Err(error) => {
                if let Some(times) = failing.happened() {
                    warn!(%error, times, "could not accept a connection to the registry; trying on");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(stopping);
    // Whatever is left after the limit is aborted with the set.
    let _ = timeout(STOP_LIMIT, async { while connections.join_next().await.is_some() {} }).await;
}

/// What the answers to a connection's requests depend on.
#[derive(Clone, Debug)]
struct Context {
    registry: Arc<Registry>,
    address: SocketAddr,
    peer: SocketAddr,
    /// Closed at the stop.
    stopped: watch::Receiver<()>,
}

async fn serve_connection(stream: TcpStream, context: Context) {
    // Small answers to small requests: nothing to wait for.
    let _ = stream.set_nodelay(true);
    let mut stopped = context.stopped.clone();
    let service = service_fn(move |request| answer(request, context.clone()));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_LIMIT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut stopping = false;
    let served = loop {
        tokio::select! {
            result = &mut connection => break result,
            // The sender is dropped at the stop.
            _ = stopped.changed(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = served {
        debug!(%error, "a connection to the registry ended early");
    }
}

async fn answer(request: Request<Incoming>, context: Context) -> Result<RegistryAnswer, Infallible> {
    let (head, body) = request.into_parts();
    let mut answer = dispatch(&head, body, &context).await.unwrap_or_else(|refusal| {
        debug!(method = %head.method, path = head.uri.path(), peer = %context.peer, status = refusal.status.as_u16(), why = refusal.text, "registry: refused");
        if refusal.status != StatusCode::NOT_FOUND {
            context.registry.refused.fetch_add(1, Relaxed);
        }
        refusal.answer()
    });
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(answer)
}

async fn dispatch(head: &request::Parts, sent: Incoming, context: &Context) -> Result<RegistryAnswer, RegistryRefusal> {
    let Context { registry, address, peer, stopped } = context;
    refuse_browsers(head)?;
    let config = registry.settings();
    let path = segments(head.uri.path()).ok_or_else(|| RegistryRefusal::bad("the path is not UTF-8 with percents"))?;
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let query = Query::of(head.uri.query().unwrap_or_default());
    let query = query.ok_or_else(|| RegistryRefusal::bad("the query is not UTF-8 with percents"))?;
    let is_consul = path.first() == Some(&"v1");
    let in_query = query.get("token").filter(|_| is_consul);
    let rights = Rights::of(&head.headers, in_query, &config).map_err(|UnknownToken| match is_consul {
        true => RegistryRefusal::new(StatusCode::FORBIDDEN, "ACL not found"),
        false => RegistryRefusal::new(StatusCode::UNAUTHORIZED, "the token is wrong"),
    })?;
    let reads = head.method == Method::GET || head.method == Method::HEAD;
    let bytes = if reads { Bytes::new() } else { read(sent, head, &config).await? };
    let ask = Ask {
        method: &head.method,
        path: head.uri.path(),
        query,
        headers: &head.headers,
        body: &bytes,
        peer: *peer,
        address: *address,
        rights,
        config,
        registry,
        stopped: stopped.clone(),
    };
    match path.as_slice() {
        ["v1", rest @ ..] => consul::answer(&ask, rest).await,
        ["eureka", rest @ ..] => eureka::answer(&ask, rest).await,
        [] if reads => Ok(body(INDEX, "text/plain; charset=utf-8")),
        _ => Err(RegistryRefusal::new(StatusCode::NOT_FOUND, "not found: there are /v1 as Consul has it, and /eureka")),
    }
}

/// A page that a browser shows has no business here, and what it may send without asking would be enough to register by Eureka's API.
fn refuse_browsers(head: &request::Parts) -> Result<(), RegistryRefusal> {
    let from_elsewhere = head.headers.get("sec-fetch-site").is_some_and(|site| site != "none" && site != "same-origin");
    let changes = head.method != Method::GET && head.method != Method::HEAD;
    if from_elsewhere || (changes && head.headers.contains_key(header::ORIGIN)) {
        return Err(RegistryRefusal::new(StatusCode::FORBIDDEN, "requests of web pages are not answered"));
    }
    Ok(())
}

async fn read(sent: Incoming, head: &request::Parts, config: &RegistryConfig) -> Result<Bytes, RegistryRefusal> {
    if head.headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return Err(RegistryRefusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "compressed bodies are not read"));
    }
    let most = config.max_bytes;
    match timeout(BODY_LIMIT, Limited::new(sent, most).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let text = format!("the body is longer than max_bytes, {most}");
            Err(RegistryRefusal::new(StatusCode::PAYLOAD_TOO_LARGE, text))
        }
        Ok(Err(error)) => Err(RegistryRefusal::bad(format!("the body broke off: {error}"))),
        Err(_) => {
            Err(RegistryRefusal::new(StatusCode::REQUEST_TIMEOUT, format!("the body took longer than {BODY_LIMIT:?}")))
        }
    }
}
