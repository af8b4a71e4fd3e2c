//! Where the backends of an upstream come from: its file, and what discovery has found besides.
//!
//! Each source reports complete sets; the last good one of each counts until the next. The file is the first source, and the
//! first that knows an address says what that backend is. Outlives reloads, with the upstream's state.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::backend::BackendSet;

/// The last report of each source.
#[derive(Debug, Default)]
pub struct Sources(Mutex<Reports>);

#[derive(Debug, Default)]
struct Reports {
    /// `None` until the file was committed for the first time.
    file: Option<SourceReport>,
    found: Vec<SourceReport>,
}

/// How it stands with a source.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceReport {
    /// The source's name: unique in its upstream.
    pub source: Arc<str>,
    /// The last good set; `None` before the first.
    pub set: Option<BackendSet>,
    /// Whether it answers.
    pub condition: SourceCondition,
    /// Since when that is so.
    pub since: SystemTime,
}

/// Whether a source answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceCondition {
    /// It has not answered yet.
    Awaited,
    /// Its last answer was good.
    Current,
    /// Its last answer was none. The last good set still counts.
    Failing {
        /// What went wrong the last time.
        error: String,
    },
}

impl SourceCondition {
    /// In a word: `awaited`, `current` or `failing`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Awaited => "awaited",
            Self::Current => "current",
            Self::Failing { .. } => "failing",
        }
    }
}

/// The name of the file among sources.
const FILE: &str = "file";

impl Sources {
    /// From now on the file lists `set`. Control plane only.
    pub fn file_says(&self, set: &BackendSet) {
        let mut reports = self.lock();
        if reports.file.as_ref().is_none_or(|report| report.set.as_ref() != Some(set)) {
            let (set, since) = (Some(set.clone()), SystemTime::now());
            reports.file = Some(SourceReport { source: FILE.into(), set, condition: SourceCondition::Current, since });
        }
    }

    /// Takes what a source of discovery has to say in place of what it said before. Control plane only.
    pub fn report(&self, report: SourceReport) {
        let mut reports = self.lock();
        match reports.found.iter_mut().find(|it| it.source == report.source) {
            Some(known) => *known = report,
            None => reports.found.push(report),
        }
    }

    /// All backends that are known: what the upstream is to serve with. `None` before the file was committed.
    pub fn set(&self) -> Option<BackendSet> {
        let reports = self.lock();
        let file = reports.file.as_ref()?.set.as_ref()?;
        Some(reports.merged(file))
    }

    /// The same if the file listed `file`.
    pub fn set_with(&self, file: &BackendSet) -> BackendSet {
        self.lock().merged(file)
    }

    /// The last report of each, the file first.
    pub fn look(&self) -> Vec<SourceReport> {
        let reports = self.lock();
        reports.file.iter().chain(&reports.found).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Reports> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reports {
    fn merged(&self, file: &BackendSet) -> BackendSet {
        BackendSet::merged([file].into_iter().chain(self.found.iter().filter_map(|report| report.set.as_ref())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Instance;
    use crate::config::Address;

    fn set(ports: &[u16]) -> BackendSet {
        ports.iter().map(|&port| Instance::new(Address::Ip(([10, 0, 0, 1], port).into()))).collect()
    }

    fn report(source: &str, set: Option<BackendSet>, condition: SourceCondition) -> SourceReport {
        SourceReport { source: source.into(), set, condition, since: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn what_each_last_said_is_served_and_nothing_before_the_file_is_known() {
        let sources = Sources::default();
        sources.report(report("one", Some(set(&[2, 3])), SourceCondition::Current));
        assert_eq!(sources.set(), None);
        assert_eq!(sources.set_with(&set(&[1])), set(&[1, 2, 3]));
        sources.file_says(&set(&[1]));
        assert_eq!(sources.set(), Some(set(&[1, 2, 3])));
        // One that fails keeps its last set; one that is awaited has none yet.
        sources.report(report("one", Some(set(&[3])), SourceCondition::Failing { error: "refused".into() }));
        sources.report(report("other", None, SourceCondition::Awaited));
        assert_eq!(sources.set(), Some(set(&[1, 3])));
        let look: Vec<_> = sources.look().iter().map(|it| (it.source.to_string(), it.condition.as_str())).collect();
        let expected = [("file", "current"), ("one", "failing"), ("other", "awaited")];
        assert_eq!(look, expected.map(|(name, condition)| (name.to_owned(), condition)));
    }

    #[test]
    fn a_reload_that_lists_the_same_is_no_news_of_the_file() {
        let sources = Sources::default();
        sources.file_says(&set(&[1]));
        let before = sources.look();
        sources.file_says(&set(&[1]));
        assert_eq!(sources.look(), before);
    }
}
