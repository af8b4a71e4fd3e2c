//! `timeouts` of a route: how long the parts of an exchange may take.

use std::time::Duration;

use super::check::Check;
use super::error::Problem;
use super::form::Timeout;
use super::report::Place;
use super::table::Table;

/// How long the parts of an exchange may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check, reload = Requests)]
pub struct Timeouts {
    /// From the request sent to the head of the response, for each attempt; then there is another attempt, or the answer is 504.
    #[key(Timeout, default = "60s")]
    pub response_head: Duration,
    /// Between two pieces of a body, either way.
    #[key(Timeout, default = "60s")]
    pub body_idle: Duration,
    /// With `expect = "pass"`: how long the backend may be silent before the client is told to send the body in any case.
    #[key(Timeout, default = "1s")]
    pub expect: Duration,
    /// From the head of the request to the end of the response, further attempts included.
    #[key(Timeout, default = "none")]
    pub exchange: Option<Duration>,
    /// How long an upgraded connection (a WebSocket) may be silent both ways.
    #[key(Timeout, default = "1h")]
    pub tunnel_idle: Duration,
    /// How long a gRPC call may be silent both ways, in place of `response_head` and `body_idle`: streams wait for events.
    #[key(Timeout, default = "1h")]
    pub grpc_idle: Option<Duration>,
    /// The longest deadline that a gRPC client may give its call; a longer one is shortened.
    #[key(Timeout, default = "none")]
    pub grpc_timeout_max: Option<Duration>,
}

impl Timeouts {
    fn check(check: &Check<'_>, _: Place, written: &WrittenTimeouts, it: Self) -> Option<Self> {
        // Below the default it is a plain way to shorten everything; below a value that somebody wrote it is a slip.
        if let (Some((place, _)), Some(_), Some(exchange)) =
            (written.exchange.given(), written.response_head.given(), it.exchange)
            && exchange < it.response_head
        {
            check.add(place, Problem::warning("shorter than response_head, which can then never be reached"));
        }
        Some(it)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self::of_defaults()
    }
}
