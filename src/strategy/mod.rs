//! The algorithms that pick a backend, one file each behind one trait.
//!
//! A strategy is built for a roster: whatever depends on the set of backends is worked out in [`build`], on the control
//! plane, so that a pick takes no lock, allocates nothing and looks at as few backends as its rule allows. What must go on
//! over a change of the set, the place in the round, lives in the [`Cursor`] that is handed in.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tracing::error;

use crate::backend::{Backend, BackendId};
use crate::config::StrategyConfig;

mod alias_method;
pub mod conformance;
mod random_source;
mod least_connections;
mod load;
mod power_of_two;
mod random;
mod rotation;
mod round_robin;
mod skip_tried;
mod weighted_random;
mod weighted_round_robin;

pub use random_source::Dice;

use least_connections::LeastConnections;
use power_of_two::PowerOfTwo;
use random::Random;
use round_robin::RoundRobin;
use weighted_random::WeightedRandom;
use weighted_round_robin::WeightedRoundRobin;

/// Chooses a backend.
pub trait Strategy: fmt::Debug + Send + Sync {
    /// The index in `candidates.backends` of one that was not tried yet, or `None` when there is none.
    ///
    /// `candidates.backends` is the very list that the strategy was built for. Called on the request path by several
    /// workers at a time: no I/O, no lock, no allocation.
    fn pick(&self, candidates: &Candidates<'_>, dice: &mut Dice) -> Option<usize>;
}

/// What a pick chooses among.
#[derive(Debug)]
pub struct Candidates<'a> {
    /// The ready backends: those the strategy was built for, in the same order. None has weight 0.
    pub backends: &'a [Backend],
    /// What a consistent choice depends on, where the route names something.
    pub hash: Option<u64>,
    /// When the request came.
    pub now: Instant,
    /// Where this exchange has been already.
    pub tried: &'a Tried,
}

impl Candidates<'_> {
    /// Whether the backend at `index` may be picked.
    pub fn may(&self, index: usize) -> bool {
        self.tried.is_empty() || !self.tried.contains(self.backends[index].state.id)
    }
}

/// The backends that an exchange has tried: a retry does not go where it has been. Holds as many as an exchange can have
/// attempts and never allocates.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    ids: [Option<BackendId>; Tried::CAPACITY],
    len: usize,
}

impl Tried {
    /// Attempts that an exchange can make at most.
    pub const CAPACITY: usize = 8;

    /// Notes an attempt. Past the capacity nothing is noted.
    pub fn push(&mut self, id: BackendId) {
        if self.len < Self::CAPACITY {
            self.ids[self.len] = Some(id);
            self.len += 1;
        }
    }

    /// Whether no attempt was made yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Attempts noted.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether an attempt was made there.
    pub fn contains(&self, id: BackendId) -> bool {
        self.ids[..self.len].contains(&Some(id))
    }
}

/// The place in the round: one for all workers, so that the order is exact, and outside the roster, so that it goes on over
/// a reload. First attempts take places; what is tried again takes none, or the order of the others would depend on it.
///
/// On cache lines of its own, since every worker writes it at every pick; 128 bytes, for x86 fetches lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Cursor(AtomicU64);

impl Cursor {
    /// Takes the next place.
    pub fn advance(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// Places taken so far.
    pub fn position(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Makes a strategy for a list of ready backends: what an embedding program supplies for a name of its own.
pub type Factory = Arc<dyn Fn(&[Backend], &Arc<Cursor>) -> Box<dyn Strategy> + Send + Sync>;

/// The strategies of the embedding program, by the name that `lb.toml` uses.
#[derive(Clone, Default)]
pub struct Factories(HashMap<String, Factory>);

impl Factories {
    /// Adds one. The names of isobar's own strategies cannot be taken: those win.
    pub fn add(&mut self, name: impl Into<String>, factory: Factory) {
        self.0.insert(name.into(), factory);
    }

    /// The names, for the check of the configuration.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl fmt::Debug for Factories {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Builds the strategy that `config` names for a list of ready backends, none of which has weight 0.
pub fn build(
    config: &StrategyConfig,
    ready: &[Backend],
    cursor: &Arc<Cursor>,
    factories: &Factories,
) -> Box<dyn Strategy> {
    match config {
        StrategyConfig::RoundRobin => Box::new(RoundRobin::new(cursor)),
        StrategyConfig::WeightedRoundRobin => Box::new(WeightedRoundRobin::new(ready, cursor)),
        StrategyConfig::Random => Box::new(Random),
        StrategyConfig::WeightedRandom => Box::new(WeightedRandom::new(ready)),
        StrategyConfig::LeastConnections => Box::new(LeastConnections),
        StrategyConfig::PowerOfTwo => Box::new(PowerOfTwo::new(ready)),
        StrategyConfig::Custom(name) => match factories.0.get(&**name) {
            Some(factory) => factory(ready, cursor),
            None => {
                // The check of the configuration refuses a name that no factory has. A caller that builds without that check
                // gets requests served, and is told.
                error!(strategy = %name, "no factory for this strategy, using round_robin");
                Box::new(RoundRobin::new(cursor))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_custom_strategy_comes_from_its_factory() {
        let mut factories = Factories::default();
        factories.add("any", Arc::new(|_: &[Backend], _: &Arc<Cursor>| Box::new(Random) as Box<dyn Strategy>));
        let built = build(&StrategyConfig::Custom("any".into()), &[], &Arc::default(), &factories);
        assert_eq!(format!("{built:?}"), "Random");
    }

    #[test]
    fn an_unknown_custom_strategy_is_round_robin() {
        let backends = conformance::backends(&[1, 1, 1]);
        let strategy =
            build(&StrategyConfig::Custom("nobody".into()), &backends, &Arc::default(), &Factories::default());
        let tried = Tried::default();
        let candidates = Candidates { backends: &backends, hash: None, now: Instant::now(), tried: &tried };
        let picks: Vec<_> = (0..4).map(|_| strategy.pick(&candidates, &mut Dice::seeded(1))).collect();
        assert_eq!(picks, [Some(0), Some(1), Some(2), Some(0)]);
    }

    #[test]
    fn the_own_strategies_win_over_factories_of_their_name() {
        let mut factories = Factories::default();
        factories.add("random", Arc::new(|_: &[Backend], _: &Arc<Cursor>| unreachable!("not asked")));
        assert_eq!(format!("{:?}", build(&StrategyConfig::Random, &[], &Arc::default(), &factories)), "Random");
    }

    #[test]
    fn tried_forgets_nothing_up_to_its_capacity() {
        let backends = conformance::backends(&[1; Tried::CAPACITY + 1]);
        let mut tried = Tried::default();
        for backend in &backends {
            tried.push(backend.state.id);
        }
        assert_eq!(tried.len(), Tried::CAPACITY);
        assert!(backends[..Tried::CAPACITY].iter().all(|backend| tried.contains(backend.state.id)));
        assert!(!tried.contains(backends[Tried::CAPACITY].state.id));
    }
}
