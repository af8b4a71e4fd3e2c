//! `[[route]]`: which requests match. What is done with them is in [`action`](super::action).

use std::collections::HashSet;
use std::net::Ipv6Addr;

use http::Method;
use regex::Regex;

use super::upstream::is_host_name;
use super::value::{name, pattern, written};
use super::{Check, action, header, listener, middleware, overlap, redirect_loop, unreachable};
use crate::config::error::Problem;
use crate::config::field::Field;
use crate::config::form::{self, Part};
use crate::config::kind::{Location, Word};
use crate::config::raw;
use crate::config::report::Place;
use crate::config::whole::WrittenListeners;
use crate::config::{HostPattern, ListenerName, PathOverrides, PathPattern, RouteConfig, RouteName, UpstreamConfig};
use crate::target::{self, authority};

/// The routes, in the order of the file.
pub(super) fn routes(
    check: &Check<'_>,
    file: &raw::File,
    listeners: &[listener::Checked],
    upstreams: &[UpstreamConfig],
) -> Vec<RouteConfig> {
    if file.routes.place().is_none() {
        let problem = Problem::warning("there is no route: every request is answered 404");
        check.report.add_missing(Place::FILE, "route", problem.expected("[[route]] with an upstream"));
    }
    let mut names = given_names(check, &file.routes);
    let mut routes = Vec::new();
    for (place, raw) in file.routes.members() {
        let problems = check.report.len();
        let Some(route) = route(check, place, raw, file, (listeners, upstreams), &mut names) else { continue };
        // What a route with a problem would match is not known; saying that it matches too much would be a guess.
        let sound = check.report.len() == problems;
        routes.push((overlap::Candidate { place, route, told: is_told(check, raw) }, sound));
    }
    let sound: Vec<_> = routes.iter().filter(|(_, sound)| *sound).map(|(candidate, _)| candidate).collect();
    let told = overlap::check(check, &sound, listeners);
    unreachable::check(check, &sound, listeners, &told);
    redirect_loop::check(check, &sound, listeners);
    routes.into_iter().map(|(candidate, _)| candidate.route).collect()
}

/// Whether problems may say what a route is called and matches: nothing of it comes from the environment.
fn is_told(check: &Check<'_>, raw: &raw::Route) -> bool {
    let own = [raw.name.place(), raw.path.place(), raw.path_prefix.place(), raw.path_regex.place()];
    let hosts = raw.hosts.members().map(|(place, _)| place);
    let words = raw.listeners.members().chain(raw.methods.members()).map(|(place, _)| place);
    own.into_iter().flatten().chain(hosts).chain(words).all(|place| !check.report.is_filled(place))
}

/// The names that the file gives, so that none that is made up is one of them.
fn given_names(check: &Check<'_>, routes: &Field<raw::Tables<raw::Route>>) -> HashSet<String> {
    let mut names = HashSet::new();
    for (place, text) in routes.members().filter_map(|(_, route)| route.name.given()) {
        if !names.insert(text.to_string()) {
            let problem = Problem::error(format!("another route is called {}", check.quote(place, text)));
            check.add(place, problem.expected("a name of its own"));
        }
    }
    names
}

fn route(
    check: &Check<'_>,
    place: Place,
    raw: &raw::Route,
    file: &raw::File,
    (listeners, upstreams): (&[listener::Checked], &[UpstreamConfig]),
    names: &mut HashSet<String>,
) -> Option<RouteConfig> {
    let given_name = raw.name.given().map(|(place, text)| name(check, place, text).unwrap_or_default().to_owned());
    let bound = bound(check, &raw.listeners, &file.listeners, listeners);
    let hosts = hosts(check, &raw.hosts);
    let path = path(check, raw);
    let methods = methods(check, &raw.methods);
    let headers = header::header_matches(check, &raw.headers);
    let query = header::query_matches(check, &raw.query);
    let paths = form::read(check, &Part, &raw.paths, None, PathOverrides::default);
    let response_headers = header::edits(check, &raw.response_headers, header::Direction::Response);
    let middleware = middleware::named(check, &raw.middleware, file);
    // Everything is looked at before anything is given up.
    let action = action::action(check, place, raw, &file.upstreams, upstreams);
    let (path, (action, request_headers)) = (path?, action?);
    let name = given_name.unwrap_or_else(|| make_name(&hosts, &path, &methods, names));
    Some(RouteConfig {
        name: RouteName::from(name.as_str()),
        listeners: bound,
        hosts,
        path,
        methods,
        headers,
        query,
        paths,
        action,
        request_headers,
        response_headers,
        middleware,
    })
}

/// `GET api.example.com/users/*`, with a number behind it where that is taken.
fn make_name(hosts: &[HostPattern], path: &PathPattern, methods: &[Method], names: &mut HashSet<String>) -> String {
    let mut name = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(",");
    if !name.is_empty() {
        name.push(' ');
    }
    match hosts.first() {
        None => {}
        Some(HostPattern::Exact(host)) => name.push_str(host),
        Some(HostPattern::Wildcard(suffix)) => name.extend(["*", suffix]),
    }
    match path {
        PathPattern::Exact(path) => name.push_str(path),
        PathPattern::Prefix(prefix) => name.extend([prefix, "/*"]),
        PathPattern::Regex(regex) => name.extend(["~", written(regex)]),
    }
    let unique = std::iter::once(name.clone())
        .chain((2..).map(|number: usize| format!("{name}#{number}")))
        .find(|name| !names.contains(name))
        .unwrap_or(name);
    names.insert(unique.clone());
    unique
}

/// The listeners that a route is bound to. An array that is there and empty binds it to none, which nobody can mean.
fn bound(
    check: &Check<'_>,
    field: &Field<Vec<Field<Word>>>,
    raw: &WrittenListeners,
    listeners: &[listener::Checked],
) -> Vec<ListenerName> {
    refuse_empty(check, field, "listeners");
    let mut bound = Vec::new();
    for (place, text) in field.members() {
        let name = ListenerName::from(text.as_str());
        // A listener with a problem of its own is known by the name it would have.
        let is = |given: Option<&str>| given == Some(text.as_str());
        let known = listeners.iter().any(|listener| listener.config.name == name)
            || raw.members().any(|(_, raw)| {
                is(raw.name.value().map(|it| it.as_str())) || is(raw.address.value().map(|it| it.as_str()))
            });
        if !known {
            let names: Vec<_> = listeners.iter().map(|listener| listener.name(check)).collect();
            let names = names.iter().map(String::as_str);
            check.add(
                place,
                Problem::error(format!("unknown listener {}", check.quote(place, text))).one_of(text, names),
            );
        } else if bound.contains(&name) {
            check.add(place, Problem::error(format!("listener {} is there twice", check.quote(place, text))));
        } else {
            bound.push(name);
        }
    }
    bound
}

fn refuse_empty<T>(check: &Check<'_>, field: &Field<Vec<T>>, things: &str) {
    if let Some((place, members)) = field.given()
        && members.is_empty()
    {
        let expected = format!("one at least, or no {things} key for all of them");
        check.add(place, Problem::error("an empty array, which nothing would match").expected(expected));
    }
}

fn hosts(check: &Check<'_>, field: &Field<Vec<Field<Location>>>) -> Vec<HostPattern> {
    refuse_empty(check, field, "hosts");
    let mut hosts = Vec::new();
    let mut every = false;
    for (place, text) in field.members() {
        if text.as_str() == "*" {
            every = true;
            if field.value().is_some_and(|members| members.len() > 1) {
                check
                    .add(place, Problem::error("\"*\" is every host already").expected("\"*\" alone, or no hosts key"));
            }
        } else if let Some(host) = host(check, place, text) {
            if hosts.contains(&host) {
                check.add(place, Problem::error(format!("host {} is there twice", check.quote(place, text))));
            }
            hosts.push(host);
        }
    }
    if every { Vec::new() } else { hosts }
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

/// Which paths match: at most one of the three keys says so. `None` where it is wrong.
fn path(check: &Check<'_>, raw: &raw::Route) -> Option<PathPattern> {
    let keys =
        [("path", raw.path.place()), ("path_prefix", raw.path_prefix.place()), ("path_regex", raw.path_regex.place())];
    let mut there = keys.iter().filter_map(|(key, place)| Some((*key, (*place)?)));
    let Some((first, _)) = there.next() else { return Some(PathPattern::Prefix(String::new())) };
    for (_, place) in there {
        let problem = Problem::error(format!("the route has {first} too"));
        check.add(place, problem.expected("only one of path, path_prefix and path_regex"));
    }
    let of = |field: &'_ Field<Location>| {
        let (place, text) = field.given()?;
        matched_path(check, place, text)
    };
    match first {
        "path" => of(&raw.path).map(PathPattern::Exact),
        "path_prefix" => {
            of(&raw.path_prefix).map(|text| PathPattern::Prefix(text.strip_suffix('/').unwrap_or(&text).to_owned()))
        }
        _ => raw.path_regex.given().and_then(|(place, text)| path_regex(check, place, text)).map(PathPattern::Regex),
    }
}

/// A pattern over the whole path.
fn path_regex(check: &Check<'_>, place: Place, text: &str) -> Option<Regex> {
    let regex = pattern(check, place, text)?;
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
pub(super) fn path_text<'t>(check: &Check<'_>, place: Place, text: &'t str) -> Option<&'t str> {
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

fn methods(check: &Check<'_>, field: &Field<Vec<Field<Word>>>) -> Vec<Method> {
    refuse_empty(check, field, "methods");
    let mut methods = Vec::new();
    // Both are refused before a route is looked for.
    let (mut refused, mut others) = (None, false);
    for (place, text) in field.members() {
        match text.as_str() {
            "CONNECT" | "TRACE" => refused = refused.or(Some(place)),
            _ => others = true,
        }
    }
    if let (Some(place), false) = (refused, others) {
        let problem = Problem::warning("never reached: CONNECT and TRACE are refused before a route is looked for");
        check.add(place, problem.expected("other methods, or not this route"));
    }
    for (place, text) in field.members() {
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
    methods
}
