//! `retry_budget` of an upstream: how many further attempts all its requests together may get.

use super::form::Whole;
use super::table::Table;

/// Further attempts of an upstream's requests together, over all workers: what keeps retries from multiplying the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Table)]
#[table(reload = Requests)]
pub struct RetryBudgetConfig {
    /// Further attempts for each hundred requests.
    #[key(Whole(0..=1000), default = 20)]
    pub percent: u16,
    /// Further attempts a second, whatever was requested.
    #[key(Whole(0..=1_000_000), default = 10)]
    pub per_second: u32,
}

impl Default for RetryBudgetConfig {
    fn default() -> Self {
        Self::of_defaults()
    }
}
