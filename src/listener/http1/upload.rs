//! The body of a request on its way from the client.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;

use super::Wire;
use crate::exchange::body::{BodySource, POURED_BYTES};
use crate::exchange::deadline::Phase;
use crate::exchange::{ClientSide as _, Expects};
use crate::http1::chunked::{Chunked, ChunkedPiece};
use crate::http1::splice::Pipe;

/// Below this a chunk is put together with those behind it that have come: each would cost more to hand on than to copy.
const TINY_BYTES: usize = 512;

/// So much of them is put together.
const GATHERED_BYTES: usize = 16 * 1024;

/// What is left of a request's body.
#[derive(Debug, Default)]
pub(super) enum RequestBodyRest {
    /// Nothing.
    #[default]
    Done,
    /// So many bytes.
    Length(u64),
    Chunked(Chunked),
    /// What does not come any more.
    Broken,
}

impl RequestBodyRest {
    /// Takes the next piece from what was read: `None` when there is none in it.
    fn take(&mut self, read: &mut Bytes) -> io::Result<Option<Frame<Bytes>>> {
        match self {
            Self::Done => Ok(None),
            Self::Broken => Err(io::ErrorKind::InvalidData.into()),
            Self::Length(left) => {
                let bytes = (*left).min(read.len() as u64);
                *left -= bytes;
                if *left == 0 {
                    *self = Self::Done;
                }
                let piece =
                    if bytes == read.len() as u64 { std::mem::take(read) } else { read.split_to(bytes as usize) };
                Ok(Some(Frame::data(piece)).filter(|_| bytes > 0))
            }
            Self::Chunked(chunked) => match chunked.next(read) {
                Ok(ChunkedPiece::Data(data)) if data.len() < TINY_BYTES && !read.is_empty() => {
                    Ok(Some(Frame::data(chunked.gather(data, read, GATHERED_BYTES))))
                }
                Ok(ChunkedPiece::Data(data)) => Ok(Some(Frame::data(data))),
                Ok(ChunkedPiece::More) => Ok(None),
                Ok(ChunkedPiece::End(trailers)) => {
                    *self = Self::Done;
                    if read.is_empty() {
                        // A connection that waits does not hold on to the memory it was read into.
                        *read = Bytes::new();
                    }
                    Ok(trailers.map(Frame::trailers))
                }
                Err(what) => Err(io::Error::new(io::ErrorKind::InvalidData, what)),
            },
        }
    }
}

impl Wire {
    /// Skips what has come of a body that no backend takes.
    pub(super) fn skip(&self) {
        if self.wanted.get() {
            return;
        }
        let mut read = self.read.borrow_mut();
        let body = &mut *self.body.borrow_mut();
        while !read.is_empty() {
            match body.take(&mut read) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => {
                    *body = RequestBodyRest::Broken;
                    break;
                }
            }
        }
    }

    /// The body is wanted: tells a client that waits for that.
    fn ask(&self) {
        if self.expects.get() == Expects::Word {
            self.go_on();
        }
    }

    /// Reads a piece of a body that no backend takes, and discards it: how many bytes of the socket it was; 0 when the body is over.
    ///
    /// # Errors
    /// When the client breaks it off, or what comes is no body.
    pub fn poll_discard(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.skip();
        let left = match *self.body.borrow() {
            RequestBodyRest::Done => None,
            RequestBodyRest::Length(left) => Some(Some(left)),
            RequestBodyRest::Chunked(_) => Some(None),
            RequestBodyRest::Broken => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
        };
        let Some(left) = left else {
            self.wait_for_next();
            return Poll::Ready(Ok(0));
        };
        match ready!(self.poll_fill(cx, left))? {
            0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            bytes => Poll::Ready(Ok(bytes)),
        }
    }
}

/// The body of the request that is being served.
impl BodySource for Wire {
    fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.ask();
        loop {
            let left = {
                let body = &mut *self.body.borrow_mut();
                match body.take(&mut self.read.borrow_mut()) {
                    Ok(Some(frame)) => {
                        // A client that has not waited for it needs no word.
                        self.expects.set(Expects::Nothing);
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    Ok(None) => match body {
                        RequestBodyRest::Done => return Poll::Ready(None),
                        RequestBodyRest::Length(left) => Some(*left),
                        _ => None,
                    },
                    Err(error) => {
                        *body = RequestBodyRest::Broken;
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            };
            let broken = match ready!(self.poll_fill(cx, left)) {
                Ok(1..) => continue,
                Ok(0) => io::Error::new(io::ErrorKind::UnexpectedEof, "the client closed the connection"),
                Err(error) => error,
            };
            *self.body.borrow_mut() = RequestBodyRest::Broken;
            return Poll::Ready(Some(Err(broken)));
        }
    }

    fn is_done(&self) -> bool {
        self.is_read()
    }

    fn left(&self) -> Option<u64> {
        match *self.body.borrow() {
            RequestBodyRest::Done => Some(0),
            RequestBodyRest::Length(left) => Some(left),
            RequestBodyRest::Chunked(_) | RequestBodyRest::Broken => None,
        }
    }

    fn splices(&self) -> bool {
        matches!(*self.body.borrow(), RequestBodyRest::Length(left) if left >= POURED_BYTES)
            && self.read.borrow().is_empty()
            && self.held.borrow().is_empty()
            && self.socket.borrow().plain().is_some()
    }

    fn poll_pour(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        self.ask();
        let socket = self.socket.borrow();
        let mut guard = self.guard.borrow_mut();
        let left = guard.left();
        if matches!(*self.body.borrow(), RequestBodyRest::Broken) {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let spliced = ready!(self.dry.poll(cx, |cx| pipe.poll_fill(socket.tcp(), cx, left)));
        let body = &mut *self.body.borrow_mut();
        let broken = match (spliced, &mut *body) {
            (Ok(bytes @ 1..), RequestBodyRest::Length(left)) => {
                self.expects.set(Expects::Nothing);
                guard.spliced(bytes as u64);
                *left = left.saturating_sub(bytes as u64);
                if *left == 0 {
                    *body = RequestBodyRest::Done;
                }
                return Poll::Ready(Ok(bytes));
            }
            (Ok(_), _) => io::Error::new(io::ErrorKind::UnexpectedEof, "the client closed the connection"),
            (Err(error), _) => error,
        };
        *body = RequestBodyRest::Broken;
        Poll::Ready(Err(broken))
    }

    fn want(&self, wanted: bool) {
        self.wanted.set(wanted);
        if wanted {
            return;
        }
        // Once the response has begun it is another task that reads the body. From here on the connection's own waits for the
        // next request, if the exchange is over, or else has to look whether the client goes.
        if !self.busy.get() {
            self.wait_for_next();
            self.watch.wake();
        } else if self.watch.phase() == Phase::Body {
            self.watch.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_was_read_leaves_nothing_held() {
        let block = Bytes::from(b"5\r\nhello\r\n0\r\n\r\n".to_vec());
        let (mut body, mut read) = (RequestBodyRest::Chunked(Chunked::default()), block.clone());
        while !matches!(body, RequestBodyRest::Done) {
            drop(body.take(&mut read).unwrap());
        }
        assert!(block.is_unique(), "the block can be used again");
    }
}
