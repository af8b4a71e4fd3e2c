//! The one loop that asks sources, and hands what they find to their upstreams.

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::progress::{ProgressStep, SourceProgress};
use super::{AnyDiscovery, Discovery, DiscoveryError};
use crate::backend::BackendSet;
use crate::config::UpstreamName;
use crate::telemetry::events::{EventKind, Events};
use crate::upstream::sources::SourceReport;
use crate::upstream::{Upstream, UpstreamState};

/// A source that is to be followed, not yet begun with.
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

/// The sources that are followed. Dropped, none is.
#[derive(Debug)]
pub struct Feeds(Vec<Feed>);

/// Follows one source until it is dropped.
#[derive(Debug)]
struct Feed {
    upstream: UpstreamName,
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
    /// Follows these sources. What they can say at once they have said to these upstreams when this returns; it does not wait.
    /// Inside a runtime only.
    pub fn start(found: Vec<FoundBackends>, upstreams: &[Arc<Upstream>], events: &Events) -> Self {
        let states: HashMap<_, _> = upstreams.iter().map(|it| (it.name(), &it.state)).collect();
        let feeds = found.into_iter().map(|FoundBackends { upstream, name, mut discovery }| {
            let what = format!("discovery of upstream {upstream} by {name}");
            let (target, targets) = watch::channel(states.get(&upstream).map(|&state| Arc::clone(state)));
            let last = LastReport::default();
            let mut reporter = Reporter {
                upstream: upstream.clone(),
                name,
                targets,
                last: Arc::clone(&last),
                progress: SourceProgress::new(),
                since: SystemTime::now(),
                events: events.clone(),
            };
            let pause = at_once(&mut *discovery, &mut reporter);
            let task = tokio::spawn(events.vital().clone().watch(what, run(discovery, reporter, pause)));
            Feed { upstream, target, last, task }
        });
        Self(feeds.collect())
    }

    /// Says to an upstream that is about to be served, and was not before, what is known of its backends.
    pub fn introduce(&self, state: &UpstreamState) {
        for feed in self.0.iter().filter(|feed| feed.upstream == state.name) {
            let last = feed.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
            last.into_iter().for_each(|report| state.sources.report(report));
        }
    }

    /// Reports to these upstreams from now on, and to no others. Does not wait.
    pub fn follow(&self, upstreams: &[Arc<Upstream>]) {
        for feed in &self.0 {
            let state = upstreams.iter().find(|it| *it.name() == feed.upstream).map(|it| &it.state);
            feed.target.send_if_modified(|target| {
                let other = target.as_ref().map(Arc::as_ptr) != state.map(Arc::as_ptr);
                *target = state.map(Arc::clone);
                other
            });
        }
    }
}

/// Takes in what a source can say without waiting. Says how long to wait before it is asked again.
fn at_once(discovery: &mut dyn AnyDiscovery, reporter: &mut Reporter) -> Duration {
    let answer = discovery.next().as_mut().poll(&mut Context::from_waker(Waker::noop()));
    match answer {
        Poll::Ready(answer) => reporter.take(answer),
        Poll::Pending => {
            reporter.report();
            Duration::ZERO
        }
    }
}

/// Asks a source again and again. Ends when it is aborted, or when there is no upstream left to report to.
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
                }
            }
        };
        pause = reporter.take(answer);
    }
}

/// What is known of a source, and the upstreams that are told.
struct Reporter {
    upstream: UpstreamName,
    name: Arc<str>,
    targets: watch::Receiver<Option<Arc<UpstreamState>>>,
    last: LastReport,
    progress: SourceProgress,
    /// Since when it stands as it does.
    since: SystemTime,
    events: Events,
}

impl Reporter {
    fn take(&mut self, answer: Result<BackendSet, DiscoveryError>) -> Duration {
        let ProgressStep { news, told, pause } = self.progress.take(answer, Instant::now().into_std(), rand::random());
        if let Some(evidence) = told {
            self.since = SystemTime::now();
            self.events.publish(EventKind::Discovery {
                upstream: self.upstream.clone(),
                source: self.name.to_string(),
                to: self.progress.condition().as_str(),
                evidence,
            });
        }
        if news {
            self.report();
        }
        pause
    }

    /// Says to the upstream, if there is one, how it stands.
    fn report(&mut self) {
        let report = SourceReport {
            source: Arc::clone(&self.name),
            set: self.progress.set().cloned(),
            condition: self.progress.condition().clone(),
            since: self.since,
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(report.clone());
        let target = self.targets.borrow_and_update();
        let Some(state) = &*target else { return };
        state.sources.report(report);
        state.changed.notify_one();
    }
}
