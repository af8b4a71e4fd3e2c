//! The registered instances: a pure state machine. Requests, results of checks and time are passed in, and what it says is looked up.
//!
//! Each change has a number of its own, the index, and each service the index of its last change, so that a client that asks with an index can be
//! answered when there is something new. Heartbeats change nothing but the time until which an instance counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

mod time;
mod probes;
mod recent;

pub(super) use probes::DueProbe;
pub(super) use recent::Action;
pub(super) use time::Ticked;

use probes::ProbeQueue;
use recent::RecentChanges;

use super::expiry_guard::{ExpiryGuard, GuardRules};
use super::instance::{
    Api, CheckKind, CheckSpec, CheckState, EurekaStatus, Instance, InstanceKey, Registration, Status,
};

/// Bytes of what a check says that are kept.
const OUTPUT_BYTES_MAX: usize = 4_096;

/// Bytes of all texts of all instances: a hundred thousand of the ordinary ones. As a file they are several times less than what is read.
const TEXT_BYTES_MAX: usize = 128 * 1024 * 1024;

/// The time, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) at: Instant,
    /// Milliseconds since 1970.
    pub(super) ms: u64,
}

/// What decides about a registration.
#[derive(Clone, Copy, Debug)]
pub(super) struct CatalogRules {
    pub(super) instances_max: usize,
    pub(super) guard: GuardRules,
}

/// Why an instance is not registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotRegistered {
    /// There are as many as there may be.
    Full(usize),
    /// All that is said of instances would be too much; this is how many bytes it may be.
    TooLarge(usize),
    /// A check of that id belongs to another service.
    CheckTaken(String),
}

/// Why what is said of an instance is not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotChanged {
    /// There is no such instance.
    Unknown,
    /// As of [`NotRegistered`].
    TooLarge(usize),
}

/// There is no such instance or check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unknown;

/// What a heartbeat of Eureka's API comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Renewal {
    Done,
    /// The client is to register: it is not known, or says other things by now.
    Register,
}

/// How often something has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CatalogCounts {
    pub(super) registrations: u64,
    pub(super) deregistrations: u64,
    pub(super) expirations: u64,
    pub(super) heartbeats: u64,
}

#[derive(Debug, Default)]
struct Service {
    index: u64,
    members: BTreeSet<InstanceKey>,
}

/// All that is registered.
#[derive(Debug)]
pub(super) struct Catalog {
    instances: BTreeMap<InstanceKey, Arc<Instance>>,
    /// By name in lower case.
    services: BTreeMap<String, Service>,
    /// Where a check of Consul's API is: its instance and its place there.
    checks: HashMap<String, (InstanceKey, usize)>,
    probes: ProbeQueue,
    /// Of all texts of all instances.
    text_bytes: usize,
    /// Of the last change.
    index: u64,
    /// Of the last change after which a service had no instances.
    vanished: u64,
    /// Changes that are to be on disk.
    version: u64,
    guard: ExpiryGuard,
    recent: RecentChanges,
    counts: CatalogCounts,
}

impl Catalog {
    /// An empty one. Its index begins with the time, so that it does not go backwards over a restart that has forgotten everything.
    pub(super) fn new(now: Now) -> Self {
        Self {
            instances: BTreeMap::new(),
            services: BTreeMap::new(),
            checks: HashMap::new(),
            probes: ProbeQueue::default(),
            text_bytes: 0,
            index: now.ms.max(1),
            vanished: now.ms.max(1),
            version: 0,
            guard: ExpiryGuard::default(),
            recent: RecentChanges::default(),
            counts: CatalogCounts::default(),
        }
    }

    /// One with these instances, as they were before the process began, and with an index behind `index`. Their heartbeats count from now.
    pub(super) fn restored(instances: impl IntoIterator<Item = Instance>, index: u64, now: Now) -> Self {
        let mut catalog = Self::new(now);
        catalog.index = catalog.index.max(index + 1);
        catalog.vanished = catalog.index;
        for mut instance in instances {
            (instance.created, instance.modified, instance.renewed_ms) = (catalog.index, catalog.index, now.ms);
            for (check, spec) in instance.checks.iter_mut().zip(&instance.said.checks) {
                check.due = first_due(spec, now.at);
            }
            catalog.put(Arc::new(instance));
        }
        catalog
    }

    pub(super) fn index(&self) -> u64 {
        self.index
    }

    /// A number that grows with each change that is to be on disk.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn counts(&self) -> CatalogCounts {
        self.counts
    }

    /// Instances that are kept although their heartbeats do not come.
    pub(super) fn kept(&self) -> usize {
        self.guard.kept()
    }

    pub(super) fn all(&self) -> impl ExactSizeIterator<Item = &Arc<Instance>> {
        self.instances.values()
    }

    pub(super) fn get(&self, key: &InstanceKey) -> Option<&Arc<Instance>> {
        self.instances.get(key)
    }

    /// The instance that has this check of Consul's API.
    pub(super) fn of_check(&self, check_id: &str) -> Option<&Arc<Instance>> {
        self.instances.get(&self.checks.get(check_id)?.0)
    }

    /// How a check of Consul's API stands.
    pub(super) fn status_of_check(&self, check_id: &str) -> Option<Status> {
        let (key, place) = self.checks.get(check_id)?;
        self.instances.get(key)?.checks.get(*place).map(|check| check.status)
    }

    /// Names in lower case, with what is registered under each.
    pub(super) fn services(&self) -> impl Iterator<Item = (&str, impl Iterator<Item = &Arc<Instance>>)> {
        self.services
            .iter()
            .map(|(name, service)| (name.as_str(), service.members.iter().filter_map(|key| self.instances.get(key))))
    }

    /// What is registered under a name, in capitals or not.
    pub(super) fn of_service(&self, name: &str) -> impl Iterator<Item = &Arc<Instance>> {
        let service = self.services.get(&name.to_ascii_lowercase());
        let members = service.into_iter().flat_map(|service| &service.members);
        members.filter_map(|key| self.instances.get(key))
    }

    /// The index of the last change of a service. Of one that is not there it is that of the last one that vanished, so that nothing has to be
    /// remembered of those.
    pub(super) fn index_of(&self, name: &str) -> u64 {
        self.services.get(&name.to_ascii_lowercase()).map_or(self.vanished, |service| service.index)
    }

    /// Registers an instance, or takes in what is said of it now. Says whether that is news.
    pub(super) fn register(
        &mut self,
        mut said: Registration,
        now: Now,
        rules: &CatalogRules,
    ) -> Result<bool, NotRegistered> {
        let key = said.key();
        let before = self.instances.get(&key).cloned();
        if before.is_none() && self.instances.len() >= rules.instances_max {
            return Err(NotRegistered::Full(rules.instances_max));
        }
        if said.api == Api::Consul
            && let Some(taken) =
                said.checks.iter().find(|check| self.checks.get(&check.id).is_some_and(|(owner, _)| *owner != key))
        {
            return Err(NotRegistered::CheckTaken(taken.id.clone()));
        }
        // What was said from outside outlives a registration.
        if let (Some(info), Some(was)) = (&mut said.eureka, before.as_ref().and_then(|it| it.said.eureka.as_ref()))
            && info.overridden == EurekaStatus::Unknown
        {
            info.overridden = was.overridden;
        }
        let same = before.as_ref().is_some_and(|before| before.said == said);
        let checks = said.checks.iter().map(|spec| {
            let known = before.as_ref().and_then(|before| {
                let mut known = before.said.checks.iter().zip(&before.checks);
                known.find(|(was, _)| was.id == spec.id && was.kind == spec.kind).map(|(_, state)| state)
            });
            state(spec, known, now.at)
        });
        let mut instance = Instance {
            checks: checks.collect(),
            maintenance: before.as_ref().and_then(|before| before.maintenance.clone()),
            created: before.as_ref().map_or(0, |before| before.created),
            modified: before.as_ref().map_or(0, |before| before.modified),
            registered_ms: before.as_ref().map_or(now.ms, |before| before.registered_ms),
            renewed_ms: now.ms,
            changed_ms: before.as_ref().map_or(now.ms, |before| before.changed_ms),
            said,
        };
        let text_before = before.as_ref().map_or(0, |before| before.text_bytes());
        self.has_room(text_before, instance.text_bytes()).map_err(NotRegistered::TooLarge)?;
        self.guard.heard_of(&key);
        self.counts.registrations += 1;
        if same {
            self.instances.insert(key, Arc::new(instance));
            return Ok(false);
        }
        let before_service = before.as_ref().map(|before| before.service());
        if let Some(before) = &before {
            self.forget(before);
            // In Consul's API an id may go from one service to another.
            if before_service.as_deref() != Some(&*instance.service()) {
                self.touch(&before.service());
            }
        }
        self.index += 1;
        self.version += 1;
        instance.changed_ms = now.ms;
        instance.modified = self.index;
        if before.is_none() {
            instance.created = self.index;
        }
        let action = if before.is_some() { Action::Modified } else { Action::Added };
        let instance = Arc::new(instance);
        self.put(Arc::clone(&instance));
        self.recent.note(action, instance, now.at);
        Ok(true)
    }

    /// Ends a registration.
    pub(super) fn deregister(&mut self, key: &InstanceKey, now: Now) -> Result<(), Unknown> {
        self.remove(key, now)?;
        self.guard.heard_of(key);
        self.counts.deregistrations += 1;
        Ok(())
    }

    /// Takes in a heartbeat of Consul's API, and what it says.
    pub(super) fn heartbeat(&mut self, check_id: &str, status: Status, output: &str, now: Now) -> Result<(), Unknown> {
        let (key, place) = self.checks.get(check_id).cloned().ok_or(Unknown)?;
        let instance = self.instances.get_mut(&key).ok_or(Unknown)?;
        let CheckKind::Ttl(ttl) = instance.said.checks.get(place).ok_or(Unknown)?.kind else { return Err(Unknown) };
        let instance = Arc::make_mut(instance);
        instance.renewed_ms = now.ms;
        if let Some(check) = instance.checks.get_mut(place) {
            check.due = now.at + ttl;
        }
        self.counts.heartbeats += 1;
        self.guard.heard_of(&key);
        self.set_check(&key, place, status, output, now);
        Ok(())
    }

    /// Takes in a heartbeat of Eureka's API. `dirty_ms` is when the client has last changed what it says.
    pub(super) fn renew(&mut self, key: &InstanceKey, dirty_ms: Option<u64>, now: Now) -> Renewal {
        let Some(instance) = self.instances.get_mut(key) else { return Renewal::Register };
        let instance = Arc::make_mut(instance);
        instance.renewed_ms = now.ms;
        for (check, spec) in instance.checks.iter_mut().zip(&instance.said.checks) {
            check.due = first_due(spec, now.at);
        }
        self.counts.heartbeats += 1;
        self.guard.heard_of(key);
        let known = instance.said.eureka.as_ref().map_or(0, |info| info.last_dirty_ms);
        if dirty_ms.is_some_and(|dirty| dirty > known) { Renewal::Register } else { Renewal::Done }
    }

    /// Says from outside how an instance of Eureka's API does; `None` leaves that to the instance again, which does as `said`, if it says so.
    pub(super) fn set_override(
        &mut self,
        key: &InstanceKey,
        status: Option<EurekaStatus>,
        said: Option<EurekaStatus>,
        now: Now,
    ) -> Result<(), Unknown> {
        self.edit(key, now, |instance| {
            if let Some(info) = &mut instance.said.eureka {
                info.overridden = status.unwrap_or(EurekaStatus::Unknown);
                info.status = said.unwrap_or(info.status);
            }
        })
    }

    /// Adds to what an instance says of itself.
    pub(super) fn set_meta(
        &mut self,
        key: &InstanceKey,
        values: impl IntoIterator<Item = (String, String)>,
        now: Now,
    ) -> Result<(), NotChanged> {
        let mut instance = self.instances.get(key).map(|it| Instance::clone(it)).ok_or(NotChanged::Unknown)?;
        let before = instance.text_bytes();
        instance.said.meta.extend(values);
        self.has_room(before, instance.text_bytes()).map_err(NotChanged::TooLarge)?;
        self.changed(instance, now);
        Ok(())
    }

    /// Takes an instance out of service, for that reason, or back.
    pub(super) fn set_maintenance(
        &mut self,
        key: &InstanceKey,
        reason: Option<String>,
        now: Now,
    ) -> Result<(), Unknown> {
        self.edit(key, now, |instance| instance.maintenance = reason)
    }

    /// Removes a check.
    pub(super) fn remove_check(&mut self, check_id: &str, now: Now, rules: &CatalogRules) -> Result<(), Unknown> {
        let mut said = self.of_check(check_id).ok_or(Unknown)?.said.clone();
        said.checks.retain(|check| check.id != check_id);
        // It is there already, and has one check less: nothing can be against it.
        self.register(said, now, rules).map_err(|_| Unknown).map(drop)
    }

    /// What has changed lately, the last change of each instance.
    pub(super) fn delta(&mut self, now: Instant) -> Vec<(Action, Arc<Instance>)> {
        self.recent.latest(now)
    }

    fn remove(&mut self, key: &InstanceKey, now: Now) -> Result<(), Unknown> {
        let instance = self.instances.get(key).cloned().ok_or(Unknown)?;
        self.forget(&instance);
        self.touch(&instance.service());
        self.version += 1;
        self.recent.note(Action::Deleted, instance, now.at);
        Ok(())
    }

    fn edit(&mut self, key: &InstanceKey, now: Now, edit: impl FnOnce(&mut Instance)) -> Result<(), Unknown> {
        let mut instance = self.instances.get(key).map(|it| Instance::clone(it)).ok_or(Unknown)?;
        edit(&mut instance);
        self.changed(instance, now);
        Ok(())
    }

    fn set_check(&mut self, key: &InstanceKey, place: usize, status: Status, output: &str, now: Now) {
        let Some(instance) = self.instances.get_mut(key) else { return };
        let instance = Arc::make_mut(instance);
        let Some(check) = instance.checks.get_mut(place) else { return };
        check.streak = 0;
        if check.output != output {
            let others = self.text_bytes - check.output.len();
            // What a check says is the first that there is no room for.
            check.output = if others + output.len() <= TEXT_BYTES_MAX { shortened(output) } else { String::new() };
            self.text_bytes = others + check.output.len();
        }
        if check.status == status {
            return;
        }
        check.status = status;
        check.critical_since = (status == Status::Critical).then_some(now.at);
        let instance = instance.clone();
        self.changed(instance, now);
    }

    /// An instance is another from now on.
    fn changed(&mut self, mut instance: Instance, now: Now) {
        self.index += 1;
        self.version += 1;
        (instance.modified, instance.changed_ms) = (self.index, now.ms);
        let instance = Arc::new(instance);
        self.put(Arc::clone(&instance));
        self.recent.note(Action::Modified, instance, now.at);
    }

    fn put(&mut self, instance: Arc<Instance>) {
        let key = instance.key();
        let service = self.services.entry(instance.service()).or_default();
        service.index = self.index;
        service.members.insert(key.clone());
        if instance.said.api == Api::Consul {
            for (place, check) in instance.said.checks.iter().enumerate() {
                self.checks.insert(check.id.clone(), (key.clone(), place));
            }
        }
        self.probes.put(&instance);
        self.text_bytes += instance.text_bytes();
        if let Some(before) = self.instances.insert(key, instance) {
            self.text_bytes -= before.text_bytes();
        }
    }

    fn forget(&mut self, instance: &Instance) {
        let key = instance.key();
        if let Some(service) = self.services.get_mut(&instance.service()) {
            service.members.remove(&key);
        }
        if instance.said.api == Api::Consul {
            for check in &instance.said.checks {
                self.checks.remove(&check.id);
            }
        }
        self.probes.forget(instance);
        if let Some(before) = self.instances.remove(&key) {
            self.text_bytes -= before.text_bytes();
        }
    }

    /// Whether texts of so many bytes may take the place of others; if not, how many there may be.
    fn has_room(&self, before: usize, after: usize) -> Result<(), usize> {
        let fits = after <= before || self.text_bytes - before + after <= TEXT_BYTES_MAX;
        if fits { Ok(()) } else { Err(TEXT_BYTES_MAX) }
    }

    /// A service has lost an instance.
    fn touch(&mut self, name: &str) {
        self.index += 1;
        let Some(service) = self.services.get_mut(name) else { return };
        service.index = self.index;
        if service.members.is_empty() {
            self.services.remove(name);
            self.vanished = self.index;
        }
    }
}

/// When the first heartbeat is to have come, or the first probe is made.
fn first_due(spec: &CheckSpec, now: Instant) -> Instant {
    now + spec.kind.ttl().unwrap_or_default()
}

fn state(spec: &CheckSpec, known: Option<&CheckState>, now: Instant) -> CheckState {
    match (known, spec.kind.ttl()) {
        (Some(known), Some(_)) => CheckState { due: first_due(spec, now), ..known.clone() },
        (Some(known), None) => known.clone(),
        (None, _) => CheckState {
            status: spec.initial,
            output: String::new(),
            due: first_due(spec, now),
            critical_since: (spec.initial == Status::Critical).then_some(now),
            streak: 0,
            is_running: false,
        },
    }
}

fn shortened(text: &str) -> String {
    let mut end = text.len().min(OUTPUT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests;
