//! A backend's socket as hyper sees it, and what hyper does not tell about it.
//!
//! Two things: whether any byte of a response has come, on which it depends whether a request may be sent again; and the
//! informational responses (RFC 9110 §15.2), which hyper's client drops.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::exchange::body::RequestBody;
use crate::exchange::dry::Dry;

use super::mute::Mute;

/// Who is told of informational responses.
pub trait Informed {
    /// The head of one, from its status line to its empty line.
    fn informational(&self, head: &[u8]);
}

/// A backend's socket.
pub struct Link {
    tcp: RefCell<TcpStream>,
    answered: Cell<bool>,
    /// Whether the next byte read is the first of a response.
    at_start: Cell<bool>,
    /// Whether the next bytes written are the head of a request that is to be kept or added to.
    starting: Cell<bool>,
    head: RefCell<Head>,
    /// Whether there may be something to read.
    dry: Dry,
    /// Through which the connection's task is woken, once it has run.
    mute: RefCell<Option<Arc<Mute>>>,
    informed: RefCell<Option<Rc<dyn Informed>>>,
    /// The beginning of an informational response that did not come in one piece.
    partial: RefCell<Vec<u8>>,
    ended: RefCell<Ended>,
}

/// The head of the request under way. Its space is used again by the next.
#[derive(Default)]
struct Head {
    /// As it is sent: what hyper wrote with the lines put in.
    bytes: Vec<u8>,
    /// So many of them the socket has taken.
    sent: usize,
    /// Lines to put in behind the request line.
    lines: Option<Rc<[u8]>>,
}

#[derive(Default)]
struct Ended {
    /// What was read beyond the last response, once hyper let go of the socket.
    rest: Option<Bytes>,
    waker: Option<Waker>,
}

/// An informational response longer than this is not passed on.
const INFORMATIONAL_BYTES: usize = 16 * 1024;

impl Link {
    pub(super) fn new(tcp: TcpStream) -> Rc<Self> {
        Rc::new(Self {
            tcp: RefCell::new(tcp),
            answered: Cell::new(false),
            at_start: Cell::new(false),
            starting: Cell::new(false),
            head: RefCell::default(),
            dry: Dry::default(),
            mute: RefCell::new(None),
            informed: RefCell::new(None),
            partial: RefCell::default(),
            ended: RefCell::default(),
        })
    }

    /// A request is about to be sent: `lines` go in behind its request line, and with `keep` its head is kept.
    pub(super) fn begin(&self, keep: bool, lines: Option<Rc<[u8]>>, informed: Option<Rc<dyn Informed>>) {
        self.starting.set(keep || lines.is_some());
        let mut head = self.head.borrow_mut();
        head.bytes.clear();
        head.sent = 0;
        head.lines = lines;
        self.answered.set(false);
        self.at_start.set(true);
        *self.informed.borrow_mut() = informed;
    }

    /// The waker that the connection's task is to hand to hyper. Made at the task's first poll.
    pub(super) fn waker(&self, task: &Waker) -> Waker {
        let mute = Mute::new(task.clone());
        *self.mute.borrow_mut() = Some(Arc::clone(&mute));
        mute.into()
    }

    /// A piece of a response's body is about to be taken (`true`), or was: until then hyper's notice of it is not listened
    /// to.
    pub(super) fn mute(&self, closed: bool) {
        if let Some(mute) = &*self.mute.borrow() {
            mute.close(closed);
        }
    }

    /// Has the connection's task run: there is more to read.
    pub(super) fn wake(&self) {
        if let Some(mute) = &*self.mute.borrow() {
            mute.wake_task();
        }
    }

    /// Whether any byte of a response has come since then.
    pub(super) fn answered(&self) -> bool {
        self.answered.get()
    }

    /// The request under way, if it was to be kept, was written and has no body.
    pub(super) fn written(&self) -> Option<Request<RequestBody>> {
        reread(&self.head.borrow().bytes)
    }

    /// Writes the head of a request, with the lines put in, and what else there is.
    fn poll_start(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let Some((first, rest)) = bufs.split_first() else { return Poll::Ready(Ok(0)) };
        let head = &mut *self.head.borrow_mut();
        // hyper offers a head in one piece.
        let line = memchr::memchr(b'\n', first).map_or(0, |end| end + 1);
        head.bytes.clear();
        head.bytes.extend_from_slice(&first[..line]);
        head.bytes.extend_from_slice(head.lines.as_deref().unwrap_or_default());
        head.bytes.extend_from_slice(&first[line..]);
        let tcp = &mut *self.tcp.borrow_mut();
        let n = if rest.is_empty() {
            ready!(Pin::new(tcp).poll_write(cx, &head.bytes))?
        } else {
            let mut slices = [IoSlice::new(&[]); 16];
            slices[0] = IoSlice::new(&head.bytes);
            let more = rest.len().min(slices.len() - 1);
            slices[1..=more].copy_from_slice(&rest[..more]);
            ready!(Pin::new(tcp).poll_write_vectored(cx, &slices[..=more]))?
        };
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.starting.set(false);
        head.sent = n.min(head.bytes.len());
        Poll::Ready(Ok(first.len() + (n - head.sent)))
    }

    /// Writes what the socket did not take of a head at once.
    fn poll_head(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let head = &mut *self.head.borrow_mut();
        while head.sent < head.bytes.len() {
            let n = ready!(Pin::new(&mut *self.tcp.borrow_mut()).poll_write(cx, &head.bytes[head.sent..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            head.sent += n;
        }
        Poll::Ready(Ok(()))
    }

    /// hyper is done with the socket, and has read `rest` beyond the last response.
    pub(super) fn end(&self, rest: Bytes) {
        self.informed.take();
        let mut ended = self.ended.borrow_mut();
        ended.rest = Some(rest);
        if let Some(waker) = ended.waker.take() {
            waker.wake();
        }
    }

    /// Waits until hyper is done with the socket. What it has read beyond the last response.
    pub fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let mut ended = self.ended.borrow_mut();
        match ended.rest.take() {
            Some(rest) => Poll::Ready(rest),
            None => {
                ended.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The socket, for hyper or for a tunnel.
    pub fn io(self: &Rc<Self>) -> LinkIo {
        LinkIo(Rc::clone(self))
    }

    /// Looks at the first bytes of an answer.
    fn first_bytes(&self, fresh: &[u8]) {
        self.answered.set(true);
        // The first digit of the status tells, once it is there.
        if fresh.get(9).is_some_and(|&digit| digit != b'1') && self.partial.borrow().is_empty() {
            self.at_start.set(false);
            self.informed.take();
        } else {
            self.informational(fresh);
        }
    }

    /// Takes informational responses from the first bytes of an answer.
    #[cold]
    fn informational(&self, fresh: &[u8]) {
        let mut partial = self.partial.borrow_mut();
        if partial.is_empty() && !could_be_informational(fresh) {
            self.at_start.set(false);
            self.informed.take();
            return;
        }
        partial.extend_from_slice(fresh);
        let mut from = 0;
        loop {
            let rest = &partial[from..];
            if !could_be_informational(rest) || partial.len() > INFORMATIONAL_BYTES {
                self.at_start.set(false);
                self.informed.take();
                break;
            }
            let Some(end) = memchr::memmem::find(rest, b"\r\n\r\n") else { break };
            let head = &rest[..end + 4];
            // The client's 100 is the proxy's own to send (RFC 9110 §10.1.1).
            if !head.starts_with(b"HTTP/1.1 100")
                && let Some(informed) = &*self.informed.borrow()
            {
                informed.informational(head);
            }
            from += end + 4;
        }
        match self.at_start.get() {
            true => drop(partial.drain(..from)),
            false => *partial = Vec::new(),
        }
    }
}

/// The request whose head was written so, without a body.
fn reread(written: &[u8]) -> Option<Request<RequestBody>> {
    let mut headers = [httparse::EMPTY_HEADER; 256];
    let mut head = httparse::Request::new(&mut headers);
    if !head.parse(written).ok()?.is_complete() {
        return None;
    }
    let mut request = Request::builder().method(head.method?).uri(head.path?);
    for header in head.headers {
        request = request.header(header.name, header.value);
    }
    request.body(RequestBody::empty()).ok()
}

/// Whether what begins with `bytes` is, or may become, an informational response other than 101.
fn could_be_informational(bytes: &[u8]) -> bool {
    const START: &[u8] = b"HTTP/1.1 1";
    let known = bytes.len().min(START.len());
    bytes[..known] == START[..known] && !bytes.starts_with(b"HTTP/1.1 101")
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("tcp", &self.tcp).field("answered", &self.answered).finish_non_exhaustive()
    }
}

/// The handle on a [`Link`] that hyper, or a tunnel, reads and writes through.
#[derive(Debug)]
pub struct LinkIo(Rc<Link>);

impl AsyncRead for LinkIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(self.0.dry.poll_read(&mut *self.0.tcp.borrow_mut(), cx, buf))?;
        if self.0.at_start.get() && buf.filled().len() > before {
            self.0.first_bytes(&buf.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LinkIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.0.starting.get() {
            return self.0.poll_start(cx, &[IoSlice::new(buf)]);
        }
        ready!(self.0.poll_head(cx))?;
        Pin::new(&mut *self.0.tcp.borrow_mut()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.0.starting.get() {
            return self.0.poll_start(cx, bufs);
        }
        ready!(self.0.poll_head(cx))?;
        Pin::new(&mut *self.0.tcp.borrow_mut()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0.starting.get() {
            true => Poll::Ready(Ok(())),
            false => self.0.poll_head(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.tcp.borrow_mut()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen(RefCell<Vec<String>>);

    impl Informed for Seen {
        fn informational(&self, head: &[u8]) {
            self.0.borrow_mut().push(String::from_utf8_lossy(head).into_owned());
        }
    }

    async fn seen(text: &str, piece: usize) -> Vec<String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let link = Link::new(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
        let seen = Rc::new(Seen::default());
        link.begin(false, None, Some(Rc::clone(&seen) as Rc<dyn Informed>));
        for bytes in text.as_bytes().chunks(piece) {
            if link.at_start.get() {
                link.first_bytes(bytes);
            }
        }
        assert!(link.answered());
        seen.0.take()
    }

    #[tokio::test]
    async fn early_hints_are_seen_in_whatever_pieces() {
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        let text =
            format!("HTTP/1.1 100 Continue\r\n\r\n{hints}{hints}HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 103 in the body");
        for piece in [1, 2, 7, 11, 100, 1000] {
            assert_eq!(seen(&text, piece).await, [hints, hints], "in pieces of {piece}");
        }
        assert_eq!(seen("HTTP/1.1 101 Switching Protocols\r\n\r\n", 1).await, [""; 0]);
    }
}
