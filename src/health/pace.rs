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

/// From the beginning of a check to that of the next. `random` is from 0 to 1.
pub(super) fn pause(config: &HealthCheckConfig, in_doubt: bool, random: f64) -> Duration {
    let interval = if in_doubt { config.interval_in_doubt } else { config.interval };
    let jitter = f64::from(config.jitter_percent) / 100.0;
    interval.mul_f64(1.0 + jitter * (2.0 * random - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{InitialHealth, Probe};

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
    fn pauses_vary_by_the_jitter_and_are_short_in_doubt() {
        let config = |jitter_percent| HealthCheckConfig {
            probe: Probe::Tcp,
            port: None,
            interval: 10 * S,
            interval_in_doubt: S,
            jitter_percent,
            timeout: S,
            unhealthy_after: 1,
            healthy_after: 1,
            initial: InitialHealth::Healthy,
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
