//! Backends of many kinds under simulated load: how soon one that is slower is ejected, and that no others are.

use std::f64::consts::TAU;
use std::time::Duration;

use crate::backend::outlier::AttemptOutcome;
use crate::strategy::Dice;

use super::{World, ejected};

/// How long services take, in milliseconds.
#[derive(Clone, Copy, Debug)]
enum ServiceTimes {
    /// Nearly the same always.
    Even,
    /// Log-normal with a deviation of e.
    LogNormal,
    /// Half at once, half slow: cache hits and misses.
    Halves,
    /// Three in ten slow.
    Thirds,
    /// A tail without a variance: Pareto with exponent 1.2.
    Heavy,
    /// One in fifty stuck for seconds.
    Stuck,
}

const LATENCIES: [ServiceTimes; 6] = [
    ServiceTimes::Even,
    ServiceTimes::LogNormal,
    ServiceTimes::Halves,
    ServiceTimes::Thirds,
    ServiceTimes::Heavy,
    ServiceTimes::Stuck,
];

/// From 0 to 1, neither of them.
fn uniform(dice: &mut Dice) -> f64 {
    ((dice.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

impl ServiceTimes {
    fn draw(self, dice: &mut Dice) -> f64 {
        let part = uniform(dice);
        match self {
            Self::Even => 20.0 + part,
            Self::LogNormal => 20.0 * ((-2.0 * part.ln()).sqrt() * (TAU * uniform(dice)).cos()).exp(),
            Self::Halves => {
                if part < 0.5 {
                    1.0 + part
                } else {
                    500.0 * (0.5 + part)
                }
            }
            Self::Thirds => {
                if part < 0.7 {
                    5.0 + part
                } else {
                    300.0 * (0.5 + part)
                }
            }
            Self::Heavy => 10.0 * part.powf(-1.0 / 1.2),
            Self::Stuck => {
                if part < 0.98 {
                    5.0 + part
                } else {
                    8_000.0 * part
                }
            }
        }
    }
}

/// Asks each backend so often in each interval, the last one `factor` times slower, until one is ejected or all intervals
/// are over. Returns the interval and whom.
fn simulate(
    latencies: ServiceTimes,
    backends: usize,
    volume: usize,
    factor: f64,
    intervals: usize,
) -> Option<(usize, Vec<usize>)> {
    let mut world = World::new(backends);
    let mut dice = Dice::seeded((backends * 1_000 + volume) as u64);
    for interval in 1..=intervals {
        for backend in 0..backends {
            // Traffic is not even either: from half to one and a half.
            let volume = volume / 2 + dice.below(volume + 1);
            for _ in 0..volume {
                let factor = if backend + 1 == backends { factor } else { 1.0 };
                let took = Duration::from_secs_f64(latencies.draw(&mut dice) * factor / 1e3);
                // One in a hundred fails, which is nobody's fault either.
                let outcome = if dice.below(100) == 0 { AttemptOutcome::ServerError } else { AttemptOutcome::Success };
                world.note(backend, outcome, took);
            }
        }
        let out = ejected(&world.interval());
        if !out.is_empty() {
            return Some((interval, out));
        }
    }
    None
}

#[test]
fn of_identical_backends_none_is_ejected_in_thousands_of_intervals() {
    for latencies in LATENCIES {
        for (backends, volume, intervals) in
            [(3, 4, 4_000), (3, 60, 1_500), (5, 12, 2_000), (20, 4, 1_000), (20, 60, 200)]
        {
            let found = simulate(latencies, backends, volume, 1.0, intervals);
            assert_eq!(found, None, "{latencies:?}, {backends} backends, {volume} requests each an interval");
        }
    }
}

#[test]
fn one_that_is_twenty_times_slower_is_ejected() {
    for latencies in LATENCIES {
        for (backends, volume, within) in [(3, 200, 3), (3, 60, 4), (3, 12, 9), (5, 200, 3), (20, 60, 4)] {
            let found = simulate(latencies, backends, volume, 20.0, 60);
            let Some((interval, out)) = found else { panic!("{latencies:?}, {backends} backends, {volume}: missed") };
            assert_eq!(out, [backends - 1], "{latencies:?}, {backends} backends, {volume}");
            let within = if matches!(latencies, ServiceTimes::Halves) { within + 6 } else { within };
            assert!(interval <= within, "{latencies:?}, {backends} backends, {volume}: after {interval} intervals");
        }
    }
}

/// Backends whose every hundredth to second request fails, all alike.
#[test]
fn of_backends_that_fail_alike_none_is_ejected() {
    for percent in [1, 5, 20, 30] {
        for backends in [3, 5, 20] {
            let mut world = World::new(backends);
            world.settings.consecutive_local = 0;
            let mut dice = Dice::seeded(percent as u64);
            for _ in 0..1_000 {
                for backend in 0..backends {
                    for _ in 0..30 {
                        let fails = dice.below(100) < percent;
                        world.ask(
                            backend,
                            1,
                            if fails { AttemptOutcome::ServerError } else { AttemptOutcome::Success },
                        );
                    }
                }
                assert_eq!(world.interval(), [], "{percent}%, {backends} backends");
            }
        }
    }
}
