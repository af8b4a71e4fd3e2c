//! `[upstream.NAME.health_check]`: how backends are asked whether they are well.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::Method;
use http::header::{HeaderName, HeaderValue};
use http::uri::PathAndQuery;

use super::Kind;
use super::route::NamesOf;

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
#[derive(Clone, PartialEq, Eq)]
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

impl fmt::Debug for HttpProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, target, host, headers, statuses, body } = self;
        let fields = &mut f.debug_struct("HttpProbe");
        fields.field("method", method).field("target", &Kind::Location.show(target.as_str())).field("host", host);
        fields.field("headers", &NamesOf(headers)).field("statuses", statuses).field("body", body).finish()
    }
}

/// What a health service of gRPC is asked.
#[derive(Clone, PartialEq, Eq)]
pub struct GrpcProbe {
    /// Which service's health; the empty text is that of the backend as a whole.
    pub service: String,
    /// The authority; `None` is the backend's own address.
    pub host: Option<HeaderValue>,
    /// Further headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl fmt::Debug for GrpcProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, host, headers } = self;
        let fields = &mut f.debug_struct("GrpcProbe");
        fields.field("service", service).field("host", host).field("headers", &NamesOf(headers)).finish()
    }
}

/// What the body of an answer must have in it.
#[derive(Clone)]
pub struct BodyMatch {
    /// Found anywhere, unless anchored.
    pub pattern: regex::bytes::Regex,
    /// Bytes that are read and searched; what comes after is not.
    pub limit: usize,
}

impl fmt::Debug for BodyMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pattern, limit } = self;
        let pattern = Kind::Sensitive.show(pattern.as_str());
        f.debug_struct("BodyMatch").field("pattern", &pattern).field("limit", limit).finish()
    }
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
