//! What can go wrong with a request. The only place that decides an error's status: of an exchange ([`ProxyError`]), and of what is refused
//! before there is one ([`Refusal`]).

use std::fmt;
use std::io;
use std::time::Duration;

use http::StatusCode;

use crate::config::{Address, GrpcStatus};
use crate::overload::Cause;
use crate::route::path::RefusedPath;
use crate::transport::tls::HandshakeFailed;

/// Why an exchange ends with a response of the proxy's own.
#[derive(Debug)]
pub enum ProxyError {
    /// No route matches.
    NoRoute,
    /// The method makes no sense at a gateway: CONNECT, TRACE.
    Method,
    /// The request is for another host than the one that its connection was made for.
    Misdirected,
    /// The request cannot be passed on as it is.
    BadRequest(&'static str),
    /// The request's path is refused by a key of `paths`.
    Path(RefusedPath),
    /// The request's body, or a message of a call, is larger than the route or the listener takes.
    BodyTooLarge,
    /// The client did not send its body in time.
    ClientTooSlow,
    /// A middleware waited for too long for what it wanted to know.
    MiddlewareTimeout,
    /// A middleware broke off the request's body, which it had wrapped.
    MiddlewareFailed,
    /// The upstream has no backend that may be picked.
    NoBackend,
    /// Every backend has as many requests as it takes, and as many wait as may.
    QueueFull,
    /// No backend had room in time.
    QueueTimeout,
    /// The upstream's circuit breaker refuses requests.
    BreakerOpen {
        /// When it may be worth to ask again.
        retry_after: Duration,
    },
    /// The process has more to do than it can.
    Overloaded {
        /// What there is too much of.
        cause: Cause,
    },
    /// A connection could not be made for want of something that this process or machine has only so many of.
    Exhausted {
        /// Where to.
        backend: Address,
        /// What there was not enough of.
        error: io::Error,
    },
    /// A connection could not be made.
    Connect {
        /// Where to.
        backend: Address,
        /// Why.
        error: io::Error,
    },
    /// A connection was made, and no secure one over it.
    Handshake {
        /// Where to.
        backend: Address,
        /// Why.
        error: HandshakeFailed,
    },
    /// A connection was not made in time.
    ConnectTimeout {
        /// Where to.
        backend: Address,
    },
    /// A connection broke before the head of a response had come.
    Broken {
        /// Where to.
        backend: Address,
        /// Why.
        error: io::Error,
    },
    /// A backend switched protocols without being asked.
    UnaskedUpgrade {
        /// Which one.
        backend: Address,
    },
    /// The request asks for another protocol, and the upstream's backends are spoken to by HTTP/2.
    CannotSwitch,
    /// The head of a response did not come in time.
    ResponseTimeout {
        /// Where from.
        backend: Address,
    },
    /// The whole exchange took longer than the route allows.
    ExchangeTimeout,
}

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The client's.
    Client,
    /// A backend's.
    Backend,
    /// Neither the client's nor the backend's, or isobar's own.
    Proxy,
}

impl Blame {
    /// A word for the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Backend => "backend",
            Self::Proxy => "proxy",
        }
    }
}

impl ProxyError {
    /// The status that the client is answered with.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::BadRequest(_) | Self::Path(_) => StatusCode::BAD_REQUEST,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ClientTooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::MiddlewareFailed => StatusCode::INTERNAL_SERVER_ERROR,
            Self::CannotSwitch => StatusCode::NOT_IMPLEMENTED,
            Self::NoBackend
            | Self::QueueFull
            | Self::QueueTimeout
            | Self::BreakerOpen { .. }
            | Self::Overloaded { .. }
            | Self::Exhausted { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Connect { .. } | Self::Handshake { .. } | Self::Broken { .. } | Self::UnaskedUpgrade { .. } => {
                StatusCode::BAD_GATEWAY
            }
            Self::MiddlewareTimeout
            | Self::ConnectTimeout { .. }
            | Self::ResponseTimeout { .. }
            | Self::ExchangeTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The status that a client of gRPC is answered with. That its time is over is said of the call as a whole only: who has waited
    /// for anything else in vain may ask again.
    pub fn grpc_status(&self) -> GrpcStatus {
        match self {
            Self::NoRoute | Self::Method | Self::Misdirected | Self::CannotSwitch => GrpcStatus::Unimplemented,
            Self::BadRequest(_) | Self::Path(_) | Self::MiddlewareFailed | Self::UnaskedUpgrade { .. } => {
                GrpcStatus::Internal
            }
            Self::BodyTooLarge => GrpcStatus::ResourceExhausted,
            Self::ExchangeTimeout => GrpcStatus::DeadlineExceeded,
            Self::ClientTooSlow
            | Self::MiddlewareTimeout
            | Self::NoBackend
            | Self::QueueFull
            | Self::QueueTimeout
            | Self::BreakerOpen { .. }
            | Self::Overloaded { .. }
            | Self::Exhausted { .. }
            | Self::Connect { .. }
            | Self::Handshake { .. }
            | Self::ConnectTimeout { .. }
            | Self::Broken { .. }
            | Self::ResponseTimeout { .. } => GrpcStatus::Unavailable,
        }
    }

    /// Whose fault it is.
    pub fn blame(&self) -> Blame {
        match self {
            Self::NoRoute
            | Self::Method
            | Self::Misdirected
            | Self::BadRequest(_)
            | Self::Path(_)
            | Self::BodyTooLarge
            | Self::ClientTooSlow => Blame::Client,
            Self::Connect { .. }
            | Self::Handshake { .. }
            | Self::ConnectTimeout { .. }
            | Self::Broken { .. }
            | Self::UnaskedUpgrade { .. }
            | Self::ResponseTimeout { .. } => Blame::Backend,
            Self::MiddlewareTimeout
            | Self::MiddlewareFailed
            | Self::NoBackend
            | Self::CannotSwitch
            | Self::QueueFull
            | Self::QueueTimeout
            | Self::BreakerOpen { .. }
            | Self::Overloaded { .. }
            | Self::Exhausted { .. }
            | Self::ExchangeTimeout => Blame::Proxy,
        }
    }

    /// When the client may ask again, where that is known: rounded up to a second.
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::BreakerOpen { retry_after } => *retry_after,
            _ => Duration::from_secs(1),
        }
    }

    /// A word for metrics and the access log.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::Method => "method_not_allowed",
            Self::Misdirected => "misdirected",
            Self::BadRequest(_) | Self::Path(_) => "bad_request",
            Self::BodyTooLarge => "body_too_large",
            Self::ClientTooSlow => "client_too_slow",
            Self::MiddlewareTimeout => "middleware_timeout",
            Self::MiddlewareFailed => "middleware_failed",
            Self::NoBackend => "no_backend",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::BreakerOpen { .. } => "breaker_open",
            Self::Overloaded { .. } => "overloaded",
            Self::Exhausted { .. } => "exhausted",
            Self::Connect { .. } => "connect_failed",
            Self::Handshake { .. } => "tls_failed",
            Self::ConnectTimeout { .. } => "connect_timeout",
            Self::Broken { .. } => "backend_broke_off",
            Self::UnaskedUpgrade { .. } => "unasked_upgrade",
            Self::CannotSwitch => "upgrade_unsupported",
            Self::ResponseTimeout { .. } => "response_timeout",
            Self::ExchangeTimeout => "exchange_timeout",
        }
    }

    /// What the client is told: which part failed, and nothing of what is behind the proxy.
    pub fn told(&self) -> &'static str {
        match self {
            Self::NoRoute => "no route matches this request",
            Self::Method => "this method is not proxied",
            Self::Misdirected => "this connection was made for another host",
            Self::BadRequest(why) | Self::Path(RefusedPath { why, .. }) => why,
            Self::BodyTooLarge => "the request body is larger than it may be",
            Self::ClientTooSlow => "the request body did not arrive in time",
            Self::MiddlewareTimeout => "a check of the request took too long",
            Self::MiddlewareFailed => "the request body could not be processed",
            Self::NoBackend => "no backend is ready",
            Self::QueueFull => "every backend is busy and too many requests wait",
            Self::QueueTimeout => "no backend had room in time",
            Self::BreakerOpen { .. } => "the backends fail and are not asked for a while",
            Self::Overloaded { .. } => "there is too much to do at the moment",
            Self::Exhausted { .. } => "there is no room for another connection to a backend at the moment",
            Self::Connect { .. } => "no connection to a backend could be made",
            Self::Handshake { error, .. } if error.kind.is_certificate() => "a backend's certificate is not good",
            Self::Handshake { .. } => "no secure connection to a backend could be made",
            Self::ConnectTimeout { .. } => "no connection to a backend could be made in time",
            Self::Broken { .. } => "the backend broke off before it answered",
            Self::CannotSwitch => "the backends are spoken to by HTTP/2 and cannot switch to another protocol",
            Self::UnaskedUpgrade { .. } => "the backend answered in another protocol",
            Self::ResponseTimeout { .. } => "the backend did not answer in time",
            Self::ExchangeTimeout => "the exchange took longer than this route allows",
        }
    }
}

/// Why a request, or what should have been one, is refused before there is an exchange. The client is answered with an error and the end of
/// the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of refusal it is, which decides the status.
    pub kind: RefusalKind,
    /// What was wrong, as the client is told.
    pub why: &'static str,
}

/// A kind of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// What came is not HTTP.
    NotHttp,
    /// What came is plain HTTP, and the listener speaks TLS.
    PlainHttp,
    /// The request is malformed, or can be read in more than one way.
    BadRequest,
    /// The head did not arrive in time.
    HeadTimeout,
    /// The target is longer than the listener takes.
    UriTooLong,
    /// The head, or the trailer section, is larger than the listener takes.
    HeaderTooLarge,
    /// A transfer coding that is not understood.
    CodingUnsupported,
    /// A protocol to switch to that is not carried.
    UpgradeUnsupported,
    /// A version of HTTP that is not spoken.
    VersionUnsupported,
    /// The listener has as many connections as it takes.
    ConnectionLimit,
    /// The process has more to do than it can.
    Overloaded,
}

impl RefusalKind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::NotHttp,
        Self::PlainHttp,
        Self::BadRequest,
        Self::HeadTimeout,
        Self::UriTooLong,
        Self::HeaderTooLarge,
        Self::CodingUnsupported,
        Self::UpgradeUnsupported,
        Self::VersionUnsupported,
        Self::ConnectionLimit,
        Self::Overloaded,
    ];
}

impl Refusal {
    /// Of that kind, for that reason.
    pub const fn new(kind: RefusalKind, why: &'static str) -> Self {
        Self { kind, why }
    }

    /// Of a request that is malformed.
    pub const fn bad_request(why: &'static str) -> Self {
        Self::new(RefusalKind::BadRequest, why)
    }

    /// The status that the client is answered with.
    pub fn status(self) -> StatusCode {
        match self.kind {
            RefusalKind::NotHttp | RefusalKind::PlainHttp | RefusalKind::BadRequest => StatusCode::BAD_REQUEST,
            RefusalKind::HeadTimeout => StatusCode::REQUEST_TIMEOUT,
            RefusalKind::UriTooLong => StatusCode::URI_TOO_LONG,
            RefusalKind::HeaderTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            RefusalKind::CodingUnsupported | RefusalKind::UpgradeUnsupported => StatusCode::NOT_IMPLEMENTED,
            RefusalKind::VersionUnsupported => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            RefusalKind::ConnectionLimit | RefusalKind::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Whose fault it is.
    pub fn blame(self) -> Blame {
        match self.kind {
            RefusalKind::ConnectionLimit | RefusalKind::Overloaded => Blame::Proxy,
            _ => Blame::Client,
        }
    }

    /// Whether the client may ask again, a second later.
    pub fn is_worth_a_retry(self) -> bool {
        self.status() == StatusCode::SERVICE_UNAVAILABLE
    }

    /// A word for the access log.
    pub fn reason(self) -> &'static str {
        match self.kind {
            RefusalKind::NotHttp => "not_http",
            RefusalKind::PlainHttp => "plain_http",
            RefusalKind::BadRequest => "bad_request",
            RefusalKind::HeadTimeout => "head_timeout",
            RefusalKind::UriTooLong => "uri_too_long",
            RefusalKind::HeaderTooLarge => "header_too_large",
            RefusalKind::CodingUnsupported => "coding_unsupported",
            RefusalKind::UpgradeUnsupported => "upgrade_unsupported",
            RefusalKind::VersionUnsupported => "version_unsupported",
            RefusalKind::ConnectionLimit => "connection_limit",
            RefusalKind::Overloaded => "overloaded",
        }
    }

    /// What a client that is answered is told: a line of text.
    pub fn told(self) -> String {
        let status = self.status();
        format!("{} {}: {}\n", status.as_u16(), status.canonical_reason().unwrap_or("Error"), self.why)
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect { backend, .. } => write!(f, "could not connect to {backend}"),
            Self::Exhausted { backend, .. } => write!(f, "could not connect to {backend}, for a reason of our own"),
            Self::Handshake { backend, .. } => write!(f, "could not make a secure connection to {backend}"),
            Self::ConnectTimeout { backend } => write!(f, "could not connect to {backend} in time"),
            Self::Broken { backend, .. } => write!(f, "{backend} broke off before it answered"),
            Self::UnaskedUpgrade { backend } => write!(f, "{backend} switched protocols without being asked"),
            Self::ResponseTimeout { backend } => write!(f, "{backend} did not answer in time"),
            other => f.write_str(other.told()),
        }
    }
}

impl std::error::Error for ProxyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect { error, .. } | Self::Exhausted { error, .. } => Some(error),
            Self::Handshake { error, .. } => Some(error),
            Self::Broken { error, .. } => Some(error),
            _ => None,
        }
    }
}
