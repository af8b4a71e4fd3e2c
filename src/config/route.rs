//! `[[route]]`: which requests, and what is done with them.

use std::sync::Arc;

use http::header::HeaderValue;

use super::body_limit::BodySize;
use super::check::Check;
use super::difference::Changes;
use super::error::Problem;
use super::form::{About, Else, Form, List, Literal, Maybe, Name, OneOf, Part, Reference, Switch, Word};
use super::header::{HeaderEdits, Host};
use super::json_tree::Tree;
use super::matches::{
    HeaderMatches, Hosts, MatchedPath, Methods, PathExpression, PathRegex, PlainPath, Prefix, QueryMatches,
};
use super::report::Place;
use super::retries::{Retries, WrittenRetries};
use super::rule::KeyRule;
use super::services::SERVICE;
use super::table::Table;
use super::visibility::Location;
use super::{
    BodyLimit, HeaderMatch, HostPattern, ListenerName, MiddlewareName, PathOverrides, PathPattern, QueryMatch,
    Redirect, Respond, RetryConfig, RouteName, Timeouts, UpstreamName,
};

/// Which requests match, where they go, and with what on the way. The most specific route wins, whatever the order: an exact host, then a wildcard,
/// then any host; an exact path, then the longest prefix, then patterns in the order of the file, then routes for every path. No match is 404. A
/// route has one of `upstream`, `redirect` and `respond`.
#[derive(Clone, Debug, PartialEq, Table)]
#[table(check = Self::check, rules = Self::RULES, reload = Requests)]
pub struct RouteConfig {
    /// What logs and metrics call it. Unique.
    #[key(Name, otherwise = "made of methods, host and path")]
    pub name: RouteName,
    /// The listeners it is bound to.
    #[key(List(Reference("a listener")), otherwise = "all", shown_if = Self::is_bound)]
    pub listeners: Vec<ListenerName>,
    /// `api.example.com`, `*.example.com` (any host below it, however deep) or `*` (every host). Any of them matches.
    #[key(Hosts, otherwise = "every host")]
    pub hosts: Vec<HostPattern>,
    /// This path only. At most one of `path`, `path_prefix` and `path_regex`.
    #[key(Maybe(MatchedPath), name = "path", otherwise = "every path")]
    pub path_exact: Option<String>,
    /// Whole segments: `/api` matches `/api` and `/api/x`, not `/apix`.
    #[key(Maybe(Prefix), otherwise = "every path")]
    pub path_prefix: Option<String>,
    /// A pattern that matches the whole path.
    #[key(Maybe(PathRegex), otherwise = "every path")]
    pub path_regex: Option<PathExpression>,
    /// Any of these.
    #[key(Methods, otherwise = "every method")]
    pub methods: Vec<http::Method>,
    /// Headers that a request must have, all of them. Of several values of a header, one is enough.
    #[key(HeaderMatches, otherwise = "any")]
    pub headers: Vec<HeaderMatch>,
    /// Parameters that the query must have, all of them, after percent-decoding.
    #[key(QueryMatches, otherwise = "any")]
    pub query: Vec<QueryMatch>,
    /// What is done with paths that servers read differently, for this route.
    #[key(Part, shown_if = Self::has_paths)]
    pub paths: PathOverrides,
    /// Where requests go.
    #[key(Maybe(Reference("an upstream")), example = "users")]
    pub upstream: Option<UpstreamName>,
    /// Where `upstream` has `services`: each has the hosts and paths that its tags with this prefix say, as Fabio reads them
    /// (`urlprefix-users.example.com/api strip=/api`), within `hosts` and `path_prefix`.
    #[key(Maybe(Name), example = "urlprefix-")]
    pub service_tags: Option<Arc<str>>,
    /// Answers with a redirect.
    #[key(Part)]
    pub redirect: Option<Redirect>,
    /// Answers with a response of its own.
    #[key(Part)]
    pub respond: Option<Respond>,
    /// Whether the backend sees the path without `path_prefix`.
    #[key(Switch, default = false, shown_if = Self::strips)]
    pub strip_prefix: bool,
    /// What the backend sees in place of `path_prefix` or `path`.
    #[key(Maybe(PlainPath), example = "/v2")]
    pub replace_prefix: Option<String>,
    /// The host that the backend sees: the client's (`preserve`), or another one.
    #[key(HostOrPreserve, default = "preserve", shown_if = Self::forwards)]
    pub host: Option<HeaderValue>,
    /// How large a request body may be, or it is answered 413.
    #[key(Else(BodySize, "as the listener"), otherwise = "as the listener has it")]
    pub max_body: Option<BodyLimit>,
    /// Who tells a client with `Expect: 100-continue` to go on: isobar (`answer`), or the backend (`pass`), which may refuse the request before its
    /// body is sent. A backend that says nothing for `timeouts.expect` is taken to want the body.
    #[key(OneOf, default = "answer", shown_if = Self::forwards)]
    pub expect: Expect,
    /// How long a request may take.
    #[key(Part, shown_if = Self::forwards)]
    pub timeouts: Timeouts,
    /// When a request is tried again: what the upstream says, with what stands here in its place.
    #[key(OverUpstream, otherwise = "as the upstream has it", shown_if = Self::forwards)]
    pub retries: Arc<RetryConfig>,
    /// Changes to the headers that the backend gets.
    #[key(Part, shown_if = Self::edits_requests)]
    pub request_headers: HeaderEdits,
    /// Changes to the headers that the client gets.
    #[key(Part, shown_if = Self::edits_responses)]
    pub response_headers: HeaderEdits,
    /// Names of `[middleware.NAME.KIND]` that its requests go through, from the outside in, behind those of their listener.
    #[key(List(Reference("a middleware")), otherwise = "none", shown_if = Self::has_middleware)]
    pub middleware: Vec<MiddlewareName>,
    /// Which paths match: what the three keys say.
    pub path: PathPattern,
}

/// Who tells a client to go on that sends `Expect: 100-continue`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Word)]
pub enum Expect {
    /// The proxy, once a connection to the backend is there. The backend does not see the field. Default.
    #[default]
    Answer,
    /// The backend, which may refuse the request instead.
    Pass,
}

/// Which path the backend sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// The client's.
    Keep,
    /// Without the route's prefix; always starting with a slash.
    StripPrefix,
    /// With this in place of the route's prefix (of the whole path where the route matches exactly). Starts with a slash,
    /// kept without its final one.
    ReplacePrefix(String),
}

impl RouteConfig {
    /// What a route does.
    const ACTIONS: [&str; 3] = ["upstream", "redirect", "respond"];
    /// Which paths match.
    const PATHS: [&str; 3] = ["path", "path_prefix", "path_regex"];
    /// Keys about forwarding.
    const FORWARDING: [&str; 8] =
        ["strip_prefix", "replace_prefix", "host", "max_body", "expect", "timeouts", "retries", "request_headers"];
    const RULES: &[KeyRule] = &[
        KeyRule::OneOf(&Self::ACTIONS),
        KeyRule::AtMostOneOf(&Self::PATHS),
        KeyRule::Need(&Self::FORWARDING, "upstream"),
    ];

    /// One with the defaults, which matches every request and does nothing.
    pub fn new(name: impl Into<RouteName>) -> Self {
        Self { name: name.into(), ..Self::of_defaults() }
    }

    /// Which path the backend sees.
    pub fn rewrite(&self) -> PathRewrite {
        match (&self.replace_prefix, self.strip_prefix) {
            (Some(prefix), _) => PathRewrite::ReplacePrefix(prefix.clone()),
            (None, true) => PathRewrite::StripPrefix,
            (None, false) => PathRewrite::Keep,
        }
    }

    fn is_bound(&self) -> bool {
        !self.listeners.is_empty()
    }

    fn has_paths(&self) -> bool {
        self.paths != PathOverrides::default()
    }

    fn strips(&self) -> bool {
        self.strip_prefix
    }

    fn forwards(&self) -> bool {
        self.upstream.is_some()
    }

    fn has_middleware(&self) -> bool {
        !self.middleware.is_empty()
    }

    fn edits_requests(&self) -> bool {
        !self.request_headers.is_empty()
    }

    fn edits_responses(&self) -> bool {
        !self.response_headers.is_empty()
    }

    fn check(check: &Check<'_>, place: Place, written: &WrittenRouteConfig, mut it: Self) -> Option<Self> {
        if it.path_exact.is_none() && it.path_regex.is_none() {
            it.path_prefix.get_or_insert_default();
        }
        it.path = it.check_path(check, written);
        check_action(check, place, written);
        refuse_no_service(check, written);
        if let Some((place, _)) = written.service_tags.given() {
            let problem = Problem::error("there are no services whose tags could say anything");
            check.add(place, problem.expected("an upstream with services on the same route"));
        }
        check_rewrite(check, written);
        HeaderEdits::refuse_host(check, &written.request_headers);
        Some(it)
    }

    /// At most one of the three keys says which paths match.
    fn check_path(&self, check: &Check<'_>, written: &WrittenRouteConfig) -> PathPattern {
        let places = [written.path_exact.place(), written.path_prefix.place(), written.path_regex.place()];
        refuse_several(check, Self::PATHS.into_iter().zip(places), "only one of path, path_prefix and path_regex");
        match (&self.path_exact, &self.path_prefix, &self.path_regex) {
            (Some(path), ..) => PathPattern::Exact(path.clone()),
            (None, Some(prefix), _) => PathPattern::Prefix(prefix.clone()),
            (None, None, Some(PathExpression(regex))) => PathPattern::Regex(regex.clone()),
            (None, None, None) => PathPattern::Prefix(String::new()),
        }
    }
}

/// Refuses all but the first of keys of which one at most may be there. Says which that is.
fn refuse_several(
    check: &Check<'_>,
    keys: impl Iterator<Item = (&'static str, Option<Place>)>,
    expected: &str,
) -> Option<&'static str> {
    let mut there = keys.filter_map(|(key, place)| Some((key, place?)));
    let (first, _) = there.next()?;
    for (_, place) in there {
        check.add(place, Problem::error(format!("the route has {first} too")).expected(expected));
    }
    Some(first)
}

fn check_action(check: &Check<'_>, route: Place, written: &WrittenRouteConfig) {
    let places = [written.upstream.place(), written.redirect.place(), written.respond.place()];
    let actions = RouteConfig::ACTIONS;
    match refuse_several(check, actions.into_iter().zip(places), "only one of upstream, redirect and respond") {
        None if actions.iter().any(|key| check.report.is_meant(route, key)) => {}
        None => {
            let problem = Problem::error("the route does nothing");
            check.add(route, problem.expected("one of upstream, redirect and respond"));
        }
        Some("upstream") => {}
        Some(action) => refuse_forwarding(check, written, action),
    }
}

/// Keys about forwarding on a route that does not forward.
fn refuse_forwarding(check: &Check<'_>, written: &WrittenRouteConfig, action: &str) {
    let keys = [
        written.strip_prefix.place(),
        written.replace_prefix.place(),
        written.host.place(),
        written.max_body.place(),
        written.expect.place(),
        written.timeouts.place(),
        written.retries.place(),
        written.request_headers.place(),
    ];
    for place in keys.into_iter().flatten() {
        let problem = Problem::error(format!("a {action} forwards nothing"));
        check.add(place, problem.expected("this key only on a route with an upstream"));
    }
}

/// Where the upstream has `services`, no text of the route has this in it any more.
fn refuse_no_service(check: &Check<'_>, written: &WrittenRouteConfig) {
    let texts = [written.path_exact.given(), written.path_prefix.given(), written.replace_prefix.given()];
    for (place, _) in texts.into_iter().flatten().filter(|(_, text)| text.contains(SERVICE)) {
        let problem = Problem::error(format!("{SERVICE} stands for no service here"));
        check.add(place, problem.expected("an upstream with services on the same route"));
    }
}

fn check_rewrite(check: &Check<'_>, written: &WrittenRouteConfig) {
    if written.upstream.place().is_none() {
        return;
    }
    let has_prefix = written.path_prefix.place().is_some();
    let strip = written.strip_prefix.given().filter(|(_, strip)| **strip);
    if let Some((place, _)) = strip
        && !has_prefix
    {
        check.add(place, Problem::error("there is no prefix to strip").expected("path_prefix on the same route"));
    }
    let Some((place, _)) = written.replace_prefix.given() else { return };
    if strip.is_some() {
        let problem = Problem::error("the prefix is stripped already");
        check.add(place, problem.expected("only one of strip_prefix and replace_prefix"));
    }
    if !has_prefix && written.path_exact.place().is_none() {
        let problem = Problem::error("there is nothing to replace");
        check.add(place, problem.expected("path_prefix or path on the same route; path_prefix = \"/\" is every path"));
    }
}

/// A host, or the client's: `None`.
struct HostOrPreserve;

impl HostOrPreserve {
    const HOST: Host = Host("\"preserve\", or a name such as \"backend.example.com\", with its port if any");
}

impl Form<Option<HeaderValue>> for HostOrPreserve {
    type Written = Location;

    fn read(&self, check: &Check<'_>, place: Place, text: &Location) -> Option<Option<HeaderValue>> {
        if text.as_str() == "preserve" {
            return Some(None);
        }
        Self::HOST.read(check, place, text).map(Some)
    }

    fn show(&self, value: &Option<HeaderValue>) -> Option<Tree> {
        Some(self.tell(value).into())
    }

    fn tell(&self, value: &Option<HeaderValue>) -> String {
        value.as_ref().map_or_else(|| "preserve".into(), |value| Self::HOST.tell(value))
    }

    fn about(&self) -> About {
        let about = Self::HOST.about();
        About { form: format!("`\"preserve\"` or {}", about.form), ..about }
    }
}

/// [`Retries`] of a route. They are read by a check, which knows what the upstream says.
struct OverUpstream;

impl Form<Arc<RetryConfig>> for OverUpstream {
    type Written = WrittenRetries;

    fn read(&self, _: &Check<'_>, _: Place, _: &WrittenRetries) -> Option<Arc<RetryConfig>> {
        None
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Arc<RetryConfig> {
        Arc::default()
    }

    fn show(&self, value: &Arc<RetryConfig>) -> Option<Tree> {
        Retries.show(value)
    }

    fn tell(&self, value: &Arc<RetryConfig>) -> String {
        Retries.tell(value)
    }

    fn compare(&self, changes: &mut Changes, table: &str, words: &str, old: &Arc<RetryConfig>, new: &Arc<RetryConfig>) {
        Retries.compare(changes, table, words, old, new);
    }

    fn about(&self) -> About {
        Retries.about()
    }
}
