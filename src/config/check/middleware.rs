//! `[middleware.NAME.KIND]`, and the keys `middleware` that name them.

use std::collections::HashSet;

use super::Check;
use super::value::name;
use crate::config::error::Problem;
use crate::config::field::{Field, NamedEntry};
use crate::config::listener::WrittenListenerConfig;
use crate::config::middleware::{FreeTable, KnownKeys, WrittenMiddleware};
use crate::config::root::WrittenConfig;
use crate::config::route::WrittenRouteConfig;
use crate::config::table::Table;
use crate::config::visibility::Word;
use crate::config::{MiddlewareConfig, MiddlewareKind, MiddlewareName};

/// The middleware of the file, sorted by name.
pub(super) fn middleware(check: &Check<'_>, file: &WrittenConfig) -> Vec<MiddlewareConfig> {
    let entries = file.middleware.entries();
    let mut all: Vec<_> = entries.iter().filter_map(|entry| one(check, entry)).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let listeners = file.listeners.members().map(|(_, it)| &it.middleware);
    let routes = file.routes.members().map(|(_, it)| &it.middleware);
    let upstreams = file.upstreams.entries().iter().filter_map(|entry| entry.value.value()).map(|it| &it.middleware);
    listeners.chain(routes).chain(upstreams).for_each(|names| named(check, names, file));
    twice(check, file);
    unused(check, file);
    all
}

fn one(check: &Check<'_>, entry: &NamedEntry<WrittenMiddleware>) -> Option<MiddlewareConfig> {
    let own_name = name(check, entry.place, &entry.name).map(MiddlewareName::from);
    let raw = entry.value.value()?;
    let kinds = raw.known.headers.place().into_iter().chain(raw.others.iter().map(|other| other.place));
    for place in kinds.skip(1) {
        let problem = Problem::error("this middleware has another kind too");
        check.add(place, problem.expected("one kind for each, under a name of its own"));
    }
    let KnownKeys { timeout, headers } = KnownKeys::read(check, entry.place, &raw.known)?;
    let kind = match headers {
        Some(rules) => Some(MiddlewareKind::Headers(rules)),
        None if raw.known.headers.place().is_some() => None,
        None => custom(check, entry, &raw.others),
    };
    Some(MiddlewareConfig { name: own_name?, timeout, kind: kind? })
}

fn custom(
    check: &Check<'_>,
    entry: &NamedEntry<WrittenMiddleware>,
    others: &[NamedEntry<FreeTable>],
) -> Option<MiddlewareKind> {
    let known = &check.vocabulary.middleware;
    let names = || MiddlewareKind::NAMES.into_iter().chain(known.iter().map(String::as_str));
    let Some(other) = others.first() else {
        let problem = Problem::error("it has no kind, so it does nothing");
        let kinds = names().collect::<Vec<_>>().join(", ");
        check.add(entry.place, problem.expected(format!("[middleware.NAME.KIND], where KIND is one of {kinds}")));
        return None;
    };
    if !known.contains(&other.name) {
        let problem = Problem::error(format!("unknown kind {}", check.quote(other.place, &other.name)));
        check.add(other.place, problem.one_of(&other.name, names()));
        return None;
    }
    let (place, FreeTable(value)) = other.value.given()?;
    match value {
        toml::Value::Table(table) => {
            Some(MiddlewareKind::Custom { kind: other.name.as_str().into(), table: table.clone() })
        }
        _ => {
            check.add(place, Problem::error("wrong type").expected("a table"));
            None
        }
    }
}

/// A key `middleware`: names, in the order from the outside in.
fn named(check: &Check<'_>, field: &Field<Vec<Field<Word>>>, file: &WrittenConfig) {
    let mut names = HashSet::new();
    for (place, text) in field.members() {
        let entries = file.middleware.entries();
        if !entries.iter().any(|entry| entry.name == text.as_str()) {
            let problem = Problem::error(format!("unknown middleware {}", check.quote(place, text)));
            let problem = match entries.is_empty() {
                true => problem.expected("a table [middleware.NAME.KIND] of that name"),
                false => problem.one_of(text, entries.iter().map(|entry| entry.name.as_str())),
            };
            check.add(place, problem);
        } else if !names.insert(text.as_str()) {
            let problem = Problem::error(format!("middleware {} is there twice", check.quote(place, text)));
            check.add(place, problem.expected("it once"));
        }
    }
}

/// Finds what would run twice for the same request: at its listener and its route, or at its upstream too.
fn twice(check: &Check<'_>, file: &WrittenConfig) {
    let mut told = HashSet::new();
    for (_, route) in file.routes.members() {
        let mut outside = Outside::default();
        for (_, listener) in file.listeners.members().filter(|(_, listener)| reaches(listener, route)) {
            let name = match (listener.name.given(), listener.address.given()) {
                (Some((place, name)), _) => check.quote(place, name),
                (None, Some((place, address))) => check.quote(place, address),
                (None, None) => continue,
            };
            outside.add(&format!("listener {name}"), &listener.middleware);
        }
        outside.check(check, &route.middleware, &mut told);
        let name = route.name.given().map(|(place, name)| format!("route {}", check.quote(place, name)));
        let name = name.unwrap_or_else(|| "a route to it".into());
        outside.add(&name, &route.middleware);
        let upstream = route
            .upstream
            .value()
            .and_then(|name| file.upstreams.entries().iter().find(|entry| entry.name == name.as_str())?.value.value());
        if let Some(upstream) = upstream {
            outside.check(check, &upstream.middleware, &mut told);
        }
    }
}

/// The middleware that a request comes to further outside, with what names it.
#[derive(Default)]
struct Outside<'f>(Vec<(String, &'f str)>);

impl<'f> Outside<'f> {
    fn add(&mut self, of: &str, field: &'f Field<Vec<Field<Word>>>) {
        self.0.extend(field.members().map(|(_, text)| (of.to_owned(), text.as_str())));
    }

    fn check(&self, check: &Check<'_>, field: &Field<Vec<Field<Word>>>, told: &mut HashSet<usize>) {
        for (place, text) in field.members() {
            let Some((of, _)) = self.0.iter().find(|(_, name)| *name == text.as_str()) else { continue };
            if told.insert(place.0) {
                let what = format!("{of} has middleware {} already", check.quote(place, text));
                check.add(place, Problem::error(what).expected("it once on the way of a request"));
            }
        }
    }
}

/// Whether requests of a listener can come to a route.
fn reaches(listener: &WrittenListenerConfig, route: &WrittenRouteConfig) -> bool {
    let is = |text: &str| {
        listener.name.value().is_some_and(|name| &**name == text)
            || listener.address.value().is_some_and(|address| &**address == text)
    };
    route.listeners.place().is_none() || route.listeners.members().any(|(_, text)| is(text))
}

/// Warns of middleware that nothing names.
fn unused(check: &Check<'_>, file: &WrittenConfig) {
    let listeners = file.listeners.members().flat_map(|(_, it)| it.middleware.members());
    let routes = file.routes.members().flat_map(|(_, it)| it.middleware.members());
    let upstreams = file.upstreams.entries().iter().filter_map(|entry| entry.value.value());
    let upstreams = upstreams.flat_map(|it| it.middleware.members());
    let used: HashSet<&str> = listeners.chain(routes).chain(upstreams).map(|(_, text)| text.as_str()).collect();
    for entry in file.middleware.entries().iter().filter(|entry| !used.contains(entry.name.as_str())) {
        let problem = Problem::warning("no listener, route or upstream uses this middleware");
        check.add(entry.place, problem.expected(format!("a key middleware = [{:?}]", entry.name)));
    }
}
