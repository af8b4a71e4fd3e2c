//! `[upstream.NAME.health_check]`: how backends are asked whether they are well.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::Method;
use http::header::HeaderValue;
use http::uri::PathAndQuery;
use serde_json::json;

use super::check::{Check, value};
use super::error::Problem;
use super::field::Field;
use super::form::{About, Else, Form, Maybe, OneOf, Size, Timeout, Whole, Word, variable};
use super::header::{Direction, HeaderValues, Headers, Host};
use super::json_tree::Tree;
use super::raw;
use super::report::Place;
use super::table::Table;
use super::units;
use super::visibility::{Kind, Location, Sensitive, Word as Text};

/// Asks the backends whether they are well; the table alone switches it on.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(enabled = true, check = Self::check, reload = Requests)]
pub struct HealthCheckConfig {
    /// What is asked: a request by HTTP (`http`); whether a connection can be made, and with TLS a handshake (`tcp`), with none of the keys up to
    /// `body_limit`; or `grpc.health.v1.Health` by HTTP/2 (`grpc`), which of these has `service`, `host` and `headers`.
    #[key(OneOf, name = "type", default = "http")]
    pub kind: ProbeKind,
    /// Path and query of the request. A page of its own, such as `/health`, says more than the front page.
    #[key(ProbePath, default = "/", shown_if = Self::is_http)]
    pub path: ProbeTarget,
    /// Whose health a `grpc` check asks for; empty is that of the backend as a whole.
    #[key(GrpcService, default = "", shown_if = Self::is_grpc)]
    pub service: String,
    /// The `Host` header, or the authority.
    #[key(
        Else(Host("a name such as \"backend.example.com\", with its port if any"), "the backend's"),
        otherwise = "the backend's address"
    )]
    pub host: Option<HeaderValue>,
    /// The method of the request, which has no body.
    #[key(ProbeMethod, default = "GET", shown_if = Self::is_http)]
    pub method: Method,
    /// Further headers; they win over the check's own.
    #[key(Headers(Direction::HealthCheck), otherwise = "none")]
    pub headers: HeaderValues,
    /// Statuses, and ranges of them, of which any is good. A redirect is not among them by default: it often leads to a login page.
    #[key(StatusRanges, default = ["200-299"], shown_if = Self::is_http)]
    pub statuses: Vec<RangeInclusive<u16>>,
    /// A pattern that the body must have in it, anywhere unless it is anchored; without one the body is not read.
    #[key(Maybe(Pattern), example = "ok")]
    pub body: Option<BodyPattern>,
    /// Bytes of the body that are read and searched; what comes after is not.
    #[key(Size("1", "1MiB"), default = "64KiB", shown_if = Self::looks_at_bodies)]
    pub body_limit: usize,
    /// Another port than that of requests.
    #[key(Else(Whole(1..=65_535), "the backend's"), otherwise = "that of requests")]
    pub port: Option<u16>,
    /// From the beginning of one check to that of the next, `10ms` at least. Checks of many backends are spread over it.
    #[key(Timeout, default = "5s")]
    pub interval: Duration,
    /// The same while the last check contradicts what is known: is it a slip or an outage? At most `interval`, which shortens it by itself.
    #[key(Timeout, default = "1s")]
    pub interval_in_doubt: Duration,
    /// Each interval is longer or shorter by up to so many hundredths, at random, so that several balancers do not keep step.
    #[key(Whole(0..=50), default = 10)]
    pub jitter_percent: u8,
    /// For a whole check, the connection included. At most `interval`, which shortens it by itself.
    #[key(Timeout, default = "2s")]
    pub timeout: Duration,
    /// Failed checks in a row that make a backend unhealthy: one that was lost is no outage.
    #[key(Whole(1..=1000), default = 3)]
    pub unhealthy_after: u32,
    /// Passed checks in a row that make it healthy again: a backend that goes up and down stays out.
    #[key(Whole(1..=1000), default = 2)]
    pub healthy_after: u32,
    /// What a backend counts as before it was checked. With `first_check` its first check decides alone; before that, the backends that an upstream
    /// begins with are used, so that a start refuses no request, and one that joins others waits.
    #[key(OneOf, default = "first_check")]
    pub initial: InitialHealth,
}

/// What a health check asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Word)]
pub enum ProbeKind {
    /// Whether a request is answered as it should be.
    Http,
    /// Whether a connection can be made.
    Tcp,
    /// What the backend's own health service says (`grpc.health.v1.Health/Check`).
    Grpc,
}

/// What a backend counts as before it was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Word)]
pub enum InitialHealth {
    /// Healthy, until `unhealthy_after` checks say otherwise.
    Healthy,
    /// Unhealthy, until `healthy_after` checks say otherwise.
    Unhealthy,
    /// What its first check says. Before that, the backends that an upstream begins with are used, and one that joins
    /// others is not.
    FirstCheck,
}

/// Below this a check is a flood.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

impl HealthCheckConfig {
    fn is_http(&self) -> bool {
        self.kind == ProbeKind::Http
    }

    fn is_grpc(&self) -> bool {
        self.kind == ProbeKind::Grpc
    }

    fn looks_at_bodies(&self) -> bool {
        self.is_http() && self.body.is_some()
    }

    fn check(check: &Check<'_>, _: Place, written: &WrittenHealthCheckConfig, mut it: Self) -> Option<Self> {
        it.refuse_keys_of_others(check, written);
        if it.is_http() {
            it.check_body(check, written);
        }
        refuse_short(check, &written.interval, it.interval, INTERVAL_MIN);
        let within = |field, value, least| within(check, written, field, value, it.interval, least);
        let in_doubt = within(&written.interval_in_doubt, it.interval_in_doubt, INTERVAL_MIN);
        let timeout = within(&written.timeout, it.timeout, Duration::ZERO);
        (it.interval_in_doubt, it.timeout) = (in_doubt, timeout);
        Some(it)
    }

    /// Keys that a check of this kind has no use for.
    fn refuse_keys_of_others(&self, check: &Check<'_>, written: &WrittenHealthCheckConfig) {
        // The keys of a request, of one by HTTP alone, and of gRPC alone.
        let request = [written.host.place(), written.headers.place()];
        let http = [written.path.place(), written.method.place(), written.statuses.place()];
        let http = [&http[..], &[written.body.place(), written.body_limit.place()]].concat();
        let refuse = |keys: &[Option<Place>], what: &str, expected: &str| {
            for place in keys.iter().flatten() {
                check.add(*place, Problem::error(what).expected(expected));
            }
        };
        match self.kind {
            ProbeKind::Http => {}
            ProbeKind::Tcp => {
                let what = "a check of type tcp only connects";
                refuse(&[&request[..], &http].concat(), what, "type = \"http\", or not this key");
            }
            ProbeKind::Grpc => {
                let what = "a check of type grpc asks the health service of gRPC";
                refuse(&http, what, "type = \"http\", or not this key");
            }
        }
        if self.kind != ProbeKind::Grpc {
            let what = "only the health service of gRPC knows services";
            refuse(&[written.service.place()], what, "type = \"grpc\", or not this key");
        }
    }

    fn check_body(&self, check: &Check<'_>, written: &WrittenHealthCheckConfig) {
        if let (Some((place, _)), None) = (written.body_limit.given(), written.body.place()) {
            check.add(place, Problem::error("no body is looked at").expected("body = \"..\" too, or not this key"));
        }
        if let (Some((place, _)), true) = (written.body.given(), self.method == Method::HEAD) {
            let problem = Problem::error("the answer to HEAD has no body");
            check.add(place, problem.expected("another method, or not this key"));
        }
    }

    /// Refuses a check by gRPC of backends that are not spoken to by HTTP/2.
    pub(crate) fn check_protocol(check: &Check<'_>, field: &Field<WrittenHealthCheckConfig>, http2: bool) {
        let kind = field.value().and_then(|written| written.kind.given());
        if let Some((place, _)) = kind.filter(|(_, kind)| kind.as_str() == "grpc" && !http2) {
            let problem = Problem::error("its backends are spoken to by HTTP/1.1, and gRPC takes HTTP/2");
            check.add(place, problem.expected("protocol = \"http2\" of the upstream, or \"auto\" with tls"));
        }
    }
}

/// Where the file has a duration that its form has let pass.
fn accepted(field: &Field<raw::Duration>, value: Duration) -> Option<(Place, &str)> {
    let (place, raw::Duration(text)) = field.given()?;
    (units::duration(text) == Some(value)).then_some((place, text.as_str()))
}

fn refuse_short(check: &Check<'_>, field: &Field<raw::Duration>, duration: Duration, least: Duration) {
    if let Some((place, text)) = accepted(field, duration)
        && duration < least
    {
        let problem = Problem::error(format!("{} is too short", check.quote(place, text)));
        check.add(place, problem.expected(format!("at least {least:?}")));
    }
}

/// A time that cannot be longer than the interval; where the file has none, the interval shortens the default.
fn within(
    check: &Check<'_>,
    written: &WrittenHealthCheckConfig,
    field: &Field<raw::Duration>,
    duration: Duration,
    interval: Duration,
    least: Duration,
) -> Duration {
    refuse_short(check, field, duration, least);
    if let Some((place, _)) = accepted(field, duration)
        && duration > interval
    {
        let shown = check.show_other(written.interval.place(), format_args!("{interval:?}"));
        let problem = Problem::error(format!("longer than the interval of {shown}"));
        check.add(place, problem.expected("the interval at most"));
    }
    duration.min(interval)
}

/// What is asked for: a path, and a query if any.
#[derive(Clone, PartialEq, Eq)]
pub struct ProbeTarget(pub PathAndQuery);

impl fmt::Debug for ProbeTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Kind::Location.show(self.0.as_str()))
    }
}

struct ProbePath;

impl Form<ProbeTarget> for ProbePath {
    type Written = Location;

    fn read(&self, check: &Check<'_>, place: Place, text: &Location) -> Option<ProbeTarget> {
        let legal = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        let target = text.parse::<PathAndQuery>().ok().filter(|_| text.starts_with('/') && legal(text));
        if target.is_none() {
            let problem = Problem::error(format!("{} is not a path", check.quote(place, text)));
            let suggestion = (!text.is_empty() && !text.starts_with('/') && legal(text) && !text.contains(':'))
                .then(|| format!("/{}", text.as_str()));
            let expected =
                "a slash first, a query if any, and no spaces, \"#\" or characters that must be percent-encoded";
            check.add(place, problem.expected(expected).suggest(suggestion));
        }
        target.map(ProbeTarget)
    }

    fn show(&self, value: &ProbeTarget) -> Option<Tree> {
        Some(value.0.as_str().into())
    }

    fn tell(&self, value: &ProbeTarget) -> String {
        value.0.as_str().to_owned()
    }

    fn about(&self) -> About {
        let schema = json!({ "type": "string", "pattern": "^/[!-\"$-~]*$|\\$\\{" });
        About::new::<Location>("a path, with a query if any", schema)
    }
}

/// The name of a service. Longer ones are nobody's.
struct GrpcService;

const SERVICE_BYTES_MAX: usize = 1024;

impl Form<String> for GrpcService {
    type Written = Text;

    fn read(&self, check: &Check<'_>, place: Place, text: &Text) -> Option<String> {
        if text.len() > SERVICE_BYTES_MAX {
            let problem = Problem::error(format!("{} bytes are too long for a service's name", text.len()));
            check.add(place, problem.expected("1024 bytes at most"));
            return None;
        }
        Some(text.as_str().to_owned())
    }

    fn show(&self, value: &String) -> Option<Tree> {
        Some(value.as_str().into())
    }

    fn tell(&self, value: &String) -> String {
        format!("{value:?}")
    }

    fn about(&self) -> About {
        let schema = json!({ "type": "string", "maxLength": SERVICE_BYTES_MAX });
        About::new::<Text>("the name of a service", schema)
    }
}

/// A method that has no need of a body.
struct ProbeMethod;

impl ProbeMethod {
    const ALL: [Method; 4] = [Method::GET, Method::HEAD, Method::OPTIONS, Method::POST];
}

impl Form<Method> for ProbeMethod {
    type Written = Text;

    fn read(&self, check: &Check<'_>, place: Place, text: &Text) -> Option<Method> {
        let names: [(&str, usize); 4] = std::array::from_fn(|index| (Self::ALL[index].as_str(), index));
        value::chosen(check, place, text, &names).map(|index| Self::ALL[index].clone())
    }

    fn show(&self, value: &Method) -> Option<Tree> {
        Some(value.as_str().into())
    }

    fn tell(&self, value: &Method) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        super::form::words_about(&Self::ALL.each_ref().map(Method::as_str))
    }
}

/// `[200, "300-399"]`
struct StatusRanges;

impl StatusRanges {
    fn texts(value: &[RangeInclusive<u16>]) -> impl Iterator<Item = String> {
        value.iter().map(|range| format!("{}-{}", range.start(), range.end()))
    }
}

impl Form<Vec<RangeInclusive<u16>>> for StatusRanges {
    type Written = Vec<Field<raw::Statuses>>;

    fn read(&self, check: &Check<'_>, place: Place, written: &Self::Written) -> Option<Vec<RangeInclusive<u16>>> {
        if written.is_empty() {
            let problem = Problem::error("an empty array, so that no answer would be good");
            check.add(place, problem.expected("one at least, or no statuses key for \"200-299\""));
        }
        let members = written.iter().filter_map(Field::given);
        Some(members.filter_map(|(place, member)| status_range(check, place, member)).collect())
    }

    fn show(&self, value: &Vec<RangeInclusive<u16>>) -> Option<Tree> {
        Some(Tree::List(Self::texts(value).map(Tree::from).collect()))
    }

    fn tell(&self, value: &Vec<RangeInclusive<u16>>) -> String {
        Self::texts(value).collect::<Vec<_>>().join(", ")
    }

    fn about(&self) -> About {
        let number = json!({ "type": "integer", "minimum": 200, "maximum": 599 });
        let range = json!({ "type": "string", "pattern": "^ *[2-5][0-9]{2} *(- *[2-5][0-9]{2} *)?$" });
        let schema = json!({ "type": "array", "minItems": 1, "items": { "anyOf": [number, range, variable()] } });
        About::new::<raw::Statuses>("an array of statuses, and of ranges such as `\"200-299\"`", schema)
    }
}

fn status_range(check: &Check<'_>, place: Place, written: &raw::Statuses) -> Option<RangeInclusive<u16>> {
    let status = |text: &str| text.parse::<u16>().ok().filter(|it| text.len() == 3 && (200..=599).contains(it));
    let (range, written) = match written {
        raw::Statuses::Integer(number) => (status(&number.to_string()).map(|it| it..=it), check.show(place, number)),
        raw::Statuses::String(text) => {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let range = status(first.trim()).zip(status(last.trim())).map(|(first, last)| first..=last);
            (range, check.quote(place, text))
        }
    };
    let range = range.filter(|range| !range.is_empty());
    if range.is_none() {
        let problem = Problem::error(format!("{written} is not a status or a range of them"));
        check.add(place, problem.expected("the like of 200 or \"200-299\", from 200 to 599"));
    }
    range
}

/// What the body of an answer must have in it: found anywhere, unless anchored.
#[derive(Clone)]
pub struct BodyPattern(pub regex::bytes::Regex);

impl fmt::Debug for BodyPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Kind::Sensitive.show(self.0.as_str()))
    }
}

impl PartialEq for BodyPattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for BodyPattern {}

struct Pattern;

impl Form<BodyPattern> for Pattern {
    type Written = Sensitive;

    fn read(&self, check: &Check<'_>, place: Place, text: &Sensitive) -> Option<BodyPattern> {
        value::pattern_within(check, place, text.reveal()).map(BodyPattern)
    }

    fn show(&self, value: &BodyPattern) -> Option<Tree> {
        Some(value.0.as_str().into())
    }

    fn tell(&self, value: &BodyPattern) -> String {
        value.0.as_str().to_owned()
    }

    fn about(&self) -> About {
        About::new::<Sensitive>("a regular expression", json!({ "type": "string" }))
    }
}
