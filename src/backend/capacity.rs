use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::limits::Permits;
use super::queue::Queue;

/// What the backends of an upstream share of their limits: the requests that wait, and how many requests are in flight
/// at all of them. Outlives reloads.
#[derive(Debug, Default)]
pub struct UpstreamRoom {
    /// The requests that wait for a lease.
    pub queue: Arc<Queue>,
    /// Leases that were counted here too: those taken while the upstream had an adaptive limit.
    pub in_flight: Permits,
    /// Whether there is, or ever was, a limit: a lease that is given back then looks for waiting requests.
    ///
    /// Not taken back when the limits go: requests may still be in line. `SeqCst` as the other two of this kind: set before the
    /// first can find no room, read after a lease was given back.
    bounded: AtomicBool,
}

impl UpstreamRoom {
    /// There are limits from now on.
    pub fn bound(&self) {
        self.bounded.store(true, Ordering::SeqCst);
    }

    /// Whether a request may wait for what is given back.
    pub(super) fn is_bounded(&self) -> bool {
        self.bounded.load(Ordering::SeqCst)
    }
}
