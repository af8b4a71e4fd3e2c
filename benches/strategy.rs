//! What a pick costs: `cargo bench --bench strategy`, a bit more than a minute.
//!
//! `alone` is one worker; `contended` is two that pick from the same strategy, timed per pick of each. Weights go from
//! 1 to 5 and a few requests are in flight, so that no comparison is trivial. Leases are not taken: their cost is the
//! same for all.

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use isobar::backend::Backend;
use isobar::backend::health::{LastCheck, Thresholds};
use isobar::config::{StrategyConfig, Vocabulary, parse};
use isobar::strategy::conformance::{backends, occupy};
use isobar::strategy::{Candidates, Dice, Factories, Strategy, Tried, build};
use isobar::upstream::{Upstream, UpstreamState};

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

/// What a lease of an upstream costs, the pick in it and all: in ordinary times, with backups behind, while the first tier spills, and
/// while somebody starts slowly.
fn lease(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lease");
    for name in ["ordinary", "backups", "spilling", "warming"] {
        let upstream = upstream(name);
        let (mut dice, tried, now) = (Dice::seeded(1), Tried::default(), Instant::now());
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(upstream.lease(None, now, black_box(&tried), &mut dice)));
        });
    }
    group.finish();
}

fn upstream(name: &str) -> Arc<Upstream> {
    let backends = (0..30).map(|n| match (name, n) {
        ("backups" | "spilling", 20..) => format!("{{ address = \"10.0.0.{n}:80\", backup = true }}"),
        _ => format!("\"10.0.0.{n}:80\""),
    });
    let backends: Vec<_> = backends.collect();
    let text = format!(
        "[[listener]]\naddress = \"0.0.0.0:80\"\n[[route]]\nupstream = \"u\"\n[upstream.u]\nbackends = [{}]\n\
         health_check = {{ type = \"tcp\" }}\n",
        backends.join(", ")
    );
    let loaded = parse(&text, "lb.toml", &|_| None, &Vocabulary::default()).expect("a configuration");
    let config = Arc::clone(&loaded.config.upstreams[0]);
    let upstream = Upstream::build(config, UpstreamState::new("u".into(), 1), &Factories::default());
    let (now, roster) = (Instant::now(), upstream.roster());
    if name == "spilling" {
        let thresholds = Thresholds { unhealthy_after: 1, healthy_after: 1 };
        for backend in &roster.backends()[..10] {
            let failure = Some("status 500".to_owned());
            backend.state.health.record(LastCheck { at: SystemTime::now(), took: Duration::ZERO, failure }, thresholds);
        }
    }
    if name == "warming" {
        roster.backends()[0].state.ramp().note(false, now);
    }
    upstream.refresh(now);
    let sets = upstream.roster().sources().filter(|source| source.share > 0.0).count();
    assert_eq!(sets, if name == "spilling" { 2 } else { 1 });
    upstream
}

criterion_group! {
    name = strategy;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .sample_size(20)
        .nresamples(1_000)
        .without_plots();
    targets = pick, lease
}
criterion_main!(strategy);
