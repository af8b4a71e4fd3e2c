//! Bodies that middleware has wrapped. They are asked for the next piece when there is room for it, and so is what they wrap.
//!
//! What comes from the other side is still counted, bounded and ended where it comes from, below the wrapper: the limit of a request's
//! body holds for what the client sends. What a wrapper makes of it is counted where it goes on.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};

use super::{BodyError, BodySource, ExchangeProgress, RequestBody};
use crate::exchange::deadline::Way;
use crate::http1::splice::Pipe;

/// A body as middleware gets and gives it: data, then perhaps trailers. It lives on one worker.
///
/// A wrapper passes on the errors of the body that it wraps: a body that has broken off below is cut short in any case.
pub type BoxBody = Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError>>>;

/// Makes a body of another.
pub type Wrap = Box<dyn FnOnce(BoxBody) -> BoxBody>;

/// A wrapped body, and what is known of what is below it.
pub(super) struct Wrapped {
    body: BoxBody,
    over: bool,
    /// Whether what is below has broken off.
    broke: Rc<Cell<bool>>,
}

impl Wrapped {
    pub(super) fn new(body: BoxBody, broke: Rc<Cell<bool>>) -> Self {
        let over = body.is_end_stream();
        Self { body, over, broke }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    pub(super) fn body(&self) -> &BoxBody {
        &self.body
    }

    /// The next piece, which has some bytes if it is one of data. `failed` is told if it is the wrapper that breaks it off.
    pub(super) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        failed: impl FnOnce(),
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let piece = ready!(self.body.as_mut().poll_frame(cx));
            if self.broke.get() {
                self.over = false;
                let cut = || BodyError::Backend(io::ErrorKind::UnexpectedEof.into());
                return Poll::Ready(Some(Err(piece.and_then(Result::err).unwrap_or_else(cut))));
            }
            match &piece {
                None => self.over = true,
                Some(Ok(frame)) => {
                    self.over = frame.is_trailers() || self.body.is_end_stream();
                    if !self.over && frame.data_ref().is_some_and(Bytes::is_empty) {
                        continue;
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "a middleware broke a body off");
                    failed();
                }
            }
            return Poll::Ready(piece);
        }
    }
}

/// Where the body of a request comes from that middleware has wrapped.
pub struct WrappedSource {
    /// Until nothing of it is wanted any more.
    wrapped: RefCell<Option<Wrapped>>,
    done: Cell<bool>,
    exchange: Rc<dyn ExchangeProgress>,
}

impl WrappedSource {
    /// Wraps the body of a request, by each in turn.
    pub fn wrap(
        source: Rc<dyn BodySource>,
        exchange: Rc<dyn ExchangeProgress>,
        wraps: impl IntoIterator<Item = Wrap>,
    ) -> Rc<dyn BodySource> {
        let broke = Rc::<Cell<bool>>::default();
        let below = Rc::new(Below { exchange: Rc::clone(&exchange), broke: Rc::clone(&broke) });
        let body: BoxBody = Box::pin(RequestBody::streamed(source, below));
        let body = wraps.into_iter().fold(body, |body, wrap| wrap(body));
        let wrapped = Wrapped::new(body, broke);
        Rc::new(Self { done: Cell::new(wrapped.is_over()), wrapped: RefCell::new(Some(wrapped)), exchange })
    }
}

impl BodySource for WrappedSource {
    fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut wrapped = self.wrapped.borrow_mut();
        let Some(wrapped) = wrapped.as_mut().filter(|_| !self.done.get()) else { return Poll::Ready(None) };
        let piece = ready!(wrapped.poll_piece(cx, || self.exchange.wrapper_failed(Way::Up)));
        self.done.set(wrapped.is_over());
        Poll::Ready(match piece {
            // The end may have come with a piece of nothing.
            Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => None,
            piece => piece.map(|piece| piece.map_err(io::Error::other)),
        })
    }

    fn is_done(&self) -> bool {
        self.done.get()
    }

    fn left(&self) -> Option<u64> {
        match &*self.wrapped.borrow() {
            Some(wrapped) if !self.done.get() => wrapped.body().size_hint().exact(),
            _ => Some(0),
        }
    }

    fn want(&self, wanted: bool) {
        if !wanted {
            // With it goes its hold on what the client sends.
            *self.wrapped.borrow_mut() = None;
        }
    }

    fn splices(&self) -> bool {
        false
    }

    fn poll_pour(&self, _: &mut Context<'_>, _: &mut Pipe) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    fn told(&self, exchange: Rc<dyn ExchangeProgress>) -> Rc<dyn ExchangeProgress> {
        Rc::new(Above(exchange))
    }
}

/// What an exchange is told of the bodies below wrappers. What goes on to the client, and how that ends, is told above them.
pub(super) struct Below {
    pub(super) exchange: Rc<dyn ExchangeProgress>,
    pub(super) broke: Rc<Cell<bool>>,
}

impl ExchangeProgress for Below {
    fn request_data(&self, data: &[u8]) -> Result<(), BodyError> {
        self.exchange.request_data(data).inspect_err(|_| self.broke.set(true))
    }

    fn request_poured(&self, bytes: usize) -> Result<(), BodyError> {
        self.exchange.request_poured(bytes).inspect_err(|_| self.broke.set(true))
    }

    fn waits_for_client(&self, waits: bool) {
        self.exchange.waits_for_client(waits);
    }

    fn request_ended(&self, complete: bool) {
        // Its end is that of what is made of it.
        if !complete {
            self.broke.set(true);
            self.exchange.request_ended(false);
        }
    }

    fn response_read(&self) {
        self.exchange.response_read();
    }

    fn paces_response(&self) -> bool {
        self.exchange.paces_response()
    }

    fn request_trailers(&self, trailers: &mut HeaderMap) {
        self.exchange.request_trailers(trailers);
    }

    fn response_trailers(&self, trailers: &mut HeaderMap) {
        self.exchange.response_trailers(trailers);
    }

    fn response_broke(&self) {
        self.broke.set(true);
        self.exchange.response_broke();
    }
}

/// What an exchange is told of a request's body above its wrappers: only how it ends. All else was told below.
struct Above(Rc<dyn ExchangeProgress>);

impl ExchangeProgress for Above {
    fn request_ended(&self, complete: bool) {
        self.0.request_ended(complete);
    }
}
