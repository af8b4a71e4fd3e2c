//! How long responses of an upstream took lately, as a percentile: when hedging sends its second attempt.
//!
//! Each worker counts in buckets of its own, whose width is at most an eighth of what they hold, so that they can be added up
//! over workers and slots of time. The percentile is worked out at most once in 3 s, by the worker that comes first after
//! that; a request reads the result.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::config::HedgeConfig;
use crate::telemetry::metrics::Sharded;

/// Slots of time: with the running one, 25 to 33 s are looked back on.
const SLOTS: usize = 4;
/// A slot is 8.192 s long.
const SLOT_SHIFT: u32 = 13;
/// 16 µs, and the buckets end at 134 s.
const UNIT_SHIFT: u32 = 4;
const BUCKETS: usize = 168;
/// How long a percentile is good for, as finagle has it.
const REFRESH_MS: u64 = 3_000;

/// When a second attempt is sent. Handed in with each question.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HedgingSettings {
    /// The part of the responses that came faster than what a second attempt waits for, 0 to 1.
    pub percentile: f64,
    /// The least delay before a hedge.
    pub min_delay: Duration,
    /// Fewer responses than this in the window say nothing: no second attempt.
    pub min_samples: u32,
}

impl Default for HedgingSettings {
    /// After the 95th percentile, as in "The Tail at Scale"; at least 1 ms, as finagle has it; of 100 responses at least, of
    /// which five were slower.
    fn default() -> Self {
        Self { percentile: 0.95, min_delay: Duration::from_millis(1), min_samples: 100 }
    }
}

impl HedgingSettings {
    /// As the configuration has them.
    pub fn of(config: &HedgeConfig) -> Self {
        let percentile = f64::from(config.percentile) / 100.0;
        Self { percentile, min_delay: config.min_delay, ..Self::default() }
    }
}

/// The times of an upstream's responses, shared by all workers. 2.8 KiB a worker: made only where hedging is asked for.
#[derive(Debug)]
pub struct Latencies {
    workers: Sharded<Times>,
    /// When the delay is worked out again. Nothing was yet at 0.
    next_ms: AtomicU64,
    /// What was worked out, in microseconds; 0 when too little is known.
    delay_us: AtomicU64,
}

#[derive(Debug, Default)]
struct Times([LatencySlot; SLOTS]);

/// What a worker counted in a slot of time.
#[derive(Debug)]
struct LatencySlot {
    /// The slot's number and one: 0 is none.
    slot: AtomicU64,
    buckets: [AtomicU32; BUCKETS],
}

impl Default for LatencySlot {
    fn default() -> Self {
        Self { slot: AtomicU64::new(0), buckets: [const { AtomicU32::new(0) }; BUCKETS] }
    }
}

impl Latencies {
    /// None yet. `shards` is the number of workers.
    pub fn new(shards: usize) -> Self {
        Self { workers: Sharded::new(shards), next_ms: AtomicU64::new(0), delay_us: AtomicU64::new(0) }
    }

    /// Counts a response that took this long up to its head. Two loads and a store on the worker's own lines; once in 8 s, a
    /// bucket each more. `now_ms`: milliseconds on a clock that all workers share.
    pub fn observe(&self, worker: usize, took: Duration, now_ms: u64) {
        let number = (now_ms >> SLOT_SHIFT) + 1;
        let times = &self.workers.of(worker).0[number as usize % SLOTS];
        if times.slot.load(Ordering::Relaxed) != number {
            // A reader meanwhile sees fewer than there were, once in 8 s: a delay that is a little off for 3 s.
            times.buckets.iter().for_each(|bucket| bucket.store(0, Ordering::Relaxed));
            times.slot.store(number, Ordering::Release);
        }
        let bucket = &times.buckets[bucket(took)];
        bucket.store(bucket.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
    }

    /// How long to wait before the second attempt; `None` while too little is known. Two loads, unless it is time to work it
    /// out again.
    pub fn delay(&self, settings: &HedgingSettings, now_ms: u64) -> Option<Duration> {
        let next = self.next_ms.load(Ordering::Relaxed);
        if now_ms >= next {
            let mine =
                self.next_ms.compare_exchange(next, now_ms + REFRESH_MS, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            if mine {
                let delay = self.percentile(settings.percentile, settings.min_samples, now_ms);
                let us = delay.map_or(0, |delay| delay.as_micros() as u64);
                self.delay_us.store(us, Ordering::Relaxed);
            }
        }
        match self.delay_us.load(Ordering::Relaxed) {
            0 => None,
            us => Some(Duration::from_micros(us).max(settings.min_delay)),
        }
    }

    /// The time that a part `q` (0 to 1) of the responses in the window took at most, rounded up to the end of its bucket, an
    /// eighth more at most; `None` if there were fewer than `min_samples`, or none. Some thousand loads: for whoever asks
    /// rarely.
    pub fn percentile(&self, q: f64, min_samples: u32, now_ms: u64) -> Option<Duration> {
        let last = (now_ms >> SLOT_SHIFT) + 1;
        let mut counts = [0_u64; BUCKETS];
        for times in self.workers.iter().flat_map(|times| &times.0) {
            let slot = times.slot.load(Ordering::Acquire);
            // A slot of a worker whose clock is a tick ahead counts too.
            if slot == 0 || slot + (SLOTS as u64) <= last {
                continue;
            }
            for (count, bucket) in counts.iter_mut().zip(&times.buckets) {
                *count += u64::from(bucket.load(Ordering::Relaxed));
            }
        }
        let all: u64 = counts.iter().sum();
        if all < u64::from(min_samples.max(1)) {
            return None;
        }
        let rank = ((q.clamp(0.0, 1.0) * all as f64).ceil() as u64).max(1);
        let mut below = 0;
        let index = counts.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        Some(end(index))
    }
}

/// The bucket that holds a time: eight of equal width up to 128 µs, then eight for each doubling. The last holds the rest.
fn bucket(took: Duration) -> usize {
    let units = (u64::try_from(took.as_micros()).unwrap_or(u64::MAX) >> UNIT_SHIFT) as usize;
    if units < 8 {
        return units;
    }
    let top = units.ilog2() as usize;
    let index = (top - 2) * 8 + (units >> (top - 3) & 7);
    index.min(BUCKETS - 1)
}

/// Where a bucket ends.
fn end(index: usize) -> Duration {
    let units = if index < 8 { index as u64 + 1 } else { (index as u64 % 8 + 9) << (index / 8 - 1) };
    Duration::from_micros(units << UNIT_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn the_percentile_is_that_of_all_workers() {
        let latencies = Latencies::new(3);
        for ms in 1..=100 {
            latencies.observe(ms as usize % 3, MS(ms), 1_000);
        }
        for (q, ms) in [(0.0, 1), (0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100)] {
            let found = latencies.percentile(q, 100, 1_000).unwrap();
            assert!(found >= MS(ms) && found <= MS(ms) * 9 / 8 + Duration::from_micros(16), "{q}: {found:?}");
        }
        assert_eq!(latencies.percentile(0.5, 101, 1_000), None);
    }

    #[test]
    fn what_is_longer_ago_than_the_window_does_not_count() {
        let latencies = Latencies::new(1);
        latencies.observe(0, MS(500), 8_191);
        latencies.observe(0, MS(1), 8_192);
        assert!(latencies.percentile(1.0, 1, 32_767).unwrap() > MS(400));
        assert!(latencies.percentile(1.0, 1, 32_768).unwrap() < MS(2));
        // The same place in the ring again.
        latencies.observe(0, MS(2), 8_192 * 5);
        assert!(latencies.percentile(1.0, 1, 8_192 * 5).unwrap() < MS(3));
        assert_eq!(latencies.percentile(1.0, 1, 8_192 * 9), None);
        assert_eq!(Latencies::new(1).percentile(1.0, 0, 0), None);
    }

    #[test]
    fn the_delay_is_worked_out_every_three_seconds() {
        let (latencies, settings) = (Latencies::new(1), HedgingSettings::default());
        assert_eq!(latencies.delay(&settings, 0), None);
        (0..200).for_each(|_| latencies.observe(0, MS(20), 1_000));
        assert_eq!(latencies.delay(&settings, 2_999), None);
        let delay = latencies.delay(&settings, 3_000).unwrap();
        assert!(delay >= MS(20) && delay <= MS(23), "{delay:?}");
        (0..10_000).for_each(|_| latencies.observe(0, MS(80), 3_000));
        assert_eq!(latencies.delay(&settings, 5_999), Some(delay));
        assert!(latencies.delay(&settings, 6_000).unwrap() >= MS(80));
    }

    #[test]
    fn a_delay_is_never_below_the_least() {
        let (latencies, settings) = (Latencies::new(1), HedgingSettings::default());
        (0..200).for_each(|_| latencies.observe(0, Duration::from_micros(40), 0));
        assert_eq!(latencies.delay(&settings, 0), Some(MS(1)));
    }

    #[test]
    fn the_last_bucket_holds_the_rest() {
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
        assert_eq!(end(BUCKETS - 1), Duration::from_micros(1 << 27));
    }

    proptest! {
        #[test]
        fn a_bucket_ends_above_what_it_holds_and_not_far(us in 0_u64..1 << 27) {
            let index = bucket(Duration::from_micros(us));
            let end = end(index).as_micros() as u64;
            prop_assert!(us < end && end <= us + us / 8 + 16, "{us} in {index}, which ends at {end}");
            prop_assert!(index == 0 || super::end(index - 1).as_micros() as u64 <= us);
        }

        #[test]
        fn percentiles_are_those_of_the_sorted_list(
            mut list in prop::collection::vec(0_u64..200_000, 1..500),
            q in 0.0..=1.0_f64,
        ) {
            let latencies = Latencies::new(4);
            for (index, &us) in list.iter().enumerate() {
                latencies.observe(index % 4, Duration::from_micros(us), index as u64 * 40);
            }
            list.sort_unstable();
            let exact = list[((q * list.len() as f64).ceil() as usize).max(1) - 1];
            let found = latencies.percentile(q, 1, 500 * 40).unwrap().as_micros() as u64;
            prop_assert!(exact < found && found <= exact + exact / 8 + 16, "{exact}, found {found}");
        }
    }
}
