//! How long to wait before the next attempt of a request.
//!
//! Exponential, with full jitter: requests that failed together must not come back together, and of the usual kinds of jitter
//! the full one makes the fewest attempts for the same work. What a backend asks for with `Retry-After` is a lower bound.

use std::time::{Duration, SystemTime};

use crate::config::{BackoffConfig, RetryConfig};

/// The waits between the attempts of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackoffSettings {
    /// The longest wait before the first further attempt; it doubles with each.
    pub base: Duration,
    /// The longest wait before any.
    pub max: Duration,
    /// The longest `Retry-After` that a request is held for. With a longer one the response goes to the client as it is, who
    /// then knows when to come back.
    pub retry_after_max: Duration,
}

impl Default for BackoffSettings {
    /// 25 ms, doubling up to 250 ms, as Envoy has it; `Retry-After` of up to 1 s: a request waits here on a connection and in
    /// memory, so not for Envoy's 300 s.
    fn default() -> Self {
        Self {
            base: Duration::from_millis(25),
            max: Duration::from_millis(250),
            retry_after_max: Duration::from_secs(1),
        }
    }
}

impl From<&RetryConfig> for BackoffSettings {
    fn from(config: &RetryConfig) -> Self {
        let BackoffConfig { base, max, retry_after_max } = config.backoff;
        Self { base, max, retry_after_max }
    }
}

impl BackoffSettings {
    /// How long to wait before further attempt `retry`, the first being 0; `None` when the backend asked for longer than a
    /// request is held. `bits` are random.
    ///
    /// `retry_after` is what the last response asked for; see [`retry_after`].
    pub fn wait(&self, retry: u32, retry_after: Option<Duration>, bits: u64) -> Option<Duration> {
        let least = retry_after.unwrap_or_default();
        (least <= self.retry_after_max).then(|| self.jittered(retry, bits).max(least))
    }

    /// Anything from nothing to the longest wait of this attempt, evenly.
    fn jittered(&self, retry: u32, bits: u64) -> Duration {
        let longest = self.base.saturating_mul(1_u32.checked_shl(retry).unwrap_or(u32::MAX)).min(self.max);
        let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(((u128::from(bits) * (u128::from(nanos) + 1)) >> 64) as u64)
    }
}

/// What a `Retry-After` field asks for, as RFC 9110 §10.2.3 has it: seconds or a date. A date that has passed is now. `None`
/// for anything else; more seconds than fit are the most that do.
pub fn retry_after(value: &[u8], now: SystemTime) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn waits_double_up_to_the_longest() {
        let backoff = BackoffSettings::default();
        let longest = |retry| backoff.wait(retry, None, u64::MAX).unwrap();
        let all: Vec<_> = [0, 1, 2, 3, 4, 31, 32, u32::MAX].map(longest).into();
        assert_eq!(all, [25, 50, 100, 200, 250, 250, 250, 250].map(MS));
        assert_eq!(backoff.wait(3, None, 0), Some(Duration::ZERO));
    }

    #[test]
    fn jitter_is_even_over_the_whole_wait() {
        let backoff = BackoffSettings::default();
        assert_eq!(backoff.wait(0, None, 1 << 63), Some(Duration::from_micros(12_500)));
        assert_eq!(backoff.wait(1, None, 1 << 62), Some(Duration::from_micros(12_500)));
    }

    #[test]
    fn retry_after_is_a_lower_bound_up_to_its_own_limit() {
        let backoff = BackoffSettings::default();
        assert_eq!(backoff.wait(0, Some(MS(1_000)), u64::MAX), Some(MS(1_000)));
        assert_eq!(backoff.wait(0, Some(MS(1_001)), 0), None);
        assert_eq!(backoff.wait(4, Some(MS(100)), u64::MAX), Some(MS(250)));
        assert_eq!(backoff.wait(4, Some(MS(0)), 0), Some(MS(0)));
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, seconds) in [
            ("0", Some(0)),
            ("120", Some(120)),
            (" 7\t", Some(7)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:40 GMT", Some(3)),
            ("Sunday, 06-Nov-94 08:49:40 GMT", Some(3)),
            ("Sun Nov  6 08:49:40 1994", Some(3)),
            ("Sun, 06 Nov 1994 08:49:30 GMT", Some(0)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("soon", None),
            ("1 2", None),
        ] {
            assert_eq!(retry_after(text.as_bytes(), now), seconds.map(Duration::from_secs), "{text:?}");
        }
        assert_eq!(retry_after(b"\xff", now), None);
    }

    proptest! {
        #[test]
        fn no_wait_is_outside_its_bounds(retry: u32, bits: u64, base in 0_u64..10_000, max in 0_u64..100_000) {
            let backoff = BackoffSettings { base: MS(base), max: MS(max), ..BackoffSettings::default() };
            let wait = backoff.wait(retry, None, bits).unwrap();
            prop_assert!(wait <= MS(max));
            prop_assert!(wait <= MS(base).saturating_mul(2_u32.saturating_pow(retry)));
        }

        #[test]
        fn no_field_is_too_odd_to_read(value: Vec<u8>) {
            let _ = retry_after(&value, SystemTime::UNIX_EPOCH);
        }
    }
}
