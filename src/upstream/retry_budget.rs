//! How many further attempts an upstream may get, for all its requests together.
//!
//! Retries are for the failure of few requests. When all fail, each retry is load on what cannot bear it, and a limit per
//! request multiplies the load by that limit. So every first attempt deposits a share of a further one, and a further one is
//! withdrawn before it is sent: backends see at most `1 + ratio` times the requests, and a floor so that upstreams with few
//! requests can retry at all. The same with a smaller share and no floor is the budget of hedging.
//!
//! Deposits are counted by each worker on a cache line of its own, a load and a store. Withdrawals are rare; they add up what
//! all have deposited and count on one window that all share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::config::{HedgeConfig, RetryBudgetConfig};
use crate::telemetry::metrics::Sharded;

use super::sliding_window::{TimeSlot, Window, WindowSpan};

/// What a budget allows. Handed in with each event: the counts outlive a reload that changes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BudgetSettings {
    /// Further attempts for each request: 0.2 is a fifth.
    pub ratio: f64,
    /// Further attempts a second that are allowed whatever was requested.
    pub floor_per_s: f64,
    /// How long a deposit, and a withdrawal, is remembered.
    pub ttl: WindowSpan,
}

impl BudgetSettings {
    /// The default for retries: a fifth, a floor of 10 a second, remembered for 10 s (finagle's `RetryBudget`).
    pub const RETRIES: Self = Self { ratio: 0.2, floor_per_s: 10.0, ttl: WindowSpan::new(Duration::from_secs(10)) };

    /// The default for hedging: a twentieth, which is what hedging after the 95th percentile takes while all is well. No
    /// floor: an upstream with few requests does not need it.
    pub const HEDGING: Self = Self { ratio: 0.05, floor_per_s: 0.0, ttl: WindowSpan::new(Duration::from_secs(10)) };

    /// Those of retries, as the configuration has them.
    pub fn retries(config: &RetryBudgetConfig) -> Self {
        let ratio = f64::from(config.percent) / 100.0;
        Self { ratio, floor_per_s: f64::from(config.per_second), ..Self::RETRIES }
    }

    /// Those of hedging, as the configuration has them.
    pub fn hedging(config: &HedgeConfig) -> Self {
        Self { ratio: f64::from(config.budget_percent) / 100.0, ..Self::HEDGING }
    }

    /// What may be withdrawn within the window for so many requests in it.
    fn allowance(&self, requests: u64) -> f64 {
        self.ratio * requests as f64 + self.floor_per_s * self.ttl.covers_ms() as f64 / 1_000.0
    }
}

/// The budget of an upstream, shared by all workers. Outlives reloads.
///
/// Promise: in any window of the ttl, withdrawals are at most `ratio` × deposits + `floor_per_s` × ttl. So over any time T from
/// the first request on, they are at most `ratio` × deposits + `floor_per_s` × (T + ttl): the slack is one ttl of the floor,
/// 102 by default, which is what lets a quiet upstream retry all that a dying backend had in flight.
#[derive(Debug)]
pub struct RetryBudget {
    deposited: Sharded<Window>,
    withdrawn: Window,
    /// The latest moment that a withdrawal was asked at. Workers' clocks differ by a tick; a late one must not overlook what
    /// was withdrawn after its own moment.
    latest_ms: AtomicU64,
}

impl RetryBudget {
    /// A budget with nothing deposited; the floor is there from the beginning. `shards` is the number of workers.
    pub fn new(shards: usize) -> Self {
        Self { deposited: Sharded::new(shards), withdrawn: Window::default(), latest_ms: AtomicU64::new(0) }
    }

    /// Counts the first attempt of a request. `now_ms`: milliseconds on a clock that all workers share. A load and a store on
    /// the worker's own line.
    pub fn deposit(&self, worker: usize, settings: &BudgetSettings, now_ms: u64) {
        self.deposited.of(worker).add(settings.ttl.slot(now_ms));
    }

    /// Whether a further attempt may be made; if so, it is counted. To be asked before it is sent, and when there is a backend
    /// to send it to.
    ///
    /// Counts first and looks then, so that of two workers at a time never both take what is there for one; both may be
    /// refused.
    pub fn withdraw(&self, settings: &BudgetSettings, now_ms: u64) -> bool {
        let slot = settings.ttl.slot(self.latest(now_ms));
        self.withdrawn.add_shared(slot);
        // SeqCst: around the change of a slot, two workers count in two words, and one of them has to see both.
        let withdrawn = self.withdrawn.sum(slot, settings.ttl, Ordering::SeqCst);
        let fits = withdrawn as f64 <= settings.allowance(self.requests(settings, slot));
        if !fits {
            self.withdrawn.take_back(slot);
        }
        fits
    }

    /// Further attempts that could be made now.
    pub fn available(&self, settings: &BudgetSettings, now_ms: u64) -> u64 {
        let slot = settings.ttl.slot(self.latest(now_ms));
        let withdrawn = self.withdrawn.sum(slot, settings.ttl, Ordering::Relaxed);
        (settings.allowance(self.requests(settings, slot)) as u64).saturating_sub(withdrawn)
    }

    fn latest(&self, now_ms: u64) -> u64 {
        self.latest_ms.fetch_max(now_ms, Ordering::Relaxed).max(now_ms)
    }

    fn requests(&self, settings: &BudgetSettings, slot: TimeSlot) -> u64 {
        self.deposited.iter().map(|window| window.sum(slot, settings.ttl, Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicU32;
    use std::thread;

    const PLAIN: BudgetSettings = BudgetSettings { floor_per_s: 0.0, ..BudgetSettings::RETRIES };

    #[test]
    fn a_fifth_of_the_requests_may_be_retried() {
        let budget = RetryBudget::new(2);
        for request in 0..50 {
            budget.deposit(request % 2, &PLAIN, 5_000);
        }
        assert_eq!(budget.available(&PLAIN, 5_000), 10);
        assert_eq!((0..100).filter(|_| budget.withdraw(&PLAIN, 5_000)).count(), 10);
        assert_eq!(budget.available(&PLAIN, 5_000), 0);
    }

    #[test]
    fn a_quiet_upstream_has_the_floor_again_and_again() {
        let budget = RetryBudget::new(1);
        let take = |now_ms| (0..1_000).filter(|_| budget.withdraw(&BudgetSettings::RETRIES, now_ms)).count();
        assert_eq!(take(0), 102);
        assert_eq!(take(9_000), 0);
        assert_eq!(take(10_240), 102);
    }

    #[test]
    fn deposits_expire() {
        let budget = RetryBudget::new(1);
        (0..100).for_each(|_| budget.deposit(0, &PLAIN, 1_000));
        assert_eq!(budget.available(&PLAIN, 1_000), 20);
        assert_eq!(budget.available(&PLAIN, 12_000), 0);
    }

    #[test]
    fn hedging_has_no_floor() {
        let budget = RetryBudget::new(1);
        assert!(!budget.withdraw(&BudgetSettings::HEDGING, 0));
        (0..20).for_each(|_| budget.deposit(0, &BudgetSettings::HEDGING, 0));
        assert!(budget.withdraw(&BudgetSettings::HEDGING, 0));
        assert!(!budget.withdraw(&BudgetSettings::HEDGING, 0));
    }

    #[test]
    fn a_worker_whose_clock_is_late_sees_what_was_withdrawn_since() {
        let budget = RetryBudget::new(1);
        (0..5).for_each(|_| budget.deposit(0, &PLAIN, 1_000));
        assert!(budget.withdraw(&PLAIN, 1_025));
        assert!(!budget.withdraw(&PLAIN, 1_023));
    }

    #[test]
    fn other_thresholds_after_a_reload_apply_to_what_was_counted_before() {
        let budget = RetryBudget::new(1);
        (0..100).for_each(|_| budget.deposit(0, &PLAIN, 0));
        assert_eq!((0..15).filter(|_| budget.withdraw(&PLAIN, 0)).count(), 15);
        assert_eq!(budget.available(&BudgetSettings { ratio: 0.5, ..PLAIN }, 0), 35);
        assert_eq!(budget.available(&BudgetSettings { ratio: 0.1, ..PLAIN }, 0), 0);
    }

    #[test]
    fn threads_together_take_no_more_than_there_is() {
        for round in 0..200 {
            let budget = RetryBudget::new(1);
            (0..500).for_each(|_| budget.deposit(0, &PLAIN, 0));
            let taken = AtomicU32::new(0);
            thread::scope(|scope| {
                for thread in 0..4 {
                    let (budget, taken) = (&budget, &taken);
                    scope.spawn(move || {
                        for ask in 0..60 {
                            // Across the end of a slot.
                            let now_ms = 1_000 + (ask + thread + round) % 48;
                            if budget.withdraw(&PLAIN, now_ms) {
                                taken.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    });
                }
            });
            let taken = taken.into_inner();
            assert!((97..=100).contains(&taken), "{taken} of 100");
        }
    }

    proptest! {
        /// Against the definition: a list of moments, summed up over the window at each withdrawal.
        #[test]
        fn retries_stay_within_the_budget_over_any_trace(
            ratio in 0.0..1.0_f64,
            floor_per_s in prop::sample::select(&[0.0, 0.5, 3.0, 10.0][..]),
            ttl_ms in 1_000_u64..20_000,
            start in 0_u64..50_000,
            trace in prop::collection::vec(
                (prop::sample::select(&[0_u64, 0, 0, 1, 40, 900, 7_000][..]), 0..5_usize),
                1..400,
            ),
        ) {
            let ttl = WindowSpan::new(Duration::from_millis(ttl_ms));
            let settings = BudgetSettings { ratio, floor_per_s, ttl };
            let budget = RetryBudget::new(3);
            let (mut requests, mut retries): (Vec<u64>, Vec<u64>) = Default::default();
            let mut now = start;
            for (pass, what) in trace {
                now += pass;
                if what < 3 {
                    budget.deposit(what, &settings, now);
                    requests.push(now);
                } else {
                    let length = slot_ms(ttl);
                    let since = (now - now % length).saturating_sub(ttl.covers_ms() - length);
                    let lately = |list: &[u64]| list.iter().filter(|&&at| at >= since).count() as f64;
                    let floor = floor_per_s * ttl.covers_ms() as f64 / 1_000.0;
                    let expected = lately(&retries) + 1.0 <= ratio * lately(&requests) + floor;
                    prop_assert_eq!(budget.withdraw(&settings, now), expected);
                    if expected {
                        retries.push(now);
                    }
                }
                let seconds = (now - start + ttl.covers_ms()) as f64 / 1_000.0;
                prop_assert!(retries.len() as f64 <= ratio * requests.len() as f64 + floor_per_s * seconds + 1e-6);
            }
        }
    }

    fn slot_ms(span: WindowSpan) -> u64 {
        (0..).map(|shift| 1 << shift).find(|&ms| span.slot(ms) != span.slot(0)).unwrap()
    }
}
