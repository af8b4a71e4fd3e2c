use std::future::Future;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};

use tokio::net::TcpListener;

use super::*;
use crate::backend::health::{CheckStreak, Verdict};
use crate::config::{BackendConfig, InitialHealth, PoolConfig, Table as _, UpstreamConfig};
use crate::strategy::Factories;

fn change(passed: bool, length: u32) -> VerdictChange {
    VerdictChange { from: Verdict::Healthy, to: Verdict::Unhealthy, streak: CheckStreak { passed, length } }
}

fn last(failure: Option<&str>) -> LastCheck {
    LastCheck { at: SystemTime::UNIX_EPOCH, took: Duration::from_micros(230), failure: failure.map(str::to_owned) }
}

#[test]
fn evidence_in_words() {
    let refused = Some("connection refused");
    for (length, failure, words) in [
        (3, refused, "3 checks in a row failed; the last: connection refused after 0.2 ms"),
        (1, refused, "a check failed: connection refused after 0.2 ms"),
        (2, None, "2 checks in a row passed; the last after 0.2 ms"),
        (1, None, "a check passed after 0.2 ms"),
    ] {
        assert_eq!(evidence(&change(failure.is_none(), length), &last(failure)), words);
    }
}

#[test]
fn failures_in_words() {
    for (failed, words) in [
        (CheckFailed::Connect(io::Error::from_raw_os_error(111)), "connection refused"),
        (CheckFailed::Connect(io::Error::other("Failed to look up")), "failed to look up"),
        (CheckFailed::Status(StatusCode::SERVICE_UNAVAILABLE), "status 503"),
        (CheckFailed::Body { searched: 12 }, "pattern not found in 12 bytes of the body"),
        (CheckFailed::Timeout("connecting"), "timed out connecting"),
    ] {
        assert_eq!(failed.to_string(), words);
    }
}

/// An upstream of so many backends that none has used yet, all of them at one port.
fn upstream(name: &str, backends: u8, at: SocketAddr, timeout: Duration) -> Arc<Upstream> {
    let backends = (1..=backends).map(|last| {
        let address = Address::Ip(([127, 0, 0, last], at.port()).into());
        BackendConfig::new(address)
    });
    let check = HealthCheckConfig {
        interval: 100 * timeout,
        interval_in_doubt: 100 * timeout,
        jitter_percent: 0,
        timeout,
        unhealthy_after: 1,
        healthy_after: 1,
        initial: InitialHealth::Unhealthy,
        ..HealthCheckConfig::of_defaults()
    };
    let config = UpstreamConfig {
        connect_timeout: timeout,
        retries: Arc::new(crate::config::RetryConfig { max: 0, ..Default::default() }),
        pool: PoolConfig { max_idle: 1, idle_timeout: timeout, ..PoolConfig::of_defaults() },
        health_check: Some(Arc::new(check)),
        outlier_detection: None,
        slow_start: None,
        ..UpstreamConfig::new(name, backends.collect())
    };
    Upstream::build(Arc::new(config), UpstreamState::new(name.into(), 1), &Factories::default())
}

#[tokio::test]
async fn only_so_many_ask_at_a_time_over_all_upstreams() {
    const TURNS: usize = 4;
    let silent = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let at = silent.local_addr().unwrap();
    let hour = Duration::from_secs(3600);
    let upstreams = [upstream("u", 4, at, hour), upstream("v", 4, at, hour)];
    let prober = Prober::new(Events::default(), TURNS);
    prober.follow(&upstreams);
    let mut asked = Vec::new();
    for _ in 0..TURNS {
        asked.push(silent.accept().await.unwrap());
    }
    let nobody_else = || {
        let mut accept = Box::pin(silent.accept());
        matches!(accept.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
    };
    for _ in 0..100 {
        tokio::task::yield_now().await;
        assert!(nobody_else());
    }
    assert_eq!(prober.turns.available_permits(), 0);
    // One is over, and another gets its turn.
    for over in asked {
        drop(over);
        silent.accept().await.unwrap();
    }
    // Gone with the prober.
    let state = Arc::clone(&upstreams[0].roster().backends()[0].state);
    drop((prober, upstreams));
    for _ in 0..1000 {
        if Arc::strong_count(&state) == 1 {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("somebody still holds the backend");
}
