//! What the admin address sees of the process, and what it can do to it beside what it does to backends by hand.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use crate::config::UpstreamName;
use crate::listener::Listener;
use crate::proxy::Snapshot;
use crate::registry::RegistryCounts;
use crate::telemetry::events::Events;
use crate::telemetry::logging::Logging;
use crate::telemetry::process::Process;

/// The process, seen and steered from the admin address. Everything but `reload` returns at once.
pub trait Control: fmt::Debug + Send + Sync + 'static {
    /// What requests are served with now.
    fn snapshot(&self) -> Arc<Snapshot>;

    /// The listeners that accept, in the order of the file. Those that drain are not among them: one that was replaced has
    /// the same name as its successor.
    fn listeners(&self) -> Vec<Arc<Listener>>;

    /// Client connections open now, by worker.
    fn connections_by_worker(&self) -> Vec<usize>;

    /// What is refused because there is too much to do.
    fn process(&self) -> Arc<Process>;

    /// How the process is.
    fn status(&self) -> ProcessStatus;

    /// Access log lines dropped since the start, over all access logs there were.
    fn access_log_dropped(&self) -> u64;

    /// What is registered in the registry that the process keeps, and what has happened there; `None` where it keeps none.
    fn registry(&self) -> Option<RegistryCounts>;

    /// Where changes are told, and told of.
    fn events(&self) -> &Events;

    /// What is logged; `None` where the program around this decides on it.
    fn logging(&self) -> Option<&Logging>;

    /// Reads the file again and applies it. Runs to its end even if the client that asked is gone.
    fn reload(&self) -> Pin<Box<dyn Future<Output = ReloadResult> + Send + '_>>;
}

/// How a reload ended.
pub type ReloadResult = Result<ReloadReport, ReloadFailed>;

/// How the process is.
#[derive(Clone, Debug)]
pub struct ProcessStatus {
    /// Where the configuration was read; `None` where a program that embeds isobar supplies it.
    pub file: Option<PathBuf>,
    /// When the process started to serve.
    pub started: SystemTime,
    /// When the configuration in force was last read and found good.
    pub loaded_at: SystemTime,
    /// Whether the process has been told to stop.
    pub stopping: bool,
    /// Why the last reload failed; `None` where it did not.
    pub last_error: Option<ReloadFailed>,
    /// Reloads that were applied, whether they changed something or not.
    pub reloads_applied: u64,
    /// Reloads that failed and changed nothing.
    pub reloads_failed: u64,
}

/// What a reload did.
#[derive(Clone, Debug)]
pub struct ReloadReport {
    /// The generation that is served now.
    pub generation: u64,
    /// What became of each upstream, those removed included.
    pub upstreams: Vec<UpstreamChange>,
    /// What else changed (listeners, routes, settings, what needs a restart), a line each.
    pub others: Vec<String>,
    /// What the check of the file warned of.
    pub warnings: Vec<String>,
}

/// What a reload did to an upstream.
#[derive(Clone, Debug)]
pub struct UpstreamChange {
    /// Which upstream.
    pub name: UpstreamName,
    /// What became of it.
    pub fate: Fate,
    /// In what it differs, a line each.
    pub changes: Vec<String>,
}

/// What became of something in a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It is as it was.
    Kept,
    /// It was built anew, with the state of the old one.
    Replaced,
    /// It was not there.
    Added,
    /// It is no longer there.
    Removed,
}

/// A reload that changed nothing, because something was wrong.
#[derive(Clone, Debug)]
pub struct ReloadFailed {
    /// When.
    pub at: SystemTime,
    /// What is wrong, a line each: problems of the file, or what could not be prepared (an address in use).
    pub problems: Vec<String>,
}

impl fmt::Display for ReloadFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not apply the configuration: {}", self.problems.join("; "))
    }
}

impl Error for ReloadFailed {}
