//! `pool` of an upstream: the idle connections that are kept.

use std::time::Duration;

use super::form::{Timeout, Whole};
use super::table::Table;

/// The idle connections to each backend that are kept for the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Table)]
#[table(reload = Requests)]
pub struct PoolConfig {
    /// How many are kept at most, per backend and worker; 0 keeps none.
    #[key(Whole(0..=100_000), default = 64)]
    pub max_idle: usize,
    /// How long one is kept at most without use. Below the backends' own limit, or a request goes to a connection that is being closed.
    #[key(Timeout, default = "60s")]
    pub idle_timeout: Duration,
}
