//! A waker that can be made deaf for a moment.
//!
//! When the last piece of a response's body is taken, hyper wakes the task of the backend connection for the room that has
//! become free, though nothing is left to put there: a run of the task for nothing, with each small response. So the task is
//! woken through a [`Mute`], which is closed while a piece is taken and opened again before anything else can happen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

/// Stands between whoever wakes a task and the task. Lives on one thread; a waker has to be `Sync` all the same.
#[derive(Debug)]
pub(super) struct Mute {
    task: Waker,
    closed: AtomicBool,
}

impl Mute {
    /// Wakes through to `task`.
    pub(super) fn new(task: Waker) -> Arc<Self> {
        Arc::new(Self { task, closed: AtomicBool::new(false) })
    }

    /// Lets nothing through (`true`), or everything again.
    pub(super) fn close(&self, closed: bool) {
        self.closed.store(closed, Ordering::Relaxed);
    }

    /// Wakes the task.
    pub(super) fn wake_task(&self) {
        self.task.wake_by_ref();
    }
}

impl Wake for Mute {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.closed.load(Ordering::Relaxed) {
            self.task.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn nothing_gets_through_while_it_is_closed() {
        let count = Arc::new(Count::default());
        let mute = Mute::new(Arc::clone(&count).into());
        let waker = Waker::from(Arc::clone(&mute));
        mute.close(true);
        waker.wake_by_ref();
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
        mute.close(false);
        waker.wake_by_ref();
        mute.wake_task();
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
    }
}
