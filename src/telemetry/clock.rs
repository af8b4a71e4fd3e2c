//! A clock in milliseconds that all threads share: for what workers count on together.

use std::sync::LazyLock;
use std::time::Instant;

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds from about the start of the process to `now`; 0 for what was before.
pub fn now_ms(now: Instant) -> u64 {
    now.saturating_duration_since(*EPOCH).as_millis() as u64
}
