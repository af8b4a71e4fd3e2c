//! `[middleware.NAME.KIND]`: plug-ins around an exchange, which listeners, routes and upstreams name.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::field::{Entry, Field};
use super::kind::{Word, of_kind};
use super::raw;
use super::{HeaderEdits, MiddlewareName};

/// The table of a kind of middleware that the embedding program supplies.
pub use toml::Table as MiddlewareTable;

/// `[middleware.NAME]`: a plug-in around an exchange.
#[derive(Clone, Debug, PartialEq)]
pub struct MiddlewareConfig {
    /// The key under `[middleware]`.
    pub name: MiddlewareName,
    /// How long it may wait for something before it lets a request continue; then the request is answered 504. Default 5 s.
    pub timeout: Duration,
    /// What it does.
    pub kind: MiddlewareKind,
}

/// What a middleware does: the key under `[middleware.NAME]`, and its table.
#[derive(Clone, PartialEq)]
pub enum MiddlewareKind {
    /// Changes headers.
    Headers {
        /// Changes to the headers that go to the backend.
        request: HeaderEdits,
        /// Changes to the headers that go to the client, of the proxy's own errors too.
        response: HeaderEdits,
    },
    /// What the embedding program makes of it.
    Custom {
        /// The name under which the program supplies the kind.
        kind: Arc<str>,
        /// Its keys.
        table: MiddlewareTable,
    },
}

impl MiddlewareKind {
    /// The names of the kinds that isobar has itself, as `lb.toml` writes them.
    pub const NAMES: [&str; 1] = ["headers"];

    /// As `lb.toml` writes it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Headers { .. } => "headers",
            Self::Custom { kind, .. } => kind,
        }
    }
}

impl fmt::Debug for MiddlewareKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Headers { request, response } => {
                f.debug_struct("Headers").field("request", request).field("response", response).finish()
            }
            // Any of the values may be a secret.
            Self::Custom { kind, table } => {
                f.debug_tuple("Custom").field(kind).field(&table.keys().collect::<Vec<_>>()).finish()
            }
        }
    }
}

of_kind! {
    Table: RawMiddleware, RawHeaders, Free;
}

/// `[middleware.NAME]` as the file has it.
#[derive(Debug, Default)]
pub(crate) struct RawMiddleware {
    pub(crate) timeout: Field<raw::Duration>,
    pub(crate) headers: Field<RawHeaders>,
    /// Kinds of the embedding program, and what is none.
    pub(crate) others: Vec<Entry<Free>>,
}

/// `[middleware.NAME.headers]` as the file has it.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(crate) struct RawHeaders {
    pub(crate) request: Field<raw::HeaderEdits>,
    pub(crate) response: Field<raw::HeaderEdits>,
}

/// Any value, of which isobar knows nothing.
#[derive(serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct Free(pub(crate) toml::Value);

impl fmt::Debug for Free {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.type_str())
    }
}

impl<'de> Deserialize<'de> for RawMiddleware {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = RawMiddleware;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawMiddleware, A::Error> {
                let mut raw = RawMiddleware::default();
                while let Some(key) = map.next_key::<Field<Word>>()? {
                    let Field::Given(place, name) = key else {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    match name.as_str() {
                        "timeout" => raw.timeout = map.next_value()?,
                        "headers" => raw.headers = map.next_value()?,
                        other => {
                            raw.others.push(Entry { name: other.to_owned(), place, value: map.next_value()? });
                        }
                    }
                }
                Ok(raw)
            }
        }

        deserializer.deserialize_struct("Middleware", &["timeout", "headers", super::reader::ANY_KEY], Keys)
    }
}
