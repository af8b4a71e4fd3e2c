//! What `lb.toml` means: text to [`Config`].
//!
//! Two types: `raw` mirrors the file and is the only place that derives `Deserialize` for it; [`Config`] is what it means
//! and cannot hold an invalid value. `check` goes from one to the other and reports every problem at once.
//!
//! ```text
//! text ─ toml → tables with places ─ reader → raw::File ─ check → Config
//!                                       └───── report ─────┴──→ Problems
//! ```
//!
//! A leaf: imports nothing else of this crate.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use ipnet::IpNet;

mod raw;
mod backend_tls;
mod field;
mod reader;
mod interpolate;
mod units;
mod check;
mod grpc;
mod retry;
mod paths;
mod picking;
mod report;
mod error;
mod limits;
mod tls;

pub use backend_tls::{BackendTlsConfig, ClientCertificateConfig, NamedFile, Spot};
pub use check::{Loaded, Vocabulary, load, parse};
pub use error::{Problem, Problems, Severity, nearest};
pub use grpc::GrpcStatus;
pub use limits::{
    AdaptiveLimitConfig, BackendLimits, BreakerConfig, LimitsConfig, OverloadConfig, QueueConfig, QueueOrder,
};
pub use paths::{PathRule, PathsConfig};
pub use picking::{OutlierConfig, Place, SlowStartConfig, Tier, TiersConfig, ZonesConfig};
pub use retry::{HedgeConfig, RetryBudgetConfig, RetryConfig, RetryOn};
pub use tls::{
    CertificateConfig, ClientCertificates, ClientCertificatesConfig, FileKey, Misdirected, TlsConfig, TlsProfile,
    UnknownNames, tells_identity,
};
pub use units::duration;

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

names! {
    /// The name of a listener; its address as written where the file gives none.
    ListenerName,
    /// The name of a route; made from its hosts and path where the file gives none. Unique.
    RouteName,
    /// The name of an upstream: the key under `[upstream]`.
    UpstreamName,
}

/// What a whole `lb.toml` means. Cannot hold an invalid value.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Threads that serve requests; `None` is one per core. A change needs a restart.
    pub workers: Option<NonZeroUsize>,
    /// How long requests may go on after the first signal to stop.
    pub shutdown_grace: Duration,
    /// How long the connections of a removed listener, or requests to a removed upstream, may go on.
    pub drain_limit: Duration,
    /// Where to watch and steer the process; `None` when switched off. A change needs a restart, but for the token.
    pub admin: Option<AdminConfig>,
    /// Where the process is, for those upstreams that prefer backends of the same zone.
    pub zone: Option<Arc<str>>,
    /// What is logged and how. The format needs a restart, the level does not.
    pub log: LogConfig,
    /// Where a line per exchange goes; `None` is nowhere.
    pub access_log: Option<AccessLogConfig>,
    /// When the process refuses new requests because it has more to do than it can.
    pub overload: OverloadConfig,
    /// In the order of the file. Names and addresses are unique.
    pub listeners: Vec<Arc<ListenerConfig>>,
    /// Whether any of them asks clients for certificates, so that what tells backends of these may come from nowhere else.
    pub tells_identity: bool,
    /// In the order of the file, which decides only between patterns.
    pub routes: Vec<Arc<RouteConfig>>,
    /// Sorted by name.
    pub upstreams: Vec<Arc<UpstreamConfig>>,
}

/// `[admin]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// The address it is served at.
    pub address: SocketAddr,
    /// What a change over the address has to bring along; `None` is nothing on loopback, and elsewhere no change is made.
    pub token: Option<Secret>,
    /// The socket it is served at beside the address.
    pub unix_socket: Option<PathBuf>,
}

/// A text that is not to be seen, in no log, error or answer.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// The text, for comparing and sending only.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether `other` is it, in a time that does not tell how much of it is right.
    pub fn is(&self, other: &[u8]) -> bool {
        let secret = self.0.as_bytes();
        let mut differs = u8::from(secret.len() != other.len());
        for (index, byte) in other.iter().enumerate() {
            differs |= byte ^ secret.get(index % secret.len().max(1)).unwrap_or(&0);
        }
        std::hint::black_box(differs) == 0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A level (`info`) or a `tracing` filter (`info,isobar::proxy=debug`).
    pub level: String,
    /// One line of text or one JSON object an event.
    pub format: LogFormat,
}

/// A filter without the white space around its parts, which tracing takes for a part of their names.
pub fn log_filter(text: &str) -> String {
    text.split(',').map(str::trim).collect::<Vec<_>>().join(",")
}

/// How a log event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines, an object a line.
    Json,
}

/// `[access_log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLogConfig {
    /// How an exchange is written.
    pub format: AccessLogFormat,
    /// Where to.
    pub output: AccessLogOutput,
    /// Lines that may wait for the writer; further ones are dropped and counted.
    pub buffer: usize,
}

/// How an exchange is written in the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// An object a line, with timings, route, upstream and backend.
    Json,
    /// The NCSA combined format.
    Combined,
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLogOutput {
    /// Standard output.
    Stdout,
    /// Appended to a file, made where there is none.
    File(PathBuf),
}

/// `[[listener]]`: a bound socket and its protocol settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Unique.
    pub name: ListenerName,
    /// Unique. Port 0 takes a free one.
    pub address: SocketAddr,
    /// Connections the kernel may hold before they are accepted.
    pub backlog: u32,
    /// Client connections at a time in the whole process; one more is answered 503 and closed.
    pub max_connections: usize,
    /// Of these, connections of one client address (of a /64 in IPv6); one more is closed. `None` is any number.
    pub max_connections_per_address: Option<u32>,
    /// Bytes of a request head, or it is answered 431 (414 where the target alone is too long).
    pub max_header_bytes: usize,
    /// Header fields of a request, or it is answered 431.
    pub max_headers: usize,
    /// Bytes of a request body, or it is answered 413; `None` is any number.
    pub max_body_bytes: Option<u64>,
    /// From the first byte of a head to its last, or 408.
    pub header_timeout: Duration,
    /// How long a connection may wait for its next request.
    pub idle_timeout: Duration,
    /// Bytes of a body of known length that a client has to give or take in a second, over `body_idle` of the route; 0 is any
    /// number.
    pub min_bytes_per_second: u32,
    /// Peers whose `X-Forwarded-*` and `Forwarded` headers are believed and added to; all others' are replaced.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether to send `Forwarded` (RFC 7239) too.
    pub forwarded: bool,
    /// Whether to send `Via` (RFC 9110 §7.6.3) both ways.
    pub via: bool,
    /// What is done with paths that servers read differently.
    pub paths: PathsConfig,
    /// Answers every request with this; `None` where routes answer.
    pub redirect_to_https: Option<Redirect>,
    /// How it speaks TLS; `None` is in the clear.
    pub tls: Option<Arc<TlsConfig>>,
    /// HTTP/2, where it is spoken.
    pub http2: Option<Http2Config>,
}

impl ListenerConfig {
    /// Whether a peer is one of the trusted proxies.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted_proxies.iter().any(|network| network.contains(&peer))
    }
}

/// `http2` of a listener: what one connection may have and do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2Config {
    /// Streams at a time; one more is refused.
    pub max_concurrent_streams: u32,
    /// Bytes of a request's body that may be under way in a stream.
    pub stream_window: u32,
    /// The same for all streams together.
    pub connection_window: u32,
    /// Resets by the client, and as many that it causes.
    pub resets_per_second: u32,
    /// Frames that carry nothing, of each kind.
    pub control_frames_per_second: u32,
}

impl Default for Http2Config {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 128,
            stream_window: 256 << 10,
            connection_window: 1 << 20,
            resets_per_second: 200,
            control_frames_per_second: 1000,
        }
    }
}

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
    /// What is done with a request that matches.
    pub action: Action,
    /// Changes to the headers that go to the backend.
    pub request_headers: HeaderEdits,
    /// Changes to the headers that go to the client.
    pub response_headers: HeaderEdits,
}

/// Which hosts match. Lower case, without port or final dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// The host itself: `api.example.com`.
    Exact(String),
    /// `*.example.com`, kept as `.example.com`: any host below it, however deep, but not `example.com`.
    Wildcard(String),
}

/// Which paths match.
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
#[derive(Clone, Debug)]
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
    /// How long it may take.
    pub timeouts: Timeouts,
    /// When it is tried again: the upstream's rules, with those of the route in their place.
    pub retries: Arc<RetryConfig>,
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
    /// From the request sent to the response's head, or 504.
    pub response_head: Duration,
    /// Between two pieces of a body, either way.
    pub body_idle: Duration,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// `Location`. `${host}`-like parts are written as `{host}`, `{path}`, `{query}` (with its `?`, or empty), `{scheme}`.
    pub location: Vec<LocationPart>,
}

/// A piece of a redirect's target.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// A fixed response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Respond {
    /// 200 to 599.
    pub status: StatusCode,
    /// `Content-Type`; `None` where there is no body.
    pub content_type: Option<HeaderValue>,
    /// May be empty.
    pub body: Bytes,
}

/// Changes to the headers of a message: removed first, then set, then added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// All values of these go.
    pub remove: Vec<HeaderName>,
    /// These replace what was there.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// These come beside what was there.
    pub add: Vec<(HeaderName, HeaderValue)>,
}

impl HeaderEdits {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

/// `[upstream.NAME]`: a named pool of interchangeable backends under one policy.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamConfig {
    /// The key under `[upstream]`.
    pub name: UpstreamName,
    /// How a backend is picked.
    pub strategy: StrategyConfig,
    /// In the order of the file. Addresses are unique. May be empty: requests are then answered 503.
    pub backends: Vec<BackendConfig>,
    /// From the first packet to a connection, names looked up included.
    pub connect_timeout: Duration,
    /// When a request is tried again. Routes may change it for theirs.
    pub retries: Arc<RetryConfig>,
    /// How many further attempts all its requests together may get.
    pub retry_budget: RetryBudgetConfig,
    /// The idle connections that are kept.
    pub pool: PoolConfig,
    /// What is spoken to them.
    pub protocol: Protocol,
    /// How they are spoken to by TLS; `None` is in the clear.
    pub tls: Option<Arc<BackendTlsConfig>>,
    /// How its backends are checked; `None` is not at all: they count as healthy.
    pub health_check: Option<Arc<HealthCheckConfig>>,
    /// How much is asked of its backends at a time, and what is done with the rest.
    pub limits: LimitsConfig,
    /// Who is ejected because of its traffic; `None` is nobody.
    pub outlier_detection: Option<OutlierConfig>,
    /// How backends start that join or return; `None` is with all of their weight.
    pub slow_start: Option<SlowStartConfig>,
    /// Tiers, panic and zones.
    pub tiers: TiersConfig,
}

/// How a backend is picked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StrategyConfig {
    /// Each in turn.
    RoundRobin,
    /// Each in turn as often as its weight, evenly spread.
    WeightedRoundRobin,
    /// Any, equally likely.
    Random,
    /// Any, as likely as its weight.
    WeightedRandom,
    /// The one with the fewest requests in flight for its weight.
    LeastConnections,
    /// The less loaded of two distinct draws.
    PowerOfTwo,
    /// One that the embedding program supplies under this name.
    Custom(Arc<str>),
}

impl StrategyConfig {
    /// The names of the strategies that isobar has itself, as `lb.toml` writes them.
    pub const NAMES: [&str; 6] =
        ["round_robin", "weighted_round_robin", "random", "weighted_random", "least_connections", "power_of_two"];

    /// As `lb.toml` writes it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::WeightedRoundRobin => "weighted_round_robin",
            Self::Random => "random",
            Self::WeightedRandom => "weighted_random",
            Self::LeastConnections => "least_connections",
            Self::PowerOfTwo => "power_of_two",
            Self::Custom(name) => name,
        }
    }

    /// Whether a weight other than 1 makes a difference (a custom strategy may look at it).
    pub fn uses_weights(&self) -> bool {
        !matches!(self, Self::RoundRobin | Self::Random)
    }
}

/// What is spoken to the backends of an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2; in the clear without asking first.
    Http2,
    /// By TLS what the backend takes, HTTP/2 if it does; HTTP/1.1 in the clear.
    Auto,
}

impl Protocol {
    /// As `lb.toml` writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Auto => "auto",
        }
    }
}

/// A backend of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendConfig {
    /// Where it is.
    pub address: Address,
    /// 0 to 65 535; 0 takes nothing new.
    pub weight: u16,
    /// How much is asked of it at a time: its own limits, else those of its upstream.
    pub limits: BackendLimits,
    /// Its tier and zone.
    pub place: Place,
}

/// Where a backend is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// A host name and a port; looked up again for each new connection.
    Name(Arc<str>, u16),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl serde::Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The idle connections to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Kept at most, per backend and worker.
    pub max_idle: usize,
    /// Kept at most this long without use; below the backends' own limit.
    pub idle_timeout: Duration,
}

/// `[upstream.NAME.health_check]`: how the backends of an upstream are asked whether they are well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheckConfig {
    /// What is asked.
    pub probe: Probe,
    /// Where, if not at the port that requests go to.
    pub port: Option<u16>,
    /// From the beginning of one check to that of the next.
    pub interval: Duration,
    /// The same while the last checks contradict the verdict. At most `interval`.
    pub interval_in_doubt: Duration,
    /// Each interval is longer or shorter by up to so many hundredths, at random. 0 to 50.
    pub jitter_percent: u8,
    /// For a whole check, the connection included. At most `interval`.
    pub timeout: Duration,
    /// Failed checks in a row that make a backend unhealthy. 1 at least.
    pub unhealthy_after: u32,
    /// Passed checks in a row that make it healthy again. 1 at least.
    pub healthy_after: u32,
    /// What a new backend counts as.
    pub initial: InitialHealth,
}

/// What a health check asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Whether a request is answered as it should be.
    Http(HttpProbe),
    /// Whether a connection can be made.
    Tcp,
    /// What the backend's own health service says (`grpc.health.v1.Health/Check`).
    Grpc(GrpcProbe),
}

/// The request of a health check, and what is a good answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    /// Without a body.
    pub method: Method,
    /// Path and query.
    pub target: PathAndQuery,
    /// `Host`; `None` is the backend's own address.
    pub host: Option<HeaderValue>,
    /// Further headers; they win over the check's own.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Statuses of which any is good, 200 to 599.
    pub statuses: Vec<RangeInclusive<u16>>,
    /// What the body must have in it; `None` is anything, and the body is not read.
    pub body: Option<BodyMatch>,
}

/// What a health service of gRPC is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcProbe {
    /// Which service's health; the empty text is that of the backend as a whole.
    pub service: String,
    /// The authority; `None` is the backend's own address.
    pub host: Option<HeaderValue>,
    /// Further headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// What the body of an answer must have in it.
#[derive(Clone, Debug)]
pub struct BodyMatch {
    /// Found anywhere, unless anchored.
    pub pattern: regex::bytes::Regex,
    /// Bytes that are read and searched; what comes after is not.
    pub limit: usize,
}

impl PartialEq for BodyMatch {
    fn eq(&self, other: &Self) -> bool {
        self.pattern.as_str() == other.pattern.as_str() && self.limit == other.limit
    }
}

impl Eq for BodyMatch {}

/// What a backend counts as before it was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitialHealth {
    /// Healthy, until `unhealthy_after` checks say otherwise.
    Healthy,
    /// Unhealthy, until `healthy_after` checks say otherwise.
    Unhealthy,
    /// What its first check says. Before that, the backends that an upstream begins with are used, and one that joins
    /// others is not.
    FirstCheck,
}

impl InitialHealth {
    /// As `lb.toml` writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::FirstCheck => "first_check",
        }
    }
}
