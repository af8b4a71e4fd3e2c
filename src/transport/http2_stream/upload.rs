//! The request's body on its way to the backend: what of it was taken, waits for room, and can be given back.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body as _;

use crate::exchange::body::RequestBody;
use crate::http1::outgoing::may_trail;

use super::{BackendStream, StreamState};

/// Of a request's body so much is held until the response comes, so that it can be given back if the stream is refused.
const HELD_BYTES: usize = 64 * 1024;

#[derive(Default)]
pub(super) struct Taken {
    pub(super) waits: Bytes,
    /// A copy: a piece of a few bytes would keep the block that it was read into.
    pub(super) held: BytesMut,
    pub(super) bytes: usize,
    /// Whether all of it can be given back.
    pub(super) lost: bool,
}

pub(super) enum StreamUpload {
    Open,
    /// A task of its own goes on with it. Woken when the exchange is given up.
    Apart(Option<Waker>),
    Over,
}

impl BackendStream {
    pub(in crate::transport) fn uploading(&self) -> bool {
        !matches!(self.0.borrow().upload, StreamUpload::Over)
    }

    /// As a link does it.
    pub(in crate::transport) async fn upload(&self, mut body: RequestBody, idle: Duration) {
        if !self.uploading() {
            return;
        }
        let mut wait = std::pin::pin!(tokio::time::sleep(idle));
        poll_fn(|cx| {
            let state = &mut *self.0.borrow_mut();
            if matches!(state.upload, StreamUpload::Over) {
                return Poll::Ready(());
            }
            let before = state.taken.bytes - state.taken.waits.len();
            match state.poll_send(cx, &mut body) {
                Poll::Ready(Ok(())) => {
                    state.end_upload();
                    return Poll::Ready(());
                }
                // The rest of the request will not come: the backend must not take what it has for all.
                Poll::Ready(Err(_)) => {
                    state.reset();
                    return Poll::Ready(());
                }
                Poll::Pending => {}
            }
            if before != state.taken.bytes - state.taken.waits.len() {
                wait.as_mut().reset(tokio::time::Instant::now() + idle);
            }
            if wait.as_mut().poll(cx).is_ready() {
                state.reset();
                return Poll::Ready(());
            }
            state.upload = StreamUpload::Apart(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

impl StreamState {
    pub(super) fn end_upload(&mut self) {
        if let StreamUpload::Apart(Some(waker)) = std::mem::replace(&mut self.upload, StreamUpload::Over) {
            waker.wake();
        }
    }

    /// Sends as much of the request's body as there is and the backend takes. Ready when all of it is sent.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>, body: &mut RequestBody) -> Poll<io::Result<()>> {
        while !matches!(self.upload, StreamUpload::Over) {
            let Some(handles) = &mut self.exchange else { break };
            if self.taken.waits.is_empty() {
                match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => self.taken.take(&data),
                        Err(frame) => {
                            self.taken.lost = true;
                            let mut trailers = frame.into_trailers().unwrap_or_default();
                            let barred: Vec<_> = trailers.keys().filter(|name| !may_trail(name)).cloned().collect();
                            barred.iter().for_each(|name| drop(trailers.remove(name)));
                            // What h2 does not take must not leave the stream open.
                            if trailers.is_empty() || handles.send.send_trailers(trailers).is_err() {
                                let _ = handles.send.send_data(Bytes::new(), true);
                            }
                            self.end_upload();
                            break;
                        }
                    },
                    Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                    None => {
                        let _ = handles.send.send_data(Bytes::new(), true);
                        self.end_upload();
                        break;
                    }
                }
                continue;
            }
            handles.send.reserve_capacity(self.taken.waits.len());
            if handles.send.capacity() == 0 {
                match ready!(handles.send.poll_capacity(cx)) {
                    Some(Ok(_)) => continue,
                    // The backend takes no more; why is for the response to say.
                    Some(Err(_)) | None => {
                        self.end_upload();
                        break;
                    }
                }
            }
            let room = handles.send.capacity().min(self.taken.waits.len());
            let piece = self.taken.waits.split_to(room);
            let last = self.taken.waits.is_empty() && body.is_end_stream();
            if handles.send.send_data(piece, last).is_err() || last {
                self.end_upload();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Taken {
    fn take(&mut self, data: &Bytes) {
        self.waits = data.clone();
        self.bytes += data.len();
        if self.bytes > HELD_BYTES {
            self.lost = true;
            self.held = BytesMut::new();
        } else if !self.lost {
            self.held.extend_from_slice(data);
        }
    }

    /// All that was taken.
    pub(super) fn all(&mut self) -> Bytes {
        std::mem::take(&mut self.held).freeze()
    }
}
