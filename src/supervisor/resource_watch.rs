//! Looks at what the process uses of file descriptors and memory.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::ServedState;
use crate::overload::sample::Allowance;

/// Often enough that descriptors do not run out in between under a usual load: a twentieth of a hundred thousand is five
/// thousand connections. A look takes some ten microseconds.
const INTERVAL: Duration = Duration::from_millis(250);

/// The task that looks. On the control plane: a worker that has too much to do need not do that too. Dropped, it ends.
#[derive(Debug)]
pub(super) struct ResourceMonitor(Option<JoinHandle<()>>);

impl ResourceMonitor {
    /// Begins to look, where the system tells what may be used. Inside a runtime only.
    pub(super) fn start(shared: &Arc<ServedState>) -> Self {
        let allowance = Allowance::read();
        if allowance == Allowance::default() {
            return Self(None);
        }
        let shared = Arc::clone(shared);
        let vital = shared.process.events.vital().clone();
        Self(Some(tokio::spawn(vital.watch("gauge".into(), async move {
            let mut ticks = tokio::time::interval(INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let config = shared.workers.snapshot().config.overload;
                shared.process.used(allowance.usage_now(), &config);
            }
        }))))
    }
}

impl Drop for ResourceMonitor {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
