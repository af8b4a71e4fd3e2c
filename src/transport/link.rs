//! A connection to a backend, as HTTP/1.1 is spoken on it: one request out, one response in, both at once.
//!
//! Driven by whoever waits for the response, in that task: there is none of its own to be woken, and nothing is handed over.
//! Why this is not hyper's: `docs/decisions/0006-http1-of-our-own.md`.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderMap;
use http::request::Parts;
use http::{Method, StatusCode, response};
use http_body::{Body as _, Frame};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::backend::Connected;
use crate::exchange::body::{POURED_BYTES, RequestBody, Source};
use crate::http1::chunked::{Chunked, Next};
use crate::http1::outgoing::Outgoing;
use crate::http1::pipe::Pipe;
use crate::http1::response::Head;
use crate::http1::space::{Space, join};
use crate::http1::untouched::{Lines, Untouched};
use crate::http1::{Framing, request};
use crate::socket::Socket;

/// Who is told of informational responses.
pub trait Informed {
    /// The head of one, from its status line to its empty line.
    fn informational(&self, head: &[u8]);
}

/// Why there is no response.
#[derive(Debug)]
pub struct Failed {
    /// What happened: `InvalidData` when the backend did not speak HTTP, `UnexpectedEof` when it closed the connection.
    pub error: io::Error,
    /// Whether nothing of the request was written, and all of it is where it was: any request may be sent again.
    pub unsent: bool,
}

/// Bytes of a response's head, and of all informational ones before it, at most.
const HEAD_BYTES: usize = 64 * 1024;

/// After so many bytes of one body the others have their turn.
const TURN_BYTES: usize = 64 * 1024;

/// A write takes as long as so many bytes do, however few it writes.
const WRITE_BYTES: usize = 1024;

/// A connection to a backend.
pub struct Link(RefCell<Inner>);

struct Inner {
    socket: Socket,
    /// With whose TLS it was made, see [`BackendTls::identity`](super::tls::BackendTls::identity).
    identity: u64,
    space: Rc<Space>,
    out: Outgoing,
    /// How long the head of the request is.
    head_length: usize,
    /// Through which a large request is poured.
    pipe: Option<Pipe>,
    upload: Upload,
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
    head: Head,
    head_bytes: Bytes,
    body: Incoming,
    /// Counts it at the backend. Behind the socket, which is closed before it is counted as closed.
    connected: Connected,
}

/// How the sending of a request's body goes.
#[derive(Debug)]
enum Upload {
    /// There is more to be taken from the client.
    Open,
    /// A task of its own goes on with it, because the response came first. Woken when the exchange is given up.
    Apart(Option<Waker>),
    /// All of it is written.
    Over,
    /// The backend does not take it. Why, for when no response comes either.
    Refused(Option<io::Error>),
    /// The exchange was given up.
    Abandoned,
}

/// How a response's body goes.
#[derive(Debug)]
enum Incoming {
    /// The head is awaited.
    Head,
    /// So many bytes are to come.
    Length(u64),
    Chunked(Chunked),
    /// Until the connection ends.
    Close,
    /// It is over.
    Done,
    /// It broke.
    Broken,
}

impl Link {
    pub(super) fn new(socket: Socket, identity: u64, space: Rc<Space>, connected: Connected) -> Rc<Self> {
        Rc::new(Self(RefCell::new(Inner {
            socket,
            identity,
            space,
            out: Outgoing::default(),
            head_length: 0,
            pipe: None,
            upload: Upload::Over,
            written: false,
            moved: false,
            intact: true,
            answered: false,
            bodiless: false,
            read: Bytes::new(),
            fresh: false,
            informational: 0,
            head: Head::default(),
            head_bytes: Bytes::new(),
            body: Incoming::Done,
            connected,
        })))
    }

    /// Takes a request. Nothing is written yet.
    pub(super) fn begin(&self, parts: &Parts, body: &RequestBody, lines: Lines<'_>) {
        let inner = &mut *self.0.borrow_mut();
        let framing = match (body.is_end_stream(), body.size_hint().exact()) {
            (true, _) => Framing::None,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::Chunked,
        };
        let mut buffer = inner.space.buffer();
        request::write(&mut buffer, parts, framing, lines);
        inner.head_length = buffer.len();
        inner.head.lets_pass = lines.untouched.is_some();
        inner.out.begin(buffer, framing);
        inner.upload = if framing == Framing::None { Upload::Over } else { Upload::Open };
        inner.written = false;
        inner.intact = true;
        inner.answered = false;
        inner.bodiless = parts.method == Method::HEAD;
        inner.informational = 0;
        inner.body = Incoming::Head;
    }

    /// Sends the request and waits for the head of the response. What is left of `body` when that comes first is for
    /// [`Link::upload`].
    pub(super) fn poll_response(
        &self,
        cx: &mut Context<'_>,
        body: &mut RequestBody,
        informed: &dyn Informed,
    ) -> Poll<Result<StatusCode, Failed>> {
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
        if let (Upload::Refused(refused), false) = (&mut inner.upload, inner.answered) {
            error = refused.take().unwrap_or(error);
        }
        Poll::Ready(Err(inner.failed(error, body)))
    }

    /// Puts the head of the response that has come into `parts`.
    pub(super) fn response(&self, parts: &mut response::Parts) -> io::Result<Untouched> {
        let inner = &mut *self.0.borrow_mut();
        let head_bytes = std::mem::take(&mut inner.head_bytes);
        inner.head.response(&head_bytes, parts).map_err(malformed)
    }

    /// Whether the response may have fields for this hop alone, and whether it has a date.
    pub(super) fn tells(&self) -> (bool, bool) {
        let inner = self.0.borrow();
        (inner.head.hop_by_hop, inner.head.dated)
    }

    /// The body of the response, where all of it has come with its head.
    pub(super) fn whole(&self) -> Option<Bytes> {
        let inner = &mut *self.0.borrow_mut();
        match inner.body {
            Incoming::Length(left) if left <= inner.read.len() as u64 => {
                inner.body = Incoming::Done;
                Some(inner.take(left as usize))
            }
            Incoming::Done => Some(Bytes::new()),
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
        matches!(inner.body, Incoming::Length(left) if left <= limit as u64 && left > inner.read.len() as u64)
    }

    /// Reads until all of such a body is there: [`Link::whole`] then has it.
    pub(super) fn poll_gather(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        while let Incoming::Length(left) = inner.body
            && left > inner.read.len() as u64
        {
            if ready!(inner.poll_fill(cx, None))? == 0 {
                return Poll::Ready(Err(closed()));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether any byte of a response has come.
    pub(super) fn answered(&self) -> bool {
        self.0.borrow().answered
    }

    /// Whether the request's body is still being sent.
    pub(super) fn uploading(&self) -> bool {
        let inner = self.0.borrow();
        match inner.upload {
            Upload::Open | Upload::Apart(_) => true,
            // All of it has been taken; the end of it may wait for room, and belongs to this request.
            Upload::Over => !inner.out.is_written(),
            Upload::Refused(_) | Upload::Abandoned => false,
        }
    }

    /// Goes on sending a request's body whose response has begun, until it is over, no byte of it is taken for as long as
    /// `idle`, or the exchange is given up.
    pub(super) async fn upload(&self, body: RequestBody, idle: Duration) {
        if !self.uploading() {
            // Given up before this task has run.
            return;
        }
        self.0.borrow_mut().upload = Upload::Apart(None);
        let mut body = body;
        let mut wait = std::pin::pin!(tokio::time::sleep(idle));
        poll_fn(|cx| {
            let inner = &mut *self.0.borrow_mut();
            if !matches!(inner.upload, Upload::Apart(_)) {
                return Poll::Ready(());
            }
            inner.moved = false;
            let sent = inner.poll_send(cx, &mut body);
            if sent.is_pending() && !inner.moved {
                if wait.as_mut().poll(cx).is_pending() {
                    inner.upload = Upload::Apart(Some(cx.waker().clone()));
                    return Poll::Pending;
                }
                inner.upload = Upload::Abandoned;
                return Poll::Ready(());
            }
            match sent {
                Poll::Ready(Ok(())) => Poll::Ready(()),
                Poll::Ready(Err(_)) => {
                    inner.upload = Upload::Abandoned;
                    Poll::Ready(())
                }
                Poll::Pending => {
                    wait.as_mut().reset(tokio::time::Instant::now() + idle);
                    let _ = wait.as_mut().poll(cx);
                    inner.upload = Upload::Apart(Some(cx.waker().clone()));
                    Poll::Pending
                }
            }
        })
        .await;
    }

    /// The exchange is given up: nothing is sent any more.
    pub(super) fn abandon(&self) {
        let inner = &mut *self.0.borrow_mut();
        if let Upload::Apart(Some(waker)) = std::mem::replace(&mut inner.upload, Upload::Abandoned) {
            waker.wake();
        }
    }

    /// Whether the exchange is over on both sides and left the connection fit for a next one. Lets go of all memory.
    pub(super) fn rest(&self) -> bool {
        let inner = &mut *self.0.borrow_mut();
        let fit = matches!((&inner.body, &inner.upload), (Incoming::Done, Upload::Over))
            && inner.out.is_written()
            && inner.head.keep_alive
            && inner.read.is_empty();
        inner.space.give_buffer(inner.out.rest());
        inner.pipe = None;
        inner.read = Bytes::new();
        inner.head_bytes = Bytes::new();
        fit
    }

    /// Counts it at the backend, and knows whether somebody else wants a connection there.
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

    /// What the backend has sent behind its agreement to another protocol.
    pub fn take_rest(&self) -> Bytes {
        std::mem::take(&mut self.0.borrow_mut().read)
    }

    /// The socket, for a tunnel.
    pub fn io(self: &Rc<Self>) -> LinkIo {
        LinkIo(Rc::clone(self))
    }
}

impl Inner {
    /// Writes the request's head and as much of its body as there is, each piece before the next is asked for. Ready when
    /// all of it is written, or the backend does not take it.
    ///
    /// # Errors
    /// The client's.
    fn poll_send(&mut self, cx: &mut Context<'_>, body: &mut RequestBody) -> Poll<io::Result<()>> {
        let mut turn = 0;
        loop {
            // Poured past the encryption it would go in the clear.
            if matches!(self.upload, Upload::Open | Upload::Apart(_))
                && self.socket.plain().is_some()
                && (body.pours() || self.pipe.is_some())
            {
                match ready!(self.poll_pour(cx, body))? {
                    Some(true) => {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Some(false) => continue,
                    None => {}
                }
            }
            // A first piece that is there already goes out with the head.
            let mut waiting = false;
            if matches!(self.upload, Upload::Open | Upload::Apart(_)) && self.out.has_room() {
                match Pin::new(&mut *body).poll_frame(cx) {
                    Poll::Pending => waiting = true,
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => {
                            self.out.data(data).map_err(malformed)?;
                            if self.out.framing == Framing::Length(0) {
                                self.end(None)?;
                            }
                        }
                        Err(frame) => self.end(frame.into_trailers().ok().as_ref())?,
                    },
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(io::Error::other(error))),
                    Poll::Ready(None) => self.end(None)?,
                }
            }
            turn += self.out.len().max(WRITE_BYTES);
            if let Err(error) = ready!(self.poll_write(cx)) {
                // It may have answered before it closed.
                self.upload = Upload::Refused(Some(error));
            }
            match self.upload {
                Upload::Open | Upload::Apart(_) if waiting => return Poll::Pending,
                Upload::Open | Upload::Apart(_) if turn > TURN_BYTES => {
                    // The others have their turn; as in the other direction.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Upload::Open | Upload::Apart(_) => {}
                Upload::Over | Upload::Refused(_) | Upload::Abandoned => {
                    // Dropping it tells that it is over. What was not written may have to be read once more.
                    if self.written {
                        body.sent();
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// Pours a piece of the request's body: whether there is more; `None` where there is no pipe to be had.
    ///
    /// # Errors
    /// The client's.
    fn poll_pour(&mut self, cx: &mut Context<'_>, body: &mut RequestBody) -> Poll<io::Result<Option<bool>>> {
        if self.pipe.is_none() {
            self.pipe = self.space.pipe();
        }
        let Some(mut pipe) = self.pipe.take() else { return Poll::Ready(Ok(None)) };
        // What is before it goes first.
        let mut written = self.poll_write(cx);
        if pipe.held() == 0 && written.is_ready() {
            match body.poll_pour(cx, &mut pipe) {
                Poll::Ready(Ok(bytes)) => self.out.poured(bytes),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                Poll::Pending => {
                    self.pipe = Some(pipe);
                    return Poll::Pending;
                }
            }
        }
        while pipe.held() > 0 && matches!(written, Poll::Ready(Ok(()))) {
            written = pipe.poll_drain(self.socket.tcp(), cx).map_ok(|_| self.moved = true);
        }
        match written {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                // It may have answered before it closed.
                self.upload = Upload::Refused(Some(error));
                return Poll::Ready(Ok(Some(false)));
            }
            Poll::Pending => {
                self.pipe = Some(pipe);
                return Poll::Pending;
            }
        }
        self.written = true;
        if self.out.framing != Framing::Length(0) {
            self.pipe = Some(pipe);
            return Poll::Ready(Ok(Some(true)));
        }
        self.space.give_pipe(pipe);
        self.end(None)?;
        Poll::Ready(Ok(Some(false)))
    }

    /// The body has been taken whole.
    fn end(&mut self, trailers: Option<&HeaderMap>) -> io::Result<()> {
        self.out.end(trailers).map_err(malformed)?;
        self.upload = Upload::Over;
        self.intact = trailers.is_none();
        Ok(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_written() {
            ready!(self.out.poll_write(&mut self.socket, cx))?;
            (self.written, self.moved) = (true, true);
        }
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    /// Reads until the head of the response is there.
    fn poll_head(&mut self, cx: &mut Context<'_>, informed: &dyn Informed) -> Poll<io::Result<()>> {
        loop {
            if self.fresh {
                self.fresh = false;
                if let Some(end) = self.head.parse(&self.read, self.bodiless).map_err(malformed)? {
                    let bytes = self.read.split_to(end);
                    if !self.head.status.is_informational() || self.head.status == StatusCode::SWITCHING_PROTOCOLS {
                        self.head_bytes = bytes;
                        self.body = match self.head.framing {
                            Framing::None => Incoming::Done,
                            Framing::Length(length) => Incoming::Length(length),
                            Framing::Chunked => Incoming::Chunked(Chunked::default()),
                            Framing::Close => Incoming::Close,
                        };
                        return Poll::Ready(Ok(()));
                    }
                    self.informational += end;
                    // The client's 100 is the proxy's own to send (RFC 9110 §10.1.1).
                    if self.head.status != StatusCode::CONTINUE {
                        informed.informational(&bytes);
                    }
                    self.fresh = !self.read.is_empty();
                    if self.informational <= HEAD_BYTES {
                        continue;
                    }
                }
                if self.read.len().max(self.informational) > HEAD_BYTES {
                    return Poll::Ready(Err(malformed("a head that is too long")));
                }
            }
            let before = self.read.len();
            if ready!(self.poll_fill(cx, None))? == 0 {
                return Poll::Ready(Err(closed()));
            }
            self.answered = true;
            // A head does not end but with a line, so a piece of a line is not worth a look.
            self.fresh = memchr::memchr(b'\n', &self.read[before..]).is_some() || self.read.len() > HEAD_BYTES;
        }
    }

    /// Reads the next piece of the body.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            let step = match &mut self.body {
                Incoming::Head | Incoming::Done | Incoming::Broken => return Poll::Ready(None),
                Incoming::Chunked(chunked) => match chunked.next(&mut self.read) {
                    Ok(Next::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Ok(Next::End(trailers)) => {
                        self.body = Incoming::Done;
                        return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                    }
                    Ok(Next::More) => ready!(self.poll_fill(cx, None)),
                    Err(what) => Err(malformed(what)),
                },
                Incoming::Length(left) => {
                    let bytes = (*left).min(self.read.len() as u64);
                    if bytes > 0 {
                        *left -= bytes;
                        if *left == 0 {
                            self.body = Incoming::Done;
                        }
                        return Poll::Ready(Some(Ok(Frame::data(self.take(bytes as usize)))));
                    }
                    let left = *left;
                    ready!(self.poll_fill(cx, Some(left)))
                }
                Incoming::Close => {
                    if !self.read.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(self.take(self.read.len())))));
                    }
                    match ready!(self.poll_fill(cx, None)) {
                        Ok(0) => {
                            self.body = Incoming::Done;
                            return Poll::Ready(None);
                        }
                        filled => filled,
                    }
                }
            };
            match step {
                Ok(1..) => {}
                Ok(0) => {
                    self.body = Incoming::Broken;
                    return Poll::Ready(Some(Err(closed())));
                }
                Err(error) => {
                    self.body = Incoming::Broken;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    /// Reads what there is. `left` is what is left of the body. 0 is the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>, left: Option<u64>) -> Poll<io::Result<usize>> {
        let fresh = ready!(self.space.poll_read(&mut self.socket, cx, left))?;
        let bytes = fresh.len();
        join(&mut self.read, fresh);
        Poll::Ready(Ok(bytes))
    }

    /// Takes the first bytes that were read.
    fn take(&mut self, bytes: usize) -> Bytes {
        if bytes == self.read.len() { std::mem::take(&mut self.read) } else { self.read.split_to(bytes) }
    }

    fn failed(&mut self, error: io::Error, body: &mut RequestBody) -> Failed {
        let unsent = !self.written && self.intact;
        if unsent {
            body.unread(self.out.unsent(self.head_length));
        }
        Failed { error, unsent }
    }
}

/// The rest of a response's body.
impl Source for Link {
    fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.borrow_mut().poll_piece(cx)
    }

    fn is_done(&self) -> bool {
        matches!(self.0.borrow().body, Incoming::Done)
    }

    fn want(&self, _: bool) {}

    fn pours(&self) -> bool {
        let inner = self.0.borrow();
        matches!(inner.body, Incoming::Length(left) if left >= POURED_BYTES)
            && inner.read.is_empty()
            && inner.socket.plain().is_some()
    }

    fn poll_pour(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        let inner = &mut *self.0.borrow_mut();
        let Incoming::Length(left) = &mut inner.body else { return Poll::Ready(Ok(0)) };
        let broken = match ready!(pipe.poll_fill(inner.socket.tcp(), cx, *left)) {
            Ok(bytes @ 1..) => {
                *left = left.saturating_sub(bytes as u64);
                if *left == 0 {
                    inner.body = Incoming::Done;
                }
                return Poll::Ready(Ok(bytes));
            }
            Ok(_) => closed(),
            Err(error) => error,
        };
        inner.body = Incoming::Broken;
        Poll::Ready(Err(broken))
    }

    fn left(&self) -> Option<u64> {
        match self.0.borrow().body {
            Incoming::Length(left) => Some(left),
            Incoming::Done => Some(0),
            _ => None,
        }
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

/// The socket that a tunnel reads and writes through.
#[derive(Debug)]
pub struct LinkIo(Rc<Link>);

impl AsyncRead for LinkIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.0.borrow_mut().socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for LinkIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.0.borrow_mut().socket).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.0.borrow_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.0.borrow_mut().socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use socket2::SockRef;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::backend::BackendState;
    use crate::config::Address;
    use crate::exchange::body::{BodyError, Progress};

    /// A client that has sent its body, all of it.
    struct Sent(Cell<Option<Bytes>>);

    impl Source for Sent {
        fn poll_piece(&self, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
            Poll::Ready(self.0.take().map(|piece| Ok(Frame::data(piece))))
        }
        fn is_done(&self) -> bool {
            let piece = self.0.take();
            let done = piece.is_none();
            self.0.set(piece);
            done
        }
        fn left(&self) -> Option<u64> {
            let piece = self.0.take();
            let left = piece.as_ref().map_or(0, Bytes::len) as u64;
            self.0.set(piece);
            Some(left)
        }
        fn want(&self, _: bool) {}
        fn pours(&self) -> bool {
            false
        }
        fn poll_pour(&self, _: &mut Context<'_>, _: &mut Pipe) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(0))
        }
    }

    /// A body of so many pieces of one byte: all of them there, or each after a pause.
    struct Crumbs {
        left: Cell<usize>,
        pause: Option<RefCell<tokio::time::Interval>>,
    }

    impl Source for Crumbs {
        fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
            if let Some(pause) = &self.pause {
                ready!(pause.borrow_mut().poll_tick(cx));
            }
            let left = self.left.get();
            self.left.set(left.saturating_sub(1));
            Poll::Ready((left > 0).then(|| Ok(Frame::data(Bytes::from_static(b"z")))))
        }
        fn is_done(&self) -> bool {
            self.left.get() == 0
        }
        fn left(&self) -> Option<u64> {
            None
        }
        fn want(&self, _: bool) {}
        fn pours(&self) -> bool {
            false
        }
        fn poll_pour(&self, _: &mut Context<'_>, _: &mut Pipe) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(0))
        }
    }

    /// What a backend has got of them, once it has all.
    async fn eaten(backend: &mut TcpStream) -> usize {
        let mut written = Vec::new();
        while !written.ends_with(b"\r\n0\r\n\r\n") {
            assert!(backend.read_buf(&mut written).await.unwrap() > 0, "cut short");
        }
        // None in the head.
        written.iter().filter(|&&byte| byte == b'z').count()
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
        fn response_trailers(&self, _: &http::HeaderMap) {}
        fn last_words(&self) -> Option<http::HeaderMap> {
            None
        }
        fn response_broke(&self) {}
        fn ended(&self, _: bool) {}
    }

    impl Informed for Nobody {
        fn informational(&self, _: &[u8]) {}
    }

    /// A backend and a connection to it.
    async fn link() -> (TcpStream, Rc<Link>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (backend, _) = listener.accept().await.unwrap();
        let state = BackendState::new("u".into(), Address::Ip(([127, 0, 0, 1], 1).into()), 1);
        (backend, Link::new(Socket::Plain(tcp), 0, Rc::default(), Connected::try_new(&state).unwrap()))
    }

    /// A backend that has answered a POST of 4 MB before it has read it, the connection to it, and the rest of the body.
    async fn answered_early() -> (TcpStream, Rc<Link>, RequestBody) {
        let (mut backend, link) = link().await;
        // Smaller than the body: its only piece is taken from the client at once, and waits for room.
        SockRef::from(link.0.borrow().socket.tcp()).set_send_buffer_size(4096).unwrap();
        let sent = Rc::new(Sent(Cell::new(Some(Bytes::from(vec![b'u'; BODY])))));
        let mut body = RequestBody::streamed(sent, Rc::new(Nobody));
        let (parts, ()) = http::Request::post("/").header("host", "a").body(()).unwrap().into_parts();
        link.begin(&parts, &body, Lines::default());
        backend.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        let status = poll_fn(|cx| link.poll_response(cx, &mut body, &Nobody)).await.unwrap();
        assert_eq!((status, link.whole()), (StatusCode::OK, Some(Bytes::new())));
        (backend, link, body)
    }

    const BODY: usize = 4 << 20;

    #[tokio::test]
    async fn a_body_in_crumbs_takes_turns() {
        const CRUMBS: usize = 1000;
        let (mut backend, link) = link().await;
        let crumbs = Rc::new(Crumbs { left: Cell::new(CRUMBS), pause: None });
        let mut body = RequestBody::streamed(Rc::clone(&crumbs) as Rc<dyn Source>, Rc::new(Nobody));
        let (parts, ()) = http::Request::post("/").body(()).unwrap().into_parts();
        link.begin(&parts, &body, Lines::default());
        let mut most = 0;
        poll_fn(|cx| {
            let before = crumbs.left.get();
            assert!(link.poll_response(cx, &mut body, &Nobody).is_pending());
            most = most.max(before - crumbs.left.get());
            if crumbs.is_done() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        assert!((1..=TURN_BYTES / WRITE_BYTES + 1).contains(&most), "{most} writes in a turn");
        assert_eq!(eaten(&mut backend).await, CRUMBS);
    }

    #[tokio::test]
    async fn an_upload_in_chunks_that_goes_on_is_not_given_up() {
        const CRUMBS: usize = 20;
        let (mut backend, link) = link().await;
        let pause = Some(RefCell::new(tokio::time::interval(Duration::from_millis(50))));
        let crumbs = Rc::new(Crumbs { left: Cell::new(CRUMBS), pause });
        let mut body = RequestBody::streamed(crumbs, Rc::new(Nobody));
        let (parts, ()) = http::Request::post("/").body(()).unwrap().into_parts();
        link.begin(&parts, &body, Lines::default());
        backend.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        poll_fn(|cx| link.poll_response(cx, &mut body, &Nobody)).await.unwrap();
        // It takes a second, more than twice as long as it may stand still.
        link.upload(body, Duration::from_millis(400)).await;
        assert!(link.rest(), "it was given up");
        assert_eq!(eaten(&mut backend).await, CRUMBS);
    }

    #[tokio::test]
    async fn a_connection_is_not_kept_with_the_tail_of_a_request_unwritten() {
        let (_backend, link, _body) = answered_early().await;
        assert!(link.uploading() && !link.rest());
    }

    #[tokio::test]
    async fn the_tail_of_a_request_is_sent_beside_an_answer_that_came_first() {
        let (mut backend, link, body) = answered_early().await;
        let reading = tokio::spawn(async move {
            let (mut read, mut piece) = (0, vec![0; 64 * 1024]);
            while read < BODY {
                let bytes = backend.read(&mut piece).await.unwrap();
                assert!(bytes > 0, "cut short after {read}");
                read += piece[..bytes].iter().filter(|&&byte| byte == b'u').count();
            }
            backend
        });
        link.upload(body, Duration::from_secs(5)).await;
        let _backend = reading.await.unwrap();
        assert!(!link.uploading() && link.rest());
    }
}
