//! What `lb.toml` says, before anybody asks whether it makes sense: a struct for each table, a field for each key.
//!
//! A type's serde name is what [`reader`](super::reader) tells the user it expects there. Reasons and defaults of the keys
//! are in `lb.toml` at the top of the repository; a test proves that it has every one of them.

use serde::Deserialize;

use super::field::{Field, Named};

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct File {
    pub(super) workers: Field<Workers>,
    pub(super) shutdown_grace: Field<Duration>,
    pub(super) drain_limit: Field<Duration>,
    pub(super) admin: Field<Admin>,
    pub(super) log: Field<Log>,
    pub(super) access_log: Field<AccessLog>,
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
#[serde(rename = "a number of bytes, such as 1024 or \"64KiB\"", rename_all = "snake_case")]
pub(super) enum Size {
    Integer(i64),
    String(String),
}

/// `[admin]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Admin {
    pub(super) enabled: Field<bool>,
    pub(super) address: Field<String>,
}

/// `[log]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Log {
    pub(super) level: Field<String>,
    pub(super) format: Field<String>,
}

/// `[access_log]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AccessLog {
    pub(super) enabled: Field<bool>,
    pub(super) format: Field<String>,
    pub(super) output: Field<String>,
    pub(super) buffer: Field<i64>,
}

/// `[[listener]]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Listener {
    pub(super) name: Field<String>,
    pub(super) address: Field<String>,
    pub(super) backlog: Field<i64>,
    pub(super) max_connections: Field<i64>,
    pub(super) max_header_bytes: Field<Size>,
    pub(super) max_headers: Field<i64>,
    pub(super) max_body: Field<Size>,
    pub(super) header_timeout: Field<Duration>,
    pub(super) idle_timeout: Field<Duration>,
    pub(super) trusted_proxies: Field<Vec<Field<String>>>,
    pub(super) forwarded: Field<bool>,
    pub(super) via: Field<bool>,
}

/// `[[route]]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Route {
    pub(super) name: Field<String>,
    pub(super) listeners: Field<Vec<Field<String>>>,
    pub(super) hosts: Field<Vec<Field<String>>>,
    pub(super) path: Field<String>,
    pub(super) path_prefix: Field<String>,
    pub(super) path_regex: Field<String>,
    pub(super) methods: Field<Vec<Field<String>>>,
    pub(super) headers: Field<Named<ValueMatch>>,
    pub(super) query: Field<Named<ValueMatch>>,
    pub(super) upstream: Field<String>,
    pub(super) redirect: Field<Redirect>,
    pub(super) respond: Field<Respond>,
    pub(super) strip_prefix: Field<bool>,
    pub(super) replace_prefix: Field<String>,
    pub(super) host: Field<String>,
    pub(super) timeouts: Field<Timeouts>,
    pub(super) request_headers: Field<HeaderEdits>,
    pub(super) response_headers: Field<HeaderEdits>,
}

/// What a header or query parameter must be.
#[derive(Debug, Deserialize)]
#[serde(rename = "a string, { regex = \"..\" }, { present = true } or { present = false }", rename_all = "snake_case")]
pub(super) enum ValueMatch {
    String(String),
    Table(ValueMatchTable),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ValueMatchTable {
    pub(super) present: Field<bool>,
    pub(super) regex: Field<String>,
}

/// `redirect = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Redirect {
    pub(super) to: Field<String>,
    pub(super) status: Field<i64>,
}

/// `respond = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Respond {
    pub(super) status: Field<i64>,
    pub(super) body: Field<String>,
    pub(super) content_type: Field<String>,
}

/// `timeouts = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Timeouts {
    pub(super) response_head: Field<Duration>,
    pub(super) body_idle: Field<Duration>,
    pub(super) exchange: Field<Duration>,
    pub(super) tunnel_idle: Field<Duration>,
}

/// `request_headers = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct HeaderEdits {
    pub(super) set: Field<Named<String>>,
    pub(super) add: Field<Named<String>>,
    pub(super) remove: Field<Vec<Field<String>>>,
}

/// `[upstream.NAME]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Upstream {
    pub(super) strategy: Field<String>,
    pub(super) backends: Field<Vec<Field<Backend>>>,
    pub(super) connect_timeout: Field<Duration>,
    pub(super) retries: Field<i64>,
    pub(super) pool: Field<Pool>,
}

/// A backend: its address, or a table with it.
#[derive(Debug, Deserialize)]
#[serde(rename = "an address, or { address = \"..\", weight = 1 }", rename_all = "snake_case")]
pub(super) enum Backend {
    String(String),
    Table(BackendTable),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct BackendTable {
    pub(super) address: Field<String>,
    pub(super) weight: Field<i64>,
}

/// `pool = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pool {
    pub(super) max_idle: Field<i64>,
    pub(super) idle_timeout: Field<Duration>,
}
