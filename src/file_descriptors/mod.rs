//! File descriptors: how many the process may open, what they are kept for, and what may take the next one.
//!
//! They are dealt out before they are taken, so that a client which is accepted can be served and every other client waits in the
//! kernel's queue. A part is kept for the process itself: its files, the admin address, health checks. The rest is divided among the workers, and
//! each deals out its own share without asking the others ([`DescriptorRoom`]).
//!
//! Decision 13 (`docs/decisions/0013-descriptors-are-dealt-out.md`) says why it is done this way.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

mod limit;
mod connect_failure;
mod share;

pub use connect_failure::{has_route, is_ours};
pub use limit::{DescriptorLimit, raise};
pub use share::{DescriptorRoom, DescriptorSeat, DescriptorSeats, Extra, HeldDescriptor};

/// Descriptors of a worker's event loop, with some to spare: for epoll, its waker and the signals.
const EVENT_LOOP: u64 = 4;

/// How the descriptors are divided. Made once, at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorPlan {
    /// How many the process may have open. `None`: not known, so that nothing is dealt out and the system refuses what is too much.
    pub limit: Option<u64>,
    /// What a worker deals out: to clients, to connections to backends, and to pipes between them.
    pub share: u32,
    /// The part of a share that clients do not take, so that a client may have several connections to backends.
    margin: u32,
    /// Client connections that fit, over all workers.
    pub connections: u64,
    /// Connections to the admin address at a time.
    pub admin: usize,
    /// Health checks at a time.
    pub checks: usize,
}

impl DescriptorPlan {
    /// Connections to the admin address at a time, where there is room for all.
    pub const ADMIN_MAX: usize = 64;
    /// Health checks at a time, where there is room for all. With a timeout of 2 s and no answer at all, a thousand backends still
    /// get each of theirs within 8 s.
    pub const CHECKS_MAX: usize = 256;
    /// What the process keeps for itself, where there is room for that: admin connections, checks, and as many for files and look-ups
    /// of names as both.
    const OWN_MAX: u64 = 2 * (Self::ADMIN_MAX + Self::CHECKS_MAX) as u64;
    /// The least that a worker deals out: two clients, each with a connection to a backend.
    const SHARE_MIN: u64 = 4;

    /// There is no limit.
    pub const UNLIMITED: Self = Self {
        limit: None,
        share: u32::MAX / 4,
        margin: 0,
        connections: u64::MAX,
        admin: Self::ADMIN_MAX,
        checks: Self::CHECKS_MAX,
    };

    /// Divides `limit`, of which `open` are taken already, among `workers`. `percent`: new requests are refused when so many of a
    /// hundred are open, so that what is dealt out stays below it.
    pub fn new(limit: Option<u64>, open: u64, workers: usize, percent: Option<u8>) -> Self {
        let Some(limit) = limit else { return Self::UNLIMITED };
        let workers = workers.max(1) as u64;
        let usable = match percent.filter(|&percent| percent < 100) {
            Some(percent) => (limit.saturating_mul(percent.into()) / 100).saturating_sub(1),
            None => limit,
        };
        let taken = open + workers * EVENT_LOOP;
        let free = usable.saturating_sub(taken);
        // What lies above the percentage is kept as well.
        let above = limit.saturating_sub(usable.max(taken));
        let own = (free + above) / 4;
        let own = own.min(Self::OWN_MAX);
        let dealt = free.saturating_sub(own.saturating_sub(above));
        let share = (dealt / workers).clamp(Self::SHARE_MIN, u64::from(u32::MAX / 4));
        let margin = (share / 8).max(1);
        let quarter = |most: usize| usize::try_from(own / 4).unwrap_or(most).clamp(2, most);
        Self {
            limit: Some(limit),
            share: share as u32,
            margin: margin as u32,
            connections: (share - margin) / 2 * workers,
            admin: quarter(Self::ADMIN_MAX),
            checks: quarter(Self::CHECKS_MAX),
        }
    }
}

/// How the process stands with its descriptors: what workers tell each other, and what an operator sees.
#[derive(Debug)]
pub struct Descriptors {
    /// How they are divided.
    pub plan: DescriptorPlan,
    workers: Box<[Board]>,
    /// Listening sockets that are not accepted on because no worker has room.
    waiting: AtomicUsize,
}

/// What a worker tells. Written by that worker alone.
#[derive(Debug, Default)]
struct Board {
    /// Clients that it takes at a time, as of now.
    takes: AtomicUsize,
    accept_waits: AtomicU64,
    backend_waits: AtomicU64,
    exhausted: AtomicU64,
}

/// What has happened for want of descriptors and of other things that the process has only so many of, over all workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorCounts {
    /// Times that accepting was put off.
    pub accept_waits: u64,
    /// Requests that have waited before a connection to a backend was made.
    pub backend_waits: u64,
    /// Times that the system refused a connection to a backend for a reason of this process's own.
    pub exhausted: u64,
}

impl Descriptors {
    /// Divided by `plan` among `workers`.
    pub fn new(plan: DescriptorPlan, workers: usize) -> Self {
        let board = || Board { takes: AtomicUsize::new(usize::MAX), ..Board::default() };
        Self { plan, workers: (0..workers.max(1)).map(|_| board()).collect(), waiting: AtomicUsize::new(0) }
    }

    /// Clients that a worker takes at a time, as of now.
    pub fn takes(&self, worker: usize) -> usize {
        self.board(worker).takes.load(Relaxed)
    }

    /// Whether clients wait to be accepted because no worker has room.
    pub fn is_short(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// Listening sockets that are not accepted on at the moment, one for each worker of a listener.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// A worker does not accept on one of its listening sockets until what this returns is dropped.
    pub fn wait(&self, worker: usize) -> DescriptorWaiting<'_> {
        self.waiting.fetch_add(1, Relaxed);
        self.board(worker).accept_waits.fetch_add(1, Relaxed);
        DescriptorWaiting(self)
    }

    /// What has happened so far.
    pub fn counts(&self) -> DescriptorCounts {
        let sum = |of: fn(&Board) -> &AtomicU64| self.workers.iter().map(|board| of(board).load(Relaxed)).sum();
        DescriptorCounts {
            accept_waits: sum(|board| &board.accept_waits),
            backend_waits: sum(|board| &board.backend_waits),
            exhausted: sum(|board| &board.exhausted),
        }
    }

    fn board(&self, worker: usize) -> &Board {
        &self.workers[worker.min(self.workers.len() - 1)]
    }
}

/// Says that clients wait, until it is dropped.
#[derive(Debug)]
pub struct DescriptorWaiting<'a>(&'a Descriptors);

impl Drop for DescriptorWaiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

/// What is said of a connection for which there was no room in time.
pub fn no_room() -> io::Error {
    io::Error::new(io::ErrorKind::QuotaExceeded, "no file descriptor was free in time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_known_limit_nothing_is_dealt_out() {
        assert_eq!(DescriptorPlan::new(None, 20, 4, Some(95)), DescriptorPlan::UNLIMITED);
    }

    #[test]
    fn a_part_is_kept_and_the_rest_is_divided() {
        // What each row is about: the limit, how many are open, the workers, the percentage; clients that fit, and the admin's and checks' part.
        for (limit, open, workers, percent, connections, admin, checks) in [
            (128, 20, 2, Some(95), 32, 6, 6),
            (256, 20, 2, Some(95), 74, 14, 14),
            (1_024, 20, 2, Some(95), 326, 62, 62),
            (1_024, 20, 2, None, 326, 62, 62),
            (1_048_576, 20, 8, Some(95), 435_792, 64, 160),
            // As good as nothing: it starts all the same, and says how little fits.
            (40, 30, 4, Some(95), 4, 2, 2),
        ] {
            let plan = DescriptorPlan::new(Some(limit), open, workers, percent);
            let case = format!("{limit} {percent:?}: {plan:?}");
            assert_eq!((plan.connections, plan.admin, plan.checks), (connections, admin, checks), "{case}");
            let dealt = u64::from(plan.share) * workers as u64;
            if limit > 100 {
                let own = (plan.admin + plan.checks) as u64;
                assert!(open + workers as u64 * EVENT_LOOP + dealt + 2 * own <= limit, "{case}");
                let percent = u64::from(percent.unwrap_or(100));
                assert!((open + dealt) * 100 < limit * percent, "refusing would begin: {case}");
            }
        }
    }
}
