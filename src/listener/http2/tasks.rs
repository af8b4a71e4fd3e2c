//! The tasks in which a worker's streams are served.
//!
//! A task's memory has room for all that an exchange may need, three and a half kilobytes, and to begin a task moves them several times
//! over. So a task that has served a stream is kept for the next one, of whichever connection.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use tokio::task::spawn_local;

use super::stream::{self, Begun};

/// So many tasks without a stream are kept by a worker, for good: two thirds of a megabyte.
const KEPT: usize = 192;

/// A worker's tasks for streams.
#[derive(Debug, Default)]
pub struct StreamTasks {
    /// Those without a stream. The last to come is the first to go, while the cache is warm.
    idle: RefCell<Vec<Rc<StreamTask>>>,
}

/// Where a task finds its next stream.
#[derive(Debug, Default)]
struct StreamTask {
    next: RefCell<Option<Begun>>,
    /// The task's, once it has waited.
    waker: RefCell<Option<Waker>>,
}

impl StreamTasks {
    /// Serves a stream, in a task that there is or in a new one.
    pub(super) fn serve(self: &Rc<Self>, begun: Begun) {
        if let Some(seat) = self.idle.borrow_mut().pop() {
            seat.next.replace(Some(begun));
            if let Some(waker) = &*seat.waker.borrow() {
                waker.wake_by_ref();
            }
            return;
        }
        let (tasks, seat) = (Rc::clone(self), Rc::new(StreamTask::default()));
        seat.next.replace(Some(begun));
        spawn_local(tasks.run(seat));
    }

    async fn run(self: Rc<Self>, seat: Rc<StreamTask>) {
        loop {
            let begun = poll_fn(|cx| {
                if let Some(begun) = seat.next.take() {
                    return Poll::Ready(begun);
                }
                // A task keeps its waker.
                seat.waker.borrow_mut().get_or_insert_with(|| cx.waker().clone());
                Poll::Pending
            });
            let begun = begun.await;
            let watch = Rc::clone(&begun.open.watch);
            // Where it is pinned it is also made, and not moved there.
            pin!(stream::serve(begun)).await;
            // Its connection keeps the watch for another stream. Until that is served the watch would wake this task for nothing, and
            // keep its memory where it ends.
            watch.forget();
            let mut idle = self.idle.borrow_mut();
            if idle.len() == KEPT {
                return;
            }
            idle.push(Rc::clone(&seat));
        }
    }
}
