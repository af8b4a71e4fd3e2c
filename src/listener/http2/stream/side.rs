//! What an exchange asks of a stream: the client's side.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Response, StatusCode, Version};

use super::ClientStream;
use super::head::strip;
use crate::exchange::deadline::{NEVER, Phase};
use crate::exchange::{ClientSide, Expects};
use crate::http1;

impl ClientSide for ClientStream {
    fn begin(&self) {}

    fn body(&self, idle: Duration) {
        // No 100 comes behind the answer.
        self.expects.set(Expects::Nothing);
        self.body_idle.set(idle);
        self.watch.enter(Phase::Body, idle);
    }

    fn end(&self) {
        self.over.set(true);
        self.watch.uncap();
        self.watch.serve(None);
        self.watch.enter(Phase::Idle, NEVER);
        *self.alarm.borrow_mut() = None;
    }

    fn abort(&self) {}

    fn has_unsent(&self) -> bool {
        self.stalled.get()
    }

    fn alarm(&self, at: Instant) {
        *self.alarm.borrow_mut() = Some(Box::pin(tokio::time::sleep_until(at.into())));
    }

    fn inform(&self, head: &[u8]) {
        let head = Bytes::copy_from_slice(head);
        let (mut parsed, mut parts) = (http1::response::ResponseHead::default(), Response::new(()).into_parts().0);
        if !matches!(parsed.parse(&head, false), Ok(Some(_))) || parsed.response(&head, &mut parts).is_err() {
            return;
        }
        // HTTP/2 has neither reasons nor a switch of protocols (RFC 9113 §8.6).
        parts.extensions.clear();
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        parts.version = Version::HTTP_2;
        let mut response = Response::from_parts(parts, ());
        strip(response.headers_mut());
        self.inform_of(response);
    }

    fn hold(&self) -> bool {
        let waits = self.expects.get() != Expects::Nothing;
        self.expects.set(if waits { Expects::BackendsWord } else { Expects::Nothing });
        waits
    }

    fn holds(&self) -> bool {
        self.expects.get() == Expects::BackendsWord
    }

    fn go_on(&self) {
        if self.expects.take() != Expects::Nothing {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::CONTINUE;
            self.inform_of(response);
        }
    }
}
