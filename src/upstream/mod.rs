//! A named pool of interchangeable backends under one policy.
//!
//! An [`Upstream`] is built from its configuration and replaced when that changes. What must outlive it, the place in the
//! round, the states of the backends and the metrics, lives in [`UpstreamState`], which is handed from the old to the new.
//! The [`Roster`], the backends with the strategy built for them, is one value behind one swap, so that a pick never sees
//! a strategy beside a list that it was not built for. It is built anew when the readiness of a backend changes: by
//! [`Upstream::refresh`], which the upstream's [`keeper`] calls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::backend::by_hand::ByHand;
use crate::backend::health::{Account, Health, Verdict};
use crate::backend::{Backend, BackendState, Lease};
use crate::config::{Address, InitialHealth, UpstreamConfig, UpstreamName};
use crate::strategy::{Candidates, Cursor, Dice, Factories, Tried};
use crate::telemetry::metrics::{Sharded, UpstreamMetrics};

pub mod by_hand;
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

pub use readiness::Readiness;
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
        let backends = backends.map(|backend| {
            let state = state.backend(&backend.address, fresh);
            Backend { weight: by_hand::weight(backend, &state), state }
        });
        let backends = backends.collect();
        let roster = Roster::build(backends, &config, &state.cursor, factories, Instant::now());
        let roster = ArcSwap::from_pointee(roster);
        Arc::new(Self { config, state, factories: factories.clone(), roster, writer: Mutex::new(()) })
    }

    /// Builds the roster anew from what is known of the backends at `now`, and swaps it in if other backends are ready than
    /// before. Says whether they were. Control plane only.
    pub fn refresh(&self, now: Instant) -> bool {
        let _writing = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.roster.load_full();
        let mut backends = before.backends().to_vec();
        for (backend, config) in backends.iter_mut().zip(&self.config.backends) {
            backend.weight = by_hand::weight(config, &backend.state);
        }
        let roster = Roster::build(backends, &self.config, &self.state.cursor, &self.factories, now);
        let same = roster.has_the_same_ready(&before)
            && roster.has_the_same_weights(&before)
            && roster.next() == before.next();
        if !same {
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
    /// Called when the readiness of a backend may have changed: wakes the keeper.
    pub changed: Notify,
    shards: usize,
    /// Every backend that somebody holds, a roster or a lease that outlives it, and every address that something is set for by
    /// hand. Control plane only.
    backends: Mutex<HashMap<Address, Known>>,
}

/// What is found again by an address.
#[derive(Debug)]
struct Known {
    state: Weak<BackendState>,
    by_hand: Arc<ByHand>,
}

impl Known {
    fn is_of_use(&self) -> bool {
        self.state.strong_count() > 0 || self.by_hand.marks().any()
    }
}

impl UpstreamState {
    /// The state of an upstream that was not there before. `shards` is the number of workers.
    pub fn new(name: UpstreamName, shards: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            cursor: Arc::default(),
            metrics: Sharded::new(shards),
            changed: Notify::new(),
            shards,
            backends: Mutex::default(),
        })
    }

    /// The state of an address: the one somebody still holds, or a new one with the health that `fresh` gives it.
    pub fn backend(&self, address: &Address, fresh: impl FnOnce() -> Health) -> Arc<BackendState> {
        let mut backends = self.lock();
        backends.retain(|_, known| known.is_of_use());
        let known = backends.get(address);
        if let Some(state) = known.and_then(|known| known.state.upgrade()) {
            return state;
        }
        let by_hand = known.map(|known| Arc::clone(&known.by_hand)).unwrap_or_default();
        let kept = Arc::clone(&by_hand);
        let state = BackendState::with_levers(self.name.clone(), address.clone(), self.shards, fresh(), kept);
        backends.insert(address.clone(), Known { state: Arc::downgrade(&state), by_hand });
        state
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Address, Known>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_backends(&self) -> bool {
        let backends = self.lock();
        backends.values().any(|known| known.state.strong_count() > 0)
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
