//! How many of something a backend may have at a time: requests in flight, connections.
//!
//! One count for all workers, since a limit for each of them would be either too low for one or too high for all. It is
//! raised by compare-and-exchange and never above the limit, not even for a moment: code that adds first and takes back when it
//! was too much lets others see, and be refused by, what was never granted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// What is in use, over all workers. The limit is handed in: the count outlives a reload that changes it.
#[derive(Debug, Default)]
pub struct Permits(AtomicU32);

impl Permits {
    /// No limit: counting one more is then a single addition.
    pub const UNLIMITED: u32 = u32::MAX;

    /// How many are in use. Above the limit only after that was lowered.
    pub fn in_use(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether there is room for another.
    pub fn has_room(&self, limit: u32) -> bool {
        self.in_use() < limit
    }

    /// Counts one more, unless there are `limit` already. For a holder that gives it back when it is dropped, with
    /// [`Permits::give_back`]; [`Permits::try_acquire`] makes one.
    ///
    /// `SeqCst`, and so is giving back: a request that waits in a queue says so first and tries then, and a permit is given back
    /// first and looks then for waiting requests. In one order of all four, one of the two sees the other.
    pub fn try_take(&self, limit: u32) -> bool {
        if limit == Self::UNLIMITED {
            self.0.fetch_add(1, Ordering::SeqCst);
            return true;
        }
        self.0.try_update(Ordering::SeqCst, Ordering::SeqCst, |used| (used < limit).then(|| used + 1)).is_ok()
    }

    /// Counts one less.
    pub fn give_back(&self) {
        let before = self.0.fetch_sub(1, Ordering::SeqCst);
        debug_assert!(before > 0, "given back more often than taken");
    }

    /// One more, for as long as the permit is held; `None` when there are `limit` already.
    pub fn try_acquire(self: &Arc<Self>, limit: u32) -> Option<Permit> {
        self.try_take(limit).then(|| Permit { permits: Arc::clone(self) })
    }
}

/// The right to one of them. Given back by dropping.
#[derive(Debug)]
pub struct Permit {
    permits: Arc<Permits>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::thread;

    #[test]
    fn there_are_as_many_as_the_limit_says() {
        let permits = Arc::new(Permits::default());
        let held: Vec<_> = (0..9).filter_map(|_| permits.try_acquire(4)).collect();
        assert_eq!((held.len(), permits.in_use(), permits.has_room(4)), (4, 4, false));
        drop(held);
        assert_eq!((permits.in_use(), permits.has_room(4)), (0, true));
        assert!(permits.try_acquire(0).is_none());
    }

    #[test]
    fn without_a_limit_they_are_counted_all_the_same() {
        let permits = Arc::new(Permits::default());
        let held: Vec<_> = (0..9).filter_map(|_| permits.try_acquire(Permits::UNLIMITED)).collect();
        assert_eq!(permits.in_use(), 9);
        // The limit that a reload brought: nobody is thrown out, nobody comes in.
        assert!(permits.try_acquire(9).is_none());
        drop(held);
        assert!(permits.try_acquire(1).is_some());
    }

    /// Everybody looks at the count all the time: it is above the limit at no moment, and none gets lost.
    #[test]
    fn threads_never_see_more_than_the_limit_and_use_all_of_it() {
        const LIMIT: u32 = 4;
        let permits = Arc::new(Permits::default());
        let (most, granted) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                let (permits, most, granted) = (&permits, &most, &granted);
                scope.spawn(move || {
                    for round in 0..20_000 {
                        let permit = permits.try_acquire(LIMIT);
                        most.fetch_max(permits.in_use(), Ordering::Relaxed);
                        granted.fetch_add(u32::from(permit.is_some()), Ordering::Relaxed);
                        if round % 16 == 0 {
                            thread::yield_now();
                        }
                    }
                });
            }
        });
        assert_eq!(most.into_inner(), LIMIT);
        assert!(granted.into_inner() > 20_000);
        assert_eq!(permits.in_use(), 0);
    }

    proptest! {
        #[test]
        fn the_count_is_that_of_the_permits_held(steps in prop::collection::vec((any::<bool>(), 0_u32..6), 0..200)) {
            let permits = Arc::new(Permits::default());
            let mut held = Vec::new();
            for (take, number) in steps {
                if take {
                    let room = (held.len() as u32) < number;
                    let permit = permits.try_acquire(number);
                    prop_assert_eq!(permit.is_some(), room);
                    held.extend(permit);
                } else if (number as usize) < held.len() {
                    held.swap_remove(number as usize);
                }
                prop_assert_eq!(permits.in_use() as usize, held.len());
            }
        }
    }
}
