//! Deadlines that cost a store.
//!
//! A timer per request would be registered and cancelled several times an exchange, for something that hardly ever happens.
//! So nothing is registered: an exchange that waits writes down until when, and a worker looks over all its watches once a tick and
//! wakes those that are overdue. A deadline is never early and late by two ticks at most; a tick is a twentieth of the
//! shortest time-out of the configuration, 5 ms to 250 ms. Only where thousands are overdue together, and no client waits for what becomes
//! of them, as idle connections, they end one after the other, one in a millisecond or more.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use crate::backend::BackendId;

mod clock;

pub use clock::Clock;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The end of the TLS handshake.
    Handshake,
    /// The first byte of the next request.
    Idle,
    /// The rest of a request's head.
    Head,
    /// What a middleware waits for, before a backend is picked.
    Middleware,
    /// A backend with room for the request.
    Queue,
    /// A connection to a backend.
    Connect,
    /// The head of a backend's response, or the client's next piece of the request's body before that.
    Response,
    /// The next piece of the response's body, or room for it at the client.
    Body,
    /// The next bytes of a tunnel, either way.
    Tunnel,
}

/// No deadline at all: half a century.
pub const NEVER: Duration = Duration::from_secs(50 * 365 * 86_400);

/// What is awaited of a client while a body is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The next piece of the request's.
    Up = 1,
    /// Room for the next piece of the response's.
    Down = 2,
}

/// How slow a client may be with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Bytes per second; 0 disables the limit.
    pub bytes: u32,
    /// The time that the rate is measured over.
    pub over: Duration,
}

/// What one connection waits for, and until when.
#[derive(Debug)]
pub struct Watch {
    clock: Rc<Clock>,
    phase: Cell<Phase>,
    deadline_ms: Cell<u64>,
    /// When it began to wait for that.
    since_ms: Cell<u64>,
    /// No phase of the exchange lasts longer than this.
    cap_ms: Cell<u64>,
    expired: Cell<bool>,
    /// Whether it was found to be overdue and waits for its turn to be told.
    found: Cell<bool>,
    drain: Cell<bool>,
    cut: Cell<bool>,
    /// Whose connection it is.
    owner: usize,
    serving: Cell<Option<BackendId>>,
    /// Bytes of bodies that the client has given and taken while that was counted: of all streams, where a connection has many, as
    /// they share what it can.
    carried: Rc<Cell<u64>>,
    /// So many of them are accounted for.
    seen: Cell<u64>,
    /// Which [`Way`]s something is awaited of the client.
    awaited: Cell<u8>,
    /// The pace that is asked of it.
    pace: Cell<Pace>,
    /// How much longer it may be awaited if it moves nothing; `None` before it was the first time.
    patience_ms: Cell<Option<u64>>,
    /// Whether it was too slow.
    slow: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Watch {
    /// A watch of `clock`'s worker that waits for a first request. `owner` tells the connections of one listener from those of
    /// another.
    pub fn new(clock: &Rc<Clock>, idle: Duration, owner: usize) -> Rc<Self> {
        Self::counting(clock, idle, owner, Rc::default())
    }

    /// A watch of a stream of `connection`: it waits for nothing yet.
    pub fn of_stream(connection: &Self) -> Rc<Self> {
        Self::counting(&connection.clock, NEVER, connection.owner, Rc::clone(&connection.carried))
    }

    fn counting(clock: &Rc<Clock>, idle: Duration, owner: usize, carried: Rc<Cell<u64>>) -> Rc<Self> {
        let watch = Rc::new(Self {
            clock: Rc::clone(clock),
            phase: Cell::new(Phase::Idle),
            deadline_ms: Cell::new(u64::MAX),
            since_ms: Cell::new(0),
            cap_ms: Cell::new(u64::MAX),
            expired: Cell::new(false),
            found: Cell::new(false),
            drain: Cell::new(false),
            cut: Cell::new(false),
            owner,
            serving: Cell::new(None),
            carried,
            seen: Cell::new(0),
            awaited: Cell::new(0),
            pace: Cell::new(Pace { bytes: 0, over: Duration::ZERO }),
            patience_ms: Cell::new(None),
            slow: Cell::new(false),
            waker: RefCell::new(None),
        });
        clock.wake();
        watch.enter(Phase::Idle, idle);
        clock.add(&watch);
        watch
    }

    /// Whose connection it is.
    pub fn owner(&self) -> usize {
        self.owner
    }

    /// Which backend serves the exchange that is under way.
    pub fn serving(&self) -> Option<BackendId> {
        self.serving.get()
    }

    /// Notes which backend serves the exchange.
    pub fn serve(&self, backend: Option<BackendId>) {
        self.serving.set(backend);
    }

    /// The worker's clock.
    pub fn clock(&self) -> &Rc<Clock> {
        &self.clock
    }

    /// What is being waited for.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// From now on waits for `phase`, at most `timeout`.
    pub fn enter(&self, phase: Phase, timeout: Duration) {
        self.phase.set(phase);
        // A watch that waits to be told, and goes on after all, does not wait there for what is overdue next.
        self.found.set(false);
        self.since_ms.set(self.clock.now_ms());
        self.extend(timeout);
    }

    /// How long the phase has lasted.
    pub fn since(&self) -> Duration {
        Duration::from_millis(self.clock.now_ms().saturating_sub(self.since_ms.get()))
    }

    /// Whether it is that of a connection which has waited for its next request since `before_ms`. A stream that is over waits without a
    /// deadline, for its connection's sake.
    fn is_idle_since(&self, before_ms: u64) -> bool {
        let waits = self.phase.get() == Phase::Idle && self.since_ms.get() <= before_ms;
        waits && self.deadline_ms.get() < before_ms.saturating_add(NEVER.as_millis() as u64 / 2)
    }

    /// Something moved: waits `timeout` again.
    pub fn extend(&self, timeout: Duration) {
        // One tick more, because the clock may be nearly that much behind.
        let (now, cap) = (self.clock.now_ms(), self.cap_ms.get());
        let deadline = now + timeout.as_millis() as u64 + self.clock.tick_ms();
        self.deadline_ms.set(deadline.min(cap));
        // What moves all the time must not move past the bound of the exchange.
        self.expired.set(cap <= now);
    }

    /// Bounds all the phases until [`Watch::uncap`]. Of several bounds the first counts.
    pub fn cap(&self, timeout: Duration) {
        let cap = self.clock.now_ms() + timeout.as_millis() as u64 + self.clock.tick_ms();
        self.cap_ms.set(cap.min(self.cap_ms.get()));
    }

    /// The time of the whole exchange is over by a clock that is better than the worker's.
    pub fn run_out(&self) {
        self.clock.at(Instant::now());
        self.cap_ms.set(self.clock.now_ms().min(self.cap_ms.get()));
        self.expired.set(true);
    }

    /// The exchange is over, and with it its bound and what was awaited of the client.
    pub fn uncap(&self) {
        self.cap_ms.set(u64::MAX);
        if self.patience_ms.get().is_some() {
            self.patience_ms.set(None);
            self.awaited.set(0);
            self.slow.set(false);
        }
    }

    /// From now on the client is awaited, and expected to keep that pace. It may be slower for as long as the pace is over, and has
    /// so much patience again in time.
    pub fn await_client(&self, way: Way, pace: Pace) {
        if pace.bytes == 0 {
            return;
        }
        if self.patience_ms.get().is_none() {
            self.pace.set(pace);
            self.seen.set(self.carried.get());
            self.patience_ms.set(Some(pace.over.as_millis() as u64 + 2 * self.clock.tick_ms()));
        }
        self.awaited.set(self.awaited.get() | way as u8);
    }

    /// It has done its part.
    pub fn obliged(&self, way: Way) {
        self.awaited.set(self.awaited.get() & !(way as u8));
    }

    /// Whether something is awaited of the client.
    pub fn awaits_client(&self, way: Way) -> bool {
        self.awaited.get() & way as u8 != 0
    }

    /// The client has given or taken so much of a body.
    pub fn carried(&self, bytes: usize) {
        self.carried.set(self.carried.get().wrapping_add(bytes as u64));
    }

    /// Whether the client was slower than it may be.
    pub fn is_slow(&self) -> bool {
        self.slow.get()
    }

    /// What is awaited was so for another while. Not while something else is, as a connection to a backend. Whether it was too slow.
    fn measure(&self, since_ms: u64) -> bool {
        let (Some(patience), Pace { bytes, over }) = (self.patience_ms.get(), self.pace.get()) else { return false };
        // A client that does not move at all is told so, and not that it is slow: its deadline comes first.
        if !matches!(self.phase.get(), Phase::Response | Phase::Body) || self.deadline_ms.get() <= self.clock.now_ms() {
            return false;
        }
        let carried = self.carried.get();
        let moved = carried.wrapping_sub(self.seen.replace(carried));
        let earned = moved.saturating_mul(1000) / u64::from(bytes.max(1));
        let most = over.as_millis() as u64 + 2 * self.clock.tick_ms();
        let left = patience.saturating_add(earned).min(most).checked_sub(since_ms);
        self.patience_ms.set(Some(left.unwrap_or(0)));
        left.is_none() && !self.found.get()
    }

    /// Whether its deadline has passed, and it does not know, nor waits to be told.
    fn is_overdue(&self, now_ms: u64) -> bool {
        self.deadline_ms.get() <= now_ms && !self.expired.get() && !self.found.get()
    }

    /// Tells what was found to be overdue or too slow that it is, if it still is. Whether it was told.
    fn tell(&self, now_ms: u64) -> bool {
        self.found.set(false);
        let overdue = self.is_overdue(now_ms);
        let slow = !overdue && self.awaited.get() != 0 && self.patience_ms.get() == Some(0);
        if slow {
            self.slow.set(true);
        }
        if overdue || slow {
            self.expired.set(true);
            self.wake();
        }
        overdue || slow
    }

    /// Whether the bound of the whole exchange, and not that of the phase, has passed.
    pub fn is_capped(&self) -> bool {
        self.cap_ms.get() <= self.clock.now_ms()
    }

    /// Whether the deadline has passed.
    pub fn expired(&self) -> bool {
        self.expired.get()
    }

    /// Whether the connection is to end once it is idle.
    pub fn draining(&self) -> bool {
        self.drain.get()
    }

    /// Whether the connection is to end now.
    pub fn is_cut(&self) -> bool {
        self.cut.get()
    }

    /// Asks the connection to end once it is idle.
    pub fn drain(&self) {
        if !self.drain.replace(true) {
            self.wake();
        }
    }

    /// Tells the connection to end now.
    pub fn cut(&self) {
        if !self.cut.replace(true) {
            self.wake();
        }
    }

    /// Notes the task to wake. A task keeps its waker, so this is a comparison on all calls but the first.
    pub fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Wakes no task until one registers.
    pub fn forget(&self) {
        self.waker.take();
    }

    /// Has the connection's task run.
    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(clock: &Clock, ms: u64) {
        clock.set(ms);
        let now = ms;
        clock.each(|watch| {
            if watch.deadline_ms.get() <= now {
                watch.expired.set(true);
            }
        });
    }

    #[test]
    fn is_never_early_and_at_most_two_ticks_late() {
        let clock = Clock::new();
        clock.set_shortest(Duration::from_secs(1));
        assert_eq!(clock.tick(), Duration::from_millis(50));
        let watch = Watch::new(&clock, Duration::from_secs(1), 0);
        at(&clock, 1000);
        assert!(!watch.expired());
        at(&clock, 1050);
        assert!(watch.expired());
    }

    #[test]
    fn the_bound_of_the_exchange_outweighs_a_phase_that_goes_on() {
        let clock = Clock::new();
        let watch = Watch::new(&clock, Duration::from_secs(75), 0);
        watch.cap(Duration::from_secs(2));
        watch.enter(Phase::Body, Duration::from_secs(60));
        at(&clock, 2250);
        assert!(watch.expired() && watch.is_capped());
        watch.uncap();
        watch.enter(Phase::Idle, Duration::from_secs(75));
        assert!(!watch.expired() && !watch.is_capped());
    }

    #[test]
    fn the_bound_of_the_exchange_outweighs_all_that_moves_after_it() {
        let clock = Clock::new();
        let watch = Watch::new(&clock, Duration::from_secs(75), 0);
        watch.cap(Duration::from_secs(2));
        watch.enter(Phase::Body, Duration::from_secs(60));
        at(&clock, 2250);
        watch.extend(Duration::from_secs(60));
        assert!(watch.expired() && watch.is_capped());

        let watch = Watch::new(&clock, Duration::from_secs(75), 0);
        watch.cap(Duration::from_secs(2));
        assert!(!watch.is_capped());
        watch.run_out();
        watch.extend(Duration::from_secs(60));
        assert!(watch.expired() && watch.is_capped());
        watch.uncap();
        watch.enter(Phase::Idle, Duration::from_secs(75));
        assert!(!watch.expired() && !watch.is_capped());
    }

    #[tokio::test]
    async fn a_watch_ends_the_sleep_of_its_clock() {
        let clock = Clock::new();
        let gone = Watch::new(&clock, Duration::from_secs(1), 0);
        drop(gone);
        // Its place in the list is taken until the next look, and the sleep begins with that look.
        assert!(!clock.is_idle());
        clock.sweep();
        let mut asleep = std::pin::pin!(clock.sleep_until_wanted());
        assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(asleep.as_mut().poll(cx).is_pending())).await);
        let watch = Watch::new(&clock, Duration::from_secs(1), 0);
        asleep.await;
        assert!(!watch.expired() && !clock.is_idle());
    }

    /// Looks 250 ms later, so many times, while the client moves `bytes` each time: at which look it was too slow.
    fn slow_at(watch: &Watch, bytes: usize, looks: usize) -> Option<usize> {
        (0..looks).find(|_| {
            let clock = watch.clock();
            watch.carried(bytes);
            clock.set(clock.now_ms() + 250);
            clock.look();
            watch.is_slow()
        })
    }

    #[test]
    fn a_client_that_is_awaited_keeps_the_pace() {
        let pace = Pace { bytes: 240, over: Duration::from_secs(10) };
        for (bytes, expected) in [
            // 0 to 4 bytes in a second, as those do who want to hold a request: after the ten seconds.
            (0, Some(40)),
            (1, Some(40)),
            // Half of the pace, twice as long.
            (30, Some(80)),
            (60, None),
            (10_000, None),
        ] {
            let clock = Clock::new();
            let watch = Watch::new(&clock, NEVER, 0);
            watch.enter(Phase::Response, NEVER);
            watch.await_client(Way::Up, pace);
            let slow = slow_at(&watch, bytes, 1000);
            assert!(
                slow.is_some() == expected.is_some() && slow.unwrap_or(0).abs_diff(expected.unwrap_or(0)) <= 3,
                "{bytes}: {slow:?}"
            );
            assert_eq!(watch.expired(), slow.is_some());
        }
    }

    #[test]
    fn time_is_charged_to_a_client_only_while_it_is_awaited() {
        let pace = Pace { bytes: 240, over: Duration::from_secs(10) };
        let clock = Clock::new();
        let watch = Watch::new(&clock, NEVER, 0);
        watch.enter(Phase::Body, NEVER);
        watch.await_client(Way::Down, Pace { bytes: 0, ..pace });
        assert_eq!(slow_at(&watch, 0, 1000), None, "any pace will do");
        watch.await_client(Way::Down, pace);
        assert_eq!(slow_at(&watch, 0, 30), None);
        watch.obliged(Way::Down);
        assert_eq!(slow_at(&watch, 0, 1000), None, "it is the backend that is slow");
        watch.await_client(Way::Down, pace);
        watch.enter(Phase::Connect, NEVER);
        assert_eq!(slow_at(&watch, 0, 1000), None, "somebody else is awaited");
        watch.enter(Phase::Body, NEVER);
        assert_eq!(slow_at(&watch, 0, 30), Some(12), "what it had left before");
        watch.uncap();
        watch.await_client(Way::Down, pace);
        assert_eq!(slow_at(&watch, 0, 30), None, "another exchange");
        // What was fast does not pay for what is slow for longer than that.
        watch.carried(1 << 30);
        assert!(slow_at(&watch, 0, 50).is_some_and(|look| look.abs_diff(42) <= 1));
    }

    #[test]
    fn streams_share_what_their_connection_carries() {
        let pace = Pace { bytes: 240, over: Duration::from_secs(10) };
        let clock = Clock::new();
        let connection = Watch::new(&clock, NEVER, 0);
        let (one, other) = (Watch::of_stream(&connection), Watch::of_stream(&connection));
        for stream in [&one, &other] {
            stream.enter(Phase::Body, NEVER);
            stream.await_client(Way::Down, pace);
        }
        // Each is slower than that, and both together are not.
        assert_eq!((slow_at(&one, 60, 100), other.is_slow()), (None, false));
        assert!(slow_at(&one, 0, 100).is_some() && other.is_slow() && !connection.is_slow());
    }
}
