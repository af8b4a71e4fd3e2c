//! When a connection to a backend has been used for long enough.

use crate::config::PoolConfig;

/// How long a connection may be used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wear {
    /// When it is too old.
    ends_ms: u64,
    /// Requests that it still takes.
    left: u32,
}

/// So much of the age is left out at most, so that connections that were made together are not made anew together.
const JITTER: f64 = 0.1;

impl Wear {
    /// Of a connection that is made now. `random` gives any number, where one is needed.
    pub(super) fn new(config: &PoolConfig, now_ms: u64, random: impl FnOnce() -> u32) -> Self {
        let ends_ms = config.max_age.map_or(u64::MAX, |age| {
            let part = f64::from(random()) / f64::from(u32::MAX);
            now_ms.saturating_add(age.mul_f64(1.0 - JITTER * part).as_millis() as u64)
        });
        // Without a limit, after four thousand million of them: that is none.
        Self { ends_ms, left: config.max_requests.unwrap_or(u32::MAX) }
    }

    /// It has taken a request. Whether it takes no other.
    pub(super) fn take(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }

    pub(super) fn is_old(&self, now_ms: u64) -> bool {
        now_ms >= self.ends_ms
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Table;

    #[test]
    fn a_connection_wears_out_by_time_and_by_requests_and_never_without_limits() {
        let config = |max_age, max_requests| PoolConfig { max_age, max_requests, ..PoolConfig::of_defaults() };
        let mut unlimited = Wear::new(&config(None, None), 5, || panic!("nothing is diced for"));
        assert!((0..1000).all(|_| !unlimited.take()) && !unlimited.is_old(u64::MAX - 1));
        let age = Some(Duration::from_secs(10));
        let [longest, shortest] = [0, u32::MAX].map(|random| Wear::new(&config(age, Some(2)), 1_000, || random));
        assert_eq!([10_999, 11_000].map(|now| longest.is_old(now)), [false, true]);
        assert_eq!([9_999, 10_000].map(|now| shortest.is_old(now)), [false, true]);
        let mut twice = longest;
        assert_eq!([twice.take(), twice.take()], [false, true]);
    }
}
