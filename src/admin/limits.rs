//! What limits are and what came of them, for `/upstreams`.

use std::time::Instant;

use serde::Serialize;

use crate::backend::BackendState;
use crate::backend::limits::Permits;
use crate::telemetry::clock::now_ms;
use crate::upstream::Upstream;
use crate::upstream::circuit_breaker::BreakerState;

/// What limits an upstream. `null` where it has no such thing.
#[derive(Debug, Serialize)]
pub(super) struct LimitsView {
    queue: Option<QueueView>,
    circuit_breaker: Option<BreakerView>,
    adaptive_limit: Option<AdaptiveView>,
}

#[derive(Debug, Serialize)]
struct QueueView {
    waiting: u32,
    length_max: u32,
    waited: u64,
    full: u64,
    timeouts: u64,
}

#[derive(Debug, Serialize)]
struct BreakerView {
    state: &'static str,
    /// Attempts in the window, and what became of them.
    attempts: u64,
    failed: u64,
    slow: u64,
    opened: u64,
    refused: u64,
}

#[derive(Debug, Serialize)]
struct AdaptiveView {
    limit: u32,
    in_flight: u32,
}

/// What limits a backend. `null` is no limit.
#[derive(Debug, Serialize)]
pub(super) struct BackendLimitsView {
    max_in_flight: Option<u32>,
    connections: u32,
    max_connections: Option<u32>,
}

impl LimitsView {
    pub(super) fn of(upstream: &Upstream) -> Self {
        let Upstream { state, limits, .. } = upstream;
        let metrics = &state.metrics;
        let breaker = |settings| {
            let (attempts, failed, slow) = state.breaker.window(settings, now_ms(Instant::now()));
            BreakerView {
                state: breaker_state(state.breaker.state()),
                attempts,
                failed,
                slow,
                opened: metrics.sum(|shard| &shard.breaker_opened),
                refused: metrics.sum(|shard| &shard.breaker_refused),
            }
        };
        Self {
            queue: upstream.is_bounded().then(|| QueueView {
                waiting: state.room.queue.len(),
                length_max: limits.queue.max,
                waited: metrics.iter().flat_map(|shard| shard.queue_waits.counts()).sum(),
                full: metrics.sum(|shard| &shard.queue_full),
                timeouts: metrics.sum(|shard| &shard.queue_timeouts),
            }),
            circuit_breaker: limits.breaker.as_ref().map(breaker),
            adaptive_limit: limits
                .adaptive
                .map(|_| AdaptiveView { limit: state.adaptive_limit(), in_flight: state.room.in_flight.in_use() }),
        }
    }
}

impl BackendLimitsView {
    pub(super) fn of(state: &BackendState) -> Self {
        Self {
            max_in_flight: given(state.limit()),
            connections: state.connections(),
            max_connections: given(state.connections_limit()),
        }
    }
}

/// A limit, where there is one.
pub(super) fn given(limit: u32) -> Option<u32> {
    (limit != Permits::UNLIMITED).then_some(limit)
}

/// What a circuit breaker does, in a word.
pub(super) fn breaker_state(state: BreakerState) -> &'static str {
    match state {
        BreakerState::Closed => "closed",
        BreakerState::Open => "open",
        BreakerState::HalfOpen => "half_open",
    }
}
