//! A backend's socket as hyper sees it, and what hyper does not tell about it.
//!
//! Two things: whether any byte of a response has come, on which it depends whether a request may be sent again; and the
//! informational responses (RFC 9110 §15.2), which hyper's client drops.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

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
    informed: RefCell<Option<Rc<dyn Informed>>>,
    /// The beginning of an informational response that did not come in one piece.
    partial: RefCell<Vec<u8>>,
    ended: RefCell<Ended>,
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
            informed: RefCell::new(None),
            partial: RefCell::default(),
            ended: RefCell::default(),
        })
    }

    /// A request is about to be sent.
    pub(super) fn begin(&self, informed: Option<Rc<dyn Informed>>) {
        self.answered.set(false);
        self.at_start.set(true);
        *self.informed.borrow_mut() = informed;
    }

    /// Whether any byte of a response has come since then.
    pub(super) fn answered(&self) -> bool {
        self.answered.get()
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

    /// Looks for informational responses in the first bytes of an answer. Out of line: it happens once a response, and nearly
    /// always ends at the first comparison.
    fn first_bytes(&self, fresh: &[u8]) {
        self.answered.set(true);
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
        ready!(Pin::new(&mut *self.0.tcp.borrow_mut()).poll_read(cx, buf))?;
        if self.0.at_start.get() && buf.filled().len() > before {
            self.0.first_bytes(&buf.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LinkIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.tcp.borrow_mut()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.tcp.borrow_mut()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
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
        link.begin(Some(Rc::clone(&seen) as Rc<dyn Informed>));
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
