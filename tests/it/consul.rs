//! The source `consul` against a real Consul. `tests/registries/consul.sh` gets one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use isobar::{Isobar, Running};
use tokio::net::TcpStream;

use crate::harness::{Client, PATIENCE, TestBackend, eventually, free_address, soon};
use crate::services;

/// A Consul of this test's own, in memory.
struct Consul {
    http: SocketAddr,
    ports: [u16; 4],
    process: Child,
}

fn binary() -> PathBuf {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/registries/consul");
    if fetched.exists() { fetched } else { "consul".into() }
}

impl Consul {
    async fn start() -> Self {
        let (http, ports) = (free_address(), std::array::from_fn(|_| free_address().port()));
        let mut consul = Self { http, ports, process: Self::run(http, ports) };
        consul.wait().await;
        consul
    }

    fn run(http: SocketAddr, [dns, server, lan, wan]: [u16; 4]) -> Child {
        let mut command = Command::new(binary());
        command.args(["agent", "-dev", "-bind", "127.0.0.1", "-client", "127.0.0.1", "-grpc-port", "-1"]);
        for (flag, port) in
            [("http", http.port()), ("dns", dns), ("server", server), ("serf-lan", lan), ("serf-wan", wan)]
        {
            command.args([format!("-{flag}-port"), port.to_string()]);
        }
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("consul, as tests/registries/consul.sh gets it")
    }

    /// Until it has a leader.
    async fn wait(&mut self) {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < PATIENCE, "Consul does not start");
            if TcpStream::connect(self.http).await.is_ok() {
                let (_, body) = self.ask("GET", "/v1/status/leader", "").await;
                let (nodes, _) = self.ask("GET", "/v1/health/node/localhost", "").await;
                if body.contains(':') && nodes == 200 {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// A new one in the same place, which knows nothing.
    async fn restart(&mut self) {
        self.process = Self::run(self.http, self.ports);
        self.wait().await;
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut client = Client::connect(self.http).await;
        let length = body.len();
        client
            .send(format!("{method} {path} HTTP/1.1\r\nhost: consul\r\ncontent-length: {length}\r\n\r\n{body}"))
            .await;
        let response = client.response().await;
        (response.status(), response.text().to_owned())
    }

    async fn change(&self, path: &str, body: &str) {
        let (status, said) = self.ask("PUT", path, body).await;
        assert_eq!(status, 200, "{path}: {said}");
    }

    /// Registers an instance of `u`; `more` are further keys.
    async fn register(&self, backend: &TestBackend, more: &str) {
        let (host, port) = (backend.address().ip(), backend.address().port());
        let address = if more.contains("Address") { String::new() } else { format!("\"Address\": \"{host}\", ") };
        let body = format!("{{\"ID\": \"u-{port}\", \"Name\": \"u\", {address}\"Port\": {port}{more}}}");
        self.change("/v1/agent/service/register", &body).await;
    }

    async fn deregister(&self, backend: &TestBackend) {
        self.change(&format!("/v1/agent/service/deregister/u-{}", backend.address().port()), "").await;
    }
}

impl Drop for Consul {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start(consul: &Consul, keys: &str, more: &str) -> Running {
    let text = format!(
        "workers = 2\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n\
         [upstream.u]\nstrategy = \"weighted_round_robin\"\n[[upstream.u.discovery]]\n{more}\n[upstream.u.discovery.consul]\nservice = \"u\"\n\
         address = \"http://{}\"\n{keys}\n",
        consul.http
    );
    Isobar::builder().config_text(text).start().unwrap()
}

/// Address and weight of each backend.
fn backends(running: &Running) -> Vec<(String, u16)> {
    let snapshot = running.handle().snapshot();
    let roster = snapshot.upstream("u").unwrap().roster();
    let mut all: Vec<_> = roster.backends().iter().map(|it| (it.state.address.to_string(), it.weight)).collect();
    all.sort();
    all
}

async fn has<'b>(running: &Running, expected: impl IntoIterator<Item = (&'b TestBackend, u16)>) {
    let expected = expected.into_iter().map(|(backend, weight)| (backend.address().to_string(), weight));
    let mut expected: Vec<_> = expected.collect();
    expected.sort();
    eventually(|| backends(running) == expected).await;
}

#[tokio::test]
#[ignore = "needs consul"]
async fn instances_of_a_real_consul_are_seen_as_they_are() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let consul = Consul::start().await;
    let running = start(&consul, "", "max_removed_percent = 100");
    let all = start(&consul, "warning = true\ntags = [\"v2\"]", "max_removed_percent = 100");
    let filtered = start(&consul, "filter = 'Service.Meta.version == \"3\"'", "max_removed_percent = 100");
    let check = ", \"Tags\": [\"v2\"], \"Meta\": {\"version\": \"2\", \"zone\": \"eu-1a\"}, \"Weights\": {\"Passing\": 7, \"Warning\": 2}, \
                 \"Check\": {\"CheckID\": \"ttl\", \"TTL\": \"10m\", \"Status\": \"passing\"}";
    consul.register(&a, check).await;
    // No address: that of the node.
    consul.register(&b, ", \"Address\": \"\", \"Meta\": {\"version\": \"3\"}").await;
    has(&running, [(&a, 7), (&b, 1)]).await;
    has(&all, [(&a, 7)]).await;
    has(&filtered, [(&b, 1)]).await;
    let snapshot = running.handle().snapshot();
    let roster = snapshot.upstream("u").unwrap().roster();
    let of_a = roster.backends().iter().find(|it| it.weight == 7).unwrap();
    assert_eq!((&*of_a.instance.labels["version"], of_a.instance.place.zone.as_deref()), ("2", Some("eu-1a")));
    consul.change("/v1/agent/check/warn/ttl", "").await;
    has(&running, [(&b, 1)]).await;
    has(&all, [(&a, 2)]).await;
    consul.change("/v1/agent/check/fail/ttl", "").await;
    has(&all, []).await;
    consul.change("/v1/agent/check/pass/ttl", "").await;
    has(&running, [(&a, 7), (&b, 1)]).await;
    let maintenance = format!("/v1/agent/service/maintenance/u-{}?enable=true", a.address().port());
    consul.change(&maintenance, "").await;
    has(&running, [(&b, 1)]).await;
}

#[tokio::test]
#[ignore = "needs consul"]
async fn a_change_in_a_real_consul_is_seen_by_the_next_request_within_a_second() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let consul = Consul::start().await;
    consul.register(&a, "").await;
    let running = start(&consul, "", "max_removed_percent = 100");
    has(&running, [(&a, 1)]).await;
    let mut took = Vec::new();
    for n in 0..100 {
        let expected = if n % 2 == 0 { vec![(&a, 1), (&b, 1)] } else { vec![(&a, 1)] };
        let begun = Instant::now();
        if n % 2 == 0 {
            consul.register(&b, "").await
        } else {
            consul.deregister(&b).await
        }
        has(&running, expected).await;
        took.push(begun.elapsed());
    }
    took.sort();
    println!("seen after: half {:?}, 99 of 100 {:?}, all {:?}", took[49], took[98], took[99]);
    assert!(took[98] < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
#[ignore = "needs consul"]
async fn a_real_consul_that_is_killed_and_comes_back_empty_costs_no_request() {
    let (a, b) = (TestBackend::ok("ok"), TestBackend::ok("ok"));
    let mut consul = Consul::start().await;
    for backend in [&a, &b] {
        consul.register(backend, "").await;
    }
    let running = start(&consul, "", "");
    has(&running, [(&a, 1), (&b, 1)]).await;
    let (address, ends) = (running.listener_addresses()[0], Arc::new(AtomicBool::new(false)));
    let over = Arc::clone(&ends);
    let asking = tokio::spawn(async move {
        let (mut client, mut asked) = (Client::connect(address).await, 0);
        while !over.load(SeqCst) {
            assert_eq!(client.get("/").await.status(), 200, "request {asked}");
            asked += 1;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        asked
    });
    let condition = || running.handle().snapshot().upstream("u").unwrap().state.sources.look()[1].condition.as_str();
    for _ in 0..3 {
        consul.kill();
        eventually(|| condition() == "failing").await;
        consul.restart().await;
        eventually(|| condition() == "holding").await;
        assert_eq!(backends(&running).len(), 2);
        for backend in [&a, &b] {
            consul.register(backend, "").await;
        }
        eventually(|| condition() == "current").await;
        assert_eq!(backends(&running).len(), 2);
    }
    ends.store(true, SeqCst);
    let asked = soon(asking).await.unwrap();
    assert_eq!(a.requests() + b.requests(), asked);
    assert!(asked > 300, "{asked}");
}

#[tokio::test]
#[ignore = "needs consul"]
async fn services_of_a_real_consul_are_reachable_while_they_are_registered() {
    let (early, late) = (TestBackend::ok("early"), TestBackend::ok("late"));
    let consul = Consul::start().await;
    let register = async |name: &str, backend: &TestBackend| {
        let (host, port) = (backend.address().ip(), backend.address().port());
        let body = format!("{{\"ID\": \"{name}\", \"Name\": \"{name}\", \"Address\": \"{host}\", \"Port\": {port}}}");
        consul.change("/v1/agent/service/register", &body).await;
    };
    register("early", &early).await;
    register("hidden", &early).await;
    let source = format!("consul = {{ service = \"{{service}}\", address = \"http://{}\" }}", consul.http);
    let running = services::start_with(&source);
    services::comes_to(&running, "/early/", 200).await;
    services::come_and_go(&running, async |comes| match comes {
        true => register("late", &late).await,
        false => consul.change("/v1/agent/service/deregister/late", "").await,
    })
    .await;
}
