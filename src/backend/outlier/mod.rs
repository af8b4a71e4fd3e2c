//! Outlier detection: which backend is worse than it should be, told from real traffic.
//!
//! Two halves. The request path notes how each attempt ended ([`Outlier::note`]), in a shard of the worker's own and in two
//! streaks that all workers share; that is a few loads and stores. The control plane looks at all backends of an upstream
//! every interval, and at once when a streak has become too long, and decides by [`judge()`], which is a function of what was
//! counted, what was decided before ([`History`]), the settings, the time and the dice.
//!
//! No backend is ejected because of health checks. An ejection for attempts that came to no answer ends when the backend is seen to be
//! there again, by a check or otherwise ([`Sight`]); a backend that gives bad answers, or is slow, stays ejected for its time,
//! whatever its checks say.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::telemetry::clock::now_ms;
use crate::telemetry::metrics::Sharded;

mod settings;
mod streak;
mod traffic;
mod history;
mod judge;
mod compare;

pub use history::{By, Ejection, EjectionEnd, History, Reason, Sight};
pub use judge::{Occasion, OutlierAction, Subject, judge, next_end};
pub use settings::Settings;
pub use streak::{FailureStreak, Streaks};
pub use traffic::Totals;

use streak::{Silences, end, extend};
use traffic::{OutlierSlot, Traffic};

/// How an attempt at a backend ended.
///
/// Not all that goes wrong is the backend's fault: a client that goes away, or an idle connection that the backend had
/// closed just before it was used, is no outcome and not noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// Answered with 1xx to 3xx.
    Success,
    /// Answered with 4xx: it works. How fast it was does not tell how fast it answers.
    ClientError,
    /// Answered with 502, 503 or 504: it, or what stands behind it, is out of order or overloaded.
    Gateway,
    /// Answered with any other 5xx.
    ServerError,
    /// No connection could be made, in time or at all.
    Connect,
    /// The connection ended before a response.
    Reset,
    /// The response did not begin in time.
    Timeout,
}

impl AttemptOutcome {
    /// How many there are.
    pub const COUNT: usize = 7;

    /// What a response of this status comes to.
    pub fn of_status(status: u16) -> Self {
        match status {
            502..=504 => Self::Gateway,
            500.. => Self::ServerError,
            400.. => Self::ClientError,
            _ => Self::Success,
        }
    }

    /// Whether the time it took is a latency. Errors are often fast: counted in, a backend that answers 503 at once would
    /// make those that work look slow. What was waited for in vain counts, as the least that it would have taken.
    fn tells_latency(self) -> bool {
        matches!(self, Self::Success | Self::Timeout)
    }
}

/// What outlier detection knows of a backend. Outlives rosters and reloads.
#[derive(Debug)]
pub struct Outlier {
    gateway: AtomicU32,
    local: Silences,
    /// What began before this does not count in a succession, on the clock that all threads share. Written by the control
    /// plane, read where an attempt has failed.
    counts_from_ms: AtomicU64,
    traffic: Sharded<Traffic>,
    ejections: [AtomicU64; Reason::KINDS.len()],
    /// Whether it has answered a request as the last resort, since it was ejected.
    served: AtomicBool,
    /// Control plane only.
    history: Mutex<History>,
}

impl Outlier {
    /// Nothing known yet. `shards` is the number of workers.
    pub fn new(shards: usize) -> Self {
        Self {
            gateway: AtomicU32::new(0),
            local: Silences::default(),
            counts_from_ms: AtomicU64::new(0),
            traffic: Sharded::new(shards),
            ejections: Default::default(),
            served: AtomicBool::new(false),
            history: Mutex::default(),
        }
    }

    /// Notes how an attempt ended, and `took`, the time from sending the request to the first byte of the response or to
    /// the end of waiting for it. The clock is asked only where there was no response.
    ///
    /// Says so if a succession of failures has become too long with this one: to exactly one caller until the succession
    /// has ended or is forgotten, so that one caller wakes the control plane. Called on the request path, by `worker`
    /// alone: a success reads two shared words and writes four of the worker's own.
    #[inline]
    pub fn note(
        &self,
        worker: usize,
        outcome: AttemptOutcome,
        took: Duration,
        now: impl FnOnce() -> Instant,
        settings: &Settings,
    ) -> Option<FailureStreak> {
        let traffic = self.traffic.of(worker);
        traffic.outcomes[outcome as usize].add(1);
        if outcome.tells_latency() {
            traffic.observe(took);
        }
        match outcome {
            AttemptOutcome::Success | AttemptOutcome::ClientError => {
                end(&self.gateway);
                self.local.end();
                None
            }
            AttemptOutcome::ServerError if !settings.count_server_errors => {
                end(&self.gateway);
                self.local.end();
                None
            }
            AttemptOutcome::Gateway | AttemptOutcome::ServerError => {
                // It answered, so it can be reached.
                self.local.end();
                extend(&self.gateway, settings.consecutive_gateway).then_some(FailureStreak::Gateway)
            }
            // No answer, good or bad: the succession of answers goes on behind it.
            AttemptOutcome::Connect | AttemptOutcome::Reset | AttemptOutcome::Timeout => {
                self.no_answer(outcome, took, now(), settings)
            }
        }
    }

    /// An attempt that began before something was heard of the backend, and is given up only now, says nothing about it since.
    #[cold]
    fn no_answer(
        &self,
        outcome: AttemptOutcome,
        took: Duration,
        now: Instant,
        settings: &Settings,
    ) -> Option<FailureStreak> {
        let began_ms = now_ms(now).saturating_sub(took.as_millis() as u64);
        if began_ms < self.counts_from_ms.load(Relaxed) {
            return None;
        }
        (self.local.extend(outcome) == settings.consecutive_local).then_some(FailureStreak::Local)
    }

    /// The successions of failures as they stand.
    pub fn streaks(&self) -> Streaks {
        Streaks { gateway: self.gateway.load(Relaxed), ..self.local.load() }
    }

    /// Begins both successions anew at `now`: to be called for each backend that was ejected or taken back.
    pub fn forget_streaks(&self, now: Instant) {
        end(&self.gateway);
        self.local.end();
        self.count_from(now);
    }

    /// What began before `at` does not count in a succession any more.
    pub fn count_from(&self, at: Instant) {
        self.counts_from_ms.fetch_max(now_ms(at), Relaxed);
    }

    /// Everything that was noted since the start, over all workers.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for traffic in self.traffic.iter() {
            for (total, counter) in totals.outcomes.iter_mut().zip(&traffic.outcomes) {
                *total = total.wrapping_add(counter.get());
            }
            totals.latencies = totals.latencies.wrapping_add(traffic.latencies.get());
            totals.squares = totals.squares.wrapping_add(traffic.squares.get());
        }
        totals
    }

    /// Ejects it at the wish of an operator, until `until` or until it is taken back. The keeper is to be woken then.
    pub fn eject_by_hand(&self, now: Instant, until: Option<Instant>) {
        self.history().eject_by_hand(now, until);
        self.was_ejected(&Reason::Hand, now);
    }

    /// Ends the ejection, by detection or by hand; returns what it was. The keeper is to be woken then.
    pub fn take_back(&self, now: Instant) -> Option<Ejection> {
        let ejection = self.history().take_back();
        self.forget_streaks(now);
        ejection
    }

    /// To be called with each ejection: counts it, and what has led to it does not count again.
    pub fn was_ejected(&self, reason: &Reason, now: Instant) {
        self.ejections[reason.kind()].fetch_add(1, Relaxed);
        self.served.store(false, Relaxed);
        self.forget_streaks(now);
    }

    /// It has answered a request as the last resort, while it was ejected. Says whether that is news, for one caller to wake
    /// the control plane. On the request path.
    pub fn note_served(&self) -> bool {
        !self.served.load(Relaxed) && !self.served.swap(true, Relaxed)
    }

    /// Whether it has done so since it was ejected last.
    pub fn has_served(&self) -> bool {
        self.served.load(Relaxed)
    }

    /// Whether it should be looked for: it is ejected for attempts that came to no answer.
    pub fn is_missed(&self) -> bool {
        self.history().ejection().is_some_and(Ejection::is_for_silence)
    }

    /// Ejections since the start, by [`Reason::KINDS`].
    pub fn ejections(&self) -> [u64; Reason::KINDS.len()] {
        std::array::from_fn(|kind| self.ejections[kind].load(Relaxed))
    }

    /// What was decided so far, to read or to decide on. A lock, for the control plane only.
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
