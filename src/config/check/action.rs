//! What a route does with a request: forward it, redirect it, or answer it.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::header::HeaderValue;

use super::Check;
use super::header::{Direction, edits, header_value};
use super::retries::{retries, warn_of_too_many};
use super::route::path_text;
use super::upstream::is_host_name;
use super::value::{choice, number_in, optional_timeout, timeout, timeout_or_none};
use crate::config::error::Problem;
use crate::config::field::{Field, Named};
use crate::config::form::Form;
use crate::config::kind::{Location, Sensitive};
use crate::config::raw;
use crate::config::report::Place;
use crate::config::{
    Action, Address, BodySize, Expect, Forward, HeaderEdits, LocationPart, PathRewrite, Redirect, Respond, Timeouts,
    UpstreamConfig, UpstreamName,
};

/// The route's action and the changes to the request's headers, which only a forwarded request has. `None` where there is
/// not exactly one action, or what it needs is wrong.
pub(super) fn action(
    check: &Check<'_>,
    route: Place,
    raw: &raw::Route,
    upstreams: &Field<Named<raw::Upstream>>,
    known: &[UpstreamConfig],
) -> Option<(Action, HeaderEdits)> {
    let actions =
        [("upstream", raw.upstream.place()), ("redirect", raw.redirect.place()), ("respond", raw.respond.place())];
    let mut there = actions.iter().filter_map(|(key, place)| Some((*key, (*place)?)));
    let Some((first, _)) = there.next() else {
        if !actions.iter().any(|(key, _)| check.report.is_meant(route, key)) {
            let problem = Problem::error("the route does nothing");
            check.add(route, problem.expected("one of upstream, redirect and respond"));
        }
        return None;
    };
    for (_, place) in there {
        let problem = Problem::error(format!("the route has {first} too"));
        check.add(place, problem.expected("only one of upstream, redirect and respond"));
    }
    if first != "upstream" {
        refuse_forwarding(check, raw, first);
    }
    match first {
        "upstream" => {
            let request_headers = edits(check, &raw.request_headers, Direction::Request);
            let forward = forward(check, raw, upstreams, known);
            Some((Action::Forward(forward?), request_headers))
        }
        "redirect" => Some((Action::Redirect(redirect(check, &raw.redirect)?), HeaderEdits::default())),
        _ => Some((Action::Respond(respond(check, raw.respond.value()?)), HeaderEdits::default())),
    }
}

/// Keys about forwarding on a route that does not forward.
fn refuse_forwarding(check: &Check<'_>, raw: &raw::Route, action: &str) {
    let keys = [
        raw.strip_prefix.place(),
        raw.replace_prefix.place(),
        raw.host.place(),
        raw.max_body.place(),
        raw.expect.place(),
        raw.timeouts.place(),
        raw.retries.place(),
        raw.request_headers.place(),
    ];
    for place in keys.into_iter().flatten() {
        let problem = Problem::error(format!("a {action} forwards nothing"));
        check.add(place, problem.expected("this key only on a route with an upstream"));
    }
}

fn forward(
    check: &Check<'_>,
    raw: &raw::Route,
    upstreams: &Field<Named<raw::Upstream>>,
    known: &[UpstreamConfig],
) -> Option<Forward> {
    let (path, host, timeouts) = (rewrite(check, raw), given_host(check, &raw.host), timeouts(check, &raw.timeouts));
    let (max_body, expect) = (
        raw.max_body.given().and_then(|(place, size)| BodySize.read(check, place, size)),
        choice(check, &raw.expect, Expect::Answer, &Expect::NAMES),
    );
    let upstream = raw.upstream.value().and_then(|name| known.iter().find(|it| it.name.as_str() == name.as_str()));
    warn_of_host(check, raw, upstream);
    if let Some(upstream) = upstream {
        warn_of_too_many(check, &raw.retries, upstream.backends.len());
    }
    let retries = retries(check, &raw.retries, &upstream.map(|it| Arc::clone(&it.retries)).unwrap_or_default());
    if let Some(raw::Retries::Table(raw)) = raw.retries.value()
        && let Some((place, _)) = raw.attempt_timeout.given()
        && retries.attempt_timeout.is_some_and(|limit| limit >= timeouts.response_head)
    {
        check.add(place, Problem::warning("not shorter than response_head, which then comes first"));
    }
    let (place, text) = raw.upstream.given()?;
    let entries = upstreams.entries();
    // A table of upstreams that could not be read at all is reported already, and its names are not known.
    let misread = matches!(upstreams, Field::Wrong(_)) || entries.iter().any(|it| matches!(it.value, Field::Wrong(_)));
    if !misread && !entries.iter().any(|entry| entry.name == text.as_str()) {
        let problem = Problem::error(format!("unknown upstream {}", check.quote(place, text)));
        check.add(place, problem.one_of(text, entries.iter().map(|entry| entry.name.as_str())));
    }
    Some(Forward { upstream: UpstreamName::from(text.as_str()), path, host, max_body, expect, timeouts, retries })
}

fn rewrite(check: &Check<'_>, raw: &raw::Route) -> PathRewrite {
    let has_prefix = raw.path_prefix.place().is_some();
    let strip = raw.strip_prefix.given().filter(|(_, strip)| **strip);
    if let Some((place, _)) = strip
        && !has_prefix
    {
        check.add(place, Problem::error("there is no prefix to strip").expected("path_prefix on the same route"));
    }
    let Some((place, text)) = raw.replace_prefix.given() else {
        return if strip.is_some() { PathRewrite::StripPrefix } else { PathRewrite::Keep };
    };
    if strip.is_some() {
        check.add(
            place,
            Problem::error("the prefix is stripped already").expected("only one of strip_prefix and replace_prefix"),
        );
    }
    if !has_prefix && raw.path.place().is_none() {
        let problem = Problem::error("there is nothing to replace");
        check.add(place, problem.expected("path_prefix or path on the same route; path_prefix = \"/\" is every path"));
    }
    match path_text(check, place, text) {
        Some(text) => PathRewrite::ReplacePrefix(text.strip_suffix('/').unwrap_or(text).to_owned()),
        None => PathRewrite::Keep,
    }
}

/// The host that the backend sees; `None` is the client's.
fn given_host(check: &Check<'_>, field: &Field<Location>) -> Option<HeaderValue> {
    let (place, text) = field.given().filter(|(_, text)| text.as_str() != "preserve")?;
    host(check, place, text, "\"preserve\", or a name such as \"backend.example.com\", with its port if any")
}

/// Warns of a route for every request that gives each the same host: for its backends, where the clients' host was meant. A host by which
/// backends are called is meant so, and so is one beside `hosts = ["*"]`.
fn warn_of_host(check: &Check<'_>, raw: &raw::Route, upstream: Option<&UpstreamConfig>) {
    let Some((place, text)) = raw.host.given().filter(|(_, text)| text.as_str() != "preserve") else { return };
    let every_path = raw.path_prefix.value().is_none_or(|prefix| prefix.as_str() == "/");
    let narrowed = [raw.path.place(), raw.path_regex.place(), raw.hosts.place(), raw.listeners.place()];
    let narrowed = narrowed.into_iter().chain([raw.methods.place(), raw.headers.place(), raw.query.place()]);
    if !every_path || narrowed.flatten().next().is_some() {
        return;
    }
    let name = text.rsplit_once(':').map_or(text.as_str(), |(name, _)| name);
    let is_called = |it: &UpstreamConfig| {
        it.backends.iter().any(|backend| matches!(&backend.address, Address::Name(known, _) if **known == *name))
            || it.tls.as_ref().is_some_and(|tls| tls.server_name.as_deref() == Some(name))
    };
    if upstream.is_some_and(is_called) {
        return;
    }
    let problem = Problem::warning("every request goes here, and its backend sees this host instead of the client's");
    let expected = format!(
        "hosts = [{}] for requests to that host, or hosts = [\"*\"] beside it for all",
        check.quote(place, text)
    );
    check.add(place, problem.expected(expected));
}

/// The value of a `Host` header.
pub(super) fn host(check: &Check<'_>, place: Place, text: &str, expected: &str) -> Option<HeaderValue> {
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

fn timeouts(check: &Check<'_>, field: &Field<raw::Timeouts>) -> Timeouts {
    let default = raw::Timeouts::default();
    let raw = field.value().unwrap_or(&default);
    let exchange = optional_timeout(check, &raw.exchange);
    let timeouts = Timeouts {
        response_head: timeout(check, &raw.response_head, "60s"),
        body_idle: timeout(check, &raw.body_idle, "60s"),
        expect: timeout(check, &raw.expect, "1s"),
        exchange,
        tunnel_idle: timeout(check, &raw.tunnel_idle, "1h"),
        grpc_idle: timeout_or_none(check, &raw.grpc_idle, "1h"),
        grpc_timeout_max: optional_timeout(check, &raw.grpc_timeout_max),
    };
    // Below the default it is a plain way to shorten everything; below a value that somebody wrote it is a slip.
    if let (Some((place, _)), Some((_, _)), Some(exchange)) =
        (raw.exchange.given(), raw.response_head.given(), exchange)
        && exchange < timeouts.response_head
        && !exchange.is_zero()
    {
        check.add(place, Problem::warning("shorter than response_head, which can then never be reached"));
    }
    timeouts
}

fn redirect(check: &Check<'_>, field: &Field<raw::Redirect>) -> Option<Redirect> {
    let (place, raw) = field.given()?;
    let status = match raw.status.given() {
        None => 308,
        Some((place, status)) => {
            if ![301, 302, 303, 307, 308].contains(status) {
                let problem = Problem::error(format!("{} is not the status of a redirect", check.show(place, status)));
                check.add(place, problem.expected("301, 302, 303, 307 or 308"));
            }
            *status
        }
    };
    if raw.to.place().is_none() {
        let problem = Problem::error("a redirect needs a target").expected("to = \"https://{host}{path}{query}\"");
        check.report.add_missing(place, "to", problem);
    }
    let (place, text) = raw.to.given()?;
    Some(Redirect { status: status_code(status)?, location: location(check, place, text)? })
}

/// `https://{host}{path}{query}`
fn location(check: &Check<'_>, place: Place, text: &str) -> Option<Vec<LocationPart>> {
    const NAMES: [&str; 4] = ["scheme", "host", "path", "query"];
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
        let problem = Problem::error(format!("{} is not a URL", check.quote(place, text)));
        check.add(
            place,
            problem.expected("the like of \"https://{host}{path}{query}\", printable ASCII without spaces"),
        );
        return None;
    }
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(['{', '}']) {
        let (before, part) = rest.split_at(start);
        if !before.is_empty() {
            parts.push(LocationPart::Text(before.to_owned()));
        }
        let Some((name, after)) = part.strip_prefix('{').and_then(|part| part.split_once('}')) else {
            check.add(
                place,
                Problem::error("a brace without its other half").expected("{scheme}, {host}, {path} or {query}"),
            );
            return None;
        };
        parts.push(match name {
            "scheme" => LocationPart::Scheme,
            "host" => LocationPart::Host,
            "path" => LocationPart::Path,
            "query" => LocationPart::Query,
            unknown => {
                // In the query it may be a piece of a secret.
                let what = if text.get(..text.len() - part.len()).is_some_and(|before| before.contains(['?', '#'])) {
                    "an unknown part in the query".to_owned()
                } else {
                    format!("unknown part {}", check.quote(place, &format!("{{{unknown}}}")))
                };
                check.add(place, Problem::error(what).one_of(unknown, NAMES));
                return None;
            }
        });
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(LocationPart::Text(rest.to_owned()));
    }
    Some(parts)
}

fn respond(check: &Check<'_>, raw: &raw::Respond) -> Respond {
    let status = raw.status.given().and_then(|(place, status)| number_in(check, place, *status, 200..=599));
    let status = status.and_then(status_code).unwrap_or(StatusCode::OK);
    let body = raw.body.value().map_or("", Sensitive::reveal);
    let bodiless = [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
    if let Some((place, _)) = raw.body.given()
        && bodiless
        && !body.is_empty()
    {
        check.add(
            place,
            Problem::error(format!("a {} has no body", check.show_other(raw.status.place(), status.as_u16())))
                .expected("another status, or no body"),
        );
    }
    if let Some((place, _)) = raw.content_type.given()
        && body.is_empty()
    {
        check.add(place, Problem::warning("there is no body that could have this type"));
    }
    let content_type = match raw.content_type.given() {
        Some((place, text)) => header_value(check, place, text),
        None => Some(HeaderValue::from_static("text/plain; charset=utf-8")),
    };
    Respond { status, content_type: content_type.filter(|_| !body.is_empty()), body: Bytes::from(body.to_owned()) }
}

fn status_code(status: i64) -> Option<StatusCode> {
    StatusCode::from_u16(u16::try_from(status).ok()?).ok()
}
