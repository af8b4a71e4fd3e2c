//! A named pool of interchangeable backends under one policy.
//!
//! An [`Upstream`] is a policy, its configuration, and is replaced when that changes. Its backends are a
//! [`BackendSet`], which may change at any time. What must outlive both, the place in the round, the states of the backends and
//! the metrics, lives in [`UpstreamState`], which is handed from the old to the new; so does what its [`sources`] say.
//! The [`Roster`], the backends with the strategy built for them, is one value behind one swap, so that a pick never sees
//! a strategy beside a list that it was not built for. It is built anew when the set or the readiness of a backend changes: by
//! [`Upstream::serve`] and [`Upstream::refresh`], which the upstream's [`roster_keeper`] calls.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

use crate::backend::health::{Health, HealthAccount, Verdict};
use crate::backend::limits::Permits;
use crate::backend::operator_state::ByHand;
use crate::backend::outlier::{AttemptOutcome, By};
use crate::backend::set::Difference;
use crate::backend::slow_start::Ramp;
use crate::backend::{Backend, BackendId, BackendSet, BackendState, Instance, Lease, UpstreamRoom};
use crate::config::{Address, InitialHealth, UpstreamConfig, UpstreamName};
use crate::strategy::{Dice, Factories, Tried};
use crate::telemetry::metrics::{Sharded, UpstreamMetrics};
use crate::transport::Manner;
use crate::transport::tls::BackendTls;

pub mod operator_actions;
pub mod roster_keeper;
mod readiness;
mod roster;
pub mod sources;
pub mod services;
mod last_resort;
mod limits;
mod ejections;
mod panic;
pub mod sliding_window;
pub mod retry_budget;
pub mod backoff;
pub mod circuit_breaker;
pub mod adaptive_limit;
pub mod hedge_delay;
pub mod tiers;
pub mod slow_start_weights;

use hedge_delay::Latencies;
pub use last_resort::{Reach, Signs};
pub use limits::UpstreamLimits;
pub use readiness::Readiness;
use retry_budget::RetryBudget;
pub use roster::{Cursors, PickSource, Roster, RosterEntry};

use roster::Layout;
use services::ServiceState;
use sources::Sources;

use adaptive_limit::Gradient;
use circuit_breaker::Breaker;

/// A pool of backends as a snapshot holds it.
#[derive(Debug)]
pub struct Upstream {
    /// What it was built from.
    pub config: Arc<UpstreamConfig>,
    /// What outlives it.
    pub state: Arc<UpstreamState>,
    /// The settings of what limits it.
    pub limits: UpstreamLimits,
    /// How its backends are spoken to by TLS; `None` is in the clear.
    pub tls: Option<Arc<BackendTls>>,
    factories: Factories,
    /// The backends of its configuration: what its first source says.
    listed: BackendSet,
    roster: ArcSwap<Roster>,
    /// Whether a backend of the roster, or all together, may be full.
    bounded: AtomicBool,
    /// Held while the roster is built anew. Control plane only.
    writer: Mutex<()>,
}

impl Upstream {
    /// Builds the pool that `config` describes on top of what is known already, which it does not change, with backends that
    /// are spoken to in the clear.
    pub fn build(config: Arc<UpstreamConfig>, state: Arc<UpstreamState>, factories: &Factories) -> Arc<Self> {
        Self::build_with(config, state, factories, None)
    }

    /// The same, with `tls` as it was made from the configuration's.
    pub fn build_with(
        config: Arc<UpstreamConfig>,
        state: Arc<UpstreamState>,
        factories: &Factories,
        tls: Option<Arc<BackendTls>>,
    ) -> Arc<Self> {
        let listed = BackendSet::of_file(&config.backends);
        let set = state.sources.set_with(&listed);
        let backends = backends(&set, &config, &state);
        let limits = UpstreamLimits::new(&config.limits());
        let bounded = AtomicBool::new(limits.bound(&backends));
        let layout = Layout::of(&backends, &config, Instant::now());
        let roster = Roster::build((set, layout), backends, &config, &state.cursors, factories);
        let roster = ArcSwap::from_pointee(roster);
        if let Some(settings) = &limits.adaptive {
            state.adaptive.get_or_init(|| Gradient::new(state.shards, settings));
        }
        let (factories, writer) = (factories.clone(), Mutex::new(()));
        Arc::new(Self { config, state, limits, tls, factories, listed, roster, bounded, writer })
    }

    /// Serves from now on with the backends of `set`, and says in what they differ from those before; `None` where in nothing.
    /// What is known of a backend that stays is kept; one that is gone gets nothing more, and what it serves goes on.
    /// Control plane only.
    pub fn serve(&self, set: &BackendSet, now: Instant) -> Option<Turnover> {
        let _writing = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.roster.load_full();
        if before.set() == set {
            return None;
        }
        let bounded = self.is_bounded();
        let backends = backends(set, &self.config, &self.state);
        // Before the first request there: a backend never sees more than its limit.
        self.enforce_at(&backends);
        let ids = |backends: &[Backend]| backends.iter().map(|backend| backend.state.id).collect::<HashSet<_>>();
        let (were, are) = (ids(before.backends()), ids(&backends));
        let turnover = Turnover {
            difference: set.difference(before.set()),
            came: are.difference(&were).copied().collect(),
            gone: were.difference(&are).copied().collect(),
            becomes_bounded: self.is_bounded() && !bounded,
        };
        self.rebuild((set.clone(), backends), &before, now);
        Some(turnover)
    }

    /// Builds the roster anew from what is known of the backends at `now`, and swaps it in if it differs from the one before.
    /// Says whether it did. Begins the slow start of those that have become ready. Control plane only.
    pub fn refresh(&self, now: Instant) -> bool {
        let _writing = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.roster.load_full();
        let mut backends = before.backends().to_vec();
        for backend in &mut backends {
            backend.weight = operator_actions::weight(&backend.instance, &backend.state);
        }
        self.rebuild((before.set().clone(), backends), &before, now)
    }

    /// Swaps in a roster of these backends, unless it would be the same as the one `before`. The writer's lock is held.
    fn rebuild(&self, (set, backends): (BackendSet, Vec<Backend>), before: &Roster, now: Instant) -> bool {
        for backend in &backends {
            let readiness = Readiness::of(backend, &self.config, now);
            // A backend that was never checked was never used: that is a start and no return.
            if readiness != Readiness::Unchecked {
                backend.state.ramp().note(readiness == Readiness::Ready, now);
            }
        }
        let layout = Layout::of(&backends, &self.config, now);
        let weights = |backends: &[Backend]| backends.iter().map(|backend| backend.weight).collect::<Vec<_>>();
        let same =
            set == *before.set() && layout == *before.layout() && weights(&backends) == weights(before.backends());
        if !same {
            let roster = Roster::build((set, layout), backends, &self.config, &self.state.cursors, &self.factories);
            self.roster.store(Arc::new(roster));
            // One that is ready again may have room.
            self.state.room.queue.widened();
        }
        !same
    }

    /// The backends of its configuration, to which those that discovery finds are added.
    pub fn listed(&self) -> &BackendSet {
        &self.listed
    }

    /// Whether there is a backend for a further attempt that may go so far.
    pub fn has_untried(&self, tried: &Tried, reach: Reach) -> bool {
        let roster = self.roster.load();
        roster.has_untried(tried) || roster.last_resort().left(reach, tried).next().is_some()
    }

    /// How connections to its backends are made, for an exchange that may switch to another protocol or for any.
    pub fn manner(&self, switches: bool) -> Manner<'_> {
        let config = &self.config;
        Manner { pool: &config.pool, tls: self.tls.as_deref(), protocol: config.protocol, alone: switches }
    }

    /// With whose TLS connections to its backends are made; 0 is in the clear.
    pub fn tls_identity(&self) -> u64 {
        BackendTls::identity(self.tls.as_deref())
    }

    /// Its name.
    pub fn name(&self) -> &UpstreamName {
        &self.config.name
    }

    /// Whether a backend of it may be picked at `now`, and if not, why. Takes the lock of the backend's history.
    pub fn readiness(&self, backend: &Backend, now: Instant) -> Readiness {
        Readiness::of(backend, &self.config, now)
    }

    /// The backends it serves from now.
    pub fn roster(&self) -> Arc<Roster> {
        self.roster.load_full()
    }

    /// Picks a backend that was not tried yet and has room, and counts a request at it.
    ///
    /// # Errors
    /// When there is none.
    pub fn lease(&self, hash: Option<u64>, now: Instant, tried: &Tried, dice: &mut Dice) -> Result<Lease, NoLease> {
        if self.is_full() {
            return Err(NoLease::Full);
        }
        let roster = self.roster.load();
        let first = roster.pick(hash, now, tried, dice).ok_or(NoLease::NoBackend)?;
        match self.try_lease(&first.state) {
            Some(lease) => Ok(lease),
            None => self.lease_elsewhere(&roster, first.state.id, (hash, now, tried), dice).ok_or(NoLease::Full),
        }
    }

    /// The same for a further attempt: where all that are ready were tried, it goes on to the others, as far as `reach` says.
    ///
    /// # Errors
    /// When there is none.
    #[cold]
    pub fn lease_further(
        &self,
        hash: Option<u64>,
        now: Instant,
        (tried, reach): (&Tried, Reach),
        dice: &mut Dice,
    ) -> Result<Lease, NoLease> {
        let roster = self.roster.load();
        let others = roster.last_resort();
        if roster.has_untried(tried) || others.left(reach, tried).next().is_none() {
            return self.lease(hash, now, tried, dice);
        }
        if self.is_full() {
            return Err(NoLease::Full);
        }
        others.pick(reach, tried).and_then(|backend| self.try_lease(&backend.state)).ok_or(NoLease::Full)
    }

    /// Notes how an attempt at one of its backends ended, for outlier detection. `took` is the time from sending the request to
    /// the first byte of the response, or to the end of waiting for it. On the request path, by `worker` alone.
    #[inline]
    pub fn note(&self, backend: &BackendState, worker: usize, outcome: AttemptOutcome, took: Duration) {
        if let Some(settings) = &self.config.outlier_detection
            && backend.outlier.note(worker, outcome, took, Instant::now, settings).is_some()
        {
            self.state.changed.notify_one();
        }
    }

    /// A backend has answered a request as the last resort. On the request path.
    #[cold]
    pub fn note_served(&self, backend: &BackendState) {
        if backend.outlier.note_served() {
            self.state.changed.notify_one();
        }
    }

    /// Whether a backend is ready, as requests see it.
    pub fn is_ready(&self, backend: BackendId) -> bool {
        self.roster.load().ready().iter().any(|it| it.state.id == backend)
    }

    /// The same after the backend that was picked turned out to be full. It is marked as tried for this round and the strategy
    /// asked again, which so never sees a limit; where it has been asked so often that the marks do not fit, the first with
    /// room is taken, from a random place on.
    #[cold]
    fn lease_elsewhere(
        &self,
        roster: &Roster,
        first: BackendId,
        (hash, now, tried): (Option<u64>, Instant, &Tried),
        dice: &mut Dice,
    ) -> Option<Lease> {
        let mut full = tried.clone();
        full.push(first);
        while full.len() < Tried::CAPACITY {
            let backend = roster.pick(hash, now, &full, dice)?;
            if let Some(lease) = self.try_lease(&backend.state) {
                return Some(lease);
            }
            full.push(backend.state.id);
        }
        let candidates = roster.ready();
        let start = dice.below(candidates.len().max(1));
        let (before, after) = candidates.split_at(start.min(candidates.len()));
        let mut left = after.iter().chain(before).filter(|backend| !full.contains(backend.state.id));
        left.find_map(|backend| self.try_lease(&backend.state))
    }

    fn try_lease(&self, backend: &Arc<BackendState>) -> Option<Lease> {
        Lease::try_take(backend, self.limits.adaptive.is_some())
    }

    /// Whether all backends together have as many requests as the adaptive limit lets them.
    fn is_full(&self) -> bool {
        self.limits.adaptive.is_some() && !self.state.room.in_flight.has_room(self.state.adaptive_limit())
    }

    /// Whether another request than one that was everywhere already might find room.
    pub fn has_room(&self) -> bool {
        !self.is_full() && self.roster.load().ready().iter().any(|backend| backend.state.has_room())
    }
}

/// How the backends of an upstream have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turnover {
    /// By address, and with those of which something else is said.
    pub difference: Difference,
    /// Those that were not there.
    pub came: Box<[BackendId]>,
    /// Those that are no longer there.
    pub gone: Box<[BackendId]>,
    /// Whether there are limits from now on and were none before.
    pub becomes_bounded: bool,
}

/// The backends of a set, on what is known of them.
fn backends(set: &BackendSet, config: &UpstreamConfig, state: &UpstreamState) -> Vec<Backend> {
    let joins = state.has_backends() && !state.begins.load(Ordering::Relaxed);
    let fresh = || {
        let ramp = if joins { Ramp::joining() } else { Ramp::full() };
        (first_health(config, joins), ramp)
    };
    state.forget_unused();
    let backends = set.iter().map(|instance| {
        let state = state.backend(instance, fresh);
        Backend { weight: operator_actions::weight(instance, &state), instance: Arc::clone(instance), state }
    });
    backends.collect()
}

/// Why there is no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoLease {
    /// There is no backend that may be picked.
    NoBackend,
    /// Those that may be picked have as many requests as they take.
    Full,
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
    /// How many further attempts its requests may get.
    pub retry_budget: RetryBudget,
    hedging: OnceLock<Box<Hedging>>,
    /// Where its backends come from.
    pub sources: Sources,
    /// What services there are, where others are made of it for each.
    pub services: ServiceState,
    /// Called when the readiness of a backend may have changed, or what sources say: wakes the keeper.
    pub changed: Notify,
    /// How often detection has ejected one of its backends: wakes the checks and the lookout.
    pub ejections: watch::Sender<u64>,
    /// The requests that wait for a backend with a free slot.
    pub room: Arc<UpstreamRoom>,
    /// Whether backends are asked at all. Closed and without a memory as long as no breaker is configured.
    pub breaker: Arc<Breaker>,
    /// The limit for all backends together, once one was configured.
    adaptive: OnceLock<Gradient>,
    /// Whether it has just begun, and not all backends are known that it begins with.
    begins: AtomicBool,
    /// What the keeper remembers from one time to the next. Control plane only.
    kept: Mutex<roster_keeper::KeeperMemory>,
    shards: usize,
    /// Every backend that is held, by a roster or a lease that outlives it, and every address that something is set for by
    /// hand. Control plane only.
    backends: Mutex<HashMap<Address, KnownAddress>>,
}

/// What is found again by an address.
#[derive(Debug)]
struct KnownAddress {
    state: Weak<BackendState>,
    by_hand: Arc<ByHand>,
}

impl KnownAddress {
    fn is_of_use(&self) -> bool {
        self.state.strong_count() > 0 || self.by_hand.marks().any()
    }
}

impl UpstreamState {
    /// The state of an upstream that was not there before. `shards` is the number of workers.
    pub fn new(name: UpstreamName, shards: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            cursors: Cursors::default(),
            metrics: Sharded::new(shards),
            retry_budget: RetryBudget::new(shards),
            hedging: OnceLock::new(),
            sources: Sources::default(),
            services: ServiceState::default(),
            changed: Notify::new(),
            ejections: watch::Sender::new(0),
            room: Arc::default(),
            breaker: Breaker::new(shards),
            adaptive: OnceLock::new(),
            begins: AtomicBool::new(false),
            kept: Mutex::default(),
            shards,
            backends: Mutex::default(),
        })
    }

    /// The state of an instance: the one of its address that somebody still holds, or a new one that begins as `fresh` says.
    fn backend(&self, instance: &Instance, fresh: impl FnOnce() -> (Health, Ramp)) -> Arc<BackendState> {
        let Instance { address, server_name, .. } = instance;
        let mut backends = self.lock();
        let known = backends.get(address);
        let of_that_name = |state: &Arc<BackendState>| state.server_name == *server_name;
        if let Some(state) = known.and_then(|known| known.state.upgrade()).filter(of_that_name) {
            return state;
        }
        let by_hand = known.map(|known| Arc::clone(&known.by_hand)).unwrap_or_default();
        let (room, kept) = (Arc::clone(&self.room), Arc::clone(&by_hand));
        let identity = (address.clone(), server_name.clone());
        let state = BackendState::with(self.name.clone(), identity, self.shards, fresh(), room, kept);
        backends.insert(address.clone(), KnownAddress { state: Arc::downgrade(&state), by_hand });
        state
    }

    /// The upstream is about to be served, and was not before: what its sources say first are backends that it begins with, and none that join.
    pub fn begin(&self) {
        self.begins.store(true, Ordering::Relaxed);
    }

    /// What sources say has been served with. Backends that come from now on join, unless a source is still asked for the first time.
    fn has_begun(&self) {
        if !self.sources.awaits_backends() {
            self.begins.store(false, Ordering::Relaxed);
        }
    }

    /// Of addresses that nothing holds and nothing is set for, nothing need be known.
    fn forget_unused(&self) {
        self.lock().retain(|_, known| known.is_of_use());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Address, KnownAddress>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What hedging has to know. Made when it is first asked for: most upstreams never do.
    pub fn hedging(&self) -> &Hedging {
        self.hedging.get_or_init(|| {
            Box::new(Hedging { budget: RetryBudget::new(self.shards), latencies: Latencies::new(self.shards) })
        })
    }

    /// Requests that may be in flight at all backends together by the adaptive limit, as it is now or was when there was one;
    /// [`Permits::UNLIMITED`] where there never was.
    pub fn adaptive_limit(&self) -> u32 {
        self.adaptive.get().map_or(Permits::UNLIMITED, Gradient::limit)
    }

    /// What moves the adaptive limit, once one was configured.
    pub fn adaptive(&self) -> Option<&Gradient> {
        self.adaptive.get()
    }

    /// Whether health checks or outlier detection hold a backend for failed now, so that its going is no surprise.
    pub fn is_failing(&self, address: &Address) -> bool {
        let state = self.lock().get(address).and_then(|known| known.state.upgrade());
        state.is_some_and(|state| {
            let by_detection = state.outlier.history().ejection().is_some_and(|it| it.by == By::Detection);
            by_detection || state.health.verdict() == Verdict::Unhealthy
        })
    }

    fn has_backends(&self) -> bool {
        let backends = self.lock();
        backends.values().any(|known| known.state.strong_count() > 0)
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
        InitialHealth::Healthy => HealthAccount::new(Verdict::Healthy, false),
        InitialHealth::Unhealthy => HealthAccount::new(Verdict::Unhealthy, false),
        // Those an upstream begins with are used at once, or a start would refuse requests until the first checks are over.
        InitialHealth::FirstCheck if joins => HealthAccount::new(Verdict::Unknown, true),
        InitialHealth::FirstCheck => HealthAccount::new(Verdict::Healthy, true),
    })
}

#[cfg(test)]
mod tests;
