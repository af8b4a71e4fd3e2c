//! Which route a request takes.
//!
//! The most specific route wins, wherever it stands in the file. Routes are compared by
//!
//! 1. host: the exact name, then wildcards, the longest first, then any host;
//! 2. path: the exact path, then prefixes, the longest first, then patterns in the order of the file, then every path;
//! 3. how much else they ask for: the number of headers and of query parameters, plus one where there are methods and one
//!    where there are listeners; the greater first;
//! 4. the order of the file, where all of that is equal.
//!
//! A route whose methods, headers, query or listeners do not fit is passed over, and the search goes on in that order: to
//! the next route of the same path, to less specific paths of the same host, to less specific hosts. So a `GET` route on
//! `api.example.com` leaves a `POST` to the route on `*.example.com`, if that has one for the path, and then to any host's.
//!
//! Host and path come before everything else: a route of an exact host that asks for nothing wins against one of a wildcard
//! host that asks for three headers, and a prefix wins against a pattern. Every path (`path_prefix = "/"`, or nothing said)
//! is what is left when nothing else fits: otherwise a fallback would hide all patterns of its host.
//!
//! Hosts and paths are compared in their canonical forms ([`target`]), byte for byte. A route with several hosts stands at
//! each of them.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv6Addr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use regex::Regex;

use crate::config::{
    self, HostPattern, ListenerName, MiddlewareName, PathPattern, RouteConfig, RouteName, UpstreamName,
};
use crate::exchange::RequestHead;
use crate::header_names::tells_client;
use crate::middleware::{Chain, Installed};
use crate::target::{self, Host, authority};
use crate::telemetry::metrics::{RouteMetrics, Sharded};
use crate::upstream::Upstream;

mod matcher;
mod keys;
mod query;
pub mod path;
pub mod rewrite;

use keys::{Exact, Longest};
use matcher::MatchInput;

/// Where requests that match go, and what happens to them on the way.
#[derive(Debug)]
pub struct Route {
    /// Unique.
    pub name: RouteName,
    /// What it was built from.
    pub config: Arc<RouteConfig>,
    /// What is done with a request.
    pub action: RouteAction,
    /// What it passes through.
    pub chain: Chain,
    /// What was counted of it, over reloads.
    pub metrics: Arc<Sharded<RouteMetrics>>,
}

/// What is done with a request, with the names of the configuration resolved.
#[derive(Debug)]
pub enum RouteAction {
    /// Forwarded to an upstream.
    Forward(Forward),
    /// Answered with a redirect.
    Redirect(config::Redirect),
    /// Answered as written.
    Respond(config::Respond),
}

/// How a request is forwarded.
#[derive(Debug)]
pub struct Forward {
    /// Where to.
    pub upstream: Arc<Upstream>,
    /// Which path the backend sees.
    pub path: config::PathRewrite,
    /// Which host the backend sees; `None` keeps the client's.
    pub host: Option<HeaderValue>,
    /// How large a request's body may be, in place of what the listener says.
    pub max_body: Option<config::BodyLimit>,
    /// What tells a client with `Expect: 100-continue` to go on.
    pub expect: config::Expect,
    /// How long it may take.
    pub timeouts: config::Timeouts,
    /// When it is tried again.
    pub retries: Arc<config::RetryConfig>,
}

/// All routes, laid out for the search. Immutable.
#[derive(Debug)]
pub struct RoutingTable {
    routes: Box<[Arc<Route>]>,
    /// By host name.
    exact_hosts: Exact<HostRoutes>,
    /// By what comes after the `*`.
    wildcard_hosts: Longest<HostRoutes>,
    any_host: HostRoutes,
    /// Whether a route asks for headers.
    looks_at_headers: bool,
    /// Whether one of those is a header that tells of the client.
    looks_at_clients: bool,
}

impl RoutingTable {
    /// Lays the routes out, each with its own of the `middleware` that was installed. `metrics` gives what was counted of a route so far, or a new set.
    pub fn build(
        routes: &[Arc<RouteConfig>],
        upstreams: &[Arc<Upstream>],
        middleware: &[Arc<Installed>],
        metrics: &mut dyn FnMut(&RouteName) -> Arc<Sharded<RouteMetrics>>,
    ) -> Self {
        let draft = Draft::of(routes);
        let upstreams: HashMap<_, _> = upstreams.iter().map(|upstream| (upstream.name(), upstream)).collect();
        let routes = routes.iter().map(|config| {
            let action = RouteAction::build(config, &upstreams);
            let behind = action.middleware();
            Arc::new(Route {
                name: config.name.clone(),
                chain: Chain::of_route(config, behind, middleware),
                action,
                metrics: metrics(&config.name),
                config: Arc::clone(config),
            })
        });
        let routes: Box<[Arc<Route>]> = routes.collect();
        Self {
            looks_at_headers: routes.iter().any(|route| !route.config.headers.is_empty()),
            looks_at_clients: routes.iter().flat_map(|route| &route.config.headers).any(|it| tells_client(&it.name)),
            routes,
            exact_hosts: draft.exact_hosts.into_iter().map(|(host, paths)| (host, paths.finish())).collect(),
            wildcard_hosts: draft.wildcard_hosts.into_iter().map(|(host, paths)| (host, paths.finish())).collect(),
            any_host: draft.any_host.finish(),
        }
    }

    /// Whether a route asks for headers of a request.
    pub fn looks_at_headers(&self) -> bool {
        self.looks_at_headers
    }

    /// Whether one of those is a header that tells of the client, and that the proxy itself says.
    pub fn looks_at_clients(&self) -> bool {
        self.looks_at_clients
    }

    /// The route of a request that came to `listener` for `authority`: the value of a `Host` header, or nothing. `None` too where that
    /// or the path is one that is refused. For a look at a table; requests are served by [`RoutingTable::find_index`].
    pub fn find(&self, listener: &ListenerName, authority: &str, request: &RequestHead) -> Option<&Route> {
        let authority = match authority {
            "" => String::new(),
            text => authority::canonical(text.as_bytes())?,
        };
        let path = target::path::tidy(request.uri.path()).ok()?;
        let matched = target::path::matched(&path);
        let index = self.find_index(listener, Host::of(&authority), (&matched).into(), request);
        index.map(|index| self.get(index))
    }

    /// The route of a request that came to `listener` for `host`, with a path that is read so. For [`RoutingTable::get`]: a number can be kept
    /// where a reference cannot. Allocates nothing, unless a route compares an encoded query with a pattern.
    pub fn find_index(
        &self,
        listener: &ListenerName,
        host: Host<'_>,
        path: Reading<'_>,
        request: &RequestHead,
    ) -> Option<usize> {
        let asked = MatchInput { listener, head: request, path };
        self.find_by_host(host.as_str().as_bytes(), &asked).or_else(|| self.any_host.find(&asked))
    }

    /// The route that [`RoutingTable::find_index`] of this very table gave the index of.
    pub fn get(&self, index: usize) -> &Route {
        &self.routes[index]
    }

    /// All routes, in the order of the file.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// Whether a route is for requests to some hosts only. Otherwise it does not matter to [`RoutingTable::find_index`] which host it is given.
    #[inline]
    pub fn looks_at_hosts(&self) -> bool {
        !(self.exact_hosts.is_empty() && self.wildcard_hosts.is_empty())
    }

    fn find_by_host(&self, host: &[u8], asked: &MatchInput<'_>) -> Option<usize> {
        if !self.looks_at_hosts() {
            return None;
        }
        let exact = self.exact_hosts.get(host).and_then(|paths| paths.find(asked));
        exact.or_else(|| self.wildcard_hosts.suffixes(host).find_map(|paths| paths.find(asked)))
    }
}

/// How a request's path is read where routes compare it.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// The path as it is [matched](crate::target::path::matched).
    pub path: &'a str,
    /// The same with the parameters of its segments, if there are some: patterns may ask for them.
    pub with_parameters: Option<&'a str>,
}

impl<'a> Reading<'a> {
    /// Of a path that all servers read alike.
    pub fn plain(path: &'a str) -> Self {
        Self { path, with_parameters: None }
    }
}

impl<'a> From<&'a target::path::Matched> for Reading<'a> {
    fn from(matched: &'a target::path::Matched) -> Self {
        Self { path: &matched.path, with_parameters: matched.with_parameters.as_deref() }
    }
}

impl RouteAction {
    /// The middleware of the upstream, where there is one.
    fn middleware(&self) -> &[MiddlewareName] {
        match self {
            Self::Forward(forward) => &forward.upstream.config.middleware,
            Self::Redirect(_) | Self::Respond(_) => &[],
        }
    }

    fn build(config: &RouteConfig, upstreams: &HashMap<&UpstreamName, &Arc<Upstream>>) -> Self {
        if let Some(redirect) = &config.redirect {
            return Self::Redirect(redirect.clone());
        }
        if let Some(respond) = &config.respond {
            return Self::Respond(respond.clone());
        }
        match config.upstream.as_ref().and_then(|name| upstreams.get(name)) {
            Some(&upstream) => Self::Forward(Forward {
                upstream: Arc::clone(upstream),
                path: config.rewrite(),
                host: config.host.clone(),
                max_body: config.max_body,
                expect: config.expect,
                timeouts: config.timeouts,
                retries: Arc::clone(&config.retries),
            }),
            // A checked configuration has no such route. Leaving it out would send its requests to a less specific
            // route, whose backends may not be meant to see them.
            None => Self::Respond(config::Respond {
                status: StatusCode::SERVICE_UNAVAILABLE,
                content_type: None,
                body: Bytes::new(),
            }),
        }
    }
}

/// The routes of a host.
#[derive(Debug)]
struct HostRoutes {
    exact: Exact<RouteCandidates>,
    prefixes: Longest<RouteCandidates>,
    /// In the order of the file.
    patterns: Box<[(Regex, RouteCandidates)]>,
    /// Those of every path.
    every: Option<RouteCandidates>,
}

impl HostRoutes {
    fn find(&self, asked: &MatchInput<'_>) -> Option<usize> {
        let path = asked.path.path.as_bytes();
        let first = |candidates: &RouteCandidates| candidates.first(asked);
        let by_pattern = || {
            let Reading { path, with_parameters } = asked.path;
            let fits = |(regex, _): &&(Regex, RouteCandidates)| {
                regex.is_match(path) || with_parameters.is_some_and(|path| regex.is_match(path))
            };
            self.patterns.iter().filter(fits).find_map(|(_, candidates)| first(candidates))
        };
        (self.exact.get(path).and_then(first))
            .or_else(|| self.prefixes.prefixes(path).find_map(first))
            .or_else(by_pattern)
            .or_else(|| self.every.as_ref().and_then(first))
    }
}

/// The routes of a path, those that ask for more first.
#[derive(Debug)]
struct RouteCandidates(Box<[RouteCandidate]>);

#[derive(Debug)]
struct RouteCandidate {
    route: usize,
    /// `None` where nothing is asked for, so that this is seen without a look elsewhere in memory.
    constrained: Option<Arc<RouteConfig>>,
}

impl RouteCandidates {
    fn first(&self, asked: &MatchInput<'_>) -> Option<usize> {
        let fits = |candidate: &&RouteCandidate| match &candidate.constrained {
            None => true,
            Some(config) => matcher::matches(config, asked),
        };
        self.0.iter().find(fits).map(|candidate| candidate.route)
    }
}

/// A table being laid out.
#[derive(Default)]
struct Draft {
    exact_hosts: HashMap<Box<[u8]>, DraftPaths>,
    wildcard_hosts: HashMap<Box<[u8]>, DraftPaths>,
    any_host: DraftPaths,
}

#[derive(Default)]
struct DraftPaths {
    exact: HashMap<Box<[u8]>, Vec<RouteCandidate>>,
    prefixes: HashMap<Box<[u8]>, Vec<RouteCandidate>>,
    /// By the pattern's text, with the place in the file of the first route that has it.
    patterns: BTreeMap<String, (usize, Regex, Vec<RouteCandidate>)>,
}

impl Draft {
    fn of(routes: &[Arc<RouteConfig>]) -> Self {
        let mut order: Vec<_> = routes.iter().enumerate().collect();
        // Stable: the order of the file where they ask for equally much. Each path's candidates then come in theirs.
        order.sort_by_key(|(_, config)| std::cmp::Reverse(matcher::constraints(config)));
        let mut draft = Self::default();
        for (route, config) in order {
            if config.hosts.is_empty() {
                draft.any_host.add(route, config);
            }
            for host in &config.hosts {
                draft.paths(host).add(route, config);
            }
        }
        draft
    }

    fn paths(&mut self, host: &HostPattern) -> &mut DraftPaths {
        match host {
            HostPattern::Wildcard(suffix) => self.wildcard_hosts.entry(suffix.as_bytes().into()).or_default(),
            // Clients write IPv6 addresses in brackets; the file may leave them out.
            HostPattern::Exact(host) if host.parse::<Ipv6Addr>().is_ok() => {
                self.exact_hosts.entry(format!("[{host}]").into_bytes().into()).or_default()
            }
            HostPattern::Exact(host) => self.exact_hosts.entry(host.as_bytes().into()).or_default(),
        }
    }
}

impl DraftPaths {
    fn add(&mut self, route: usize, config: &Arc<RouteConfig>) {
        let constrained = (matcher::constraints(config) > 0).then(|| Arc::clone(config));
        let candidate = RouteCandidate { route, constrained };
        match &config.path {
            PathPattern::Exact(path) => self.exact.entry(path.as_bytes().into()).or_default().push(candidate),
            PathPattern::Prefix(prefix) => self.prefixes.entry(prefix.as_bytes().into()).or_default().push(candidate),
            PathPattern::Regex(regex) => {
                let pattern = regex.as_str().to_owned();
                let (first, _, candidates) =
                    self.patterns.entry(pattern).or_insert_with(|| (route, regex.clone(), Vec::new()));
                *first = route.min(*first);
                candidates.push(candidate);
            }
        }
    }

    fn finish(mut self) -> HostRoutes {
        let every = self.prefixes.remove(&b""[..]).map(|candidates| RouteCandidates(candidates.into()));
        let finish = |(path, candidates): (_, Vec<_>)| (path, RouteCandidates(candidates.into()));
        let mut patterns: Vec<_> = self.patterns.into_values().collect();
        patterns.sort_by_key(|&(first, ..)| first);
        HostRoutes {
            exact: self.exact.into_iter().map(finish).collect(),
            prefixes: self.prefixes.into_iter().map(finish).collect(),
            patterns: patterns.into_iter().map(|(_, regex, list)| (regex, RouteCandidates(list.into()))).collect(),
            every,
        }
    }
}

#[cfg(test)]
mod tests;
