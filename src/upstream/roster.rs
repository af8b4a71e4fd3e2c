use std::sync::Arc;
use std::time::Instant;

use super::Readiness;
use crate::backend::Backend;
use crate::config::UpstreamConfig;
use crate::strategy::{self, Candidates, Cursor, Dice, Factories, Strategy};

/// What an upstream serves from now: its backends, those of them that are ready, and the strategy built for those.
#[derive(Debug)]
pub struct Roster {
    backends: Vec<Backend>,
    ready: Vec<Backend>,
    strategy: Box<dyn Strategy>,
    next: Option<Instant>,
}

impl Roster {
    /// Sorts out who is ready at `now` and builds the strategy for them.
    pub fn build(
        backends: Vec<Backend>,
        config: &UpstreamConfig,
        cursor: &Arc<Cursor>,
        factories: &Factories,
        now: Instant,
    ) -> Self {
        let readiness: Vec<_> = backends.iter().map(|backend| Readiness::of(backend, config)).collect();
        let ready = backends.iter().zip(&readiness).filter(|(_, it)| **it == Readiness::Ready);
        let ready: Vec<_> = ready.map(|(backend, _)| backend.clone()).collect();
        let strategy = strategy::build(&config.strategy, &ready, cursor, factories);
        let next = readiness.into_iter().filter_map(Readiness::until).min().map(|next| next.max(now));
        Self { backends, ready, strategy, next }
    }

    /// All backends, in the order of the file.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// Those that may be picked.
    pub fn ready(&self) -> &[Backend] {
        &self.ready
    }

    /// When it will be out of date by itself; `None` is never.
    pub fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Whether the same backends are ready here and there, in the same order and with the same weights.
    pub(super) fn has_the_same_ready(&self, other: &Self) -> bool {
        let key = |backend: &Backend| (backend.state.id, backend.weight);
        self.ready.iter().map(key).eq(other.ready.iter().map(key))
    }

    /// Whether the same backends have the same weights here and there, ready or not.
    pub(super) fn has_the_same_weights(&self, other: &Self) -> bool {
        let weight = |backend: &Backend| backend.weight;
        self.backends.iter().map(weight).eq(other.backends.iter().map(weight))
    }

    /// Asks the strategy. An index that does not exist, from a strategy of the embedding program, counts as none.
    pub(super) fn pick(&self, candidates: &Candidates<'_>, dice: &mut Dice) -> Option<usize> {
        self.strategy.pick(candidates, dice).filter(|&index| index < self.ready.len())
    }
}
