use std::cmp::Ordering;

use super::alias_method::Alias;
use super::load::Load;
use super::random_source::scale;
use super::{Candidates, Dice, Strategy, skip_tried};
use crate::backend::Backend;

/// The less loaded of two distinct draws.
///
/// Looks at two backends however many there are, and still keeps the longest queues nearly as short as looking at all
/// would (Mitzenmacher 2001). The draws are distinct, so that the busiest of all is never picked; and random, so that
/// many proxies with the same view do not all run to the same idle backend.
#[derive(Debug)]
pub(super) struct PowerOfTwo {
    /// Draws by weight; `None` where all weights are equal.
    table: Option<Alias>,
}

impl PowerOfTwo {
    pub(super) fn new(ready: &[Backend]) -> Self {
        let equal = ready.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        Self { table: (!equal).then(|| Alias::new(ready)) }
    }

    /// Two that may be picked, the second being `None` when only one is left. Which comes first is random.
    fn draw(&self, candidates: &Candidates<'_>, dice: &mut Dice) -> Option<(usize, Option<usize>)> {
        match (&self.table, candidates.backends.len()) {
            (_, 0) => None,
            // One draw for both: a place among n, and one among the n - 1 others.
            (None, n @ 2..) if candidates.tried.is_empty() => {
                let bits = dice.bits();
                let first = scale((bits >> 32) as u32, n);
                let second = scale(bits as u32, n - 1);
                Some((first, Some(if second < first { second } else { second + 1 })))
            }
            (table, n) => {
                let propose = |dice: &mut Dice| match table {
                    Some(table) => table.draw(dice),
                    None => dice.below(n),
                };
                let weight = |backend: &Backend| backend.weight.into();
                let first = skip_tried::pick(candidates, None, dice, weight, propose)?;
                Some((first, skip_tried::pick(candidates, Some(first), dice, weight, propose)))
            }
        }
    }
}

impl Strategy for PowerOfTwo {
    fn pick(&self, candidates: &Candidates<'_>, dice: &mut Dice) -> Option<usize> {
        let (first, second) = self.draw(candidates, dice)?;
        let load = |index: usize| Load::of(&candidates.backends[index]);
        match second {
            Some(second) if load(second).compare(load(first)) == Ordering::Less => Some(second),
            _ => Some(first),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::Tried;
    use super::super::conformance::{assert_shares, backends, occupy};
    use super::*;
    use crate::backend::Lease;

    fn counts(backends: &[Backend], tried: &Tried, picks: usize) -> Vec<u64> {
        let strategy = PowerOfTwo::new(backends);
        let candidates = Candidates { backends, hash: None, now: Instant::now(), tried };
        let mut dice = Dice::seeded(17);
        let mut counts = vec![0; backends.len()];
        for _ in 0..picks {
            counts[strategy.pick(&candidates, &mut dice).unwrap()] += 1;
        }
        counts
    }

    /// The r-th least loaded of n wins against the n - r busier ones, of n (n - 1) / 2 pairs.
    #[test]
    fn the_chance_falls_with_the_rank() {
        for loads in [&[1, 0][..], &[1, 0, 3], &[1, 4, 2, 0, 3], &[1, 4, 7, 0, 3, 6, 9, 2, 5, 8]] {
            let backends = backends(&vec![1; loads.len()]);
            let _leases = occupy(&backends, loads);
            let counts = counts(&backends, &Tried::default(), 400_000);
            let busier = |load: u32| loads.iter().filter(|&&other| other > load).count();
            let shares: Vec<_> = loads.iter().map(|&load| busier(load) as f64).collect();
            assert_shares(&counts, &shares, "power of two by rank");
        }
    }

    #[test]
    fn all_idle_is_even() {
        let backends = backends(&[1; 6]);
        assert_shares(&counts(&backends, &Tried::default(), 300_000), &[1.0; 6], "power of two, all idle");
    }

    #[test]
    fn a_retry_chooses_by_rank_among_those_left() {
        let backends = backends(&[1; 5]);
        let _leases = occupy(&backends, &[0, 1, 2, 3, 4]);
        let mut tried = Tried::default();
        tried.push(backends[0].state.id);
        tried.push(backends[2].state.id);
        assert_shares(&counts(&backends, &tried, 300_000), &[0.0, 2.0, 0.0, 1.0, 0.0], "power of two, retry");
    }

    #[test]
    fn one_is_picked_and_one_left_is_picked() {
        assert_eq!(counts(&backends(&[4]), &Tried::default(), 10), [10]);
        let backends = backends(&[4, 1]);
        let mut tried = Tried::default();
        tried.push(backends[0].state.id);
        assert_eq!(counts(&backends, &tried, 10), [0, 10]);
    }

    /// Loads that are equal for the weights leave the choice to the first draw, which goes by weight.
    #[test]
    fn equal_loads_are_drawn_by_weight() {
        let backends = backends(&[1, 2, 4, 5]);
        let _leases = occupy(&backends, &[0, 1, 3, 4]);
        assert_shares(&counts(&backends, &Tried::default(), 300_000), &[1.0, 2.0, 4.0, 5.0], "power of two by weight");
    }

    /// A backend with nearly all weight is drawn twice nearly always; still the draws are distinct.
    #[test]
    fn the_busiest_is_never_picked_however_heavy() {
        let backends = backends(&[10_000, 1, 1]);
        let _leases = occupy(&backends, &[20_000, 1, 1]);
        assert_shares(&counts(&backends, &Tried::default(), 100_000), &[0.0, 1.0, 1.0], "power of two, one heavy");
    }

    /// Requests that stay end up near the weights.
    #[test]
    fn requests_that_stay_fill_up_by_weight() {
        let backends = backends(&[1, 2, 3]);
        let strategy = PowerOfTwo::new(&backends);
        let tried = Tried::default();
        let candidates = Candidates { backends: &backends, hash: None, now: Instant::now(), tried: &tried };
        let mut dice = Dice::seeded(8);
        let _leases: Vec<_> =
            (0..600).map(|_| Lease::take(&backends[strategy.pick(&candidates, &mut dice).unwrap()].state)).collect();
        for (backend, fair) in backends.iter().zip([100u32, 200, 300]) {
            assert!(backend.state.in_flight().abs_diff(fair) <= 10, "{} instead of {fair}", backend.state.in_flight());
        }
    }
}
