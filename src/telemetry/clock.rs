//! Milliseconds on a clock that all workers share, for what is kept in one word.

use std::sync::LazyLock;
use std::time::Instant;

/// When the clock was first asked.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds since the process first asked. A time before that is 0.
pub fn now_ms(now: Instant) -> u64 {
    now.saturating_duration_since(*EPOCH).as_millis() as u64
}
