//! The services that a registry lists, for upstreams with `services`: the loop that asks for them, and what it makes of answers.
//!
//! Only what a list says is looked after here. A service that is no longer listed goes on being served as long as its own source has backends
//! for it, which holds them back where too many vanish at once: a list needs no such rule of its own.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::DiscoveryError;
use super::consul::ConsulServices;
use super::etcd::EtcdServices;
use super::eureka::EurekaServices;
use super::feed::next_id;
use super::listing::{Listing, ListsServices};
use super::progress::{PAUSE_MIN, pause};
use super::reading::Reading;
use super::registry::RegistryServices;
use super::store::{Key, Store};
use super::zookeeper::ZookeeperServices;
use crate::config::{Config, DiscoveryConfig, Service, Services, ServicesConfig, SourceConfig, UpstreamConfig};
use crate::registry::Registry;
use crate::telemetry::events::{EventKind, Events};
use crate::upstream::sources::{SourceCondition, SourceId, SourceReport};
use crate::upstream::{Upstream, UpstreamState};

/// How long a start waits for the first list of a source that has left none on disk: without it, nothing of its services is there.
const FIRST_LIST: Duration = Duration::from_secs(1);

/// The one that a table of the configuration describes; `None` of a kind that lists none.
fn of(config: &DiscoveryConfig, registry: Option<&Arc<Registry>>) -> Option<Box<dyn ListsServices>> {
    let reading = Reading::new(config);
    Some(match config.source()? {
        SourceConfig::Consul(consul) => Box::new(ConsulServices::new(consul, &reading)),
        SourceConfig::Eureka(eureka) => Box::new(EurekaServices::new(eureka, &reading)),
        SourceConfig::Etcd(etcd) => Box::new(EtcdServices::new(etcd, reading)?),
        SourceConfig::Zookeeper(zookeeper) => Box::new(ZookeeperServices::new(zookeeper, reading)?),
        SourceConfig::Registry(_) => Box::new(RegistryServices::new(registry?)),
        SourceConfig::Nacos(_)
        | SourceConfig::Docker(_)
        | SourceConfig::File(_)
        | SourceConfig::Http(_)
        | SourceConfig::Push(_)
        | SourceConfig::Dns(_)
        | SourceConfig::Kubernetes(_) => return None,
    })
}

/// The upstreams with `services`, each with these and its source.
fn templates(
    upstreams: &[Arc<UpstreamConfig>],
) -> impl Iterator<Item = (&UpstreamConfig, &ServicesConfig, &DiscoveryConfig)> {
    upstreams.iter().filter_map(|it| Some((&**it, it.services.as_deref()?, it.discovery.first()?)))
}

/// What is known of services before a start: what is on disk, or else what their registries list within a second. All are looked for at the same
/// time.
pub async fn services_at_start(config: &Config) -> Services {
    let all = templates(&config.upstreams);
    let asked: Vec<_> = all
        .map(|(upstream, services, source)| {
            let store = config.state_dir.as_deref().map(Store::new);
            let (key, source) = (Key::new(&upstream.name, source), source.clone());
            let known = tokio::spawn(async move { known_of(store, key, &source).await });
            (upstream, services, known)
        })
        .collect();
    let mut known = Services::new();
    for (upstream, services, listed) in asked {
        let Some(listed) = listed.await.ok().flatten() else { continue };
        let mut taken: Vec<_> = listed.into_iter().filter(|service| services.takes(service)).collect();
        if taken.len() > services.max_services {
            warn!(upstream = %upstream.name, services = taken.len(), max_services = services.max_services, "more services than may be");
            taken.truncate(services.max_services);
        }
        known.insert(upstream.name.clone(), taken);
    }
    known
}

async fn known_of(store: Option<Arc<Store>>, key: Key, source: &DiscoveryConfig) -> Option<Vec<Service>> {
    if let Some(store) = store {
        // A directory of a network that is gone lets its reader hang.
        let read = tokio::task::spawn_blocking(move || store.read_services(&key));
        if let Some(left) = timeout(FIRST_LIST, read).await.ok().and_then(Result::ok).flatten() {
            return Some(left);
        }
    }
    // What is wrong is told by the loop that asks.
    let mut lists = of(source, None)?;
    timeout(FIRST_LIST, lists.next()).await.ok()?.ok().map(|listing| listing.services)
}

/// The lists that are followed.
#[derive(Debug)]
pub(super) struct ServiceFeeds {
    feeds: Vec<ServiceFeed>,
    /// Is told of each list that differs.
    heard: Arc<Notify>,
    registry: Option<Arc<Registry>>,
    events: Events,
}

#[derive(Debug)]
struct ServiceFeed {
    id: SourceId,
    state: Arc<UpstreamState>,
    source: DiscoveryConfig,
    services: ServicesConfig,
    task: JoinHandle<()>,
}

impl Drop for ServiceFeed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ServiceFeeds {
    pub(super) fn new(registry: Option<Arc<Registry>>, events: &Events) -> Self {
        Self { feeds: Vec::new(), heard: Arc::default(), registry, events: events.clone() }
    }

    /// Is told of each list that differs from the one before.
    pub(super) fn heard(&self) -> Arc<Notify> {
        Arc::clone(&self.heard)
    }

    /// Follows the lists that these upstreams are made from, and no others: one whose table is as it was goes on. Inside a runtime only.
    pub(super) fn follow(&mut self, upstreams: &[Arc<Upstream>], store: Option<&Arc<Store>>) {
        let mut before = std::mem::take(&mut self.feeds);
        for upstream in upstreams {
            let (Some(services), Some(source)) = (&upstream.config.services, upstream.config.discovery.first()) else {
                continue;
            };
            let same = |it: &ServiceFeed| {
                Arc::ptr_eq(&it.state, &upstream.state) && it.source == *source && it.services == **services
            };
            match before.iter().position(same) {
                Some(at) => self.feeds.push(before.swap_remove(at)),
                None => self.begin(upstream, services, source, store),
            }
        }
    }

    /// The lists that an upstream is made from.
    pub(super) fn of(&self, state: &Arc<UpstreamState>) -> impl Iterator<Item = SourceId> {
        self.feeds.iter().filter(|it| Arc::ptr_eq(&it.state, state)).map(|it| it.id)
    }

    fn begin(
        &mut self,
        upstream: &Upstream,
        services: &ServicesConfig,
        source: &DiscoveryConfig,
        store: Option<&Arc<Store>>,
    ) {
        let Some(lists) = of(source, self.registry.as_ref()) else { return };
        let (id, state) = (next_id(), Arc::clone(&upstream.state));
        let saves = store.map(|store| (Arc::clone(store), Arc::new(Key::new(&state.name, source))));
        let reporter = ListReporter {
            listed: state.services.listed_by(&source.name),
            report: SourceReport::awaited(id, Arc::clone(&source.name)),
            state: Arc::clone(&state),
            services: services.clone(),
            failures: 0,
            saves,
            heard: Arc::clone(&self.heard),
            events: self.events.clone(),
        };
        let what = format!("services of upstream {} by {}", state.name, source.name);
        let task = tokio::spawn(self.events.vital().clone().watch(what, run(lists, reporter)));
        self.feeds.push(ServiceFeed { id, state, source: source.clone(), services: services.clone(), task });
    }
}

/// Asks again and again, until it is aborted.
async fn run(mut lists: Box<dyn ListsServices>, mut reporter: ListReporter) {
    reporter.show();
    loop {
        let answer = lists.next().await;
        sleep(reporter.take(answer)).await;
    }
}

/// What is known of a list, and where that is told.
struct ListReporter {
    state: Arc<UpstreamState>,
    services: ServicesConfig,
    /// How it stands with the source; it says no backends.
    report: SourceReport,
    /// All that it lists; `None` before its first answer.
    listed: Option<Arc<[Service]>>,
    /// In a row.
    failures: u32,
    saves: Option<(Arc<Store>, Arc<Key>)>,
    heard: Arc<Notify>,
    events: Events,
}

impl ListReporter {
    /// Says how long to wait before it is asked again.
    fn take(&mut self, answer: Result<Listing, DiscoveryError>) -> Duration {
        let pause = match answer.and_then(|listing| self.bounded(listing)) {
            Ok(listing) => {
                self.answered(listing);
                PAUSE_MIN
            }
            Err(error) => self.failed(&error),
        };
        self.show();
        pause
    }

    fn show(&self) {
        self.state.sources.report(self.report.clone());
    }

    fn bounded(&self, listing: Listing) -> Result<Listing, DiscoveryError> {
        let taken = listing.services.iter().filter(|service| self.services.takes(service)).count();
        let most = self.services.max_services;
        if taken > most {
            return Err(DiscoveryError::new(format!("{taken} services, and max_services is {most}")));
        }
        Ok(listing)
    }

    fn answered(&mut self, Listing { services, refused }: Listing) {
        let was_current = self.report.condition == SourceCondition::Current;
        let had_refused = !self.report.refused.is_empty();
        self.failures = 0;
        (self.report.condition, self.report.refused) = (SourceCondition::Current, refused.into());
        self.report.answered = Some(SystemTime::now());
        let is_news = self.listed.as_deref() != Some(&services[..]);
        if is_news && let Some((store, key)) = &self.saves {
            store.save_services(key, &services);
        }
        let count = services.len();
        let services = self.listed.take().filter(|_| !is_news).unwrap_or_else(|| services.into());
        self.listed = Some(Arc::clone(&services));
        let first_refused = self.report.refused.first().filter(|_| !had_refused).cloned();
        if !was_current || first_refused.is_some() {
            let left_out = first_refused.map(|why| format!("; {} left out, as {why}", self.report.refused.len()));
            self.tell(format!("{} listed{}", counted(count), left_out.unwrap_or_default()));
        }
        if is_news {
            self.state.services.list(&self.report.source, services);
            self.heard.notify_one();
        }
    }

    fn failed(&mut self, error: &DiscoveryError) -> Duration {
        let pause = pause(self.failures, rand::random());
        self.failures = self.failures.saturating_add(1);
        let was_failing = matches!(self.report.condition, SourceCondition::Failing { .. });
        self.report.condition = SourceCondition::Failing { error: error.to_string() };
        if !was_failing {
            let kept = match &self.listed {
                Some(services) => format!("keeping {}", counted(services.len())),
                None => "it has listed no services".into(),
            };
            self.tell(format!("{error}; {kept}, retry in {:.1} s", pause.as_secs_f64()));
        }
        pause
    }

    fn tell(&mut self, evidence: String) {
        self.report.since = SystemTime::now();
        self.events.publish(EventKind::Discovery {
            upstream: self.state.name.clone(),
            source: self.report.source.to_string(),
            to: self.report.condition.as_str(),
            evidence,
        });
    }
}

fn counted(services: usize) -> String {
    match services {
        1 => "1 service".into(),
        count => format!("{count} services"),
    }
}
