//! A client's connection, as HTTP/1.1 is spoken on it: guarded, timed, one request in and one response out at a time.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncWrite as _, ReadBuf};

use crate::config::ListenerConfig;
use crate::exchange::deadline::{Phase, Watch};
use crate::exchange::drained_sockets::Dry;
use crate::exchange::{ClientSide, Expects};
use crate::http1::Framing;
use crate::http1::buffers::{Space, join};
use crate::http1::chunked::Chunked;
use crate::http1::outgoing::Outgoing;
use crate::http1::request::{self, MalformedRequest, ReceivedRequest};
use crate::http1::splice::Pipe;
use crate::listener::strict_framing::FramingGuard;
use crate::proxy::Refusal;
use crate::socket::Socket;

mod upload;
mod response;
mod raw_socket;

pub use raw_socket::WireIo;
use upload::RequestBodyRest;

/// A client's socket with what is on its way there. Shared by the connection's task and the reader of a request's body.
#[derive(Debug)]
pub struct Wire {
    socket: RefCell<Socket>,
    space: Rc<Space>,
    guard: RefCell<FramingGuard>,
    max_headers: usize,
    /// What has passed the guard and is not taken yet.
    read: RefCell<Bytes>,
    /// So many whole heads are among that.
    heads: Cell<usize>,
    /// The body of the request that is being served.
    body: RefCell<RequestBodyRest>,
    /// Whether a reader is going to take the rest of it.
    wanted: Cell<bool>,
    /// Whether the client waits to be asked for it.
    expects: Cell<Expects>,
    out: RefCell<Outgoing>,
    /// Through which a large response is poured.
    pipe: RefCell<Option<Pipe>>,
    /// What the client sent beyond a message that the guard held back.
    held: RefCell<Vec<u8>>,
    /// The beginning of what was refused, where that has not passed the guard.
    refused: RefCell<Vec<u8>>,
    /// Informational responses that wait for room in the socket.
    early: RefCell<Vec<u8>>,
    /// What the connection waits for.
    pub watch: Rc<Watch>,
    header_timeout: Duration,
    idle_timeout: Duration,
    /// How long a piece of a body may take now.
    body_idle: Cell<Duration>,
    /// How many bytes of a body the client is to move in a second.
    min_rate: u32,
    /// Whether an exchange is under way, so that what the client sends next has to wait.
    busy: Cell<bool>,
    /// Whether the first request is still to come.
    fresh: Cell<bool>,
    /// Whether there may be something to read.
    dry: Dry,
}

/// What became of waiting for a request.
#[derive(Debug)]
pub enum NextRequest {
    /// Its head has come, and is where it was to be put.
    Head,
    /// None comes: the client has closed its end, the connection broke, or what came is refused.
    Closed,
    /// What came is no head.
    Malformed(MalformedRequest),
}

/// Bytes that a client may send ahead of the answer to its request for another protocol, or of the end of an exchange.
const HELD_BYTES: usize = 64 * 1024;

/// So much is kept of a head that is refused, for the access log.
const BEGUN_BYTES: usize = 8 * 1024;

impl Wire {
    /// The wire of an accepted socket.
    pub fn new(socket: Socket, config: &ListenerConfig, watch: Rc<Watch>, space: Rc<Space>) -> Rc<Self> {
        let guard = FramingGuard::new(config, socket.alpn() == Some(b"h2"));
        Rc::new(Self {
            socket: RefCell::new(socket),
            space,
            guard: RefCell::new(guard),
            max_headers: config.max_headers,
            read: RefCell::default(),
            heads: Cell::new(0),
            body: RefCell::default(),
            wanted: Cell::new(false),
            expects: Cell::default(),
            out: RefCell::default(),
            pipe: RefCell::new(None),
            held: RefCell::default(),
            refused: RefCell::default(),
            early: RefCell::default(),
            watch,
            header_timeout: config.header_timeout,
            idle_timeout: config.idle_timeout,
            body_idle: Cell::new(config.idle_timeout),
            min_rate: config.min_bytes_per_second,
            busy: Cell::new(false),
            fresh: Cell::new(true),
            dry: Dry::default(),
        })
    }

    /// Why the connection ends, where no exchange has told or will tell the client.
    pub fn refusal(&self) -> Option<Refusal> {
        let guard = self.guard.borrow();
        guard.refusal().filter(|_| !guard.broke_body())
    }

    /// The beginning of the head that was refused, or did not come in time.
    pub fn begun(&self) -> Vec<u8> {
        let (read, refused) = (self.read.borrow(), self.refused.borrow());
        read.iter().chain(refused.iter()).take(BEGUN_BYTES).copied().collect()
    }

    /// Whether the client is in the middle of a body, or was when the connection was given up for what is in it.
    pub fn mid_body(&self) -> bool {
        self.guard.borrow().mid_body()
    }

    /// Whether the client is in the middle of a head, or has sent one that was not looked at.
    pub fn mid_head(&self) -> bool {
        self.heads.get() > 0 || self.guard.borrow().mid_head()
    }

    /// Whether the client has sent something that was not read. Asks the socket: the event loop may not have told yet.
    pub fn has_unread(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        matches!(SockRef::from(self.socket.borrow().tcp()).peek(&mut byte), Ok(1..))
    }

    /// Whether the first request is still to come. Asked once: it is given its time.
    pub fn take_fresh(&self) -> bool {
        self.fresh.take()
    }

    /// Whether the next request may have come already, with one before it.
    pub fn has_next(&self) -> bool {
        self.heads.get() > 0 || !self.held.borrow().is_empty()
    }

    /// Whether it is HTTP/2 that the client speaks.
    pub fn is_http2(&self) -> bool {
        self.guard.borrow().is_http2()
    }

    /// What was read before it was known that the client speaks HTTP/2.
    pub fn take_read(&self) -> Bytes {
        let (read, held) = (self.read.take(), self.held.take());
        if held.is_empty() { read } else { [&read[..], &held].concat().into() }
    }

    /// The exchange became a tunnel: what was held back belongs to it.
    pub fn into_tunnel(&self) -> Vec<u8> {
        self.held.take()
    }

    /// Waits for the next request, and puts its head into `slot`: it is large, and so moved once.
    /// With `passes_through`, pass-through headers are left as lines.
    pub fn poll_request(
        &self,
        cx: &mut Context<'_>,
        slot: &mut Option<ReceivedRequest>,
        passes_through: bool,
    ) -> Poll<NextRequest> {
        while self.heads.get() == 0 {
            if !matches!(ready!(self.poll_fill(cx, None)), Ok(1..)) {
                return Poll::Ready(NextRequest::Closed);
            }
        }
        let mut read = self.read.borrow_mut();
        // What is behind the only head is body.
        let parts = self.heads.get() == 1 && read.len() >= request::MUCH_BYTES;
        let behind = if parts { request::part(&mut read) } else { None };
        let head = match request::read(&mut read, self.space.map(), (self.max_headers, passes_through), slot) {
            Ok(_) => slot.as_ref(),
            Err(malformed) => return Poll::Ready(NextRequest::Malformed(malformed)),
        };
        if let Some(behind) = behind {
            debug_assert!(read.is_empty(), "the guard and `part` agree where a head ends");
            *read = behind;
        }
        // The guard has seen the end of it.
        let Some(head) = head else { return Poll::Ready(NextRequest::Malformed(MalformedRequest::Line)) };
        self.heads.set(self.heads.get() - 1);
        self.fresh.set(false);
        *self.body.borrow_mut() = match head.framing {
            Framing::None | Framing::Close => RequestBodyRest::Done,
            Framing::Length(length) => RequestBodyRest::Length(length),
            Framing::Chunked => RequestBodyRest::Chunked(Chunked::default()),
        };
        self.wanted.set(false);
        self.expects.set(if head.expects { Expects::Word } else { Expects::Nothing });
        Poll::Ready(NextRequest::Head)
    }

    /// Whether the request's body has been read to its end.
    pub fn is_read(&self) -> bool {
        matches!(*self.body.borrow(), RequestBodyRest::Done)
    }

    /// Whether the request's body is being read; the reader tells when that ends.
    pub fn is_wanted(&self) -> bool {
        self.wanted.get() && !matches!(*self.body.borrow(), RequestBodyRest::Done | RequestBodyRest::Broken)
    }

    /// While an exchange is under way and its request has come whole, looks whether the client goes (ready) or has sent what
    /// is for later, which is kept.
    pub fn poll_ahead(&self, cx: &mut Context<'_>) -> Poll<()> {
        let guard = self.guard.borrow();
        if !self.busy.get() {
            return Poll::Pending;
        }
        if guard.mid_body() {
            // The reader of the body has found out that the client is gone. What is refused is told when the response is over.
            let gone = matches!(*self.body.borrow(), RequestBodyRest::Broken) && guard.refusal().is_none();
            return if gone { Poll::Ready(()) } else { Poll::Pending };
        }
        let refused = guard.refusal().is_some();
        let mut held = self.held.borrow_mut();
        let mut space = [0; 512];
        while held.len() < HELD_BYTES {
            let mut piece = ReadBuf::new(&mut space);
            if ready!(self.poll_read_raw(cx, &mut piece)).is_err() || piece.filled().is_empty() {
                return Poll::Ready(());
            }
            // What comes behind something refused is not looked at, but the client's end is.
            if !refused {
                held.extend_from_slice(piece.filled());
            }
        }
        Poll::Pending
    }

    /// The connection ends, and the reader of a request's body is told. Whether there is one.
    pub fn abandon(&self) -> bool {
        let wanted = self.is_wanted();
        if wanted {
            *self.body.borrow_mut() = RequestBodyRest::Broken;
            self.dry.wake();
        }
        wanted
    }

    /// The connection has ended, even if a task that waits for a backend holds it.
    pub fn close(&self) {
        let _ = SockRef::from(self.socket.borrow().tcp()).shutdown(std::net::Shutdown::Both);
    }

    /// Reads what there is through the guard. `left` is what is left of a body. 0 is the end.
    fn poll_fill(&self, cx: &mut Context<'_>, left: Option<u64>) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = self.guard.borrow_mut();
            if guard.refusal().is_some() {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            let ahead = self.held.take();
            let mut fresh = match ahead.is_empty() {
                true => {
                    let socket = &mut *self.socket.borrow_mut();
                    ready!(self.dry.poll(cx, |cx| self.space.poll_read(socket, cx, left)))?
                }
                false => BytesMut::from(&ahead[..]),
            };
            if fresh.is_empty() {
                return Poll::Ready(Ok(0));
            }
            let passed = guard.pass(&fresh);
            if passed.mid_head && self.watch.phase() == Phase::Idle {
                self.watch.enter(Phase::Head, self.header_timeout);
            }
            if passed.bytes < fresh.len() {
                if guard.is_http2() {
                    self.held.borrow_mut().extend_from_slice(&fresh);
                    return Poll::Ready(Ok(0));
                }
                if guard.refusal().is_some() && !guard.broke_body() {
                    let begun = &fresh[passed.bytes..];
                    self.refused.borrow_mut().extend_from_slice(&begun[..begun.len().min(BEGUN_BYTES)]);
                }
                if guard.is_held() {
                    self.held.borrow_mut().extend_from_slice(&fresh[passed.bytes..]);
                }
                fresh.truncate(passed.bytes);
            }
            if passed.bytes == 0 {
                // Nothing would mean the end.
                continue;
            }
            self.heads.set(self.heads.get() + passed.heads);
            let mut read = self.read.borrow_mut();
            match passed.mid_head && self.heads.get() == 0 && read.is_empty() {
                // A client that sends its head slowly does not hold a block that others use.
                true => *read = Bytes::copy_from_slice(&fresh),
                false => join(&mut read, fresh),
            }
            return Poll::Ready(Ok(passed.bytes));
        }
    }

    fn poll_early(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut early = self.early.borrow_mut();
        while !early.is_empty() {
            let n = ready!(Pin::new(&mut *self.socket.borrow_mut()).poll_write(cx, &early))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            early.drain(..n);
        }
        Poll::Ready(Ok(()))
    }

    fn wait_for_next(&self) {
        match self.mid_head() {
            true => self.watch.enter(Phase::Head, self.header_timeout),
            false => self.watch.enter(Phase::Idle, self.idle_timeout),
        }
    }
}

impl ClientSide for Wire {
    fn begin(&self) {
        self.busy.set(true);
    }

    fn body(&self, idle: Duration) {
        self.body_idle.set(idle);
        self.watch.enter(Phase::Body, idle);
    }

    fn end(&self) {
        self.busy.set(false);
        self.watch.uncap();
        self.watch.serve(None);
        self.guard.borrow_mut().release();
        self.wait_for_next();
    }

    fn abort(&self) {
        // Where this fails the connection is gone.
        let _ = SockRef::from(self.socket.borrow().tcp()).set_linger(Some(Duration::ZERO));
    }

    fn has_unsent(&self) -> bool {
        self.out.try_borrow().is_ok_and(|out| !out.is_written())
            || self.pipe.try_borrow().is_ok_and(|pipe| pipe.as_ref().is_some_and(|pipe| pipe.held() > 0))
    }

    fn alarm(&self, _: Instant) {}

    fn inform(&self, head: &[u8]) {
        let mut early = self.early.borrow_mut();
        let sent = if early.is_empty() { self.socket.borrow_mut().try_write(head).unwrap_or(0) } else { 0 };
        early.extend_from_slice(&head[sent..]);
    }

    fn hold(&self) -> bool {
        let waits = self.expects.get() != Expects::Nothing && self.read.borrow().is_empty();
        self.expects.set(if waits { Expects::BackendsWord } else { Expects::Nothing });
        waits
    }

    fn holds(&self) -> bool {
        self.expects.get() == Expects::BackendsWord
    }

    fn go_on(&self) {
        if self.expects.take() != Expects::Nothing && self.read.borrow().is_empty() {
            self.inform(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }
}
