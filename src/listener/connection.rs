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
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::config::{LingeringConfig, ListenerConfig};
use crate::exchange::body::{Body, BodySource};
use crate::exchange::deadline::{Clock, Phase, Watch};
use crate::exchange::{Client, ClientSide};
use crate::file_descriptors::DescriptorSeats;
use crate::http1::request::{MalformedRequest, ReceivedRequest, Terms};
use crate::proxy::upgrade::Tunnel;
use crate::proxy::{Handled, Proxy, Refusal};

use super::closing::{FIRST_REQUEST, LINGER, refusal_text};
use super::handshake::ClientStream;
use super::http1::{NextRequest, Wire};
use super::http2::{self, StreamTasks};
use super::refused_log::{self, RefusedRequest, Who};
use super::strict_framing::{LONG_TARGET, NOT_HTTP};
use super::{Listener, handshake, lingering};

/// How the HTTP part of a connection ended.
enum ConnectionEnd {
    /// As HTTP ends: the client closed it, or it broke, or what came is refused.
    Closed,
    /// We end it, behind an answer that says so.
    Said,
    /// The client went in the middle of an exchange.
    Gone,
    /// No further request came, or the process stops.
    Idle,
    /// A request's head did not come in time.
    HeadTimeout,
    /// What came is no request.
    Malformed(MalformedRequest),
    /// A response's body did not move, or broke, or the process ends now.
    Cut,
    /// Both sides have switched to another protocol.
    Tunnel(Box<Tunnel>),
}

/// What an accepted connection is served with: the settings of its listener at that moment, and what watches over it.
pub type Served = (Arc<ListenerConfig>, Rc<Watch>);

/// Makes a stream of an accepted connection. `None` when it has come to nothing, which is counted.
pub async fn accept(
    (tcp, peer): (TcpStream, SocketAddr),
    listener: &Arc<Listener>,
    clock: &Rc<Clock>,
    proxy: &Proxy,
) -> Option<(ClientStream, Served)> {
    let config = listener.config.load_full();
    let watch = Watch::new(clock, config.idle_timeout.min(config.header_timeout), super::owner(listener));
    if listener.draining.load(Ordering::Relaxed) {
        watch.drain();
    }
    let stream = handshake::stream((tcp, peer), listener, &watch, proxy).await?;
    Some((stream, (config, watch)))
}

/// Serves a client's stream to its end.
pub async fn serve(
    (stream, (config, watch)): (ClientStream, Served),
    listener: Arc<Listener>,
    tasks: Rc<StreamTasks>,
    proxy: Rc<Proxy>,
) {
    let ClientStream { socket, peer, sni_name, identity } = stream;
    let secure = socket.plain().is_none();
    watch.enter(Phase::Idle, config.idle_timeout.min(config.header_timeout));
    let wire = Wire::new(socket, &config, watch, Rc::clone(&proxy.transport.space));
    let ip = peer.ip().to_canonical();
    let client = Rc::new(Client {
        peer,
        trusted: config.trusts(ip),
        peer_text: text(ip),
        lines: RefCell::default(),
        port_text: text(listener.address.port()),
        scheme: if secure { "https" } else { "http" },
        indicated: sni_name,
        identity,
        metrics: Arc::clone(&listener.metrics),
        seats: DescriptorSeats::new(&proxy.transport.room),
        name: RefCell::new((0, config.name.clone())),
        listener: config,
    });
    let mut end = ConnectionEnd::Closed;
    if !wire.is_http2() {
        end = speak(&wire, &client, &proxy).await;
    }
    let shared = wire.abandon();
    // An answer that was cut short must not look whole.
    let well = match wire.is_http2() {
        true => {
            // In a box, see `handshake::stream`.
            if Box::pin(http2::serve(&wire, &client, &proxy, &tasks)).await {
                calm(&wire.watch).await;
            }
            true
        }
        false => finish(end, &wire, &client, &proxy).await,
    };
    if secure && well {
        let _ = tokio::time::timeout(handshake::CLOSE, poll_fn(|cx| wire.poll_shutdown(cx))).await;
    }
    if shared {
        wire.close();
    }
}

/// What follows when HTTP has ended on a connection. Whether the client got all that was for it.
async fn finish(end: ConnectionEnd, wire: &Rc<Wire>, client: &Client, proxy: &Proxy) -> bool {
    let refusal = match end {
        ConnectionEnd::Tunnel(tunnel) => {
            let held = wire.into_tunnel();
            return tunnel.run(wire.io(), held).await.is_ok();
        }
        ConnectionEnd::Said => {
            // What the client has sent beyond would turn the end of the connection into a reset, and that may overtake the
            // answer.
            if wire.mid_body() || wire.has_unread() {
                lingering::linger(wire, &client.listener.lingering).await;
            }
            return true;
        }
        ConnectionEnd::Idle => return true,
        ConnectionEnd::Gone | ConnectionEnd::Cut => return false,
        ConnectionEnd::Closed => wire.refusal(),
        ConnectionEnd::HeadTimeout => Some(refused_log::LATE),
        ConnectionEnd::Malformed(malformed) => Some(malformed_head(malformed)),
    };
    // A client that is too slow is not given longer for it.
    let lingering = if refusal == Some(refused_log::LATE) { &lingering::SHORT } else { &client.listener.lingering };
    if let Some(refusal) = refusal {
        client.metrics.of(proxy.worker).rejected.add(1);
        let answered = refusal != NOT_HTTP;
        refused_log::log(proxy, Who::Client(client), refusal, answered, || RefusedRequest::read(&wire.begun()));
        if answered {
            refuse(wire, refusal, lingering).await;
        }
    }
    true
}

/// What is said to a head that is none.
fn malformed_head(malformed: MalformedRequest) -> Refusal {
    match malformed {
        MalformedRequest::Line => Refusal::bad_request("the request line is not one of HTTP/1.1"),
        MalformedRequest::Target => Refusal::bad_request("the request target is not one of HTTP"),
        MalformedRequest::Fragment => Refusal::bad_request("the request target has a fragment"),
        MalformedRequest::LongTarget => LONG_TARGET,
        MalformedRequest::Field => Refusal::bad_request("a header field holds a forbidden character"),
    }
}

/// Speaks HTTP/1.1 until the connection ends or becomes a tunnel: one request after the other.
async fn speak(wire: &Rc<Wire>, client: &Rc<Client>, proxy: &Rc<Proxy>) -> ConnectionEnd {
    // Where a request's head and what it comes to are put: each is large, and so never moved.
    let mut slot = None;
    let mut handled = Handled::default();
    loop {
        let ReceivedRequest { head, terms, .. } = match next(wire, proxy, &mut slot).await {
            Ok(head) => head,
            Err(end) => return end,
        };
        wire.begin();
        let terms = *terms;
        let upload = (!wire.is_read()).then(|| Rc::clone(wire) as Rc<dyn BodySource>);
        {
            let side = (Rc::clone(client), Rc::clone(&wire.watch), Rc::clone(wire) as _);
            let exchange = pin!(Rc::clone(proxy).handle(side, head, upload, &mut handled));
            if let Some(end) = answered(wire, exchange).await {
                return end;
            }
        }
        // It holds the memory that it was read into.
        slot = None;
        // While others wait to be accepted, each has its turn.
        let last = wire.watch.draining() || proxy.process.descriptors.is_short();
        let head = (&mut handled.head, &mut handled.pass_through, &mut handled.rule_lines);
        let close = wire.respond(head, &handled.body, terms, last);
        if let Some(end) = sent(wire, &mut handled.body, terms).await {
            handled.body.cut();
            return end;
        }
        // With it goes the account of the exchange, which is over.
        handled.body = Body::empty();
        if let Some(tunnel) = handled.tunnel.take() {
            return ConnectionEnd::Tunnel(tunnel);
        }
        if close {
            if wire.is_wanted() {
                // A backend that has answered takes the rest of the request all the same.
                let _ = tokio::time::timeout(LINGER, poll_fn(|cx| wire.poll_shutdown(cx))).await;
                uploaded(wire).await;
            }
            return ConnectionEnd::Said;
        }
        if !wire.is_read() {
            if let Some(end) = uploaded(wire).await {
                return end;
            }
            if !wire.is_read() && !lingering::discard(wire, &client.listener.lingering).await {
                return ConnectionEnd::Closed;
            }
        }
        if wire.has_next() {
            // Nothing is read for it, so nothing else counts it against the connection's turn.
            tokio::task::consume_budget().await;
        }
    }
}

/// Waits for the next request, whose head is put into `slot`.
async fn next<'a>(
    wire: &Wire,
    proxy: &Proxy,
    slot: &'a mut Option<ReceivedRequest>,
) -> Result<&'a mut ReceivedRequest, ConnectionEnd> {
    let watch = &wire.watch;
    let mut awaited = false;
    let end = poll_fn(|cx| {
        watch.register(cx);
        match wire.poll_request(cx, slot, proxy.passes_through()) {
            Poll::Ready(NextRequest::Head) => return Poll::Ready(None),
            Poll::Ready(NextRequest::Closed) => return Poll::Ready(Some(ConnectionEnd::Closed)),
            Poll::Ready(NextRequest::Malformed(malformed)) => {
                return Poll::Ready(Some(ConnectionEnd::Malformed(malformed)));
            }
            Poll::Pending => {}
        }
        if watch.is_cut() {
            return Poll::Ready(Some(ConnectionEnd::Cut));
        }
        if watch.expired() {
            return Poll::Ready(Some(if watch.phase() == Phase::Head {
                ConnectionEnd::HeadTimeout
            } else {
                ConnectionEnd::Idle
            }));
        }
        // Not in the middle of a head, nor when one has come and was not read yet: that request shall still be served.
        if watch.draining() && !awaited && !wire.mid_head() && !wire.has_unread() {
            if !wire.take_fresh() && watch.since() >= FIRST_REQUEST {
                return Poll::Ready(Some(ConnectionEnd::Idle));
            }
            // A client that has just connected is about to ask, and one that asks all the time may be: its request may be on its way, and
            // nothing has told it that it should ask elsewhere. With TLS 1.2 it cannot have asked before.
            awaited = true;
            watch.enter(Phase::Idle, FIRST_REQUEST);
        }
        Poll::Pending
    })
    .await;
    match (slot, end) {
        (Some(head), None) => Ok(head),
        (_, end) => Err(end.unwrap_or(ConnectionEnd::Closed)),
    }
}

/// Waits for what the request comes to. How the connection ends, if it comes to nothing.
async fn answered(wire: &Wire, mut exchange: Pin<&mut impl Future<Output = ()>>) -> Option<ConnectionEnd> {
    let watch = &wire.watch;
    poll_fn(|cx| {
        watch.register(cx);
        if exchange.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        if wire.poll_ahead(cx).is_ready() {
            return Poll::Ready(Some(ConnectionEnd::Gone));
        }
        // The code that waits for a backend sees the deadlines.
        if watch.is_cut() { Poll::Ready(Some(ConnectionEnd::Cut)) } else { Poll::Pending }
    })
    .await
}

/// Sends the response. How the connection ends, if it cannot be sent.
async fn sent(wire: &Wire, body: &mut Body, terms: Terms) -> Option<ConnectionEnd> {
    let watch = &wire.watch;
    poll_fn(|cx| {
        watch.register(cx);
        match wire.poll_respond(cx, body, terms) {
            Poll::Ready(Ok(())) => return Poll::Ready(None),
            Poll::Ready(Err(_)) => return Poll::Ready(Some(ConnectionEnd::Cut)),
            Poll::Pending => {}
        }
        if wire.poll_ahead(cx).is_ready() {
            return Poll::Ready(Some(ConnectionEnd::Gone));
        }
        if watch.is_cut() || watch.expired() { Poll::Ready(Some(ConnectionEnd::Cut)) } else { Poll::Pending }
    })
    .await
}

/// Waits until the body of a request whose answer has been sent has been read to its end, or its backend takes no more of it. How the
/// connection ends, if neither comes.
async fn uploaded(wire: &Wire) -> Option<ConnectionEnd> {
    let watch = &wire.watch;
    poll_fn(|cx| {
        watch.register(cx);
        if wire.is_read() || !wire.is_wanted() {
            return Poll::Ready(None);
        }
        if watch.is_cut() || watch.expired() { Poll::Ready(Some(ConnectionEnd::Cut)) } else { Poll::Pending }
    })
    .await
}

/// Answers with an error and ends the connection so that the client can read it: closing a socket with unread bytes in it
/// would send a reset, which may overtake the answer.
async fn refuse(wire: &Rc<Wire>, refusal: Refusal, lingering: &LingeringConfig) {
    let mut io = wire.io();
    let answer = async {
        io.write_all(refusal_text(refusal).as_bytes()).await?;
        io.flush().await
    };
    if let Ok(Ok(())) = tokio::time::timeout(LINGER, answer).await {
        lingering::linger(wire, lingering).await;
    }
}

/// Keeps a client that has asked for too much waiting for a while: it gets the time to read why, nothing that it still sends costs
/// anything but room in its socket, and it cannot begin anew as fast as it is found out.
async fn calm(watch: &Watch) {
    let cut = poll_fn(|cx| {
        watch.register(cx);
        if watch.is_cut() { Poll::Ready(()) } else { Poll::Pending }
    });
    let _ = tokio::time::timeout(CALM, cut).await;
}

/// The same as [`LINGER`]; nothing under cargo-fuzz, most of whose clients ask for too much.
const CALM: Duration = if cfg!(fuzzing) { Duration::ZERO } else { LINGER };

fn text(value: impl std::fmt::Display) -> HeaderValue {
    HeaderValue::try_from(value.to_string()).unwrap_or(HeaderValue::from_static("unknown"))
}
