use std::time::{Duration, SystemTime};

use super::*;
use crate::backend::health::{LastCheck, Thresholds};
use crate::config::{
    BackendConfig, HealthCheckConfig, OutlierConfig, Place, PoolConfig, Probe, SlowStartConfig, StrategyConfig,
    TiersConfig,
};
use crate::telemetry::events::Events;

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
            .map(|&it| BackendConfig { address: address(it), weight: weight(it), place: Place::default() })
            .collect(),
        connect_timeout: S,
        retries: 0,
        pool: PoolConfig { max_idle: 1, idle_timeout: S },
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
        outlier_detection: Some(OutlierConfig::default()),
        slow_start: Some(SlowStartConfig::default()),
        tiers: TiersConfig { panic_percent: 0, ..TiersConfig::default() },
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
    assert!(upstream.lease(None, now, &Tried::default(), &mut dice).is_none(), "none is left");
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

#[tokio::test]
async fn the_keeper_refreshes_what_is_there_now() {
    let state = UpstreamState::new("u".into(), 1);
    let first = build(config(&[1, 2], Some(InitialHealth::Healthy)), &state);
    let mut keepers = keeper::Keepers::new(Events::default());
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
