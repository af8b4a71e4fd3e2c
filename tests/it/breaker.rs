//! An upstream that fails is not asked for a while, and then a little.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::task::JoinSet;

use isobar::telemetry::events::{Event, EventKind};
use isobar::upstream::circuit_breaker::BreakerState;

use crate::harness::{Client, Keys, TestBackend, TestProxy, eventually};

/// Answers with a status that the test sets, and takes so long as it says, in milliseconds.
struct Steered {
    backend: TestBackend,
    status: Arc<AtomicU16>,
    takes_ms: Arc<AtomicUsize>,
}

fn steered() -> Steered {
    let (status, takes_ms) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicUsize::new(0)));
    let (told, takes) = (Arc::clone(&status), Arc::clone(&takes_ms));
    let backend = TestBackend::scripted(async move |peer| {
        while peer.request().await.is_some() {
            tokio::time::sleep(Duration::from_millis(takes.load(SeqCst) as u64)).await;
            peer.respond(&format!("{} Told", told.load(SeqCst)), "told").await;
        }
    });
    Steered { backend, status, takes_ms }
}

fn guarded(pool: &[&TestBackend], workers: usize, breaker: &str) -> String {
    let tables = format!("[upstream.u.circuit_breaker]\n{breaker}\n");
    let text = Keys { upstream: "retries = 0", tables: &tables, ..Keys::default() }.text(pool);
    text.replace("workers = 1", &format!("workers = {workers}"))
}

fn state(proxy: &TestProxy) -> BreakerState {
    proxy.snapshot().upstream("u").unwrap().state.breaker.state()
}

fn refused(proxy: &TestProxy) -> u64 {
    proxy.snapshot().upstream("u").unwrap().state.metrics.sum(|it| &it.breaker_refused)
}

/// Changes that were told.
fn told(events: &mut tokio::sync::broadcast::Receiver<Arc<Event>>) -> Vec<(&'static str, String)> {
    std::iter::from_fn(|| events.try_recv().ok())
        .filter_map(|event| match &event.kind {
            EventKind::Breaker { to, evidence, .. } => Some((*to, evidence.clone())),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn it_opens_lets_a_few_through_and_closes() {
    let it = steered();
    let keys = "min_calls = 10\nopen_for = \"400ms\"\nprobes = 2";
    let proxy = TestProxy::with_config(guarded(&[&it.backend], 2, keys)).await;
    let mut events = proxy.handle().events().listen();
    for _ in 0..10 {
        assert_eq!(proxy.get("/").await.status(), 200);
    }
    it.status.store(503, SeqCst);
    for _ in 0..10 {
        assert_eq!(proxy.get("/").await.text(), "told", "the backend's own, while it is asked");
    }
    assert_eq!(state(&proxy), BreakerState::Open);
    let asked = it.backend.requests();
    let refusal = proxy.get("/").await;
    assert_eq!((refusal.status(), refusal.header("retry-after")), (503, Some("1")));
    assert!(refusal.text().contains("the backends fail and are not asked for a while"), "{}", refusal.text());
    assert_eq!((it.backend.requests(), refused(&proxy)), (asked, 1));

    // Its time is over: one bad probe opens it again, for twice as long.
    tokio::time::sleep(Duration::from_millis(450)).await;
    assert_eq!(proxy.get("/").await.text(), "told");
    assert_eq!((state(&proxy), it.backend.requests()), (BreakerState::Open, asked + 1));
    // Two good ones close it, and while they are under way nobody else is let through.
    it.status.store(200, SeqCst);
    it.takes_ms.store(300, SeqCst);
    tokio::time::sleep(Duration::from_millis(900)).await;
    let mut clients = JoinSet::new();
    for _ in 0..20 {
        let address = proxy.address();
        clients.spawn(async move { Client::connect(address).await.get("/").await.status() });
    }
    let mut statuses = Vec::new();
    while let Some(status) = clients.join_next().await {
        statuses.push(status.unwrap());
    }
    assert_eq!(statuses.iter().filter(|&&status| status == 200).count(), 2, "{statuses:?}");
    assert_eq!((state(&proxy), it.backend.requests()), (BreakerState::Closed, asked + 3));
    it.takes_ms.store(0, SeqCst);
    assert_eq!(proxy.get("/").await.status(), 200);

    let changes = told(&mut events);
    let states: Vec<_> = changes.iter().map(|(to, _)| *to).collect();
    assert_eq!(states, ["open", "half_open", "open", "half_open", "closed"], "each once");
    assert!(changes[0].1.starts_with("10 of 20 attempts failed; for "), "{}", changes[0].1);
    assert!(changes[2].1.starts_with("a probe failed or was slow; for "), "{}", changes[2].1);
    assert_eq!(proxy.snapshot().upstream("u").unwrap().state.metrics.sum(|it| &it.breaker_opened), 2);
}

#[tokio::test]
async fn no_answer_is_a_failure_and_a_500_is_an_answer() {
    let refusing = TestBackend::refusing();
    let proxy = TestProxy::with_config(guarded(&[&refusing], 1, "min_calls = 5")).await;
    for _ in 0..5 {
        assert_eq!(proxy.get("/").await.status(), 502);
    }
    assert_eq!((proxy.get("/").await.status(), state(&proxy)), (503, BreakerState::Open));

    let broken = TestBackend::scripted(async |peer| drop(peer.request().await));
    let proxy = TestProxy::with_config(guarded(&[&broken], 1, "min_calls = 5")).await;
    for _ in 0..5 {
        assert_eq!(proxy.post("/", "x").await.status(), 502);
    }
    assert_eq!(state(&proxy), BreakerState::Open);

    let it = steered();
    it.status.store(500, SeqCst);
    let proxy = TestProxy::with_config(guarded(&[&it.backend], 1, "min_calls = 5")).await;
    for _ in 0..10 {
        assert_eq!(proxy.get("/").await.status(), 500);
    }
    assert_eq!(state(&proxy), BreakerState::Closed);
}

#[tokio::test]
async fn slow_answers_open_it_too() {
    let it = steered();
    it.takes_ms.store(60, SeqCst);
    let proxy =
        TestProxy::with_config(guarded(&[&it.backend], 1, "min_calls = 5\nslow_after = \"50ms\"\nopen_for = \"20s\""))
            .await;
    let mut events = proxy.handle().events().listen();
    for _ in 0..5 {
        assert_eq!(proxy.get("/").await.status(), 200);
    }
    let refusal = proxy.get("/").await;
    let after: u64 = refusal.header("retry-after").unwrap().parse().unwrap();
    assert!(refusal.status() == 503 && (17..=22).contains(&after), "after {after} s");
    let changes = told(&mut events);
    assert!(changes.len() == 1 && changes[0].1.starts_with("5 of 5 attempts were slow"), "{changes:?}");
}

#[tokio::test]
async fn it_outlives_reloads_under_the_thresholds_of_the_moment() {
    let it = steered();
    it.status.store(502, SeqCst);
    let proxy = TestProxy::with_config(guarded(&[&it.backend], 2, "min_calls = 100\nopen_for = \"60s\"")).await;
    for _ in 0..10 {
        assert_eq!(proxy.get("/").await.status(), 502);
    }
    assert_eq!(state(&proxy), BreakerState::Closed);
    // What it has seen is kept: with ten more it is twenty.
    proxy.apply(guarded(&[&it.backend], 2, "min_calls = 20\nopen_for = \"60s\"")).await.unwrap();
    for _ in 0..10 {
        assert_eq!(proxy.get("/").await.text(), "told");
    }
    assert_eq!(state(&proxy), BreakerState::Open);
    let asked = it.backend.requests();
    proxy.apply(guarded(&[&it.backend], 2, "min_calls = 10\nopen_for = \"30s\"")).await.unwrap();
    assert_eq!((proxy.get("/").await.status(), state(&proxy)), (503, BreakerState::Open));
    assert_eq!(it.backend.requests(), asked);
    // Without one, all are asked.
    proxy.apply(guarded(&[&it.backend], 2, "enabled = false")).await.unwrap();
    assert_eq!(proxy.get("/").await.text(), "told");
}

#[tokio::test]
async fn a_probe_whose_client_goes_makes_room_for_another() {
    let it = steered();
    it.status.store(503, SeqCst);
    let keys = "min_calls = 5\nopen_for = \"100ms\"\nprobes = 1";
    let proxy = TestProxy::with_config(guarded(&[&it.backend], 1, keys)).await;
    for _ in 0..5 {
        proxy.get("/").await;
    }
    assert_eq!(state(&proxy), BreakerState::Open);
    it.status.store(200, SeqCst);
    it.takes_ms.store(60_000, SeqCst);
    tokio::time::sleep(Duration::from_millis(150)).await;
    let asked = it.backend.requests();
    let mut probe = proxy.client().await;
    probe.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| it.backend.requests() == asked + 1).await;
    assert_eq!((proxy.get("/").await.status(), state(&proxy)), (503, BreakerState::HalfOpen));
    drop(probe);
    eventually(|| proxy.in_flight() == 0).await;
    it.takes_ms.store(0, SeqCst);
    assert_eq!((proxy.get("/").await.status(), state(&proxy)), (200, BreakerState::Closed));
}
