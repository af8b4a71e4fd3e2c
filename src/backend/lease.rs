use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::BackendState;

/// The right to make one attempt at a backend. It is counted as in flight until this is dropped, wherever that happens: at
/// the end of the response's body or of the tunnel, on an error, or when the client is gone.
#[derive(Debug)]
pub struct Lease {
    backend: Arc<BackendState>,
}

impl Lease {
    /// Counts one more request in flight at `backend`.
    pub fn take(backend: &Arc<BackendState>) -> Self {
        backend.in_flight.fetch_add(1, Ordering::Relaxed);
        Self { backend: Arc::clone(backend) }
    }

    /// Where the attempt goes.
    pub fn backend(&self) -> &Arc<BackendState> {
        &self.backend
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.backend.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
