//! How much may be asked of the backends of an upstream.

use super::{AdaptiveLimitConfig, BreakerConfig, QueueConfig};

/// Limits of an upstream, and what is done with requests beyond them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitsConfig {
    /// For backends that have no limits of their own.
    pub backend: BackendLimits,
    /// Where requests wait when every backend is full. Means nothing where there is no limit.
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
