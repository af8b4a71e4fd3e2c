//! What the process is and does: its version, its workers, its logs, its reloads.

use std::fmt;

use prometheus_client::registry::Unit;

use super::family::Families;
use super::{Scrape, unix_seconds};
use crate::admin::ProcessStatus;
use crate::telemetry::panics;

impl Scrape {
    pub(super) fn process(&self, families: &mut Families<'_>) -> fmt::Result {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        families.gauge("build_info", "What runs; always 1", None, [(&version[..], 1.0)])?;
        let started = unix_seconds(self.status.started);
        families.gauge("process_start_time", "When the process started", Some(&Unit::Seconds), [(&[][..], started)])?;
        let count = self.connections_by_worker.len() as f64;
        families.gauge("workers", "Threads that serve requests", None, [(&[][..], count)])?;
        let workers: Vec<_> =
            self.connections_by_worker.iter().enumerate().map(|(n, &open)| (n.to_string(), open as f64)).collect();
        let workers: Vec<_> = workers.iter().map(|(n, open)| ([("worker", n.as_str())], *open)).collect();
        let connections = workers.iter().map(|(labels, open)| (&labels[..], *open));
        families.gauge("worker_connections", "Client connections open", None, connections)?;
        let missed: Vec<_> =
            self.process.pulse.missed().enumerate().map(|(n, missed)| (n.to_string(), missed)).collect();
        let missed: Vec<_> = missed.iter().map(|(n, missed)| ([("worker", n.as_str())], *missed as f64)).collect();
        let missed = missed.iter().map(|(labels, missed)| (&labels[..], *missed));
        let help = "For how long a worker has not run";
        families.gauge("worker_unresponsive", help, Some(&Unit::Seconds), missed)?;
        let help = "Panics, each a fault of the program";
        families.counter("panics", help, None, [(&[][..], panics::panics())])?;
        let dropped = [(&[][..], self.access_log_dropped)];
        families.counter("access_log_dropped_lines", "Access log lines that were not written", None, dropped)?;
        let dropped = [(&[][..], self.log_dropped)];
        families.counter("log_dropped_lines", "Lines of the process's own log that were not written", None, dropped)
    }

    pub(super) fn reloads(&self, families: &mut Families<'_>) -> fmt::Result {
        let generation = self.snapshot.generation as f64;
        families.gauge("config_generation", "Number of the snapshot in force", None, [(&[][..], generation)])?;
        let ProcessStatus { reloads_applied, reloads_failed, loaded_at, last_error, .. } = &self.status;
        let (applied, failed) = ([("result", "applied")], [("result", "failed")]);
        let reloads = [(&applied[..], *reloads_applied), (&failed[..], *reloads_failed)];
        families.counter("config_reloads", "Attempts to apply a changed file", None, reloads)?;
        let successful = if last_error.is_none() { 1.0 } else { 0.0 };
        let help = "Whether the last attempt to load the file was successful";
        families.gauge("config_last_reload_successful", help, None, [(&[][..], successful)])?;
        let help = "When the configuration in force was last read and found good";
        let loaded_at = [(&[][..], unix_seconds(*loaded_at))];
        families.gauge("config_last_reload_success_timestamp", help, Some(&Unit::Seconds), loaded_at)
    }
}
