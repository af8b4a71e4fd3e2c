//! How attempts end, and the one place that reports it: metrics, circuit breaker, limits, outlier detection and log.

use std::time::{Duration, Instant};

use http::StatusCode;

use crate::backend::outlier::AttemptOutcome;
use crate::exchange::deadline::Way;

use super::ProxyError;
use super::admission::AttemptSlot;
use super::grpc::GrpcResponseHead;
use super::retry::Attempts;
use super::running::RunningExchange;
use super::upload::Upload;

/// How an attempt ended. An attempt that is dropped without one tells nothing: how it would have ended is not known.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending<'a> {
    /// The head of a response has come, and the response goes to the client.
    Answered(StatusCode, GrpcResponseHead),
    /// The head of a response has come, and another attempt is made in place of that response.
    Unwanted(StatusCode, GrpcResponseHead),
    /// There was no connection to send the request by.
    NoConnection(&'a ProxyError),
    /// The connection broke before the head of a response had come, or before the end of one that was held back.
    Broken,
    /// An idle connection had been closed just before it was used: that says nothing about the backend, and is no attempt.
    Stale,
    /// No response has come in the time of one attempt, and another is made.
    Slow,
    /// No response has come in time. The error tells whose time that was.
    Late(&'a ProxyError),
}

impl Ending<'_> {
    /// Tells all that want to know how an attempt has ended: metrics, the circuit breaker and the adaptive limit (by the attempt's place),
    /// outlier detection, the retries' account, and the log.
    ///
    /// The attempt was sent, or its connection begun, at `begun`. Not told is what is no fault of the backend's: that a client went away or was
    /// too slow, that the exchange took too long elsewhere.
    #[inline]
    pub(super) fn report(self, attempts: &Attempts<'_>, place: &mut AttemptSlot, begun: Instant) {
        match self {
            Self::Answered(status, head) => answered(attempts, place, status, head, begun),
            Self::Stale => {}
            failed => failed.report_failure(attempts, place, begun),
        }
    }

    #[cold]
    fn report_failure(self, attempts: &Attempts<'_>, place: &mut AttemptSlot, begun: Instant) {
        let Attempts { proxy, running, upstream, .. } = *attempts;
        let metrics = place.backend().metrics.of(proxy.worker);
        // What outlier detection is told.
        let outcome = match self {
            Self::Unwanted(status, head) => {
                metrics.responses[class(status)].add(1);
                let seen = head.seen(status);
                place.answered(proxy, upstream, seen);
                let took = running.sent_since(begun).elapsed();
                upstream.note(place.backend(), proxy.worker, AttemptOutcome::of_status(seen.as_u16()), took);
                return;
            }
            Self::NoConnection(error) => match error {
                // That the time of the whole exchange is over says nothing of the backend: a client may have given it none. Nor does
                // what this process has not.
                ProxyError::ExchangeTimeout | ProxyError::Exhausted { .. } => return,
                _ => AttemptOutcome::Connect,
            },
            Self::Broken => {
                metrics.broken.add(1);
                AttemptOutcome::Reset
            }
            Self::Slow | Self::Late(ProxyError::ResponseTimeout { .. }) => {
                metrics.timeouts.add(1);
                AttemptOutcome::Timeout
            }
            Self::Late(error) => {
                if matches!(error, ProxyError::ClientTooSlow) && running.exchange.watch.is_slow() {
                    running.slow(Way::Up);
                }
                let waited = begun.elapsed();
                if matches!(error, ProxyError::ExchangeTimeout) && is_backends_fault(running, waited) {
                    upstream.note(place.backend(), proxy.worker, AttemptOutcome::Timeout, waited);
                }
                return;
            }
            Self::Answered(..) | Self::Stale => return,
        };
        place.failed(proxy, upstream);
        upstream.note(place.backend(), proxy.worker, outcome, begun.elapsed());
    }
}

#[inline]
fn answered(
    attempts: &Attempts<'_>,
    place: &mut AttemptSlot,
    status: StatusCode,
    head: GrpcResponseHead,
    begun: Instant,
) {
    let Attempts { proxy, running, upstream, .. } = *attempts;
    place.backend().metrics.of(proxy.worker).responses[class(status)].add(1);
    let (seen, sent) = (head.seen(status), running.sent_since(begun));
    place.answered(proxy, upstream, seen);
    match running.call() {
        // Its status stands behind the body, and is told then.
        Some(call) if head == GrpcResponseHead::Open => call.awaits(place.backend(), sent.elapsed()),
        _ if upstream.config.outlier_detection.is_some() => {
            upstream.note(place.backend(), proxy.worker, AttemptOutcome::of_status(seen.as_u16()), sent.elapsed());
        }
        _ => {}
    }
    attempts.answered(place.backend(), status, head);
    running.answered(head);
}

/// A route may allow less for the whole than for the head of a response; then a backend that has had most of that time is late.
fn is_backends_fault(running: &RunningExchange, waited: Duration) -> bool {
    running.upload() == Upload::Over && waited * 2 >= running.exchange.started.elapsed() && running.is_fair(waited)
}

/// Where responses of that status are counted.
fn class(status: StatusCode) -> usize {
    usize::from(status.as_u16() / 100 - 1).min(4)
}
