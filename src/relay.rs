//! Bytes both ways between two streams, whatever is spoken on them: what a tunnel does, and all that TCP needs.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::exchange::deadline::{Phase, Watch};

/// Bytes under way in one direction.
const BUFFER_BYTES: usize = 8 * 1024;

/// How it has ended.
#[derive(Debug)]
pub struct Relayed {
    /// Bytes that were written to the second stream.
    pub up: u64,
    /// Bytes that were written to the first.
    pub down: u64,
    /// Whether both ends were done, or what has ended it.
    pub result: io::Result<()>,
}

/// Carries bytes both ways until both ends are done, one breaks, neither says anything for `idle`, or `watch` is told to end. `first`
/// is what was read of the two streams already, in their order.
pub async fn relay(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut backend: impl AsyncRead + AsyncWrite + Unpin,
    first: (Bytes, Bytes),
    watch: &Watch,
    idle: Duration,
) -> Relayed {
    watch.enter(Phase::Tunnel, idle);
    let (mut up, mut down) = (Pump::new(first.0), Pump::new(first.1));
    let result = std::future::poll_fn(|cx| {
        watch.register(cx);
        let upward = up.poll(cx, &mut client, &mut backend)?;
        let downward = down.poll(cx, &mut backend, &mut client)?;
        if upward.is_ready() && downward.is_ready() {
            return Poll::Ready(Ok(()));
        }
        if up.moved() | down.moved() {
            watch.extend(idle);
        }
        if watch.is_cut() || watch.expired() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    })
    .await;
    Relayed { up: up.carried, down: down.carried, result }
}

/// One direction. Reads only when what was read before is written: a slow reader slows the writer.
struct Pump {
    buffer: Bytes,
    carried: u64,
    moved: bool,
    state: RelayState,
}

#[derive(PartialEq, Eq)]
enum RelayState {
    Open,
    /// The reader's end has been reached; the writer is to be told.
    Closing,
    Closed,
}

impl Pump {
    fn new(first: Bytes) -> Self {
        Self { buffer: first, carried: 0, moved: false, state: RelayState::Open }
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
                RelayState::Closed => return Poll::Ready(Ok(())),
                RelayState::Closing => {
                    ready!(Pin::new(&mut *writer).poll_shutdown(cx))?;
                    self.state = RelayState::Closed;
                    return Poll::Ready(Ok(()));
                }
                RelayState::Open => {}
            }
            // An idle tunnel holds no buffer: the space is on the stack until something has come.
            self.buffer = Bytes::new();
            let mut space = [0; BUFFER_BYTES];
            let mut piece = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut *reader).poll_read(cx, &mut piece))?;
            match piece.filled() {
                [] => self.state = RelayState::Closing,
                bytes => self.buffer = Bytes::copy_from_slice(bytes),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::exchange::deadline::Clock;

    const MINUTE: Duration = Duration::from_secs(60);

    fn watch() -> Rc<Watch> {
        Watch::new(&Clock::new(), MINUTE, 0)
    }

    /// The far ends of what is relayed between, and that.
    fn ends() -> ((DuplexStream, DuplexStream), (DuplexStream, DuplexStream)) {
        let ((client, near), (backend, far)) = (duplex(64), duplex(64));
        ((client, backend), (near, far))
    }

    #[tokio::test]
    async fn bytes_go_both_ways_behind_what_was_read_already_until_both_ends_are_done() {
        let ((mut client, mut backend), (near, far)) = ends();
        let watch = watch();
        let relayed = relay(near, far, (Bytes::from_static(b"a"), Bytes::from_static(b"b")), &watch, MINUTE);
        let both = async {
            let large = vec![7; 100_000];
            let (mut up, mut down) = (Vec::new(), Vec::new());
            let (mut from_client, mut to_client) = tokio::io::split(&mut client);
            let (mut from_backend, mut to_backend) = tokio::io::split(&mut backend);
            let send = async {
                to_client.write_all(&large).await.unwrap();
                to_client.shutdown().await.unwrap();
            };
            // One end is done long before the other.
            let answer = async {
                from_backend.read_to_end(&mut up).await.unwrap();
                to_backend.write_all(b"c").await.unwrap();
                to_backend.shutdown().await.unwrap();
            };
            tokio::join!(send, answer, async { from_client.read_to_end(&mut down).await.unwrap() });
            (up, down)
        };
        let (relayed, (up, down)) = tokio::join!(relayed, both);
        assert!(relayed.result.is_ok());
        assert_eq!((relayed.up, relayed.down), (100_001, 2));
        assert_eq!((up.len(), up[0], &*down), (100_001, b'a', &b"bc"[..]));
    }

    #[tokio::test]
    async fn it_ends_when_the_watch_is_told_to() {
        let (_far, (near, far)) = ends();
        let watch = watch();
        watch.cut();
        let relayed = relay(near, far, (Bytes::new(), Bytes::new()), &watch, MINUTE).await;
        assert_eq!(relayed.result.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
