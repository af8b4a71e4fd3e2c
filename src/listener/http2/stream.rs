//! One stream: a request, its exchange, and the answer.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use tokio::time::Sleep;

use super::io::TunnelIo;
use super::request::{self, Ask, Fault};
use super::{ConnectionState, OpenStream};
use crate::config::LingeringConfig;
use crate::exchange::body::{Body, BodySource};
use crate::exchange::deadline::{Pace, Phase, Watch, Way};
use crate::exchange::{ClientSide, Expects, RequestHead};
use crate::listener::refused_log::{self, RefusedRequest, Who};
use crate::proxy::Handled;
use crate::proxy::upgrade::Tunnel;

mod head;
mod side;
mod source;

use head::{frame, strip};

/// How long a backend that has answered has to take what has come of the rest of the request.
const REST: Duration = Duration::from_secs(1);

/// Pieces that are thrown away before others get their turn.
const PIECES_A_TURN: usize = 16;

/// A stream, as its exchange sees it: where the request's body comes from, and the client's side. One piece of memory for all.
pub(super) struct ClientStream {
    watch: Rc<Watch>,
    /// Until the answer is whole, and nothing more of the request is wanted; the same of the next.
    pub(super) recv: RefCell<Option<RecvStream>>,
    respond: RefCell<Option<SendResponse<Bytes>>>,
    /// Bytes that were handed out and that the client's window does not have back yet.
    taken: Cell<usize>,
    /// Bytes of the request's body that are left, where it told how many there are.
    left: Cell<Option<u64>>,
    /// Whether the request's body has been read to its end.
    done: Cell<bool>,
    broken: Cell<bool>,
    /// Whether it broke because the client reset the stream, or is gone.
    gone: Cell<bool>,
    /// Whether a reader is going to take the rest of it.
    wanted: Cell<bool>,
    /// The reader that waits for the client.
    reader: RefCell<Option<Waker>>,
    /// Whether the client waits to be asked for it.
    expects: Cell<Expects>,
    /// Whether the exchange is over.
    over: Cell<bool>,
    /// Whether the client has no room for the response.
    stalled: Cell<bool>,
    body_idle: Cell<Duration>,
    /// When the exchange has to be over, where that is to be kept to exactly.
    alarm: RefCell<Option<Pin<Box<Sleep>>>>,
    /// How many bytes of a body the client is to move in a second.
    min_rate: u32,
}

/// How a stream ended that did not end well.
enum StreamFailure {
    /// The client reset it, or its connection is gone.
    Client,
    /// We do.
    Reset(Reason),
}

/// A stream that is to be served.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) open: OpenStream,
    pub(super) request: Request<RecvStream>,
    pub(super) respond: SendResponse<Bytes>,
}

/// Serves a stream to its end.
pub(super) async fn serve(Begun { open, request, respond }: Begun) {
    let shared = &open.shared;
    let (asked, recv) = take(request, shared.client.listener.max_headers);
    let whole = recv.is_end_stream();
    let stream = Rc::new(ClientStream {
        watch: Rc::clone(&open.watch),
        recv: RefCell::new(Some(recv)),
        respond: RefCell::new(Some(respond)),
        taken: Cell::new(0),
        left: Cell::new(None),
        done: Cell::new(whole),
        broken: Cell::new(false),
        gone: Cell::new(false),
        wanted: Cell::new(false),
        reader: RefCell::new(None),
        expects: Cell::default(),
        over: Cell::new(false),
        stalled: Cell::new(false),
        body_idle: Cell::new(shared.client.listener.idle_timeout),
        alarm: RefCell::new(None),
        min_rate: shared.client.listener.min_bytes_per_second,
    });
    let ended = match asked {
        Err(refused) => stream.refuse(refused.0, &refused.1, shared),
        Ok((mut head, ask)) => {
            let bodiless = head.method == Method::HEAD;
            if let Ask::Response { expects, length } = ask {
                stream.expects.set(if expects { Expects::Word } else { Expects::Nothing });
                stream.left.set(length);
            }
            let websocket = ask == Ask::WebSocket;
            let upload = (!whole && !websocket).then(|| Rc::clone(&stream) as Rc<dyn BodySource>);
            let side = (Rc::clone(&shared.client), Rc::clone(&stream.watch), Rc::clone(&stream) as Rc<dyn ClientSide>);
            let mut handled = Handled::default();
            let answered = {
                let proxy = Rc::clone(&shared.proxy);
                let exchange = pin!(proxy.handle(side, &mut head, upload, &mut handled));
                stream.answered(exchange).await
            };
            let response = Response::from_parts(handled.head, handled.body);
            if handled.last {
                // What comes on other streams is answered.
                shared.watch.drain();
            }
            match (answered, handled.tunnel) {
                (Err(cut), _) => Err(cut),
                (Ok(()), Some(tunnel)) if websocket => stream.tunnel(response, tunnel).await,
                (Ok(()), _) => stream.respond(response, bodiless, websocket).await,
            }
        }
    };
    match ended {
        Ok(()) => stream.uploaded(&shared.client.listener.lingering).await,
        Err(StreamFailure::Client) => shared.metrics().http2_resets_client.add(1),
        Err(StreamFailure::Reset(reason)) => {
            shared.metrics().http2_resets_proxy.add(1);
            if let Some(respond) = &mut *stream.respond.borrow_mut() {
                respond.send_reset(reason);
            }
        }
    }
}

/// A request that is none. In a box: few are.
type NoRequest = Box<(Fault, Parts)>;

/// Takes a request apart, and makes of it what it would be by HTTP/1.1.
fn take(request: Request<RecvStream>, max_headers: usize) -> (Result<(RequestHead, Ask), NoRequest>, RecvStream) {
    let (mut parts, recv) = request.into_parts();
    let asked = match request::check(&mut parts, recv.is_end_stream(), max_headers) {
        Ok(ask) => Ok((RequestHead::from(parts), ask)),
        Err(fault) => Err(Box::new((fault, parts))),
    };
    (asked, recv)
}

impl ClientStream {
    /// Tells a client that its request is none.
    #[cold]
    fn refuse(&self, fault: Fault, parts: &Parts, shared: &ConnectionState) -> Result<(), StreamFailure> {
        shared.metrics().rejected.add(1);
        let (refusal, answered) = match fault {
            Fault::Malformed => (refused_log::MALFORMED, false),
            Fault::Refused(refusal) => (refusal, true),
        };
        refused_log::log(&shared.proxy, Who::Client(&shared.client), refusal, answered, || RefusedRequest::of(parts));
        if !answered {
            return Err(StreamFailure::Reset(Reason::PROTOCOL_ERROR));
        }
        let text = Bytes::from(refusal.told());
        let mut response = Response::new(());
        *response.status_mut() = refusal.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
        let now = httpdate::fmt_http_date(std::time::SystemTime::now());
        headers.extend(HeaderValue::try_from(now).ok().map(|now| (header::DATE, now)));
        let mut send = self.begin(response, false).ok_or(StreamFailure::Client)?.map_err(|_| StreamFailure::Client)?;
        // A line is short enough to wait for its window in memory.
        send.send_data(text, true).map_err(|_| StreamFailure::Client)
    }

    /// Waits for what the request comes to. A client that resets its stream ends the exchange, and with it the attempt.
    async fn answered(&self, mut exchange: Pin<&mut impl Future<Output = ()>>) -> Result<(), StreamFailure> {
        let mut begun = false;
        poll_fn(|cx| {
            self.watch.register(cx);
            let first = !std::mem::replace(&mut begun, true);
            // A stream that was reset before isobar looked is no request for a backend.
            if first && self.is_reset(cx) {
                return Poll::Ready(Err(StreamFailure::Client));
            }
            if exchange.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            // Frames are read by another task, so between the two nothing has come.
            if !first && self.is_reset(cx) {
                return Poll::Ready(Err(StreamFailure::Client));
            }
            // The code that waits for a backend sees the deadlines.
            if self.rings(cx) {
                cx.waker().wake_by_ref();
            }
            if self.watch.is_cut() { Poll::Ready(Err(StreamFailure::Reset(Reason::CANCEL))) } else { Poll::Pending }
        })
        .await
    }

    /// Whether the client has reset the stream, or is gone.
    fn is_reset(&self, cx: &mut Context<'_>) -> bool {
        self.respond.borrow_mut().as_mut().is_none_or(|respond| respond.poll_reset(cx).is_ready())
    }

    /// Begins the answer.
    fn begin(&self, response: Response<()>, whole: bool) -> Option<Result<SendStream<Bytes>, h2::Error>> {
        self.respond.borrow_mut().as_mut().map(|respond| respond.send_response(response, whole))
    }

    fn inform_of(&self, response: Response<()>) {
        if let Some(respond) = &mut *self.respond.borrow_mut() {
            let _ = respond.send_informational(response);
        }
    }

    /// Sends the response.
    async fn respond(&self, response: Response<Body>, head: bool, websocket: bool) -> Result<(), StreamFailure> {
        let (mut parts, mut body) = response.into_parts();
        if websocket && (parts.status.is_success() || parts.status.is_informational()) {
            // The client would take it for its tunnel.
            body.cut();
            return Err(StreamFailure::Reset(Reason::INTERNAL_ERROR));
        }
        let bodiless = frame(&mut parts, &body, head);
        if bodiless {
            body.leave_out();
        }
        let whole = bodiless || body.is_end_stream();
        let Some(sent) = self.begin(Response::from_parts(parts, ()), whole) else { return Err(StreamFailure::Client) };
        let ended = match sent {
            Ok(_) if whole => Ok(()),
            Ok(mut send) => self.sent(&mut send, &mut body).await,
            Err(error) if error.is_io() || error.is_remote() => Err(StreamFailure::Client),
            Err(_) => Err(StreamFailure::Reset(Reason::INTERNAL_ERROR)),
        };
        if ended.is_err() {
            body.cut();
        }
        ended
    }

    /// Sends the response's body, piece after piece, as there is room for it at the client: a piece is asked for when the
    /// one before has gone.
    async fn sent(&self, send: &mut SendStream<Bytes>, body: &mut Body) -> Result<(), StreamFailure> {
        let mut piece = Bytes::new();
        let ended = poll_fn(|cx| {
            self.watch.register(cx);
            if let Poll::Ready(ended) = self.poll_sent(cx, send, body, &mut piece) {
                return Poll::Ready(ended);
            }
            if send.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(StreamFailure::Client));
            }
            if self.watch.is_cut() || self.watch.expired() || self.rings(cx) {
                return Poll::Ready(Err(StreamFailure::Reset(Reason::CANCEL)));
            }
            Poll::Pending
        })
        .await;
        // Not ended as if it were whole, but told of where the client understands that.
        if let Err(StreamFailure::Reset(_)) = ended
            && let Some(trailers) = body.last_words()
            && send.send_trailers(trailers).is_ok()
        {
            body.cut();
            return Ok(());
        }
        ended
    }

    /// Whether the time of the exchange is over just now.
    fn rings(&self, cx: &mut Context<'_>) -> bool {
        let mut alarm = self.alarm.borrow_mut();
        let rings = alarm.as_mut().is_some_and(|alarm| alarm.as_mut().poll(cx).is_ready());
        if rings {
            *alarm = None;
            self.watch.run_out();
        }
        rings
    }

    fn poll_sent(
        &self,
        cx: &mut Context<'_>,
        send: &mut SendStream<Bytes>,
        body: &mut Body,
        piece: &mut Bytes,
    ) -> Poll<Result<(), StreamFailure>> {
        let gone = |_| StreamFailure::Client;
        loop {
            if piece.is_empty() {
                self.stalled.set(false);
                match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) if data.is_empty() && !body.is_end_stream() => continue,
                        Ok(data) if data.is_empty() => return Poll::Ready(send.send_data(data, true).map_err(gone)),
                        Ok(data) => *piece = data,
                        Err(frame) => {
                            let mut trailers = frame.into_trailers().unwrap_or_default();
                            strip(&mut trailers);
                            trailers.remove(header::CONTENT_LENGTH);
                            return Poll::Ready(send.send_trailers(trailers).map_err(gone));
                        }
                    },
                    Some(Err(_)) => return Poll::Ready(Err(StreamFailure::Reset(Reason::INTERNAL_ERROR))),
                    None => return Poll::Ready(send.send_data(Bytes::new(), true).map_err(gone)),
                }
            }
            send.reserve_capacity(piece.len());
            let room = send.capacity();
            if room == 0 {
                self.stalled.set(true);
                match send.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(_))) => continue,
                    Poll::Ready(_) => return Poll::Ready(Err(StreamFailure::Client)),
                    Poll::Pending => {
                        if body.is_paced() {
                            let pace = Pace { bytes: self.min_rate, over: self.body_idle.get() };
                            self.watch.await_client(Way::Down, pace);
                        }
                        return Poll::Pending;
                    }
                }
            }
            let some = piece.split_to(room.min(piece.len()));
            self.watch.carried(some.len());
            self.watch.obliged(Way::Down);
            let last = piece.is_empty() && body.is_end_stream();
            send.send_data(some, last).map_err(gone)?;
            if last {
                return Poll::Ready(Ok(()));
            }
            if self.watch.phase() == Phase::Body {
                self.watch.extend(self.body_idle.get());
            }
        }
    }

    /// Carries what both sides say, once the backend has switched.
    async fn tunnel(self: &Rc<Self>, response: Response<Body>, tunnel: Box<Tunnel>) -> Result<(), StreamFailure> {
        let (mut parts, _) = response.into_parts();
        parts.status = StatusCode::OK;
        strip(&mut parts.headers);
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
        let sent = self.begin(Response::from_parts(parts, ()), false).ok_or(StreamFailure::Client)?;
        let send = Rc::new(RefCell::new(sent.map_err(|_| StreamFailure::Client)?));
        let mut carried = pin!(tunnel.run(TunnelIo::new(Rc::clone(self), Rc::clone(&send)), Vec::new()));
        poll_fn(|cx| match carried.as_mut().poll(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(_)) => Poll::Ready(Err(StreamFailure::Reset(Reason::CANCEL))),
            // If the client has ended its direction, nothing else sees it go.
            Poll::Pending => send.borrow_mut().poll_reset(cx).map(|_| Err(StreamFailure::Client)),
        })
        .await
    }

    /// Waits for a while until what has come of the rest of the request's body has been read, if a backend takes it. What has not come
    /// is not waited for: the answer is whole, and the end of the stream without an error tells the client to stop (RFC 9113 §8.1). A client
    /// that stops by itself would be told that its request is malformed, if it has said how long that is.
    async fn uploaded(&self, lingering: &LingeringConfig) {
        if self.done.get() {
            return;
        }
        if !self.wanted.get() {
            return self.discard(lingering).await;
        }
        let taken = poll_fn(|cx| {
            self.watch.register(cx);
            let reading = self.wanted.get() && !self.done.get() && !self.broken.get() && self.reader.borrow().is_none();
            if !reading || self.watch.is_cut() || self.watch.expired() { Poll::Ready(()) } else { Poll::Pending }
        });
        let _ = tokio::time::timeout(REST, taken).await;
        if self.done.get() {
            return;
        }
        // The reader holds this, and the stream ends when nothing holds it.
        drop((self.recv.take(), self.respond.take()));
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Reads on for a while and throws away what comes. A client that writes before it reads has a moment to see the answer: some, as curl
    /// 7.88, take the end of a stream that is told while they write for a failure, answer or not.
    async fn discard(&self, limits: &LingeringConfig) {
        // A client that waits for a word sends nothing.
        if self.expects.get() == Expects::Word {
            return;
        }
        let mut left = limits.bytes;
        let thrown_away = poll_fn(|cx| {
            self.watch.register(cx);
            for _ in 0..PIECES_A_TURN {
                if left == 0 || self.watch.is_cut() {
                    return Poll::Ready(());
                }
                match ready!(self.poll_piece(cx)) {
                    Some(Ok(piece)) => left = left.saturating_sub(piece.data_ref().map_or(0, |data| data.len() as u64)),
                    Some(Err(_)) | None => return Poll::Ready(()),
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        let _ = tokio::time::timeout(REST.min(limits.time), thrown_away).await;
    }

    /// The reader of the request's body has to wait for the client.
    fn awaited(&self, reader: &Waker) {
        *self.reader.borrow_mut() = Some(reader.clone());
        if self.over.get() {
            self.watch.wake();
        }
    }
}
