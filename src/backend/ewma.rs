//! Averages of what was measured lately, written by all workers without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A moving average of latencies that several workers write, and any may read, without a lock.
///
/// Value and time stand in one word: 32 bits of `f32` in microseconds, 32 bits of milliseconds on a clock that all callers
/// share ([`millis`]). A sample is one load and one compare-and-swap; a reader writes nothing, for an exponential decay can
/// be applied when the value is looked at: e^-(a+b) is e^-a times e^-b. Finagle and tower, where the rule is from, take a
/// mutex on each read to do that.
///
/// Samples within the millisecond of the last one change a plain average by nothing and are not written, so that a busy
/// backend's word is written a thousand times a second at most: the first sample of each millisecond speaks for it.
#[derive(Debug, Default)]
pub struct Ewma(AtomicU64);

/// How fast the past is forgotten: after this time it counts e^-1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decay {
    per_ms: f32,
}

impl Decay {
    /// Forgets with this time constant. Below a millisecond it counts as one.
    pub fn new(tau: Duration) -> Self {
        Self { per_ms: -1.0 / (tau.as_secs_f32() * 1e3).max(1.0) }
    }

    /// What is left of the past after so long.
    #[inline]
    fn left(self, ms: u32) -> f32 {
        let x = ms as f32 * self.per_ms;
        // The samples of a busy backend are close together. There the series is as exact as an `f32`, and cheaper.
        if x > -0.05 { 1.0 + x * (1.0 + x * (0.5 + x * (1.0 / 6.0))) } else { x.exp() }
    }
}

impl Default for Decay {
    /// Ten seconds, as Finagle and Linkerd have it.
    fn default() -> Self {
        Self::new(Duration::from_secs(10))
    }
}

/// Milliseconds from `start` to `now`, on which all callers of one average must agree. Wraps after 49 days, which an
/// average bears.
pub fn millis(start: Instant, now: Instant) -> u32 {
    let since = now.saturating_duration_since(start);
    (since.as_secs() as u32).wrapping_mul(1_000).wrapping_add(since.subsec_millis())
}

/// A clock read by one worker may be behind what another wrote; further back than this means that the clock has wrapped.
const BEHIND_MS: u32 = 60_000;

/// Tries at a compare-and-swap before a sample is given up: where so many write at once, one sample makes no difference.
const TRIES: usize = 3;

impl Ewma {
    /// Counts a latency in: the average moves towards it by what was forgotten since the last one.
    pub fn observe(&self, latency: Duration, now_ms: u32, decay: Decay) {
        self.update(latency, now_ms, decay, false);
    }

    /// The same, but what is higher than the average takes its place at once: an average that rises fast and falls slowly
    /// keeps away from a backend that has become slow. This is Finagle's peak EWMA.
    pub fn observe_peak(&self, latency: Duration, now_ms: u32, decay: Decay) {
        self.update(latency, now_ms, decay, true);
    }

    /// The average in microseconds as it was after the last sample; `None` before the first.
    pub fn micros(&self) -> Option<f32> {
        unpack(self.0.load(Relaxed)).map(|(value, _)| value)
    }

    /// The average in microseconds, less what has been forgotten since the last sample; `None` before the first.
    ///
    /// It falls to 0 for a backend that is not asked, so a caller that compares loads must put a floor under it.
    pub fn micros_at(&self, now_ms: u32, decay: Decay) -> Option<f32> {
        let (value, then) = unpack(self.0.load(Relaxed))?;
        Some(value * decay.left(passed(then, now_ms)))
    }

    /// Forgets everything.
    pub fn reset(&self) {
        self.0.store(0, Relaxed);
    }

    #[inline]
    fn update(&self, latency: Duration, now_ms: u32, decay: Decay, peak: bool) {
        let nanos = latency.as_secs().saturating_mul(1_000_000_000).saturating_add(latency.subsec_nanos().into());
        // Never 0, which means that there is nothing yet.
        let sample = nanos.max(1) as f32 * 1e-3;
        let mut old = self.0.load(Relaxed);
        for _ in 0..TRIES {
            let new = match unpack(old) {
                None => pack(sample, now_ms),
                Some((value, then)) if peak && sample > value => pack(sample, then.wrapping_add(passed(then, now_ms))),
                Some((value, then)) => match passed(then, now_ms) {
                    0 => return,
                    ms => pack(sample + (value - sample) * decay.left(ms), then.wrapping_add(ms)),
                },
            };
            match self.0.compare_exchange_weak(old, new, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }
    }
}

fn pack(value: f32, ms: u32) -> u64 {
    (u64::from(value.to_bits()) << 32) | u64::from(ms)
}

fn unpack(word: u64) -> Option<(f32, u32)> {
    let value = (word >> 32) as u32;
    (value != 0).then(|| (f32::from_bits(value), word as u32))
}

/// Time from one reading to the other; none if the second is a little behind the first.
fn passed(then: u32, now: u32) -> u32 {
    let ms = now.wrapping_sub(then);
    if ms > u32::MAX - BEHIND_MS { 0 } else { ms }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use proptest::prelude::{prop, prop_assert, proptest};

    use super::*;

    fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    const TAU: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_sample_stands() {
        let average = Ewma::default();
        assert_eq!(average.micros(), None);
        average.observe(us(700), 5, Decay::new(TAU));
        assert_eq!(average.micros().map(f32::round), Some(700.0));
        average.reset();
        assert_eq!(average.micros_at(9, Decay::new(TAU)), None);
    }

    #[test]
    fn a_plain_average_moves_by_what_was_forgotten() {
        let (average, decay) = (Ewma::default(), Decay::new(TAU));
        average.observe(us(1_000), 0, decay);
        average.observe(us(3_000), 1_000, decay);
        let expected = 3_000.0 - 2_000.0 * (-1f32).exp();
        assert!((average.micros().unwrap() - expected).abs() < 0.5);
        // A second one within the millisecond says nothing more.
        average.observe(us(9_000), 1_000, decay);
        assert!((average.micros().unwrap() - expected).abs() < 0.5);
    }

    #[test]
    fn a_peak_rises_at_once_and_falls_slowly() {
        let (average, decay) = (Ewma::default(), Decay::new(TAU));
        average.observe_peak(us(1_000), 0, decay);
        average.observe_peak(us(8_000), 0, decay);
        assert_eq!(average.micros().map(f32::round), Some(8_000.0));
        average.observe_peak(us(1_000), 1_000, decay);
        assert!((average.micros().unwrap() - (1_000.0 + 7_000.0 * (-1f32).exp())).abs() < 0.5);
    }

    #[test]
    fn a_clock_behind_or_wrapped_does_no_harm() {
        let (average, decay) = (Ewma::default(), Decay::new(TAU));
        average.observe(us(1_000), 10, decay);
        average.observe(us(9_000), 4, decay);
        assert_eq!(average.micros().map(f32::round), Some(1_000.0), "a sample from before has no weight");
        assert_eq!(average.micros_at(4, decay).map(f32::round), Some(1_000.0));
        let average = Ewma::default();
        average.observe(us(1_000), u32::MAX - 500, decay);
        let half = average.micros_at(499, decay).unwrap();
        assert!((half - 1_000.0 * (-1f32).exp()).abs() < 0.5, "{half} a second later, over the wrap");
    }

    #[test]
    fn writers_in_each_other_s_way_stay_within_what_they_wrote() {
        let average = Arc::new(Ewma::default());
        let writers: Vec<_> = (0..4u64)
            .map(|writer| {
                let average = Arc::clone(&average);
                thread::spawn(move || {
                    for ms in 0..20_000 {
                        average.observe_peak(us(100 + writer * 300), ms, Decay::new(TAU));
                        let now = average.micros().unwrap();
                        assert!((99.0..=1_001.0).contains(&now), "{now}");
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
    }

    #[test]
    fn a_clock_counts_milliseconds() {
        let start = Instant::now();
        assert_eq!(millis(start, start + Duration::from_millis(61_234)), 61_234);
        assert_eq!(millis(start + TAU, start), 0);
    }

    proptest! {
        #[test]
        fn decay_composes(value in 1u64..10_000_000, a in 0u32..20_000, b in 0u32..20_000) {
            let decay = Decay::default();
            let average = Ewma::default();
            average.observe(us(value), 0, decay);
            let whole = average.micros_at(a + b, decay).unwrap();
            let halves = average.micros_at(a, decay).unwrap() * decay.left(b);
            prop_assert!((whole - halves).abs() <= whole * 1e-5 + f32::MIN_POSITIVE);
        }

        #[test]
        fn an_average_lies_between_its_samples(
            samples in prop::collection::vec((1u64..1_000_000, 0u32..5_000, prop::bool::ANY), 1..50)
        ) {
            let average = Ewma::default();
            let (mut now, mut least, mut most) = (0, u64::MAX, 0);
            for (sample, later, peak) in samples {
                now += later;
                (least, most) = (least.min(sample), most.max(sample));
                average.update(us(sample), now, Decay::new(TAU), peak);
                let micros = average.micros().unwrap();
                prop_assert!(micros >= least as f32 * 0.999 && micros <= most as f32 * 1.001);
            }
        }

        #[test]
        fn a_higher_sample_never_gives_a_lower_average(
            before in 1u64..1_000_000, low in 1u64..1_000_000, more in 0u64..1_000_000, ms in 0u32..5_000
        ) {
            for peak in [false, true] {
                let after = |sample| {
                    let average = Ewma::default();
                    average.observe(us(before), 0, Decay::new(TAU));
                    average.update(us(sample), ms, Decay::new(TAU), peak);
                    average.micros().unwrap()
                };
                prop_assert!(after(low + more) >= after(low));
            }
        }
    }
}
