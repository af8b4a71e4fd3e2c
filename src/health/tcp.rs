use tokio::time::Instant;

use super::{CheckFailed, HealthCheck, connect};
use crate::config::Address;

/// Passes where a connection can be made. It is closed at once.
pub(super) struct Tcp;

impl HealthCheck for Tcp {
    async fn check(&self, address: &Address, deadline: Instant) -> Result<(), CheckFailed> {
        connect(address, deadline).await.map(drop)
    }
}
