//! Asks the workers whether they still run.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tracing::{error, info};

use super::ServedState;
use crate::telemetry::heartbeat::{EVERY, MISSED_MAX};

/// The task that asks. Dropped, it ends.
#[derive(Debug)]
pub(super) struct PulseMonitor(JoinHandle<()>);

impl PulseMonitor {
    /// Begins to ask. Inside a runtime only.
    pub(super) fn start(shared: &Arc<ServedState>) -> Self {
        let shared = Arc::clone(shared);
        let vital = shared.process.events.vital().clone();
        Self(tokio::spawn(vital.watch("pulse".into(), async move {
            let mut ticks = tokio::time::interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut dead = vec![false; shared.workers.count()];
            loop {
                ticks.tick().await;
                shared.workers.beat(&shared.process.pulse);
                for (worker, (missed, dead)) in shared.process.pulse.missed().zip(&mut dead).enumerate() {
                    if missed >= MISSED_MAX && !std::mem::replace(dead, true) {
                        error!(worker, seconds = missed, "a worker does not run any more: /livez says so");
                    } else if missed == 0 && std::mem::replace(dead, false) {
                        info!(worker, "the worker runs again");
                    }
                }
            }
        })))
    }
}

impl Drop for PulseMonitor {
    fn drop(&mut self) {
        self.0.abort();
    }
}
