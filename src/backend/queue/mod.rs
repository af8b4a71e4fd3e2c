//! Where requests wait that found every backend of an upstream full.
//!
//! One queue for all workers, behind a lock. Only requests that have to wait take it, and code that frees a slot while
//! a request waits. A queue for each worker would be unfair: the next worker would have to be guessed, and a request at
//! a worker with many would wait longer. With one queue, the first request to come is the first to go.
//!
//! A *turn* is the right to try. Dropping a lease calls [`Queue::released`]; the first in line gets a turn and is
//! woken, no other. It stays in line until it has its lease, so that a request that comes meanwhile sees that the line is not
//! empty and goes to its end, instead of taking what was meant for the first. What a turn was given for can be gone
//! when it is used (another roster, a limit lowered), or be of no use to this request (a retry that has been there). Then the
//! request goes back to its place, and the turn to another request in line or to the next that comes.
//!
//! No turn gets lost. While a request is in line, all that happens to turns happens under the lock, and each release is
//! counted there (`offers`): a request that tried in vain waits on only if nothing was released since its turn began. While none is,
//! the first request says that it waits, then tries; a lease is given back, then looks for waiting requests. With `SeqCst`, one of
//! the two sees the other.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

mod line;

use line::{Leaves, RoomSeen, WaitingLine};

/// How many requests wait, and for how long. Each request brings it: requests in line keep what they came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// The most requests that may wait. With 0 no request waits.
    pub max: u32,
    /// How long a request waits at most.
    pub timeout: Duration,
    /// Which request goes first.
    pub order: QueueDiscipline,
}

impl Default for QueueSettings {
    /// 1024 requests, or as many as all backends take together where they have limits, which is for the caller to say; 1 s;
    /// the first to come.
    fn default() -> Self {
        Self { max: 1_024, timeout: Duration::from_secs(1), order: QueueDiscipline::Fifo }
    }
}

/// Which request goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueDiscipline {
    /// First in, first out.
    Fifo,
    /// First in, first out; but last in, first out while the queue has not been empty for `interval`. A request that comes then waits for
    /// `target` at most, and else for `interval` (or the timeout, if that is less). Under an overload that lasts, a part of the
    /// requests is served at once, instead of all so late that no client wants the answer (Facebook's "Fail at Scale").
    Adaptive {
        /// 5 ms by default.
        target: Duration,
        /// 100 ms by default.
        interval: Duration,
    },
}

impl QueueDiscipline {
    /// Last come, first served while overloaded, with the defaults.
    pub const ADAPTIVE: Self =
        Self::Adaptive { target: Duration::from_millis(5), interval: Duration::from_millis(100) };
}

/// There are as many in line as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too many requests wait")
    }
}

impl std::error::Error for Full {}

/// Its turn did not come in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut;

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("waited too long for a backend with room")
    }
}

impl std::error::Error for TimedOut {}

/// What came of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnOutcome<T> {
    /// The lease, or whatever it was tried for.
    Leased(T),
    /// There is no free slot for any request.
    Full,
    /// There may be room, but not for this request.
    NotForMe,
}

/// The line of an upstream, shared by all workers. Outlives reloads.
#[derive(Debug, Default)]
pub struct Queue {
    /// How many are in line, with a turn or without. Written under the lock.
    present: AtomicU32,
    line: Mutex<WaitingLine>,
}

impl Queue {
    /// Whether a request may try at once. If not, it has to [`Queue::enter`] first, to be fair to those in line. One load.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many are in line.
    pub fn len(&self) -> u32 {
        self.present.load(Ordering::SeqCst)
    }

    /// Goes to the end of the line. `now_ms`: milliseconds on a clock that all workers share.
    ///
    /// # Errors
    /// When there are `settings.max` in line already.
    pub fn enter(self: &Arc<Self>, settings: &QueueSettings, now_ms: u64) -> Result<Waiter, Full> {
        let mut line = self.lock();
        if line.len() >= settings.max as usize {
            return Err(Full);
        }
        let (ticket, timeout) = line.enter(settings, now_ms);
        self.present.store(line.len() as u32, Ordering::SeqCst);
        drop(line);
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let deadline_ms = now_ms.saturating_add(timeout_ms);
        Ok(Waiter { queue: Arc::clone(self), ticket, entered_ms: now_ms, deadline_ms, left: false })
    }

    /// Room for one was made: to be called after each lease was given back (with `SeqCst`, as
    /// [`Permits::give_back`](crate::backend::limits::Permits::give_back) does). One load while the queue is empty; otherwise
    /// the next request is woken.
    pub fn released(&self) {
        if !self.is_empty() {
            self.change(WaitingLine::released);
        }
    }

    /// An unknown number of slots became free: a backend became ready, a limit was raised. The next request is woken, and passes it
    /// on for as long as there is room.
    pub fn widened(&self) {
        if !self.is_empty() {
            self.change(WaitingLine::widened);
        }
    }

    /// Changes the line, and wakes the request that has got a turn by that: outside the lock.
    fn change(&self, change: impl FnOnce(&mut WaitingLine) -> Option<Waker>) {
        let mut line = self.lock();
        let waker = change(&mut line);
        self.present.store(line.len() as u32, Ordering::SeqCst);
        drop(line);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, WaitingLine> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request in line. Leaves it when dropped; a turn that it has is passed on.
#[derive(Debug)]
pub struct Waiter {
    queue: Arc<Queue>,
    ticket: u64,
    entered_ms: u64,
    deadline_ms: u64,
    left: bool,
}

impl Waiter {
    /// Tries when it has its turn. The first in an empty line has it at once.
    ///
    /// `attempt` is what a request does that need not wait, and what comes of it is the result. It must not call
    /// [`Queue::released`], that is, not take something, find that it is not enough, and give it back: look first, take last.
    /// The task has to be woken at [`Waiter::deadline_ms`] by the caller. Not to be polled again when ready; and a caller that will not
    /// poll it any more drops it, or its turn is kept from others.
    ///
    /// # Errors
    /// When its time is over: its turn, if it has one, is for another request.
    pub fn poll<T>(
        &mut self,
        cx: &Context<'_>,
        now_ms: u64,
        mut attempt: impl FnMut() -> TurnOutcome<T>,
    ) -> Poll<Result<T, TimedOut>> {
        if self.left || now_ms >= self.deadline_ms {
            self.leave(Leaves::InVain);
            return Poll::Ready(Err(TimedOut));
        }
        let mut turn = self.queue.lock().look(self.ticket, cx.waker());
        while turn {
            let room = match attempt() {
                TurnOutcome::Leased(lease) => {
                    self.leave(Leaves::Served);
                    return Poll::Ready(Ok(lease));
                }
                TurnOutcome::Full => RoomSeen::None,
                TurnOutcome::NotForMe => RoomSeen::ForOthers,
            };
            self.queue.change(|line| {
                let next;
                (turn, next) = line.tried(self.ticket, room, cx.waker());
                next
            });
        }
        Poll::Pending
    }

    /// When it came, in milliseconds on the clock that was handed in.
    pub fn entered_ms(&self) -> u64 {
        self.entered_ms
    }

    /// When its time is over, on the same clock.
    pub fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }

    fn leave(&mut self, how: Leaves) {
        if !std::mem::replace(&mut self.left, true) {
            self.queue.change(|line| line.leave(self.ticket, how));
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.leave(Leaves::InVain);
    }
}

#[cfg(test)]
mod tests;
