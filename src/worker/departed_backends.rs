//! Which backends there are, and since when others are gone, so that what is under way there has the whole of `drain_limit`, however often they come and go.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::backend::BackendId;

/// Which backends the upstreams have, and which they have had and are gone.
///
/// Each reload, and each set of discovery, looks again after the limit for what is served by backends that are gone by then. Without
/// this it would cut what came to a backend that was back meanwhile and removed once more, before its time.
#[derive(Debug, Default)]
pub(super) struct Departed {
    known: HashSet<BackendId>,
    since: HashMap<BackendId, Instant>,
    looks: Looks,
}

/// When to look for what is still served by backends that are gone. Changes that follow each other fast share a look.
#[derive(Debug)]
struct Looks {
    begin: Instant,
    /// By the place of the look in a row of them, [`LOOKS_APART`] from each other: the last change that it is for.
    due: BTreeMap<u128, Instant>,
}

/// A look comes later than it is due by so much at most.
const LOOKS_APART: Duration = Duration::from_millis(250);

impl Default for Looks {
    fn default() -> Self {
        Self { begin: Instant::now(), due: BTreeMap::new() }
    }
}

impl Looks {
    fn at(&self, place: u128) -> Instant {
        let places = u32::try_from(place).unwrap_or(u32::MAX);
        self.begin + LOOKS_APART * places
    }
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

    /// Has what is gone since the change at `published` looked for once `limit` is over. Whether that is sooner than every other look.
    pub(super) fn look_after(&mut self, limit: Duration, published: Instant) -> bool {
        let due = published.saturating_duration_since(self.looks.begin) + limit;
        let place = due.as_nanos().div_ceil(LOOKS_APART.as_nanos());
        let sooner = self.looks.due.first_key_value().is_none_or(|(&first, _)| place < first);
        let last = self.looks.due.entry(place).or_insert(published);
        *last = published.max(*last);
        sooner
    }

    /// When the next look is due.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.looks.due.first_key_value().map(|(&place, _)| self.looks.at(place))
    }

    /// The last change that is to be looked at by `now`, and with it those before it; `None` where none is.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Instant> {
        let mut last = None;
        while self.next_look().is_some_and(|due| due <= now) {
            last = last.max(self.looks.due.pop_first().map(|(_, published)| published));
        }
        last
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
    fn changes_that_follow_each_other_fast_share_a_look_that_is_never_early() {
        let mut departed = Departed::default();
        let (limit, begin) = (Duration::from_secs(60), departed.looks.begin);
        for ms in 0..10_000 {
            let sooner = departed.look_after(limit, begin + Duration::from_millis(ms));
            assert_eq!(sooner, ms == 0);
        }
        assert_eq!(departed.looks.due.len(), 41);
        // A limit that a reload has made shorter.
        assert!(departed.look_after(Duration::from_secs(1), begin + Duration::from_secs(10)));
        assert_eq!(departed.take_due(begin + Duration::from_secs(10)), None);
        assert_eq!(departed.take_due(begin + Duration::from_secs(11)), Some(begin + Duration::from_secs(10)));
        let (mut looks, mut published) = (0, begin);
        while let Some(due) = departed.next_look() {
            looks += 1;
            assert_eq!(departed.take_due(due - Duration::from_millis(1)), None);
            let last = departed.take_due(due).unwrap();
            let late = due - (last + limit);
            assert!(last >= published && late < LOOKS_APART, "{late:?}");
            published = last;
        }
        assert_eq!(looks, 41);
        assert_eq!(published, begin + Duration::from_millis(9_999));
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
