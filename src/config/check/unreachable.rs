//! Routes that no request can reach: what they match is taken by others before. Only where that is certain.
//!
//! A route stands for the same products as in [`overlap`]: its listeners times its hosts times its methods. It is reached where one product
//! is. Which routes come before it is said in [`route`](crate::route): those of a more specific path, and at the same path those that ask for
//! more, or stand before it. So a wider prefix hides no narrower one, and an exact host none of a wildcard.

use std::collections::{HashMap, HashSet};

use regex_syntax::hir::literal::{Extractor, Literal};

use super::Check;
use super::listener::CheckedListener;
use super::overlap::{self, Match, OverlapCandidate};
use super::value::written;
use crate::config::error::Problem;
use crate::config::report::quote;
use crate::config::{HeaderMatch, HostPattern, PathPattern, QueryMatch, RouteConfig, ValueMatch};

/// Routes of a path that are compared with each other. Where there are more nothing is said.
const ALIKE_MAX: usize = 256;

/// Warns of each route that is never reached, but for those of which it is said already that they match what another does.
pub(super) fn check(
    check: &Check<'_>,
    routes: &[&OverlapCandidate],
    listeners: &[CheckedListener],
    told: &HashSet<usize>,
) {
    let table = RouteIndex::of(routes);
    for (index, candidate) in routes.iter().enumerate().filter(|(index, _)| !told.contains(index)) {
        let OverlapCandidate { place, route, .. } = candidate;
        if let Some(listener) = redirecting(route, listeners) {
            let problem =
                format!("never reached: listener {} redirects every request to https", listener.quoted_name(check));
            check.add(*place, Problem::warning(problem).expected("a listener that speaks TLS"));
        } else if let Some(first) =
            table.hides(index, &overlap::products(route, listeners)).and_then(|it| routes.get(it))
        {
            let mut what = format!("never reached: {}", check.report.path(first.place));
            if candidate.told && first.told {
                what += &format!(" {}", quote(first.route.name.as_str()));
            }
            what += " takes all that it matches";
            check.add(
                *place,
                Problem::warning(what).expected("another host, path, method, header or query, or not this route"),
            );
        }
    }
}

/// The first of a route's listeners, where all of them send every request to https and are never asked by https.
fn redirecting<'l>(route: &RouteConfig, listeners: &'l [CheckedListener]) -> Option<&'l CheckedListener> {
    let mut bound = listeners.iter().filter(|it| route.listeners.contains(&it.config.name));
    let redirects = |it: &CheckedListener| {
        it.config.redirect_to_https && it.config.tls.is_none() && it.config.trusted_proxies.is_empty()
    };
    let first = bound.next().filter(|it| redirects(it))?;
    bound.all(redirects).then_some(first)
}

/// Says of a pattern that it matches no path of a request, and why.
pub(crate) fn matches_nothing(pattern: &str) -> Option<&'static str> {
    let beginnings = beginnings(pattern)?;
    // `OPTIONS *` has a path of its own.
    let begins = |it: &Literal| matches!(it.as_bytes(), [] | [b'/' | b'*', ..]);
    (!beginnings.iter().any(begins)).then_some("matches no request: every path begins with a slash")
}

/// What each text that a pattern matches begins with, where that can be told.
fn beginnings(pattern: &str) -> Option<Vec<Literal>> {
    let pattern = regex_syntax::parse(pattern).ok()?;
    Some(Extractor::new().extract(&pattern).literals()?.to_vec()).filter(|literals| !literals.is_empty())
}

/// The routes by host and path.
struct RouteIndex<'r> {
    routes: Vec<&'r RouteConfig>,
    hosts: HashMap<Option<&'r HostPattern>, HostPaths<'r>>,
}

/// The routes of a host.
#[derive(Default)]
struct HostPaths<'r> {
    exact: HashMap<&'r str, Vec<usize>>,
    prefixes: HashMap<&'r str, Vec<usize>>,
    /// In the order of the file.
    patterns: HashMap<&'r str, Vec<usize>>,
}

impl<'r> RouteIndex<'r> {
    fn of(candidates: &[&'r OverlapCandidate]) -> Self {
        let routes: Vec<_> = candidates.iter().map(|it| &it.route).collect();
        let mut hosts: HashMap<_, HostPaths<'_>> = HashMap::new();
        for (index, route) in routes.iter().enumerate() {
            let of_route = if route.hosts.is_empty() { vec![None] } else { route.hosts.iter().map(Some).collect() };
            for host in of_route {
                let paths = hosts.entry(host).or_default();
                let (by_path, path) = match &route.path {
                    PathPattern::Exact(path) => (&mut paths.exact, path.as_str()),
                    PathPattern::Prefix(prefix) => (&mut paths.prefixes, prefix.as_str()),
                    PathPattern::Regex(regex) => (&mut paths.patterns, written(regex)),
                };
                by_path.entry(path).or_default().push(index);
            }
        }
        Self { routes, hosts }
    }

    /// Which route hides the first product of a route, if all of them are hidden.
    fn hides(&self, index: usize, products: &[Match<'_>]) -> Option<usize> {
        let mut first = None;
        for product in products {
            let hiding = self.hides_product(index, product)?;
            first.get_or_insert(hiding);
        }
        first
    }

    fn hides_product(&self, index: usize, product: &Match<'_>) -> Option<usize> {
        let (route, paths) = (self.routes.get(index)?, self.hosts.get(&product.host)?);
        match &route.path {
            PathPattern::Exact(path) => self.comes_first(index, product, paths.exact.get(path.as_str())?),
            PathPattern::Prefix(prefix) => self.comes_first(index, product, paths.prefixes.get(prefix.as_str())?),
            PathPattern::Regex(regex) => {
                let text = written(regex);
                let alike = paths.patterns.get(text)?;
                (self.comes_first(index, product, alike))
                    .or_else(|| self.by_more_specific(index, product, paths, text))
                    .or_else(|| self.by_wider_pattern(index, product, paths, text, *alike.first()?))
            }
        }
    }

    /// Of routes with the same path, one that is looked at before and takes everything.
    fn comes_first(&self, index: usize, product: &Match<'_>, alike: &[usize]) -> Option<usize> {
        let weight = |index: usize| self.routes.get(index).map(|route| constraints(route));
        let before = |other: &&usize| {
            **other != index
                && (weight(**other) > weight(index) || (weight(**other) == weight(index) && **other < index))
        };
        if alike.len() > ALIKE_MAX {
            return None;
        }
        alike.iter().filter(before).find(|other| self.takes(**other, index, product)).copied()
    }

    /// Exact paths and prefixes come before patterns.
    fn by_more_specific(&self, index: usize, product: &Match<'_>, paths: &HostPaths<'_>, text: &str) -> Option<usize> {
        let mut first = None;
        for beginning in beginnings(text)? {
            let hiding = self.by_path(
                index,
                product,
                paths,
                std::str::from_utf8(beginning.as_bytes()).ok()?,
                beginning.is_exact(),
            )?;
            first.get_or_insert(hiding);
        }
        first
    }

    /// A route that takes every path that begins so, or that is this one.
    fn by_path(
        &self,
        index: usize,
        product: &Match<'_>,
        paths: &HostPaths<'_>,
        beginning: &str,
        whole: bool,
    ) -> Option<usize> {
        // Parameters are taken off a path before it is compared with anything but patterns.
        if beginning.contains(';') {
            return None;
        }
        let takes =
            |list: &Vec<usize>| list.iter().take(ALIKE_MAX).find(|other| self.takes(**other, index, product)).copied();
        let exact = paths.exact.get(beginning).filter(|_| whole).and_then(takes);
        let slashes = beginning.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0);
        let ends = slashes.chain(whole.then_some(beginning.len()));
        let mut prefixes = ends.filter_map(|end| beginning.get(..end)).filter_map(|prefix| paths.prefixes.get(prefix));
        exact.or_else(|| prefixes.find_map(takes))
    }

    /// A pattern of everything that is tried before.
    fn by_wider_pattern(
        &self,
        index: usize,
        product: &Match<'_>,
        paths: &HostPaths<'_>,
        text: &str,
        at: usize,
    ) -> Option<usize> {
        let is_path = || beginnings(text).is_some_and(|all| all.iter().all(|it| it.as_bytes().first() == Some(&b'/')));
        if !EVERY_PATH.iter().any(|every| paths.patterns.contains_key(every)) || !is_path() {
            return None;
        }
        let wider = EVERY_PATH.iter().filter_map(|every| paths.patterns.get(every));
        // Each is tried where the first route that has it stands.
        let mut wider = wider.filter(|list| list.first().is_some_and(|first| *first < at));
        wider.find_map(|list| list.iter().take(ALIKE_MAX).find(|other| self.takes(**other, index, product)).copied())
    }

    /// Whether one route takes every request of a product of another, whatever their paths.
    fn takes(&self, other: usize, index: usize, product: &Match<'_>) -> bool {
        let (Some(other), Some(route)) = (self.routes.get(other), self.routes.get(index)) else { return false };
        let listeners = other.listeners.is_empty() || other.listeners.iter().any(|it| it.as_str() == product.listener);
        let method = |method: &str| other.methods.iter().any(|it| it.as_str() == method);
        listeners
            && (other.methods.is_empty() || product.method.is_some_and(method))
            && other.headers.iter().all(|wanted| route.headers.iter().any(|given| header_implies(given, wanted)))
            && other.query.iter().all(|wanted| route.query.iter().any(|given| query_implies(given, wanted)))
    }
}

/// Patterns that match every path of a request but that of `OPTIONS *`.
const EVERY_PATH: [&str; 10] = [".*", "/.*", "^.*$", "^/.*$", "^.*", "^/.*", ".*$", "/.*$", "(.*)", "/(.*)"];

/// How many things a route asks for beside host and path, as the table of routes counts them.
fn constraints(route: &RouteConfig) -> usize {
    usize::from(!route.methods.is_empty())
        + usize::from(!route.listeners.is_empty())
        + route.headers.len()
        + route.query.len()
}

fn header_implies(given: &HeaderMatch, wanted: &HeaderMatch) -> bool {
    given.name == wanted.name && implies(&given.value, &wanted.value)
}

fn query_implies(given: &QueryMatch, wanted: &QueryMatch) -> bool {
    given.name == wanted.name && implies(&given.value, &wanted.value)
}

/// Whether a value that is as `given` is always as `wanted`. Of several values one is enough, for both.
fn implies(given: &ValueMatch, wanted: &ValueMatch) -> bool {
    match (given, wanted) {
        (ValueMatch::Present | ValueMatch::Exact(_) | ValueMatch::Regex(_), ValueMatch::Present) => true,
        (ValueMatch::Exact(text), ValueMatch::Regex(regex)) => regex.is_match(text),
        (given, wanted) => given == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_that_match_no_path() {
        for (pattern, nothing) in [
            ("/users", false),
            ("^/users$", false),
            ("users/.*", true),
            ("^users", true),
            ("(?:a|b)/x", true),
            ("(?:a|/b)/x", false),
            ("/?users", false),
            (".*\\.php", false),
            ("[a-z]+", false),
            ("(?i)/users", false),
            ("\\*", false),
            ("", false),
            ("(?:/a)?", false),
        ] {
            assert_eq!(matches_nothing(pattern).is_some(), nothing, "{pattern}");
        }
    }

    #[test]
    fn values_that_say_more() {
        let regex = |text: &str| ValueMatch::Regex(regex::Regex::new(&format!("^(?:{text})$")).unwrap());
        let exact = |text: &str| ValueMatch::Exact(text.into());
        for (given, wanted, implied) in [
            (exact("a"), ValueMatch::Present, true),
            (regex("a"), ValueMatch::Present, true),
            (exact("a"), regex("[ab]"), true),
            (exact("c"), regex("[ab]"), false),
            (regex("a"), regex("a"), true),
            (regex("a"), regex("[ab]"), false),
            (exact("a"), exact("a"), true),
            (exact("a"), exact("b"), false),
            (ValueMatch::Present, exact("a"), false),
            (ValueMatch::Absent, ValueMatch::Absent, true),
            (ValueMatch::Absent, ValueMatch::Present, false),
        ] {
            assert_eq!(implies(&given, &wanted), implied, "{given:?} {wanted:?}");
        }
    }
}
