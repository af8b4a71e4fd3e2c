//! Redirects that lead back to where they come from, as far as the file shows it.

use super::Check;
use super::listener::CheckedListener;
use super::overlap::OverlapCandidate;
use crate::config::error::Problem;
use crate::config::report::Place;
use crate::config::{HostPattern, ListenerConfig, LocationPart, PathPattern, Redirect, RouteConfig};

/// Warns of each route that redirects requests to itself.
pub(super) fn check(check: &Check<'_>, routes: &[&OverlapCandidate], listeners: &[CheckedListener]) {
    for OverlapCandidate { place, route, .. } in routes {
        let Some(redirect) = &route.redirect else { continue };
        // A header, a parameter or a method may make the difference that the redirect goes by.
        if !(route.headers.is_empty() && route.query.is_empty() && route.methods.is_empty()) {
            continue;
        }
        let Some(target) = Target::of(redirect) else { continue };
        if !target.has_host_of(route) || !target.has_path_of(route) {
            continue;
        }
        let is_bound = |it: &&CheckedListener| route.listeners.is_empty() || route.listeners.contains(&it.config.name);
        let mut bound = listeners.iter().filter(is_bound).filter(|it| target.has_scheme_of(&it.config));
        let Some(listener) = bound.next() else { continue };
        let by = if target.scheme == Some("https") { " that come by https" } else { "" };
        let problem =
            format!("requests{by} at listener {} are redirected to where they come from", listener.name(check));
        check.add(*place, Problem::warning(problem).expected("a target that is another host, path or scheme"));
    }
}

/// Warns of a listener that redirects all clients to https in a file without a listener for https.
/// `places` are those of the key, for each.
pub(super) fn to_https(check: &Check<'_>, places: &[Option<Place>], listeners: &[CheckedListener]) {
    let secure = listeners.iter().any(|listener| listener.config.tls.is_some());
    for (place, CheckedListener { config: listener, .. }) in places.iter().zip(listeners) {
        let Some(place) = place.filter(|_| listener.redirect_to_https) else { continue };
        if secure || !listener.trusted_proxies.is_empty() {
            continue;
        }
        let problem = Problem::warning(
            "no listener speaks TLS and no proxy before this one is trusted to: requests that a proxy has taken by https would be \
             redirected for ever",
        );
        check.add(place, problem.expected("trusted_proxies with the proxy that ends TLS, or a listener with tls"));
    }
}

/// Where a redirect leads. What the request itself is taken from is `None`.
struct Target<'r> {
    scheme: Option<&'r str>,
    host: Option<&'r str>,
    path: Option<&'r str>,
}

impl<'r> Target<'r> {
    /// `None` where it is put together so that it cannot be told.
    fn of(redirect: &'r Redirect) -> Option<Self> {
        use LocationPart::{Host, Path, Query, Scheme, Text};

        // What follows the path makes no other request of it.
        let parts = match &redirect.location[..] {
            [parts @ .., Query] => parts,
            parts => parts,
        };
        let text = |part: &'r LocationPart| match part {
            Text(text) => Some(text.as_str()),
            _ => None,
        };
        let (scheme, rest) = match parts {
            [Scheme, separator, rest @ ..] if text(separator) == Some("://") => (None, rest),
            [first @ Text(_), rest @ ..] if matches!(text(first), Some("https://" | "http://")) => {
                (text(first).map(|it| it.trim_end_matches("://")), rest)
            }
            // A path alone, at the same host.
            [Path] => return Some(Self { scheme: None, host: None, path: None }),
            [Text(path)] if path.starts_with('/') && !path.starts_with("//") => {
                return Some(Self { scheme: None, host: None, path: Some(path) });
            }
            [Text(whole)] => {
                let (scheme, rest) = whole.split_once("://")?;
                let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                return Some(Self { scheme: Some(scheme), host: Some(host), path: Some(path) });
            }
            [Text(whole), Path] => {
                let (scheme, host) = whole.split_once("://").filter(|(_, host)| !host.contains('/'))?;
                return Some(Self { scheme: Some(scheme), host: Some(host), path: None });
            }
            _ => return None,
        };
        match rest {
            [Host] => Some(Self { scheme, host: None, path: Some("/") }),
            [Host, Path] => Some(Self { scheme, host: None, path: None }),
            [Host, Text(path)] if path.starts_with('/') => Some(Self { scheme, host: None, path: Some(path) }),
            _ => None,
        }
    }

    /// A name that the route does not have may be served elsewhere.
    fn has_host_of(&self, route: &RouteConfig) -> bool {
        let Some(host) = self.host else { return true };
        route.hosts.iter().any(|pattern| match pattern {
            HostPattern::Exact(name) => name == host,
            HostPattern::Wildcard(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
        })
    }

    fn has_path_of(&self, route: &RouteConfig) -> bool {
        let Some(path) = self.path else { return true };
        let path = if path.is_empty() { "/" } else { path.split(['?', '#']).next().unwrap_or(path) };
        match &route.path {
            PathPattern::Exact(exact) => exact == path,
            PathPattern::Prefix(prefix) => {
                path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            PathPattern::Regex(regex) => regex.is_match(path),
        }
    }

    /// Whether requests come to the listener by the scheme that it names.
    fn has_scheme_of(&self, listener: &ListenerConfig) -> bool {
        match self.scheme {
            None => true,
            Some("https") => listener.tls.is_some() || !listener.trusted_proxies.is_empty(),
            Some("http") => listener.tls.is_none() && !listener.redirect_to_https,
            Some(_) => false,
        }
    }
}
