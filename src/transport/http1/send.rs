//! A request on its way to the backend.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use http::Method;
use http::header::HeaderMap;
use http_body::Body as _;
use tokio::io::AsyncWrite as _;

use super::receive::ResponseBodyRest;
use super::{Link, LinkState, NoResponse, malformed};
use crate::exchange::body::RequestBody;
use crate::http1::head::RequestHead;
use crate::http1::{Framing, request};

/// After so many bytes of one body the others have their turn.
pub(super) const TURN_BYTES: usize = 64 * 1024;

/// A write takes as long as so many bytes do, however few it writes.
const WRITE_BYTES: usize = 1024;

/// How the sending of a request's body goes.
#[derive(Debug)]
pub(super) enum LinkUpload {
    /// There is more to be taken from the client.
    Open,
    /// A task of its own goes on with it, because the response came first. Woken when the exchange is given up.
    Apart(Option<Waker>),
    /// All of it is written.
    Over,
    /// The backend does not take it. Why, for when no response comes either.
    Refused(Option<io::Error>),
    /// The exchange was given up.
    Abandoned,
}

impl Link {
    /// Takes a request. Nothing is written yet.
    pub(in crate::transport) fn begin(&self, head: &RequestHead, body: &RequestBody, passes_through: bool) {
        let inner = &mut *self.0.borrow_mut();
        let framing = match (body.is_end_stream(), body.size_hint().exact()) {
            (true, _) => Framing::None,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::Chunked,
        };
        let mut buffer = inner.space.buffer();
        request::write(&mut buffer, head, framing);
        inner.head_length = buffer.len();
        inner.head.passes_through = passes_through;
        inner.out.begin(buffer, framing);
        inner.upload = if framing == Framing::None { LinkUpload::Over } else { LinkUpload::Open };
        inner.written = false;
        inner.intact = true;
        inner.answered = false;
        inner.bodiless = head.method == Method::HEAD;
        inner.informational = 0;
        inner.body = ResponseBodyRest::Head;
    }

    /// Whether the request's body is still being sent.
    pub(in crate::transport) fn uploading(&self) -> bool {
        let inner = self.0.borrow();
        match inner.upload {
            LinkUpload::Open | LinkUpload::Apart(_) => true,
            // All of it has been taken; the end of it may wait for room, and belongs to this request.
            LinkUpload::Over => !inner.out.is_written(),
            LinkUpload::Refused(_) | LinkUpload::Abandoned => false,
        }
    }

    /// Goes on sending a request's body whose response has begun, until it is over, no byte of it is taken for as long as
    /// `idle`, or the exchange is given up.
    pub(in crate::transport) async fn upload(&self, body: RequestBody, idle: Duration) {
        if !self.uploading() {
            // Given up before this task has run.
            return;
        }
        self.0.borrow_mut().upload = LinkUpload::Apart(None);
        let mut body = body;
        let mut wait = std::pin::pin!(tokio::time::sleep(idle));
        poll_fn(|cx| {
            let inner = &mut *self.0.borrow_mut();
            if !matches!(inner.upload, LinkUpload::Apart(_)) {
                return Poll::Ready(());
            }
            inner.moved = false;
            let sent = inner.poll_send(cx, &mut body);
            if sent.is_pending() && !inner.moved {
                if wait.as_mut().poll(cx).is_pending() {
                    inner.upload = LinkUpload::Apart(Some(cx.waker().clone()));
                    return Poll::Pending;
                }
                inner.upload = LinkUpload::Abandoned;
                return Poll::Ready(());
            }
            match sent {
                Poll::Ready(Ok(())) => Poll::Ready(()),
                Poll::Ready(Err(_)) => {
                    inner.upload = LinkUpload::Abandoned;
                    Poll::Ready(())
                }
                Poll::Pending => {
                    wait.as_mut().reset(tokio::time::Instant::now() + idle);
                    let _ = wait.as_mut().poll(cx);
                    inner.upload = LinkUpload::Apart(Some(cx.waker().clone()));
                    Poll::Pending
                }
            }
        })
        .await;
    }

    /// Nothing more of the request's body is to be sent, and its response is read all the same.
    pub(in crate::transport) fn forgo(&self) {
        self.abandon();
    }

    /// The exchange is given up: nothing is sent any more.
    pub(in crate::transport) fn abandon(&self) {
        let inner = &mut *self.0.borrow_mut();
        if let LinkUpload::Apart(Some(waker)) = std::mem::replace(&mut inner.upload, LinkUpload::Abandoned) {
            waker.wake();
        }
    }
}

impl LinkState {
    /// Writes the request's head and as much of its body as there is, each piece before the next is asked for. Ready when
    /// all of it is written, or the backend does not take it.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>, body: &mut RequestBody) -> Poll<io::Result<()>> {
        let mut turn = 0;
        loop {
            // Poured past the encryption it would go in the clear.
            if matches!(self.upload, LinkUpload::Open | LinkUpload::Apart(_))
                && self.socket.plain().is_some()
                && (body.splices() || self.pipe.is_some())
            {
                match ready!(self.poll_pour(cx, body))? {
                    Some(true) => {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Some(false) => continue,
                    None => {}
                }
            }
            // What is there already goes out with the head, and small pieces go together.
            let (mut waiting, mut taken) = (false, false);
            while !waiting
                && matches!(self.upload, LinkUpload::Open | LinkUpload::Apart(_))
                && self.out.has_room()
                && !(taken && self.socket.plain().is_some() && body.splices())
            {
                taken = true;
                match Pin::new(&mut *body).poll_frame(cx) {
                    Poll::Pending => waiting = true,
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => {
                            self.out.data(data).map_err(malformed)?;
                            if self.out.framing == Framing::Length(0) {
                                self.end(None)?;
                            }
                        }
                        Err(frame) => self.end(frame.into_trailers().ok().as_ref())?,
                    },
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(io::Error::other(error))),
                    Poll::Ready(None) => self.end(None)?,
                }
            }
            turn += self.out.len().max(WRITE_BYTES);
            if let Err(error) = ready!(self.poll_write(cx)) {
                // It may have answered before it closed.
                self.upload = LinkUpload::Refused(Some(error));
            }
            match self.upload {
                LinkUpload::Open | LinkUpload::Apart(_) if waiting => return Poll::Pending,
                LinkUpload::Open | LinkUpload::Apart(_) if turn > TURN_BYTES => {
                    // The others have their turn; as in the other direction.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                LinkUpload::Open | LinkUpload::Apart(_) => {}
                LinkUpload::Over | LinkUpload::Refused(_) | LinkUpload::Abandoned => {
                    // Dropping it tells that it is over. What was not written may have to be read once more.
                    if self.written {
                        body.sent();
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// Pours a piece of the request's body: whether there is more; `None` where there is no pipe to be had.
    ///
    /// # Errors
    /// The client's.
    fn poll_pour(&mut self, cx: &mut Context<'_>, body: &mut RequestBody) -> Poll<io::Result<Option<bool>>> {
        if self.pipe.is_none() {
            self.pipe = self.space.pipe();
        }
        let Some(mut pipe) = self.pipe.take() else { return Poll::Ready(Ok(None)) };
        // What is before it goes first.
        let mut written = self.poll_write(cx);
        if pipe.held() == 0 && written.is_ready() {
            match body.poll_pour(cx, &mut pipe) {
                Poll::Ready(Ok(bytes)) => self.out.spliced(bytes),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                Poll::Pending => {
                    self.pipe = Some(pipe);
                    return Poll::Pending;
                }
            }
        }
        while pipe.held() > 0 && matches!(written, Poll::Ready(Ok(()))) {
            written = pipe.poll_drain(self.socket.tcp(), cx).map_ok(|_| self.moved = true);
        }
        match written {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                // It may have answered before it closed.
                self.upload = LinkUpload::Refused(Some(error));
                return Poll::Ready(Ok(Some(false)));
            }
            Poll::Pending => {
                self.pipe = Some(pipe);
                return Poll::Pending;
            }
        }
        self.written = true;
        if self.out.framing != Framing::Length(0) {
            self.pipe = Some(pipe);
            return Poll::Ready(Ok(Some(true)));
        }
        self.space.give_pipe(pipe);
        self.end(None)?;
        Poll::Ready(Ok(Some(false)))
    }

    /// The body has been taken whole.
    fn end(&mut self, trailers: Option<&HeaderMap>) -> io::Result<()> {
        self.out.end(trailers).map_err(malformed)?;
        self.upload = LinkUpload::Over;
        self.intact = trailers.is_none();
        Ok(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_written() {
            ready!(self.out.poll_write(&mut self.socket, cx))?;
            (self.written, self.moved) = (true, true);
        }
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    pub(super) fn failed(&mut self, error: io::Error, body: &mut RequestBody) -> NoResponse {
        let unsent = !self.written && self.intact;
        if unsent {
            body.unread(self.out.unsent(self.head_length));
        }
        NoResponse { error, unsent }
    }
}
