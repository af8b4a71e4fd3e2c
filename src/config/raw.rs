//! What `lb.toml` says, before anybody asks whether it makes sense: a struct for each table, a field for each key.
//!
//! A type's serde name is what [`reader`](super::reader) tells the user it expects there. No key is a plain `String`: its type says
//! what of its value may be shown ([`kind`](super::kind)). Reasons and defaults of the keys are in `lb.toml` at the top of the
//! repository; a test proves that it has every one of them.

use serde::Deserialize;

use super::adaptive::WrittenAdaptiveLimitConfig;
use super::breaker::WrittenBreakerConfig;
use super::field::{Field, Named};
use super::kind::{FilePath, Location, Sensitive, Word, of_kind};
use super::outlier::WrittenOutlierConfig;
use super::paths::WrittenPathOverrides;
use super::pool::WrittenPoolConfig;
use super::retry_budget::WrittenRetryBudgetConfig;
use super::slow_start::WrittenSlowStartConfig;
pub(crate) use super::whole::WrittenConfig as File;

// What of their values may be shown. Those of keys that are texts have it by their types.
of_kind! {
    Plain: Workers, Duration, Size, Limit, Retries, Condition, Statuses;
    Location: Backend;
    Sensitive: ValueMatch;
    Table: Route, Redirect, Respond, Timeouts, HeaderEdits, Upstream, Backoff, Hedge, BackendTls, ClientCertificate, HealthCheck, Queue, ZonePreference;
}

/// Tables under the same name: `[[listener]]`.
pub(crate) type Tables<T> = Vec<Field<T>>;

#[derive(Debug, Deserialize)]
#[serde(rename = "a whole number or \"auto\"", rename_all = "snake_case")]
pub(crate) enum Workers {
    Integer(i64),
    String(String),
}

/// A duration as written.
#[derive(Debug, Deserialize)]
#[serde(rename = "a duration with its unit, such as \"5s\" or \"500ms\"")]
pub(crate) struct Duration(pub(crate) String);

/// A number of bytes as written.
#[derive(Debug, Deserialize)]
#[serde(rename = "a size, such as \"64KiB\", \"10MB\" or 1024", rename_all = "snake_case")]
pub(crate) enum Size {
    Integer(i64),
    String(String),
}

/// `[[route]]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Route {
    pub(crate) name: Field<Word>,
    pub(crate) listeners: Field<Vec<Field<Word>>>,
    pub(crate) hosts: Field<Vec<Field<Location>>>,
    pub(crate) path: Field<Location>,
    pub(crate) path_prefix: Field<Location>,
    pub(crate) path_regex: Field<Word>,
    pub(crate) methods: Field<Vec<Field<Word>>>,
    pub(crate) headers: Field<Named<ValueMatch>>,
    pub(crate) query: Field<Named<ValueMatch>>,
    pub(crate) paths: Field<WrittenPathOverrides>,
    pub(crate) upstream: Field<Word>,
    pub(crate) redirect: Field<Redirect>,
    pub(crate) respond: Field<Respond>,
    pub(crate) strip_prefix: Field<bool>,
    pub(crate) replace_prefix: Field<Location>,
    pub(crate) host: Field<Location>,
    pub(crate) max_body: Field<Size>,
    pub(crate) expect: Field<Word>,
    pub(crate) timeouts: Field<Timeouts>,
    pub(crate) retries: Field<Retries>,
    pub(crate) request_headers: Field<HeaderEdits>,
    pub(crate) response_headers: Field<HeaderEdits>,
    pub(crate) middleware: Field<Vec<Field<Word>>>,
}

/// What a header or query parameter must be.
#[derive(Debug, Deserialize)]
#[serde(rename = "a string, { regex = \"..\" }, { present = true } or { present = false }", rename_all = "snake_case")]
pub(crate) enum ValueMatch {
    String(Sensitive),
    Table(ValueMatchTable),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ValueMatchTable {
    pub(crate) present: Field<bool>,
    pub(crate) regex: Field<Sensitive>,
}

/// `redirect = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Redirect {
    pub(crate) to: Field<Location>,
    pub(crate) status: Field<i64>,
}

/// `respond = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Respond {
    pub(crate) status: Field<i64>,
    pub(crate) body: Field<Sensitive>,
    pub(crate) content_type: Field<Word>,
}

/// `timeouts = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Timeouts {
    pub(crate) response_head: Field<Duration>,
    pub(crate) body_idle: Field<Duration>,
    pub(crate) expect: Field<Duration>,
    pub(crate) exchange: Field<Duration>,
    pub(crate) tunnel_idle: Field<Duration>,
    pub(crate) grpc_idle: Field<Duration>,
    pub(crate) grpc_timeout_max: Field<Duration>,
}

/// `request_headers = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct HeaderEdits {
    pub(crate) set: Field<Named<Sensitive>>,
    pub(crate) add: Field<Named<Sensitive>>,
    pub(crate) remove: Field<Vec<Field<Word>>>,
}

/// `[upstream.NAME]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Upstream {
    pub(crate) strategy: Field<Word>,
    pub(crate) backends: Field<Vec<Field<Backend>>>,
    pub(crate) connect_timeout: Field<Duration>,
    pub(crate) retries: Field<Retries>,
    pub(crate) retry_budget: Field<WrittenRetryBudgetConfig>,
    pub(crate) pool: Field<WrittenPoolConfig>,
    pub(crate) protocol: Field<Word>,
    pub(crate) tls: Field<BackendTls>,
    pub(crate) health_check: Field<HealthCheck>,
    pub(crate) outlier_detection: Field<WrittenOutlierConfig>,
    pub(crate) slow_start: Field<WrittenSlowStartConfig>,
    pub(crate) panic_threshold: Field<i64>,
    pub(crate) overprovisioning: Field<f64>,
    pub(crate) zone_preference: Field<ZonePreference>,
    pub(crate) max_in_flight: Field<Limit>,
    pub(crate) max_connections: Field<Limit>,
    pub(crate) queue: Field<Queue>,
    pub(crate) circuit_breaker: Field<WrittenBreakerConfig>,
    pub(crate) adaptive_limit: Field<WrittenAdaptiveLimitConfig>,
    pub(crate) middleware: Field<Vec<Field<Word>>>,
}

/// A number of things at a time as written.
#[derive(Debug, Deserialize)]
#[serde(rename = "a whole number or \"unlimited\"", rename_all = "snake_case")]
pub(crate) enum Limit {
    Integer(i64),
    String(String),
}

/// A backend: its address, or a table with it.
#[derive(Debug, Deserialize)]
#[serde(rename = "an address, or { address = \"..\", weight = 1 }", rename_all = "snake_case")]
pub(crate) enum Backend {
    String(Location),
    Table(BackendTable),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct BackendTable {
    pub(crate) address: Field<Location>,
    pub(crate) weight: Field<i64>,
    pub(crate) priority: Field<i64>,
    pub(crate) backup: Field<bool>,
    pub(crate) zone: Field<Word>,
    pub(crate) max_in_flight: Field<Limit>,
    pub(crate) max_connections: Field<Limit>,
}

/// Further attempts: how many, or a table with more.
#[derive(Debug, Deserialize)]
#[serde(rename = "a whole number, or a table such as { max = 2 }", rename_all = "snake_case")]
pub(crate) enum Retries {
    Integer(i64),
    Table(Box<RetriesTable>),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RetriesTable {
    pub(crate) max: Field<i64>,
    pub(crate) on: Field<Vec<Field<Condition>>>,
    pub(crate) grpc_statuses: Field<Vec<Field<Word>>>,
    pub(crate) attempt_timeout: Field<Duration>,
    pub(crate) backoff: Field<Backoff>,
    pub(crate) body_buffer: Field<Size>,
    pub(crate) response_buffer: Field<Size>,
    pub(crate) hedge: Field<Hedge>,
}

/// Why there may be a further attempt.
#[derive(Debug, Deserialize)]
#[serde(rename = "\"connect_failure\", \"reset\", \"timeout\" or a status such as 503", rename_all = "snake_case")]
pub(crate) enum Condition {
    Integer(i64),
    String(String),
}

/// `backoff = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Backoff {
    pub(crate) base: Field<Duration>,
    pub(crate) max: Field<Duration>,
    pub(crate) retry_after_max: Field<Duration>,
}

/// `hedge = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Hedge {
    pub(crate) enabled: Field<bool>,
    pub(crate) percentile: Field<i64>,
    pub(crate) min_delay: Field<Duration>,
    pub(crate) budget_percent: Field<i64>,
}

/// `[upstream.NAME.tls]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct BackendTls {
    pub(crate) enabled: Field<bool>,
    pub(crate) ca: Field<FilePath>,
    pub(crate) server_name: Field<Location>,
    pub(crate) client_certificate: Field<ClientCertificate>,
    pub(crate) insecure_skip_verify: Field<bool>,
}

/// `client_certificate = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ClientCertificate {
    pub(crate) certificate: Field<FilePath>,
    pub(crate) key: Field<FilePath>,
}

/// `[upstream.NAME.health_check]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct HealthCheck {
    pub(crate) enabled: Field<bool>,
    #[serde(rename = "type")]
    pub(crate) kind: Field<Word>,
    pub(crate) path: Field<Location>,
    pub(crate) service: Field<Word>,
    pub(crate) host: Field<Location>,
    pub(crate) method: Field<Word>,
    pub(crate) headers: Field<Named<Sensitive>>,
    pub(crate) statuses: Field<Vec<Field<Statuses>>>,
    pub(crate) body: Field<Sensitive>,
    pub(crate) body_limit: Field<Size>,
    pub(crate) port: Field<i64>,
    pub(crate) interval: Field<Duration>,
    pub(crate) interval_in_doubt: Field<Duration>,
    pub(crate) jitter_percent: Field<i64>,
    pub(crate) timeout: Field<Duration>,
    pub(crate) unhealthy_after: Field<i64>,
    pub(crate) healthy_after: Field<i64>,
    pub(crate) initial: Field<Word>,
}

/// `[upstream.NAME.queue]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Queue {
    pub(crate) length: Field<i64>,
    pub(crate) timeout: Field<Duration>,
    pub(crate) order: Field<Word>,
    pub(crate) target: Field<Duration>,
    pub(crate) interval: Field<Duration>,
}

/// `[upstream.NAME.zone_preference]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ZonePreference {
    pub(crate) enabled: Field<bool>,
    pub(crate) backends_min: Field<i64>,
    pub(crate) load: Field<Named<i64>>,
}

/// A status or a range of them.
#[derive(Debug, Deserialize)]
#[serde(rename = "a status such as 200, or a range such as \"200-299\"", rename_all = "snake_case")]
pub(crate) enum Statuses {
    Integer(i64),
    String(String),
}
