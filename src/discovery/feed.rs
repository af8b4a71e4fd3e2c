//! The one loop that asks a source, and hands what it finds to its upstream.

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::dns::Resolvers;
use super::first_look::FirstLook;
use super::progress::{ProgressStep, Rules, SourceProgress, counted};
use super::store::{Key, Left, Store};
use super::{Answer, AnyDiscovery, DiscoveryError, source};
use crate::backend::BackendSet;
use crate::backend::admission::Admission;
use crate::config::{Address, DiscoveryConfig, SourceConfig, UpstreamName};
use crate::registry::Registry;
use crate::telemetry::events::{EventKind, Events};
use crate::upstream::UpstreamState;
use crate::upstream::sources::{SourceCondition, SourceId, SourceReport};

/// How often it is looked whether backends that are held back have failed, or are over their time.
const REVIEW_EVERY: Duration = Duration::from_secs(1);

/// Is told, without waiting, that a source has said something else to an upstream: names may be among it.
#[derive(Clone)]
pub(super) struct Heard(pub(super) Arc<Hearing>);

type Hearing = dyn Fn(&Arc<UpstreamState>) + Send + Sync;

impl fmt::Debug for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heard").finish_non_exhaustive()
    }
}

/// Follows one source until it is dropped.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) id: SourceId,
    /// The upstream that it reports to; `None` while the file has no such upstream.
    target: watch::Sender<Option<Arc<UpstreamState>>>,
    /// What it has reported last, or would have.
    last: LastReport,
    task: JoinHandle<()>,
}

type LastReport = Arc<Mutex<Option<SourceReport>>>;

impl Feed {
    /// Reports to this upstream from now on; to none with `None`.
    pub(super) fn report_to(&self, state: Option<&Arc<UpstreamState>>) {
        self.target.send_if_modified(|target| {
            let other = target.as_ref().map(Arc::as_ptr) != state.map(Arc::as_ptr);
            *target = state.map(Arc::clone);
            other
        });
    }

    /// What it has reported last, or would have.
    pub(super) fn last(&self) -> Option<SourceReport> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it knows, for the one that takes its place.
    pub(super) fn left(&self) -> Option<Left> {
        let last = self.last()?;
        Some(Left { set: last.set?, revision: last.revision, at: last.answered? })
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A number that no other source of this process has.
pub(super) fn next_id() -> SourceId {
    // 0 is the file.
    static NEXT: AtomicU64 = AtomicU64::new(1);
    SourceId(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A source that is about to be followed.
pub(super) struct Beginning {
    discovery: Box<dyn AnyDiscovery>,
    reporter: Reporter,
    /// What is to be told of it before it says anything.
    told: Option<String>,
}

impl Beginning {
    /// One of the program around isobar.
    pub(super) fn given(
        upstream: UpstreamName,
        name: Arc<str>,
        discovery: Box<dyn AnyDiscovery>,
        events: &Events,
    ) -> Self {
        let progress = SourceProgress::new(Rules::believing(), None);
        let reporter = Reporter::new(next_id(), upstream, name, progress, events);
        Self { discovery, reporter, told: None }
    }

    /// One of the configuration.
    pub(super) fn configured(
        id: SourceId,
        state: &Arc<UpstreamState>,
        config: &DiscoveryConfig,
        look: FirstLook,
        saves: Option<(Arc<Store>, Arc<Key>)>,
        (events, resolvers, registry): (&Events, &Resolvers, Option<&Arc<Registry>>),
    ) -> Self {
        let FirstLook { left, file } = look;
        let discovery = source::of(config, state, left.as_ref().map(|left| &left.set), file, (resolvers, registry));
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
        (reporter.admission, reporter.saves, reporter.revision) =
            (Some(Arc::new(Admission::new(config))), saves, revision);
        reporter.answered = at;
        reporter.is_asked = !matches!(config.source(), Some(SourceConfig::Push(_)));
        reporter.note_backends(at.unwrap_or_else(SystemTime::now));
        Self { discovery, reporter, told }
    }

    /// Which source it is.
    pub(super) fn id(&self) -> SourceId {
        self.reporter.id
    }

    /// What it says may have names in it, so that this is told of it.
    pub(super) fn heard_by(&mut self, heard: Heard) {
        self.reporter.heard = Some(heard);
    }

    /// Every address that it says counts.
    pub(super) fn believe_all(&mut self) {
        self.reporter.admission = None;
    }

    /// Reports to `state` what there is to say at once, and goes on as a task.
    pub(super) fn follow(self, state: Option<Arc<UpstreamState>>) -> Feed {
        let Self { mut discovery, mut reporter, told } = self;
        let what = format!("discovery of upstream {} by {}", reporter.upstream, reporter.name);
        let (target, targets) = watch::channel(state);
        reporter.targets = targets;
        if let Some(admission) = &reporter.admission {
            // The rules may be others than those by which it was found.
            reporter.progress.keep_left(|instance| admission.refuse(&instance.address).is_none());
        }
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
                    () = sleep(REVIEW_EVERY), if reporter.progress.is_to_be_reviewed() => reporter.review(),
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
    admission: Option<Arc<Admission>>,
    /// Whether it is asked: an answer is on its way.
    is_asked: bool,
    /// What looks up the names that it says.
    heard: Option<Heard>,
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
            is_asked: false,
            heard: None,
            saves: None,
            events: events.clone(),
        }
    }

    fn take(&mut self, answer: Result<Answer, DiscoveryError>) -> Duration {
        let answer = answer.and_then(|answer| self.admit(answer));
        let (answer, left_out) = match answer {
            Ok(Answer { set, refused, revision, hold }) => {
                self.progress.hold_for(hold);
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
        let Answer { set, mut refused, revision, hold } = answer;
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
            _ => Ok(Answer { set, refused, revision, hold }),
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
            admission: self.admission.clone(),
            is_asked: self.is_asked,
            damped: self.progress.damped(),
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(report.clone());
        let target = self.targets.borrow_and_update().clone();
        let Some(state) = target else { return };
        state.sources.report(report);
        if let (Some(Heard(tell)), true) = (&self.heard, wakes) {
            tell(&state);
        }
        if wakes {
            state.changed.notify_one();
        }
    }
}

impl From<BackendSet> for Answer {
    fn from(set: BackendSet) -> Self {
        Self { set, refused: Vec::new(), revision: None, hold: None }
    }
}
