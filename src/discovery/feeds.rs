//! All sources that are followed: those of the program around isobar, and those of the configuration.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::dns::Resolvers;
use super::feed::{Beginning, Feed, Heard, next_id};
use super::first_look::{FirstLook, FirstLooks};
use super::names::{self, Names};
use super::services::ServiceFeeds;
use super::store::{Key, Left, Store, write_behind};
use super::{AnyDiscovery, Discovery};
use crate::config::{DiscoveryConfig, DnsConfig, UpstreamName};
use crate::registry::Registry;
use crate::telemetry::events::Events;
use crate::upstream::sources::{SourceId, named};
use crate::upstream::{Upstream, UpstreamState};

/// How long a start waits for files of sources that are read before the first request; and a reload, which health checks wait for meanwhile.
const START_PATIENCE: Duration = Duration::from_secs(3);
const RELOAD_PATIENCE: Duration = Duration::from_millis(500);

/// How long a stop waits for what is not on disk yet.
const LAST_WRITING: Duration = Duration::from_secs(2);

/// A source of the program around isobar that is to be followed, not yet begun with.
pub struct FoundBackends {
    upstream: UpstreamName,
    name: Arc<str>,
    discovery: Box<dyn AnyDiscovery>,
}

impl FoundBackends {
    /// Backends of `upstream` are those that `discovery` finds, beside others. `name` is the source's among those of the upstream.
    pub fn by(upstream: UpstreamName, name: Arc<str>, discovery: impl Discovery) -> Self {
        Self { upstream, name, discovery: Box::new(discovery) }
    }
}

impl fmt::Debug for FoundBackends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found").field("upstream", &self.upstream).field("name", &self.name).finish_non_exhaustive()
    }
}

/// The sources that are followed: those of the program around isobar, and those of the configuration. Dropped, none is.
#[derive(Debug)]
pub struct Feeds {
    events: Events,
    disk: Option<Disk>,
    /// That of this process.
    registry: Option<Arc<Registry>>,
    /// Of the program. They outlive upstreams: what they find waits for one of their name.
    given: Vec<Given>,
    /// Of the configuration.
    configured: Vec<Configured>,
    /// What these and the file say by name.
    names: Arc<Names>,
    /// The lists of services.
    services: ServiceFeeds,
}

/// Where the last good sets are kept.
#[derive(Debug)]
struct Disk {
    store: Arc<Store>,
    writer: JoinHandle<()>,
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.writer.abort();
        let (store, (send, written)) = (Arc::clone(&self.store), channel());
        thread::spawn(move || send.send(store.flush()));
        let error = match written.recv_timeout(LAST_WRITING) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(late) => late.to_string(),
        };
        tracing::warn!(error, "could not write the last good set of a source");
    }
}

#[derive(Debug)]
struct Given {
    upstream: UpstreamName,
    feed: Feed,
}

#[derive(Debug)]
struct Configured {
    state: Arc<UpstreamState>,
    config: DiscoveryConfig,
    /// How it looks up names, where it does.
    resolvers: Arc<Resolvers>,
    feed: Feed,
}

impl Configured {
    fn key(&self) -> SourceKey {
        (Arc::as_ptr(&self.state), Arc::clone(&self.config.name))
    }
}

/// A source by its upstream and its name.
type SourceKey = (*const UpstreamState, Arc<str>);

/// The sources that say backends of an upstream. One that others are made of has none: its source lists services.
fn sources(upstream: &Upstream) -> impl Iterator<Item = &DiscoveryConfig> {
    upstream.config.discovery.iter().filter(|_| upstream.config.services.is_none())
}

impl Feeds {
    /// Follows these sources, and those of the upstreams' configurations. What they can say at once they have said when this returns. It waits
    /// for a few seconds at most, for what is read from disks. The last good sets are kept in `state_dir`, if there is one; `registry`
    /// is that of this process. Inside a runtime only.
    pub fn start(
        found: Vec<FoundBackends>,
        (upstreams, dns): (&[Arc<Upstream>], &DnsConfig),
        state_dir: Option<&Path>,
        registry: Option<Arc<Registry>>,
        events: &Events,
    ) -> Self {
        let disk = state_dir.map(|dir| {
            let store = Store::new(dir);
            let writing = write_behind(Arc::clone(&store));
            let writer = tokio::spawn(events.vital().clone().watch("the last good sets on disk".into(), writing));
            Disk { store, writer }
        });
        let names = Names::new(dns, disk.as_ref().map(|disk| Arc::clone(&disk.store)), events);
        let services = ServiceFeeds::new(registry.clone(), events);
        let (given, configured) = (Vec::new(), Vec::new());
        let mut feeds = Self { events: events.clone(), disk, registry, given, configured, names, services };
        let mut looks = feeds.look(upstreams, START_PATIENCE);
        // Before sources say any: these were looked for on disk.
        feeds.names.follow(upstreams, dns, &mut looks);
        let states: HashMap<_, _> = upstreams.iter().map(|it| (it.name(), &it.state)).collect();
        for FoundBackends { upstream, name, discovery } in found {
            let state = states.get(&upstream).map(|&state| Arc::clone(state));
            let mut beginning = Beginning::given(upstream.clone(), name, discovery, &feeds.events);
            beginning.heard_by(feeds.heard());
            if let Some(state) = &state {
                let known = feeds.given.iter().filter(|it| it.upstream == upstream).map(|it| it.feed.id);
                state.sources.arrange(&known.chain([beginning.id()]).collect::<Vec<_>>());
            }
            feeds.given.push(Given { upstream, feed: beginning.follow(state) });
        }
        feeds.follow(upstreams, dns, looks);
        feeds
    }

    /// Says to an upstream that is about to be served, and was not before, what the program's sources know of its backends.
    pub fn introduce(&self, state: &UpstreamState) {
        let given: Vec<_> = self.given.iter().filter(|it| it.upstream == state.name).collect();
        state.sources.arrange(&given.iter().map(|it| it.feed.id).collect::<Vec<_>>());
        for Given { feed, .. } in given {
            feed.last().into_iter().for_each(|report| state.sources.report(report));
        }
    }

    /// What is on disk of the sources that [`Feeds::follow`] will begin. Waits for half a second at most, for disks. Inside a runtime only.
    pub fn look_ahead(&self, upstreams: &[Arc<Upstream>]) -> FirstLooks {
        self.look(upstreams, RELOAD_PATIENCE)
    }

    fn look(&self, upstreams: &[Arc<Upstream>], patience: Duration) -> FirstLooks {
        let known: HashMap<_, _> = self.configured.iter().map(|it| (it.key(), &it.config)).collect();
        let sources = upstreams.iter().flat_map(|it| sources(it).map(move |config| (it, config)));
        let begin = sources.filter(|(upstream, config)| {
            let key = (Arc::as_ptr(&upstream.state), Arc::clone(&config.name));
            known.get(&key) != Some(config)
        });
        let store = self.disk.as_ref().map(|disk| &disk.store);
        let names = upstreams.iter().flat_map(|upstream| {
            let listed = upstream.listed().iter().filter_map(|it| named(&it.address));
            let new = listed.filter(|name| !self.names.knows(upstream.name(), name));
            new.map(|name| (upstream.name(), names::source_of(&name)))
        });
        let begin = begin.map(|(upstream, config)| (upstream.name(), config.clone()));
        FirstLooks::read(begin.chain(names), store, patience)
    }

    /// Reports to these upstreams from now on, and to no others, and follows the sources that their configurations have: one that is as it was
    /// goes on, others begin and end. What those that begin can say at once they have said when this returns; it does not wait, nor read: what
    /// was on disk is in `looks`. Inside a runtime only.
    pub fn follow(&mut self, upstreams: &[Arc<Upstream>], dns: &DnsConfig, mut looks: FirstLooks) {
        self.names.follow(upstreams, dns, &mut looks);
        let resolvers = self.names.resolvers();
        for Given { upstream, feed } in &self.given {
            let state = upstreams.iter().find(|it| it.name() == upstream).map(|it| &it.state);
            feed.report_to(state);
        }
        self.services.follow(upstreams, self.disk.as_ref().map(|disk| &disk.store));
        let mut before = Before::new(std::mem::take(&mut self.configured));
        for upstream in upstreams {
            let (mut kept, mut begun) = (Vec::new(), Vec::new());
            for config in sources(upstream) {
                let known = before.take(&upstream.state, config, &resolvers);
                let id = known.as_ref().map_or_else(next_id, |known| known.feed.id);
                kept.push(id);
                match known {
                    Some(known) => self.configured.push(known),
                    None => begun.push((id, config)),
                }
            }
            let given = self.given.iter().filter(|it| it.upstream == *upstream.name()).map(|it| it.feed.id);
            kept.extend(given.chain(self.services.of(&upstream.state)));
            upstream.state.sources.arrange(&kept);
            for (id, config) in begun {
                let FirstLook { left, file } = looks.take(upstream.name(), config);
                let look = FirstLook { left: before.left_by(&upstream.state, config).or(left), file };
                self.configured.push(self.begin(id, &upstream.state, config, look, &resolvers));
            }
        }
        self.forget(before, upstreams);
    }

    /// What is on disk of upstreams that were made for services that are gone: others may be named again by a file.
    fn forget(&self, before: Before, upstreams: &[Arc<Upstream>]) {
        let Some(Disk { store, .. }) = &self.disk else { return };
        let is_there: HashSet<&UpstreamName> = upstreams.iter().map(|it| it.name()).collect();
        let templates = || upstreams.iter().filter(|it| it.config.services.is_some());
        let was_made = |name: &UpstreamName| {
            let of = |template: &Arc<Upstream>| name.as_str().strip_prefix(template.name().as_str());
            templates().filter_map(of).any(|rest| rest.starts_with(':'))
        };
        for gone in before.0.into_values().filter(|it| !is_there.contains(&it.state.name) && was_made(&it.state.name)) {
            store.forget(&Arc::new(Key::new(&gone.state.name, &gone.config)));
        }
    }

    /// Is told of each list of services that differs from the one before.
    pub fn services_heard(&self) -> Arc<Notify> {
        self.services.heard()
    }

    /// Has the names looked up that sources say.
    fn heard(&self) -> Heard {
        let names = Arc::clone(&self.names);
        Heard(Arc::new(move |state| names.look_up(state)))
    }

    fn begin(
        &self,
        id: SourceId,
        state: &Arc<UpstreamState>,
        config: &DiscoveryConfig,
        look: FirstLook,
        resolvers: &Arc<Resolvers>,
    ) -> Configured {
        let saves = |disk: &Disk| (Arc::clone(&disk.store), Arc::new(Key::new(&state.name, config)));
        let saves = self.disk.as_ref().map(saves);
        let mut beginning =
            Beginning::configured(id, state, config, look, saves, (&self.events, resolvers, self.registry.as_ref()));
        beginning.heard_by(self.heard());
        let feed = beginning.follow(Some(Arc::clone(state)));
        Configured { state: Arc::clone(state), config: config.clone(), resolvers: Arc::clone(resolvers), feed }
    }
}

/// The sources of the configuration before, of which some go on.
struct Before(HashMap<SourceKey, Configured>);

impl Before {
    fn new(configured: Vec<Configured>) -> Self {
        let by_name = configured.into_iter().map(|it| (it.key(), it));
        Self(by_name.collect())
    }

    /// The source that is configured the same.
    fn take(
        &mut self,
        state: &Arc<UpstreamState>,
        config: &DiscoveryConfig,
        resolvers: &Arc<Resolvers>,
    ) -> Option<Configured> {
        let key = (Arc::as_ptr(state), Arc::clone(&config.name));
        let known = self.0.get(&key)?;
        let asks_as_before = config.dns.is_none() || Arc::ptr_eq(&known.resolvers, resolvers);
        if known.config != *config || !asks_as_before {
            return None;
        }
        self.0.remove(&key)
    }

    /// What a source knew that asked for the same, and ends now: the one that takes its place goes on with that.
    fn left_by(&self, state: &Arc<UpstreamState>, config: &DiscoveryConfig) -> Option<Left> {
        let asks = config.asks();
        let known = self.0.values().find(|it| Arc::ptr_eq(&it.state, state) && it.config.asks() == asks)?;
        known.feed.left()
    }
}
