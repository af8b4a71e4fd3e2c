//! A named pool of interchangeable backends under one policy.
//!
//! An [`Upstream`] is built from its configuration and replaced when that changes. What must outlive it, the place in the
//! round, the states of the backends and the metrics, lives in [`UpstreamState`], which is handed from the old to the new.
//! The [`Roster`], the backends with the strategy built for them, is one value behind one swap, so that a pick never sees
//! a strategy beside a list that it was not built for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::backend::{Backend, BackendState, Lease};
use crate::config::{Address, UpstreamConfig, UpstreamName};
use crate::strategy::{Candidates, Cursor, Dice, Factories, Tried};
use crate::telemetry::metrics::{Sharded, UpstreamMetrics};

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

pub use roster::Roster;

/// A pool of backends as a snapshot holds it.
#[derive(Debug)]
pub struct Upstream {
    /// What it was built from.
    pub config: Arc<UpstreamConfig>,
    /// What outlives it.
    pub state: Arc<UpstreamState>,
    roster: ArcSwap<Roster>,
}

impl Upstream {
    /// Builds the pool that `config` describes on top of what is known already.
    pub fn build(config: Arc<UpstreamConfig>, state: Arc<UpstreamState>, factories: &Factories) -> Arc<Self> {
        let backends = config
            .backends
            .iter()
            .map(|backend| Backend { weight: backend.weight, state: state.backend(&backend.address) })
            .collect();
        let roster = Roster::build(backends, &config.strategy, &state.cursor, factories);
        Arc::new(Self { config, state, roster: ArcSwap::from_pointee(roster) })
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
            shards,
            backends: Mutex::default(),
        })
    }

    /// The state of an address: the one somebody still holds, or a new one.
    pub fn backend(&self, address: &Address) -> Arc<BackendState> {
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        backends.retain(|_, state| state.strong_count() > 0);
        if let Some(state) = backends.get(address).and_then(Weak::upgrade) {
            return state;
        }
        let state = BackendState::new(self.name.clone(), address.clone(), self.shards);
        backends.insert(address.clone(), Arc::downgrade(&state));
        state
    }
}
