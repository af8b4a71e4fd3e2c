//! What every strategy must do, as a suite that can be run on any of them.
//!
//! It is public for the sake of strategies from outside: a program that embeds isobar calls [`check`] on its own in a
//! test. It needs nothing but the factory, takes its random numbers from fixed seeds, and so says the same each time.
//!
//! ```
//! use isobar::config::StrategyConfig;
//! use isobar::strategy::conformance::{Rule, Share, check};
//! use isobar::strategy::{Factories, Factory, build};
//!
//! # let config = StrategyConfig::WeightedRoundRobin;
//! let factory: Factory =
//!     std::sync::Arc::new(move |ready, cursor| build(&config, ready, cursor, &Factories::default()));
//! check(&factory, &[Rule::Rotates(Share::ByWeight)]);
//! ```

use std::fmt;
use std::panic;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use super::load::Load;
use super::{Candidates, Dice, Factory, Strategy, Tried};
use crate::backend::{Backend, BackendState, Instance, Lease};
use crate::config::Address;

#[cfg(test)]
mod broken;
mod shares;

pub(super) use shares::assert_shares;

/// What a strategy promises beyond what all must keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// First attempts go round: after any whole round each backend has had exactly its share, whichever threads picked;
    /// on the way there no backend is a whole pick ahead of it or two behind; a strategy built anew for the same list
    /// on the same cursor goes on where the other stood; and further attempts in between take no turn. Looked at for
    /// rounds of up to 65 536 picks.
    Rotates(Share),
    /// First attempts are drawn, each as likely as its share and whatever was drawn before.
    Draws(Share),
    /// No other that may be picked has a smaller `(in_flight + 1) / weight`.
    LeastLoaded,
    /// The one with the strictly highest `(in_flight + 1) / weight` is not picked while another may be.
    SparesMostLoaded,
}

/// How picks are shared out among idle backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// The same for each.
    Equal,
    /// As the weights say.
    ByWeight,
}

impl Share {
    fn of(self, backend: &Backend) -> u64 {
        match self {
            Self::Equal => 1,
            Self::ByWeight => backend.weight.into(),
        }
    }
}

/// Runs the suite on the strategies that `factory` makes: what all must keep, and `rules`.
///
/// All must pick an index of the list; one that was not tried; `None` exactly when all were tried or there are none;
/// whoever is loaded how much, after any rebuild, and from several threads at a time.
///
/// # Panics
///
/// When something is not kept, with a message that says what, and for which backends.
pub fn check(factory: &Factory, rules: &[Rule]) {
    check_contract(factory, rules);
    check_threads(factory, rules);
    for rule in rules {
        match rule {
            Rule::Rotates(share) => check_rotation(factory, *share),
            Rule::Draws(share) => check_draws(factory, *share),
            // A promise about each pick: kept or not in whatever the others do.
            Rule::LeastLoaded | Rule::SparesMostLoaded => {}
        }
    }
}

/// Idle backends of these weights, on addresses where nothing listens.
pub fn backends(weights: &[u16]) -> Vec<Backend> {
    let backend = |(index, &weight): (usize, &u16)| {
        let address = Address::Name("backend.invalid".into(), index as u16);
        let instance = Arc::new(Instance { weight, ..Instance::new(address.clone()) });
        Backend { weight, instance, state: BackendState::new("conformance".into(), address, 1) }
    };
    weights.iter().enumerate().map(backend).collect()
}

/// Puts so many requests in flight at each backend, for as long as the leases are held.
pub fn occupy(backends: &[Backend], loads: &[u32]) -> Vec<Lease> {
    let pairs = backends.iter().zip(loads);
    pairs.flat_map(|(backend, &load)| (0..load).map(|_| Lease::take(&backend.state))).collect()
}

/// Lists that have tripped strategies up: none, one, two, equal, one heavy, more than can be tried.
fn lists() -> impl Iterator<Item = Vec<Backend>> {
    let mut lists = vec![
        vec![],
        vec![1],
        vec![65_535],
        vec![1, 1],
        vec![1, 65_535],
        vec![5, 1, 1],
        vec![2, 3, 4],
        vec![65_535, 65_534, 65_533],
        vec![6; 7],
        vec![1, 1, 1, 1, 1_000, 1, 1, 1],
        vec![1; 9],
    ];
    lists.push((1..=33).collect());
    lists.push(vec![10; 100]);
    lists.into_iter().map(|weights| backends(&weights))
}

/// What all must keep, over lists, loads and histories. One cursor throughout, as over the rebuilds of one upstream.
fn check_contract(factory: &Factory, rules: &[Rule]) {
    let cursor = Arc::default();
    let stranger = backends(&[1]);
    let mut dice = Dice::seeded(1);
    for list in lists() {
        for round in 0..40u32 {
            let strategy = factory(&list, &cursor);
            // Every fourth time nobody is loaded, every other fourth time hardly.
            let most = [0, 1, 4, 20][round as usize % 4];
            let loads: Vec<_> = list.iter().map(|_| dice.below(most + 1) as u32).collect();
            let _leases = occupy(&list, &loads);
            for _ in 0..25 {
                let tried = some_tried(&list, &stranger[0], &mut dice);
                pick(&*strategy, &list, &tried, rules, &mut dice);
            }
        }
    }
}

/// What an exchange may have behind it: nothing, a few backends, all of them; and one that has left the list since.
fn some_tried(list: &[Backend], stranger: &Backend, dice: &mut Dice) -> Tried {
    let mut tried = Tried::default();
    if dice.below(4) == 0 {
        return tried;
    }
    if dice.below(4) == 0 {
        tried.push(stranger.state.id);
    }
    let most = list.len().min(Tried::CAPACITY);
    let count = if dice.below(4) == 0 { most } else { dice.below(most + 1) };
    let start = dice.below(list.len().max(1));
    for step in 0..count {
        tried.push(list[(start + step) % list.len()].state.id);
    }
    tried
}

/// A pick, checked for what holds for each single one.
fn pick(strategy: &dyn Strategy, list: &[Backend], tried: &Tried, rules: &[Rule], dice: &mut Dice) -> Option<usize> {
    let hash = (dice.below(2) == 0).then(|| dice.bits());
    let candidates = Candidates { backends: list, hash, now: Instant::now(), tried };
    let picked = strategy.pick(&candidates, dice);
    let told = || format!("{strategy:?} among {}", Told { list, tried });
    let left = || (0..list.len()).filter(|&index| candidates.may(index));
    let Some(index) = picked else {
        assert!(left().next().is_none(), "picked none though one was left: {}", told());
        return None;
    };
    assert!(index < list.len(), "picked {index}, which does not exist: {}", told());
    assert!(candidates.may(index), "picked {index}, which was tried: {}", told());
    let load = Load::of(&list[index]);
    let others = || left().filter(|&other| other != index).map(|other| Load::of(&list[other]));
    for rule in rules {
        match rule {
            Rule::LeastLoaded => {
                let least = others().all(|other| load.compare(other).is_le());
                assert!(least, "picked {index} though another has less load: {}", told());
            }
            Rule::SparesMostLoaded => {
                let spared = others().next().is_none() || others().any(|other| load.compare(other).is_le());
                assert!(spared, "picked {index}, which has the most load: {}", told());
            }
            Rule::Rotates(_) | Rule::Draws(_) => {}
        }
    }
    picked
}

/// Threads that pick a share of the work each.
const THREADS: u64 = 4;

/// The contract again while others pick, lease and release. Whose load is least may change at any time, so that no rule
/// about loads can be seen from here.
fn check_threads(factory: &Factory, rules: &[Rule]) {
    let rules: Vec<_> =
        rules.iter().filter(|rule| !matches!(rule, Rule::LeastLoaded | Rule::SparesMostLoaded)).copied().collect();
    let cursor = Arc::default();
    let stranger = backends(&[1]);
    for list in lists() {
        let strategy = factory(&list, &cursor);
        on_threads(|thread| {
            let mut dice = Dice::seeded(thread);
            let mut leases = Vec::new();
            for _ in 0..200 {
                let tried = some_tried(&list, &stranger[0], &mut dice);
                if let Some(index) = pick(&*strategy, &list, &tried, &rules, &mut dice) {
                    leases.push(Lease::take(&list[index].state));
                }
                if leases.len() > 10 {
                    leases.swap_remove(dice.below(leases.len()));
                }
            }
        });
    }
}

/// Runs `work` on a few threads at a time and gives back what each brings. A panic there is a panic here.
fn on_threads<T: Send>(work: impl Fn(u64) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|cause| panic::resume_unwind(cause))).collect()
    })
}

/// Rounds longer than this are not gone through.
const ROUND_MAX: u64 = 1 << 16;

fn check_rotation(factory: &Factory, share: Share) {
    for list in lists().filter(|list| !list.is_empty()) {
        let divisor = list.iter().fold(0, |divisor, backend| common_divisor(divisor, share.of(backend)));
        let shares: Vec<_> = list.iter().map(|backend| share.of(backend) / divisor).collect();
        let round: u64 = shares.iter().sum();
        if round > ROUND_MAX {
            continue;
        }
        let told = Told { list: &list, tried: &Tried::default() };
        let sequence = go_round(factory, &list, 2 * round, u64::MAX);
        assert_even(&sequence[..round as usize], &shares, &told);
        assert!(
            sequence[..round as usize] == sequence[round as usize..],
            "the second round is not as the first: among {told}"
        );
        // Built anew after each pick where the round is short; often enough to be seen where it is long.
        let every = 1 + round / 20;
        assert!(
            sequence == go_round(factory, &list, 2 * round, every),
            "built anew after every {every} picks, does not go on where it stood: among {told}"
        );
        assert!(
            sequence == go_round_beside_retries(factory, &list, 2 * round),
            "further attempts take turns of the round: among {told}"
        );
        check_rotation_on_threads(factory, &list, &shares, round);
    }
}

/// First attempts one after another, from a new cursor, by a strategy that is built anew after so many.
fn go_round(factory: &Factory, list: &[Backend], picks: u64, rebuilt_every: u64) -> Vec<usize> {
    let cursor = Arc::default();
    let mut dice = Dice::seeded(2);
    let mut strategy = factory(list, &cursor);
    let mut sequence = Vec::new();
    for picked in 1..=picks {
        sequence.extend(pick(&*strategy, list, &Tried::default(), &[], &mut dice));
        if picked % rebuilt_every == 0 {
            strategy = factory(list, &cursor);
        }
    }
    sequence
}

/// The same while each first attempt fails and others follow, up to a few.
fn go_round_beside_retries(factory: &Factory, list: &[Backend], picks: u64) -> Vec<usize> {
    let strategy = factory(list, &Arc::default());
    let mut dice = Dice::seeded(3);
    let mut sequence = Vec::new();
    for picked in 0..picks {
        let mut tried = Tried::default();
        for attempt in 0..=picked % 3 {
            let Some(index) = pick(&*strategy, list, &tried, &[], &mut dice) else { break };
            tried.push(list[index].state.id);
            if attempt == 0 {
                sequence.push(index);
            }
        }
    }
    sequence
}

/// Asserts that a round gives each backend its share, and on the way none much more or less.
fn assert_even(sequence: &[usize], shares: &[u64], told: &Told<'_>) {
    let round: u64 = shares.iter().sum();
    let mut counts = vec![0u64; shares.len()];
    for (picked, &index) in (1..).zip(sequence) {
        counts[index] += 1;
        for (index, (&count, &share)) in counts.iter().zip(shares).enumerate() {
            let (had, due) = (count * round, picked * share);
            assert!(had < due + round, "{index} had {count} of {picked} picks, a whole one too many: among {told}");
            assert!(due < had + 2 * round, "{index} had {count} of {picked} picks, two too few: among {told}");
        }
    }
    assert!(counts == shares, "a round gave {counts:?} instead of {shares:?}: among {told}");
}

fn check_rotation_on_threads(factory: &Factory, list: &[Backend], shares: &[u64], round: u64) {
    let strategy = factory(list, &Arc::default());
    let rounds = (5_000 / round).max(1);
    let counted = on_threads(|thread| {
        let mut dice = Dice::seeded(thread);
        count(&*strategy, list, rounds * round, &mut dice)
    });
    for (index, &share) in shares.iter().enumerate() {
        let count: u64 = counted.iter().map(|counts| counts[index]).sum();
        let due = THREADS * rounds * share;
        let told = Told { list, tried: &Tried::default() };
        assert!(count == due, "{THREADS} threads picked {index} {count} times instead of {due}: among {told}");
    }
}

/// First attempts by backend.
fn count(strategy: &dyn Strategy, list: &[Backend], picks: u64, dice: &mut Dice) -> Vec<u64> {
    let tried = Tried::default();
    let mut counts = vec![0; list.len()];
    for _ in 0..picks {
        if let Some(index) = pick(strategy, list, &tried, &[], dice) {
            counts[index] += 1;
        }
    }
    counts
}

fn common_divisor(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { common_divisor(other, one % other) }
}

fn check_draws(factory: &Factory, share: Share) {
    const DRAWS: u64 = 100_000;
    for list in lists().filter(|list| list.len() > 1) {
        let strategy = factory(&list, &Arc::default());
        let shares: Vec<_> = list.iter().map(|backend| share.of(backend) as f64).collect();
        let mut dice = Dice::seeded(4);
        let mut counts = vec![0; list.len()];
        // Neighbours in time too, by the cell of a square table: draws that remember the one before have the right
        // shares one by one and the wrong ones in pairs.
        let mut pairs = vec![0; list.len() * list.len()];
        let mut before = None;
        for _ in 0..DRAWS {
            let picked = pick(&*strategy, &list, &Tried::default(), &[], &mut dice);
            if let Some(index) = picked {
                counts[index] += 1;
                if let Some(before) = before {
                    pairs[before * list.len() + index] += 1;
                }
            }
            before = picked;
        }
        let told = Told { list: &list, tried: &Tried::default() };
        assert_shares(&counts, &shares, &format!("draws among {told}"));
        let pair_shares: Vec<_> = shares.iter().flat_map(|one| shares.iter().map(move |other| one * other)).collect();
        assert_shares(&pairs, &pair_shares, &format!("draws after draws among {told}"));
    }
}

/// The backends of a failed check, as its message tells them.
struct Told<'a> {
    list: &'a [Backend],
    tried: &'a Tried,
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} backends", self.list.len())?;
        for (index, Backend { weight, state, .. }) in self.list.iter().enumerate() {
            write!(f, ", {index}: weight {weight}, {} in flight", state.in_flight())?;
            if self.tried.contains(state.id) {
                write!(f, ", tried")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert_eq, prop_oneof, proptest};
    use proptest::strategy::Strategy as _;

    use super::super::{Cursor, Factories, build};
    use super::*;
    use crate::config::StrategyConfig;

    fn factory(config: StrategyConfig) -> Factory {
        Arc::new(move |ready, cursor| build(&config, ready, cursor, &Factories::default()))
    }

    /// The list of strategies: add yours.
    fn strategies() -> [(StrategyConfig, &'static [Rule]); StrategyConfig::NAMES.len()] {
        [
            (StrategyConfig::RoundRobin, &[Rule::Rotates(Share::Equal)]),
            (StrategyConfig::WeightedRoundRobin, &[Rule::Rotates(Share::ByWeight)]),
            (StrategyConfig::Random, &[Rule::Draws(Share::Equal)]),
            (StrategyConfig::WeightedRandom, &[Rule::Draws(Share::ByWeight)]),
            (StrategyConfig::LeastConnections, &[Rule::LeastLoaded, Rule::SparesMostLoaded]),
            (StrategyConfig::PowerOfTwo, &[Rule::SparesMostLoaded]),
        ]
    }

    #[test]
    fn the_list_is_complete() {
        assert_eq!(strategies().map(|(config, _)| config.as_str().to_owned()), StrategyConfig::NAMES);
    }

    #[test]
    fn every_strategy_conforms() {
        for (config, rules) in strategies() {
            check(&factory(config), rules);
        }
    }

    /// Backends with loads, and which of them were tried.
    fn situation() -> impl proptest::strategy::Strategy<Value = (Vec<u16>, Vec<u32>, Vec<bool>)> {
        let weight = prop_oneof![4 => 1..10u16, 1 => 1..=u16::MAX];
        prop::collection::vec((weight, 0..6u32, any::<bool>()), 0..24).prop_map(|backends: Vec<(u16, u32, bool)>| {
            let weights = backends.iter().map(|backend| backend.0).collect();
            let loads = backends.iter().map(|backend| backend.1).collect();
            (weights, loads, backends.iter().map(|backend| backend.2).collect())
        })
    }

    proptest! {
        /// In range, never a tried one, `None` exactly when none is left, and the rules about loads.
        #[test]
        fn any_situation_is_answered((weights, loads, tries) in situation(), seed: u64, position in 0..100usize) {
            let list = backends(&weights);
            let _leases = occupy(&list, &loads);
            let mut tried = Tried::default();
            for (backend, _) in list.iter().zip(&tries).filter(|(_, tried)| **tried) {
                tried.push(backend.state.id);
            }
            let mut dice = Dice::seeded(seed);
            for (config, rules) in strategies() {
                let cursor = Arc::default();
                (0..position).for_each(|_| { Cursor::advance(&cursor); });
                let strategy = factory(config)(&list, &cursor);
                for _ in 0..10 {
                    pick(&*strategy, &list, &tried, rules, &mut dice);
                }
            }
        }

        /// A strategy says the same for the same dice, cursor and loads: the simulator and every seeded test rest on
        /// that.
        #[test]
        fn the_same_dice_fall_the_same((weights, loads, _) in situation(), seed: u64) {
            let list = backends(&weights);
            let _leases = occupy(&list, &loads);
            for (config, _) in strategies() {
                let picks = || {
                    let strategy = factory(config.clone())(&list, &Arc::default());
                    let mut dice = Dice::seeded(seed);
                    (0..20).map(|_| pick(&*strategy, &list, &Tried::default(), &[], &mut dice)).collect::<Vec<_>>()
                };
                prop_assert_eq!(picks(), picks());
            }
        }
    }
}
