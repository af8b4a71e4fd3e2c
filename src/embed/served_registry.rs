use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::error;

use crate::config::RegistryConfig;
use crate::registry::{BoundRegistry, Registry};
use crate::supervisor::{Error, Handle};

/// How long the last responses and the last writing may take, where another process waits for the address.
const END_LIMIT: Duration = Duration::from_secs(5);

/// The registry while it answers. Like the admin address it is among the last to stop: services that stop with this process deregister.
pub(super) struct ServedRegistry {
    task: JoinHandle<()>,
    stop: Arc<Notify>,
    ended: Option<oneshot::Receiver<()>>,
}

/// Ends it from elsewhere.
pub(super) struct RegistryStopper {
    stop: Arc<Notify>,
    ended: oneshot::Receiver<()>,
}

/// At its address; where `replacing` a process that has it, when that has gone.
pub(super) fn bind(config: &RegistryConfig, replacing: bool) -> Result<BoundRegistry, Error> {
    let address = config.address;
    BoundRegistry::bind(address, replacing).map_err(|source| Error::Registry { address, source })
}

impl ServedRegistry {
    pub(super) fn start(runtime: &Runtime, bound: BoundRegistry, registry: &Arc<Registry>, handle: &Handle) -> Self {
        let stop = Arc::new(Notify::new());
        let (ending, ended) = oneshot::channel();
        let (registry, stopped) = (Arc::clone(registry), Arc::clone(&stop));
        let vital = handle.events().vital().clone();
        let task = runtime.spawn(vital.watch("registry".into(), async move {
            let address: SocketAddr = bound.address();
            if let Err(error) = bound.serve(registry, stopped.notified()).await {
                error!(%address, %error, "the registry is not served");
            }
            drop(ending);
        }));
        Self { task, stop, ended: Some(ended) }
    }

    /// What ends it when another process takes over. Once.
    pub(super) fn stopper(&mut self) -> Option<RegistryStopper> {
        Some(RegistryStopper { stop: Arc::clone(&self.stop), ended: self.ended.take()? })
    }

    pub(super) async fn end(self) {
        // Kept for it where it does not wait yet.
        self.stop.notify_one();
        // It panicked if this fails; it is over all the same.
        let _ = self.task.await;
    }
}

impl RegistryStopper {
    pub(super) async fn end(self) {
        self.stop.notify_one();
        let _ = timeout(END_LIMIT, self.ended).await;
    }
}
