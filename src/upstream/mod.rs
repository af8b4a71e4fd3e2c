//! A named pool of interchangeable backends under one policy.
//!
//! An [`Upstream`] is built from its configuration and replaced when that changes. What must outlive it, the place in the
//! round, the states of the backends and the metrics, lives in [`UpstreamState`], which is handed from the old to the new.
//! The [`Roster`], the backends with the strategy built for them, is one value behind one swap, so that a pick never sees
//! a strategy beside a list that it was not built for. It is built anew when the readiness of a backend changes: by
//! [`Upstream::refresh`], which the upstream's [`keeper`] calls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::backend::health::{Account, Health, Verdict};
use crate::backend::{Backend, BackendState, Lease};
use crate::config::{Address, InitialHealth, UpstreamConfig, UpstreamName};
use crate::strategy::{Candidates, Cursor, Dice, Factories, Tried};
use crate::telemetry::metrics::{Sharded, UpstreamMetrics};

pub mod keeper;
mod readiness;
mod roster;
pub mod window;
pub mod retry_budget;
pub mod backoff;
pub mod breaker;
pub mod gradient;
pub mod percentile;
pub mod queue;
pub mod tiers;
pub mod weights;

use percentile::Latencies;
pub use readiness::Readiness;
use retry_budget::RetryBudget;
pub use roster::Roster;

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
        let fresh = || first_health(&config, joins);
        let backends = config.backends.iter();
        let backends = backends
            .map(|backend| Backend { weight: backend.weight, state: state.backend(&backend.address, fresh) })
            .collect();
        let roster = Roster::build(backends, &config, &state.cursor, factories, Instant::now());
        let roster = ArcSwap::from_pointee(roster);
        Arc::new(Self { config, state, factories: factories.clone(), roster, writer: Mutex::new(()) })
    }

    /// Builds the roster anew from what is known of the backends at `now`, and swaps it in if other backends are ready than
    /// before. Says whether they were. Control plane only.
    pub fn refresh(&self, now: Instant) -> bool {
        let _writing = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.roster.load_full();
        let backends = before.backends().to_vec();
        let roster = Roster::build(backends, &self.config, &self.state.cursor, &self.factories, now);
        let same = roster.has_the_same_ready(&before) && roster.next() == before.next();
        if !same {
            self.roster.store(Arc::new(roster));
        }
        !same
    }

    /// Whether a backend is ready that was not tried yet.
    pub fn has_untried(&self, tried: &Tried) -> bool {
        self.roster.load().ready().iter().any(|backend| !tried.contains(backend.state.id))
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
        let index = roster.pick(&Candidates { backends: roster.ready(), hash, now, tried }, dice)?;
        Some(Lease::take(&roster.ready()[index].state))
    }
}

/// What is known of an upstream however often its configuration changes. Found again by name.
#[derive(Debug)]
pub struct UpstreamState {
    /// Whose state it is.
    pub name: UpstreamName,
    /// The place in the round.
    pub cursor: Arc<Cursor>,
    /// What it was asked and has answered, a shard per worker.
    pub metrics: Sharded<UpstreamMetrics>,
    /// How many further attempts its requests may get.
    pub retry_budget: RetryBudget,
    hedging: OnceLock<Box<Hedging>>,
    /// Called when the readiness of a backend may have changed: wakes the keeper.
    pub changed: Notify,
    shards: usize,
    /// Every backend that somebody holds: a roster, or a lease that outlives it. Control plane only.
    backends: Mutex<HashMap<Address, Weak<BackendState>>>,
}

impl UpstreamState {
    /// The state of an upstream that was not there before. `shards` is the number of workers.
    pub fn new(name: UpstreamName, shards: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            cursor: Arc::default(),
            metrics: Sharded::new(shards),
            retry_budget: RetryBudget::new(shards),
            hedging: OnceLock::new(),
            changed: Notify::new(),
            shards,
            backends: Mutex::default(),
        })
    }

    /// The state of an address: the one somebody still holds, or a new one with the health that `fresh` gives it.
    pub fn backend(&self, address: &Address, fresh: impl FnOnce() -> Health) -> Arc<BackendState> {
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        backends.retain(|_, state| state.strong_count() > 0);
        if let Some(state) = backends.get(address).and_then(Weak::upgrade) {
            return state;
        }
        let state = BackendState::with_health(self.name.clone(), address.clone(), self.shards, fresh());
        backends.insert(address.clone(), Arc::downgrade(&state));
        state
    }

    /// What hedging has to know. Made when it is first asked for: most upstreams never do.
    pub fn hedging(&self) -> &Hedging {
        self.hedging.get_or_init(|| {
            Box::new(Hedging { budget: RetryBudget::new(self.shards), latencies: Latencies::new(self.shards) })
        })
    }

    fn has_backends(&self) -> bool {
        let backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        backends.values().any(|state| state.strong_count() > 0)
    }
}

/// What hedging has to know of an upstream.
#[derive(Debug)]
pub struct Hedging {
    /// How many second attempts its requests may get.
    pub budget: RetryBudget,
    /// How long its responses took lately.
    pub latencies: Latencies,
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
