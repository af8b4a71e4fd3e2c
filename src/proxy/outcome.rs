//! How attempts end, as outlier detection is told.
//!
//! Not told is what is no fault of the backend's: that a client went away or was too slow, that the exchange took too long
//! elsewhere, and that an idle connection had been closed just before it was used.

use std::time::Instant;

use http::StatusCode;

use crate::backend::Lease;
use crate::backend::outlier::Outcome;
use crate::upstream::Upstream;

use super::ProxyError;
use super::running::{Running, Upload};

/// A backend has answered with this status to a request that was sent at `sent`.
#[inline]
pub(super) fn answered(upstream: &Upstream, lease: &Lease, worker: usize, status: StatusCode, sent: Instant) {
    if upstream.config.outlier_detection.is_some() {
        upstream.note(lease.backend(), worker, Outcome::of_status(status.as_u16()), sent.elapsed());
    }
}

/// An attempt that was sent, or begun to connect, at `begun` has come to this error and not to a response.
#[cold]
pub(super) fn failed(upstream: &Upstream, lease: &Lease, worker: usize, error: &ProxyError, begun: Instant) {
    let outcome = match error {
        ProxyError::Connect { .. } | ProxyError::Handshake { .. } | ProxyError::ConnectTimeout { .. } => {
            Outcome::Connect
        }
        ProxyError::Broken { .. } | ProxyError::UnaskedUpgrade { .. } => Outcome::Reset,
        _ => return,
    };
    upstream.note(lease.backend(), worker, outcome, begun.elapsed());
}

/// An attempt that was sent at `begun` was given up for another one, because no response had come.
#[cold]
pub(super) fn slow(upstream: &Upstream, lease: &Lease, worker: usize, begun: Instant) {
    upstream.note(lease.backend(), worker, Outcome::Timeout, begun.elapsed());
}

/// The response to a request that was sent at `begun` has not come in time.
#[cold]
pub(super) fn late(upstream: &Upstream, lease: &Lease, running: &Running, error: &ProxyError, begun: Instant) {
    let waited = begun.elapsed();
    let is_its_fault = match error {
        ProxyError::ResponseTimeout { .. } => true,
        // A route may allow less for the whole than for the head of a response; then who has had most of that time is late.
        ProxyError::ExchangeTimeout => {
            running.upload() == Upload::Over
                && waited * 2 >= running.exchange.started.elapsed()
                && running.is_fair(waited)
        }
        _ => false,
    };
    if is_its_fault {
        upstream.note(lease.backend(), running.worker(), Outcome::Timeout, waited);
    }
}
