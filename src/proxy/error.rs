//! What can go wrong with an exchange.

use std::fmt;
use std::io;
use std::time::Duration;

use http::StatusCode;

use crate::config::{Address, GrpcStatus};
use crate::overload::Cause;
use crate::route::path::Refused;
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
    Path(Refused),
    /// The request's body, or a message of a call, is larger than the route or the listener takes.
    BodyTooLarge,
    /// The client did not send its body in time.
    ClientTooSlow,
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
    /// Nobody's, or ours.
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
            Self::ConnectTimeout { .. } | Self::ResponseTimeout { .. } | Self::ExchangeTimeout => {
                StatusCode::GATEWAY_TIMEOUT
            }
        }
    }

    /// The status that a client of gRPC is answered with. That its time is over is said of the call as a whole only: who has waited
    /// for anything else in vain may ask again.
    pub fn grpc_status(&self) -> GrpcStatus {
        match self {
            Self::NoRoute | Self::Method | Self::Misdirected | Self::CannotSwitch => GrpcStatus::Unimplemented,
            Self::BadRequest(_) | Self::Path(_) | Self::UnaskedUpgrade { .. } => GrpcStatus::Internal,
            Self::BodyTooLarge => GrpcStatus::ResourceExhausted,
            Self::ExchangeTimeout => GrpcStatus::DeadlineExceeded,
            Self::ClientTooSlow
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
            Self::NoBackend
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
            Self::BadRequest(why) | Self::Path(Refused { why, .. }) => why,
            Self::BodyTooLarge => "the request body is larger than it may be",
            Self::ClientTooSlow => "the request body did not arrive in time",
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
