//! What `lb.toml` means: text to [`Config`].
//!
//! A table of the file is one struct in one file, which says all that is known of its keys: `overload` is a small one to begin with.
//! `#[derive(Table)]` makes of it the table as the file has it (`WrittenOverloadConfig`), and the reading, showing, comparing and describing of it.
//! What a key can hold is its `form`. `check` looks at several tables together, and reports every problem at once.
//!
//! ```text
//! text ─ toml → tables with places ─ reader → Written… ─ form, check → Config
//!                                       └─────── report ───────┴──→ Problems
//! ```
//!
//! A leaf: imports nothing else of this crate.

use std::fmt;
use std::sync::Arc;

mod table;
mod form;
mod root;
mod rule;
mod log;
mod access_log;
mod overload;
mod admin;
mod registry;
mod listener;
mod body_limit;
mod http2;
mod lingering;
mod raw;
mod visibility;
pub mod keys;
mod json_tree;
mod difference;
mod schema;
mod route;
mod services;
mod fill;
mod matches;
mod answer;
mod timeouts;
mod upstream;
mod address;
mod backend;
mod strategy;
mod discovery;
mod dns;
mod health_check;
mod header;
mod backend_tls;
mod field;
mod reader;
mod interpolate;
mod units;
mod unquoted;
mod check;
mod grpc;
mod retries;
mod forwarded;
mod paths;
mod load_balancing;
mod zones;
mod report;
mod error;
mod limits;
mod middleware;
mod queue;
mod pool;
mod retry_budget;
mod outlier_detection;
mod slow_start;
mod circuit_breaker;
mod adaptive_limit;
mod tls;
mod secret_file;
mod file;

pub use access_log::{AccessLogConfig, AccessLogFormat, AccessLogOutput};
pub use adaptive_limit::AdaptiveLimitConfig;
pub use address::{Address, NotAnAddress};
pub use admin::{AdminConfig, Secret};
pub use answer::{LocationPart, Redirect, Respond};
pub use backend::{BackendConfig, InheritableLimit};
pub use backend_tls::{BackendTlsConfig, ClientCertificateConfig, NamedFile, Spot};
pub use body_limit::BodyLimit;
pub(crate) use body_limit::BodySize;
pub use check::{FileText, Loaded, RefusedConfig, Vocabulary, load, load_admin, load_whole, parse, parse_whole};
pub use circuit_breaker::BreakerConfig;
pub(crate) use difference::Changes;
pub use difference::{DifferenceList, KeyChange};
pub use discovery::{
    ConsulConfig, DiscoveryConfig, DnsRecords, DnsSourceConfig, DockerConfig, DockerEndpoint, EtcdConfig, EurekaConfig,
    FileSourceConfig, HttpSourceConfig, HttpUrl, KubernetesConfig, NacosConfig, PushConfig, RegistrySourceConfig,
    ServicePort, SourceConfig, ZookeeperConfig,
};
pub use dns::{AddressFamily, DnsConfig, DnsHoldConfig};
pub use error::{Problem, Problems, Severity, nearest};
pub use file::{FILE_BYTES_MAX, ReadFile};
pub use fill::{LeftOut, made_name};
pub use forwarded::ForwardedHeader;
pub use grpc::GrpcStatus;
pub use header::{HeaderEdits, HeaderValues};
pub use health_check::{BodyPattern, HealthCheckConfig, InitialHealth, ProbeKind, ProbeTarget};
pub use http2::Http2Config;
pub(crate) use json_tree::Tree;
pub use limits::{BackendLimits, LimitsConfig};
pub use lingering::LingeringConfig;
pub use listener::ListenerConfig;
pub use load_balancing::{BackendPlacement, Tier, TiersConfig};
pub use log::{LogConfig, LogFormat, log_filter};
pub use matches::{HeaderMatch, HostPattern, PathExpression, PathPattern, QueryMatch, ValueMatch};
pub use middleware::{HeaderRules, MiddlewareConfig, MiddlewareKind, MiddlewareTable};
pub use outlier_detection::OutlierConfig;
pub use overload::OverloadConfig;
pub use paths::{PathOverrides, PathRule, PathsConfig, PathsKey};
pub use pool::PoolConfig;
pub use queue::{QueueConfig, QueueOrder};
pub use registry::{RegistryAccess, RegistryConfig, RegistryTokenConfig};
pub use retries::{BackoffConfig, HedgeConfig, RetryConfig, RetryOn};
pub use retry_budget::RetryBudgetConfig;
pub use root::Config;
pub use route::{Expect, PathRewrite, RouteConfig};
pub use schema::{reference, schema};
pub use secret_file::{Access, read};
pub(crate) use services::SERVICE;
pub use services::{Service, ServiceSetting, Services, ServicesConfig};
pub use slow_start::SlowStartConfig;
pub use strategy::StrategyConfig;
pub(crate) use table::Table;
pub use timeouts::Timeouts;
pub use tls::{
    CertificateConfig, ClientCertificates, ClientCertificatesConfig, FileKey, Misdirected, TlsConfig, TlsProfile,
    UnknownNames,
};
pub use units::duration;
pub use upstream::{Protocol, UpstreamConfig};
pub use visibility::Kind;
pub use zones::ZonesConfig;

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
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
    /// The name of a middleware: the key under `[middleware]`.
    MiddlewareName,
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
