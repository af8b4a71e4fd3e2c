//! The one loop that asks sources, and hands what they find to their upstreams.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::first_look::{FirstLook, FirstLooks};
use super::progress::{ProgressStep, Rules, SourceProgress, counted};
use super::store::{Key, Left, Store, write_behind};
use super::{Answer, AnyDiscovery, Discovery, DiscoveryError, source};
use crate::backend::BackendSet;
use crate::backend::admission::Admission;
use crate::config::{Address, DiscoveryConfig, UpstreamName};
use crate::telemetry::events::{EventKind, Events};
use crate::upstream::sources::{SourceCondition, SourceId, SourceReport};
use crate::upstream::{Upstream, UpstreamState};

/// How long a start waits for files of sources that are read before the first request; and a reload, which health checks wait for meanwhile.
const START_PATIENCE: Duration = Duration::from_secs(3);
const RELOAD_PATIENCE: Duration = Duration::from_millis(500);

/// How long a stop waits for what is not on disk yet.
const LAST_WRITING: Duration = Duration::from_secs(2);

/// How often it is looked whether backends that are held back have failed, or are over their time.
const REVIEW_EVERY: Duration = Duration::from_secs(1);

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
    /// Of the program. They outlive upstreams: what they find waits for one of their name.
    given: Vec<Given>,
    /// Of the configuration.
    configured: Vec<Configured>,
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
    feed: Feed,
}

impl Configured {
    fn key(&self) -> SourceKey {
        (Arc::as_ptr(&self.state), Arc::clone(&self.config.name))
    }
}

/// A source by its upstream and its name.
type SourceKey = (*const UpstreamState, Arc<str>);

/// Follows one source until it is dropped.
#[derive(Debug)]
struct Feed {
    id: SourceId,
    /// The upstream that it reports to; `None` while the file has no such upstream.
    target: watch::Sender<Option<Arc<UpstreamState>>>,
    /// What it has reported last, or would have.
    last: LastReport,
    task: JoinHandle<()>,
}

type LastReport = Arc<Mutex<Option<SourceReport>>>;

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Feeds {
    /// Follows these sources, and those of the upstreams' configurations. What they can say at once they have said when this returns. It waits
    /// for a few seconds at most, for what is read from disks. The last good sets are kept in `state_dir`, if there is one. Inside a runtime only.
    pub fn start(
        found: Vec<FoundBackends>,
        upstreams: &[Arc<Upstream>],
        state_dir: Option<&Path>,
        events: &Events,
    ) -> Self {
        let disk = state_dir.map(|dir| {
            let store = Store::new(dir);
            let writing = write_behind(Arc::clone(&store));
            let writer = tokio::spawn(events.vital().clone().watch("the last good sets on disk".into(), writing));
            Disk { store, writer }
        });
        let mut feeds = Self { events: events.clone(), disk, given: Vec::new(), configured: Vec::new() };
        let states: HashMap<_, _> = upstreams.iter().map(|it| (it.name(), &it.state)).collect();
        for FoundBackends { upstream, name, discovery } in found {
            let state = states.get(&upstream).map(|&state| Arc::clone(state));
            let beginning = Beginning::given(upstream.clone(), name, discovery, &feeds.events);
            if let Some(state) = &state {
                let known = feeds.given.iter().filter(|it| it.upstream == upstream).map(|it| it.feed.id);
                state.sources.arrange(&known.chain([beginning.reporter.id]).collect::<Vec<_>>());
            }
            feeds.given.push(Given { upstream, feed: beginning.follow(state) });
        }
        let looks = feeds.look(upstreams, START_PATIENCE);
        feeds.follow(upstreams, looks);
        feeds
    }

    /// Says to an upstream that is about to be served, and was not before, what the program's sources know of its backends.
    pub fn introduce(&self, state: &UpstreamState) {
        let given: Vec<_> = self.given.iter().filter(|it| it.upstream == state.name).collect();
        state.sources.arrange(&given.iter().map(|it| it.feed.id).collect::<Vec<_>>());
        for Given { feed, .. } in given {
            let last = feed.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
            last.into_iter().for_each(|report| state.sources.report(report));
        }
    }

    /// What is on disk of the sources that [`Feeds::follow`] will begin. Waits for half a second at most, for disks. Inside a runtime only.
    pub fn look_ahead(&self, upstreams: &[Arc<Upstream>]) -> FirstLooks {
        self.look(upstreams, RELOAD_PATIENCE)
    }

    fn look(&self, upstreams: &[Arc<Upstream>], patience: Duration) -> FirstLooks {
        let known: HashMap<_, _> = self.configured.iter().map(|it| (it.key(), &it.config)).collect();
        let sources = upstreams.iter().flat_map(|it| it.config.discovery.iter().map(move |config| (it, config)));
        let begin = sources.filter(|(upstream, config)| {
            let key = (Arc::as_ptr(&upstream.state), Arc::clone(&config.name));
            known.get(&key) != Some(config)
        });
        let store = self.disk.as_ref().map(|disk| &disk.store);
        FirstLooks::read(begin.map(|(upstream, config)| (upstream.name(), config)), store, patience)
    }

    /// Reports to these upstreams from now on, and to no others, and follows the sources that their configurations have: one that is as it was
    /// goes on, others begin and end. What those that begin can say at once they have said when this returns; it does not wait, nor read: what
    /// was on disk is in `looks`. Inside a runtime only.
    pub fn follow(&mut self, upstreams: &[Arc<Upstream>], mut looks: FirstLooks) {
        for Given { upstream, feed } in &self.given {
            let state = upstreams.iter().find(|it| it.name() == upstream).map(|it| &it.state);
            feed.target.send_if_modified(|target| {
                let other = target.as_ref().map(Arc::as_ptr) != state.map(Arc::as_ptr);
                *target = state.map(Arc::clone);
                other
            });
        }
        let mut before = Before::new(std::mem::take(&mut self.configured));
        for upstream in upstreams {
            let (mut kept, mut begun) = (Vec::new(), Vec::new());
            for config in &upstream.config.discovery {
                let known = before.take(&upstream.state, config);
                let id = known.as_ref().map_or_else(next_id, |known| known.feed.id);
                kept.push(id);
                match known {
                    Some(known) => self.configured.push(known),
                    None => begun.push((id, config)),
                }
            }
            let given = self.given.iter().filter(|it| it.upstream == *upstream.name()).map(|it| it.feed.id);
            kept.extend(given);
            upstream.state.sources.arrange(&kept);
            for (id, config) in begun {
                let FirstLook { left, file } = looks.take(upstream.name(), config);
                let look = FirstLook { left: before.left_by(&upstream.state, config).or(left), file };
                self.configured.push(self.begin(id, &upstream.state, config, look));
            }
        }
    }

    fn begin(&self, id: SourceId, state: &Arc<UpstreamState>, config: &DiscoveryConfig, look: FirstLook) -> Configured {
        let saves = |disk: &Disk| (Arc::clone(&disk.store), Arc::new(Key::new(&state.name, config)));
        let saves = self.disk.as_ref().map(saves);
        let beginning = Beginning::configured(id, state, config, look, saves, &self.events);
        Configured { state: Arc::clone(state), config: config.clone(), feed: beginning.follow(Some(Arc::clone(state))) }
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
    fn take(&mut self, state: &Arc<UpstreamState>, config: &DiscoveryConfig) -> Option<Configured> {
        let key = (Arc::as_ptr(state), Arc::clone(&config.name));
        if self.0.get(&key)?.config != *config {
            return None;
        }
        self.0.remove(&key)
    }

    /// What a source knew that asked for the same, and ends now: the one that takes its place goes on with that.
    fn left_by(&self, state: &Arc<UpstreamState>, config: &DiscoveryConfig) -> Option<Left> {
        let asks = config.asks();
        let known = self.0.values().find(|it| Arc::ptr_eq(&it.state, state) && it.config.asks() == asks)?;
        let last = known.feed.last.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        Some(Left { set: last.set?, revision: last.revision, at: last.answered? })
    }
}

fn next_id() -> SourceId {
    // 0 is the file.
    static NEXT: AtomicU64 = AtomicU64::new(1);
    SourceId(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A source that is about to be followed.
struct Beginning {
    discovery: Box<dyn AnyDiscovery>,
    reporter: Reporter,
    /// What is to be told of it before it says anything.
    told: Option<String>,
}

impl Beginning {
    fn given(upstream: UpstreamName, name: Arc<str>, discovery: Box<dyn AnyDiscovery>, events: &Events) -> Self {
        let reporter = Reporter::new(next_id(), upstream, name, SourceProgress::new(Rules::believing(), None), events);
        Self { discovery, reporter, told: None }
    }

    fn configured(
        id: SourceId,
        state: &Arc<UpstreamState>,
        config: &DiscoveryConfig,
        look: FirstLook,
        saves: Option<(Arc<Store>, Arc<Key>)>,
        events: &Events,
    ) -> Self {
        let FirstLook { left, file } = look;
        let discovery = source::of(config, state, left.as_ref().map(|left| &left.set), file);
        let rules = Rules {
            removed_percent: config.removed_percent(),
            hold: config.removal_hold,
            pause_max: source::pause_max(config),
        };
        let told = left.as_ref().map(|left| {
            let at = httpdate::fmt_http_date(left.at);
            format!("{} as of {at}, until it answers", counted(left.set.len()))
        });
        let (set, revision, at) = match left {
            Some(Left { set, revision, at }) => (Some(set), revision, Some(at)),
            None => (None, None, None),
        };
        let progress = SourceProgress::new(rules, set);
        let mut reporter = Reporter::new(id, state.name.clone(), Arc::clone(&config.name), progress, events);
        (reporter.admission, reporter.saves, reporter.revision) = (Some(Admission::new(config)), saves, revision);
        reporter.answered = at;
        reporter.note_backends(at.unwrap_or_else(SystemTime::now));
        Self { discovery, reporter, told }
    }

    /// Reports to `state` what there is to say at once, and goes on as a task.
    fn follow(self, state: Option<Arc<UpstreamState>>) -> Feed {
        let Self { mut discovery, mut reporter, told } = self;
        let what = format!("discovery of upstream {} by {}", reporter.upstream, reporter.name);
        let (target, targets) = watch::channel(state);
        reporter.targets = targets;
        if let Some(told) = told {
            reporter.tell(told);
        }
        let (id, last) = (reporter.id, Arc::clone(&reporter.last));
        let pause = at_once(&mut *discovery, &mut reporter);
        let vital = reporter.events.vital().clone();
        let task = tokio::spawn(vital.watch(what, run(discovery, reporter, pause)));
        Feed { id, target, last, task }
    }
}

/// Takes in what a source can say without waiting. Says how long to wait before it is asked again.
fn at_once(discovery: &mut dyn AnyDiscovery, reporter: &mut Reporter) -> Duration {
    let answer = match discovery.is_at_hand() {
        true => discovery.next().as_mut().poll(&mut Context::from_waker(Waker::noop())),
        false => Poll::Pending,
    };
    match answer {
        Poll::Ready(answer) => reporter.take(answer),
        Poll::Pending => {
            reporter.report();
            Duration::ZERO
        }
    }
}

/// Asks a source again and again. Ends when it is aborted, or when nothing is left to report to.
async fn run(mut discovery: Box<dyn AnyDiscovery>, mut reporter: Reporter, mut pause: Duration) {
    loop {
        let answer = {
            let mut asked = pin!(async {
                sleep(pause).await;
                discovery.next().await
            });
            // A reload neither gives up an answer that is awaited nor puts it off.
            loop {
                tokio::select! {
                    answer = &mut asked => break answer,
                    changed = reporter.targets.changed() => match changed {
                        Ok(()) => reporter.report(),
                        Err(_) => return,
                    },
                    () = sleep(REVIEW_EVERY), if reporter.progress.is_holding() => reporter.review(),
                }
            }
        };
        pause = reporter.take(answer);
    }
}

/// What is known of a source, and the upstream that is told.
struct Reporter {
    id: SourceId,
    upstream: UpstreamName,
    name: Arc<str>,
    targets: watch::Receiver<Option<Arc<UpstreamState>>>,
    last: LastReport,
    progress: SourceProgress,
    /// Since when it stands as it does.
    since: SystemTime,
    revision: Option<Arc<str>>,
    answered: Option<SystemTime>,
    said_since: Arc<HashMap<Address, SystemTime>>,
    refused: Arc<[String]>,
    /// What it may say; `None` is anything.
    admission: Option<Admission>,
    /// Where its last good set is kept.
    saves: Option<(Arc<Store>, Arc<Key>)>,
    events: Events,
}

impl Reporter {
    fn new(id: SourceId, upstream: UpstreamName, name: Arc<str>, progress: SourceProgress, events: &Events) -> Self {
        Self {
            id,
            upstream,
            name,
            targets: watch::channel(None).1,
            last: LastReport::default(),
            progress,
            since: SystemTime::now(),
            revision: None,
            answered: None,
            said_since: Arc::default(),
            refused: Arc::default(),
            admission: None,
            saves: None,
            events: events.clone(),
        }
    }

    fn take(&mut self, answer: Result<Answer, DiscoveryError>) -> Duration {
        let answer = answer.and_then(|answer| self.admit(answer));
        let (answer, left_out) = match answer {
            Ok(Answer { set, refused, revision }) => {
                self.answered = Some(SystemTime::now());
                self.revision = revision;
                let before = std::mem::replace(&mut self.refused, refused.into());
                let left_out = before.is_empty() && !self.refused.is_empty();
                (Ok(set), left_out)
            }
            Err(error) => (Err(error), false),
        };
        let step = self
            .step(|progress, is_failing| progress.take(answer, Instant::now().into_std(), rand::random(), is_failing));
        let ProgressStep { news, told, pause } = step;
        let told = match (told, self.refused.first()) {
            (told, Some(first)) if left_out => {
                let others = told.map_or_else(String::new, |told| format!("{told}; "));
                Some(format!("{others}{} of its entries left out, as {first}", self.refused.len()))
            }
            (told, _) => told,
        };
        self.tell_and_report(news || left_out, told);
        pause
    }

    /// Looks again at what is held back.
    fn review(&mut self) {
        let step = self.step(|progress, is_failing| progress.review(Instant::now().into_std(), is_failing));
        if let Some(ProgressStep { news, told, .. }) = step {
            self.tell_and_report(news, told);
        }
    }

    fn step<T>(&mut self, step: impl FnOnce(&mut SourceProgress, &dyn Fn(&Address) -> bool) -> T) -> T {
        let state = self.targets.borrow().clone();
        step(&mut self.progress, &|address| state.as_ref().is_some_and(|state| state.is_failing(address)))
    }

    fn tell_and_report(&mut self, news: bool, told: Option<String>) {
        if let Some(evidence) = told {
            self.since = SystemTime::now();
            self.tell(evidence);
        }
        if news {
            self.note_backends(SystemTime::now());
            let answers = !matches!(self.progress.condition(), SourceCondition::Failing { .. });
            if let (Some((store, key)), Some(set), true) = (&self.saves, self.progress.set(), answers) {
                store.save(key, set, self.revision.as_ref());
            }
        }
        // Also where nothing is new but the time: what is shown of it is true.
        self.show(news);
    }

    fn tell(&self, evidence: String) {
        self.events.publish(EventKind::Discovery {
            upstream: self.upstream.clone(),
            source: self.name.to_string(),
            to: self.progress.condition().as_str(),
            evidence,
        });
    }

    /// What of an answer may be believed.
    fn admit(&self, answer: Answer) -> Result<Answer, DiscoveryError> {
        let Some(admission) = &self.admission else { return Ok(answer) };
        let Answer { set, mut refused, revision } = answer;
        let most = admission.backends_max;
        if set.len() > most {
            return Err(DiscoveryError::new(format!("{}, and max_backends is {most}", counted(set.len()))));
        }
        let all = set.len() + refused.len();
        let mut believed = |address: &Address| match admission.refuse(address) {
            Some(why) => {
                refused.push(format!("{address}: {why}"));
                false
            }
            None => true,
        };
        let all_are_believed = set.iter().all(|it| admission.refuse(&it.address).is_none());
        let set = if all_are_believed { set } else { set.filtered(|it| believed(&it.address)) };
        match (set.is_empty(), refused.first()) {
            (true, Some(first)) => Err(DiscoveryError::new(format!("none of its {all} entries can be used: {first}"))),
            _ => Ok(Answer { set, refused, revision }),
        }
    }

    /// Notes which backends are said to be there now.
    fn note_backends(&mut self, now: SystemTime) {
        let Some(set) = self.progress.set() else { return };
        let before = &self.said_since;
        let since = |address: &Address| before.get(address).copied().unwrap_or(now);
        self.said_since = Arc::new(set.iter().map(|it| (it.address.clone(), since(&it.address))).collect());
    }

    /// Says to the upstream, if there is one, how it stands.
    fn report(&mut self) {
        self.show(true);
    }

    /// The same; the keeper is woken only where there is something for it to do.
    fn show(&mut self, wakes: bool) {
        let report = SourceReport {
            id: self.id,
            source: Arc::clone(&self.name),
            set: self.progress.set().cloned(),
            condition: self.progress.condition().clone(),
            since: self.since,
            revision: self.revision.clone(),
            answered: self.answered,
            said_since: Arc::clone(&self.said_since),
            refused: Arc::clone(&self.refused),
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(report.clone());
        let target = self.targets.borrow_and_update();
        let Some(state) = &*target else { return };
        state.sources.report(report);
        if wakes {
            state.changed.notify_one();
        }
    }
}

impl From<BackendSet> for Answer {
    fn from(set: BackendSet) -> Self {
        Self { set, refused: Vec::new(), revision: None }
    }
}
