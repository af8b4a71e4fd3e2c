use std::rc::Rc;
use std::time::Duration;

use crate::backend::{BackendId, Connected};
use crate::config::PoolConfig;

use super::Link;

/// A worker's idle connections, by backend. The connection used last is taken first: its memory is warm, and the others can
/// grow old enough to be closed.
#[derive(Debug, Default)]
pub(super) struct Pools(Vec<PoolSlot>);

/// The idle connections to one backend, the oldest first.
#[derive(Debug, Default)]
struct PoolSlot {
    epoch: u32,
    idle_timeout_ms: u64,
    idle: Vec<Idle>,
}

/// What of a pool's configuration an attempt brings along: which idle connections are kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeptIdle {
    max_idle: usize,
    idle_timeout: Duration,
}

impl KeptIdle {
    pub(super) fn of(config: &PoolConfig) -> Self {
        Self { max_idle: config.max_idle, idle_timeout: config.idle_timeout }
    }
}

/// A connection that waits for its next request.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) link: Rc<Link>,
    pub(super) since_ms: u64,
}

impl Pools {
    /// Takes a connection that is open. One that was made with other TLS is closed: an exchange under an older configuration
    /// may have given it back.
    pub(super) fn take(&mut self, id: BackendId, identity: u64) -> Option<Rc<Link>> {
        let slot = self.0.get_mut(id.slot as usize).filter(|slot| slot.epoch == id.epoch)?;
        while let Some(idle) = slot.idle.pop() {
            if idle.link.identity() == identity && idle.link.is_open() {
                return Some(idle.link);
            }
        }
        None
    }

    /// Keeps a connection, unless there are enough.
    pub(super) fn put(&mut self, id: BackendId, kept: KeptIdle, idle: Idle) {
        if kept.max_idle == 0 {
            return;
        }
        let index = id.slot as usize;
        if self.0.len() <= index {
            self.0.resize_with(index + 1, PoolSlot::default);
        }
        let slot = &mut self.0[index];
        if slot.epoch != id.epoch {
            // Another backend had the slot; its connections are no use to this one.
            *slot = PoolSlot { epoch: id.epoch, ..PoolSlot::default() };
        }
        slot.idle_timeout_ms = kept.idle_timeout.as_millis() as u64;
        if slot.idle.len() >= kept.max_idle {
            slot.idle.remove(0);
        }
        slot.idle.push(idle);
    }

    /// Closes the oldest, if a request waits for it. Says whether there was one.
    pub(super) fn spare(&mut self, id: BackendId) -> bool {
        let Some(slot) = self.0.get_mut(id.slot as usize).filter(|slot| slot.epoch == id.epoch) else { return false };
        let missed = slot.idle.first().is_some_and(|idle| idle.link.connected(Connected::is_missed));
        if missed {
            slot.idle.remove(0);
        }
        missed
    }

    /// Closes the oldest of all. Says whether there was one.
    pub(super) fn shed(&mut self) -> bool {
        let oldest = self.0.iter_mut().filter(|slot| !slot.idle.is_empty()).min_by_key(|slot| slot.idle[0].since_ms);
        oldest.map(|slot| slot.idle.remove(0)).is_some()
    }

    /// Closes what is old and forgets what is closed.
    pub(super) fn sweep(&mut self, now_ms: u64) {
        for slot in &mut self.0 {
            let oldest = now_ms.saturating_sub(slot.idle_timeout_ms);
            slot.idle.retain(|idle| idle.since_ms >= oldest && !idle.link.is_old(now_ms) && idle.link.is_open());
        }
    }

    /// Closes the connections to all backends but those that `keep` knows, and those that were made with other TLS than it
    /// says.
    pub(super) fn retain(&mut self, keep: impl Fn(BackendId) -> Option<u64>) {
        for (index, slot) in self.0.iter_mut().enumerate() {
            match keep(BackendId { slot: index as u32, epoch: slot.epoch }) {
                Some(identity) => slot.idle.retain(|idle| idle.link.identity() == identity),
                None => slot.idle = Vec::new(),
            }
        }
    }

    /// Closes the connections to that backend.
    pub(super) fn let_go(&mut self, id: BackendId) {
        if let Some(slot) = self.0.get_mut(id.slot as usize).filter(|slot| slot.epoch == id.epoch) {
            slot.idle = Vec::new();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|slot| slot.idle.len()).sum()
    }
}
