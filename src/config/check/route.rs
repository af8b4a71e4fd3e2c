//! What of routes takes other tables of the file: their names, the listeners that they are bound to, the upstreams that they lead to, and each other.

use std::collections::HashSet;
use std::sync::Arc;

use http::Method;

use super::value::written as written_regex;
use super::{Check, listener, overlap, redirect_loop, unreachable};
use crate::config::error::Problem;
use crate::config::field::Field;
use crate::config::form;
use crate::config::matches::refuse_empty;
use crate::config::report::Place;
use crate::config::retries::{Retries, WrittenRetries};
use crate::config::root::{WrittenConfig, WrittenListeners};
use crate::config::route::WrittenRouteConfig;
use crate::config::table::Table;
use crate::config::visibility::Word;
use crate::config::{
    Address, HostPattern, ListenerName, PathPattern, RetryConfig, RouteConfig, RouteName, UpstreamConfig,
};

/// The routes, in the order of the file.
pub(super) fn routes(
    check: &Check<'_>,
    file: &WrittenConfig,
    listeners: &[listener::CheckedListener],
    upstreams: &[UpstreamConfig],
) -> Vec<RouteConfig> {
    if file.routes.place().is_none() {
        let problem = Problem::warning("there is no route: every request is answered 404");
        check.report.add_missing(Place::FILE, "route", problem.expected("[[route]] with an upstream"));
    }
    let mut names = given_names(check, &file.routes);
    let mut routes = Vec::new();
    for (place, written) in file.routes.members() {
        let problems = check.report.len();
        let Some(mut route) = RouteConfig::read(check, place, written) else { continue };
        route.listeners = bound(check, &written.listeners, &file.listeners, listeners);
        lead(check, &mut route, written, file, upstreams);
        if written.name.given().is_none() {
            route.name = RouteName::from(make_name(&route, &mut names).as_str());
        }
        // What a route with a problem would match is not known; saying that it matches too much would be a guess.
        let sound = check.report.len() == problems;
        routes.push((overlap::OverlapCandidate { place, route, told: is_told(check, written) }, sound));
    }
    let sound: Vec<_> = routes.iter().filter(|(_, sound)| *sound).map(|(candidate, _)| candidate).collect();
    let told = overlap::check(check, &sound, listeners);
    unreachable::check(check, &sound, listeners, &told);
    redirect_loop::check(check, &sound, listeners);
    routes.into_iter().map(|(candidate, _)| candidate.route).collect()
}

/// Whether problems may say what a route is called and matches: nothing of it comes from the environment.
fn is_told(check: &Check<'_>, written: &WrittenRouteConfig) -> bool {
    let own =
        [written.name.place(), written.path_exact.place(), written.path_prefix.place(), written.path_regex.place()];
    let hosts = written.hosts.members().map(|(place, _)| place);
    let words = written.listeners.members().chain(written.methods.members()).map(|(place, _)| place);
    own.into_iter().flatten().chain(hosts).chain(words).all(|place| !check.report.is_filled(place))
}

/// The names that the file gives, so that none that is made up is one of them.
fn given_names(check: &Check<'_>, routes: &Field<Vec<Field<WrittenRouteConfig>>>) -> HashSet<String> {
    let mut names = HashSet::new();
    for (place, text) in routes.members().filter_map(|(_, route)| route.name.given()) {
        if !names.insert(text.to_string()) {
            let problem = Problem::error(format!("another route is called {}", check.quote(place, text)));
            check.add(place, problem.expected("a name of its own"));
        }
    }
    names
}

/// `GET api.example.com/users/*`, with a number behind it where that is taken.
fn make_name(RouteConfig { hosts, path, methods, .. }: &RouteConfig, names: &mut HashSet<String>) -> String {
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
        PathPattern::Regex(regex) => name.extend(["~", written_regex(regex)]),
    }
    let unique = std::iter::once(name.clone())
        .chain((2..).map(|number: usize| format!("{name}#{number}")))
        .find(|name| !names.contains(name))
        .unwrap_or(name);
    names.insert(unique.clone());
    unique
}

/// The listeners that a route is bound to. An empty array binds it to none, which is surely a mistake.
fn bound(
    check: &Check<'_>,
    field: &Field<Vec<Field<Word>>>,
    raw: &WrittenListeners,
    listeners: &[listener::CheckedListener],
) -> Vec<ListenerName> {
    if let Some((place, members)) = field.given() {
        refuse_empty(check, place, members, "listeners");
    }
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

/// Checks where a route leads, and takes over what its upstream says of retries.
fn lead(
    check: &Check<'_>,
    route: &mut RouteConfig,
    written: &WrittenRouteConfig,
    file: &WrittenConfig,
    known: &[UpstreamConfig],
) {
    let Some((place, text)) = written.upstream.given() else { return };
    let upstream = known.iter().find(|it| it.name.as_str() == text.as_str());
    warn_of_host(check, written, upstream);
    if let Some(upstream) = upstream {
        RetryConfig::warn_of_too_many(check, &written.retries, upstream.backends.len());
    }
    let before = upstream.map(|it| Arc::clone(&it.retries)).unwrap_or_default();
    route.retries = form::read(check, &Retries, &written.retries, Some(&before), || Arc::clone(&before));
    if let Some(WrittenRetries::Table(table)) = written.retries.value()
        && let Some((place, _)) = table.attempt_timeout.given()
        && route.retries.attempt_timeout.is_some_and(|limit| limit >= route.timeouts.response_head)
    {
        check.add(place, Problem::warning("not shorter than response_head, which then comes first"));
    }
    let entries = file.upstreams.entries();
    // A table of upstreams that could not be read at all is reported already, and its names are not known.
    let misread =
        matches!(file.upstreams, Field::Wrong(_)) || entries.iter().any(|it| matches!(it.value, Field::Wrong(_)));
    if !misread && !entries.iter().any(|entry| entry.name == text.as_str()) {
        let problem = Problem::error(format!("unknown upstream {}", check.quote(place, text)));
        check.add(place, problem.one_of(text, entries.iter().map(|entry| entry.name.as_str())));
    }
}

/// Warns of a route for every request that gives each the same host: for its backends, where the clients' host was meant. A host by which
/// backends are called is meant so, and so is one beside `hosts = ["*"]`.
fn warn_of_host(check: &Check<'_>, written: &WrittenRouteConfig, upstream: Option<&UpstreamConfig>) {
    let Some((place, text)) = written.host.given().filter(|(_, text)| text.as_str() != "preserve") else { return };
    let every_path = written.path_prefix.value().is_none_or(|prefix| prefix.as_str() == "/");
    let narrowed =
        [written.path_exact.place(), written.path_regex.place(), written.hosts.place(), written.listeners.place()];
    let narrowed =
        narrowed.into_iter().chain([written.methods.place(), written.headers.place(), written.query.place()]);
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
