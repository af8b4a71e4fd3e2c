//! The weights that a strategy is built with while some backend is in slow start.
//!
//! Weights of strategies are whole numbers of 16 bits, so what a backend has of its weight is put in by multiplying all weights
//! of the list: by 100 where they are small, which is exact, and otherwise by as much as there is room for.
//!
//! A strategy that ignores weights cannot give a backend less than the others. While one of its list is in slow start, the
//! roster is therefore built with its weighted counterpart, [`WeightedRoundRobin`](StrategyConfig::WeightedRoundRobin) for
//! `round_robin` and [`WeightedRandom`](StrategyConfig::WeightedRandom) for `random`, whose weights are the percents alone:
//! the configured weights stay ignored. These keep the promises of the others, an even order and independent draws, so
//! that nothing but the shares changes, and when all have their full weight the strategy is again the one in the file. The
//! strategies that look at loads divide them by the weight, so they need no counterpart: a backend of a tenth of its weight
//! is given a second request when the others have twenty in flight each. A strategy of the embedding program sees the
//! weights and may do with them what it likes.

use crate::backend::slow_start::WeightPercent;
use crate::config::StrategyConfig;

/// What a list of backends is built with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedWeights {
    /// The strategy, or its counterpart that honours weights.
    pub strategy: StrategyConfig,
    /// The weights of the list in its order, none of them 0.
    pub weights: Vec<u16>,
}

/// The strategy and the weights for a list of backends, each with its configured weight, above 0, and what it has of it. Where
/// all have all of it, that is what was configured, untouched.
pub fn prepare(strategy: &StrategyConfig, backends: &[(u16, WeightPercent)]) -> PreparedWeights {
    if backends.iter().all(|&(_, percent)| percent == WeightPercent::FULL) {
        return PreparedWeights {
            strategy: strategy.clone(),
            weights: backends.iter().map(|&(weight, _)| weight).collect(),
        };
    }
    let counterpart = match strategy {
        StrategyConfig::RoundRobin => StrategyConfig::WeightedRoundRobin,
        StrategyConfig::Random => StrategyConfig::WeightedRandom,
        other => other.clone(),
    };
    let weight = |weight: u16| if strategy.uses_weights() { weight } else { 1 };
    let parts: Vec<_> =
        backends.iter().map(|&(own, percent)| u64::from(weight(own)) * u64::from(percent.get())).collect();
    PreparedWeights { strategy: counterpart, weights: fit(&parts) }
}

/// Scales the numbers down so that each fits, rounded, and none becomes 0. Numbers that fit stay as they are.
fn fit(parts: &[u64]) -> Vec<u16> {
    const ROOM: u64 = u16::MAX as u64;
    let most = parts.iter().copied().max().unwrap_or(0);
    let scale = |part: u64| if most <= ROOM { part } else { (part * ROOM + most / 2) / most };
    parts.iter().map(|&part| scale(part).clamp(1, ROOM) as u16).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use proptest::prelude::{prop, prop_assert, proptest};

    use super::*;
    use crate::strategy::conformance::backends;
    use crate::strategy::{Candidates, Dice, Factories, Tried, build};

    const FULL: WeightPercent = WeightPercent::FULL;

    #[test]
    fn where_all_have_all_nothing_changes() {
        let prepared = prepare(&StrategyConfig::RoundRobin, &[(3, FULL), (1, FULL)]);
        assert_eq!(prepared, PreparedWeights { strategy: StrategyConfig::RoundRobin, weights: vec![3, 1] });
    }

    #[test]
    fn small_weights_are_exact() {
        let prepared = prepare(&StrategyConfig::WeightedRandom, &[(3, FULL), (2, WeightPercent::new(12)), (1, FULL)]);
        assert_eq!(prepared, PreparedWeights { strategy: StrategyConfig::WeightedRandom, weights: vec![300, 24, 100] });
    }

    #[test]
    fn who_ignores_weights_gets_a_counterpart_with_percents_alone() {
        let counterparts = [
            (StrategyConfig::RoundRobin, StrategyConfig::WeightedRoundRobin),
            (StrategyConfig::Random, StrategyConfig::WeightedRandom),
        ];
        for (strategy, counterpart) in counterparts {
            let prepared = prepare(&strategy, &[(9, FULL), (1, WeightPercent::new(30)), (1, FULL)]);
            assert_eq!(prepared, PreparedWeights { strategy: counterpart, weights: vec![100, 30, 100] });
        }
        for same in [StrategyConfig::LeastConnections, StrategyConfig::PowerOfTwo, StrategyConfig::Custom("x".into())] {
            assert_eq!(prepare(&same, &[(1, FULL), (1, WeightPercent::new(30))]).strategy, same);
        }
    }

    #[test]
    fn round_robin_gives_a_backend_in_slow_start_its_part() {
        let prepared = prepare(&StrategyConfig::RoundRobin, &[(1, FULL), (1, WeightPercent::new(10)), (1, FULL)]);
        let list = backends(&prepared.weights);
        let strategy = build(&prepared.strategy, &list, &Arc::default(), &Factories::default());
        let tried = Tried::default();
        let candidates = Candidates { backends: &list, hash: None, now: Instant::now(), tried: &tried };
        let mut counts = [0; 3];
        for _ in 0..2_100 {
            counts[strategy.pick(&candidates, &mut Dice::seeded(1)).unwrap()] += 1;
        }
        assert_eq!(counts, [1_000, 100, 1_000]);
    }

    proptest! {
        #[test]
        fn parts_are_kept_as_well_as_16_bits_can(
            list in prop::collection::vec((1..=u16::MAX, 1u8..=100), 1..40)
        ) {
            let list: Vec<_> = list.into_iter().map(|(weight, percent)| (weight, WeightPercent::new(percent))).collect();
            let weights = prepare(&StrategyConfig::WeightedRandom, &list).weights;
            let parts: Vec<_> =
                list.iter().map(|&(weight, percent)| f64::from(weight) * f64::from(percent.get())).collect();
            let most = parts.iter().fold(0.0, |most, &part| f64::max(most, part));
            let scale = f64::from(*weights.iter().max().unwrap()) / most;
            for (&weight, part) in weights.iter().zip(&parts) {
                prop_assert!(weight >= 1);
                prop_assert!((f64::from(weight) - part * scale).abs() <= 1.0);
            }
        }
    }
}
