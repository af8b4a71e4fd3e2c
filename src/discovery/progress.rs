//! How it stands with a source: a pure machine, which is told what each question came to.
//!
//! This is where it is decided whether a set that was found is served with. What is new in it always is. What is missing in it is not where
//! so much is missing at once that the registry is more likely to have a bad day than the backends: those are held back until the source
//! has said so for a while, or until checks and traffic say of each that it is gone.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::DiscoveryError;
use crate::backend::{BackendSet, Instance};
use crate::config::Address;
use crate::upstream::sources::SourceCondition;

mod flaps;

use flaps::Flaps;

/// A source that always has something to say is asked so often, or it would be all that is done.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(1);

/// How long after the first failure it is asked again; twice that after the second, and so on.
const PAUSE_FIRST: Duration = Duration::from_millis(500);

/// No pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How far a source is believed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// How many of a hundred backends may vanish within `hold`; 100 is any number.
    pub(super) removed_percent: u32,
    /// How long those that are held back are, if nothing else is known of them.
    pub(super) hold: Duration,
    /// The longest pause after a failure.
    pub(super) pause_max: Duration,
}

impl Rules {
    /// For a source whose every word counts.
    pub(super) fn believing() -> Self {
        Self { removed_percent: 100, hold: Duration::ZERO, pause_max: PAUSE_MAX }
    }
}

/// What is known of a source.
#[derive(Debug)]
pub(super) struct SourceProgress {
    rules: Rules,
    /// The last good set, with what is held back.
    set: Option<BackendSet>,
    condition: SourceCondition,
    /// What the source said last, where backends are held back or not taken yet.
    said: Option<BackendSet>,
    /// How long the last answer has all held back that is missing in it; `None`: the rules say so.
    held_for: Option<Duration>,
    /// The backends that are held back, and since when the source has not had them.
    held: HashMap<Address, Instant>,
    /// Backends that have vanished and were not held back, and when. Those of the last [`Rules::hold`] count.
    vanished: HashMap<Address, Instant>,
    /// Backends that come and go.
    flaps: Flaps,
    /// How many of these are not taken yet.
    damped: usize,
    /// Failures in a row.
    failures: u32,
    /// When the first of these was.
    failing_since: Option<Instant>,
}

/// What an answer comes to.
#[derive(Debug, PartialEq)]
pub(super) struct ProgressStep {
    /// There is something to report: another set, or another condition.
    pub(super) news: bool,
    /// How it stands has changed: what is to be told, in words.
    pub(super) told: Option<String>,
    /// How long to wait before it is asked again.
    pub(super) pause: Duration,
}

/// Says whether a backend is held for failed by checks or traffic.
pub(super) type IsFailing<'a> = &'a dyn Fn(&Address) -> bool;

impl SourceProgress {
    /// Of a source that is asked for the first time. `left` is what an earlier one has left: it counts until the first answer, and backends
    /// that are missing then are missing.
    pub(super) fn new(rules: Rules, left: Option<BackendSet>) -> Self {
        Self {
            rules,
            set: left,
            condition: SourceCondition::Awaited,
            said: None,
            held_for: None,
            held: HashMap::new(),
            vanished: HashMap::new(),
            flaps: Flaps::default(),
            damped: 0,
            failures: 0,
            failing_since: None,
        }
    }

    /// Forgets of what was left what is not believed now.
    pub(super) fn keep_left(&mut self, keep: impl FnMut(&Instance) -> bool) {
        self.set = self.set.as_ref().map(|left| left.filtered(keep));
    }

    pub(super) fn set(&self) -> Option<&BackendSet> {
        self.set.as_ref()
    }

    pub(super) fn condition(&self) -> &SourceCondition {
        &self.condition
    }

    /// Backends that are named and not taken yet, for they come and go.
    pub(super) fn damped(&self) -> usize {
        self.damped
    }

    /// Whether backends are held back, or not taken yet, so that [`SourceProgress::review`] is to be called now and then.
    pub(super) fn is_to_be_reviewed(&self) -> bool {
        let answers = !matches!(self.condition, SourceCondition::Failing { .. });
        answers && self.said.is_some()
    }

    /// The answer that is taken in next has all held back for so long that is missing in it; with `None`, the rules say so.
    pub(super) fn hold_for(&mut self, held_for: Option<Duration>) {
        self.held_for = held_for;
    }

    /// Takes in an answer that came at `now`; `random` is any number.
    pub(super) fn take(
        &mut self,
        answer: Result<BackendSet, DiscoveryError>,
        now: Instant,
        random: u64,
        is_failing: IsFailing<'_>,
    ) -> ProgressStep {
        match answer {
            Ok(set) => self.found(set, now, is_failing),
            Err(error) => self.failed(&error, now, random),
        }
    }

    /// Looks again at what is held back or not taken yet.
    pub(super) fn review(&mut self, now: Instant, is_failing: IsFailing<'_>) -> Option<ProgressStep> {
        let said = self.said.clone().filter(|_| self.is_to_be_reviewed())?;
        let step = self.found(said, now, is_failing);
        (step.news || step.told.is_some()).then_some(step)
    }

    fn found(&mut self, said: BackendSet, now: Instant, is_failing: IsFailing<'_>) -> ProgressStep {
        if let Some(since) = self.failing_since {
            // A time in which it said nothing confirms nothing.
            let silent = now.saturating_duration_since(since);
            self.held.values_mut().chain(self.vanished.values_mut()).for_each(|at| *at += silent);
        }
        let damped = match self.rules.removed_percent {
            // It is believed at once.
            100.. => HashSet::new(),
            _ => self.flaps.take(&said, now, self.set.as_ref()),
        };
        let taken = match damped.is_empty() {
            true => said.clone(),
            false => said.filtered(|it| !damped.contains(&it.address)),
        };
        let set = self.hold_back(&taken, now, is_failing);
        let condition = match self.held.len() {
            0 => SourceCondition::Current,
            backends => SourceCondition::Holding { backends },
        };
        let (_, hold) = self.hold();
        let count = match self.held.len() {
            0 => counted(said.len()),
            held => {
                let over = if hold == Duration::MAX { String::new() } else { format!(" or {hold:?} are over") };
                format!("{}, and {held} that are no longer named are kept until they fail{over}", counted(said.len()))
            }
        };
        let changed = self.condition.as_str() != condition.as_str();
        let told = changed.then(|| match self.failing_since {
            Some(since) => {
                let (failures, took) = (self.failures, now.saturating_duration_since(since).as_secs_f64());
                format!("{count}, after {failures} failures in {took:.1} s")
            }
            None => count,
        });
        let begins_to_damp = self.damped == 0 && !damped.is_empty();
        let told = match begins_to_damp {
            true => {
                let what = format!("{} that came and went is not taken before it has stayed", counted(damped.len()));
                Some(told.map_or(what.clone(), |told| format!("{told}; {what}")))
            }
            false => told,
        };
        let news = self.condition != condition || self.set.as_ref() != Some(&set) || self.damped != damped.len();
        self.damped = damped.len();
        self.said = (!self.held.is_empty() || !damped.is_empty()).then_some(said);
        (self.set, self.condition, self.failures, self.failing_since) = (Some(set), condition, 0, None);
        ProgressStep { news, told, pause: PAUSE_MIN }
    }

    /// How many of a hundred backends may vanish, and how long others are held back.
    fn hold(&self) -> (u32, Duration) {
        self.held_for.map_or((self.rules.removed_percent, self.rules.hold), |hold| (0, hold))
    }

    /// What is served with when the source says `said`: that, and of those that were there what is held back.
    fn hold_back(&mut self, said: &BackendSet, now: Instant, is_failing: IsFailing<'_>) -> BackendSet {
        let before = self.set.clone().unwrap_or_default();
        let (removed_percent, hold) = self.hold();
        if removed_percent >= 100 {
            self.held.clear();
            return said.clone();
        }
        let named: HashSet<_> = said.iter().map(|it| &it.address).collect();
        self.vanished.retain(|address, &mut at| now.saturating_duration_since(at) < hold && !named.contains(address));
        self.held.retain(|address, _| !named.contains(address));
        let mut missing = HashMap::new();
        let mut gone_for_sure = 0;
        for instance in before.iter().filter(|it| !named.contains(&it.address)) {
            let since = *self.held.get(&instance.address).unwrap_or(&now);
            let takes_nothing = instance.weight == 0;
            if takes_nothing || is_failing(&instance.address) || now.saturating_duration_since(since) >= hold {
                gone_for_sure += 1;
            } else {
                missing.insert(instance.address.clone(), since);
            }
        }
        // Those that vanish one after the other count together, or a registry that forgets them one by one would be believed.
        let all = before.len() - gone_for_sure + self.vanished.len();
        let may_vanish = all * removed_percent as usize / 100;
        let is_too_much = missing.len() + self.vanished.len() > may_vanish;
        if !is_too_much {
            // Those that are held back already stay so: a registry that comes back names its services one after the other.
            let (held, gone): (HashMap<_, _>, _) =
                missing.into_iter().partition(|(address, _)| self.held.contains_key(address));
            self.vanished.extend(gone.into_keys().map(|address| (address, now)));
            missing = held;
        }
        if missing.is_empty() {
            self.held.clear();
            return said.clone();
        }
        let kept = before.filtered(|it| missing.contains_key(&it.address));
        self.held = missing;
        BackendSet::merged([said, &kept])
    }

    fn failed(&mut self, error: &DiscoveryError, now: Instant, random: u64) -> ProgressStep {
        let pause = pause(self.failures, random).min(self.rules.pause_max);
        self.failures = self.failures.saturating_add(1);
        self.failing_since.get_or_insert(now);
        let before = std::mem::replace(&mut self.condition, SourceCondition::Failing { error: error.to_string() });
        let kept = match &self.set {
            Some(set) => format!("keeping {}", counted(set.len())),
            None => "no backends are known".into(),
        };
        let told = (!matches!(before, SourceCondition::Failing { .. }))
            .then(|| format!("{error}; {kept}, retry in {:.1} s", pause.as_secs_f64()));
        ProgressStep { news: before != self.condition, told, pause }
    }
}

pub(super) fn counted(backends: usize) -> String {
    match backends {
        1 => "1 backend".into(),
        count => format!("{count} backends"),
    }
}

/// Between half of the pause and all of it, so that those that failed together do not ask together again.
pub(super) fn pause(failures: u32, random: u64) -> Duration {
    let whole = PAUSE_FIRST.saturating_mul(1 << failures.min(16)).min(PAUSE_MAX);
    let part = (random % 1024) as f64 / 1024.0;
    whole.mul_f64(0.5 + part / 2.0)
}

#[cfg(test)]
mod tests;
