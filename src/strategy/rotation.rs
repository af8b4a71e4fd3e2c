use crate::backend::Backend;

/// 2^64 divided by the golden section, made odd.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Turns a place in the round into a backend by its weight, with a table as long as the list instead of the round.
///
/// The backends lie around a circle, each on an arc as long as its weight, and each place is the golden section of a
/// turn further than the one before. Of all steps this one spreads most evenly: however many picks were made, and
/// wherever the count begins, a backend has had its share of them but for a few. The difference grows with the
/// logarithm of the picks; over twenty million it was below five. A place needs a multiplication, a look into the guide
/// and two steps along the list on average.
///
/// The alternatives fall short where weights are uneven. A static stride passes over as many places per pick as the
/// heaviest weighs more than the mean, thousands in bad cases, each a write to the shared cursor. Scaling the weights
/// down until a schedule fits gives the lightest many times their share.
#[derive(Debug)]
pub(super) struct Rotation {
    /// Where each arc ends.
    ends: Box<[u64]>,
    /// The circle's length, which is where the last arc ends.
    total: u64,
    /// For each of equal parts of the circle, a power of two of them, at least as many as arcs: the arc it begins in.
    guide: Box<[u32]>,
    /// Bits of a turn below its part.
    shift: u32,
}

impl Rotation {
    /// Lays the circle out. At least one weight is above 0.
    pub(super) fn new(ready: &[Backend]) -> Self {
        let ends: Box<[_]> = ready
            .iter()
            .scan(0, |end, backend| {
                *end += u64::from(backend.weight);
                Some(*end)
            })
            .collect();
        let total = ends.last().copied().unwrap_or(0);
        let parts = ready.len().next_power_of_two().max(2);
        let shift = u64::BITS - parts.ilog2();
        let guide = (0..parts as u64)
            .map(|part| {
                let point = scale(part << shift, total);
                ends.partition_point(|&end| end <= point) as u32
            })
            .collect();
        Self { ends, total, guide, shift }
    }

    /// Whose place it is.
    pub(super) fn at(&self, place: u64) -> usize {
        let turn = place.wrapping_mul(GOLDEN);
        let point = scale(turn, self.total);
        let mut index = self.guide[(turn >> self.shift) as usize] as usize;
        while self.ends[index] <= point {
            index += 1;
        }
        index
    }
}

/// Scales a part of 2^64 to a number below `n`.
fn scale(turn: u64, n: u64) -> u64 {
    ((u128::from(turn) * u128::from(n)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::super::conformance::backends;
    use super::*;

    /// The furthest that any backend gets from its share over any prefix.
    fn furthest(weights: &[u16], start: u64, picks: u64) -> f64 {
        let rotation = Rotation::new(&backends(weights));
        let total = rotation.total as f64;
        let mut counts = vec![0u64; weights.len()];
        let mut furthest = 0f64;
        for picked in 1..=picks {
            counts[rotation.at(start + picked - 1)] += 1;
            for (&count, &weight) in counts.iter().zip(weights) {
                furthest = furthest.max((count as f64 - picked as f64 * f64::from(weight) / total).abs());
            }
        }
        furthest
    }

    #[test]
    fn nobody_gets_far_from_its_share() {
        for weights in
            [&[65_535, 65_534][..], &[65_535, 1, 1], &[60_000, 40_000, 30_001, 7], &[50_000, 3, 50_000, 11, 999]]
        {
            for start in [0, 12_345, 1 << 40] {
                let furthest = furthest(weights, start, 200_000);
                assert!(furthest < 4.5, "{furthest} from the share with {weights:?} from {start}");
            }
        }
    }

    #[test]
    fn a_place_is_where_a_walk_around_the_circle_ends() {
        let weights: Vec<u16> = (0..333u32).map(|index| (index * index * 31 % 65_521) as u16).collect();
        let rotation = Rotation::new(&backends(&weights));
        for place in 0..20_000u64 {
            let mut point = scale(place.wrapping_mul(GOLDEN), rotation.total);
            let mut walk = 0;
            while point >= u64::from(weights[walk]) {
                point -= u64::from(weights[walk]);
                walk += 1;
            }
            assert_eq!(rotation.at(place), walk);
        }
    }

    #[test]
    fn the_ends_of_the_circle_are_on_it() {
        let rotation = Rotation::new(&backends(&[1, 65_535, 65_535]));
        // GOLDEN is odd, so some place falls on the circle's very last point: its inverse negated.
        let mut inverse = GOLDEN;
        for _ in 0..5 {
            inverse = inverse.wrapping_mul(2u64.wrapping_sub(GOLDEN.wrapping_mul(inverse)));
        }
        assert_eq!(GOLDEN.wrapping_mul(inverse), 1);
        assert_eq!(rotation.at(inverse.wrapping_neg()), 2);
        assert_eq!(rotation.at(0), 0);
    }
}
