//! Lines in the log that others could have written without end.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Says when something that happens often is to be told, and how often it has happened since it was told.
#[derive(Debug)]
pub struct LogThrottle {
    epoch: Instant,
    /// Lines in a period.
    most: u32,
    /// Those that are left in this one.
    left: AtomicU32,
    /// When the next one begins, in milliseconds since `epoch`.
    next_ms: AtomicU64,
    untold: AtomicU64,
}

/// A period, which begins with a line.
const PERIOD: Duration = Duration::from_secs(10);

impl LogThrottle {
    /// To be told `most` times in ten seconds.
    pub fn new(most: u32) -> Self {
        Self {
            epoch: Instant::now(),
            most,
            left: AtomicU32::new(0),
            next_ms: AtomicU64::new(0),
            untold: AtomicU64::new(0),
        }
    }

    /// It has happened. How often since it was told last, if that is to be told now.
    pub fn happened(&self) -> Option<u64> {
        self.happened_at(self.epoch.elapsed())
    }

    fn happened_at(&self, now: Duration) -> Option<u64> {
        self.untold.fetch_add(1, Relaxed);
        let (now, due) = (now.as_millis() as u64, self.next_ms.load(Relaxed));
        let next = now + PERIOD.as_millis() as u64;
        let begins = now >= due && self.next_ms.compare_exchange(due, next, Relaxed, Relaxed).is_ok();
        if begins {
            self.left.store(self.most, Relaxed);
        }
        let told = self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        told.then(|| self.untold.swap(0, Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn what_happens_often_is_told_now_and_then_with_its_number() {
        let once = LogThrottle::new(1);
        for (at, expected) in
            [(0, Some(1)), (1, None), (9_999, None), (10_000, Some(3)), (19_999, None), (50_000, Some(2))]
        {
            assert_eq!(once.happened_at(MS(at)), expected, "at {at}");
        }
        let thrice = LogThrottle::new(3);
        let told: Vec<_> = (0..6).map(|at| thrice.happened_at(MS(at))).collect();
        assert_eq!(told, [Some(1), Some(1), Some(1), None, None, None]);
        assert_eq!(thrice.happened_at(MS(10_000)), Some(4));
        assert_eq!(thrice.happened_at(MS(10_001)), Some(1));
    }
}
