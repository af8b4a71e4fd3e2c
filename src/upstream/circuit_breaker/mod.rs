//! The circuit breaker of an upstream: stops asking when most answers are failures or slow, and asks a little after a while.
//!
//! Electrical sense: *closed* lets requests pass, *open* refuses them, *half-open* lets a few probes pass. It opens when, over a
//! sliding window with enough calls in it, too large a part has failed or was slow; stays open for a time that doubles when it
//! opens again soon; then probes. So many good probes close it, one bad opens it again. An upstream whose backends all fail
//! is thus spared, and its clients are told at once.
//!
//! While it is closed a request costs one load, and its outcome another and one to three counts on lines of the worker's own.
//! All there is to know of a state is one word, and all changes are exchanges of that word, so that of several workers which
//! see the same reason for one, exactly one makes it and gets the [`BreakerChange`] to tell of.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::telemetry::metrics::Sharded;

use super::sliding_window::{TimeSlot, Window, WindowSpan};

/// When a breaker opens and closes. Handed in with each event: the state outlives a reload that changes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerSettings {
    /// How far back calls count.
    pub window: WindowSpan,
    /// Fewer calls than this in the window say nothing. At least 1.
    pub min_calls: u32,
    /// Opens when this part of the calls has failed, 0 to 1.
    pub failure_ratio: f64,
    /// A call that took this long is slow; `None`: none is.
    pub slow_after: Option<Duration>,
    /// Opens when this part of the calls was slow, 0 to 1.
    pub slow_ratio: f64,
    /// How long it stays open the first time; twice as long each further time in a row, a tenth more or less by chance.
    pub open_for: Duration,
    /// The longest that it stays open. When it has been closed for as long as this, opening counts as the first time again.
    pub open_max: Duration,
    /// Requests that are let through while it is half-open. When all of them were good it closes. At least 1.
    pub probes: u16,
}

impl Default for BreakerSettings {
    /// Half of at least 20 calls in 10 s failed; no call is slow, or if a time is set, 0.8 of them; open for 5 s up to 60 s; 3
    /// probes. Between Traefik's (10 s open) and resilience4j's (half of 100 calls, 60 s open, 10 probes): a gateway sees more
    /// calls than a client library, and may look again sooner.
    fn default() -> Self {
        Self {
            window: WindowSpan::new(Duration::from_secs(10)),
            min_calls: 20,
            failure_ratio: 0.5,
            slow_after: None,
            slow_ratio: 0.8,
            open_for: Duration::from_secs(5),
            open_max: Duration::from_secs(60),
            probes: 3,
        }
    }
}

/// What a breaker does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Lets them pass.
    Closed,
    /// Refuses them.
    Open,
    /// Lets a few pass.
    HalfOpen,
}

/// Why a breaker opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenedBy {
    /// Too many calls failed.
    Failures,
    /// Too many calls were slow.
    SlowCalls,
    /// A probe failed or was slow.
    Probe,
}

/// A breaker has changed. The caller that gets it reports it, and no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerChange {
    /// Refuses requests from now.
    Opened {
        /// Why.
        by: OpenedBy,
        /// Calls in the window.
        calls: u64,
        /// How many of them failed.
        failed: u64,
        /// How many of them were slow.
        slow: u64,
        /// How often it has opened in a row, this time included.
        times: u32,
        /// How long it will.
        open_for: Duration,
    },
    /// Lets a few pass from now.
    HalfOpened,
    /// Lets all pass from now.
    Closed,
}

/// A request may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerRefusal {
    /// When it may be worth to ask again: the rest of the time that the breaker is open, or 1 s while probes are under way.
    pub retry_after: Duration,
}

impl fmt::Display for BreakerRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the circuit breaker is open")
    }
}

impl std::error::Error for BreakerRefusal {}

/// The right to make a call. One that was a probe makes room for another when it is dropped without an outcome, as when the
/// client is gone.
#[derive(Debug)]
pub struct BreakerPermit {
    generation: u16,
    /// Of a probe only: a closed breaker costs no reference count.
    probe: Option<Arc<Breaker>>,
}

impl BreakerPermit {
    /// Whether the breaker was half-open.
    pub fn is_probe(&self) -> bool {
        self.probe.is_some()
    }
}

impl Drop for BreakerPermit {
    fn drop(&mut self) {
        if let Some(breaker) = self.probe.take() {
            breaker.probe_ended(self.generation, 0);
        }
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerOutcome {
    /// Whether it counts as a failure.
    pub failed: bool,
    /// How long it took, up to the head of the response.
    pub took: Duration,
}

/// The breaker of an upstream, shared by all workers. Outlives reloads.
#[derive(Debug)]
pub struct Breaker {
    /// A [`BreakerWord`].
    word: AtomicU64,
    /// [`Probes`] of the half-open state of the generation that they name.
    probes: AtomicU64,
    calls: Sharded<Calls>,
}

/// What a worker has seen.
#[derive(Debug, Default)]
struct Calls {
    all: Window,
    failed: Window,
    slow: Window,
}

impl Breaker {
    /// A closed breaker that has seen nothing. `shards` is the number of workers.
    pub fn new(shards: usize) -> Arc<Self> {
        Arc::new(Self {
            word: AtomicU64::new(BreakerWord::default().pack()),
            probes: AtomicU64::new(0),
            calls: Sharded::new(shards),
        })
    }

    /// Whether a request may pass, and the change that asking has made: an open breaker whose time is over becomes half-open.
    /// The permit goes with the attempt, and with its outcome into [`Breaker::record`]. `now_ms`: milliseconds on a clock
    /// that all workers share.
    pub fn admit(
        self: &Arc<Self>,
        settings: &BreakerSettings,
        now_ms: u64,
    ) -> (Result<BreakerPermit, BreakerRefusal>, Option<BreakerChange>) {
        let packed = self.word.load(Ordering::Relaxed);
        let word = BreakerWord::unpack(packed);
        match word.state {
            BreakerState::Closed => (Ok(BreakerPermit { generation: word.generation, probe: None }), None),
            BreakerState::Open if now_ms < word.at_ms => {
                (Err(BreakerRefusal { retry_after: Duration::from_millis(word.at_ms - now_ms) }), None)
            }
            BreakerState::Open => {
                // The caller that makes the change reports it, even if the places of the probes are all taken before it gets one.
                let made = self.exchange(packed, word.next(BreakerState::HalfOpen, now_ms));
                (self.probe(settings), made.then_some(BreakerChange::HalfOpened))
            }
            BreakerState::HalfOpen => (self.probe(settings), None),
        }
    }

    /// Takes in how a call ended that was admitted. `bits` are random. The outcome of a call that was admitted before the last
    /// change says nothing of the state since, and is ignored.
    pub fn record(
        &self,
        worker: usize,
        mut permit: BreakerPermit,
        outcome: BreakerOutcome,
        settings: &BreakerSettings,
        now_ms: u64,
        bits: u64,
    ) -> Option<BreakerChange> {
        let packed = self.word.load(Ordering::Relaxed);
        let word = BreakerWord::unpack(packed);
        let slow = settings.slow_after.is_some_and(|limit| outcome.took >= limit);
        let good = !outcome.failed && !slow;
        let probe = permit.probe.take().is_some();
        if word.generation != permit.generation {
            return None;
        }
        if probe && good {
            let enough = self.probe_ended(word.generation, 1) >= settings.probes.max(1);
            let closed = enough && self.exchange(packed, word.next(BreakerState::Closed, now_ms));
            return closed.then_some(BreakerChange::Closed);
        }
        if probe {
            return self.open(packed, OpenedBy::Probe, Seen::default(), settings, now_ms, bits);
        }

        let slot = word.slot(settings, now_ms);
        let calls = self.calls.of(worker);
        calls.all.add(slot);
        if good {
            return None;
        }
        if outcome.failed {
            calls.failed.add(slot);
        }
        if slow {
            calls.slow.add(slot);
        }
        // Only a bad call is a reason to look: a good one makes no part larger.
        let seen = self.seen(settings, slot);
        let by = seen.too_bad(settings)?;
        self.open(packed, by, seen, settings, now_ms, bits)
    }

    /// What it does with requests now.
    pub fn state(&self) -> BreakerState {
        BreakerWord::unpack(self.word.load(Ordering::Relaxed)).state
    }

    /// Calls in the window, and how many of them failed and were slow.
    pub fn window(&self, settings: &BreakerSettings, now_ms: u64) -> (u64, u64, u64) {
        let word = BreakerWord::unpack(self.word.load(Ordering::Relaxed));
        let seen = self.seen(settings, word.slot(settings, now_ms));
        (seen.calls, seen.failed, seen.slow)
    }

    /// Closes it by hand, and forgets what it has seen and how often it has opened. `None` when it was closed already.
    pub fn reset(&self, now_ms: u64) -> Option<BreakerChange> {
        loop {
            let packed = self.word.load(Ordering::Relaxed);
            let word = BreakerWord::unpack(packed);
            if self.exchange(packed, BreakerWord { times: 0, ..word.next(BreakerState::Closed, now_ms) }) {
                return (word.state != BreakerState::Closed).then_some(BreakerChange::Closed);
            }
        }
    }

    /// Opens it, unless another worker has changed it.
    fn open(
        &self,
        packed: u64,
        by: OpenedBy,
        seen: Seen,
        settings: &BreakerSettings,
        now_ms: u64,
        bits: u64,
    ) -> Option<BreakerChange> {
        let word = BreakerWord::unpack(packed);
        let open_max_ms = millis(settings.open_max);
        let forgiven = word.state == BreakerState::Closed && now_ms.saturating_sub(word.at_ms) >= open_max_ms;
        let times = if forgiven { 1 } else { (word.times + 1).min(TIMES_MAX) };
        let plain_ms = millis(settings.open_for).saturating_mul(1 << (times - 1).min(32)).min(open_max_ms).max(1);
        let spread = u128::from(plain_ms / 5 + 1);
        let open_ms = plain_ms - plain_ms / 10 + ((u128::from(bits) * spread) >> 64) as u64;
        let next = BreakerWord { times, ..word.next(BreakerState::Open, now_ms.saturating_add(open_ms)) };
        self.exchange(packed, next).then_some(BreakerChange::Opened {
            by,
            calls: seen.calls,
            failed: seen.failed,
            slow: seen.slow,
            times,
            open_for: Duration::from_millis(open_ms),
        })
    }

    /// Goes to another state if the state has not changed since `packed` was read.
    fn exchange(&self, packed: u64, next: BreakerWord) -> bool {
        self.word.compare_exchange(packed, next.pack(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// A permit for a probe, while it is half-open and fewer than are wanted were let through.
    fn probe(self: &Arc<Self>, settings: &BreakerSettings) -> Result<BreakerPermit, BreakerRefusal> {
        let word = BreakerWord::unpack(self.word.load(Ordering::Relaxed));
        match word.state {
            // Another worker has changed it meanwhile.
            BreakerState::Closed => return Ok(BreakerPermit { generation: word.generation, probe: None }),
            BreakerState::Open => return Err(PROBING),
            BreakerState::HalfOpen => {}
        }
        let taken = self.probes.try_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
            let probes = Probes::of(packed, word.generation)?;
            let wanted = settings.probes.max(1);
            let asked = probes.under_way.saturating_add(probes.good);
            (asked < wanted).then(|| Probes { under_way: probes.under_way + 1, ..probes }.pack())
        });
        match taken {
            Ok(_) => Ok(BreakerPermit { generation: word.generation, probe: Some(Arc::clone(self)) }),
            Err(_) => Err(PROBING),
        }
    }

    /// A probe is no longer under way. Returns how many were good.
    fn probe_ended(&self, generation: u16, good: u16) -> u16 {
        let mut all = 0;
        let _ = self.probes.try_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
            let probes = Probes::of(packed, generation)?;
            all = probes.good.saturating_add(good);
            Some(Probes { under_way: probes.under_way.saturating_sub(1), good: all, ..probes }.pack())
        });
        all
    }

    fn seen(&self, settings: &BreakerSettings, slot: TimeSlot) -> Seen {
        let mut seen = Seen::default();
        for calls in self.calls.iter() {
            // The parts first: a call that is counted meanwhile is then not a part of none.
            seen.failed += calls.failed.sum(slot, settings.window, Ordering::Relaxed);
            if settings.slow_after.is_some() {
                seen.slow += calls.slow.sum(slot, settings.window, Ordering::Relaxed);
            }
            seen.calls += calls.all.sum(slot, settings.window, Ordering::Relaxed);
        }
        seen
    }
}

/// What a refused request is told while probes are under way.
const PROBING: BreakerRefusal = BreakerRefusal { retry_after: Duration::from_secs(1) };

/// Where counting how often it opened in a row ends: 6 bits.
const TIMES_MAX: u32 = 63;

/// The calls in a window.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    calls: u64,
    failed: u64,
    slow: u64,
}

impl Seen {
    fn too_bad(self, settings: &BreakerSettings) -> Option<OpenedBy> {
        if self.calls < u64::from(settings.min_calls.max(1)) {
            return None;
        }
        let reaches = |part: u64, ratio: f64| part > 0 && part as f64 >= ratio * self.calls as f64;
        if reaches(self.failed, settings.failure_ratio) {
            Some(OpenedBy::Failures)
        } else if reaches(self.slow, settings.slow_ratio) {
            Some(OpenedBy::SlowCalls)
        } else {
            None
        }
    }
}

/// A state in one word, from the low end: 2 bits of state, 6 of `times`, 16 of `generation`, 40 of `at_ms` (34 years).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BreakerWord {
    state: BreakerState,
    /// How often it has opened in a row.
    times: u32,
    /// Another with each change, so that what was admitted before is told from what was admitted since.
    generation: u16,
    /// Open: until when. Else: since when.
    at_ms: u64,
}

impl Default for BreakerWord {
    fn default() -> Self {
        Self { state: BreakerState::Closed, times: 0, generation: 0, at_ms: 0 }
    }
}

impl BreakerWord {
    const AT_MS_MAX: u64 = (1 << 40) - 1;

    fn pack(self) -> u64 {
        let state = match self.state {
            BreakerState::Closed => 0,
            BreakerState::Open => 1,
            BreakerState::HalfOpen => 2,
        };
        state | u64::from(self.times) << 2 | u64::from(self.generation) << 8 | self.at_ms.min(Self::AT_MS_MAX) << 24
    }

    fn unpack(word: u64) -> Self {
        Self {
            state: match word & 3 {
                0 => BreakerState::Closed,
                1 => BreakerState::Open,
                _ => BreakerState::HalfOpen,
            },
            times: (word >> 2 & 63) as u32,
            generation: (word >> 8) as u16,
            at_ms: word >> 24,
        }
    }

    fn next(self, state: BreakerState, at_ms: u64) -> Self {
        Self { state, generation: self.generation.wrapping_add(1), at_ms, ..self }
    }

    /// Where calls of now are counted: what was seen before the last change does not count.
    fn slot(self, settings: &BreakerSettings, now_ms: u64) -> TimeSlot {
        TimeSlot { generation: self.generation as u8, ..settings.window.slot(now_ms) }
    }
}

/// The probes of one half-open state, in one word.
#[derive(Clone, Copy, Debug)]
struct Probes {
    generation: u16,
    under_way: u16,
    good: u16,
}

impl Probes {
    /// Those of `generation`: none yet, if the word is of an earlier one; `None`, if it is of a later one, so that a worker that
    /// comes late does not overwrite it.
    fn of(packed: u64, generation: u16) -> Option<Self> {
        let found = packed as u16;
        match generation.wrapping_sub(found) {
            0 => Some(Self { generation, under_way: (packed >> 16) as u16, good: (packed >> 32) as u16 }),
            1..0x8000 => Some(Self { generation, under_way: 0, good: 0 }),
            _ => None,
        }
    }

    fn pack(self) -> u64 {
        u64::from(self.generation) | u64::from(self.under_way) << 16 | u64::from(self.good) << 32
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
