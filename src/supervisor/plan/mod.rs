//! What a reload changes: pure, from the old and the new configuration.
//!
//! The plan says of each part of the new configuration where it comes from, so that `apply` only does as it is told, and
//! it keeps the words for what differs, so that the log and the admin address tell the same story.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;

pub use crate::config::{Change, Listed};
use crate::config::{
    Changes, Config, ListenerConfig, ListenerName, MiddlewareConfig, MiddlewareName, RouteName, Table, UpstreamName,
};

/// The difference between two configurations.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Found again by address: a listener whose name alone changed keeps its sockets and connections.
    pub listeners: Part<ListenerName>,
    /// Found again by name.
    pub upstreams: Part<UpstreamName>,
    /// Found again by name.
    pub routes: Part<RouteName>,
    /// Found again by name.
    pub middleware: Part<MiddlewareName>,
    /// Changes outside of these that take effect at once.
    pub settings: Vec<Change>,
    /// Changes that have no effect before a restart.
    pub restart: Vec<Change>,
}

/// What becomes of one kind of thing.
#[derive(Clone, Debug, PartialEq)]
pub struct Part<N> {
    /// One for each in the new configuration, in its order.
    pub next: Vec<(N, Step)>,
    /// Those of the old configuration that are gone: their names and their places in it.
    pub removed: Vec<(N, usize)>,
}

/// Where a part of the new configuration comes from. Places count in the old configuration.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
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
        changes: Vec<Change>,
    },
    /// It was not there.
    Added,
}

/// Works out what leads from `old` to `new`.
pub fn plan(old: &Config, new: &Config) -> Plan {
    let mut found = Changes::none();
    Config::compare(&mut found, "", old, new);
    let (settings, restart) = found.found_and_restart();
    Plan {
        listeners: listeners(old, new),
        upstreams: Part::by_key(
            old.upstreams.iter().map(|it| (it.name.clone(), &**it)),
            new.upstreams.iter().map(|it| (it.name.clone(), &**it)),
            changes,
        ),
        routes: routes(old, new),
        middleware: Part::by_key(
            old.middleware.iter().map(|it| (it.name.clone(), &**it)),
            new.middleware.iter().map(|it| (it.name.clone(), &**it)),
            middleware_changes,
        ),
        settings,
        restart,
    }
}

fn middleware_changes(old: &MiddlewareConfig, new: &MiddlewareConfig) -> Vec<Change> {
    let mut changes = Changes::none();
    MiddlewareConfig::compare(&mut changes, old, new);
    changes.found()
}

impl Plan {
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
            && let Step::Kept { from } = *step
        {
            *step = Step::Changed { from, changes: vec![Change::Other("files of tls".into())] };
        }
    }

    /// Whether the access log is to be opened anew.
    pub(super) fn access_log_changes(&self) -> bool {
        let of_access_log = |key: &str| key == "access_log" || key.starts_with("access_log.");
        self.settings.iter().any(|change| of_access_log(change.key()))
    }
}

impl<N> Part<N> {
    /// Whether all are kept.
    pub fn is_unchanged(&self) -> bool {
        self.removed.is_empty() && self.next.iter().all(|(_, step)| matches!(step, Step::Kept { .. }))
    }

    /// Names of those that are as they were.
    pub fn kept(&self) -> impl Iterator<Item = &N> {
        self.next.iter().filter(|(_, step)| matches!(step, Step::Kept { .. })).map(|(name, _)| name)
    }

    /// Names of those that differ, with what differs.
    pub fn changed(&self) -> impl Iterator<Item = (&N, &[Change])> {
        self.next.iter().filter_map(|(name, step)| match step {
            Step::Changed { changes, .. } => Some((name, changes.as_slice())),
            Step::Kept { .. } | Step::Added => None,
        })
    }

    /// Names of those that were not there.
    pub fn added(&self) -> impl Iterator<Item = &N> {
        self.next.iter().filter(|(_, step)| matches!(step, Step::Added)).map(|(name, _)| name)
    }

    fn by_key<'a, T: 'a + PartialEq>(
        old: impl Iterator<Item = (N, &'a T)>,
        new: impl Iterator<Item = (N, &'a T)>,
        changes: impl Fn(&T, &T) -> Vec<Change>,
    ) -> Self
    where
        N: Clone + Eq + Hash,
    {
        let mut known: HashMap<N, (usize, &T)> =
            old.enumerate().map(|(place, (name, it))| (name, (place, it))).collect();
        let next = new
            .map(|(name, it)| {
                let step = known.remove(&name).map_or(Step::Added, |(from, was)| step(from, was, it, &changes));
                (name, step)
            })
            .collect();
        let mut removed: Vec<_> = known.into_iter().map(|(name, (place, _))| (name, place)).collect();
        removed.sort_unstable_by_key(|&(_, place)| place);
        Self { next, removed }
    }
}

fn step<T: PartialEq>(from: usize, was: &T, is: &T, changes: impl Fn(&T, &T) -> Vec<Change>) -> Step {
    if was == is {
        return Step::Kept { from };
    }
    let mut changes = changes(was, is);
    if changes.is_empty() {
        // A key that nobody has found words for yet must still be applied.
        changes.push(Change::Other("other keys".into()));
    }
    Step::Changed { from, changes }
}

/// In what two tables of a kind differ.
fn changes<T: Table>(old: &T, new: &T) -> Vec<Change> {
    let mut found = Changes::none();
    T::compare(&mut found, "", old, new);
    found.found()
}

/// Addresses are unique but for port 0, which may be there more than once; among those the name tells which is which.
fn listeners(old: &Config, new: &Config) -> Part<ListenerName> {
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
            .map_or(Step::Added, |from| step(from, &*old.listeners[from], &**listener, changes));
        (listener.name.clone(), step)
    });
    let next = next.collect();
    let mut removed: Vec<_> =
        left.into_values().flatten().map(|place| (old.listeners[place].name.clone(), place)).collect();
    removed.sort_unstable_by_key(|&(_, place)| place);
    Part { next, removed }
}

/// The order of routes decides between patterns, so a route that moved among the others is a difference too.
fn routes(old: &Config, new: &Config) -> Part<RouteName> {
    let mut part = Part::by_key(
        old.routes.iter().map(|it| (it.name.clone(), &**it)),
        new.routes.iter().map(|it| (it.name.clone(), &**it)),
        changes,
    );
    let mut last = 0;
    for (_, step) in &mut part.next {
        match step {
            Step::Kept { from } if *from < last => {
                *step = Step::Changed { from: *from, changes: vec![Change::Other("order".into())] };
            }
            Step::Kept { from } | Step::Changed { from, .. } => last = last.max(*from),
            Step::Added => {}
        }
    }
    part
}

#[cfg(test)]
mod tests;
