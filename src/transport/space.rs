//! Memory that backends' sockets are read into.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

/// Heads and small bodies of all connections of a worker are read into one block after the other, and what was read is
/// handed on without being copied: a connection that waits holds no memory, and the next response is read to where the cache
/// is still warm.
#[derive(Debug, Default)]
pub(super) struct Space(RefCell<BytesMut>);

/// A block. Whoever holds the last of what was read into it holds all of it, so it is not large.
const BLOCK_BYTES: usize = 32 * 1024;

/// A read finds at least so much room: enough for most responses to come in one.
const ROOM_BYTES: usize = 16 * 1024;

impl Space {
    /// Reads what there is behind what is in `read`. Up to `wanted` bytes, if that is more than a small read: these get a
    /// block of their own.
    pub(super) fn poll_read(
        &self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
        read: &mut BytesMut,
        wanted: usize,
    ) -> Poll<io::Result<usize>> {
        if wanted > ROOM_BYTES && wanted != usize::MAX && read.is_empty() {
            // Not before there is something to read.
            ready!(tcp.poll_read_ready(cx))?;
            let mut own = BytesMut::with_capacity(wanted);
            let n = ready!(poll_read_buf(Pin::new(tcp), cx, &mut own))?;
            *read = own;
            return Poll::Ready(Ok(n));
        }
        let block = &mut *self.0.borrow_mut();
        if block.capacity() < ROOM_BYTES && !block.try_reclaim(BLOCK_BYTES) {
            *block = BytesMut::with_capacity(BLOCK_BYTES);
        }
        let n = ready!(poll_read_buf(Pin::new(tcp), cx, block))?;
        match read.is_empty() {
            true => *read = block.split(),
            false => {
                read.extend_from_slice(block);
                block.clear();
            }
        }
        Poll::Ready(Ok(n))
    }
}
