//! The source `kubernetes`, against a scripted API server that fails in each way. `kube_apiserver.rs` has a real one.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use isobar::Running;
use serde_json::{Value, json};

use crate::harness::{Client, Peer, Scratch, TestBackend, eventually};
use crate::registry::{Load, Took, backends, comes_to, conditions, has, has_now, start};

/// How an API server behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Good,
    /// It takes requests and says nothing, and nor do its watches, which do not end.
    Hangs,
    Fails,
    Garbage,
    /// It knows of no slice, and of nothing to go on from.
    Empty,
    /// It sends 100 MB.
    Huge,
    /// It answers and lists, but its watches end at once.
    EndsWatches,
}

/// How an endpoint does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pod {
    Ready,
    Draining,
    Unready,
}

struct Known {
    mood: Mood,
    version: u64,
    /// A watch can go on from here at the earliest.
    oldest: u64,
    /// Whether that it cannot is told by an event, and not by the status.
    tells_by_event: bool,
    /// How often pages of a list are forgotten before they are asked for.
    forgets_pages: usize,
    /// What is to be sent as login.
    token: &'static str,
    /// Watches up to this one say nothing any more.
    deaf: usize,
    lists: usize,
    watches: usize,
    pods: Vec<(SocketAddr, Pod)>,
    /// The endpoints from each version on.
    history: Vec<(u64, Vec<(SocketAddr, Pod)>)>,
}

/// A scripted API server, made from Kubernetes' description of its API.
#[derive(Clone)]
struct Server(Arc<Mutex<Known>>);

/// Slices on a page, whatever is asked for.
const PAGE: usize = 2;

impl Server {
    fn with<'b>(backends: impl IntoIterator<Item = &'b TestBackend>) -> Self {
        let pods: Vec<_> = backends.into_iter().map(|it| (it.address(), Pod::Ready)).collect();
        let known = Known {
            mood: Mood::Good,
            version: 10,
            oldest: 0,
            tells_by_event: false,
            forgets_pages: 0,
            token: "one",
            deaf: 0,
            lists: 0,
            watches: 0,
            history: vec![(10, pods.clone())],
            pods,
        };
        Self(Arc::new(Mutex::new(known)))
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.0.lock().unwrap());
    }

    fn see<T>(&self, see: impl FnOnce(&Known) -> T) -> T {
        see(&self.0.lock().unwrap())
    }

    /// Other endpoints, at the next version.
    fn set<'b>(&self, pods: impl IntoIterator<Item = (&'b TestBackend, Pod)>) {
        let pods: Vec<_> = pods.into_iter().map(|(backend, pod)| (backend.address(), pod)).collect();
        self.change(|known| {
            (known.version, known.pods) = (known.version + 1, pods);
            known.history.push((known.version, known.pods.clone()));
        });
    }

    fn is(&self, mood: Mood) {
        self.change(|known| known.mood = mood);
    }

    fn serve(&self) -> TestBackend {
        let server = self.clone();
        TestBackend::scripted(async move |peer| {
            while let Some(message) = peer.request().await {
                let target = message.head.target().to_owned();
                let query =
                    target.strip_prefix("/base/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices?").unwrap();
                let asked = |key: &str| {
                    let found = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key);
                    found.map(|(_, value)| value.to_owned())
                };
                assert_eq!(asked("labelSelector").as_deref(), Some("kubernetes.io%2Fservice-name%3Dusers"));
                let (mood, token) = server.see(|known| (known.mood, known.token));
                if message.head.get("authorization") != Some(&*format!("Bearer {token}")) {
                    let body = status(401, "Unauthorized", "Unauthorized").to_string();
                    peer.respond("401 Unauthorized", body).await;
                    continue;
                }
                match mood {
                    Mood::Hangs => peer.gone().await,
                    Mood::Fails => {
                        let body = status(500, "InternalError", "etcdserver: no leader").to_string();
                        peer.respond("500 Internal Server Error", body).await;
                    }
                    Mood::Garbage => peer.respond("200 OK", "<html>oh</html>").await,
                    Mood::Huge => {
                        const MEGABYTE: usize = 1024 * 1024;
                        peer.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n[", 100 * MEGABYTE)).await;
                        while peer.stream.write(&vec![b' '; MEGABYTE]).await.is_ok() {}
                        return;
                    }
                    Mood::Good | Mood::Empty | Mood::EndsWatches if asked("watch").is_none() => {
                        server.list(peer, asked("continue")).await;
                    }
                    Mood::Good | Mood::Empty | Mood::EndsWatches => {
                        let number = |key: &str| asked(key).unwrap().parse().unwrap();
                        assert_eq!(asked("allowWatchBookmarks").as_deref(), Some("true"));
                        return server.watch(peer, number("resourceVersion"), number("timeoutSeconds")).await;
                    }
                }
            }
        })
    }

    async fn list(&self, peer: &mut Peer, next: Option<String>) {
        let answer = {
            let mut known = self.0.lock().unwrap();
            known.lists += usize::from(next.is_none());
            if next.is_some() && known.forgets_pages > 0 {
                known.forgets_pages -= 1;
                Err(())
            } else {
                let from: usize = next.map_or(0, |next| next.parse().unwrap());
                let all: &[_] = if known.mood == Mood::Empty { &[] } else { &known.pods };
                let items: Vec<_> = all.iter().skip(from).take(PAGE).map(|it| slice(*it, known.version)).collect();
                let more = if from + PAGE < all.len() { (from + PAGE).to_string() } else { String::new() };
                let metadata = json!({ "resourceVersion": known.version.to_string(), "continue": more });
                Ok(
                    json!({ "kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata, "items": items }),
                )
            }
        };
        match answer {
            Ok(list) => peer.respond("200 OK", list.to_string()).await,
            Err(()) => {
                let body = status(410, "Expired", "The provided continue parameter is too old").to_string();
                peer.respond("410 Gone", body).await;
            }
        }
    }

    /// A watch: what changes, and how far it is. It breaks when the mood does, but for one that hangs.
    async fn watch(&self, peer: &mut Peer, from: u64, seconds: u64) {
        let number = {
            let mut known = self.0.lock().unwrap();
            known.watches += 1;
            known.watches
        };
        let (mood, version, oldest, by_event) =
            self.see(|known| (known.mood, known.version, known.oldest, known.tells_by_event));
        let expired = status(410, "Expired", "too old resource version");
        if (from < oldest || mood == Mood::Empty) && !by_event {
            return peer.respond("410 Gone", expired.to_string()).await;
        }
        peer.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        if mood == Mood::EndsWatches {
            return peer.write("0\r\n\r\n").await;
        }
        if from < oldest || mood == Mood::Empty {
            return event(peer, "ERROR", expired).await;
        }
        let begun = Instant::now();
        // A real one says nothing until its version is the one that the watch is to go on from.
        if from > version {
            return peer.gone().await;
        }
        // What has changed since the watch before is told by this one.
        let mut before = self.see(|known| {
            let then = known.history.iter().rfind(|(version, _)| *version <= from);
            then.map_or_else(|| known.pods.clone(), |(_, pods)| pods.clone())
        });
        let mut at = from;
        while begun.elapsed() < Duration::from_secs(seconds) {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let (mood, deaf, now, version) =
                self.see(|known| (known.mood, known.deaf, known.pods.clone(), known.version));
            match mood {
                Mood::Good if number > deaf => {}
                Mood::Good | Mood::Hangs => return peer.gone().await,
                _ => return,
            }
            if version == at {
                continue;
            }
            for pod in &before {
                if !now.iter().any(|it| it.0 == pod.0) {
                    event(peer, "DELETED", slice(*pod, version)).await;
                }
            }
            for pod in &now {
                match before.iter().find(|it| it.0 == pod.0) {
                    None => event(peer, "ADDED", slice(*pod, version)).await,
                    Some(was) if was != pod => event(peer, "MODIFIED", slice(*pod, version)).await,
                    Some(_) => {}
                }
            }
            let bookmark = json!({ "kind": "EndpointSlice", "metadata": { "resourceVersion": version.to_string() } });
            event(peer, "BOOKMARK", bookmark).await;
            (before, at) = (now, version);
        }
        peer.write("0\r\n\r\n").await;
    }
}

/// A slice with one endpoint.
fn slice((address, pod): (SocketAddr, Pod), version: u64) -> Value {
    let (ready, serving) = (pod == Pod::Ready, pod != Pod::Unready);
    json!({
        "metadata": { "name": format!("users-{}", address.port()), "namespace": "shop", "resourceVersion": version.to_string(),
                      "labels": { "kubernetes.io/service-name": "users" } },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": [address.ip().to_string()], "zone": "eu-1a",
                        "conditions": { "ready": ready, "serving": serving, "terminating": pod == Pod::Draining },
                        "targetRef": { "kind": "Pod", "name": "p", "uid": address.to_string() } }],
        "ports": [{ "name": "http", "port": address.port(), "protocol": "TCP" }]
    })
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code })
}

async fn event(peer: &mut Peer, kind: &str, object: Value) {
    let line = format!("{}\n", json!({ "type": kind, "object": object }));
    peer.write(format!("{:x}\r\n{line}\r\n", line.len())).await;
}

/// The files of one who asks: a kubeconfig, and a token in a file.
struct Files(Scratch);

impl Files {
    fn of(server: &TestBackend) -> Self {
        let files = Self(Scratch::new());
        files.token("one");
        let text = format!(
            "current-context: shop\nclusters: [{{ name: c, cluster: {{ server: \"http://{}/base/\" }} }}]\n\
             contexts: [{{ name: shop, context: {{ cluster: c, user: u, namespace: shop }} }}]\n\
             users: [{{ name: u, user: {{ tokenFile: token }} }}]\n",
            server.address()
        );
        std::fs::write(files.0.path("config"), text).unwrap();
        files
    }

    fn token(&self, token: &str) {
        std::fs::write(self.0.path("token"), format!("{token}\n")).unwrap();
    }

    /// A source that asks with them.
    fn source(&self, more: &str, keys: &str) -> String {
        let config = self.0.path("config");
        format!(
            "allow = [\"127.0.0.0/8\"]\n{keys}\n\
             kubernetes = {{ service = \"users\", kubeconfig = {config:?}, wait = \"1s\", timeout = \"2s\"{more} }}"
        )
    }
}

const BELIEVE: &str = "max_removed_percent = 100";

fn weights(running: &Running) -> Vec<u16> {
    backends(running).into_iter().map(|(_, weight)| weight).collect()
}

/// Each way in which an API server can be of no use, with requests all the time: none is lost, and each state is told once.
#[tokio::test]
async fn a_bad_day_of_an_api_server_costs_no_request() {
    let backends: Vec<_> = (0..4).map(|_| TestBackend::ok("ok")).collect();
    let server = Server::with(&backends);
    let mut serving = server.serve();
    let files = Files::of(&serving);
    let running = start(&files.source("", "max_bytes = \"64KiB\"\nremoval_hold = \"1h\""));
    has(&running, &backends).await;
    let load = Load::begin(&running);
    let mut told = vec!["current"];
    for mood in [Mood::Fails, Mood::Garbage, Mood::Empty, Mood::Huge, Mood::Hangs] {
        server.is(mood);
        let state = if mood == Mood::Empty { "holding" } else { "failing" };
        told.extend([state, "current"]);
        comes_to(&running, state).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(has_now(&running, &backends), "{mood:?}");
        server.is(Mood::Good);
        comes_to(&running, "current").await;
    }
    // Its version goes backwards, as after a restore, and changes go on from there.
    server.change(|known| known.version = 3);
    serving.kill();
    comes_to(&running, "failing").await;
    serving.restart();
    comes_to(&running, "current").await;
    told.extend(["failing", "current"]);
    server.set(backends[..3].iter().map(|it| (it, Pod::Ready)));
    has(&running, &backends[..3]).await;
    assert_eq!(conditions(&running), told);
    let asked = load.end().await;
    assert_eq!(asked, backends.iter().map(TestBackend::requests).sum::<usize>());
    assert!(asked > 1000, "{asked}");
}

#[tokio::test]
async fn a_change_is_seen_at_once() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let server = Server::with([&a]);
    let serving = server.serve();
    let files = Files::of(&serving);
    // Watches end and begin again meanwhile.
    let running = start(&files.source("", BELIEVE));
    has(&running, [&a]).await;
    let mut took = Took::default();
    for n in 0..100 {
        let begun = Instant::now();
        match n % 2 {
            0 => server.set([(&a, Pod::Ready), (&b, Pod::Ready)]),
            _ => server.set([(&a, Pod::Ready)]),
        }
        eventually(|| backends(&running).len() == 2 - n % 2).await;
        took.since(begun);
    }
    took.end_within_a_second();
    let (lists, watches) = server.see(|known| (known.lists, known.watches));
    assert!(lists == 1 && watches > 3, "{lists} lists, {watches} watches");
    assert_eq!(conditions(&running), ["current"]);
}

#[tokio::test]
async fn an_expired_watch_is_a_list_and_no_failure() {
    for by_event in [false, true] {
        let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
        let server = Server::with([&a]);
        server.change(|known| known.tells_by_event = by_event);
        let mut serving = server.serve();
        let files = Files::of(&serving);
        let running = start(&files.source("", BELIEVE));
        has(&running, [&a]).await;
        // The watch breaks, and what it would go on from is no longer there.
        server.change(|known| {
            (known.version, known.oldest, known.pods) = (900, 900, vec![(b.address(), Pod::Ready)]);
            known.history = vec![(900, known.pods.clone())];
        });
        serving.kill();
        serving.restart();
        has(&running, [&b]).await;
        server.set([(&a, Pod::Ready)]);
        has(&running, [&a]).await;
        // The connection may have been refused for a moment.
        assert!(conditions(&running).len() <= 3, "{:?}", conditions(&running));
        // If it is so again and again, all is listed more and more rarely.
        server.change(|known| known.oldest = u64::MAX);
        let lists = server.see(|known| known.lists);
        serving.kill();
        serving.restart();
        tokio::time::sleep(Duration::from_secs(4)).await;
        let more = server.see(|known| known.lists) - lists;
        assert!((1..=3).contains(&more), "{more} lists in four seconds");
        assert_eq!(conditions(&running).last(), Some(&"current"));
    }
}

#[tokio::test]
async fn a_watch_that_ends_at_once_is_no_loop() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let server = Server::with([&a]);
    server.is(Mood::EndsWatches);
    let serving = server.serve();
    let files = Files::of(&serving);
    let running = start(&files.source("", BELIEVE));
    has(&running, [&a]).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (lists, watches) = server.see(|known| (known.lists, known.watches));
    assert!(lists <= 3 && watches <= 3, "{lists} lists, {watches} watches");
    // What lists say is served with all the same.
    server.set([(&b, Pod::Ready)]);
    has(&running, [&b]).await;
    assert_eq!(conditions(&running), ["current"]);
}

#[tokio::test]
async fn a_long_list_comes_in_pages_and_begins_again_where_they_are_forgotten() {
    let backends: Vec<_> = (0..5).map(|_| TestBackend::ok("ok")).collect();
    let server = Server::with(&backends);
    server.change(|known| known.forgets_pages = 1);
    let serving = server.serve();
    let files = Files::of(&serving);
    let running = start(&files.source("", ""));
    has(&running, &backends).await;
    assert_eq!((server.see(|known| known.lists), conditions(&running)), (2, vec!["current"]));
    // Only once: what is never whole is a failure.
    server.change(|known| known.forgets_pages = 1_000);
    comes_to(&start(&files.source("", "")), "failing").await;
}

#[tokio::test]
async fn a_token_that_is_replaced_is_no_failure() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let server = Server::with([&a]);
    let serving = server.serve();
    let files = Files::of(&serving);
    let running = start(&files.source("", BELIEVE));
    has(&running, [&a]).await;
    // The file first, as the kubelet has it: the old one holds for a while.
    files.token("two");
    server.change(|known| known.token = "two");
    let watches = server.see(|known| known.watches);
    eventually(|| server.see(|known| known.watches) > watches + 1).await;
    server.set([(&b, Pod::Ready)]);
    has(&running, [&b]).await;
    assert_eq!(conditions(&running), ["current"]);
    server.change(|known| known.token = "three");
    comes_to(&running, "failing").await;
    assert!(told(&running).contains("it does not believe the login: Unauthorized"), "{}", told(&running));
    files.token("three");
    comes_to(&running, "current").await;
}

/// What was told last of a source.
fn told(running: &Running) -> String {
    let events = running.handle().events().listen_after(0).since;
    let told = events.iter().rev().find_map(|event| match &event.kind {
        isobar::telemetry::events::EventKind::Discovery { evidence, .. } => Some(evidence.clone()),
        _ => None,
    });
    told.unwrap_or_default()
}

#[tokio::test]
async fn a_watch_that_has_gone_silent_is_opened_anew() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let server = Server::with([&a]);
    let serving = server.serve();
    let files = Files::of(&serving);
    let running = start(&files.source("", BELIEVE));
    has(&running, [&a]).await;
    server.change(|known| known.deaf = known.watches);
    // It may be that the watch ends as it should: then another is to go silent.
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.set([(&b, Pod::Ready)]);
    // After `wait` and `timeout`.
    has(&running, [&b]).await;
    assert_eq!(conditions(&running), ["current"]);
}

#[tokio::test]
async fn what_a_restored_server_has_under_a_known_version_is_found() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let server = Server::with([&a]);
    let serving = server.serve();
    let files = Files::of(&serving);
    let running = start(&files.source(", resync = \"1s\"", BELIEVE));
    has(&running, [&a]).await;
    server.change(|known| known.pods = vec![(b.address(), Pod::Ready)]);
    has(&running, [&b]).await;
    assert_eq!(conditions(&running), ["current"]);
}

/// A deployment that replaces its pods one after the other: each drains, and no request is lost, nor sent to one that drains.
#[tokio::test]
async fn a_rolling_update_loses_no_request() {
    let old: Vec<_> = (0..3).map(|_| TestBackend::slow("ok", Duration::from_millis(20))).collect();
    let new: Vec<_> = (0..3).map(|_| TestBackend::slow("ok", Duration::from_millis(20))).collect();
    let server = Server::with(&old);
    let serving = server.serve();
    let files = Files::of(&serving);
    // As it is by default: what drains is not held back when it is gone.
    let running = start(&files.source("", ""));
    has(&running, &old).await;
    let load = Load::begin(&running);
    let pods = |done: usize, draining: Option<usize>| {
        let left = old
            .iter()
            .enumerate()
            .skip(done)
            .map(move |(n, it)| (it, if draining == Some(n) { Pod::Draining } else { Pod::Ready }));
        left.chain(new.iter().take(draining.map_or(done, |_| done + 1)).map(|it| (it, Pod::Ready))).collect::<Vec<_>>()
    };
    for (n, drains) in old.iter().enumerate() {
        server.set(pods(n, Some(n)));
        eventually(|| weights(&running).iter().filter(|weight| **weight == 0).count() == 1).await;
        // What has begun there may end there.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let asked = drains.requests();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(drains.requests(), asked, "a request to one that drains");
        server.set(pods(n + 1, None));
        eventually(|| weights(&running) == [1, 1, 1]).await;
    }
    has(&running, &new).await;
    assert_eq!(conditions(&running), ["current"]);
    let asked = load.end().await;
    assert_eq!(asked, old.iter().chain(&new).map(TestBackend::requests).sum::<usize>());
}

/// The only pod of a StatefulSet drains: it goes on serving until the next is ready.
#[tokio::test]
async fn the_only_pod_serves_while_it_drains() {
    let (old, new) = (TestBackend::ok("old"), TestBackend::ok("new"));
    let server = Server::with([&old]);
    let serving = server.serve();
    let files = Files::of(&serving);
    let running = start(&files.source("", ""));
    has(&running, [&old]).await;
    let mut client = Client::connect(running.listener_addresses()[0]).await;
    server.set([(&old, Pod::Draining), (&new, Pod::Unready)]);
    let version = |expected: &str| {
        running
            .handle()
            .snapshot()
            .upstream("u")
            .unwrap()
            .state
            .sources
            .look()
            .iter()
            .any(|it| it.revision.as_deref() == Some(expected))
    };
    eventually(|| version("11")).await;
    assert_eq!(client.get("/").await.text(), "old");
    server.set([(&old, Pod::Draining), (&new, Pod::Ready)]);
    eventually(|| weights(&running).len() == 2).await;
    assert_eq!(client.get("/").await.text(), "new");
    server.set([(&new, Pod::Ready)]);
    has(&running, [&new]).await;
    // All slices gone at once is not believed at once.
    server.set([]);
    comes_to(&running, "holding").await;
    assert_eq!(client.get("/").await.text(), "new");
}

#[tokio::test]
async fn what_right_is_missing_is_told() {
    let refused = |verb: &'static str| {
        TestBackend::scripted(async move |peer| {
            while let Some(message) = peer.request().await {
                let is_watch = message.head.target().contains("watch=true");
                let message =
                    format!("endpointslices.discovery.k8s.io is forbidden: User \"u\" cannot {verb} resource");
                match is_watch == (verb == "watch") {
                    true => peer.respond("403 Forbidden", status(403, "Forbidden", &message).to_string()).await,
                    false => {
                        let list =
                            json!({ "kind": "EndpointSliceList", "metadata": { "resourceVersion": "1" }, "items": [] });
                        peer.respond("200 OK", list.to_string()).await;
                    }
                }
            }
        })
    };
    for verb in ["list", "watch"] {
        let server = refused(verb);
        let files = Files::of(&server);
        let running = start(&files.source("", ""));
        comes_to(&running, "failing").await;
        let expected = format!(
            "it may not {verb} EndpointSlices: a Role in \"shop\" must allow to list and watch endpointslices of discovery.k8s.io \
             (endpointslices.discovery.k8s.io is forbidden: User \"u\" cannot {verb} resource)"
        );
        assert!(told(&running).starts_with(&expected), "{}", told(&running));
    }
    let mut nowhere = TestBackend::ok("");
    let files = Files::of(&nowhere);
    nowhere.kill();
    std::fs::remove_file(files.0.path("token")).unwrap();
    let running = start(&files.source("", ""));
    comes_to(&running, "failing").await;
    assert!(told(&running).contains("token: No such file or directory"), "{}", told(&running));
}
