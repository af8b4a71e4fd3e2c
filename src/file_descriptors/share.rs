//! What one worker deals out.
//!
//! A client that is accepted takes two descriptors: one for its connection, one for a connection to a backend, which it can have at any time
//! from then on. That is its first [`DescriptorSeat`]. With HTTP/2, or a hedged request, it may want several at a time: those beyond
//! the first are [`Extra`]s, and half of the share at most is for them, whatever clients do. A client has no more of them than are left for the others, so that
//! the hungriest of `n` clients has about one in `n + 1`: the dynamic thresholds of Choudhury and Hahne (1998).
//!
//! A client between two requests rests: it keeps its connection alone, and its second descriptor is for others. When it asks again and
//! none is free, it waits for one, and the sweep ends connections of clients that have rested for a while ([`DescriptorRoom::wanted`]).
//!
//! Idle connections to backends stand in no account but that of what is open: when the share is used up, they are closed first.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::Notify;

use super::{DescriptorPlan, Descriptors};

/// How often a request that waits for a descriptor looks whether other clients have left one.
const LOOK: Duration = Duration::from_millis(50);

/// A worker's share.
#[derive(Debug)]
pub struct DescriptorRoom {
    process: Arc<Descriptors>,
    worker: usize,
    /// Clients that were accepted and have not gone.
    clients: Cell<u32>,
    /// Those of them that have had a connection to a backend and have none now: they are between two requests.
    resting: Cell<u32>,
    /// Requests of clients that were resting, which wait for a descriptor.
    wanting: Cell<u32>,
    /// Tells the first of those that one is free.
    freed: Notify,
    /// Open descriptors of the share.
    held: Cell<u32>,
    /// Seats beyond each client's first, pipes, and connections that exchanges share.
    extras: Cell<u32>,
}

impl DescriptorRoom {
    /// The share of worker number `worker`.
    pub fn new(process: Arc<Descriptors>, worker: usize) -> Rc<Self> {
        let room = Rc::new(Self { process, worker, ..Self::default() });
        room.tell();
        room
    }

    /// Whether all of it is open.
    pub fn is_full(&self) -> bool {
        self.held.get() >= self.plan().share
    }

    /// Counts one as open until it is dropped.
    pub fn hold(self: &Rc<Self>) -> HeldDescriptor {
        self.held.set(self.held.get() + 1);
        HeldDescriptor(Rc::clone(self))
    }

    /// A place for a pipe, which is two of them; `None` where a body is better copied. Half of what is for extras at most.
    pub fn pipe(self: &Rc<Self>) -> Option<Extra> {
        let few = self.extras.get() + 2 <= self.plan().share / 4 && self.held.get() + 2 <= self.plan().share;
        (few && self.left() >= 2).then(|| self.extra(2, 2))
    }

    /// A place for a connection that exchanges share. It is always granted: without it none of them could be served, and each of them
    /// leaves its own seat empty.
    pub fn session(self: &Rc<Self>) -> Extra {
        self.extra(1, 1)
    }

    /// A request has waited for a descriptor before its connection was made.
    pub fn waited(&self) {
        self.process.board(self.worker).backend_waits.fetch_add(1, Relaxed);
    }

    /// The system has refused a connection to a backend for a reason of our own.
    pub fn exhausted(&self) {
        self.process.board(self.worker).exhausted.fetch_add(1, Relaxed);
    }

    fn plan(&self) -> &DescriptorPlan {
        &self.process.plan
    }

    /// What clients have a right to: each to its connection, and each that is not resting to one to a backend.
    fn promised(&self) -> u32 {
        2 * self.clients.get() - self.resting.get()
    }

    /// Whether nothing is left that a client which was resting could have.
    fn is_dealt_out(&self) -> bool {
        self.promised() + self.extras.get() >= self.plan().share
    }

    /// How many connections of clients that rest have to end, so that the requests that wait for a descriptor have one. Also those that
    /// another worker has accepted for this one, going by what was told of it a moment ago.
    pub fn wanted(&self) -> usize {
        let overdrawn = (self.promised() + self.extras.get()).saturating_sub(self.plan().share);
        self.wanting.get().max(overdrawn) as usize
    }

    /// Extras that may still be taken: half of the share is for them at most, and none that clients have a right to.
    fn left(&self) -> u32 {
        let DescriptorPlan { share, .. } = *self.plan();
        (share / 2).min(share.saturating_sub(self.promised())).saturating_sub(self.extras.get())
    }

    fn extra(self: &Rc<Self>, count: u32, open: u32) -> Extra {
        self.held.set(self.held.get() + open);
        self.extras.set(self.extras.get() + count);
        self.tell();
        Extra { room: Rc::clone(self), count, open }
    }

    /// Whether a client that has `own` extras may have another.
    fn has_extra(&self, own: u32) -> bool {
        own < self.left()
    }

    /// Tells how many clients there is room for: a new one has a right to two, and one that rests leaves one. It changes with every request,
    /// which does not tell of it: the caller that wants to know calls this first.
    pub fn tell(&self) {
        let DescriptorPlan { share, margin, .. } = *self.plan();
        let ones = share.saturating_sub(self.extras.get().max(margin)) + self.resting.get();
        let takes = (ones / 2).max(1) as usize;
        let board = &self.process.board(self.worker).takes;
        if board.load(Relaxed) != takes {
            board.store(takes, Relaxed);
        }
    }
}

impl Default for DescriptorRoom {
    /// One without an end, of a process with one worker.
    fn default() -> Self {
        let process = Arc::new(Descriptors::new(DescriptorPlan::UNLIMITED, 1));
        Self {
            process,
            worker: 0,
            clients: Cell::new(0),
            resting: Cell::new(0),
            wanting: Cell::new(0),
            freed: Notify::new(),
            held: Cell::new(0),
            extras: Cell::new(0),
        }
    }
}

/// An open descriptor. To be dropped after it was closed.
#[derive(Debug)]
pub struct HeldDescriptor(Rc<DescriptorRoom>);

impl Drop for HeldDescriptor {
    fn drop(&mut self) {
        self.0.held.set(self.0.held.get() - 1);
    }
}

/// Descriptors that no client has a right to. To be dropped after they were closed.
#[derive(Debug)]
pub struct Extra {
    room: Rc<DescriptorRoom>,
    count: u32,
    /// How many of them are counted as open here.
    open: u32,
}

impl Drop for Extra {
    fn drop(&mut self) {
        self.room.held.set(self.room.held.get() - self.open);
        self.room.extras.set(self.room.extras.get() - self.count);
        self.room.tell();
    }
}

/// What a client has of a worker's share for connections to backends.
#[derive(Debug)]
pub struct DescriptorSeats {
    room: Rc<DescriptorRoom>,
    used: Cell<u32>,
    /// Whether the client has had one, and has none.
    rests: Cell<bool>,
    /// Requests that wait for one.
    waiting: Cell<u32>,
    freed: Notify,
}

/// The right of an exchange to have a connection to a backend open. Given back by dropping.
#[derive(Debug)]
pub struct DescriptorSeat(Rc<DescriptorSeats>);

impl DescriptorSeats {
    /// Of a client that was accepted: its first is there for it. Its connection counts as open from here.
    pub fn new(room: &Rc<DescriptorRoom>) -> Rc<Self> {
        Rc::new(Self::at(Rc::clone(room)))
    }

    fn at(room: Rc<DescriptorRoom>) -> Self {
        room.clients.set(room.clients.get() + 1);
        room.held.set(room.held.get() + 1);
        Self { room, used: Cell::new(0), rests: Cell::new(false), waiting: Cell::new(0), freed: Notify::new() }
    }

    /// Whether there is one now.
    pub fn fits(&self) -> bool {
        // Requests that wait already come first.
        self.fits_in_turn() && !(self.asks_again() && self.room.wanting.get() > 0)
    }

    /// The same for a request whose turn it is.
    fn fits_in_turn(&self) -> bool {
        match self.used.get() {
            0 => !self.rests.get() || !self.room.is_dealt_out(),
            used => self.room.has_extra(used - 1),
        }
    }

    /// Whether its next would be its first after a rest.
    fn asks_again(&self) -> bool {
        self.used.get() == 0 && self.rests.get()
    }

    /// Takes one, if there is one now.
    pub fn take(self: &Rc<Self>) -> Option<DescriptorSeat> {
        self.fits().then(|| self.seat())
    }

    fn seat(self: &Rc<Self>) -> DescriptorSeat {
        let used = self.used.get();
        self.used.set(used + 1);
        if self.rests.replace(false) {
            self.room.resting.set(self.room.resting.get() - 1);
        }
        if used > 0 {
            self.room.extras.set(self.room.extras.get() + 1);
            self.room.tell();
        }
        DescriptorSeat(Rc::clone(self))
    }

    /// Takes one as soon as there is one. The caller has a deadline.
    pub async fn wait(self: &Rc<Self>) -> DescriptorSeat {
        if let Some(seat) = self.take() {
            return seat;
        }
        self.room.waited();
        let again = self.asks_again();
        let (waiting, freed) = match again {
            true => (&self.room.wanting, &self.room.freed),
            false => (&self.waiting, &self.freed),
        };
        let _waits = WaitingGuard::at(waiting);
        loop {
            // What is told of comes at once; what others leave is looked for.
            let _ = tokio::time::timeout(LOOK, freed.notified()).await;
            if self.fits_in_turn() {
                return self.seat();
            }
        }
    }

    /// The share that they are of.
    pub fn room(&self) -> &Rc<DescriptorRoom> {
        &self.room
    }
}

impl Default for DescriptorSeats {
    /// Of the one client of a [`DescriptorRoom`] without an end.
    fn default() -> Self {
        Self::at(Rc::default())
    }
}

impl Drop for DescriptorSeats {
    fn drop(&mut self) {
        if self.rests.get() {
            self.room.resting.set(self.room.resting.get() - 1);
        }
        self.room.clients.set(self.room.clients.get() - 1);
        self.room.held.set(self.room.held.get() - 1);
    }
}

/// Counts a request that waits until it is dropped.
struct WaitingGuard<'a>(&'a Cell<u32>);

impl<'a> WaitingGuard<'a> {
    fn at(count: &'a Cell<u32>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Drop for DescriptorSeat {
    fn drop(&mut self) {
        let DescriptorSeats { room, used, rests, waiting, freed } = &*self.0;
        used.set(used.get() - 1);
        if used.get() > 0 {
            room.extras.set(room.extras.get() - 1);
            room.tell();
        } else {
            rests.set(true);
            room.resting.set(room.resting.get() + 1);
            if room.wanting.get() > 0 {
                room.freed.notify_one();
            }
        }
        if waiting.get() > 0 {
            freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A worker that deals out `share`.
    fn room(share: u32) -> Rc<DescriptorRoom> {
        let plan = DescriptorPlan { limit: Some(1_000), share, margin: share / 8, ..DescriptorPlan::UNLIMITED };
        DescriptorRoom::new(Arc::new(Descriptors::new(plan, 1)), 0)
    }

    fn all(seats: &Rc<DescriptorSeats>) -> Vec<DescriptorSeat> {
        std::iter::from_fn(|| seats.take()).take(1_000).collect()
    }

    #[test]
    fn every_client_has_one_whatever_the_others_have() {
        let room = room(80);
        assert_eq!(room.process.takes(0), 35);
        let hungry: Vec<_> = (0..8).map(|_| DescriptorSeats::new(&room)).collect();
        let taken: Vec<_> = hungry.iter().map(all).collect();
        // Half of the share in all.
        let counts: Vec<_> = taken.iter().map(Vec::len).collect();
        assert_eq!(counts, [21, 11, 6, 4, 2, 2, 1, 1]);
        assert_eq!(room.extras.get(), 40);
        // A client is accepted as long as there is room for it and its first connection.
        assert_eq!(room.process.takes(0), 20);
        let late = DescriptorSeats::new(&room);
        let first = late.take().unwrap();
        assert!(late.take().is_none(), "nothing is left beyond that");
        drop(taken);
        // Eight rest, and take one each.
        room.tell();
        assert_eq!((room.extras.get(), room.process.takes(0)), (0, (70 + 8) / 2));
        drop(first);
        assert_eq!(room.extras.get(), 0);
    }

    /// Between two requests a client costs its connection alone. When it asks again and all is taken, it waits, and the sweep is told.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_rests_leaves_its_second_and_may_have_to_wait_for_another() {
        let room = room(80);
        let mut clients = Vec::new();
        while clients.len() < 60 {
            room.tell();
            assert!(clients.len() < room.process.takes(0), "{}", clients.len());
            let client = DescriptorSeats::new(&room);
            drop(client.take().unwrap());
            clients.push(client);
        }
        room.tell();
        assert_eq!((room.wanted(), room.process.takes(0)), (0, (70 + 60) / 2));
        let taken: Vec<_> = clients.iter().map_while(DescriptorSeats::take).collect();
        assert_eq!((taken.len(), room.promised()), (20, 80));
        let (first, second) = (&clients[30], &clients[31]);
        let waiting = async {
            let (seat, ()) = tokio::join!(first.wait(), async {
                assert!(second.take().is_none());
                assert_eq!(room.wanted(), 1);
                drop(taken);
                assert!(second.take().is_none(), "the other one has waited for it");
            });
            (seat, second.take().unwrap())
        };
        let began = tokio::time::Instant::now();
        let both = waiting.await;
        assert_eq!((began.elapsed(), room.wanted()), (Duration::ZERO, 0));
        drop((both, clients));
        room.tell();
        assert_eq!((room.clients.get(), room.resting.get(), room.held.get(), room.process.takes(0)), (0, 0, 0, 35));
    }

    #[test]
    fn those_that_are_hungry_together_have_about_as_much_each() {
        let room = room(800);
        let clients: Vec<_> = (0..3).map(|_| DescriptorSeats::new(&room)).collect();
        let mut held = Vec::new();
        for _ in 0..400 {
            held.extend(clients.iter().filter_map(DescriptorSeats::take));
        }
        let counts: Vec<_> = clients.iter().map(|client| client.used.get()).collect();
        assert_eq!(counts, [101, 101, 101], "a quarter of 400 each, and a quarter is left");
    }

    #[test]
    fn a_pipe_is_two_and_gives_way() {
        let room = room(80);
        let pipes: Vec<_> = std::iter::from_fn(|| room.pipe()).collect();
        assert_eq!((pipes.len(), room.held.get(), room.extras.get()), (10, 20, 20));
        let client = DescriptorSeats::new(&room);
        assert_eq!(all(&client).len(), 11, "the other half is for connections");
        drop(pipes);
        assert_eq!(room.held.get(), 1);
        let held: Vec<_> = (0..78).map(|_| room.hold()).collect();
        assert!(!room.is_full() && room.pipe().is_none(), "nothing is free");
        drop(held);
    }

    #[test]
    fn where_there_is_no_limit_nothing_ends() {
        let seats: Rc<DescriptorSeats> = Rc::default();
        assert_eq!(all(&seats).len(), 1_000);
        assert!(!seats.room.is_full());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_waits_is_served_when_its_client_gives_one_back() {
        let room = room(8);
        let client = DescriptorSeats::new(&room);
        let mut taken = all(&client);
        let began = tokio::time::Instant::now();
        let (seat, ()) = tokio::join!(client.wait(), async { drop(taken.pop()) });
        assert_eq!((began.elapsed(), room.process.counts().backend_waits), (Duration::ZERO, 1));
        drop((seat, taken));
        assert_eq!((client.used.get(), client.waiting.get(), room.extras.get()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_waits_is_served_when_another_client_gives_one_back() {
        let room = room(8);
        let (hungry, other) = (DescriptorSeats::new(&room), DescriptorSeats::new(&room));
        let taken = all(&hungry);
        let own = all(&other);
        let began = tokio::time::Instant::now();
        let (_seat, ()) = tokio::join!(other.wait(), async { drop(taken) });
        assert!(began.elapsed() <= LOOK, "{:?}", began.elapsed());
        drop(own);
    }

    proptest! {
        /// Whatever clients do: all of it fits into the share, and those that were accepted can have their first; after a rest when
        /// others have given theirs back.
        #[test]
        fn the_share_is_never_overdrawn(share in 8u32..200, steps in prop::collection::vec((0usize..40, any::<bool>()), 0..400)) {
            let room = room(share);
            let mut clients: Vec<Rc<DescriptorSeats>> = Vec::new();
            let mut held = Vec::new();
            for (number, take) in steps {
                room.tell();
                if number >= clients.len() && clients.len() < room.process.takes(0) {
                    clients.push(DescriptorSeats::new(&room));
                }
                match clients.get(number) {
                    Some(client) if take => held.extend(client.take()),
                    _ if number < held.len() => drop(held.swap_remove(number)),
                    _ => {}
                }
                let (promised, extras) = (room.promised(), room.extras.get());
                prop_assert!(promised + extras <= share, "{promised} promised and {extras} more of {share}");
                let resting = clients.iter().filter(|it| it.rests.get()).count() as u32;
                prop_assert_eq!(promised, 2 * clients.len() as u32 - resting);
            }
            for client in clients.iter().filter(|it| !it.rests.get()) {
                prop_assert!(client.used.get() > 0 || client.take().is_some());
            }
            held.clear();
            for client in &clients {
                prop_assert!(client.take().is_some());
            }
        }
    }
}
