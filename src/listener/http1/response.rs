//! A response on its way to the client.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::response;
use http_body::Body as _;

use super::Wire;
use crate::exchange::body::Body;
use crate::exchange::deadline::{Pace, Phase, Way};
use crate::exchange::{Expects, PassThrough, RuleLines};
use crate::http1::outgoing::Outgoing;
use crate::http1::request::Terms;
use crate::http1::{Framing, response as head};

/// After so many bytes of one body the others have their turn, however small its pieces are. Also the sockets' other ends then have
/// more to do at a time, and need not be woken for every piece.
const TURN_BYTES: usize = 64 * 1024;

impl Wire {
    /// Takes the head of the response. With `close`, the connection ends with it in any case. Whether it does.
    pub fn respond(
        &self,
        (parts, pass_through, rule_lines): (&mut response::Parts, &mut PassThrough, &mut RuleLines),
        body: &Body,
        terms: Terms,
        close: bool,
    ) -> bool {
        // No 100 comes behind the answer.
        self.expects.set(Expects::Nothing);
        self.skip();
        // Nothing will read what the client still sends, and until that is over nothing else can be read.
        let close = close || (!self.is_read() && !self.wanted.get());
        let mut buffer = self.space.buffer();
        let head = (&*parts, &*pass_through, &*rule_lines);
        let (framing, close) = head::write(&mut buffer, head, terms, body.size_hint().exact(), close);
        // They hold the memory that they were read into.
        *pass_through = PassThrough::default();
        *rule_lines = RuleLines::default();
        self.out.borrow_mut().begin(buffer, framing);
        self.space.give_map(std::mem::take(&mut parts.headers));
        close
    }

    /// Sends the response's head, and its body as it comes. Ready when all of it is written.
    ///
    /// # Errors
    /// When either side breaks. What the client has got then is cut short.
    pub fn poll_respond(&self, cx: &mut Context<'_>, body: &mut Body, terms: Terms) -> Poll<io::Result<()>> {
        let out = &mut *self.out.borrow_mut();
        let mut turn = 0;
        let mut over = out.framing == Framing::None;
        if over {
            body.leave_out();
        }
        loop {
            let mut waiting = false;
            let mut splices = !over && matches!(out.framing, Framing::Length(_)) && self.splices_from(body);
            while !over && !waiting && !splices && out.has_room() {
                match Pin::new(&mut *body).poll_frame(cx) {
                    Poll::Pending => waiting = true,
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => {
                            out.data(data).map_err(io::Error::other)?;
                            if body.is_end_stream() {
                                over = true;
                                out.end(None).map_err(io::Error::other)?;
                            }
                            splices = !over && matches!(out.framing, Framing::Length(_)) && self.splices_from(body);
                        }
                        Err(frame) => {
                            over = true;
                            let trailers = frame.into_trailers().ok().filter(|_| terms.trailers);
                            out.end(trailers.as_ref()).map_err(io::Error::other)?;
                        }
                    },
                    Poll::Ready(Some(Err(error))) => {
                        // What came before goes out, as far as there is room. A client that gets nothing at all takes its
                        // connection for one that was closed before, and may send its request once more.
                        while !out.is_written()
                            && matches!(self.poll_early(cx), Poll::Ready(Ok(())))
                            && matches!(out.poll_write(&mut *self.socket.borrow_mut(), cx), Poll::Ready(Ok(_)))
                        {
                        }
                        return Poll::Ready(Err(io::Error::other(error)));
                    }
                    Poll::Ready(None) => {
                        over = true;
                        out.end(None).map_err(io::Error::other)?;
                    }
                }
            }
            turn += out.len();
            while !out.is_written() {
                ready!(self.poll_early(cx))?;
                let written = out.poll_write(&mut *self.socket.borrow_mut(), cx);
                self.taken(ready!(self.awaited(written))?);
                if self.watch.phase() == Phase::Body {
                    self.watch.extend(self.body_idle.get());
                }
            }
            ready!(self.awaited(self.poll_flush(cx)))?;
            self.watch.obliged(Way::Down);
            if splices {
                over = ready!(self.poll_pour(cx, out, body))?;
                if !over {
                    // The others have their turn.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            if over {
                self.space.give_buffer(out.rest());
                return Poll::Ready(Ok(()));
            }
            if turn > TURN_BYTES && !waiting {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if waiting {
                return Poll::Pending;
            }
        }
    }

    /// Notes it where the client is to make room for more of the response.
    fn awaited<T>(&self, room: Poll<T>) -> Poll<T> {
        if room.is_pending() {
            self.watch.await_client(Way::Down, Pace { bytes: self.min_rate, over: self.body_idle.get() });
        }
        room
    }

    /// The client, or the kernel for it, has taken so much of the response. Counted from when it was first awaited.
    fn taken(&self, bytes: usize) {
        if self.watch.awaits_client(Way::Down) {
            self.watch.carried(bytes);
        }
    }

    /// Whether the rest of the response's body is poured: it is large, and there is a pipe.
    fn splices_from(&self, body: &Body) -> bool {
        let mut pipe = self.pipe.borrow_mut();
        if pipe.is_none() && body.splices() && self.socket.borrow().plain().is_some() {
            *pipe = self.space.pipe();
        }
        pipe.is_some()
    }

    /// Pours a piece of the response's body: whether it was the last.
    fn poll_pour(&self, cx: &mut Context<'_>, out: &mut Outgoing, body: &mut Body) -> Poll<io::Result<bool>> {
        let mut slot = self.pipe.borrow_mut();
        let Some(pipe) = &mut *slot else { return Poll::Ready(Ok(false)) };
        if pipe.held() == 0 {
            let bytes = ready!(body.poll_pour(cx, pipe))?;
            out.spliced(bytes);
        }
        while pipe.held() > 0 {
            let drained = pipe.poll_drain(self.socket.borrow().tcp(), cx);
            self.taken(ready!(self.awaited(drained))?);
            self.watch.extend(self.body_idle.get());
        }
        self.watch.obliged(Way::Down);
        let last = out.framing == Framing::Length(0);
        if last && let Some(pipe) = slot.take() {
            out.framing = Framing::None;
            self.space.give_pipe(pipe);
        }
        Poll::Ready(Ok(last))
    }
}
