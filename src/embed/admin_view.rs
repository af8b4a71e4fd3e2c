use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use crate::admin::{Control, Fate, ProcessStatus, ReloadFailed, ReloadReport, ReloadResult, UpstreamChange};
use crate::listener::Listener;
use crate::proxy::Snapshot;
use crate::registry::RegistryCounts;
use crate::supervisor::reload_plan::{KeyChange, PlanPart, PlanStep};
use crate::supervisor::{Applied, Handle, LastError};
use crate::telemetry::events::Events;
use crate::telemetry::logging::Logging;
use crate::telemetry::process::Process;

/// What the admin address sees of a process, and does to it.
impl Control for Handle {
    fn snapshot(&self) -> Arc<Snapshot> {
        Self::snapshot(self)
    }

    fn listeners(&self) -> Vec<Arc<Listener>> {
        Self::listeners(self).to_vec()
    }

    fn connections_by_worker(&self) -> Vec<usize> {
        self.connections()
    }

    fn process(&self) -> Arc<Process> {
        Arc::clone(Self::process(self))
    }

    fn status(&self) -> ProcessStatus {
        let status = Self::status(self);
        ProcessStatus {
            file: status.file.clone(),
            started: status.started_at,
            loaded_at: status.loaded_at,
            stopping: status.stopping,
            last_error: status.last_error.as_ref().map(failed),
            reloads_applied: status.reloads_applied,
            reloads_failed: status.reloads_failed,
        }
    }

    fn access_log_dropped(&self) -> u64 {
        Self::access_log_dropped(self)
    }

    fn registry(&self) -> Option<RegistryCounts> {
        Self::registry(self).map(|registry| registry.counts())
    }

    fn events(&self) -> &Events {
        Self::events(self)
    }

    fn logging(&self) -> Option<&Logging> {
        Self::logging(self)
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = ReloadResult> + Send + '_>> {
        Box::pin(async move {
            match Self::reload(self).await {
                Ok(applied) => Ok(report(&applied)),
                Err(error) => Err(failed(&LastError { at: SystemTime::now(), text: error.to_string() })),
            }
        })
    }
}

fn failed(error: &LastError) -> ReloadFailed {
    ReloadFailed { at: error.at, problems: error.text.lines().map(str::to_owned).collect() }
}

fn report(applied: &Applied) -> ReloadReport {
    let Applied { generation, plan, warnings, took: _ } = applied;
    let upstreams = plan.upstreams.next.iter().map(|(name, step)| match step {
        PlanStep::Kept { .. } => UpstreamChange { name: name.clone(), fate: Fate::Kept, changes: Vec::new() },
        PlanStep::Changed { changes, .. } => {
            UpstreamChange { name: name.clone(), fate: Fate::Replaced, changes: lines(changes) }
        }
        PlanStep::Added => UpstreamChange { name: name.clone(), fate: Fate::Added, changes: Vec::new() },
    });
    let removed = plan.upstreams.removed.iter().map(|(name, _)| UpstreamChange {
        name: name.clone(),
        fate: Fate::Removed,
        changes: Vec::new(),
    });
    let mut others = told("listener", &plan.listeners);
    others.extend(told("route", &plan.routes));
    others.extend(told("middleware", &plan.middleware));
    others.extend(lines(&plan.settings));
    others.extend(plan.restart.iter().map(|change| format!("{change} (takes effect after a restart)")));
    ReloadReport {
        generation: *generation,
        upstreams: upstreams.chain(removed).collect(),
        others,
        warnings: warnings.iter().map(ToString::to_string).collect(),
    }
}

fn lines(changes: &[KeyChange]) -> Vec<String> {
    changes.iter().map(ToString::to_string).collect()
}

/// A line for each that is not as it was.
fn told<N: std::fmt::Display>(kind: &str, part: &PlanPart<N>) -> Vec<String> {
    let changed = part.changed().map(|(name, changes)| format!("{kind} {name}: {}", lines(changes).join(", ")));
    let added = part.added().map(|name| format!("{kind} {name}: added"));
    let removed = part.removed.iter().map(|(name, _)| format!("{kind} {name}: removed"));
    changed.chain(added).chain(removed).collect()
}
