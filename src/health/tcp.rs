use tokio::time::Instant;

use super::{CheckFailed, HealthCheck, connect};
use crate::config::Address;
use crate::transport::tls::TlsOf;

/// Passes where a connection can be made, by TLS with its handshake: requests need that too. It is closed at once.
pub(super) struct Tcp;

impl HealthCheck for Tcp {
    async fn check(&self, address: &Address, tls: Option<TlsOf<'_>>, deadline: Instant) -> Result<(), CheckFailed> {
        connect(address, tls, deadline).await.map(drop)
    }
}
