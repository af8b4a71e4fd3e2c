//! Outlier detection: who fails or is slow is thrown out, and comes back little by little.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use isobar::telemetry::events::EventKind;
use serde_json::Value;

use crate::harness::{After, Client, Keys, TestBackend, TestProxy, eventually};

/// Short settings: an interval is over soon, an ejection lasts half a second and is as long as it says.
const SHORT: &str = "interval = \"200ms\"\nwindow = \"2s\"\nejection_time = \"500ms\"\njitter_percent = 0\n";

/// One upstream `u` with these keys of outlier detection, and no retries unless `upstream` says so.
fn config(pool: &[&TestBackend], upstream: &str, detection: &str) -> String {
    let tables = format!(
        "[upstream.u.outlier_detection]\n{detection}\n[admin]\naddress = \"127.0.0.1:0\"\n[log]\nlevel = \"off\"\n"
    );
    Keys { upstream, tables: &tables, ..Keys::default() }.text(pool)
}

/// Answers with a status and after a time in ms that the test sets.
struct Steered {
    backend: TestBackend,
    status: Arc<AtomicU16>,
    delay_ms: Arc<AtomicU64>,
}

impl Steered {
    fn new() -> Self {
        let (status, delay_ms) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicU64::new(0)));
        let told = (Arc::clone(&status), Arc::clone(&delay_ms));
        let backend = TestBackend::scripted(async move |peer| {
            while peer.request().await.is_some() {
                match told.1.load(SeqCst) {
                    0 => {}
                    ms => tokio::time::sleep(Duration::from_millis(ms)).await,
                }
                peer.respond(&format!("{} Told", told.0.load(SeqCst)), "").await;
            }
        });
        Self { backend, status, delay_ms }
    }

    fn answers(&self, status: u16) {
        self.status.store(status, SeqCst);
    }

    fn takes(&self, ms: u64) {
        self.delay_ms.store(ms, SeqCst);
    }
}

fn ejected(proxy: &TestProxy, backend: &TestBackend) -> bool {
    proxy.state("u", backend).outlier.history().is_ejected()
}

fn ready(proxy: &TestProxy) -> usize {
    proxy.snapshot().upstream("u").expect("upstream u").roster().ready().len()
}

/// Sends so many requests, one after the other, and counts the answers 5xx.
async fn send(proxy: &TestProxy, requests: usize) -> usize {
    let mut client = proxy.client().await;
    let mut failed = 0;
    for _ in 0..requests {
        failed += usize::from(client.get("/").await.status() >= 500);
    }
    failed
}

/// Sends requests until something has come about.
async fn send_until(proxy: &TestProxy, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "it does not come to that");
        send(proxy, 1).await;
    }
}

async fn shown(proxy: &TestProxy) -> Value {
    let mut client = Client::connect(proxy.admin_address()).await;
    client.send("GET /upstreams HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    client.response().await.json()["upstreams"][0].clone()
}

#[tokio::test]
async fn five_gateway_errors_eject_and_it_comes_back_little_by_little() {
    let (good, bad) = (Steered::new(), Steered::new());
    let proxy = TestProxy::with_config(config(&[&good.backend, &bad.backend], "retries = 0", SHORT)).await;
    let mut events = proxy.handle().events().listen();
    bad.answers(503);
    // By turns, so the bad one has its fifth with the tenth.
    assert_eq!(send(&proxy, 10).await, 5);
    eventually(|| ready(&proxy) == 1).await;
    let seen = shown(&proxy).await;
    let ejection = &seen["backends"][1]["ejection"];
    assert_eq!((&ejection["reason"], &ejection["by"]), (&"gateway_errors".into(), &"detection".into()));
    assert_eq!(ejection["evidence"], "5 gateway errors in succession");
    assert!(ejection["until"].as_str() > ejection["since"].as_str(), "{ejection}");
    assert_eq!(
        (&seen["backends"][1]["readiness"], &seen["backends"][1]["times_ejected"]),
        (&"ejected".into(), &1.into())
    );
    let asked = bad.backend.requests();
    assert_eq!(send(&proxy, 20).await, 0);
    assert_eq!(bad.backend.requests(), asked);

    bad.answers(200);
    eventually(|| ready(&proxy) == 2).await;
    let seen = shown(&proxy).await;
    let back = &seen["backends"][1];
    assert_eq!((&back["slow_start_percent"], &back["ejection"]), (&10.into(), &Value::Null), "{back}");
    assert_eq!(seen["sets"][0]["backends"][1]["weight"], 10);
    assert_eq!(seen["sets"][0]["backends"][0]["weight"], 100);

    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        match &event.kind {
            EventKind::Ejected { reason, times, lasts, .. } => {
                told.push(format!("ejected {reason} {times} {lasts:?}"));
            }
            EventKind::Unejected { after, evidence, .. } => {
                assert!(*after >= Duration::from_millis(500), "{after:?}");
                told.push(format!("back: {evidence}"));
            }
            _ => {}
        }
    }
    assert_eq!(told, ["ejected gateway_errors 1 Some(500ms)", "back: its time is over"]);
}

#[tokio::test]
async fn the_second_ejection_is_longer() {
    let (good, bad) = (Steered::new(), Steered::new());
    bad.answers(502);
    let upstream = "retries = 0\nslow_start = { enabled = false }";
    let proxy = TestProxy::with_config(config(&[&good.backend, &bad.backend], upstream, SHORT)).await;
    let mut events = proxy.handle().events().listen();
    let mut lasted = Vec::new();
    while lasted.len() < 3 {
        send(&proxy, 1).await;
        while let Ok(event) = events.try_recv() {
            if let EventKind::Ejected { lasts, .. } = &event.kind {
                lasted.push(lasts.unwrap().as_millis());
            }
        }
    }
    assert_eq!(lasted, [500, 1000, 1500]);
}

#[tokio::test]
async fn who_refuses_is_ejected_and_no_get_fails() {
    let good = Steered::new();
    let dead = TestBackend::refusing();
    let proxy = TestProxy::with_config(config(&[&good.backend, &dead], "retries = 1", "")).await;
    assert_eq!(send(&proxy, 30).await, 0);
    eventually(|| ejected(&proxy, &dead)).await;
    let reason = proxy.state("u", &dead).outlier.history().ejection().unwrap().reason.to_string();
    // Others may have failed while the fifth was told of.
    assert!(reason.contains(" attempts in succession without a response: "), "{reason}");
    assert!(reason.ends_with(" not connected") && !reason.contains("reset"), "{reason}");
}

/// Why ejections were over, as it was told: all so far, and one at least. Events come a moment after what they tell of.
async fn over(events: &mut tokio::sync::broadcast::Receiver<Arc<isobar::telemetry::events::Event>>) -> Vec<String> {
    let mut told = Vec::new();
    eventually(|| {
        told.extend(std::iter::from_fn(|| events.try_recv().ok()).filter_map(|event| match &event.kind {
            EventKind::Unejected { evidence, .. } => Some(evidence.clone()),
            _ => None,
        }));
        !told.is_empty()
    })
    .await;
    told
}

/// Without a check, isobar looks itself; with one, it is the check. Both long before the time is over.
#[tokio::test]
async fn who_was_gone_is_back_when_it_is_there_again() {
    let check = "[upstream.u.health_check]\npath = \"/\"\ninterval = \"300ms\"\n";
    for (tables, why) in [("", "it takes connections"), (check, "its health check has passed")] {
        let (good, mut gone) = (Steered::new(), Steered::new());
        let proxy = TestProxy::with_keys(&[&good.backend, &gone.backend], Keys { tables, ..Keys::default() }).await;
        let mut events = proxy.handle().events().listen();
        gone.backend.kill();
        send_until(&proxy, || ejected(&proxy, &gone.backend)).await;
        let begun = Instant::now();
        // Somebody looks, and nobody is there.
        eventually(|| proxy.state("u", &gone.backend).outlier.history().ejection().is_some_and(|it| it.absent)).await;
        gone.backend.restart();
        eventually(|| ready(&proxy) == 2).await;
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        assert_eq!(over(&mut events).await, [why]);
        assert_eq!(send(&proxy, 30).await, 0);
    }
}

/// What hangs takes connections, too. Where it answers after all, because nobody else does, that is what counts.
#[tokio::test]
async fn who_does_not_answer_stays_out_until_it_does() {
    let (mut good, stuck) = (Steered::new(), Steered::new());
    let route = "timeouts = { response_head = \"100ms\" }";
    let keys = Keys { route, upstream: "strategy = \"least_connections\"", ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&good.backend, &stuck.backend], keys).await;
    let mut events = proxy.handle().events().listen();
    stuck.takes(5_000);
    send_until(&proxy, || ejected(&proxy, &stuck.backend)).await;
    let looks = stuck.backend.connections();
    eventually(|| stuck.backend.connections() >= looks + 2).await;
    assert!(ejected(&proxy, &stuck.backend), "it was only looked at");
    stuck.takes(0);
    good.backend.kill();
    assert_eq!(send(&proxy, 1).await, 0);
    eventually(|| !ejected(&proxy, &stuck.backend)).await;
    assert_eq!(over(&mut events).await, ["it has answered as the last resort"]);
}

/// A backend that the file leaves out is not kept by somebody who looks for it.
#[tokio::test]
async fn who_is_looked_for_can_be_removed() {
    let (good, dead) = (Steered::new(), TestBackend::refusing());
    let proxy = TestProxy::with_config(config(&[&good.backend, &dead], "", "")).await;
    send_until(&proxy, || ejected(&proxy, &dead)).await;
    let known = Arc::downgrade(&proxy.state("u", &dead));
    proxy.apply(config(&[&good.backend], "", "")).await.unwrap();
    eventually(|| known.strong_count() == 0).await;
}

/// Whether its own time is over or that of the whole exchange.
#[tokio::test]
async fn who_never_answers_is_ejected() {
    for timeouts in ["response_head = \"50ms\"", "exchange = \"50ms\""] {
        let (good, silent) = (Steered::new(), TestBackend::raw("", After::Hold));
        let route = format!("timeouts = {{ {timeouts} }}");
        let proxy = TestProxy::with_keys(&[&good.backend, &silent], Keys { route: &route, ..Keys::default() }).await;
        for _ in 0..10 {
            proxy.get("/").await;
        }
        eventually(|| ejected(&proxy, &silent)).await;
        assert!(!ejected(&proxy, &good.backend), "{timeouts}");
        assert_eq!(send(&proxy, 10).await, 0);
    }
}

#[tokio::test]
async fn errors_of_the_application_and_of_clients_eject_nobody() {
    let (a, b) = (Steered::new(), Steered::new());
    let proxy = TestProxy::with_config(config(&[&a.backend, &b.backend], "retries = 0", SHORT)).await;
    for status in [500, 404] {
        b.answers(status);
        send(&proxy, 40).await;
    }
    // An interval is over, and another.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(ready(&proxy), 2);
    assert_eq!(proxy.state("u", &b.backend).outlier.ejections(), [0; 6]);
}

#[tokio::test]
async fn the_last_stays_and_no_more_than_half_go() {
    let pool: Vec<_> = (0..4).map(|_| Steered::new()).collect();
    let backends: Vec<_> = pool.iter().map(|it| &it.backend).collect();
    let proxy = TestProxy::with_config(config(&backends, "retries = 0", "interval = \"200ms\"")).await;
    pool.iter().for_each(|it| it.answers(503));
    send(&proxy, 60).await;
    eventually(|| ready(&proxy) == 2).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(ready(&proxy), 2, "half at most");

    let all = config(&backends, "retries = 0", "interval = \"200ms\"\nmax_ejected_percent = 100");
    proxy.apply(all).await.unwrap();
    send(&proxy, 60).await;
    eventually(|| ready(&proxy) == 1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(ready(&proxy), 1, "never the last");
}

/// A slow one is out after a few intervals, by its latency alone.
#[tokio::test]
async fn who_is_twenty_times_slower_is_ejected() {
    let pool: Vec<_> = (0..4).map(|_| Steered::new()).collect();
    pool.iter().for_each(|it| it.takes(2));
    pool[3].takes(60);
    let backends: Vec<_> = pool.iter().map(|it| &it.backend).collect();
    let detection = "interval = \"300ms\"\nwindow = \"3s\"";
    let proxy = TestProxy::with_config(config(&backends, "retries = 0", detection)).await;
    let load = async {
        let client = async || {
            while !ejected(&proxy, &pool[3].backend) {
                send(&proxy, 4).await;
            }
        };
        tokio::join!(client(), client(), client(), client(), client(), client(), client(), client())
    };
    tokio::time::timeout(Duration::from_secs(20), load).await.expect("an ejection");
    let history = proxy.state("u", &pool[3].backend);
    let reason = history.outlier.history().ejection().unwrap().reason.clone();
    assert_eq!(reason.as_str(), "latency", "{reason}");
    assert!(pool[..3].iter().all(|it| !ejected(&proxy, &it.backend)));
    assert_eq!(send(&proxy, 30).await, 0);
}

#[tokio::test]
async fn clients_that_are_slow_or_leave_and_stale_connections_are_not_held_against_a_backend() {
    let (a, b) = (Steered::new(), Steered::new());
    let proxy = TestProxy::with_config(config(&[&a.backend, &b.backend], "retries = 0", SHORT)).await;
    b.takes(300);
    a.takes(300);
    for _ in 0..12 {
        let mut client = proxy.client().await;
        client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
        let before = proxy.in_flight();
        eventually(|| proxy.in_flight() > 0 || before > 0).await;
        drop(client);
    }
    eventually(|| proxy.exchanges() == 0).await;
    for it in [&a, &b] {
        let streaks = proxy.state("u", &it.backend).outlier.streaks();
        assert_eq!((streaks.gateway, streaks.local), (0, 0));
    }
    assert_eq!(ready(&proxy), 2);
}

#[tokio::test]
async fn an_ejection_survives_reloads_every_300_ms_and_ends_in_its_time() {
    let (good, bad) = (Steered::new(), Steered::new());
    let pool = [&good.backend, &bad.backend];
    let detection = "interval = \"200ms\"\nejection_time = \"3s\"\njitter_percent = 0\n";
    let proxy = TestProxy::with_config(config(&pool, "retries = 0", detection)).await;
    bad.answers(503);
    send(&proxy, 10).await;
    eventually(|| ready(&proxy) == 1).await;
    let ejected_at = Instant::now();
    bad.answers(200);
    let asked = bad.backend.requests();
    for round in 0..8 {
        // Every second reload has other thresholds; the others are of routes only.
        let text = config(&pool, "retries = 0", &format!("{detection}failure_volume = {}", 100 + round / 2));
        proxy.apply(text).await.unwrap();
        assert_eq!(send(&proxy, 5).await, 0);
        assert!(ejected(&proxy, &bad.backend), "round {round}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(bad.backend.requests(), asked);
    eventually(|| ready(&proxy) == 2).await;
    let lasted = ejected_at.elapsed();
    assert!((2.8..4.5).contains(&lasted.as_secs_f64()), "{lasted:?}");
}

#[tokio::test]
async fn intervals_are_not_put_off_by_reloads() {
    let pool: Vec<_> = (0..2).map(|_| Steered::new()).collect();
    let backends: Vec<_> = pool.iter().map(|it| &it.backend).collect();
    // Every second answer is bad, so that no succession is: only the rate tells.
    let bad = TestBackend::scripted(async |peer| {
        let mut count = 0;
        while peer.request().await.is_some() {
            count += 1;
            peer.respond(if count % 3 == 0 { "200 OK" } else { "503 Told" }, "").await;
        }
    });
    let all = [backends[0], backends[1], &bad];
    let detection = |volume: usize| format!("interval = \"400ms\"\nfailure_volume = {volume}\nsuccess_deviations = 0");
    let proxy = TestProxy::with_config(config(&all, "retries = 0", &detection(10))).await;
    let mut round = 0;
    send_until(&proxy, || ejected(&proxy, &bad) || round > 100_000).await;
    let reason = proxy.state("u", &bad).outlier.history().ejection().unwrap().reason.clone();
    assert_eq!(reason.as_str(), "failure_rate", "{reason}");
    proxy.state("u", &bad).outlier.take_back(Instant::now());

    // The same while each reload comes before an interval is over.
    let start = Instant::now();
    while !ejected(&proxy, &bad) {
        assert!(start.elapsed() < Duration::from_secs(20), "put off for ever");
        round += 1;
        proxy.apply(config(&all, "retries = 0", &detection(10 + round % 2))).await.unwrap();
        send(&proxy, 9).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn switched_off_it_takes_back_whom_it_has_ejected() {
    let (good, bad) = (Steered::new(), Steered::new());
    let pool = [&good.backend, &bad.backend];
    let proxy = TestProxy::with_config(config(&pool, "retries = 0", "")).await;
    bad.answers(503);
    send(&proxy, 10).await;
    eventually(|| ready(&proxy) == 1).await;
    proxy.apply(config(&pool, "retries = 0", "enabled = false")).await.unwrap();
    assert_eq!(ready(&proxy), 2);
    eventually(|| !ejected(&proxy, &bad.backend)).await;
    send(&proxy, 40).await;
    assert_eq!(ready(&proxy), 2, "nobody is ejected");
}

#[tokio::test]
async fn a_backend_that_is_gone_for_a_while_begins_anew() {
    let (good, bad) = (Steered::new(), Steered::new());
    let pool = [&good.backend, &bad.backend];
    let proxy = TestProxy::with_config(config(&pool, "retries = 0", "")).await;
    bad.answers(503);
    send(&proxy, 10).await;
    eventually(|| ready(&proxy) == 1).await;
    let without = Keys { tables: "[admin]\naddress = \"127.0.0.1:0\"\n", ..Keys::default() }.text(&[&good.backend]);
    let known = Arc::downgrade(&proxy.state("u", &bad.backend));
    proxy.apply(without).await.unwrap();
    eventually(|| known.strong_count() == 0).await;
    proxy.apply(config(&pool, "retries = 0", "")).await.unwrap();
    assert!(!ejected(&proxy, &bad.backend), "its state was dropped with it");
    eventually(|| ready(&proxy) == 2).await;
}
