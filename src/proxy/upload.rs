//! A request's body on its way to a backend: how far it is, what it may have, and what is waited for meanwhile.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How the request's body goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upload {
    /// The next piece is at the backend's connection.
    Moving,
    /// The next piece is to come from the client.
    Waiting,
    /// It is over, or there was none.
    Over,
    /// It went over the limit.
    TooLarge,
    /// The client's side broke.
    Broken,
    /// A middleware that has wrapped it broke it off.
    Failed,
}

/// How long is waited, as the route says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waits {
    /// For each piece of a body; zero where the route says nothing.
    pub(super) body_idle: Duration,
    /// For the head of the response, once all of the request is sent.
    pub(super) response_head: Duration,
}

/// The upload of an exchange. One without a body is over from the beginning.
#[derive(Debug)]
pub(super) struct Uploading {
    state: Cell<Upload>,
    waits: Cell<Waits>,
    /// Whether the body has told how long it is.
    measured: Cell<bool>,
    /// Bytes that the body, or a message of a call, may have.
    max: Cell<u64>,
    /// When the last of the body was sent.
    sent: Cell<Option<Instant>>,
}

impl Uploading {
    /// Of a request that goes nowhere yet.
    pub(super) fn none() -> Self {
        Self {
            state: Cell::new(Upload::Over),
            waits: Cell::new(Waits { body_idle: Duration::ZERO, response_head: Duration::ZERO }),
            measured: Cell::new(false),
            max: Cell::new(u64::MAX),
            sent: Cell::new(None),
        }
    }

    /// It begins, where the request has a body. `measured`: its length is known.
    pub(super) fn begin(&self, upload: Upload, measured: bool, waits: Waits) {
        self.state.set(upload);
        self.measured.set(measured);
        self.waits.set(waits);
    }

    /// How it goes on.
    pub(super) fn state(&self) -> Upload {
        self.state.get()
    }

    /// Whether more of it is to come.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state.get(), Upload::Moving | Upload::Waiting)
    }

    /// Whether its length is known.
    pub(super) fn is_measured(&self) -> bool {
        self.measured.get()
    }

    /// Bytes that it, or a message of a call, may have; `u64::MAX` is any number.
    pub(super) fn max(&self) -> u64 {
        self.max.get()
    }

    /// So many may it have.
    pub(super) fn limit(&self, max: u64) {
        self.max.set(max);
    }

    /// How long each piece of a body may take.
    pub(super) fn body_idle(&self) -> Duration {
        self.waits.get().body_idle
    }

    /// How long the head of a response may take, once all is sent.
    pub(super) fn response_head(&self) -> Duration {
        self.waits.get().response_head
    }

    /// How long the head of a response may take from now on, where it may take `limit` once all is sent.
    pub(super) fn await_head(&self, limit: Duration) -> Duration {
        let waits = Waits { response_head: limit, ..self.waits.get() };
        self.waits.set(waits);
        if self.state.get() == Upload::Over { limit } else { waits.body_idle }
    }

    /// It waits for the client, or does no more. Whether it is still open: else that says nothing.
    pub(super) fn wait(&self, for_client: bool) -> bool {
        let open = self.is_open();
        if open {
            self.state.set(if for_client { Upload::Waiting } else { Upload::Moving });
        }
        open
    }

    /// The client's side of it is at its end. Whether all of it has come, for the first time.
    pub(super) fn end(&self, complete: bool) -> bool {
        let open = self.is_open();
        if open {
            self.state.set(if complete { Upload::Over } else { Upload::Broken });
        }
        open && complete
    }

    /// It is over for that reason.
    pub(super) fn fail(&self, why: Upload) {
        self.state.set(why);
    }

    /// All of the request was sent now.
    pub(super) fn note_sent(&self) {
        self.sent.set(Some(Instant::now()));
    }

    /// When the whole request was sent, where the attempt began at `begun`: how long a client takes to send a body is not how
    /// long a backend takes to answer.
    pub(super) fn sent_since(&self, begun: Instant) -> Instant {
        self.sent.get().map_or(begun, |sent| sent.max(begun))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITS: Waits = Waits { body_idle: Duration::from_secs(1), response_head: Duration::from_secs(2) };

    #[test]
    fn the_head_has_its_time_once_all_is_sent() {
        let upload = Uploading::none();
        upload.begin(Upload::Moving, false, WAITS);
        assert_eq!(upload.await_head(Duration::from_secs(9)), WAITS.body_idle);
        assert!(upload.end(true));
        assert_eq!((upload.response_head(), upload.state()), (Duration::from_secs(9), Upload::Over));
        assert_eq!(upload.await_head(Duration::from_secs(3)), Duration::from_secs(3));
    }

    #[test]
    fn what_is_over_stays_so() {
        for why in [Upload::TooLarge, Upload::Failed, Upload::Broken, Upload::Over] {
            let upload = Uploading::none();
            upload.begin(Upload::Moving, true, WAITS);
            assert!(upload.wait(true) && upload.state() == Upload::Waiting);
            upload.fail(why);
            assert!(!upload.wait(true) && !upload.wait(false) && !upload.end(true) && !upload.end(false));
            assert_eq!(upload.state(), why);
        }
    }
}
