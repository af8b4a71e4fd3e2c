//! A backend is killed and comes back, under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::harness::{Client, TestBackend, TestProxy, backends, eventually};

const CLIENTS: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn idempotent_requests_see_nothing_of_a_killed_backend() {
    let mut pool = ["a", "b", "c"].map(TestBackend::ok);
    for strategy in ["round_robin", "least_connections"] {
        let [a, b, c] = &pool;
        let proxy = TestProxy::with_config(format!(
            r#"
            workers = 2
            [[listener]]
            address = "127.0.0.1:0"
            [[route]]
            upstream = "u"
            [upstream.u]
            strategy = "{strategy}"
            backends = {}
            # Who is ejected meanwhile is to be back before the test loses patience.
            outlier_detection = {{ ejection_time = "200ms", ejection_time_max = "200ms" }}
            "#,
            backends(&[a, b, c])
        ))
        .await;
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let (stop, served, address) = (Arc::clone(&stop), Arc::clone(&served), proxy.address());
            clients.spawn(async move {
                let mut client = Client::connect(address).await;
                while !stop.load(SeqCst) {
                    let response = client.get("/").await;
                    assert_eq!(response.status(), 200, "{}", response.text());
                    served.fetch_add(1, SeqCst);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
        }
        // So many more requests are answered, which shows that the load goes on.
        let more = async |n: usize| {
            let target = served.load(SeqCst) + n;
            eventually(|| served.load(SeqCst) >= target).await;
        };
        more(60).await;
        for victim in [1, 0, 2] {
            tokio::task::block_in_place(|| pool[victim].kill());
            more(60).await;
            let (before, state) = (pool[victim].requests(), proxy.state("u", &pool[victim]));
            pool[victim].restart();
            // Picks resume.
            eventually(|| pool[victim].requests() >= before + 10).await;
            assert!(state.metrics.sum(|metrics| &metrics.connect_failures) > 0, "nobody tried the killed one");
        }
        stop.store(true, SeqCst);
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
        eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0 && proxy.connections() == [0, 0]).await;
    }
}

#[tokio::test]
async fn a_request_that_may_have_been_heard_is_not_repeated_unless_idempotent() {
    // Reads the request whole, and is gone.
    let (breaking, other) = (TestBackend::scripted(async |peer| drop(peer.request().await)), TestBackend::ok("other"));
    let proxy = TestProxy::over(&[&breaking, &other]).await;
    assert_eq!(proxy.get("/").await.text(), "other", "by a retry");
    assert_eq!((breaking.requests(), other.requests()), (1, 1));
    let before = (breaking.requests(), other.requests());
    let statuses = [proxy.post("/", "x").await.status(), proxy.post("/", "x").await.status()];
    assert_eq!((statuses.contains(&502), statuses.contains(&200)), (true, true));
    assert_eq!((breaking.requests(), other.requests()), (before.0 + 1, before.1 + 1));
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}
