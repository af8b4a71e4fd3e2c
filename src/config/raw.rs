//! Values as `lb.toml` has them, where they are more than a text, a number, or true or false.
//!
//! A type's serde name is what [`reader`](super::reader) tells the user it expects there. No key is a plain `String`: its type says
//! what of its value may be shown ([`visibility`](super::visibility)).

use serde::Deserialize;

pub(crate) use super::root::WrittenConfig as File;
use super::visibility::of_kind;

// What of their values may be shown. Those of keys that are texts have it by their types.
of_kind! {
    Plain: Workers, Duration, Size, Limit, RetryCondition, Statuses, ServicePort;
}

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

/// A number of things at a time as written.
#[derive(Debug, Deserialize)]
#[serde(rename = "a whole number or \"unlimited\"", rename_all = "snake_case")]
pub(crate) enum Limit {
    Integer(i64),
    String(String),
}

/// Why there may be a further attempt.
#[derive(Debug, Deserialize)]
#[serde(rename = "\"connect_failure\", \"reset\", \"timeout\" or a status such as 503", rename_all = "snake_case")]
pub(crate) enum RetryCondition {
    Integer(i64),
    String(String),
}

/// A status or a range of them.
#[derive(Debug, Deserialize)]
#[serde(rename = "a status such as 200, or a range such as \"200-299\"", rename_all = "snake_case")]
pub(crate) enum Statuses {
    Integer(i64),
    String(String),
}

/// A port of a Service in Kubernetes.
#[derive(Debug, Deserialize)]
#[serde(rename = "a port: its name or its number", rename_all = "snake_case")]
pub(crate) enum ServicePort {
    Integer(i64),
    String(String),
}
