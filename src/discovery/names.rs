//! Looks up the names that upstreams have among their backends.
//!
//! A name, wherever it stands, is a source of its own: what it finds are the addresses that the name stands for, and its last answer holds while
//! it fails. Names come and go with reloads, and with what other sources say.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::dns::Resolvers;
use super::feed::{Beginning, Feed, next_id};
use super::first_look::{FirstLook, FirstLooks};
use super::store::{Key, Store};
use crate::config::{DiscoveryConfig, DnsConfig, DnsRecords, DnsSourceConfig, Table, UpstreamName};
use crate::telemetry::events::Events;
use crate::upstream::sources::NamedHost;
use crate::upstream::{Upstream, UpstreamState};

/// The look-ups of all upstreams. Dropped, they end.
#[derive(Debug)]
pub(super) struct Names {
    events: Events,
    /// Where the last good answers are kept.
    store: Option<Arc<Store>>,
    looked_up: Mutex<LookedUp>,
}

#[derive(Debug)]
struct LookedUp {
    resolvers: Arc<Resolvers>,
    upstreams: HashMap<UpstreamName, NamesOfOne>,
}

/// The names of one upstream.
#[derive(Debug)]
struct NamesOfOne {
    state: Arc<UpstreamState>,
    names: HashMap<NamedHost, NameFeed>,
}

#[derive(Debug)]
struct NameFeed {
    /// What it asks.
    resolvers: Arc<Resolvers>,
    feed: Feed,
}

impl Names {
    /// None yet.
    pub(super) fn new(config: &DnsConfig, store: Option<Arc<Store>>, events: &Events) -> Arc<Self> {
        let resolvers = Arc::new(Resolvers::new(Arc::new(config.clone())));
        let looked_up = Mutex::new(LookedUp { resolvers, upstreams: HashMap::new() });
        Arc::new(Self { events: events.clone(), store, looked_up })
    }

    /// The name servers that are asked.
    pub(super) fn resolvers(&self) -> Arc<Resolvers> {
        Arc::clone(&self.lock().resolvers)
    }

    /// Whether it looks up that name of the upstream.
    pub(super) fn knows(&self, upstream: &UpstreamName, name: &NamedHost) -> bool {
        self.lock().upstreams.get(upstream).is_some_and(|it| it.names.contains_key(name))
    }

    /// Looks up the names of these upstreams from now on as the configuration says, and no others. Inside a runtime only. Does not wait.
    pub(super) fn follow(&self, upstreams: &[Arc<Upstream>], config: &DnsConfig, looks: &mut FirstLooks) {
        let mut looked_up = self.lock();
        if **looked_up.resolvers.config() != *config {
            looked_up.resolvers = Arc::new(Resolvers::new(Arc::new(config.clone())));
        }
        looked_up.upstreams.retain(|name, of_one| {
            upstreams.iter().any(|it| it.name() == name && Arc::ptr_eq(&it.state, &of_one.state))
        });
        for upstream in upstreams {
            self.look_up_in(&mut looked_up, &upstream.state, looks);
        }
    }

    /// Looks up the names that the sources of an upstream say now, and no others of it. Inside a runtime only. Does not wait.
    pub(super) fn look_up(&self, state: &Arc<UpstreamState>) {
        self.look_up_in(&mut self.lock(), state, &mut FirstLooks::default());
    }

    fn look_up_in(&self, looked_up: &mut LookedUp, state: &Arc<UpstreamState>, looks: &mut FirstLooks) {
        let wanted = state.sources.names();
        let LookedUp { resolvers, upstreams } = looked_up;
        let of_one = match upstreams.get_mut(&state.name) {
            Some(of_one) => of_one,
            None if wanted.is_empty() => return,
            None => upstreams
                .entry(state.name.clone())
                .or_insert_with(|| NamesOfOne { state: Arc::clone(state), names: HashMap::new() }),
        };
        let mut before = std::mem::take(&mut of_one.names);
        let (mut arranged, mut begun) = (Vec::with_capacity(wanted.len()), Vec::new());
        for name in wanted {
            match before.remove(&name) {
                Some(kept) if Arc::ptr_eq(&kept.resolvers, resolvers) => {
                    arranged.push((name.clone(), kept.feed.id));
                    of_one.names.insert(name, kept);
                }
                replaced => {
                    let id = next_id();
                    arranged.push((name.clone(), id));
                    begun.push((name, id, replaced));
                }
            }
        }
        state.sources.arrange_names(arranged);
        for (name, id, replaced) in begun {
            let config = source_of(&name);
            let first = looks.take(&state.name, &config);
            let left = replaced.as_ref().and_then(|it| it.feed.left()).or(first.left);
            let saves = self.store.as_ref().map(|store| (Arc::clone(store), Arc::new(Key::new(&state.name, &config))));
            let look = FirstLook { left, file: None };
            let mut beginning = Beginning::configured(id, state, &config, look, saves, (&self.events, resolvers, None));
            // The name stands in the file, or another source is believed it: what it leads to is for `Sources` to judge.
            beginning.believe_all();
            let feed = beginning.follow(Some(Arc::clone(state)));
            of_one.names.insert(name, NameFeed { resolvers: Arc::clone(resolvers), feed });
        }
    }

    fn lock(&self) -> MutexGuard<'_, LookedUp> {
        self.looked_up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The source that looks up a name.
pub(super) fn source_of((host, port): &NamedHost) -> DiscoveryConfig {
    let dns = DnsSourceConfig {
        name: Arc::clone(host),
        records: DnsRecords::Address,
        port: Some(*port),
        nameservers: Vec::new(),
    };
    DiscoveryConfig {
        name: format!("dns {host}:{port}").into(),
        dns: Some(Arc::new(dns)),
        ..DiscoveryConfig::of_defaults()
    }
}
