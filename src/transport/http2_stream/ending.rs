//! The end of a stream whose response is all there already.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use super::Handles;
use crate::transport::http2::Session;

/// How long a backend has to end the stream of a response that is all there.
const ENDING: Duration = Duration::from_secs(1);

/// A stream whose response was of known length and is all there, but for the frame that says so.
pub(super) struct StreamEnding(Handles);

impl StreamEnding {
    /// `None` where the stream is over on both sides.
    pub(super) fn of(handles: Handles) -> Option<Self> {
        let mut ending = Self(handles);
        let mut cx = Context::from_waker(Waker::noop());
        ending.poll(&mut cx).is_pending().then_some(ending)
    }

    /// Looks for the end; what comes before it is thrown away.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(receive) = &mut self.0.receive else { return Poll::Ready(()) };
        while let Some(Ok(data)) = ready!(receive.poll_data(cx)) {
            let _ = receive.flow_control().release_capacity(data.len());
        }
        receive.poll_trailers(cx).map(drop)
    }

    /// Waits for the end, for a while; the stream counts at its connection until then.
    #[cold]
    pub(super) fn wait(mut self, session: Rc<Session>) {
        if tokio::runtime::Handle::try_current().is_err() {
            // The worker is gone.
            return session.closed();
        }
        tokio::task::spawn_local(async move {
            let _ = tokio::time::timeout(ENDING, poll_fn(|cx| self.poll(cx))).await;
            // The handles, whose end is the stream's, before it is counted.
            drop(self);
            session.closed();
        });
    }
}
