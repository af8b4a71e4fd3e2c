//! What a stream gives its exchange: the request's body.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;

use super::ClientStream;
use crate::exchange::body::BodySource;
use crate::exchange::{ClientSide, Expects};
use crate::http1::splice::Pipe;

impl BodySource for ClientStream {
    fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.done.get() {
            return Poll::Ready(None);
        }
        if self.gone.get() && !self.over.get() {
            return Poll::Pending;
        }
        if self.expects.get() == Expects::Word {
            self.go_on();
        }
        *self.reader.borrow_mut() = None;
        let mut recv = self.recv.borrow_mut();
        let Some(recv) = &mut *recv else { return Poll::Ready(Some(Err(io::ErrorKind::BrokenPipe.into()))) };
        // A reader that asks for the next piece has done with the one before.
        let taken = self.taken.take();
        if taken > 0 {
            let _ = recv.flow_control().release_capacity(taken);
        }
        let broken = loop {
            let Poll::Ready(piece) = recv.poll_data(cx) else {
                self.awaited(cx.waker());
                return Poll::Pending;
            };
            match piece {
                Some(Ok(data)) => {
                    self.done.set(recv.is_end_stream());
                    if data.is_empty() {
                        if self.done.get() {
                            return Poll::Ready(None);
                        }
                        continue;
                    }
                    // A client that has not waited for it needs no word.
                    self.expects.set(Expects::Nothing);
                    self.taken.set(data.len());
                    self.left.set(self.left.get().map(|left| left.saturating_sub(data.len() as u64)));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => break error,
                None => match ready!(recv.poll_trailers(cx)) {
                    Ok(trailers) => {
                        self.done.set(true);
                        return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                    }
                    Err(error) => break error,
                },
            }
        };
        self.broken.set(true);
        // A client that has gone is no fault of its request's, and is found out by the next look at the stream.
        self.gone.set(broken.is_io() || (broken.is_remote() && (broken.is_reset() || broken.is_go_away())));
        if self.gone.get() && !self.over.get() {
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(io::Error::other(broken))))
    }

    fn is_done(&self) -> bool {
        self.done.get()
    }

    fn left(&self) -> Option<u64> {
        if self.done.get() { Some(0) } else { self.left.get() }
    }

    fn want(&self, wanted: bool) {
        self.wanted.set(wanted);
        if !wanted && self.over.get() {
            self.watch.wake();
        }
    }

    fn splices(&self) -> bool {
        false
    }

    fn poll_pour(&self, _: &mut Context<'_>, _: &mut Pipe) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
