//! `lingering` of a listener: what a client still sends once it is answered.

use std::time::Duration;

use super::form::{AnySize, Timeout};
use super::table::Table;

/// How much a client may still send of a request that is answered already, which is read and thrown away. A socket that is closed with
/// something unread in it sends a reset, and that may take the answer from a client that reads it only when all is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Table)]
#[table(reload = Connections)]
pub struct LingeringConfig {
    /// So many bytes; 0 closes at once.
    #[key(AnySize, default = "1GiB")]
    pub bytes: u64,
    /// For so long altogether.
    #[key(Timeout, default = "30s")]
    pub time: Duration,
    /// For so long without a byte.
    #[key(Timeout, default = "5s")]
    pub idle: Duration,
}

impl Default for LingeringConfig {
    fn default() -> Self {
        Self::of_defaults()
    }
}
