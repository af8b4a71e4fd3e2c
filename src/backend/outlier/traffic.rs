//! What attempts at a backend came to: noted by each worker in words of its own, added up and compared by the control plane.

use std::time::Duration;

use super::AttemptOutcome;
use crate::telemetry::metrics::Counter;

/// What one worker notes of a backend.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) outcomes: [Counter; AttemptOutcome::COUNT],
    /// The number of latencies in the lower bits, the sum of their logarithms above: one word, so that a reader cannot
    /// see one without the other.
    pub(super) latencies: Counter,
    /// The sum of the squares of their logarithms.
    pub(super) squares: Counter,
}

/// Bits of [`Traffic::latencies`] that count; what was counted between two looks must be below 2^28.
const COUNT_BITS: u32 = 28;

impl Traffic {
    #[inline]
    pub(super) fn observe(&self, took: Duration) {
        let log = u64::from(log2(took));
        self.latencies.add((log << COUNT_BITS) | 1);
        self.squares.add(log * log);
    }
}

/// Units of a logarithm to the base of 2.
const LOG_UNIT: f64 = 256.0;

/// The logarithm of the microseconds to the base of 2 in units of 1/256, by the exponent and a straight line in between:
/// never off by more than 0.09, never falling. At most 67 s count, at least a microsecond.
#[inline]
fn log2(took: Duration) -> u32 {
    const ONE: u32 = 127 << 8;
    const MOST: u64 = 1 << 26;
    let micros = (took.as_secs().saturating_mul(1_000_000) + u64::from(took.subsec_micros())).clamp(1, MOST);
    ((micros as f32).to_bits() >> 15) - ONE
}

/// Everything noted of a backend. What happened in between two of them is their difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Attempts by [`AttemptOutcome`].
    pub outcomes: [u64; AttemptOutcome::COUNT],
    pub(super) latencies: u64,
    pub(super) squares: u64,
}

impl Totals {
    /// What was noted after `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> OutlierSlot {
        let count = |outcome: AttemptOutcome| {
            let index = outcome as usize;
            // Below zero only if a shard was read while its worker wrote: nothing, then.
            (self.outcomes[index].wrapping_sub(earlier.outcomes[index]) as i64).max(0) as u64
        };
        let local = count(AttemptOutcome::Connect) + count(AttemptOutcome::Reset) + count(AttemptOutcome::Timeout);
        let failed = count(AttemptOutcome::Gateway) + local;
        let errors = failed + count(AttemptOutcome::ServerError);
        let latencies = self.latencies.wrapping_sub(earlier.latencies);
        OutlierSlot {
            attempts: errors + count(AttemptOutcome::Success) + count(AttemptOutcome::ClientError),
            failed,
            errors,
            timed: latencies & ((1 << COUNT_BITS) - 1),
            logs: (latencies >> COUNT_BITS) as f64 / LOG_UNIT,
            squares: self.squares.wrapping_sub(earlier.squares) as f64 / (LOG_UNIT * LOG_UNIT),
        }
    }
}

/// What happened to a backend within some time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct OutlierSlot {
    pub(super) attempts: u64,
    /// Gateway errors and local ones.
    pub(super) failed: u64,
    /// These and the other 5xx.
    pub(super) errors: u64,
    /// Latencies noted.
    pub(super) timed: u64,
    /// The sum of their logarithms (base 2, of microseconds), and of the squares of these.
    pub(super) logs: f64,
    pub(super) squares: f64,
}

impl OutlierSlot {
    pub(super) fn add(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.failed += other.failed;
        self.errors += other.errors;
        self.timed += other.timed;
        self.logs += other.logs;
        self.squares += other.squares;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    #[test]
    fn differences_stay_exact_when_the_words_wrap() {
        let traffic = Traffic::default();
        traffic.latencies.add(u64::MAX - 5);
        traffic.squares.add(u64::MAX - 5);
        let totals =
            || Totals { latencies: traffic.latencies.get(), squares: traffic.squares.get(), ..Totals::default() };
        let before = totals();
        for _ in 0..1_000 {
            traffic.observe(Duration::from_micros(1 << 20));
        }
        let slot = totals().since(&before);
        assert_eq!((slot.timed, slot.logs, slot.squares), (1_000, 20_000.0, 400_000.0));
    }

    proptest! {
        #[test]
        fn logarithms_are_close_and_never_fall(micros in 1u64..(1 << 26), more in 0u64..1_000) {
            let log = |micros| f64::from(log2(Duration::from_micros(micros))) / LOG_UNIT;
            prop_assert!((log(micros) - (micros as f64).log2()).abs() < 0.091);
            prop_assert!(log(micros + more) >= log(micros));
            prop_assert!(log(u64::MAX) == 26.0 && log(0) == 0.0);
        }
    }
}
