//! How it stands with a source: a pure machine, which is told what each question came to.
//!
//! This is where it is decided whether a set that was found is served with. So far each is: whoever lists backends in a file or
//! pushes them means it, also where there is none. What holds back a set that a registry on a bad day would give belongs here,
//! between an answer and [`ProgressStep::found`], with `now` as its clock.

use std::time::{Duration, Instant};

use super::DiscoveryError;
use crate::backend::BackendSet;
use crate::upstream::sources::SourceCondition;

/// A source that always has something to say is asked so often, or it would be all that is done.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// How long after the first failure it is asked again; twice that after the second, and so on.
const PAUSE_FIRST: Duration = Duration::from_millis(500);

/// No pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What is known of a source.
#[derive(Debug)]
pub(super) struct SourceProgress {
    /// The last good set.
    set: Option<BackendSet>,
    condition: SourceCondition,
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

impl SourceProgress {
    pub(super) fn new() -> Self {
        Self { set: None, condition: SourceCondition::Awaited, failures: 0, failing_since: None }
    }

    pub(super) fn set(&self) -> Option<&BackendSet> {
        self.set.as_ref()
    }

    pub(super) fn condition(&self) -> &SourceCondition {
        &self.condition
    }

    /// Takes in an answer that came at `now`; `random` is any number.
    pub(super) fn take(
        &mut self,
        answer: Result<BackendSet, DiscoveryError>,
        now: Instant,
        random: u64,
    ) -> ProgressStep {
        match answer {
            Ok(set) => self.found(set, now),
            Err(error) => self.failed(&error, now, random),
        }
    }

    fn found(&mut self, set: BackendSet, now: Instant) -> ProgressStep {
        let count = counted(set.len());
        let told = match (&self.condition, self.failing_since.take()) {
            (SourceCondition::Current, _) => None,
            (_, Some(since)) => {
                let (failures, took) = (self.failures, now.saturating_duration_since(since).as_secs_f64());
                Some(format!("{count}, after {failures} failures in {took:.1} s"))
            }
            (_, None) => Some(count),
        };
        let news = told.is_some() || self.set.as_ref() != Some(&set);
        (self.set, self.condition, self.failures) = (Some(set), SourceCondition::Current, 0);
        ProgressStep { news, told, pause: PAUSE_MIN }
    }

    fn failed(&mut self, error: &DiscoveryError, now: Instant, random: u64) -> ProgressStep {
        let pause = pause(self.failures, random);
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

fn counted(backends: usize) -> String {
    match backends {
        1 => "1 backend".into(),
        count => format!("{count} backends"),
    }
}

/// Between half of the pause and all of it, so that those that failed together do not ask together again.
fn pause(failures: u32, random: u64) -> Duration {
    let whole = PAUSE_FIRST.saturating_mul(1 << failures.min(16)).min(PAUSE_MAX);
    let part = (random % 1024) as f64 / 1024.0;
    whole.mul_f64(0.5 + part / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Instance;
    use crate::config::Address;

    fn set(ports: &[u16]) -> BackendSet {
        ports.iter().map(|&port| Instance::new(Address::Ip(([10, 0, 0, 1], port).into()))).collect()
    }

    /// What is told of answers that come a second after each other; `None` is an error.
    fn told(answers: &[Option<&[u16]>]) -> Vec<(bool, Option<String>)> {
        let (mut progress, begin) = (SourceProgress::new(), Instant::now());
        let steps = answers.iter().zip(0..).map(|(answer, second)| {
            let answer = answer.map(set).ok_or_else(|| DiscoveryError::new("connection refused"));
            let step = progress.take(answer, begin + Duration::from_secs(second), 0);
            (step.news, step.told)
        });
        steps.collect()
    }

    #[test]
    fn each_change_of_state_is_told_once() {
        let told = told(&[Some(&[1, 2]), Some(&[1, 2]), Some(&[1]), None, None, None, Some(&[1]), Some(&[])]);
        let words = |text: &str| Some(text.to_owned());
        let expected = [
            (true, words("2 backends")),
            (false, None),
            (true, None),
            (true, words("connection refused; keeping 1 backend, retry in 0.2 s")),
            (false, None),
            (false, None),
            (true, words("1 backend, after 3 failures in 3.0 s")),
            (true, None),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn before_the_first_answer_a_failure_says_that_nothing_is_known() {
        let told = told(&[None, Some(&[1])]);
        assert_eq!(told[0].1.as_deref(), Some("connection refused; no backends are known, retry in 0.2 s"));
        assert_eq!(told[1].1.as_deref(), Some("1 backend, after 1 failures in 1.0 s"));
    }

    #[test]
    fn a_failure_keeps_the_last_set_and_says_another_reason_without_telling_it() {
        let (mut progress, now) = (SourceProgress::new(), Instant::now());
        progress.take(Ok(set(&[1])), now, 0);
        progress.take(Err(DiscoveryError::new("refused")), now, 0);
        let step = progress.take(Err(DiscoveryError::new("timed out")), now, 0);
        assert_eq!((step.news, step.told), (true, None));
        assert_eq!(progress.set(), Some(&set(&[1])));
        assert_eq!(progress.condition(), &SourceCondition::Failing { error: "timed out".into() });
    }

    #[test]
    fn pauses_grow_to_a_bound_and_start_anew_after_a_success() {
        let (mut progress, now) = (SourceProgress::new(), Instant::now());
        let fail =
            |progress: &mut SourceProgress, random| progress.take(Err(DiscoveryError::new("no")), now, random).pause;
        let pauses: Vec<_> = (0..9).map(|_| fail(&mut progress, 1023).as_secs_f64().ceil()).collect();
        assert_eq!(pauses, [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]);
        for _ in 0..100 {
            assert!(fail(&mut progress, u64::MAX) <= PAUSE_MAX && fail(&mut progress, 0) >= PAUSE_MAX / 2);
        }
        progress.take(Ok(set(&[1])), now, 0);
        assert!(fail(&mut progress, u64::MAX) <= PAUSE_FIRST);
    }
}
