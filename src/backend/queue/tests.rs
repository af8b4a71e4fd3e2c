use super::*;
use crate::backend::limits::Permits;
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

    fn poll<T>(&mut self, now_ms: u64, attempt: impl FnMut() -> TurnOutcome<T>) -> Poll<Result<T, TimedOut>> {
        self.flag.0.store(false, Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&self.flag));
        self.waiter.poll(&Context::from_waker(&waker), now_ms, attempt)
    }

    /// Comes while all is full.
    fn waits(queue: &Arc<Queue>, settings: &QueueSettings, now_ms: u64) -> Self {
        let mut client = Self::enter(queue, settings, now_ms);
        assert_eq!(client.poll(now_ms, || TurnOutcome::<()>::Full), Poll::Pending);
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
            TurnOutcome::<()>::Full
        });
        assert_eq!(result, Poll::Pending);
    }
    assert_eq!(tries, 1);
    for expected in 0..3 {
        queue.released();
        assert_eq!(woken(&clients), [0]);
        assert_eq!(clients.remove(0).poll(1, || TurnOutcome::Leased(expected)), Poll::Ready(Ok(expected)));
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
    assert_eq!(late.poll(1, || -> TurnOutcome<()> { panic!("not its turn") }), Poll::Pending);
    assert_eq!(first.poll(1, || TurnOutcome::Leased(())), Poll::Ready(Ok(())));
    assert!(!late.woken());
}

#[test]
fn a_turn_that_nobody_could_take_is_for_who_comes() {
    let (queue, settings) = (Arc::new(Queue::default()), QueueSettings::default());
    let mut first = Client::waits(&queue, &settings, 0);
    queue.released();
    queue.released();
    let mut late = Client::enter(&queue, &settings, 1);
    assert_eq!(late.poll(1, || TurnOutcome::Leased(())), Poll::Ready(Ok(())));
    let mut later = Client::enter(&queue, &settings, 1);
    assert_eq!(later.poll(1, || -> TurnOutcome<()> { panic!("there were two") }), Poll::Pending);
    assert_eq!(first.poll(1, || TurnOutcome::Leased(())), Poll::Ready(Ok(())));
}

#[test]
fn who_leaves_passes_its_turn_on() {
    let (queue, settings) = (Arc::new(Queue::default()), QueueSettings::default());
    let mut clients: Vec<_> = (0..3).map(|_| Client::waits(&queue, &settings, 0)).collect();
    queue.released();
    drop(clients.remove(0));
    assert_eq!(woken(&clients), [0]);
    // One whose time is over does not use its turn.
    assert_eq!(clients[0].poll(1_000, || TurnOutcome::Leased(())), Poll::Ready(Err(TimedOut)));
    assert_eq!(woken(&clients[1..]), [0]);
    // And who has none leaves without anybody being woken.
    let last = Client::waits(&queue, &settings, 0);
    drop(clients);
    queue.change(|line| {
        assert_eq!(line.counts().1, 1, "passed on to the last");
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
        assert_eq!(clients[index].poll(1, || TurnOutcome::<()>::NotForMe), Poll::Pending);
    }
    assert!(woken(&clients).is_empty());
    let mut late = Client::enter(&queue, &settings, 1);
    assert_eq!(late.poll(1, || TurnOutcome::Leased(())), Poll::Ready(Ok(())));
    // They kept their places.
    queue.released();
    assert_eq!(woken(&clients), [0]);
}

#[test]
fn who_tried_while_room_was_made_tries_again() {
    let (queue, settings) = (Arc::new(Queue::default()), QueueSettings::default());
    for in_vain in [TurnOutcome::Full, TurnOutcome::NotForMe] {
        let mut tries = 0;
        let result = Client::enter(&queue, &settings, 0).poll(0, || {
            tries += 1;
            if tries == 1 {
                // Another worker, just after this one has looked.
                queue.released();
                return in_vain;
            }
            TurnOutcome::Leased(())
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
        let result = clients[0].poll(1, || if room > 0 { TurnOutcome::Leased(()) } else { TurnOutcome::Full });
        if room > 0 {
            assert_eq!(result, Poll::Ready(Ok(())));
            clients.remove(0);
        }
    }
    assert_eq!(clients.len(), 5);
    assert!(woken(&clients).is_empty());
    let mut late = Client::enter(&queue, &settings, 1);
    assert_eq!(late.poll(1, || -> TurnOutcome<()> { panic!("all is full") }), Poll::Pending);
}

#[test]
fn room_that_was_there_before_the_line_is_found_by_all_who_can_use_it() {
    let (queue, settings) = (Arc::new(Queue::default()), QueueSettings::default());
    // The first comes although there is room: it saw a line that is gone by now. Or a retry, which cannot use the room.
    for in_front in [TurnOutcome::Leased(()), TurnOutcome::NotForMe] {
        let mut first = Client::enter(&queue, &settings, 0);
        let _ = first.poll(0, || in_front);
        for _ in 0..3 {
            let mut late = Client::enter(&queue, &settings, 0);
            assert_eq!(late.poll(0, || TurnOutcome::Leased(())), Poll::Ready(Ok(())));
        }
    }
    let mut first = Client::enter(&queue, &settings, 0);
    let mut late: Vec<_> = (0..3).map(|_| Client::enter(&queue, &settings, 0)).collect();
    assert_eq!(first.poll(0, || TurnOutcome::Leased(())), Poll::Ready(Ok(())));
    for client in &mut late {
        assert_eq!(client.poll(0, || TurnOutcome::Leased(())), Poll::Ready(Ok(())));
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
    assert_eq!(first.poll(1_009, || TurnOutcome::<()>::Full), Poll::Pending);
    assert_eq!(first.poll(1_010, || TurnOutcome::<()>::Full), Poll::Ready(Err(TimedOut)));
    assert_eq!(queue.len(), 1);
    drop(second);
    assert!(queue.is_empty());
    assert_eq!(queue.enter(&QueueSettings { max: 0, ..settings }, 0).unwrap_err(), Full);
}

#[test]
fn a_line_that_does_not_empty_serves_who_came_last() {
    let queue = Arc::new(Queue::default());
    let settings = QueueSettings { order: QueueDiscipline::ADAPTIVE, ..QueueSettings::default() };
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
    assert_eq!(line.counts(), (0, 0, 0));
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
                                Some(at) => TurnOutcome::Leased(at),
                                None if tried < 2 && permits[tried].has_room(limit) => TurnOutcome::NotForMe,
                                None => TurnOutcome::Full,
                            }
                        };
                        let at = match queue.is_empty().then(attempt) {
                            Some(TurnOutcome::Leased(at)) => Some(at),
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
    mut attempt: impl FnMut() -> TurnOutcome<T>,
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
        let settings = QueueSettings { max: 50, timeout: MS(u64::MAX), order: QueueDiscipline::Fifo };
        let (mut limits, mut used) = ([1_u32, 1], [0_u32; 2]);
        let mut waiting: Vec<Request> = Vec::new();
        let (mut came, mut last_served) = (0, 0);
        for (what, bits) in steps {
            // With `settle`, whoever is woken looks before anything else happens; else when chance has it.
            let attempt = |used: &mut [u32; 2], limits: [u32; 2], tried: usize| {
                let room = |at: usize| used[at] < limits[at];
                match (0..2).find(|&at| at != tried && room(at)) {
                    Some(at) => { used[at] += 1; TurnOutcome::Leased(at) }
                    None if (0..2).any(room) => TurnOutcome::NotForMe,
                    None => TurnOutcome::Full,
                }
            };
            match what {
                0..4 => {
                    // One in four has been somewhere already.
                    let tried = if what == 0 { bits as usize % 2 } else { 2 };
                    came += 1;
                    // One in five saw a line that is gone by now, and so enters without a try.
                    let tries = queue.is_empty() && bits % 5 > 0;
                    if tries && matches!(attempt(&mut used, limits, tried), TurnOutcome::Leased(_)) {
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
