//! A connection's bytes, in the clear or by TLS: what HTTP is spoken on, to clients and to backends. A leaf.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// A connected socket.
///
/// In the clear a write is tried before it is polled: there nearly always is room, and a try costs some 50 instructions less. It does
/// not count against the task's turn, though, as reading does: code that writes for long without reading has to yield by itself. To
/// be used on runtimes of one thread.
///
/// What is written by TLS may wait in memory until it is flushed: a writer flushes after each message, which costs
/// a connection in the clear nothing.
#[derive(Debug)]
pub enum Socket {
    /// Bytes go as they are.
    Plain(TcpStream),
    /// Bytes are encrypted; the handshake is over.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// The socket below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    /// The socket, where bytes pass as they are: the kernel can move them without the process seeing them.
    pub fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(tcp) => Some(tcp),
            Self::Tls(_) => None,
        }
    }

    /// The protocol that both sides agreed on in the handshake (RFC 7301).
    pub fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => tls.get_ref().1.alpn_protocol(),
        }
    }

    /// Writes as much as there is room for at once, and leaves no waker behind.
    ///
    /// # Errors
    /// The socket's; `WouldBlock` when there is no room.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write(bytes),
            Self::Tls(tls) => {
                let mut cx = Context::from_waker(Waker::noop());
                let written = Pin::new(&mut **tls).poll_write(&mut cx, bytes);
                // What does not go now goes before whatever is written next.
                let _ = Pin::new(&mut **tls).poll_flush(&mut cx);
                match written {
                    Poll::Ready(written) => written,
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            }
        }
    }

    /// Whether the peer has neither closed an idle connection nor said anything unasked. What belongs to TLS, as tickets do, is
    /// taken in.
    pub fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        match self {
            Self::Plain(tcp) => tcp.try_read(&mut byte).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock),
            Self::Tls(tls) => {
                let mut cx = Context::from_waker(Waker::noop());
                Pin::new(&mut **tls).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
            }
        }
    }
}

impl AsyncRead for Socket {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => match tcp.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Pin::new(tcp).poll_write(cx, bytes),
                written => {
                    if written.as_ref().is_ok_and(|&some| some < bytes.len()) {
                        // It is full: the next try need not ask the kernel. No task can have been told of room in between, since the
                        // event loop runs on the same thread.
                        let _ =
                            tcp.try_io(Interest::WRITABLE, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
                    }
                    Poll::Ready(written)
                }
            },
            Self::Tls(tls) => Pin::new(&mut **tls).poll_write(cx, bytes),
        }
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => match tcp.try_write_vectored(pieces) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    Pin::new(tcp).poll_write_vectored(cx, pieces)
                }
                written => Poll::Ready(written),
            },
            Self::Tls(tls) => Pin::new(&mut **tls).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_full_socket_is_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let (mut near, mut written) = (Socket::Plain(near), 0);
        let large = vec![0; 1 << 20];
        let mut write = |cx: &mut Context<'_>, in_pieces: bool| {
            let near = Pin::new(&mut near);
            match in_pieces {
                true => near.poll_write_vectored(cx, &[IoSlice::new(&large[..5]), IoSlice::new(&large[5..])]),
                false => near.poll_write(cx, &large),
            }
        };
        for in_pieces in [false, true] {
            let mut cx = Context::from_waker(Waker::noop());
            while let Poll::Ready(bytes) = write(&mut cx, in_pieces) {
                written += bytes.unwrap();
            }
            assert!(written > 0);
            let waiting = poll_fn(|cx| write(cx, in_pieces));
            let drain = async {
                let mut space = vec![0; written];
                far.read_exact(&mut space).await.unwrap();
            };
            let both = async { tokio::join!(waiting, drain).0.unwrap() };
            written = tokio::time::timeout(Duration::from_secs(10), both).await.expect("somebody is told of the room");
        }
    }
}
