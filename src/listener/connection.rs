//! One client connection, from its socket to its end.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use http::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::config::ListenerConfig;
use crate::exchange::watch::{Clock, Phase, Watch};
use crate::exchange::{Client, ClientSide};
use crate::proxy::Proxy;
use crate::proxy::upgrade::Slot;

use super::guard::Refusal;
use super::wire::Wire;
use super::{Listener, Open};

/// Requests and responses go through buffers of at most this size: large enough for few system calls a megabyte, small
/// enough to stay in a core's cache.
const BUFFER_BYTES: usize = 64 * 1024;

/// Header fields that hyper parses without memory of its own for them.
const CHEAP_HEADERS: usize = 100;

/// How the HTTP part of a connection ended.
enum End {
    /// As HTTP ends: the client or we closed it, or it broke.
    Closed(Option<hyper::Error>),
    /// The client went in the middle of an exchange.
    Gone,
    /// No further request came, or the process stops.
    Idle,
    /// A request's head did not come in time.
    HeadTimeout,
    /// A response's body did not move, or the process ends now.
    Cut,
}

/// Serves a client connection to its end. `open` counts it as open until then.
pub async fn serve(
    (tcp, peer): (TcpStream, SocketAddr),
    listener: Arc<Listener>,
    open: Open,
    clock: Rc<Clock>,
    proxy: Rc<Proxy>,
) {
    let config = listener.config.load_full();
    let watch = Watch::new(&clock, config.idle_timeout.min(config.header_timeout), super::owner(&listener));
    if listener.draining.load(Ordering::Relaxed) {
        watch.drain();
    }
    let wire = Wire::new(tcp, &config, Rc::clone(&watch));
    let ip = peer.ip().to_canonical();
    let client = Rc::new(Client {
        peer,
        trusted: config.trusted_proxies.iter().any(|net| net.contains(&ip)),
        peer_text: text(ip),
        lines: RefCell::new((None, Rc::from([]))),
        port_text: text(listener.address.port()),
        metrics: Arc::clone(&listener.metrics),
        watch: Rc::clone(&watch),
        side: Rc::clone(&wire) as Rc<dyn ClientSide>,
        name: RefCell::new((0, config.name.clone())),
        listener: Arc::clone(&config),
    });
    let tunnel = Rc::new(Slot::default());
    let end = speak(&wire, &config, &client, &proxy, &tunnel).await;
    if let (Some(tunnel), End::Closed(None)) = (tunnel.take(), &end) {
        let held = wire.into_tunnel();
        let _ = tunnel.run(wire.io(), held).await;
        return;
    }
    let closed = matches!(end, End::Closed(_));
    let refusal = match end {
        End::HeadTimeout => Some(Refusal { status: 408, reason: "the request head did not arrive in time" }),
        End::Closed(error) => {
            let refusal = wire.refusal();
            // What hyper itself refuses it has answered.
            if refusal.is_none() && error.is_some_and(|error| error.is_parse()) {
                listener.metrics.of(proxy.worker).rejected.add(1);
            }
            refusal
        }
        End::Gone | End::Idle | End::Cut => None,
    };
    if let Some(refusal) = refusal {
        listener.metrics.of(proxy.worker).rejected.add(1);
        refuse(&wire, refusal).await;
    } else if closed && wire.mid_body() {
        // The answer was not to that body, and did not wait for its end.
        let _ = tokio::time::timeout(LINGER, linger(&wire)).await;
    }
    drop(open);
}

/// Speaks HTTP/1.1 until the connection ends or becomes a tunnel.
async fn speak(
    wire: &Rc<Wire>,
    config: &ListenerConfig,
    client: &Rc<Client>,
    proxy: &Rc<Proxy>,
    tunnel: &Rc<Slot>,
) -> End {
    let service = service_fn(|request| {
        // Not when the future is first polled: hyper looks at the socket once more before.
        client.side.begin();
        Rc::clone(proxy).handle(Rc::clone(client), Rc::clone(tunnel), request)
    });
    let mut http = http1::Builder::new();
    http.max_buf_size(BUFFER_BYTES.max(config.max_header_bytes)).auto_date_header(false).half_close(true);
    if config.max_headers > CHEAP_HEADERS {
        http.max_headers(config.max_headers);
    }
    let watch = &wire.watch;
    let mut http = pin!(http.serve_connection(TokioIo::new(wire.io()), service));
    let mut asked_to_end = false;
    poll_fn(|cx| {
        watch.register(cx);
        loop {
            if let Poll::Ready(result) = http.as_mut().poll(cx) {
                return Poll::Ready(End::Closed(result.err()));
            }
            if wire.poll_ahead(cx).is_ready() {
                return Poll::Ready(End::Gone);
            }
            if watch.is_cut() {
                return Poll::Ready(End::Cut);
            }
            if watch.expired() {
                match watch.phase() {
                    Phase::Idle => return Poll::Ready(End::Idle),
                    Phase::Head => return Poll::Ready(End::HeadTimeout),
                    Phase::Body => return Poll::Ready(End::Cut),
                    // Whoever waits for a backend has seen it.
                    Phase::Connect | Phase::Response | Phase::Tunnel => {}
                }
            }
            // Not in the middle of a head, nor when one has come and was not read yet: that request shall still be served.
            let asks = || wire.mid_head() || (watch.phase() == Phase::Idle && wire.has_unread());
            if watch.draining() && !asked_to_end && !asks() {
                asked_to_end = true;
                http.as_mut().graceful_shutdown();
                continue;
            }
            return Poll::Pending;
        }
    })
    .await
}

/// Answers with an error and ends the connection so that the client can read it: closing a socket with unread bytes in it
/// would send a reset, which may overtake the answer.
async fn refuse(wire: &Rc<Wire>, refusal: Refusal) {
    let mut io = wire.io();
    let answer = async {
        io.write_all(refusal_text(refusal).as_bytes()).await?;
        poll_fn(|cx| wire.poll_shutdown_raw(cx)).await?;
        linger(wire).await
    };
    let _ = tokio::time::timeout(LINGER, answer).await;
}

/// Throws away what the client still sends, until it has read our end of the connection and closes its own.
async fn linger(wire: &Wire) -> std::io::Result<()> {
    let mut space = vec![0; BUFFER_BYTES];
    for _ in 0..LINGER_READS {
        let mut piece = ReadBuf::new(&mut space);
        poll_fn(|cx| wire.poll_read_raw(cx, &mut piece)).await?;
        if piece.filled().is_empty() {
            break;
        }
    }
    Ok(())
}

const LINGER: Duration = Duration::from_secs(1);
const LINGER_READS: usize = 256;

/// A whole response that ends its connection.
fn refusal_text(refusal: Refusal) -> String {
    let status = http::StatusCode::from_u16(refusal.status).unwrap_or_default();
    let title = status.canonical_reason().unwrap_or("Error");
    let body = format!("{} {title}: {}\n", refusal.status, refusal.reason);
    format!(
        "HTTP/1.1 {} {title}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\
         date: {}\r\n\r\n{body}",
        refusal.status,
        body.len(),
        httpdate::fmt_http_date(std::time::SystemTime::now()),
    )
}

/// Turns a connection away because there are too many.
pub async fn turn_away(tcp: TcpStream) {
    let mut tcp = tcp;
    let refusal = Refusal { status: 503, reason: "this listener has as many connections as it takes" };
    let linger = async {
        tcp.write_all(refusal_text(refusal).as_bytes()).await?;
        tcp.shutdown().await?;
        let mut space = [0; 4096];
        loop {
            let mut piece = ReadBuf::new(&mut space);
            poll_fn(|cx| tokio::io::AsyncRead::poll_read(Pin::new(&mut tcp), cx, &mut piece)).await?;
            if piece.filled().is_empty() {
                return std::io::Result::Ok(());
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, linger).await;
}

fn text(value: impl std::fmt::Display) -> HeaderValue {
    HeaderValue::try_from(value.to_string()).unwrap_or(HeaderValue::from_static("unknown"))
}
