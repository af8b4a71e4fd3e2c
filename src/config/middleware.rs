//! `[middleware.NAME.KIND]`: plug-ins around an exchange, which listeners, routes and upstreams name.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::json;

use super::check::Check;
use super::difference::Changes;
use super::field::{Field, Named, NamedEntry};
use super::form::{About, Form, Inner, Literal, Many, Part, Timeout, part_about};
use super::json_tree::Tree;
use super::report::Place;
use super::table::Table;
use super::visibility::{Kind, Word, of_kind};
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
    Headers(HeaderRules),
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
            Self::Headers(_) => "headers",
            Self::Custom { kind, .. } => kind,
        }
    }
}

impl fmt::Debug for MiddlewareKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Headers(rules) => f.debug_tuple("Headers").field(rules).finish(),
            // Any of the values may be a secret.
            Self::Custom { kind, table } => {
                f.debug_tuple("Custom").field(kind).field(&table.keys().collect::<Vec<_>>()).finish()
            }
        }
    }
}

/// Changes to headers.
#[derive(Clone, Debug, Default, PartialEq, Table)]
#[table(check = Self::check, reload = Requests)]
pub struct HeaderRules {
    /// Changes to the headers that the backend gets.
    #[key(Part, shown_if = Self::edits_requests)]
    pub request: HeaderEdits,
    /// Changes to the headers that the client gets, those of the proxy's own errors too.
    #[key(Part, shown_if = Self::edits_responses)]
    pub response: HeaderEdits,
}

impl HeaderRules {
    fn edits_requests(&self) -> bool {
        !self.request.is_empty()
    }

    fn edits_responses(&self) -> bool {
        !self.response.is_empty()
    }

    fn check(check: &Check<'_>, _: Place, written: &WrittenHeaderRules, it: Self) -> Option<Self> {
        HeaderEdits::refuse_host(check, &written.request);
        Some(it)
    }
}

/// A plug-in around requests and responses, which listeners, routes and upstreams name. It has one kind: one table below it.
#[derive(Clone, Debug, PartialEq, Table)]
#[table(reload = Requests)]
pub(crate) struct KnownKeys {
    /// How long it may wait for something before it lets a request continue; then the request is answered 504. The kind `headers` never waits.
    #[key(Timeout, default = "5s")]
    pub(crate) timeout: Duration,
    /// Changes headers.
    #[key(Part)]
    pub(crate) headers: Option<HeaderRules>,
}

impl MiddlewareConfig {
    fn known(&self) -> KnownKeys {
        let headers = match &self.kind {
            MiddlewareKind::Headers(rules) => Some(rules.clone()),
            MiddlewareKind::Custom { .. } => None,
        };
        KnownKeys { timeout: self.timeout, headers }
    }

    /// As `/config` has it; secrets too.
    fn tree(&self) -> Tree {
        let mut entries = self.known().entries();
        if let MiddlewareKind::Custom { kind, table } = &self.kind {
            entries.push((kind.to_string(), Tree::Leaf(json!(table))));
        }
        Tree::Table(entries)
    }

    /// Says in what `new` differs.
    pub(crate) fn compare(changes: &mut Changes, old: &Self, new: &Self) {
        let (was, is) = (&old.kind, &new.kind);
        let timeouts = |it: &Self| KnownKeys { headers: None, ..it.known() };
        match (was, is) {
            (MiddlewareKind::Headers(_), MiddlewareKind::Headers(_)) => {
                KnownKeys::compare(changes, "", &old.known(), &new.known());
            }
            _ => {
                KnownKeys::compare(changes, "", &timeouts(old), &timeouts(new));
                // Any of the values may be a secret.
                let what = if was.as_str() == is.as_str() { was.as_str() } else { "kind" };
                if was != is {
                    changes.told(Kind::Secret, what, "", "");
                }
            }
        }
    }
}

/// The tables `[middleware.NAME]`. They are read together by a check, and compared one by one by the plan of a reload.
pub(crate) struct Middlewares;

impl Form<Vec<Arc<MiddlewareConfig>>> for Middlewares {
    type Written = Named<WrittenMiddleware>;

    fn read(&self, _: &Check<'_>, _: Place, _: &Self::Written) -> Option<Vec<Arc<MiddlewareConfig>>> {
        Some(Vec::new())
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Vec<Arc<MiddlewareConfig>> {
        Vec::new()
    }

    fn show(&self, value: &Vec<Arc<MiddlewareConfig>>) -> Option<Tree> {
        let tables = value.iter().map(|it| (it.name.to_string(), it.tree()));
        (!value.is_empty()).then(|| Tree::Table(tables.collect()))
    }

    fn tell(&self, value: &Vec<Arc<MiddlewareConfig>>) -> String {
        value.len().to_string()
    }

    fn compare(
        &self,
        _: &mut Changes,
        _: &str,
        _: &str,
        _: &Vec<Arc<MiddlewareConfig>>,
        _: &Vec<Arc<MiddlewareConfig>>,
    ) {
    }

    fn about(&self) -> About {
        let About { mut schema, inner, .. } = part_about::<KnownKeys>();
        // An embedding program may have kinds of its own.
        schema["additionalProperties"] = json!({ "type": "object" });
        let inner = inner.map(|inner| Inner { many: Many::Named, ..inner });
        let names = json!({ "minLength": 1, "maxLength": 128 });
        let schema = json!({ "type": "object", "additionalProperties": schema, "propertyNames": names });
        About { form: "tables, each with a name".into(), schema, inner, kind: Kind::Table }
    }
}

of_kind! {
    Table: WrittenMiddleware, FreeTable;
}

/// `[middleware.NAME]` as the file has it.
#[derive(Debug, Default)]
pub(crate) struct WrittenMiddleware {
    pub(crate) known: WrittenKnownKeys,
    /// Kinds of the embedding program, and what is none.
    pub(crate) others: Vec<NamedEntry<FreeTable>>,
}

/// Any value, of which isobar knows nothing.
#[derive(serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct FreeTable(pub(crate) toml::Value);

impl fmt::Debug for FreeTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.type_str())
    }
}

impl<'de> Deserialize<'de> for WrittenMiddleware {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MiddlewareKeys;

        impl<'de> Visitor<'de> for MiddlewareKeys {
            type Value = WrittenMiddleware;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WrittenMiddleware, A::Error> {
                let mut raw = WrittenMiddleware::default();
                while let Some(key) = map.next_key::<Field<Word>>()? {
                    let Field::Given(place, name) = key else {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    match name.as_str() {
                        "timeout" => raw.known.timeout = map.next_value()?,
                        "headers" => raw.known.headers = map.next_value()?,
                        other => {
                            raw.others.push(NamedEntry { name: other.to_owned(), place, value: map.next_value()? });
                        }
                    }
                }
                Ok(raw)
            }
        }

        deserializer.deserialize_struct("Middleware", &["timeout", "headers", super::reader::ANY_KEY], MiddlewareKeys)
    }
}
