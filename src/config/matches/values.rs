//! Headers and parameters of the query that a route wants.

use std::fmt;

use http::header::HeaderName;
use regex::Regex;
use serde::Deserialize;
use serde_json::json;

use crate::config::check::{Check, value};
use crate::config::error::Problem;
use crate::config::field::{Field, Named, NamedEntry};
use crate::config::form::{About, Form, Inner, Literal, Many, Maybe, Switch, part_about};
use crate::config::header::header_name;
use crate::config::json_tree::Tree;
use crate::config::report::Place;
use crate::config::table::Table;
use crate::config::visibility::{Kind, OfKind, Sensitive};

/// What a value must be.
#[derive(Clone)]
pub enum ValueMatch {
    /// Anything, but there.
    Present,
    /// Not there at all.
    Absent,
    /// Exactly this.
    Exact(String),
    /// A regular expression over the whole value (anchored at both ends).
    Regex(regex::Regex),
}

impl PartialEq for ValueMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Present, Self::Present) | (Self::Absent, Self::Absent) => true,
            (Self::Exact(a), Self::Exact(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl fmt::Debug for ValueMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("Present"),
            Self::Absent => f.write_str("Absent"),
            Self::Exact(text) => write!(f, "Exact({})", Kind::Sensitive.show(text)),
            Self::Regex(regex) => write!(f, "Regex({})", Kind::Sensitive.show(regex.as_str())),
        }
    }
}

/// A header that must match; any of its values may.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatch {
    /// Which header.
    pub name: HeaderName,
    /// What it must be.
    pub value: ValueMatch,
}

/// A query parameter that must match, compared after percent-decoding; any of its values may.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryMatch {
    /// Which parameter.
    pub name: String,
    /// What it must be.
    pub value: ValueMatch,
}

/// What a header or a parameter must be, as the file has it.
#[derive(Debug, Deserialize)]
#[serde(rename = "a string, { regex = \"..\" }, { present = true } or { present = false }", rename_all = "snake_case")]
pub(crate) enum WrittenValueMatch {
    String(Sensitive),
    Table(WrittenValueTable),
}

impl OfKind for WrittenValueMatch {
    const KIND: Kind = Kind::Sensitive;
}

/// What a header or a parameter must be; one of the two.
#[derive(Clone, PartialEq, Table)]
#[table(reload = Requests)]
pub(crate) struct ValueTable {
    /// Whether it has to be there (`true`), whatever its value, or must not be there (`false`).
    #[key(Maybe(Switch), example = true)]
    present: Option<bool>,
    /// A pattern that matches the whole value.
    #[key(Maybe(ValueRegex), example = "2.*")]
    regex: Option<ValueExpression>,
}

/// A regular expression over a whole value, anchored at both ends.
#[derive(Clone)]
struct ValueExpression(Regex);

impl PartialEq for ValueExpression {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

struct ValueRegex;

impl Form<ValueExpression> for ValueRegex {
    type Written = Sensitive;

    fn read(&self, check: &Check<'_>, place: Place, text: &Sensitive) -> Option<ValueExpression> {
        value::pattern(check, place, text.reveal()).map(ValueExpression)
    }

    fn show(&self, value: &ValueExpression) -> Option<Tree> {
        Some(self.tell(value).into())
    }

    fn tell(&self, value: &ValueExpression) -> String {
        value::written(&value.0).to_owned()
    }

    fn about(&self) -> About {
        About::new::<Sensitive>("a regular expression", json!({ "type": "string" }))
    }
}

impl WrittenValueMatch {
    fn read(&self, check: &Check<'_>, place: Place) -> Option<ValueMatch> {
        let table = match self {
            Self::String(text) => return Some(ValueMatch::Exact(text.reveal().to_owned())),
            Self::Table(table) => table,
        };
        match (&table.present, &table.regex) {
            (Field::Given(_, true), Field::Absent) => Some(ValueMatch::Present),
            (Field::Given(_, false), Field::Absent) => Some(ValueMatch::Absent),
            (Field::Absent, Field::Given(..)) => {
                ValueTable::read(check, place, table)?.regex.map(|ValueExpression(regex)| ValueMatch::Regex(regex))
            }
            (Field::Absent, Field::Absent) => {
                let problem = Problem::error("it says nothing about the value");
                check.add(place, problem.expected("{ present = true }, { present = false } or { regex = \"..\" }"));
                None
            }
            (Field::Given(place, _), Field::Given(..)) => {
                check.add(*place, Problem::error("there is a regex too").expected("only one of present and regex"));
                None
            }
            (Field::Wrong(_), _) | (_, Field::Wrong(_)) => None,
        }
    }

    /// As `/config` has it.
    fn show(value: &ValueMatch) -> Tree {
        let (present, regex) = match value {
            ValueMatch::Exact(text) => return text.as_str().into(),
            ValueMatch::Present => (Some(true), None),
            ValueMatch::Absent => (Some(false), None),
            ValueMatch::Regex(regex) => (None, Some(ValueExpression(regex.clone()))),
        };
        ValueTable { present, regex }.tree()
    }

    fn about(form: &str) -> About {
        let table = part_about::<ValueTable>();
        let schema =
            json!({ "type": "object", "additionalProperties": { "anyOf": [{ "type": "string" }, table.schema] } });
        let inner = table.inner.map(|inner| Inner { many: Many::Named, ..inner });
        About { form: form.into(), schema, kind: Kind::Sensitive, inner }
    }
}

/// Headers that a request must have, all of them.
pub(crate) struct HeaderMatches;

impl Form<Vec<HeaderMatch>> for HeaderMatches {
    type Written = Named<WrittenValueMatch>;

    fn read(&self, check: &Check<'_>, _: Place, written: &Self::Written) -> Option<Vec<HeaderMatch>> {
        let mut matches: Vec<HeaderMatch> = Vec::new();
        for NamedEntry { name: text, place, value } in &written.0 {
            let name = header_name(check, *place, text);
            let value = value.given().and_then(|(place, value)| value.read(check, place));
            let (Some(name), Some(value)) = (name, value) else { continue };
            if matches.iter().any(|other| other.name == name) {
                let shown = check.quote(*place, name.as_str());
                check.add(*place, Problem::error(format!("header {shown} is there twice")));
            }
            matches.push(HeaderMatch { name, value });
        }
        Some(matches)
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Vec<HeaderMatch> {
        Vec::new()
    }

    fn show(&self, value: &Vec<HeaderMatch>) -> Option<Tree> {
        let entries = value.iter().map(|it| (it.name.to_string(), WrittenValueMatch::show(&it.value)));
        (!value.is_empty()).then(|| Tree::Table(entries.collect()))
    }

    fn tell(&self, value: &Vec<HeaderMatch>) -> String {
        value.iter().map(|it| it.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn about(&self) -> About {
        WrittenValueMatch::about("a table, each header with a text, `{ regex = \"..\" }` or `{ present = .. }`")
    }
}

/// Parameters that the query of a request must have, all of them.
pub(crate) struct QueryMatches;

impl Form<Vec<QueryMatch>> for QueryMatches {
    type Written = Named<WrittenValueMatch>;

    fn read(&self, check: &Check<'_>, _: Place, written: &Self::Written) -> Option<Vec<QueryMatch>> {
        let matches = written.0.iter().filter_map(|entry| {
            let (place, value) = entry.value.given()?;
            Some(QueryMatch { name: entry.name.clone(), value: value.read(check, place)? })
        });
        Some(matches.collect())
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Vec<QueryMatch> {
        Vec::new()
    }

    fn show(&self, value: &Vec<QueryMatch>) -> Option<Tree> {
        let entries = value.iter().map(|it| (it.name.clone(), WrittenValueMatch::show(&it.value)));
        (!value.is_empty()).then(|| Tree::Table(entries.collect()))
    }

    fn tell(&self, value: &Vec<QueryMatch>) -> String {
        value.iter().map(|it| it.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn about(&self) -> About {
        WrittenValueMatch::about("a table, each parameter with a text, `{ regex = \"..\" }` or `{ present = .. }`")
    }
}
