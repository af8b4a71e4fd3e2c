//! One exchange on a connection that others share: a stream of HTTP/2.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::header;
use http::{Response, StatusCode, Version, response};
use http_body::{Body as _, Frame};

use crate::exchange::body::{BodySource, RequestBody};
use crate::http1::head::RequestHead;
use crate::http1::outgoing::is_sayable;
use crate::http1::pass_through_headers::PassThrough;
use crate::http1::response::Noted;
use crate::http1::splice::Pipe;

use super::http2::Session;
use super::{Informed, NoResponse};

mod ending;
mod head;
mod upload;

use ending::StreamEnding;
use head::{informational, length, request};
use upload::{StreamUpload, Taken};

/// Of a response's informational ones so much is passed on.
const INFORMATIONAL_BYTES_MAX: usize = 64 * 1024;

/// Only a body of at most so many bytes is looked for with its head.
const WHOLE_BYTES: u64 = 32 * 1024;

/// A stream, from before its request to the end of its response.
pub(super) struct BackendStream(RefCell<StreamState>);

struct StreamState {
    /// Where it is counted. Behind the handles, whose end is the stream's.
    exchange: Option<Handles>,
    /// Why it could not even begin.
    refused: Option<h2::Error>,
    upload: StreamUpload,
    /// What was taken of the request's body, and what of it waits for room.
    taken: Taken,
    head: Option<Response<()>>,
    /// What was read of the response's body and is not taken yet.
    ahead: BytesMut,
    /// Bytes of the body to come, where that was said.
    left: Option<u64>,
    incoming: StreamResponse,
    /// Bytes of informational responses so far.
    informed: usize,
    /// Whether it was the only stream when it began: only a connection without other streams can have been closed before.
    alone: bool,
    session: Rc<Session>,
}

struct Handles {
    response: Option<ResponseFuture>,
    send: SendStream<Bytes>,
    receive: Option<RecvStream>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum StreamResponse {
    Head,
    Body,
    Done,
    Broken,
}

impl BackendStream {
    /// To be begun on that connection, where it counts from now on.
    pub(super) fn new(session: Rc<Session>) -> Rc<Self> {
        let alone = session.is_unused();
        session.opened();
        Rc::new(Self(RefCell::new(StreamState {
            exchange: None,
            refused: None,
            upload: StreamUpload::Over,
            taken: Taken::default(),
            head: None,
            ahead: BytesMut::new(),
            left: None,
            incoming: StreamResponse::Head,
            informed: 0,
            alone,
            session,
        })))
    }

    pub(super) fn was_alone(&self) -> bool {
        self.0.borrow().alone
    }

    pub(super) fn begin(&self, head: &RequestHead, body: &RequestBody) {
        let state = &mut *self.0.borrow_mut();
        let ends = body.is_end_stream();
        let length = body.size_hint().exact().filter(|_| !ends);
        match state.session.sender().send_request(request(head, length, state.session.secure()), ends) {
            Ok((response, send)) => {
                state.exchange = Some(Handles { response: Some(response), send, receive: None });
                state.upload = if ends { StreamUpload::Over } else { StreamUpload::Open };
            }
            Err(error) => state.refused = Some(error),
        }
    }

    /// As a link does it. Apart, or a link would pay for the room that it needs.
    #[inline(never)]
    pub(super) fn poll_response(
        &self,
        cx: &mut Context<'_>,
        body: &mut RequestBody,
        informed: &dyn Informed,
    ) -> Poll<Result<StatusCode, NoResponse>> {
        let state = &mut *self.0.borrow_mut();
        if let Some(error) = state.refused.take() {
            state.session.spend();
            return Poll::Ready(Err(NoResponse { error: broken(error), unsent: true }));
        }
        if let Poll::Ready(Err(error)) = state.poll_send(cx, body) {
            return Poll::Ready(Err(NoResponse { error, unsent: false }));
        }
        let Some(handles) = &mut state.exchange else {
            return Poll::Ready(Err(NoResponse { error: closed(), unsent: false }));
        };
        let Some(response) = &mut handles.response else {
            return Poll::Ready(Err(NoResponse { error: closed(), unsent: false }));
        };
        while let Poll::Ready(Some(Ok(response))) = response.poll_informational(cx) {
            if response.status() == StatusCode::CONTINUE {
                informed.go_on();
            }
            let Some(head) = informational(&response) else { continue };
            state.informed += head.len();
            if state.informed <= INFORMATIONAL_BYTES_MAX {
                informed.informational(&head);
            }
        }
        match ready!(Pin::new(response).poll(cx)) {
            Ok(response) => {
                state.session.heard();
                let (mut head, receive) = response.into_parts();
                head.version = Version::HTTP_11;
                let status = head.status;
                // Behind a body of known length nothing is waited for, unless something is to come there.
                let trails = head.headers.contains_key(header::TRAILER)
                    || head
                        .headers
                        .get(header::CONTENT_TYPE)
                        .is_some_and(|it| it.as_bytes().starts_with(b"application/grpc"));
                if trails && !receive.is_end_stream() {
                    head.headers.remove(header::CONTENT_LENGTH);
                }
                let Ok(length) = length(&head.headers) else {
                    return Poll::Ready(Err(NoResponse { error: malformed(), unsent: false }));
                };
                let over = receive.is_end_stream() || length == Some(0);
                state.incoming = if over { StreamResponse::Done } else { StreamResponse::Body };
                state.left = if state.incoming == StreamResponse::Done { Some(0) } else { length };
                handles.response = None;
                handles.receive = Some(receive);
                state.head = Some(Response::from_parts(head, ()));
                state.taken.held = BytesMut::new();
                state.taken.lost = true;
                Poll::Ready(Ok(status))
            }
            Err(error) => {
                let refused =
                    error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM));
                if error.is_go_away() || error.is_io() {
                    state.session.spend();
                }
                let unsent = refused && !state.taken.lost;
                if unsent {
                    body.unread(state.taken.all());
                }
                Poll::Ready(Err(NoResponse { error: broken(error), unsent }))
            }
        }
    }

    pub(super) fn response(&self, parts: &mut response::Parts) -> io::Result<PassThrough> {
        let head = self.0.borrow_mut().head.take().ok_or_else(closed)?;
        if !head.headers().keys().all(is_sayable) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a field whose name is none"));
        }
        (*parts, ()) = head.into_parts();
        // How it came is no matter of the client's.
        parts.version = Version::HTTP_11;
        Ok(PassThrough::default())
    }

    /// HTTP/2 has no fields for this hop alone: h2 takes a response with one for malformed.
    pub(super) fn noted(&self) -> Noted {
        let state = self.0.borrow();
        let dated = state.head.as_ref().is_some_and(|head| head.headers().contains_key(header::DATE));
        Noted { hop_by_hop: false, dated }
    }

    pub(super) fn field(&self, name: &str) -> Option<Bytes> {
        let state = self.0.borrow();
        let value = state.head.as_ref()?.headers().get(name)?;
        Some(Bytes::copy_from_slice(value.as_bytes()))
    }

    pub(super) fn whole(&self) -> Option<Bytes> {
        let state = &mut *self.0.borrow_mut();
        if state.left.is_some_and(|left| left <= WHOLE_BYTES) || state.incoming == StreamResponse::Done {
            let mut cx = Context::from_waker(Waker::noop());
            let _ = state.poll_ahead(&mut cx);
        }
        if state.incoming != StreamResponse::Done {
            return None;
        }
        state.left = Some(0);
        Some(state.ahead.split().freeze())
    }

    pub(super) fn gathers(&self, limit: usize) -> bool {
        let state = self.0.borrow();
        state.incoming == StreamResponse::Body && state.left.is_some_and(|left| left <= limit as u64)
    }

    pub(super) fn poll_gather(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_ahead(cx)
    }

    pub(super) fn answered(&self) -> bool {
        self.0.borrow().incoming != StreamResponse::Head
    }

    /// The response is read, and nothing more of the request's body is sent.
    pub(super) fn forgo(&self) {
        self.0.borrow_mut().end_upload();
    }

    /// The exchange is given up: the backend is told to stop.
    pub(super) fn abandon(&self) {
        self.0.borrow_mut().reset();
    }
}

impl StreamState {
    fn reset(&mut self) {
        self.end_upload();
        if self.incoming != StreamResponse::Done {
            self.incoming = StreamResponse::Broken;
        }
        if let Some(mut handles) = self.exchange.take() {
            // Nothing goes out for a stream that is over on both sides.
            handles.send.send_reset(Reason::CANCEL);
        }
    }

    /// Reads all of the body into memory; only where it is known to be short.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.incoming == StreamResponse::Body && self.left != Some(0) {
            match ready!(self.poll_data(cx)) {
                Some(Ok(data)) => self.ahead.extend_from_slice(&data),
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The next piece as it comes; `None` before trailers or the end.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let Some(receive) = self.exchange.as_mut().and_then(|handles| handles.receive.as_mut()) else {
            self.incoming = StreamResponse::Broken;
            return Poll::Ready(Some(Err(closed())));
        };
        let data = match ready!(receive.poll_data(cx)) {
            Some(Ok(data)) => {
                self.session.heard();
                let _ = receive.flow_control().release_capacity(data.len());
                if let Some(left) = &mut self.left {
                    *left = left.saturating_sub(data.len() as u64);
                }
                Some(Ok(data))
            }
            Some(Err(error)) => {
                self.incoming = StreamResponse::Broken;
                return Poll::Ready(Some(Err(broken(error))));
            }
            None => None,
        };
        // The length that was said is all there can be, whether or not the frame that ends the stream has come.
        if receive.is_end_stream() || self.left == Some(0) {
            self.incoming = StreamResponse::Done;
        }
        Poll::Ready(data)
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if !self.ahead.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(self.ahead.split().freeze()))));
        }
        match self.incoming {
            StreamResponse::Body => {}
            StreamResponse::Done => return Poll::Ready(None),
            // Given up, or broken before the last look: not the end of the body.
            StreamResponse::Head | StreamResponse::Broken => return Poll::Ready(Some(Err(closed()))),
        }
        match ready!(self.poll_data(cx)) {
            Some(data) => return Poll::Ready(Some(data.map(Frame::data))),
            None if self.incoming == StreamResponse::Done => return Poll::Ready(None),
            None => {}
        }
        let receive = self.exchange.as_mut().and_then(|handles| handles.receive.as_mut());
        let Some(receive) = receive else { return Poll::Ready(None) };
        match ready!(receive.poll_trailers(cx)) {
            Ok(trailers) => {
                self.incoming = StreamResponse::Done;
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
            Err(error) => {
                self.incoming = StreamResponse::Broken;
                Poll::Ready(Some(Err(broken(error))))
            }
        }
    }
}

impl Drop for StreamState {
    fn drop(&mut self) {
        let over = self.incoming == StreamResponse::Done && matches!(self.upload, StreamUpload::Over);
        match self.exchange.take().filter(|_| over).and_then(StreamEnding::of) {
            // What ends the stream is mostly on its way. To reset it meanwhile would be an aborted request to the backend.
            Some(ending) => ending.wait(Rc::clone(&self.session)),
            None => self.session.closed(),
        }
    }
}

impl BodySource for BackendStream {
    fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.borrow_mut().poll_piece(cx)
    }

    fn is_done(&self) -> bool {
        let state = self.0.borrow();
        state.incoming == StreamResponse::Done && state.ahead.is_empty()
    }

    fn want(&self, _: bool) {}

    fn splices(&self) -> bool {
        false
    }

    fn poll_pour(&self, _: &mut Context<'_>, _: &mut Pipe) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(0))
    }

    fn left(&self) -> Option<u64> {
        let state = self.0.borrow();
        let ahead = state.ahead.len() as u64;
        if state.incoming == StreamResponse::Done { Some(ahead) } else { state.left.map(|left| left + ahead) }
    }
}

impl std::fmt::Debug for BackendStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(closed);
    }
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a Content-Length that is not a number")
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "closed the connection")
}
