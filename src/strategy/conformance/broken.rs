//! Strategies that break a promise, each caught by the check of that promise.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::*;
use crate::strategy::Cursor;

type Pick = fn(&Broken, &Candidates<'_>, &mut Dice) -> Option<usize>;

struct Broken {
    pick: Pick,
    cursor: Arc<Cursor>,
    memory: AtomicUsize,
}

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Broken")
    }
}

impl Strategy for Broken {
    fn pick(&self, candidates: &Candidates<'_>, dice: &mut Dice) -> Option<usize> {
        if (0..candidates.backends.len()).any(|index| candidates.may(index)) {
            (self.pick)(self, candidates, dice)
        } else {
            None
        }
    }
}

fn check_broken(rules: &[Rule], pick: Pick) {
    let factory: Factory =
        Arc::new(move |_, cursor| Box::new(Broken { pick, cursor: Arc::clone(cursor), memory: AtomicUsize::new(0) }));
    check(&factory, rules);
}

/// The next place, which only first attempts take.
fn turn(broken: &Broken, candidates: &Candidates<'_>) -> u64 {
    if candidates.tried.is_empty() { broken.cursor.advance() } else { broken.cursor.position() }
}

/// The first that may be picked from a place on.
fn from(place: usize, candidates: &Candidates<'_>) -> Option<usize> {
    let n = candidates.backends.len();
    (0..n).map(|step| (place + step) % n).find(|&index| candidates.may(index))
}

#[test]
#[should_panic(expected = "which does not exist")]
fn out_of_range() {
    check_broken(&[], |_, candidates, _| Some(candidates.backends.len()));
}

#[test]
#[should_panic(expected = "which was tried")]
fn blind_to_tried() {
    check_broken(&[], |_, candidates, dice| Some(dice.below(candidates.backends.len())));
}

#[test]
#[should_panic(expected = "picked none though one was left")]
fn gives_up() {
    check_broken(&[], |_, candidates, dice| {
        Some(dice.below(candidates.backends.len())).filter(|&index| candidates.may(index))
    });
}

#[test]
#[should_panic(expected = "too many")]
fn rotates_without_weights() {
    check_broken(&[Rule::Rotates(Share::ByWeight)], |broken, candidates, _| {
        from(turn(broken, candidates) as usize, candidates)
    });
}

#[test]
#[should_panic(expected = "too many")]
fn rotates_in_bursts() {
    check_broken(&[Rule::Rotates(Share::ByWeight)], |broken, candidates, _| {
        let weights = || candidates.backends.iter().map(|backend| u64::from(backend.weight));
        let mut place = turn(broken, candidates) % weights().sum::<u64>();
        let burst = weights().position(|weight| {
            let here = place < weight;
            place = place.saturating_sub(weight);
            here
        });
        from(burst.unwrap_or(0), candidates)
    });
}

#[test]
#[should_panic(expected = "does not go on where it stood")]
fn begins_again_when_built_anew() {
    check_broken(&[Rule::Rotates(Share::Equal)], |broken, candidates, _| {
        from(broken.memory.fetch_add(1, Relaxed) % candidates.backends.len(), candidates)
    });
}

#[test]
#[should_panic(expected = "further attempts take turns")]
fn takes_turns_for_further_attempts() {
    check_broken(&[Rule::Rotates(Share::Equal)], |broken, candidates, _| {
        from(broken.cursor.advance() as usize % candidates.backends.len(), candidates)
    });
}

#[test]
#[should_panic(expected = "4 threads picked")]
fn loses_places_between_threads() {
    check_broken(&[Rule::Rotates(Share::Equal)], |broken, candidates, _| {
        let place = broken.cursor.position();
        if candidates.tried.is_empty() {
            thread::yield_now();
            broken.cursor.advance();
        }
        from(place as usize, candidates)
    });
}

#[test]
#[should_panic(expected = "draws among")]
fn draws_unevenly() {
    // The first is picked one time in fifty too often.
    check_broken(&[Rule::Draws(Share::Equal)], |_, candidates, dice| {
        let place = if dice.below(50) == 0 { 0 } else { dice.below(candidates.backends.len()) };
        from(place, candidates)
    });
}

#[test]
#[should_panic(expected = "draws after draws")]
fn draws_with_a_memory() {
    // Even one by one, but one time in fifty the same again.
    check_broken(&[Rule::Draws(Share::Equal)], |broken, candidates, dice| {
        let n = candidates.backends.len();
        let place = if dice.below(50) == 0 { broken.memory.load(Relaxed) } else { dice.below(n) };
        broken.memory.store(place, Relaxed);
        from(place, candidates)
    });
}

#[test]
#[should_panic(expected = "another has less load")]
fn counts_without_weights() {
    check_broken(&[Rule::LeastLoaded], |_, candidates, _| {
        let left = (0..candidates.backends.len()).filter(|&index| candidates.may(index));
        left.min_by_key(|&index| candidates.backends[index].state.in_flight())
    });
}

#[test]
#[should_panic(expected = "which has the most load")]
fn draws_the_same_twice() {
    check_broken(&[Rule::SparesMostLoaded], |_, candidates, dice| {
        let left: Vec<_> = (0..candidates.backends.len()).filter(|&index| candidates.may(index)).collect();
        let draws = [left[dice.below(left.len())], left[dice.below(left.len())]];
        draws
            .into_iter()
            .min_by(|&one, &other| Load::of(&candidates.backends[one]).compare(Load::of(&candidates.backends[other])))
    });
}
