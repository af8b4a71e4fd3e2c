//! What time changes: heartbeats that have not come, and checks that were critical for too long.

use std::time::Instant;

use super::{Catalog, CatalogRules, Now};
use crate::registry::instance::{CheckKind, InstanceKey, Status};

/// What time has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::registry) struct Ticked {
    /// Instances whose heartbeats have not come.
    pub(in crate::registry) expired: Vec<InstanceKey>,
    /// Those that were critical for too long.
    pub(in crate::registry) deregistered: Vec<InstanceKey>,
    /// When to look next; `None` where there is nothing to wait for.
    pub(in crate::registry) next: Option<Instant>,
}

impl Catalog {
    /// Takes in that time has passed.
    pub(in crate::registry) fn tick(&mut self, now: Now, rules: &CatalogRules) -> Ticked {
        let (mut silent, mut others, mut over) = (Vec::new(), 0, Vec::new());
        let mut next = None::<Instant>;
        let mut wait_for = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        for (key, instance) in &self.instances {
            let (mut is_silent, mut is_heard) = (false, false);
            for (check, spec) in instance.checks.iter().zip(&instance.said.checks) {
                let expires = match spec.kind {
                    CheckKind::Ttl(_) => check.status != Status::Critical,
                    CheckKind::Lease { .. } => true,
                    CheckKind::Probe(_) => false,
                };
                if expires && check.due <= now.at {
                    is_silent = true;
                } else if expires {
                    is_heard = true;
                    wait_for(check.due);
                }
                if let (Some(since), Some(after)) = (check.critical_since, spec.deregister_after) {
                    match since + after {
                        at if at <= now.at => over.push(key.clone()),
                        at => wait_for(at),
                    }
                }
            }
            if is_silent {
                silent.push(key.clone());
            } else if is_heard {
                others += 1;
            }
        }
        let expired = self.guard.judge(&silent, others, now.at, rules.guard);
        for key in &expired {
            self.expire(key, now);
        }
        over.dedup();
        for key in &over {
            // A check may have been the second of two.
            let _ = self.deregister(key, now);
        }
        if let Some(review) = self.guard.next_review(rules.guard) {
            wait_for(review);
        }
        // Those that have become critical just now are to be looked at again.
        let critical = expired.iter().filter_map(|key| self.instances.get(key)).flat_map(|it| {
            it.checks
                .iter()
                .zip(&it.said.checks)
                .filter_map(|(check, spec)| Some(check.critical_since? + spec.deregister_after?))
        });
        let next = critical.chain(next).min();
        Ticked { expired, deregistered: over, next }
    }

    fn expire(&mut self, key: &InstanceKey, now: Now) {
        self.counts.expirations += 1;
        let Some(instance) = self.instances.get(key) else { return };
        if instance.said.checks.iter().any(|spec| matches!(spec.kind, CheckKind::Lease { .. })) {
            let _ = self.remove(key, now);
            return;
        }
        let lapsed: Vec<_> = (0..instance.checks.len())
            .filter(|&place| {
                matches!(instance.said.checks[place].kind, CheckKind::Ttl(_)) && instance.checks[place].due <= now.at
            })
            .collect();
        for place in lapsed {
            self.set_check(key, place, Status::Critical, "no heartbeat has come in time", now);
        }
    }
}
