//! Keeps the roster of an upstream true.
//!
//! One task per upstream on the control plane, woken when something has changed ([`UpstreamState::changed`]) and when
//! something ends by itself ([`Roster::next`](super::Roster::next)). What is to be done at a time is worked out by `keep`,
//! which knows no clock; the task only waits.
//!
//! [`UpstreamState::changed`]: super::UpstreamState::changed

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep_until;

use super::Upstream;
use crate::config::UpstreamName;
use crate::telemetry::events::Events;

/// The keepers of all upstreams. Dropped, they end.
#[derive(Debug, Default)]
pub struct Keepers {
    events: Events,
    keepers: HashMap<UpstreamName, Keeper>,
}

#[derive(Debug)]
struct Keeper {
    /// The upstream as it is now: a reload replaces it, and the keeper goes on with the next.
    upstream: watch::Sender<Arc<Upstream>>,
    task: JoinHandle<()>,
}

impl Keepers {
    /// None yet. They will tell `events` what they do.
    pub fn new(events: Events) -> Self {
        Self { events, keepers: HashMap::new() }
    }

    /// Keeps these upstreams from now on, and no others. Inside a runtime only. Does not wait.
    pub fn follow(&mut self, upstreams: &[Arc<Upstream>]) {
        let mut before = std::mem::take(&mut self.keepers);
        self.keepers.extend(upstreams.iter().map(|upstream| {
            let keeper = before.remove(upstream.name()).unwrap_or_else(|| Keeper::start(upstream, &self.events));
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
    fn start(upstream: &Arc<Upstream>, events: &Events) -> Self {
        let (sender, receiver) = watch::channel(Arc::clone(upstream));
        Self { upstream: sender, task: tokio::spawn(run(receiver, events.clone())) }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(mut upstream: watch::Receiver<Arc<Upstream>>, events: Events) {
    loop {
        let kept = Arc::clone(&upstream.borrow_and_update());
        let due = keep(&kept, Instant::now(), &events);
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

/// Brings the upstream up to `now`. Says when it is to be called again though nothing calls for it.
fn keep(upstream: &Upstream, now: Instant, events: &Events) -> Option<Instant> {
    for ended in upstream.state.expire_by_hand(now) {
        events.publish(ended);
    }
    upstream.refresh(now);
    [upstream.roster().next(), upstream.state.next_end_by_hand()].into_iter().flatten().min()
}
