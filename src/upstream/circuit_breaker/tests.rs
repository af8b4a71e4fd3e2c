use super::*;
use proptest::prelude::*;
use std::sync::Barrier;
use std::sync::atomic::AtomicU32;
use std::thread;

const GOOD: BreakerOutcome = BreakerOutcome { failed: false, took: Duration::from_millis(1) };
const FAILED: BreakerOutcome = BreakerOutcome { failed: true, ..GOOD };
const SLOW: BreakerOutcome = BreakerOutcome { failed: false, took: Duration::from_millis(900) };
/// Random bits that lengthen nothing and shorten nothing.
const MIDDLE: u64 = 1 << 63;

fn settings() -> BreakerSettings {
    BreakerSettings { slow_after: Some(Duration::from_millis(500)), ..BreakerSettings::default() }
}

fn permit(breaker: &Arc<Breaker>, now_ms: u64) -> Option<BreakerPermit> {
    breaker.admit(&settings(), now_ms).0.ok()
}

fn call(breaker: &Arc<Breaker>, outcome: BreakerOutcome, now_ms: u64) -> Option<BreakerChange> {
    let permit = permit(breaker, now_ms).expect("refused");
    breaker.record(0, permit, outcome, &settings(), now_ms, MIDDLE)
}

/// Fails until it opens; returns for how long.
fn open(breaker: &Arc<Breaker>, now_ms: u64) -> u64 {
    for _ in 0..100 {
        if let Some(BreakerChange::Opened { open_for, .. }) = call(breaker, FAILED, now_ms) {
            return millis(open_for);
        }
    }
    panic!("does not open");
}

#[test]
fn opens_when_half_of_enough_calls_failed() {
    let breaker = Breaker::new(2);
    for _ in 0..10 {
        assert_eq!(call(&breaker, GOOD, 1_000), None);
    }
    for _ in 0..9 {
        assert_eq!(call(&breaker, FAILED, 2_000), None);
    }
    let opened = BreakerChange::Opened {
        by: OpenedBy::Failures,
        calls: 20,
        failed: 10,
        slow: 0,
        times: 1,
        open_for: Duration::from_secs(5),
    };
    assert_eq!(call(&breaker, FAILED, 2_000), Some(opened));
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[test]
fn fewer_than_half_or_too_few_do_not_open_it() {
    let breaker = Breaker::new(1);
    for _ in 0..19 {
        assert_eq!(call(&breaker, FAILED, 0), None);
    }
    // Those are out of the window by now.
    for _ in 0..101 {
        assert_eq!(call(&breaker, GOOD, 20_000), None);
    }
    for _ in 0..100 {
        assert_eq!(call(&breaker, FAILED, 20_000), None);
    }
}

#[test]
fn opens_when_most_calls_are_slow() {
    let breaker = Breaker::new(1);
    for _ in 0..4 {
        assert_eq!(call(&breaker, GOOD, 0), None);
    }
    let changes: Vec<_> = (0..16).filter_map(|_| call(&breaker, SLOW, 0)).collect();
    assert!(matches!(changes[..], [BreakerChange::Opened { by: OpenedBy::SlowCalls, calls: 20, slow: 16, .. }]));
}

#[test]
fn refuses_until_its_time_is_over_and_then_admits_the_probes_only() {
    let breaker = Breaker::new(1);
    assert_eq!(open(&breaker, 1_000), 5_000);
    let (refused, change) = breaker.admit(&settings(), 2_000);
    assert_eq!((refused.unwrap_err().retry_after, change), (Duration::from_secs(4), None));
    assert!(permit(&breaker, 5_999).is_none());
    let (first, change) = breaker.admit(&settings(), 6_000);
    let first = first.unwrap();
    assert!(first.is_probe());
    assert_eq!(change, Some(BreakerChange::HalfOpened));
    let others: Vec<_> = (0..5).filter_map(|_| permit(&breaker, 6_000)).collect();
    assert_eq!(others.len(), 2);
    drop(others);
    // Those gave their places back without an outcome.
    let others: Vec<_> = (0..5).filter_map(|_| permit(&breaker, 6_000)).collect();
    assert_eq!(others.len(), 2);
}

#[test]
fn good_probes_close_it_and_what_was_seen_before_is_forgotten() {
    let breaker = Breaker::new(1);
    open(&breaker, 0);
    assert_eq!(call(&breaker, GOOD, 5_000), None);
    assert_eq!(call(&breaker, GOOD, 5_000), None);
    // Two of three were good: there is room for one.
    let last = permit(&breaker, 5_000).unwrap();
    assert!(permit(&breaker, 5_000).is_none());
    assert_eq!(breaker.record(0, last, GOOD, &settings(), 5_000, MIDDLE), Some(BreakerChange::Closed));
    assert_eq!(breaker.window(&settings(), 5_000), (0, 0, 0));
    assert_eq!(call(&breaker, FAILED, 5_000), None);
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[test]
fn a_bad_probe_opens_it_for_twice_as_long_up_to_the_longest() {
    for bad in [FAILED, SLOW] {
        let breaker = Breaker::new(1);
        let mut now = open(&breaker, 0);
        for expected in [10, 20, 40, 60, 60, 60] {
            match call(&breaker, bad, now) {
                Some(BreakerChange::Opened { by: OpenedBy::Probe, open_for, .. }) => {
                    assert_eq!(open_for, Duration::from_secs(expected));
                    now += millis(open_for);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn it_opens_longer_again_until_it_was_closed_for_long() {
    let breaker = Breaker::new(1);
    let close = |now| (0..3).filter_map(|_| call(&breaker, GOOD, now)).count();
    assert_eq!(open(&breaker, 0), 5_000);
    close(5_000);
    assert_eq!(open(&breaker, 64_999), 10_000);
    close(80_000);
    assert_eq!(open(&breaker, 140_000), 5_000);
}

#[test]
fn the_time_is_spread_by_a_tenth() {
    for (bits, expected) in [(0, 4_500), (u64::MAX, 5_500)] {
        let breaker = Breaker::new(1);
        let settings = BreakerSettings { min_calls: 1, ..settings() };
        let permit = permit(&breaker, 0).unwrap();
        let change = breaker.record(0, permit, FAILED, &settings, 0, bits);
        let expected = Duration::from_millis(expected);
        assert!(matches!(change, Some(BreakerChange::Opened { open_for, .. }) if open_for == expected), "{change:?}");
    }
}

#[test]
fn outcomes_of_calls_that_were_admitted_before_a_change_are_ignored() {
    let breaker = Breaker::new(1);
    let old: Vec<_> = (0..50).map(|_| permit(&breaker, 0).unwrap()).collect();
    open(&breaker, 0);
    let probe = permit(&breaker, 5_000).unwrap();
    for permit in old {
        assert_eq!(breaker.record(0, permit, FAILED, &settings(), 5_000, MIDDLE), None);
    }
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
    let late = permit(&breaker, 5_000).unwrap();
    breaker.record(0, probe, FAILED, &settings(), 5_000, MIDDLE);
    // Half-open again: the probe of the first time neither counts nor gives a place back.
    let now: Vec<_> = (0..9).filter_map(|_| permit(&breaker, 15_000)).collect();
    assert_eq!(now.len(), 3);
    drop(late);
    assert!(permit(&breaker, 15_000).is_none());
}

#[test]
fn closing_by_hand_forgets_everything() {
    let breaker = Breaker::new(1);
    assert_eq!(breaker.reset(0), None);
    open(&breaker, 0);
    assert_eq!(breaker.reset(1), Some(BreakerChange::Closed));
    assert_eq!(breaker.window(&settings(), 1), (0, 0, 0));
    assert_eq!(open(&breaker, 2), 5_000);
}

#[test]
fn words_hold_what_was_put_in() {
    for state in [BreakerState::Closed, BreakerState::Open, BreakerState::HalfOpen] {
        let word = BreakerWord { state, times: 63, generation: 0xfedc, at_ms: BreakerWord::AT_MS_MAX - 5 };
        assert_eq!(BreakerWord::unpack(word.pack()), word);
    }
}

#[test]
fn of_threads_that_see_the_same_reason_one_opens_it() {
    let (round, opened) = (Barrier::new(4), AtomicU32::new(0));
    let breakers: Vec<_> = (0..500).map(|_| Breaker::new(4)).collect();
    let settings = BreakerSettings { min_calls: 1, ..settings() };
    thread::scope(|scope| {
        for worker in 0..4_usize {
            let (round, opened, breakers) = (&round, &opened, &breakers);
            scope.spawn(move || {
                for breaker in breakers {
                    let permit = permit(breaker, 0).unwrap();
                    round.wait();
                    let change = breaker.record(worker, permit, FAILED, &settings, 0, MIDDLE);
                    opened.fetch_add(u32::from(change.is_some()), Ordering::SeqCst);
                    round.wait();
                }
            });
        }
    });
    assert_eq!(opened.into_inner(), 500);
}

#[test]
fn threads_see_each_change_once_and_never_more_probes_than_allowed() {
    let breaker = Breaker::new(4);
    let (open_for, open_max) = (Duration::from_millis(200), Duration::from_secs(1));
    let settings = BreakerSettings { probes: 2, open_for, open_max, ..settings() };
    let [opened, half_opened, closed, clock] = [const { AtomicU64::new(0) }; 4];
    // Probes under way, by generation. Counted after they are admitted and until before they end: never too many.
    let probing: Vec<_> = (0..=u16::MAX).map(|_| AtomicU32::new(0)).collect();
    thread::scope(|scope| {
        for worker in 0..4_usize {
            let (breaker, opened, half_opened, closed) = (&breaker, &opened, &half_opened, &closed);
            let (clock, probing) = (&clock, &probing);
            scope.spawn(move || {
                let mut dice = crate::strategy::Dice::seeded(worker as u64);
                for _ in 0..40_000 {
                    let now_ms = clock.fetch_add(1, Ordering::SeqCst) * 5;
                    let (admitted, change) = breaker.admit(&settings, now_ms);
                    half_opened.fetch_add(u64::from(change.is_some()), Ordering::SeqCst);
                    let Ok(permit) = admitted else {
                        // Who has a probe under way is to get on with it.
                        thread::yield_now();
                        continue;
                    };
                    let mut failed = dice.below(4) > 0;
                    if permit.is_probe() {
                        let probing = &probing[usize::from(permit.generation)];
                        assert!(probing.fetch_add(1, Ordering::SeqCst) < 2, "too many probes");
                        thread::yield_now();
                        failed = dice.below(8) == 0;
                        probing.fetch_sub(1, Ordering::SeqCst);
                    }
                    if dice.below(16) == 0 {
                        continue;
                    }
                    let outcome = BreakerOutcome { failed, ..GOOD };
                    match breaker.record(worker, permit, outcome, &settings, now_ms, dice.bits()) {
                        Some(BreakerChange::Opened { .. }) => opened.fetch_add(1, Ordering::SeqCst),
                        Some(BreakerChange::Closed) => closed.fetch_add(1, Ordering::SeqCst),
                        _ => 0,
                    };
                }
            });
        }
    });
    let [opened, half_opened, closed] = [opened, half_opened, closed].map(AtomicU64::into_inner);
    assert!(opened > 20 && closed > 10, "{opened} {half_opened} {closed}");
    let generation = BreakerWord::unpack(breaker.word.load(Ordering::SeqCst)).generation;
    assert_eq!(u64::from(generation), opened + half_opened + closed);
}

proptest! {
    /// Whatever happens, states follow one another only as they may, no more probes are under way than allowed, and an open
    /// breaker admits nobody before its time.
    #[test]
    fn states_follow_one_another_as_they_may(
        steps in prop::collection::vec((0_u64..3_000, 0_u8..10, any::<u64>()), 1..600),
    ) {
        let settings = BreakerSettings { min_calls: 5, ..settings() };
        let breaker = Breaker::new(1);
        let mut held: Vec<BreakerPermit> = Vec::new();
        let (mut now, mut state, mut until) = (0, BreakerState::Closed, 0);
        for (pass, what, bits) in steps {
            now += pass;
            let change = match what {
                0..4 => {
                    let (admitted, change) = breaker.admit(&settings, now);
                    let after = if change.is_some() { BreakerState::HalfOpen } else { state };
                    match admitted {
                        Ok(permit) => {
                            prop_assert_ne!(after, BreakerState::Open);
                            prop_assert_eq!(permit.is_probe(), after == BreakerState::HalfOpen);
                            held.push(permit);
                        }
                        Err(refused) => {
                            prop_assert_ne!(after, BreakerState::Closed);
                            if after == BreakerState::Open {
                                prop_assert_eq!(now + millis(refused.retry_after), until);
                            }
                        }
                    }
                    change
                }
                4 => {
                    if !held.is_empty() { held.swap_remove(bits as usize % held.len()); }
                    None
                }
                _ => {
                    if held.is_empty() { continue; }
                    let permit = held.swap_remove(bits as usize % held.len());
                    let outcome = if what < 7 { FAILED } else { GOOD };
                    breaker.record(0, permit, outcome, &settings, now, bits)
                }
            };
            match change {
                Some(BreakerChange::Opened { by, times, open_for, .. }) => {
                    let probe = by == OpenedBy::Probe;
                    prop_assert_eq!(state, if probe { BreakerState::HalfOpen } else { BreakerState::Closed });
                    prop_assert!(times >= 1 && open_for <= settings.open_max * 11 / 10);
                    (state, until) = (BreakerState::Open, now + millis(open_for));
                }
                Some(BreakerChange::HalfOpened) => {
                    prop_assert!(state == BreakerState::Open && now >= until);
                    state = BreakerState::HalfOpen;
                }
                Some(BreakerChange::Closed) => {
                    prop_assert_eq!(state, BreakerState::HalfOpen);
                    state = BreakerState::Closed;
                }
                None => {}
            }
            prop_assert_eq!(breaker.state(), state);
            let generation = BreakerWord::unpack(breaker.word.load(Ordering::Relaxed)).generation;
            let probing = held.iter().filter(|permit| permit.is_probe() && permit.generation == generation).count();
            prop_assert!(probing <= usize::from(settings.probes));
        }
    }
}
