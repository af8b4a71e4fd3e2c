//! `isobar demo --registry`: services that register themselves, come and go, while requests go on.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::Running;
use crate::http_client::{Fetch, FetchError, FetchLimits, To};

/// The copies of the service: their names, and what becomes of them.
pub(super) const SERVICES: [(&str, Attendance); 4] = [
    ("one", Attendance::Stays),
    ("two", Attendance::Stays),
    ("three", Attendance::ComesAndGoes),
    ("four", Attendance::LeftToTheUser),
];

/// For how long one that comes and goes is there, and for how long it is not.
const THERE: Duration = Duration::from_secs(6);
const AWAY: Duration = Duration::from_secs(4);
/// How long a heartbeat counts, and how often one is sent.
const TTL: &str = "5s";
const HEARTBEAT_EVERY: Duration = Duration::from_secs(2);
/// Between two requests of the demo itself.
const ASK_EVERY: Duration = Duration::from_millis(50);
const LIMITS: FetchLimits = FetchLimits { time: Duration::from_secs(5), body: 64 * 1024 };

/// Whether a service is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attendance {
    /// It registers and sends heartbeats.
    Stays,
    /// It does so for a while, leaves, and comes back.
    ComesAndGoes,
    /// It answers, and the demo shows how to register it.
    LeftToTheUser,
}

/// What the demo asks of its own proxy.
#[derive(Debug, Default)]
pub(super) struct OwnRequests {
    asked: AtomicU64,
    failed: AtomicU64,
}

impl OwnRequests {
    pub(super) fn told(&self) -> String {
        let (asked, failed) = (self.asked.load(Relaxed), self.failed.load(Relaxed));
        format!("\nThe demo asked {asked} times by itself while services came and went; {failed} requests failed.\n")
    }
}

/// Has the services register themselves and asks the proxy all the time, until the tasks are dropped.
pub(super) fn start(
    running: &Running,
    backends: &[(&'static str, SocketAddr)],
    asked: &Arc<OwnRequests>,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    if let Some(registry) = running.registry_address() {
        for ((_, attendance), &(name, address)) in SERVICES.iter().zip(backends) {
            let member = Member { name, address, registry: Fetch::new(To::Address(registry), LIMITS) };
            match attendance {
                Attendance::Stays => drop(tasks.spawn(async move { member.attend(None).await })),
                Attendance::ComesAndGoes => drop(tasks.spawn(async move { member.attend(Some((THERE, AWAY))).await })),
                Attendance::LeftToTheUser => {}
            }
        }
    }
    if let Some(&proxy) = running.listener_addresses().first() {
        tasks.spawn(ask(proxy, Arc::clone(asked)));
    }
    tasks
}

/// A service that registers itself by Consul's API, as a client library would.
struct Member {
    name: &'static str,
    address: SocketAddr,
    registry: Fetch,
}

impl Member {
    /// Is registered, for a time and again after another, if these are given.
    async fn attend(&self, comes_and_goes: Option<(Duration, Duration)>) {
        loop {
            self.register().await;
            let Some((there, away)) = comes_and_goes else { return self.send_heartbeats().await };
            tokio::select! {
                () = self.send_heartbeats() => {}
                () = sleep(there) => {}
            }
            let _ = self.put(&format!("/v1/agent/service/deregister/{}", self.name), String::new()).await;
            sleep(away).await;
        }
    }

    async fn send_heartbeats(&self) {
        let mut every = interval(HEARTBEAT_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let beaten = self.put(&format!("/v1/agent/check/pass/service:{}", self.name), String::new()).await;
            // It was deregistered by hand: it comes back.
            if beaten.is_ok_and(|status| status == StatusCode::NOT_FOUND) {
                self.register().await;
            }
        }
    }

    async fn register(&self) {
        let said = json!({
            "ID": self.name, "Name": "users", "Address": self.address.ip(), "Port": self.address.port(),
            "Check": { "TTL": TTL, "Status": "passing" },
        });
        // If it fails, the next heartbeat tries again.
        let _ = self.put("/v1/agent/service/register", said.to_string()).await;
    }

    async fn put(&self, path: &str, body: String) -> Result<StatusCode, FetchError> {
        Ok(self.registry.whole(request(Method::PUT, path, body)).await?.status())
    }
}

async fn ask(proxy: SocketAddr, counts: Arc<OwnRequests>) {
    let client = Fetch::new(To::Address(proxy), LIMITS);
    // The first of the services is to be there.
    while !client.whole(request(Method::GET, "/users/1", String::new())).await.is_ok_and(|it| it.status().is_success())
    {
        sleep(ASK_EVERY).await;
    }
    loop {
        sleep(ASK_EVERY).await;
        let answer = client.whole(request(Method::GET, "/users/1", String::new())).await;
        counts.asked.fetch_add(1, Relaxed);
        if !answer.is_ok_and(|answer| answer.status().is_success()) {
            counts.failed.fetch_add(1, Relaxed);
        }
    }
}

fn request(method: Method, path: &str, body: String) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = method;
    // What the demo asks for is made of names and numbers.
    *request.uri_mut() = format!("http://localhost{path}").parse().unwrap_or_default();
    request
}

pub(super) fn config(port: u16, admin_port: u16, registry_port: u16) -> String {
    format!(
        r#"# The demo's configuration. Change it while the demo runs: it is applied within a second.
shutdown_grace = "2s"

[admin]
address = "127.0.0.1:{admin_port}"

# Services register here. With state_dir they would be known after a restart.
[registry]
address = "127.0.0.1:{registry_port}"

[[listener]]
address = "127.0.0.1:{port}"

[[route]]
path_prefix = "/users"
upstream = "users"

[upstream.users]
strategy = "round_robin"
# One that joins has its whole share at once.
slow_start = {{ enabled = false }}
[[upstream.users.discovery]]
registry = {{ service = "users" }}
"#
    )
}

pub(super) fn banner(running: &Running, backends: &[(&str, SocketAddr)], file: Option<&Path>) -> String {
    let shown = |address: Option<SocketAddr>| address.map(|it| it.to_string()).unwrap_or_default();
    let proxy = shown(running.listener_addresses().first().copied());
    let (admin, registry) = (shown(running.admin_address()), shown(running.registry_address()));
    let mut services = SERVICES.iter().zip(backends);
    let four = services.find(|((_, attendance), _)| *attendance == Attendance::LeftToTheUser);
    let (name, port) = four.map_or(("four", 0), |((name, _), (_, address))| (*name, address.port()));
    let edit = file.map(|file| format!("\n  edit      {}\n            and see it applied", file.display()));
    format!(
        "\
isobar {version} demo

  proxy     http://{proxy}/users/1, which the demo asks 20 times a second
  registry  http://{registry} by Consul's API and Eureka's
  services  one and two stay, three comes and goes, {name} is up to you

  join      curl -X PUT http://{registry}/v1/agent/service/register \\
              -d '{{\"Name\": \"users\", \"ID\": \"{name}\", \"Address\": \"127.0.0.1\", \"Port\": {port}}}'
  leave     curl -X PUT http://{registry}/v1/agent/service/deregister/{name}
  pause     curl -X PUT 'http://{registry}/v1/agent/service/maintenance/one?enable=true'
  look      http://{admin}/upstreams
            http://{registry}/v1/health/service/users{edit}
  end       Ctrl-C

",
        version = env!("CARGO_PKG_VERSION"),
        edit = edit.unwrap_or_default(),
    )
}
