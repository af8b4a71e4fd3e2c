//! Stopping: nothing in flight is lost, nobody is left waiting, and it ends in time.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use isobar::supervisor::Ended;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::harness::{Client, TestBackend, TestProxy, backends, eventually, soon, unbound};

const GRACE: Duration = Duration::from_secs(20);

async fn two_workers_over(pool: &[&TestBackend]) -> TestProxy {
    let backends = backends(pool);
    TestProxy::with_config(format!(
        "workers = 2\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n[upstream.u]\nbackends = {backends}\n"
    ))
    .await
}

/// What a client under load came to: how many answers it got, and whether the last one said that it was the last.
struct Account {
    answered: usize,
    told: bool,
}

/// Sends requests one after the other until its connection ends.
async fn ask_until_closed(mut client: Client, sent: Arc<AtomicUsize>) -> Account {
    let mut account = Account { answered: 0, told: false };
    loop {
        sent.fetch_add(1, SeqCst);
        if !client.try_send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await {
            return account;
        }
        match soon(client.stream.response("GET")).await {
            Ok(response) => {
                assert_eq!(response.status(), 200);
                account.answered += 1;
                if response.header("connection") == Some("close") {
                    account.told = true;
                    client.closed().await;
                    return account;
                }
            }
            Err(cut) => {
                assert!(cut.head.is_none() && cut.body.is_empty(), "cut in the middle of a response: {cut:?}");
                return account;
            }
        }
    }
}

#[tokio::test]
async fn nothing_that_reached_a_backend_is_lost() {
    const CLIENTS: usize = 24;
    for _ in 0..3 {
        let (a, b) =
            (TestBackend::slow("a", Duration::from_millis(20)), TestBackend::slow("b", Duration::from_millis(1)));
        let proxy = two_workers_over(&[&a, &b]).await;
        let sent = Arc::new(AtomicUsize::new(0));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            clients.spawn(ask_until_closed(proxy.client().await, Arc::clone(&sent)));
        }
        let mut idle = proxy.client().await;
        assert_eq!(idle.get("/").await.status(), 200);
        eventually(|| sent.load(SeqCst) > 10 * CLIENTS).await;

        let start = Instant::now();
        assert_eq!(proxy.stop(GRACE).await, Ended::Stopped { cut: 0 });
        assert!(start.elapsed() < GRACE / 2, "took {:?}", start.elapsed());
        idle.closed().await;
        let (mut answered, mut told) = (1, 0);
        while let Some(account) = clients.join_next().await {
            let account = account.unwrap();
            answered += account.answered;
            told += usize::from(account.told);
        }
        // A request that crosses with the end of an idle connection has reached nobody, and its client may send it again.
        assert_eq!(a.requests() + b.requests(), answered);
        assert!(told > 0, "nobody was told that its connection ends");
    }
}

/// A client that has connected and sent its request knows nothing of queues.
#[tokio::test]
async fn connections_that_wait_to_be_accepted_are_served() {
    let backend = TestBackend::ok("served");
    for round in 0..10 {
        let proxy = two_workers_over(&[&backend]).await;
        let mut clients = Vec::new();
        for _ in 0..30 {
            let mut client = proxy.client().await;
            client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
            clients.push(client);
        }
        assert_eq!(proxy.stop(GRACE).await, Ended::Stopped { cut: 0 });
        for (n, client) in clients.iter_mut().enumerate() {
            let response = soon(client.stream.response("GET")).await;
            let response = response.unwrap_or_else(|cut| panic!("round {round}, client {n}: {cut:?}"));
            assert_eq!(response.text(), "served");
            client.closed().await;
        }
    }
}

/// Between a connection and its first request lies the time of a packet, or of a handshake: it is not idle.
#[tokio::test]
async fn a_client_that_has_just_connected_is_served() {
    let backend = TestBackend::ok("served");
    let proxy = two_workers_over(&[&backend]).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(proxy.client().await);
    }
    let mut silent = proxy.client().await;
    let address = proxy.address();
    eventually(|| proxy.connections().iter().sum::<usize>() == 11).await;
    let start = Instant::now();
    let stopping = tokio::spawn(proxy.stop(GRACE));
    unbound(address).await;
    for client in &mut clients {
        let response = client.get("/").await;
        assert_eq!((response.text(), response.header("connection")), ("served", Some("close")));
        client.closed().await;
    }
    silent.closed().await;
    assert_eq!(stopping.await.unwrap(), Ended::Stopped { cut: 0 });
    assert!(start.elapsed() < Duration::from_secs(5), "a silent one is not waited for as long: {:?}", start.elapsed());
}

#[tokio::test]
async fn what_goes_on_for_too_long_is_cut_and_counted() {
    let (hanging, tunnels) = (
        TestBackend::scripted(async |peer| {
            peer.head().await;
            peer.gone().await;
        }),
        TestBackend::upgrading(),
    );
    let proxy = TestProxy::with_config(format!(
        r#"
        workers = 2
        [[listener]]
        address = "127.0.0.1:0"
        [[route]]
        upstream = "hanging"
        [[route]]
        path = "/tunnel"
        upstream = "tunnels"
        [upstream.hanging]
        backends = {}
        [upstream.tunnels]
        backends = {}
        "#,
        backends(&[&hanging]),
        backends(&[&tunnels])
    ))
    .await;
    // A client that has asked nothing yet has longer than this grace.
    let (mut asks, mut tunnel, mut silent) = (proxy.client().await, proxy.client().await, proxy.client().await);
    asks.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    tunnel.send("GET /tunnel HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
    assert_eq!(tunnel.response().await.status(), 101);
    eventually(|| hanging.requests() == 1).await;
    let listeners = proxy.handle().listeners();
    let states = [proxy.state("hanging", &hanging), proxy.state("tunnels", &tunnels)];
    let start = Instant::now();
    assert_eq!(proxy.stop(Duration::from_millis(400)).await, Ended::Stopped { cut: 3 });
    assert!(start.elapsed() >= Duration::from_millis(400));
    for client in [&mut asks, &mut tunnel, &mut silent] {
        client.closed().await;
    }
    assert_eq!(states.map(|state| state.in_flight()), [0, 0]);
    let count = |counter: fn(&isobar::telemetry::metrics::ListenerMetrics) -> &isobar::telemetry::metrics::Counter| {
        listeners[0].metrics.sum(counter)
    };
    assert_eq!((count(|it| &it.requests), count(|it| &it.ended)), (2, 2));
    assert_eq!((count(|it| &it.accepted), count(|it| &it.closed)), (3, 3));
}

#[tokio::test]
async fn what_finishes_within_the_grace_is_waited_for() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let backend = TestBackend::scripted(async move |peer| {
        while peer.head().await.is_some() {
            peer.write("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello").await;
            opened.acquire().await.unwrap().forget();
            peer.write("world").await;
        }
    });
    let proxy = two_workers_over(&[&backend]).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let mut body = Vec::new();
    // The head and half of the body are there.
    eventually(|| backend.requests() == 1).await;
    let head = soon(client.stream.head()).await.unwrap().unwrap();
    soon(client.stream.exact(5, &mut body)).await.unwrap();
    let address = proxy.address();
    let stopping = tokio::spawn(proxy.stop(GRACE));
    unbound(address).await;
    assert!(!stopping.is_finished());
    gate.add_permits(1);
    soon(client.stream.exact(5, &mut body)).await.unwrap();
    assert_eq!((head.status(), &*body), (200, &b"helloworld"[..]));
    client.closed().await;
    assert_eq!(stopping.await.unwrap(), Ended::Stopped { cut: 0 });
}

/// Each request carries its number; none is answered twice or with another's.
#[tokio::test]
async fn pipelined_requests_are_answered_before_the_end() {
    let backend = TestBackend::echo();
    let proxy = two_workers_over(&[&backend]).await;
    let mut client = proxy.client().await;
    let requests: String = (0..5).map(|n| format!("GET /{n} HTTP/1.1\r\nhost: test\r\n\r\n")).collect();
    client.send(requests).await;
    let mut seen = HashSet::new();
    for n in 0..5 {
        let target = client.response().await.json()["target"].as_str().unwrap().to_owned();
        assert_eq!(target, format!("/{n}"));
        assert!(seen.insert(target));
    }
    assert_eq!(proxy.stop(GRACE).await, Ended::Stopped { cut: 0 });
    client.closed().await;
}
