//! `/upstreams`: the upstreams and their backends, with what was counted of them.

use std::time::Instant;

use serde::Serialize;

use super::limits::{BackendLimitsView, LimitsView};
use super::picking::{self, SetView, StandingView};
use crate::backend::Backend;
use crate::backend::health::Health;
use crate::config::UpstreamConfig;
use crate::proxy::Snapshot;
use crate::telemetry::calendar::rfc3339;
use crate::telemetry::metrics::{BackendMetrics, Counter, Sharded, UpstreamMetrics};
use crate::upstream::{Readiness, Roster, Seat, Upstream};

/// The whole answer.
#[derive(Debug, Serialize)]
pub(super) struct View {
    generation: u64,
    upstreams: Vec<UpstreamView>,
}

#[derive(Debug, Serialize)]
struct UpstreamView {
    name: String,
    strategy: String,
    responses: ByClass,
    retries: u64,
    no_backend: u64,
    #[serde(flatten)]
    limits: LimitsView,
    /// Tiers of which so few are ready that others are picked as well.
    panic: Vec<String>,
    /// Where requests go, in the order in which a retry looks for somebody.
    sets: Vec<SetView>,
    backends: Vec<BackendView>,
}

#[derive(Debug, Serialize)]
struct BackendView {
    address: String,
    weight: u16,
    ready: bool,
    /// In words, whether it may be picked and if not, why.
    readiness: &'static str,
    /// `null` where the upstream has no health check.
    health: Option<HealthView>,
    #[serde(flatten)]
    standing: StandingView,
    in_flight: u32,
    #[serde(flatten)]
    limits: BackendLimitsView,
    picks: u64,
    responses: ByClass,
    connects: u64,
    connect_failures: u64,
    broken: u64,
    timeouts: u64,
}

/// What health checks have made of a backend.
#[derive(Debug, Serialize)]
struct HealthView {
    verdict: &'static str,
    /// The last checks in a row with the same result; `null` before the first.
    streak: Option<StreakView>,
    last_check: Option<LastCheckView>,
    checks_passed: u64,
    checks_failed: u64,
    changes: u64,
}

#[derive(Debug, Serialize)]
struct StreakView {
    result: &'static str,
    length: u32,
}

#[derive(Debug, Serialize)]
struct LastCheckView {
    at: String,
    took_ms: f64,
    result: &'static str,
    failure: Option<String>,
}

/// Responses by the first digit of their status.
#[derive(Debug, Serialize)]
struct ByClass {
    #[serde(rename = "1xx")]
    informational: u64,
    #[serde(rename = "2xx")]
    successful: u64,
    #[serde(rename = "3xx")]
    redirected: u64,
    #[serde(rename = "4xx")]
    client_error: u64,
    #[serde(rename = "5xx")]
    server_error: u64,
}

impl View {
    /// What a snapshot serves with now.
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        Self {
            generation: snapshot.generation,
            upstreams: snapshot.upstreams.iter().map(|upstream| UpstreamView::of(upstream)).collect(),
        }
    }
}

impl UpstreamView {
    fn of(upstream: &Upstream) -> Self {
        let roster = upstream.roster();
        let metrics = &upstream.state.metrics;
        Self {
            name: upstream.name().to_string(),
            strategy: upstream.config.strategy.as_str().to_owned(),
            responses: ByClass::sum(metrics, |shard| &shard.responses),
            retries: UpstreamMetrics::all_retries(metrics),
            no_backend: metrics.sum(|shard| &shard.no_backend),
            limits: LimitsView::of(upstream),
            panic: roster.panic().iter().map(ToString::to_string).collect(),
            sets: picking::sets(&roster),
            backends: roster
                .backends()
                .iter()
                .zip(roster.seats())
                .map(|(backend, seat)| BackendView::of(backend, seat, &roster, &upstream.config))
                .collect(),
        }
    }
}

impl BackendView {
    fn of(backend: &Backend, seat: &Seat, roster: &Roster, config: &UpstreamConfig) -> Self {
        let now = Instant::now();
        let metrics: &Sharded<BackendMetrics> = &backend.state.metrics;
        Self {
            address: backend.state.address.to_string(),
            weight: backend.weight,
            ready: is_ready(backend, roster),
            readiness: Readiness::of(backend, config, now).as_str(),
            health: config.health_check.as_ref().map(|_| HealthView::of(&backend.state.health)),
            standing: StandingView::of(backend, seat, now),
            in_flight: backend.state.in_flight(),
            limits: BackendLimitsView::of(&backend.state),
            picks: metrics.sum(|shard| &shard.picks),
            responses: ByClass::sum(metrics, |shard| &shard.responses),
            connects: metrics.sum(|shard| &shard.connects),
            connect_failures: metrics.sum(|shard| &shard.connect_failures),
            broken: metrics.sum(|shard| &shard.broken),
            timeouts: metrics.sum(|shard| &shard.timeouts),
        }
    }
}

impl HealthView {
    fn of(health: &Health) -> Self {
        let (account, last) = health.look();
        let streak = account.streak();
        Self {
            verdict: account.verdict().as_str(),
            streak: (streak.length > 0).then(|| StreakView { result: result(streak.passed), length: streak.length }),
            last_check: last.map(|last| LastCheckView {
                at: rfc3339(last.at),
                took_ms: last.took.as_micros() as f64 / 1e3,
                result: result(last.failure.is_none()),
                failure: last.failure,
            }),
            checks_passed: health.passed.get(),
            checks_failed: health.failed.get(),
            changes: health.changes.get(),
        }
    }
}

fn result(passed: bool) -> &'static str {
    if passed { "passed" } else { "failed" }
}

impl ByClass {
    fn sum<T>(metrics: &Sharded<T>, responses: impl Fn(&T) -> &[Counter; 5]) -> Self {
        let class = |index: usize| metrics.sum(|shard| &responses(shard)[index]);
        Self {
            informational: class(0),
            successful: class(1),
            redirected: class(2),
            client_error: class(3),
            server_error: class(4),
        }
    }
}

/// Whether a backend of `roster` may be picked.
pub(super) fn is_ready(backend: &Backend, roster: &Roster) -> bool {
    roster.ready().iter().any(|ready| ready.state.id == backend.state.id)
}
