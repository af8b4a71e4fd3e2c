//! The source `etcd`, against a scripted gateway that fails in each way, and against a real etcd. `tests/registries/etcd.sh` gets one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::harness::{Client, PATIENCE, Peer, Scratch, TestBackend, eventually, free_address};
use crate::registry::{Load, Process, Took, comes_to, conditions, has, has_now, start};
use crate::services;

/// How a member behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Good,
    /// It takes requests and says nothing, and nor do its watches.
    Hangs,
    Fails,
    Garbage,
    Empty,
    /// It sends 100 MB.
    Huge,
    /// Watches end at once, since what they ask for was compacted away.
    Compacted,
}

struct Known {
    mood: Mood,
    revision: u64,
    /// What a login gives. A request with another is refused.
    token: Option<u32>,
    logins: usize,
    reads: usize,
    backends: Vec<SocketAddr>,
}

/// A scripted gateway, made from etcd's description of its API.
#[derive(Clone)]
struct Gateway(Arc<Mutex<Known>>);

impl Gateway {
    fn with<'b>(backends: impl IntoIterator<Item = &'b TestBackend>) -> Self {
        let backends = backends.into_iter().map(TestBackend::address).collect();
        let known = Known { mood: Mood::Good, revision: 10, token: None, logins: 0, reads: 0, backends };
        Self(Arc::new(Mutex::new(known)))
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.0.lock().unwrap());
    }

    fn is(&self, mood: Mood) {
        self.change(|known| known.mood = mood);
    }

    fn mood(&self) -> Mood {
        self.0.lock().unwrap().mood
    }

    fn serve(&self) -> TestBackend {
        let gateway = self.clone();
        TestBackend::scripted(async move |peer| {
            while let Some(message) = peer.request().await {
                let asked: Value = serde_json::from_slice(message.body.as_ref()).unwrap();
                let token = gateway.0.lock().unwrap().token;
                let may = token.is_none_or(|it| message.head.get("authorization") == Some(&*format!("t{it}")));
                match message.head.target() {
                    "/v3/auth/authenticate" => {
                        assert_eq!(asked, json!({ "name": "isobar", "password": "secret" }));
                        gateway.change(|known| known.logins += 1);
                        peer.respond("200 OK", json!({ "token": format!("t{}", token.unwrap()) }).to_string()).await;
                    }
                    _ if !may => {
                        let body = r#"{"error":"etcdserver: invalid auth token","code":16}"#;
                        peer.respond("401 Unauthorized", body).await;
                    }
                    "/v3/kv/range" => gateway.range(peer, &asked).await,
                    "/v3/watch" => return gateway.watch(peer, &asked["create_request"]).await,
                    other => panic!("{other}"),
                }
            }
        })
    }

    async fn range(&self, peer: &mut Peer, asked: &Value) {
        assert_eq!(STANDARD.decode(asked["key"].as_str().unwrap()).unwrap(), b"/u/");
        assert_eq!(STANDARD.decode(asked["range_end"].as_str().unwrap()).unwrap(), b"/u0");
        let (mood, body) = {
            let mut known = self.0.lock().unwrap();
            known.reads += 1;
            let kv = |address: &SocketAddr| kv(*address, known.revision);
            let kvs: Vec<_> = match known.mood {
                Mood::Empty => Vec::new(),
                _ => known.backends.iter().map(kv).collect(),
            };
            (known.mood, json!({ "header": { "revision": known.revision.to_string() }, "kvs": kvs }).to_string())
        };
        match mood {
            Mood::Good | Mood::Compacted | Mood::Empty => peer.respond("200 OK", body).await,
            Mood::Hangs => peer.gone().await,
            Mood::Fails => peer.respond("500 Internal Server Error", r#"{"error":"etcdserver: no leader"}"#).await,
            Mood::Garbage => peer.respond("200 OK", "<html>oh</html>").await,
            Mood::Huge => {
                const MEGABYTE: usize = 1024 * 1024;
                peer.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n[", 100 * MEGABYTE)).await;
                while peer.stream.write(&vec![b' '; MEGABYTE]).await.is_ok() {}
            }
        }
    }

    /// A watch: its creation, and then what changes. It breaks when the mood does, but for one that hangs.
    async fn watch(&self, peer: &mut Peer, asked: &Value) {
        let first: u64 = asked["start_revision"].as_str().unwrap().parse().unwrap();
        peer.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        if self.mood() == Mood::Compacted {
            return line(peer, json!({ "canceled": true, "compact_revision": (first + 5).to_string() })).await;
        }
        line(peer, json!({ "header": { "revision": first.to_string() }, "created": true })).await;
        let (mut before, mut at) = {
            let known = self.0.lock().unwrap();
            (known.backends.clone(), known.revision)
        };
        loop {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let (mood, now, revision) = {
                let known = self.0.lock().unwrap();
                (known.mood, known.backends.clone(), known.revision)
            };
            match mood {
                Mood::Good => {}
                Mood::Hangs => continue,
                _ => return,
            }
            if revision == at {
                continue;
            }
            let gone = before.iter().filter(|it| !now.contains(it)).map(|it| {
                json!({ "type": "DELETE", "kv": { "key": kv(*it, 0)["key"], "mod_revision": revision.to_string() } })
            });
            let came = now.iter().filter(|it| !before.contains(it)).map(|it| json!({ "kv": kv(*it, revision) }));
            let events: Vec<_> = gone.chain(came).collect();
            line(peer, json!({ "header": { "revision": revision.to_string() }, "events": events })).await;
            (before, at) = (now, revision);
        }
    }
}

fn kv(address: SocketAddr, revision: u64) -> Value {
    let value = json!({ "Op": 0, "Addr": address, "Metadata": { "zone": "a" } }).to_string();
    let key = STANDARD.encode(format!("/u/{address}"));
    json!({ "key": key, "value": STANDARD.encode(value), "mod_revision": revision.to_string() })
}

async fn line(peer: &mut Peer, result: Value) {
    let line = format!("{}\n", json!({ "result": result }));
    peer.write(format!("{:x}\r\n{line}\r\n", line.len())).await;
}

fn source(endpoints: &[SocketAddr], etcd: &str, keys: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|it| format!("http://{it}")).collect();
    format!("{keys}\netcd = {{ prefix = \"/u/\", endpoints = {endpoints:?}, resync = \"1s\", timeout = \"2s\"{etcd} }}")
}

/// Each way in which etcd can be of no use, with requests all the time: none is lost, and each state is told once.
#[tokio::test]
async fn a_bad_day_of_etcd_costs_no_request() {
    let backends: Vec<_> = (0..4).map(|_| TestBackend::ok("ok")).collect();
    let gateway = Gateway::with(&backends);
    let mut server = gateway.serve();
    let keys = "max_bytes = \"64KiB\"\nremoval_hold = \"1h\"";
    let running = start(&source(&[server.address()], "", keys));
    has(&running, &backends).await;
    let load = Load::begin(&running);
    let mut told = vec!["current"];
    for mood in [Mood::Fails, Mood::Garbage, Mood::Empty, Mood::Huge, Mood::Hangs] {
        gateway.is(mood);
        let state = if mood == Mood::Empty { "holding" } else { "failing" };
        told.extend([state, "current"]);
        comes_to(&running, state).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(has_now(&running, &backends), "{mood:?}");
        gateway.is(Mood::Good);
        comes_to(&running, "current").await;
    }
    // Its revision goes backwards, as after a restore, and changes go on from there.
    gateway.change(|known| known.revision = 3);
    server.kill();
    comes_to(&running, "failing").await;
    server.restart();
    comes_to(&running, "current").await;
    told.extend(["failing", "current"]);
    gateway.change(|known| (known.revision, known.backends) = (4, known.backends[..3].to_vec()));
    has(&running, &backends[..3]).await;
    assert_eq!(conditions(&running), told);
    let asked = load.end().await;
    assert_eq!(asked, backends.iter().map(TestBackend::requests).sum::<usize>());
    assert!(asked > 1000, "{asked}");
}

#[tokio::test]
async fn a_compacted_history_is_read_again_and_no_failure() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let gateway = Gateway::with([&a]);
    let server = gateway.serve();
    let running = start(&source(&[server.address()], "", "max_removed_percent = 100"));
    has(&running, [&a]).await;
    let reads = gateway.0.lock().unwrap().reads;
    // The watch breaks, and what it would go on from is no longer there when it is asked for.
    gateway.is(Mood::Compacted);
    gateway.change(|known| (known.revision, known.backends) = (900, vec![b.address()]));
    eventually(|| gateway.0.lock().unwrap().reads > reads).await;
    gateway.is(Mood::Good);
    has(&running, [&b]).await;
    comes_to(&running, "current").await;
}

#[tokio::test]
async fn a_login_that_has_expired_is_made_again_and_no_failure() {
    let a = TestBackend::ok("a");
    let gateway = Gateway::with([&a]);
    gateway.change(|known| known.token = Some(1));
    let server = gateway.serve();
    let running = start(&source(&[server.address()], ", username = \"isobar\", password = \"secret\"", ""));
    has(&running, [&a]).await;
    gateway.change(|known| known.token = Some(2));
    eventually(|| gateway.0.lock().unwrap().logins == 2).await;
    let reads = gateway.0.lock().unwrap().reads;
    eventually(|| gateway.0.lock().unwrap().reads > reads + 1).await;
    assert_eq!((conditions(&running), gateway.0.lock().unwrap().logins), (vec!["current"], 2));
}

#[tokio::test]
async fn another_member_is_asked_when_one_is_gone_and_no_failure() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let gateway = Gateway::with([&a]);
    let (mut first, mut second) = (gateway.serve(), gateway.serve());
    let running = start(&source(&[first.address(), second.address()], "", "max_removed_percent = 100"));
    has(&running, [&a]).await;
    first.kill();
    gateway.change(|known| (known.revision, known.backends) = (11, vec![b.address()]));
    has(&running, [&b]).await;
    first.restart();
    second.kill();
    gateway.change(|known| (known.revision, known.backends) = (12, vec![a.address()]));
    has(&running, [&a]).await;
    assert_eq!(conditions(&running), ["current"]);
}

/// A real etcd of this test's own.
struct Etcd {
    client: SocketAddr,
    peer: SocketAddr,
    data: Scratch,
    process: Process,
}

const HINT: &str = "tests/registries/etcd.sh gets etcd";

impl Etcd {
    async fn start() -> Self {
        let (client, peer, data) = (free_address(), free_address(), Scratch::new());
        let process = Self::run(client, peer, &data.path("data"));
        let etcd = Self { client, peer, data, process };
        etcd.wait().await;
        etcd
    }

    fn run(client: SocketAddr, peer: SocketAddr, data: &Path) -> Process {
        let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/registries/etcd");
        let binary = if fetched.exists() { fetched } else { PathBuf::from("etcd") };
        let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
        let mut command = Command::new(binary);
        command.arg("--data-dir").arg(data);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        Process::run(&mut command, HINT)
    }

    async fn wait(&self) {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < PATIENCE, "etcd does not start");
            let range = json!({ "key": STANDARD.encode("x") });
            if TcpStream::connect(self.client).await.is_ok() && self.ask("/v3/kv/range", range, "").await.0 == 200 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The same again; `empty`: without what it knew.
    async fn restart(&mut self, empty: bool) {
        if empty {
            std::fs::remove_dir_all(self.data.path("data")).unwrap();
        }
        self.process = Self::run(self.client, self.peer, &self.data.path("data"));
        self.wait().await;
    }

    async fn ask(&self, path: &str, body: Value, token: &str) -> (u16, Value) {
        let mut client = Client::connect(self.client).await;
        let (body, token) =
            (body.to_string(), if token.is_empty() { String::new() } else { format!("authorization: {token}\r\n") });
        let length = body.len();
        client
            .send(format!("POST {path} HTTP/1.1\r\nhost: etcd\r\n{token}content-length: {length}\r\n\r\n{body}"))
            .await;
        let response = client.response().await;
        (response.status(), response.json())
    }

    async fn done(&self, path: &str, body: Value) -> Value {
        let (status, said) = self.ask(path, body, "").await;
        assert_eq!(status, 200, "{path}: {said}");
        said
    }

    async fn put(&self, key: &str, value: String) -> u64 {
        let said =
            self.done("/v3/kv/put", json!({ "key": STANDARD.encode(key), "value": STANDARD.encode(value) })).await;
        said["header"]["revision"].as_str().unwrap().parse().unwrap()
    }

    async fn delete(&self, key: &str) {
        self.done("/v3/kv/deleterange", json!({ "key": STANDARD.encode(key) })).await;
    }
}

fn key(backend: &TestBackend) -> String {
    format!("/u/{}", backend.address())
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn each_form_of_record_in_a_real_etcd_is_a_backend() {
    let (a, b, c) = (TestBackend::ok("a"), TestBackend::ok("b"), TestBackend::ok("c"));
    let etcd = Etcd::start().await;
    let running = start(&source(&[etcd.client], "", "max_removed_percent = 100"));
    etcd.put(&key(&a), a.address().to_string()).await;
    etcd.put(&key(&b), json!({ "Op": 0, "Addr": b.address(), "Metadata": null }).to_string()).await;
    let micro = json!({ "name": "u", "version": "latest", "endpoints": [],
                        "nodes": [{ "id": "u-1", "address": c.address(), "metadata": { "protocol": "http" } }] });
    etcd.put("/u/u-1", micro.to_string()).await;
    // Another's.
    etcd.put("/u2/x", "10.0.0.1:1".into()).await;
    has(&running, [&a, &b, &c]).await;
    etcd.delete("/u/u-1").await;
    has(&running, [&a, &b]).await;
    // A lease that is not kept alive takes its keys with it.
    let lease = etcd.done("/v3/lease/grant", json!({ "TTL": 1 })).await["ID"].clone();
    let put =
        json!({ "key": STANDARD.encode("/u/c"), "value": STANDARD.encode(c.address().to_string()), "lease": lease });
    etcd.done("/v3/kv/put", put).await;
    has(&running, [&a, &b, &c]).await;
    has(&running, [&a, &b]).await;
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn a_change_in_a_real_etcd_is_seen_within_a_second() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let etcd = Etcd::start().await;
    etcd.put(&key(&a), a.address().to_string()).await;
    let running = start(&source(&[etcd.client], "", "max_removed_percent = 100"));
    has(&running, [&a]).await;
    let mut took = Took::default();
    for n in 0..100 {
        let begun = Instant::now();
        if n % 2 == 0 {
            etcd.put(&key(&b), b.address().to_string()).await;
            has(&running, [&a, &b]).await;
        } else {
            etcd.delete(&key(&b)).await;
            has(&running, [&a]).await;
        }
        took.since(begun);
    }
    took.end_within_a_second();
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn a_real_etcd_that_is_killed_hangs_forgets_and_compacts_costs_no_request() {
    let (a, b) = (TestBackend::ok("ok"), TestBackend::ok("ok"));
    let mut etcd = Etcd::start().await;
    for backend in [&a, &b] {
        etcd.put(&key(backend), backend.address().to_string()).await;
    }
    let running = start(&source(&[etcd.client], "", ""));
    has(&running, [&a, &b]).await;
    let load = Load::begin(&running);
    // Restarted with what it knew.
    etcd.process.kill();
    comes_to(&running, "failing").await;
    let mut last = 0;
    etcd.restart(false).await;
    comes_to(&running, "current").await;
    // It hangs, and what it was is compacted away before the watch of before could go on.
    etcd.process.signal("STOP");
    comes_to(&running, "failing").await;
    etcd.process.signal("CONT");
    for n in 0..20 {
        last = etcd.put("/other", n.to_string()).await;
    }
    etcd.done("/v3/kv/compaction", json!({ "revision": last.to_string(), "physical": true })).await;
    comes_to(&running, "current").await;
    // It comes back empty.
    etcd.process.kill();
    comes_to(&running, "failing").await;
    etcd.restart(true).await;
    comes_to(&running, "holding").await;
    assert!(has_now(&running, [&a, &b]));
    for backend in [&a, &b] {
        etcd.put(&key(backend), backend.address().to_string()).await;
    }
    comes_to(&running, "current").await;
    assert!(has_now(&running, [&a, &b]));
    let expected = ["current", "failing", "current", "failing", "current", "failing", "holding", "current"];
    assert_eq!(conditions(&running), expected);
    let asked = load.end().await;
    assert_eq!(a.requests() + b.requests(), asked);
    assert!(asked > 1000, "{asked}");
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn a_real_etcd_is_asked_with_a_login() {
    let a = TestBackend::ok("a");
    let mut etcd = Etcd::start().await;
    etcd.put(&key(&a), a.address().to_string()).await;
    let (from, to) = (STANDARD.encode("/u/"), STANDARD.encode("/u0"));
    etcd.done("/v3/auth/user/add", json!({ "name": "root", "password": "r" })).await;
    etcd.done("/v3/auth/user/grant", json!({ "user": "root", "role": "root" })).await;
    etcd.done("/v3/auth/user/add", json!({ "name": "isobar", "password": "secret" })).await;
    etcd.done("/v3/auth/role/add", json!({ "name": "reads" })).await;
    let permission = json!({ "permType": "READ", "key": from, "range_end": to });
    etcd.done("/v3/auth/role/grant", json!({ "name": "reads", "perm": permission })).await;
    etcd.done("/v3/auth/user/grant", json!({ "user": "isobar", "role": "reads" })).await;
    etcd.done("/v3/auth/enable", json!({})).await;
    let login = |password: &str| format!(", username = \"isobar\", password = \"{password}\"");
    let running = start(&source(&[etcd.client], &login("secret"), ""));
    has(&running, [&a]).await;
    for refused in ["", &login("wrong")] {
        comes_to(&start(&source(&[etcd.client], refused, "")), "failing").await;
    }
    // Its tokens are forgotten with its end.
    etcd.process.kill();
    comes_to(&running, "failing").await;
    etcd.process = Etcd::run(etcd.client, etcd.peer, &etcd.data.path("data"));
    comes_to(&running, "current").await;
    assert!(has_now(&running, [&a]));
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn services_in_a_real_etcd_are_reachable_while_they_have_keys() {
    let (early, late) = (TestBackend::ok("early"), TestBackend::ok("late"));
    let etcd = Etcd::start().await;
    etcd.put("/services/early/1", early.address().to_string()).await;
    etcd.put("/services/hidden/1", early.address().to_string()).await;
    let keys = format!("etcd = {{ prefix = \"/services/{{service}}/\", endpoints = [\"http://{}\"] }}", etcd.client);
    let running = services::start_with(&keys);
    services::comes_to(&running, "/early/", 200).await;
    services::come_and_go(&running, async |comes| match comes {
        true => drop(etcd.put("/services/late/1", late.address().to_string()).await),
        false => etcd.delete("/services/late/1").await,
    })
    .await;
}
