//! `[[route]]`: which requests, and what is done with them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::{BodyLimit, Kind, ListenerName, MiddlewareName, PathOverrides, RetryConfig, RouteName, UpstreamName};

/// `[[route]]`: which requests match and where they go.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteConfig {
    /// Unique.
    pub name: RouteName,
    /// The listeners it is bound to; empty is all.
    pub listeners: Vec<ListenerName>,
    /// Hosts, any of which matches; empty is every host.
    pub hosts: Vec<HostPattern>,
    /// Which paths match.
    pub path: PathPattern,
    /// Any of these; empty is every method.
    pub methods: Vec<Method>,
    /// All of these.
    pub headers: Vec<HeaderMatch>,
    /// All of these.
    pub query: Vec<QueryMatch>,
    /// What is said of paths that servers read differently.
    pub paths: PathOverrides,
    /// What is done with a request that matches.
    pub action: Action,
    /// Changes to the headers that go to the backend.
    pub request_headers: HeaderEdits,
    /// Changes to the headers that go to the client.
    pub response_headers: HeaderEdits,
    /// What its requests go through behind that of their listener; the outermost first.
    pub middleware: Vec<MiddlewareName>,
}

/// Which hosts match. Lower case, without port or final dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// The host itself: `api.example.com`.
    Exact(String),
    /// `*.example.com`, kept as `.example.com`: any host below it, however deep, but not `example.com`.
    Wildcard(String),
}

/// Which paths match, in the form that paths are matched in (see [`target::path`](crate::target::path)).
#[derive(Clone, Debug)]
pub enum PathPattern {
    /// The whole path.
    Exact(String),
    /// By whole segments: `/api` and `/api/` match `/api` and `/api/x`, not `/apix`. Kept without its final slash;
    /// the empty text matches every path.
    Prefix(String),
    /// A regular expression over the whole path (anchored at both ends).
    Regex(regex::Regex),
}

impl PartialEq for PathPattern {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) | (Self::Prefix(a), Self::Prefix(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

/// What a value must be.
#[derive(Clone)]
pub enum ValueMatch {
    /// Anything, but there.
    Present,
    /// Not there at all.
    Absent,
    /// Exactly this.
    Exact(String),
    /// A regular expression over the whole value (anchored at both ends).
    Regex(regex::Regex),
}

impl PartialEq for ValueMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Present, Self::Present) | (Self::Absent, Self::Absent) => true,
            (Self::Exact(a), Self::Exact(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl fmt::Debug for ValueMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("Present"),
            Self::Absent => f.write_str("Absent"),
            Self::Exact(text) => write!(f, "Exact({})", Kind::Sensitive.show(text)),
            Self::Regex(regex) => write!(f, "Regex({})", Kind::Sensitive.show(regex.as_str())),
        }
    }
}

/// A header that must match; any of its values may.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatch {
    /// Which header.
    pub name: HeaderName,
    /// What it must be.
    pub value: ValueMatch,
}

/// A query parameter that must match, compared after percent-decoding; any of its values may.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryMatch {
    /// Which parameter.
    pub name: String,
    /// What it must be.
    pub value: ValueMatch,
}

/// What is done with a request that matches a route.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Forwarded to an upstream.
    Forward(Forward),
    /// Answered with a redirect.
    Redirect(Redirect),
    /// Answered as written.
    Respond(Respond),
}

/// How a request is forwarded.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// An upstream that the file defines.
    pub upstream: UpstreamName,
    /// Which path the backend sees.
    pub path: PathRewrite,
    /// Which host the backend sees; `None` keeps the client's.
    pub host: Option<HeaderValue>,
    /// How large a request's body may be, in place of what the listener says.
    pub max_body: Option<BodyLimit>,
    /// Who tells a client to go on that asks before it sends its body.
    pub expect: Expect,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// When it is tried again: the upstream's rules, with those of the route in their place.
    pub retries: Arc<RetryConfig>,
}

/// Who tells a client to go on that sends `Expect: 100-continue`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expect {
    /// The proxy, once a connection to the backend is there. The backend does not see the field. Default.
    #[default]
    Answer,
    /// The backend, which may refuse the request instead.
    Pass,
}

impl Expect {
    /// Each with its name.
    pub const NAMES: [(&str, Self); 2] = [("answer", Self::Answer), ("pass", Self::Pass)];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Pass => "pass",
        }
    }
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

/// How long the parts of an exchange may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request sent to the response's head, for each attempt; then another, or 504.
    pub response_head: Duration,
    /// Between two pieces of a body, either way.
    pub body_idle: Duration,
    /// From the request's head to the backend's word that the client may go on, with [`Expect::Pass`]; then the client is told so in any
    /// case.
    pub expect: Duration,
    /// From the request's head to the response's end; `None` is any time.
    pub exchange: Option<Duration>,
    /// How long an upgraded connection (a WebSocket) may be silent.
    pub tunnel_idle: Duration,
    /// How long a gRPC call may be silent both ways, in place of `response_head` and `body_idle`; `None` is any time.
    pub grpc_idle: Option<Duration>,
    /// The longest deadline that a gRPC client may give its call; a longer one is shortened. `None` is any.
    pub grpc_timeout_max: Option<Duration>,
}

/// A redirect.
#[derive(Clone, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// `Location`. `${host}`-like parts are written as `{host}`, `{path}`, `{query}` (with its `?`, or empty), `{scheme}`.
    pub location: Vec<LocationPart>,
}

impl Redirect {
    /// The target as the file has it.
    pub fn target(&self) -> String {
        self.location.iter().map(LocationPart::as_written).collect()
    }
}

impl fmt::Debug for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, location: _ } = self;
        let target = self.target();
        f.debug_struct("Redirect").field("status", status).field("location", &Kind::Location.show(&target)).finish()
    }
}

/// A piece of a redirect's target.
#[derive(Clone, PartialEq, Eq)]
pub enum LocationPart {
    /// As written.
    Text(String),
    /// `{scheme}`.
    Scheme,
    /// `{host}`, with its port where the client named one.
    Host,
    /// `{path}`.
    Path,
    /// `{query}`: `?` and the query, or nothing.
    Query,
}

impl LocationPart {
    fn as_written(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Scheme => "{scheme}",
            Self::Host => "{host}",
            Self::Path => "{path}",
            Self::Query => "{query}",
        }
    }
}

/// Of a piece alone nobody knows whether it is of a query.
impl fmt::Debug for LocationPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text({})", Kind::Sensitive.show(text)),
            Self::Scheme => f.write_str("Scheme"),
            Self::Host => f.write_str("Host"),
            Self::Path => f.write_str("Path"),
            Self::Query => f.write_str("Query"),
        }
    }
}

/// A fixed response.
#[derive(Clone, PartialEq, Eq)]
pub struct Respond {
    /// 200 to 599.
    pub status: StatusCode,
    /// `Content-Type`; `None` where there is no body.
    pub content_type: Option<HeaderValue>,
    /// May be empty.
    pub body: Bytes,
}

impl fmt::Debug for Respond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, content_type, body } = self;
        let body = String::from_utf8_lossy(body);
        let body = Kind::Sensitive.show(&body);
        let fields = &mut f.debug_struct("Respond");
        fields.field("status", status).field("content_type", content_type).field("body", &body).finish()
    }
}

/// Changes to the headers of a message: removed first, then set, then added.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// All values of these go.
    pub remove: Vec<HeaderName>,
    /// These replace what was there.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// These come beside what was there.
    pub add: Vec<(HeaderName, HeaderValue)>,
}

impl fmt::Debug for HeaderEdits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { remove, set, add } = self;
        let fields = &mut f.debug_struct("HeaderEdits");
        fields.field("remove", remove).field("set", &NamesOf(set)).field("add", &NamesOf(add)).finish()
    }
}

/// Headers without their values, for `Debug`.
pub(super) struct NamesOf<'a>(pub(super) &'a [(HeaderName, HeaderValue)]);

impl fmt::Debug for NamesOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl HeaderEdits {
    /// The fields of which nothing that came is left.
    pub fn touched(&self) -> impl Iterator<Item = &HeaderName> {
        self.remove.iter().chain(self.set.iter().map(|(name, _)| name))
    }

    /// The fields that a change is made to.
    pub fn names(&self) -> impl Iterator<Item = &HeaderName> + Clone {
        self.remove.iter().chain(self.set.iter().chain(&self.add).map(|(name, _)| name))
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}
