//! A worker's time, and which watches are overdue by it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::{Phase, Watch};
use crate::telemetry::clock;

/// A worker's coarse time: read from memory, moved on once a tick.
#[derive(Debug)]
pub struct Clock {
    epoch: Instant,
    /// When that was on the clock that all threads share.
    epoch_ms: u64,
    now_ms: Cell<u64>,
    tick_ms: Cell<u64>,
    watches: RefCell<Vec<Weak<Watch>>>,
    overdue: RefCell<Overdue>,
    /// When some of them were told last.
    told_ms: Cell<u64>,
    /// When they were last looked over.
    swept_ms: Cell<u64>,
    /// Whether the task that moves the clock waits for something to watch.
    asleep: Cell<bool>,
    wanted: Notify,
}

impl Clock {
    /// A clock that shows 0.
    pub fn new() -> Rc<Self> {
        let epoch = Instant::now();
        Rc::new(Self {
            epoch,
            epoch_ms: clock::now_ms(epoch),
            now_ms: Cell::new(0),
            tick_ms: Cell::new(MAX_TICK_MS),
            watches: RefCell::default(),
            overdue: RefCell::default(),
            told_ms: Cell::new(0),
            swept_ms: Cell::new(0),
            asleep: Cell::new(false),
            wanted: Notify::new(),
        })
    }

    /// Milliseconds since the worker began, as of the last tick.
    pub fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    /// The same on [`telemetry::clock`](crate::telemetry::clock), a millisecond less at most: for what workers count on together.
    pub fn shared_ms(&self) -> u64 {
        self.epoch_ms + self.now_ms.get()
    }

    /// How long a tick is.
    pub fn tick(&self) -> Duration {
        Duration::from_millis(self.tick_ms.get())
    }

    /// Sets the tick for the shortest time-out there is.
    pub fn set_shortest(&self, timeout: Duration) {
        let twentieth = u64::try_from(timeout.as_millis() / 20).unwrap_or(MAX_TICK_MS);
        self.tick_ms.set(twentieth.clamp(MIN_TICK_MS, MAX_TICK_MS));
    }

    /// Whether anything is being watched.
    pub fn is_idle(&self) -> bool {
        self.watches.borrow().is_empty()
    }

    pub(super) fn tick_ms(&self) -> u64 {
        self.tick_ms.get()
    }

    /// Catches up, if it stood still because there was nothing to watch.
    pub(super) fn wake(&self) {
        if self.asleep.replace(false) {
            self.at(Instant::now());
            self.swept_ms.set(self.now_ms.get());
            self.wanted.notify_one();
        }
    }

    /// Watches over one more.
    pub(super) fn add(&self, watch: &Rc<Watch>) {
        self.watches.borrow_mut().push(Rc::downgrade(watch));
    }

    /// Waits until there is something to watch: for the task that moves the clock, so that a worker without connections does not
    /// wake up for nothing. The watch itself ends the wait: nothing else can know that it is there before the next look.
    pub async fn sleep_until_wanted(&self) {
        self.asleep.set(true);
        self.wanted.notified().await;
    }

    /// It is `now`, as the caller had to find out anyway: a busy worker's deadlines do not suffer from its last tick being long
    /// ago.
    pub fn at(&self, now: Instant) {
        let now_ms = now.saturating_duration_since(self.epoch).as_millis() as u64;
        self.now_ms.set(now_ms.max(self.now_ms.get()));
    }

    /// How long to wait before the next [`Clock::sweep`]: a tick, and less while some of those who are overdue wait to be told.
    pub fn pause(&self) -> Duration {
        match self.overdue.borrow().leisurely.is_empty() {
            true => self.tick(),
            false => Duration::from_millis(1),
        }
    }

    /// Moves the clock on, and once a tick looks over all watches: tells those that are overdue and forgets those that are gone. Whether
    /// there are more to be told once others had their turn: thousands that began together are overdue together.
    pub fn sweep(&self) -> bool {
        self.at(Instant::now());
        self.look()
    }

    /// [`Clock::sweep`] at the time that it is.
    pub(super) fn look(&self) -> bool {
        let (now, mut overdue) = (self.now_ms.get(), self.overdue.borrow_mut());
        let overdue = &mut *overdue;
        // Those who were found before are told first: to look over all of them for each turn would cost the square of their number.
        if overdue.prompt.is_empty() && now >= self.swept_ms.get() + self.tick_ms.get() {
            self.find(overdue);
        }
        // The more there are, the more at a time: a worker that has much else to do is not to fall behind for good.
        let most = TOLD_A_TURN + overdue.prompt.len() / 1024;
        tell(&mut overdue.prompt, now, most);
        let since = now.saturating_sub(self.told_ms.replace(now)) as usize;
        let most = since.min(4) * (LEISURELY_A_MS + overdue.leisurely.len() / 4096);
        tell(&mut overdue.leisurely, now, most);
        !overdue.prompt.is_empty()
    }

    /// Looks over all watches for those that are to be told.
    fn find(&self, overdue: &mut Overdue) {
        let now = self.now_ms.get();
        // A worker that was kept from looking does not hold that against its clients.
        let since = now.saturating_sub(self.swept_ms.replace(now)).min(LONGEST_LOOK_MS);
        self.watches.borrow_mut().retain(|weak| {
            let Some(watch) = weak.upgrade() else { return false };
            if watch.is_overdue(now) {
                watch.found.set(true);
                let waited_for = watch.awaited.get() == 0
                    && !matches!(watch.phase.get(), Phase::Handshake | Phase::Idle | Phase::Head);
                let queue = if waited_for { &mut overdue.prompt } else { &mut overdue.leisurely };
                queue.push_back(Weak::clone(weak));
            } else if watch.awaited.get() != 0 && watch.measure(since) {
                watch.found.set(true);
                overdue.leisurely.push_back(Weak::clone(weak));
            }
            true
        });
    }

    /// Asks connections to end that have waited for their next request for so long, `most` at most. How many there were.
    pub fn end_idle(&self, since: Duration, most: usize) -> usize {
        let Some(before_ms) = self.now_ms.get().checked_sub(since.as_millis() as u64) else { return 0 };
        let mut ended = 0;
        self.each(|watch| {
            if ended < most && watch.is_idle_since(before_ms) && !watch.draining() {
                watch.drain();
                ended += 1;
            }
        });
        ended
    }

    /// Calls `each` for every watch.
    pub fn each(&self, mut each: impl FnMut(&Watch)) {
        for watch in self.watches.borrow().iter().filter_map(Weak::upgrade) {
            each(&watch);
        }
    }

    /// Has it show another time.
    #[cfg(test)]
    pub(super) fn set(&self, ms: u64) {
        self.now_ms.set(ms);
    }
}

const MIN_TICK_MS: u64 = 5;
const MAX_TICK_MS: u64 = 250;
const LONGEST_LOOK_MS: u64 = 1000;
/// So many are told, at least, before others get their turn: each may close its connection and its backend's, 50 µs together.
const TOLD_A_TURN: usize = 4;
/// So many in a millisecond, at least, of those that no client waits for. What the kernel does behind a close, it does for many at once,
/// milliseconds long, if there are that many.
const LEISURELY_A_MS: usize = 1;

/// Those that were found to be overdue, and wait for their turn to be told.
#[derive(Debug, Default)]
struct Overdue {
    /// Clients wait for what becomes of these.
    prompt: VecDeque<Weak<Watch>>,
    /// isobar waits for their clients, and not the other way round.
    leisurely: VecDeque<Weak<Watch>>,
}

/// Tells the first of those in a queue: so many at most.
fn tell(queue: &mut VecDeque<Weak<Watch>>, now_ms: u64, most: usize) {
    let mut told = 0;
    while told < most {
        let Some(watch) = queue.pop_front() else { break };
        told += usize::from(watch.upgrade().is_some_and(|watch| watch.tell(now_ms)));
    }
    if queue.is_empty() {
        // What a storm took is given back.
        queue.shrink_to(64);
    }
}

#[cfg(test)]
mod tests {
    use super::super::NEVER;
    use super::*;

    /// A thousand that are overdue together.
    fn thousand(clock: &Rc<Clock>, phase: Phase) -> Vec<Rc<Watch>> {
        let watches: Vec<_> = (0..1000).map(|_| Watch::new(clock, NEVER, 0)).collect();
        watches.iter().for_each(|watch| watch.enter(phase, Duration::from_secs(1)));
        clock.now_ms.set(10_000);
        watches
    }

    /// How many of them know.
    fn told(watches: &[Rc<Watch>]) -> usize {
        watches.iter().filter(|watch| watch.expired()).count()
    }

    #[test]
    fn thousands_that_are_overdue_together_are_told_one_turn_after_the_other() {
        let clock = Clock::new();
        let watches = thousand(&clock, Phase::Response);
        let mut looks = 1;
        while clock.look() {
            assert_eq!(told(&watches), looks * TOLD_A_TURN);
            looks += 1;
        }
        assert_eq!((told(&watches), looks), (1000, 1000_usize.div_ceil(TOLD_A_TURN)));
        assert!(!clock.look(), "once each");
        assert_eq!(clock.pause(), clock.tick());
    }

    #[test]
    fn those_for_whom_nobody_waits_are_told_in_time() {
        let clock = Clock::new();
        let watches = thousand(&clock, Phase::Idle);
        let late = Watch::new(&clock, NEVER, 0);
        clock.look();
        let first = told(&watches);
        assert!((1..=4 * LEISURELY_A_MS).contains(&first));
        // Two of them begin a request after all.
        let kept = watches.iter().find(|watch| !watch.expired()).unwrap();
        kept.enter(Phase::Response, Duration::from_secs(60));
        let (again, leisurely) = watches.split_last().unwrap();
        for late in [again, &late] {
            late.enter(Phase::Response, Duration::ZERO);
        }
        for ms in 1..=1000 {
            assert!(clock.pause() < clock.tick(), "after {ms} ms");
            clock.now_ms.set(10_000 + ms);
            assert!(!clock.look());
            assert_eq!(told(leisurely), (first + ms as usize * LEISURELY_A_MS).min(998));
            // An exchange that a client waits for does not wait behind them.
            assert_eq!([again.expired(), late.expired()], [ms >= clock.tick_ms.get(); 2]);
            if told(leisurely) == 998 {
                break;
            }
        }
        clock.now_ms.set(20_000);
        clock.look();
        assert_eq!((told(leisurely), kept.expired(), clock.pause()), (998, false, clock.tick()));
    }

    #[test]
    fn only_connections_that_are_idle_for_long_are_asked_to_end() {
        let clock = Clock::new();
        clock.now_ms.set(10_000);
        let minute = Duration::from_secs(60);
        let [old, young, busy] = [9_000, 9_001, 9_000].map(|since| {
            let watch = Watch::new(&clock, minute, 0);
            clock.now_ms.set(since);
            watch.enter(Phase::Idle, minute);
            watch
        });
        busy.enter(Phase::Response, minute);
        let over = Watch::of_stream(&busy);
        clock.now_ms.set(10_000);
        assert_eq!(clock.end_idle(Duration::from_secs(1), 9), 1);
        let ends = [&old, &young, &busy, &over].map(|watch| watch.draining());
        assert_eq!(ends, [true, false, false, false]);
    }

    #[test]
    fn forgets_watches_that_are_gone() {
        let clock = Clock::new();
        let watch = Watch::new(&clock, Duration::from_secs(1), 0);
        assert!(!clock.is_idle());
        drop(watch);
        clock.now_ms.set(clock.tick_ms.get());
        clock.look();
        assert!(clock.is_idle());
    }
}
