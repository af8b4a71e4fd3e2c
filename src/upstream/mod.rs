//! A named pool of interchangeable backends under one policy.
//!
//! An [`Upstream`] is built from its configuration and replaced when that changes. What must outlive it, the place in the
//! round, the states of the backends and the metrics, lives in [`UpstreamState`], which is handed from the old to the new.
//! The [`Roster`], the backends with the strategy built for them, is one value behind one swap, so that a pick never sees
//! a strategy beside a list that it was not built for. It is built anew when the readiness of a backend changes: by
//! [`Upstream::refresh`], which the upstream's [`keeper`] calls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::backend::health::{Account, Health, Verdict};
use crate::backend::outlier::Outcome;
use crate::backend::slow_start::Ramp;
use crate::backend::{Backend, BackendState, Lease};
use crate::config::{Address, InitialHealth, UpstreamConfig, UpstreamName};
use crate::strategy::{Dice, Factories, Tried};
use crate::telemetry::metrics::{Sharded, UpstreamMetrics};

pub mod keeper;
mod readiness;
mod roster;
mod ejections;
mod panic;
pub mod window;
pub mod retry_budget;
pub mod backoff;
pub mod breaker;
pub mod gradient;
pub mod percentile;
pub mod queue;
pub mod tiers;
pub mod weights;

pub use readiness::Readiness;
pub use roster::{Cursors, Roster, Seat, Source};

use roster::Layout;

/// A pool of backends as a snapshot holds it.
#[derive(Debug)]
pub struct Upstream {
    /// What it was built from.
    pub config: Arc<UpstreamConfig>,
    /// What outlives it.
    pub state: Arc<UpstreamState>,
    factories: Factories,
    roster: ArcSwap<Roster>,
    /// Held while the roster is built anew. Control plane only.
    writer: Mutex<()>,
}

impl Upstream {
    /// Builds the pool that `config` describes on top of what is known already, which it does not change.
    pub fn build(config: Arc<UpstreamConfig>, state: Arc<UpstreamState>, factories: &Factories) -> Arc<Self> {
        let joins = state.has_backends();
        let fresh = || {
            let ramp = if joins { Ramp::joining() } else { Ramp::full() };
            (first_health(&config, joins), ramp)
        };
        let backends = config.backends.iter().map(|backend| Backend {
            weight: backend.weight,
            place: backend.place.clone(),
            state: state.backend(&backend.address, fresh),
        });
        let backends: Vec<_> = backends.collect();
        let layout = Layout::of(&backends, &config, Instant::now());
        let roster = Roster::build(layout, backends, &config, &state.cursors, factories);
        let roster = ArcSwap::from_pointee(roster);
        Arc::new(Self { config, state, factories: factories.clone(), roster, writer: Mutex::new(()) })
    }

    /// Builds the roster anew from what is known of the backends at `now`, and swaps it in if it differs from the one before.
    /// Says whether it did. Begins the slow start of those that have become ready. Control plane only.
    pub fn refresh(&self, now: Instant) -> bool {
        let _writing = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.roster.load_full();
        for backend in before.backends() {
            let readiness = Readiness::of(backend, &self.config, now);
            // Who was never checked was never used: that is a start and no return.
            if readiness != Readiness::Unchecked {
                backend.state.ramp().note(readiness == Readiness::Ready, now);
            }
        }
        let layout = Layout::of(before.backends(), &self.config, now);
        let same = layout == *before.layout();
        if !same {
            let backends = before.backends().to_vec();
            let roster = Roster::build(layout, backends, &self.config, &self.state.cursors, &self.factories);
            self.roster.store(Arc::new(roster));
        }
        !same
    }

    /// Its name.
    pub fn name(&self) -> &UpstreamName {
        &self.config.name
    }

    /// The backends it serves from now.
    pub fn roster(&self) -> Arc<Roster> {
        self.roster.load_full()
    }

    /// Picks a backend that was not tried yet and counts a request at it; `None` when there is none.
    pub fn lease(&self, hash: Option<u64>, now: Instant, tried: &Tried, dice: &mut Dice) -> Option<Lease> {
        let roster = self.roster.load();
        let backend = roster.pick(hash, now, tried, dice)?;
        Some(Lease::take(&backend.state))
    }

    /// Notes how an attempt at one of its backends ended, for outlier detection. `took` is the time from sending the request to
    /// the first byte of the response, or to the end of waiting for it. On the request path, by `worker` alone.
    #[inline]
    pub fn note(&self, backend: &BackendState, worker: usize, outcome: Outcome, took: Duration) {
        if let Some(settings) = &self.config.outlier_detection
            && backend.outlier.note(worker, outcome, took, settings).is_some()
        {
            self.state.changed.notify_one();
        }
    }
}

/// What is known of an upstream however often its configuration changes. Found again by name.
#[derive(Debug)]
pub struct UpstreamState {
    /// Whose state it is.
    pub name: UpstreamName,
    /// The places in the rounds.
    pub cursors: Cursors,
    /// What it was asked and has answered, a shard per worker.
    pub metrics: Sharded<UpstreamMetrics>,
    /// Called when the readiness of a backend may have changed: wakes the keeper.
    pub changed: Notify,
    /// What the keeper remembers from one time to the next. Control plane only.
    kept: Mutex<keeper::Kept>,
    shards: usize,
    /// Every backend that somebody holds: a roster, or a lease that outlives it. Control plane only.
    backends: Mutex<HashMap<Address, Weak<BackendState>>>,
}

impl UpstreamState {
    /// The state of an upstream that was not there before. `shards` is the number of workers.
    pub fn new(name: UpstreamName, shards: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            cursors: Cursors::default(),
            metrics: Sharded::new(shards),
            changed: Notify::new(),
            kept: Mutex::default(),
            shards,
            backends: Mutex::default(),
        })
    }

    /// The state of an address: the one somebody still holds, or a new one that begins as `fresh` says.
    pub fn backend(&self, address: &Address, fresh: impl FnOnce() -> (Health, Ramp)) -> Arc<BackendState> {
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        backends.retain(|_, state| state.strong_count() > 0);
        if let Some(state) = backends.get(address).and_then(Weak::upgrade) {
            return state;
        }
        let (health, ramp) = fresh();
        let state = BackendState::with(self.name.clone(), address.clone(), self.shards, health, ramp);
        backends.insert(address.clone(), Arc::downgrade(&state));
        state
    }

    fn has_backends(&self) -> bool {
        let backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        backends.values().any(|state| state.strong_count() > 0)
    }
}

/// What a backend counts as before it was checked. One that is known already keeps what is known, also when it was not
/// checked until now: it has been serving.
fn first_health(config: &UpstreamConfig, joins: bool) -> Health {
    let Some(check) = &config.health_check else { return Health::default() };
    Health::new(match check.initial {
        InitialHealth::Healthy => Account::new(Verdict::Healthy, false),
        InitialHealth::Unhealthy => Account::new(Verdict::Unhealthy, false),
        // Those an upstream begins with are used at once, or a start would refuse requests until the first checks are over.
        InitialHealth::FirstCheck if joins => Account::new(Verdict::Unknown, true),
        InitialHealth::FirstCheck => Account::new(Verdict::Healthy, true),
    })
}

#[cfg(test)]
mod tests;
