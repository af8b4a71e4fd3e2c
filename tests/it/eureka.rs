//! The source `eureka`: against a scripted server, made from Eureka's REST API as its own clients use it, and against a real one, which
//! `tests/registries/eureka.sh` builds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use isobar::{Isobar, Running};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::harness::{Client, Peer, TestBackend, eventually, free_address, soon};
use crate::services;

/// What a scripted server knows.
#[derive(Default)]
struct Known {
    /// By ID: where, and in which state.
    instances: BTreeMap<String, (SocketAddr, &'static str)>,
    /// What deltas tell.
    changes: Vec<Value>,
    /// Whether it answers with what is no registry.
    is_garbage: bool,
    /// Whether it has no deltas.
    whole_only: bool,
    /// Times that it was asked for all, and for changes.
    asked: (usize, usize),
}

/// A scripted Eureka server, which wants a login.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<Known>>);

impl Server {
    fn put(&self, backend: &TestBackend, state: &'static str, action: &str) {
        let known = &mut *self.0.lock().unwrap();
        let (id, address) = (format!("u:{}", backend.address().port()), backend.address());
        known.changes.push(instance(&id, address, state, action));
        match action {
            "DELETED" => drop(known.instances.remove(&id)),
            _ => drop(known.instances.insert(id, (address, state))),
        }
    }

    /// A change that no delta tells of.
    fn put_in_silence(&self, backend: &TestBackend) {
        let id = format!("u:{}", backend.address().port());
        self.0.lock().unwrap().instances.insert(id, (backend.address(), "UP"));
    }

    fn asked(&self) -> (usize, usize) {
        self.0.lock().unwrap().asked
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.0.lock().unwrap());
    }

    fn serve(&self) -> TestBackend {
        let server = self.clone();
        TestBackend::scripted(async move |peer| {
            while let Some(request) = peer.request().await {
                // "me:secret"
                if request.head.get("authorization") != Some("Basic bWU6c2VjcmV0") {
                    peer.respond("401 Unauthorized", "").await;
                    continue;
                }
                server.answer(peer, request.head.target()).await;
            }
        })
    }

    async fn answer(&self, peer: &mut Peer, target: &str) {
        let (status, body) = {
            let known = &mut *self.0.lock().unwrap();
            let mut counts = BTreeMap::new();
            known.instances.values().for_each(|(_, state)| *counts.entry(*state).or_insert(0) += 1);
            let hash_code: String = counts.iter().map(|(state, count)| format!("{state}_{count}_")).collect();
            let all = |instances: Vec<Value>| {
                json!({ "applications": { "versions__delta": "1", "apps__hashcode": hash_code,
                                          "application": [{ "name": "U", "instance": instances }] } })
            };
            match target {
                _ if known.is_garbage => ("200 OK", "<html>".into()),
                "/eureka/apps" => {
                    known.asked.0 += 1;
                    let each =
                        known.instances.iter().map(|(id, (address, state))| instance(id, *address, state, "ADDED"));
                    ("200 OK", all(each.collect()).to_string())
                }
                "/eureka/apps/delta" if known.whole_only => ("403 Forbidden", String::new()),
                "/eureka/apps/delta" => {
                    known.asked.1 += 1;
                    ("200 OK", all(known.changes.clone()).to_string())
                }
                other => panic!("{other}"),
            }
        };
        peer.respond(&format!("{status}\r\ncontent-type: application/json"), body).await;
    }
}

/// An instance as Spring's client registers it.
fn instance(id: &str, address: SocketAddr, state: &str, action: &str) -> Value {
    json!({
        "instanceId": id, "hostName": "localhost", "app": "U", "ipAddr": address.ip(), "status": state, "overriddenStatus": "UNKNOWN",
        "port": { "$": address.port(), "@enabled": "true" }, "securePort": { "$": 443, "@enabled": "false" }, "countryId": 1,
        "dataCenterInfo": { "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn" },
        "metadata": { "management.port": address.port().to_string() }, "vipAddress": "u", "secureVipAddress": "u",
        "actionType": action, "leaseInfo": { "renewalIntervalInSecs": 30, "durationInSecs": 90 }
    })
}

/// Two upstreams that find the same application.
fn start(servers: &[String], interval: &str, keys: &str) -> Running {
    let mut text =
        "workers = 2\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n".to_owned();
    for (upstream, path) in [("u", "/"), ("v", "/v/")] {
        text += &format!(
            "[[route]]\npath_prefix = {path:?}\nupstream = {upstream:?}\n[upstream.{upstream}]\n[[upstream.{upstream}.discovery]]\n{keys}\n\
             [upstream.{upstream}.discovery.eureka]\napplication = \"u\"\nservers = {servers:?}\ninterval = {interval:?}\ntimeout = \"500ms\"\n\
             username = \"me\"\npassword = \"secret\"\n"
        );
    }
    Isobar::builder().config_text(text).start().unwrap()
}

fn url(server: &TestBackend) -> String {
    format!("http://{}/eureka", server.address())
}

async fn has<'b>(running: &Running, backends: impl IntoIterator<Item = &'b TestBackend>) {
    let mut expected: Vec<_> = backends.into_iter().map(|it| it.address().to_string()).collect();
    expected.sort();
    let found = |upstream: &str| {
        let roster = running.handle().snapshot().upstream(upstream).unwrap().roster();
        let mut found: Vec<_> = roster.backends().iter().map(|it| it.state.address.to_string()).collect();
        found.sort();
        found
    };
    eventually(|| ["u", "v"].iter().all(|upstream| found(upstream) == expected)).await;
}

fn condition(running: &Running) -> &'static str {
    running.handle().snapshot().upstream("u").unwrap().state.sources.look()[1].condition.as_str()
}

/// Asks all the time until it is told to end; each request is answered 200. Says how many.
fn ask_all_the_time(running: &Running) -> (Arc<AtomicBool>, JoinHandle<usize>) {
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
    (ends, asking)
}

#[tokio::test]
async fn sources_share_one_copy_of_the_registry_which_deltas_keep() {
    let (a, b, c) = (TestBackend::ok("a"), TestBackend::ok("b"), TestBackend::ok("c"));
    let eureka = Server::default();
    eureka.put(&a, "UP", "ADDED");
    eureka.put(&b, "STARTING", "ADDED");
    let server = eureka.serve();
    let running = start(&[url(&server)], "100ms", "max_removed_percent = 100");
    has(&running, [&a]).await;
    let begun = Instant::now();
    eureka.put(&b, "UP", "MODIFIED");
    has(&running, [&a, &b]).await;
    assert!(begun.elapsed() < Duration::from_millis(1100), "{:?}", begun.elapsed());
    eureka.put(&a, "OUT_OF_SERVICE", "MODIFIED");
    has(&running, [&b]).await;
    eureka.put(&a, "OUT_OF_SERVICE", "DELETED");
    eventually(|| eureka.asked().1 > 20).await;
    let took = begun.elapsed().as_millis() as usize;
    let (whole, deltas) = eureka.asked();
    assert_eq!(whole, 1, "all else was told by deltas");
    assert!(deltas <= took / 100 + 4, "{deltas} in {took} ms: both upstreams are served by one copy");
    // A delta that has missed something is found out by its hash code.
    eureka.put_in_silence(&c);
    has(&running, [&b, &c]).await;
    assert!(eureka.asked().0 > 1);
    // A server without deltas is asked for all each time.
    eureka.change(|known| known.whole_only = true);
    eureka.put(&a, "UP", "ADDED");
    has(&running, [&a, &b, &c]).await;
    let before = eureka.asked();
    eventually(|| eureka.asked().0 > before.0 + 2).await;
    assert_eq!(eureka.asked().1, before.1);
}

#[tokio::test]
async fn the_next_server_is_asked_where_one_fails_and_no_request_is_lost() {
    let (a, b) = (TestBackend::ok("ok"), TestBackend::ok("ok"));
    let (first, second) = (Server::default(), Server::default());
    for eureka in [&first, &second] {
        eureka.put(&a, "UP", "ADDED");
    }
    let (mut one, mut two) = (first.serve(), second.serve());
    let running = start(&[url(&one), url(&two)], "100ms", "max_removed_percent = 100");
    has(&running, [&a]).await;
    let (ends, asking) = ask_all_the_time(&running);
    assert_eq!(second.asked(), (0, 0));
    one.kill();
    second.put(&b, "UP", "ADDED");
    has(&running, [&a, &b]).await;
    assert_eq!(condition(&running), "current");
    assert!(second.asked().0 > 0, "another server's changes are not those of this one");
    // It is asked from then on, also when the first one is back and knows less.
    one.restart();
    tokio::time::sleep(Duration::from_millis(300)).await;
    has(&running, [&a, &b]).await;
    one.kill();
    two.kill();
    eventually(|| condition(&running) == "failing").await;
    has(&running, [&a, &b]).await;
    two.restart();
    eventually(|| condition(&running) == "current").await;
    second.change(|known| known.is_garbage = true);
    eventually(|| condition(&running) == "failing").await;
    second.change(|known| known.is_garbage = false);
    eventually(|| condition(&running) == "current").await;
    has(&running, [&a, &b]).await;
    ends.store(true, SeqCst);
    let asked = soon(asking).await.unwrap();
    assert_eq!(a.requests() + b.requests(), asked);
    assert!(asked > 100, "{asked}");
}

/// A Eureka server of this test's own.
struct RealEureka {
    address: SocketAddr,
    process: Child,
}

impl RealEureka {
    async fn start() -> Self {
        let address = free_address();
        let mut eureka = Self { address, process: Self::run(address) };
        eureka.wait().await;
        eureka
    }

    fn run(address: SocketAddr) -> Child {
        let jar = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/registries/eureka.jar");
        assert!(jar.exists(), "tests/registries/eureka.sh builds the server");
        let mut java = Command::new("java");
        java.args(["-Xmx256m", "-jar"]).arg(jar);
        // Its answers are otherwise kept for 30 s, and instances that have gone for longer.
        java.args([
            "--eureka.server.use-read-only-response-cache=false",
            "--eureka.server.enable-self-preservation=false",
        ]);
        java.args([format!("--server.port={}", address.port()), "--server.address=127.0.0.1".into()]);
        java.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("java")
    }

    async fn wait(&mut self) {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < Duration::from_secs(90), "Eureka does not start");
            if TcpStream::connect(self.address).await.is_ok() && self.ask("GET", "", "").await == 200 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> u16 {
        let mut client = Client::connect(self.address).await;
        let length = body.len();
        let head = format!("{method} /eureka/apps{path} HTTP/1.1\r\nhost: eureka\r\naccept: application/json\r\n");
        client.send(format!("{head}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")).await;
        client.response().await.status()
    }

    async fn register(&self, backend: &TestBackend) {
        let id = format!("u:{}", backend.address().port());
        let body = json!({ "instance": instance(&id, backend.address(), "UP", "ADDED") }).to_string();
        assert_eq!(self.ask("POST", "/U", &body).await, 204);
    }

    /// The only instance of an application.
    async fn register_as(&self, application: &str, backend: &TestBackend) {
        let mut instance = instance(application, backend.address(), "UP", "ADDED");
        instance["app"] = application.into();
        let body = json!({ "instance": instance }).to_string();
        assert_eq!(self.ask("POST", &format!("/{application}"), &body).await, 204);
    }

    async fn change(&self, method: &str, backend: &TestBackend, more: &str) {
        let path = format!("/U/u:{}{more}", backend.address().port());
        assert_eq!(self.ask(method, &path, "").await, 200, "{method} {path}");
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for RealEureka {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
#[ignore = "needs eureka"]
async fn a_change_in_a_real_eureka_is_seen_within_its_interval_and_its_death_costs_no_request() {
    let (a, b) = (TestBackend::ok("ok"), TestBackend::ok("ok"));
    let mut eureka = RealEureka::start().await;
    eureka.register(&a).await;
    let running = start(&[format!("http://{}/eureka", eureka.address)], "200ms", "max_removed_percent = 99");
    has(&running, [&a]).await;
    let (ends, asking) = ask_all_the_time(&running);
    let mut took = Vec::new();
    for n in 0..100 {
        let begun = Instant::now();
        match n % 4 {
            0 => eureka.register(&b).await,
            1 => eureka.change("PUT", &b, "/status?value=OUT_OF_SERVICE").await,
            2 => eureka.change("DELETE", &b, "/status?value=UP").await,
            _ => eureka.change("DELETE", &b, "").await,
        }
        has(&running, if n % 2 == 0 { vec![&a, &b] } else { vec![&a] }).await;
        took.push(begun.elapsed());
    }
    took.sort();
    println!("seen after: half {:?}, 99 of 100 {:?}, all {:?}", took[49], took[98], took[99]);
    assert!(took[98] < Duration::from_millis(1200), "{took:?}");
    eureka.register(&b).await;
    has(&running, [&a, &b]).await;
    eureka.kill();
    eventually(|| condition(&running) == "failing").await;
    // A new one knows nothing until its clients come back: nothing is believed less than that there are none.
    eureka.process = RealEureka::run(eureka.address);
    eureka.wait().await;
    eventually(|| matches!(condition(&running), "holding" | "current")).await;
    for backend in [&a, &b] {
        eureka.register(backend).await;
    }
    ends.store(true, SeqCst);
    let asked = soon(asking).await.unwrap();
    assert_eq!(a.requests() + b.requests(), asked);
    assert!(asked > 300, "{asked}");
}

#[tokio::test]
#[ignore = "needs eureka"]
async fn applications_of_a_real_eureka_are_reachable_while_they_are_registered() {
    let (early, late) = (TestBackend::ok("early"), TestBackend::ok("late"));
    let eureka = RealEureka::start().await;
    for application in ["EARLY", "HIDDEN"] {
        eureka.register_as(application, &early).await;
    }
    let servers = format!("http://{}/eureka", eureka.address);
    let keys = format!("eureka = {{ application = \"{{service}}\", servers = [{servers:?}], interval = \"200ms\" }}");
    let running = services::start_with(&keys);
    services::comes_to(&running, "/early/", 200).await;
    services::come_and_go(&running, async |comes| match comes {
        true => eureka.register_as("LATE", &late).await,
        false => assert_eq!(eureka.ask("DELETE", "/LATE/LATE", "").await, 200),
    })
    .await;
}
