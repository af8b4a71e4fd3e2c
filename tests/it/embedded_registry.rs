//! The registry in the process: services register by Consul's and by Eureka's API, are found at once, and are known after any end.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use isobar::{Isobar, Running};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::harness::{Client, Scratch, TestBackend, eventually, free_address, soon};
use crate::process::Process;

/// A registry with these keys, and a route to the service `users` in it.
fn text(registry: &str, tables: &str) -> String {
    format!(
        "workers = 2\n{tables}\n[admin]\naddress = \"127.0.0.1:0\"\n[registry]\n{registry}\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n[upstream.u]\n\
         [[upstream.u.discovery]]\nregistry = {{ service = \"users\" }}\n"
    )
}

fn start(registry: &str) -> Running {
    let registry = format!("address = \"127.0.0.1:0\"\n{registry}");
    Isobar::builder().config_text(text(&registry, "")).start().unwrap()
}

/// A client of a registry.
struct Registry {
    client: Client,
    headers: String,
}

impl Registry {
    async fn at(address: SocketAddr) -> Self {
        Self { client: Client::connect(address).await, headers: String::new() }
    }

    async fn of(running: &Running) -> Self {
        Self::at(running.registry_address().unwrap()).await
    }

    async fn with(running: &Running, header: &str) -> Self {
        Self { headers: format!("{header}\r\n"), ..Self::of(running).await }
    }

    async fn ask(&mut self, method: &str, target: &str, body: &str) -> (u16, String) {
        let (headers, length) = (&self.headers, body.len());
        let head = format!("{method} {target} HTTP/1.1\r\nhost: registry\r\n{headers}content-length: {length}\r\n\r\n");
        self.client.send(head + body).await;
        let response = self.client.response_to(method).await;
        (response.status(), response.text().to_owned())
    }

    async fn json(&mut self, target: &str) -> Value {
        let (status, body) = self.ask("GET", target, "").await;
        assert_eq!(status, 200, "{target}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{target}: {error}: {body}"))
    }

    /// The index of the service `users`.
    async fn index(&mut self) -> u64 {
        self.client.send("GET /v1/health/service/users?passing=1 HTTP/1.1\r\nhost: registry\r\n\r\n").await;
        let response = self.client.response().await;
        let index = response.head.fields.iter().find(|(name, _)| name.eq_ignore_ascii_case("x-consul-index"));
        index.unwrap().1.parse().unwrap()
    }

    async fn put(&mut self, target: &str, body: &Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.ask("PUT", target, &body).await;
        assert_eq!(answer, (200, String::new()), "{target}");
    }

    /// As Go's client does.
    async fn register(&mut self, id: &str, at: SocketAddr, ttl: &str) {
        let said = json!({
            "ID": id, "Name": "users", "Address": at.ip(), "Port": at.port(), "Tags": ["v1"], "Meta": { "version": "1" },
            "EnableTagOverride": false, "Weights": null, "Check": { "TTL": ttl, "Status": "passing" }, "Checks": null,
        });
        self.put("/v1/agent/service/register", &said).await;
    }
}

/// How many backends `u` has.
fn count(running: &Running) -> usize {
    running.handle().snapshot().upstream("u").unwrap().roster().backends().len()
}

async fn client(running: &Running) -> Client {
    Client::connect(running.listener_addresses()[0]).await
}

#[tokio::test]
async fn a_service_registers_by_consuls_api_and_is_served_with_at_once() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let running = start("");
    let (mut registry, mut client) = (Registry::of(&running).await, client(&running).await);
    assert_eq!(client.get("/").await.status(), 503);
    registry.register("a", a.address(), "30s").await;
    eventually(|| count(&running) == 1).await;
    assert_eq!(client.get("/").await.text(), "a");
    // Each of a hundred changes is seen within a second.
    let mut took = Vec::new();
    for n in 0..100 {
        let begun = Instant::now();
        if n % 2 == 0 {
            registry.register("b", b.address(), "30s").await;
        } else {
            registry.put("/v1/agent/service/deregister/b", &Value::Null).await;
        }
        eventually(|| count(&running) == 2 - n % 2).await;
        took.push(begun.elapsed());
    }
    took.sort();
    assert!(took[98] < Duration::from_secs(1), "{took:?}");
    // What a service says of itself.
    for (target, served) in [
        ("/v1/agent/check/fail/service:a?note=gone", false),
        ("/v1/agent/check/pass/service:a", true),
        ("/v1/agent/service/maintenance/a?enable=true&reason=repair", false),
        ("/v1/agent/service/maintenance/a?enable=false", true),
    ] {
        registry.put(target, &Value::Null).await;
        eventually(|| count(&running) == usize::from(served)).await;
        assert_eq!(client.get("/").await.status(), if served { 200 } else { 503 }, "{target}");
    }
    registry.put("/v1/agent/check/update/service:a", &json!({ "Status": "warning", "Output": "slow" })).await;
    eventually(|| count(&running) == 0).await;
    registry.put("/v1/agent/service/deregister/a", &Value::Null).await;
    assert_eq!(registry.json("/v1/agent/services").await, json!({}));
}

#[tokio::test]
async fn consuls_queries_are_answered_as_its_clients_read_them() {
    let running = start("datacenter = \"home\"\nnode = \"n1\"");
    let mut registry = Registry::of(&running).await;
    let at: SocketAddr = "10.0.0.7:8080".parse().unwrap();
    registry.register("users-1", at, "30s").await;
    let said = json!({ "Name": "users", "ID": "users-2", "Port": 81, "Tags": ["v2"], "Check": { "TTL": "30s" } });
    registry.put("/v1/agent/service/register", &said).await;
    let all = registry.json("/v1/health/service/users").await;
    assert_eq!(all.as_array().unwrap().len(), 2);
    let (one, two) = (&all[0], &all[1]);
    assert_eq!((&one["Node"]["Node"], &one["Node"]["Datacenter"]), (&"n1".into(), &"home".into()));
    assert_eq!((&one["Service"]["Address"], &one["Service"]["Port"]), (&"10.0.0.7".into(), &8080.into()));
    assert_eq!((&one["Service"]["Meta"]["version"], &one["Service"]["Weights"]["Passing"]), (&"1".into(), &1.into()));
    // Without an address it is where the request came from.
    assert_eq!(two["Service"]["Address"], "127.0.0.1");
    let statuses = |entry: &Value| -> Vec<String> {
        let checks = entry["Checks"].as_array().unwrap();
        checks
            .iter()
            .map(|check| format!("{} {}", check["CheckID"].as_str().unwrap(), check["Status"].as_str().unwrap()))
            .collect()
    };
    assert_eq!(statuses(one), ["serfHealth passing", "service:users-1 passing"]);
    assert_eq!(statuses(two), ["serfHealth passing", "service:users-2 critical"]);
    for (query, expected) in
        [("?passing=1", 1), ("?passing", 1), ("?tag=v2", 1), ("?tag=v1&tag=v2", 0), ("?dc=home&stale", 2)]
    {
        let found = registry.json(&format!("/v1/health/service/users{query}")).await;
        assert_eq!(found.as_array().unwrap().len(), expected, "{query}");
    }
    assert_eq!(registry.json("/v1/health/service/nobody").await, json!([]));
    let listed = registry.json("/v1/catalog/service/users").await;
    assert_eq!(
        (&listed[0]["ServiceID"], &listed[0]["ServicePort"], &listed[0]["Address"]),
        (&"users-1".into(), &8080.into(), &"127.0.0.1".into())
    );
    assert_eq!(registry.json("/v1/catalog/services").await, json!({ "users": ["v1", "v2"] }));
    assert_eq!(registry.json("/v1/catalog/datacenters").await, json!(["home"]));
    assert_eq!(registry.json("/v1/status/leader").await, running.registry_address().unwrap().to_string());
    assert_eq!(registry.json("/v1/agent/self").await["Config"]["NodeName"], "n1");
    assert_eq!(registry.json("/v1/agent/checks").await["service:users-1"]["ServiceName"], "users");
    assert_eq!(registry.json("/v1/health/state/critical").await.as_array().unwrap().len(), 1);
    for (target, status) in [
        ("/v1/agent/health/service/id/users-1", 200),
        ("/v1/agent/health/service/name/users", 503),
        ("/v1/agent/health/service/id/nobody", 404),
        ("/v1/agent/service/users-1", 200),
        ("/v1/agent/service/nobody", 404),
        ("/v1/health/service/users?dc=elsewhere", 500),
        ("/v1/health/service/users?filter=Service.ID", 501),
        ("/v1/health/service/users?ns=shop", 501),
        ("/v1/health/service/users?index=x", 400),
        ("/v1/kv/config/users", 404),
        ("/v1/connect/ca/roots", 501),
        ("/v2", 404),
        ("/", 200),
    ] {
        let (answered, body) = registry.ask("GET", target, "").await;
        assert_eq!(answered, status, "{target}: {body}");
    }
    for (method, target, status) in [
        ("POST", "/v1/agent/service/register", 405),
        ("PUT", "/v1/kv/a", 501),
        ("PUT", "/v1/session/create", 501),
        ("PUT", "/v1/agent/check/pass/nobody", 404),
        ("PUT", "/v1/agent/service/deregister/nobody", 404),
    ] {
        let (answered, body) = registry.ask(method, target, "").await;
        assert!(answered == status && !body.is_empty(), "{method} {target}: {answered} {body}");
    }
}

#[tokio::test]
async fn a_query_with_an_index_waits_for_a_change_of_its_service() {
    let running = start("");
    let mut registry = Registry::of(&running).await;
    registry.register("a", "10.0.0.7:80".parse().unwrap(), "30s").await;
    let mut waiting = Registry::of(&running).await;
    let before = waiting.index().await;
    let asked = format!("/v1/health/service/users?index={before}&wait=60s");
    let answered = tokio::spawn(async move { waiting.json(&asked).await });
    // Another service is none of its business.
    let other = json!({ "Name": "orders", "Port": 80 });
    registry.put("/v1/agent/service/register", &other).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!answered.is_finished());
    registry.register("b", "10.0.0.8:80".parse().unwrap(), "30s").await;
    assert_eq!(soon(answered).await.unwrap().as_array().unwrap().len(), 2);
    let mut other = Registry::of(&running).await;
    let index = other.index().await;
    assert!(index > before);
    let begun = Instant::now();
    other.json(&format!("/v1/health/service/users?index={index}&wait=300ms")).await;
    assert!((300..5_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    // One from another registry's future is answered at once.
    other.json(&format!("/v1/health/service/users?index={}&wait=60s", index + 1000)).await;
    // A stop does not wait for those that wait.
    let asked = format!("/v1/catalog/services?index={}&wait=60s", u64::MAX);
    drop(other.json(&asked).await);
    let begun = Instant::now();
    let stuck = tokio::spawn(async move {
        let services = other.json("/v1/catalog/services").await;
        drop(services);
        other.ask("GET", &format!("/v1/health/service/users?index={index}&wait=60s"), "").await
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    running.stop(Duration::from_secs(5)).await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    drop(stuck);
}

/// What Spring's client sends.
fn instance(id: &str, at: SocketAddr, dirty: u64) -> Value {
    json!({ "instance": {
        "instanceId": id, "app": "USERS", "appGroupName": null, "ipAddr": at.ip(), "sid": "na", "homePageUrl": "http://host:80/",
        "statusPageUrl": "http://host:80/actuator/info", "healthCheckUrl": "http://host:80/actuator/health",
        "secureHealthCheckUrl": null, "vipAddress": "users", "secureVipAddress": "users", "countryId": 1,
        "dataCenterInfo": { "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn" },
        "hostName": "host", "status": "UP", "overriddenStatus": "UNKNOWN",
        "leaseInfo": { "renewalIntervalInSecs": 30, "durationInSecs": 90, "registrationTimestamp": 0,
            "lastRenewalTimestamp": 0, "evictionTimestamp": 0, "serviceUpTimestamp": 0 },
        "isCoordinatingDiscoveryServer": "false", "lastUpdatedTimestamp": "1", "lastDirtyTimestamp": dirty.to_string(),
        "actionType": null, "asgName": null, "port": { "$": at.port(), "@enabled": "true" },
        "securePort": { "$": 443, "@enabled": "false" }, "metadata": { "management.port": "8080", "zone": "a" },
    }})
}

#[tokio::test]
async fn a_service_registers_by_eurekas_api_and_is_served_with_at_once() {
    let a = TestBackend::ok("a");
    let running = start("");
    let mut registry = Registry::with(&running, "accept: application/json\r\ncontent-type: application/json").await;
    let mut client = client(&running).await;
    let id = "host:users:80";
    assert_eq!(
        registry.ask("PUT", &format!("/eureka/apps/USERS/{id}?status=UP&lastDirtyTimestamp=5"), "").await.0,
        404
    );
    let said = instance(id, a.address(), 5).to_string();
    assert_eq!(registry.ask("POST", "/eureka/apps/USERS", &said).await, (204, String::new()));
    eventually(|| count(&running) == 1).await;
    assert_eq!(client.get("/").await.text(), "a");
    for (method, target, status) in [
        ("PUT", format!("/eureka/apps/USERS/{id}?status=UP&lastDirtyTimestamp=5"), 200),
        ("PUT", format!("/eureka/apps/users/{id}?status=UP&lastDirtyTimestamp=6"), 404),
        ("PUT", format!("/eureka/v2/apps/USERS/{id}"), 200),
        ("PUT", format!("/eureka/apps/USERS/{id}/metadata?color=blue"), 200),
        ("PUT", "/eureka/apps/USERS/nobody".into(), 404),
        ("PUT", format!("/eureka/apps/USERS/{id}/status?value=SIDEWAYS"), 400),
        ("GET", format!("/eureka/apps/USERS/{id}"), 200),
        ("GET", format!("/eureka/instances/{id}"), 200),
        ("GET", "/eureka/apps/NOBODY".into(), 404),
        ("GET", "/eureka/vips/nobody".into(), 404),
        ("POST", "/eureka/peerreplication/batch".into(), 501),
        ("GET", "/eureka/lastn".into(), 501),
    ] {
        assert_eq!(registry.ask(method, &target, "").await.0, status, "{method} {target}");
    }
    let all = registry.json("/eureka/apps/").await;
    assert_eq!(all["applications"]["apps__hashcode"], "UP_1_");
    let application = &all["applications"]["application"][0];
    assert_eq!(application["name"], "USERS");
    let shown = &application["instance"][0];
    assert_eq!(
        (&shown["instanceId"], &shown["status"], &shown["vipAddress"]),
        (&id.into(), &"UP".into(), &"users".into())
    );
    assert_eq!((&shown["port"]["$"], &shown["port"]["@enabled"]), (&a.address().port().into(), &"true".into()));
    assert_eq!((&shown["metadata"]["color"], &shown["dataCenterInfo"]["name"]), (&"blue".into(), &"MyOwn".into()));
    assert_eq!(registry.json("/eureka/vips/users").await["applications"]["application"][0]["name"], "USERS");
    // From outside: it is out of service, whatever it says.
    assert_eq!(registry.ask("PUT", &format!("/eureka/apps/USERS/{id}/status?value=OUT_OF_SERVICE"), "").await.0, 200);
    eventually(|| count(&running) == 0).await;
    assert_eq!(registry.ask("POST", "/eureka/apps/USERS", &said).await.0, 204);
    let delta = registry.json("/eureka/apps/delta").await;
    assert_eq!(delta["applications"]["apps__hashcode"], "OUT_OF_SERVICE_1_");
    assert_eq!(delta["applications"]["application"][0]["instance"][0]["actionType"], "MODIFIED");
    assert_eq!(registry.ask("DELETE", &format!("/eureka/apps/USERS/{id}/status?value=UP"), "").await.0, 200);
    eventually(|| count(&running) == 1).await;
    // Consul's clients see it too.
    let seen = registry.json("/v1/health/service/users?passing=1").await;
    assert_eq!((&seen[0]["Service"]["ID"], &seen[0]["Service"]["Meta"]["zone"]), (&id.into(), &"a".into()));
    assert_eq!(registry.ask("DELETE", &format!("/eureka/apps/USERS/{id}"), "").await.0, 200);
    eventually(|| count(&running) == 0).await;
    assert_eq!(registry.ask("DELETE", &format!("/eureka/apps/USERS/{id}"), "").await.0, 404);
    assert_eq!(
        registry.json("/eureka/apps/delta").await["applications"]["application"][0]["instance"][0]["actionType"],
        "DELETED"
    );
}

#[tokio::test]
async fn eurekas_xml_says_the_same_as_its_json() {
    let running = start("");
    let mut xml = Registry::with(&running, "content-type: application/xml").await;
    let said = "<?xml version=\"1.0\"?><instance><instanceId>i1</instanceId><hostName>h</hostName><app>USERS</app><ipAddr>10.0.0.7</ipAddr>\
        <status>UP</status><overriddenstatus>UNKNOWN</overriddenstatus><port enabled=\"true\">81</port><securePort enabled=\"false\">443</securePort>\
        <dataCenterInfo class=\"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo\"><name>MyOwn</name></dataCenterInfo>\
        <leaseInfo><renewalIntervalInSecs>10</renewalIntervalInSecs><durationInSecs>30</durationInSecs></leaseInfo>\
        <metadata><a>&lt;b&gt;</a></metadata><vipAddress>users</vipAddress><lastDirtyTimestamp>7</lastDirtyTimestamp></instance>";
    assert_eq!(xml.ask("POST", "/eureka/apps/USERS", said).await.0, 204);
    let (status, shown) = xml.ask("GET", "/eureka/apps/USERS/i1", "").await;
    assert_eq!(status, 200);
    for part in [
        "<instance><actionType>ADDED</actionType><app>USERS</app>",
        "<port enabled=\"true\">81</port>",
        "<dataCenterInfo class=\"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo\"><name>MyOwn</name></dataCenterInfo>",
        "<overriddenstatus>UNKNOWN</overriddenstatus>",
        "<metadata><a>&lt;b&gt;</a></metadata>",
        "<durationInSecs>30</durationInSecs>",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let (_, all) = xml.ask("GET", "/eureka/apps", "").await;
    assert!(
        all.starts_with("<applications><application><instance>")
            && all.contains("<apps__hashcode>UP_1_</apps__hashcode>"),
        "{all}"
    );
    let mut json = Registry::with(&running, "accept: application/json, application/*+json").await;
    let shown = json.json("/eureka/instances/i1").await;
    assert_eq!(
        (&shown["instance"]["metadata"]["a"], &shown["instance"]["leaseInfo"]["durationInSecs"]),
        (&"<b>".into(), &30.into())
    );
    for bad in ["", "<instance>", "<!DOCTYPE x><instance/>", "<other/>"] {
        assert_eq!(xml.ask("POST", "/eureka/apps/USERS", bad).await.0, 400, "{bad}");
    }
}

#[tokio::test]
async fn a_service_whose_heartbeats_cease_is_served_with_no_more_and_a_mass_of_them_is() {
    let backends: Vec<_> = (0..6).map(|_| TestBackend::ok("ok")).collect();
    let running = start("expiry_hold = \"1h\"");
    let mut registry = Registry::of(&running).await;
    for (n, backend) in backends.iter().enumerate().rev() {
        registry.register(&format!("i{n}"), backend.address(), if n == 0 { "2s" } else { "4s" }).await;
    }
    eventually(|| count(&running) == 6).await;
    // The first sends none any more.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for n in 1..6 {
            registry.put(&format!("/v1/agent/check/pass/service:i{n}"), &Value::Null).await;
        }
    }
    eventually(|| count(&running) == 5).await;
    // Then all are silent at once: that is held back.
    let registered = running.handle().registry().unwrap();
    eventually(|| registered.counts().kept == 5).await;
    assert_eq!((count(&running), registered.counts().expirations), (5, 1));
    let mut client = client(&running).await;
    assert_eq!(client.get("/").await.status(), 200);
    for n in 1..6 {
        registry.put(&format!("/v1/agent/check/pass/service:i{n}"), &Value::Null).await;
    }
    eventually(|| registered.counts().kept == 0).await;
}

#[tokio::test]
async fn checks_that_isobar_runs_decide_whether_an_instance_counts() {
    let (mut well, ill) = (TestBackend::ok("ok"), TestBackend::fixed("HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n"));
    let running = start("");
    let mut registry = Registry::of(&running).await;
    for (id, backend, check) in [
        ("http", &well, json!({ "HTTP": format!("http://{}/health", well.address()), "Interval": "1s" })),
        ("ill", &ill, json!({ "HTTP": format!("http://{}/health", ill.address()), "Interval": "1s" })),
        ("metadata", &well, json!({ "HTTP": "http://169.254.169.254/latest/", "Interval": "1s" })),
    ] {
        let said = json!({ "ID": id, "Name": "users", "Address": "127.0.0.1", "Port": backend.address().port(), "Check": check });
        registry.put("/v1/agent/service/register", &said).await;
    }
    eventually(|| count(&running) == 1).await;
    assert_eq!(well.last_head().target(), "/health");
    let checks = registry.json("/v1/agent/checks").await;
    eventually_output(&mut registry, "metadata", "metadata service").await;
    eventually_output(&mut registry, "ill", "500").await;
    assert_eq!(checks["service:http"]["Type"], "http");
    well.kill();
    eventually(|| count(&running) == 0).await;
    well.restart();
    eventually(|| count(&running) == 1).await;
}

async fn eventually_output(registry: &mut Registry, id: &str, part: &str) {
    for _ in 0..500 {
        let checks = registry.json("/v1/agent/checks").await;
        let output = checks[&format!("service:{id}")]["Output"].as_str().unwrap().to_owned();
        if output.contains(part) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{id} never says {part}");
}

#[tokio::test]
async fn a_token_may_register_its_services_and_a_reload_changes_which_there_are() {
    let token = |name: &str, keys: &str| {
        format!("[[registry.token]]\nname = \"{name}\"\ntoken = \"0123456789abcdef-{name}\"\n{keys}\n")
    };
    let all = token("ops", "");
    let running = start(&format!("{}{all}", token("users", "prefixes = [\"users\"]")));
    let users = "x-consul-token: 0123456789abcdef-users";
    // user:0123456789abcdef-users
    let basic = "authorization: Basic dXNlcjowMTIzNDU2Nzg5YWJjZGVmLXVzZXJz\r\naccept: application/json";
    let at: SocketAddr = "10.0.0.7:80".parse().unwrap();
    let (users_said, orders) = (instance("i1", at, 1).to_string(), json!({ "Name": "orders" }).to_string());
    for (header, method, target, body, status) in [
        ("", "GET", "/v1/agent/services", "", 200),
        ("", "PUT", "/v1/agent/service/register", &*orders, 403),
        ("", "POST", "/eureka/apps/USERS", &*users_said, 401),
        (users, "PUT", "/v1/agent/service/register", &*orders, 403),
        (users, "PUT", "/v1/agent/service/register", "{\"Name\": \"users-api\"}", 200),
        ("x-consul-token: 0123456789abcdef-nobody", "GET", "/v1/agent/services", "", 403),
        (basic, "POST", "/eureka/apps/USERS", &*users_said, 204),
        (basic, "GET", "/eureka/apps", "", 200),
        ("authorization: Bearer 0123456789abcdef-ops", "PUT", "/v1/agent/service/register", &*orders, 200),
        (users, "PUT", "/v1/agent/service/deregister/orders", "", 403),
        (users, "PUT", "/v1/agent/service/deregister/users-api", "", 200),
        ("origin: http://evil.example", "POST", "/eureka/apps/USERS", &*users_said, 403),
    ] {
        let mut registry = Registry::with(&running, if header.is_empty() { "x-none: 1" } else { header }).await;
        let (answered, text) = registry.ask(method, target, body).await;
        assert_eq!(answered, status, "{header} {method} {target}: {text}");
    }
    let changed = text(&format!("address = \"127.0.0.1:0\"\nanonymous = \"none\"\n{all}"), "");
    running.handle().apply_text(changed).await.unwrap();
    let mut registry = Registry::of(&running).await;
    assert_eq!(registry.ask("GET", "/v1/agent/services", "").await.0, 403);
    let mut registry = Registry::with(&running, users).await;
    assert_eq!(registry.ask("PUT", "/v1/agent/service/register", "{\"Name\": \"users\"}").await.0, 403);
}

#[tokio::test]
async fn what_clients_send_is_bounded() {
    let running = start("max_bytes = \"2KiB\"\nmax_instances = 2");
    let mut registry = Registry::of(&running).await;
    let long = json!({ "Name": "users", "Meta": { "a": "x".repeat(1500) } }).to_string();
    let longer = json!({ "Name": "users", "Meta": { "a": "x".repeat(5000) } }).to_string();
    let deep = "[".repeat(2000);
    let tags = json!({ "Name": "users", "Tags": vec!["t"; 100] }).to_string();
    for (body, status) in [
        (long.as_str(), 400),
        (&deep, 400),
        (&tags, 400),
        ("{\"Name\": \"a/b\"}", 400),
        ("{\"Name\": \"users\", \"Address\": \"a b\"}", 400),
        ("{\"Name\": \"users\", \"ID\": \"a\\u0000\"}", 400),
        ("{\"Name\": \"one\"}", 200),
        ("{\"Name\": \"two\"}", 200),
        ("{\"Name\": \"two\"}", 200),
        ("{\"Name\": \"three\"}", 503),
    ] {
        let (answered, text) = registry.ask("PUT", "/v1/agent/service/register", body).await;
        assert_eq!(answered, status, "{body}: {text}");
    }
    assert_eq!(registry.ask("PUT", "/v1/agent/service/register", &longer).await.0, 413);
}

/// Asks until it is told to end; each request is answered 200. Says how many.
async fn load(address: SocketAddr, ends: Arc<AtomicBool>) -> usize {
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

/// Services that come, go, die and are repaired, with 300 requests a second all the time.
#[tokio::test]
async fn services_that_come_and_go_cost_no_request() {
    let backends: Vec<_> = (0..4).map(|_| TestBackend::ok("ok")).collect();
    let running = start("");
    let mut registry = Registry::of(&running).await;
    registry.register("i0", backends[0].address(), "1h").await;
    eventually(|| count(&running) == 1).await;
    let (address, ends) = (running.listener_addresses()[0], Arc::new(AtomicBool::new(false)));
    let mut clients = JoinSet::new();
    for _ in 0..3 {
        clients.spawn(load(address, Arc::clone(&ends)));
    }
    for round in 0..5 {
        for (n, backend) in backends.iter().enumerate().skip(1) {
            registry.register(&format!("i{n}"), backend.address(), if n == 1 { "2s" } else { "1h" }).await;
        }
        eventually(|| count(&running) == 4).await;
        registry.put("/v1/agent/service/maintenance/i2?enable=true", &Value::Null).await;
        eventually(|| count(&running) == 3).await;
        registry.put("/v1/agent/service/maintenance/i2?enable=false", &Value::Null).await;
        // Its heartbeats cease.
        eventually(|| count(&running) == 3 && running.handle().registry().unwrap().counts().expirations == round + 1)
            .await;
        for n in 1..4 {
            registry.put(&format!("/v1/agent/service/deregister/i{n}"), &Value::Null).await;
        }
        eventually(|| count(&running) == 1).await;
    }
    ends.store(true, SeqCst);
    let mut asked = 0;
    while let Some(done) = soon(clients.join_next()).await {
        asked += done.unwrap();
    }
    assert_eq!(asked, backends.iter().map(TestBackend::requests).sum::<usize>());
    assert!(asked > 300, "{asked}");
}

/// A process whose registry is at `at`, and its file.
struct OnDisk {
    dir: Scratch,
    listener: SocketAddr,
    at: SocketAddr,
}

impl OnDisk {
    fn new() -> Self {
        let on_disk = Self { dir: Scratch::new(), listener: free_address(), at: free_address() };
        let Self { dir, listener, at } = &on_disk;
        let state = format!("state_dir = {:?}", dir.path("state"));
        let text = text(&format!("address = \"{at}\""), &state);
        dir.write(
            "lb.toml",
            text.replacen(
                "[[listener]]\naddress = \"127.0.0.1:0\"",
                &format!("[[listener]]\naddress = \"{listener}\""),
                1,
            ),
        );
        on_disk
    }

    fn start(&self, arguments: &[&str]) -> Process {
        Process::started(Process::command(&self.dir.path("lb.toml")).args(arguments))
    }

    /// Ids of all that is registered.
    async fn known(&self) -> BTreeSet<String> {
        let mut registry = Registry::at(self.at).await;
        let services = registry.json("/v1/agent/services").await;
        services.as_object().unwrap().keys().cloned().collect()
    }

    async fn is_up(&self) {
        for _ in 0..1_000 {
            if tokio::net::TcpStream::connect(self.at).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it does not start");
    }
}

#[tokio::test]
async fn a_kill_loses_no_registration_that_was_answered() {
    let backend = TestBackend::ok("a");
    let on_disk = OnDisk::new();
    let mut answered = BTreeSet::new();
    for round in 0..3 {
        let process = on_disk.start(&[]);
        on_disk.is_up().await;
        assert_eq!(on_disk.known().await, answered, "round {round}");
        if round > 0 {
            let mut client = Client::connect(on_disk.listener).await;
            assert_eq!(client.get("/").await.status(), 200, "the first request is served");
        }
        let mut tasks = JoinSet::new();
        for task in 0..4 {
            let (at, backend) = (on_disk.at, backend.address());
            tasks.spawn(async move {
                let mut answered = Vec::new();
                for n in 0..1_000 {
                    let id = format!("{round}-{task}-{n}");
                    let said = json!({
                        "ID": id, "Name": "users", "Address": "127.0.0.1", "Port": backend.port(),
                        "Check": { "TTL": "1h", "Status": "passing" },
                    });
                    if !raw_register(at, &said.to_string()).await {
                        break;
                    }
                    answered.push(id);
                }
                answered
            });
        }
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        process.signal("KILL");
        process.ended().await;
        while let Some(ids) = soon(tasks.join_next()).await {
            answered.extend(ids.unwrap());
        }
        assert!(answered.len() > 10 * (round + 1), "{}", answered.len());
        // What was under way may be known as well; then it is known from now on.
        let process = on_disk.start(&[]);
        on_disk.is_up().await;
        let known = on_disk.known().await;
        let lost: Vec<_> = answered.difference(&known).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
        assert!(known.len() <= answered.len() + 4);
        answered = known;
        drop(process);
    }
}

/// Whether a registration was answered 200.
async fn raw_register(at: SocketAddr, said: &str) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let asked = async {
        let mut stream = tokio::net::TcpStream::connect(at).await?;
        let head = format!(
            "PUT /v1/agent/service/register HTTP/1.1\r\nhost: r\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            said.len()
        );
        stream.write_all((head + said).as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 200 "))
    };
    soon(asked).await.unwrap_or(false)
}

#[tokio::test]
async fn the_next_process_takes_the_registry_over_with_all_that_is_registered() {
    let backend = TestBackend::ok("a");
    let on_disk = OnDisk::new();
    let first = on_disk.start(&[]);
    on_disk.is_up().await;
    Registry::at(on_disk.at).await.register("a", backend.address(), "1h").await;
    let next = on_disk.start(&["--replace"]);
    first.ended().await;
    on_disk.is_up().await;
    assert_eq!(on_disk.known().await, BTreeSet::from(["a".to_owned()]));
    Registry::at(on_disk.at).await.register("b", backend.address(), "1h").await;
    let mut client = Client::connect(on_disk.listener).await;
    assert_eq!(client.get("/").await.status(), 200);
    drop(next);
}
