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
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

mod raw;
mod kind;
pub mod keys;
mod route;
mod upstream;
mod health_check;
mod backend_tls;
mod field;
mod reader;
mod interpolate;
mod units;
mod unquoted;
mod check;
mod grpc;
mod retry;
mod forwarded;
mod paths;
mod picking;
mod report;
mod error;
mod limits;
mod tls;
mod access;
mod file;

pub use access::{Access, read};
pub use backend_tls::{BackendTlsConfig, ClientCertificateConfig, NamedFile, Spot};
pub use check::{Loaded, Refused, Vocabulary, load, load_admin, load_whole, parse, parse_whole};
pub use error::{Problem, Problems, Severity, nearest};
pub use file::{FILE_BYTES_MAX, ReadFile};
pub use forwarded::ForwardedHeader;
pub use grpc::GrpcStatus;
pub use health_check::{BodyMatch, GrpcProbe, HealthCheckConfig, HttpProbe, InitialHealth, Probe};
pub use kind::Kind;
pub use limits::{
    AdaptiveLimitConfig, BackendLimits, BreakerConfig, LimitsConfig, OverloadConfig, QueueConfig, QueueOrder,
};
pub use paths::{PathOverrides, PathRule, PathsConfig, PathsKey};
pub use picking::{OutlierConfig, Place, SlowStartConfig, Tier, TiersConfig, ZonesConfig};
pub use retry::{HedgeConfig, RetryBudgetConfig, RetryConfig, RetryOn};
pub use route::{
    Action, BodyLimit, Expect, Forward, HeaderEdits, HeaderMatch, HostPattern, LocationPart, PathPattern, PathRewrite,
    QueryMatch, Redirect, Respond, RouteConfig, Timeouts, ValueMatch,
};
pub use tls::{
    CertificateConfig, ClientCertificates, ClientCertificatesConfig, FileKey, Misdirected, TlsConfig, TlsProfile,
    UnknownNames,
};
pub use units::duration;
pub use upstream::{Address, BackendConfig, PoolConfig, Protocol, StrategyConfig, UpstreamConfig};

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
    /// How long everything is served as before after a signal to stop, with `/readyz` saying 503, before nothing more is accepted. 0 unless
    /// the file says otherwise.
    pub shutdown_delay: Duration,
    /// How long requests may go on once nothing more is accepted.
    pub shutdown_grace: Duration,
    /// How long the connections of a removed listener, or requests to a removed upstream, may go on.
    pub drain_limit: Duration,
    /// Where to watch and steer the process; `None` where it is nowhere. A change needs a restart, but for the token.
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

/// The TLS of a configuration, whose files are read by those that use them.
#[derive(Clone, Debug, Default)]
pub struct Secured {
    /// Of listeners.
    pub listeners: Vec<Arc<TlsConfig>>,
    /// Of upstreams, with what is spoken to their backends.
    pub upstreams: Vec<(Arc<BackendTlsConfig>, Protocol)>,
}

impl Secured {
    /// That of a whole configuration.
    pub fn of(config: &Config) -> Self {
        Self {
            listeners: config.listeners.iter().filter_map(|it| it.tls.clone()).collect(),
            upstreams: config.upstreams.iter().filter_map(|it| Some((it.tls.clone()?, it.protocol))).collect(),
        }
    }
}

/// `[admin]`: an address, a socket, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// The address it is served at; `None` where that is switched off.
    pub address: Option<SocketAddr>,
    /// What a change over the address has to bring along; `None` is nothing on loopback, and elsewhere no change is made.
    pub token: Option<Secret>,
    /// The socket it is served at.
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
    /// How large a request body may be, where the route does not say.
    pub max_body: BodyLimit,
    /// How long a client that goes on sending is listened to once it is answered.
    pub lingering: LingeringConfig,
    /// From the first byte of a head to its last, or 408.
    pub header_timeout: Duration,
    /// How long a connection may wait for its next request.
    pub idle_timeout: Duration,
    /// Bytes of a body that a client has to give or take in a second, over `body_idle` of the route; 0 is any number.
    pub min_bytes_per_second: u32,
    /// Peers whose `X-Forwarded-*` and `Forwarded` headers are believed and added to; all others' are replaced.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether to send `Forwarded` (RFC 7239) too.
    pub forwarded: bool,
    /// What backends are told of clients beyond `X-Forwarded-For`, `-Proto`, `-Host` and `-Port`.
    pub forwarded_headers: Vec<ForwardedHeader>,
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

/// `lingering`: how much a client may still send of a request that is answered already. A socket that is closed with something unread in
/// it sends a reset, and that may take the answer from a client that reads it only when all is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LingeringConfig {
    /// So many bytes are read and thrown away; 0 closes at once. Default 1 GiB.
    pub bytes: u64,
    /// For so long altogether. Default 30 s.
    pub time: Duration,
    /// For so long without a byte. Default 5 s.
    pub idle: Duration,
}

impl Default for LingeringConfig {
    fn default() -> Self {
        Self { bytes: 1 << 30, time: Duration::from_secs(30), idle: Duration::from_secs(5) }
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
