use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::config::{
    AccessLogConfig, Address, BackendConfig, BackendTlsConfig, BodyLimit, ForwardedHeader, HealthCheckConfig,
    InitialHealth, LogFormat, OutlierConfig, PathPattern, PathRule, PoolConfig, ProbeKind, RetryConfig, RouteConfig,
    SlowStartConfig, StrategyConfig, Timeouts, UpstreamConfig, ZonesConfig,
};

const S: Duration = Duration::from_secs(1);

fn config() -> Config {
    Config {
        shutdown_grace: 10 * S,
        drain_limit: 30 * S,
        listeners: vec![Arc::new(listener("web", 8080)), Arc::new(listener("api", 8081))],
        routes: ["a", "b", "c"].map(|name| Arc::new(route(name))).into(),
        upstreams: ["u", "v"].map(|name| Arc::new(upstream(name))).into(),
        ..Config::default()
    }
}

fn listener(name: &str, port: u16) -> ListenerConfig {
    ListenerConfig { max_connections: 100, idle_timeout: S, ..ListenerConfig::new(name, ([127, 0, 0, 1], port)) }
}

fn route(name: &str) -> RouteConfig {
    RouteConfig {
        path_prefix: Some(format!("/{name}")),
        path: PathPattern::Prefix(format!("/{name}")),
        upstream: Some("u".into()),
        timeouts: Timeouts { body_idle: S, ..Timeouts::default() },
        ..RouteConfig::new(name)
    }
}

fn backend(last: u8, weight: u16) -> BackendConfig {
    BackendConfig { weight, ..BackendConfig::new(Address::Ip(([10, 0, 0, last], 9001).into())) }
}

fn upstream(name: &str) -> UpstreamConfig {
    UpstreamConfig {
        retries: Arc::new(RetryConfig { max: 1, ..RetryConfig::default() }),
        outlier_detection: None,
        slow_start: None,
        zone_preference: None,
        ..UpstreamConfig::new(name, vec![backend(1, 1), backend(2, 1)])
    }
}

fn edit<T: Clone>(shared: &mut Arc<T>, edit: impl FnOnce(&mut T)) {
    edit(Arc::make_mut(shared));
}

/// A line for each thing that is not kept.
fn told(plan: &ReloadPlan) -> Vec<String> {
    fn part<N: Display>(kind: &str, part: &PlanPart<N>, lines: &mut Vec<String>) {
        for (name, step) in &part.next {
            match step {
                PlanStep::Kept { .. } => {}
                PlanStep::Changed { from, changes } => {
                    lines.push(format!("{kind} {name}<{from}: {}", DifferenceList(changes)))
                }
                PlanStep::Added => lines.push(format!("{kind} +{name}")),
            }
        }
        lines.extend(part.removed.iter().map(|(name, from)| format!("{kind} -{name}<{from}")));
    }
    let mut lines = vec![];
    part("listener", &plan.listeners, &mut lines);
    part("route", &plan.routes, &mut lines);
    part("upstream", &plan.upstreams, &mut lines);
    lines.extend(plan.settings.iter().map(|it| format!("setting {it}")));
    lines.extend(plan.restart.iter().map(|it| format!("restart {it}")));
    lines
}

type Edit = fn(&mut Config);

fn check(cases: &[(&str, Edit, &[&str])]) {
    for (case, edit, expected) in cases {
        let old = config();
        let mut new = config();
        edit(&mut new);
        let plan = plan(&old, &new);
        assert_eq!(told(&plan), *expected, "{case}");
        assert_eq!(plan.is_empty(), expected.is_empty(), "{case}");
    }
}

#[test]
fn listeners_are_found_again_by_address() {
    check(&[
        ("nothing", |_| {}, &[]),
        (
            "a limit",
            |it| edit(&mut it.listeners[1], |it| it.max_connections = 5),
            &["listener api<1: max_connections 100 -> 5"],
        ),
        (
            "the name alone",
            |it| edit(&mut it.listeners[0], |it| it.name = "front".into()),
            &["listener front<0: name web -> front"],
        ),
        (
            "the address",
            |it| edit(&mut it.listeners[0], |it| it.address.set_port(9090)),
            &["listener +web", "listener -web<0"],
        ),
        (
            "names swapped",
            |it| {
                edit(&mut it.listeners[0], |it| it.name = "api".into());
                edit(&mut it.listeners[1], |it| it.name = "web".into());
            },
            &["listener api<0: name web -> api", "listener web<1: name api -> web"],
        ),
        ("the order", |it| it.listeners.reverse(), &[]),
        ("one more", |it| it.listeners.insert(0, Arc::new(listener("new", 1))), &["listener +new"]),
        ("one less", |it| drop(it.listeners.remove(0)), &["listener -web<0"]),
        (
            "a key without effect",
            |it| edit(&mut it.listeners[0], |it| it.backlog = 1),
            &["listener web<0: backlog (of the next start) 4096 -> 1"],
        ),
        (
            "several keys",
            |it| {
                edit(&mut it.listeners[0], |it| {
                    it.max_body = BodyLimit::Bytes(10);
                    it.lingering.idle = Duration::from_secs(1);
                    it.idle_timeout = Duration::from_millis(1500);
                    it.min_bytes_per_second = 0;
                    it.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
                    it.via = true;
                    it.max_connections_per_address = Some(50);
                    it.paths.encoded_slashes = PathRule::Refuse;
                    it.forwarded_headers = vec![ForwardedHeader::RealIp];
                })
            },
            &[
                "listener web<0: max_connections_per_address unlimited -> 50, max_body unlimited -> 10, lingering.idle 5s -> 1s, idle_timeout 1s -> 1.5s, min_bytes_per_second 240 -> 0, trusted_proxies +10.0.0.0/8, \
               forwarded_headers +x-real-ip, via false -> true, paths.encoded_slashes keep -> refuse",
            ],
        ),
    ]);
}

#[test]
fn listeners_on_port_0_are_told_apart_by_name() {
    let any = |names: &[&str]| {
        let listeners = names.iter().map(|name| Arc::new(listener(name, 0))).collect();
        Config { listeners, ..config() }
    };
    for (old, new, expected) in [
        (&["x", "y"][..], &["y", "x"][..], &[][..]),
        (&["x", "y"], &["y"], &["listener -x<0"]),
        (&["x", "y"], &["z", "y"], &["listener z<0: name x -> z"]),
        (&["x"], &["z", "x"], &["listener +z"]),
    ] {
        assert_eq!(told(&plan(&any(old), &any(new))), expected, "{old:?} to {new:?}");
    }
}

#[test]
fn upstreams_are_found_again_by_name() {
    check(&[
        (
            "all at once",
            |it| {
                edit(&mut it.upstreams[0], |it| {
                    it.strategy = StrategyConfig::LeastConnections;
                    it.backends = vec![backend(2, 3), backend(3, 1)];
                })
            },
            &["upstream u<0: strategy round_robin -> least_connections, backends +10.0.0.3:9001 -10.0.0.1:9001, \
               weight of 10.0.0.2:9001 1 -> 3"],
        ),
        (
            "the order of its backends",
            |it| edit(&mut it.upstreams[1], |it| it.backends.reverse()),
            &["upstream v<1: order of backends"],
        ),
        (
            "numbers",
            |it| {
                edit(&mut it.upstreams[1], |it| {
                    it.connect_timeout = S;
                    edit(&mut it.retries, |it| it.max = 0);
                    it.retry_budget.percent = 10;
                    it.pool = PoolConfig { max_idle: 1, idle_timeout: S, ..PoolConfig::of_defaults() };
                })
            },
            &[
                "upstream v<1: connect_timeout 3s -> 1s, retries.max 1 -> 0, retry_budget.percent 20 -> 10, pool.max_idle 64 -> 1, \
               pool.idle_timeout 60s -> 1s",
            ],
        ),
        (
            "tls that begins",
            |it| {
                edit(&mut it.upstreams[0], |it| {
                    it.tls = Some(Arc::new(BackendTlsConfig {
                        ca: None,
                        server_name: None,
                        client_certificate: None,
                        insecure_skip_verify: true,
                        spot: crate::config::Spot::default(),
                    }));
                })
            },
            &["upstream u<0: tls off -> on"],
        ),
        (
            "checks that begin",
            |it| edit(&mut it.upstreams[0], |it| it.health_check = Some(Arc::new(health_check()))),
            &["upstream u<0: health_check off -> on"],
        ),
        ("another name", |it| edit(&mut it.upstreams[0], |it| it.name = "t".into()), &["upstream +t", "upstream -u<0"]),
        ("a place further back", |it| it.upstreams.insert(0, Arc::new(upstream("a"))), &["upstream +a"]),
        ("all gone", |it| it.upstreams.clear(), &["upstream -u<0", "upstream -v<1"]),
        (
            "many backends",
            |it| {
                edit(&mut it.upstreams[0], |it| {
                    it.backends.extend((3..=13).map(|last| backend(last, 1)));
                })
            },
            &["upstream u<0: backends +10.0.0.3:9001 +10.0.0.4:9001 +10.0.0.5:9001 +10.0.0.6:9001 +10.0.0.7:9001 \
               +10.0.0.8:9001 +10.0.0.9:9001 +10.0.0.10:9001 (+3 more)"],
        ),
    ]);
}

#[test]
fn what_differs_in_who_is_picked_is_told_key_by_key() {
    let told = |edit: &dyn Fn(&mut UpstreamConfig)| {
        let mut old = upstream("u");
        old.outlier_detection = Some(OutlierConfig::default());
        old.slow_start = Some(SlowStartConfig::default());
        let mut new = old.clone();
        edit(&mut new);
        let told = DifferenceList(&super::changes(&old, &new)).to_string();
        // Nothing that differs may go without words: it would not be applied as a change of that.
        assert_eq!(told.is_empty(), old == new);
        told
    };
    assert_eq!(told(&|_| {}), "");
    assert_eq!(told(&|it| it.outlier_detection = None), "outlier_detection on -> off");
    assert_eq!(told(&|it| it.slow_start = None), "slow_start on -> off");
    let zones = |it: &mut UpstreamConfig| it.zone_preference = Some(ZonesConfig::new("a"));
    assert_eq!(told(&zones), "zone_preference off -> on");
    let tiers = |it: &mut UpstreamConfig| {
        (it.overprovisioning_percent, it.panic_threshold) = (200, 0);
        (it.backends[1].backup, it.backends[1].zone) = (true, Some("b".into()));
    };
    let words = "backup of 10.0.0.2:9001 false -> true, zone of 10.0.0.2:9001 none -> b, panic_threshold 50 -> 0, \
                 overprovisioning 1.4 -> 2";
    assert_eq!(told(&tiers), words);
    let slow = SlowStartConfig { window: S, aggression: 2.5, minimum: 0.2 };
    let words = "slow_start.window 30s -> 1s, slow_start.aggression 1 -> 2.5, slow_start.minimum_percent 10 -> 20";
    assert_eq!(told(&|it| it.slow_start = Some(slow.clone())), words);
    let other = OutlierConfig {
        consecutive_gateway: 6,
        consecutive_local: 6,
        count_server_errors: true,
        interval: S,
        window: S,
        failure_rate: 0.6,
        failure_volume: 6,
        success_deviations: 6.5,
        success_gap: 0.6,
        success_volume: 6,
        success_intervals: 6,
        latency_deviations: 6.5,
        latency_ratio: 6.5,
        latency_excess: S,
        latency_volume: 6,
        latency_intervals: 6,
        hosts: 6,
        base: S,
        longest: S,
        jitter: 0.6,
        forgive: S,
        max_ejected_percent: 6,
    };
    assert_eq!(told(&|it| it.outlier_detection = Some(other.clone())).split(", ").count(), 22);
}

fn health_check() -> HealthCheckConfig {
    HealthCheckConfig { kind: ProbeKind::Tcp, ..HealthCheckConfig::of_defaults() }
}

#[test]
fn what_differs_in_a_health_check_is_told_key_by_key() {
    let told = |edit: fn(&mut HealthCheckConfig)| {
        let mut new = health_check();
        edit(&mut new);
        let mut changes = Changes::none();
        HealthCheckConfig::compare(&mut changes, "health_check.", &health_check(), &new);
        DifferenceList(&changes.found()).to_string()
    };
    assert_eq!(told(|_| {}), "");
    assert_eq!(
        told(|it| (it.port, it.initial) = (Some(9100), InitialHealth::Healthy)),
        "health_check.port the backend's -> 9100, health_check.initial first_check -> healthy"
    );
    assert_eq!(
        told(|it| (it.interval, it.interval_in_doubt, it.timeout) = (S, S / 2, S)),
        "health_check.interval 5s -> 1s, health_check.interval_in_doubt 1s -> 500ms, health_check.timeout 2s -> 1s"
    );
    assert_eq!(
        told(|it| (it.jitter_percent, it.unhealthy_after, it.healthy_after) = (0, 1, 9)),
        "health_check.jitter_percent 10 -> 0, health_check.unhealthy_after 3 -> 1, health_check.healthy_after 2 -> 9"
    );
}

#[test]
fn routes_are_found_again_by_name_and_their_order_counts() {
    check(&[
        (
            "where it goes",
            |it| {
                edit(&mut it.routes[1], |it| {
                    it.upstream = Some("v".into());
                    it.timeouts.body_idle = 2 * S;
                })
            },
            &["route b<1: upstream u -> v, timeouts.body_idle 1s -> 2s"],
        ),
        (
            "when it is tried again",
            |it| {
                edit(&mut it.routes[0], |it| {
                    edit(&mut it.retries, |it| {
                        it.on.reset = false;
                        it.on.statuses = vec![http::StatusCode::BAD_GATEWAY, http::StatusCode::INTERNAL_SERVER_ERROR];
                        it.attempt_timeout = Some(S);
                        it.backoff.base = S;
                        it.hedge = Some(crate::config::HedgeConfig::default());
                    });
                })
            },
            &["route a<0: retries.on +500 -reset -503 -504, retries.attempt_timeout none -> 1s, \
               retries.backoff.base 25ms -> 1s, retries.hedge off -> on"],
        ),
        (
            "what it matches",
            |it| edit(&mut it.routes[0], |it| (it.path_exact, it.path_prefix) = (Some("/a".into()), None)),
            &["route a<0: path none -> /a, path_prefix /a/ -> none"],
        ),
        ("one in between", |it| it.routes.insert(1, Arc::new(route("x"))), &["route +x"]),
        ("one less", |it| drop(it.routes.remove(1)), &["route -b<1"]),
        ("one moved", |it| it.routes.rotate_left(1), &["route a<0: order"]),
    ]);
}

#[test]
fn settings_say_whether_they_wait_for_a_restart() {
    fn log() -> AccessLogConfig {
        AccessLogConfig { buffer: 1, ..AccessLogConfig::of_defaults() }
    }
    check(&[
        (
            "times",
            |it| (it.shutdown_delay, it.shutdown_grace, it.drain_limit) = (3 * S, S, 2 * S),
            &["setting shutdown_delay 0s -> 3s", "setting shutdown_grace 10s -> 1s", "setting drain_limit 30s -> 2s"],
        ),
        ("log level", |it| it.log.level = "debug".into(), &["setting log.level info -> debug"]),
        ("access log", |it| it.access_log = Some(log()), &["setting access_log off -> on"]),
        ("workers", |it| it.workers = std::num::NonZero::new(3), &["restart workers one per core -> 3"]),
        ("admin", |it| it.admin = None, &["restart admin on -> off"]),
        (
            "the address off beside a socket",
            |it| {
                it.admin.as_mut().unwrap().address = None;
                it.admin.as_mut().unwrap().unix_socket = Some("/run/i.sock".into());
            },
            &["restart admin.address 127.0.0.1:9900 -> none", "restart admin.unix_socket none -> /run/i.sock"],
        ),
        (
            "admin socket",
            |it| it.admin.as_mut().unwrap().unix_socket = Some("/run/i.sock".into()),
            &["restart admin.unix_socket none -> /run/i.sock"],
        ),
        (
            "admin token",
            |it| it.admin.as_mut().unwrap().token = Some("0123456789abcdef".into()),
            &["setting admin.token"],
        ),
        ("log format", |it| it.log.format = LogFormat::Json, &["restart log.format text -> json"]),
    ]);
    let on = Config { access_log: Some(log()), ..config() };
    let other = Config { access_log: Some(AccessLogConfig { buffer: 2, ..log() }), ..config() };
    assert!(plan(&on, &other).access_log_changes());
    assert!(plan(&config(), &on).access_log_changes());
    assert!(!plan(&on, &on).access_log_changes());
}

#[test]
fn what_needs_a_restart_is_told_again_at_the_next_reload() {
    let old = config();
    let mut new = Config { workers: std::num::NonZero::new(3), admin: None, ..config() };
    let wanted = new.clone();
    new.keep_the_running(&old);
    assert_eq!(new, old);
    assert_eq!(plan(&new, &wanted).restart.len(), 2);
}
