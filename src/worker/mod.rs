//! A thread with its own event loop.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::listener::{Bound, Listener};
use crate::proxy::Snapshot;
use crate::telemetry::access_log::AccessLog;

/// The threads that serve requests.
#[derive(Debug)]
pub struct Workers {}

impl Workers {
    /// Starts `count` threads that serve with `snapshot`, on no listener yet.
    ///
    /// # Errors
    /// When a thread or its event loop cannot be made.
    pub fn start(count: usize, snapshot: Arc<Snapshot>, access_log: Option<Arc<AccessLog>>) -> io::Result<Self> {
        let _ = (count, snapshot, access_log);
        todo!()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        todo!()
    }

    /// What requests are served with now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        todo!()
    }

    /// Serves from now on with `snapshot` (and logs to `access_log`): each request that begins after this returns sees it. Cannot fail and does not wait.
    pub fn publish(&self, snapshot: Arc<Snapshot>, access_log: Option<Arc<AccessLog>>) {
        let _ = (snapshot, access_log);
        todo!()
    }

    /// Begins to accept on a bound listener. Cannot fail and does not wait.
    pub fn listen(&self, bound: Bound) {
        let _ = bound;
        todo!()
    }

    /// Ends accepting on a listener, once what waits in its queue is accepted. Its connections end as soon as they are
    /// idle, and are cut after `limit`.
    pub fn unlisten(&self, listener: &Arc<Listener>, limit: Duration) {
        let _ = (listener, limit);
        todo!()
    }

    /// Ends accepting everywhere and waits until every connection has ended, at most until `deadline`. Returns how many
    /// were cut.
    pub async fn stop(&self, deadline: Instant) -> usize {
        let _ = deadline;
        todo!()
    }

    /// Client connections open now, by worker.
    pub fn connections(&self) -> Vec<usize> {
        todo!()
    }
}
