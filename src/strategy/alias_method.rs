use super::Dice;
use super::random_source::scale;
use crate::backend::Backend;

/// What a column holds.
const FULL: u64 = 1 << 32;

/// Draws an index as likely as its weight, in constant time: Vose's alias method.
///
/// There is a column per backend, each as likely as any other, and each shared by at most two backends. Masses are
/// whole numbers: a column holds 2^32, and of the sum of all columns each backend has its exact share rounded to a
/// whole number, so none is off by more than one in n × 2^32, and nothing depends on how floating point rounds.
#[derive(Debug)]
pub(super) struct Alias {
    columns: Box<[Column]>,
}

/// The first `threshold` of 2^32 belong to the backend whose column it is, the rest to `other`.
#[derive(Clone, Debug)]
struct Column {
    threshold: u32,
    other: u32,
}

impl Alias {
    /// The table for a list of backends.
    pub(super) fn new(ready: &[Backend]) -> Self {
        let mut masses = masses(ready);
        // A column that no other fills up is full of its own: the other is itself, whatever the threshold.
        let mut columns: Box<[_]> = (0..masses.len() as u32).map(|own| Column { threshold: 0, other: own }).collect();
        let mut poor: Vec<_> = (0..masses.len()).filter(|&index| masses[index] < FULL).collect();
        let mut rich: Vec<_> = (0..masses.len()).filter(|&index| masses[index] > FULL).collect();
        while let (Some(&giver), Some(taker)) = (rich.last(), poor.pop()) {
            columns[taker] = Column { threshold: masses[taker] as u32, other: giver as u32 };
            masses[giver] -= FULL - masses[taker];
            if masses[giver] <= FULL {
                rich.pop();
            }
            if masses[giver] < FULL {
                poor.push(giver);
            }
        }
        Self { columns }
    }

    /// Draws. The table must not be empty.
    pub(super) fn draw(&self, dice: &mut Dice) -> usize {
        self.at(dice.bits())
    }

    /// The upper half of the bits chooses a column, the lower half a place in it.
    fn at(&self, bits: u64) -> usize {
        let index = scale((bits >> 32) as u32, self.columns.len());
        let column = &self.columns[index];
        if (bits as u32) < column.threshold { index } else { column.other as usize }
    }
}

/// Shares n × 2^32 out by weight. What is rounded off one backend goes to the next, so that the sum is exact.
fn masses(ready: &[Backend]) -> Vec<u64> {
    let weights = ready.iter().map(|backend| u128::from(backend.weight));
    let total = weights.clone().sum::<u128>().max(1);
    let whole = ready.len() as u128 * u128::from(FULL);
    let mut sum = 0;
    let mut given = 0;
    weights
        .map(|weight| {
            sum += weight;
            let until = whole * sum / total;
            let mass = until - given;
            given = until;
            mass as u64
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop, prop_assert, proptest};

    use super::super::conformance::backends;
    use super::*;

    /// What each backend has, added up over the columns.
    fn enumerate(table: &Alias) -> Vec<u64> {
        let mut sums = vec![0; table.columns.len()];
        for (own, column) in table.columns.iter().enumerate() {
            sums[own] += u64::from(column.threshold);
            sums[column.other as usize] += FULL - u64::from(column.threshold);
        }
        sums
    }

    fn assert_exact(weights: &[u16]) {
        let backends = backends(weights);
        let sums = enumerate(&Alias::new(&backends));
        assert_eq!(sums, masses(&backends), "the columns of {weights:?} do not hold what was shared out");
        let n = weights.len() as i128;
        let total: i128 = weights.iter().map(|&weight| i128::from(weight)).sum();
        assert_eq!(sums.iter().map(|&sum| i128::from(sum)).sum::<i128>(), n * i128::from(FULL));
        for (&weight, &sum) in weights.iter().zip(&sums) {
            let off = i128::from(sum) * total - i128::from(weight) * n * i128::from(FULL);
            assert!(off.abs() < total, "weight {weight} of {total} has {sum} of {n} x 2^32 in {weights:?}");
        }
    }

    #[test]
    fn shares_are_exact() {
        assert_exact(&[1]);
        assert_exact(&[65_535]);
        assert_exact(&[1; 7]);
        assert_exact(&[65_535, 1]);
        assert_exact(&[1, 2, 4, 1, 2, 4, 4, 2, 1]);
        assert_exact(&[1, 65_535, 1, 1]);
        assert_exact(&(1..=1_000).collect::<Vec<_>>());
    }

    #[test]
    fn a_power_of_two_comes_out_even() {
        assert_eq!(enumerate(&Alias::new(&backends(&[1, 2, 5]))), [3 * FULL / 8, 6 * FULL / 8, 15 * FULL / 8]);
    }

    #[test]
    fn a_column_is_cut_at_its_threshold() {
        let table = Alias::new(&backends(&[3, 1]));
        assert_eq!(table.columns[1].threshold, 1 << 31);
        assert_eq!([0, u64::from(u32::MAX)].map(|place| table.at(place)), [0, 0]);
        let second = FULL << 31;
        assert_eq!([second, second + (1 << 31) - 1].map(|bits| table.at(bits)), [1, 1]);
        assert_eq!([second + (1 << 31), u64::MAX].map(|bits| table.at(bits)), [0, 0]);
    }

    #[test]
    fn equal_weights_need_no_second_choice() {
        for column in &Alias::new(&backends(&[9; 20])).columns {
            assert_eq!(column.threshold, 0);
        }
    }

    proptest! {
        #[test]
        fn shares_are_exact_for_any_weights(weights in prop::collection::vec(1..=u16::MAX, 1..80)) {
            assert_exact(&weights);
        }

        #[test]
        fn more_weight_is_more_likely(mut weights in prop::collection::vec(1..1_000u16, 2..20), more in 1..1_000u16) {
            let before = enumerate(&Alias::new(&backends(&weights)));
            weights[0] += more;
            let after = enumerate(&Alias::new(&backends(&weights)));
            prop_assert!(after[0] > before[0]);
            // One unit of rounding aside, no backend gains by another's weight.
            for (before, after) in before[1..].iter().zip(&after[1..]) {
                prop_assert!(*after <= before + 1);
            }
        }
    }
}
