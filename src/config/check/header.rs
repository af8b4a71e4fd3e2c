//! Header and query matches of a route, and the changes it makes to headers.

use http::header::{self, HeaderName, HeaderValue};

use super::Check;
use super::value::pattern;
use crate::config::error::Problem;
use crate::config::field::{Entry, Field, Named};
use crate::config::kind::Sensitive;
use crate::config::raw;
use crate::config::report::Place;
use crate::config::{HeaderEdits, HeaderMatch, QueryMatch, ValueMatch};

/// Which message is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// The one to the backend.
    Request,
    /// The one to the client.
    Response,
    /// The one that a health check sends.
    HealthCheck,
}

/// Headers that say where a message ends or belong to one connection only (RFC 9110 §7.6.1): the proxy writes them, and a
/// wrong one would let a message be read as two.
const OWNED: [&str; 8] =
    ["content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "keep-alive", "proxy-connection"];

/// `headers = { .. }`
pub(super) fn header_matches(check: &Check<'_>, field: &Field<Named<raw::ValueMatch>>) -> Vec<HeaderMatch> {
    let mut matches: Vec<HeaderMatch> = Vec::new();
    for entry in field.entries() {
        let name = header_name(check, entry.place, &entry.name);
        let (Some(name), Some(value)) = (name, value_match(check, entry)) else { continue };
        if matches.iter().any(|other| other.name == name) {
            check.add(
                entry.place,
                Problem::error(format!("header {} is there twice", check.quote(entry.place, name.as_str()))),
            );
        }
        matches.push(HeaderMatch { name, value });
    }
    matches
}

/// `query = { .. }`
pub(super) fn query_matches(check: &Check<'_>, field: &Field<Named<raw::ValueMatch>>) -> Vec<QueryMatch> {
    field
        .entries()
        .iter()
        .filter_map(|entry| Some(QueryMatch { name: entry.name.clone(), value: value_match(check, entry)? }))
        .collect()
}

fn value_match(check: &Check<'_>, entry: &Entry<raw::ValueMatch>) -> Option<ValueMatch> {
    let (place, value) = entry.value.given()?;
    let table = match value {
        raw::ValueMatch::String(text) => return Some(ValueMatch::Exact(text.reveal().to_owned())),
        raw::ValueMatch::Table(table) => table,
    };
    match (&table.present, &table.regex) {
        (Field::Given(_, true), Field::Absent) => Some(ValueMatch::Present),
        (Field::Given(_, false), Field::Absent) => Some(ValueMatch::Absent),
        (Field::Absent, Field::Given(place, text)) => pattern(check, *place, text.reveal()).map(ValueMatch::Regex),
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

/// `request_headers = { .. }`, `response_headers = { .. }`
pub(super) fn edits(check: &Check<'_>, field: &Field<raw::HeaderEdits>, direction: Direction) -> HeaderEdits {
    let Some(raw) = field.value() else { return HeaderEdits::default() };
    let mut edits = HeaderEdits {
        remove: Vec::new(),
        set: values(check, &raw.set, direction),
        add: values(check, &raw.add, direction),
    };
    for (place, text) in raw.remove.members() {
        let Some(name) = editable(check, place, text, direction) else { continue };
        if edits.remove.contains(&name) {
            check.add(place, Problem::error(format!("header {} is there twice", check.quote(place, text))));
        }
        edits.remove.push(name);
    }
    edits
}

/// Headers with their values.
pub(super) fn values(
    check: &Check<'_>,
    field: &Field<Named<Sensitive>>,
    direction: Direction,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut values: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for entry in field.entries() {
        let name = editable(check, entry.place, &entry.name, direction);
        let value = entry.value.given().and_then(|(place, text)| header_value(check, place, text.reveal()));
        let (Some(name), Some(value)) = (name, value) else { continue };
        if values.iter().any(|(other, _)| *other == name) {
            check.add(
                entry.place,
                Problem::error(format!("header {} is there twice", check.quote(entry.place, name.as_str()))),
            );
        }
        values.push((name, value));
    }
    values
}

/// The name of a header that a route may change.
fn editable(check: &Check<'_>, place: Place, text: &str, direction: Direction) -> Option<HeaderName> {
    let name = header_name(check, place, text)?;
    if OWNED.contains(&name.as_str()) {
        let problem = Problem::error(format!("header {} belongs to the proxy", check.quote(place, name.as_str())));
        check.add(place, problem.expected("a header that does not frame messages or concern the connection"));
        return None;
    }
    if direction == Direction::Request && name == header::HOST {
        let problem = Problem::error("the host is not changed here");
        check.add(place, problem.expected("the route's key host = \"backend.example.com\""));
        return None;
    }
    if direction == Direction::HealthCheck && name == header::HOST {
        let problem = Problem::error("the host is not given here");
        check.add(place, problem.expected("the check's key host = \"backend.example.com\""));
        return None;
    }
    Some(name)
}

fn header_name(check: &Check<'_>, place: Place, text: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok();
    if name.is_none() {
        let problem = Problem::error(format!("{} is not the name of a header", check.quote(place, text)));
        check.add(place, problem.expected("letters, digits and hyphens, such as \"x-tenant\""));
    }
    name
}

/// The value of a header: one line, printable, ASCII. What is wrong with it is said without saying it.
pub(super) fn header_value(check: &Check<'_>, place: Place, text: &str) -> Option<HeaderValue> {
    let value = HeaderValue::from_str(text).ok().filter(|_| text.is_ascii() && text.trim() == text);
    if value.is_none() {
        let problem = Problem::error(format!("a header cannot have this value: {}", fault(text)));
        check.add(place, problem.expected("one line of printable ASCII without spaces around it"));
    }
    value
}

/// Where the value of a header goes wrong first.
fn fault(text: &str) -> String {
    let what = |c: char| match c {
        '\n' | '\r' => "the end of a line",
        c if c.is_control() => "a control character",
        _ => "not ASCII",
    };
    let wrong = text.chars().zip(1..).find(|(c, _)| !(c.is_ascii_graphic() || matches!(c, ' ' | '\t')));
    match wrong {
        Some((c, position)) => format!("character {position} is {}", what(c)),
        None if text.starts_with([' ', '\t']) => "it begins with a space".into(),
        None => "it ends with a space".into(),
    }
}
