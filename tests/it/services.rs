//! Upstreams and routes for each service that a registry lists: one that registers is reachable at once, and one that leaves is told apart from
//! one that never was.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use isobar::{Isobar, Running};
use serde_json::{Value, json};

use crate::harness::{Client, Peer, Scratch, TestBackend, eventually, soon};
use crate::registry::{Took, conditions};

/// What a scripted Consul knows: of each service its tags and its backends.
#[derive(Default)]
struct Known {
    index: u64,
    services: BTreeMap<String, (Vec<String>, Vec<SocketAddr>)>,
    fails: bool,
}

/// A scripted Consul with a catalog, by its documentation.
#[derive(Clone, Default)]
struct Registry(Arc<Mutex<Known>>);

impl Registry {
    fn change(&self, change: impl FnOnce(&mut Known)) {
        let mut known = self.0.lock().unwrap();
        change(&mut known);
        known.index += 1;
    }

    fn register(&self, service: &str, tags: &[&str], backend: &TestBackend) {
        let tags = tags.iter().map(|&tag| tag.to_owned()).collect();
        self.change(|known| drop(known.services.insert(service.to_owned(), (tags, vec![backend.address()]))));
    }

    fn deregister(&self, service: &str) {
        self.change(|known| drop(known.services.remove(service)));
    }

    fn look(&self, target: &str) -> (u64, bool, Value) {
        let known = self.0.lock().unwrap();
        let path = target.split('?').next().unwrap();
        let answer = match path.strip_prefix("/v1/health/service/") {
            Some(service) => {
                let (_, backends) = known.services.get(service).cloned().unwrap_or_default();
                let entry = |address: &SocketAddr| {
                    json!({ "Node": { "Node": "n", "Address": address.ip() },
                            "Service": { "ID": address.to_string(), "Address": "", "Port": address.port() }, "Checks": [] })
                };
                backends.iter().map(entry).collect()
            }
            None => {
                assert_eq!(path, "/v1/catalog/services");
                known.services.iter().map(|(name, (tags, _))| (name.clone(), json!(tags))).collect::<Value>()
            }
        };
        (known.index + 1, known.fails, answer)
    }

    fn serve(&self) -> TestBackend {
        let registry = self.clone();
        TestBackend::scripted(async move |peer| {
            while let Some(message) = peer.request().await {
                registry.answer(peer, message.head.target()).await;
            }
        })
    }

    async fn answer(&self, peer: &mut Peer, target: &str) {
        let asked = target.split(['?', '&']).find_map(|it| it.strip_prefix("index="));
        let (asked, begun) = (asked.map_or(0, |it| it.parse::<u64>().unwrap()), Instant::now());
        while asked >= self.look(target).0 && begun.elapsed() < Duration::from_secs(1) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let (index, fails, answer) = self.look(target);
        let ok = format!("200 OK\r\ncontent-type: application/json\r\nx-consul-index: {index}");
        match fails {
            true => peer.respond("500 Internal Server Error", "No cluster leader").await,
            false => peer.respond(&ok, answer.to_string()).await,
        }
    }
}

fn text(at: SocketAddr, services: &str, route: &str) -> String {
    format!(
        "workers = 2\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [upstream.s]\nretries = 0\nservices = {{ grace = \"1s\", {services} }}\n[[upstream.s.discovery]]\nremoval_hold = \"1s\"\n\
         consul = {{ service = \"{{service}}\", address = \"http://{at}\", wait = \"1s\", timeout = \"500ms\" }}\n\
         [[route]]\nupstream = \"s\"\n{route}\n"
    )
}

const BY_PATH: &str = "path_prefix = \"/{service}/\"\nstrip_prefix = true";

fn start(text: String) -> Running {
    Isobar::builder().config_text(text).start().unwrap()
}

async fn get(running: &Running, host: &str, path: &str) -> (u16, String) {
    let mut client = Client::connect(running.listener_addresses()[0]).await;
    client.send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
    let response = client.response().await;
    (response.status(), response.text().to_owned())
}

/// Waits until a question of the test's own is answered with yes.
async fn until(condition: impl AsyncFn() -> bool) {
    soon(async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Asks until the answer has that status, and says how long that took.
pub(crate) async fn comes_to(running: &Running, path: &str, status: u16) -> Duration {
    let begun = Instant::now();
    loop {
        let (answered, _) = get(running, "localhost", path).await;
        if answered == status {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{path} is answered {answered}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// An isobar with a route to each service that a registry lists, by its path; `source` is a table of discovery.
pub(crate) fn start_with(source: &str) -> Running {
    start(format!(
        "workers = 2\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"s\"\n\
         path_prefix = \"/{{service}}/\"\n[upstream.s]\nservices = {{ allow = [\"*\"], deny = [\"hidden*\"], grace = \"0s\" }}\n\
         [[upstream.s.discovery]]\nmax_removed_percent = 100\n{source}\n"
    ))
}

/// A hundred times, `change` has a service `late` registered (`true`) or leave (`false`): it is reachable, or 404, within a second.
pub(crate) async fn come_and_go(running: &Running, mut change: impl AsyncFnMut(bool)) {
    assert_eq!(get(running, "localhost", "/late/").await.0, 404);
    let mut took = Took::default();
    for n in 0..100 {
        change(n % 2 == 0).await;
        let begun = Instant::now();
        comes_to(running, "/late/", if n % 2 == 0 { 200 } else { 404 }).await;
        took.since(begun);
    }
    assert_eq!(get(running, "localhost", "/hidden/").await.0, 404);
    took.end_within_a_second();
}

async fn services(running: &Running) -> Value {
    let mut admin = Client::connect(running.admin_address().unwrap()).await;
    admin.send("GET /upstreams/s HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    admin.response().await.json()["services"].clone()
}

#[tokio::test]
async fn a_service_that_registers_is_reachable_at_once_and_no_request_before_its_backends_are_known_fails() {
    let (users, orders) = (TestBackend::ok("users"), TestBackend::ok("orders"));
    let registry = Registry::default();
    registry.register("users", &[], &users);
    let server = registry.serve();
    let running = start(text(server.address(), "allow = [\"users\", \"o*\"]", BY_PATH));
    // Known when the start returns: a takeover must not begin with 404.
    assert_eq!(get(&running, "localhost", "/users/1").await, (200, "users".into()));
    assert_eq!(get(&running, "localhost", "/orders/1").await.0, 404);
    registry.register("secret", &[], &orders);
    registry.register("orders", &[], &orders);
    let begun = Instant::now();
    // First a 404, then a 200, and nothing else between.
    let statuses = async {
        let mut seen = Vec::new();
        while seen.last() != Some(&200) {
            let (status, _) = get(&running, "localhost", "/orders/1").await;
            seen.push(status);
        }
        seen
    };
    let mut seen = soon(statuses).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    seen.dedup();
    assert!(seen == [404, 200] || seen == [200], "{seen:?}");
    assert_eq!(get(&running, "localhost", "/secret/1").await.0, 404);
    let view = services(&running).await;
    let served = json!([{ "service": "orders", "upstream": "s:orders", "listed": true }, { "service": "users", "upstream": "s:users", "listed": true }]);
    assert_eq!((&view["listed"], &view["served"], &view["left_out"]), (&3.into(), &served, &json!([])));
    // The path without its prefix is what the backend saw.
    assert_eq!(orders.last_head().target(), "/1");
}

#[tokio::test]
async fn a_service_that_leaves_is_answered_503_for_its_grace_and_then_404() {
    let users = TestBackend::ok("users");
    let registry = Registry::default();
    registry.register("users", &[], &users);
    let server = registry.serve();
    let dir = Scratch::new();
    let state = format!("state_dir = {:?}\n", dir.path("state"));
    let running = start(state + &text(server.address(), "allow = [\"*\"]", BY_PATH));
    assert_eq!(get(&running, "localhost", "/users/").await.0, 200);
    let files = || std::fs::read_dir(dir.path("state/discovery")).map_or(0, Iterator::count);
    eventually(|| files() == 2).await;
    registry.deregister("users");
    // Held back for `removal_hold`, as any set that becomes empty.
    assert_eq!(get(&running, "localhost", "/users/").await.0, 200);
    comes_to(&running, "/users/", 503).await;
    until(async || services(&running).await["served"][0]["listed"] == false).await;
    let took = comes_to(&running, "/users/", 404).await;
    assert!(took > Duration::from_millis(500) && took < Duration::from_secs(4), "{took:?}");
    assert!(running.handle().snapshot().upstream("s:users").is_none());
    // Nor is anything of it left on disk.
    eventually(|| files() == 1).await;
    // It is back, as a new one.
    registry.register("users", &[], &users);
    comes_to(&running, "/users/", 200).await;
}

#[tokio::test]
async fn a_registry_that_fails_or_forgets_all_takes_no_service_away() {
    let (users, orders) = (TestBackend::ok("ok"), TestBackend::ok("ok"));
    let registry = Registry::default();
    registry.register("users", &[], &users);
    registry.register("orders", &[], &orders);
    let mut server = registry.serve();
    let text =
        text(server.address(), "allow = [\"*\"]", BY_PATH).replace("removal_hold = \"1s\"", "removal_hold = \"1h\"");
    let running = start(text.clone());
    let ask = async || {
        for path in ["/users/", "/orders/"] {
            assert_eq!(get(&running, "localhost", path).await.0, 200, "{path}");
        }
    };
    ask().await;
    registry.change(|known| known.fails = true);
    eventually(|| conditions(&running).iter().filter(|it| **it == "failing").count() == 3).await;
    ask().await;
    registry.change(|known| known.fails = false);
    registry.change(|known| known.services.clear());
    until(async || services(&running).await["listed"] == 0).await;
    for _ in 0..20 {
        ask().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.kill();
    ask().await;
    // A reload meanwhile takes none away either.
    let reloaded = text.replace("retries = 0", "retries = 1");
    soon(running.handle().apply_text(reloaded)).await.unwrap();
    ask().await;
}

#[tokio::test]
async fn a_start_while_the_registry_is_down_serves_the_services_that_are_on_disk() {
    let users = TestBackend::ok("users");
    let registry = Registry::default();
    registry.register("users", &["public"], &users);
    let mut server = registry.serve();
    let dir = Scratch::new();
    let state = format!("state_dir = {:?}\n", dir.path("state"));
    let text = state + &text(server.address(), "tag = \"public\"", BY_PATH);
    let running = start(text.clone());
    assert_eq!(get(&running, "localhost", "/users/").await.0, 200);
    let written = || std::fs::read_dir(dir.path("state/discovery")).is_ok_and(|files| files.count() == 2);
    eventually(written).await;
    running.stop(Duration::from_secs(1)).await;
    server.kill();
    let running = start(text);
    assert_eq!(get(&running, "localhost", "/users/").await, (200, "users".into()));
}

#[tokio::test]
async fn tags_say_where_a_service_is_within_what_the_route_lets_it_have() {
    let (users, evil) = (TestBackend::ok("users"), TestBackend::ok("evil"));
    let registry = Registry::default();
    let tags = ["urlprefix-api.example.com/users strip=/users", "isobar.strategy=least_connections"];
    registry.register("users", &tags, &users);
    let server = registry.serve();
    let route = "hosts = [\"*.example.com\"]\nservice_tags = \"urlprefix-\"";
    let running = start(text(server.address(), "allow = [\"*\"], settings = [\"strategy\"]", route));
    assert_eq!(get(&running, "api.example.com", "/users/7").await, (200, "users".into()));
    assert_eq!(users.last_head().target(), "/7");
    assert_eq!(get(&running, "other.example.com", "/users/7").await.0, 404);
    let strategy = |name| running.handle().snapshot().upstream(name).unwrap().config.strategy.as_str().to_owned();
    assert_eq!(strategy("s:users"), "least_connections");
    // One that wants what it may not have, or what another has, though it was there before.
    registry.register("evil", &[], &evil);
    registry.register("evil", &["urlprefix-bank.test/", "urlprefix-api.example.com/users"], &evil);
    until(async || services(&running).await["left_out"].as_array().is_some_and(|all| !all.is_empty())).await;
    for (host, path, status) in [("bank.test", "/", 404), ("api.example.com", "/users/7", 200)] {
        assert_eq!(get(&running, host, path).await.0, status);
    }
    assert_eq!(evil.requests(), 0);
    // Another path is another route, at once.
    registry.register("users", &["urlprefix-api.example.com/people"], &users);
    until(async || get(&running, "api.example.com", "/people/7").await.0 == 200).await;
    // The path that it has left is free for the one that waited for it.
    until(async || get(&running, "api.example.com", "/users/7").await == (200, "evil".into())).await;
    assert_eq!(get(&running, "bank.test", "/").await.0, 404);
}

#[tokio::test]
async fn services_that_come_and_go_all_the_time_cost_others_no_request() {
    let (users, others) = (TestBackend::ok("users"), TestBackend::ok("other"));
    let registry = Registry::default();
    registry.register("users", &[], &users);
    let server = registry.serve();
    let running = start(text(server.address(), "allow = [\"*\"]", BY_PATH));
    let mut client = Client::connect(running.listener_addresses()[0]).await;
    let (begun, mut asked) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(3) {
        registry.register(&format!("other-{}", asked % 7), &[], &others);
        registry.deregister(&format!("other-{}", (asked + 3) % 7));
        assert_eq!(client.get("/users/").await.status(), 200, "request {asked}");
        asked += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(asked > 200, "{asked}");
    assert_eq!(users.requests(), asked);
}

#[tokio::test]
async fn services_of_the_registry_of_isobar_are_reachable_while_they_are_registered() {
    let late = TestBackend::ok("late");
    let running = start(
        "workers = 2\n[admin]\naddress = \"127.0.0.1:0\"\n[registry]\naddress = \"127.0.0.1:0\"\n[[listener]]\n\
         address = \"127.0.0.1:0\"\n[[route]]\nupstream = \"s\"\npath_prefix = \"/{service}/\"\n[upstream.s]\n\
         services = { tag = \"public\", deny = [\"hidden*\"], grace = \"0s\" }\n[[upstream.s.discovery]]\n\
         registry = { service = \"{service}\" }\n"
            .into(),
    );
    let at = running.registry_address().unwrap();
    let put = async |target: &str, body: Value| {
        let (mut client, body) = (Client::connect(at).await, body.to_string());
        let length = body.len();
        client.send(format!("PUT {target} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{body}")).await;
        assert_eq!(client.response_to("PUT").await.status(), 200);
    };
    let register = async |name: &str, tag: &str| {
        let (host, port) = (late.address().ip(), late.address().port());
        let said = json!({ "ID": name, "Name": name, "Address": host, "Port": port, "Tags": [tag],
                           "Check": { "TTL": "60s", "Status": "passing" } });
        put("/v1/agent/service/register", said).await;
    };
    register("hidden", "public").await;
    register("internal", "private").await;
    come_and_go(&running, async |comes| match comes {
        true => register("late", "public").await,
        false => put("/v1/agent/service/deregister/late", Value::Null).await,
    })
    .await;
    assert_eq!(get(&running, "localhost", "/internal/").await.0, 404);
}
