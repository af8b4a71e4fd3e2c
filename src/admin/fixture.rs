//! A process to look at, without one.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, ArcSwapOption};
use http::header::{AUTHORIZATION, HeaderValue};

use super::{Control, Fate, ProcessStatus, ReloadFailed, ReloadReport, ReloadResult, UpstreamChange};
use crate::backend::{BackendSet, Instance};
use crate::config::{
    AdaptiveLimitConfig, Address, AdminConfig, BackendConfig, BackendLimits, BackendTlsConfig, BodyPattern,
    BreakerConfig, ClientCertificateConfig, Config, DiscoveryConfig, ForwardedHeader, HeaderRules, HeaderValues,
    HealthCheckConfig, ListenerConfig, LogConfig, LogFormat, MiddlewareConfig, MiddlewareKind, NamedFile, ProbeTarget,
    PushConfig, RetryConfig, RouteConfig, Spot, StrategyConfig, Table as _, UpstreamConfig, Vocabulary,
};
use crate::file_descriptors::DescriptorPlan;
use crate::listener::Listener;
use crate::middleware::{Kinds, MiddlewareSet, State, TIMEOUT};
use crate::proxy::Snapshot;
use crate::registry::RegistryCounts;
use crate::route::RoutingTable;
use crate::strategy::Factories;
use crate::telemetry;
use crate::telemetry::events::Events;
use crate::telemetry::logging::Logging;
use crate::telemetry::metrics::Sharded;
use crate::tls::Tls;
use crate::upstream::sources::{SourceCondition, SourceId, SourceReport};
use crate::upstream::{Upstream, UpstreamState};

pub(super) const WORKERS: usize = 2;

/// When the process of the fixture started: 2026-01-01.
pub(super) fn started() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

#[derive(Debug)]
pub(super) struct Process {
    snapshots: [Arc<Snapshot>; 2],
    /// Whether the configuration has a token.
    token: AtomicBool,
    /// Whether isobar logs for the process.
    pub(super) logs: AtomicBool,
    logging: Logging,
    pub(super) listener: Arc<Listener>,
    pub(super) process: Arc<telemetry::process::Process>,
    pub(super) listening: AtomicBool,
    pub(super) stopping: AtomicBool,
    /// What is wrong with the file.
    pub(super) problems: Mutex<Vec<String>>,
    pub(super) reloads: AtomicU64,
    pub(super) reload_takes: Mutex<Duration>,
    pub(super) events: Events,
}

impl Process {
    pub(super) fn new() -> Arc<Self> {
        let mut config = config();
        let with_token = Arc::new(config.clone());
        // On loopback, no token is asked for as long as there is none.
        config.admin.as_mut().unwrap().token = None;
        let config = Arc::new(config);
        let upstreams: Vec<_> = config
            .upstreams
            .iter()
            .map(|it| {
                let state = UpstreamState::new(it.name.clone(), WORKERS);
                look_up(&state);
                let upstream = Upstream::build(Arc::clone(it), state, &Factories::default());
                upstream.state.sources.file_says(upstream.listed());
                upstream.enforce();
                upstream
            })
            .collect();
        let snapshot = |config: Arc<Config>, upstreams: &[Arc<Upstream>]| {
            let routes = RoutingTable::build(&config.routes, upstreams, &[], &mut |_| Arc::new(Sharded::new(WORKERS)));
            let safe = Arc::new(safe());
            let installed = Kinds::default().install(&safe, State::new(&safe, WORKERS)).unwrap();
            let middleware = MiddlewareSet::new(vec![installed], &config.listeners);
            Snapshot { generation: 7, config, routes, upstreams: upstreams.to_vec(), middleware }
        };
        let listener = Arc::new(Listener {
            tls: ArcSwapOption::from_pointee(tls()),
            certificates_refused: AtomicU64::new(0),
            addresses: Default::default(),
            address: config.listeners[0].address,
            config: ArcSwap::new(Arc::clone(&config.listeners[0])),
            open: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            metrics: Arc::new(Sharded::new(WORKERS)),
        });
        Arc::new(Self {
            snapshots: [Arc::new(snapshot(config, &upstreams)), Arc::new(snapshot(with_token, &upstreams))],
            token: AtomicBool::new(false),
            logs: AtomicBool::new(false),
            logging: Logging::apart(&LogConfig { level: "info".into(), format: LogFormat::Text }),
            listener,
            process: telemetry::process::Process::with_descriptors(
                WORKERS,
                DescriptorPlan::new(Some(1_024), 20, WORKERS, None),
            ),
            listening: AtomicBool::new(true),
            stopping: AtomicBool::new(false),
            problems: Mutex::default(),
            reloads: AtomicU64::new(0),
            reload_takes: Mutex::default(),
            events: Events::default(),
        })
    }
}

/// Of a certificate that is made for it.
fn tls() -> Option<Tls> {
    let folder =
        std::env::temp_dir().join(format!("isobar-fixture-{}-{:?}", std::process::id(), std::thread::current().id()));
    std::fs::create_dir_all(&folder).unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let text = format!(
        "[[listener]]\naddress = \"0.0.0.0:80\"\ntls = {{ certificates = [{{ certificate = \"{0}/cert.pem\", key = \"{0}/key.pem\" }}] }}\n\
         [[route]]\nrespond = {{ body = \"a\" }}\n",
        folder.display()
    );
    let config = crate::config::parse(&text, "lb.toml", &|_| None, &Vocabulary::default()).unwrap().config;
    let settings = config.listeners[0].tls.as_ref().unwrap();
    let tls = Tls::load(settings, None, std::time::SystemTime::now(), &mut Vec::new());
    std::fs::remove_dir_all(&folder).unwrap();
    tls
}

impl Process {
    pub(super) fn with_token(&self, token: bool) {
        self.token.store(token, Ordering::Relaxed);
    }
}

impl Control for Process {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots[usize::from(self.token.load(Ordering::Relaxed))])
    }

    fn listeners(&self) -> Vec<Arc<Listener>> {
        if self.listening.load(Ordering::Relaxed) { vec![Arc::clone(&self.listener)] } else { Vec::new() }
    }

    fn connections_by_worker(&self) -> Vec<usize> {
        vec![3, 4]
    }

    fn process(&self) -> Arc<telemetry::process::Process> {
        Arc::clone(&self.process)
    }

    fn status(&self) -> ProcessStatus {
        let problems = self.problems.lock().unwrap().clone();
        ProcessStatus {
            file: Some("/etc/isobar/lb.toml".into()),
            started: started(),
            loaded_at: started() + Duration::from_secs(60),
            stopping: self.stopping.load(Ordering::Relaxed),
            last_error: (!problems.is_empty()).then(|| ReloadFailed { at: started(), problems }),
            reloads_applied: self.reloads.load(Ordering::Relaxed),
            reloads_failed: 2,
        }
    }

    fn access_log_dropped(&self) -> u64 {
        5
    }

    fn registry(&self) -> Option<RegistryCounts> {
        Some(RegistryCounts { services: 2, passing: 3, critical: 1, refused: 6, ..RegistryCounts::default() })
    }

    fn events(&self) -> &Events {
        &self.events
    }

    fn logging(&self) -> Option<&Logging> {
        self.logs.load(Ordering::Relaxed).then_some(&self.logging)
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = ReloadResult> + Send + '_>> {
        Box::pin(async {
            let takes = *self.reload_takes.lock().unwrap();
            tokio::time::sleep(takes).await;
            let problems = self.problems.lock().unwrap().clone();
            if !problems.is_empty() {
                return Err(ReloadFailed { at: started(), problems });
            }
            self.reloads.fetch_add(1, Ordering::Relaxed);
            Ok(ReloadReport {
                generation: 8,
                upstreams: vec![UpstreamChange {
                    name: "users".into(),
                    fate: Fate::Replaced,
                    changes: vec!["retries: 1 -> 2".into()],
                }],
                others: vec![],
                warnings: vec![],
            })
        })
    }
}

pub(super) fn config() -> Config {
    let admin = AdminConfig {
        token: Some("a token of the fixture".into()),
        unix_socket: Some("/run/isobar.sock".into()),
        ..AdminConfig::of_defaults()
    };
    Config {
        admin: Some(admin),
        listeners: vec![Arc::new(listener())],
        routes: routes().into_iter().map(Arc::new).collect(),
        upstreams: vec![Arc::new(upstream())],
        ..Config::default()
    }
}

fn listener() -> ListenerConfig {
    ListenerConfig {
        max_connections_per_address: Some(200),
        trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
        forwarded_headers: vec![ForwardedHeader::RealIp],
        ..ListenerConfig::new("main", ([0, 0, 0, 0], 8080))
    }
}

fn routes() -> [RouteConfig; 3] {
    let text = r#"
[[listener]]
address = "127.0.0.1:0"

[[route]]
name = "users"
hosts = ["api.example.com", "*.api.example.com"]
path_prefix = "/users/"
methods = ["GET"]
headers = { x-api-key = "s3cret", x-tenant = { regex = "a|b" } }
query = { debug = { present = false } }
paths = { encoded_slashes = "refuse" }
upstream = "users"
strip_prefix = true
retries = { hedge = {} }
request_headers = { remove = ["x-debug"], set = { authorization = "Basic s3cret", x-gateway = "isobar" } }

[[route]]
name = "old"
path = "/old"
redirect = { to = "https://{host}/new{query}" }

[[route]]
name = "ping"
path_regex = "/ping[0-9]*"
respond = { status = 200, content_type = "text/plain", body = "pong" }

[upstream.users]
backends = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]
"#;
    let parsed = crate::config::parse(text, "lb.toml", &|_| None, &Vocabulary::default()).unwrap();
    let routes: Vec<_> = parsed.config.routes.iter().map(|route| RouteConfig::clone(route)).collect();
    routes.try_into().unwrap()
}

fn named(path: &str) -> NamedFile {
    NamedFile { path: path.into(), spot: Spot::default() }
}

fn upstream() -> UpstreamConfig {
    let mut backends = [
        Address::Ip(([10, 0, 0, 1], 9001).into()),
        Address::Name("users-2.internal".into(), 9001),
        Address::Ip(([10, 0, 0, 3], 9001).into()),
    ]
    .map(BackendConfig::new);
    backends.iter_mut().take(2).for_each(|backend| backend.limit(LIMITS));
    (backends[1].weight, backends[2].weight) = (3, 0);
    UpstreamConfig {
        strategy: StrategyConfig::LeastConnections,
        discovery: vec![DiscoveryConfig {
            name: "push".into(),
            push: Some(Arc::new(PushConfig { token: None })),
            max_bytes: 4096,
            ..DiscoveryConfig::of_defaults()
        }],
        retries: Arc::new(RetryConfig {
            max: 1,
            attempt_timeout: Some(Duration::from_secs(2)),
            ..RetryConfig::default()
        }),
        protocol: crate::config::Protocol::Auto,
        tls: Some(Arc::new(BackendTlsConfig {
            ca: Some(named("ca.pem")),
            server_name: Some("users.internal".into()),
            client_certificate: Some(ClientCertificateConfig {
                certificate: named("isobar.pem"),
                key: named("isobar.key"),
            }),
            insecure_skip_verify: false,
            spot: Spot::default(),
        })),
        health_check: Some(Arc::new(health_check())),
        slow_start: None,
        zone_preference: None,
        max_in_flight: LIMITS.max_in_flight,
        max_connections: LIMITS.max_connections,
        circuit_breaker: Some(BreakerConfig::of_defaults()),
        adaptive_limit: Some(AdaptiveLimitConfig::of_defaults()),
        ..UpstreamConfig::new("users", backends.into())
    }
}

/// Finds the address of the second backend.
fn look_up(state: &UpstreamState) {
    let id = SourceId(1_000);
    state.sources.arrange_names([(("users-2.internal".into(), 9001), id)]);
    let set = BackendSet::new([Instance::new("users-2.internal@10.0.0.2:9001".parse().unwrap())]);
    let report = SourceReport::awaited(id, "dns users-2.internal:9001".into());
    state.sources.report(SourceReport { set: Some(set), condition: SourceCondition::Current, ..report });
}

/// Of the first two backends.
const LIMITS: BackendLimits = BackendLimits { max_in_flight: Some(4), max_connections: Some(8) };

fn safe() -> MiddlewareConfig {
    let kind = MiddlewareKind::Headers(HeaderRules::default());
    MiddlewareConfig { name: "safe".into(), timeout: TIMEOUT, kind }
}

fn health_check() -> HealthCheckConfig {
    HealthCheckConfig {
        path: ProbeTarget("/health?deep".parse().unwrap()),
        headers: HeaderValues(vec![(AUTHORIZATION, HeaderValue::from_static("Basic s3cret"))]),
        body: Some(BodyPattern(regex::bytes::Regex::new("ok").unwrap())),
        body_limit: 1024,
        port: Some(9100),
        ..HealthCheckConfig::of_defaults()
    }
}
