//! Who gets which request, counted at the backends, over all workers and connections.

use crate::harness::{Client, TestBackend, TestProxy, eventually};

fn config(workers: usize, strategy: &str, pool: &[(&TestBackend, u16)]) -> String {
    let backends: Vec<_> = pool
        .iter()
        .map(|(backend, weight)| format!("{{ address = \"{}\", weight = {weight} }}", backend.address()))
        .collect();
    format!(
        r#"
        workers = {workers}
        [[listener]]
        address = "127.0.0.1:0"
        [[route]]
        upstream = "u"
        [upstream.u]
        strategy = "{strategy}"
        backends = [{}]
        "#,
        backends.join(", ")
    )
}

async fn clients<const N: usize>(proxy: &TestProxy) -> [Client; N] {
    let mut clients = Vec::new();
    for _ in 0..N {
        clients.push(proxy.client().await);
    }
    eventually(|| proxy.connections().iter().sum::<usize>() == N).await;
    clients.try_into().unwrap()
}

#[tokio::test]
async fn round_robin_is_exact_over_workers() {
    let pool = ["a", "b", "c"].map(TestBackend::ok);
    let [a, b, c] = &pool;
    let proxy = TestProxy::with_config(config(2, "round_robin", &[(a, 1), (b, 1), (c, 1)])).await;
    let mut clients: [Client; 4] = clients(&proxy).await;
    assert_eq!(proxy.connections(), [2, 2]);
    // One after the other, whatever worker the connection is at: strictly by turns.
    let mut order = String::new();
    for i in 0..60 {
        order.push_str(clients[i % 4].get("/").await.text());
    }
    assert_eq!(order, "abc".repeat(20));
    // At the same time: as many.
    let [mut d, mut e, mut f, mut g] = clients;
    let all = async |client: &mut Client| {
        for _ in 0..60 {
            assert_eq!(client.get("/").await.status(), 200);
        }
    };
    tokio::join!(all(&mut d), all(&mut e), all(&mut f), all(&mut g));
    assert_eq!(pool.each_ref().map(TestBackend::requests), [100, 100, 100]);
    eventually(|| proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn weighted_round_robin_is_exact_and_smooth() {
    let pool = ["a", "b", "c", "d"].map(TestBackend::ok);
    let [a, b, c, d] = &pool;
    let text = config(2, "weighted_round_robin", &[(a, 5), (b, 1), (c, 1), (d, 0)]);
    let proxy = TestProxy::with_config(text).await;
    let mut clients: [Client; 4] = clients(&proxy).await;
    let mut order = String::new();
    for i in 0..70 {
        order.push_str(clients[i % 4].get("/").await.text());
    }
    assert_eq!(pool.each_ref().map(TestBackend::requests), [50, 10, 10, 0]);
    for round in order.as_bytes().chunks(7) {
        assert_eq!(round.iter().filter(|&&name| name == b'a').count(), 5, "{order}");
    }
    assert!(!order.contains("aaaaa"), "spread within a round: {order}");
}

#[tokio::test]
async fn random_strategies_spread() {
    for (strategy, weights, shares) in [
        ("random", [1, 1, 1], [1. / 3., 1. / 3., 1. / 3.]),
        ("weighted_random", [2, 1, 1], [0.5, 0.25, 0.25]),
        ("power_of_two", [1, 1, 1], [1. / 3., 1. / 3., 1. / 3.]),
    ] {
        let pool = ["a", "b", "c"].map(TestBackend::ok);
        let weighted: Vec<_> = pool.iter().zip(weights).collect();
        let proxy = TestProxy::with_config(config(2, strategy, &weighted)).await;
        let mut client = proxy.client().await;
        for _ in 0..600 {
            client.get("/").await;
        }
        for (backend, share) in pool.iter().zip(shares) {
            // Five standard deviations and more.
            let off = (backend.requests() as f64 - 600. * share).abs();
            assert!(off < 65., "{strategy}: {:?}", pool.each_ref().map(TestBackend::requests));
        }
        assert_eq!(pool.iter().map(TestBackend::requests).sum::<usize>(), 600);
    }
}

#[tokio::test]
async fn least_connections_keeps_away_from_who_is_busy() {
    let busy = TestBackend::raw("", crate::harness::After::Hold);
    let free = TestBackend::ok("free");
    for strategy in ["least_connections", "power_of_two"] {
        let before = (busy.requests(), free.requests());
        let proxy = TestProxy::with_config(config(2, strategy, &[(&busy, 1), (&free, 1)])).await;
        // Until one hangs: from then on it has one in flight, and the other never more while there is one client.
        let mut hung = proxy.client().await;
        loop {
            hung.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            tokio::select! {
                _ = hung.response() => {}
                () = eventually(|| busy.requests() > before.0) => break,
            }
        }
        assert_eq!(proxy.in_flight_at(&busy), 1);
        let mut client = proxy.client().await;
        for _ in 0..50 {
            assert_eq!(client.get("/").await.text(), "free", "{strategy}");
        }
        assert_eq!(busy.requests(), before.0 + 1);
        drop(hung);
        eventually(|| proxy.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn least_connections_counts_those_of_all_workers_by_weight() {
    let (one, two) =
        (TestBackend::raw("", crate::harness::After::Hold), TestBackend::raw("", crate::harness::After::Hold));
    let proxy = TestProxy::with_config(config(2, "least_connections", &[(&one, 1), (&two, 2)])).await;
    let mut clients: [Client; 12] = clients(&proxy).await;
    assert_eq!(proxy.connections(), [6, 6]);
    for (i, client) in clients.iter_mut().enumerate() {
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        eventually(|| proxy.in_flight() == i as u32 + 1).await;
    }
    assert_eq!((proxy.in_flight_at(&one), proxy.in_flight_at(&two)), (4, 8));
    drop(clients);
    eventually(|| proxy.in_flight() == 0).await;
}
