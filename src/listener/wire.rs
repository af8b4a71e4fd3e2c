//! A client's connection, as HTTP/1.1 is spoken on it: guarded, timed, one request in and one response out at a time.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::response;
use http_body::{Body as _, Frame};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::config::ListenerConfig;
use crate::exchange::body::{Body, POURED_BYTES, Source};
use crate::exchange::dry::Dry;
use crate::exchange::watch::{Pace, Phase, Watch, Way};
use crate::exchange::{ClientSide, Untouched};
use crate::http1::chunked::{Chunked, Next};
use crate::http1::outgoing::Outgoing;
use crate::http1::pipe::Pipe;
use crate::http1::request::{self, Head, Malformed, Terms};
use crate::http1::space::{Space, join};
use crate::http1::{Framing, response as head};
use crate::listener::guard::{Guard, Refusal};
use crate::socket::Socket;

/// A client's socket with what is on its way there. Shared by the connection's task and by who reads a request's body.
#[derive(Debug)]
pub struct Wire {
    socket: RefCell<Socket>,
    space: Rc<Space>,
    guard: RefCell<Guard>,
    max_headers: usize,
    /// What has passed the guard and is not taken yet.
    read: RefCell<Bytes>,
    /// So many whole heads are among that.
    heads: Cell<usize>,
    /// The body of the request that is being served.
    body: RefCell<Upload>,
    /// Whether somebody is going to take the rest of it.
    wanted: Cell<bool>,
    /// Whether the client waits to be asked for it.
    expects: Cell<bool>,
    out: RefCell<Outgoing>,
    /// Through which a large response is poured.
    pipe: RefCell<Option<Pipe>>,
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
    /// How many bytes of a body of known length the client is to move in a second.
    min_rate: u32,
    /// Whether that holds for the response.
    paced: Cell<bool>,
    /// Whether an exchange is under way, so that what the client sends next has to wait.
    busy: Cell<bool>,
    /// Whether the first request behind a handshake is still to come.
    fresh: Cell<bool>,
    /// Whether there may be something to read.
    dry: Dry,
}

/// What is left of a request's body.
#[derive(Debug, Default)]
enum Upload {
    /// Nothing.
    #[default]
    Done,
    /// So many bytes.
    Length(u64),
    Chunked(Chunked),
    /// What does not come any more.
    Broken,
}

/// What became of waiting for a request.
#[derive(Debug)]
pub enum Asked {
    /// Its head has come, and is where it was to be put.
    Head,
    /// None comes: the client has closed its end, the connection broke, or what came is refused.
    Closed,
    /// What came is no head.
    Malformed(Malformed),
}

/// Bytes that a client may send ahead of the answer to its request for another protocol, or of the end of an exchange.
const HELD_BYTES: usize = 64 * 1024;

/// After so many bytes of one body the others have their turn, however small its pieces are. Also the sockets' other ends then have
/// more to do at a time, and need not be woken for every piece.
const TURN_BYTES: usize = 64 * 1024;

impl Wire {
    /// The wire of an accepted socket.
    pub fn new(socket: Socket, config: &ListenerConfig, watch: Rc<Watch>, space: Rc<Space>) -> Rc<Self> {
        let guard = Guard::new(config, socket.alpn() == Some(b"h2"));
        let fresh = Cell::new(socket.plain().is_none());
        Rc::new(Self {
            socket: RefCell::new(socket),
            space,
            guard: RefCell::new(guard),
            max_headers: config.max_headers,
            read: RefCell::default(),
            heads: Cell::new(0),
            body: RefCell::default(),
            wanted: Cell::new(false),
            expects: Cell::new(false),
            out: RefCell::default(),
            pipe: RefCell::new(None),
            held: RefCell::default(),
            early: RefCell::default(),
            watch,
            header_timeout: config.header_timeout,
            idle_timeout: config.idle_timeout,
            body_idle: Cell::new(config.idle_timeout),
            min_rate: config.min_bytes_per_second,
            paced: Cell::new(false),
            busy: Cell::new(false),
            fresh,
            dry: Dry::default(),
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

    /// Whether the client is in the middle of a head, or has sent one that was not looked at.
    pub fn mid_head(&self) -> bool {
        self.heads.get() > 0 || self.guard.borrow().mid_head()
    }

    /// Whether the client has sent something that nobody has read. Asks the socket: the event loop may not have told yet.
    pub fn has_unread(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        matches!(SockRef::from(self.socket.borrow().tcp()).peek(&mut byte), Ok(1..))
    }

    /// Whether the first request behind a handshake is still to come. Asked once: it is given its time.
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

    /// The socket, for a tunnel.
    pub fn io(self: &Rc<Self>) -> WireIo {
        WireIo(Rc::clone(self))
    }

    /// Reads without a guard: for tunnels, and for what is thrown away.
    pub fn poll_read_raw(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.dry.poll_read(&mut *self.socket.borrow_mut(), cx, buf)
    }

    /// Ends what is sent.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.socket.borrow_mut()).poll_shutdown(cx)
    }

    /// Waits for the next request, and puts its head into `slot`: it is large, and so moved once.
    /// With `lets_pass`, fields that nobody looks at are left as they are.
    pub fn poll_request(&self, cx: &mut Context<'_>, slot: &mut Option<Head>, lets_pass: bool) -> Poll<Asked> {
        while self.heads.get() == 0 {
            if !matches!(ready!(self.poll_fill(cx, None)), Ok(1..)) {
                return Poll::Ready(Asked::Closed);
            }
        }
        let mut read = self.read.borrow_mut();
        // What is behind the only head is body.
        let parts = self.heads.get() == 1 && read.len() >= request::MUCH_BYTES;
        let behind = if parts { request::part(&mut read) } else { None };
        let head = match request::read(&mut read, self.space.map(), (self.max_headers, lets_pass), slot) {
            Ok(_) => slot.as_ref(),
            Err(malformed) => return Poll::Ready(Asked::Malformed(malformed)),
        };
        if let Some(behind) = behind {
            debug_assert!(read.is_empty(), "the guard and `part` agree where a head ends");
            *read = behind;
        }
        // The guard has seen the end of it.
        let Some(head) = head else { return Poll::Ready(Asked::Malformed(Malformed::Line)) };
        self.heads.set(self.heads.get() - 1);
        self.fresh.set(false);
        *self.body.borrow_mut() = match head.framing {
            Framing::None | Framing::Close => Upload::Done,
            Framing::Length(length) => Upload::Length(length),
            Framing::Chunked => Upload::Chunked(Chunked::default()),
        };
        self.wanted.set(false);
        self.expects.set(head.expects);
        Poll::Ready(Asked::Head)
    }

    /// Whether the request's body has been read to its end.
    pub fn is_read(&self) -> bool {
        matches!(*self.body.borrow(), Upload::Done)
    }

    /// Whether somebody is reading the request's body, and will tell when that ends.
    pub fn is_wanted(&self) -> bool {
        self.wanted.get() && !matches!(*self.body.borrow(), Upload::Done | Upload::Broken)
    }

    /// While an exchange is under way and its request has come whole, looks whether the client goes (ready) or has sent what
    /// is for later, which is kept.
    pub fn poll_ahead(&self, cx: &mut Context<'_>) -> Poll<()> {
        let guard = self.guard.borrow();
        if !self.busy.get() {
            return Poll::Pending;
        }
        if guard.mid_body() {
            // Who reads the body has found out that the client is gone. What is refused is told when the response is over.
            let gone = matches!(*self.body.borrow(), Upload::Broken) && guard.refusal().is_none();
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

    /// Takes the head of the response. With `close`, the connection ends with it in any case. Whether it does.
    pub fn respond(
        &self,
        (parts, untouched): (&mut response::Parts, &mut Untouched),
        body: &Body,
        terms: Terms,
        close: bool,
    ) -> bool {
        // No 100 comes behind the answer.
        self.expects.set(false);
        self.skip();
        // Nobody will read what the client still sends, and until that is over nothing else can be read.
        let close = close || (!self.is_read() && !self.wanted.get());
        let mut buffer = self.space.buffer();
        let (framing, close) = head::write(&mut buffer, (parts, untouched), terms, body.size_hint().exact(), close);
        // It holds the memory that it was read into.
        *untouched = Untouched::default();
        // Of streams without a length nobody knows how fast they are meant to be.
        self.paced.set(matches!(framing, Framing::Length(_)));
        self.out.borrow_mut().begin(buffer, framing);
        self.space.give_map(std::mem::take(&mut parts.headers));
        close
    }

    /// Sends the response's head, and its body as it comes. Ready when all of it is written.
    ///
    /// # Errors
    /// When either side breaks. What the client has got then is cut short.
    pub fn poll_respond(&self, cx: &mut Context<'_>, body: &mut Body, terms: Terms) -> Poll<io::Result<()>> {
        let out = &mut *self.out.borrow_mut();
        let mut turn = 0;
        let mut over = out.framing == Framing::None;
        if over {
            body.leave_out();
        }
        loop {
            let mut waiting = false;
            let mut pours = !over && matches!(out.framing, Framing::Length(_)) && self.pours_from(body);
            while !over && !waiting && !pours && out.has_room() {
                match Pin::new(&mut *body).poll_frame(cx) {
                    Poll::Pending => waiting = true,
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => {
                            out.data(data).map_err(io::Error::other)?;
                            if body.is_end_stream() {
                                over = true;
                                out.end(None).map_err(io::Error::other)?;
                            }
                            pours = !over && matches!(out.framing, Framing::Length(_)) && self.pours_from(body);
                        }
                        Err(frame) => {
                            over = true;
                            let trailers = frame.into_trailers().ok().filter(|_| terms.trailers);
                            out.end(trailers.as_ref()).map_err(io::Error::other)?;
                        }
                    },
                    Poll::Ready(Some(Err(error))) => {
                        // What came before goes out, as far as there is room. A client that gets nothing at all takes its
                        // connection for one that was closed before, and may send its request once more.
                        while !out.is_written()
                            && matches!(self.poll_early(cx), Poll::Ready(Ok(())))
                            && matches!(out.poll_write(&mut *self.socket.borrow_mut(), cx), Poll::Ready(Ok(_)))
                        {
                        }
                        return Poll::Ready(Err(io::Error::other(error)));
                    }
                    Poll::Ready(None) => {
                        over = true;
                        out.end(None).map_err(io::Error::other)?;
                    }
                }
            }
            turn += out.len();
            while !out.is_written() {
                ready!(self.poll_early(cx))?;
                let written = out.poll_write(&mut *self.socket.borrow_mut(), cx);
                self.taken(ready!(self.awaited(written))?);
                if self.watch.phase() == Phase::Body {
                    self.watch.extend(self.body_idle.get());
                }
            }
            ready!(self.awaited(self.poll_flush(cx)))?;
            self.watch.obliged(Way::Down);
            if pours {
                over = ready!(self.poll_pour(cx, out, body))?;
                if !over {
                    // The others have their turn.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            if over {
                self.space.give_buffer(out.rest());
                return Poll::Ready(Ok(()));
            }
            if turn > TURN_BYTES && !waiting {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if waiting {
                return Poll::Pending;
            }
        }
    }

    /// Notes it where the client is to make room for more of the response.
    fn awaited<T>(&self, room: Poll<T>) -> Poll<T> {
        if room.is_pending() && self.paced.get() {
            self.watch.await_client(Way::Down, Pace { bytes: self.min_rate, over: self.body_idle.get() });
        }
        room
    }

    /// The client, or the kernel for it, has taken so much of the response. Counted from when it was first awaited.
    fn taken(&self, bytes: usize) {
        if self.watch.awaits_client(Way::Down) {
            self.watch.carried(bytes);
        }
    }

    /// Whether the rest of the response's body is poured: it is large, and there is a pipe.
    fn pours_from(&self, body: &Body) -> bool {
        let mut pipe = self.pipe.borrow_mut();
        if pipe.is_none() && body.pours() && self.socket.borrow().plain().is_some() {
            *pipe = self.space.pipe();
        }
        pipe.is_some()
    }

    /// Pours a piece of the response's body: whether it was the last.
    fn poll_pour(&self, cx: &mut Context<'_>, out: &mut Outgoing, body: &mut Body) -> Poll<io::Result<bool>> {
        let mut slot = self.pipe.borrow_mut();
        let Some(pipe) = &mut *slot else { return Poll::Ready(Ok(false)) };
        if pipe.held() == 0 {
            let bytes = ready!(body.poll_pour(cx, pipe))?;
            out.poured(bytes);
        }
        while pipe.held() > 0 {
            let drained = pipe.poll_drain(self.socket.borrow().tcp(), cx);
            self.taken(ready!(self.awaited(drained))?);
            self.watch.extend(self.body_idle.get());
        }
        self.watch.obliged(Way::Down);
        let last = out.framing == Framing::Length(0);
        if last && let Some(pipe) = slot.take() {
            out.framing = Framing::None;
            self.space.give_pipe(pipe);
        }
        Poll::Ready(Ok(last))
    }

    /// The connection ends: who still reads a request's body is told so. Whether there is somebody.
    pub fn abandon(&self) -> bool {
        let wanted = self.is_wanted();
        if wanted {
            *self.body.borrow_mut() = Upload::Broken;
            self.dry.wake();
        }
        wanted
    }

    /// The connection has ended, even if somebody holds on to it who waits for a backend.
    pub fn close(&self) {
        let _ = SockRef::from(self.socket.borrow().tcp()).shutdown(std::net::Shutdown::Both);
    }

    /// Sends bytes that are no response to a request.
    pub fn poll_write_raw(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_early(cx))?;
        Pin::new(&mut *self.socket.borrow_mut()).poll_write(cx, bytes)
    }

    /// The same with several pieces.
    pub fn poll_write_pieces(&self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.socket.borrow_mut()).poll_write_vectored(cx, pieces)
    }

    /// Sends what was written.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.socket.borrow_mut()).poll_flush(cx)
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
                // Who sends its head slowly does not hold a block that others use for that time.
                true => *read = Bytes::copy_from_slice(&fresh),
                false => join(&mut read, fresh),
            }
            return Poll::Ready(Ok(passed.bytes));
        }
    }

    /// Passes over what has come of a body that nobody wants.
    fn skip(&self) {
        if self.wanted.get() {
            return;
        }
        let mut read = self.read.borrow_mut();
        let body = &mut *self.body.borrow_mut();
        while !read.is_empty() {
            match Self::take(body, &mut read) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => {
                    *body = Upload::Broken;
                    break;
                }
            }
        }
    }

    /// Takes the next piece from what was read: `None` when there is none in it.
    fn take(body: &mut Upload, read: &mut Bytes) -> io::Result<Option<Frame<Bytes>>> {
        match body {
            Upload::Done => Ok(None),
            Upload::Broken => Err(io::ErrorKind::InvalidData.into()),
            Upload::Length(left) => {
                let bytes = (*left).min(read.len() as u64);
                *left -= bytes;
                if *left == 0 {
                    *body = Upload::Done;
                }
                let piece =
                    if bytes == read.len() as u64 { std::mem::take(read) } else { read.split_to(bytes as usize) };
                Ok(Some(Frame::data(piece)).filter(|_| bytes > 0))
            }
            Upload::Chunked(chunked) => match chunked.next(read) {
                Ok(Next::Data(data)) => Ok(Some(Frame::data(data))),
                Ok(Next::More) => Ok(None),
                Ok(Next::End(trailers)) => {
                    *body = Upload::Done;
                    if read.is_empty() {
                        // A connection that waits does not hold on to the memory it was read into.
                        *read = Bytes::new();
                    }
                    Ok(trailers.map(Frame::trailers))
                }
                Err(what) => Err(io::Error::new(io::ErrorKind::InvalidData, what)),
            },
        }
    }

    /// Asks a client that waits for it to send its body.
    fn go_on(&self) {
        if self.expects.take() && self.read.borrow().is_empty() {
            self.inform(b"HTTP/1.1 100 Continue\r\n\r\n");
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

/// The body of the request that is being served.
impl Source for Wire {
    fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.go_on();
        loop {
            let left = {
                let body = &mut *self.body.borrow_mut();
                match Self::take(body, &mut self.read.borrow_mut()) {
                    Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                    Ok(None) => match body {
                        Upload::Done => return Poll::Ready(None),
                        Upload::Length(left) => Some(*left),
                        _ => None,
                    },
                    Err(error) => {
                        *body = Upload::Broken;
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            };
            let broken = match ready!(self.poll_fill(cx, left)) {
                Ok(1..) => continue,
                Ok(0) => io::Error::new(io::ErrorKind::UnexpectedEof, "the client closed the connection"),
                Err(error) => error,
            };
            *self.body.borrow_mut() = Upload::Broken;
            return Poll::Ready(Some(Err(broken)));
        }
    }

    fn is_done(&self) -> bool {
        self.is_read()
    }

    fn left(&self) -> Option<u64> {
        match *self.body.borrow() {
            Upload::Done => Some(0),
            Upload::Length(left) => Some(left),
            Upload::Chunked(_) | Upload::Broken => None,
        }
    }

    fn pours(&self) -> bool {
        matches!(*self.body.borrow(), Upload::Length(left) if left >= POURED_BYTES)
            && self.read.borrow().is_empty()
            && self.held.borrow().is_empty()
            && self.socket.borrow().plain().is_some()
    }

    fn poll_pour(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        self.go_on();
        let socket = self.socket.borrow();
        let mut guard = self.guard.borrow_mut();
        let left = guard.left();
        if matches!(*self.body.borrow(), Upload::Broken) {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let poured = ready!(self.dry.poll(cx, |cx| pipe.poll_fill(socket.tcp(), cx, left)));
        let body = &mut *self.body.borrow_mut();
        let broken = match (poured, &mut *body) {
            (Ok(bytes @ 1..), Upload::Length(left)) => {
                guard.poured(bytes as u64);
                *left = left.saturating_sub(bytes as u64);
                if *left == 0 {
                    *body = Upload::Done;
                }
                return Poll::Ready(Ok(bytes));
            }
            (Ok(_), _) => io::Error::new(io::ErrorKind::UnexpectedEof, "the client closed the connection"),
            (Err(error), _) => error,
        };
        *body = Upload::Broken;
        Poll::Ready(Err(broken))
    }

    fn want(&self, wanted: bool) {
        self.wanted.set(wanted);
        if wanted {
            return;
        }
        // Once the response has begun it is another task that reads the body. From here on the connection's own waits for the
        // next request, if the exchange is over, or else has to look whether the client goes.
        if !self.busy.get() {
            self.wait_for_next();
            self.watch.wake();
        } else if self.watch.phase() == Phase::Body {
            self.watch.wake();
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
}

/// The socket that a tunnel reads and writes through.
#[derive(Debug)]
pub struct WireIo(Rc<Wire>);

impl AsyncRead for WireIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read_raw(cx, buf)
    }
}

impl AsyncWrite for WireIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write_raw(cx, buf)
    }

    /// For HTTP/2 alone, in which nothing is sent ahead.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write_pieces(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_was_read_leaves_nothing_held() {
        let block = Bytes::from(b"5\r\nhello\r\n0\r\n\r\n".to_vec());
        let (mut body, mut read) = (Upload::Chunked(Chunked::default()), block.clone());
        while !matches!(body, Upload::Done) {
            drop(Wire::take(&mut body, &mut read).unwrap());
        }
        assert!(block.is_unique(), "the block can be used again");
    }
}
