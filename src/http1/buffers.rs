//! Memory that a worker's connections share.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use tokio_util::io::poll_read_buf;

use crate::file_descriptors::DescriptorRoom;
use crate::socket::Socket;

use super::splice::Pipe;

/// What a message needs while it is under way, and a connection that waits does not hold. What was given back last is given
/// out first, while the cache is warm.
#[derive(Debug, Default)]
pub struct Space {
    /// Heads and small bodies are read into one block, one behind the other, and handed on without being copied.
    block: RefCell<BytesMut>,
    maps: RefCell<Vec<HeaderMap>>,
    buffers: RefCell<Vec<Vec<u8>>>,
    pipes: RefCell<Vec<Pipe>>,
    /// Of which pipes take two each.
    room: Rc<DescriptorRoom>,
}

/// A block. A holder of a part of it holds all of it, so it is not large.
const BLOCK_BYTES: usize = 32 * 1024;

/// A read finds at least so much room: enough for most messages to come in one.
const ROOM_BYTES: usize = 16 * 1024;

/// A large read takes up to this much: large enough for few system calls a megabyte, small enough to stay in a core's cache.
const PIECE_BYTES: usize = 128 * 1024;

/// So many maps and buffers are kept, and buffers up to this size, and maps of so many fields.
const KEPT: usize = 64;
const KEPT_BYTES: usize = 8 * 1024;
const KEPT_FIELDS: usize = 64;
const KEPT_PIPES: usize = 8;

impl Space {
    /// Of a worker that has so much room for pipes.
    pub fn within(room: &Rc<DescriptorRoom>) -> Rc<Self> {
        Rc::new(Self { room: Rc::clone(room), ..Self::default() })
    }

    /// Reads what there is, in one piece. `wanted` is what is left of a body, where that is known: what is large gets memory
    /// of its own. An empty piece is the end.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_read(
        &self,
        socket: &mut Socket,
        cx: &mut Context<'_>,
        wanted: Option<u64>,
    ) -> Poll<io::Result<BytesMut>> {
        match (wanted, &*socket) {
            // By TLS it comes in records of 16 KiB anyway.
            (Some(wanted), Socket::Plain(tcp)) if wanted > ROOM_BYTES as u64 => {
                // Not before there is something to read.
                ready!(tcp.poll_read_ready(cx))?;
                let mut own = BytesMut::with_capacity(wanted.min(PIECE_BYTES as u64) as usize);
                ready!(poll_read_buf(Pin::new(socket), cx, &mut own))?;
                Poll::Ready(Ok(own))
            }
            _ => {
                let block = &mut *self.block.borrow_mut();
                if block.capacity() < ROOM_BYTES && !block.try_reclaim(BLOCK_BYTES) {
                    *block = BytesMut::with_capacity(BLOCK_BYTES);
                }
                ready!(poll_read_buf(Pin::new(socket), cx, block))?;
                Poll::Ready(Ok(block.split()))
            }
        }
    }

    /// An empty map.
    pub fn map(&self) -> HeaderMap {
        self.maps.borrow_mut().pop().unwrap_or_default()
    }

    /// Gives a map back.
    pub fn give_map(&self, mut map: HeaderMap) {
        let mut maps = self.maps.borrow_mut();
        if maps.len() < KEPT && map.capacity() <= KEPT_FIELDS {
            map.clear();
            maps.push(map);
        }
    }

    /// An empty pipe; `None` when there are too many files open for that.
    pub fn pipe(&self) -> Option<Pipe> {
        self.pipes.borrow_mut().pop().or_else(|| Pipe::open(self.room.pipe()?).ok())
    }

    /// Closes the pipes that are kept. Whether there were any.
    pub fn close_pipes(&self) -> bool {
        !std::mem::take(&mut *self.pipes.borrow_mut()).is_empty()
    }

    /// Gives a pipe back, unless there is something in it.
    pub fn give_pipe(&self, pipe: Pipe) {
        let mut pipes = self.pipes.borrow_mut();
        if pipe.held() == 0 && pipes.len() < KEPT_PIPES {
            pipes.push(pipe);
        }
    }

    /// An empty buffer.
    pub fn buffer(&self) -> Vec<u8> {
        self.buffers.borrow_mut().pop().unwrap_or_default()
    }

    /// Gives a buffer back.
    pub fn give_buffer(&self, mut buffer: Vec<u8>) {
        let mut buffers = self.buffers.borrow_mut();
        if buffers.len() < KEPT && buffer.capacity() <= KEPT_BYTES {
            buffer.clear();
            buffers.push(buffer);
        }
    }
}

/// Puts `fresh` behind what was read before and is not taken yet.
pub fn join(read: &mut Bytes, fresh: BytesMut) {
    if read.is_empty() {
        *read = fresh.freeze();
        return;
    }
    // What is one's own grows in place; a part of a block does not.
    let mut joined = std::mem::take(read).try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    joined.extend_from_slice(&fresh);
    *read = joined.freeze();
}
