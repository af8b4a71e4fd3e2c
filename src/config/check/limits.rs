//! How much may be asked of backends: the limits of `[upstream.NAME]` with the tables `queue`, `circuit_breaker` and `adaptive_limit`.

use super::Check;
use super::value::{choice, number, timeout};
use crate::config::error::Problem;
use crate::config::field::Field;
use crate::config::form::{self, Form as _, Part};
use crate::config::raw;
use crate::config::{BackendConfig, BackendLimits, LimitsConfig, QueueConfig, QueueOrder};

const MOST: i64 = 1_000_000;

/// The limits of an upstream. `backends` are those that were understood.
pub(super) fn limits(
    check: &Check<'_>,
    raw: &raw::Upstream,
    backend: BackendLimits,
    backends: &[BackendConfig],
) -> LimitsConfig {
    let config = LimitsConfig {
        backend,
        queue: queue(check, &raw.queue),
        breaker: form::table(check, &Part, &raw.circuit_breaker),
        adaptive: form::table(check, &Part, &raw.adaptive_limit),
    };
    let limited = |limits: &BackendLimits| *limits != BackendLimits::default();
    let is_limited = config.adaptive.is_some() || backends.iter().any(|backend| limited(&backend.limits));
    // Without backends nobody knows what their limits would be.
    if let (Some(place), false, false) = (raw.queue.place(), is_limited, backends.is_empty()) {
        let problem = Problem::error("a queue that nobody ever waits in: no backend has a limit");
        check.add(place, problem.expected("max_in_flight, max_connections or an adaptive_limit too, or no queue"));
    }
    config
}

/// The limits that hold for backends without limits of their own.
pub(super) fn upstream_limits(check: &Check<'_>, raw: &raw::Upstream) -> BackendLimits {
    let limits = BackendLimits {
        max_in_flight: limit(check, &raw.max_in_flight).flatten(),
        max_connections: limit(check, &raw.max_connections).flatten(),
    };
    warn_of_unreached(check, &raw.max_in_flight, limits);
    limits
}

/// The limits of a backend: its own where it has some, else those of the upstream.
pub(super) fn backend_limits(check: &Check<'_>, raw: &raw::BackendTable, upstream: BackendLimits) -> BackendLimits {
    let limits = BackendLimits {
        max_in_flight: limit(check, &raw.max_in_flight).unwrap_or(upstream.max_in_flight),
        max_connections: limit(check, &raw.max_connections).unwrap_or(upstream.max_connections),
    };
    warn_of_unreached(check, &raw.max_in_flight, limits);
    limits
}

/// Each request in flight has a connection to itself.
fn warn_of_unreached(check: &Check<'_>, field: &Field<raw::Limit>, limits: BackendLimits) {
    if let (Some(place), Some(in_flight), Some(connections)) =
        (field.place(), limits.max_in_flight, limits.max_connections)
        && in_flight > connections
    {
        let problem = "never reached: each request takes a connection, and max_connections allows fewer";
        check.add(place, Problem::warning(problem));
    }
}

/// A limit, if there is a word on it: a number, or none at all.
pub(super) fn limit(check: &Check<'_>, field: &Field<raw::Limit>) -> Option<Option<u32>> {
    let (place, written) = field.given()?;
    form::Limit(1..=MOST).read(check, place, written)
}

fn queue(check: &Check<'_>, field: &Field<raw::Queue>) -> QueueConfig {
    let Some(raw) = field.value() else { return QueueConfig::default() };
    let target = timeout(check, &raw.target, "5ms");
    let interval = timeout(check, &raw.interval, "100ms");
    let adaptive = QueueOrder::Adaptive { target, interval };
    let order = choice(check, &raw.order, QueueOrder::Fifo, &[("fifo", QueueOrder::Fifo), ("adaptive", adaptive)]);
    for place in [raw.target.place(), raw.interval.place()].into_iter().flatten() {
        if order == QueueOrder::Fifo {
            let problem = Problem::error("a queue of order fifo has no such time");
            check.add(place, problem.expected("order = \"adaptive\", or not this key"));
        }
    }
    if let (Some(place), true) = (raw.target.place(), order != QueueOrder::Fifo && target > interval) {
        let problem = Problem::error("under overload requests would wait longer than without");
        check.add(place, problem.expected("no more than interval"));
    }
    QueueConfig {
        length: count(check, &raw.length, 1_024, 0, MOST),
        timeout: timeout(check, &raw.timeout, "1s"),
        order,
    }
}

fn count(check: &Check<'_>, field: &Field<i64>, default: i64, least: i64, most: i64) -> u32 {
    u32::try_from(number(check, field, default, least..=most)).unwrap_or(u32::MAX)
}
