use std::time::{Duration, SystemTime};

use super::*;
use crate::backend::health::{LastCheck, Thresholds};
use crate::config::{BackendConfig, BackendLimits, HealthCheckConfig, LimitsConfig, PoolConfig, Probe, StrategyConfig};

const S: Duration = Duration::from_secs(1);

fn address(last: u8) -> Address {
    Address::Ip(([10, 0, 0, last], 9001).into())
}

/// Backends of weight 1 but for one of weight 0, checked or not.
fn config(backends: &[u8], initial: Option<InitialHealth>) -> Arc<UpstreamConfig> {
    let weight = |last: u8| u16::from(last != 0);
    Arc::new(UpstreamConfig {
        name: "u".into(),
        strategy: StrategyConfig::RoundRobin,
        backends: backends
            .iter()
            .map(|&it| BackendConfig { address: address(it), weight: weight(it), limits: BackendLimits::default() })
            .collect(),
        connect_timeout: S,
        retries: Arc::new(crate::config::RetryConfig { max: 0, ..Default::default() }),
        retry_budget: crate::config::RetryBudgetConfig::default(),
        pool: PoolConfig { max_idle: 1, idle_timeout: S },
        limits: LimitsConfig::default(),
        health_check: initial.map(|initial| {
            Arc::new(HealthCheckConfig {
                probe: Probe::Tcp,
                port: None,
                interval: S,
                interval_in_doubt: S,
                jitter_percent: 0,
                timeout: S,
                unhealthy_after: 1,
                healthy_after: 1,
                initial,
            })
        }),
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
        config.backends.iter_mut().for_each(|backend| backend.limits = one);
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
    limited.backends[0].limits.max_in_flight = Some(2);
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
    let mut keepers = keeper::Keepers::default();
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
