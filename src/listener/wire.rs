//! A client's socket as hyper sees it: guarded, timed, and open to what hyper cannot say.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::config::ListenerConfig;
use crate::exchange::ClientSide;
use crate::exchange::dry::Dry;
use crate::exchange::watch::{Phase, Watch};
use crate::listener::guard::{Guard, Refusal};

/// A client's socket. Shared by hyper, which reads and writes through a [`WireIo`], and by the connection's task, which
/// takes over when hyper is done: to refuse, or to tunnel.
#[derive(Debug)]
pub struct Wire {
    tcp: RefCell<TcpStream>,
    guard: RefCell<Guard>,
    /// What the client sent beyond a message that the guard held back.
    held: RefCell<Vec<u8>>,
    /// Informational responses that wait for room in the socket.
    early: RefCell<Vec<u8>>,
    /// What the connection waits for.
    pub watch: Rc<Watch>,
    header_timeout: Duration,
    idle_timeout: Duration,
    /// How long a piece of a body may take now.
    body_idle: Cell<Duration>,
    /// Whether an exchange is under way, so that what the client sends next has to wait.
    busy: Cell<bool>,
    /// Whether hyper has bytes that the socket did not take yet.
    unflushed: Cell<bool>,
    /// Whether there may be something to read.
    dry: Dry,
    /// Whether the exchange became a tunnel: then there is nothing to guard.
    tunnel: Cell<bool>,
}

/// Bytes that a client may send ahead of the answer to its request for another protocol.
const HELD_BYTES: usize = 64 * 1024;

impl Wire {
    /// The wire of an accepted socket.
    pub fn new(tcp: TcpStream, config: &ListenerConfig, watch: Rc<Watch>) -> Rc<Self> {
        Rc::new(Self {
            tcp: RefCell::new(tcp),
            guard: RefCell::new(Guard::new(config)),
            held: RefCell::default(),
            early: RefCell::default(),
            watch,
            header_timeout: config.header_timeout,
            idle_timeout: config.idle_timeout,
            body_idle: Cell::new(config.idle_timeout),
            busy: Cell::new(false),
            unflushed: Cell::new(false),
            dry: Dry::default(),
            tunnel: Cell::new(false),
        })
    }

    /// Why the connection ends, where no exchange has told or will tell the client.
    pub fn refusal(&self) -> Option<Refusal> {
        let guard = self.guard.borrow();
        guard.refusal().filter(|_| !guard.broke_body())
    }

    /// Whether the client is in the middle of a body, or was when the connection was given up for what is in it.
    pub fn mid_body(&self) -> bool {
        self.guard.borrow().mid_body()
    }

    /// Whether the client is in the middle of a head.
    pub fn mid_head(&self) -> bool {
        self.guard.borrow().mid_head()
    }

    /// Whether the client has sent something that nobody has read. Asks the socket: the event loop may not have told yet.
    pub fn has_unread(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        matches!(SockRef::from(&*self.tcp.borrow()).peek(&mut byte), Ok(1..))
    }

    /// The exchange becomes a tunnel: from now on nothing is guarded, and what was held back belongs to it.
    pub fn into_tunnel(&self) -> Vec<u8> {
        self.tunnel.set(true);
        self.held.take()
    }

    /// The socket, for its task after hyper is done with it.
    pub fn io(self: &Rc<Self>) -> WireIo {
        WireIo(Rc::clone(self))
    }

    /// Reads without a guard: for tunnels, and for what is thrown away.
    pub fn poll_read_raw(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.dry.poll_read(&mut *self.tcp.borrow_mut(), cx, buf)
    }

    /// Ends what is sent: for what was refused.
    pub fn poll_shutdown_raw(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.tcp.borrow_mut()).poll_shutdown(cx)
    }

    /// While an exchange is under way and its request has come whole, looks whether the client goes (ready) or has sent what
    /// is for later, which is kept. hyper would look for itself, and take a fresh buffer for it with each request.
    pub fn poll_ahead(&self, cx: &mut Context<'_>) -> Poll<()> {
        let guard = self.guard.borrow();
        if !self.busy.get() || guard.mid_body() {
            return Poll::Pending;
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

    fn poll_read_guarded(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut guard = self.guard.borrow_mut();
        if guard.refusal().is_some() {
            // A head has to wait until the exchanges before it are over; a body belongs to the one that is under way.
            if (self.busy.get() || self.unflushed.get()) && !guard.broke_body() {
                // The end of the exchange, or room in the socket, has the task run again.
                return Poll::Pending;
            }
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let before = buf.filled().len();
        if guard.is_held() {
            return self.poll_hold(cx, buf);
        }
        {
            let mut held = self.held.borrow_mut();
            if held.is_empty() {
                ready!(self.poll_read_raw(cx, buf))?;
            } else {
                let n = held.len().min(buf.remaining());
                buf.put_slice(&held[..n]);
                held.drain(..n);
                if held.is_empty() {
                    // Few clients send ahead; none needs the space kept.
                    *held = Vec::new();
                }
            }
        }
        let fresh = &buf.filled()[before..];
        let passed = guard.pass(fresh);
        if passed.mid_head && self.watch.phase() == Phase::Idle {
            self.watch.enter(Phase::Head, self.header_timeout);
        }
        if passed.bytes < fresh.len() {
            if guard.is_held() {
                self.held.borrow_mut().splice(0..0, fresh[passed.bytes..].iter().copied());
            }
            buf.set_filled(before + passed.bytes);
            if passed.bytes == 0 {
                // Nothing filled would mean the end of the stream.
                drop(guard);
                return self.poll_read_guarded(cx, buf);
            }
        }
        Poll::Ready(Ok(()))
    }

    /// While the answer is awaited, keeps what comes and watches for the end of the stream.
    fn poll_hold(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut held = self.held.borrow_mut();
        if held.len() >= HELD_BYTES {
            return Poll::Pending;
        }
        let mut space = [0; 2048];
        loop {
            let mut piece = ReadBuf::new(&mut space);
            ready!(self.poll_read_raw(cx, &mut piece))?;
            if piece.filled().is_empty() {
                let _ = buf;
                return Poll::Ready(Ok(()));
            }
            held.extend_from_slice(piece.filled());
            if held.len() >= HELD_BYTES {
                return Poll::Pending;
            }
        }
    }

    fn poll_early(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut early = self.early.borrow_mut();
        while !early.is_empty() {
            let n = ready!(Pin::new(&mut *self.tcp.borrow_mut()).poll_write(cx, &early))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            early.drain(..n);
        }
        Poll::Ready(Ok(()))
    }

    fn wrote(&self, written: Poll<io::Result<usize>>, all: usize) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(n)) => {
                self.unflushed.set(*n < all);
                if self.watch.phase() == Phase::Body {
                    self.watch.extend(self.body_idle.get());
                }
            }
            _ => self.unflushed.set(true),
        }
        if !self.busy.get() {
            self.wait_for_end();
        }
        written
    }

    /// An exchange is over once hyper has the last of its response; the client may still have to take that, and until then
    /// it has the time for a piece of a body, not that for its next request.
    fn wait_for_end(&self) {
        match (self.unflushed.get(), self.watch.phase()) {
            (true, Phase::Idle | Phase::Head) => self.watch.enter(Phase::Body, self.body_idle.get()),
            (false, Phase::Body) => self.wait_for_next(),
            _ => {}
        }
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
        self.wait_for_next();
        let mut guard = self.guard.borrow_mut();
        if guard.is_held() || guard.refusal().is_some() || !self.held.borrow().is_empty() {
            guard.release();
            self.watch.wake();
        }
    }

    fn abort(&self) {
        // Where this fails the connection is gone.
        let _ = SockRef::from(&*self.tcp.borrow()).set_linger(Some(Duration::ZERO));
    }

    fn inform(&self, head: &[u8]) {
        let mut early = self.early.borrow_mut();
        let sent = if early.is_empty() { self.tcp.borrow().try_write(head).unwrap_or(0) } else { 0 };
        early.extend_from_slice(&head[sent..]);
    }
}

/// The handle on a [`Wire`] that hyper, or a tunnel, reads and writes through.
#[derive(Debug)]
pub struct WireIo(Rc<Wire>);

impl AsyncRead for WireIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.0.tunnel.get() {
            true => self.0.poll_read_raw(cx, buf),
            false => self.0.poll_read_guarded(cx, buf),
        }
    }
}

impl AsyncWrite for WireIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.0.poll_early(cx))?;
        let written = Pin::new(&mut *self.0.tcp.borrow_mut()).poll_write(cx, buf);
        self.0.wrote(written, buf.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.0.poll_early(cx))?;
        let written = Pin::new(&mut *self.0.tcp.borrow_mut()).poll_write_vectored(cx, bufs);
        self.0.wrote(written, bufs.iter().map(|buf| buf.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper takes an error before the first byte of a head for the end of the connection; there is an answer to come.
        match self.0.refusal() {
            Some(_) => Poll::Ready(Ok(())),
            None => self.0.poll_shutdown_raw(cx),
        }
    }
}
