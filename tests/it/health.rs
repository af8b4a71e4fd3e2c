//! Active health checks: who is well gets requests, who is not gets none.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use isobar::backend::health::Verdict;
use isobar::telemetry::events::EventKind;
use serde_json::Value;

use crate::harness::{Client, Keys, PATIENCE, TestBackend, TestProxy, eventually};

/// One upstream `u` whose backends are checked often, with these keys of the check. A check that passes may take as long as
/// the interval, which allows for a busy machine; one that contradicts the verdict is soon followed by others.
fn checked(pool: &[&TestBackend], keys: &str) -> String {
    let tables = format!("[upstream.u.health_check]\ninterval = \"500ms\"\ninterval_in_doubt = \"20ms\"\n{keys}");
    Keys { upstream: "retries = 0", tables: &tables, ..Keys::default() }.text(pool)
}

fn verdict(proxy: &TestProxy, backend: &TestBackend) -> Verdict {
    proxy.state("u", backend).health.verdict()
}

/// Addresses that requests may go to.
fn ready(proxy: &TestProxy) -> Vec<String> {
    let roster = proxy.snapshot().upstream("u").expect("upstream u").roster();
    roster.ready().iter().map(|backend| backend.state.address.to_string()).collect()
}

fn names(pool: &[&TestBackend]) -> Vec<String> {
    pool.iter().map(|backend| backend.address().to_string()).collect()
}

/// Waits until exactly these get requests.
async fn ready_are(proxy: &TestProxy, pool: &[&TestBackend]) {
    eventually(|| ready(proxy) == names(pool)).await;
}

/// Checks that were made of a backend so far, passed and failed.
fn checks(proxy: &TestProxy, backend: &TestBackend) -> (u64, u64) {
    let state = proxy.state("u", backend);
    (state.health.passed.get(), state.health.failed.get())
}

/// Waits until so many more checks of the backend are over.
async fn more_checks(proxy: &TestProxy, backend: &TestBackend, more: u64) {
    let count = || {
        let (passed, failed) = checks(proxy, backend);
        passed + failed
    };
    let target = count() + more;
    eventually(|| count() >= target).await;
}

/// Answers requests with its name, and checks (by their path) with a status that the test sets.
fn steered(name: &'static str) -> (TestBackend, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(200));
    let told = Arc::clone(&status);
    let backend = TestBackend::scripted(async move |peer| {
        while let Some(message) = peer.request().await {
            if message.head.target().starts_with("/health") {
                peer.respond(&format!("{} Told", told.load(SeqCst)), "status: told").await;
            } else {
                peer.respond("200 OK", name).await;
            }
        }
    });
    (backend, status)
}

async fn upstreams(proxy: &TestProxy) -> Value {
    let mut client = Client::connect(proxy.admin_address()).await;
    client.send("GET /upstreams HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    client.response().await.json()
}

#[tokio::test]
async fn a_dead_backend_leaves_the_rotation_and_comes_back() {
    let (a, mut b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let proxy = TestProxy::with_config(checked(&[&a, &b], "") + "\n[admin]\naddress = \"127.0.0.1:0\"\n").await;
    let mut events = proxy.handle().events().listen();
    more_checks(&proxy, &b, 2).await;
    assert_eq!(ready(&proxy), names(&[&a, &b]));

    b.kill();
    ready_are(&proxy, &[&a]).await;
    for _ in 0..10 {
        assert_eq!(proxy.get("/").await.text(), "a");
    }
    assert_eq!(verdict(&proxy, &b), Verdict::Unhealthy);
    let seen = upstreams(&proxy).await;
    let shown = &seen["upstreams"][0]["backends"][1];
    assert_eq!((&shown["ready"], &shown["readiness"]), (&false.into(), &"unhealthy".into()));
    let health = &shown["health"];
    assert_eq!((&health["verdict"], &health["streak"]["result"]), (&"unhealthy".into(), &"failed".into()));
    assert!(health["streak"]["length"].as_u64() >= Some(3), "{health}");
    assert_eq!(health["last_check"]["failure"], "connection refused");
    assert!(health["last_check"]["at"].as_str().unwrap().starts_with("20"), "{health}");

    b.restart();
    ready_are(&proxy, &[&a, &b]).await;
    let before = b.requests();
    eventually(|| b.requests() > before).await;

    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        let EventKind::Health { backend, from, to, evidence, .. } = &event.kind else { continue };
        assert_eq!(backend.to_string(), b.address().to_string());
        told.push((*from, *to, evidence.clone()));
    }
    let [(h, u, fell), (u2, h2, rose)] = &told[..] else { panic!("{told:?}") };
    assert_eq!((*h, *u, *u2, *h2), ("healthy", "unhealthy", "unhealthy", "healthy"));
    assert!(fell.starts_with("3 checks in a row failed; the last: connection refused after "), "{fell}");
    assert!(rose.starts_with("2 checks in a row passed; the last after "), "{rose}");
}

#[tokio::test]
async fn a_check_is_an_honest_request_over_a_connection_of_its_own() {
    let backend = TestBackend::ok("a");
    let keys = "path = \"/health?deep=1\"\nheaders = { x-check = \"1\" }";
    let proxy = TestProxy::with_config(checked(&[&backend], keys)).await;
    more_checks(&proxy, &backend, 2).await;
    let head = backend.last_head();
    assert_eq!(head.line, "GET /health?deep=1 HTTP/1.1");
    let agent = format!("isobar/{} health-check", env!("CARGO_PKG_VERSION"));
    for (name, value) in [
        ("host", &*backend.address().to_string()),
        ("user-agent", &agent),
        ("connection", "close"),
        ("accept", "*/*"),
        ("x-check", "1"),
    ] {
        assert_eq!(head.all(name), [value], "{name}");
    }
    assert_eq!(head.get("content-length"), None);
    eventually(|| backend.connections() == backend.requests()).await;
    eventually(|| backend.open() <= 1).await;

    let keys = "method = \"POST\"\nhost = \"users.example.com\"\nheaders = { user-agent = \"mine\" }";
    proxy.apply(checked(&[&backend], keys)).await.unwrap();
    eventually(|| backend.last_head().method() == "POST").await;
    let head = backend.last_head();
    assert_eq!((head.get("host"), head.all("user-agent")), (Some("users.example.com"), vec!["mine"]));
    assert_eq!(head.get("content-length"), Some("0"));
    let (passed, _) = checks(&proxy, &backend);
    eventually(|| checks(&proxy, &backend).0 > passed).await;
    assert_eq!(checks(&proxy, &backend).1, 0);
}

#[tokio::test]
async fn a_slow_backend_is_out_while_it_is_too_slow() {
    let slow = Arc::new(AtomicBool::new(true));
    let is_slow = Arc::clone(&slow);
    let backend = TestBackend::scripted(async move |peer| {
        while peer.request().await.is_some() {
            if is_slow.load(SeqCst) {
                return peer.gone().await;
            }
            peer.respond("200 OK", "slow").await;
        }
    });
    let proxy = TestProxy::with_config(checked(&[&backend], "timeout = \"20ms\"")).await;
    ready_are(&proxy, &[]).await;
    let (_, last) = proxy.state("u", &backend).health.look();
    assert_eq!(last.unwrap().failure.as_deref(), Some("timed out waiting for the response"));
    eventually(|| backend.open() <= 1).await;
    slow.store(false, SeqCst);
    // On a busy machine an honest answer takes longer than 20 ms too.
    proxy.apply(checked(&[&backend], "")).await.unwrap();
    ready_are(&proxy, &[&backend]).await;
}

#[tokio::test]
async fn the_status_decides() {
    let ((a, status), (b, _)) = (steered("a"), steered("b"));
    let proxy = TestProxy::with_config(checked(&[&a, &b], "path = \"/health\"\nstatuses = [200, \"300-399\"]")).await;
    for (answer, is_ready) in [(500, false), (302, true), (204, false), (200, true)] {
        status.store(answer, SeqCst);
        let pool = if is_ready { vec![&a, &b] } else { vec![&b] };
        ready_are(&proxy, &pool).await;
    }
    status.store(204, SeqCst);
    ready_are(&proxy, &[&b]).await;
    let (_, last) = proxy.state("u", &a).health.look();
    assert_eq!(last.unwrap().failure.as_deref(), Some("status 204"));
}

#[tokio::test]
async fn the_body_decides_where_it_is_asked_about() {
    // Endless, so that reading it to its end would never end; and what is looked for late.
    let endless = TestBackend::scripted(async |peer| {
        while peer.request().await.is_some() {
            peer.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            for _ in 0..200 {
                peer.write("400\r\n").await;
                peer.write(vec![b'.'; 1024]).await;
                peer.write("\r\n").await;
            }
            peer.write("2\r\nup\r\n").await;
        }
    });
    let (up, down) = (TestBackend::ok("{ \"status\": \"up\" }"), TestBackend::ok("{ \"status\": \"down\" }"));
    let proxy = TestProxy::with_config(checked(&[&up, &down, &endless], "body = 'up'\nbody_limit = \"64KiB\"")).await;
    ready_are(&proxy, &[&up]).await;
    let failure = |backend| proxy.state("u", backend).health.look().1.unwrap().failure.unwrap();
    assert_eq!(failure(&down), "pattern not found in 20 bytes of the body");
    eventually(|| failure(&endless) == "pattern not found in 65536 bytes of the body").await;
    assert_eq!(checks(&proxy, &up).1, 0);
}

#[tokio::test]
async fn a_separate_port_is_asked_in_place_of_the_backends_own() {
    let ((backend, _), (sidecar, status)) = (steered("a"), steered("sidecar"));
    let keys = format!("path = \"/health\"\nport = {}", sidecar.address().port());
    let proxy = TestProxy::with_config(checked(&[&backend], &keys)).await;
    eventually(|| checks(&proxy, &backend).0 >= 2).await;
    assert_eq!(backend.connections(), 0);
    assert_eq!(sidecar.last_head().get("host"), Some(&*sidecar.address().to_string()));
    status.store(503, SeqCst);
    ready_are(&proxy, &[]).await;
}

#[tokio::test]
async fn tcp_only_connects() {
    let (mut a, refusing) =
        (TestBackend::fixed("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"), TestBackend::refusing());
    let proxy = TestProxy::with_config(checked(&[&a, &refusing], "type = \"tcp\"")).await;
    ready_are(&proxy, &[&a]).await;
    eventually(|| a.connections() >= 3).await;
    assert_eq!((a.requests(), checks(&proxy, &a).1), (0, 0));
    a.kill();
    ready_are(&proxy, &[]).await;
}

#[tokio::test]
async fn first_checks_of_many_are_spread() {
    const EACH: u32 = 30;
    // A machine that stands still for a moment lets checks that were spread arrive together: one time of several must show it.
    // Checks that are not spread never look like it.
    let mut seen = Vec::new();
    for _ in 0..5 {
        let times = Arc::new(Mutex::new(Vec::new()));
        let pool: Vec<_> = (0..EACH)
            .map(|_| {
                let times = Arc::clone(&times);
                TestBackend::scripted(async move |peer| {
                    while peer.request().await.is_some() {
                        times.lock().unwrap().push((peer.number, Instant::now()));
                        peer.respond("200 OK", "a").await;
                    }
                })
            })
            .collect();
        let text = Keys { tables: "[upstream.u.health_check]\ninterval = \"1s\"\n", ..Keys::default() };
        let proxy = TestProxy::with_config(text.text(&pool.iter().collect::<Vec<_>>())).await;
        let first = || {
            let times = times.lock().unwrap();
            times.iter().filter(|(number, _)| *number == 0).map(|(_, at)| *at).collect::<Vec<_>>()
        };
        eventually(|| first().len() == EACH as usize && ready(&proxy).len() == EACH as usize).await;
        let mut first = first();
        first.sort_unstable();
        let tenth = Duration::from_millis(100);
        // Most of a quarter of them cannot fall into a tenth of the time unless they were meant to.
        let most =
            first.iter().map(|from| first.iter().filter(|at| **at >= *from && **at - *from < tenth).count()).max();
        let spread = first[first.len() - 1] - first[0];
        if spread > Duration::from_millis(800) && most < Some(EACH as usize / 2) {
            return;
        }
        seen.push((spread, most));
    }
    panic!("all at once: {seen:?}");
}

#[tokio::test]
async fn verdicts_and_the_pace_outlive_a_file_that_changes_all_the_time() {
    let ((a, _), (b, status)) = (steered("a"), steered("b"));
    status.store(500, SeqCst);
    // Now and then another weight, which builds the upstream anew.
    let version = |n: usize| {
        let mut text = checked(&[&a, &b], "path = \"/health\"");
        write!(text, "\n[[route]]\npath = \"/{n}\"\nrespond = {{ status = 204 }}\n").unwrap();
        text.replace("retries = 0", &format!("retries = {}", n % 3))
    };
    let proxy = TestProxy::with_config(version(0)).await;
    ready_are(&proxy, &[&a]).await;
    let changes = proxy.state("u", &b).health.changes.get();
    let (before, start) = ((checks(&proxy, &a).0, checks(&proxy, &b).1), Instant::now());
    for n in 1..=10 {
        proxy.apply(version(n)).await.unwrap();
        assert_eq!(ready(&proxy), names(&[&a]), "at once, and not after a check");
        assert_eq!(proxy.get("/").await.text(), "a");
        tokio::time::sleep(Duration::from_millis(300) / 10).await;
    }
    more_checks(&proxy, &a, 2).await;
    more_checks(&proxy, &b, 2).await;
    assert_eq!(proxy.state("u", &b).health.changes.get(), changes, "nothing was turned");
    let made = (checks(&proxy, &a).0 - before.0, checks(&proxy, &b).1 - before.1);
    let allowed = start.elapsed().as_millis() as u64 / 450 + 2;
    assert!(made.0 <= allowed && made.1 <= allowed, "reloads multiply checks: {made:?} made, {allowed} allowed");
    // And it still comes back, while reloads go on.
    status.store(200, SeqCst);
    let mut n = 11;
    while ready(&proxy) != names(&[&a, &b]) {
        proxy.apply(version(n)).await.unwrap();
        n += 1;
        assert!(n < 5000);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

#[tokio::test]
async fn settings_that_change_all_the_time_do_not_put_checks_off() {
    let (a, _) = steered("a");
    let version = |n: usize| checked(&[&a], &format!("path = \"/health\"\nunhealthy_after = {}", 3 + n % 2));
    let proxy = TestProxy::with_config(version(0)).await;
    let start = Instant::now();
    let mut n = 0;
    while a.requests() < 4 {
        n += 1;
        proxy.apply(version(n)).await.unwrap();
        assert!(start.elapsed() < PATIENCE, "no check is made for reloads");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(n > 4, "{n} reloads: hardly any between two checks");
    assert_eq!(ready(&proxy), names(&[&a]));
}

#[tokio::test]
async fn other_settings_reach_checks_that_run_and_keep_the_verdict() {
    let (a, status) = steered("a");
    let proxy = TestProxy::with_config(checked(&[&a], "path = \"/health\"")).await;
    status.store(500, SeqCst);
    ready_are(&proxy, &[]).await;
    // 500 is good now, but it takes a hundred of them.
    proxy.apply(checked(&[&a], "path = \"/health\"\nstatuses = [500]\nhealthy_after = 100")).await.unwrap();
    eventually(|| checks(&proxy, &a).0 > 3).await;
    assert_eq!(verdict(&proxy, &a), Verdict::Unhealthy, "the verdict stays");
    assert_eq!(ready(&proxy), [""; 0]);
    let before = a.requests();
    proxy.apply(checked(&[&a], "path = \"/health\"\nstatuses = [500]\nhealthy_after = 2")).await.unwrap();
    ready_are(&proxy, &[&a]).await;
    assert!(a.requests() >= before + 2, "the streak began anew");
}

#[tokio::test]
async fn without_the_check_all_count_as_healthy_again() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::refusing());
    let with = checked(&[&a, &b], "");
    let proxy = TestProxy::with_config(with.clone()).await;
    ready_are(&proxy, &[&a]).await;
    for without in [Keys::default().text(&[&a, &b]), with.replace("interval =", "enabled = false\ninterval =")] {
        proxy.apply(without).await.unwrap();
        assert_eq!(ready(&proxy), names(&[&a, &b]));
        assert_eq!(verdict(&proxy, &b), Verdict::Healthy);
        assert_eq!(proxy.state("u", &b).health.look().1, None);
        proxy.apply(with.clone()).await.unwrap();
        ready_are(&proxy, &[&a]).await;
    }
    // Nobody asks on behalf of an upstream that is not checked.
    proxy.apply(Keys::default().text(&[&a, &b])).await.unwrap();
    eventually(|| a.open() == 0).await;
    let before = checks(&proxy, &a);
    proxy.get("/").await;
    assert_eq!(checks(&proxy, &a), before);
}

#[tokio::test]
async fn one_that_joins_waits_for_its_first_check() {
    let ((a, _), (b, status)) = (steered("a"), steered("b"));
    status.store(500, SeqCst);
    let keys = "path = \"/health\"";
    let proxy = TestProxy::with_config(checked(&[&a], keys)).await;
    assert_eq!(proxy.get("/").await.text(), "a", "those that an upstream begins with are used at once");
    proxy.apply(checked(&[&a, &b], keys)).await.unwrap();
    for _ in 0..6 {
        assert_eq!(proxy.get("/").await.text(), "a");
    }
    eventually(|| verdict(&proxy, &b) == Verdict::Unhealthy).await;
    status.store(200, SeqCst);
    ready_are(&proxy, &[&a, &b]).await;
    assert!(b.heads().iter().all(|head| head.target() == "/health"));
}

#[tokio::test]
async fn where_all_are_unhealthy_they_are_asked_all_the_same_unless_panic_is_off() {
    let (a, status) = steered("a");
    let text = checked(&[&a], "path = \"/health\"");
    let proxy = TestProxy::with_config(text.clone()).await;
    assert_eq!(proxy.get("/").await.status(), 200);
    status.store(500, SeqCst);
    ready_are(&proxy, &[]).await;
    assert_eq!(proxy.get("/").await.status(), 200, "checks may err");
    proxy.apply(text.replace("retries = 0", "retries = 0\npanic_threshold = 0")).await.unwrap();
    assert_eq!(proxy.get("/").await.status(), 503);
    status.store(200, SeqCst);
    ready_are(&proxy, &[&a]).await;
    assert_eq!(proxy.get("/").await.status(), 200);
}

#[tokio::test]
async fn a_backend_that_breaks_off_is_unhealthy() {
    for (bytes, words) in [("", "connection closed"), ("HTTP/9.9 nothing\r\n\r\n", "invalid HTTP version")] {
        let backend = TestBackend::scripted(async move |peer| {
            if peer.request().await.is_some() {
                peer.write(bytes).await;
            }
        });
        let proxy = TestProxy::with_config(checked(&[&backend], "")).await;
        ready_are(&proxy, &[]).await;
        let failure = proxy.state("u", &backend).health.look().1.unwrap().failure.unwrap();
        assert!(failure.starts_with(words), "{failure}");
    }
}
