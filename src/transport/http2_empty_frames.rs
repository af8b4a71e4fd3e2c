//! Leaves out DATA frames without data of what a backend sends by HTTP/2.
//!
//! They mean nothing (RFC 9113 §6.1), and some servers send one for each flush. `h2` takes 100 of them over the life of a connection for
//! an attack and then ends it with all its streams, which others share; that number cannot be set. A backend that sends nothing else costs
//! what it takes to read that, and tokio's budget has others have their turn.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a frame's head.
const HEAD: usize = 9;

/// In less room than this is not read directly.
const ROOM: usize = 64;

/// A connection to a backend, behind a [`Sieve`].
pub(super) struct Sifted<S> {
    socket: S,
    sieve: Sieve,
    /// What was sifted and had no room.
    waits: Vec<u8>,
}

/// Follows the frames.
#[derive(Default)]
struct Sieve {
    /// The beginning of a head that did not come in one piece.
    held: [u8; HEAD],
    have: usize,
    /// Bytes of the payload that are still to come.
    left: usize,
}

impl Sieve {
    /// Sifts the next bytes, which begin with those that were held, in their place: so many are left at their beginning.
    fn sift(&mut self, bytes: &mut [u8]) -> usize {
        self.have = 0;
        let (mut at, mut kept) = (0, 0);
        while at < bytes.len() {
            let rest = bytes.len() - at;
            let pass = if self.left > 0 {
                let pass = self.left.min(rest);
                self.left -= pass;
                pass
            } else if let Some(&[a, b, c, kind, flags, ..]) = bytes[at..].first_chunk::<HEAD>() {
                self.left = u32::from_be_bytes([0, a, b, c]) as usize;
                // DATA without END_STREAM.
                if self.left == 0 && kind == 0 && flags & 1 == 0 {
                    at += HEAD;
                    continue;
                }
                HEAD
            } else {
                self.held[..rest].copy_from_slice(&bytes[at..]);
                self.have = rest;
                break;
            };
            if at > kept {
                bytes.copy_within(at..at + pass, kept);
            }
            (at, kept) = (at + pass, kept + pass);
        }
        kept
    }
}

impl<S: AsyncRead + Unpin> Sifted<S> {
    pub(super) fn new(socket: S) -> Self {
        Self { socket, sieve: Sieve::default(), waits: Vec::new() }
    }

    /// Reads something that passes, or the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let start = buf.filled().len();
        loop {
            buf.put_slice(&self.sieve.held[..self.sieve.have]);
            let before = buf.filled().len();
            let read = Pin::new(&mut self.socket).poll_read(cx, buf);
            let over = buf.filled().len() == before;
            if let Poll::Ready(Ok(())) = read
                && over
            {
                // The end, and the beginning of a frame before it, of which the parser makes what it will.
                self.sieve.have = 0;
                return Poll::Ready(Ok(()));
            }
            if over {
                buf.set_filled(start);
                return read;
            }
            let kept = self.sieve.sift(&mut buf.filled_mut()[start..]);
            buf.set_filled(start + kept);
            if kept > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Sifted<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.waits.is_empty() {
            if buf.remaining() >= ROOM {
                return this.poll_fill(cx, buf);
            }
            let mut space = [0; ROOM];
            let mut space = ReadBuf::new(&mut space);
            ready!(this.poll_fill(cx, &mut space))?;
            this.waits.extend_from_slice(space.filled());
        }
        let some = this.waits.len().min(buf.remaining());
        buf.put_slice(&this.waits[..some]);
        this.waits.drain(..some);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Sifted<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use proptest::prelude::*;

    use super::*;

    /// What comes in pieces.
    struct Pieces(Vec<Vec<u8>>);

    impl AsyncRead for Pieces {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let pieces = &mut self.get_mut().0;
            let Some(piece) = pieces.first_mut() else { return Poll::Ready(Ok(())) };
            let some = piece.len().min(buf.remaining());
            buf.put_slice(&piece[..some]);
            piece.drain(..some);
            if piece.is_empty() {
                pieces.remove(0);
            }
            Poll::Ready(Ok(()))
        }
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        [&(payload.len() as u32).to_be_bytes()[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    proptest! {
        /// Whatever it comes in and is read in, all passes but DATA without data and end.
        #[test]
        fn only_what_means_nothing_is_left_out(
            frames in proptest::collection::vec((0_u8..3, 0_u8..2, proptest::collection::vec(any::<u8>(), 0..40)), 0..20),
            piece in 1_usize..50,
            room in 1_usize..150,
        ) {
            let sent: Vec<u8> = frames.iter().flat_map(|(kind, flags, payload)| frame(*kind, *flags, payload)).collect();
            let passes = |(kind, flags, payload): &&(u8, u8, Vec<u8>)| *kind != 0 || *flags != 0 || !payload.is_empty();
            let expected: Vec<u8> =
                frames.iter().filter(passes).flat_map(|(kind, flags, payload)| frame(*kind, *flags, payload)).collect();
            let mut sifted = Sifted::new(Pieces(sent.chunks(piece).map(<[u8]>::to_vec).collect()));
            let mut read = Vec::new();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                loop {
                    let mut space = vec![0; room];
                    let mut buf = ReadBuf::new(&mut space);
                    poll_fn(|cx| Pin::new(&mut sifted).poll_read(cx, &mut buf)).await.unwrap();
                    if buf.filled().is_empty() {
                        break;
                    }
                    read.extend_from_slice(buf.filled());
                }
            });
            prop_assert_eq!(read, expected);
        }
    }
}
