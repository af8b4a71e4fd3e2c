//! Services that come and go, for upstreams with `services`: which of them are served, and when the file is filled with them anew.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until};
use tracing::warn;

use crate::config::{
    FileText, LeftOut, Loaded, Service, Services, ServicesConfig, UpstreamName, Vocabulary, made_name,
};
use crate::proxy::Snapshot;
use crate::upstream::Upstream;
use crate::upstream::services::ServedService;

/// The file is filled no more often than this: services that come together are taken together.
const FILL_EVERY: Duration = Duration::from_millis(250);

/// Nor for more than a part of the time, where that takes long: the next waits so many times as long as the last took.
const FILL_PAUSE: u32 = 4;

/// How often services are looked at that are to go.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The services that are served, and the file that they are filled into.
#[derive(Debug)]
pub(super) struct ServedServices {
    template: Option<Arc<FileText>>,
    /// What tags begin with that say routes.
    prefixes: Arc<[Arc<str>]>,
    table: ServiceTable,
    left_out: Vec<LeftOut>,
    heard: Arc<Notify>,
    /// Whether there is something to look at.
    has_news: bool,
    /// Whether what the table says is not what is served.
    is_behind: bool,
    /// When they were looked at last, and when that may be done again.
    looked: Option<Instant>,
    next: Option<Instant>,
}

/// Services to fill a file with.
#[derive(Clone, Debug, Default)]
pub(super) struct ServicesToFill {
    /// Those that are served as they are.
    pub(super) settled: Services,
    /// Those that are new, have changed, or could not be taken the last time.
    pub(super) others: Services,
}

impl ServedServices {
    /// Of a start: the file with these filled in.
    pub(super) fn new(first: FirstServices, heard: Arc<Notify>) -> Self {
        let FirstServices { template, prefixes, services, left_out } = first;
        let mut table = ServiceTable::of(services);
        table.settle(&left_out);
        let (has_news, is_behind) = (true, false);
        Self { template, prefixes, table, left_out, heard, has_news, is_behind, looked: None, next: None }
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
        if let Some(next) = self.next {
            sleep_until(next.into()).await;
        }
    }

    /// What is listed now; the file and the services to fill it with where these are others than before.
    pub(super) fn look(&mut self, snapshot: &Snapshot, now: Instant) -> Option<(Arc<FileText>, ServicesToFill)> {
        (self.has_news, self.looked, self.next) = (false, Some(now), Some(now + FILL_EVERY));
        let mut lists = Vec::new();
        for upstream in &snapshot.upstreams {
            let Some(config) = &upstream.config.services else { continue };
            let listed = upstream.state.services.listed();
            lists.push(ServiceLookup { upstream: upstream.name().clone(), config: Arc::clone(config), listed });
        }
        let by_name: HashMap<&str, &Arc<Upstream>> =
            snapshot.upstreams.iter().map(|it| (it.name().as_str(), it)).collect();
        let has_backends = |name: &str| {
            let set = by_name.get(name).and_then(|upstream| upstream.state.sources.set());
            set.is_some_and(|set| !set.is_empty())
        };
        self.is_behind |= self.table.update(&lists, &self.prefixes, now, &has_backends);
        self.show(snapshot);
        let template = self.template.clone().filter(|_| self.is_behind)?;
        Some((template, self.table.services()))
    }

    /// The file was filled, whatever came of it.
    pub(super) fn filled(&mut self, now: Instant) {
        if let Some(looked) = self.looked {
            let took = now.saturating_duration_since(looked);
            self.next = Some(now + FILL_EVERY.max(took * FILL_PAUSE));
        }
    }

    /// The services to fill a file with that was just read.
    pub(super) fn known(&self) -> ServicesToFill {
        self.table.services()
    }

    /// A file with services filled in is served from now on.
    pub(super) fn applied(&mut self, filled: FilledFile, snapshot: &Snapshot) {
        let FilledFile { template, prefixes, left_out } = filled;
        (self.template, self.prefixes, self.is_behind, self.has_news) = (template, prefixes, false, true);
        let told: HashSet<_> = self.left_out.iter().map(|it| (&it.upstream, &it.service.name, &it.why)).collect();
        for it in left_out.iter().filter(|it| !told.contains(&(&it.upstream, &it.service.name, &it.why))) {
            warn!(upstream = %it.upstream, service = %it.service.name, why = it.why, "left out of a service");
        }
        self.table.settle(&left_out);
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

/// What is known of services at a start.
#[derive(Debug, Default)]
pub(crate) struct FirstServices {
    /// The file, where services are filled into it.
    pub(crate) template: Option<Arc<FileText>>,
    /// What tags begin with that say routes.
    pub(crate) prefixes: Arc<[Arc<str>]>,
    /// Those that were filled in.
    pub(crate) services: Services,
    /// What of them could not be taken.
    pub(crate) left_out: Vec<LeftOut>,
}

/// What is known of a file that was filled.
#[derive(Debug)]
pub(super) struct FilledFile {
    pub(super) template: Option<Arc<FileText>>,
    pub(super) prefixes: Arc<[Arc<str>]>,
    pub(super) left_out: Vec<LeftOut>,
}

/// Fills a file that is read at a start with what is known of services. Blocks.
pub(crate) fn first(loaded: Loaded, vocabulary: &Vocabulary, known: &Services) -> (Loaded, FirstServices) {
    let services = usable(&loaded, known);
    let to_fill = ServicesToFill { settled: Services::new(), others: services.clone() };
    let Loaded { config, warnings, template, service_tags, left_out } = filled(loaded, vocabulary, &to_fill);
    let first = FirstServices { template, prefixes: Arc::clone(&service_tags), services, left_out };
    (Loaded { config, warnings, template: None, service_tags, left_out: Vec::new() }, first)
}

/// Fills a file that was just read, so that what it says of services is served with those that are known. Blocks.
pub(super) fn filled(loaded: Loaded, vocabulary: &Vocabulary, known: &ServicesToFill) -> Loaded {
    let Some(template) = &loaded.template else { return loaded };
    match template.fill(vocabulary, &usable(&loaded, &known.settled), &usable(&loaded, &known.others)) {
        // What is odd about the file is told of it as it stands.
        Ok(filled) => Loaded { warnings: loaded.warnings, ..filled },
        // It could be read a moment ago.
        Err(_) => loaded,
    }
}

/// The services among those known that a file takes, with those of their tags that mean something to it.
fn usable(loaded: &Loaded, known: &Services) -> Services {
    let templates = loaded.config.upstreams.iter().filter_map(|it| Some((&it.name, it.services.as_ref()?)));
    let taken = templates.filter_map(|(name, services)| {
        let known = known.get(name)?.iter().filter(|service| services.takes(service));
        Some((name.clone(), known.map(|service| services.reduced(service, &loaded.service_tags)).collect()))
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
    /// Its place among those that have come.
    came: u64,
    /// Whether it is served as it is: of two that want the same route, one that has it keeps it.
    is_settled: bool,
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
                known.insert(
                    Arc::clone(&service.name),
                    Presence { service, came: table.came, is_settled: false, unlisted: None },
                );
            }
        }
        table
    }

    /// Takes in what is listed. Says whether other services are to be served than before. `prefixes` are those of tags that say routes.
    fn update(
        &mut self,
        lists: &[ServiceLookup],
        prefixes: &[Arc<str>],
        now: Instant,
        has_backends: &dyn Fn(&str) -> bool,
    ) -> bool {
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
            let taken: BTreeMap<&str, Service> = listed
                .iter()
                .filter(|it| config.takes(it))
                .map(|it| (&*it.name, config.reduced(it, prefixes)))
                .collect();
            // A list of which the file now takes more than may be is a failure, which its next answer tells.
            if taken.len() > config.max_services {
                continue;
            }
            let refused: HashSet<&str> =
                listed.iter().map(|it| &*it.name).filter(|name| !taken.contains_key(name)).collect();
            for (name, presence) in known.iter_mut().filter(|(name, _)| !taken.contains_key(&***name)) {
                presence.unlisted = Some(match presence.unlisted {
                    _ if has_backends(&made_name(upstream.as_str(), name)) => Unlisted::WithBackends,
                    Some(Unlisted::EmptySince(since)) => Unlisted::EmptySince(since),
                    Some(Unlisted::WithBackends) | None => Unlisted::EmptySince(now),
                });
            }
            let before = known.len();
            known.retain(|name, it| match it.unlisted {
                Some(_) if refused.contains(&**name) => false,
                Some(Unlisted::EmptySince(since)) => now.duration_since(since) < config.grace,
                Some(Unlisted::WithBackends) | None => true,
            });
            forget_oldest(known, taken.len(), config.max_services);
            changed |= known.len() != before;
            for (name, service) in taken {
                self.came += 1;
                let was = known.get(name);
                let is_same = was.is_some_and(|was| was.service == service);
                let came = was.map_or(self.came, |was| was.came);
                let is_settled = is_same && was.is_some_and(|was| was.is_settled);
                known.insert(Arc::from(name), Presence { service, came, is_settled, unlisted: None });
                changed |= !is_same;
            }
        }
        changed
    }

    /// All are served as they are but for these.
    fn settle(&mut self, left_out: &[LeftOut]) {
        let left_out: HashSet<_> = left_out.iter().map(|it| (&it.upstream, &it.service.name)).collect();
        for (upstream, known) in &mut self.by_upstream {
            for (name, it) in known {
                it.is_settled = !left_out.contains(&(upstream, name));
            }
        }
    }

    fn is_any_to_go(&self) -> bool {
        self.by_upstream.values().flat_map(BTreeMap::values).any(|it| it.unlisted.is_some())
    }

    fn services(&self) -> ServicesToFill {
        let those = |settled: bool| {
            let of = |known: &BTreeMap<_, Presence>| {
                let mut all: Vec<_> = known.values().filter(|it| it.is_settled == settled).collect();
                all.sort_unstable_by_key(|it| it.came);
                all.into_iter().map(|it| it.service.clone()).collect()
            };
            self.by_upstream.iter().map(|(upstream, known)| (upstream.clone(), of(known))).collect()
        };
        ServicesToFill { settled: those(true), others: those(false) }
    }

    fn served(&self, upstream: &UpstreamName) -> impl Iterator<Item = ServedService> {
        let known = self.by_upstream.get(upstream).into_iter().flat_map(BTreeMap::values);
        known.map(|it| ServedService { service: it.service.clone(), is_listed: it.unlisted.is_none() })
    }
}

/// Those that are listed no more are no more than may be listed: a registry may name others all the time.
fn forget_oldest(known: &mut BTreeMap<Arc<str>, Presence>, listed: usize, most: usize) {
    let mut unlisted: Vec<_> =
        known.iter().filter(|(_, it)| it.unlisted.is_some()).map(|(name, it)| (it.came, Arc::clone(name))).collect();
    let too_many = (unlisted.len() + listed).saturating_sub(2 * most);
    unlisted.sort_unstable();
    for (_, name) in unlisted.into_iter().take(too_many) {
        known.remove(&name);
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

    /// Tags that begin with `x` mean something.
    fn update(table: &mut ServiceTable, lists: &[ServiceLookup], now: Instant, has: &dyn Fn(&str) -> bool) -> bool {
        table.update(lists, &["x".into()], now, has)
    }

    fn names(table: &ServiceTable) -> Vec<String> {
        let ServicesToFill { settled, others } = table.services();
        settled.values().chain(others.values()).flatten().map(|it| it.name.to_string()).collect()
    }

    const ALL: &str = "allow = [\"*\"], deny = [\"secret\"], grace = \"10s\"";

    #[test]
    fn a_service_that_is_listed_no_more_stays_while_it_has_backends_and_for_its_grace() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut table = ServiceTable::default();
        let none = |_: &str| false;
        assert!(update(&mut table, &lookup(ALL, Some(&[service("a", &[]), service("b", &[])])), at(0), &none));
        assert!(!update(&mut table, &lookup(ALL, Some(&[service("a", &[]), service("b", &[])])), at(1), &none));
        assert_eq!((names(&table), table.is_any_to_go()), (vec!["a".into(), "b".into()], false));
        let has = |name: &str| name == "s:b";
        for second in 2..60 {
            assert!(!update(&mut table, &lookup(ALL, Some(&[service("a", &[])])), at(second), &has));
        }
        assert!(table.is_any_to_go() && !table.served(&"s".into()).nth(1).unwrap().is_listed);
        assert!(!update(&mut table, &lookup(ALL, Some(&[service("a", &[])])), at(60), &none));
        assert!(!update(&mut table, &lookup(ALL, Some(&[service("a", &[])])), at(69), &none));
        assert!(update(&mut table, &lookup(ALL, Some(&[service("a", &[])])), at(70), &none));
        assert_eq!((names(&table), table.is_any_to_go()), (vec!["a".into()], false));
    }

    #[test]
    fn an_empty_list_takes_nothing_that_has_backends_and_no_list_takes_nothing() {
        let mut table = ServiceTable::of([("s".into(), vec![service("a", &[])])].into());
        let now = Instant::now();
        assert!(!update(&mut table, &lookup(ALL, None), now, &|_| false));
        assert!(!update(&mut table, &lookup(ALL, Some(&[])), now + Duration::from_secs(3600), &|_| true));
        // It is back: nothing has changed.
        assert!(!update(&mut table, &lookup(ALL, Some(&[service("a", &[])])), now, &|_| true));
        assert!(!table.is_any_to_go());
    }

    #[test]
    fn what_the_file_does_not_take_goes_at_once_and_other_tags_are_another_service() {
        let mut table = ServiceTable::default();
        let now = Instant::now();
        let has = |_: &str| true;
        assert!(update(&mut table, &lookup(ALL, Some(&[service("secret", &[]), service("a", &[])])), now, &has));
        assert_eq!(names(&table), ["a"]);
        assert!(update(&mut table, &lookup(ALL, Some(&[service("a", &["x=2"])])), now, &has));
        assert!(update(&mut table, &lookup("tag = \"v=1\"", Some(&[service("a", &["v=2"])])), now, &has));
        assert_eq!(names(&table), Vec::<String>::new());
        assert!(update(&mut table, &lookup(ALL, Some(&[service("a", &[])])), now, &has));
        assert!(table.update(&[], &[], now, &has));
    }

    #[test]
    fn the_service_that_was_there_first_comes_first() {
        let mut table = ServiceTable::of([("s".into(), vec![service("m", &[])])].into());
        let now = Instant::now();
        update(&mut table, &lookup(ALL, Some(&[service("m", &[]), service("z", &[])])), now, &|_| true);
        table.settle(&[]);
        let all = [service("a", &[]), service("m", &["x"]), service("z", &["another"])];
        update(&mut table, &lookup(ALL, Some(&all)), now, &|_| true);
        // What has changed what it wants is behind those that are served, and tags that mean nothing are no change.
        assert_eq!(names(&table), ["z", "m", "a"]);
    }

    #[test]
    fn names_that_come_and_go_all_the_time_are_not_kept_without_bound() {
        let now = Instant::now();
        for have_backends in [false, true] {
            let mut table = ServiceTable::default();
            for round in 0..100 {
                let all: Vec<_> = (0..10).map(|it| service(&format!("s{round}-{it}"), &[])).collect();
                let file = "allow = [\"*\"], max_services = 10";
                update(&mut table, &lookup(file, Some(&all)), now, &|_| have_backends);
                let names = names(&table);
                assert!(names.len() <= 20 && all.iter().all(|it| names.contains(&it.name.to_string())), "{names:?}");
            }
            // A file that lets through more than may be takes nothing of the list.
            let before = names(&table);
            let all: Vec<_> = (0..21).map(|it| service(&format!("t{it}"), &[])).collect();
            update(&mut table, &lookup("allow = [\"*\"], max_services = 20", Some(&all)), now, &|_| have_backends);
            assert_eq!(names(&table), before);
        }
    }
}
