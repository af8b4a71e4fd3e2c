//! Where the backends of an upstream come from: its file, and what discovery has found besides.
//!
//! Each source reports complete sets; the last good one of each counts until the next. The file is the first source, and the
//! first that knows an address says what that backend is. A name stands for its addresses: what looks it up is a source of its own, and each
//! address that it finds is a backend of which all is said that is said of the name. Outlives reloads, with the upstream's state.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::backend::admission::Admission;
use crate::backend::{BackendSet, Instance};
use crate::config::Address;

/// The last report of each source.
#[derive(Debug, Default)]
pub struct Sources {
    reports: Mutex<Reports>,
    /// Whether the first answer of a source is awaited, or the first one to the look-up of a name.
    awaits_backends: AtomicBool,
    inbox: OnceLock<Inbox>,
}

/// A name of backends, with their port.
pub type NamedHost = (Arc<str>, u16);

#[derive(Debug, Default)]
struct Reports {
    /// `None` until the file was committed for the first time.
    file: Option<SourceReport>,
    /// In the order in which they count.
    found: Vec<Slot>,
    /// The look-ups of the names that these say.
    names: BTreeMap<NamedHost, Slot>,
}

/// A source that may report.
#[derive(Debug)]
struct Slot {
    id: SourceId,
    report: Option<SourceReport>,
}

/// Tells apart the sources that this process has followed: one that takes the place of another has the same name. The default is the file's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SourceId(pub u64);

/// How it stands with a source.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceReport {
    /// Which source.
    pub id: SourceId,
    /// The source's name: unique in its upstream.
    pub source: Arc<str>,
    /// The last good set, with the backends that are held back; `None` before the first.
    pub set: Option<BackendSet>,
    /// Whether it answers.
    pub condition: SourceCondition,
    /// Since when that is so.
    pub since: SystemTime,
    /// The index or version of the last good answer, where it has one.
    pub revision: Option<Arc<str>>,
    /// When the last good answer came; of a set that an earlier process has left, when that was.
    pub answered: Option<SystemTime>,
    /// Since when each backend of the set is said to be there.
    pub said_since: Arc<HashMap<Address, SystemTime>>,
    /// What is wrong with entries of the last good answer that were left out, a word on each.
    pub refused: Arc<[String]>,
    /// Which addresses are believed of the names that it says; `None`: all.
    pub admission: Option<Arc<Admission>>,
    /// Whether it is asked, so that its first answer comes in a moment; `false` where it waits to be told something.
    pub is_asked: bool,
    /// Backends that it names and that are not served with yet, because they came and went again and again.
    pub damped: usize,
}

impl SourceReport {
    /// Nothing yet.
    pub fn awaited(id: SourceId, source: Arc<str>) -> Self {
        Self {
            id,
            source,
            set: None,
            condition: SourceCondition::Awaited,
            since: SystemTime::now(),
            revision: None,
            answered: None,
            said_since: Arc::default(),
            refused: Arc::default(),
            admission: None,
            is_asked: false,
            damped: 0,
        }
    }

    /// For how long it is not known at `now` whether the set is still right: since the last good answer, while the source gives none.
    pub fn stale(&self, now: SystemTime) -> Duration {
        match self.condition {
            SourceCondition::Current | SourceCondition::Holding { .. } => Duration::ZERO,
            SourceCondition::Awaited | SourceCondition::Failing { .. } => {
                now.duration_since(self.answered.unwrap_or(self.since)).unwrap_or_default()
            }
        }
    }
}

/// Whether a source answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceCondition {
    /// It has not answered yet. A set that an earlier process has left counts meanwhile.
    Awaited,
    /// Its last answer was good.
    Current,
    /// Its last answer was good, but too many backends are missing in it at once. They are served with until that is confirmed.
    Holding {
        /// How many are held back.
        backends: usize,
    },
    /// Its last answer was none. The last good set still counts.
    Failing {
        /// What went wrong the last time.
        error: String,
    },
}

impl SourceCondition {
    /// In a word: `awaited`, `current`, `holding` or `failing`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Awaited => "awaited",
            Self::Current => "current",
            Self::Holding { .. } => "holding",
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
            let report = SourceReport::awaited(SourceId::default(), FILE.into());
            let now = report.since;
            let said_since = Arc::new(set.iter().map(|it| (it.address.clone(), now)).collect());
            let set = Some(set.clone());
            reports.file = Some(SourceReport {
                set,
                condition: SourceCondition::Current,
                answered: Some(now),
                said_since,
                ..report
            });
        }
    }

    /// From now on these report, in the order in which they count, and no others. What is known of each stays. Control plane only.
    pub fn arrange(&self, sources: &[SourceId]) {
        let mut reports = self.lock();
        let mut before = std::mem::take(&mut reports.found);
        reports.found = sources
            .iter()
            .map(|&id| {
                let known = before.iter_mut().find(|slot| slot.id == id);
                Slot { id, report: known.and_then(|slot| slot.report.take()) }
            })
            .collect();
        self.awaits_backends.store(reports.await_backends(), Ordering::Relaxed);
    }

    /// Takes what a source of discovery has to say in place of what it said before. One that is not among those that report, or no
    /// longer, is not listened to. Control plane only.
    pub fn report(&self, report: SourceReport) {
        let mut reports = self.lock();
        let Reports { found, names, .. } = &mut *reports;
        if let Some(slot) = found.iter_mut().chain(names.values_mut()).find(|slot| slot.id == report.id) {
            slot.report = Some(report);
        }
        self.awaits_backends.store(reports.await_backends(), Ordering::Relaxed);
    }

    /// The names that sources say, each of which is to be looked up. Control plane only.
    pub fn names(&self) -> BTreeSet<NamedHost> {
        let reports = self.lock();
        let sets = reports.file.iter().chain(reports.found()).filter_map(|report| report.set.as_ref());
        let addresses = sets.flat_map(BackendSet::iter).map(|instance| &instance.address);
        addresses.filter_map(named).collect()
    }

    /// From now on these look-ups report, and no others. What is known of each stays. Control plane only.
    pub fn arrange_names(&self, look_ups: impl IntoIterator<Item = (NamedHost, SourceId)>) {
        let mut reports = self.lock();
        let mut before = std::mem::take(&mut reports.names);
        let slots = look_ups.into_iter().map(|(name, id)| {
            let known = before.remove(&name).filter(|slot| slot.id == id);
            (name, known.unwrap_or(Slot { id, report: None }))
        });
        reports.names = slots.collect();
        self.awaits_backends.store(reports.await_backends(), Ordering::Relaxed);
    }

    /// Whether there is a source, or a name, of which nothing is known yet because it is asked for the first time: backends may be there in a
    /// moment.
    pub fn awaits_backends(&self) -> bool {
        self.awaits_backends.load(Ordering::Relaxed)
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
        let names = reports.names.values().filter_map(|slot| slot.report.as_ref());
        reports.file.iter().chain(reports.found()).chain(names).cloned().collect()
    }

    /// Where sets are left that are sent to the admin address.
    pub fn inbox(&self) -> &Inbox {
        self.inbox.get_or_init(Inbox::default)
    }

    fn lock(&self) -> MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reports {
    fn found(&self) -> impl Iterator<Item = &SourceReport> {
        self.found.iter().filter_map(|slot| slot.report.as_ref())
    }

    fn merged(&self, file: &BackendSet) -> BackendSet {
        let found = || self.found().filter_map(|report| Some((report.set.as_ref()?, report.admission.as_deref())));
        let sets = || [(file, None)].into_iter().chain(found());
        if !sets().any(|(set, _)| set.iter().any(|it| named(&it.address).is_some())) {
            return BackendSet::merged(sets().map(|(set, _)| set));
        }
        let instances = sets().flat_map(|(set, admission)| set.iter().map(move |it| (it, admission)));
        BackendSet::in_order(instances.flat_map(|(instance, admission)| self.resolved(instance, admission)))
    }

    /// The backends that an instance is: itself, or each address of its name that may be believed.
    fn resolved(&self, instance: &Arc<Instance>, admission: Option<&Admission>) -> Vec<Arc<Instance>> {
        let Some(name) = named(&instance.address) else { return vec![Arc::clone(instance)] };
        let found = self.names.get(&name).and_then(|slot| slot.report.as_ref()?.set.as_ref());
        let addresses = found.iter().flat_map(|set| set.iter()).map(|it| &it.address);
        let believed = addresses.filter(|address| admission.is_none_or(|it| it.refuse(address).is_none()));
        believed.map(|address| Arc::new(Instance { address: address.clone(), ..Instance::clone(instance) })).collect()
    }

    fn await_backends(&self) -> bool {
        let awaited = |report: &SourceReport| report.condition == SourceCondition::Awaited && report.set.is_none();
        self.names.values().any(|slot| slot.report.as_ref().is_none_or(awaited))
            || self.found().any(|report| report.is_asked && awaited(report))
    }
}

/// The name that an address is, where it is one.
pub fn named(address: &Address) -> Option<NamedHost> {
    match address {
        Address::Name(host, port) => Some((Arc::clone(host), *port)),
        Address::Ip(_) | Address::Resolved(..) => None,
    }
}

/// Where sets are left that are sent to the admin address, for the source that takes them from there.
#[derive(Debug)]
pub struct Inbox(watch::Sender<Option<BackendSet>>);

impl Default for Inbox {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Inbox {
    /// Leaves a set there, if `may` says so of the one that is there. Whether it did.
    pub fn put(&self, set: BackendSet, may: impl FnOnce(Option<&BackendSet>) -> bool) -> bool {
        self.0.send_if_modified(|there| {
            let put = may(there.as_ref());
            if put {
                *there = Some(set);
            }
            put
        })
    }

    /// What is there.
    pub fn look(&self) -> Option<BackendSet> {
        self.0.borrow().clone()
    }

    /// Is told of what is left there.
    pub fn subscribe(&self) -> watch::Receiver<Option<BackendSet>> {
        let mut receiver = self.0.subscribe();
        receiver.mark_changed();
        receiver
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

    fn report(id: u64, set: Option<BackendSet>, condition: SourceCondition) -> SourceReport {
        SourceReport { set, condition, ..SourceReport::awaited(SourceId(id), format!("source {id}").into()) }
    }

    #[test]
    fn what_each_last_said_is_served_and_nothing_before_the_file_is_known() {
        let sources = Sources::default();
        sources.arrange(&[SourceId(1), SourceId(2)]);
        sources.report(report(1, Some(set(&[2, 3])), SourceCondition::Current));
        assert_eq!(sources.set(), None);
        assert_eq!(sources.set_with(&set(&[1])), set(&[1, 2, 3]));
        sources.file_says(&set(&[1]));
        assert_eq!(sources.set(), Some(set(&[1, 2, 3])));
        // One that fails keeps its last set; one that is awaited has none yet.
        sources.report(report(1, Some(set(&[3])), SourceCondition::Failing { error: "refused".into() }));
        sources.report(report(2, None, SourceCondition::Awaited));
        assert_eq!(sources.set(), Some(set(&[1, 3])));
        let look: Vec<_> = sources.look().iter().map(|it| (it.source.to_string(), it.condition.as_str())).collect();
        let expected = [("file", "current"), ("source 1", "failing"), ("source 2", "awaited")];
        assert_eq!(look, expected.map(|(name, condition)| (name.to_owned(), condition)));
    }

    #[test]
    fn sources_count_in_their_order_and_one_that_is_gone_is_not_listened_to() {
        let sources = Sources::default();
        sources.file_says(&set(&[]));
        sources.arrange(&[SourceId(1), SourceId(2)]);
        sources.report(report(2, Some(set(&[2])), SourceCondition::Current));
        sources.report(report(1, Some(set(&[1])), SourceCondition::Current));
        let order = |sources: &Sources| sources.look().iter().map(|it| it.id.0).collect::<Vec<_>>();
        assert_eq!(order(&sources), [0, 1, 2]);
        sources.arrange(&[SourceId(3), SourceId(2)]);
        // It was about to say something when it ended.
        sources.report(report(1, Some(set(&[1])), SourceCondition::Current));
        assert_eq!((order(&sources), sources.set()), (vec![0, 2], Some(set(&[2]))));
        sources.report(report(3, Some(set(&[3])), SourceCondition::Current));
        assert_eq!(order(&sources), [0, 3, 2]);
    }

    #[test]
    fn a_source_is_stale_since_its_last_good_answer_while_it_gives_none() {
        let now = SystemTime::now();
        let at = |seconds| Some(now - Duration::from_secs(seconds));
        let of = |condition, answered| SourceReport { answered, ..report(1, None, condition) }.stale(now).as_secs();
        assert_eq!(of(SourceCondition::Current, at(100)), 0);
        assert_eq!(of(SourceCondition::Holding { backends: 3 }, at(100)), 0);
        assert_eq!(of(SourceCondition::Failing { error: String::new() }, at(100)), 100);
        assert_eq!(of(SourceCondition::Awaited, at(100)), 100);
        assert_eq!(of(SourceCondition::Awaited, None), 0);
    }

    #[test]
    fn a_name_stands_for_its_addresses_and_what_is_said_of_it_is_said_of_each() {
        let sources = Sources::default();
        let name = |weight| Instance { weight, ..Instance::new("u.internal:80".parse().unwrap()) };
        sources.file_says(&BackendSet::in_order(
            [name(3), Instance::new("10.0.0.9:80".parse().unwrap())].map(Arc::new).into_iter(),
        ));
        let host: NamedHost = ("u.internal".into(), 80);
        assert_eq!(sources.names(), BTreeSet::from([host.clone()]));
        let weights = |sources: &Sources| {
            let set = sources.set().unwrap();
            set.iter().map(|it| (it.address.to_string(), it.weight)).collect::<Vec<_>>()
        };
        let own = ("10.0.0.9:80".to_owned(), 1);
        // A roster never has a name in it.
        assert_eq!(weights(&sources), std::slice::from_ref(&own));
        assert!(!sources.awaits_backends());
        sources.arrange_names([(host.clone(), SourceId(7))]);
        assert!(sources.awaits_backends());
        let found = |addresses: &[&str]| {
            let set = addresses.iter().map(|it| Instance::new(format!("u.internal@{it}").parse().unwrap())).collect();
            SourceReport { set: Some(set), ..report(7, None, SourceCondition::Current) }
        };
        sources.report(found(&["10.0.0.2:80", "169.254.1.1:80"]));
        assert!(!sources.awaits_backends());
        let both = |weight| ["10.0.0.2", "169.254.1.1"].map(|ip| (format!("u.internal@{ip}:80"), weight));
        assert_eq!(weights(&sources), [&both(3)[..], std::slice::from_ref(&own)].concat());
        // A registry that says the name is believed less than the file.
        sources.file_says(&set(&[]));
        sources.arrange(&[SourceId(1)]);
        let config = <crate::config::DiscoveryConfig as crate::config::Table>::of_defaults();
        let admission = Some(Arc::new(Admission::new(&config)));
        let said = Some(BackendSet::new([name(5)]));
        sources.report(SourceReport { admission, ..report(1, said, SourceCondition::Current) });
        assert_eq!(weights(&sources), both(5)[..1]);
        // Another look-up knows nothing of what the one before has found.
        sources.arrange_names([(host, SourceId(8))]);
        assert_eq!(weights(&sources), []);
        sources.report(found(&["10.0.0.2:80"]));
        assert_eq!(weights(&sources), []);
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
