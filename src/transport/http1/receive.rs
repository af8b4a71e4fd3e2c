//! A response on its way from the backend.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;
use http_body::Frame;

use super::{Informed, Link, LinkState, closed, malformed};
use crate::exchange::body::{BodySource, POURED_BYTES};
use crate::http1::Framing;
use crate::http1::buffers::join;
use crate::http1::chunked::{Chunked, ChunkedPiece};
use crate::http1::splice::Pipe;

/// Bytes of a response's head, and of all informational ones before it, at most.
const HEAD_BYTES: usize = 64 * 1024;

/// How a response's body goes.
#[derive(Debug)]
pub(super) enum ResponseBodyRest {
    /// The head is awaited.
    Head,
    /// So many bytes are to come.
    Length(u64),
    Chunked(Chunked),
    /// Until the connection ends.
    Close,
    /// It is over.
    Done,
    /// It broke.
    Broken,
}

impl LinkState {
    /// Reads until the head of the response is there.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>, informed: &dyn Informed) -> Poll<io::Result<()>> {
        loop {
            if self.fresh {
                self.fresh = false;
                if let Some(end) = self.head.parse(&self.read, self.bodiless).map_err(malformed)? {
                    let bytes = self.read.split_to(end);
                    if !self.head.status.is_informational() || self.head.status == StatusCode::SWITCHING_PROTOCOLS {
                        self.head_bytes = bytes;
                        self.body = match self.head.framing {
                            Framing::None => ResponseBodyRest::Done,
                            Framing::Length(length) => ResponseBodyRest::Length(length),
                            Framing::Chunked => ResponseBodyRest::Chunked(Chunked::default()),
                            Framing::Close => ResponseBodyRest::Close,
                        };
                        return Poll::Ready(Ok(()));
                    }
                    self.informational += end;
                    // The client's 100 is the proxy's own to send (RFC 9110 §10.1.1), if it has asked the backend at all.
                    match self.head.status {
                        StatusCode::CONTINUE => informed.go_on(),
                        _ => informed.informational(&bytes),
                    }
                    self.fresh = !self.read.is_empty();
                    if self.informational <= HEAD_BYTES {
                        continue;
                    }
                }
                if self.read.len().max(self.informational) > HEAD_BYTES {
                    return Poll::Ready(Err(malformed("a head that is too long")));
                }
            }
            let before = self.read.len();
            if ready!(self.poll_fill(cx, None))? == 0 {
                return Poll::Ready(Err(closed()));
            }
            self.answered = true;
            // A head does not end but with a line, so a piece of a line is not worth a look.
            self.fresh = memchr::memchr(b'\n', &self.read[before..]).is_some() || self.read.len() > HEAD_BYTES;
        }
    }

    /// Reads the next piece of the body.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            let step = match &mut self.body {
                ResponseBodyRest::Head | ResponseBodyRest::Done | ResponseBodyRest::Broken => return Poll::Ready(None),
                ResponseBodyRest::Chunked(chunked) => match chunked.next(&mut self.read) {
                    Ok(ChunkedPiece::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Ok(ChunkedPiece::End(trailers)) => {
                        self.body = ResponseBodyRest::Done;
                        return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                    }
                    Ok(ChunkedPiece::More) => ready!(self.poll_fill(cx, None)),
                    Err(what) => Err(malformed(what)),
                },
                ResponseBodyRest::Length(left) => {
                    let bytes = (*left).min(self.read.len() as u64);
                    if bytes > 0 {
                        *left -= bytes;
                        if *left == 0 {
                            self.body = ResponseBodyRest::Done;
                        }
                        return Poll::Ready(Some(Ok(Frame::data(self.take(bytes as usize)))));
                    }
                    let left = *left;
                    ready!(self.poll_fill(cx, Some(left)))
                }
                ResponseBodyRest::Close => {
                    if !self.read.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(self.take(self.read.len())))));
                    }
                    match ready!(self.poll_fill(cx, None)) {
                        Ok(0) => {
                            self.body = ResponseBodyRest::Done;
                            return Poll::Ready(None);
                        }
                        filled => filled,
                    }
                }
            };
            match step {
                Ok(1..) => {}
                Ok(0) => {
                    self.body = ResponseBodyRest::Broken;
                    return Poll::Ready(Some(Err(closed())));
                }
                Err(error) => {
                    self.body = ResponseBodyRest::Broken;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    /// Reads what there is. `left` is what is left of the body. 0 is the end.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, left: Option<u64>) -> Poll<io::Result<usize>> {
        let fresh = ready!(self.space.poll_read(&mut self.socket, cx, left))?;
        let bytes = fresh.len();
        join(&mut self.read, fresh);
        Poll::Ready(Ok(bytes))
    }

    /// Takes the first bytes that were read.
    pub(super) fn take(&mut self, bytes: usize) -> Bytes {
        if bytes == self.read.len() { std::mem::take(&mut self.read) } else { self.read.split_to(bytes) }
    }
}

/// The rest of a response's body.
impl BodySource for Link {
    fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.borrow_mut().poll_piece(cx)
    }

    fn is_done(&self) -> bool {
        matches!(self.0.borrow().body, ResponseBodyRest::Done)
    }

    fn want(&self, _: bool) {}

    fn splices(&self) -> bool {
        let inner = self.0.borrow();
        matches!(inner.body, ResponseBodyRest::Length(left) if left >= POURED_BYTES)
            && inner.read.is_empty()
            && inner.socket.plain().is_some()
    }

    fn poll_pour(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        let inner = &mut *self.0.borrow_mut();
        let ResponseBodyRest::Length(left) = &mut inner.body else { return Poll::Ready(Ok(0)) };
        let broken = match ready!(pipe.poll_fill(inner.socket.tcp(), cx, *left)) {
            Ok(bytes @ 1..) => {
                *left = left.saturating_sub(bytes as u64);
                if *left == 0 {
                    inner.body = ResponseBodyRest::Done;
                }
                return Poll::Ready(Ok(bytes));
            }
            Ok(_) => closed(),
            Err(error) => error,
        };
        inner.body = ResponseBodyRest::Broken;
        Poll::Ready(Err(broken))
    }

    fn left(&self) -> Option<u64> {
        match self.0.borrow().body {
            ResponseBodyRest::Length(left) => Some(left),
            ResponseBodyRest::Done => Some(0),
            _ => None,
        }
    }
}
