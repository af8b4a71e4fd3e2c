//! When a request is tried again.

use std::time::Duration;

use http::StatusCode;

use super::GrpcStatus;

/// `retries`: when a request is tried again at another backend. Only where it cannot have been processed, or may be
/// repeated, and nothing of an answer went to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryConfig {
    /// Further attempts of a request, 0 to 7.
    pub max: u8,
    /// After what.
    pub on: RetryOn,
    /// The statuses of gRPC after which a call is tried again, where the backend gives nothing but the status. In ascending order.
    pub grpc_statuses: Vec<GrpcStatus>,
    /// How long an attempt may take from the request sent to the response's head, as long as another may follow; `None` is
    /// as long as `response_head`.
    pub attempt_timeout: Option<Duration>,
    /// The longest wait before the first further attempt; it doubles with each.
    pub backoff_base: Duration,
    /// The longest wait before any.
    pub backoff_max: Duration,
    /// The longest `Retry-After` that a request is held for.
    pub retry_after_max: Duration,
    /// Bytes of a request's body that are kept so that it can be sent again; 0 is none.
    pub body_buffer: usize,
    /// Bytes of the response to a request that may be sent again for which it waits, so that one which breaks off is no answer
    /// yet; of larger ones, and those of unknown length, nothing is held back. 0 is none.
    pub response_buffer: usize,
    /// Whether a second attempt is made while the first is slow.
    pub hedge: Option<HedgeConfig>,
}

/// After what a request is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryOn {
    /// No connection could be made, or none in time, or it broke before anything was sent: nothing was sent.
    pub connect_failure: bool,
    /// The connection broke before any byte of a response.
    pub reset: bool,
    /// `attempt_timeout` or `response_head` ran out.
    pub timeout: bool,
    /// A response with one of these statuses. In ascending order.
    pub statuses: Vec<StatusCode>,
}

impl Default for RetryConfig {
    /// Two, after all that a backend itself cannot mean for an answer, and after the answers of gateways.
    fn default() -> Self {
        Self {
            max: 2,
            on: RetryOn::default(),
            grpc_statuses: Vec::new(),
            attempt_timeout: None,
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            retry_after_max: Duration::from_secs(1),
            body_buffer: 64 * 1024,
            response_buffer: 16 * 1024,
            hedge: None,
        }
    }
}

impl Default for RetryOn {
    /// A 500 is the application's own answer, and most often the same elsewhere; 502, 503 and 504 say that the request was
    /// not served.
    fn default() -> Self {
        let statuses = vec![StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
        Self { connect_failure: true, reset: true, timeout: true, statuses }
    }
}

/// `hedge`: a second attempt while the first is slow. The first answer wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HedgeConfig {
    /// Percent of the responses that come faster than what the second attempt waits for, 50 to 99.
    pub percentile: u8,
    /// It waits for at least so long.
    pub min_delay: Duration,
    /// Second attempts in a hundred requests at most.
    pub budget_percent: u16,
}

impl Default for HedgeConfig {
    fn default() -> Self {
        Self { percentile: 95, min_delay: Duration::from_millis(1), budget_percent: 5 }
    }
}
