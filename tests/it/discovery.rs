//! Backends that a program finds by itself come and go while clients ask: nothing is lost, and what is known of them goes with them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isobar::backend::{BackendSet, Instance};
use isobar::config::{Address, BackendLimits, BackendPlacement, Tier};
use isobar::discovery::{self, Discovery, DiscoveryError, Pusher};
use isobar::proxy::Snapshot;
use isobar::supervisor::Handle;
use isobar::telemetry::events::EventKind;
use isobar::{Isobar, Running};
use tokio::task::JoinSet;

use crate::harness::{Client, TestBackend, eventually, soon};

/// Two workers, one route to `u`, which the file lists no backend for.
fn text(upstream: &str) -> String {
    format!(
        "workers = 2\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[route]]\nupstream = \"u\"\n[upstream.u]\nbackends = []\n{upstream}\n"
    )
}

fn instance(backend: &TestBackend) -> Instance {
    Instance::new(Address::Ip(backend.address()))
}

fn set<'b>(backends: impl IntoIterator<Item = &'b TestBackend>) -> BackendSet {
    backends.into_iter().map(instance).collect()
}

/// One to whose upstream `u` is pushed, first of all these.
fn pushed_to(text: String, first: BackendSet) -> (Running, Pusher) {
    let (pusher, pushed) = discovery::pushed();
    pusher.push(first);
    let running = Isobar::builder().config_text(text).discovery("u", "pushed", pushed).start().unwrap();
    (running, pusher)
}

async fn client(running: &Running) -> Client {
    Client::connect(running.listener_addresses()[0]).await
}

fn addresses(snapshot: &Snapshot) -> Vec<String> {
    let roster = snapshot.upstream("u").unwrap().roster();
    roster.backends().iter().map(|backend| backend.state.address.to_string()).collect()
}

async fn served_by(handle: &Handle, set: &BackendSet) {
    eventually(|| handle.snapshot().upstream("u").unwrap().roster().set() == set).await;
}

async fn upstream_view(running: &Running) -> serde_json::Value {
    let mut admin = Client::connect(running.admin_address().unwrap()).await;
    admin.send("GET /upstreams/u HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    admin.response().await.json()
}

#[tokio::test]
async fn what_is_pushed_is_served_with_from_the_first_request_on() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let (running, pusher) = pushed_to(text(""), set([&a]));
    let mut client = client(&running).await;
    assert_eq!(client.get("/").await.text(), "a");
    pusher.push(set([&b]));
    served_by(running.handle(), &set([&b])).await;
    assert_eq!(client.get("/").await.text(), "b");
    // Nothing is a set too: it is what the program says.
    pusher.push(BackendSet::default());
    served_by(running.handle(), &BackendSet::default()).await;
    assert_eq!(client.get("/").await.status(), 503);
    pusher.push(set([&a, &b]));
    served_by(running.handle(), &set([&a, &b])).await;
    assert_eq!(client.get("/").await.status(), 200);
}

#[tokio::test]
async fn a_backend_that_goes_ends_what_it_serves_and_has_its_idle_connections_closed() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::slow("b", Duration::from_millis(400)));
    let (running, pusher) = pushed_to(text(""), set([&a]));
    let mut first = client(&running).await;
    assert_eq!(first.get("/").await.text(), "a");
    assert_eq!(a.open(), 1);
    pusher.push(set([&b]));
    eventually(|| a.open() == 0).await;
    // One that is busy when it goes is closed behind its request.
    first.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    eventually(|| b.requests() == 1).await;
    pusher.push(set([&a]));
    served_by(running.handle(), &set([&a])).await;
    assert_eq!(first.response().await.text(), "b");
    eventually(|| b.open() == 0).await;
    assert_eq!(first.get("/").await.text(), "a");
}

#[tokio::test]
async fn what_is_still_under_way_at_a_backend_that_is_gone_is_cut_after_the_drain_limit() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::upgrading());
    let (running, pusher) = pushed_to(format!("drain_limit = \"300ms\"\n{}", text("")), set([&b]));
    let mut tunnel = client(&running).await;
    tunnel.send("GET / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
    eventually(|| b.requests() == 1).await;
    pusher.push(set([&a]));
    let begun = std::time::Instant::now();
    eventually(|| b.open() == 0).await;
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn the_file_comes_first_and_what_is_found_is_added() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let weighed = |backend: &TestBackend, weight| Instance { weight, ..instance(backend) };
    let file = |backends: &str| text("").replace("[]", &format!("[{backends}]"));
    let both = BackendSet::new([weighed(&a, 7), weighed(&b, 3)]);
    let (running, pusher) = pushed_to(file(&format!("\"{}\"", a.address())), both.clone());
    let weights = |snapshot: &Snapshot| {
        let roster = snapshot.upstream("u").unwrap().roster();
        let weights = roster.backends().iter().map(|it| (it.state.address.to_string(), it.weight));
        weights.collect::<HashMap<_, _>>()
    };
    let (of_a, of_b) = (a.address().to_string(), b.address().to_string());
    let expected = HashMap::from([(of_a.clone(), 1), (of_b.clone(), 3)]);
    assert_eq!(weights(&running.handle().snapshot()), expected);
    assert_eq!(addresses(&running.handle().snapshot())[0], of_a);
    // The file lists it no more: the source does.
    soon(running.handle().apply_text(file(""))).await.unwrap();
    assert_eq!(weights(&running.handle().snapshot()), HashMap::from([(of_a.clone(), 7), (of_b, 3)]));
    // Without the upstream for a while, what is found waits for it.
    soon(running.handle().apply_text(text("").replace("upstream.u]", "upstream.v]").replace("\"u\"", "\"v\"")))
        .await
        .unwrap();
    pusher.push(set([&a]));
    for _ in 0..3 {
        soon(running.handle().apply_text(text("").replace("upstream.u]", "upstream.v]").replace("\"u\"", "\"v\"")))
            .await
            .unwrap();
    }
    soon(running.handle().apply_text(text(""))).await.unwrap();
    eventually(|| weights(&running.handle().snapshot()) == HashMap::from([(of_a.clone(), 1)])).await;
}

#[tokio::test]
async fn limits_tiers_and_labels_come_with_a_backend() {
    let (a, b) = (TestBackend::slow("a", Duration::from_millis(200)), TestBackend::ok("b"));
    let one = BackendLimits { max_in_flight: Some(1), max_connections: None };
    let mut limited = Instance { limits: Some(one), ..instance(&a) };
    limited.labels.insert("version".into(), "2".into());
    let backup = Instance { place: BackendPlacement { tier: Tier::Backup, zone: None }, ..instance(&b) };
    let (running, pusher) = pushed_to(text(""), set([&a]));
    let found = BackendSet::new([limited.clone()]);
    pusher.push(found.clone());
    served_by(running.handle(), &found).await;
    // The second finds the backend full, and waits in the queue that there was none of before.
    let (mut one, mut other) = (client(&running).await, client(&running).await);
    let (first, second) = tokio::join!(one.get("/1"), other.get("/2"));
    assert_eq!((first.text(), second.text()), ("a", "a"));
    let view = upstream_view(&running).await;
    let of_a = view["backends"].as_array().unwrap().iter().find(|it| it["max_in_flight"] == 1).unwrap();
    assert_eq!(of_a["labels"]["version"], "2");
    assert_eq!(view["queue"]["waited"], 1);
    let with_backup = BackendSet::new([limited, backup]);
    pusher.push(with_backup.clone());
    served_by(running.handle(), &with_backup).await;
    for _ in 0..3 {
        assert_eq!(one.get("/").await.text(), "a", "the backup is for when there is no other");
    }
    let view = upstream_view(&running).await;
    let tiers: Vec<_> = view["sets"].as_array().unwrap().iter().map(|set| set["tier"].as_str().unwrap()).collect();
    assert_eq!(tiers, ["0", "backup"]);
    assert_eq!(view["sources"][0]["name"], "file");
    let pushed = &view["sources"][1];
    assert_eq!((&pushed["name"], &pushed["condition"]), (&"pushed".into(), &"current".into()));
    assert_eq!(pushed["backends"], 2);
}

#[tokio::test]
async fn what_is_set_by_hand_lasts_by_address_while_a_backend_comes_and_goes() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let (running, pusher) = pushed_to(text(""), set([&a, &b]));
    let mut admin = Client::connect(running.admin_address().unwrap()).await;
    let path = format!("/upstreams/u/backends/{}/drain", a.address());
    admin.send(format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n")).await;
    assert_eq!(admin.response().await.status(), 200);
    pusher.push(set([&b]));
    served_by(running.handle(), &set([&b])).await;
    let view = upstream_view(&running).await;
    assert_eq!(view["absent"][0]["address"], a.address().to_string());
    pusher.push(set([&a, &b]));
    served_by(running.handle(), &set([&a, &b])).await;
    let mut client = client(&running).await;
    for _ in 0..4 {
        assert_eq!(client.get("/").await.text(), "b");
    }
    assert_eq!(a.requests(), 0);
}

#[tokio::test]
async fn a_backend_that_joins_is_checked_and_one_that_is_gone_no_longer() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let check = "health_check = { path = \"/health\", interval = \"20ms\", interval_in_doubt = \"20ms\" }";
    let (running, pusher) = pushed_to(text(check), set([&a]));
    let mut events = running.handle().events().listen();
    eventually(|| a.requests() > 2).await;
    pusher.push(set([&a, &b]));
    // It waits for its first check.
    let health = loop {
        let event = soon(events.recv()).await.unwrap();
        if let EventKind::Health { backend, to, .. } = &event.kind {
            break (backend.to_string(), *to);
        }
    };
    assert_eq!(health, (b.address().to_string(), "healthy"));
    pusher.push(set([&b]));
    served_by(running.handle(), &set([&b])).await;
    eventually(|| a.open() == 0).await;
    let (checks, others) = (a.requests(), b.requests());
    eventually(|| b.requests() > others + 5).await;
    assert!(a.requests() <= checks + 1, "at most the one that was under way");
}

/// Fails until it is told to find.
struct Failing(Arc<AtomicBool>, BackendSet);

impl Discovery for Failing {
    async fn next(&mut self) -> Result<BackendSet, DiscoveryError> {
        if self.0.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            return Ok(self.1.clone());
        }
        Err(DiscoveryError::new("connection refused"))
    }
}

#[tokio::test]
async fn a_source_that_fails_is_shown_and_asked_again() {
    let a = TestBackend::ok("a");
    let finds = Arc::new(AtomicBool::new(false));
    let failing = Failing(Arc::clone(&finds), set([&a]));
    let running = Isobar::builder().config_text(text("")).discovery("u", "directory", failing).start().unwrap();
    let view = upstream_view(&running).await;
    let source = &view["sources"][1];
    assert_eq!((&source["condition"], &source["error"]), (&"failing".into(), &"connection refused".into()));
    assert!(source["backends"].is_null());
    let mut client = client(&running).await;
    assert_eq!(client.get("/").await.status(), 503);
    finds.store(true, SeqCst);
    served_by(running.handle(), &set([&a])).await;
    assert_eq!(client.get("/").await.text(), "a");
    let told = running.handle().events().listen_after(0).since;
    let told = told.iter().filter_map(|event| match &event.kind {
        EventKind::Discovery { source, to, .. } => Some((source.clone(), *to)),
        _ => None,
    });
    let directory = || "directory".to_owned();
    assert_eq!(told.collect::<Vec<_>>(), [(directory(), "failing"), (directory(), "current")]);
}

/// How often each backend has seen each request.
type Seen = Arc<Mutex<HashMap<String, u32>>>;

/// Notes the target of each request but those of checks, and answers with it.
fn noting(seen: &Seen) -> TestBackend {
    let seen = Arc::clone(seen);
    TestBackend::scripted(async move |peer| {
        while let Some(message) = peer.request().await {
            let target = message.head.target().to_owned();
            if target != "/health" {
                *seen.lock().unwrap().entry(target.clone()).or_default() += 1;
            }
            peer.respond("200 OK", target).await;
        }
    })
}

/// The `n`th set: two to five of the backends, beginning anywhere, with weights and tiers that change.
fn nth_set(n: usize, pool: &[TestBackend]) -> BackendSet {
    let members = (0..2 + n % 4).map(|i| {
        let weight = 1 + (n / 3 + i) as u16 % 3;
        let tier = if i > 2 { Tier::Backup } else { Tier::Priority(0) };
        let limits = (n % 7 == 3).then_some(BackendLimits { max_in_flight: Some(50), max_connections: None });
        let place = BackendPlacement { tier, zone: None };
        Instance { weight, place, limits, ..instance(&pool[(n / 2 + i) % pool.len()]) }
    });
    members.collect()
}

/// The `n`th version of the file: the policy changes, its list is empty or has the first backend.
fn nth_file(n: usize, pool: &[TestBackend]) -> String {
    let strategy = ["weighted_round_robin", "least_connections", "power_of_two"][n % 3];
    let listed = if n % 4 == 1 { format!("\"{}\"", pool[0].address()) } else { String::new() };
    text(&format!(
        "strategy = \"{strategy}\"\nretries = 0\nslow_start = {{}}\n\
         health_check = {{ path = \"/health\", interval = \"50ms\", interval_in_doubt = \"20ms\", initial = \"healthy\" }}\n\
         outlier_detection = {{ interval = \"100ms\" }}\n"
    ))
    .replace("backends = []", &format!("backends = [{listed}]"))
}

/// Asks for targets of its own until it is told to end, each answered once and with itself. Says how many.
async fn ask_by_http1(address: std::net::SocketAddr, name: String, ends: Arc<AtomicBool>) -> u32 {
    let mut client = Client::connect(address).await;
    for n in 0.. {
        if ends.load(SeqCst) {
            return n;
        }
        let target = format!("/{name}/{n}");
        let response = client.get(&target).await;
        assert_eq!((response.status(), response.text()), (200, &*target), "{target}");
    }
    unreachable!()
}

/// The same by HTTP/2, several streams beside each other.
async fn ask_by_http2(address: std::net::SocketAddr, name: String, ends: Arc<AtomicBool>) -> u32 {
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let (send, connection) = soon(h2::client::handshake(tcp)).await.unwrap();
    tokio::spawn(connection);
    let mut asked = 0;
    while !ends.load(SeqCst) {
        let mut streams = JoinSet::new();
        for _ in 0..4 {
            let (mut send, target) = (soon(send.clone().ready()).await.unwrap(), format!("/{name}/{asked}"));
            asked += 1;
            streams.spawn(async move {
                let request = http::Request::get(format!("http://test{target}")).body(()).unwrap();
                let response = soon(send.send_request(request, true).unwrap().0).await.unwrap();
                assert_eq!(response.status(), 200, "{target}");
                let mut body = response.into_body();
                let mut text = Vec::new();
                while let Some(data) = soon(body.data()).await {
                    text.extend_from_slice(&data.unwrap());
                }
                assert_eq!(String::from_utf8_lossy(&text), target);
            });
        }
        while let Some(done) = streams.join_next().await {
            done.unwrap();
        }
    }
    asked
}

/// The set changes a hundred times a second and the file ten times, with health checks, outlier detection and slow start, while
/// clients ask over both protocols: each request is answered 200, by one backend, once.
#[tokio::test]
async fn no_request_is_lost_while_the_set_changes_all_the_time() {
    let seen = Seen::default();
    let pool: Vec<_> = (0..6).map(|_| noting(&seen)).collect();
    let (running, pusher) = pushed_to(nth_file(0, &pool), nth_set(0, &pool));
    let (address, ends) = (running.listener_addresses()[0], Arc::new(AtomicBool::new(false)));
    let mut clients = JoinSet::new();
    for n in 0..16 {
        clients.spawn(ask_by_http1(address, format!("one-{n}"), Arc::clone(&ends)));
    }
    for n in 0..4 {
        clients.spawn(ask_by_http2(address, format!("two-{n}"), Arc::clone(&ends)));
    }
    for n in 1..400 {
        pusher.push(nth_set(n, &pool));
        if n % 10 == 0 {
            soon(running.handle().apply_text(nth_file(n / 10, &pool))).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ends.store(true, SeqCst);
    let mut asked = 0;
    while let Some(done) = soon(clients.join_next()).await {
        asked += done.unwrap();
    }
    {
        let seen = seen.lock().unwrap();
        let twice: Vec<_> = seen.iter().filter(|(_, times)| **times != 1).collect();
        assert!(twice.is_empty(), "{twice:?}");
        assert_eq!(seen.len() as u32, asked);
    }
    assert!(asked > 1000, "{asked}");
    // Nothing is left behind: of backends that are gone, no connection and no check.
    pusher.push(set([&pool[0]]));
    soon(running.handle().apply_text(text(""))).await.unwrap();
    eventually(|| pool[1..].iter().all(|backend| backend.open() == 0)).await;
    assert_eq!(addresses(&running.handle().snapshot()), [pool[0].address().to_string()]);
    assert_eq!(running.handle().snapshot().upstream("u").unwrap().roster().backends()[0].state.in_flight(), 0);
}
