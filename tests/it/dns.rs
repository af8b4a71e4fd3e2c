//! Backends that stand in the configuration by their names: each address is one, and what a name server does on a bad day costs no request.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use isobar::telemetry::events::EventKind;
use isobar::{Isobar, Running};
use tokio::task::JoinSet;

use crate::harness::dns::{NXDOMAIN, REFUSED, SERVFAIL};
use crate::harness::{Client, Dns, Mood, Record, Scratch, TestBackend, eventually, free_address, soon};

/// Two workers and a route to `u`, which has these tables.
fn text(tables: &str) -> String {
    format!(
        "workers = 2\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[route]]\nupstream = \"u\"\n{tables}\n"
    )
}

/// One whose `u` has the backend `u.test`, or others, at a port, and these keys.
fn named(dns: &Dns, port: u16, keys: &str) -> String {
    text(&format!("[upstream.u]\nbackends = [\"u.test:{port}\"]\n{keys}\n{}", dns.table("")))
}

fn start(text: impl Into<String>) -> Running {
    Isobar::builder().config_text(text).start().unwrap()
}

async fn client(running: &Running) -> Client {
    Client::connect(running.listener_addresses()[0]).await
}

/// Backends at the same port of addresses of loopback, as the addresses of one name are.
fn siblings(backends: impl IntoIterator<Item = TestBackend>) -> (Vec<TestBackend>, u16) {
    let port = free_address().port();
    let at = |last: u8| SocketAddr::from(([127, 0, 77, last], port));
    let moved = backends.into_iter().zip(1..).map(|(backend, last)| backend.moved_to(at(last)));
    (moved.collect(), port)
}

fn ips<'b>(backends: impl IntoIterator<Item = &'b TestBackend>) -> Vec<IpAddr> {
    backends.into_iter().map(|it| it.address().ip()).collect()
}

/// The backends that `u` has, as they are shown.
fn backends(running: &Running) -> Vec<String> {
    let snapshot = running.handle().snapshot();
    let roster = snapshot.upstream("u").unwrap().roster();
    let mut backends: Vec<_> = roster.backends().iter().map(|it| it.state.address.to_string()).collect();
    backends.sort_unstable();
    backends
}

async fn has<'b>(running: &Running, expected: impl IntoIterator<Item = &'b TestBackend>) {
    let mut expected: Vec<_> = expected.into_iter().map(|it| format!("u.test@{}", it.address())).collect();
    expected.sort_unstable();
    eventually(|| backends(running) == expected).await;
}

async fn view(running: &Running) -> serde_json::Value {
    let mut admin = Client::connect(running.admin_address().unwrap()).await;
    admin.send("GET /upstreams/u HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    admin.response().await.json()
}

/// The conditions that the names' look-ups have been in, as they were told.
fn conditions(running: &Running) -> Vec<&'static str> {
    let told = running.handle().events().listen_after(0).since;
    let told = told.iter().filter_map(|event| match &event.kind {
        EventKind::Discovery { to, .. } => Some(*to),
        _ => None,
    });
    told.collect()
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

/// Clients that ask all the time, until [`Load::end`].
struct Load(JoinSet<usize>, Arc<AtomicBool>);

impl Load {
    fn on(running: &Running) -> Self {
        let (address, ends) = (running.listener_addresses()[0], Arc::new(AtomicBool::new(false)));
        let mut clients = JoinSet::new();
        for _ in 0..4 {
            clients.spawn(ask(address, Arc::clone(&ends)));
        }
        Self(clients, ends)
    }

    /// How many requests there were.
    async fn end(mut self) -> usize {
        self.1.store(true, SeqCst);
        let mut asked = 0;
        while let Some(done) = soon(self.0.join_next()).await {
            asked += done.unwrap();
        }
        asked
    }
}

#[tokio::test]
async fn each_address_of_a_name_is_a_backend_of_its_own() {
    let (pool, port) = siblings(["a", "b", "c"].map(TestBackend::ok));
    let dns = Dns::start().await;
    dns.set("u.test", ips(&pool));
    let config = named(&dns, port, "strategy = \"weighted_round_robin\"\nmax_in_flight = 7").replace(
        &format!("\"u.test:{port}\""),
        &format!("{{ address = \"u.test:{port}\", weight = 3, zone = \"z\" }}"),
    );
    let running = start(config);
    has(&running, &pool).await;
    let mut client = client(&running).await;
    let mut answers = Vec::new();
    for _ in 0..6 {
        answers.push(client.get("/").await.text().to_owned());
    }
    answers.sort();
    assert_eq!(answers, ["a", "a", "b", "b", "c", "c"]);
    // What the client calls the service reaches the backends, and no name of theirs.
    assert_eq!(pool[0].last_head().get("host"), Some("test"));
    let view = view(&running).await;
    for (backend, shown) in pool.iter().zip(view["backends"].as_array().unwrap()) {
        assert_eq!(shown["address"], format!("u.test@{}", backend.address()));
        assert_eq!((&shown["weight"], &shown["max_in_flight"]), (&3.into(), &7.into()), "{shown}");
        assert_eq!((&shown["zone"], &shown["source"]), (&"z".into(), &format!("dns u.test:{port}").into()));
    }
    assert_eq!((&view["sources"][1]["condition"], &view["sources"][1]["backends"]), (&"current".into(), &3.into()));
}

#[tokio::test]
async fn a_bad_day_of_the_name_server_costs_no_request() {
    let (pool, port) = siblings(["a", "b", "c", "d"].map(TestBackend::ok));
    let dns = Dns::start().await;
    dns.set("u.test", ips(&pool));
    let keys = "retries = 0\noutlier_detection = { enabled = false }";
    let config = named(&dns, port, keys).replace("[dns]", "[dns]\ntimeout = \"200ms\"\nattempts = 2\nmax_ttl = \"1s\"");
    let running = start(config);
    has(&running, &pool).await;
    let load = Load::on(&running);
    let mut told = vec!["current"];
    for (mood, state) in [
        (Mood::Silent, "failing"),
        (Mood::Code(SERVFAIL), "failing"),
        (Mood::Code(REFUSED), "failing"),
        (Mood::Code(NXDOMAIN), "holding"),
        (Mood::Empty, "holding"),
        (Mood::Garbage, "failing"),
        (Mood::WrongId, "failing"),
    ] {
        dns.is(mood);
        told.extend([state, "current"]);
        eventually(|| conditions(&running).last() == Some(&state)).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(backends(&running).len(), 4, "{mood:?}");
        dns.is(Mood::Good);
        eventually(|| conditions(&running).last() == Some(&"current")).await;
    }
    // Neither of these is bad: longer answers come by TCP, and one family is enough.
    let (_, by_tcp) = dns.asked();
    dns.is(Mood::Truncates);
    eventually(|| dns.asked().1 > by_tcp).await;
    dns.is(Mood::NoSix);
    for some in [&pool[..2], &pool[2..], &pool[..]] {
        dns.set("u.test", ips(some));
        has(&running, some).await;
    }
    assert_eq!(conditions(&running), told);
    let asked = load.end().await;
    let served: usize = pool.iter().map(TestBackend::requests).sum();
    assert_eq!(asked, served);
    assert!(asked > 500, "{asked}");
}

#[tokio::test]
async fn when_the_answer_changes_what_is_gone_is_drained_busy_or_not() {
    let (pool, port) =
        siblings([TestBackend::ok("a"), TestBackend::slow("b", Duration::from_millis(400)), TestBackend::upgrading()]);
    let dns = Dns::start().await;
    dns.set("u.test", ips(&pool[..1]));
    let running = start(format!("drain_limit = \"700ms\"\n{}", named(&dns, port, "")));
    has(&running, &pool[..1]).await;
    let mut first = client(&running).await;
    assert_eq!(first.get("/").await.text(), "a");
    assert_eq!(pool[0].open(), 1);
    dns.set("u.test", ips(&pool[1..2]));
    has(&running, &pool[1..2]).await;
    eventually(|| pool[0].open() == 0).await;
    // One that is busy ends what it does.
    first.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    eventually(|| pool[1].requests() == 1).await;
    dns.set("u.test", ips(&pool[2..]));
    assert_eq!(first.response().await.text(), "b");
    eventually(|| pool[1].open() == 0).await;
    has(&running, &pool[2..]).await;
    // And one that never ends is cut.
    let mut tunnel = client(&running).await;
    tunnel.send("GET / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
    eventually(|| pool[2].requests() == 1).await;
    dns.set("u.test", ips(&pool[..1]));
    has(&running, &pool[..1]).await;
    let begun = Instant::now();
    eventually(|| pool[2].open() == 0).await;
    assert!(begun.elapsed() >= Duration::from_millis(500), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn the_first_look_up_holds_up_no_start_and_no_stop_and_requests_wait_for_it_for_a_moment() {
    let (pool, port) = siblings([TestBackend::ok("a")]);
    let dns = Dns::start().await;
    dns.set("u.test", ips(&pool));
    dns.is(Mood::Silent);
    let begun = Instant::now();
    let running = start(named(&dns, port, ""));
    let mut early = client(&running).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    // An answer that does not come in time is a 503, and no reason for anything else.
    assert_eq!(early.get("/").await.status(), 503);
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(900) && waited < Duration::from_secs(5), "{waited:?}");
    early.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    dns.is(Mood::Good);
    // Asked again within a second, as one packet may be lost.
    let response = early.response().await;
    assert!([200, 503].contains(&response.status()), "{}", response.status());
    has(&running, &pool).await;
    assert_eq!(early.get("/").await.text(), "a");
    drop(early);
    // Once something is known, nothing waits.
    dns.is(Mood::Silent);
    let other = named(&dns, port, "").replace("u.test", "v.test");
    soon(running.handle().apply_text(other)).await.unwrap();
    let begun = Instant::now();
    running.stop(Duration::from_secs(20)).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_request_that_comes_before_the_first_answer_is_served_when_that_is_there() {
    let (pool, port) = siblings([TestBackend::ok("a")]);
    let dns = Dns::start().await;
    for _ in 0..10 {
        dns.set("u.test", ips(&pool));
        let running = start(named(&dns, port, ""));
        // In the same moment, mostly before the name server was asked.
        assert_eq!(client(&running).await.get("/").await.status(), 200);
    }
    dns.forget("u.test");
    let running = start(named(&dns, port, ""));
    let begun = Instant::now();
    eventually(|| conditions(&running) == ["failing"]).await;
    assert_eq!(client(&running).await.get("/").await.status(), 503);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let view = view(&running).await;
    assert_eq!(view["sources"][1]["error"], "there is no such name (NXDOMAIN)");
}

#[tokio::test]
async fn a_dead_address_costs_one_attempt() {
    let (mut pool, port) = siblings(["a", "b"].map(TestBackend::ok));
    pool[0].kill();
    let dns = Dns::start().await;
    dns.set("u.test", ips(&pool));
    let running = start(named(&dns, port, "outlier_detection = { enabled = false }"));
    has(&running, &pool).await;
    let load = Load::on(&running);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asked = load.end().await;
    assert_eq!(pool[1].requests(), asked);
    // One that comes after another attempt says so.
    let retried =
        pool[1].heads().iter().filter(|it| it.get("x-isobar-attempt").is_some_and(|number| number != "2")).count();
    assert_eq!(retried, 0);
}

#[tokio::test]
async fn aliases_are_followed_and_hundreds_of_addresses_taken() {
    let dns = Dns::start().await;
    let backend = TestBackend::ok("a");
    let last = |n: u16| Ipv4Addr::from([10, 77, (n >> 8) as u8, n as u8]);
    dns.set("real.test", (0..300).map(last));
    dns.say("other.test", [Record::Alias("real.test")]);
    dns.say("u.test", [Record::Alias("other.test")]);
    let running = start(named(&dns, backend.address().port(), ""));
    eventually(|| backends(&running).len() == 300).await;
    assert!(backends(&running).contains(&format!("u.test@10.77.1.43:{}", backend.address().port())));
    let (_, by_tcp) = dns.asked();
    assert!(by_tcp > 0);
    dns.set("real.test", [backend.address().ip()]);
    has(&running, [&backend]).await;
    assert_eq!(client(&running).await.get("/").await.text(), "a");
    // A name that is completed by the domain of the search list.
    dns.set("short.search.test", [backend.address().ip()]);
    let short = named(&dns, backend.address().port(), "").replace("u.test:", "short:");
    soon(running.handle().apply_text(short)).await.unwrap();
    eventually(|| backends(&running) == [format!("short@{}", backend.address())]).await;
}

#[tokio::test]
async fn a_name_server_is_asked_no_more_often_than_the_shortest_ttl_says() {
    let (pool, port) = siblings([TestBackend::ok("a")]);
    let dns = Dns::start().await;
    dns.ttl(0);
    dns.set("u.test", ips(&pool));
    let running = start(named(&dns, port, "").replace("[dns]", "[dns]\nmin_ttl = \"200ms\""));
    has(&running, &pool).await;
    let before = dns.asked().0;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asked = dns.asked().0 - before;
    assert!((4..=14).contains(&asked), "{asked} questions, two at a time, each 200 ms");
    dns.ttl(3600);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = dns.asked().0;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(dns.asked().0, before);
}

#[tokio::test]
async fn services_are_tiers_and_weights() {
    let pool = ["a", "b", "c"].map(TestBackend::ok);
    let dns = Dns::start().await;
    let service = |backend: &TestBackend, priority, weight, target: &str| {
        dns.set(target, [backend.address().ip()]);
        Record::Service { priority, weight, port: backend.address().port(), target: target.into() }
    };
    let records = [
        service(&pool[0], 10, 3, "a.test"),
        service(&pool[1], 10, 1, "b.test"),
        service(&pool[2], 20, 1, "c.test"),
        // Decidedly not there (RFC 2782).
        Record::Service { priority: 0, weight: 0, port: 0, target: ".".into() },
    ];
    dns.say("_http._tcp.test", records.clone());
    let table = "[upstream.u]\nstrategy = \"weighted_round_robin\"\n[[upstream.u.discovery]]\ndns = { name = \"_http._tcp.test\", records = \"srv\" }";
    let running = start(text(&format!("{table}\n{}", dns.table(""))));
    let shown = |at: usize, name: &str| format!("{name}@{}", pool[at].address());
    eventually(|| backends(&running) == [shown(0, "a.test"), shown(1, "b.test"), shown(2, "c.test")]).await;
    let mut client = client(&running).await;
    for _ in 0..8 {
        assert_eq!(client.get("/").await.status(), 200);
    }
    assert_eq!(pool.each_ref().map(TestBackend::requests), [6, 2, 0]);
    // Of a target that the name server does not know at the moment, what is known stays.
    dns.say("_http._tcp.test", records[1..].to_vec());
    eventually(|| backends(&running).len() == 2).await;
    dns.say("_http._tcp.test", []);
    eventually(|| conditions(&running).last() == Some(&"holding")).await;
    assert_eq!(client.get("/").await.text(), "b");
}

#[tokio::test]
async fn names_that_other_sources_say_are_looked_up_too_and_believed_less() {
    let (pool, port) = siblings(["a", "b"].map(TestBackend::ok));
    let dns = Dns::start().await;
    dns.set("u.test", ips(&pool).into_iter().chain([Ipv4Addr::new(169, 254, 169, 254).into()]));
    let dir = Scratch::new();
    let list = |names: &str| format!("{{\"backends\": [{names}]}}");
    let path = dir.write(
        "u.json",
        list(&format!("{{\"address\": \"u.test:{port}\", \"weight\": 9, \"labels\": {{\"v\": \"2\"}}}}")),
    );
    let table = format!("[upstream.u]\n[[upstream.u.discovery]]\nfile = {{ path = {path:?}, interval = \"20ms\" }}");
    let running = start(text(&format!("{table}\n{}", dns.table(""))));
    has(&running, &pool).await;
    let shown = view(&running).await;
    assert_eq!(
        (&shown["backends"][1]["weight_in_file"], &shown["backends"][1]["labels"]["v"]),
        (&9.into(), &"2".into())
    );
    // Names come and go with what the source says.
    dns.set("v.test", ips(&pool[..1]));
    dir.write("u.json", list(&format!("\"v.test:{port}\"")));
    eventually(|| backends(&running) == [format!("v.test@{}", pool[0].address())]).await;
    let before = dns.asked().0;
    dir.write("u.json", list(""));
    eventually(|| backends(&running).is_empty()).await;
    dns.set("v.test", ips(&pool));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(dns.asked().0 <= before + 2, "a name that nothing says is not looked up");
}

#[tokio::test]
async fn a_start_serves_from_the_disk_while_no_name_server_answers() {
    let (pool, port) = siblings(["a", "b"].map(TestBackend::ok));
    let dns = Dns::start().await;
    dns.set("u.test", ips(&pool));
    let dir = Scratch::new();
    let config = format!("state_dir = {:?}\n{}", dir.path("state"), named(&dns, port, ""));
    let running = start(config.clone());
    has(&running, &pool).await;
    running.stop(Duration::from_secs(1)).await;
    dns.is(Mood::Silent);
    let running = start(config);
    assert_eq!(backends(&running).len(), 2);
    assert_eq!(client(&running).await.get("/").await.status(), 200);
    // A name server that has lost its zone takes nothing away at once.
    dns.is(Mood::Code(NXDOMAIN));
    eventually(|| conditions(&running).last() == Some(&"holding")).await;
    assert_eq!(backends(&running).len(), 2);
}

#[tokio::test]
async fn what_a_name_server_denies_is_gone_once_its_checks_fail() {
    let (mut pool, port) = siblings(["a", "b"].map(TestBackend::ok));
    let dns = Dns::start().await;
    dns.set("u.test", ips(&pool));
    let check = "health_check = { interval = \"20ms\", interval_in_doubt = \"20ms\", unhealthy_after = 1 }";
    let running = start(named(&dns, port, check));
    has(&running, &pool).await;
    eventually(|| pool[0].requests() > 0).await;
    // It is checked by its name.
    assert_eq!(pool[0].last_head().get("host"), Some(&*format!("u.test:{port}")));
    dns.forget("u.test");
    eventually(|| conditions(&running).last() == Some(&"holding")).await;
    assert_eq!(backends(&running).len(), 2);
    pool[0].kill();
    has(&running, &pool[1..]).await;
    assert_eq!(client(&running).await.get("/").await.text(), "b");
}

#[tokio::test]
async fn a_reload_keeps_what_is_known_of_names() {
    let (pool, port) = siblings(["a", "b"].map(TestBackend::ok));
    let dns = Dns::start().await;
    dns.set("u.test", ips(&pool));
    let running = start(named(&dns, port, ""));
    has(&running, &pool).await;
    dns.is(Mood::Silent);
    // Other keys of the upstream, other keys of the look-ups, another name beside it.
    let other = named(&dns, port, "connect_timeout = \"1s\"");
    soon(running.handle().apply_text(other.clone())).await.unwrap();
    has(&running, &pool).await;
    let slower = other.replace("[dns]", "[dns]\ntimeout = \"1s\"");
    soon(running.handle().apply_text(slower.clone())).await.unwrap();
    has(&running, &pool).await;
    let two = slower.replace(&format!("\"u.test:{port}\""), &format!("\"u.test:{port}\", \"v.test:{port}\""));
    soon(running.handle().apply_text(two)).await.unwrap();
    has(&running, &pool).await;
    assert_eq!(client(&running).await.get("/").await.status(), 200);
    // A name that is no longer there takes its addresses along.
    soon(running.handle().apply_text(slower.replace("u.test", "w.test"))).await.unwrap();
    assert_eq!(backends(&running), [""; 0]);
}

#[tokio::test]
async fn a_backend_of_a_name_is_found_by_hand_by_both() {
    let (pool, port) = siblings(["a", "b"].map(TestBackend::ok));
    let dns = Dns::start().await;
    dns.set("u.test", ips(&pool));
    let running = start(named(&dns, port, ""));
    has(&running, &pool).await;
    let pull = async |address: String| {
        let mut admin = Client::connect(running.admin_address().unwrap()).await;
        admin
            .send(format!(
                "POST /upstreams/u/backends/{address}/drain HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n"
            ))
            .await;
        admin.response().await.status()
    };
    // Which of the two is not said.
    assert_eq!(pull(format!("u.test:{port}")).await, 404);
    assert_eq!(pull(format!("u.test@{}", pool[0].address())).await, 200);
    let mut client = client(&running).await;
    for _ in 0..4 {
        assert_eq!(client.get("/").await.text(), "b");
    }
    dns.set("u.test", ips(&pool[1..]));
    has(&running, &pool[1..]).await;
    assert_eq!(pull(format!("u.test:{port}")).await, 200);
}
