//! Backends that the sources of the file find: what a registry does, on its good days and on its bad ones, costs no request.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use isobar::telemetry::events::EventKind;
use isobar::{Isobar, Running};
use tokio::task::JoinSet;

use crate::harness::{Client, Peer, Scratch, TestBackend, eventually, soon};

/// Two workers and a route to `u`, which has these tables.
fn text(tables: &str) -> String {
    format!(
        "workers = 2\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[route]]\nupstream = \"u\"\n{tables}\n"
    )
}

fn start(text: impl Into<String>) -> Running {
    Isobar::builder().config_text(text).start().unwrap()
}

async fn client(running: &Running) -> Client {
    Client::connect(running.listener_addresses()[0]).await
}

/// The ports that `u` has backends at.
fn ports(running: &Running) -> Vec<u16> {
    let snapshot = running.handle().snapshot();
    let roster = snapshot.upstream("u").unwrap().roster();
    let port = |text: String| text.rsplit_once(':').unwrap().1.parse().unwrap();
    let mut ports: Vec<_> = roster.backends().iter().map(|it| port(it.state.address.to_string())).collect();
    ports.sort_unstable();
    ports
}

fn ports_of<'b>(backends: impl IntoIterator<Item = &'b TestBackend>) -> Vec<u16> {
    let mut ports: Vec<_> = backends.into_iter().map(|it| it.address().port()).collect();
    ports.sort_unstable();
    ports
}

async fn has<'b>(running: &Running, backends: impl IntoIterator<Item = &'b TestBackend>) {
    let expected = ports_of(backends);
    eventually(|| ports(running) == expected).await;
}

async fn ask_admin(running: &Running, request: String) -> (u16, HashMap<String, String>, serde_json::Value) {
    let mut admin = Client::connect(running.admin_address().unwrap()).await;
    admin.send(request).await;
    let response = admin.response().await;
    let headers = response.head.fields.iter().map(|(name, value)| (name.to_lowercase(), value.clone())).collect();
    let body = if response.text().starts_with('{') { response.json() } else { response.text().into() };
    (response.status(), headers, body)
}

async fn source(running: &Running) -> serde_json::Value {
    let (_, _, view) = ask_admin(running, "GET /upstreams/u HTTP/1.1\r\nhost: localhost\r\n\r\n".into()).await;
    view["sources"][1].clone()
}

/// The conditions that the source has been in, as they were told.
fn conditions(running: &Running) -> Vec<&'static str> {
    let told = running.handle().events().listen_after(0).since;
    let told = told.iter().filter_map(|event| match &event.kind {
        EventKind::Discovery { to, .. } => Some(*to),
        _ => None,
    });
    told.collect()
}

/// How a registry behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Good,
    /// It takes requests and says nothing.
    Hangs,
    /// It answers 500.
    Fails,
    /// It answers with what is no JSON.
    Garbage,
    /// It says that there is nothing.
    Empty,
    /// It sends 100 MB.
    Huge,
    /// It has no leader, and knows nothing.
    Leaderless,
}

/// What a scripted Consul knows.
struct Known {
    mood: Mood,
    index: u64,
    backends: Vec<SocketAddr>,
}

/// A scripted Consul: `/v1/health/service/NAME` with blocking queries, made from its documentation.
#[derive(Clone)]
struct Registry(Arc<Mutex<Known>>, Arc<AtomicUsize>);

impl Registry {
    fn with<'b>(backends: impl IntoIterator<Item = &'b TestBackend>) -> Self {
        let backends = backends.into_iter().map(TestBackend::address).collect();
        Self(Arc::new(Mutex::new(Known { mood: Mood::Good, index: 10, backends })), Arc::default())
    }

    fn set<'b>(&self, backends: impl IntoIterator<Item = &'b TestBackend>) {
        let mut known = self.0.lock().unwrap();
        known.backends = backends.into_iter().map(TestBackend::address).collect();
        known.index += 1;
    }

    fn is(&self, mood: Mood) {
        let mut known = self.0.lock().unwrap();
        known.mood = mood;
        known.index += 1;
    }

    /// As after a restore: the same, with an index from before.
    fn go_backwards(&self) {
        self.0.lock().unwrap().index = 3;
    }

    fn look(&self) -> (Mood, u64, String) {
        let known = self.0.lock().unwrap();
        let entry = |address: &SocketAddr| {
            serde_json::json!({
                "Node": { "Node": "n", "Address": address.ip(), "Datacenter": "dc1" },
                "Service": { "ID": format!("u-{}", address.port()), "Service": "u", "Tags": ["v1"], "Address": "",
                             "Port": address.port(), "Meta": { "version": "1" }, "Weights": { "Passing": 1, "Warning": 1 } },
                "Checks": [{ "CheckID": "serfHealth", "Status": "passing" }]
            })
        };
        let list: Vec<_> = known.backends.iter().map(entry).collect();
        (known.mood, known.index, serde_json::Value::from(list).to_string())
    }

    fn serve(&self) -> TestBackend {
        let registry = self.clone();
        TestBackend::scripted(async move |peer| {
            while let Some(message) = peer.request().await {
                let target = message.head.target().to_owned();
                assert!(target.starts_with("/v1/health/service/u"), "{target}");
                let asked = target.split(['?', '&']).find_map(|it| it.strip_prefix("index="));
                let asked: u64 = asked.map_or(0, |it| it.parse().unwrap());
                registry.answer(peer, asked).await;
            }
        })
    }

    async fn answer(&self, peer: &mut Peer, asked: u64) {
        let begun = Instant::now();
        // The test's `wait` is a second.
        while asked >= self.look().1 && begun.elapsed() < Duration::from_secs(1) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let (mood, index, list) = self.look();
        let ok = format!("200 OK\r\ncontent-type: application/json\r\nx-consul-index: {index}");
        match mood {
            Mood::Good => peer.respond(&format!("{ok}\r\nx-consul-knownleader: true"), list).await,
            Mood::Hangs => peer.gone().await,
            Mood::Fails => peer.respond("500 Internal Server Error", "No cluster leader").await,
            Mood::Garbage => peer.respond(&ok, "<html>oh</html>").await,
            Mood::Empty => peer.respond(&ok, "[]").await,
            Mood::Leaderless => peer.respond(&format!("{ok}\r\nx-consul-knownleader: false"), "[]").await,
            Mood::Huge => {
                const MEGABYTE: usize = 1024 * 1024;
                peer.write(format!("HTTP/1.1 {ok}\r\ncontent-length: {}\r\n\r\n[", 100 * MEGABYTE)).await;
                for _ in 0..100 {
                    if peer.stream.write(&vec![b' '; MEGABYTE]).await.is_err() {
                        return;
                    }
                    self.1.fetch_add(MEGABYTE, SeqCst);
                }
            }
        }
    }
}

fn consul(at: &TestBackend, keys: &str) -> String {
    text(&format!(
        "[upstream.u]\nretries = 0\noutlier_detection = {{ enabled = false }}\n[[upstream.u.discovery]]\n{keys}\n\
         consul = {{ service = \"u\", address = \"http://{}\", wait = \"1s\", timeout = \"500ms\" }}",
        at.address()
    ))
}

/// Asks until it is told to end; each request is answered 200. Says how many.
async fn ask(address: SocketAddr, ends: Arc<AtomicBool>) -> usize {
    let mut client = Client::connect(address).await;
    let mut asked = 0;
    while !ends.load(SeqCst) {
        let response = client.get("/").await;
        assert_eq!(response.status(), 200, "request {asked}");
        asked += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    asked
}

#[tokio::test]
async fn a_change_in_consul_is_seen_at_once() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let registry = Registry::with([&a]);
    let server = registry.serve();
    let running = start(consul(&server, "max_removed_percent = 100"));
    has(&running, [&a]).await;
    let mut client = client(&running).await;
    assert_eq!(client.get("/").await.text(), "a");
    let mut took = Vec::new();
    for n in 0..100 {
        let next = if n % 2 == 0 { &b } else { &a };
        registry.set([next]);
        let begun = Instant::now();
        has(&running, [next]).await;
        took.push(begun.elapsed());
    }
    took.sort();
    assert!(took[98] < Duration::from_secs(1), "{took:?}");
    let view = source(&running).await;
    assert_eq!((&view["name"], &view["condition"]), (&"consul u".into(), &"current".into()));
    assert_eq!((&view["revision"], &view["stale_seconds"]), (&"110".into(), &0.into()));
    let (_, _, view) = ask_admin(&running, "GET /upstreams/u HTTP/1.1\r\nhost: localhost\r\n\r\n".into()).await;
    let backend = &view["backends"][0];
    assert_eq!((&backend["source"], &backend["labels"]["version"]), (&"consul u".into(), &"1".into()));
    assert!(backend["named_since"].is_string());
    // A hundred changes are no hundred lines of the source's state.
    assert_eq!(conditions(&running), ["current"]);
}

/// Each way in which a registry can be of no use, with requests all the time: none is lost, and each state is told once.
#[tokio::test]
async fn a_bad_day_of_the_registry_costs_no_request() {
    let backends: Vec<_> = (0..4).map(|_| TestBackend::ok("ok")).collect();
    let registry = Registry::with(&backends);
    let mut server = registry.serve();
    let running = start(consul(&server, "max_bytes = \"64KiB\"\nremoval_hold = \"1h\""));
    has(&running, &backends).await;
    let (address, ends) = (running.listener_addresses()[0], Arc::new(AtomicBool::new(false)));
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        clients.spawn(ask(address, Arc::clone(&ends)));
    }
    let mut told = vec!["current"];
    for mood in [Mood::Fails, Mood::Garbage, Mood::Empty, Mood::Huge, Mood::Leaderless, Mood::Hangs] {
        registry.is(mood);
        let state = if mood == Mood::Empty { "holding" } else { "failing" };
        told.extend([state, "current"]);
        eventually(|| conditions(&running).last() == Some(&state)).await;
        // It goes on for a while.
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(ports(&running), ports_of(&backends), "{mood:?}");
        registry.is(Mood::Good);
        eventually(|| conditions(&running).last() == Some(&"current")).await;
    }
    assert!(registry.1.load(SeqCst) < 16 * 1024 * 1024, "{} bytes of 100 MB were read", registry.1.load(SeqCst));
    // It goes backwards while it is asked.
    registry.go_backwards();
    for some in [&backends[..3], &backends] {
        registry.set(some);
        has(&running, some).await;
    }
    // Killed, and back with an index from before.
    server.kill();
    eventually(|| conditions(&running).last() == Some(&"failing")).await;
    registry.go_backwards();
    server.restart();
    eventually(|| conditions(&running).last() == Some(&"current")).await;
    told.extend(["failing", "current"]);
    registry.set(&backends[..3]);
    has(&running, &backends[..3]).await;
    assert_eq!(conditions(&running), told);
    ends.store(true, SeqCst);
    let mut asked = 0;
    while let Some(done) = soon(clients.join_next()).await {
        asked += done.unwrap();
    }
    let served: usize = backends.iter().map(TestBackend::requests).sum();
    assert_eq!(asked, served);
    assert!(asked > 500, "{asked}");
}

#[tokio::test]
async fn a_hanging_registry_puts_off_no_stop_and_no_reload() {
    let a = TestBackend::ok("a");
    let registry = Registry::with([&a]);
    registry.is(Mood::Hangs);
    let server = registry.serve();
    let running = start(consul(&server, ""));
    let mut client = client(&running).await;
    assert_eq!(client.get("/").await.status(), 503);
    let begun = Instant::now();
    soon(running.handle().apply_text(consul(&server, "max_backends = 5"))).await.unwrap();
    drop(client);
    running.stop(Duration::from_secs(20)).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn backends_that_vanish_are_held_back_until_their_checks_fail() {
    let (a, mut b, mut c) = (TestBackend::ok("a"), TestBackend::ok("b"), TestBackend::ok("c"));
    let registry = Registry::with([&a, &b, &c]);
    let server = registry.serve();
    let check = "health_check = { interval = \"20ms\", interval_in_doubt = \"20ms\", unhealthy_after = 1 }\n[[upstream.u.discovery]]";
    let running = start(consul(&server, "").replace("[[upstream.u.discovery]]", check));
    has(&running, [&a, &b, &c]).await;
    registry.set([&a]);
    eventually(|| conditions(&running).last() == Some(&"holding")).await;
    assert_eq!(ports(&running), ports_of([&a, &b, &c]));
    let (_, _, readiness) = ask_admin(&running, "GET /readyz?verbose HTTP/1.1\r\nhost: localhost\r\n\r\n".into()).await;
    let line = "[!] discovery of u by consul u: 2 backends that it no longer names are held back\n";
    assert!(readiness.as_str().unwrap().contains(line), "{readiness}");
    assert_eq!(source(&running).await["held_back"], 2);
    b.kill();
    c.kill();
    has(&running, [&a]).await;
    eventually(|| conditions(&running).last() == Some(&"current")).await;
}

#[tokio::test]
async fn a_start_serves_from_the_disk_while_the_registry_is_down() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let registry = Registry::with([&a]);
    let mut server = registry.serve();
    let dir = Scratch::new();
    let state = |text: String| format!("state_dir = {:?}\n{text}", dir.path("state"));
    let running = start(state(consul(&server, "")));
    has(&running, [&a]).await;
    registry.set([&a, &b]);
    has(&running, [&a, &b]).await;
    running.stop(Duration::from_secs(1)).await;
    server.kill();
    let running = start(state(consul(&server, "")));
    assert_eq!(ports(&running), ports_of([&a, &b]));
    let mut first = client(&running).await;
    assert_eq!(first.get("/").await.status(), 200);
    eventually(|| conditions(&running) == ["awaited", "failing"]).await;
    let view = source(&running).await;
    assert_eq!((&view["backends"], &view["condition"]), (&2.into(), &"failing".into()));
    // A registry that comes up empty takes nothing away.
    registry.set([]);
    server.restart();
    eventually(|| conditions(&running).last() == Some(&"holding")).await;
    assert_eq!(ports(&running), ports_of([&a, &b]));
    running.stop(Duration::from_secs(1)).await;
    // What was left is not used for another question.
    server.kill();
    let other = consul(&server, "name = \"consul u\"").replace("service = \"u\"", "service = \"other\"");
    let running = start(state(other));
    assert_eq!(ports(&running), [0; 0]);
}

#[tokio::test]
async fn a_reload_keeps_begins_and_ends_sources() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let registry = Registry::with([&a]);
    let server = registry.serve();
    let dir = Scratch::new();
    let file = dir.write("u.json", format!("{{\"backends\": [\"{}\"]}}", b.address()));
    let with_file = |text: String| format!("{text}\n[[upstream.u.discovery]]\nfile = {{ path = {file:?} }}");
    let running = start(consul(&server, ""));
    has(&running, [&a]).await;
    let connections = server.connections();
    // What the file says is served with from the reload on.
    soon(running.handle().apply_text(with_file(consul(&server, "")))).await.unwrap();
    assert_eq!(ports(&running), ports_of([&a, &b]));
    soon(running.handle().apply_text(with_file(consul(&server, "")).replace("retries = 0", "retries = 1")))
        .await
        .unwrap();
    assert_eq!(ports(&running), ports_of([&a, &b]));
    assert_eq!(server.connections(), connections, "it goes on as it was");
    // Another key: it is begun anew, on what it knew.
    registry.is(Mood::Hangs);
    soon(running.handle().apply_text(with_file(consul(&server, "max_backends = 5")))).await.unwrap();
    assert_eq!(ports(&running), ports_of([&a, &b]));
    // Another service: nothing is known of it.
    let other = with_file(consul(&server, "max_backends = 5").replace("service = \"u\"", "service = \"u2\""));
    soon(running.handle().apply_text(other)).await.unwrap();
    has(&running, [&b]).await;
    soon(running.handle().apply_text(text("[upstream.u]\nbackends = []"))).await.unwrap();
    has(&running, []).await;
    eventually(|| server.open() == 0).await;
    assert_eq!(client(&running).await.get("/").await.status(), 503);
}

#[tokio::test]
async fn a_file_is_read_when_it_is_another_and_kept_when_it_makes_no_sense() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let dir = Scratch::new();
    let own = |backend: &TestBackend| format!("{{\"backends\": [\"{}\"]}}", backend.address());
    let path = dir.write("u.json", own(&a));
    let table = format!("[upstream.u]\n[[upstream.u.discovery]]\nfile = {{ path = {path:?}, interval = \"20ms\" }}");
    let running = start(text(&table));
    assert_eq!(client(&running).await.get("/").await.text(), "a");
    dir.write("u.json", own(&b));
    has(&running, [&b]).await;
    std::fs::remove_file(&path).unwrap();
    eventually(|| conditions(&running).last() == Some(&"failing")).await;
    assert_eq!(ports(&running), ports_of([&b]));
    dir.write("u.json", "{\"backends\": [\"10.0.0");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((ports(&running), conditions(&running).len()), (ports_of([&b]), 2));
    // As Prometheus has it, by a rename, with an entry that is not believed.
    let bad = format!("[{{\"targets\": [\"{}\", \"169.254.169.254:80\"]}}, {{}}]", a.address());
    std::fs::rename(dir.write("next", bad), &path).unwrap();
    has(&running, [&a]).await;
    let view = source(&running).await;
    let left_out = ["entry 2: it has no targets", "169.254.169.254:80: the address of a cloud's metadata service"];
    assert_eq!(view["left_out"], serde_json::json!(left_out));
    // An empty list is what its author wants.
    dir.write("u.json", "[]");
    has(&running, []).await;
    // Nothing of it can be used: that is no list.
    dir.write("u.json", "[{\"targets\": [\"10.0.0.1\"]}]");
    eventually(|| conditions(&running).last() == Some(&"failing")).await;
}

#[tokio::test]
async fn a_pipe_in_place_of_a_file_puts_off_no_start_and_no_reload() {
    let a = TestBackend::ok("a");
    let dir = Scratch::new();
    let pipe = dir.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let table = |more: &str| {
        let file = format!("[[upstream.u.discovery]]\nfile = {{ path = {pipe:?} }}\n{more}");
        text(&format!("[upstream.u]\nbackends = [\"{}\"]\n{file}", a.address()))
    };
    let begun = Instant::now();
    let running = start(table(""));
    assert_eq!(client(&running).await.get("/").await.text(), "a");
    soon(running.handle().apply_text(table("max_backends = 5"))).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    eventually(|| conditions(&running).last() == Some(&"failing")).await;
    let error = source(&running).await["error"].as_str().unwrap().to_owned();
    assert!(error.ends_with("pipe: not a file"), "{error}");
}

#[tokio::test]
async fn a_list_over_http_is_asked_for_once_if_it_stays() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let list = Arc::new(Mutex::new(a.address()));
    let (served, sent) = (Arc::clone(&list), Arc::new(AtomicUsize::new(0)));
    let whole = Arc::clone(&sent);
    let server = TestBackend::scripted(async move |peer| {
        while let Some(message) = peer.request().await {
            let tag = format!("\"{}\"", served.lock().unwrap());
            if message.head.get("if-none-match") == Some(&*tag) {
                peer.write("HTTP/1.1 304 Not Modified\r\n\r\n").await;
                continue;
            }
            whole.fetch_add(1, SeqCst);
            assert_eq!(message.head.get("authorization"), Some("Bearer secret"));
            let body = format!("[{{\"targets\": [{tag}], \"labels\": {{\"zone\": \"z\"}}}}]");
            peer.respond(&format!("200 OK\r\netag: {tag}"), body).await;
        }
    });
    let table = format!(
        "[upstream.u]\n[[upstream.u.discovery]]\nmax_removed_percent = 100\n\
         http = {{ url = \"http://{}/list?x=1\", interval = \"100ms\", token = \"secret\" }}",
        server.address()
    );
    let running = start(text(&table));
    has(&running, [&a]).await;
    let asked = server.requests();
    eventually(|| server.requests() > asked + 2).await;
    assert_eq!(sent.load(SeqCst), 1);
    *list.lock().unwrap() = b.address();
    has(&running, [&b]).await;
    assert_eq!((sent.load(SeqCst), server.connections()), (2, 1));
    assert_eq!(server.last_head().target(), "/list?x=1");
    assert_eq!(conditions(&running), ["current"]);
}

#[tokio::test]
async fn a_server_that_holds_requests_is_asked_again_at_once() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let list = Arc::new(Mutex::new(a.address()));
    let served = Arc::clone(&list);
    let server = TestBackend::scripted(async move |peer| {
        let mut last = None;
        while let Some(message) = peer.request().await {
            assert_eq!(message.head.get("prefer"), Some("wait=30"));
            let now = || Some(*served.lock().unwrap());
            while last == now() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            last = now();
            peer.respond("200 OK", format!("{{\"backends\": [\"{}\"]}}", last.unwrap())).await;
        }
    });
    let table = format!(
        "[upstream.u]\n[[upstream.u.discovery]]\nmax_removed_percent = 100\nhttp = {{ url = \"http://{}\", wait = \"30s\" }}",
        server.address()
    );
    let running = start(text(&table));
    for n in 0..10 {
        let next = if n % 2 == 0 { &b } else { &a };
        *list.lock().unwrap() = next.address();
        let begun = Instant::now();
        has(&running, [next]).await;
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
}

fn put(lines: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "PUT /upstreams/u/backends HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{lines}content-length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn what_is_pushed_is_served_with_when_the_answer_comes_and_kept() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let dir = Scratch::new();
    let token = "0123456789abcdef";
    let table = format!("[upstream.u]\n[[upstream.u.discovery]]\npush = {{ token = \"{token}\" }}");
    let text = format!("state_dir = {:?}\n{}", dir.path("state"), text(&table));
    let list = |backend: &TestBackend| format!("{{\"backends\": [\"{}\"]}}", backend.address());
    let auth = format!("authorization: Bearer {token}\r\n");
    let running = start(text.clone());
    let get = || ask_admin(&running, "GET /upstreams/u/backends HTTP/1.1\r\nhost: localhost\r\n\r\n".into());
    assert_eq!(get().await.0, 404);
    let (status, headers, body) = ask_admin(&running, put(&auth, &list(&a))).await;
    assert_eq!(
        (status, &body["served"], &body["changed"], &body["backends"]),
        (200, &true.into(), &true.into(), &1.into())
    );
    let mut client = client(&running).await;
    assert_eq!(client.get("/").await.text(), "a");
    let tag = &headers["etag"];
    assert_eq!(&get().await.1["etag"], tag);
    assert_eq!(get().await.2["backends"][0]["address"], a.address().to_string());
    // Of two that have read the same list, the second is told.
    let matching = format!("{auth}if-match: {tag}\r\n");
    let (status, _, body) = ask_admin(&running, put(&matching, &list(&b))).await;
    assert_eq!((status, &body["served"]), (200, &true.into()));
    assert_eq!(client.get("/").await.text(), "b");
    assert_eq!(ask_admin(&running, put(&matching, &list(&a))).await.0, 412);
    assert_eq!(ask_admin(&running, put(&format!("{auth}if-none-match: *\r\n"), &list(&a))).await.0, 412);
    // The same again is no change.
    assert_eq!(ask_admin(&running, put(&auth, &list(&b))).await.2["changed"], false);
    // A bad entry costs the whole list here: there is an answer to tell it with.
    let bad = format!("{{\"backends\": [\"{}\", \"10.0.0.1\", \"169.254.1.1:80\"]}}", a.address());
    let (status, _, body) = ask_admin(&running, put(&auth, &bad)).await;
    let error = "entry 2: \"10.0.0.1\" is not an address with a port; 169.254.1.1:80: a link-local address";
    assert_eq!((status, &body["error"]), (422, &error.into()));
    assert_eq!(client.get("/").await.text(), "b");
    // A reload keeps it, and so does a restart.
    soon(running.handle().apply_text(text.replace("[upstream.u]\n", "[upstream.u]\nretries = 0\n"))).await.unwrap();
    assert_eq!(client.get("/").await.text(), "b");
    drop(client);
    running.stop(Duration::from_secs(1)).await;
    let running = start(text);
    assert_eq!(ports(&running), ports_of([&b]));
    let get = ask_admin(&running, "GET /upstreams/u/backends HTTP/1.1\r\nhost: localhost\r\n\r\n".into()).await;
    assert_eq!((get.0, &get.2["backends"][0]["address"]), (200, &b.address().to_string().into()));
}

#[tokio::test]
async fn a_push_needs_a_token_of_the_source_or_of_the_admin_address() {
    let a = TestBackend::ok("a");
    let (own, admin) = ("an-own-token-0123", "the-admin-token-0123");
    let table = format!("[upstream.u]\n[[upstream.u.discovery]]\npush = {{ token = \"{own}\" }}");
    let text = text(&table).replace("[admin]\n", &format!("[admin]\ntoken = \"{admin}\"\n"));
    let running = start(text);
    let list = format!("{{\"backends\": [\"{}\"]}}", a.address());
    for (token, status) in [("", 401), ("another-token-0123", 401), (own, 200), (admin, 200)] {
        let line = if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
        assert_eq!(ask_admin(&running, put(&line, &list)).await.0, status, "{token}");
    }
    // It changes nothing else.
    let reload =
        format!("POST /reload HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {own}\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(ask_admin(&running, reload).await.0, 401);
    // One that was left from a web page has no say.
    assert_eq!(ask_admin(&running, put("origin: http://evil.example\r\n", &list)).await.0, 403);
}
