//! What active checks have made of a backend.
//!
//! A pure machine, [`HealthAccount`], counts checks in a row and turns them into a [`Verdict`]; the thresholds come with each
//! check, so that a reload with others keeps what is known. [`Health`] keeps one where the request path and the control
//! plane find it: the verdict is an atomic, everything else is behind a lock that the control plane alone takes.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::telemetry::metrics::Counter;

/// What is thought of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// It may be used. So it is too where nothing is checked.
    Healthy,
    /// It may not.
    Unhealthy,
    /// It has joined others and was not checked yet: it may not be used before.
    Unknown,
}

impl Verdict {
    /// As logs and the admin address say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Unknown => "unknown",
        }
    }

    fn of(passed: bool) -> Self {
        if passed { Self::Healthy } else { Self::Unhealthy }
    }

    fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Healthy,
            1 => Self::Unhealthy,
            _ => Self::Unknown,
        }
    }
}

/// How many checks in a row turn a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Failed checks in a row until a backend is unhealthy. At least 1.
    pub unhealthy_after: u32,
    /// Passed checks in a row until a backend is healthy. At least 1.
    pub healthy_after: u32,
}

/// Checks in a row with the same result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckStreak {
    /// Whether they passed.
    pub passed: bool,
    /// How many; 0 before the first.
    pub length: u32,
}

/// A verdict that has become another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictChange {
    /// What it was.
    pub from: Verdict,
    /// What it is.
    pub to: Verdict,
    /// The checks that turned it.
    pub streak: CheckStreak,
}

/// The verdict and what it rests on. Pure: no clock, no I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthAccount {
    verdict: Verdict,
    streak: CheckStreak,
    /// The next check decides alone: there is nothing yet that it could contradict.
    first_decides: bool,
}

impl HealthAccount {
    /// Begins with a verdict. `first_decides` lets the first check alone confirm or turn it.
    pub fn new(verdict: Verdict, first_decides: bool) -> Self {
        Self { verdict, streak: CheckStreak::default(), first_decides: first_decides || verdict == Verdict::Unknown }
    }

    /// What is thought now.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The last checks in a row.
    pub fn streak(&self) -> CheckStreak {
        self.streak
    }

    /// A check has passed or failed. Says so if that turned the verdict.
    pub fn record(&mut self, passed: bool, thresholds: Thresholds) -> Option<VerdictChange> {
        let length = if self.streak.passed == passed { self.streak.length.saturating_add(1) } else { 1 };
        self.streak = CheckStreak { passed, length };
        let needed = match passed {
            _ if self.first_decides => 1,
            true => thresholds.healthy_after,
            false => thresholds.unhealthy_after,
        };
        self.first_decides = false;
        let (from, to) = (self.verdict, Verdict::of(passed));
        if from == to || length < needed {
            return None;
        }
        self.verdict = to;
        Some(VerdictChange { from, to, streak: self.streak })
    }

    /// Another kind of check begins: what the last ones said no longer counts, but for the verdict.
    pub fn restart(&mut self) {
        self.streak = CheckStreak::default();
    }

    /// Whether the last checks contradict the verdict, or there is none yet: the next one should come soon.
    pub fn in_doubt(&self) -> bool {
        match self.verdict {
            Verdict::Unknown => true,
            verdict => self.streak.length > 0 && Verdict::of(self.streak.passed) != verdict,
        }
    }
}

/// How the last check of a backend went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastCheck {
    /// When it ended.
    pub at: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// Why it failed; `None` where it passed.
    pub failure: Option<String>,
}

/// What is known of a backend's health. Outlives rosters and reloads. Changed by the control plane alone.
#[derive(Debug)]
pub struct Health {
    verdict: AtomicU8,
    unreachable: AtomicBool,
    /// Checks that passed.
    pub passed: Counter,
    /// Checks that failed.
    pub failed: Counter,
    /// Verdicts that became another.
    pub changes: Counter,
    behind: Mutex<Behind>,
}

#[derive(Debug)]
struct Behind {
    account: HealthAccount,
    last: Option<LastCheck>,
}

impl Default for Health {
    /// Nothing is checked and nothing speaks against it.
    fn default() -> Self {
        Self::new(HealthAccount::new(Verdict::Healthy, false))
    }
}

impl Health {
    /// Begins with what `account` says.
    pub fn new(account: HealthAccount) -> Self {
        Self {
            verdict: AtomicU8::new(account.verdict as u8),
            unreachable: AtomicBool::new(false),
            passed: Counter::default(),
            failed: Counter::default(),
            changes: Counter::default(),
            behind: Mutex::new(Behind { account, last: None }),
        }
    }

    /// What is thought now. One load.
    pub fn verdict(&self) -> Verdict {
        Verdict::from_u8(self.verdict.load(Relaxed))
    }

    /// Whether the last check could not even connect to where requests go, which panic does not call into doubt.
    pub fn is_unreachable(&self) -> bool {
        self.unreachable.load(Relaxed)
    }

    /// Notes whether a check could connect. Says whether that is news of a backend that counts as unhealthy: the roster is to
    /// be built anew then.
    pub fn note_unreachable(&self, unreachable: bool) -> bool {
        self.unreachable.swap(unreachable, Relaxed) != unreachable && self.verdict() == Verdict::Unhealthy
    }

    /// The account and the last check, as they stand. Control plane only.
    pub fn look(&self) -> (HealthAccount, Option<LastCheck>) {
        let behind = self.lock();
        (behind.account, behind.last.clone())
    }

    /// Notes a check. Says so if it turned the verdict; the roster is to be built anew then.
    pub fn record(&self, check: LastCheck, thresholds: Thresholds) -> Option<VerdictChange> {
        let passed = check.failure.is_none();
        let counter = if passed { &self.passed } else { &self.failed };
        counter.add(1);
        let mut behind = self.lock();
        let change = behind.account.record(passed, thresholds);
        behind.last = Some(check);
        if let Some(change) = change {
            self.changes.add(1);
            self.verdict.store(change.to as u8, Relaxed);
        }
        change
    }

    /// The settings of the check have changed: streaks begin anew, the verdict stays.
    pub fn restart(&self) {
        self.lock().account.restart();
    }

    /// What was known is out of date: the next check decides alone, and until then the backend may not be used.
    pub fn await_check(&self) {
        let account = HealthAccount::new(Verdict::Unknown, true);
        self.lock().account = account;
        self.verdict.store(account.verdict as u8, Relaxed);
    }

    /// Nothing is checked any more: the backend counts as healthy.
    pub fn forget(&self) {
        let account = HealthAccount::new(Verdict::Healthy, false);
        *self.lock() = Behind { account, last: None };
        self.unreachable.store(false, Relaxed);
        self.verdict.store(account.verdict as u8, Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Behind> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const THREE_TWO: Thresholds = Thresholds { unhealthy_after: 3, healthy_after: 2 };

    /// Runs checks, `+` for one that passed and `-` for one that failed, and tells the verdict after each: `H`, `U` or `?`.
    fn run(mut account: HealthAccount, checks: &str, thresholds: Thresholds) -> String {
        let letter = |verdict| match verdict {
            Verdict::Healthy => 'H',
            Verdict::Unhealthy => 'U',
            Verdict::Unknown => '?',
        };
        let after = |check| {
            account.record(check == '+', thresholds);
            letter(account.verdict())
        };
        checks.chars().map(after).collect()
    }

    #[test]
    fn so_many_in_a_row_turn_the_verdict() {
        use Verdict::{Healthy, Unhealthy, Unknown};
        for (begin, first_decides, checks, verdicts) in [
            (Healthy, false, "---+-++-", "HHUUUUHH"),
            (Healthy, false, "--+--+--", "HHHHHHHH"),
            (Unhealthy, false, "+-+-++", "UUUUUH"),
            (Healthy, true, "-+-++", "UUUUH"),
            (Healthy, true, "+--+---", "HHHHHHU"),
            (Unhealthy, true, "+-", "HH"),
            (Unknown, false, "+--", "HHH"),
            (Unknown, false, "-++", "UUH"),
        ] {
            let account = HealthAccount::new(begin, first_decides);
            assert_eq!(run(account, checks, THREE_TWO), verdicts, "{begin:?} {first_decides} {checks}");
        }
        assert_eq!(
            run(HealthAccount::new(Healthy, false), "-+-", Thresholds { unhealthy_after: 1, healthy_after: 1 }),
            "UHU"
        );
    }

    #[test]
    fn a_change_tells_what_it_rests_on() {
        let mut account = HealthAccount::new(Verdict::Healthy, false);
        assert_eq!(account.record(false, THREE_TWO), None);
        assert_eq!(account.record(false, THREE_TWO), None);
        let streak = CheckStreak { passed: false, length: 3 };
        let change = VerdictChange { from: Verdict::Healthy, to: Verdict::Unhealthy, streak };
        assert_eq!(account.record(false, THREE_TWO), Some(change));
        assert_eq!(account.record(false, THREE_TWO), None, "once");
        assert_eq!(account.streak().length, 4);
    }

    #[test]
    fn other_thresholds_apply_to_what_is_counted_already() {
        let mut account = HealthAccount::new(Verdict::Healthy, false);
        account.record(false, THREE_TWO);
        let change = account.record(false, Thresholds { unhealthy_after: 2, ..THREE_TWO });
        assert_eq!(change.map(|change| change.to), Some(Verdict::Unhealthy));
    }

    #[test]
    fn a_restart_keeps_the_verdict_and_forgets_the_streak() {
        let mut account = HealthAccount::new(Verdict::Healthy, false);
        (0..2).for_each(|_| assert_eq!(account.record(false, THREE_TWO), None));
        assert!(account.in_doubt());
        account.restart();
        assert!(!account.in_doubt());
        (0..2).for_each(|_| assert_eq!(account.record(false, THREE_TWO), None));
        assert!(account.record(false, THREE_TWO).is_some());
        account.restart();
        assert_eq!(account.verdict(), Verdict::Unhealthy);
    }

    #[test]
    fn what_is_shared_says_the_same_as_the_machine() {
        let check = |failure: Option<&str>| LastCheck {
            at: SystemTime::UNIX_EPOCH,
            took: Duration::from_millis(2),
            failure: failure.map(str::to_owned),
        };
        let health = Health::new(HealthAccount::new(Verdict::Unknown, true));
        assert_eq!(health.verdict(), Verdict::Unknown);
        assert!(health.record(check(Some("refused")), THREE_TWO).is_some());
        assert_eq!(health.verdict(), Verdict::Unhealthy);
        assert_eq!(health.look().1, Some(check(Some("refused"))));
        health.record(check(None), THREE_TWO);
        health.record(check(None), THREE_TWO);
        assert_eq!((health.verdict(), health.passed.get(), health.failed.get()), (Verdict::Healthy, 2, 1));
        assert_eq!(health.changes.get(), 2);
        health.record(check(Some("refused")), THREE_TWO);
        health.forget();
        assert_eq!(health.look(), (HealthAccount::new(Verdict::Healthy, false), None));
    }

    proptest! {
        /// The verdict turns exactly when the last so many checks contradict it, whatever came before.
        #[test]
        fn the_verdict_follows_the_last_checks(
            checks in prop::collection::vec(any::<bool>(), 0..60),
            unhealthy_after in 1u32..6,
            healthy_after in 1u32..6,
            begins_healthy: bool,
        ) {
            let thresholds = Thresholds { unhealthy_after, healthy_after };
            let begin = Verdict::of(begins_healthy);
            let mut account = HealthAccount::new(begin, false);
            let mut expected = begin;
            for (index, &passed) in checks.iter().enumerate() {
                let before = account.verdict();
                let change = account.record(passed, thresholds);
                let row = checks[..=index].iter().rev().take_while(|&&it| it == passed).count();
                let needed = if passed { healthy_after } else { unhealthy_after };
                if row >= needed as usize {
                    expected = Verdict::of(passed);
                }
                prop_assert_eq!(account.verdict(), expected);
                prop_assert_eq!(account.streak(), CheckStreak { passed, length: row as u32 });
                prop_assert_eq!(change.map(|it| (it.from, it.to)), (before != expected).then_some((before, expected)));
                prop_assert_eq!(account.in_doubt(), Verdict::of(passed) != expected);
            }
        }

        /// However it began, after the first check there is a verdict, and where that decides it is the check's own.
        #[test]
        fn the_first_check_settles_what_is_unknown(first: bool, begin in 0u8..3) {
            let mut account = HealthAccount::new(Verdict::from_u8(begin), true);
            account.record(first, THREE_TWO);
            prop_assert_eq!(account.verdict(), Verdict::of(first));
        }
    }
}
