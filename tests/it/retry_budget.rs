//! Retries must not multiply the load on backends that all fail.

use crate::harness::{After, Keys, TestBackend, TestProxy, backends, eventually};

/// So much of the floor may be spent at once: that of the window, which is rounded up to slots.
const WINDOW_S: f64 = 10.24;

async fn ask(proxy: &TestProxy, clients: usize, requests: usize) {
    let address = proxy.address();
    let clients = (0..clients).map(|_| {
        tokio::spawn(async move {
            let mut client = crate::harness::Client::connect(address).await;
            for _ in 0..requests {
                client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
                assert!(client.response().await.status() >= 500);
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}

#[tokio::test]
async fn with_every_backend_failing_the_load_stays_within_the_budget() {
    let busy = || TestBackend::fixed("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n");
    let broken = || TestBackend::raw("", After::Close);
    for (kind, pool) in [("busy", [busy(), busy(), busy()]), ("broken", [broken(), broken(), broken()])] {
        let text = format!(
            "workers = 2\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n\
             [upstream.u]\nbackends = {}\nretry_budget = {{ percent = 20, per_second = 2 }}\n\
             retries = {{ max = 7, backoff = {{ base = \"1ms\", max = \"2ms\" }} }}\n",
            backends(&pool.each_ref())
        );
        let proxy = TestProxy::with_config(text).await;
        let start = std::time::Instant::now();
        ask(&proxy, 8, 100).await;
        let seen: usize = pool.iter().map(TestBackend::requests).sum();
        let floor = 2.0 * (WINDOW_S + start.elapsed().as_secs_f64());
        assert!(seen as f64 <= 800.0 * 1.2 + floor, "{kind}: {seen} for 800");
        assert!(seen as f64 >= 800.0 * 1.15, "{kind}: the budget is there to be used, {seen} for 800");
        let metrics = &proxy.snapshot().upstreams[0].state.metrics;
        assert!(metrics.sum(|metrics| &metrics.retry_budget_spent) > 0);
        eventually(|| proxy.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn refused_connections_are_free() {
    // They are no load on a backend, and where most machines of an upstream are gone, nearly every request has one.
    let pool = [TestBackend::refusing(), TestBackend::refusing(), TestBackend::ok("last")];
    let upstream = "retry_budget = { percent = 10, per_second = 0 }";
    let proxy = TestProxy::with_keys(&pool.each_ref(), Keys { upstream, ..Keys::default() }).await;
    let mut client = proxy.client().await;
    for _ in 0..100 {
        assert_eq!(client.get("/").await.text(), "last");
    }
}

#[tokio::test]
async fn what_was_spent_is_spent_after_a_reload() {
    let pool = [TestBackend::raw("", After::Close), TestBackend::raw("", After::Close)];
    let pool = pool.each_ref();
    let seen = || pool.iter().map(|backend| backend.requests()).sum::<usize>();
    let text = |more: &str| {
        let upstream = format!(
            "outlier_detection = {{ enabled = false }}\nretry_budget = {{ percent = 50, per_second = 0 }}\n{more}"
        );
        Keys { upstream: &upstream, ..Keys::default() }.text(&pool)
    };
    let proxy = TestProxy::with_config(text("")).await;
    ask(&proxy, 1, 10).await;
    assert_eq!(seen(), 15);
    for more in ["strategy = \"random\"", "connect_timeout = \"1s\"", "retries = 3"] {
        proxy.apply(text(more)).await.unwrap();
    }
    // One request more is half a retry more: without its deposits the budget would allow none, anew it would not know of
    // those that were sent.
    ask(&proxy, 1, 2).await;
    assert_eq!(seen(), 15 + 2 + 1);
    // Under another setting the same account.
    let all = text("").replace("percent = 50", "percent = 100");
    proxy.apply(all).await.unwrap();
    ask(&proxy, 1, 1).await;
    let upstream = &proxy.snapshot().upstreams[0];
    assert_eq!(isobar::telemetry::metrics::UpstreamMetrics::all_retries(&upstream.state.metrics), 7);
}
