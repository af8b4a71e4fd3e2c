//! What the bodies on their way, and a backend's connection, tell the exchange they belong to.

use http::header::{HeaderMap, HeaderName};

use crate::backend::outlier::AttemptOutcome;
use crate::exchange::body::{BodyError, ExchangeProgress};
use crate::exchange::deadline::{Pace, Phase, Way};
use crate::header_names::{self, is_spelling_of};
use crate::proxy::upload::Upload;
use crate::proxy::{grpc, headers};
use crate::transport::Informed;

use super::RunningExchange;

impl ExchangeProgress for RunningExchange {
    fn request_data(&self, data: &[u8]) -> Result<(), BodyError> {
        if let (Some(call), true) = (&self.call, self.upload.max() < u64::MAX) {
            let too_large = call.exceeds(data, self.upload.max());
            return self.moved(data.len(), too_large);
        }
        self.request_poured(data.len())
    }

    fn request_poured(&self, bytes: usize) -> Result<(), BodyError> {
        self.moved(bytes, self.account.bytes_in() + bytes as u64 > self.upload.max())
    }

    fn paces_response(&self) -> bool {
        // How fast a client takes what a stream of gRPC has for it is between the two.
        self.call.is_none()
    }

    fn waits_for_client(&self, waits: bool) {
        if self.upload.wait(waits) {
            let watch = &self.exchange.watch;
            if !waits {
                watch.obliged(Way::Up);
            } else if self.paces_request() {
                let bytes = self.exchange.client.listener.min_bytes_per_second;
                watch.await_client(Way::Up, Pace { bytes, over: self.upload.body_idle() });
            }
        }
    }

    fn request_ended(&self, complete: bool) {
        if self.upload.end(complete) && !self.over.get() && self.exchange.watch.phase() == Phase::Response {
            self.exchange.watch.extend(self.upload.response_head());
            self.upload.note_sent();
        }
    }

    fn response_read(&self) {
        if let Some(connection) = self.connection.take() {
            // With its response a call is over: what its client has still to say is not read.
            if self.call.is_none() || !connection.uploads() {
                connection.release();
            }
        }
    }

    fn response_data(&self, bytes: usize) {
        self.account.give_out(bytes as u64);
    }

    fn request_trailers(&self, trailers: &mut HeaderMap) {
        self.show_request_trailers(trailers);
        if let Some(route) = self.found() {
            keep_to(trailers, route.config.headers.iter().map(|asked| &asked.name));
        }
    }

    fn response_trailers(&self, trailers: &mut HeaderMap) {
        self.show_response_trailers(trailers);
        if let Some(call) = &self.call
            && let Some(status) = call.trailed(trailers)
        {
            self.judge(call, grpc::outcome(status));
        }
    }

    fn response_broke(&self) {
        // What isobar itself has broken off, for its request or a middleware would not go on, says nothing of the backend.
        if matches!(self.upload.state(), Upload::TooLarge | Upload::Failed | Upload::Broken) {
            return;
        }
        self.broke.set(true);
        if let Some(call) = &self.call {
            self.judge(call, AttemptOutcome::Reset);
        }
    }

    fn wrapper_failed(&self, way: Way) {
        match way {
            Way::Up => {
                self.upload.fail(Upload::Failed);
                // The task that sends the response is to see that it is over.
                self.exchange.watch.wake();
            }
            Way::Down => self.failed.set(true),
        }
    }

    fn last_words(&self) -> Option<HeaderMap> {
        let call = self.call.as_ref()?;
        let cut = self.how_cut();
        let words = call.last_words(cut)?;
        self.cut(cut);
        Some(words)
    }

    fn ended(&self, complete: bool) {
        self.close(complete);
    }
}

impl Informed for RunningExchange {
    fn informational(&self, head: &[u8]) {
        if !self.http10()
            && !self.over.get()
            && let Some(head) = headers::informational(head)
        {
            self.exchange.side.inform(&head);
        }
    }

    fn go_on(&self) {
        // Where the backend was not asked, the client has been told already.
        if self.exchange.side.holds() {
            self.exchange.side.go_on();
        }
    }
}

impl RunningExchange {
    /// A piece of the request's body has come.
    fn moved(&self, bytes: usize, too_large: bool) -> Result<(), BodyError> {
        self.account.take_in(bytes as u64);
        if too_large {
            self.upload.fail(Upload::TooLarge);
            // The task that sends the response is to see that it is over.
            self.exchange.watch.wake();
            return Err(BodyError::TooLarge);
        }
        self.exchange.watch.carried(bytes);
        self.exchange.watch.extend(self.upload.body_idle());
        Ok(())
    }

    /// Whether the client is to keep a pace with its request. One of unknown length, beside which the response is under way, may be one
    /// side of a conversation, and so may a call.
    fn paces_request(&self) -> bool {
        !self.over.get()
            && (self.upload.is_measured() || (self.call.is_none() && self.exchange.watch.phase() != Phase::Body))
    }
}

/// Removes the trailers that a route asks for as headers, in any spelling: a backend that puts trailers among the headers would otherwise
/// see there what the route was not chosen by.
#[cold]
fn keep_to<'a>(trailers: &mut HeaderMap, named: impl Iterator<Item = &'a HeaderName> + Clone) {
    header_names::remove(trailers, |name| named.clone().any(|it| is_spelling_of(it, name)));
}
