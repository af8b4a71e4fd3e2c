//! Which backends there are, and since when others are gone, so that what is under way there has the whole of `drain_limit`, however often they come and go.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use crate::backend::BackendId;

/// Which backends the upstreams have, and which they have had and are gone.
///
/// Each reload, and each set of discovery, looks again after the limit for what is served by backends that are gone by then. Without
/// this it would cut what came to a backend that was back meanwhile and removed once more, before its time.
#[derive(Debug, Default)]
pub(super) struct Departed {
    known: HashSet<BackendId>,
    since: HashMap<BackendId, Instant>,
}

impl Departed {
    /// A snapshot with the backends `known` is published.
    pub(super) fn publish(&mut self, known: HashSet<BackendId>, now: Instant) {
        self.since.retain(|id, _| !known.contains(id));
        self.since.extend(self.known.difference(&known).map(|&id| (id, now)));
        self.known = known;
    }

    /// Of the backends of an upstream, `came` are new and `gone` are gone.
    pub(super) fn turn_over(&mut self, came: &[BackendId], gone: &[BackendId], now: Instant) {
        for id in came {
            self.since.remove(id);
            self.known.insert(*id);
        }
        for id in gone {
            // One that a snapshot was published without is gone since then.
            if self.known.remove(id) {
                self.since.insert(*id, now);
            }
        }
    }

    /// Whether an upstream has it.
    pub(super) fn is_known(&self, id: BackendId) -> bool {
        self.known.contains(&id)
    }

    /// Whether `id` has been gone since the change at `published`, at least. One that was never published counts as gone all the time.
    pub(super) fn was_gone(&self, id: BackendId, published: Instant) -> bool {
        !self.known.contains(&id) && self.since.get(&id).is_none_or(|&since| since <= published)
    }

    /// What was gone at `published` needs no more looking at: it has been cut, or nothing was there.
    pub(super) fn forget(&mut self, published: Instant) {
        self.since.retain(|_, &mut since| since > published);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_time_begins_anew_with_each_going() {
        let id = |slot| BackendId { slot, epoch: 0 };
        let begin = Instant::now();
        let at = |second| begin + Duration::from_secs(second);
        let mut departed = Departed::default();
        let mut publish = |slots: &[u32], second| {
            departed.publish(slots.iter().map(|&slot| id(slot)).collect(), at(second));
            [0, 1, 2, 3].map(|published| departed.was_gone(id(1), at(published)))
        };
        assert_eq!(publish(&[0, 1], 0), [false; 4]);
        assert_eq!(publish(&[0], 1), [false, true, true, true]);
        // Another reload takes nothing from the time.
        assert_eq!(publish(&[0, 2], 2), [false, true, true, true]);
        assert_eq!(publish(&[0, 1], 2), [false; 4]);
        assert_eq!(publish(&[0], 3), [false, false, false, true]);
    }

    #[test]
    fn what_is_gone_for_good_is_forgotten() {
        let begin = Instant::now();
        let mut departed = Departed::default();
        for slot in 0..100 {
            let now = begin + Duration::from_secs(u64::from(slot));
            departed.publish(HashSet::from([BackendId { slot, epoch: 0 }]), now);
            departed.forget(now);
        }
        assert!(departed.since.is_empty());
        assert!(departed.was_gone(BackendId { slot: 7, epoch: 0 }, begin));
    }
}
