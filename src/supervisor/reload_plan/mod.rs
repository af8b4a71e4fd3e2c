//! What a reload changes: pure, from the old and the new configuration.
//!
//! The plan says of each part of the new configuration where it comes from, so that `apply` only does as it is told, and
//! it keeps the words for what differs, so that the log and the admin address tell the same story.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;

use crate::config::{
    Changes, Config, ListenerConfig, ListenerName, MiddlewareConfig, MiddlewareName, RouteName, Table, UpstreamName,
};
pub use crate::config::{DifferenceList, KeyChange};

/// The difference between two configurations.
#[derive(Clone, Debug, PartialEq)]
pub struct ReloadPlan {
    /// Found again by address: a listener whose name alone changed keeps its sockets and connections.
    pub listeners: PlanPart<ListenerName>,
    /// Found again by name.
    pub upstreams: PlanPart<UpstreamName>,
    /// Found again by name.
    pub routes: PlanPart<RouteName>,
    /// Found again by name.
    pub middleware: PlanPart<MiddlewareName>,
    /// Changes outside of these that take effect at once.
    pub settings: Vec<KeyChange>,
    /// Changes that have no effect before a restart.
    pub restart: Vec<KeyChange>,
}

/// What becomes of one kind of thing.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanPart<N> {
    /// One for each in the new configuration, in its order.
    pub next: Vec<(N, PlanStep)>,
    /// Those of the old configuration that are gone: their names and their places in it.
    pub removed: Vec<(N, usize)>,
}

/// Where a part of the new configuration comes from. Places count in the old configuration.
#[derive(Clone, Debug, PartialEq)]
pub enum PlanStep {
    /// It is as it was.
    Kept {
        /// Its place.
        from: usize,
    },
    /// It was there, and differs.
    Changed {
        /// Its place.
        from: usize,
        /// In what it differs.
        changes: Vec<KeyChange>,
    },
    /// It was not there.
    Added,
}

/// Works out what leads from `old` to `new`.
pub fn plan(old: &Config, new: &Config) -> ReloadPlan {
    let mut found = Changes::none();
    Config::compare(&mut found, "", old, new);
    let (settings, restart) = found.found_and_restart();
    ReloadPlan {
        listeners: listeners(old, new),
        upstreams: PlanPart::by_key(
            old.upstreams.iter().map(|it| (it.name.clone(), &**it)),
            new.upstreams.iter().map(|it| (it.name.clone(), &**it)),
            changes,
        ),
        routes: routes(old, new),
        middleware: PlanPart::by_key(
            old.middleware.iter().map(|it| (it.name.clone(), &**it)),
            new.middleware.iter().map(|it| (it.name.clone(), &**it)),
            middleware_changes,
        ),
        settings,
        restart,
    }
}

fn middleware_changes(old: &MiddlewareConfig, new: &MiddlewareConfig) -> Vec<KeyChange> {
    let mut changes = Changes::none();
    MiddlewareConfig::compare(&mut changes, old, new);
    changes.found()
}

impl ReloadPlan {
    /// Whether the two configurations mean the same.
    pub fn is_empty(&self) -> bool {
        self.listeners.is_unchanged()
            && self.upstreams.is_unchanged()
            && self.routes.is_unchanged()
            && self.middleware.is_unchanged()
            && self.settings.is_empty()
            && self.restart.is_empty()
    }

    /// Notes that an upstream differs by what is in its files, though not in its keys. `place` counts in the new configuration.
    pub(super) fn files_differ(&mut self, place: usize) {
        if let Some((_, step)) = self.upstreams.next.get_mut(place)
            && let PlanStep::Kept { from } = *step
        {
            *step = PlanStep::Changed { from, changes: vec![KeyChange::Other("files of tls".into())] };
        }
    }

    /// Whether the access log is to be opened anew.
    pub(super) fn access_log_changes(&self) -> bool {
        let of_access_log = |key: &str| key == "access_log" || key.starts_with("access_log.");
        self.settings.iter().any(|change| of_access_log(change.key()))
    }
}

impl<N> PlanPart<N> {
    /// Whether all are kept.
    pub fn is_unchanged(&self) -> bool {
        self.removed.is_empty() && self.next.iter().all(|(_, step)| matches!(step, PlanStep::Kept { .. }))
    }

    /// Names of those that are as they were.
    pub fn kept(&self) -> impl Iterator<Item = &N> {
        self.next.iter().filter(|(_, step)| matches!(step, PlanStep::Kept { .. })).map(|(name, _)| name)
    }

    /// Names of those that differ, with what differs.
    pub fn changed(&self) -> impl Iterator<Item = (&N, &[KeyChange])> {
        self.next.iter().filter_map(|(name, step)| match step {
            PlanStep::Changed { changes, .. } => Some((name, changes.as_slice())),
            PlanStep::Kept { .. } | PlanStep::Added => None,
        })
    }

    /// Names of those that were not there.
    pub fn added(&self) -> impl Iterator<Item = &N> {
        self.next.iter().filter(|(_, step)| matches!(step, PlanStep::Added)).map(|(name, _)| name)
    }

    fn by_key<'a, T: 'a + PartialEq>(
        old: impl Iterator<Item = (N, &'a T)>,
        new: impl Iterator<Item = (N, &'a T)>,
        changes: impl Fn(&T, &T) -> Vec<KeyChange>,
    ) -> Self
    where
        N: Clone + Eq + Hash,
    {
        let mut known: HashMap<N, (usize, &T)> =
            old.enumerate().map(|(place, (name, it))| (name, (place, it))).collect();
        let next = new
            .map(|(name, it)| {
                let step = known.remove(&name).map_or(PlanStep::Added, |(from, was)| step(from, was, it, &changes));
                (name, step)
            })
            .collect();
        let mut removed: Vec<_> = known.into_iter().map(|(name, (place, _))| (name, place)).collect();
        removed.sort_unstable_by_key(|&(_, place)| place);
        Self { next, removed }
    }
}

fn step<T: PartialEq>(from: usize, was: &T, is: &T, changes: impl Fn(&T, &T) -> Vec<KeyChange>) -> PlanStep {
    if was == is {
        return PlanStep::Kept { from };
    }
    let mut changes = changes(was, is);
    if changes.is_empty() {
        // A key without words of its own must still be applied.
        changes.push(KeyChange::Other("other keys".into()));
    }
    PlanStep::Changed { from, changes }
}

/// In what two tables of a kind differ.
fn changes<T: Table>(old: &T, new: &T) -> Vec<KeyChange> {
    let mut found = Changes::none();
    T::compare(&mut found, "", old, new);
    found.found()
}

/// Addresses are unique but for port 0, which may be there more than once; among those the name tells which is which.
fn listeners(old: &Config, new: &Config) -> PlanPart<ListenerName> {
    let mut left: HashMap<SocketAddr, Vec<usize>> = HashMap::new();
    for (place, listener) in old.listeners.iter().enumerate() {
        left.entry(listener.address).or_default().push(place);
    }
    let mut take = |listener: &ListenerConfig, same_name: bool| {
        let places = left.get_mut(&listener.address)?;
        let found = places.iter().position(|&place| !same_name || old.listeners[place].name == listener.name)?;
        Some(places.remove(found))
    };
    // Two rounds: a listener that kept its name must not lose its sockets to one that merely shares its address.
    let by_name: Vec<_> = new.listeners.iter().map(|listener| take(listener, true)).collect();
    let next = new.listeners.iter().zip(by_name).map(|(listener, found)| {
        let step = found
            .or_else(|| take(listener, false))
            .map_or(PlanStep::Added, |from| step(from, &*old.listeners[from], &**listener, changes));
        (listener.name.clone(), step)
    });
    let next = next.collect();
    let mut removed: Vec<_> =
        left.into_values().flatten().map(|place| (old.listeners[place].name.clone(), place)).collect();
    removed.sort_unstable_by_key(|&(_, place)| place);
    PlanPart { next, removed }
}

/// The order of routes decides between patterns, so a route that moved among the others is a difference too.
fn routes(old: &Config, new: &Config) -> PlanPart<RouteName> {
    let mut part = PlanPart::by_key(
        old.routes.iter().map(|it| (it.name.clone(), &**it)),
        new.routes.iter().map(|it| (it.name.clone(), &**it)),
        changes,
    );
    let mut last = 0;
    for (_, step) in &mut part.next {
        match step {
            PlanStep::Kept { from } if *from < last => {
                *step = PlanStep::Changed { from: *from, changes: vec![KeyChange::Other("order".into())] };
            }
            PlanStep::Kept { from } | PlanStep::Changed { from, .. } => last = last.max(*from),
            PlanStep::Added => {}
        }
    }
    part
}

#[cfg(test)]
mod tests;
