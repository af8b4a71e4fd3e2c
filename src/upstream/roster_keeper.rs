//! Keeps the roster of an upstream true.
//!
//! One task per upstream on the control plane, woken when something has changed ([`UpstreamState::changed`]) and when
//! something ends by itself ([`Roster::next`](super::Roster::next)). What is to be done at a time is worked out by `keep`,
//! which knows no clock; the task only waits, and tells what has happened.
//!
//! [`UpstreamState::changed`]: super::UpstreamState::changed

use std::collections::HashMap;
use std::fmt;
use std::future::pending;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep_until;

use super::{Turnover, Upstream, ejections, panic};
use crate::backend::outlier::Occasion;
use crate::config::{Tier, UpstreamName};
use crate::telemetry::events::{EventKind, Events};

/// The keepers of all upstreams. Dropped, they end.
#[derive(Debug)]
pub struct Keepers {
    outside: Outside,
    keepers: HashMap<UpstreamName, Keeper>,
}

/// Whom a keeper tells.
#[derive(Clone)]
struct Outside {
    events: Events,
    told: Arc<KeeperNotices>,
}

/// Is told, without waiting, that the backends of an upstream have changed and are served with from now on.
pub type KeeperNotices = dyn Fn(&Arc<Upstream>, &Turnover) + Send + Sync;

impl fmt::Debug for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outside").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Keeper {
    /// The upstream as it is now: a reload replaces it, and the keeper goes on with the next.
    upstream: watch::Sender<Arc<Upstream>>,
    task: JoinHandle<()>,
}

impl Keepers {
    /// None yet. They will tell `events` what they find, and `told` of backends that come, go and change otherwise than by a
    /// reload.
    pub fn new(events: Events, told: Arc<KeeperNotices>) -> Self {
        Self { outside: Outside { events, told }, keepers: HashMap::new() }
    }

    /// Keeps these upstreams from now on, and no others. Inside a runtime only. Does not wait.
    pub fn follow(&mut self, upstreams: &[Arc<Upstream>]) {
        let mut before = std::mem::take(&mut self.keepers);
        self.keepers.extend(upstreams.iter().map(|upstream| {
            let keeper = before.remove(upstream.name()).unwrap_or_else(|| Keeper::start(upstream, &self.outside));
            keeper.upstream.send_if_modified(|kept| {
                let replaced = !Arc::ptr_eq(kept, upstream);
                *kept = Arc::clone(upstream);
                replaced
            });
            (upstream.name().clone(), keeper)
        }));
    }
}

impl Keeper {
    fn start(upstream: &Arc<Upstream>, outside: &Outside) -> Self {
        let (sender, receiver) = watch::channel(Arc::clone(upstream));
        let keeping = run(receiver, outside.clone());
        let keeping = outside.events.vital().clone().watch(format!("keeper of upstream {}", upstream.name()), keeping);
        Self { upstream: sender, task: tokio::spawn(keeping) }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(mut upstream: watch::Receiver<Arc<Upstream>>, Outside { events, told: tell }: Outside) {
    loop {
        let kept = Arc::clone(&upstream.borrow_and_update());
        if let Some(turnover) = follow_sources(&kept, Instant::now()) {
            tell(&kept, &turnover);
            events.publish(told(&kept, &turnover));
        }
        let (due, told) = keep(&kept, Instant::now(), &mut rand::random);
        told.into_iter().for_each(|kind| events.publish(kind));
        let due = async {
            match due {
                Some(due) => sleep_until(due.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            // A wake-up that came before this waits is kept for it.
            () = kept.state.changed.notified() => {}
            replaced = upstream.changed() => if replaced.is_err() { return },
        }
    }
}

/// Serves with what the upstream's sources say now. Says what has changed by that.
pub fn follow_sources(upstream: &Upstream, now: Instant) -> Option<Turnover> {
    let turnover = upstream.serve(&upstream.state.sources.set()?, now);
    upstream.state.has_begun();
    turnover
}

fn told(upstream: &Upstream, turnover: &Turnover) -> EventKind {
    let Turnover { difference, .. } = turnover;
    EventKind::Backends {
        upstream: upstream.name().clone(),
        came: difference.came.clone(),
        gone: difference.gone.clone(),
        changed: difference.changed.clone(),
        backends: upstream.roster().backends().len(),
    }
}

/// What the keeper of an upstream remembers from one time to the next. Outlives reloads.
#[derive(Debug, Default)]
pub(super) struct KeeperMemory {
    /// When the next interval of outlier detection is over.
    interval: Option<Instant>,
    /// The tiers that were in panic.
    panic: Vec<Tier>,
}

/// Brings the upstream up to `now`; `random` gives any numbers. Says when it is to be called again though nothing calls for it,
/// and what has happened.
pub(super) fn keep(
    upstream: &Upstream,
    now: Instant,
    random: &mut dyn FnMut() -> u64,
) -> (Option<Instant>, Vec<EventKind>) {
    let mut kept = upstream.state.kept.lock().unwrap_or_else(PoisonError::into_inner);
    let mut told = upstream.state.expire_by_hand(now);
    told.extend(ejections::judge(upstream, kept.occasion(upstream, now), now, random));
    upstream.refresh(now);
    let roster = upstream.roster();
    told.extend(panic::changes(upstream.name(), &kept.panic, &roster));
    kept.panic = roster.panic().to_vec();
    ([roster.next(), kept.interval, upstream.state.next_end_by_hand()].into_iter().flatten().min(), told)
}

impl KeeperMemory {
    /// Whether an interval is over. Reloads do not put it off, nor does what happens in between.
    fn occasion(&mut self, upstream: &Upstream, now: Instant) -> Occasion {
        let settings = upstream.config.outlier_detection.as_ref();
        let next = settings.map(|settings| now + settings.interval);
        if self.interval.is_some_and(|due| due <= now) {
            self.interval = next;
            return Occasion::Interval;
        }
        // It may be shorter than it was.
        self.interval = self.interval.min(next).or(next);
        Occasion::Between
    }
}
