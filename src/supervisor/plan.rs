//! What a reload changes: pure, from the old and the new configuration.
//!
//! The plan says of each part of the new configuration where it comes from, so that `apply` only does as it is told, and
//! it keeps the words for what differs, so that the log and the admin address tell the same story.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::hash::Hash;
use std::net::SocketAddr;
use std::time::Duration;

use crate::config::{
    Action, AdminConfig, BackendConfig, BackendLimits, BackendTlsConfig, Config, Forward, HealthCheckConfig,
    ListenerConfig, ListenerName, NamedFile, OutlierConfig, PathRule, PathsConfig, RetryConfig, RetryOn, RouteConfig,
    RouteName, TiersConfig, TlsConfig, UpstreamConfig, UpstreamName,
};

/// The difference between two configurations.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Found again by address: a listener whose name alone changed keeps its sockets and connections.
    pub listeners: Part<ListenerName>,
    /// Found again by name.
    pub upstreams: Part<UpstreamName>,
    /// Found again by name.
    pub routes: Part<RouteName>,
    /// Changes outside of these that take effect at once.
    pub settings: Vec<Change>,
    /// Changes that have no effect before a restart.
    pub restart: Vec<Change>,
}

/// What becomes of one kind of thing.
#[derive(Clone, Debug, PartialEq)]
pub struct Part<N> {
    /// One for each in the new configuration, in its order.
    pub next: Vec<(N, Step)>,
    /// Those of the old configuration that are gone: their names and their places in it.
    pub removed: Vec<(N, usize)>,
}

/// Where a part of the new configuration comes from. Places count in the old configuration.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// It is as it was.
    Kept {
        /// Its place.
        from: usize,
    },
    /// It was there, and differs.
    Changed {
        /// Its place.
        from: usize,
        /// In what it differs.
        changes: Vec<Change>,
    },
    /// It was not there.
    Added,
}

/// One difference, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A key has another value.
    Value {
        /// Which key.
        key: String,
        /// Its value until now.
        from: String,
        /// Its value from now on.
        to: String,
    },
    /// A list has other members.
    Members {
        /// Which key.
        key: String,
        /// Not there until now.
        added: Vec<String>,
        /// No longer there.
        removed: Vec<String>,
    },
    /// Something whose values are too long to print.
    Other(String),
}

/// Members of a list that a line of the log names; a longer list ends in a count.
const MEMBERS_SHOWN_MAX: usize = 8;

const ACCESS_LOG: &str = "access_log";

/// Works out what leads from `old` to `new`.
pub fn plan(old: &Config, new: &Config) -> Plan {
    Plan {
        listeners: listeners(old, new),
        upstreams: Part::by_key(
            old.upstreams.iter().map(|it| (it.name.clone(), &**it)),
            new.upstreams.iter().map(|it| (it.name.clone(), &**it)),
            upstream_changes,
        ),
        routes: routes(old, new),
        settings: settings(old, new),
        restart: restart(old, new),
    }
}

impl Plan {
    /// Whether the two configurations mean the same.
    pub fn is_empty(&self) -> bool {
        self.listeners.is_unchanged()
            && self.upstreams.is_unchanged()
            && self.routes.is_unchanged()
            && self.settings.is_empty()
            && self.restart.is_empty()
    }

    /// Notes that an upstream differs by what is in its files, though not in its keys. `place` counts in the new configuration.
    pub(super) fn files_differ(&mut self, place: usize) {
        if let Some((_, step)) = self.upstreams.next.get_mut(place)
            && let Step::Kept { from } = *step
        {
            *step = Step::Changed { from, changes: vec![Change::Other("files of tls".into())] };
        }
    }

    /// Whether the access log is to be opened anew.
    pub(super) fn access_log_changes(&self) -> bool {
        self.settings.iter().any(|change| change.key() == ACCESS_LOG)
    }
}

impl<N> Part<N> {
    /// Whether all are kept.
    pub fn is_unchanged(&self) -> bool {
        self.removed.is_empty() && self.next.iter().all(|(_, step)| matches!(step, Step::Kept { .. }))
    }

    /// Names of those that are as they were.
    pub fn kept(&self) -> impl Iterator<Item = &N> {
        self.next.iter().filter(|(_, step)| matches!(step, Step::Kept { .. })).map(|(name, _)| name)
    }

    /// Names of those that differ, with what differs.
    pub fn changed(&self) -> impl Iterator<Item = (&N, &[Change])> {
        self.next.iter().filter_map(|(name, step)| match step {
            Step::Changed { changes, .. } => Some((name, changes.as_slice())),
            Step::Kept { .. } | Step::Added => None,
        })
    }

    /// Names of those that were not there.
    pub fn added(&self) -> impl Iterator<Item = &N> {
        self.next.iter().filter(|(_, step)| matches!(step, Step::Added)).map(|(name, _)| name)
    }

    fn by_key<'a, T: 'a + PartialEq>(
        old: impl Iterator<Item = (N, &'a T)>,
        new: impl Iterator<Item = (N, &'a T)>,
        changes: impl Fn(&T, &T) -> Vec<Change>,
    ) -> Self
    where
        N: Clone + Eq + Hash,
    {
        let mut known: HashMap<N, (usize, &T)> =
            old.enumerate().map(|(place, (name, it))| (name, (place, it))).collect();
        let next = new
            .map(|(name, it)| {
                let step = known.remove(&name).map_or(Step::Added, |(from, was)| step(from, was, it, &changes));
                (name, step)
            })
            .collect();
        let mut removed: Vec<_> = known.into_iter().map(|(name, (place, _))| (name, place)).collect();
        removed.sort_unstable_by_key(|&(_, place)| place);
        Self { next, removed }
    }
}

fn step<T: PartialEq>(from: usize, was: &T, is: &T, changes: impl Fn(&T, &T) -> Vec<Change>) -> Step {
    if was == is {
        return Step::Kept { from };
    }
    let mut changes = changes(was, is);
    if changes.is_empty() {
        // A key that nobody has found words for yet must still be applied.
        changes.push(Change::Other("other keys".into()));
    }
    Step::Changed { from, changes }
}

/// Addresses are unique but for port 0, which may be there more than once; among those the name tells which is which.
fn listeners(old: &Config, new: &Config) -> Part<ListenerName> {
    let mut left: HashMap<SocketAddr, Vec<usize>> = HashMap::new();
    for (place, listener) in old.listeners.iter().enumerate() {
        left.entry(listener.address).or_default().push(place);
    }
    let mut take = |listener: &ListenerConfig, same_name: bool| {
        let places = left.get_mut(&listener.address)?;
        let found = places.iter().position(|&place| !same_name || old.listeners[place].name == listener.name)?;
        Some(places.remove(found))
    };
    // Two rounds: a listener that kept its name must not lose its sockets to one that merely shares its address.
    let by_name: Vec<_> = new.listeners.iter().map(|listener| take(listener, true)).collect();
    let next = new.listeners.iter().zip(by_name).map(|(listener, found)| {
        let step = found
            .or_else(|| take(listener, false))
            .map_or(Step::Added, |from| step(from, &*old.listeners[from], &**listener, listener_changes));
        (listener.name.clone(), step)
    });
    let next = next.collect();
    let mut removed: Vec<_> =
        left.into_values().flatten().map(|place| (old.listeners[place].name.clone(), place)).collect();
    removed.sort_unstable_by_key(|&(_, place)| place);
    Part { next, removed }
}

/// The order of routes decides between patterns, so a route that moved among the others is a difference too.
fn routes(old: &Config, new: &Config) -> Part<RouteName> {
    let mut part = Part::by_key(
        old.routes.iter().map(|it| (it.name.clone(), &**it)),
        new.routes.iter().map(|it| (it.name.clone(), &**it)),
        route_changes,
    );
    let mut last = 0;
    for (_, step) in &mut part.next {
        match step {
            Step::Kept { from } if *from < last => {
                *step = Step::Changed { from: *from, changes: vec![Change::Other("order".into())] };
            }
            Step::Kept { from } | Step::Changed { from, .. } => last = last.max(*from),
            Step::Added => {}
        }
    }
    part
}

fn settings(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Changes::default();
    changes.time("shutdown_grace", old.shutdown_grace, new.shutdown_grace);
    changes.time("drain_limit", old.drain_limit, new.drain_limit);
    let zone = |config: &Config| config.zone.as_deref().unwrap_or("none").to_owned();
    changes.value("zone", &zone(old), &zone(new));
    if let (Some(old), Some(new)) = (&old.admin, &new.admin) {
        changes.other("admin.token", &old.token, &new.token);
    }
    changes.value("log.level", &old.log.level, &new.log.level);
    changes.switched(ACCESS_LOG, &old.access_log, &new.access_log);
    changes.other("overload", &old.overload, &new.overload);
    changes.0
}

fn restart(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Changes::default();
    let workers = |config: &Config| config.workers.map_or_else(|| "one per core".into(), |count| count.to_string());
    let admin = |config: &Config| config.admin.as_ref().map_or_else(|| "off".into(), |admin| admin.address.to_string());
    let socket = |config: &Config| match config.admin.as_ref().and_then(|admin| admin.unix_socket.as_ref()) {
        Some(path) => path.display().to_string(),
        None => "none".into(),
    };
    changes.value("workers", &workers(old), &workers(new));
    changes.value("admin", &admin(old), &admin(new));
    changes.value("admin.unix_socket", &socket(old), &socket(new));
    changes.debug("log.format", &old.log.format, &new.log.format);
    changes.0
}

/// Puts in place of the values that need a restart those that the process runs with, so that what is shown is what is
/// so, and so that the next reload warns of them again.
pub(super) fn keep_what_needs_a_restart(old: &Config, new: &mut Config) {
    new.workers = old.workers;
    // The token is looked at with each request, so a new one holds at once. An address that the file has switched off is
    // still served until the restart, and keeps its token.
    let token = new.admin.take().map(|admin| admin.token);
    new.admin = old.admin.clone().map(|admin| match token {
        Some(token) => AdminConfig { token, ..admin },
        None => admin,
    });
    new.log.format = old.log.format;
}

type RuleOf = fn(&PathsConfig) -> PathRule;

/// The rules for paths, by their keys.
const PATHS: [(&str, RuleOf); 4] = [
    ("paths.dot_segments", |paths| paths.dot_segments),
    ("paths.encoded_slashes", |paths| paths.encoded_slashes),
    ("paths.duplicate_slashes", |paths| paths.duplicate_slashes),
    ("paths.backslashes", |paths| paths.backslashes),
];

fn listener_changes(old: &ListenerConfig, new: &ListenerConfig) -> Vec<Change> {
    let mut changes = Changes::default();
    changes.value("name", &old.name, &new.name);
    changes.value("backlog (of the next start)", &old.backlog, &new.backlog);
    changes.value("max_connections", &old.max_connections, &new.max_connections);
    let (before, after) = (limit(old.max_connections_per_address), limit(new.max_connections_per_address));
    changes.value("max_connections_per_address", &before, &after);
    changes.value("max_header_bytes", &old.max_header_bytes, &new.max_header_bytes);
    changes.value("max_headers", &old.max_headers, &new.max_headers);
    let bytes = |limit: Option<u64>| limit.map_or_else(|| "any".into(), |limit| limit.to_string());
    changes.value("max_body_bytes", &bytes(old.max_body_bytes), &bytes(new.max_body_bytes));
    changes.time("header_timeout", old.header_timeout, new.header_timeout);
    changes.time("idle_timeout", old.idle_timeout, new.idle_timeout);
    changes.value("min_bytes_per_second", &old.min_bytes_per_second, &new.min_bytes_per_second);
    changes.members("trusted_proxies", &old.trusted_proxies, &new.trusted_proxies);
    changes.value("forwarded", &old.forwarded, &new.forwarded);
    changes.value("via", &old.via, &new.via);
    match (&old.http2, &new.http2) {
        (None, Some(_)) => changes.push_value("http2", "off", "on"),
        (Some(_), None) => changes.push_value("http2", "on", "off"),
        (Some(was), Some(is)) => {
            changes.value("http2.max_concurrent_streams", &was.max_concurrent_streams, &is.max_concurrent_streams);
            changes.value("http2.stream_window", &was.stream_window, &is.stream_window);
            changes.value("http2.connection_window", &was.connection_window, &is.connection_window);
            changes.value("http2.resets_per_second", &was.resets_per_second, &is.resets_per_second);
            let (before, after) = (&was.control_frames_per_second, &is.control_frames_per_second);
            changes.value("http2.control_frames_per_second", before, after);
        }
        (None, None) => {}
    }
    for (key, of) in PATHS {
        changes.value(key, of(&old.paths).as_str(), of(&new.paths).as_str());
    }
    changes.switched("redirect_to_https", &old.redirect_to_https, &new.redirect_to_https);
    match (&old.tls, &new.tls) {
        (None, Some(_)) => changes.push_value("tls", "off", "on"),
        (Some(_), None) => changes.push_value("tls", "on", "off"),
        (Some(was), Some(is)) => tls_changes(&mut changes, was, is),
        (None, None) => {}
    }
    changes.0
}

/// As `lb.toml` writes it.
fn limit(limit: Option<u32>) -> String {
    limit.map_or_else(|| "unlimited".into(), |limit| limit.to_string())
}

fn tls_changes(changes: &mut Changes, old: &TlsConfig, new: &TlsConfig) {
    let files = |tls: &TlsConfig| {
        tls.certificates.iter().map(|it| it.certificate.path.display().to_string()).collect::<Vec<_>>()
    };
    changes.members("tls.certificates", &files(old), &files(new));
    if files(old) == files(new) {
        changes.other("tls.certificates", &old.certificates, &new.certificates);
    }
    changes.debug("tls.unknown_names", &old.unknown_names, &new.unknown_names);
    changes.debug("tls.misdirected", &old.misdirected, &new.misdirected);
    changes.debug("tls.profile", &old.profile, &new.profile);
    changes.time("tls.handshake_timeout", old.handshake_timeout, new.handshake_timeout);
    changes.value("tls.max_handshakes", &old.max_handshakes, &new.max_handshakes);
    let of = |tls: &TlsConfig| limit(tls.handshakes_per_second_per_address);
    changes.value("tls.handshakes_per_second_per_address", &of(old), &of(new));
    changes.switched("tls.hsts", &old.hsts, &new.hsts);
    changes.switched("tls.client_certificates", &old.client_certificates, &new.client_certificates);
}

fn upstream_changes(old: &UpstreamConfig, new: &UpstreamConfig) -> Vec<Change> {
    let mut changes = Changes::default();
    changes.value("strategy", old.strategy.as_str(), new.strategy.as_str());
    let addresses = |backends: &[BackendConfig]| backends.iter().map(|it| it.address.clone()).collect::<Vec<_>>();
    changes.members("backends", &addresses(&old.backends), &addresses(&new.backends));
    let known: HashMap<_, _> = old.backends.iter().map(|it| (&it.address, it)).collect();
    for backend in &new.backends {
        if let Some(was) = known.get(&backend.address) {
            changes.value(&format!("weight of {}", backend.address), &was.weight, &backend.weight);
            changes.value(&format!("tier of {}", backend.address), &was.place.tier, &backend.place.tier);
            let zone = |it: &BackendConfig| it.place.zone.as_deref().unwrap_or("none").to_owned();
            changes.value(&format!("zone of {}", backend.address), &zone(was), &zone(backend));
        }
    }
    changes.time("connect_timeout", old.connect_timeout, new.connect_timeout);
    retry_changes(&mut changes, &old.retries, &new.retries);
    changes.value("retry_budget.percent", &old.retry_budget.percent, &new.retry_budget.percent);
    changes.value("retry_budget.per_second", &old.retry_budget.per_second, &new.retry_budget.per_second);
    changes.value("pool.max_idle", &old.pool.max_idle, &new.pool.max_idle);
    changes.time("pool.idle_timeout", old.pool.idle_timeout, new.pool.idle_timeout);
    changes.value("protocol", old.protocol.as_str(), new.protocol.as_str());
    backend_tls_changes(&mut changes, old.tls.as_deref(), new.tls.as_deref());
    match (&old.health_check, &new.health_check) {
        (None, Some(_)) => changes.push_value("health_check", "off", "on"),
        (Some(_), None) => changes.push_value("health_check", "on", "off"),
        (Some(was), Some(is)) => health_check_changes(&mut changes, was, is),
        (None, None) => {}
    }
    limits_changes(&mut changes, old, new);
    picking_changes(&mut changes, old, new);
    changes.0
}

fn backend_tls_changes(changes: &mut Changes, old: Option<&BackendTlsConfig>, new: Option<&BackendTlsConfig>) {
    let (was, is) = match (old, new) {
        (None, None) => return,
        (None, Some(_)) => return changes.push_value("tls", "off", "on"),
        (Some(_), None) => return changes.push_value("tls", "on", "off"),
        (Some(was), Some(is)) => (was, is),
    };
    let path = |file: Option<&NamedFile>| file.map_or_else(|| "none".into(), |file| file.path.display().to_string());
    let ca = |tls: &BackendTlsConfig| tls.ca.as_ref().map_or_else(|| "the system's".into(), |file| path(Some(file)));
    changes.value("tls.ca", &ca(was), &ca(is));
    let name = |tls: &BackendTlsConfig| tls.server_name.as_deref().unwrap_or("the host").to_owned();
    changes.value("tls.server_name", &name(was), &name(is));
    let shown = |tls: &BackendTlsConfig| {
        let shown = tls.client_certificate.as_ref();
        (path(shown.map(|shown| &shown.certificate)), path(shown.map(|shown| &shown.key)))
    };
    let ((certificate, key), (new_certificate, new_key)) = (shown(was), shown(is));
    changes.value("tls.client_certificate.certificate", &certificate, &new_certificate);
    changes.value("tls.client_certificate.key", &key, &new_key);
    changes.value("tls.insecure_skip_verify", &was.insecure_skip_verify, &is.insecure_skip_verify);
}

fn retry_changes(changes: &mut Changes, old: &RetryConfig, new: &RetryConfig) {
    changes.value("retries.max", &old.max, &new.max);
    let conditions = |on: &RetryOn| {
        let words = [(on.connect_failure, "connect_failure"), (on.reset, "reset"), (on.timeout, "timeout")];
        let words = words.into_iter().filter(|(on, _)| *on).map(|(_, word)| word.to_owned());
        words.chain(on.statuses.iter().map(|status| status.as_str().to_owned())).collect::<Vec<_>>()
    };
    changes.members("retries.on", &conditions(&old.on), &conditions(&new.on));
    changes.members("retries.grpc_statuses", &old.grpc_statuses, &new.grpc_statuses);
    let timeout = |timeout: Option<Duration>| timeout.map_or_else(|| "none".into(), |timeout| format!("{timeout:?}"));
    changes.value("retries.attempt_timeout", &timeout(old.attempt_timeout), &timeout(new.attempt_timeout));
    changes.time("retries.backoff.base", old.backoff_base, new.backoff_base);
    changes.time("retries.backoff.max", old.backoff_max, new.backoff_max);
    changes.time("retries.backoff.retry_after_max", old.retry_after_max, new.retry_after_max);
    changes.value("retries.body_buffer", &old.body_buffer, &new.body_buffer);
    changes.value("retries.response_buffer", &old.response_buffer, &new.response_buffer);
    match (&old.hedge, &new.hedge) {
        (None, Some(_)) => changes.push_value("retries.hedge", "off", "on"),
        (Some(_), None) => changes.push_value("retries.hedge", "on", "off"),
        (was, is) => changes.other("retries.hedge", was, is),
    }
}

fn limits_changes(changes: &mut Changes, old: &UpstreamConfig, new: &UpstreamConfig) {
    let mut backend = |of: &str, was: &BackendLimits, is: &BackendLimits| {
        changes.value(&format!("max_in_flight{of}"), &limit(was.max_in_flight), &limit(is.max_in_flight));
        changes.value(&format!("max_connections{of}"), &limit(was.max_connections), &limit(is.max_connections));
    };
    let (was, is) = (&old.limits, &new.limits);
    backend("", &was.backend, &is.backend);
    let known: HashMap<_, _> = old.backends.iter().map(|it| (&it.address, it.limits)).collect();
    for it in &new.backends {
        // That it follows the upstream was told already.
        let follows = |limits: BackendLimits, upstream: &BackendLimits| limits == *upstream;
        if let Some(&before) = known.get(&it.address)
            && !(follows(before, &was.backend) && follows(it.limits, &is.backend))
        {
            backend(&format!(" of {}", it.address), &before, &it.limits);
        }
    }
    changes.value("queue.length", &was.queue.length, &is.queue.length);
    changes.time("queue.timeout", was.queue.timeout, is.queue.timeout);
    changes.other("queue.order", &was.queue.order, &is.queue.order);
    changes.switched("circuit_breaker", &was.breaker, &is.breaker);
    changes.switched("adaptive_limit", &was.adaptive, &is.adaptive);
}

fn picking_changes(changes: &mut Changes, old: &UpstreamConfig, new: &UpstreamConfig) {
    changes.value("panic_threshold", &old.tiers.panic_percent, &new.tiers.panic_percent);
    let factor = |tiers: &TiersConfig| f64::from(tiers.overprovisioning_percent) / 100.0;
    changes.value("overprovisioning", &factor(&old.tiers), &factor(&new.tiers));
    match (&old.tiers.zones, &new.tiers.zones) {
        (None, Some(_)) => changes.push_value("zone_preference", "off", "on"),
        (Some(_), None) => changes.push_value("zone_preference", "on", "off"),
        (was, is) => changes.other("zone_preference", was, is),
    }
    match (&old.slow_start, &new.slow_start) {
        (None, Some(_)) => changes.push_value("slow_start", "off", "on"),
        (Some(_), None) => changes.push_value("slow_start", "on", "off"),
        (Some(was), Some(is)) => {
            changes.time("slow_start.window", was.window, is.window);
            changes.value("slow_start.aggression", &was.aggression, &is.aggression);
            changes.value("slow_start.minimum_percent", &percent(was.minimum), &percent(is.minimum));
        }
        (None, None) => {}
    }
    match (&old.outlier_detection, &new.outlier_detection) {
        (None, Some(_)) => changes.push_value("outlier_detection", "off", "on"),
        (Some(_), None) => changes.push_value("outlier_detection", "on", "off"),
        (Some(was), Some(is)) => outlier_changes(changes, was, is),
        (None, None) => {}
    }
}

fn outlier_changes(changes: &mut Changes, old: &OutlierConfig, new: &OutlierConfig) {
    let key = |key: &str| format!("outlier_detection.{key}");
    changes.value(&key("consecutive_gateway_errors"), &old.consecutive_gateway, &new.consecutive_gateway);
    changes.value(&key("consecutive_local_errors"), &old.consecutive_local, &new.consecutive_local);
    changes.value(&key("count_server_errors"), &old.count_server_errors, &new.count_server_errors);
    changes.time(&key("interval"), old.interval, new.interval);
    changes.time(&key("window"), old.window, new.window);
    changes.value(&key("failure_percent"), &percent(old.failure_rate), &percent(new.failure_rate));
    changes.value(&key("failure_volume"), &old.failure_volume, &new.failure_volume);
    changes.value(&key("success_deviations"), &old.success_deviations, &new.success_deviations);
    changes.value(&key("success_gap_percent"), &percent(old.success_gap), &percent(new.success_gap));
    changes.value(&key("success_volume"), &old.success_volume, &new.success_volume);
    changes.value(&key("success_intervals"), &old.success_intervals, &new.success_intervals);
    changes.value(&key("latency_deviations"), &old.latency_deviations, &new.latency_deviations);
    changes.value(&key("latency_ratio"), &old.latency_ratio, &new.latency_ratio);
    changes.time(&key("latency_excess"), old.latency_excess, new.latency_excess);
    changes.value(&key("latency_volume"), &old.latency_volume, &new.latency_volume);
    changes.value(&key("latency_intervals"), &old.latency_intervals, &new.latency_intervals);
    changes.value(&key("backends_min"), &old.hosts, &new.hosts);
    changes.time(&key("ejection_time"), old.base, new.base);
    changes.time(&key("ejection_time_max"), old.longest, new.longest);
    changes.value(&key("jitter_percent"), &percent(old.jitter), &percent(new.jitter));
    changes.time(&key("forgive_after"), old.forgive, new.forgive);
    changes.value(&key("max_ejected_percent"), &old.max_ejected_percent, &new.max_ejected_percent);
}

fn percent(part: f64) -> u32 {
    (part * 100.0).round() as u32
}

fn health_check_changes(changes: &mut Changes, old: &HealthCheckConfig, new: &HealthCheckConfig) {
    // What it asks may hold credentials.
    changes.other("health_check.request", &old.probe, &new.probe);
    let port = |port: Option<u16>| port.map_or_else(|| "the backend's".into(), |port| port.to_string());
    changes.value("health_check.port", &port(old.port), &port(new.port));
    changes.time("health_check.interval", old.interval, new.interval);
    changes.time("health_check.interval_in_doubt", old.interval_in_doubt, new.interval_in_doubt);
    changes.value("health_check.jitter_percent", &old.jitter_percent, &new.jitter_percent);
    changes.time("health_check.timeout", old.timeout, new.timeout);
    changes.value("health_check.unhealthy_after", &old.unhealthy_after, &new.unhealthy_after);
    changes.value("health_check.healthy_after", &old.healthy_after, &new.healthy_after);
    changes.value("health_check.initial", old.initial.as_str(), new.initial.as_str());
}

fn route_changes(old: &RouteConfig, new: &RouteConfig) -> Vec<Change> {
    let mut changes = Changes::default();
    changes.members("listeners", &old.listeners, &new.listeners);
    changes.other("hosts", &old.hosts, &new.hosts);
    changes.other("path", &old.path, &new.path);
    changes.members("methods", &old.methods, &new.methods);
    changes.other("headers", &old.headers, &new.headers);
    changes.other("query", &old.query, &new.query);
    match (&old.action, &new.action) {
        (Action::Forward(was), Action::Forward(is)) => forward_changes(&mut changes, was, is),
        (was, is) => changes.other("action", was, is),
    }
    changes.other("request_headers", &old.request_headers, &new.request_headers);
    changes.other("response_headers", &old.response_headers, &new.response_headers);
    changes.0
}

fn forward_changes(changes: &mut Changes, old: &Forward, new: &Forward) {
    changes.value("upstream", &old.upstream, &new.upstream);
    changes.other("path rewrite", &old.path, &new.path);
    changes.other("host", &old.host, &new.host);
    changes.other("timeouts", &old.timeouts, &new.timeouts);
    retry_changes(changes, &old.retries, &new.retries);
}

/// Collects differences, key by key.
#[derive(Default)]
struct Changes(Vec<Change>);

impl Changes {
    fn push_value(&mut self, key: &str, from: &str, to: &str) {
        self.0.push(Change::Value { key: key.into(), from: from.into(), to: to.into() });
    }

    fn value<T: PartialEq + Display + ?Sized>(&mut self, key: &str, old: &T, new: &T) {
        if old != new {
            self.push_value(key, &old.to_string(), &new.to_string());
        }
    }

    fn debug<T: PartialEq + fmt::Debug>(&mut self, key: &str, old: &T, new: &T) {
        if old != new {
            self.push_value(key, &format!("{old:?}").to_lowercase(), &format!("{new:?}").to_lowercase());
        }
    }

    /// A duration's `Debug` is how `lb.toml` writes it: `5s`, `1.5s`, `200ms`.
    fn time(&mut self, key: &str, old: Duration, new: Duration) {
        self.debug(key, &old, &new);
    }

    fn other<T: PartialEq>(&mut self, key: &str, old: &T, new: &T) {
        if old != new {
            self.0.push(Change::Other(key.into()));
        }
    }

    /// A table that may be off.
    fn switched<T: PartialEq>(&mut self, key: &str, old: &Option<T>, new: &Option<T>) {
        match (old, new) {
            (None, Some(_)) => self.push_value(key, "off", "on"),
            (Some(_), None) => self.push_value(key, "on", "off"),
            (was, is) => self.other(key, was, is),
        }
    }

    /// The same members in another order are a difference as well: strategies number backends by it.
    fn members<T: PartialEq + Eq + Hash + Display>(&mut self, key: &str, old: &[T], new: &[T]) {
        if old == new {
            return;
        }
        let without = |these: &[T], those: &[T]| {
            let those: std::collections::HashSet<_> = those.iter().collect();
            these.iter().filter(|it| !those.contains(it)).map(T::to_string).collect::<Vec<_>>()
        };
        let (added, removed) = (without(new, old), without(old, new));
        if added.is_empty() && removed.is_empty() {
            self.0.push(Change::Other(format!("order of {key}")));
        } else {
            self.0.push(Change::Members { key: key.into(), added, removed });
        }
    }
}

impl Change {
    /// What differs.
    pub fn key(&self) -> &str {
        match self {
            Self::Value { key, .. } | Self::Members { key, .. } | Self::Other(key) => key,
        }
    }
}

impl Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value { key, from, to } => write!(f, "{key} {from} -> {to}"),
            Self::Members { key, added, removed } => {
                f.write_str(key)?;
                write_members(f, '+', added)?;
                write_members(f, '-', removed)
            }
            Self::Other(key) => f.write_str(key),
        }
    }
}

fn write_members(f: &mut fmt::Formatter<'_>, sign: char, members: &[String]) -> fmt::Result {
    for member in members.iter().take(MEMBERS_SHOWN_MAX) {
        write!(f, " {sign}{member}")?;
    }
    match members.len().saturating_sub(MEMBERS_SHOWN_MAX) {
        0 => Ok(()),
        more => write!(f, " ({sign}{more} more)"),
    }
}

/// Prints changes with commas between them.
#[derive(Debug)]
pub struct Listed<'a>(pub &'a [Change]);

impl Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, change) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            change.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        AccessLogConfig, AccessLogFormat, AccessLogOutput, Address, HeaderEdits, InitialHealth, LimitsConfig,
        LogConfig, LogFormat, OverloadConfig, PathPattern, PathRewrite, Place, PoolConfig, Probe, RetryBudgetConfig,
        SlowStartConfig, StrategyConfig, Tier, Timeouts, ZonesConfig,
    };
    use std::sync::Arc;

    const S: Duration = Duration::from_secs(1);

    fn config() -> Config {
        Config {
            workers: None,
            shutdown_grace: 10 * S,
            drain_limit: 30 * S,
            admin: Some(AdminConfig { address: ([127, 0, 0, 1], 9900).into(), token: None, unix_socket: None }),
            zone: None,
            log: LogConfig { level: "info".into(), format: LogFormat::Text },
            access_log: None,
            overload: OverloadConfig::default(),
            tells_identity: false,
            listeners: vec![Arc::new(listener("web", 8080)), Arc::new(listener("api", 8081))],
            routes: ["a", "b", "c"].map(|name| Arc::new(route(name))).into(),
            upstreams: ["u", "v"].map(|name| Arc::new(upstream(name))).into(),
        }
    }

    fn listener(name: &str, port: u16) -> ListenerConfig {
        ListenerConfig {
            name: name.into(),
            address: ([127, 0, 0, 1], port).into(),
            backlog: 4096,
            max_connections: 100,
            max_connections_per_address: None,
            max_header_bytes: 1,
            max_headers: 1,
            max_body_bytes: None,
            header_timeout: S,
            idle_timeout: S,
            min_bytes_per_second: 240,
            trusted_proxies: vec![],
            forwarded: false,
            via: false,
            paths: PathsConfig::default(),
            redirect_to_https: None,
            tls: None,
            http2: Some(crate::config::Http2Config::default()),
        }
    }

    fn route(name: &str) -> RouteConfig {
        RouteConfig {
            name: name.into(),
            listeners: vec![],
            hosts: vec![],
            path: PathPattern::Prefix(format!("/{name}")),
            methods: vec![],
            headers: vec![],
            query: vec![],
            action: Action::Forward(Forward {
                upstream: "u".into(),
                path: PathRewrite::Keep,
                host: None,
                timeouts: Timeouts {
                    response_head: S,
                    body_idle: S,
                    exchange: None,
                    tunnel_idle: S,
                    grpc_idle: None,
                    grpc_timeout_max: None,
                },
                retries: Arc::default(),
            }),
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
        }
    }

    fn backend(last: u8, weight: u16) -> BackendConfig {
        BackendConfig {
            address: Address::Ip(([10, 0, 0, last], 9001).into()),
            weight,
            place: Place::default(),
            limits: BackendLimits::default(),
        }
    }

    fn upstream(name: &str) -> UpstreamConfig {
        UpstreamConfig {
            name: name.into(),
            strategy: StrategyConfig::RoundRobin,
            backends: vec![backend(1, 1), backend(2, 1)],
            connect_timeout: 3 * S,
            retries: Arc::new(RetryConfig { max: 1, ..RetryConfig::default() }),
            retry_budget: RetryBudgetConfig::default(),
            pool: PoolConfig { max_idle: 64, idle_timeout: 60 * S },
            protocol: crate::config::Protocol::Http1,
            tls: None,
            health_check: None,
            limits: LimitsConfig::default(),
            outlier_detection: None,
            slow_start: None,
            tiers: TiersConfig::default(),
        }
    }

    fn edit<T: Clone>(shared: &mut Arc<T>, edit: impl FnOnce(&mut T)) {
        edit(Arc::make_mut(shared));
    }

    /// A line for each thing that is not kept.
    fn told(plan: &Plan) -> Vec<String> {
        fn part<N: Display>(kind: &str, part: &Part<N>, lines: &mut Vec<String>) {
            for (name, step) in &part.next {
                match step {
                    Step::Kept { .. } => {}
                    Step::Changed { from, changes } => lines.push(format!("{kind} {name}<{from}: {}", Listed(changes))),
                    Step::Added => lines.push(format!("{kind} +{name}")),
                }
            }
            lines.extend(part.removed.iter().map(|(name, from)| format!("{kind} -{name}<{from}")));
        }
        let mut lines = vec![];
        part("listener", &plan.listeners, &mut lines);
        part("route", &plan.routes, &mut lines);
        part("upstream", &plan.upstreams, &mut lines);
        lines.extend(plan.settings.iter().map(|it| format!("setting {it}")));
        lines.extend(plan.restart.iter().map(|it| format!("restart {it}")));
        lines
    }

    type Edit = fn(&mut Config);

    fn check(cases: &[(&str, Edit, &[&str])]) {
        for (case, edit, expected) in cases {
            let old = config();
            let mut new = config();
            edit(&mut new);
            let plan = plan(&old, &new);
            assert_eq!(told(&plan), *expected, "{case}");
            assert_eq!(plan.is_empty(), expected.is_empty(), "{case}");
        }
    }

    #[test]
    fn listeners_are_found_again_by_address() {
        check(&[
            ("nothing", |_| {}, &[]),
            (
                "a limit",
                |it| edit(&mut it.listeners[1], |it| it.max_connections = 5),
                &["listener api<1: max_connections 100 -> 5"],
            ),
            (
                "the name alone",
                |it| edit(&mut it.listeners[0], |it| it.name = "front".into()),
                &["listener front<0: name web -> front"],
            ),
            (
                "the address",
                |it| edit(&mut it.listeners[0], |it| it.address.set_port(9090)),
                &["listener +web", "listener -web<0"],
            ),
            (
                "names swapped",
                |it| {
                    edit(&mut it.listeners[0], |it| it.name = "api".into());
                    edit(&mut it.listeners[1], |it| it.name = "web".into());
                },
                &["listener api<0: name web -> api", "listener web<1: name api -> web"],
            ),
            ("the order", |it| it.listeners.reverse(), &[]),
            ("one more", |it| it.listeners.insert(0, Arc::new(listener("new", 1))), &["listener +new"]),
            ("one less", |it| drop(it.listeners.remove(0)), &["listener -web<0"]),
            (
                "a key without effect",
                |it| edit(&mut it.listeners[0], |it| it.backlog = 1),
                &["listener web<0: backlog (of the next start) 4096 -> 1"],
            ),
            (
                "several keys",
                |it| {
                    edit(&mut it.listeners[0], |it| {
                        it.max_body_bytes = Some(10);
                        it.idle_timeout = Duration::from_millis(1500);
                        it.min_bytes_per_second = 0;
                        it.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
                        it.via = true;
                        it.max_connections_per_address = Some(50);
                        it.paths.encoded_slashes = PathRule::Keep;
                    })
                },
                &[
                    "listener web<0: max_connections_per_address unlimited -> 50, max_body_bytes any -> 10, idle_timeout 1s -> 1.5s, min_bytes_per_second 240 -> 0, trusted_proxies +10.0.0.0/8, \
                   via false -> true, paths.encoded_slashes refuse -> keep",
                ],
            ),
        ]);
    }

    #[test]
    fn listeners_on_port_0_are_told_apart_by_name() {
        let any = |names: &[&str]| {
            let listeners = names.iter().map(|name| Arc::new(listener(name, 0))).collect();
            Config { listeners, ..config() }
        };
        for (old, new, expected) in [
            (&["x", "y"][..], &["y", "x"][..], &[][..]),
            (&["x", "y"], &["y"], &["listener -x<0"]),
            (&["x", "y"], &["z", "y"], &["listener z<0: name x -> z"]),
            (&["x"], &["z", "x"], &["listener +z"]),
        ] {
            assert_eq!(told(&plan(&any(old), &any(new))), expected, "{old:?} to {new:?}");
        }
    }

    #[test]
    fn upstreams_are_found_again_by_name() {
        check(&[
            (
                "all at once",
                |it| {
                    edit(&mut it.upstreams[0], |it| {
                        it.strategy = StrategyConfig::LeastConnections;
                        it.backends = vec![backend(2, 3), backend(3, 1)];
                    })
                },
                &["upstream u<0: strategy round_robin -> least_connections, backends +10.0.0.3:9001 -10.0.0.1:9001, \
                   weight of 10.0.0.2:9001 1 -> 3"],
            ),
            (
                "the order of its backends",
                |it| edit(&mut it.upstreams[1], |it| it.backends.reverse()),
                &["upstream v<1: order of backends"],
            ),
            (
                "numbers",
                |it| {
                    edit(&mut it.upstreams[1], |it| {
                        it.connect_timeout = S;
                        edit(&mut it.retries, |it| it.max = 0);
                        it.retry_budget.percent = 10;
                        it.pool = PoolConfig { max_idle: 1, idle_timeout: S };
                    })
                },
                &[
                    "upstream v<1: connect_timeout 3s -> 1s, retries.max 1 -> 0, retry_budget.percent 20 -> 10, pool.max_idle 64 -> 1, \
                   pool.idle_timeout 60s -> 1s",
                ],
            ),
            (
                "tls that begins",
                |it| {
                    edit(&mut it.upstreams[0], |it| {
                        it.tls = Some(Arc::new(BackendTlsConfig {
                            ca: None,
                            server_name: None,
                            client_certificate: None,
                            insecure_skip_verify: true,
                            spot: crate::config::Spot::default(),
                        }));
                    })
                },
                &["upstream u<0: tls off -> on"],
            ),
            (
                "checks that begin",
                |it| edit(&mut it.upstreams[0], |it| it.health_check = Some(Arc::new(health_check()))),
                &["upstream u<0: health_check off -> on"],
            ),
            (
                "another name",
                |it| edit(&mut it.upstreams[0], |it| it.name = "t".into()),
                &["upstream +t", "upstream -u<0"],
            ),
            ("a place further back", |it| it.upstreams.insert(0, Arc::new(upstream("a"))), &["upstream +a"]),
            ("all gone", |it| it.upstreams.clear(), &["upstream -u<0", "upstream -v<1"]),
            (
                "many backends",
                |it| {
                    edit(&mut it.upstreams[0], |it| {
                        it.backends.extend((3..=13).map(|last| backend(last, 1)));
                    })
                },
                &["upstream u<0: backends +10.0.0.3:9001 +10.0.0.4:9001 +10.0.0.5:9001 +10.0.0.6:9001 +10.0.0.7:9001 \
                   +10.0.0.8:9001 +10.0.0.9:9001 +10.0.0.10:9001 (+3 more)"],
            ),
        ]);
    }

    #[test]
    fn what_differs_in_who_is_picked_is_told_key_by_key() {
        let told = |edit: &dyn Fn(&mut UpstreamConfig)| {
            let mut old = upstream("u");
            old.outlier_detection = Some(OutlierConfig::default());
            old.slow_start = Some(SlowStartConfig::default());
            let mut new = old.clone();
            edit(&mut new);
            let told = Listed(&upstream_changes(&old, &new)).to_string();
            // Nothing that differs may go without words: it would not be applied as a change of that.
            assert_eq!(told.is_empty(), old == new);
            told
        };
        assert_eq!(told(&|_| {}), "");
        assert_eq!(told(&|it| it.outlier_detection = None), "outlier_detection on -> off");
        assert_eq!(told(&|it| it.slow_start = None), "slow_start on -> off");
        let zones = |it: &mut UpstreamConfig| it.tiers.zones = Some(ZonesConfig::new("a"));
        assert_eq!(told(&zones), "zone_preference off -> on");
        let tiers = |it: &mut UpstreamConfig| {
            it.tiers = TiersConfig { overprovisioning_percent: 200, panic_percent: 0, zones: None };
            it.backends[1].place = Place { tier: Tier::Backup, zone: Some("b".into()) };
        };
        let words = "tier of 10.0.0.2:9001 0 -> backup, zone of 10.0.0.2:9001 none -> b, panic_threshold 50 -> 0, \
                     overprovisioning 1.4 -> 2";
        assert_eq!(told(&tiers), words);
        let slow = SlowStartConfig { window: S, aggression: 2.5, minimum: 0.2 };
        let words = "slow_start.window 30s -> 1s, slow_start.aggression 1 -> 2.5, slow_start.minimum_percent 10 -> 20";
        assert_eq!(told(&|it| it.slow_start = Some(slow.clone())), words);
        let other = OutlierConfig {
            consecutive_gateway: 6,
            consecutive_local: 6,
            count_server_errors: true,
            interval: S,
            window: S,
            failure_rate: 0.6,
            failure_volume: 6,
            success_deviations: 6.5,
            success_gap: 0.6,
            success_volume: 6,
            success_intervals: 6,
            latency_deviations: 6.5,
            latency_ratio: 6.5,
            latency_excess: S,
            latency_volume: 6,
            latency_intervals: 6,
            hosts: 6,
            base: S,
            longest: S,
            jitter: 0.6,
            forgive: S,
            max_ejected_percent: 6,
        };
        assert_eq!(told(&|it| it.outlier_detection = Some(other.clone())).split(", ").count(), 22);
    }

    fn health_check() -> HealthCheckConfig {
        HealthCheckConfig {
            probe: Probe::Tcp,
            port: None,
            interval: 5 * S,
            interval_in_doubt: S,
            jitter_percent: 10,
            timeout: 2 * S,
            unhealthy_after: 3,
            healthy_after: 2,
            initial: InitialHealth::FirstCheck,
        }
    }

    #[test]
    fn what_differs_in_a_health_check_is_told_key_by_key() {
        let told = |edit: fn(&mut HealthCheckConfig)| {
            let mut new = health_check();
            edit(&mut new);
            let mut changes = Changes::default();
            health_check_changes(&mut changes, &health_check(), &new);
            Listed(&changes.0).to_string()
        };
        assert_eq!(told(|_| {}), "");
        assert_eq!(
            told(|it| (it.port, it.initial) = (Some(9100), InitialHealth::Healthy)),
            "health_check.port the backend's -> 9100, health_check.initial first_check -> healthy"
        );
        assert_eq!(
            told(|it| (it.interval, it.interval_in_doubt, it.timeout) = (S, S / 2, S)),
            "health_check.interval 5s -> 1s, health_check.interval_in_doubt 1s -> 500ms, health_check.timeout 2s -> 1s"
        );
        assert_eq!(
            told(|it| (it.jitter_percent, it.unhealthy_after, it.healthy_after) = (0, 1, 9)),
            "health_check.jitter_percent 10 -> 0, health_check.unhealthy_after 3 -> 1, health_check.healthy_after 2 -> 9"
        );
    }

    #[test]
    fn routes_are_found_again_by_name_and_their_order_counts() {
        check(&[
            (
                "where it goes",
                |it| {
                    edit(&mut it.routes[1], |it| {
                        let Action::Forward(forward) = &mut it.action else { unreachable!() };
                        forward.upstream = "v".into();
                        forward.timeouts.body_idle = 2 * S;
                    })
                },
                &["route b<1: upstream u -> v, timeouts"],
            ),
            (
                "when it is tried again",
                |it| {
                    edit(&mut it.routes[0], |it| {
                        let Action::Forward(forward) = &mut it.action else { unreachable!() };
                        edit(&mut forward.retries, |it| {
                            it.on.reset = false;
                            it.on.statuses =
                                vec![http::StatusCode::BAD_GATEWAY, http::StatusCode::INTERNAL_SERVER_ERROR];
                            it.attempt_timeout = Some(S);
                            it.backoff_base = S;
                            it.hedge = Some(crate::config::HedgeConfig::default());
                        });
                    })
                },
                &["route a<0: retries.on +500 -reset -503 -504, retries.attempt_timeout none -> 1s, \
                   retries.backoff.base 25ms -> 1s, retries.hedge off -> on"],
            ),
            (
                "what it matches",
                |it| edit(&mut it.routes[0], |it| it.path = PathPattern::Exact("/a".into())),
                &["route a<0: path"],
            ),
            ("one in between", |it| it.routes.insert(1, Arc::new(route("x"))), &["route +x"]),
            ("one less", |it| drop(it.routes.remove(1)), &["route -b<1"]),
            ("one moved", |it| it.routes.rotate_left(1), &["route a<0: order"]),
        ]);
    }

    #[test]
    fn settings_say_whether_they_wait_for_a_restart() {
        fn log() -> AccessLogConfig {
            AccessLogConfig { format: AccessLogFormat::Json, output: AccessLogOutput::Stdout, buffer: 1 }
        }
        check(&[
            (
                "times",
                |it| (it.shutdown_grace, it.drain_limit) = (S, 2 * S),
                &["setting shutdown_grace 10s -> 1s", "setting drain_limit 30s -> 2s"],
            ),
            ("log level", |it| it.log.level = "debug".into(), &["setting log.level info -> debug"]),
            ("access log", |it| it.access_log = Some(log()), &["setting access_log off -> on"]),
            ("workers", |it| it.workers = std::num::NonZero::new(3), &["restart workers one per core -> 3"]),
            ("admin", |it| it.admin = None, &["restart admin 127.0.0.1:9900 -> off"]),
            (
                "admin socket",
                |it| it.admin.as_mut().unwrap().unix_socket = Some("/run/i.sock".into()),
                &["restart admin.unix_socket none -> /run/i.sock"],
            ),
            (
                "admin token",
                |it| it.admin.as_mut().unwrap().token = Some("0123456789abcdef".into()),
                &["setting admin.token"],
            ),
            ("log format", |it| it.log.format = LogFormat::Json, &["restart log.format text -> json"]),
        ]);
        let on = Config { access_log: Some(log()), ..config() };
        let other = Config { access_log: Some(AccessLogConfig { buffer: 2, ..log() }), ..config() };
        assert!(plan(&on, &other).access_log_changes());
        assert!(plan(&config(), &on).access_log_changes());
        assert!(!plan(&on, &on).access_log_changes());
    }

    #[test]
    fn what_needs_a_restart_is_told_again_at_the_next_reload() {
        let old = config();
        let mut new = Config { workers: std::num::NonZero::new(3), admin: None, ..config() };
        let wanted = new.clone();
        keep_what_needs_a_restart(&old, &mut new);
        assert_eq!(new, old);
        assert_eq!(plan(&new, &wanted).restart.len(), 2);
    }
}
