//! Bodies on their way: counted, bounded, never gathered.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use crate::backend::Lease;

/// What wants to know how an exchange goes on while its bodies are under way.
pub trait Progress {
    /// A piece of the request's body came from the client. `Err` when the body is not to go on.
    fn request_data(&self, bytes: usize) -> Result<(), BodyError>;
    /// The request's body waits for the client (`true`) or for the backend.
    fn waits_for_client(&self, waits: bool);
    /// The request's body ended well, or broke on the client's side.
    fn request_ended(&self, complete: bool);
    /// A piece of the response's body is about to be taken from the backend's connection.
    fn taking(&self);
    /// There was none (`None`), or it was taken, and there is (`true`) more to come.
    fn taken(&self, more: Option<bool>);
    /// All of the response has been read from the backend: its connection may take the next request.
    fn response_read(&self);
    /// A piece of the response's body goes to the client.
    fn response_data(&self, bytes: usize);
    /// The response is over: all of it went to the client's connection, or (`false`) it was cut short.
    fn ended(&self, complete: bool);
}

/// Why a body does not go on.
#[derive(Debug)]
pub enum BodyError {
    /// The request's body is longer than the listener allows.
    TooLarge,
    /// The other end broke it off.
    Broken(hyper::Error),
}

impl std::fmt::Display for BodyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "body larger than allowed",
            Self::Broken(_) => "body cut short",
        })
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::TooLarge => None,
            Self::Broken(error) => Some(error),
        }
    }
}

/// A response's body.
#[derive(Default)]
pub struct Body {
    kind: Kind,
    exchange: Option<Rc<dyn Progress>>,
}

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    Leased(LeasedBody),
}

/// A backend's response on its way to the client. Holds the lease, so that the request counts as in flight until the last
/// byte.
struct LeasedBody {
    incoming: Incoming,
    done: bool,
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
        let kind = if bytes.is_empty() { Kind::Empty } else { Kind::Full(bytes) };
        Self { kind, exchange: None }
    }

    /// What a backend sends.
    pub fn leased(incoming: Incoming, lease: Lease) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        Self { kind: Kind::Leased(LeasedBody { incoming, done: false, _lease: lease }), exchange: None }
    }

    /// Has `exchange` told how this body goes on and that it ended.
    pub fn observe(&mut self, exchange: Rc<dyn Progress>) {
        if matches!(self.kind, Kind::Empty) {
            exchange.response_read();
        }
        self.exchange = Some(exchange);
    }

    fn is_done(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(_) => false,
            Kind::Leased(body) => body.done || body.incoming.is_end_stream(),
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.kind {
            Kind::Empty => "Body::Empty",
            Kind::Full(_) => "Body::Full",
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
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.kind = Kind::Empty;
                if let Some(exchange) = &this.exchange {
                    exchange.response_data(bytes.len());
                }
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Leased(body) => {
                let Some(exchange) = &this.exchange else {
                    return Pin::new(&mut body.incoming).poll_frame(cx).map_err(BodyError::Broken);
                };
                exchange.taking();
                let polled = Pin::new(&mut body.incoming).poll_frame(cx);
                // hyper does not ask again after trailers.
                let last = body.incoming.is_end_stream()
                    || match &polled {
                        Poll::Ready(None) => true,
                        Poll::Ready(Some(Ok(frame))) => frame.is_trailers(),
                        _ => false,
                    };
                exchange.taken(polled.is_ready().then_some(!last));
                let frame = ready!(polled);
                if let Some(Ok(frame)) = &frame
                    && let Some(data) = frame.data_ref()
                {
                    exchange.response_data(data.len());
                }
                if last && !body.done {
                    body.done = true;
                    exchange.response_read();
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_done()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Leased(body) => body.incoming.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.ended(self.is_done());
        }
    }
}

/// A client's request body on its way to a backend.
pub struct RequestBody(Option<Streamed>);

struct Streamed {
    incoming: Incoming,
    exchange: Rc<dyn Progress>,
}

impl RequestBody {
    /// No bytes.
    pub fn empty() -> Self {
        Self(None)
    }

    /// What the client sends.
    pub fn streamed(incoming: Incoming, exchange: Rc<dyn Progress>) -> Self {
        Self(Some(Streamed { incoming, exchange }))
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(Streamed { incoming, exchange }) = &mut self.0 else { return Poll::Ready(None) };
        let frame = match Pin::new(incoming).poll_frame(cx) {
            Poll::Pending => {
                exchange.waits_for_client(true);
                return Poll::Pending;
            }
            Poll::Ready(frame) => frame,
        };
        exchange.waits_for_client(false);
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                let Some(data) = frame.data_ref() else {
                    // Trailers: hyper does not ask again after them.
                    exchange.request_ended(true);
                    return Poll::Ready(Some(Ok(frame)));
                };
                Some(exchange.request_data(data.len()).map(|()| frame))
            }
            Some(Err(error)) => {
                exchange.request_ended(false);
                Some(Err(BodyError::Broken(error)))
            }
            None => {
                exchange.request_ended(true);
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|body| body.incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |body| body.incoming.size_hint())
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(Streamed { incoming, exchange }) = &self.0
            && incoming.is_end_stream()
        {
            exchange.request_ended(true);
        }
    }
}
