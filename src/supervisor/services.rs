//! Services that come and go, for upstreams with `services`: which of them are served, and when the file is filled with them anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until};
use tracing::warn;

use crate::config::{
    Config, FileText, LeftOut, Loaded, Service, Services, ServicesConfig, UpstreamName, Vocabulary, made_name,
};
use crate::proxy::Snapshot;
use crate::upstream::services::ServedService;

/// The file is filled no more often than this: services that come together are taken together.
const FILL_EVERY: Duration = Duration::from_millis(250);

/// How often services are looked at that are to go.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The services that are served, and the file that they are filled into.
#[derive(Debug)]
pub(super) struct ServedServices {
    template: Option<Arc<FileText>>,
    table: ServiceTable,
    left_out: Vec<LeftOut>,
    heard: Arc<Notify>,
    /// Whether there is something to look at.
    has_news: bool,
    /// Whether what the table says is not what is served.
    is_behind: bool,
    looked: Option<Instant>,
}

impl ServedServices {
    /// Of a start: the file with these filled in.
    pub(super) fn new(
        template: Option<Arc<FileText>>,
        services: Services,
        left_out: Vec<LeftOut>,
        heard: Arc<Notify>,
    ) -> Self {
        let table = ServiceTable::of(services);
        Self { template, table, left_out, heard, has_news: true, is_behind: false, looked: None }
    }

    /// Waits until services are to be looked at. It may be dropped before it is ready.
    pub(super) async fn due(&mut self) {
        if !self.has_news {
            let waits = self.is_behind || self.table.is_any_to_go();
            let again = async {
                match waits {
                    true => sleep(LOOK_EVERY).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.heard.notified() => {}
                () = again => {}
            }
            self.has_news = true;
        }
        if let Some(looked) = self.looked {
            sleep_until((looked + FILL_EVERY).into()).await;
        }
    }

    /// What is listed now; the file and the services to fill it with where these are others than before.
    pub(super) fn look(&mut self, snapshot: &Snapshot, now: Instant) -> Option<(Arc<FileText>, Services)> {
        (self.has_news, self.looked) = (false, Some(now));
        let mut lists = Vec::new();
        for upstream in &snapshot.upstreams {
            let Some(config) = &upstream.config.services else { continue };
            let listed = upstream.state.services.listed();
            lists.push(ServiceLookup { upstream: upstream.name().clone(), config: Arc::clone(config), listed });
        }
        let has_backends = |name: &str| {
            let upstream = snapshot.upstreams.iter().find(|it| it.name().as_str() == name);
            upstream.is_some_and(|it| it.state.sources.set().is_some_and(|set| !set.is_empty()))
        };
        self.is_behind |= self.table.update(&lists, now, &has_backends);
        self.show(snapshot);
        let template = self.template.clone().filter(|_| self.is_behind)?;
        Some((template, self.table.services()))
    }

    /// The services to fill a file with that was just read.
    pub(super) fn known(&self) -> Services {
        self.table.services()
    }

    /// The file with services filled in is served from now on.
    pub(super) fn applied(&mut self, template: Option<Arc<FileText>>, left_out: Vec<LeftOut>, snapshot: &Snapshot) {
        (self.template, self.is_behind, self.has_news) = (template, false, true);
        for LeftOut { upstream, service, why } in left_out.iter().filter(|it| !self.left_out.contains(it)) {
            warn!(%upstream, service = %service.name, why, "something of a service is left out");
        }
        self.left_out = left_out;
        self.show(snapshot);
    }

    fn show(&self, snapshot: &Snapshot) {
        for upstream in snapshot.upstreams.iter().filter(|it| it.config.services.is_some()) {
            let served = self.table.served(upstream.name());
            let left_out = self.left_out.iter().filter(|it| it.upstream == *upstream.name()).cloned().collect();
            upstream.state.services.serve(served.collect(), left_out);
        }
    }
}

/// Fills a file that was just read, so that what it says of services is served with those that are known. Blocks.
pub(crate) fn filled(loaded: Loaded, vocabulary: &Vocabulary, known: &Services) -> Loaded {
    let Some(template) = &loaded.template else { return loaded };
    let services = taken(&loaded.config, known);
    match template.fill(vocabulary, &services) {
        // What is odd about the file is told of it as it stands.
        Ok(filled) => Loaded { warnings: loaded.warnings, ..filled },
        // It could be read a moment ago.
        Err(_) => loaded,
    }
}

/// The services among those known that a file takes.
fn taken(config: &Config, known: &Services) -> Services {
    let templates = config.upstreams.iter().filter_map(|it| Some((&it.name, it.services.as_ref()?)));
    let taken = templates.filter_map(|(name, services)| {
        let known = known.get(name)?.iter().filter(|service| services.takes(service));
        Some((name.clone(), known.cloned().collect()))
    });
    taken.collect()
}

/// What is listed for an upstream.
struct ServiceLookup {
    upstream: UpstreamName,
    config: Arc<ServicesConfig>,
    /// `None` where nothing is known yet.
    listed: Option<Arc<[Service]>>,
}

/// Which services are served: a pure machine, which is told what is listed.
#[derive(Debug, Default)]
struct ServiceTable {
    by_upstream: BTreeMap<UpstreamName, BTreeMap<Arc<str>, Presence>>,
    /// How many have come.
    came: u64,
}

#[derive(Debug)]
struct Presence {
    service: Service,
    /// Its place among those that have come: of two that want the same route, the one that was there first has it.
    came: u64,
    /// Where it is listed no more.
    unlisted: Option<Unlisted>,
}

#[derive(Clone, Copy, Debug)]
enum Unlisted {
    /// Its own source still has backends, or holds them back.
    WithBackends,
    /// It has none since then.
    EmptySince(Instant),
}

impl ServiceTable {
    fn of(services: Services) -> Self {
        let mut table = Self::default();
        for (upstream, services) in services {
            let known = table.by_upstream.entry(upstream).or_default();
            for service in services {
                table.came += 1;
                known.insert(Arc::clone(&service.name), Presence { service, came: table.came, unlisted: None });
            }
        }
        table
    }

    /// Takes in what is listed. Says whether other services are to be served than before.
    fn update(&mut self, lists: &[ServiceLookup], now: Instant, has_backends: &dyn Fn(&str) -> bool) -> bool {
        let before = self.by_upstream.len();
        self.by_upstream.retain(|upstream, _| lists.iter().any(|list| list.upstream == *upstream));
        let mut changed = self.by_upstream.len() != before;
        for ServiceLookup { upstream, config, listed } in lists {
            let known = self.by_upstream.entry(upstream.clone()).or_default();
            let before = known.len();
            // What the file does not take, or no longer, goes at once.
            known.retain(|_, it| config.takes(&it.service));
            changed |= known.len() != before;
            let Some(listed) = listed else { continue };
            let taken: BTreeMap<&str, &Service> =
                listed.iter().filter(|it| config.takes(it)).map(|it| (&*it.name, it)).collect();
            for (name, presence) in known.iter_mut().filter(|(name, _)| !taken.contains_key(&***name)) {
                presence.unlisted = Some(match presence.unlisted {
                    _ if has_backends(&made_name(upstream.as_str(), name)) => Unlisted::WithBackends,
                    Some(Unlisted::EmptySince(since)) => Unlisted::EmptySince(since),
                    Some(Unlisted::WithBackends) | None => Unlisted::EmptySince(now),
                });
            }
            let is_refused = |name: &str| listed.iter().any(|it| &*it.name == name && !config.takes(it));
            let too_many = known.len() > 2 * config.max_services;
            let before = known.len();
            known.retain(|name, it| match it.unlisted {
                Some(Unlisted::EmptySince(since)) => !too_many && now.duration_since(since) < config.grace,
                Some(Unlisted::WithBackends) => !is_refused(name),
                None => true,
            });
            changed |= known.len() != before;
            for (name, service) in taken {
                self.came += 1;
                let came = known.get(name).map_or(self.came, |was| was.came);
                let presence = Presence { service: service.clone(), came, unlisted: None };
                let was = known.insert(Arc::from(name), presence);
                changed |= was.is_none_or(|was| was.service != *service);
            }
        }
        changed
    }

    fn is_any_to_go(&self) -> bool {
        self.by_upstream.values().flat_map(BTreeMap::values).any(|it| it.unlisted.is_some())
    }

    fn services(&self) -> Services {
        let all = |known: &BTreeMap<_, Presence>| {
            let mut all: Vec<_> = known.values().collect();
            all.sort_unstable_by_key(|it| it.came);
            all.into_iter().map(|it| it.service.clone()).collect()
        };
        self.by_upstream.iter().map(|(upstream, known)| (upstream.clone(), all(known))).collect()
    }

    fn served(&self, upstream: &UpstreamName) -> impl Iterator<Item = ServedService> {
        let known = self.by_upstream.get(upstream).into_iter().flat_map(BTreeMap::values);
        known.map(|it| ServedService { service: it.service.clone(), is_listed: it.unlisted.is_none() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, tags: &[&str]) -> Service {
        Service::new(name, tags.iter().copied()).unwrap()
    }

    fn lookup(file: &str, listed: Option<&[Service]>) -> Vec<ServiceLookup> {
        let file = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[upstream.s]\nservices = {{ {file} }}\n[[upstream.s.discovery]]\n\
             consul = {{ service = \"{{service}}\" }}\n[[route]]\npath_prefix = \"/{{service}}/\"\nupstream = \"s\"\n"
        );
        let loaded = crate::config::parse(&file, "lb.toml", &|_| None, &Vocabulary::default()).unwrap();
        let config = Arc::clone(loaded.config.upstreams[0].services.as_ref().unwrap());
        vec![ServiceLookup { upstream: "s".into(), config, listed: listed.map(Arc::from) }]
    }

    fn names(table: &ServiceTable) -> Vec<String> {
        table.services().values().flatten().map(|it| it.name.to_string()).collect()
    }

    const ALL: &str = "allow = [\"*\"], deny = [\"secret\"], grace = \"10s\"";

    #[test]
    fn a_service_that_is_listed_no_more_stays_while_it_has_backends_and_for_its_grace() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut table = ServiceTable::default();
        let none = |_: &str| false;
        assert!(table.update(&lookup(ALL, Some(&[service("a", &[]), service("b", &[])])), at(0), &none));
        assert!(!table.update(&lookup(ALL, Some(&[service("a", &[]), service("b", &[])])), at(1), &none));
        assert_eq!((names(&table), table.is_any_to_go()), (vec!["a".into(), "b".into()], false));
        let has = |name: &str| name == "s:b";
        for second in 2..60 {
            assert!(!table.update(&lookup(ALL, Some(&[service("a", &[])])), at(second), &has));
        }
        assert!(table.is_any_to_go() && !table.served(&"s".into()).nth(1).unwrap().is_listed);
        assert!(!table.update(&lookup(ALL, Some(&[service("a", &[])])), at(60), &none));
        assert!(!table.update(&lookup(ALL, Some(&[service("a", &[])])), at(69), &none));
        assert!(table.update(&lookup(ALL, Some(&[service("a", &[])])), at(70), &none));
        assert_eq!((names(&table), table.is_any_to_go()), (vec!["a".into()], false));
    }

    #[test]
    fn an_empty_list_takes_nothing_that_has_backends_and_no_list_takes_nothing() {
        let mut table = ServiceTable::of([("s".into(), vec![service("a", &[])])].into());
        let now = Instant::now();
        assert!(!table.update(&lookup(ALL, None), now, &|_| false));
        assert!(!table.update(&lookup(ALL, Some(&[])), now + Duration::from_secs(3600), &|_| true));
        // It is back: nothing has changed.
        assert!(!table.update(&lookup(ALL, Some(&[service("a", &[])])), now, &|_| true));
        assert!(!table.is_any_to_go());
    }

    #[test]
    fn what_the_file_does_not_take_goes_at_once_and_other_tags_are_another_service() {
        let mut table = ServiceTable::default();
        let now = Instant::now();
        let has = |_: &str| true;
        assert!(table.update(&lookup(ALL, Some(&[service("secret", &[]), service("a", &[])])), now, &has));
        assert_eq!(names(&table), ["a"]);
        assert!(table.update(&lookup(ALL, Some(&[service("a", &["v=2"])])), now, &has));
        assert!(table.update(&lookup("tag = \"v=1\"", Some(&[service("a", &["v=2"])])), now, &has));
        assert_eq!(names(&table), Vec::<String>::new());
        assert!(table.update(&lookup(ALL, Some(&[service("a", &[])])), now, &has));
        assert!(table.update(&[], now, &has));
    }

    #[test]
    fn the_service_that_was_there_first_comes_first() {
        let mut table = ServiceTable::of([("s".into(), vec![service("m", &[])])].into());
        let now = Instant::now();
        table.update(&lookup(ALL, Some(&[service("m", &[]), service("z", &[])])), now, &|_| true);
        let all = [service("a", &[]), service("m", &["x"]), service("z", &[])];
        table.update(&lookup(ALL, Some(&all)), now, &|_| true);
        assert_eq!(names(&table), ["m", "z", "a"]);
    }

    #[test]
    fn names_that_come_and_go_all_the_time_are_not_kept_without_bound() {
        let mut table = ServiceTable::default();
        let now = Instant::now();
        for round in 0..100 {
            let all: Vec<_> = (0..10).map(|it| service(&format!("s{round}-{it}"), &[])).collect();
            table.update(&lookup("allow = [\"*\"], max_services = 10", Some(&all)), now, &|_| false);
            assert!(names(&table).len() <= 30, "{}", names(&table).len());
        }
    }
}
