use super::alias_method::Alias;
use super::{Candidates, Dice, Strategy, skip_tried};
use crate::backend::Backend;

/// Any, as likely as its weight.
#[derive(Debug)]
pub(super) struct WeightedRandom {
    table: Alias,
}

impl WeightedRandom {
    pub(super) fn new(ready: &[Backend]) -> Self {
        Self { table: Alias::new(ready) }
    }
}

impl Strategy for WeightedRandom {
    fn pick(&self, candidates: &Candidates<'_>, dice: &mut Dice) -> Option<usize> {
        if candidates.backends.is_empty() {
            return None;
        }
        skip_tried::pick(candidates, None, dice, |backend| backend.weight.into(), |dice| self.table.draw(dice))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::Tried;
    use super::super::conformance::{assert_shares, backends};
    use super::*;

    #[test]
    fn a_retry_keeps_to_the_weights_of_those_left() {
        // The tried one has half of the weight, so one retry in sixteen runs out of proposals.
        let backends = backends(&[10, 1, 2, 3, 4]);
        let strategy = WeightedRandom::new(&backends);
        let mut tried = Tried::default();
        tried.push(backends[0].state.id);
        let candidates = Candidates { backends: &backends, hash: None, now: Instant::now(), tried: &tried };
        let mut dice = Dice::seeded(23);
        let mut counts = [0; 5];
        for _ in 0..300_000 {
            counts[strategy.pick(&candidates, &mut dice).unwrap()] += 1;
        }
        assert_shares(&counts[1..], &[1.0, 2.0, 3.0, 4.0], "weighted random retry");
    }
}
