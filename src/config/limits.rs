//! How much may be asked of backends.

use std::time::Duration;

/// Limits of an upstream, and what is done with requests beyond them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitsConfig {
    /// For backends that have no limits of their own.
    pub backend: BackendLimits,
    /// Who waits when every backend is full. Means nothing where there is no limit.
    pub queue: QueueConfig,
    /// When backends are not asked for a while; `None`: they always are.
    pub breaker: Option<BreakerConfig>,
    /// A limit for all backends together that follows their latency; `None`: there is none.
    pub adaptive: Option<AdaptiveLimitConfig>,
}

/// Limits of a backend, over all workers. `None` is any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendLimits {
    /// Requests in flight. At least 1.
    pub max_in_flight: Option<u32>,
    /// Connections, idle ones and those of upgraded connections included. At least 1.
    pub max_connections: Option<u32>,
}

/// `[upstream.NAME.queue]`: requests that wait for a backend with room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// Requests that may wait; 0: none does.
    pub length: u32,
    /// How long each may.
    pub timeout: Duration,
    /// Who goes first.
    pub order: QueueOrder,
}

/// Who goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueOrder {
    /// Who came first.
    Fifo,
    /// Who came first; but who came last while the queue has not been empty for `interval`, and who comes then waits for
    /// `target` at most.
    Adaptive {
        /// How long a request may wait while that is so.
        target: Duration,
        /// How long it may else, and how long the queue may stand.
        interval: Duration,
    },
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self { length: 1_024, timeout: Duration::from_secs(1), order: QueueOrder::Fifo }
    }
}

/// `[upstream.NAME.circuit_breaker]`: spares an upstream that fails, and tells clients at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerConfig {
    /// How far back attempts count.
    pub window: Duration,
    /// Fewer attempts than this say nothing.
    pub min_calls: u32,
    /// Opens when so many of a hundred attempts have failed.
    pub failure_percent: u8,
    /// An attempt whose response's head takes this long is slow; `None`: none is.
    pub slow_after: Option<Duration>,
    /// Opens when so many of a hundred attempts were slow.
    pub slow_percent: u8,
    /// How long it stays open the first time.
    pub open_for: Duration,
    /// The longest that it stays open.
    pub open_max: Duration,
    /// Attempts that are let through to find out whether it may close.
    pub probes: u16,
}

/// `[upstream.NAME.adaptive_limit]`: requests in flight at an upstream, fewer when responses take longer than usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdaptiveLimitConfig {
    /// Where it begins.
    pub initial: u32,
    /// It never is below.
    pub min: u32,
    /// It never is above.
    pub max: u32,
    /// How long responses may take, in hundredths of what is usual, before it goes down. At least 100.
    pub tolerance_percent: u32,
    /// How much of what a window asks for is done at once, in hundredths.
    pub smoothing_percent: u8,
    /// By how many requests it goes up when all is well.
    pub headroom: u32,
    /// How many windows back count for what is usual.
    pub long_windows: u32,
    /// How long responses are gathered before it is looked at.
    pub window: Duration,
    /// Fewer responses than this say nothing.
    pub min_samples: u32,
}
