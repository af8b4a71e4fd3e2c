//! What all threads of the process share to tell what happens, and to know whether there is too much to do.

use std::sync::Arc;
use std::time::Duration;

use super::access_log::InForce;
use super::events::{EventKind, Events};
use super::heartbeat::Pulse;
use super::metrics::{Counter, Sharded};
use crate::config::OverloadConfig;
use crate::file_descriptors::{DescriptorPlan, Descriptors};
use crate::overload::{Cause, Overload, OverloadChange, OverloadSettings, Usage};

/// Made once, at the start.
#[derive(Debug)]
pub struct Process {
    /// What has happened.
    pub events: Events,
    /// Requests and connections that were refused because there was too much to do, a shard per worker.
    pub refused: Sharded<RefusedCounters>,
    /// Its file descriptors, and how they are dealt out.
    pub descriptors: Arc<Descriptors>,
    /// Whether its workers still run.
    pub pulse: Pulse,
    /// Where a line per exchange goes.
    pub access_log: InForce,
    overload: Overload,
}

/// What a worker has refused, by cause.
#[derive(Debug, Default)]
pub struct RefusedCounters([Counter; Cause::ALL.len()]);

impl RefusedCounters {
    /// How many for that cause.
    pub fn of(&self, cause: Cause) -> &Counter {
        &self.0[cause as usize]
    }
}

impl Process {
    /// Nothing has happened and nothing is refused. `workers` is their number; there are as many descriptors as are wanted.
    pub fn new(workers: usize) -> Arc<Self> {
        Self::with_descriptors(workers, DescriptorPlan::UNLIMITED)
    }

    /// The same with descriptors that are divided by `plan`.
    pub fn with_descriptors(workers: usize, plan: DescriptorPlan) -> Arc<Self> {
        Arc::new(Self {
            events: Events::default(),
            refused: Sharded::new(workers),
            descriptors: Arc::new(Descriptors::new(plan, workers)),
            pulse: Pulse::new(workers),
            access_log: InForce::default(),
            overload: Overload::new(workers),
        })
    }

    /// Why a worker refuses new requests, if it does.
    pub fn refuses(&self, worker: usize) -> Option<Cause> {
        self.overload.refuses(worker)
    }

    /// Why all workers refuse new requests, if they do.
    pub fn refuses_everywhere(&self) -> Option<Cause> {
        self.overload.refuses_everywhere()
    }

    /// Workers that refuse new requests for that cause.
    pub fn refusing(&self, cause: Cause) -> usize {
        self.overload.refusing(cause)
    }

    /// Takes in by how much the timer of a worker was late. By that worker only.
    pub fn lagged(&self, worker: usize, lag: Duration, config: &OverloadConfig) {
        if let Some(change) = self.overload.lagged(worker, lag, &OverloadSettings::from(config)) {
            self.tell(change);
        }
    }

    /// Takes in what the process uses. By one thread only.
    pub fn used(&self, usage: Usage, config: &OverloadConfig) {
        for change in self.overload.used(usage, &OverloadSettings::from(config)).into_iter().flatten() {
            self.tell(change);
        }
    }

    #[cold]
    fn tell(&self, OverloadChange { cause, worker, refuses, seen }: OverloadChange) {
        let evidence = match cause {
            Cause::Lag => format!("timers {seen:.0} ms late"),
            Cause::Descriptors => format!("{:.1} % of the file descriptors open", seen * 100.0),
            Cause::Memory => format!("{:.1} % of the memory in use", seen * 100.0),
        };
        self.events.publish(EventKind::Overload { cause: cause.name(), worker, refuses, evidence });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_in_words() {
        let process = Process::new(2);
        let mut events = process.events.listen();
        let config = OverloadConfig::default();
        for _ in 0..5 {
            process.lagged(1, Duration::from_millis(750), &config);
            process.used(Usage { descriptors: Some(0.97), memory: None }, &config);
        }
        assert_eq!((process.refuses(0), process.refuses(1)), (Some(Cause::Descriptors), Some(Cause::Lag)));
        assert_eq!(Cause::ALL.map(|cause| process.refusing(cause)), [1, 2, 0]);
        let told: Vec<_> = std::iter::from_fn(|| events.try_recv().ok()).map(|event| event.kind.clone()).collect();
        let kind = |cause, worker, evidence: &str| EventKind::Overload {
            cause,
            worker,
            refuses: true,
            evidence: evidence.into(),
        };
        assert_eq!(
            told,
            [
                kind("descriptors", None, "97.0 % of the file descriptors open"),
                kind("lag", Some(1), "timers 750 ms late"),
            ]
        );
    }
}
