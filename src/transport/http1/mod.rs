//! A connection to a backend, as HTTP/1.1 is spoken on it: one request out, one response in, both at once.
//!
//! Driven by the task that waits for the response: there is none of its own to be woken, and nothing is handed over.
//! Why this is not hyper's: `docs/decisions/0006-http1-of-our-own.md`.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{StatusCode, response};

use crate::backend::Connected;
use crate::exchange::body::RequestBody;
use crate::file_descriptors::{DescriptorSeat, HeldDescriptor};
use crate::http1::buffers::Space;
use crate::http1::outgoing::Outgoing;
use crate::http1::pass_through_headers::PassThrough;
use crate::http1::response::Noted;
use crate::http1::response::ResponseHead;
use crate::http1::splice::Pipe;
use crate::socket::Socket;
use crate::transport::wear::Wear;

mod send;
mod receive;
mod tunnel;

use receive::ResponseBodyRest;
use send::LinkUpload;
pub use tunnel::LinkIo;

/// The receiver of informational responses.
pub trait Informed {
    /// The head of one, from its status line to its empty line.
    fn informational(&self, head: &[u8]);
    /// The backend wants the request's body: 100.
    fn go_on(&self);
}

/// Why there is no response.
#[derive(Debug)]
pub struct NoResponse {
    /// What happened: `InvalidData` when the backend did not speak HTTP, `UnexpectedEof` when it closed the connection.
    pub error: io::Error,
    /// Whether nothing of the request was written, and all of it is where it was: any request may be sent again.
    pub unsent: bool,
}

/// A connection to a backend.
pub struct Link(RefCell<LinkState>);

struct LinkState {
    socket: Socket,
    /// With whose TLS it was made, see [`BackendTls::identity`](super::tls::BackendTls::identity).
    identity: u64,
    space: Rc<Space>,
    out: Outgoing,
    /// How long the head of the request is.
    head_length: usize,
    /// Through which a large request is poured.
    pipe: Option<Pipe>,
    upload: LinkUpload,
    /// Whether any byte of the request was written.
    written: bool,
    /// Whether the backend has taken something since this was last made false.
    moved: bool,
    /// Whether what was taken of the request's body can be given back.
    intact: bool,
    /// Whether any byte of a response has come.
    answered: bool,
    /// Whether the request is a HEAD, whose response has no body whatever its head says.
    bodiless: bool,
    /// What was read and is not taken yet.
    read: Bytes,
    /// Whether there is something in `read` that was not looked at yet.
    fresh: bool,
    /// Bytes of informational responses so far.
    informational: usize,
    head: ResponseHead,
    head_bytes: Bytes,
    body: ResponseBodyRest,
    /// Counts it at the backend. Behind the socket, which is closed before it is counted as closed.
    connected: Connected,
    /// The same at the worker.
    _held: HeldDescriptor,
    /// That of the exchange that has it; `None` while it is idle.
    seat: Option<DescriptorSeat>,
    /// How long it may be used.
    wear: Wear,
}

impl Link {
    pub(super) fn new(
        socket: Socket,
        identity: u64,
        space: Rc<Space>,
        (connected, held): (Connected, HeldDescriptor),
        seat: Option<DescriptorSeat>,
        wear: Wear,
    ) -> Rc<Self> {
        Rc::new(Self(RefCell::new(LinkState {
            socket,
            identity,
            space,
            out: Outgoing::default(),
            head_length: 0,
            pipe: None,
            upload: LinkUpload::Over,
            written: false,
            moved: false,
            intact: true,
            answered: false,
            bodiless: false,
            read: Bytes::new(),
            fresh: false,
            informational: 0,
            head: ResponseHead::default(),
            head_bytes: Bytes::new(),
            body: ResponseBodyRest::Done,
            connected,
            _held: held,
            seat,
            wear,
        })))
    }

    /// Whose it is from now on: an exchange's, or none's. What it had before is given back.
    pub(super) fn seat(&self, seat: Option<DescriptorSeat>) {
        let before = std::mem::replace(&mut self.0.borrow_mut().seat, seat);
        drop(before);
    }

    /// Sends the request and waits for the head of the response. What is left of `body` when that comes first is for
    /// [`Link::upload`].
    pub(super) fn poll_response(
        &self,
        cx: &mut Context<'_>,
        body: &mut RequestBody,
        informed: &dyn Informed,
    ) -> Poll<Result<StatusCode, NoResponse>> {
        let inner = &mut *self.0.borrow_mut();
        if let Poll::Ready(Err(error)) = inner.poll_send(cx, body) {
            // The client's side broke, or the body is not what it said: no response is worth waiting for.
            return Poll::Ready(Err(inner.failed(error, body)));
        }
        let mut error = match ready!(inner.poll_head(cx, informed)) {
            Ok(()) => return Poll::Ready(Ok(inner.head.status)),
            Err(error) => error,
        };
        // That the connection is closed says less than what became of the writing.
        if let (LinkUpload::Refused(refused), false) = (&mut inner.upload, inner.answered) {
            error = refused.take().unwrap_or(error);
        }
        Poll::Ready(Err(inner.failed(error, body)))
    }

    /// Puts the head of the response that has come into `parts`.
    pub(super) fn response(&self, parts: &mut response::Parts) -> io::Result<PassThrough> {
        let inner = &mut *self.0.borrow_mut();
        let head_bytes = std::mem::take(&mut inner.head_bytes);
        inner.head.response(&head_bytes, parts).map_err(malformed)
    }

    /// What was noted of the fields of the response.
    pub(super) fn noted(&self) -> Noted {
        self.0.borrow().head.noted
    }

    /// The body of the response, where all of it has come with its head.
    pub(super) fn whole(&self) -> Option<Bytes> {
        let inner = &mut *self.0.borrow_mut();
        match inner.body {
            ResponseBodyRest::Length(left) if left <= inner.read.len() as u64 => {
                inner.body = ResponseBodyRest::Done;
                Some(inner.take(left as usize))
            }
            ResponseBodyRest::Done => Some(Bytes::new()),
            _ => None,
        }
    }

    /// The first field of that name in the head of the response that has come.
    pub(super) fn field(&self, name: &str) -> Option<Bytes> {
        let inner = self.0.borrow();
        inner.head.field(&inner.head_bytes, name)
    }

    /// Whether the body of the response is of known length, of `limit` bytes at most, and not all there.
    pub(super) fn gathers(&self, limit: usize) -> bool {
        let inner = self.0.borrow();
        matches!(inner.body, ResponseBodyRest::Length(left) if left <= limit as u64 && left > inner.read.len() as u64)
    }

    /// Reads until all of such a body is there: [`Link::whole`] then has it.
    pub(super) fn poll_gather(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        while let ResponseBodyRest::Length(left) = inner.body
            && left > inner.read.len() as u64
        {
            if ready!(inner.poll_fill(cx, None))? == 0 {
                return Poll::Ready(Err(closed()));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the head of the response says that the connection ends behind it.
    pub(super) fn closes(&self) -> bool {
        !self.0.borrow().head.keep_alive
    }

    /// Whether any byte of a response has come.
    pub(super) fn answered(&self) -> bool {
        self.0.borrow().answered
    }

    /// Whether the exchange is over on both sides and left the connection fit for a next one, for which it is neither too old nor too often
    /// used. Lets go of all memory.
    pub(super) fn rest(&self, now_ms: u64) -> bool {
        let inner = &mut *self.0.borrow_mut();
        let worn = inner.wear.take() || inner.wear.is_old(now_ms);
        let fit = matches!((&inner.body, &inner.upload), (ResponseBodyRest::Done, LinkUpload::Over))
            && inner.out.is_written()
            && inner.head.keep_alive
            && inner.read.is_empty()
            && !worn;
        inner.space.give_buffer(inner.out.rest());
        inner.pipe = None;
        inner.read = Bytes::new();
        inner.head_bytes = Bytes::new();
        fit
    }

    /// Whether it is older than it may be.
    pub(super) fn is_old(&self, now_ms: u64) -> bool {
        self.0.borrow().wear.is_old(now_ms)
    }

    /// Counts it at the backend, and knows whether another worker wants a connection there.
    pub(super) fn connected<T>(&self, ask: impl FnOnce(&Connected) -> T) -> T {
        ask(&self.0.borrow().connected)
    }

    /// With whose TLS it was made; 0 is in the clear.
    pub(super) fn identity(&self) -> u64 {
        self.0.borrow().identity
    }

    /// Whether its TLS took up an earlier session; `None` in the clear.
    pub(super) fn resumed(&self) -> Option<bool> {
        super::tls::resumed(&self.0.borrow().socket)
    }

    /// Whether the backend has neither closed the idle connection nor said anything unasked. The socket is asked only if the
    /// event loop has seen something there.
    pub(super) fn is_open(&self) -> bool {
        self.0.borrow_mut().socket.is_quiet()
    }
}

/// A backend that does not speak HTTP as it has to.
fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "closed the connection")
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.0.borrow();
        f.debug_struct("Link").field("socket", inner.socket.tcp()).field("body", &inner.body).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
