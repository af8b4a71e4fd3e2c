use std::sync::Arc;

use super::rotation::Rotation;
use super::{Candidates, Cursor, Dice, Strategy, skip_tried};
use crate::backend::Backend;

/// The longest round that is written out: 128 KiB. It is also the most that `u16` can number, for a round is at least
/// as long as the list.
const SCHEDULE_MAX: u64 = 1 << 16;

/// Each in turn as often as its weight, evenly spread: `a a b a c a a` for 5, 1, 1.
///
/// The order is that of nginx's smooth weighted round robin: exact after each round, and on the way there no backend is a
/// whole pick ahead of its share, for only a backend that is owed something is picked; the longest that a backend was seen to wait
/// was 1.3 picks behind it. It repeats, so it is worked out once, when the list is built, and a pick reads the next
/// place. That place is shared by all workers: the order is exact over the whole process. A further attempt takes no place, as
/// in `round_robin`: it draws one of the round, which is a backend as likely as its weight.
#[derive(Debug)]
pub(super) struct WeightedRoundRobin {
    order: RoundOrder,
    cursor: Arc<Cursor>,
}

/// Whose turn it is at a place.
#[derive(Debug)]
enum RoundOrder {
    /// Weights that, divided by what they have in common, add up to 65 536 at most: the round, written out.
    Schedule(Box<[u16]>),
    /// Others: very close to the shares all the time instead of exact once in a very long round.
    Rotation(Rotation),
}

impl WeightedRoundRobin {
    pub(super) fn new(ready: &[Backend], cursor: &Arc<Cursor>) -> Self {
        let divisor = ready.iter().fold(0, |divisor, backend| common_divisor(divisor, backend.weight)).max(1);
        let total: u64 = ready.iter().map(|backend| u64::from(backend.weight / divisor)).sum();
        let order = if total <= SCHEDULE_MAX {
            RoundOrder::Schedule(schedule(ready, divisor, total))
        } else {
            RoundOrder::Rotation(Rotation::new(ready))
        };
        Self { order, cursor: Arc::clone(cursor) }
    }
}

impl Strategy for WeightedRoundRobin {
    fn pick(&self, candidates: &Candidates<'_>, dice: &mut Dice) -> Option<usize> {
        let weight = |backend: &Backend| backend.weight.into();
        match &self.order {
            RoundOrder::Schedule(round) if round.is_empty() => None,
            RoundOrder::Schedule(round) if candidates.tried.is_empty() => {
                Some(usize::from(round[(self.cursor.advance() % round.len() as u64) as usize]))
            }
            RoundOrder::Schedule(round) => {
                skip_tried::pick(candidates, None, dice, weight, |dice| usize::from(round[dice.below(round.len())]))
            }
            RoundOrder::Rotation(rotation) if candidates.tried.is_empty() => Some(rotation.at(self.cursor.advance())),
            RoundOrder::Rotation(rotation) => {
                skip_tried::pick(candidates, None, dice, weight, |dice| rotation.at(dice.bits()))
            }
        }
    }
}

/// Backends of one weight. They have the same credit until they are picked, so they take turns, and only the next of
/// them needs to be looked at. That makes a schedule cheap: a round of 65 536 has at most 361 different weights.
struct Class {
    weight: i64,
    members: Vec<u16>,
    next: usize,
    /// The credit of the next member.
    credit: i64,
}

/// Writes a round out: at each place each backend is credited its weight, and the first of those with the most credit is
/// picked and charged the sum of the weights.
fn schedule(ready: &[Backend], divisor: u16, total: u64) -> Box<[u16]> {
    let total = total as i64;
    let mut classes = classes(ready, divisor);
    let mut round = Vec::with_capacity(total as usize);
    for _ in 0..total {
        for class in &mut classes {
            class.credit += class.weight;
        }
        let Some(class) = classes.iter_mut().min_by_key(|class| (-class.credit, class.members[class.next])) else {
            break;
        };
        round.push(class.members[class.next]);
        class.next += 1;
        if class.next == class.members.len() {
            // Every member has been charged once more.
            class.next = 0;
            class.credit -= total;
        }
    }
    round.into()
}

fn classes(ready: &[Backend], divisor: u16) -> Vec<Class> {
    let mut by_weight: Vec<_> = (0u16..=u16::MAX).zip(ready.iter().map(|backend| backend.weight / divisor)).collect();
    by_weight.sort_by_key(|&(_, weight)| weight);
    by_weight
        .chunk_by(|(_, one), (_, other)| one == other)
        .map(|class| Class {
            weight: class[0].1.into(),
            members: class.iter().map(|&(index, _)| index).collect(),
            next: 0,
            credit: 0,
        })
        .collect()
}

fn common_divisor(mut one: u16, mut other: u16) -> u16 {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::{ProptestConfig, prop, prop_assert_eq, proptest};

    use super::super::Tried;
    use super::super::conformance::{assert_shares, backends};
    use super::*;

    fn round(weights: &[u16]) -> Vec<u16> {
        match WeightedRoundRobin::new(&backends(weights), &Arc::default()).order {
            RoundOrder::Schedule(round) => round.into(),
            RoundOrder::Rotation(_) => panic!("the round of {weights:?} is not written out"),
        }
    }

    /// nginx's own loop, as it is described: it looks at each backend for each pick.
    fn nginx(weights: &[u16], picks: usize) -> Vec<u16> {
        let total: i64 = weights.iter().map(|&weight| i64::from(weight)).sum();
        let mut credits = vec![0; weights.len()];
        (0..picks)
            .map(|_| {
                let mut best = 0;
                for (index, &weight) in weights.iter().enumerate() {
                    credits[index] += i64::from(weight);
                    if credits[index] > credits[best] {
                        best = index;
                    }
                }
                credits[best] -= total;
                best as u16
            })
            .collect()
    }

    /// Exact at the end of the round; all along less than a pick ahead, and not two behind.
    fn assert_smooth(weights: &[u16], round: &[u16]) {
        let total: i64 = weights.iter().map(|&weight| i64::from(weight)).sum();
        let mut counts = vec![0i64; weights.len()];
        for (picked, &index) in (1..).zip(round) {
            counts[usize::from(index)] += 1;
            for (&count, &weight) in counts.iter().zip(weights) {
                let ahead = count * total - picked * i64::from(weight);
                assert!(ahead < total, "{count} of {picked} picks for weight {weight} of {weights:?}");
                assert!(ahead > -2 * total, "only {count} of {picked} picks for weight {weight} of {weights:?}");
            }
        }
        for (&count, &weight) in counts.iter().zip(weights) {
            assert_eq!(count * total, round.len() as i64 * i64::from(weight));
        }
    }

    #[test]
    fn the_golden_sequence() {
        assert_eq!(round(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(round(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(round(&[1, 2]), [1, 0, 1]);
    }

    #[test]
    fn the_golden_sequence_is_picked_from_its_beginning() {
        let backends = backends(&[5, 1, 1]);
        let strategy = WeightedRoundRobin::new(&backends, &Arc::default());
        let tried = Tried::default();
        let candidates = Candidates { backends: &backends, hash: None, now: Instant::now(), tried: &tried };
        let mut dice = Dice::seeded(0);
        let picks: Vec<_> = (0..9).filter_map(|_| strategy.pick(&candidates, &mut dice)).collect();
        assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0, 0, 0]);
    }

    #[test]
    fn a_common_divisor_shortens_the_round() {
        assert_eq!(round(&[50, 10, 10]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(round(&[65_535; 3]), [0, 1, 2]);
        assert_eq!(round(&[7]), [0]);
    }

    #[test]
    fn the_longest_round_is_written_out_and_the_next_is_not() {
        assert_eq!(round(&[65_535, 1]).len(), 65_536);
        assert_smooth(&[65_535, 1], &round(&[65_535, 1]));
        let longer = WeightedRoundRobin::new(&backends(&[65_535, 2]), &Arc::default());
        assert!(matches!(longer.order, RoundOrder::Rotation(_)));
    }

    #[test]
    fn many_different_weights_are_smooth() {
        let weights: Vec<u16> = (1..=100).collect();
        assert_smooth(&weights, &round(&weights));
    }

    #[test]
    fn weights_too_long_for_a_schedule_keep_to_their_shares() {
        let weights = [65_535, 65_534, 30_000];
        let backends = backends(&weights);
        let cursor = Arc::default();
        let tried = Tried::default();
        let candidates = Candidates { backends: &backends, hash: None, now: Instant::now(), tried: &tried };
        let mut dice = Dice::seeded(1);
        let mut counts = [0f64; 3];
        for _ in 0..162 {
            // Built anew now and then: the place goes on.
            let strategy = WeightedRoundRobin::new(&backends, &cursor);
            for _ in 0..1_000 {
                counts[strategy.pick(&candidates, &mut dice).unwrap()] += 1.0;
            }
        }
        for (count, weight) in counts.iter().zip(weights) {
            assert!((count - 162_000.0 * f64::from(weight) / 161_069.0).abs() < 3.0, "{counts:?} for {weights:?}");
        }
    }

    #[test]
    fn a_retry_takes_no_place_and_keeps_to_the_weights_of_those_left() {
        // The second round is too long to be written out.
        for weights in [[10, 1, 2, 3], [65_535, 10_000, 20_001, 30_000]] {
            let backends = backends(&weights);
            let cursor = Arc::default();
            let strategy = WeightedRoundRobin::new(&backends, &cursor);
            let mut tried = Tried::default();
            tried.push(backends[0].state.id);
            let candidates = Candidates { backends: &backends, hash: None, now: Instant::now(), tried: &tried };
            let mut dice = Dice::seeded(0);
            let mut counts = [0; 4];
            for _ in 0..100_000 {
                counts[strategy.pick(&candidates, &mut dice).unwrap()] += 1;
            }
            assert_eq!((counts[0], cursor.position()), (0, 0));
            assert_shares(&counts[1..], &weights.map(f64::from)[1..], "weighted round robin retry");
        }
    }

    /// Often said of smooth round robin, and not so: here a backend waits until it is owed more than a pick.
    #[test]
    fn smooth_is_not_within_one_pick() {
        let weights = [21, 203, 203, 287, 8, 203, 30];
        let third = round(&weights)[..80].iter().filter(|&&index| index == 5).count();
        assert_eq!((third, 80 * 203 / weights.iter().sum::<u16>()), (16, 17));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_order_is_nginx_s(weights in prop::collection::vec(1..=40u16, 1..40)) {
            let round = round(&weights);
            prop_assert_eq!(&round, &nginx(&weights, round.len()));
        }

        #[test]
        fn any_weights_are_smooth(weights in prop::collection::vec(1..=400u16, 1..30)) {
            assert_smooth(&weights, &round(&weights));
        }
    }
}
