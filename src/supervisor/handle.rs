use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use super::command_loop::{ControlCommand, ReloadOutcome, Trigger};
use super::{Applied, Error};
use crate::listener::Listener;
use crate::proxy::Snapshot;
use crate::registry::Registry;
use crate::telemetry::events::Events;
use crate::telemetry::logging::Logging;
use crate::telemetry::process::Process;
use crate::worker::Workers;

/// Looks into a running isobar and steers it. Cheap to clone; may be used from any thread and any runtime.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) shared: Arc<ServedState>,
    pub(super) commands: mpsc::Sender<ControlCommand>,
    pub(super) stops: mpsc::UnboundedSender<Stop>,
    pub(super) logging: Option<Logging>,
}

/// What is served, as others see it.
#[derive(Debug)]
pub(crate) struct ServedState {
    pub(super) workers: Workers,
    pub(super) listeners: ArcSwap<Vec<Arc<Listener>>>,
    status: ArcSwap<ConfigStatus>,
    pub(super) process: Arc<Process>,
    /// The registry that this process keeps.
    pub(super) registry: Option<Arc<Registry>>,
}

/// How it stands with the configuration.
#[derive(Clone, Debug)]
pub struct ConfigStatus {
    /// The file that is watched; `None` where the embedding program supplies the text.
    pub file: Option<PathBuf>,
    /// The generation that is served.
    pub generation: u64,
    /// When the process began to serve.
    pub started_at: SystemTime,
    /// When what is served was last read and found good.
    pub loaded_at: SystemTime,
    /// What is legal in the file and probably not meant, a line each.
    pub warnings: Vec<String>,
    /// Why the file as it is now is not what is served; `None` when it is.
    pub last_error: Option<LastError>,
    /// Reloads that were applied, whether they changed something or not.
    pub reloads_applied: u64,
    /// Reloads that failed and changed nothing.
    pub reloads_failed: u64,
    /// Set once the process has been asked to stop: it should get no new traffic.
    pub stopping: bool,
}

/// A reload that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// When.
    pub at: SystemTime,
    /// Why: a line for each problem.
    pub text: String,
}

/// How the stop was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    /// A program or the admin address; without a time, the file's `shutdown_grace`.
    Asked(Option<Duration>),
    /// A signal, by its number.
    Signal(i32),
    /// Another process has taken over what this one listens on.
    Replaced,
    /// A task has panicked without which the process is not whole.
    Failed,
}

impl Handle {
    /// What requests are served with now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.workers.snapshot()
    }

    /// What is listened on now, in the order of the file.
    pub fn listeners(&self) -> Arc<Vec<Arc<Listener>>> {
        self.shared.listeners.load_full()
    }

    /// Lines of the access log that were dropped since the start, by this one and those before it.
    pub fn access_log_dropped(&self) -> u64 {
        self.shared.process.access_log.dropped()
    }

    /// Has log files opened anew, as is done once log rotation has moved them away, and reads nothing else. Does not wait for it.
    pub fn reopen_logs(&self) {
        if let Some(log) = &*self.shared.process.access_log.load() {
            log.reopen();
        }
    }

    /// Client connections open now, by worker.
    pub fn connections(&self) -> Vec<usize> {
        self.shared.workers.connections()
    }

    /// How it stands with the configuration.
    pub fn status(&self) -> Arc<ConfigStatus> {
        self.shared.status.load_full()
    }

    /// What happens: listen to it.
    pub fn events(&self) -> &Events {
        &self.shared.process.events
    }

    /// Whether there is too much to do, and what was refused for that.
    pub fn process(&self) -> &Arc<Process> {
        &self.shared.process
    }

    /// The registry that this process keeps; `None` where the configuration had none at the start.
    pub fn registry(&self) -> Option<&Arc<Registry>> {
        self.shared.registry.as_ref()
    }

    /// What is logged; `None` where isobar was not asked to log for the process.
    pub fn logging(&self) -> Option<&Logging> {
        self.logging.as_ref()
    }

    /// Reads the file again and applies it, changed or not, and opens the log files anew. Requests that come while one
    /// is being answered are answered together.
    ///
    /// # Errors
    /// When the file is refused; what was served before still is.
    pub async fn reload(&self) -> Result<Arc<Applied>, Arc<Error>> {
        self.send(|reply| ControlCommand::Reload { trigger: Trigger::Asked, reply: Some(reply) }).await
    }

    /// Applies `text` in place of what was served. Where a file is watched, its next change is applied over this.
    ///
    /// # Errors
    /// When the text is refused; what was served before still is.
    pub async fn apply_text(&self, text: impl Into<String>) -> Result<Arc<Applied>, Arc<Error>> {
        let text = text.into();
        self.send(|reply| ControlCommand::Apply { text, reply }).await
    }

    /// Asks to stop and does not wait for it. Without `grace`, the file's `shutdown_grace` bounds it.
    pub fn stop(&self, grace: Option<Duration>) {
        // There is no listener when it has stopped already.
        let _ = self.stops.send(Stop::Asked(grace));
    }

    /// Another process accepts where this one does: nothing more is to be accepted here.
    pub(crate) fn replaced(&self) {
        let _ = self.stops.send(Stop::Replaced);
    }

    /// What it listens on now, once more, for another process.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub(crate) async fn lend(&self) -> io::Result<Vec<(SocketAddr, OwnedFd)>> {
        self.shared.workers.lend().await
    }

    /// For when the task that answers is gone: nothing else ends the connections then.
    pub(crate) fn abandon(&self) {
        self.shared.workers.abandon();
    }

    async fn send(&self, command: impl FnOnce(oneshot::Sender<ReloadOutcome>) -> ControlCommand) -> ReloadOutcome {
        let (reply, outcome) = oneshot::channel();
        // What could not be sent comes back in the error, the sender of the reply in it: dropped before it is waited for.
        drop(self.commands.send(command(reply)).await);
        outcome.await.unwrap_or_else(|_| Err(Arc::new(Error::Stopping)))
    }
}

impl ServedState {
    pub(super) fn new(
        workers: Workers,
        process: Arc<Process>,
        listeners: Vec<Arc<Listener>>,
        registry: Option<Arc<Registry>>,
    ) -> Self {
        let now = SystemTime::now();
        let status = ConfigStatus {
            file: None,
            generation: workers.snapshot().generation,
            started_at: now,
            loaded_at: now,
            warnings: Vec::new(),
            last_error: None,
            reloads_applied: 0,
            reloads_failed: 0,
            stopping: false,
        };
        let (listeners, status) = (ArcSwap::from_pointee(listeners), ArcSwap::from_pointee(status));
        Self { workers, listeners, status, process, registry }
    }

    pub(super) fn show(&self, listeners: Vec<Arc<Listener>>) {
        self.listeners.store(Arc::new(listeners));
    }

    pub(super) fn status(&self) -> Arc<ConfigStatus> {
        self.status.load_full()
    }

    /// Changes the status. The control task alone calls this, so nothing is lost between the load and the store.
    pub(super) fn note(&self, change: impl FnOnce(&mut ConfigStatus)) {
        let mut status = ConfigStatus::clone(&self.status.load());
        change(&mut status);
        self.status.store(Arc::new(status));
    }
}
