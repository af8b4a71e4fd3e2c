//! `[upstream.NAME]`: backends, and how they are picked and spoken with.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{
    BackendLimits, BackendTlsConfig, HealthCheckConfig, LimitsConfig, MiddlewareName, OutlierConfig, Place, PoolConfig,
    RetryBudgetConfig, RetryConfig, SlowStartConfig, TiersConfig, UpstreamName,
};

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
    /// What requests to it go through behind that of their route; the outermost first.
    pub middleware: Vec<MiddlewareName>,
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

/// A text that is no address of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnAddress;

impl fmt::Display for NotAnAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an address with a port")
    }
}

impl std::error::Error for NotAnAddress {}

impl std::str::FromStr for Address {
    type Err = NotAnAddress;

    /// As `lb.toml` writes it: `10.0.0.1:9001`, `[2001:db8::1]:9001` or `users.internal:9001`.
    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        super::check::parse_address(text).ok_or(NotAnAddress)
    }
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
