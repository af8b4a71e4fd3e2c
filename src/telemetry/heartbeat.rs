//! Whether workers still run: each is asked once a second, and answers when its turn comes.
//!
//! Counted are questions that were not answered, and not the time since the last answer: a machine that sleeps, or a process that is stopped
//! for a while, asks nothing meanwhile.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How often each is asked.
pub const EVERY: Duration = Duration::from_secs(1);

/// So many times in a row without an answer, and a worker counts as dead: one that has too much to do is late by a fraction of a second.
pub const MISSED_MAX: u64 = 10;

/// What was asked and answered, by worker.
#[derive(Debug)]
pub struct Pulse(Box<[Beat]>);

#[derive(Debug, Default)]
struct Beat {
    asked: AtomicU64,
    answered: AtomicU64,
    missed: AtomicU64,
}

impl Pulse {
    /// No worker was asked yet.
    pub fn new(workers: usize) -> Self {
        Self((0..workers.max(1)).map(|_| Beat::default()).collect())
    }

    /// It is time to ask a worker again: whether there is anything to ask, as the last question was answered. By one thread only.
    pub fn ask(&self, worker: usize) -> bool {
        let Some(beat) = self.0.get(worker) else { return false };
        let asked = beat.asked.load(Relaxed);
        let answered = beat.answered.load(Relaxed) == asked;
        if answered {
            beat.missed.store(0, Relaxed);
            beat.asked.store(asked + 1, Relaxed);
        } else {
            beat.missed.fetch_add(1, Relaxed);
        }
        answered
    }

    /// A worker answers. By that worker only.
    pub fn answer(&self, worker: usize) {
        if let Some(beat) = self.0.get(worker) {
            beat.answered.store(beat.asked.load(Relaxed), Relaxed);
            beat.missed.store(0, Relaxed);
        }
    }

    /// For how long each has not answered, in whole seconds.
    pub fn missed(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().map(|beat| beat.missed.load(Relaxed))
    }

    /// The first that counts as dead, and for how many seconds it has not answered.
    pub fn dead(&self) -> Option<(usize, u64)> {
        self.missed().enumerate().find(|&(_, missed)| missed >= MISSED_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_does_not_answer_is_dead_until_it_does() {
        let pulse = Pulse::new(2);
        assert!(pulse.ask(0) && pulse.ask(1));
        pulse.answer(0);
        for missed in 1..=MISSED_MAX {
            assert_eq!(pulse.dead(), None, "before {missed}");
            assert!(pulse.ask(0) && !pulse.ask(1), "it is asked once");
            pulse.answer(0);
        }
        assert_eq!(pulse.dead(), Some((1, MISSED_MAX)));
        pulse.answer(1);
        assert_eq!((pulse.dead(), pulse.ask(1)), (None, true));
        assert!(!pulse.ask(7));
    }
}
