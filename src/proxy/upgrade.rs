//! Tunnels: what a connection becomes when both sides switch to another protocol, a WebSocket most of the time.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::backend::Lease;
use crate::exchange::body::Progress;
use crate::exchange::watch::Phase;
use crate::transport::Link;
use crate::transport::link::LinkIo;

use super::running::Running;

/// Bytes under way in one direction of a tunnel.
const BUFFER_BYTES: usize = 8 * 1024;

/// An exchange whose two connections are from now on one. The request counts as in flight, at the backend and at the
/// listener, until it ends.
pub struct Tunnel {
    link: Rc<Link>,
    running: Rc<Running>,
    idle: Duration,
    _lease: Lease,
}

impl Tunnel {
    pub(super) fn new(link: Rc<Link>, lease: Lease, running: Rc<Running>, idle: Duration) -> Self {
        running.exchange.client.metrics.of(running.worker()).tunnels_opened.add(1);
        Self { link, running, idle, _lease: lease }
    }

    /// Carries bytes both ways until both ends are done, one breaks, neither says anything for too long, or the connection is
    /// told to end. `held` is what the client has sent already.
    pub async fn run(self, client: impl AsyncRead + AsyncWrite + Unpin, held: Vec<u8>) -> io::Result<()> {
        let rest = self.link.take_rest();
        let watch = &*self.running.exchange.watch;
        watch.uncap();
        watch.enter(Phase::Tunnel, self.idle);
        let mut client = client;
        let mut backend: LinkIo = self.link.io();
        let mut up = Pump::new(held.into());
        let mut down = Pump::new(rest);
        let result = std::future::poll_fn(|cx| {
            watch.register(cx);
            let upward = up.poll(cx, &mut client, &mut backend)?;
            let downward = down.poll(cx, &mut backend, &mut client)?;
            if upward.is_ready() && downward.is_ready() {
                return Poll::Ready(Ok(()));
            }
            if up.moved() | down.moved() {
                watch.extend(self.idle);
            }
            if watch.is_cut() || watch.expired() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            Poll::Pending
        })
        .await;
        self.running.tunnelled(up.carried, down.carried);
        self.running.ended(result.is_ok());
        result
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.running.exchange.client.metrics.of(self.running.worker()).tunnels_closed.add(1);
    }
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("link", &self.link).finish_non_exhaustive()
    }
}

/// One direction. Reads only when what was read before is written: a slow reader slows the writer.
struct Pump {
    buffer: Bytes,
    carried: u64,
    moved: bool,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    Open,
    /// The reader's end has been reached; the writer is to be told.
    Closing,
    Closed,
}

impl Pump {
    fn new(first: Bytes) -> Self {
        Self { buffer: first, carried: 0, moved: false, state: State::Open }
    }

    /// Whether anything has moved since this was last asked.
    fn moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        loop {
            while self.buffer.has_remaining() {
                let n = ready!(Pin::new(&mut *writer).poll_write(cx, &self.buffer))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.buffer.advance(n);
                self.carried += n as u64;
                self.moved = true;
            }
            ready!(Pin::new(&mut *writer).poll_flush(cx))?;
            match self.state {
                State::Closed => return Poll::Ready(Ok(())),
                State::Closing => {
                    ready!(Pin::new(&mut *writer).poll_shutdown(cx))?;
                    self.state = State::Closed;
                    return Poll::Ready(Ok(()));
                }
                State::Open => {}
            }
            // An idle tunnel holds no buffer: the space is on the stack until something has come.
            self.buffer = Bytes::new();
            let mut space = [0; BUFFER_BYTES];
            let mut piece = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut *reader).poll_read(cx, &mut piece))?;
            match piece.filled() {
                [] => self.state = State::Closing,
                bytes => self.buffer = Bytes::copy_from_slice(bytes),
            }
        }
    }
}
