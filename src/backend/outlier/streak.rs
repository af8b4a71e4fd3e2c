//! Failures in succession, which all workers count together.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::AttemptOutcome;

/// Which succession of failures has become too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureStreak {
    /// Gateway errors.
    Gateway,
    /// Attempts that failed before a response.
    Local,
}

/// Test before store: in ordinary times no worker writes the line that all workers read.
#[inline]
pub(super) fn end(streak: &AtomicU32) {
    if streak.load(Relaxed) != 0 {
        streak.store(0, Relaxed);
    }
}

/// Whether this one is the one that makes it too long.
#[inline]
pub(super) fn extend(streak: &AtomicU32, threshold: u32) -> bool {
    streak.fetch_add(1, Relaxed).wrapping_add(1) == threshold
}

/// Failures in succession.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streaks {
    /// Gateway errors.
    pub gateway: u32,
    /// Attempts that failed before a response.
    pub local: u32,
    /// Of these, connections that ended.
    pub reset: u32,
    /// Of these, responses that did not begin in time.
    pub late: u32,
}

/// Attempts in succession that failed before a response, by how: three counts in one word, so that a success looks at one
/// word and ends all three, and no reader sees one without the others.
#[derive(Debug, Default)]
pub(super) struct Silences(AtomicU64);

/// Bits of each count; the lowest are those of all.
const SILENCE_BITS: u32 = 21;
const SILENCES_MAX: u64 = (1 << SILENCE_BITS) - 1;

impl Silences {
    #[inline]
    pub(super) fn end(&self) {
        if self.0.load(Relaxed) != 0 {
            self.0.store(0, Relaxed);
        }
    }

    /// How many there are with this one. Those above two millions are not counted.
    pub(super) fn extend(&self, outcome: AttemptOutcome) -> u32 {
        let one = match outcome {
            AttemptOutcome::Reset => 1 | 1 << SILENCE_BITS,
            AttemptOutcome::Timeout => 1 | 1 << (2 * SILENCE_BITS),
            _ => 1,
        };
        let counted =
            self.0.fetch_update(Relaxed, Relaxed, |word| (word & SILENCES_MAX < SILENCES_MAX).then(|| word + one));
        counted.map_or(u32::MAX, |before| (before & SILENCES_MAX) as u32 + 1)
    }

    pub(super) fn load(&self) -> Streaks {
        let word = self.0.load(Relaxed);
        let [local, reset, late] = [0, 1, 2].map(|count| (word >> (count * SILENCE_BITS) & SILENCES_MAX) as u32);
        Streaks { gateway: 0, local, reset, late }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However long a backend does not answer.
    #[test]
    fn no_count_runs_over_into_another() {
        let silences = Silences(AtomicU64::new(SILENCES_MAX - 1));
        let counted: Vec<_> = (0..3).map(|_| silences.extend(AttemptOutcome::Connect)).collect();
        assert_eq!(counted, [SILENCES_MAX as u32, u32::MAX, u32::MAX]);
        assert_eq!(silences.load(), Streaks { local: SILENCES_MAX as u32, ..Streaks::default() });
    }
}
