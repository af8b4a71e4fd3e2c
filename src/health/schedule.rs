//! When the next check is made. Pure: random numbers come in, times go out.

use std::time::Duration;

use crate::backend::health::Verdict;
use crate::config::HealthCheckConfig;

/// How long a backend waits for its first check; it is the `nth` that the process begins with.
///
/// One that is not in use waits for nothing. The others are spread over the interval, by steps of the golden section: however
/// many there are, and whichever come and go, hardly any two fall together.
pub(super) fn first(nth: u64, verdict: Verdict, interval: Duration) -> Duration {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    match verdict {
        Verdict::Healthy => interval.mul_f64((nth as f64 * GOLDEN).fract()),
        Verdict::Unhealthy | Verdict::Unknown => Duration::ZERO,
    }
}

/// How long to wait before the `nth` look whether a backend is there again, from 0. `random` is from 0 to 1.
///
/// Half a second, and then longer by half each time, up to 5 s: so it is found when it has been back for half of the time that it was
/// gone, and one that stays away is rarely looked for. A tenth shorter or longer, so that many that went together are not looked at together.
pub(super) fn look(nth: u32, random: f64) -> Duration {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(5);
    let wait = FIRST.mul_f64(1.5_f64.powi(nth.min(10) as i32)).min(LONGEST);
    wait.mul_f64(0.9 + 0.2 * random)
}

/// From the beginning of a check to that of the next. `random` is from 0 to 1.
pub(super) fn pause(config: &HealthCheckConfig, in_doubt: bool, random: f64) -> Duration {
    let interval = if in_doubt { config.interval_in_doubt } else { config.interval };
    let jitter = f64::from(config.jitter_percent) / 100.0;
    interval.mul_f64(1.0 + jitter * (2.0 * random - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Table as _;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn first_checks_are_spread_evenly_however_many_there_are() {
        for count in [1, 2, 3, 30, 500] {
            let mut times: Vec<_> = (0..count).map(|nth| first(nth, Verdict::Healthy, 5 * S)).collect();
            assert_eq!(times[0], Duration::ZERO, "nobody waits for nothing");
            times.sort_unstable();
            times.push(5 * S);
            let even = 5 * S / u32::try_from(count).unwrap();
            for pair in times.windows(2) {
                let gap = pair[1] - pair[0];
                assert!(
                    gap <= even.mul_f64(2.0) && gap >= even.mul_f64(0.3),
                    "{gap:?} among {count}, {even:?} is even"
                );
            }
        }
    }

    #[test]
    fn who_is_not_in_use_is_checked_at_once() {
        for verdict in [Verdict::Unhealthy, Verdict::Unknown] {
            assert_eq!(first(7, verdict, S), Duration::ZERO);
        }
    }

    #[test]
    fn looks_are_frequent_at_first_and_never_rare() {
        for (nth, random, millis) in [
            (0, 0.5, 500),
            (0, 0.0, 450),
            (0, 1.0, 550),
            (1, 0.5, 750),
            (2, 0.5, 1125),
            (6, 0.5, 5000),
            (900, 1.0, 5500),
        ] {
            assert_eq!(look(nth, random).as_millis(), millis, "{nth} {random}");
        }
        // Whenever it comes back, it is found within half of the time that it was gone, or five seconds.
        let looks: Vec<_> = (0..60)
            .scan(Duration::ZERO, |at, nth| {
                *at += look(nth, 1.0);
                Some(*at)
            })
            .collect();
        for gone_ms in (0..120_000).step_by(10) {
            let gone = Duration::from_millis(gone_ms);
            let found = looks.iter().find(|at| **at >= gone).unwrap();
            let allowed = (gone / 2 + Duration::from_millis(560)).min(Duration::from_millis(5_510));
            assert!(*found - gone <= allowed, "{gone:?}: found after {found:?}");
        }
    }

    #[test]
    fn pauses_vary_by_the_jitter_and_are_short_in_doubt() {
        let config = |jitter_percent| HealthCheckConfig {
            interval: 10 * S,
            interval_in_doubt: S,
            jitter_percent,
            ..HealthCheckConfig::of_defaults()
        };
        for (jitter, in_doubt, random, millis) in [
            (0, false, 0.3, 10_000),
            (0, true, 0.3, 1_000),
            (10, false, 0.0, 9_000),
            (10, false, 0.5, 10_000),
            (10, false, 1.0, 11_000),
            (50, true, 1.0, 1_500),
        ] {
            let pause = pause(&config(jitter), in_doubt, random);
            assert_eq!(pause.as_millis(), millis, "{jitter} {in_doubt} {random}");
        }
    }
}
