//! The bytes below HTTP/2: those of its connection, which pass the guard, and those of a stream that became a tunnel.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h2::SendStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::flood::FloodGuard;
use super::stream::ClientStream;
use crate::exchange::deadline::{Phase, Watch};
use crate::listener::http1::WireIo;
use crate::telemetry::metrics::FloodKind;

/// What the connection's task and the bytes below it tell each other.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) guard: RefCell<FloodGuard>,
    /// What the client sends too much of.
    pub(super) flood: Cell<Option<FloodKind>>,
    /// Whether there was no room in the socket.
    blocked: Cell<bool>,
    watch: Rc<Watch>,
    /// How long the connection may be idle now.
    pub(super) idle: Cell<Duration>,
}

impl Flow {
    pub(super) fn new(guard: FloodGuard, watch: Rc<Watch>, idle: Duration) -> Rc<Self> {
        Rc::new(Self {
            guard: RefCell::new(guard),
            flood: Cell::new(None),
            blocked: Cell::new(false),
            watch,
            idle: Cell::new(idle),
        })
    }

    fn now_ms(&self) -> u64 {
        self.watch.clock().now_ms()
    }

    /// What became of writing these.
    fn wrote(&self, written: &Poll<io::Result<usize>>, pieces: &[IoSlice<'_>]) {
        let Poll::Ready(written) = written else { return self.blocked.set(true) };
        let Ok(mut left) = *written else { return };
        // A client that takes what is left of its responses is not idle.
        if self.blocked.take() && self.watch.phase() == Phase::Idle {
            self.watch.extend(self.idle.get());
        }
        let (mut guard, now_ms) = (self.guard.borrow_mut(), self.now_ms());
        for piece in pieces {
            let taken = left.min(piece.len());
            if let Err(kind) = guard.sent(&piece[..taken], now_ms)
                && self.flood.get().is_none()
            {
                self.flood.set(Some(kind));
                self.watch.wake();
            }
            left -= taken;
            if left == 0 {
                break;
            }
        }
    }
}

/// A connection's bytes.
#[derive(Debug)]
pub(super) struct Io {
    socket: WireIo,
    /// What was read before it was known to be HTTP/2.
    replay: Bytes,
    flow: Rc<Flow>,
}

impl Io {
    pub(super) fn new(socket: WireIo, replay: Bytes, flow: Rc<Flow>) -> Self {
        Self { socket, replay, flow }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Nothing more is read. The connection's task, which reads, finds out why.
        if this.flow.flood.get().is_some() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if this.replay.is_empty() {
            ready!(Pin::new(&mut this.socket).poll_read(cx, buf))?;
        } else {
            let piece = this.replay.split_to(this.replay.len().min(buf.remaining()));
            buf.put_slice(&piece);
        }
        let now_ms = this.flow.now_ms();
        let passed = this.flow.guard.borrow_mut().received(&buf.filled()[before..], now_ms);
        if let Err(kind) = passed {
            this.flow.flood.set(Some(kind));
            buf.set_filled(before);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write(cx, bytes);
        this.flow.wrote(&written, &[IoSlice::new(bytes)]);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write_vectored(cx, pieces);
        this.flow.wrote(&written, pieces);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    /// Does not end what is sent: that is for the task that serves the connection. A client that floods would take it for a sign to begin anew.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

/// The bytes of a stream that became a tunnel: what its DATA frames carry.
pub(super) struct TunnelIo {
    stream: Rc<ClientStream>,
    send: Rc<RefCell<SendStream<Bytes>>>,
    /// What has come and was not taken.
    read: Bytes,
}

impl TunnelIo {
    pub(super) fn new(stream: Rc<ClientStream>, send: Rc<RefCell<SendStream<Bytes>>>) -> Self {
        Self { stream, send, read: Bytes::new() }
    }
}

impl AsyncRead for TunnelIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut recv = this.stream.recv.borrow_mut();
        let Some(recv) = &mut *recv else { return Poll::Ready(Ok(())) };
        while this.read.is_empty() {
            match ready!(recv.poll_data(cx)) {
                Some(Ok(bytes)) => this.read = bytes,
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = this.read.len().min(buf.remaining());
        buf.put_slice(&this.read[..taken]);
        this.read.advance(taken);
        let _ = recv.flow_control().release_capacity(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let send = &mut *self.get_mut().send.borrow_mut();
        send.reserve_capacity(bytes.len());
        while send.capacity() == 0 {
            match ready!(send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let taken = send.capacity().min(bytes.len());
        send.send_data(Bytes::copy_from_slice(&bytes[..taken]), false).map_err(io::Error::other)?;
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().send.borrow_mut().send_data(Bytes::new(), true).map_err(io::Error::other))
    }
}
