//! `pool` of an upstream: the idle connections that are kept.

use std::time::Duration;

use super::form::{Limit, Timeout, Whole};
use super::table::Table;

/// The connections to each backend: which are kept for the next request, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Table)]
#[table(reload = Requests)]
pub struct PoolConfig {
    /// How many are kept at most, per backend and worker; 0 keeps none.
    #[key(Whole(0..=100_000), default = 64)]
    pub max_idle: usize,
    /// How long one is kept at most without use. Below the backends' own limit, or a request goes to a connection that is being closed.
    #[key(Timeout, default = "60s")]
    pub idle_timeout: Duration,
    /// How old a connection may be: it takes no further request then, and one that it has goes on to its end. A tenth less at most, so that not
    /// all are made anew at a time. Of connections that are made from then on.
    #[key(Timeout, default = "none")]
    pub max_age: Option<Duration>,
    /// Requests that a connection takes, one after the other or side by side.
    #[key(Limit(1..=1_000_000_000), default = "unlimited")]
    pub max_requests: Option<u32>,
}
