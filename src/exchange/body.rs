//! Bodies on their way: counted, bounded, never gathered.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::backend::Lease;
use crate::http1::pipe::Pipe;

/// What wants to know how an exchange goes on while its bodies are under way.
pub trait Progress {
    /// A piece of the request's body came from the client. `Err` when the body is not to go on.
    fn request_data(&self, bytes: usize) -> Result<(), BodyError>;
    /// The request's body waits for the client (`true`) or for the backend.
    fn waits_for_client(&self, waits: bool);
    /// The request's body ended well, or broke on the client's side.
    fn request_ended(&self, complete: bool);
    /// All of the response has been read from the backend: its connection may take the next request.
    fn response_read(&self);
    /// A piece of the response's body goes to the client.
    fn response_data(&self, bytes: usize);
    /// The trailers of the response go to the client.
    fn response_trailers(&self, trailers: &HeaderMap);
    /// The backend broke the response's body off.
    fn response_broke(&self);
    /// The response is about to be cut short: trailers that say so, where there is somebody who understands them.
    fn last_words(&self) -> Option<HeaderMap>;
    /// The response is over: all of it went to the client's connection, or (`false`) it was cut short.
    fn ended(&self, complete: bool);
}

/// Where a body comes from: a client's connection, or a backend's.
pub trait Source {
    /// The next piece, or the trailer section; `None` at the end.
    fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>>;
    /// Whether nothing is left.
    fn is_done(&self) -> bool;
    /// Bytes that are left, where that is known.
    fn left(&self) -> Option<u64>;
    /// Whether somebody is going to take the rest.
    fn want(&self, wanted: bool);
    /// Whether the rest is large, of known length, and may be poured.
    fn pours(&self) -> bool;
    /// Takes the next piece into an empty pipe: how many bytes it is.
    fn poll_pour(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>>;
}

/// From so many bytes on a body is poured: below, setting up costs more than copying.
pub const POURED_BYTES: u64 = 256 * 1024;

/// Why a body does not go on.
#[derive(Debug)]
pub enum BodyError {
    /// The request's body is longer than the listener allows.
    TooLarge,
    /// The client broke it off.
    Client(io::Error),
    /// The backend broke it off.
    Backend(io::Error),
}

impl std::fmt::Display for BodyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "body larger than allowed",
            Self::Client(_) | Self::Backend(_) => "body cut short",
        })
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::TooLarge => None,
            Self::Client(error) => Some(error),
            Self::Backend(error) => Some(error),
        }
    }
}

/// A response's body.
#[derive(Default)]
pub struct Body {
    kind: Kind,
    /// Whether the client did not get all that was taken.
    cut: bool,
    exchange: Option<Rc<dyn Progress>>,
}

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes, Option<Lease>),
    Leased(LeasedBody),
}

/// A backend's response on its way to the client. Holds the lease, so that the request counts as in flight until the last
/// byte.
struct LeasedBody {
    /// Until all of it has been read.
    source: Option<Rc<dyn Source>>,
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
        let kind = if bytes.is_empty() { Kind::Empty } else { Kind::Full(bytes, None) };
        Self { kind, cut: false, exchange: None }
    }

    /// What a backend has sent, all of it.
    pub fn whole(bytes: Bytes, lease: Lease) -> Self {
        let kind = if bytes.is_empty() { Kind::Empty } else { Kind::Full(bytes, Some(lease)) };
        Self { kind, cut: false, exchange: None }
    }

    /// What a backend sends.
    pub fn leased(source: Rc<dyn Source>, lease: Lease) -> Self {
        Self { kind: Kind::Leased(LeasedBody { source: Some(source), _lease: lease }), cut: false, exchange: None }
    }

    /// Has `exchange` told how this body goes on and that it ended.
    pub fn observe(&mut self, exchange: Rc<dyn Progress>) {
        self.exchange = Some(exchange);
    }

    /// Whether the rest may be poured.
    pub fn pours(&self) -> bool {
        matches!(&self.kind, Kind::Leased(LeasedBody { source: Some(source), .. }) if source.pours())
    }

    /// Takes the next piece into an empty pipe: how many bytes it is. Only where [`Body::pours`].
    ///
    /// # Errors
    /// When the backend breaks it off.
    pub fn poll_pour(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        let Kind::Leased(LeasedBody { source: from @ Some(_), .. }) = &mut self.kind else { return Poll::Ready(Ok(0)) };
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
        if let Kind::Full(..) = self.kind {
            self.kind = Kind::Empty;
        }
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
            Kind::Empty => true,
            Kind::Full(..) => false,
            Kind::Leased(body) => body.source.is_none(),
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.kind {
            Kind::Empty => "Body::Empty",
            Kind::Full(..) => "Body::Full",
            Kind::Leased(_) => "Body::Leased",
        })
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        match &mut this.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes, lease) => {
                let (bytes, lease) = (std::mem::take(bytes), lease.take());
                this.kind = Kind::Empty;
                if let Some(exchange) = &this.exchange {
                    exchange.response_data(bytes.len());
                }
                drop(lease);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Leased(body) => {
                let Some(source) = &body.source else { return Poll::Ready(None) };
                let frame = ready!(source.poll_piece(cx));
                // It may have been the last.
                if source.is_done() {
                    body.source = None;
                    if let Some(exchange) = &this.exchange {
                        exchange.response_read();
                    }
                }
                if let (Some(exchange), Some(Ok(frame))) = (&this.exchange, &frame) {
                    if let Some(data) = frame.data_ref() {
                        exchange.response_data(data.len());
                    } else if let Some(trailers) = frame.trailers_ref() {
                        exchange.response_trailers(trailers);
                    }
                }
                if let (Some(exchange), Some(Err(_))) = (&this.exchange, &frame) {
                    exchange.response_broke();
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Backend)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_done()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes, _) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Leased(body) => match body.source.as_ref().map_or(Some(0), |source| source.left()) {
                Some(left) => SizeHint::with_exact(left),
                None => SizeHint::default(),
            },
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

/// A client's request body on its way to a backend.
pub struct RequestBody(Option<Streamed>);

struct Streamed {
    /// A piece that was taken before and not sent.
    unread: Bytes,
    /// Until all of it has been read.
    source: Option<Rc<dyn Source>>,
    exchange: Rc<dyn Progress>,
    /// What was handed out, where the body may have to be sent again.
    kept: Option<Box<Kept>>,
}

/// All of a request's body that was handed out so far.
#[derive(Clone, Default)]
struct Kept {
    /// A copy: a piece of a few bytes would keep the block that it was read into.
    bytes: BytesMut,
    /// So many of them were handed out; when all were, the source comes next.
    next: usize,
    /// Bytes that may still be kept.
    room: usize,
}

impl Streamed {
    /// If it is over, lets the client's connection go on to its next request.
    fn over(&mut self) {
        if let Some(source) = self.source.take_if(|source| source.is_done()) {
            source.want(false);
            self.exchange.request_ended(true);
        }
    }
}

impl RequestBody {
    /// No bytes.
    pub fn empty() -> Self {
        Self(None)
    }

    /// What the client sends.
    pub fn streamed(source: Rc<dyn Source>, exchange: Rc<dyn Progress>) -> Self {
        source.want(true);
        Self(Some(Streamed { unread: Bytes::new(), source: Some(source), exchange, kept: None }))
    }

    /// Keeps what is handed out from now on, as long as it is not more than `limit` bytes, so that it can be sent again.
    pub fn keep(&mut self, limit: usize) {
        if let Some(body) = &mut self.0
            && body.source.as_ref().and_then(|source| source.left()).is_none_or(|left| left <= limit as u64)
        {
            body.kept = Some(Box::new(Kept { room: limit, ..Kept::default() }));
        }
    }

    /// Whether all that was handed out can be handed out again.
    pub fn is_kept(&self) -> bool {
        self.0.as_ref().is_none_or(|body| body.kept.is_some())
    }

    /// Begins again, where the body was kept. Where it was not, it goes on with what was given back.
    pub fn rewind(&mut self) {
        if let Some(body) = &mut self.0
            && let Some(kept) = &mut body.kept
        {
            kept.next = 0;
            body.unread = Bytes::new();
        }
    }

    /// The same body for another backend at the same time; `None` unless all of it has come from the client and was kept.
    pub fn copy(&self) -> Option<Self> {
        let Some(body) = &self.0 else { return Some(Self::empty()) };
        let kept = body.kept.as_ref().filter(|_| body.source.is_none())?;
        let kept = Some(Box::new(Kept { next: 0, ..(**kept).clone() }));
        Some(Self(Some(Streamed { unread: Bytes::new(), source: None, exchange: Rc::clone(&body.exchange), kept })))
    }

    /// All that a backend takes of it is sent: it is over, unless it was kept to be sent again.
    pub fn sent(&mut self) {
        if let Some(body) = &mut self.0
            && body.kept.is_none()
        {
            // Not an empty body from now on: that could be sent again.
            body.unread = Bytes::new();
            body.end();
        }
    }

    /// Takes back a piece that was not sent: it comes again.
    pub fn unread(&mut self, piece: Bytes) {
        if let Some(body) = &mut self.0 {
            body.unread = piece;
        }
    }
}

impl RequestBody {
    /// Whether the rest may be poured.
    pub fn pours(&self) -> bool {
        let source = self
            .0
            .as_ref()
            .filter(|body| body.unread.is_empty() && body.kept.is_none())
            .and_then(|body| body.source.as_ref());
        source.is_some_and(|source| source.pours())
    }

    /// Takes the next piece into an empty pipe: how many bytes it is. Only where [`RequestBody::pours`].
    ///
    /// # Errors
    /// When the client breaks it off, or it is longer than allowed.
    pub fn poll_pour(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Result<usize, BodyError>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(Ok(0)) };
        let Some(source) = &body.source else { return Poll::Ready(Ok(0)) };
        let poured = source.poll_pour(cx, pipe);
        body.exchange.waits_for_client(poured.is_pending());
        let bytes = match ready!(poured) {
            Ok(bytes) => bytes,
            Err(error) => {
                body.exchange.request_ended(false);
                return Poll::Ready(Err(BodyError::Client(error)));
            }
        };
        body.exchange.request_data(bytes)?;
        body.over();
        Poll::Ready(Ok(bytes))
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        if let Some(kept) = &mut body.kept
            && kept.next < kept.bytes.len()
        {
            let again = Bytes::copy_from_slice(&kept.bytes[kept.next..]);
            kept.next = kept.bytes.len();
            return Poll::Ready(Some(Ok(Frame::data(again))));
        }
        if !body.unread.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut body.unread)))));
        }
        let Some(source) = &body.source else { return Poll::Ready(None) };
        let frame = match source.poll_piece(cx) {
            Poll::Pending => {
                body.exchange.waits_for_client(true);
                return Poll::Pending;
            }
            Poll::Ready(frame) => frame,
        };
        body.exchange.waits_for_client(false);
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            body.exchange.request_data(data.len())?;
        }
        if let Some(Err(error)) = frame {
            body.exchange.request_ended(false);
            return Poll::Ready(Some(Err(BodyError::Client(error))));
        }
        if let Some(kept) = &mut body.kept
            && let Some(Ok(frame)) = &frame
            && !kept.take(frame)
        {
            body.kept = None;
        }
        body.over();
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Client)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|body| body.unread.is_empty() && body.source.is_none() && body.again() == 0)
    }

    fn size_hint(&self) -> SizeHint {
        let Some(body) = &self.0 else { return SizeHint::with_exact(0) };
        match body.source.as_ref().map_or(Some(0), |source| source.left()) {
            Some(left) => SizeHint::with_exact(left + body.unread.len() as u64 + body.again()),
            None => SizeHint::default(),
        }
    }
}

impl Streamed {
    /// Nothing more is taken from the client.
    fn end(&mut self) {
        if let Some(source) = self.source.take() {
            source.want(false);
        }
    }

    /// Bytes that come again.
    fn again(&self) -> u64 {
        self.kept.as_ref().map_or(0, |kept| kept.bytes.len().saturating_sub(kept.next) as u64)
    }
}

impl Kept {
    /// Keeps a piece that is handed out; `false` where that cannot be: it is too much, or no data.
    fn take(&mut self, frame: &Frame<Bytes>) -> bool {
        let Some(data) = frame.data_ref().filter(|data| data.len() <= self.room) else { return false };
        self.room -= data.len();
        self.bytes.extend_from_slice(data);
        self.next = self.bytes.len();
        true
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(body) = &mut self.0 {
            body.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// A client that has sent these pieces, and goes on when more are put in.
    #[derive(Default)]
    struct Pieces {
        left: RefCell<VecDeque<Bytes>>,
        ended: Cell<bool>,
        wanted: Cell<bool>,
    }

    impl Source for Pieces {
        fn pours(&self) -> bool {
            false
        }

        fn poll_pour(&self, _: &mut Context<'_>, _: &mut Pipe) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(0))
        }

        fn poll_piece(&self, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
            match self.left.borrow_mut().pop_front() {
                Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
                None if self.ended.get() => Poll::Ready(None),
                None => Poll::Pending,
            }
        }

        fn is_done(&self) -> bool {
            self.ended.get() && self.left.borrow().is_empty()
        }

        fn left(&self) -> Option<u64> {
            self.ended.get().then(|| self.left.borrow().iter().map(|piece| piece.len() as u64).sum())
        }

        fn want(&self, wanted: bool) {
            self.wanted.set(wanted);
        }
    }

    struct Nobody;

    impl Progress for Nobody {
        fn request_data(&self, _: usize) -> Result<(), BodyError> {
            Ok(())
        }
        fn waits_for_client(&self, _: bool) {}
        fn request_ended(&self, _: bool) {}
        fn response_read(&self) {}
        fn response_data(&self, _: usize) {}
        fn response_trailers(&self, _: &HeaderMap) {}
        fn last_words(&self) -> Option<HeaderMap> {
            None
        }
        fn response_broke(&self) {}
        fn ended(&self, _: bool) {}
    }

    fn body(pieces: &[&[u8]]) -> (Rc<Pieces>, RequestBody) {
        let source = Rc::new(Pieces::default());
        source.left.borrow_mut().extend(pieces.iter().map(|piece| Bytes::copy_from_slice(piece)));
        let body = RequestBody::streamed(Rc::clone(&source) as Rc<dyn Source>, Rc::new(Nobody));
        (source, body)
    }

    /// So many pieces of it, or as many as there are.
    fn take(body: &mut RequestBody, pieces: usize) -> Vec<u8> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut taken = Vec::new();
        for _ in 0..pieces {
            match Pin::new(&mut *body).poll_frame(&mut cx) {
                Poll::Ready(Some(Ok(frame))) => taken.extend_from_slice(frame.data_ref().unwrap()),
                _ => break,
            }
        }
        taken
    }

    #[test]
    fn a_body_that_is_too_long_to_keep_is_not_taken_for_an_empty_one_once_it_is_sent() {
        for limit in [None, Some(3), Some(4)] {
            let (source, mut body) = body(&[b"ab", b"cd"]);
            if let Some(limit) = limit {
                body.keep(limit);
            }
            source.ended.set(true);
            assert_eq!(take(&mut body, 9), b"abcd");
            body.sent();
            assert_eq!(body.is_kept(), limit == Some(4), "{limit:?}");
            assert!(body.is_end_stream());
            assert_eq!(body.copy().is_some(), limit == Some(4));
        }
    }

    #[test]
    fn a_body_that_nobody_takes_any_more_lets_its_client_go() {
        let (source, mut body) = body(&[b"ab"]);
        assert!(source.wanted.get());
        take(&mut body, 1);
        body.sent();
        assert!(!source.wanted.get());
    }

    #[test]
    fn a_copy_is_made_of_a_whole_body_only() {
        let (source, mut body) = body(&[b"ab", b"cd"]);
        body.keep(10);
        take(&mut body, 2);
        assert!(body.copy().is_none());
        source.ended.set(true);
        take(&mut body, 1);
        // Its end was not seen yet: that takes a piece or the question for one.
        let mut copy = body.copy().unwrap();
        assert_eq!(copy.size_hint().exact(), Some(4));
        assert_eq!(take(&mut copy, 9), b"abcd");
        assert!(copy.is_end_stream() && RequestBody::empty().copy().is_some());
    }

    proptest! {
        /// However often and wherever it is begun anew, a kept body is the same each time.
        #[test]
        fn what_was_kept_comes_again(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..5), 0..8),
            rounds in prop::collection::vec(0_usize..10, 0..6),
        ) {
            let refs: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let whole = pieces.concat();
            let (source, mut body) = body(&refs);
            source.ended.set(true);
            body.keep(whole.len());
            for round in rounds {
                body.rewind();
                prop_assert_eq!(body.size_hint().exact(), Some(whole.len() as u64));
                let taken = take(&mut body, round);
                prop_assert!(whole.starts_with(&taken));
                body.sent();
                prop_assert!(body.is_kept());
            }
            body.rewind();
            prop_assert_eq!(take(&mut body, 99), whole);
            prop_assert!(body.is_end_stream());
        }
    }
}
