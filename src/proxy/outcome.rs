//! How attempts end, as outlier detection is told.
//!
//! Not told is what is no fault of the backend's: that a client went away or was too slow, that the whole exchange took too
//! long, and that an idle connection had been closed just before it was used.

use std::time::Instant;

use http::StatusCode;

use crate::backend::Lease;
use crate::backend::outlier::Outcome;
use crate::upstream::Upstream;

use super::ProxyError;

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
        ProxyError::Connect { .. } | ProxyError::ConnectTimeout { .. } => Outcome::Connect,
        ProxyError::Broken { .. } | ProxyError::UnaskedUpgrade { .. } => Outcome::Reset,
        ProxyError::ResponseTimeout { .. } => Outcome::Timeout,
        _ => return,
    };
    upstream.note(lease.backend(), worker, outcome, begun.elapsed());
}
