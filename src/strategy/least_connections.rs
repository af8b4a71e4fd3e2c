use std::cmp::Ordering;

use super::load::Load;
use super::{Candidates, Dice, Strategy};

/// The one with the fewest requests in flight for its weight; of several such, any, equally likely.
///
/// One walk over the list: an ordered structure would answer faster, but every worker would have to write it twice a
/// request. Where lists are long, `power_of_two` does nearly as well without the walk.
#[derive(Debug)]
pub(super) struct LeastConnections;

impl Strategy for LeastConnections {
    fn pick(&self, candidates: &Candidates<'_>, dice: &mut Dice) -> Option<usize> {
        let mut best: Option<(usize, Load)> = None;
        let mut ties = 1;
        for (index, backend) in candidates.backends.iter().enumerate() {
            if !candidates.may(index) {
                continue;
            }
            let load = Load::of(backend);
            match best.map_or(Ordering::Less, |(_, least)| load.compare(least)) {
                Ordering::Less => {
                    best = Some((index, load));
                    ties = 1;
                }
                // The k-th of equals takes over once in k times, which leaves each equally likely. A walk from a random
                // place would not: the one after a busy stretch would be picked more often.
                Ordering::Equal => {
                    ties += 1;
                    if dice.below(ties) == 0 {
                        best = Some((index, load));
                    }
                }
                Ordering::Greater => {}
            }
        }
        best.map(|(index, _)| index)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::Tried;
    use super::super::conformance::{assert_shares, backends, occupy};
    use super::*;
    use crate::backend::{Backend, Lease};

    fn counts(backends: &[Backend], tried: &Tried, picks: usize) -> Vec<u64> {
        let candidates = Candidates { backends, hash: None, now: Instant::now(), tried };
        let mut dice = Dice::seeded(3);
        let mut counts = vec![0; backends.len()];
        for _ in 0..picks {
            counts[LeastConnections.pick(&candidates, &mut dice).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn equals_are_equally_likely() {
        // Uneven gaps between the idle ones, on which a walk from a random place would fail.
        let backends = backends(&[1; 8]);
        let _leases = occupy(&backends, &[0, 0, 0, 2, 1, 1, 1, 0]);
        let counts = counts(&backends, &Tried::default(), 200_000);
        assert_eq!(counts[3..7], [0; 4]);
        assert_shares(&[counts[0], counts[1], counts[2], counts[7]], &[1.0; 4], "ties");
    }

    #[test]
    fn weights_tie_by_what_they_can_bear() {
        let backends = backends(&[3, 1, 2]);
        let _leases = occupy(&backends, &[2, 0, 1]);
        assert_shares(&counts(&backends, &Tried::default(), 100_000), &[1.0; 3], "3/3, 1/1 and 2/2 requests");
    }

    #[test]
    fn the_least_loaded_of_those_left_is_picked() {
        let backends = backends(&[1; 4]);
        let _leases = occupy(&backends, &[0, 3, 1, 2]);
        let mut tried = Tried::default();
        tried.push(backends[0].state.id);
        assert_eq!(counts(&backends, &tried, 100), [0, 0, 100, 0]);
    }

    /// Sixty requests that stay: as many each as the weight says.
    #[test]
    fn requests_that_stay_fill_up_by_weight() {
        let backends = backends(&[1, 2, 3]);
        let tried = Tried::default();
        let candidates = Candidates { backends: &backends, hash: None, now: Instant::now(), tried: &tried };
        let mut dice = Dice::seeded(8);
        let _leases: Vec<_> = (0..60)
            .map(|_| Lease::take(&backends[LeastConnections.pick(&candidates, &mut dice).unwrap()].state))
            .collect();
        assert_eq!(backends.iter().map(|backend| backend.state.in_flight()).collect::<Vec<_>>(), [10, 20, 30]);
    }
}
