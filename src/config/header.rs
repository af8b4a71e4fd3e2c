//! Headers and their values: what a route and health checks set, and what a route changes.

use std::fmt;
use std::ops::Deref;

use http::header::{self, HeaderName, HeaderValue};
use serde_json::json;

use super::address::is_host_name;
use super::check::Check;
use super::error::Problem;
use super::field::{Field, Named, NamedEntry};
use super::form::{About, Form, List, Literal};
use super::json_tree::Tree;
use super::report::Place;
use super::table::Table;
use super::visibility::{Kind, Location, Sensitive, Word as Text};

/// Changes to the headers of a message: removed first, then set, then added.
#[derive(Clone, Default, PartialEq, Eq, Table)]
#[table(check = Self::check, reload = Requests)]
pub struct HeaderEdits {
    /// Headers that have this value alone from then on.
    #[key(Headers(Direction::Edits), otherwise = "none")]
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Values that come beside those that are there.
    #[key(Headers(Direction::Edits), otherwise = "none")]
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Headers of which all values go.
    #[key(List(EditableName), otherwise = "none", shown_if = Self::removes)]
    pub remove: Vec<HeaderName>,
}

impl fmt::Debug for HeaderEdits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { remove, set, add } = self;
        let fields = &mut f.debug_struct("HeaderEdits");
        fields.field("remove", remove).field("set", &NamesOf(set)).field("add", &NamesOf(add)).finish()
    }
}

impl HeaderEdits {
    /// The fields of which nothing that came is left.
    pub fn touched(&self) -> impl Iterator<Item = &HeaderName> {
        self.remove.iter().chain(self.set.iter().map(|(name, _)| name))
    }

    /// The fields that a change is made to.
    pub fn names(&self) -> impl Iterator<Item = &HeaderName> + Clone {
        self.remove.iter().chain(self.set.iter().chain(&self.add).map(|(name, _)| name))
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    fn removes(&self) -> bool {
        !self.remove.is_empty()
    }

    fn check(check: &Check<'_>, _: Place, written: &WrittenHeaderEdits, it: Self) -> Option<Self> {
        let mut seen = Vec::new();
        for (place, text) in written.remove.members() {
            let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else { continue };
            if seen.contains(&name) && it.remove.contains(&name) {
                check.add(place, Problem::error(format!("header {} is there twice", check.quote(place, text))));
            }
            seen.push(name);
        }
        Some(it)
    }

    /// Refuses a change of the host, for which a route has a key.
    pub(crate) fn refuse_host(check: &Check<'_>, field: &Field<WrittenHeaderEdits>) {
        let Some(written) = field.value() else { return };
        let names = [&written.set, &written.add].into_iter().flat_map(|field| field.entries());
        let names = names.map(|entry| (entry.place, entry.name.as_str()));
        let removed = written.remove.members().map(|(place, name)| (place, name.as_str()));
        for (place, _) in names.chain(removed).filter(|(_, name)| name.eq_ignore_ascii_case("host")) {
            let problem = Problem::error("the host is not changed here");
            check.add(place, problem.expected("the route's key host = \"backend.example.com\""));
        }
    }
}

/// Headers with their values, which `Debug` does not show.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HeaderValues(pub Vec<(HeaderName, HeaderValue)>);

impl From<Vec<(HeaderName, HeaderValue)>> for HeaderValues {
    fn from(values: Vec<(HeaderName, HeaderValue)>) -> Self {
        Self(values)
    }
}

impl AsRef<[(HeaderName, HeaderValue)]> for HeaderValues {
    fn as_ref(&self) -> &[(HeaderName, HeaderValue)] {
        &self.0
    }
}

impl Deref for HeaderValues {
    type Target = [(HeaderName, HeaderValue)];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl fmt::Debug for HeaderValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        NamesOf(&self.0).fmt(f)
    }
}

/// Headers without their values, for `Debug`.
struct NamesOf<'a>(&'a [(HeaderName, HeaderValue)]);

impl fmt::Debug for NamesOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// Which message is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// One that passes by.
    Edits,
    /// The one that a health check sends.
    HealthCheck,
}

/// Headers that say where a message ends or belong to one connection only (RFC 9110 §7.6.1): the proxy writes them, and a
/// wrong one would let a message be read as two.
const OWNED: [&str; 8] =
    ["content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "keep-alive", "proxy-connection"];

/// Headers with their values, for such a message.
pub(crate) struct Headers(pub(crate) Direction);

impl<V> Form<V> for Headers
where
    V: From<Vec<(HeaderName, HeaderValue)>> + AsRef<[(HeaderName, HeaderValue)]>,
{
    type Written = Named<Sensitive>;

    fn read(&self, check: &Check<'_>, _: Place, written: &Named<Sensitive>) -> Option<V> {
        Some(values(check, &written.0, self.0).into())
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> V {
        Vec::new().into()
    }

    fn show(&self, value: &V) -> Option<Tree> {
        let values = value.as_ref().iter().map(|(name, value)| (name.to_string(), lossy(value).into()));
        (!value.as_ref().is_empty()).then(|| Tree::Table(values.collect()))
    }

    /// By their names.
    fn tell(&self, value: &V) -> String {
        value.as_ref().iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn about(&self) -> About {
        let schema = json!({ "type": "object", "additionalProperties": { "type": "string" } });
        About { kind: Kind::Sensitive, ..About::new::<Sensitive>("a table, each header with its value", schema) }
    }
}

/// Headers with their values.
fn values(
    check: &Check<'_>,
    entries: &[NamedEntry<Sensitive>],
    direction: Direction,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut values: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for entry in entries {
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

/// The name of a header that a route may remove.
struct EditableName;

impl Form<HeaderName> for EditableName {
    type Written = Text;

    fn read(&self, check: &Check<'_>, place: Place, text: &Text) -> Option<HeaderName> {
        editable(check, place, text, Direction::Edits)
    }

    fn show(&self, value: &HeaderName) -> Option<Tree> {
        Some(value.as_str().into())
    }

    fn tell(&self, value: &HeaderName) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        About::new::<Text>(
            "the name of a header",
            json!({ "type": "string", "minLength": 1, "not": { "enum": OWNED } }),
        )
    }
}

/// The name of a header that a route may change.
fn editable(check: &Check<'_>, place: Place, text: &str, direction: Direction) -> Option<HeaderName> {
    let name = header_name(check, place, text)?;
    if OWNED.contains(&name.as_str()) {
        let problem = Problem::error(format!("header {} belongs to the proxy", check.quote(place, name.as_str())));
        check.add(place, problem.expected("a header that does not frame messages or concern the connection"));
        return None;
    }
    if direction == Direction::HealthCheck && name == header::HOST {
        let problem = Problem::error("the host is not given here");
        check.add(place, problem.expected("the check's key host = \"backend.example.com\""));
        return None;
    }
    Some(name)
}

pub(super) fn header_name(check: &Check<'_>, place: Place, text: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok();
    if name.is_none() {
        let problem = Problem::error(format!("{} is not the name of a header", check.quote(place, text)));
        check.add(place, problem.expected("letters, digits and hyphens, such as \"x-tenant\""));
    }
    name
}

/// The value of a header: one line, printable, ASCII. What is wrong with it is said without saying it.
fn header_value(check: &Check<'_>, place: Place, text: &str) -> Option<HeaderValue> {
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

/// The value of a header, called so in the reference.
pub(crate) struct ValueText(pub(crate) &'static str);

impl Form<HeaderValue> for ValueText {
    type Written = Text;

    fn read(&self, check: &Check<'_>, place: Place, text: &Text) -> Option<HeaderValue> {
        header_value(check, place, text)
    }

    fn show(&self, value: &HeaderValue) -> Option<Tree> {
        Some(lossy(value).into())
    }

    fn tell(&self, value: &HeaderValue) -> String {
        lossy(value)
    }

    fn about(&self) -> About {
        About::new::<Text>(self.0, json!({ "type": "string" }))
    }
}

/// A host with its port if any. In problems, what is expected is said so.
pub(crate) struct Host(pub(crate) &'static str);

impl Form<HeaderValue> for Host {
    type Written = Location;

    fn read(&self, check: &Check<'_>, place: Place, text: &Location) -> Option<HeaderValue> {
        host(check, place, text, self.0)
    }

    fn show(&self, value: &HeaderValue) -> Option<Tree> {
        Some(lossy(value).into())
    }

    fn tell(&self, value: &HeaderValue) -> String {
        lossy(value)
    }

    fn about(&self) -> About {
        About::new::<Location>("a host, with its port if any", json!({ "type": "string", "minLength": 1 }))
    }
}

/// The value of a `Host` header.
fn host(check: &Check<'_>, place: Place, text: &str, expected: &str) -> Option<HeaderValue> {
    let valid = text.parse::<http::uri::Authority>().is_ok_and(|authority| {
        let host = authority.host();
        !text.contains('@')
            && !text.ends_with(':')
            && (is_host_name(host) || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok())
            && text.strip_prefix(host).is_some_and(|port| port.is_empty() || authority.port_u16().is_some())
    });
    if !valid {
        check.add(place, Problem::error(format!("{} is not a host", check.quote(place, text))).expected(expected));
        return None;
    }
    header_value(check, place, text)
}

pub(super) fn lossy(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}
