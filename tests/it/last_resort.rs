//! Before a request fails, it is tried at those that are not ready.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::SeqCst};

use isobar::telemetry::metrics::Counter;

use crate::harness::{Keys, TestBackend, TestProxy, eventually};

/// Answers requests, and checks at `/health`, with statuses that the test sets.
struct Told {
    backend: TestBackend,
    status: Arc<AtomicU16>,
    health: Arc<AtomicU16>,
}

impl Told {
    fn new(name: &'static str) -> Self {
        let [status, health] = [(); 2].map(|()| Arc::new(AtomicU16::new(200)));
        let (own, check) = (Arc::clone(&status), Arc::clone(&health));
        let backend = TestBackend::scripted(async move |peer| {
            while let Some(message) = peer.request().await {
                let status = if message.head.target() == "/health" { &check } else { &own };
                peer.respond(&format!("{} Told", status.load(SeqCst)), name).await;
            }
        });
        Self { backend, status, health }
    }
}

/// Has a backend ejected for its answers, by requests that are not tried again. It answers well then.
async fn eject_for_answers(proxy: &TestProxy, it: &Told) {
    it.status.store(503, SeqCst);
    while !proxy.state("u", &it.backend).outlier.history().is_ejected() {
        proxy.post("/", "x").await;
    }
    eventually(|| ready(proxy) == 1).await;
    it.status.store(200, SeqCst);
}

fn ready(proxy: &TestProxy) -> usize {
    proxy.snapshot().upstream("u").expect("upstream u").roster().ready().len()
}

fn count(
    proxy: &TestProxy,
    it: &Told,
    counter: impl Fn(&isobar::telemetry::metrics::BackendMetrics) -> &Counter,
) -> u64 {
    proxy.state("u", &it.backend).metrics.sum(counter)
}

#[tokio::test]
async fn who_is_ejected_is_asked_when_all_that_is_ready_has_failed() {
    let (mut a, mut b) = (Told::new("a"), Told::new("b"));
    let proxy = TestProxy::over(&[&a.backend, &b.backend]).await;
    eject_for_answers(&proxy, &a).await;
    // Not as long as the other one answers.
    let asked = a.backend.requests();
    for _ in 0..10 {
        assert_eq!(proxy.get("/").await.text(), "b");
    }
    assert_eq!(a.backend.requests(), asked);
    b.backend.kill();
    for _ in 0..10 {
        assert_eq!(proxy.get("/").await.text(), "a");
        assert_eq!(proxy.post("/", "x").await.text(), "a", "nothing was sent");
    }
    assert!(
        proxy.state("u", &a.backend).outlier.history().is_ejected(),
        "for its answers, which does not end by these"
    );
    // Each was tried once at each, and no more.
    a.backend.kill();
    let before = [&a, &b].map(|it| count(&proxy, it, |metrics| &metrics.picks));
    assert_eq!(proxy.get("/").await.status(), 502);
    let after = [&a, &b].map(|it| count(&proxy, it, |metrics| &metrics.picks));
    assert_eq!(after, before.map(|picks| picks + 1));
    eventually(|| proxy.in_flight() == 0).await;
}

/// An answer, bad as it is, is given up for a backend that answers, and not for one where perhaps nobody is.
#[tokio::test]
async fn an_answer_is_not_given_up_for_who_may_be_dead() {
    let (mut a, b) = (Told::new("a"), Told::new("b"));
    let proxy = TestProxy::over(&[&a.backend, &b.backend]).await;
    eject_for_answers(&proxy, &a).await;
    b.status.store(503, SeqCst);
    assert_eq!(proxy.get("/").await.text(), "a");
    assert_eq!(proxy.post("/", "x").await.text(), "b", "not to be sent twice");

    b.status.store(200, SeqCst);
    let proxy = TestProxy::over(&[&a.backend, &b.backend]).await;
    a.backend.kill();
    while ready(&proxy) == 2 {
        assert_eq!(proxy.get("/").await.text(), "b");
    }
    b.status.store(503, SeqCst);
    let failures = count(&proxy, &a, |metrics| &metrics.connect_failures);
    let response = proxy.get("/").await;
    assert_eq!((response.status(), response.text()), (503, "b"));
    assert_eq!(count(&proxy, &a, |metrics| &metrics.connect_failures), failures);
}

#[tokio::test]
async fn whom_an_operator_has_taken_out_is_not_asked() {
    use isobar::backend::operator_state::{Act, Moment, Setting};
    let (a, mut b) = (Told::new("a"), Told::new("b"));
    b.backend.kill();
    for setting in [Setting::Drained, Setting::Disabled, Setting::Ejected, Setting::Weight(0)] {
        let proxy = TestProxy::over(&[&a.backend, &b.backend]).await;
        let upstream = Arc::clone(proxy.snapshot().upstream("u").expect("upstream u"));
        let address = proxy.state("u", &a.backend).address.clone();
        upstream.act_by_hand(&address, Act::Set(setting, None), &"test".into(), Moment::now()).expect("a backend");
        assert_eq!(proxy.get("/").await.status(), 502, "{setting}");
    }
    assert_eq!(a.backend.requests(), 0);
}

/// Checks may err, or be late. Where an operator has it that they do not, they have the last word.
#[tokio::test]
async fn who_is_unhealthy_is_asked_last() {
    for (panic, asked_last) in [("", true), ("panic_threshold = 0", false)] {
        let (a, mut b) = (Told::new("a"), Told::new("b"));
        let tables = "[upstream.u.health_check]\npath = \"/health\"\ninterval = \"50ms\"\nunhealthy_after = 2\n";
        let proxy =
            TestProxy::with_keys(&[&a.backend, &b.backend], Keys { upstream: panic, tables, ..Keys::default() }).await;
        a.health.store(500, SeqCst);
        eventually(|| ready(&proxy) == 1).await;
        let asked = |it: &Told| it.backend.heads().iter().filter(|head| head.target() == "/").count();
        for _ in 0..5 {
            assert_eq!(proxy.get("/").await.text(), "b");
        }
        assert_eq!(asked(&a), 0);
        // The same before and after the checks have found that the other one is gone too.
        b.backend.kill();
        assert_eq!(proxy.get("/").await.status() == 200, asked_last, "{panic}");
        assert_eq!(asked(&a), usize::from(asked_last), "{panic}");
    }
}

/// What is tried as a last resort is charged as any further attempt.
#[tokio::test]
async fn a_last_resort_is_within_the_budget() {
    let (a, b) = (Told::new("a"), Told::new("b"));
    let upstream = "retry_budget = { percent = 0, per_second = 0 }";
    let proxy = TestProxy::with_keys(&[&a.backend, &b.backend], Keys { upstream, ..Keys::default() }).await;
    eject_for_answers(&proxy, &a).await;
    b.status.store(503, SeqCst);
    let asked = a.backend.requests();
    assert_eq!(proxy.get("/").await.status(), 503);
    assert_eq!(a.backend.requests(), asked);
}
