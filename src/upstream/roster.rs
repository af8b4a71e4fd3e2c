use std::sync::Arc;

use crate::backend::Backend;
use crate::config::StrategyConfig;
use crate::strategy::{self, Candidates, Cursor, Dice, Factories, Strategy};

/// What an upstream serves from now: its backends, those of them that are ready, and the strategy built for those.
#[derive(Debug)]
pub struct Roster {
    backends: Vec<Backend>,
    ready: Vec<Backend>,
    strategy: Box<dyn Strategy>,
}

impl Roster {
    /// Sorts out who is ready and builds the strategy for them.
    pub fn build(
        backends: Vec<Backend>,
        strategy: &StrategyConfig,
        cursor: &Arc<Cursor>,
        factories: &Factories,
    ) -> Self {
        let ready: Vec<_> = backends.iter().filter(|backend| backend.weight > 0).cloned().collect();
        let strategy = strategy::build(strategy, &ready, cursor, factories);
        Self { backends, ready, strategy }
    }

    /// All backends, in the order of the file.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// Those that may be picked.
    pub fn ready(&self) -> &[Backend] {
        &self.ready
    }

    /// Asks the strategy. An index that does not exist, from a strategy of the embedding program, counts as none.
    pub(super) fn pick(&self, candidates: &Candidates<'_>, dice: &mut Dice) -> Option<usize> {
        self.strategy.pick(candidates, dice).filter(|&index| index < self.ready.len())
    }
}
