//! The socket of a backend behind an agreement on another protocol.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Link;

impl Link {
    /// What the backend has sent behind its agreement to another protocol.
    pub fn take_rest(&self) -> Bytes {
        std::mem::take(&mut self.0.borrow_mut().read)
    }

    /// The socket, for a tunnel.
    pub fn io(self: &Rc<Self>) -> LinkIo {
        LinkIo(Rc::clone(self))
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
