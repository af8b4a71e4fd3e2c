//! Keeps a pick away from where the exchange has been.

use super::{Candidates, Dice};
use crate::backend::Backend;

/// Proposals that are heard before the backends that are left are counted. Even where half of the proposals fall on tried
/// ones, fifteen in sixteen retries end here, without a look at the whole list.
const PROPOSALS: usize = 4;

/// The first proposal that may be picked and is not `except`; after a few that may not, one of those left, as likely as
/// `weight` says. `None` when none is left.
///
/// Where the proposals are random draws by the same weights, so is the outcome, exactly: a refused draw says nothing
/// about the next. The list must not be empty: there would be nothing to propose.
#[inline]
pub(super) fn pick(
    candidates: &Candidates<'_>,
    except: Option<usize>,
    dice: &mut Dice,
    weight: impl Fn(&Backend) -> u64,
    mut propose: impl FnMut(&mut Dice) -> usize,
) -> Option<usize> {
    for _ in 0..PROPOSALS {
        let index = propose(dice);
        if Some(index) != except && candidates.may(index) {
            return Some(index);
        }
    }
    draw(candidates, except, dice, weight)
}

/// Draws among those left by counting them: two walks over the list, on a retry or where one backend has nearly all
/// weight.
#[cold]
fn draw(
    candidates: &Candidates<'_>,
    except: Option<usize>,
    dice: &mut Dice,
    weight: impl Fn(&Backend) -> u64,
) -> Option<usize> {
    let left = || {
        let left = candidates.backends.iter().enumerate();
        left.filter(|&(index, _)| Some(index) != except && candidates.may(index))
    };
    let total: u64 = left().map(|(_, backend)| weight(backend)).sum();
    let mut point = ((u128::from(dice.bits()) * u128::from(total)) >> 64) as u64;
    for (index, backend) in left() {
        let weight = weight(backend);
        if point < weight {
            return Some(index);
        }
        point -= weight;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::Tried;
    use super::super::conformance::{assert_shares, backends};
    use super::*;

    /// A proposal that is always refused leaves the choice to the draw.
    #[test]
    fn those_left_are_drawn_by_weight() {
        let backends = backends(&[7, 1, 2, 3]);
        let mut tried = Tried::default();
        tried.push(backends[0].state.id);
        let candidates = Candidates { backends: &backends, hash: None, now: Instant::now(), tried: &tried };
        let mut dice = Dice::seeded(5);
        let mut counts = [0; 4];
        for _ in 0..200_000 {
            counts[pick(&candidates, None, &mut dice, |backend| backend.weight.into(), |_| 0).unwrap()] += 1;
        }
        assert_eq!(counts[0], 0);
        assert_shares(&counts[1..], &[1.0, 2.0, 3.0], "drawn among those left");
    }

    #[test]
    fn the_exception_is_never_picked() {
        let backends = backends(&[1, 1]);
        let tried = Tried::default();
        let candidates = Candidates { backends: &backends, hash: None, now: Instant::now(), tried: &tried };
        for seed in 0..50 {
            assert_eq!(pick(&candidates, Some(0), &mut Dice::seeded(seed), |_| 1, |dice| dice.below(2)), Some(1));
        }
    }
}
