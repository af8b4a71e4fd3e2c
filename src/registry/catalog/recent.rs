//! What has changed lately, which clients of Eureka's API ask for instead of everything.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::registry::instance::Instance;

/// How long clients are told of a change.
const KEPT: Duration = Duration::from_secs(180);

/// Changes that are told. A client that has missed some sees that by the hash, and asks for everything.
const CHANGES_MAX: usize = 2_000;

/// What has happened to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::registry) enum Action {
    Added,
    Modified,
    Deleted,
}

impl Action {
    pub(in crate::registry) fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// The changes of the last minutes, the oldest first.
#[derive(Debug, Default)]
pub(super) struct RecentChanges(VecDeque<Change>);

#[derive(Clone, Debug)]
struct Change {
    at: Instant,
    action: Action,
    instance: Arc<Instance>,
}

impl RecentChanges {
    pub(super) fn note(&mut self, action: Action, instance: Arc<Instance>, at: Instant) {
        if self.0.len() >= CHANGES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Change { at, action, instance });
    }

    /// The last change of each instance.
    pub(super) fn latest(&mut self, now: Instant) -> Vec<(Action, Arc<Instance>)> {
        while self.0.front().is_some_and(|change| now.saturating_duration_since(change.at) > KEPT) {
            self.0.pop_front();
        }
        let mut latest = BTreeMap::new();
        for change in &self.0 {
            latest.insert(change.instance.key(), change);
        }
        latest.into_values().map(|change| (change.action, Arc::clone(&change.instance))).collect()
    }
}
