use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::BackendState;
use super::limits::Permits;

/// The right to make one attempt at a backend. It is counted as in flight until this is dropped, wherever that happens: at
/// the end of the response's body or of the tunnel, on an error, or when the client is gone.
///
/// Where there are limits, dropping it also tells waiting requests.
#[derive(Debug)]
pub struct Lease {
    backend: Arc<BackendState>,
    /// Whether it is counted at the upstream as well.
    counted: bool,
}

impl Lease {
    /// Counts one more request in flight at `backend`, whatever its limit.
    pub fn take(backend: &Arc<BackendState>) -> Self {
        backend.in_flight.try_take(Permits::UNLIMITED);
        Self { backend: Arc::clone(backend), counted: false }
    }

    /// The same, unless `backend` has as many as it may. `counted` counts it at the upstream as well.
    pub fn try_take(backend: &Arc<BackendState>, counted: bool) -> Option<Self> {
        if !backend.in_flight.try_take(backend.limit.load(Ordering::Relaxed)) {
            return None;
        }
        if counted {
            backend.room.in_flight.try_take(Permits::UNLIMITED);
        }
        Some(Self { backend: Arc::clone(backend), counted })
    }

    /// Where the attempt goes.
    pub fn backend(&self) -> &Arc<BackendState> {
        &self.backend
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let BackendState { in_flight, room, .. } = &*self.backend;
        in_flight.give_back();
        if room.is_bounded() {
            if self.counted {
                room.in_flight.give_back();
            }
            room.queue.released();
        }
    }
}
