//! The body of a request, which may have to be sent again.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::{BodyError, BodySource, ExchangeProgress};
use crate::http1::splice::Pipe;

/// A client's request body on its way to a backend.
pub struct RequestBody(Option<Streamed>);

struct Streamed {
    /// A piece that was taken before and not sent.
    unread: Bytes,
    /// Until all of it has been read.
    source: Option<Rc<dyn BodySource>>,
    exchange: Rc<dyn ExchangeProgress>,
    /// What was handed out, where the body may have to be sent again.
    kept: Option<Box<ReplayBuffer>>,
}

/// All of a request's body that was handed out so far.
#[derive(Clone, Default)]
struct ReplayBuffer {
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
    pub fn streamed(source: Rc<dyn BodySource>, exchange: Rc<dyn ExchangeProgress>) -> Self {
        source.want(true);
        let exchange = source.told(exchange);
        Self(Some(Streamed { unread: Bytes::new(), source: Some(source), exchange, kept: None }))
    }

    /// Keeps what is handed out from now on, as long as it is not more than `limit` bytes, so that it can be sent again.
    pub fn keep(&mut self, limit: usize) {
        if let Some(body) = &mut self.0
            && body.source.as_ref().and_then(|source| source.left()).is_none_or(|left| left <= limit as u64)
        {
            body.kept = Some(Box::new(ReplayBuffer { room: limit, ..ReplayBuffer::default() }));
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
        let kept = Some(Box::new(ReplayBuffer { next: 0, ..(**kept).clone() }));
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
    pub fn splices(&self) -> bool {
        let source = self
            .0
            .as_ref()
            .filter(|body| body.unread.is_empty() && body.kept.is_none())
            .and_then(|body| body.source.as_ref());
        source.is_some_and(|source| source.splices())
    }

    /// Takes the next piece into an empty pipe: how many bytes it is. Only where [`RequestBody::splices`].
    ///
    /// # Errors
    /// When the client breaks it off, or it is longer than allowed.
    pub fn poll_pour(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Result<usize, BodyError>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(Ok(0)) };
        let Some(source) = &body.source else { return Poll::Ready(Ok(0)) };
        let spliced = source.poll_pour(cx, pipe);
        body.exchange.waits_for_client(spliced.is_pending());
        let bytes = match ready!(spliced) {
            Ok(bytes) => bytes,
            Err(error) => {
                body.exchange.request_ended(false);
                return Poll::Ready(Err(BodyError::Client(error)));
            }
        };
        body.exchange.request_poured(bytes)?;
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
        let mut frame = match source.poll_piece(cx) {
            Poll::Pending => {
                body.exchange.waits_for_client(true);
                return Poll::Pending;
            }
            Poll::Ready(frame) => frame,
        };
        body.exchange.waits_for_client(false);
        if let Some(Ok(frame)) = &mut frame {
            if let Some(data) = frame.data_ref() {
                body.exchange.request_data(data)?;
            } else if let Some(trailers) = frame.trailers_mut() {
                body.exchange.request_trailers(trailers);
            }
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

impl ReplayBuffer {
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
