//! Bodies from socket to socket without passing through the process: `splice(2)`.
//!
//! A megabyte that is read and written is copied twice; one that is spliced is handed on as the pages it came in. Worth its
//! while for what is large, and possible where a body goes on as it came: by length, and without encryption on either side.

use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::file_descriptors::Extra;

/// What a pipe is asked to hold. The kernel may give less.
const PIPE_BYTES: usize = 256 * 1024;

/// A pipe between two sockets.
#[derive(Debug)]
pub struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    held: usize,
    /// Behind what it counts as open.
    _place: Extra,
}

impl Pipe {
    /// A new one, at the place that it has among the descriptors of its worker.
    ///
    /// # Errors
    /// When there are too many files open.
    pub fn open(place: Extra) -> io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // One of the usual size does as well.
        let _ = fcntl_setpipe_size(&into, PIPE_BYTES);
        Ok(Self { out, into, held: 0, _place: place })
    }

    /// Bytes in it.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes what has come on `tcp`, up to `max` bytes; 0 is the end. Only when it is empty: else a full pipe could not be told
    /// from a dry socket.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_fill(&mut self, tcp: &TcpStream, cx: &mut Context<'_>, max: u64) -> Poll<io::Result<usize>> {
        debug_assert_eq!(self.held, 0);
        let max = usize::try_from(max).unwrap_or(usize::MAX).min(PIPE_BYTES);
        loop {
            ready!(tcp.poll_read_ready(cx))?;
            match tcp.try_io(Interest::READABLE, || Ok(splice(tcp, None, &self.into, None, max, FLAGS)?)) {
                Ok(bytes) => {
                    self.held = bytes;
                    return Poll::Ready(Ok(bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Gives `tcp` as much as it takes; how much that was.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_drain(&mut self, tcp: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            ready!(tcp.poll_write_ready(cx))?;
            match tcp.try_io(Interest::WRITABLE, || Ok(splice(&self.out, None, tcp, None, self.held, FLAGS)?)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(bytes) => {
                    self.held -= bytes;
                    return Poll::Ready(Ok(bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file_descriptors::DescriptorRoom;
    use std::future::poll_fn;
    use std::rc::Rc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn what_goes_in_comes_out() {
        let ((mut source, near), (far, mut sink)) = (pair().await, pair().await);
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i.wrapping_mul(7) >> 3) as u8).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            source.write_all(&sent).await.unwrap();
            source.shutdown().await.unwrap();
        });
        let reader = tokio::spawn(async move {
            let mut got = Vec::new();
            sink.read_to_end(&mut got).await.unwrap();
            got
        });
        let (mut pipe, mut left) =
            (Pipe::open(Rc::<DescriptorRoom>::default().pipe().unwrap()).unwrap(), expected.len() as u64 + 1);
        while let bytes @ 1.. = poll_fn(|cx| pipe.poll_fill(&near, cx, left)).await.unwrap() {
            left -= bytes as u64;
            while pipe.held() > 0 {
                poll_fn(|cx| pipe.poll_drain(&far, cx)).await.unwrap();
            }
        }
        drop(far);
        writer.await.unwrap();
        assert_eq!(left, 1, "the end was seen before the byte that never came");
        assert!(reader.await.unwrap() == expected);
    }
}
