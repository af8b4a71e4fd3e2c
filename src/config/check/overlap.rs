//! Two routes that match exactly the same requests: it is unclear which of them is meant.
//!
//! A route stands for its listeners times its hosts times its methods, and no two routes may share one of the products with
//! the same path, headers and query. Routes that overlap only in part have an order: the more specific wins.

use std::collections::{HashMap, HashSet};

use super::Check;
use super::listener::CheckedListener;
use crate::config::error::Problem;
use crate::config::report::{Place, quote};
use crate::config::{HostPattern, PathPattern, RouteConfig, ValueMatch};

/// A route that may match what another does.
#[derive(Debug)]
pub(super) struct OverlapCandidate {
    /// Where it is.
    pub(super) place: Place,
    pub(super) route: RouteConfig,
    /// Whether problems may say what it is called and matches.
    pub(super) told: bool,
}

/// One product.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Match<'r> {
    pub(super) listener: &'r str,
    pub(super) host: Option<&'r HostPattern>,
    pub(super) method: Option<&'r str>,
    rest: std::rc::Rc<str>,
}

/// Reports each route that matches what one before it matches, and says which they are.
pub(super) fn check(check: &Check<'_>, routes: &[&OverlapCandidate], listeners: &[CheckedListener]) -> HashSet<usize> {
    let mut told_of = HashSet::new();
    let mut seen: HashMap<Match<'_>, usize> = HashMap::new();
    for (index, OverlapCandidate { place, route, told }) in routes.iter().enumerate() {
        let mut shared = None;
        for product in products(route, listeners) {
            let first = *seen.entry(product.clone()).or_insert(index);
            if first != index && shared.is_none() {
                shared = Some((first, product));
            }
        }
        if let Some((first, product)) = shared
            && let Some(first) = routes.get(first)
        {
            told_of.insert(index);
            let mut what = format!("matches the same requests as {}", check.report.path(first.place));
            if *told && first.told {
                let listener = listeners.iter().find(|it| it.config.name.as_str() == product.listener);
                let listener = listener.map(|it| it.name(check)).unwrap_or_default();
                what += &format!(
                    " {}{}",
                    quote(first.route.name.as_str()),
                    describe(&product, &listener, route, &first.route)
                );
            }
            check.add(*place, Problem::error(what).expected("another host, path, method, header, query or listener"));
        }
    }
    told_of
}

/// What a route stands for.
pub(super) fn products<'r>(route: &'r RouteConfig, listeners: &'r [CheckedListener]) -> Vec<Match<'r>> {
    let rest: std::rc::Rc<str> = rest(route).into();
    let bound: Vec<&str> = match route.listeners.as_slice() {
        [] => listeners.iter().map(|listener| listener.config.name.as_str()).collect(),
        bound => bound.iter().map(|name| name.as_str()).collect(),
    };
    let hosts: Vec<_> = if route.hosts.is_empty() { vec![None] } else { route.hosts.iter().map(Some).collect() };
    let methods: Vec<_> =
        if route.methods.is_empty() { vec![None] } else { route.methods.iter().map(|it| Some(it.as_str())).collect() };
    let mut products = Vec::new();
    for listener in bound {
        for host in &hosts {
            for method in &methods {
                products.push(Match { listener, host: *host, method: *method, rest: rest.clone() });
            }
        }
    }
    products
}

/// Path, headers and query, written so that only equal ones are equal.
fn rest(route: &RouteConfig) -> String {
    let value = |value: &ValueMatch| match value {
        ValueMatch::Present => "present".to_owned(),
        ValueMatch::Absent => "absent".to_owned(),
        ValueMatch::Exact(text) => format!("is {text:?}"),
        ValueMatch::Regex(regex) => format!("like {:?}", regex.as_str()),
    };
    let path = match &route.path {
        PathPattern::Exact(path) => format!("is {path:?}"),
        PathPattern::Prefix(prefix) => format!("below {prefix:?}"),
        PathPattern::Regex(regex) => format!("like {:?}", regex.as_str()),
    };
    let mut headers: Vec<_> = route.headers.iter().map(|it| format!("{} {}", it.name, value(&it.value))).collect();
    let mut query: Vec<_> = route.query.iter().map(|it| format!("{:?} {}", it.name, value(&it.value))).collect();
    headers.sort();
    query.sort();
    format!("{path} headers {headers:?} query {query:?}")
}

/// What two routes share, where that is not all of them.
fn describe(product: &Match<'_>, listener: &str, a: &RouteConfig, b: &RouteConfig) -> String {
    let mut parts = Vec::new();
    if a.hosts != b.hosts {
        match product.host {
            Some(HostPattern::Exact(host)) => parts.push(format!("to host {host}")),
            Some(HostPattern::Wildcard(suffix)) => parts.push(format!("to hosts *{suffix}")),
            None => {}
        }
    }
    if let Some(method) = product.method
        && a.methods != b.methods
    {
        parts.push(format!("with method {method}"));
    }
    if a.listeners != b.listeners {
        parts.push(format!("at listener {listener}"));
    }
    parts.iter().map(|part| format!(" {part}")).collect()
}
