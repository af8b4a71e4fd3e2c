use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Notify;

use super::BackendState;
use super::limits::Permits;

/// The connections to a backend, over all workers: in use and idle.
///
/// Idle ones count too, since the backend holds them. So a worker may find no room for another while all are idle at other
/// workers: then it says that it wants one, has the others asked, and waits. See
/// `docs/decisions/0007-connections-are-asked-back.md`.
#[derive(Debug)]
pub(super) struct Connections {
    open: Permits,
    /// Of the moment, as that of requests.
    limit: AtomicU32,
    /// The requests that wait for a connection to be closed.
    wanted: AtomicU32,
    closed: Notify,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            open: Permits::default(),
            limit: AtomicU32::new(Permits::UNLIMITED),
            wanted: AtomicU32::new(0),
            closed: Notify::new(),
        }
    }
}

impl Connections {
    pub(super) fn open(&self) -> u32 {
        self.open.in_use()
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    pub(super) fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
        // Waiting requests look again.
        self.closed.notify_waiters();
    }
}

/// Counts a connection as open until it is dropped. To be dropped after the socket.
#[derive(Debug)]
pub struct Connected(Arc<BackendState>);

impl Connected {
    /// Counts one more, unless there are as many as may be.
    pub fn try_new(backend: &Arc<BackendState>) -> Option<Self> {
        let connections = &backend.connections;
        connections.open.try_take(connections.limit()).then(|| Self(Arc::clone(backend)))
    }

    /// Counts one more as soon as there is room for it. `ask` is called when there is none, to have an idle connection closed
    /// that another worker keeps.
    pub async fn wait(backend: &Arc<BackendState>, ask: impl Fn()) -> Self {
        let connections = &backend.connections;
        let _wanting = Wanting::new(connections);
        loop {
            // Heard from here on, so that none that is closed between the look and the wait is missed.
            let mut closed = pin!(connections.closed.notified());
            closed.as_mut().enable();
            if let Some(connected) = Self::try_new(backend) {
                return connected;
            }
            ask();
            closed.await;
        }
    }

    /// Whether a request waits for a connection to be closed: an idle one is then not worth keeping.
    pub fn is_wanted(&self) -> bool {
        self.0.connections.wanted.load(Ordering::SeqCst) > 0
    }

    /// The same, if there is no room for another yet.
    pub fn is_missed(&self) -> bool {
        self.is_wanted() && !self.0.connections.open.has_room(self.0.connections.limit())
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let connections = &self.0.connections;
        connections.open.give_back();
        // After giving back, because a waiting request says so before its look: one of the two sees the other.
        if connections.wanted.load(Ordering::SeqCst) > 0 {
            connections.closed.notify_one();
        }
    }
}

/// Says that a connection is wanted, until it is dropped.
struct Wanting<'a>(&'a Connections);

impl<'a> Wanting<'a> {
    fn new(connections: &'a Connections) -> Self {
        connections.wanted.fetch_add(1, Ordering::SeqCst);
        Self(connections)
    }
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        self.0.wanted.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::config::Address;

    fn backend(limit: u32) -> Arc<BackendState> {
        let state = BackendState::new("u".into(), Address::Ip(([127, 0, 0, 1], 1).into()), 1);
        state.connections.set_limit(limit);
        state
    }

    #[test]
    fn there_are_as_many_as_the_limit_says_and_without_one_all_are_counted() {
        let backend = backend(2);
        let held: Vec<_> = (0..5).filter_map(|_| Connected::try_new(&backend)).collect();
        assert_eq!((held.len(), backend.connections()), (2, 2));
        backend.connections.set_limit(Permits::UNLIMITED);
        let more: Vec<_> = (0..5).filter_map(|_| Connected::try_new(&backend)).collect();
        assert_eq!(backend.connections(), 7);
        drop((held, more));
        assert_eq!(backend.connections(), 0);
    }

    #[test]
    fn who_waits_asks_and_is_served_by_the_next_that_is_closed() {
        let backend = backend(1);
        let first = Connected::try_new(&backend).unwrap();
        assert!(!first.is_wanted());
        let asked = AtomicUsize::new(0);
        let ask = || {
            asked.fetch_add(1, Ordering::Relaxed);
        };
        let mut cx = Context::from_waker(Waker::noop());
        let mut waits = Box::pin(Connected::wait(&backend, ask));
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        assert!(first.is_missed() && asked.load(Ordering::Relaxed) == 1);
        // One that gives up wants nothing any more, and leaves what was closed to the other.
        let mut gives_up = Box::pin(Connected::wait(&backend, || {}));
        assert!(gives_up.as_mut().poll(&mut cx).is_pending());
        drop(first);
        drop(gives_up);
        let Poll::Ready(second) = waits.as_mut().poll(&mut cx) else { panic!("it is not served") };
        drop(waits);
        assert!(!second.is_wanted());
        assert_eq!(backend.connections(), 1);
    }

    #[test]
    fn a_limit_that_is_raised_serves_who_waits() {
        let backend = backend(1);
        let _first = Connected::try_new(&backend).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        let mut waits = Box::pin(Connected::wait(&backend, || {}));
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        backend.connections.set_limit(2);
        assert!(waits.as_mut().poll(&mut cx).is_ready());
    }
}
