//! Whether instances whose heartbeats do not come are believed to be gone.
//!
//! One that dies sends none, and that is what heartbeats are for. But when most of them are silent at once, it is more likely that the network
//! between them and this process has a bad day, or that this process could not listen: then they are kept, and health checks and outlier detection
//! of upstreams tell which of them are really gone. A pure machine: time is passed in.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::instance::InstanceKey;

/// Fewer are never kept: that two of three instances die is nothing odd.
const FEWEST: usize = 3;

/// How far silence is believed.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuardRules {
    /// How many of a hundred may expire within `hold`.
    pub(super) expired_percent: u32,
    /// How long those that are kept are.
    pub(super) hold: Duration,
}

/// What is remembered of instances that were silent.
#[derive(Debug, Default)]
pub(super) struct ExpiryGuard {
    /// Those that are kept, and since when.
    kept: HashMap<InstanceKey, Instant>,
    /// Those that were believed to be gone, and when. Those of the last [`GuardRules::hold`] count.
    expired: HashMap<InstanceKey, Instant>,
}

impl ExpiryGuard {
    /// How many are kept although they are silent.
    pub(super) fn kept(&self) -> usize {
        self.kept.len()
    }

    /// An instance was heard of, or has left in order.
    pub(super) fn heard_of(&mut self, key: &InstanceKey) {
        self.kept.remove(key);
        self.expired.remove(key);
    }

    /// Which of the silent instances are gone. `others` is how many send heartbeats and are not silent.
    pub(super) fn judge(
        &mut self,
        silent: &[InstanceKey],
        others: usize,
        now: Instant,
        rules: GuardRules,
    ) -> Vec<InstanceKey> {
        let GuardRules { expired_percent, hold } = rules;
        self.expired.retain(|_, at| now.saturating_duration_since(*at) < hold);
        let known: HashSet<_> = silent.iter().collect();
        self.kept.retain(|key, _| known.contains(key));
        if silent.is_empty() {
            return Vec::new();
        }
        // Those whose time is over are gone, whatever else is.
        let (over, waiting): (Vec<_>, Vec<_>) = silent
            .iter()
            .cloned()
            .partition(|key| self.kept.get(key).is_some_and(|since| now.saturating_duration_since(*since) >= hold));
        let missing = waiting.len() + self.expired.len();
        let all = others + missing;
        let is_too_much = missing >= FEWEST && missing * 100 > all * expired_percent as usize;
        let mut gone = over;
        if is_too_much && expired_percent < 100 {
            for key in waiting {
                self.kept.entry(key).or_insert(now);
            }
        } else {
            self.expired.extend(waiting.iter().map(|key| (key.clone(), now)));
            gone.extend(waiting);
        }
        for key in &gone {
            self.kept.remove(key);
        }
        gone
    }

    /// When it should be looked again at those that are kept.
    pub(super) fn next_review(&self, rules: GuardRules) -> Option<Instant> {
        self.kept.values().min().map(|since| *since + rules.hold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: GuardRules = GuardRules { expired_percent: 50, hold: Duration::from_secs(300) };

    fn keys(numbers: std::ops::Range<usize>) -> Vec<InstanceKey> {
        numbers.map(|number| InstanceKey::of_consul(&format!("i{number}"))).collect()
    }

    fn second(now: Instant, seconds: u64) -> Instant {
        now + Duration::from_secs(seconds)
    }

    #[test]
    fn few_that_are_silent_are_gone_and_most_of_them_at_once_are_kept() {
        let now = Instant::now();
        // How many are silent of how many, and how many of them are gone.
        for (silent, all, gone) in
            [(1, 1, 1), (2, 2, 2), (2, 3, 2), (3, 3, 0), (3, 6, 3), (4, 6, 0), (10, 100, 10), (51, 100, 0), (0, 5, 0)]
        {
            let mut guard = ExpiryGuard::default();
            let judged = guard.judge(&keys(0..silent), all - silent, now, RULES);
            assert_eq!((judged.len(), guard.kept()), (gone, silent - gone), "{silent} of {all}");
        }
    }

    #[test]
    fn those_that_fall_silent_one_after_the_other_count_together() {
        let (mut guard, now) = (ExpiryGuard::default(), Instant::now());
        let mut gone = Vec::new();
        for number in 0..10 {
            let silent: Vec<_> = keys(0..number + 1).into_iter().filter(|key| !gone.contains(key)).collect();
            let others = 10 - number - 1;
            gone.extend(guard.judge(&silent, others, second(now, number as u64), RULES));
        }
        assert_eq!((gone.len(), guard.kept()), (5, 5));
        // After a while it is a new day.
        assert_eq!(guard.judge(&keys(5..10), 0, second(now, 299), RULES), []);
        let mut judged = guard.judge(&keys(5..10), 0, second(now, 309), RULES);
        judged.sort();
        assert_eq!((judged, guard.kept()), (keys(5..10), 0));
    }

    #[test]
    fn those_that_are_heard_of_again_are_kept_no_more() {
        let (mut guard, now) = (ExpiryGuard::default(), Instant::now());
        assert_eq!(guard.judge(&keys(0..6), 0, now, RULES), []);
        keys(0..5).iter().for_each(|key| guard.heard_of(key));
        assert_eq!(guard.kept(), 1);
        assert_eq!(guard.judge(&keys(5..6), 5, second(now, 1), RULES), keys(5..6));
        assert_eq!(guard.next_review(RULES), None);
    }

    #[test]
    fn a_hundred_percent_keeps_none() {
        let rules = GuardRules { expired_percent: 100, ..RULES };
        assert_eq!(ExpiryGuard::default().judge(&keys(0..50), 0, Instant::now(), rules).len(), 50);
    }
}
