//! What a pick costs: `cargo bench --bench strategy`, a bit more than a minute.
//!
//! `alone` is one worker; `contended` is two that pick from the same strategy, timed per pick of each. Weights go from
//! 1 to 5 and a few requests are in flight, so that no comparison is trivial. Leases are not taken: their cost is the
//! same for all.

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use isobar::backend::Backend;
use isobar::config::StrategyConfig;
use isobar::strategy::conformance::{backends, occupy};
use isobar::strategy::{Candidates, Dice, Factories, Strategy, Tried, build};

const STRATEGIES: [StrategyConfig; StrategyConfig::NAMES.len()] = [
    StrategyConfig::RoundRobin,
    StrategyConfig::WeightedRoundRobin,
    StrategyConfig::Random,
    StrategyConfig::WeightedRandom,
    StrategyConfig::LeastConnections,
    StrategyConfig::PowerOfTwo,
];

const SIZES: [usize; 4] = [3, 30, 300, 3_000];

const WORKERS: usize = 2;

fn pick(criterion: &mut Criterion) {
    let mut alone = criterion.benchmark_group("alone");
    each(&mut alone, |list, strategy, picks| work(list, strategy, picks, 1));
    alone.finish();
    let mut contended = criterion.benchmark_group("contended");
    each(&mut contended, |list, strategy, picks| {
        let start = Barrier::new(WORKERS);
        thread::scope(|scope| {
            let worker = |seed| {
                start.wait();
                work(list, strategy, picks, seed)
            };
            let workers: Vec<_> = (0..WORKERS as u64).map(|seed| scope.spawn(move || worker(seed))).collect();
            workers.into_iter().filter_map(|worker| worker.join().ok()).max().unwrap_or_default()
        })
    });
    contended.finish();
}

/// Measures `run` for each strategy and size.
fn each(group: &mut BenchmarkGroup<'_, WallTime>, run: impl Fn(&[Backend], &dyn Strategy, u64) -> Duration) {
    for config in STRATEGIES {
        for size in SIZES {
            let weights: Vec<_> = (0..size).map(|index| (index % 5) as u16 + 1).collect();
            let list = backends(&weights);
            let loads: Vec<_> = (0..size).map(|index| (index * 7 % 4) as u32).collect();
            let _leases = occupy(&list, &loads);
            let strategy = build(&config, &list, &Arc::default(), &Factories::default());
            group.bench_function(BenchmarkId::new(config.as_str(), size), |bencher| {
                bencher.iter_custom(|picks| run(&list, &*strategy, picks));
            });
        }
    }
}

/// The time of so many first attempts.
fn work(list: &[Backend], strategy: &dyn Strategy, picks: u64, seed: u64) -> Duration {
    let tried = Tried::default();
    let mut dice = Dice::seeded(seed);
    let start = Instant::now();
    let candidates = Candidates { backends: list, hash: None, now: start, tried: &tried };
    for _ in 0..picks {
        black_box(strategy.pick(black_box(&candidates), &mut dice));
    }
    start.elapsed()
}

criterion_group! {
    name = strategy;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .sample_size(20)
        .nresamples(1_000)
        .without_plots();
    targets = pick
}
criterion_main!(strategy);
