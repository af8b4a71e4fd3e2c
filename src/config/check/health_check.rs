//! `[upstream.NAME.health_check]`

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::header::HeaderValue;
use http::uri::PathAndQuery;

use super::Check;
use super::action::host;
use super::header::{Direction, values};
use super::value::{choice, number, pattern_within, size_in, timeout};
use crate::config::error::Problem;
use crate::config::field::Field;
use crate::config::kind::{Location, Word};
use crate::config::raw;
use crate::config::report::Place;
use crate::config::{BodyMatch, GrpcProbe, HealthCheckConfig, HttpProbe, InitialHealth, Probe};

/// Below this a check is a flood.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
const TIMEOUT: Duration = Duration::from_secs(2);
const INTERVAL_IN_DOUBT: Duration = Duration::from_secs(1);
const BODY_BYTES: u64 = 64 * 1024;
/// Checks are to be cheap, and a few hundred may run at a time.
const BODY_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Http,
    Tcp,
    Grpc,
}

/// How backends that are spoken to by HTTP/2 (`http2`) or not are checked; `None` when there is no such table, or it is
/// switched off.
pub(super) fn health_check(
    check: &Check<'_>,
    field: &Field<raw::HealthCheck>,
    http2: bool,
) -> Option<Arc<HealthCheckConfig>> {
    let raw = field.value()?;
    let kinds = [("http", Kind::Http), ("tcp", Kind::Tcp), ("grpc", Kind::Grpc)];
    let kind = choice(check, &raw.kind, Kind::Http, &kinds);
    refuse_keys_of_others(check, raw, kind);
    let probe = match kind {
        Kind::Http => Probe::Http(http_probe(check, raw)),
        Kind::Tcp => Probe::Tcp,
        Kind::Grpc => {
            if let (Some((place, _)), false) = (raw.kind.given(), http2) {
                let problem = Problem::error("its backends are spoken to by HTTP/1.1, and gRPC takes HTTP/2");
                check.add(place, problem.expected("protocol = \"http2\" of the upstream, or \"auto\" with tls"));
            }
            Probe::Grpc(GrpcProbe {
                service: service(check, &raw.service),
                host: given_host(check, &raw.host),
                headers: values(check, &raw.headers, Direction::HealthCheck),
            })
        }
    };
    let interval = interval(check, raw);
    let count = |field, default| u32::try_from(number(check, field, default, 1..=1000)).unwrap_or(1);
    let initial = [InitialHealth::Healthy, InitialHealth::Unhealthy, InitialHealth::FirstCheck];
    let config = HealthCheckConfig {
        probe,
        port: port(check, &raw.port),
        interval,
        interval_in_doubt: within(check, raw, &raw.interval_in_doubt, INTERVAL_IN_DOUBT, interval, INTERVAL_MIN),
        jitter_percent: u8::try_from(number(check, &raw.jitter_percent, 10, 0..=50)).unwrap_or_default(),
        timeout: within(check, raw, &raw.timeout, TIMEOUT, interval, Duration::ZERO),
        unhealthy_after: count(&raw.unhealthy_after, 3),
        healthy_after: count(&raw.healthy_after, 2),
        initial: choice(check, &raw.initial, InitialHealth::FirstCheck, &initial.map(|it| (it.as_str(), it))),
    };
    raw.enabled.value().copied().unwrap_or(true).then(|| Arc::new(config))
}

fn interval(check: &Check<'_>, raw: &raw::HealthCheck) -> Duration {
    let interval = timeout(check, &raw.interval, "5s");
    refuse_short(check, &raw.interval, interval, INTERVAL_MIN);
    interval
}

fn refuse_short(check: &Check<'_>, field: &Field<raw::Duration>, duration: Duration, least: Duration) {
    if let Some((place, raw::Duration(text))) = field.given()
        && duration < least
    {
        check.add(
            place,
            Problem::error(format!("{} is too short", check.quote(place, text)))
                .expected(format!("at least {least:?}")),
        );
    }
}

/// A time that cannot be longer than the interval; where the file has none, the interval shortens the default.
fn within(
    check: &Check<'_>,
    raw: &raw::HealthCheck,
    field: &Field<raw::Duration>,
    default: Duration,
    interval: Duration,
    least: Duration,
) -> Duration {
    let default = default.min(interval);
    let Some((place, _)) = field.given() else { return default };
    // In the place of a wrong value, one that has no further problem.
    let duration = timeout(check, field, "10ms");
    refuse_short(check, field, duration, least);
    if duration > interval {
        let shown = check.show_other(raw.interval.place(), format_args!("{interval:?}"));
        let problem = Problem::error(format!("longer than the interval of {shown}"));
        check.add(place, problem.expected("the interval at most"));
        return default;
    }
    duration
}

fn port(check: &Check<'_>, field: &Field<i64>) -> Option<u16> {
    field.given()?;
    u16::try_from(number(check, field, 1, 1..=65_535)).ok()
}

/// Keys that a check of this kind has no use for.
fn refuse_keys_of_others(check: &Check<'_>, raw: &raw::HealthCheck, kind: Kind) {
    // The keys of a request, of one by HTTP alone, and of gRPC alone.
    let request = [raw.host.place(), raw.headers.place()];
    let http = [raw.path.place(), raw.method.place(), raw.statuses.place(), raw.body.place(), raw.body_limit.place()];
    let refuse = |keys: &[Option<Place>], what: &str, expected: &str| {
        for place in keys.iter().flatten() {
            check.add(*place, Problem::error(what).expected(expected));
        }
    };
    match kind {
        Kind::Http => {}
        Kind::Tcp => {
            let what = "a check of type tcp only connects";
            refuse(&[&request[..], &http[..]].concat(), what, "type = \"http\", or not this key");
        }
        Kind::Grpc => {
            let what = "a check of type grpc asks the health service of gRPC";
            refuse(&http, what, "type = \"http\", or not this key");
        }
    }
    if kind != Kind::Grpc {
        let what = "only the health service of gRPC knows services";
        refuse(&[raw.service.place()], what, "type = \"grpc\", or not this key");
    }
}

/// Longer names than any that somebody would give a service.
const SERVICE_BYTES_MAX: usize = 1024;

fn service(check: &Check<'_>, field: &Field<Word>) -> String {
    let Some((place, text)) = field.given() else { return String::new() };
    if text.len() > SERVICE_BYTES_MAX {
        let problem = Problem::error(format!("{} bytes are too long for a service's name", text.len()));
        check.add(place, problem.expected("1024 bytes at most"));
    }
    text.to_string()
}

fn http_probe(check: &Check<'_>, raw: &raw::HealthCheck) -> HttpProbe {
    let methods = [Method::GET, Method::HEAD, Method::OPTIONS, Method::POST];
    let names: [(&str, usize); 4] = std::array::from_fn(|index| (methods[index].as_str(), index));
    let method = methods[choice(check, &raw.method, 0, &names)].clone();
    HttpProbe {
        target: target(check, &raw.path),
        host: given_host(check, &raw.host),
        headers: values(check, &raw.headers, Direction::HealthCheck),
        statuses: statuses(check, &raw.statuses),
        body: body(check, raw, &method),
        method,
    }
}

fn target(check: &Check<'_>, field: &Field<Location>) -> PathAndQuery {
    let root = PathAndQuery::from_static("/");
    let Some((place, text)) = field.given() else { return root };
    let legal = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    let target = text.parse::<PathAndQuery>().ok().filter(|_| text.starts_with('/') && legal(text));
    target.unwrap_or_else(|| {
        let problem = Problem::error(format!("{} is not a path", check.quote(place, text)));
        let suggestion = (!text.is_empty() && !text.starts_with('/') && legal(text) && !text.contains(':'))
            .then(|| format!("/{}", text.as_str()));
        let expected = "a slash first, a query if any, and no spaces, \"#\" or characters that must be percent-encoded";
        check.add(place, problem.expected(expected).suggest(suggestion));
        root
    })
}

fn given_host(check: &Check<'_>, field: &Field<Location>) -> Option<HeaderValue> {
    let (place, text) = field.given()?;
    host(check, place, text, "a name such as \"backend.example.com\", with its port if any")
}

/// `[200, "300-399"]`
fn statuses(check: &Check<'_>, field: &Field<Vec<Field<raw::Statuses>>>) -> Vec<RangeInclusive<u16>> {
    const DEFAULT: RangeInclusive<u16> = 200..=299;
    let Some((place, members)) = field.given() else { return vec![DEFAULT] };
    if members.is_empty() {
        let problem = Problem::error("an empty array, so that no answer would be good");
        check.add(place, problem.expected("one at least, or no statuses key for \"200-299\""));
    }
    field.members().filter_map(|(place, raw)| status_range(check, place, raw)).collect()
}

fn status_range(check: &Check<'_>, place: Place, raw: &raw::Statuses) -> Option<RangeInclusive<u16>> {
    let status = |text: &str| text.parse::<u16>().ok().filter(|it| text.len() == 3 && (200..=599).contains(it));
    let (range, written) = match raw {
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

fn body(check: &Check<'_>, raw: &raw::HealthCheck, method: &Method) -> Option<BodyMatch> {
    if let (Some((place, _)), None) = (raw.body_limit.given(), raw.body.place()) {
        check.add(place, Problem::error("no body is looked at").expected("body = \"..\" too, or not this key"));
    }
    let (place, text) = raw.body.given()?;
    if *method == Method::HEAD {
        check.add(place, Problem::error("the answer to HEAD has no body").expected("another method, or not this key"));
    }
    let limit = size_in(check, &raw.body_limit, 1..=BODY_BYTES_MAX, "1 to \"1MiB\"");
    let limit = usize::try_from(limit.unwrap_or(BODY_BYTES)).unwrap_or(usize::MAX);
    Some(BodyMatch { pattern: pattern_within(check, place, text.reveal())?, limit })
}
