//! Tasks and threads without which the process only looks as if it were alive: accepting, the sweep, the keepers, the checks.
//!
//! A task that panics is over, and nothing else notices. Where it served one connection that is well: the others go on. Where it is one of these, the
//! process is not whole any more, in a way that no operator sees. What it was in the middle of is unknown, so it is not begun again beside what it
//! left behind: the process stops, with the time that a stop has for what is under way, and ends as failed. Whatever runs it starts another one.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Once, OnceLock};
use std::task::Poll;

use tokio::sync::Notify;

/// Knows whether one of them has panicked. Cheap to clone; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Vital(Arc<VitalState>);

#[derive(Debug, Default)]
struct VitalState {
    failed: OnceLock<String>,
    told: Notify,
    #[cfg(test)]
    tests: tests::Injected,
}

impl Vital {
    /// The same task, watched over: `what` it is, for the log.
    pub async fn watch<F: Future>(self, what: String, task: F) -> F::Output {
        let guard = self.guard(what);
        let mut task = pin!(task);
        poll_fn(|cx| {
            #[cfg(test)]
            guard.vital.0.tests.polled(&guard.what, cx);
            let _ = &guard;
            match task.as_mut().poll(cx) {
                Poll::Ready(output) => Poll::Ready(output),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// For a thread: says that it has failed if it is dropped because of a panic.
    pub fn guard(&self, what: String) -> PanicGuard {
        PanicGuard { vital: self.clone(), what }
    }

    /// What has failed first, if anything has.
    pub fn failure(&self) -> Option<&str> {
        self.0.failed.get().map(String::as_str)
    }

    /// Waits until something has failed: what.
    pub async fn failed(&self) -> String {
        loop {
            let mut told = pin!(self.0.told.notified());
            told.as_mut().enable();
            if let Some(what) = self.failure() {
                return what.to_owned();
            }
            told.await;
        }
    }
}

/// Tells of a panic when it is dropped by one.
#[derive(Debug)]
pub struct PanicGuard {
    vital: Vital,
    what: String,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        // A task that is aborted, or has done what it was for, is dropped without.
        if std::thread::panicking() {
            let _ = self.vital.0.failed.set(std::mem::take(&mut self.what));
            self.vital.0.told.notify_waiters();
        }
    }
}

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Panics of the whole process since [`log_panics`] was called.
pub fn panics() -> u64 {
    PANICS.load(Relaxed)
}

/// Has panics counted and told to the log, from now on: whatever else they come to, each is a fault of the program.
pub fn log_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            PANICS.fetch_add(1, Relaxed);
            let thread = std::thread::current();
            let thread = thread.name().unwrap_or("unnamed");
            let at = panic.location().map(ToString::to_string).unwrap_or_default();
            let message = panic.payload_as_str().unwrap_or("no text");
            tracing::error!(thread, at, message, "panic: this is a bug of isobar, please report it");
        }));
    });
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;
    use std::sync::Mutex;
    use std::task::{Context, Waker};

    use super::*;

    /// What is to panic, and the tasks to wake for that.
    #[derive(Debug, Default)]
    pub(super) struct Injected {
        tasks: Mutex<HashMap<String, Waker>>,
        panics: Mutex<Option<String>>,
    }

    impl Injected {
        pub(super) fn polled(&self, what: &str, cx: &Context<'_>) {
            self.tasks.lock().unwrap().insert(what.to_owned(), cx.waker().clone());
            let panics = self.panics.lock().unwrap().as_deref() == Some(what);
            assert!(!panics, "a panic that a test has put into {what}");
        }
    }

    impl Vital {
        /// Has the task of that name panic.
        pub(crate) fn inject(&self, what: &str) {
            *self.0.tests.panics.lock().unwrap() = Some(what.to_owned());
            self.0.tests.tasks.lock().unwrap().get(what).expect(what).wake_by_ref();
        }

        /// The tasks that were ever polled.
        pub(crate) fn watched(&self) -> Vec<String> {
            let mut all: Vec<_> = self.0.tests.tasks.lock().unwrap().keys().cloned().collect();
            all.sort();
            all
        }
    }

    #[tokio::test]
    async fn a_task_that_panics_is_told_and_one_that_ends_is_not() {
        let vital = Vital::default();
        let task = |what: &str| tokio::spawn(vital.clone().watch(what.to_owned(), std::future::pending::<()>()));
        let (first, aborted) = (task("first"), task("aborted"));
        tokio::spawn(vital.clone().watch("over".into(), async {})).await.unwrap();
        tokio::task::yield_now().await;
        aborted.abort();
        aborted.await.unwrap_err();
        assert_eq!(vital.failure(), None);
        vital.inject("first");
        assert!(first.await.unwrap_err().is_panic());
        assert_eq!((vital.failed().await.as_str(), vital.failure()), ("first", Some("first")));
    }

    #[test]
    fn a_thread_that_panics_is_told() {
        let vital = Vital::default();
        for (panics, expected) in [(false, None), (true, Some("a thread"))] {
            let guard = vital.guard("a thread".into());
            let _ = std::thread::spawn(move || {
                let _guard = guard;
                assert!(!panics, "meant");
            })
            .join();
            assert_eq!(vital.failure(), expected);
        }
    }
}
