//! Where requests wait that found every backend of an upstream full.
//!
//! One line for all workers, behind a lock: it is taken by those only who have to wait, and by whoever makes room while
//! somebody waits. A line for each worker would be unfair: whose line is next would have to be guessed, and who waits at
//! a worker with many would wait longer. With one line, who came first goes first.
//!
//! A *turn* is the right to try. Whoever gives a lease back calls [`Queue::released`], and the first in line gets a turn and is
//! woken, nobody else. It stays in line until it has its lease, so that a request that comes meanwhile sees that the line is not
//! empty and goes to its end, instead of taking what was meant for the first. What a turn was given for can be gone
//! when it is used (another roster, a limit lowered), or be of no use to this request (a retry that has been there). Then the
//! request goes back to its place, and the turn to another in line or to the next who comes.
//!
//! No turn gets lost. While somebody is in line, all that happens to turns happens under the lock, and each release is
//! counted there (`offers`): who tried in vain waits on only if nothing was released since its turn began. And while nobody is,
//! the first who comes says so, then tries; whoever gives back does so, then looks whether somebody came. With `SeqCst`, one of
//! the two sees the other.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Who waits, and for how long. Handed in by each who comes: those in line keep what they came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// Requests in line at most. 0: none waits.
    pub max: u32,
    /// How long a request waits at most.
    pub timeout: Duration,
    /// Who goes first.
    pub order: Order,
}

impl Default for QueueSettings {
    /// 1024 requests, or as many as all backends take together where they have limits, which is for the caller to say; 1 s;
    /// who came first.
    fn default() -> Self {
        Self { max: 1_024, timeout: Duration::from_secs(1), order: Order::Fifo }
    }
}

/// Who goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Who came first.
    Fifo,
    /// Who came first; but who came last for as long as the line has not been empty for `interval`. Who comes then waits for
    /// `target` at most, and else for `interval` (or the timeout, if that is less). Under an overload that lasts, a part of the
    /// requests is served at once, instead of all so late that nobody wants the answer (Facebook's "Fail at Scale").
    Adaptive {
        /// 5 ms by default.
        target: Duration,
        /// 100 ms by default.
        interval: Duration,
    },
}

impl Order {
    /// Last come, first served while overloaded, with the defaults.
    pub const ADAPTIVE: Self =
        Self::Adaptive { target: Duration::from_millis(5), interval: Duration::from_millis(100) };
}

/// There are as many in line as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too many requests wait")
    }
}

impl std::error::Error for Full {}

/// Its turn did not come in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut;

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("waited too long for a backend with room")
    }
}

impl std::error::Error for TimedOut {}

/// What came of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt<T> {
    /// The lease, or whatever it was tried for.
    Leased(T),
    /// There is no room for anybody.
    Full,
    /// There may be room, but not for this request.
    NotForMe,
}

/// The line of an upstream, shared by all workers. Outlives reloads.
#[derive(Debug, Default)]
pub struct Queue {
    /// How many are in line, with a turn or without. Written under the lock.
    present: AtomicU32,
    line: Mutex<Line>,
}

impl Queue {
    /// Whether a request may try at once. If not, it has to [`Queue::enter`] first, to be fair to those in line. One load.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many are in line.
    pub fn len(&self) -> u32 {
        self.present.load(Ordering::SeqCst)
    }

    /// Goes to the end of the line. `now_ms`: milliseconds on a clock that all workers share.
    ///
    /// # Errors
    /// When there are `settings.max` in line already.
    pub fn enter(self: &Arc<Self>, settings: &QueueSettings, now_ms: u64) -> Result<Waiter, Full> {
        let mut line = self.lock();
        if line.len() >= settings.max as usize {
            return Err(Full);
        }
        let (ticket, timeout) = line.enter(settings, now_ms);
        self.present.store(line.len() as u32, Ordering::SeqCst);
        drop(line);
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let deadline_ms = now_ms.saturating_add(timeout_ms);
        Ok(Waiter { queue: Arc::clone(self), ticket, entered_ms: now_ms, deadline_ms, left: false })
    }

    /// Room for one was made: to be called after each lease was given back (with `SeqCst`, as
    /// [`Permits::give_back`](crate::backend::permits::Permits::give_back) does). One load while nobody is in line; else
    /// who is next is woken.
    pub fn released(&self) {
        if !self.is_empty() {
            self.change(Line::released);
        }
    }

    /// Room for nobody knows how many was made: a backend became ready, a limit was raised. Who is next is woken, and passes it
    /// on for as long as there is room.
    pub fn widened(&self) {
        if !self.is_empty() {
            self.change(Line::widened);
        }
    }

    /// Does something to the line, and wakes who has got a turn by that: outside the lock.
    fn change(&self, change: impl FnOnce(&mut Line) -> Option<Waker>) {
        let mut line = self.lock();
        let waker = change(&mut line);
        self.present.store(line.len() as u32, Ordering::SeqCst);
        drop(line);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request in line. Leaves it when dropped; a turn that it has is passed on.
#[derive(Debug)]
pub struct Waiter {
    queue: Arc<Queue>,
    ticket: u64,
    entered_ms: u64,
    deadline_ms: u64,
    left: bool,
}

impl Waiter {
    /// Tries when it has its turn. The first in an empty line has it at once.
    ///
    /// `attempt` is what a request does that need not wait, and what comes of it is the result. It must not call
    /// [`Queue::released`], that is, not take something, find that it is not enough, and give it back: look first, take last.
    /// The task has to be woken at [`Waiter::deadline_ms`] by the caller. Not to be polled again when ready; and who will not
    /// poll it any more drops it, or its turn is kept from others.
    ///
    /// # Errors
    /// When its time is over: its turn, if it has one, is for somebody else.
    pub fn poll<T>(
        &mut self,
        cx: &Context<'_>,
        now_ms: u64,
        mut attempt: impl FnMut() -> Attempt<T>,
    ) -> Poll<Result<T, TimedOut>> {
        if self.left || now_ms >= self.deadline_ms {
            self.leave(Leaves::InVain);
            return Poll::Ready(Err(TimedOut));
        }
        let mut turn = self.queue.lock().look(self.ticket, cx.waker());
        while turn {
            let room = match attempt() {
                Attempt::Leased(lease) => {
                    self.leave(Leaves::Served);
                    return Poll::Ready(Ok(lease));
                }
                Attempt::Full => Room::None,
                Attempt::NotForMe => Room::ForOthers,
            };
            self.queue.change(|line| {
                let next;
                (turn, next) = line.tried(self.ticket, room, cx.waker());
                next
            });
        }
        Poll::Pending
    }

    /// When it came, in milliseconds on the clock that was handed in.
    pub fn entered_ms(&self) -> u64 {
        self.entered_ms
    }

    /// When its time is over, on the same clock.
    pub fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }

    fn leave(&mut self, how: Leaves) {
        if !std::mem::replace(&mut self.left, true) {
            self.queue.change(|line| line.leave(self.ticket, how));
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.leave(Leaves::InVain);
    }
}

/// What a try in vain has shown.
#[derive(Clone, Copy, Debug)]
enum Room {
    None,
    ForOthers,
}

#[derive(Clone, Copy, Debug)]
enum Leaves {
    Served,
    InVain,
}

/// The line, without its lock. What gives somebody a turn returns whom to wake: `None` also for who has a turn but has not
/// been asked yet, and so will see it.
#[derive(Debug, Default)]
struct Line {
    /// Those without a turn, by the number of their ticket, which is the order in which they came.
    waiting: BTreeMap<u64, Place>,
    /// Those with a turn, and what `offers` was when they last knew.
    turns: BTreeMap<u64, u64>,
    next_ticket: u64,
    /// How often room was made.
    offers: u64,
    /// Turns that nobody in line could take: for those who come. [`MANY`] when nobody knows how many.
    spare: u32,
    /// When the line was last empty.
    empty_ms: u64,
    /// Whether who came last goes first.
    lifo: bool,
}

/// Somebody without a turn.
#[derive(Debug, Default)]
struct Place {
    /// `None` until first asked.
    waker: Option<Waker>,
    /// What `offers` was when it found room of no use to it: until more is made it need not be asked again.
    useless: Option<u64>,
}

/// More than anybody counts. Not used up by turns; ends with the first that finds no room.
const MANY: u32 = u32::MAX;

impl Line {
    fn len(&self) -> usize {
        self.waiting.len() + self.turns.len()
    }

    /// The ticket of one who comes, and how long that one may wait.
    fn enter(&mut self, settings: &QueueSettings, now_ms: u64) -> (u64, Duration) {
        let first = self.len() == 0;
        if first {
            self.empty_ms = now_ms;
        }
        let stood = Duration::from_millis(now_ms.saturating_sub(self.empty_ms));
        let timeout = match settings.order {
            Order::Fifo => {
                self.lifo = false;
                settings.timeout
            }
            Order::Adaptive { target, interval } => {
                self.lifo = stood > interval;
                settings.timeout.min(if self.lifo { target } else { interval })
            }
        };
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        if first {
            // Nobody knows what room there is: it tries at once, having said that it is there, and then those behind it, one
            // after the other, until one finds none.
            self.spare = MANY;
        }
        let turn = match self.spare {
            // Who has a turn passes it on.
            MANY => self.turns.is_empty(),
            spare => spare > 0,
        };
        if turn {
            if self.spare != MANY {
                self.spare -= 1;
            }
            self.turns.insert(ticket, self.offers);
        } else {
            self.waiting.insert(ticket, Place::default());
        }
        (ticket, timeout)
    }

    fn released(&mut self) -> Option<Waker> {
        self.offers += 1;
        self.pass()
    }

    fn widened(&mut self) -> Option<Waker> {
        self.offers += 1;
        self.spare = MANY;
        self.pass()
    }

    /// Whether one has its turn. If not, it is known whom to wake.
    fn look(&mut self, ticket: u64, waker: &Waker) -> bool {
        if let Some(place) = self.waiting.get_mut(&ticket) {
            match &mut place.waker {
                Some(known) => known.clone_from(waker),
                None => place.waker = Some(waker.clone()),
            }
        }
        self.turns.contains_key(&ticket)
    }

    /// One has tried in vain. Whether it should again, because room was made since its turn began; if not, it is back at its
    /// place.
    fn tried(&mut self, ticket: u64, room: Room, waker: &Waker) -> (bool, Option<Waker>) {
        match self.turns.get_mut(&ticket) {
            None => return (false, None),
            Some(seen) if *seen != self.offers => {
                *seen = self.offers;
                return (true, None);
            }
            Some(_) => {}
        }
        self.turns.remove(&ticket);
        let useless = match room {
            Room::None => None,
            Room::ForOthers => Some(self.offers),
        };
        self.waiting.insert(ticket, Place { waker: Some(waker.clone()), useless });
        let next = match room {
            Room::None => {
                self.spare = 0;
                None
            }
            // It may have seen more than what its turn was given for.
            Room::ForOthers => {
                self.spare = MANY;
                self.pass()
            }
        };
        (false, next)
    }

    fn leave(&mut self, ticket: u64, how: Leaves) -> Option<Waker> {
        self.waiting.remove(&ticket);
        let had_turn = self.turns.remove(&ticket).is_some();
        let more = match how {
            Leaves::Served => self.spare == MANY,
            Leaves::InVain => true,
        };
        let next = if had_turn && more { self.pass() } else { None };
        if self.len() == 0 {
            // Who comes now tries at once.
            self.spare = 0;
        }
        next
    }

    /// Gives a turn to who is next and has a use for it, or keeps it for who comes.
    fn pass(&mut self) -> Option<Waker> {
        let mut may = self.waiting.iter().filter(|(_, place)| place.useless != Some(self.offers));
        let next = if self.lifo { may.next_back() } else { may.next() };
        match next.map(|(&ticket, _)| ticket) {
            Some(ticket) => {
                self.turns.insert(ticket, self.offers);
                self.waiting.remove(&ticket).and_then(|place| place.waker)
            }
            None => {
                self.spare = self.spare.saturating_add(1);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::permits::Permits;
    use crate::strategy::Dice;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicBool, AtomicU64};
    use std::task::Wake;
    use std::thread::{self, Thread};

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// Remembers that it was woken.
    #[derive(Default)]
    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    struct Client {
        waiter: Waiter,
        flag: Arc<Flag>,
    }

    impl Client {
        fn enter(queue: &Arc<Queue>, settings: &QueueSettings, now_ms: u64) -> Self {
            // Not asked yet: as good as woken.
            let flag = Arc::new(Flag(AtomicBool::new(true)));
            Self { waiter: queue.enter(settings, now_ms).unwrap(), flag }
        }

        fn woken(&self) -> bool {
            self.flag.0.load(Ordering::SeqCst)
        }

        fn poll<T>(&mut self, now_ms: u64, attempt: impl FnMut() -> Attempt<T>) -> Poll<Result<T, TimedOut>> {
            self.flag.0.store(false, Ordering::SeqCst);
            let waker = Waker::from(Arc::clone(&self.flag));
            self.waiter.poll(&Context::from_waker(&waker), now_ms, attempt)
        }

        /// Comes while all is full.
        fn waits(queue: &Arc<Queue>, settings: &QueueSettings, now_ms: u64) -> Self {
            let mut client = Self::enter(queue, settings, now_ms);
            assert_eq!(client.poll(now_ms, || Attempt::<()>::Full), Poll::Pending);
            client
        }
    }

    fn woken(clients: &[Client]) -> Vec<usize> {
        (0..clients.len()).filter(|&index| clients[index].woken()).collect()
    }

    #[test]
    fn the_first_has_its_turn_at_once_and_the_others_in_their_order() {
        let (queue, settings) = (Arc::new(Queue::default()), QueueSettings::default());
        let mut tries = 0;
        let mut clients: Vec<_> = (0..3).map(|_| Client::enter(&queue, &settings, 0)).collect();
        for client in &mut clients {
            let result = client.poll(0, || {
                tries += 1;
                Attempt::<()>::Full
            });
            assert_eq!(result, Poll::Pending);
        }
        assert_eq!(tries, 1);
        for expected in 0..3 {
            queue.released();
            assert_eq!(woken(&clients), [0]);
            assert_eq!(clients.remove(0).poll(1, || Attempt::Leased(expected)), Poll::Ready(Ok(expected)));
        }
        assert!(queue.is_empty());
    }

    #[test]
    fn who_comes_late_does_not_go_before_who_has_a_turn() {
        let (queue, settings) = (Arc::new(Queue::default()), QueueSettings::default());
        let mut first = Client::waits(&queue, &settings, 0);
        queue.released();
        // The room is there and the first has not taken it yet.
        assert!(!queue.is_empty());
        let mut late = Client::enter(&queue, &settings, 1);
        assert_eq!(late.poll(1, || -> Attempt<()> { panic!("not its turn") }), Poll::Pending);
        assert_eq!(first.poll(1, || Attempt::Leased(())), Poll::Ready(Ok(())));
        assert!(!late.woken());
    }

    #[test]
    fn a_turn_that_nobody_could_take_is_for_who_comes() {
        let (queue, settings) = (Arc::new(Queue::default()), QueueSettings::default());
        let mut first = Client::waits(&queue, &settings, 0);
        queue.released();
        queue.released();
        let mut late = Client::enter(&queue, &settings, 1);
        assert_eq!(late.poll(1, || Attempt::Leased(())), Poll::Ready(Ok(())));
        let mut later = Client::enter(&queue, &settings, 1);
        assert_eq!(later.poll(1, || -> Attempt<()> { panic!("there were two") }), Poll::Pending);
        assert_eq!(first.poll(1, || Attempt::Leased(())), Poll::Ready(Ok(())));
    }

    #[test]
    fn who_leaves_passes_its_turn_on() {
        let (queue, settings) = (Arc::new(Queue::default()), QueueSettings::default());
        let mut clients: Vec<_> = (0..3).map(|_| Client::waits(&queue, &settings, 0)).collect();
        queue.released();
        drop(clients.remove(0));
        assert_eq!(woken(&clients), [0]);
        // One whose time is over does not use its turn.
        assert_eq!(clients[0].poll(1_000, || Attempt::Leased(())), Poll::Ready(Err(TimedOut)));
        assert_eq!(woken(&clients[1..]), [0]);
        // And who has none leaves without anybody being woken.
        let last = Client::waits(&queue, &settings, 0);
        drop(clients);
        queue.change(|line| {
            assert_eq!(line.turns.len(), 1, "passed on to the last");
            None
        });
        assert!(last.woken());
    }

    #[test]
    fn what_is_no_use_to_one_is_offered_to_those_behind_and_then_to_who_comes() {
        let (queue, settings) = (Arc::new(Queue::default()), QueueSettings::default());
        let mut clients: Vec<_> = (0..3).map(|_| Client::waits(&queue, &settings, 0)).collect();
        queue.released();
        for index in 0..3 {
            assert_eq!(woken(&clients), [index]);
            assert_eq!(clients[index].poll(1, || Attempt::<()>::NotForMe), Poll::Pending);
        }
        assert!(woken(&clients).is_empty());
        let mut late = Client::enter(&queue, &settings, 1);
        assert_eq!(late.poll(1, || Attempt::Leased(())), Poll::Ready(Ok(())));
        // They kept their places.
        queue.released();
        assert_eq!(woken(&clients), [0]);
    }

    #[test]
    fn who_tried_while_room_was_made_tries_again() {
        let (queue, settings) = (Arc::new(Queue::default()), QueueSettings::default());
        for in_vain in [Attempt::Full, Attempt::NotForMe] {
            let mut tries = 0;
            let result = Client::enter(&queue, &settings, 0).poll(0, || {
                tries += 1;
                if tries == 1 {
                    // Another worker, just after this one has looked.
                    queue.released();
                    return in_vain;
                }
                Attempt::Leased(())
            });
            assert_eq!((result, tries), (Poll::Ready(Ok(())), 2));
        }
    }

    #[test]
    fn room_for_many_is_used_by_as_many() {
        let (queue, settings) = (Arc::new(Queue::default()), QueueSettings::default());
        let mut clients: Vec<_> = (0..10).map(|_| Client::waits(&queue, &settings, 0)).collect();
        queue.widened();
        for room in (0..6).rev() {
            assert_eq!(woken(&clients), [0], "one at a time, in their order");
            let result = clients[0].poll(1, || if room > 0 { Attempt::Leased(()) } else { Attempt::Full });
            if room > 0 {
                assert_eq!(result, Poll::Ready(Ok(())));
                clients.remove(0);
            }
        }
        assert_eq!(clients.len(), 5);
        assert!(woken(&clients).is_empty());
        let mut late = Client::enter(&queue, &settings, 1);
        assert_eq!(late.poll(1, || -> Attempt<()> { panic!("all is full") }), Poll::Pending);
    }

    #[test]
    fn room_that_was_there_before_the_line_is_found_by_all_who_can_use_it() {
        let (queue, settings) = (Arc::new(Queue::default()), QueueSettings::default());
        // The first comes although there is room: it saw a line that is gone by now. Or a retry, which cannot use the room.
        for in_front in [Attempt::Leased(()), Attempt::NotForMe] {
            let mut first = Client::enter(&queue, &settings, 0);
            let _ = first.poll(0, || in_front);
            for _ in 0..3 {
                let mut late = Client::enter(&queue, &settings, 0);
                assert_eq!(late.poll(0, || Attempt::Leased(())), Poll::Ready(Ok(())));
            }
        }
        let mut first = Client::enter(&queue, &settings, 0);
        let mut late: Vec<_> = (0..3).map(|_| Client::enter(&queue, &settings, 0)).collect();
        assert_eq!(first.poll(0, || Attempt::Leased(())), Poll::Ready(Ok(())));
        for client in &mut late {
            assert_eq!(client.poll(0, || Attempt::Leased(())), Poll::Ready(Ok(())));
        }
    }

    #[test]
    fn no_more_may_wait_than_is_set_and_for_no_longer() {
        let queue = Arc::new(Queue::default());
        let settings = QueueSettings { max: 2, ..QueueSettings::default() };
        let mut first = Client::waits(&queue, &settings, 10);
        let second = Client::waits(&queue, &settings, 10);
        assert_eq!(queue.enter(&settings, 10).unwrap_err(), Full);
        assert_eq!((first.waiter.entered_ms(), first.waiter.deadline_ms()), (10, 1_010));
        assert_eq!(first.poll(1_009, || Attempt::<()>::Full), Poll::Pending);
        assert_eq!(first.poll(1_010, || Attempt::<()>::Full), Poll::Ready(Err(TimedOut)));
        assert_eq!(queue.len(), 1);
        drop(second);
        assert!(queue.is_empty());
        assert_eq!(queue.enter(&QueueSettings { max: 0, ..settings }, 0).unwrap_err(), Full);
    }

    #[test]
    fn a_line_that_does_not_empty_serves_who_came_last() {
        let queue = Arc::new(Queue::default());
        let settings = QueueSettings { order: Order::ADAPTIVE, ..QueueSettings::default() };
        let calm: Vec<_> = [0, 100].map(|now| Client::waits(&queue, &settings, now)).into();
        assert_eq!(calm[1].waiter.deadline_ms(), 200);
        queue.released();
        assert_eq!(woken(&calm), [0]);
        let overloaded: Vec<_> = [101, 102].map(|now| Client::waits(&queue, &settings, now)).into();
        assert_eq!(overloaded[1].waiter.deadline_ms(), 107);
        queue.released();
        assert_eq!(woken(&overloaded), [1]);
        drop((calm, overloaded));
        let calm: Vec<_> = [103, 104].map(|now| Client::waits(&queue, &settings, now)).into();
        queue.released();
        assert_eq!(woken(&calm), [0]);
        assert_eq!(calm[0].waiter.deadline_ms(), 203);
    }

    #[test]
    fn nothing_is_left_of_ten_thousand_who_went_away() {
        let (queue, settings) = (Arc::new(Queue::default()), QueueSettings { max: 10_000, ..Default::default() });
        let mut dice = Dice::seeded(7);
        let mut clients: Vec<_> = (0..10_000).map(|_| Client::waits(&queue, &settings, 0)).collect();
        let flags: Vec<_> = clients.iter().map(|client| Arc::clone(&client.flag)).collect();
        assert_eq!(queue.len(), 10_000);
        while !clients.is_empty() {
            clients.swap_remove(dice.below(clients.len()));
            if dice.below(8) == 0 {
                queue.released();
            }
        }
        assert!(queue.is_empty());
        let line = queue.lock();
        assert_eq!((line.waiting.len(), line.turns.len(), line.spare), (0, 0, 0));
        assert!(flags.iter().all(|flag| Arc::strong_count(flag) == 1), "a waker is kept");
        assert_eq!(Arc::strong_count(&queue), 1);
    }

    /// Wakes a thread that sleeps.
    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    /// Two backends with few places, many threads that are workers with one request at a time, some of which go away at any
    /// point: while they wait, when they have been woken, when they have a lease. No backend sees one too many; and nobody
    /// sleeps while there is room, or some thread would sleep for ever.
    #[test]
    fn no_wake_up_is_lost_among_threads() {
        for (limit, threads, requests) in [(1_u32, 3, 4_000), (1, 8, 2_000), (3, 12, 2_000)] {
            let queue = Arc::new(Queue::default());
            let backends = [const { AtomicU32::new(0) }; 2];
            let permits: [_; 2] = std::array::from_fn(|_| Permits::default());
            let waited = AtomicU64::new(0);
            thread::scope(|scope| {
                for thread in 0..threads {
                    let (queue, backends, permits, waited) = (&queue, &backends, &permits, &waited);
                    scope.spawn(move || {
                        let mut dice = Dice::seeded(thread);
                        let waker = Waker::from(Arc::new(Unpark(thread::current())));
                        for _ in 0..requests {
                            // Where a retry has been already.
                            let tried = dice.below(6);
                            let attempt = || {
                                let found = (0..2).find(|&at| at != tried && permits[at].try_take(limit));
                                match found {
                                    Some(at) => Attempt::Leased(at),
                                    None if tried < 2 && permits[tried].has_room(limit) => Attempt::NotForMe,
                                    None => Attempt::Full,
                                }
                            };
                            let at = match queue.is_empty().then(attempt) {
                                Some(Attempt::Leased(at)) => Some(at),
                                _ => {
                                    waited.fetch_add(1, Ordering::Relaxed);
                                    wait(queue, &waker, &mut dice, attempt)
                                }
                            };
                            let Some(at) = at else { continue };
                            assert!(backends[at].fetch_add(1, Ordering::SeqCst) < limit, "one too many");
                            if dice.below(3) == 0 {
                                thread::yield_now();
                            }
                            backends[at].fetch_sub(1, Ordering::SeqCst);
                            permits[at].give_back();
                            queue.released();
                        }
                    });
                }
            });
            assert!(waited.into_inner() > 100, "nobody had to wait: this shows nothing");
            assert!(queue.is_empty());
            assert_eq!(permits.map(|permits| permits.in_use()), [0, 0]);
        }
    }

    fn wait<T>(
        queue: &Arc<Queue>,
        waker: &Waker,
        dice: &mut Dice,
        mut attempt: impl FnMut() -> Attempt<T>,
    ) -> Option<T> {
        let settings = QueueSettings { timeout: Duration::MAX, ..QueueSettings::default() };
        let mut waiter = queue.enter(&settings, 0).unwrap();
        loop {
            match waiter.poll(&Context::from_waker(waker), 0, &mut attempt) {
                Poll::Ready(result) => return Some(result.unwrap()),
                Poll::Pending if dice.below(8) == 0 => {
                    // The client is gone, now or in a moment.
                    if dice.below(2) == 0 {
                        thread::yield_now();
                    }
                    return None;
                }
                Poll::Pending => {
                    let before = std::time::Instant::now();
                    thread::park_timeout(Duration::from_secs(20));
                    assert!(before.elapsed() < Duration::from_secs(20), "slept while there was room: {queue:?}");
                }
            }
        }
    }

    proptest! {
        /// Any interleaving of what may happen, one step at a time, against the definition: when everybody who was woken has
        /// looked, nobody waits who could be served; and who may go anywhere is served in the order of coming.
        #[test]
        fn nobody_waits_who_could_be_served(
            steps in prop::collection::vec((0_u8..12, any::<u32>()), 1..300),
            settle in any::<bool>(),
        ) {
            struct Request { client: Client, tried: usize, number: usize }
            let queue = Arc::new(Queue::default());
            let settings = QueueSettings { max: 50, timeout: MS(u64::MAX), order: Order::Fifo };
            let (mut limits, mut used) = ([1_u32, 1], [0_u32; 2]);
            let mut waiting: Vec<Request> = Vec::new();
            let (mut came, mut last_served) = (0, 0);
            for (what, bits) in steps {
                // With `settle`, whoever is woken looks before anything else happens; else when chance has it.
                let attempt = |used: &mut [u32; 2], limits: [u32; 2], tried: usize| {
                    let room = |at: usize| used[at] < limits[at];
                    match (0..2).find(|&at| at != tried && room(at)) {
                        Some(at) => { used[at] += 1; Attempt::Leased(at) }
                        None if (0..2).any(room) => Attempt::NotForMe,
                        None => Attempt::Full,
                    }
                };
                match what {
                    0..4 => {
                        // One in four has been somewhere already.
                        let tried = if what == 0 { bits as usize % 2 } else { 2 };
                        came += 1;
                        // One in five saw a line that is gone by now, and so enters without a try.
                        let tries = queue.is_empty() && bits % 5 > 0;
                        if tries && matches!(attempt(&mut used, limits, tried), Attempt::Leased(_)) {
                            continue;
                        }
                        if queue.len() < settings.max {
                            waiting.push(Request { client: Client::enter(&queue, &settings, 0), tried, number: came });
                        }
                    }
                    4..7 => {
                        let at = bits as usize % 2;
                        if used[at] > 0 {
                            used[at] -= 1;
                            queue.released();
                        }
                    }
                    7 if !waiting.is_empty() => { waiting.remove(bits as usize % waiting.len()); }
                    8 if bits % 4 == 0 => {
                        limits[bits as usize / 4 % 2] += bits / 8 % 3;
                        queue.widened();
                    }
                    9 if bits % 4 == 0 => {
                        let limit = &mut limits[bits as usize / 4 % 2];
                        *limit = limit.saturating_sub(1).max(1);
                    }
                    _ => {}
                }
                loop {
                    let woken: Vec<_> = (0..waiting.len()).filter(|&index| waiting[index].client.woken()).collect();
                    if woken.is_empty() {
                        break;
                    }
                    let index = if settle { woken[0] } else { woken[bits as usize % woken.len()] };
                    let request = &mut waiting[index];
                    let tried = request.tried;
                    if let Poll::Ready(result) = request.client.poll(0, || attempt(&mut used, limits, tried)) {
                        prop_assert!(result.is_ok());
                        let request = waiting.remove(index);
                        if settle && request.tried == 2 {
                            prop_assert!(request.number > last_served, "out of order");
                            last_served = request.number;
                        }
                    }
                    if !settle && bits % 3 == 0 {
                        break;
                    }
                }
                prop_assert_eq!(queue.len() as usize, waiting.len());
                if waiting.iter().any(|request| request.client.woken()) {
                    continue;
                }
                for request in &waiting {
                    let room = (0..2).find(|&at| at != request.tried && used[at] < limits[at]);
                    prop_assert!(room.is_none(), "{} waits, and {:?} has room: {:?}", request.number, room, queue);
                }
            }
        }
    }
}
