//! Checks that isobar runs: which are due, and what they came to.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::{Catalog, Now};
use crate::registry::instance::{CheckKind, Instance, InstanceKey, Probe, Status};

/// A probe that is due.
#[derive(Clone, Debug)]
pub(in crate::registry) struct DueProbe {
    pub(in crate::registry) key: InstanceKey,
    pub(in crate::registry) check_id: String,
    pub(in crate::registry) probe: Probe,
}

/// When the next probe of each check is due that is not under way: the instance, and the place of the check there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ProbeQueue(BTreeSet<(Instant, InstanceKey, usize)>);

impl ProbeQueue {
    pub(super) fn put(&mut self, instance: &Instance) {
        self.0.extend(waiting(instance));
    }

    pub(super) fn forget(&mut self, instance: &Instance) {
        for probe in waiting(instance) {
            self.0.remove(&probe);
        }
    }
}

fn waiting(instance: &Instance) -> impl Iterator<Item = (Instant, InstanceKey, usize)> {
    let checks = instance.said.checks.iter().zip(&instance.checks).enumerate();
    let waiting = checks.filter(|(_, (spec, check))| matches!(spec.kind, CheckKind::Probe(_)) && !check.is_running);
    waiting.map(|(place, (_, check))| (check.due, instance.key(), place))
}

impl Catalog {
    /// Probes that are due, of which each is taken once until its result is there; and when the next one is.
    pub(in crate::registry) fn take_due_probes(
        &mut self,
        most: usize,
        now: Instant,
    ) -> (Vec<DueProbe>, Option<Instant>) {
        let mut due = Vec::new();
        while due.len() < most && self.probes.0.first().is_some_and(|(at, ..)| *at <= now) {
            let Some((_, key, place)) = self.probes.0.pop_first() else { break };
            let Some(instance) = self.instances.get_mut(&key) else { continue };
            let instance = Arc::make_mut(instance);
            let (Some(spec), Some(check)) = (instance.said.checks.get(place), instance.checks.get_mut(place)) else {
                continue;
            };
            if let CheckKind::Probe(probe) = &spec.kind {
                check.is_running = true;
                due.push(DueProbe { key, check_id: spec.id.clone(), probe: probe.clone() });
            }
        }
        (due, self.probes.0.first().map(|(at, ..)| *at))
    }

    /// Takes in what a probe came to.
    pub(in crate::registry) fn probed(&mut self, probe: &DueProbe, status: Status, output: &str, now: Now) {
        let Some(instance) = self.instances.get_mut(&probe.key) else { return };
        let specs = &instance.said.checks;
        let asked = CheckKind::Probe(probe.probe.clone());
        // What was asked under another registration says nothing of this one.
        let Some(place) = specs.iter().position(|spec| spec.id == probe.check_id && spec.kind == asked) else { return };
        let (passes_needed, failures_needed) = (specs[place].passes_needed, specs[place].failures_needed);
        let instance = Arc::make_mut(instance);
        let Some(check) = instance.checks.get_mut(place).filter(|check| check.is_running) else { return };
        check.is_running = false;
        check.due = now.at + probe.probe.interval;
        let needed = match status {
            status if status == check.status => 0,
            Status::Passing | Status::Warning => passes_needed,
            Status::Critical => failures_needed,
        };
        check.streak = if status == check.status { 0 } else { check.streak + 1 };
        let is_believed = check.streak >= needed;
        self.probes.put(instance);
        if is_believed {
            self.set_check(&probe.key, place, status, output, now);
        }
    }
}
