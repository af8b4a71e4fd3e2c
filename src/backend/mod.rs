//! One address of an upstream, and what is known about it.
//!
//! A [`Backend`] is made anew when a roster is; the [`BackendState`] it points at outlives rosters and reloads and is found
//! again by its identity, upstream name and address. A request in flight is counted by holding a
//! [`Lease`], so that the count comes back by dropping.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustls::pki_types::ServerName;

use crate::config::{Address, UpstreamName};
use crate::telemetry::metrics::{BackendMetrics, Sharded};

pub mod set;
pub mod document;
pub mod admission;
pub mod operator_state;
pub mod ewma;
pub mod health;
mod lease;
pub mod limits;
pub mod queue;
mod capacity;
mod connections;
pub mod outlier;
pub mod slow_start;

pub use capacity::UpstreamRoom;
pub use connections::Connected;
pub use lease::Lease;
pub use set::{BackendSet, Instance};

use connections::Connections;
use health::Health;
use limits::Permits;
use operator_state::ByHand;
use outlier::Outlier;
use slow_start::Ramp;

/// One address of an upstream, as a roster holds it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Backend {
    /// 0 to 65 535. Strategies that ignore weights ignore it. A backend of weight 0 is in no candidate list.
    pub weight: u16,
    /// What its source says of it. By the time that a strategy sees it, its tier and zone have been seen to, and `weight` is what
    /// counts.
    pub instance: Arc<Instance>,
    /// What is known about the address.
    pub state: Arc<BackendState>,
}

/// Numbers a backend in this process: an index into per-worker tables. Taken again once the backend and every lease on it
/// are gone; `epoch` tells the holders apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackendId {
    /// Small and dense.
    pub slot: u32,
    /// How often the slot was given out before.
    pub epoch: u32,
}

/// What is known about an address. Outlives rosters and reloads. On the request path, atomics only.
///
/// The count of requests in flight comes first, beside the reference counts of the `Arc` around it: a lease writes both, and
/// so touches one cache line. Its limit is beside it.
#[derive(Debug)]
#[repr(C)]
pub struct BackendState {
    in_flight: Permits,
    /// How many that may be. Of the moment, and not of a snapshot: requests of the last snapshot and of the next ask the same
    /// backend, and one limit holds for all of them.
    limit: AtomicU32,
    /// What it shares with the other backends of its upstream.
    room: Arc<UpstreamRoom>,
    /// Its number in this process.
    pub id: BackendId,
    /// Whose backend it is.
    pub upstream: UpstreamName,
    /// Where it is.
    pub address: Address,
    /// The name that its certificate must be for, where its source says one.
    pub server_name: Option<ServerName<'static>>,
    /// What it has been asked and has answered, a shard per worker.
    pub metrics: Sharded<BackendMetrics>,
    /// What active checks have made of it.
    pub health: Health,
    connections: Connections,
    /// What its traffic has made of it.
    pub outlier: Outlier,
    ramp: Mutex<Ramp>,
    /// What operators have set for it.
    pub by_hand: Arc<ByHand>,
    /// Gives the slot of `id` back.
    _slot: SlotHold,
}

impl BackendState {
    /// The state of an address that nothing is known about yet. `shards` is the number of workers.
    pub fn new(upstream: UpstreamName, address: Address, shards: usize) -> Arc<Self> {
        let fresh = (Health::default(), Ramp::full());
        Self::with(upstream, (address, None), shards, fresh, Arc::default(), Arc::default())
    }

    /// The same where checks begin with this health, its slow start like that, others of the upstream share this room, and
    /// operators have set something already. An ejection by hand among it takes effect.
    pub fn with(
        upstream: UpstreamName,
        (address, server_name): (Address, Option<ServerName<'static>>),
        shards: usize,
        (health, ramp): (Health, Ramp),
        room: Arc<UpstreamRoom>,
        by_hand: Arc<ByHand>,
    ) -> Arc<Self> {
        let outlier = Outlier::new(shards);
        if let Some(mark) = by_hand.look().get(operator_state::Lever::Eject) {
            outlier.history().eject_by_hand(Instant::now(), mark.until.map(|until| until.instant));
        }
        let hold = slots::take();
        Arc::new(Self {
            in_flight: Permits::default(),
            limit: AtomicU32::new(Permits::UNLIMITED),
            room,
            id: hold.id,
            upstream,
            address,
            server_name,
            metrics: Sharded::new(shards),
            health,
            connections: Connections::default(),
            outlier,
            ramp: Mutex::new(ramp),
            by_hand,
            _slot: hold,
        })
    }

    /// Requests that hold a lease on it now, over all workers.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.in_use()
    }

    /// How many of those there may be; [`Permits::UNLIMITED`] for any number.
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Whether there may be one more.
    pub fn has_room(&self) -> bool {
        self.in_flight.has_room(self.limit())
    }

    /// Connections open to it, in use and idle, over all workers. Those of health checks do not count.
    pub fn connections(&self) -> u32 {
        self.connections.open()
    }

    /// How many of those there may be; [`Permits::UNLIMITED`] for any number.
    pub fn connections_limit(&self) -> u32 {
        self.connections.limit()
    }

    /// From now on there may be so many requests in flight and so many connections. What is above that already goes on to
    /// its end. Control plane only.
    pub fn set_limits(&self, in_flight: u32, connections: u32) {
        self.limit.store(in_flight, Ordering::SeqCst);
        self.connections.set_limit(connections);
    }

    /// Where it stands in its slow start. A lock, for the control plane only.
    pub fn ramp(&self) -> MutexGuard<'_, Ramp> {
        self.ramp.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

use slots::SlotHold;

/// Gives out backend numbers. Control plane only: a lock, taken when a backend is first seen and when it is forgotten.
mod slots {
    use super::BackendId;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    static FREE: Mutex<Free> = Mutex::new(Free { next: 0, returned: Vec::new() });

    struct Free {
        next: u32,
        returned: Vec<BackendId>,
    }

    fn free() -> MutexGuard<'static, Free> {
        FREE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that no other backend has until this is dropped.
    #[derive(Debug)]
    pub(super) struct SlotHold {
        pub(super) id: BackendId,
    }

    pub(super) fn take() -> SlotHold {
        let mut free = free();
        let id = free.returned.pop().unwrap_or_else(|| {
            free.next += 1;
            BackendId { slot: free.next - 1, epoch: 0 }
        });
        SlotHold { id }
    }

    impl Drop for SlotHold {
        fn drop(&mut self) {
            free().returned.push(BackendId { slot: self.id.slot, epoch: self.id.epoch.wrapping_add(1) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_given_out_again_under_another_epoch() {
        let make = |port: u16| BackendState::new("u".into(), Address::Ip(([127, 0, 0, 1], port).into()), 1);
        let (a, b) = (make(1), make(2));
        assert_ne!(a.id.slot, b.id.slot);
        let before = a.id;
        drop(a);
        // Other tests take slots too, so look for ours among a few.
        let again: Vec<_> = (10..40).map(make).collect();
        for other in &again {
            assert_ne!(other.id, before);
        }
    }
}
