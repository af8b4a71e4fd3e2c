//! Time that a request waits in isobar itself, for middleware or in the queue, is not held against its backend.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use isobar::middleware::{Middleware, MiddlewareFactory, RequestView, Step};
use isobar::telemetry::clock::now_ms;
use tokio::sync::Semaphore;

use crate::harness::{Keys, TestBackend, TestProxy, eventually};
use crate::middleware::kind;

/// Has a request wait for as many milliseconds as its `x-wait` says.
#[derive(Debug)]
struct Waits;

impl Waits {
    fn kind() -> MiddlewareFactory {
        kind(|_| Waits)
    }
}

impl Middleware for Waits {
    fn on_request<'a>(&'a self, request: RequestView<'a>) -> Step<'a> {
        let Some(asked) = request.head.headers().get("x-wait") else { return Step::Continue };
        let wait = Duration::from_millis(asked.to_str().unwrap().parse().unwrap());
        Step::wait(async move {
            tokio::time::sleep(wait).await;
            ControlFlow::Continue(())
        })
    }
}

/// Answers `/held` when it is let, `/silent` never, and anything else at once.
fn steered() -> (TestBackend, Arc<Semaphore>) {
    let let_go = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&let_go);
    let backend = TestBackend::scripted(async move |peer| {
        while let Some(message) = peer.request().await {
            match message.head.target() {
                "/silent" => return peer.gone().await,
                "/held" => gate.acquire().await.unwrap().forget(),
                _ => {}
            }
            peer.respond("200 OK", "ok").await;
        }
    });
    (backend, let_go)
}

fn is_blamed(proxy: &TestProxy, backend: &TestBackend) -> bool {
    let streaks = proxy.state("u", backend).outlier.streaks();
    (streaks.gateway, streaks.local) != (0, 0)
}

/// A backend that has had most of an exchange's time is blamed where that time is over.
async fn a_silent_backend_is_blamed(proxy: &TestProxy, backend: &TestBackend) {
    assert_eq!(proxy.get("/silent").await.status(), StatusCode::GATEWAY_TIMEOUT);
    eventually(|| proxy.exchanges() == 0).await;
    assert!(is_blamed(proxy, backend));
}

#[tokio::test]
async fn a_wait_for_middleware_is_no_time_of_the_backend() {
    let (backend, _) = steered();
    let keys = Keys {
        route: "middleware = [\"m\"]\ntimeouts = { exchange = \"2s\" }",
        upstream: "retries = 0",
        tables: "[middleware.m.waits]",
        ..Keys::default()
    };
    let proxy = TestProxy::with_middleware(keys.text(&[&backend]), &[("waits", Waits::kind())]).await;
    // With a connection that is there: one that is made for an attempt begins its time anew.
    assert_eq!(proxy.get("/").await.status(), 200);
    let response = proxy.request("GET", "/silent", &[("x-wait", "1500")], "").await;
    assert_eq!(response.text(), "504 Gateway Timeout: the exchange took longer than this route allows\n");
    eventually(|| proxy.exchanges() == 0).await;
    assert_eq!((backend.requests(), backend.connections()), (2, 1));
    assert!(!is_blamed(&proxy, &backend));
    a_silent_backend_is_blamed(&proxy, &backend).await;
}

#[tokio::test]
async fn a_wait_in_the_queue_is_no_time_of_the_backend() {
    let (backend, let_go) = steered();
    let keys = Keys {
        route: "timeouts = { exchange = \"2s\" }",
        upstream: "retries = 0\nmax_in_flight = 1\nqueue = { timeout = \"20s\" }",
        ..Keys::default()
    };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    let (mut first, mut second) = (proxy.client().await, proxy.client().await);
    first.send("GET /held HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| proxy.in_flight() == 1).await;
    second.send("GET /silent HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| proxy.snapshot().upstream("u").unwrap().state.room.queue.len() == 1).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let_go.add_permits(1);
    assert_eq!((first.response().await.status(), second.response().await.status()), (200, 504));
    eventually(|| proxy.exchanges() == 0).await;
    assert_eq!((backend.requests(), backend.connections()), (2, 1));
    assert!(!is_blamed(&proxy, &backend));
    a_silent_backend_is_blamed(&proxy, &backend).await;
}

#[tokio::test]
async fn hedging_learns_nothing_from_a_wait_for_middleware() {
    let (backend, _) = steered();
    let keys = Keys {
        route: "middleware = [\"m\"]",
        upstream: "retries = { hedge = {} }",
        tables: "[middleware.m.waits]",
        ..Keys::default()
    };
    let proxy = TestProxy::with_middleware(keys.text(&[&backend]), &[("waits", Waits::kind())]).await;
    for _ in 0..3 {
        assert_eq!(proxy.request("GET", "/", &[("x-wait", "1000")], "").await.status(), 200);
    }
    let snapshot = proxy.snapshot();
    let latencies = &snapshot.upstream("u").unwrap().state.hedging().latencies;
    let longest = latencies.percentile(1.0, 3, now_ms(Instant::now())).expect("three answers");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}
