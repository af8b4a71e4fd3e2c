//! What a route matches: hosts, paths, methods, headers and parameters of the query.

use std::fmt;
use std::net::Ipv6Addr;

use http::Method;
use http::header::HeaderName;
use regex::Regex;
use serde::Deserialize;
use serde_json::json;

use super::address::is_host_name;
use super::check::{Check, unreachable, value};
use super::difference::Changes;
use super::error::Problem;
use super::field::{Field, Named, NamedEntry};
use super::form::{About, Form, Inner, Literal, Many, Maybe, Switch, part_about};
use super::header::header_name;
use super::json_tree::Tree;
use super::report::Place;
use super::table::Table;
use super::visibility::{Kind, Location, OfKind, Sensitive, Word as Text};
use crate::target::{self, authority};

/// Which hosts match. Lower case, without port or final dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// The host itself: `api.example.com`.
    Exact(String),
    /// `*.example.com`, kept as `.example.com`: any host below it, however deep, but not `example.com`.
    Wildcard(String),
}

/// Which paths match, in the form that paths are matched in (see [`target::path`](crate::target::path)).
#[derive(Clone, Debug)]
pub enum PathPattern {
    /// The whole path.
    Exact(String),
    /// By whole segments: `/api` and `/api/` match `/api` and `/api/x`, not `/apix`. Kept without its final slash;
    /// the empty text matches every path.
    Prefix(String),
    /// A regular expression over the whole path (anchored at both ends).
    Regex(regex::Regex),
}

/// Every path.
impl Default for PathPattern {
    fn default() -> Self {
        Self::Prefix(String::new())
    }
}

impl PartialEq for PathPattern {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) | (Self::Prefix(a), Self::Prefix(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

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

/// Hosts of which any matches; `"*"` is every host.
pub(crate) struct Hosts;

impl Form<Vec<HostPattern>> for Hosts {
    type Written = Vec<Field<Location>>;

    fn read(&self, check: &Check<'_>, place: Place, written: &Self::Written) -> Option<Vec<HostPattern>> {
        refuse_empty(check, place, written, "hosts");
        let mut hosts = Vec::new();
        let mut every = false;
        for (place, text) in written.iter().filter_map(Field::given) {
            if text.as_str() == "*" {
                every = true;
                if written.len() > 1 {
                    let problem = Problem::error("\"*\" is every host already");
                    check.add(place, problem.expected("\"*\" alone, or no hosts key"));
                }
            } else if let Some(host) = host(check, place, text) {
                if hosts.contains(&host) {
                    check.add(place, Problem::error(format!("host {} is there twice", check.quote(place, text))));
                }
                hosts.push(host);
            }
        }
        Some(if every { Vec::new() } else { hosts })
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Vec<HostPattern> {
        Vec::new()
    }

    fn show(&self, value: &Vec<HostPattern>) -> Option<Tree> {
        some(value.iter().map(|host| host.to_string().into()).collect())
    }

    fn tell(&self, value: &Vec<HostPattern>) -> String {
        value.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    fn compare(&self, changes: &mut Changes, table: &str, words: &str, old: &Vec<HostPattern>, new: &Vec<HostPattern>) {
        let texts = |hosts: &[HostPattern]| hosts.iter().map(ToString::to_string).collect::<Vec<_>>();
        changes.told_members(Kind::Location, &format!("{table}{words}"), &texts(old), &texts(new));
    }

    fn about(&self) -> About {
        let host = json!({ "type": "string", "pattern": "^[^:/ ]+$|^\\[[^/ ]*\\]$|\\$\\{" });
        About::new::<Location>("an array of hosts", json!({ "type": "array", "minItems": 1, "items": host }))
    }
}

/// As the file writes it.
impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Wildcard(suffix) => write!(f, "*{suffix}"),
        }
    }
}

/// `None` for an empty list: a key that is left out means the same as one without values.
fn some(members: Vec<Tree>) -> Option<Tree> {
    (!members.is_empty()).then_some(Tree::List(members))
}

pub(super) fn refuse_empty<T>(check: &Check<'_>, place: Place, members: &[T], things: &str) {
    if members.is_empty() {
        let expected = format!("one at least, or no {things} key for all of them");
        check.add(place, Problem::error("an empty array, which nothing would match").expected(expected));
    }
}

fn host(check: &Check<'_>, place: Place, text: &str) -> Option<HostPattern> {
    let (wildcard, name) = text.strip_prefix("*.").map_or(("", text), |name| ("*.", name));
    // As requests name it: in lower case, without a final dot, other scripts as A-labels.
    let lower = match name.is_ascii() {
        true => text.to_ascii_lowercase(),
        false => authority::name(name).map_or_else(|| text.to_owned(), |name| format!("{wildcard}{name}")),
    };
    let plain = lower.strip_suffix('.').unwrap_or(&lower);
    let parsed = match plain.strip_prefix("*.") {
        Some(suffix) => is_host_name(suffix).then(|| HostPattern::Wildcard(format!(".{suffix}"))),
        None => is_host(plain).then(|| HostPattern::Exact(plain.to_owned())),
    };
    if parsed.is_none() {
        let without_port = plain.split_once("://").map_or(plain, |(_, rest)| rest);
        let without_port = without_port.split(['/', ':']).next().filter(|host| is_host(host)).map(str::to_owned);
        let problem = Problem::error(format!("{} is not a host", check.quote(place, text)));
        let expected = "a name without port, such as \"api.example.com\", \"*.example.com\" or \"*\"";
        check.add(place, problem.expected(expected).suggest(without_port));
    }
    parsed
}

/// A name, or an IP address as a `Host` header has it.
fn is_host(text: &str) -> bool {
    let v6 = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    v6.map_or_else(
        || is_host_name(text) || text.parse::<std::net::Ipv4Addr>().is_ok(),
        |text| text.parse::<Ipv6Addr>().is_ok(),
    )
}

/// A path in the form that paths of requests are compared in.
pub(crate) struct MatchedPath;

impl Form<String> for MatchedPath {
    type Written = Location;

    fn read(&self, check: &Check<'_>, place: Place, text: &Location) -> Option<String> {
        matched_path(check, place, text)
    }

    fn show(&self, value: &String) -> Option<Tree> {
        Some(value.as_str().into())
    }

    fn tell(&self, value: &String) -> String {
        value.clone()
    }

    fn about(&self) -> About {
        about_path()
    }
}

/// A path by whole segments. Kept without its final slash; empty is every path.
pub(crate) struct Prefix;

impl Form<String> for Prefix {
    type Written = Location;

    fn read(&self, check: &Check<'_>, place: Place, text: &Location) -> Option<String> {
        let path = matched_path(check, place, text)?;
        Some(path.strip_suffix('/').unwrap_or(&path).to_owned())
    }

    fn show(&self, value: &String) -> Option<Tree> {
        Some(self.tell(value).into())
    }

    fn tell(&self, value: &String) -> String {
        format!("{value}/")
    }

    fn about(&self) -> About {
        about_path()
    }
}

/// A path as a request line could have it. Kept without its final slash.
pub(crate) struct PlainPath;

impl Form<String> for PlainPath {
    type Written = Location;

    fn read(&self, check: &Check<'_>, place: Place, text: &Location) -> Option<String> {
        path_text(check, place, text).map(|text| text.strip_suffix('/').unwrap_or(text).to_owned())
    }

    fn show(&self, value: &String) -> Option<Tree> {
        Some(self.tell(value).into())
    }

    fn tell(&self, value: &String) -> String {
        if value.is_empty() { "/".to_owned() } else { value.clone() }
    }

    fn about(&self) -> About {
        about_path()
    }
}

fn about_path() -> About {
    About::new::<Location>("a path", json!({ "type": "string", "pattern": "^/[^ ?#]*$|\\$\\{" }))
}

/// A pattern over a whole path.
pub(crate) struct PathRegex;

impl Form<PathExpression> for PathRegex {
    type Written = Text;

    fn read(&self, check: &Check<'_>, place: Place, text: &Text) -> Option<PathExpression> {
        path_regex(check, place, text).map(PathExpression)
    }

    fn show(&self, value: &PathExpression) -> Option<Tree> {
        Some(value::written(&value.0).into())
    }

    fn tell(&self, value: &PathExpression) -> String {
        value::written(&value.0).to_owned()
    }

    fn about(&self) -> About {
        About::new::<Text>("a regular expression", json!({ "type": "string" }))
    }
}

/// A regular expression over a whole path, anchored at both ends. Two are equal where their texts are.
#[derive(Clone, Debug)]
pub struct PathExpression(pub Regex);

impl PartialEq for PathExpression {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// A pattern over the whole path.
fn path_regex(check: &Check<'_>, place: Place, text: &str) -> Option<Regex> {
    let regex = value::pattern(check, place, text)?;
    if let Some(why) = unreachable::matches_nothing(text) {
        let begins_plainly = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let suggestion = begins_plainly.then(|| format!("/{text}"));
        check.add(place, Problem::warning(why).expected("the slash in the pattern too").suggest(suggestion));
    }
    Some(regex)
}

/// A path in the form that paths of requests are compared in.
fn matched_path(check: &Check<'_>, place: Place, text: &str) -> Option<String> {
    if !text.is_ascii() && text.starts_with('/') {
        let escaped: String = text
            .bytes()
            .map(|byte| if byte.is_ascii() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
            .collect();
        return matched_path(check, place, &escaped);
    }
    let text = path_text(check, place, text)?;
    let problem = match target::path::tidy(text) {
        Ok(tidy) if target::path::has_dots(&tidy) => Problem::error("a path with a dot segment matches no request"),
        Ok(tidy) => {
            let found = target::path::matched(&tidy);
            if found.with_parameters.is_some() {
                let problem = Problem::error("paths are compared without the parameters of their segments (\";\")");
                check.add(place, problem.expected("the path without them, or a path_regex").suggest(Some(found.path)));
                return None;
            }
            if found.path != text {
                let problem = Problem::warning(format!(
                    "{} is read as {}",
                    check.quote(place, text),
                    check.quote(place, &found.path)
                ));
                check.add(place, problem.suggest(Some(found.path.clone())));
            }
            return Some(found.path);
        }
        Err(target::path::Nul) => Problem::error("a path with an escaped NUL matches no request"),
    };
    check.add(place, problem.expected("the path that is meant"));
    None
}

/// A path as a request line could have it.
fn path_text<'t>(check: &Check<'_>, place: Place, text: &'t str) -> Option<&'t str> {
    let legal = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#');
    if text.starts_with('/') && legal(text) {
        return Some(text);
    }
    let problem = Problem::error(format!("{} is not a path", check.quote(place, text)));
    let expected = "a slash first, and no spaces, \"?\", \"#\" or characters that must be percent-encoded";
    let suggestion = (!text.is_empty() && !text.starts_with('/') && legal(text)).then(|| format!("/{text}"));
    check.add(place, problem.expected(expected).suggest(suggestion));
    None
}

/// Methods of which any matches.
pub(crate) struct Methods;

impl Form<Vec<Method>> for Methods {
    type Written = Vec<Field<Text>>;

    fn read(&self, check: &Check<'_>, place: Place, written: &Self::Written) -> Option<Vec<Method>> {
        refuse_empty(check, place, written, "methods");
        warn_of_refused(check, written);
        let mut methods = Vec::new();
        for (place, text) in written.iter().filter_map(Field::given) {
            let upper = text.to_ascii_uppercase();
            match Method::from_bytes(text.as_bytes()) {
                Ok(method) if upper == text.as_str() => {
                    if methods.contains(&method) {
                        check.add(place, Problem::error(format!("method {} is there twice", check.quote(place, text))));
                    }
                    methods.push(method);
                }
                _ => {
                    let suggestion = Method::from_bytes(upper.as_bytes()).is_ok().then_some(upper);
                    let problem = Problem::error(format!("{} is not a method", check.quote(place, text)));
                    check.add(place, problem.expected("capitals, such as \"GET\"").suggest(suggestion));
                }
            }
        }
        Some(methods)
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Vec<Method> {
        Vec::new()
    }

    fn show(&self, value: &Vec<Method>) -> Option<Tree> {
        some(value.iter().map(|method| method.as_str().into()).collect())
    }

    fn tell(&self, value: &Vec<Method>) -> String {
        value.iter().map(Method::as_str).collect::<Vec<_>>().join(", ")
    }

    fn compare(&self, changes: &mut Changes, table: &str, words: &str, old: &Vec<Method>, new: &Vec<Method>) {
        let texts = |methods: &[Method]| methods.iter().map(ToString::to_string).collect::<Vec<_>>();
        changes.told_members(Kind::Plain, &format!("{table}{words}"), &texts(old), &texts(new));
    }

    fn about(&self) -> About {
        let method = json!({ "type": "string", "pattern": "^[^a-z ]+$|\\$\\{" });
        About::new::<Text>("an array of methods", json!({ "type": "array", "minItems": 1, "items": method }))
    }
}

/// Both are refused before a route is looked for.
fn warn_of_refused(check: &Check<'_>, written: &[Field<Text>]) {
    let is_refused = |text: &Text| matches!(text.as_str(), "CONNECT" | "TRACE");
    let mut given = written.iter().filter_map(Field::given).peekable();
    let first = given.peek().map(|(place, _)| *place);
    if let (Some(place), true) = (first, given.all(|(_, text)| is_refused(text))) {
        let problem = Problem::warning("never reached: CONNECT and TRACE are refused before a route is looked for");
        check.add(place, problem.expected("other methods, or not this route"));
    }
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
