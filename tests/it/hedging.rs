//! A second attempt while the first is slow: the first answer wins, and nothing is left of the other.

use std::time::{Duration, Instant};

use crate::harness::{Keys, TestBackend, TestProxy, eventually, soon};

const HEDGE: &str = "retries = { max = 0, hedge = { percentile = 90, min_delay = \"20ms\", budget_percent = 100 } }";

/// Answers at once, but not to /slow.
fn sometimes_slow(name: &'static str, slow: bool) -> TestBackend {
    TestBackend::scripted(async move |peer| {
        while let Some(message) = peer.request().await {
            match message.head.target() {
                "/slow" if slow => return peer.gone().await,
                _ => peer.respond("200 OK", name).await,
            }
        }
    })
}

/// Has the upstream learn how long its answers take: worked out anew every three seconds.
async fn warm(proxy: &TestProxy) {
    let mut client = proxy.client().await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(3_500) {
        for _ in 0..50 {
            assert_eq!(client.get("/").await.status(), 200);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn counted(proxy: &TestProxy) -> (u64, u64) {
    let metrics = &proxy.snapshot().upstreams[0].state.metrics;
    (metrics.sum(|metrics| &metrics.hedges), metrics.sum(|metrics| &metrics.hedges_won))
}

#[tokio::test]
async fn the_second_attempt_wins_and_the_first_is_given_up() {
    let (stuck, quick) = (sometimes_slow("stuck", true), sometimes_slow("quick", false));
    let proxy = TestProxy::with_keys(&[&stuck, &quick], Keys { upstream: HEDGE, ..Keys::default() }).await;
    warm(&proxy).await;
    let before = counted(&proxy);
    let mut client = proxy.client().await;
    for _ in 0..4 {
        let asked = stuck.requests() + quick.requests();
        // Half of them begin at the one that never answers.
        let response = soon(client.get("/slow")).await;
        assert_eq!(response.text(), "quick");
        // The loser's lease is back though its backend has not said a word, and its connection is closed.
        eventually(|| proxy.in_flight() == 0).await;
        assert!(stuck.requests() + quick.requests() <= asked + 2);
    }
    let (hedges, won) = counted(&proxy);
    assert!(won > before.1 && hedges >= won, "{hedges} {won}");
    assert_eq!(quick.last_head().target(), "/slow");
    assert!(quick.heads().iter().any(|head| head.get("x-isobar-attempt") == Some("2")));
    // With a body that was kept whole, the same.
    for _ in 0..2 {
        assert_eq!(proxy.request("PUT", "/slow", &[], "hello").await.text(), "quick");
    }
    assert!(counted(&proxy).1 > won);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn what_may_not_be_repeated_is_not_sent_twice() {
    let (a, b) = (sometimes_slow("a", true), sometimes_slow("b", true));
    let proxy = TestProxy::with_keys(&[&a, &b], Keys { upstream: HEDGE, ..Keys::default() }).await;
    warm(&proxy).await;
    let (hedges, _) = counted(&proxy);
    let mut client = proxy.client().await;
    client.send("POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello").await;
    let posts = || {
        let heads = [a.heads(), b.heads()].concat();
        heads.iter().filter(|head| head.method() == "POST").count()
    };
    eventually(|| posts() == 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((posts(), counted(&proxy).0), (1, hedges));
    // A GET that nobody answers is sent twice, and not more; its client goes, and both attempts with it.
    drop(client);
    let mut client = proxy.client().await;
    client.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| counted(&proxy).0 == hedges + 1 && proxy.in_flight() == 2).await;
    drop(client);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn without_a_budget_there_is_no_second_attempt() {
    let (stuck, quick) = (sometimes_slow("stuck", true), sometimes_slow("quick", true));
    let upstream = HEDGE.replace("budget_percent = 100", "budget_percent = 1");
    let proxy = TestProxy::with_keys(&[&stuck, &quick], Keys { upstream: &upstream, ..Keys::default() }).await;
    warm(&proxy).await;
    let metrics = |proxy: &TestProxy| {
        let metrics = &proxy.snapshot().upstreams[0].state.metrics;
        (metrics.sum(|metrics| &metrics.hedges), metrics.sum(|metrics| &metrics.hedge_budget_spent))
    };
    let requests = stuck.requests() + quick.requests();
    let mut clients = Vec::new();
    while metrics(&proxy).1 == 0 {
        let mut client = proxy.client().await;
        client.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
        clients.push(client);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let (hedges, _) = metrics(&proxy);
    assert!(hedges as usize <= (requests + clients.len()) / 100 + 1, "{hedges} of {requests}");
    drop(clients);
    eventually(|| proxy.in_flight() == 0).await;
}
