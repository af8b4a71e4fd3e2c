//! A strategy of one's own: `fill_first` stays with the first backend until it has its fill, then with the second, so
//! that at night the last ones stand idle and can be switched off.
//!
//! `cargo run --example custom_strategy` runs isobar's conformance suite on it and shows what it picks.

use std::sync::Arc;
use std::time::Instant;

use isobar::backend::Lease;
use isobar::strategy::{Candidates, Dice, Factories, Factory, Strategy, Tried, conformance};

/// What `lb.toml` calls it: `strategy = "fill_first"`.
const NAME: &str = "fill_first";

/// Requests in flight at a backend of weight 1 before the next one is used.
const FILL: u32 = 2;

/// The first backend that is not full; where all are, the one that has the least over its fill.
#[derive(Debug)]
struct FillFirst {
    /// Requests in flight for a weight of 1.
    fill: u32,
}

impl Strategy for FillFirst {
    fn pick(&self, candidates: &Candidates<'_>, _: &mut Dice) -> Option<usize> {
        let over = |index: &usize| {
            let backend = &candidates.backends[*index];
            (backend.state.in_flight() + 1).saturating_sub(self.fill * u32::from(backend.weight))
        };
        // The first of equals wins, and none that is not full is over its fill.
        (0..candidates.backends.len()).filter(|&index| candidates.may(index)).min_by_key(over)
    }
}

/// Builds it for a list of backends. It keeps nothing of the list, and has no place in a round to go on from.
fn factory() -> Factory {
    Arc::new(|_ready, _cursor| Box::new(FillFirst { fill: FILL }))
}

fn main() {
    // What belongs in a test of your program: it panics if a promise is broken.
    conformance::check(&factory(), &[]);
    println!("{NAME} conforms");

    show_picks();

    let mut factories = Factories::default();
    factories.add(NAME, factory());
    println!("registered for lb.toml: {:?}", factories);
}

/// Nine requests that stay, one more than three backends are filled by, the second of which takes twice as much; then
/// the first two end.
fn show_picks() {
    let backends = conformance::backends(&[1, 2, 1]);
    let strategy = factory()(&backends, &Arc::default());
    let tried = Tried::default();
    let mut dice = Dice::new();
    let mut pick = |when: &str| {
        let candidates = Candidates { backends: &backends, hash: None, now: Instant::now(), tried: &tried };
        let index = strategy.pick(&candidates, &mut dice)?;
        let lease = Lease::take(&backends[index].state);
        let in_flight: Vec<_> = backends.iter().map(|backend| backend.state.in_flight()).collect();
        println!("{when}: picked {index}, in flight {in_flight:?}");
        Some(lease)
    };
    let mut leases: Vec<_> = (1..=9).filter_map(|request| pick(&format!("request {request}"))).collect();
    leases.drain(..2);
    leases.extend(pick("after the first two have ended"));
}
