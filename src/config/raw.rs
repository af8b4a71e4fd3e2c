//! What `lb.toml` says, before anybody asks whether it makes sense: a struct for each table, a field for each key.
//!
//! A type's serde name is what [`reader`](super::reader) tells the user it expects there. No key is a plain `String`: its type says
//! what of its value may be shown ([`kind`](super::kind)). Reasons and defaults of the keys are in `lb.toml` at the top of the
//! repository; a test proves that it has every one of them.

use serde::Deserialize;

use super::field::{Field, Named};
use super::kind::{FilePath, Location, Secret, Sensitive, Word, of_kind};

// What of their values may be shown. Those of keys that are texts have it by their types.
of_kind! {
    Plain: Workers, Duration, Size, Limit, Retries, Condition, Statuses;
    Location: Backend;
    Sensitive: ValueMatch;
    Table: Admin, Log, AccessLog, Overload, Listener, Lingering, Paths, Tls, ClientCertificates, Certificate, Http2, Route,
        Redirect, Respond, Timeouts, HeaderEdits, Upstream, Backoff, Hedge, RetryBudget, Pool, BackendTls,
        ClientCertificate, HealthCheck, Queue, CircuitBreaker, AdaptiveLimit, OutlierDetection, SlowStart, ZonePreference;
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct File {
    pub(super) workers: Field<Workers>,
    pub(super) shutdown_delay: Field<Duration>,
    pub(super) shutdown_grace: Field<Duration>,
    pub(super) drain_limit: Field<Duration>,
    pub(super) zone: Field<Word>,
    pub(super) admin: Field<Admin>,
    pub(super) log: Field<Log>,
    pub(super) access_log: Field<AccessLog>,
    pub(super) overload: Field<Overload>,
    pub(super) listener: Field<Tables<Listener>>,
    pub(super) route: Field<Tables<Route>>,
    pub(super) upstream: Field<Named<Upstream>>,
}

/// Tables under the same name: `[[listener]]`.
pub(super) type Tables<T> = Vec<Field<T>>;

#[derive(Debug, Deserialize)]
#[serde(rename = "a whole number or \"auto\"", rename_all = "snake_case")]
pub(super) enum Workers {
    Integer(i64),
    String(String),
}

/// A duration as written.
#[derive(Debug, Deserialize)]
#[serde(rename = "a duration with its unit, such as \"5s\" or \"500ms\"")]
pub(super) struct Duration(pub(super) String);

/// A number of bytes as written.
#[derive(Debug, Deserialize)]
#[serde(rename = "a size, such as \"64KiB\", \"10MB\" or 1024", rename_all = "snake_case")]
pub(super) enum Size {
    Integer(i64),
    String(String),
}

/// `[admin]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Admin {
    pub(super) enabled: Field<bool>,
    pub(super) address: Field<Location>,
    pub(super) token: Field<Secret>,
    pub(super) unix_socket: Field<FilePath>,
}

/// `[log]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Log {
    pub(super) level: Field<Word>,
    pub(super) format: Field<Word>,
}

/// `[access_log]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AccessLog {
    pub(super) enabled: Field<bool>,
    pub(super) format: Field<Word>,
    pub(super) output: Field<FilePath>,
    pub(super) buffer: Field<i64>,
}

/// `[overload]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Overload {
    pub(super) enabled: Field<bool>,
    pub(super) lag: Field<Duration>,
    pub(super) descriptors_percent: Field<i64>,
    pub(super) memory_percent: Field<i64>,
}

/// `[[listener]]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Listener {
    pub(super) name: Field<Word>,
    pub(super) address: Field<Location>,
    pub(super) backlog: Field<i64>,
    pub(super) max_connections: Field<i64>,
    pub(super) max_connections_per_address: Field<Limit>,
    pub(super) max_header_bytes: Field<Size>,
    pub(super) max_headers: Field<i64>,
    pub(super) max_body: Field<Size>,
    pub(super) lingering: Field<Lingering>,
    pub(super) header_timeout: Field<Duration>,
    pub(super) idle_timeout: Field<Duration>,
    pub(super) min_bytes_per_second: Field<i64>,
    pub(super) trusted_proxies: Field<Vec<Field<Location>>>,
    pub(super) forwarded: Field<bool>,
    pub(super) forwarded_headers: Field<Vec<Field<Word>>>,
    pub(super) via: Field<bool>,
    pub(super) paths: Field<Paths>,
    pub(super) redirect_to_https: Field<bool>,
    pub(super) https_port: Field<i64>,
    pub(super) tls: Field<Tls>,
    pub(super) http2: Field<Http2>,
}

/// `lingering = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Lingering {
    pub(super) bytes: Field<Size>,
    pub(super) time: Field<Duration>,
    pub(super) idle: Field<Duration>,
}

/// `paths = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Paths {
    pub(super) dot_segments: Field<Word>,
    pub(super) encoded_slashes: Field<Word>,
    pub(super) duplicate_slashes: Field<Word>,
    pub(super) backslashes: Field<Word>,
}

/// `[listener.tls]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Tls {
    pub(super) certificates: Field<Tables<Certificate>>,
    pub(super) unknown_names: Field<Word>,
    pub(super) misdirected: Field<Word>,
    pub(super) profile: Field<Word>,
    pub(super) handshake_timeout: Field<Duration>,
    pub(super) max_handshakes: Field<i64>,
    pub(super) handshakes_per_second_per_address: Field<Limit>,
    pub(super) hsts: Field<Duration>,
    pub(super) client_certificates: Field<ClientCertificates>,
}

/// `client_certificates = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ClientCertificates {
    pub(super) ca: Field<FilePath>,
    pub(super) mode: Field<Word>,
    pub(super) crl: Field<Vec<Field<FilePath>>>,
}

/// `certificates = [{ .. }]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Certificate {
    pub(super) certificate: Field<FilePath>,
    pub(super) key: Field<FilePath>,
    pub(super) ocsp: Field<FilePath>,
}

/// `http2` of a listener.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Http2 {
    pub(super) enabled: Field<bool>,
    pub(super) max_concurrent_streams: Field<i64>,
    pub(super) stream_window: Field<Size>,
    pub(super) connection_window: Field<Size>,
    pub(super) resets_per_second: Field<i64>,
    pub(super) control_frames_per_second: Field<i64>,
}

/// `[[route]]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Route {
    pub(super) name: Field<Word>,
    pub(super) listeners: Field<Vec<Field<Word>>>,
    pub(super) hosts: Field<Vec<Field<Location>>>,
    pub(super) path: Field<Location>,
    pub(super) path_prefix: Field<Location>,
    pub(super) path_regex: Field<Word>,
    pub(super) methods: Field<Vec<Field<Word>>>,
    pub(super) headers: Field<Named<ValueMatch>>,
    pub(super) query: Field<Named<ValueMatch>>,
    pub(super) paths: Field<Paths>,
    pub(super) upstream: Field<Word>,
    pub(super) redirect: Field<Redirect>,
    pub(super) respond: Field<Respond>,
    pub(super) strip_prefix: Field<bool>,
    pub(super) replace_prefix: Field<Location>,
    pub(super) host: Field<Location>,
    pub(super) max_body: Field<Size>,
    pub(super) expect: Field<Word>,
    pub(super) timeouts: Field<Timeouts>,
    pub(super) retries: Field<Retries>,
    pub(super) request_headers: Field<HeaderEdits>,
    pub(super) response_headers: Field<HeaderEdits>,
}

/// What a header or query parameter must be.
#[derive(Debug, Deserialize)]
#[serde(rename = "a string, { regex = \"..\" }, { present = true } or { present = false }", rename_all = "snake_case")]
pub(super) enum ValueMatch {
    String(Sensitive),
    Table(ValueMatchTable),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ValueMatchTable {
    pub(super) present: Field<bool>,
    pub(super) regex: Field<Sensitive>,
}

/// `redirect = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Redirect {
    pub(super) to: Field<Location>,
    pub(super) status: Field<i64>,
}

/// `respond = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Respond {
    pub(super) status: Field<i64>,
    pub(super) body: Field<Sensitive>,
    pub(super) content_type: Field<Word>,
}

/// `timeouts = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Timeouts {
    pub(super) response_head: Field<Duration>,
    pub(super) body_idle: Field<Duration>,
    pub(super) expect: Field<Duration>,
    pub(super) exchange: Field<Duration>,
    pub(super) tunnel_idle: Field<Duration>,
    pub(super) grpc_idle: Field<Duration>,
    pub(super) grpc_timeout_max: Field<Duration>,
}

/// `request_headers = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct HeaderEdits {
    pub(super) set: Field<Named<Sensitive>>,
    pub(super) add: Field<Named<Sensitive>>,
    pub(super) remove: Field<Vec<Field<Word>>>,
}

/// `[upstream.NAME]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Upstream {
    pub(super) strategy: Field<Word>,
    pub(super) backends: Field<Vec<Field<Backend>>>,
    pub(super) connect_timeout: Field<Duration>,
    pub(super) retries: Field<Retries>,
    pub(super) retry_budget: Field<RetryBudget>,
    pub(super) pool: Field<Pool>,
    pub(super) protocol: Field<Word>,
    pub(super) tls: Field<BackendTls>,
    pub(super) health_check: Field<HealthCheck>,
    pub(super) outlier_detection: Field<OutlierDetection>,
    pub(super) slow_start: Field<SlowStart>,
    pub(super) panic_threshold: Field<i64>,
    pub(super) overprovisioning: Field<f64>,
    pub(super) zone_preference: Field<ZonePreference>,
    pub(super) max_in_flight: Field<Limit>,
    pub(super) max_connections: Field<Limit>,
    pub(super) queue: Field<Queue>,
    pub(super) circuit_breaker: Field<CircuitBreaker>,
    pub(super) adaptive_limit: Field<AdaptiveLimit>,
}

/// A number of things at a time as written.
#[derive(Debug, Deserialize)]
#[serde(rename = "a whole number or \"unlimited\"", rename_all = "snake_case")]
pub(super) enum Limit {
    Integer(i64),
    String(String),
}

/// A backend: its address, or a table with it.
#[derive(Debug, Deserialize)]
#[serde(rename = "an address, or { address = \"..\", weight = 1 }", rename_all = "snake_case")]
pub(super) enum Backend {
    String(Location),
    Table(BackendTable),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct BackendTable {
    pub(super) address: Field<Location>,
    pub(super) weight: Field<i64>,
    pub(super) priority: Field<i64>,
    pub(super) backup: Field<bool>,
    pub(super) zone: Field<Word>,
    pub(super) max_in_flight: Field<Limit>,
    pub(super) max_connections: Field<Limit>,
}

/// Further attempts: how many, or a table with more.
#[derive(Debug, Deserialize)]
#[serde(rename = "a whole number, or a table such as { max = 2 }", rename_all = "snake_case")]
pub(super) enum Retries {
    Integer(i64),
    Table(Box<RetriesTable>),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RetriesTable {
    pub(super) max: Field<i64>,
    pub(super) on: Field<Vec<Field<Condition>>>,
    pub(super) grpc_statuses: Field<Vec<Field<Word>>>,
    pub(super) attempt_timeout: Field<Duration>,
    pub(super) backoff: Field<Backoff>,
    pub(super) body_buffer: Field<Size>,
    pub(super) response_buffer: Field<Size>,
    pub(super) hedge: Field<Hedge>,
}

/// Why there may be a further attempt.
#[derive(Debug, Deserialize)]
#[serde(rename = "\"connect_failure\", \"reset\", \"timeout\" or a status such as 503", rename_all = "snake_case")]
pub(super) enum Condition {
    Integer(i64),
    String(String),
}

/// `backoff = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Backoff {
    pub(super) base: Field<Duration>,
    pub(super) max: Field<Duration>,
    pub(super) retry_after_max: Field<Duration>,
}

/// `hedge = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Hedge {
    pub(super) enabled: Field<bool>,
    pub(super) percentile: Field<i64>,
    pub(super) min_delay: Field<Duration>,
    pub(super) budget_percent: Field<i64>,
}

/// `retry_budget = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RetryBudget {
    pub(super) percent: Field<i64>,
    pub(super) per_second: Field<i64>,
}

/// `pool = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pool {
    pub(super) max_idle: Field<i64>,
    pub(super) idle_timeout: Field<Duration>,
}

/// `[upstream.NAME.tls]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct BackendTls {
    pub(super) enabled: Field<bool>,
    pub(super) ca: Field<FilePath>,
    pub(super) server_name: Field<Location>,
    pub(super) client_certificate: Field<ClientCertificate>,
    pub(super) insecure_skip_verify: Field<bool>,
}

/// `client_certificate = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ClientCertificate {
    pub(super) certificate: Field<FilePath>,
    pub(super) key: Field<FilePath>,
}

/// `[upstream.NAME.health_check]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct HealthCheck {
    pub(super) enabled: Field<bool>,
    #[serde(rename = "type")]
    pub(super) kind: Field<Word>,
    pub(super) path: Field<Location>,
    pub(super) service: Field<Word>,
    pub(super) host: Field<Location>,
    pub(super) method: Field<Word>,
    pub(super) headers: Field<Named<Sensitive>>,
    pub(super) statuses: Field<Vec<Field<Statuses>>>,
    pub(super) body: Field<Sensitive>,
    pub(super) body_limit: Field<Size>,
    pub(super) port: Field<i64>,
    pub(super) interval: Field<Duration>,
    pub(super) interval_in_doubt: Field<Duration>,
    pub(super) jitter_percent: Field<i64>,
    pub(super) timeout: Field<Duration>,
    pub(super) unhealthy_after: Field<i64>,
    pub(super) healthy_after: Field<i64>,
    pub(super) initial: Field<Word>,
}

/// `[upstream.NAME.queue]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Queue {
    pub(super) length: Field<i64>,
    pub(super) timeout: Field<Duration>,
    pub(super) order: Field<Word>,
    pub(super) target: Field<Duration>,
    pub(super) interval: Field<Duration>,
}

/// `[upstream.NAME.circuit_breaker]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CircuitBreaker {
    pub(super) enabled: Field<bool>,
    pub(super) window: Field<Duration>,
    pub(super) min_calls: Field<i64>,
    pub(super) failure_percent: Field<i64>,
    pub(super) slow_after: Field<Duration>,
    pub(super) slow_percent: Field<i64>,
    pub(super) open_for: Field<Duration>,
    pub(super) open_max: Field<Duration>,
    pub(super) probes: Field<i64>,
}

/// `[upstream.NAME.adaptive_limit]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AdaptiveLimit {
    pub(super) enabled: Field<bool>,
    pub(super) initial: Field<i64>,
    pub(super) min: Field<i64>,
    pub(super) max: Field<i64>,
    pub(super) tolerance_percent: Field<i64>,
    pub(super) smoothing_percent: Field<i64>,
    pub(super) headroom: Field<i64>,
    pub(super) long_windows: Field<i64>,
    pub(super) window: Field<Duration>,
    pub(super) min_samples: Field<i64>,
}

/// `[upstream.NAME.outlier_detection]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct OutlierDetection {
    pub(super) enabled: Field<bool>,
    pub(super) consecutive_gateway_errors: Field<i64>,
    pub(super) consecutive_local_errors: Field<i64>,
    pub(super) count_server_errors: Field<bool>,
    pub(super) interval: Field<Duration>,
    pub(super) window: Field<Duration>,
    pub(super) failure_percent: Field<i64>,
    pub(super) failure_volume: Field<i64>,
    pub(super) success_deviations: Field<f64>,
    pub(super) success_gap_percent: Field<i64>,
    pub(super) success_volume: Field<i64>,
    pub(super) success_intervals: Field<i64>,
    pub(super) latency_deviations: Field<f64>,
    pub(super) latency_ratio: Field<f64>,
    pub(super) latency_excess: Field<Duration>,
    pub(super) latency_volume: Field<i64>,
    pub(super) latency_intervals: Field<i64>,
    pub(super) backends_min: Field<i64>,
    pub(super) ejection_time: Field<Duration>,
    pub(super) ejection_time_max: Field<Duration>,
    pub(super) jitter_percent: Field<i64>,
    pub(super) forgive_after: Field<Duration>,
    pub(super) max_ejected_percent: Field<i64>,
}

/// `[upstream.NAME.slow_start]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct SlowStart {
    pub(super) enabled: Field<bool>,
    pub(super) window: Field<Duration>,
    pub(super) aggression: Field<f64>,
    pub(super) minimum_percent: Field<i64>,
}

/// `[upstream.NAME.zone_preference]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ZonePreference {
    pub(super) enabled: Field<bool>,
    pub(super) backends_min: Field<i64>,
    pub(super) load: Field<Named<i64>>,
}

/// A status or a range of them.
#[derive(Debug, Deserialize)]
#[serde(rename = "a status such as 200, or a range such as \"200-299\"", rename_all = "snake_case")]
pub(super) enum Statuses {
    Integer(i64),
    String(String),
}
