//! Tunnels: what a connection becomes when both sides switch to another protocol, a WebSocket most of the time.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::backend::Lease;
use crate::exchange::body::ExchangeProgress;
use crate::relay::{Relayed, relay};
use crate::transport::Link;

use super::running::RunningExchange;

/// An exchange whose two connections are from now on one. The request counts as in flight, at the backend and at the
/// listener, until it ends.
pub struct Tunnel {
    link: Rc<Link>,
    running: Rc<RunningExchange>,
    idle: Duration,
    _lease: Lease,
}

impl Tunnel {
    pub(super) fn new(link: Rc<Link>, lease: Lease, running: Rc<RunningExchange>, idle: Duration) -> Self {
        running.exchange.client.metrics.of(running.worker()).tunnels_opened.add(1);
        Self { link, running, idle, _lease: lease }
    }

    /// Carries bytes both ways until both ends are done, one breaks, neither says anything for too long, or the connection is
    /// told to end. `held` is what the client has sent already.
    pub async fn run(self, client: impl AsyncRead + AsyncWrite + Unpin, held: Vec<u8>) -> io::Result<()> {
        let rest = self.link.take_rest();
        let watch = &*self.running.exchange.watch;
        watch.uncap();
        let first = (held.into(), rest);
        let Relayed { up, down, result } = relay(client, self.link.io(), first, watch, self.idle).await;
        self.running.tunnelled(up, down);
        self.running.ended(result.is_ok());
        result
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.running.exchange.client.metrics.of(self.running.worker()).tunnels_closed.add(1);
    }
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("link", &self.link).finish_non_exhaustive()
    }
}
