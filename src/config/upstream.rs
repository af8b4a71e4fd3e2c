//! `[upstream.NAME]`: backends, and how they are picked and spoken with.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::backend::{self, Backends, warn_of_unreached};
use super::check::Check;
use super::discovery::Sources;
use super::error::Problem;
use super::form::{About, Form, Limit, List, NamedTable, OnPart, OneOf, Part, Real, Reference, Timeout, Whole, Word};
use super::json_tree::Tree;
use super::report::Place;
use super::retries::Retries;
use super::rule::KeyRule;
use super::services::SERVICE;
use super::strategy::StrategyName;
use super::table::Table;
use super::{
    AdaptiveLimitConfig, BackendConfig, BackendLimits, BackendTlsConfig, BreakerConfig, DiscoveryConfig,
    HealthCheckConfig, LimitsConfig, MiddlewareName, OutlierConfig, PoolConfig, QueueConfig, RetryBudgetConfig,
    RetryConfig, ServicesConfig, SlowStartConfig, StrategyConfig, TiersConfig, UpstreamName, ZonesConfig,
};

/// A named pool of interchangeable backends under one policy.
#[derive(Clone, Debug, PartialEq, Table)]
#[table(check = Self::check, rules = Self::RULES, reload = Requests)]
pub struct UpstreamConfig {
    /// How a backend is picked.
    #[key(StrategyName, default = "round_robin")]
    pub strategy: StrategyConfig,
    /// An IP address or a name each, with its port, or a table. It may be left out where there is `discovery`. An upstream without backends
    /// answers 503.
    #[key(Backends, otherwise = "none", example = ["10.0.0.1:9001"])]
    pub backends: Vec<BackendConfig>,
    /// Where backends are found besides.
    #[key(Sources, otherwise = "none", shown_if = Self::has_sources, reload = AtOnce)]
    pub discovery: Vec<DiscoveryConfig>,
    /// Makes an upstream like this one, and routes to it, for each service that its source lists.
    #[key(Part, otherwise = "none", reload = Requests)]
    pub services: Option<Arc<ServicesConfig>>,
    /// From the first packet to a connection: a backend in the next rack answers in milliseconds.
    #[key(Timeout, default = "3s")]
    pub connect_timeout: Duration,
    /// When a request that failed goes to another backend. Routes may change it for theirs.
    #[key(Retries)]
    pub retries: Arc<RetryConfig>,
    /// How many further attempts all its requests together may get.
    #[key(Part)]
    pub retry_budget: RetryBudgetConfig,
    /// The connections to each backend: which are kept, and for how long.
    #[key(Part)]
    pub pool: PoolConfig,
    /// What is spoken to the backends: HTTP/1.1 (`http1`); HTTP/2, without TLS by prior knowledge (`http2`); or by TLS what a backend takes, and in
    /// the clear HTTP/1.1 (`auto`).
    #[key(OneOf, default = "http1")]
    pub protocol: Protocol,
    /// How the backends are spoken to by TLS; in the clear where there is no such table.
    #[key(Part)]
    pub tls: Option<Arc<BackendTlsConfig>>,
    /// Percent of a tier: if less of it is ready, and other tiers are too small, backends that are not ready are picked too. 0 is never.
    #[key(Whole(0..=100), default = 50)]
    pub panic_threshold: u32,
    /// A tier that could bear so many times its load spills nothing to the next one until less than the reciprocal of it is ready.
    #[key(Factor(1.0..=10.0), name = "overprovisioning", default = 1.4)]
    pub overprovisioning_percent: u32,
    /// Asks the backends whether they are well; without the table all count as healthy.
    #[key(Part)]
    pub health_check: Option<Arc<HealthCheckConfig>>,
    /// Ejects backends that are worse than the others, by what comes of their requests.
    #[key(OnPart)]
    pub outlier_detection: Option<OutlierConfig>,
    /// How backends start that join or return.
    #[key(OnPart)]
    pub slow_start: Option<SlowStartConfig>,
    /// Keeps requests in this process's zone.
    #[key(OnPart)]
    pub zone_preference: Option<ZonesConfig>,
    /// Requests at a time per backend, over all workers: what it can do without getting slower.
    #[key(Limit(1..=1_000_000), default = "unlimited")]
    pub max_in_flight: Option<u32>,
    /// Connections at a time per backend, over all workers, idle ones included: what it accepts. Each request takes one.
    #[key(Limit(1..=1_000_000), default = "unlimited")]
    pub max_connections: Option<u32>,
    /// Where requests wait that find every backend full.
    #[key(Part, shown_if = Self::is_limited)]
    pub queue: QueueConfig,
    /// Sends nothing for a while when most attempts fail; none without the table.
    #[key(Part)]
    pub circuit_breaker: Option<BreakerConfig>,
    /// A limit for all backends together that follows their latency; none without the table.
    #[key(Part)]
    pub adaptive_limit: Option<AdaptiveLimitConfig>,
    /// Names of `[middleware.NAME.KIND]` that requests to it go through, from the outside in, behind those of their route.
    #[key(List(Reference("a middleware")), otherwise = "none", shown_if = Self::has_middleware)]
    pub middleware: Vec<MiddlewareName>,
    /// The key under `[upstream]`.
    pub name: UpstreamName,
}

/// What is spoken to the backends of an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Word)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2; in the clear without asking first.
    Http2,
    /// By TLS what the backend takes, HTTP/2 if it does; HTTP/1.1 in the clear.
    Auto,
}

impl UpstreamConfig {
    const RULES: &[KeyRule] = &[
        KeyRule::AnyOf(&["backends", "discovery"]),
        KeyRule::Schema(without_ignored_weights),
        KeyRule::Schema(with_zones),
    ];

    /// One with the defaults.
    pub fn new(name: impl Into<UpstreamName>, backends: Vec<BackendConfig>) -> Self {
        Self { name: name.into(), backends, ..Self::of_defaults() }
    }

    /// How much is asked of its backends at a time, and what is done with the rest.
    pub fn limits(&self) -> LimitsConfig {
        let Self { queue, circuit_breaker: breaker, adaptive_limit: adaptive, .. } = *self;
        LimitsConfig { backend: self.backend_limits(), queue, breaker, adaptive }
    }

    /// Tiers, panic and zones.
    pub fn tiers(&self) -> TiersConfig {
        TiersConfig {
            overprovisioning_percent: self.overprovisioning_percent,
            panic_percent: self.panic_threshold,
            zones: self.zone_preference.clone(),
        }
    }

    /// The limits of backends without limits of their own.
    fn backend_limits(&self) -> BackendLimits {
        BackendLimits { max_in_flight: self.max_in_flight, max_connections: self.max_connections }
    }

    fn has_sources(&self) -> bool {
        !self.discovery.is_empty()
    }

    fn has_middleware(&self) -> bool {
        !self.middleware.is_empty()
    }

    /// Whether requests may have to wait: a queue without any limit is refused.
    fn is_limited(&self) -> bool {
        let has_limits = |backend: &BackendConfig| backend.limits() != BackendLimits::default();
        // Those that are found may bring limits along.
        self.adaptive_limit.is_some() || self.has_sources() || self.backends.iter().any(has_limits)
    }

    /// A health service of gRPC is asked by HTTP/2, as calls are.
    fn speaks_http2(&self) -> bool {
        self.protocol == Protocol::Http2 || (self.protocol == Protocol::Auto && self.tls.is_some())
    }

    fn check(check: &Check<'_>, place: Place, written: &WrittenUpstreamConfig, mut it: Self) -> Option<Self> {
        if written.backends.place().is_none() && !written.has_sources() {
            let problem = Problem::error("an upstream needs backends").expected("backends = [\"10.0.0.1:9001\"]");
            check.report.add_missing(place, "backends", problem);
        }
        check_services(check, place, written, &it);
        it.backends = backend::read_all(check, &written.backends, &it.strategy, it.backend_limits());
        if !written.has_sources() {
            backend::warn_of_none(check, &written.backends, &it.backends);
        }
        warn_of_unreached(check, &written.max_in_flight, it.backend_limits());
        // Without backends their limits are unknown.
        let is_limited = it.is_limited() || it.backends.is_empty() || written.has_sources();
        if let (Some(place), false) = (written.queue.place(), is_limited) {
            let problem = Problem::error("a queue that nobody ever waits in: no backend has a limit");
            check.add(place, problem.expected("max_in_flight, max_connections or an adaptive_limit too, or no queue"));
        }
        HealthCheckConfig::check_protocol(check, &written.health_check, it.speaks_http2());
        // Those with a problem may be backends as well.
        let all_are_good = written.backends.value().is_some_and(|members| members.len() == it.backends.len());
        if !written.has_sources() && all_are_good {
            // A name is as many as it has addresses.
            let has_names = it.backends.iter().any(|backend| backend.address.socket().is_none());
            let count = if has_names { usize::MAX } else { it.backends.len() };
            RetryConfig::warn_of_too_many(check, &written.retries, count);
            OutlierConfig::warn_of_no_ejections(check, &written.outlier_detection, count);
        }
        Some(it)
    }
}

/// What an upstream that others are made of needs: one source that lists services, by their name.
fn check_services(check: &Check<'_>, place: Place, written: &WrittenUpstreamConfig, it: &UpstreamConfig) {
    let Some(services) = written.services.place() else { return };
    if let Some((place, _)) = written.backends.given().filter(|(_, listed)| !listed.is_empty()) {
        let problem = Problem::error("each service would have these backends");
        check.add(place, problem.expected("the backends that discovery finds for each"));
    }
    if written.discovery.place().is_none() {
        let problem = Problem::error("nothing lists services");
        check.report.add_missing(place, "discovery", problem.expected("a table [[upstream.NAME.discovery]]"));
        return;
    }
    let mut sources = written.discovery.members().map(|(place, _)| place).zip(&it.discovery);
    let Some((place, source)) = sources.next() else { return };
    match source.names_service() {
        None => {
            let problem = Problem::error(format!("a source of kind {} lists no services", source.kind()));
            check.add(place, problem.expected(format!("one of {}", DiscoveryConfig::LISTING)));
        }
        Some(false) => {
            let problem = Problem::error("it does not ask for each service by its name");
            check.add(
                place,
                problem.expected(format!("\"{SERVICE}\" in the place of a service's name, and nothing beside it")),
            );
        }
        Some(true) => {}
    }
    if let Some((place, _)) = sources.next() {
        let first = check.report.path(services);
        let problem = Problem::error(format!("a second source beside {first}: one lists the services"));
        check.add(place, problem.expected("one source, or another upstream with services"));
    }
}

/// Under a strategy that ignores weights a backend has none but 0 and 1, which is what [`backend::read_all`] reports.
fn without_ignored_weights() -> Value {
    let strategies = StrategyConfig::WITHOUT_WEIGHTS.map(|strategy| strategy.as_str().to_owned());
    let backend = json!({ "properties": { "weight": { "not": { "type": "integer", "minimum": 2 } } } });
    json!({
        "if": { "properties": { "strategy": { "enum": strategies } } },
        "then": { "properties": { "backends": { "items": backend } } },
    })
}

/// Where a zone is preferred, some backend says in which it is, unless backends are found.
fn with_zones() -> Value {
    let is_on = json!({ "type": "object", "properties": { "enabled": { "const": true } } });
    let backend = json!({ "type": "object", "required": ["zone"] });
    json!({
        "if": {
            "required": ["zone_preference"],
            "properties": { "zone_preference": is_on },
            "not": { "required": ["discovery"] },
        },
        "then": { "properties": { "backends": { "contains": backend } } },
    })
}

impl WrittenUpstreamConfig {
    /// Whether backends are found besides, also where what says so is wrong: how many there are is then not known from the file.
    pub(crate) fn has_sources(&self) -> bool {
        self.discovery.place().is_some() && self.discovery.value().is_none_or(|sources| !sources.is_empty())
    }
}

impl NamedTable for UpstreamConfig {
    fn name(&self) -> &str {
        self.name.as_str()
    }
}

/// A number within bounds, which is kept in hundredths.
struct Factor(std::ops::RangeInclusive<f64>);

impl Factor {
    fn of(percent: u32) -> f64 {
        f64::from(percent) / 100.0
    }

    fn real(&self) -> Real {
        Real(self.0.clone())
    }
}

impl Form<u32> for Factor {
    type Written = f64;

    fn read(&self, check: &Check<'_>, place: Place, written: &f64) -> Option<u32> {
        self.real().read(check, place, written).map(|factor| (factor * 100.0).round() as u32)
    }

    fn show(&self, value: &u32) -> Option<Tree> {
        Some(Self::of(*value).into())
    }

    fn tell(&self, value: &u32) -> String {
        Self::of(*value).to_string()
    }

    fn about(&self) -> About {
        self.real().about()
    }
}
