//! Bodies on their way: counted, bounded, never gathered.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::backend::Lease;
use crate::exchange::deadline::Way;
use crate::http1::splice::Pipe;

mod expect_continue;
mod request;
mod wrapped;

pub use expect_continue::Asking;
pub use request::RequestBody;
use wrapped::{Below, Wrapped};
pub use wrapped::{BoxBody, Wrap, WrappedSource};

/// What wants to know how an exchange goes on while its bodies are under way. By default a method does nothing, lets all go on, and has the
/// client keep the pace.
pub trait ExchangeProgress {
    /// A piece of the request's body came from the client. `Err` when the body is not to go on.
    fn request_data(&self, _data: &[u8]) -> Result<(), BodyError> {
        Ok(())
    }
    /// The same of one that goes from socket to socket.
    fn request_poured(&self, _bytes: usize) -> Result<(), BodyError> {
        Ok(())
    }
    /// The request's body waits for the client (`true`) or for the backend.
    fn waits_for_client(&self, _waits: bool) {}
    /// The request's body ended well, or broke on the client's side.
    fn request_ended(&self, _complete: bool) {}
    /// All of the response has been read from the backend: its connection may take the next request.
    fn response_read(&self) {}
    /// Whether the client is to keep the pace of its listener with the response.
    fn paces_response(&self) -> bool {
        true
    }
    /// A piece of the response's body goes to the client.
    fn response_data(&self, _bytes: usize) {}
    /// The trailers of the request go to the backend: those that must not are removed.
    fn request_trailers(&self, _trailers: &mut HeaderMap) {}
    /// The trailers of the response go to the client: those that must not are removed.
    fn response_trailers(&self, _trailers: &mut HeaderMap) {}
    /// The backend broke the response's body off.
    fn response_broke(&self) {}
    /// A middleware has broken off a body that it has wrapped: that of the request, or of the response.
    fn wrapper_failed(&self, _way: Way) {}
    /// The response is about to be cut short: trailers that say so, if the client understands them.
    fn last_words(&self) -> Option<HeaderMap> {
        None
    }
    /// The response is over: all of it went to the client's connection, or (`false`) it was cut short.
    fn ended(&self, _complete: bool) {}
}

/// Where a body comes from: a client's connection, or a backend's.
pub trait BodySource {
    /// The next piece, or the trailer section; `None` at the end.
    fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>>;
    /// Whether nothing is left.
    fn is_done(&self) -> bool;
    /// Bytes that are left, where that is known.
    fn left(&self) -> Option<u64>;
    /// Whether a reader is going to take the rest.
    fn want(&self, wanted: bool);
    /// Whether the rest is large, of known length, and may be poured.
    fn splices(&self) -> bool;
    /// Takes the next piece into an empty pipe: how many bytes it is.
    fn poll_pour(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>>;
    /// What is to be told how this goes on, where `exchange` is to know. Default is `exchange` itself; one that tells it already how what
    /// it is made of goes on gives another.
    fn told(&self, exchange: Rc<dyn ExchangeProgress>) -> Rc<dyn ExchangeProgress> {
        exchange
    }
}

/// From so many bytes on a body is poured: below, setting up costs more than copying.
pub const POURED_BYTES: u64 = 256 * 1024;

/// Why a body does not go on.
#[derive(Debug)]
pub enum BodyError {
    /// The request's body, or a message of a call, is longer than the route or the listener allows.
    TooLarge,
    /// The client broke it off.
    Client(io::Error),
    /// The backend broke it off.
    Backend(io::Error),
    /// A middleware that has wrapped it broke it off.
    Middleware(io::Error),
}

impl std::fmt::Display for BodyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "body larger than allowed",
            Self::Client(_) | Self::Backend(_) | Self::Middleware(_) => "body cut short",
        })
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::TooLarge => None,
            Self::Client(error) | Self::Backend(error) | Self::Middleware(error) => Some(error),
        }
    }
}

/// A response's body.
#[derive(Default)]
pub struct Body {
    kind: BodyKind,
    /// Whether the client did not get all that was taken.
    cut: bool,
    exchange: Option<Rc<dyn ExchangeProgress>>,
}

#[derive(Default)]
enum BodyKind {
    #[default]
    Empty,
    Full(Bytes, Option<Lease>),
    Leased(LeasedBody),
    Wrapped(Box<Wrapped>),
}

/// A backend's response on its way to the client. Holds the lease, so that the request counts as in flight until the last
/// byte.
struct LeasedBody {
    /// Until all of it has been read.
    source: Option<Rc<dyn BodySource>>,
    _lease: Lease,
}

impl Body {
    /// No bytes.
    pub fn empty() -> Self {
        Self::default()
    }

    /// These bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let kind = if bytes.is_empty() { BodyKind::Empty } else { BodyKind::Full(bytes, None) };
        Self { kind, cut: false, exchange: None }
    }

    /// What a backend has sent, all of it.
    pub fn whole(bytes: Bytes, lease: Lease) -> Self {
        let kind = if bytes.is_empty() { BodyKind::Empty } else { BodyKind::Full(bytes, Some(lease)) };
        Self { kind, cut: false, exchange: None }
    }

    /// What a backend sends.
    pub fn leased(source: Rc<dyn BodySource>, lease: Lease) -> Self {
        Self { kind: BodyKind::Leased(LeasedBody { source: Some(source), _lease: lease }), cut: false, exchange: None }
    }

    /// A body that a middleware makes.
    pub fn made(body: BoxBody) -> Self {
        Self { kind: BodyKind::Wrapped(Box::new(Wrapped::new(body, Rc::default()))), cut: false, exchange: None }
    }

    /// Puts another body in place of this one, which is made of it. What happens below is told to `exchange`.
    pub fn wrap(&mut self, wrap: impl FnOnce(BoxBody) -> BoxBody, exchange: Rc<dyn ExchangeProgress>) {
        let mut below = std::mem::take(self);
        let broke = Rc::default();
        below.observe(Rc::new(Below { exchange, broke: Rc::clone(&broke) }));
        self.kind = BodyKind::Wrapped(Box::new(Wrapped::new(wrap(Box::pin(below)), broke)));
    }

    /// Has `exchange` told how this body goes on and that it ended.
    pub fn observe(&mut self, exchange: Rc<dyn ExchangeProgress>) {
        self.exchange = Some(exchange);
    }

    /// Whether the rest may be poured.
    pub fn splices(&self) -> bool {
        matches!(&self.kind, BodyKind::Leased(LeasedBody { source: Some(source), .. }) if source.splices())
    }

    /// Takes the next piece into an empty pipe: how many bytes it is. Only where [`Body::splices`].
    ///
    /// # Errors
    /// When the backend breaks it off.
    pub fn poll_pour(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        let BodyKind::Leased(LeasedBody { source: from @ Some(_), .. }) = &mut self.kind else {
            return Poll::Ready(Ok(0));
        };
        let Some(source) = from else { return Poll::Ready(Ok(0)) };
        let bytes = ready!(source.poll_pour(cx, pipe))?;
        let over = source.is_done();
        if over {
            *from = None;
        }
        if let Some(exchange) = &self.exchange {
            exchange.response_data(bytes);
            if over {
                exchange.response_read();
            }
        }
        Poll::Ready(Ok(bytes))
    }

    /// The answer is whole without it, as that to a HEAD is.
    pub fn leave_out(&mut self) {
        if let BodyKind::Full(..) | BodyKind::Wrapped(_) = self.kind {
            self.kind = BodyKind::Empty;
        }
    }

    /// Whether the client is to keep the pace of its listener with it.
    pub fn is_paced(&self) -> bool {
        self.exchange.as_ref().is_none_or(|exchange| exchange.paces_response())
    }

    /// What is to be said in place of the rest, which does not go on.
    pub fn last_words(&self) -> Option<HeaderMap> {
        self.exchange.as_ref()?.last_words()
    }

    /// The client did not get all that was taken.
    pub fn cut(&mut self) {
        self.cut = true;
    }

    fn is_done(&self) -> bool {
        match &self.kind {
            BodyKind::Empty => true,
            BodyKind::Full(..) => false,
            BodyKind::Leased(body) => body.source.is_none(),
            BodyKind::Wrapped(body) => body.is_over(),
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.kind {
            BodyKind::Empty => "Body::Empty",
            BodyKind::Full(..) => "Body::Full",
            BodyKind::Leased(_) => "Body::Leased",
            BodyKind::Wrapped(_) => "Body::Wrapped",
        })
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        match &mut this.kind {
            BodyKind::Empty => Poll::Ready(None),
            BodyKind::Full(bytes, lease) => {
                let (bytes, lease) = (std::mem::take(bytes), lease.take());
                this.kind = BodyKind::Empty;
                if let Some(exchange) = &this.exchange {
                    exchange.response_data(bytes.len());
                }
                drop(lease);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            BodyKind::Leased(body) => {
                let Some(source) = &body.source else { return Poll::Ready(None) };
                let mut frame = ready!(source.poll_piece(cx));
                // It may have been the last.
                if source.is_done() {
                    body.source = None;
                    if let Some(exchange) = &this.exchange {
                        exchange.response_read();
                    }
                }
                if let (Some(exchange), Some(Ok(frame))) = (&this.exchange, &mut frame) {
                    if let Some(data) = frame.data_ref() {
                        exchange.response_data(data.len());
                    } else if let Some(trailers) = frame.trailers_mut() {
                        exchange.response_trailers(trailers);
                    }
                }
                if let (Some(exchange), Some(Err(_))) = (&this.exchange, &frame) {
                    exchange.response_broke();
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Backend)))
            }
            BodyKind::Wrapped(body) => {
                let exchange = this.exchange.as_deref();
                let failed = || exchange.into_iter().for_each(|exchange| exchange.wrapper_failed(Way::Down));
                let frame = ready!(body.poll_piece(cx, failed));
                if let (Some(exchange), Some(Ok(frame))) = (exchange, &frame)
                    && let Some(data) = frame.data_ref()
                {
                    exchange.response_data(data.len());
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_done()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            BodyKind::Empty => SizeHint::with_exact(0),
            BodyKind::Full(bytes, _) => SizeHint::with_exact(bytes.len() as u64),
            BodyKind::Leased(body) => match body.source.as_ref().map_or(Some(0), |source| source.left()) {
                Some(left) => SizeHint::with_exact(left),
                None => SizeHint::default(),
            },
            BodyKind::Wrapped(body) if body.is_over() => SizeHint::with_exact(0),
            BodyKind::Wrapped(body) => body.body().size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.ended(self.is_done() && !self.cut);
        }
    }
}

/// For a body whose progress is of no interest.
#[cfg(test)]
impl ExchangeProgress for () {}

#[cfg(test)]
mod tests;
