use super::{Candidates, Dice, Strategy, skip_tried};

/// Any, equally likely. Keeps no state, so any number of proxies in front of the same backends cannot fall into step.
#[derive(Debug)]
pub(super) struct Random;

impl Strategy for Random {
    fn pick(&self, candidates: &Candidates<'_>, dice: &mut Dice) -> Option<usize> {
        let n = candidates.backends.len();
        if n == 0 {
            return None;
        }
        skip_tried::pick(candidates, None, dice, |_| 1, |dice| dice.below(n))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::Tried;
    use super::super::conformance::{assert_shares, backends};
    use super::*;

    #[test]
    fn a_retry_is_as_even_as_a_first_attempt() {
        for tries in [1, 3, 6] {
            let backends = backends(&[1; 8]);
            let mut tried = Tried::default();
            for backend in &backends[..tries] {
                tried.push(backend.state.id);
            }
            let candidates = Candidates { backends: &backends, hash: None, now: Instant::now(), tried: &tried };
            let mut dice = Dice::seeded(11);
            let mut counts = [0; 8];
            for _ in 0..200_000 {
                counts[Random.pick(&candidates, &mut dice).unwrap()] += 1;
            }
            assert_shares(&counts[tries..], &vec![1.0; 8 - tries], "random retry");
        }
    }
}
