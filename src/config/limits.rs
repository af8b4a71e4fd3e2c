//! How much may be asked of backends.

use std::time::Duration;

use super::{AdaptiveLimitConfig, BreakerConfig};

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
