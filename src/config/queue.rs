//! `[upstream.NAME.queue]`: requests that wait for a backend with room.

use std::time::Duration;

use super::check::Check;
use super::error::Problem;
use super::form::{OneOf, Timeout, Whole, Word};
use super::report::Place;
use super::table::Table;

/// Where requests wait that find every backend full. Only where there is a limit, and then without the table too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check, reload = Requests)]
pub struct QueueConfig {
    /// Requests that may wait; one more is answered 503. With 0, none waits.
    #[key(Whole(0..=1_000_000), default = 1024)]
    pub length: u32,
    /// How long each may wait, or it is answered 503.
    #[key(Timeout, default = "1s")]
    pub timeout: Duration,
    /// Which request goes first: the oldest (`fifo`), or, in a queue that has not been empty for `interval`, the latest (`adaptive`), so that some
    /// are in time.
    #[key(OneOf, default = "fifo")]
    pub order: QueueOrder,
    /// With `adaptive`: how long a request may wait once the queue has not been empty for `interval`.
    #[key(Timeout, default = "5ms", shown_if = Self::is_adaptive)]
    pub target: Duration,
    /// With `adaptive`: how long a request may wait before that, and how long a queue that is never empty counts as a burst. Not below `target`.
    #[key(Timeout, default = "100ms", shown_if = Self::is_adaptive)]
    pub interval: Duration,
}

/// Which request goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Word)]
pub enum QueueOrder {
    /// The oldest.
    Fifo,
    /// The oldest; but the latest while the queue has not been empty for `interval`.
    Adaptive,
}

impl QueueConfig {
    fn is_adaptive(&self) -> bool {
        self.order == QueueOrder::Adaptive
    }

    fn check(check: &Check<'_>, _: Place, written: &WrittenQueueConfig, it: Self) -> Option<Self> {
        for place in [written.target.place(), written.interval.place()].into_iter().flatten() {
            if !it.is_adaptive() {
                let problem = Problem::error("a queue of order fifo has no such time");
                check.add(place, problem.expected("order = \"adaptive\", or not this key"));
            }
        }
        if let (Some(place), true) = (written.target.place(), it.is_adaptive() && it.target > it.interval) {
            let problem = Problem::error("under overload requests would wait longer than without");
            check.add(place, problem.expected("no more than interval"));
        }
        Some(it)
    }
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self::of_defaults()
    }
}
