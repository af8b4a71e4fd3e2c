//! `/upstreams`: the upstreams and their backends, with what was counted of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::StatusCode;
use serde::Serialize;

use super::limits::{BackendLimitsView, LimitsView};
use super::load_balancing::{self, SetView, StandingView};
use super::refusal::AdminRefusal;
use crate::backend::health::Health;
use crate::backend::operator_state::{Lever, Mark, Marks, Setting};
use crate::backend::{Backend, BackendSet};
use crate::config::{Address, LeftOut, UpstreamConfig, made_name};
use crate::proxy::Snapshot;
use crate::telemetry::calendar::rfc3339;
use crate::telemetry::metrics::{BackendMetrics, Counter, Sharded, UpstreamMetrics};
use crate::upstream::services::ServedService;
use crate::upstream::sources::{SourceCondition, SourceReport};
use crate::upstream::{Readiness, Roster, RosterEntry, Upstream};

/// The whole answer.
#[derive(Debug, Serialize)]
pub(super) struct UpstreamsView {
    generation: u64,
    upstreams: Vec<UpstreamView>,
}

/// An upstream.
#[derive(Debug, Serialize)]
pub(super) struct UpstreamView {
    name: String,
    strategy: String,
    responses: ByClass,
    retries: u64,
    no_backend: u64,
    #[serde(flatten)]
    limits: LimitsView,
    /// Tiers of which so few are ready that others are picked as well.
    panic: Vec<String>,
    /// Where requests go, in the order in which a retry looks for a backend.
    sets: Vec<SetView>,
    /// Where its backends come from, the file first: of a backend that several know, the first says what it is.
    sources: Vec<SourceView>,
    /// Where others are made of it for services: these.
    #[serde(skip_serializing_if = "Option::is_none")]
    services: Option<ServicesView>,
    backends: Vec<BackendView>,
    /// What is set by hand for addresses that it has no backend at, at present.
    absent: Vec<AbsentView>,
}

/// A source of backends.
#[derive(Debug, Serialize)]
struct SourceView {
    name: String,
    /// `awaited`, `current`, `holding` or `failing`.
    condition: &'static str,
    /// Since when it is that.
    since: String,
    /// How many backends count of it, with those that are held back; `null` where it has not said yet.
    backends: Option<usize>,
    /// How many of these it names no longer and are held back.
    held_back: usize,
    /// How many it names that are not served with yet, because they came and went again and again.
    damped: usize,
    /// When its last good answer came; `null` where none has.
    answered: Option<String>,
    /// For how long it is not known whether what counts is still right; 0 while it answers.
    stale_seconds: u64,
    /// The index or version of its last good answer, where it has one.
    revision: Option<String>,
    /// What is wrong with entries of that answer that were left out: the first of them.
    left_out: Vec<String>,
    /// What is wrong where it is failing; what it said last still counts.
    error: Option<String>,
}

/// The services that upstreams are made for.
#[derive(Debug, Serialize)]
struct ServicesView {
    /// How many its source lists, taken or not; `null` where it has not said yet.
    listed: Option<usize>,
    served: Vec<ServiceView>,
    /// What of services is not served, and why: the first of them.
    left_out: Vec<LeftOutView>,
}

#[derive(Debug, Serialize)]
struct ServiceView {
    service: String,
    /// The upstream that is made for it.
    upstream: String,
    /// `false`: it is listed no more, and goes when it has no backends left and its grace is over.
    listed: bool,
}

#[derive(Debug, Serialize)]
struct LeftOutView {
    service: String,
    why: String,
}

/// A backend.
#[derive(Debug, Serialize)]
pub(super) struct BackendView {
    address: String,
    /// What it has: by hand, or as its source says.
    weight: u16,
    /// As its source says: the file, or discovery.
    weight_in_file: u16,
    /// What its source says of it besides.
    labels: BTreeMap<String, String>,
    /// The first source that names it; `null` where it is on its way out.
    source: Option<String>,
    /// Since when that source names it.
    named_since: Option<String>,
    ready: bool,
    /// In words, whether it may be picked and if not, why.
    readiness: &'static str,
    /// `null` where the upstream has no health check.
    health: Option<HealthView>,
    #[serde(flatten)]
    standing: StandingView,
    by_hand: ByHandView,
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

/// What is set by hand for an address.
#[derive(Debug, Serialize)]
struct AbsentView {
    address: String,
    by_hand: ByHandView,
}

/// The levers of a backend; `null` is not set.
#[derive(Debug, Serialize)]
struct ByHandView {
    drain: Option<MarkView>,
    disable: Option<MarkView>,
    weight: Option<MarkView>,
    eject: Option<MarkView>,
}

#[derive(Debug, Serialize)]
struct MarkView {
    by: String,
    since: String,
    /// `null` is until an operator ends it.
    until: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
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

impl UpstreamsView {
    /// What a snapshot serves with now.
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        Self {
            generation: snapshot.generation,
            upstreams: snapshot.upstreams.iter().map(|upstream| UpstreamView::of(upstream)).collect(),
        }
    }
}

impl UpstreamView {
    /// An upstream as it is now.
    pub(super) fn of(upstream: &Upstream) -> Self {
        let roster = upstream.roster();
        let metrics = &upstream.state.metrics;
        let reports = upstream.state.sources.look();
        let named = Named::of(&reports);
        let now = SystemTime::now();
        Self {
            name: upstream.name().to_string(),
            strategy: upstream.config.strategy.as_str().to_owned(),
            responses: ByClass::sum(metrics, |shard| &shard.responses),
            retries: UpstreamMetrics::all_retries(metrics),
            no_backend: metrics.sum(|shard| &shard.no_backend),
            limits: LimitsView::of(upstream),
            panic: roster.panic().iter().map(ToString::to_string).collect(),
            sets: load_balancing::sets(&roster),
            sources: reports.iter().map(|report| SourceView::of(report, now)).collect(),
            services: upstream.config.services.as_ref().map(|_| ServicesView::of(upstream)),
            backends: roster
                .backends()
                .iter()
                .zip(roster.seats())
                .map(|(backend, seat)| BackendView::of(backend, seat, &roster, &upstream.config, &named))
                .collect(),
            absent: upstream
                .state
                .set_by_hand()
                .into_iter()
                .filter(|(address, _)| roster.backends().iter().all(|backend| backend.state.address != *address))
                .map(|(address, marks)| AbsentView { address: address.to_string(), by_hand: ByHandView::of(&marks) })
                .collect(),
        }
    }
}

/// Which source names each backend, the first of several, and since when.
struct Named<'r>(HashMap<&'r Address, (&'r str, SystemTime)>);

impl<'r> Named<'r> {
    fn of(reports: &'r [SourceReport]) -> Self {
        let mut named = HashMap::new();
        for report in reports {
            for (address, since) in &*report.said_since {
                named.entry(address).or_insert((&*report.source, *since));
            }
        }
        Self(named)
    }
}

/// Entries that were left out of which the view tells.
const LEFT_OUT_MAX: usize = 8;

impl SourceView {
    fn of(report: &SourceReport, now: SystemTime) -> Self {
        Self {
            name: report.source.to_string(),
            condition: report.condition.as_str(),
            since: rfc3339(report.since),
            backends: report.set.as_ref().map(BackendSet::len),
            held_back: match report.condition {
                SourceCondition::Holding { backends } => backends,
                _ => 0,
            },
            damped: report.damped,
            answered: report.answered.map(rfc3339),
            stale_seconds: report.stale(now).as_secs(),
            revision: report.revision.as_deref().map(str::to_owned),
            left_out: report.refused.iter().take(LEFT_OUT_MAX).cloned().collect(),
            error: match &report.condition {
                SourceCondition::Failing { error } => Some(error.clone()),
                SourceCondition::Awaited | SourceCondition::Current | SourceCondition::Holding { .. } => None,
            },
        }
    }
}

impl ServicesView {
    fn of(upstream: &Upstream) -> Self {
        let (served, left_out) = upstream.state.services.served();
        let view = |it: &ServedService| ServiceView {
            service: it.service.name.to_string(),
            upstream: made_name(upstream.name().as_str(), &it.service.name),
            listed: it.is_listed,
        };
        let left = |it: &LeftOut| LeftOutView { service: it.service.name.to_string(), why: it.why.clone() };
        Self {
            listed: upstream.state.services.listed().map(|all| all.len()),
            served: served.iter().map(view).collect(),
            left_out: left_out.iter().take(LEFT_OUT_MAX).map(left).collect(),
        }
    }
}

impl BackendView {
    /// The backend of that address; `None` where the upstream has none.
    pub(super) fn find(upstream: &Upstream, address: &Address) -> Option<Self> {
        let roster = upstream.roster();
        let index = roster.backends().iter().position(|backend| backend.state.address == *address)?;
        let reports = upstream.state.sources.look();
        let named = Named::of(&reports);
        Some(Self::of(&roster.backends()[index], &roster.seats()[index], &roster, &upstream.config, &named))
    }

    fn of(backend: &Backend, seat: &RosterEntry, roster: &Roster, config: &UpstreamConfig, named: &Named<'_>) -> Self {
        let now = Instant::now();
        let named = named.0.get(&backend.state.address);
        let metrics: &Sharded<BackendMetrics> = &backend.state.metrics;
        Self {
            address: backend.state.address.to_string(),
            weight: backend.weight,
            weight_in_file: backend.instance.weight,
            labels: backend.instance.labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            source: named.map(|(source, _)| (*source).to_owned()),
            named_since: named.map(|(_, since)| rfc3339(*since)),
            ready: is_ready(backend, roster),
            readiness: Readiness::of(backend, config, now).as_str(),
            health: config.health_check.as_ref().map(|_| HealthView::of(&backend.state.health)),
            standing: StandingView::of(backend, seat, now),
            by_hand: ByHandView::of(&backend.state.by_hand.look()),
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

impl ByHandView {
    fn of(marks: &Marks) -> Self {
        let mark = |lever| marks.get(lever).map(MarkView::of);
        Self {
            drain: mark(Lever::Drain),
            disable: mark(Lever::Disable),
            weight: mark(Lever::Weight),
            eject: mark(Lever::Eject),
        }
    }
}

impl MarkView {
    fn of(mark: &Mark) -> Self {
        Self {
            by: mark.by.to_string(),
            since: rfc3339(mark.since),
            until: mark.until.map(|until| rfc3339(until.time)),
            weight: match mark.setting {
                Setting::Weight(weight) => Some(weight),
                Setting::Drained | Setting::Disabled | Setting::Ejected => None,
            },
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

/// The upstream of that name.
pub(super) fn find<'s>(snapshot: &'s Snapshot, name: &str) -> Result<&'s Arc<Upstream>, AdminRefusal> {
    let found = snapshot.upstreams.iter().find(|upstream| upstream.name().as_str() == name);
    found.ok_or_else(|| {
        let names = snapshot.upstreams.iter().map(|upstream| upstream.name().as_str());
        let what = format!("unknown upstream {name:?}");
        AdminRefusal::new(StatusCode::NOT_FOUND, what, format!("/upstreams/{name}")).one_of(name, names)
    })
}

/// The address of a backend of the upstream, also of one that is not there at present and has something set by hand.
pub(super) fn find_address(upstream: &Upstream, written: &str) -> Result<Address, AdminRefusal> {
    if let Some(address) = addresses(upstream).into_iter().find(|address| address.to_string() == written) {
        return Ok(address);
    }
    // By its name and port, where that is one backend.
    let roster = upstream.roster();
    let mut named = roster.backends().iter().filter(|it| it.state.address.authority() == written);
    match (named.next(), named.next()) {
        (Some(backend), None) => Ok(backend.state.address.clone()),
        _ => Err(unknown_backend(upstream, written)),
    }
}

/// That the upstream has no such backend.
pub(super) fn unknown_backend(upstream: &Upstream, written: &str) -> AdminRefusal {
    let names: Vec<_> = addresses(upstream).iter().map(ToString::to_string).collect();
    let what = format!("unknown backend {written:?} of upstream {:?}", upstream.name().as_str());
    let place = format!("/upstreams/{}/backends/{written}", upstream.name());
    AdminRefusal::new(StatusCode::NOT_FOUND, what, place).one_of(written, names.iter().map(String::as_str))
}

fn addresses(upstream: &Upstream) -> Vec<Address> {
    let roster = upstream.roster();
    let mut addresses: Vec<_> = roster.backends().iter().map(|backend| backend.state.address.clone()).collect();
    addresses.extend(upstream.state.set_by_hand().into_iter().map(|(address, _)| address));
    addresses
}

/// Whether a backend of `roster` may be picked.
pub(super) fn is_ready(backend: &Backend, roster: &Roster) -> bool {
    roster.ready().iter().any(|ready| ready.state.id == backend.state.id)
}
