use std::time::{Duration, SystemTime};

use super::*;
use crate::backend::health::{LastCheck, Thresholds};
use crate::config::{
    BackendConfig, BackendLimits, HealthCheckConfig, OutlierConfig, PoolConfig, ProbeKind, StrategyConfig, Table as _,
    Tier,
};
use crate::telemetry::events::{EventKind, Events};

const S: Duration = Duration::from_secs(1);

fn address(last: u8) -> Address {
    Address::Ip(([10, 0, 0, last], 9001).into())
}

/// Backends of weight 1 but for one of weight 0, checked or not.
fn config(backends: &[u8], initial: Option<InitialHealth>) -> Arc<UpstreamConfig> {
    let weight = |last: u8| u16::from(last != 0);
    let backend = |&it: &u8| BackendConfig { weight: weight(it), ..BackendConfig::new(address(it)) };
    Arc::new(UpstreamConfig {
        connect_timeout: S,
        retries: Arc::new(crate::config::RetryConfig { max: 0, ..Default::default() }),
        pool: PoolConfig { max_idle: 1, idle_timeout: S, ..PoolConfig::of_defaults() },
        health_check: initial.map(|initial| {
            Arc::new(HealthCheckConfig {
                kind: ProbeKind::Tcp,
                interval: S,
                interval_in_doubt: S,
                jitter_percent: 0,
                timeout: S,
                unhealthy_after: 1,
                healthy_after: 1,
                initial,
                ..HealthCheckConfig::of_defaults()
            })
        }),
        panic_threshold: 0,
        ..UpstreamConfig::new("u", backends.iter().map(backend).collect())
    })
}

fn build(config: Arc<UpstreamConfig>, state: &Arc<UpstreamState>) -> Arc<Upstream> {
    Upstream::build(config, Arc::clone(state), &Factories::default())
}

fn ready(upstream: &Upstream) -> Vec<String> {
    upstream.roster().ready().iter().map(|it| it.state.address.to_string()).collect()
}

fn check(upstream: &Upstream, place: usize, passed: bool) {
    let failure = (!passed).then(|| "refused".to_owned());
    let check = LastCheck { at: SystemTime::UNIX_EPOCH, took: S, failure };
    let thresholds = Thresholds { unhealthy_after: 1, healthy_after: 1 };
    upstream.roster().backends()[place].state.health.record(check, thresholds);
}

#[test]
fn a_refresh_takes_in_who_is_ready_and_leaves_out_who_is_not() {
    let state = UpstreamState::new("u".into(), 1);
    let upstream = build(config(&[1, 2, 0], Some(InitialHealth::Healthy)), &state);
    assert_eq!(ready(&upstream), ["10.0.0.1:9001", "10.0.0.2:9001"], "not the one without weight");
    let (before, now) = (upstream.roster(), Instant::now());
    assert!(!upstream.refresh(now));
    assert!(Arc::ptr_eq(&before, &upstream.roster()), "nothing is swapped for nothing");

    check(&upstream, 0, false);
    assert_eq!(ready(&upstream).len(), 2, "not before a refresh");
    assert!(upstream.refresh(now));
    assert_eq!(ready(&upstream), ["10.0.0.2:9001"]);
    assert_eq!(upstream.roster().backends().len(), 3);
    check(&upstream, 1, false);
    check(&upstream, 0, true);
    assert!(upstream.refresh(now));
    assert_eq!(ready(&upstream), ["10.0.0.1:9001"]);
    check(&upstream, 0, false);
    assert!(upstream.refresh(now));
    let mut dice = Dice::seeded(1);
    let none = upstream.lease(None, now, &Tried::default(), &mut dice);
    assert_eq!(none.err(), Some(NoLease::NoBackend), "none is left");
}

#[test]
fn a_backend_that_joins_waits_for_its_first_check_and_those_that_begin_do_not() {
    let state = UpstreamState::new("u".into(), 1);
    let first = build(config(&[1], Some(InitialHealth::FirstCheck)), &state);
    assert_eq!(ready(&first), ["10.0.0.1:9001"]);
    let next = build(config(&[1, 2], Some(InitialHealth::FirstCheck)), &state);
    assert_eq!(ready(&next), ["10.0.0.1:9001"]);
    check(&next, 1, true);
    next.refresh(Instant::now());
    assert_eq!(ready(&next).len(), 2);
}

#[test]
fn other_initial_states_are_the_same_for_all() {
    for (initial, expected) in [(InitialHealth::Healthy, [1, 2]), (InitialHealth::Unhealthy, [0, 0])] {
        let state = UpstreamState::new("u".into(), 1);
        let first = build(config(&[1], Some(initial)), &state);
        let next = build(config(&[1, 2], Some(initial)), &state);
        assert_eq!([ready(&first).len(), ready(&next).len()], expected, "{initial:?}");
    }
}

#[test]
fn a_check_that_is_added_throws_nobody_out_and_one_that_is_removed_lets_all_in() {
    let state = UpstreamState::new("u".into(), 1);
    let unchecked = build(config(&[1, 2], None), &state);
    let checked = build(config(&[1, 2], Some(InitialHealth::Unhealthy)), &state);
    assert_eq!(ready(&checked).len(), 2, "they have been serving");
    check(&checked, 0, false);
    checked.refresh(Instant::now());
    assert_eq!(ready(&checked).len(), 1);
    let again = build(config(&[1, 2], None), &state);
    assert_eq!(ready(&again).len(), 2);
    assert_eq!(ready(&unchecked).len(), 2);
}

/// Backends that take one request each, whatever the strategy would like.
#[test]
fn a_full_backend_is_passed_over_however_many_are_full() {
    for strategy in [StrategyConfig::RoundRobin, StrategyConfig::PowerOfTwo, StrategyConfig::LeastConnections] {
        let numbers: Vec<u8> = (1..=30).collect();
        let mut config = UpstreamConfig::clone(&config(&numbers, None));
        config.strategy = strategy;
        let one = BackendLimits { max_in_flight: Some(5), max_connections: Some(1) };
        config.backends.iter_mut().for_each(|backend| backend.limit(one));
        let upstream = build(Arc::new(config), &UpstreamState::new("u".into(), 1));
        upstream.enforce();
        let (now, mut dice) = (Instant::now(), Dice::seeded(3));
        let mut lease = |tried: &Tried| upstream.lease(None, now, tried, &mut dice);
        let mut held: Vec<_> = (0..30).map(|_| lease(&Tried::default()).expect("one with room")).collect();
        assert_eq!(lease(&Tried::default()).err(), Some(NoLease::Full));
        assert!(upstream.roster().backends().iter().all(|it| it.state.in_flight() == 1));
        // The one that has room is found among all, but not by who was there already.
        let free = held.swap_remove(17);
        let mut tried = Tried::default();
        tried.push(free.backend().id);
        drop(free);
        assert!(upstream.has_room());
        assert_eq!(lease(&tried).err(), Some(NoLease::Full));
        assert!(lease(&Tried::default()).is_ok());
    }
}

#[test]
fn limits_hold_from_when_they_are_enforced_and_for_requests_of_the_snapshot_before() {
    let state = UpstreamState::new("u".into(), 1);
    let before = build(config(&[1], None), &state);
    before.enforce();
    let lease =
        |upstream: &Upstream| upstream.lease(None, Instant::now(), &Tried::default(), &mut Dice::seeded(1)).ok();
    let _held = [lease(&before).unwrap(), lease(&before).unwrap()];
    let mut limited = UpstreamConfig::clone(&config(&[1], None));
    limited.backends[0].limit(BackendLimits { max_in_flight: Some(2), max_connections: None });
    let next = build(Arc::new(limited), &state);
    assert!(lease(&before).is_some(), "a reload that is only prepared changes nothing");
    next.enforce();
    assert!(lease(&before).is_none() && lease(&next).is_none());
    before.enforce();
    assert!(lease(&next).is_some());
}

#[tokio::test]
async fn the_keeper_refreshes_what_is_there_now() {
    let state = UpstreamState::new("u".into(), 1);
    let first = build(config(&[1, 2], Some(InitialHealth::Healthy)), &state);
    let mut keepers = roster_keeper::Keepers::new(Events::default(), Arc::new(|_, _| {}));
    keepers.follow(std::slice::from_ref(&first));
    check(&first, 0, false);
    state.changed.notify_one();
    until(|| ready(&first).len() == 1).await;

    // Replaced, it goes on with the next; what changed in between is not lost.
    let second = build(config(&[1, 2, 3], Some(InitialHealth::Healthy)), &state);
    check(&second, 1, false);
    keepers.follow(std::slice::from_ref(&second));
    until(|| ready(&second) == ["10.0.0.3:9001"]).await;

    // Gone, it holds nothing.
    keepers.follow(&[]);
    until(|| Arc::strong_count(&second) == 1).await;
}

/// On one thread and without a clock: the others have run when this comes round again.
async fn until(condition: impl Fn() -> bool) {
    for _ in 0..100 {
        if condition() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it does not come to that");
}

/// An upstream that is judged, without checks.
fn judged(backends: &[u8]) -> Arc<Upstream> {
    build(config(backends, None), &UpstreamState::new("u".into(), 1))
}

fn note(upstream: &Upstream, place: usize, outcome: AttemptOutcome, times: usize) {
    for _ in 0..times {
        upstream.note(&upstream.roster().backends()[place].state, 0, outcome, Duration::from_millis(1));
    }
}

fn percents(upstream: &Upstream) -> Vec<u8> {
    upstream.roster().seats().iter().map(|seat| seat.percent.get()).collect()
}

/// An ejection from the first failure to the full weight, at the keeper's own times: it is never called in between.
#[test]
fn the_keeper_ejects_takes_back_and_warms_up_when_it_is_due() {
    let upstream = judged(&[1, 2]);
    let start = Instant::now();
    let keep = |now| roster_keeper::keep(&upstream, now, &mut || u64::MAX / 2);
    let (due, told) = keep(start);
    assert_eq!((due, told), (Some(start + 2 * S), vec![]), "the first interval");
    note(&upstream, 1, AttemptOutcome::Gateway, 5);
    let (mut due, told) = keep(start + S);
    let [EventKind::Ejected { times: 1, reason: "gateway_errors", lasts: Some(lasts), .. }] = &told[..] else {
        panic!("{told:?}")
    };
    assert!(lasts.abs_diff(30 * S) < S, "{lasts:?}");
    assert_eq!((ready(&upstream), due), (vec!["10.0.0.1:9001".to_owned()], Some(start + 2 * S)));
    note(&upstream, 1, AttemptOutcome::Gateway, 5);

    let (mut told, mut steps, mut calls) = (Vec::new(), vec![percents(&upstream)[1]], 0);
    let mut now = start + S;
    while now < start + 70 * S {
        assert!(due.unwrap() > now, "it would spin");
        now = due.unwrap();
        let (next, events) = keep(now);
        due = next;
        told.extend(events.into_iter().map(|event| (event, now)));
        if *steps.last().unwrap() != percents(&upstream)[1] {
            steps.push(percents(&upstream)[1]);
        }
        calls += 1;
    }
    let [(EventKind::Unejected { .. }, back)] = &told[..] else { panic!("{told:?}") };
    assert!((*back - start).abs_diff(31 * S) < S, "{:?}", *back - start);
    assert_eq!((steps[0], steps[1], steps.last(), percents(&upstream)[0]), (100, 10, Some(&100), 100));
    assert!(steps[1..].is_sorted() && steps.len() > 25, "{steps:?}");
    assert!(calls < 80, "{calls}");
}

#[test]
fn an_ejection_by_hand_is_no_matter_of_panic_and_ends_by_hand_or_in_its_time() {
    let upstream = judged(&[1, 2]);
    let (start, mut dice) = (Instant::now(), Dice::seeded(1));
    let outlier = |place: usize| Arc::clone(&upstream.roster().backends()[place].state);
    let keep = |now| roster_keeper::keep(&upstream, now, &mut || 0).1;
    keep(start);
    outlier(0).outlier.eject_by_hand(start, Some(start + 5 * S));
    outlier(1).outlier.eject_by_hand(start, None);
    keep(start);
    assert!(upstream.lease(None, start, &Tried::default(), &mut dice).is_err(), "an operator wants it so");
    assert_eq!(keep(start + 5 * S).len(), 1);
    assert_eq!(ready(&upstream), ["10.0.0.1:9001"]);
    assert!(keep(start + 500 * S).is_empty());
    assert!(outlier(1).outlier.take_back(start + 500 * S).is_some());
    keep(start + 501 * S);
    assert_eq!(percents(&upstream), [100, 10]);
}

/// An upstream of the given members, (priority, weight), in panic below half.
fn tiered(members: &[(Tier, u16)]) -> Arc<Upstream> {
    let mut config = (*config(&[1, 2, 3, 4, 5, 6][..members.len()], Some(InitialHealth::Healthy))).clone();
    config.strategy = StrategyConfig::WeightedRoundRobin;
    config.panic_threshold = 50;
    for (backend, &(tier, weight)) in config.backends.iter_mut().zip(members) {
        match tier {
            Tier::Priority(priority) => backend.priority = priority,
            Tier::Backup => backend.backup = true,
        }
        backend.weight = weight;
    }
    build(Arc::new(config), &UpstreamState::new("u".into(), 1))
}

/// In panic a first attempt may go to anybody in doubt; a second one goes to who is ready as long as there is one untried.
#[test]
fn retries_in_panic_go_to_the_ready_first() {
    let upstream = tiered(&[(Tier::Priority(0), 1); 5]);
    for place in [0, 1, 2] {
        check(&upstream, place, false);
    }
    let now = Instant::now();
    upstream.refresh(now);
    assert_eq!(upstream.roster().panic(), [Tier::Priority(0)]);
    let mut dice = Dice::seeded(3);
    let first = |dice: &mut Dice| upstream.lease(None, now, &Tried::default(), dice).unwrap().backend().id.slot;
    let firsts: std::collections::BTreeSet<_> = (0..50).map(|_| first(&mut dice)).collect();
    assert_eq!(firsts.len(), 5);
    for _ in 0..50 {
        let mut tried = Tried::default();
        let mut order = Vec::new();
        while let Ok(lease) = upstream.lease(None, now, &tried, &mut dice) {
            tried.push(lease.backend().id);
            let place = upstream.roster().backends().iter().position(|it| it.state.id == lease.backend().id).unwrap();
            order.push(place);
        }
        assert_eq!(order.len(), 5, "in the end all are tried: {order:?}");
        let ready_after_first = order[1..].iter().take_while(|&&place| place >= 3).count();
        assert_eq!(ready_after_first, if order[0] >= 3 { 1 } else { 2 }, "{order:?}");
    }
}

/// Ejects a backend as detection does after these outcomes. It takes another one that serves.
fn eject(upstream: &Upstream, place: usize, outcome: AttemptOutcome) {
    note(upstream, place, outcome, 5);
    roster_keeper::keep(upstream, Instant::now(), &mut || 0);
    assert!(upstream.roster().backends()[place].state.outlier.history().is_ejected(), "{place}");
}

/// The order in which a request is tried that fails everywhere, as places in the list.
fn order(upstream: &Upstream, reach: Reach) -> Vec<usize> {
    let (mut tried, mut order, mut dice) = (Tried::default(), Vec::new(), Dice::seeded(5));
    while let Ok(lease) = upstream.lease_further(None, Instant::now(), (&tried, reach), &mut dice) {
        assert!(!tried.contains(lease.backend().id), "twice: {order:?}");
        assert!(upstream.has_untried(&tried, reach));
        tried.push(lease.backend().id);
        let is_it = |it: &Backend| it.state.id == lease.backend().id;
        order.push(upstream.roster().backends().iter().position(is_it).unwrap());
    }
    assert!(!upstream.has_untried(&tried, reach));
    order
}

/// Before a request fails it is tried at those that are not ready: those with the fewest signs of death first, and never one that an operator
/// has taken out.
#[test]
fn the_last_resort_is_in_the_order_of_what_speaks_against_it() {
    let numbers: Vec<u8> = (1..=8).chain([0]).collect();
    for (panic_percent, unhealthy) in [(50, &[5, 4][..]), (0, &[])] {
        let mut config = UpstreamConfig::clone(&config(&numbers, Some(InitialHealth::Healthy)));
        config.outlier_detection = Some(OutlierConfig { max_ejected_percent: 100, ..OutlierConfig::default() });
        // So many have gone, and there is no panic all the same.
        (config.panic_threshold, config.overprovisioning_percent) = (panic_percent, 1000);
        let upstream = build(Arc::new(config), &UpstreamState::new("u".into(), 1));
        eject(&upstream, 1, AttemptOutcome::Connect);
        eject(&upstream, 2, AttemptOutcome::Reset);
        eject(&upstream, 3, AttemptOutcome::Gateway);
        check(&upstream, 4, false);
        check(&upstream, 5, false);
        let state = |place: usize| Arc::clone(&upstream.roster().backends()[place].state);
        state(4).health.note_unreachable(true);
        let by_hand = |place: usize, setting| {
            let act = crate::backend::operator_state::Act::Set(setting, None);
            let now = crate::backend::operator_state::Moment::now();
            upstream.act_by_hand(&state(place).address, act, &"test".into(), now).unwrap();
        };
        by_hand(6, crate::backend::operator_state::Setting::Drained);
        by_hand(7, crate::backend::operator_state::Setting::Ejected);
        roster_keeper::keep(&upstream, Instant::now(), &mut || 0);
        assert_eq!(ready(&upstream), ["10.0.0.1:9001"]);
        assert_eq!(order(&upstream, Reach::Ready), [0]);
        assert_eq!(order(&upstream, Reach::Answering), [0, 3]);
        assert_eq!(order(&upstream, Reach::Anybody), [&[0, 3, 2, 1][..], unhealthy].concat(), "{panic_percent}");
        // A first attempt does not look at them while another is ready.
        let firsts = (0..20).map(|_| order(&upstream, Reach::Anybody)[0]);
        assert!(firsts.into_iter().all(|place| place == 0));
    }
}

/// Where none is ready and there is no panic, those that are ejected are tried all the same: how they are is not known.
#[test]
fn who_is_ejected_is_asked_where_nobody_is_ready() {
    let upstream = build(config(&[1, 2], Some(InitialHealth::Healthy)), &UpstreamState::new("u".into(), 1));
    eject(&upstream, 0, AttemptOutcome::Connect);
    check(&upstream, 1, false);
    upstream.refresh(Instant::now());
    let first = upstream.lease(None, Instant::now(), &Tried::default(), &mut Dice::seeded(1));
    assert_eq!(first.err(), Some(NoLease::NoBackend), "panic is off");
    assert_eq!(order(&upstream, Reach::Anybody), [0]);
}

#[test]
fn equals_of_the_last_resort_share_what_falls_upon_them_and_keep_their_limits() {
    let mut config = UpstreamConfig::clone(&config(&[1, 2, 3, 4], None));
    config.outlier_detection = Some(OutlierConfig { max_ejected_percent: 100, ..OutlierConfig::default() });
    let four = BackendLimits { max_in_flight: Some(4), max_connections: None };
    config.backends.iter_mut().for_each(|backend| backend.limit(four));
    let upstream = build(Arc::new(config), &UpstreamState::new("u".into(), 1));
    upstream.enforce();
    for (place, outcome) in [(1, AttemptOutcome::Connect), (2, AttemptOutcome::Gateway), (3, AttemptOutcome::Gateway)] {
        eject(&upstream, place, outcome);
    }
    let mut tried = Tried::default();
    tried.push(upstream.roster().backends()[0].state.id);
    let mut dice = Dice::seeded(1);
    let mut lease = || upstream.lease_further(None, Instant::now(), (&tried, Reach::Anybody), &mut dice);
    let in_flight = || upstream.roster().backends().iter().map(|it| it.state.in_flight()).collect::<Vec<_>>();
    let mut held: Vec<_> = (0..6).map(|_| lease().unwrap()).collect();
    assert_eq!(in_flight(), [0, 0, 3, 3]);
    held.extend((0..5).map(|_| lease().unwrap()));
    assert_eq!(in_flight(), [0, 3, 4, 4], "full ones are passed over");
    held.push(lease().unwrap());
    assert_eq!(lease().err(), Some(NoLease::Full));
}

#[test]
fn panic_is_told_once_when_it_begins_and_when_it_ends() {
    let upstream = tiered(&[(Tier::Priority(0), 1), (Tier::Priority(0), 1), (Tier::Priority(0), 1), (Tier::Backup, 1)]);
    let now = Instant::now();
    let told = || {
        let (_, told) = roster_keeper::keep(&upstream, now, &mut || 0);
        let line = |event| match event {
            EventKind::Panic { tier, on, evidence, .. } => format!("{tier} {on} {evidence}"),
            other => panic!("{other:?}"),
        };
        told.into_iter().map(line).collect::<Vec<_>>()
    };
    assert!(told().is_empty());
    check(&upstream, 0, false);
    check(&upstream, 1, false);
    assert!(told().is_empty(), "the backup bears the rest");
    check(&upstream, 3, false);
    let expected = ["0 true 1 of 3 backends ready, 3 picked from", "backup true 0 of 1 backends ready, 1 picked from"];
    assert_eq!(told(), expected);
    assert!(told().is_empty());
    check(&upstream, 3, true);
    check(&upstream, 0, true);
    let expected =
        ["0 false 2 of 3 backends ready, 2 picked from", "backup false 1 of 1 backends ready, 1 picked from"];
    assert_eq!(told(), expected);
}

#[test]
fn each_tier_has_a_round_of_its_own_and_the_first_has_that_of_the_upstream() {
    let upstream = tiered(&[(Tier::Priority(0), 1), (Tier::Priority(0), 1), (Tier::Backup, 1)]);
    let (now, mut dice) = (Instant::now(), Dice::seeded(1));
    for _ in 0..5 {
        upstream.lease(None, now, &Tried::default(), &mut dice).unwrap();
    }
    assert_eq!(upstream.state.cursors.first().position(), 5);
    check(&upstream, 0, false);
    check(&upstream, 1, false);
    upstream.refresh(now);
    upstream.lease(None, now, &Tried::default(), &mut dice).unwrap();
    assert_eq!(upstream.state.cursors.first().position(), 5, "the backup is not of that round");
}
