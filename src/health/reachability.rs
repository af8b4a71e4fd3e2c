//! Looks whether backends are there again that were ejected for want of an answer, where no health check would see it.
//!
//! A look is a connection as requests make it, closed at once. There is one at a time for each such backend, and none for others:
//! what it takes in ordinary times is a task per upstream that waits.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::{CheckFailed, connect, schedule};
use crate::backend::outlier::Sight;
use crate::backend::{BackendId, BackendState};
use crate::telemetry::panics::Vital;
use crate::upstream::Upstream;

/// Looks out for the backends of one upstream until it is dropped.
#[derive(Debug)]
pub(super) struct Lookout {
    /// The upstream as it is now: a reload replaces it.
    upstream: watch::Sender<Arc<Upstream>>,
    task: JoinHandle<()>,
}

impl Lookout {
    /// Begins. Inside a runtime only.
    pub(super) fn start(upstream: &Arc<Upstream>, turns: &Arc<Semaphore>, vital: &Vital) -> Self {
        let (sender, receiver) = watch::channel(Arc::clone(upstream));
        let looking = run(receiver, Arc::clone(turns), vital.clone());
        let looking = vital.clone().watch(format!("lookout of upstream {}", upstream.name()), looking);
        Self { upstream: sender, task: tokio::spawn(looking) }
    }

    /// Goes on for the upstream that has come in the place of the one before.
    pub(super) fn follow(&self, upstream: &Arc<Upstream>) {
        self.upstream.send_if_modified(|before| {
            let replaced = !Arc::ptr_eq(before, upstream);
            *before = Arc::clone(upstream);
            replaced
        });
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(mut upstream: watch::Receiver<Arc<Upstream>>, turns: Arc<Semaphore>, vital: Vital) {
    let mut ejections = upstream.borrow().state.ejections.subscribe();
    let mut missed = HashSet::new();
    let mut looks = JoinSet::new();
    loop {
        let now = Arc::clone(&upstream.borrow_and_update());
        for backend in now.roster().backends().iter().map(|backend| &backend.state) {
            if is_looked_for(&now, backend) && missed.insert(backend.id) {
                let look = look(backend.id, Arc::downgrade(backend), upstream.clone(), Arc::clone(&turns));
                looks.spawn(vital.clone().watch(format!("lookout for {}", backend.address), look));
            }
        }
        drop(now);
        tokio::select! {
            Some(found) = looks.join_next() => if let Ok(found) = found {
                missed.remove(&found);
            },
            _ = ejections.changed() => {}
            replaced = upstream.changed() => if replaced.is_err() { return },
        }
    }
}

/// Whether it is ejected for want of an answer, and no check asks where requests go.
fn is_looked_for(upstream: &Upstream, backend: &BackendState) -> bool {
    let checked = upstream.config.health_check.as_ref().is_some_and(|check| check.port.is_none());
    upstream.config.outlier_detection.is_some() && !checked && backend.outlier.is_missed()
}

/// Looks again and again, until there is no more reason to. A backend that leaves the file meanwhile is not kept for that.
async fn look(
    id: BackendId,
    backend: Weak<BackendState>,
    upstream: watch::Receiver<Arc<Upstream>>,
    turns: Arc<Semaphore>,
) -> BackendId {
    for nth in 0.. {
        sleep(schedule::look(nth, rand::random())).await;
        let upstream = Arc::clone(&upstream.borrow());
        let Some(backend) = backend.upgrade().filter(|backend| is_looked_for(&upstream, backend)) else { break };
        // Under repair.
        if backend.by_hand.is_disabled() {
            continue;
        }
        let Ok(_turn) = turns.acquire().await else { break };
        let looked = Instant::now();
        let deadline = looked + upstream.config.connect_timeout;
        let tls = upstream.tls.as_deref().map(|tls| tls.of(backend.server_name.as_ref()));
        let connected = connect(&backend.address, tls, deadline).await;
        let mut history = backend.outlier.history();
        let news = match &connected {
            Ok(_) => history.saw(Sight::Connected, looked.into_std()),
            // No backend was asked.
            Err(CheckFailed::Ours(_)) => false,
            Err(_) => history.saw_nobody(looked.into_std()),
        };
        drop(history);
        if let Err(error) = connected {
            debug!(upstream = %backend.upstream, backend = %backend.address, %error, "not there");
        }
        if news {
            upstream.state.changed.notify_one();
        }
    }
    id
}
