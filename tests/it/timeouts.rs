//! Who waits too long is told for whom, and nothing is left behind.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use isobar::telemetry::metrics::RetryCause;
use socket2::{Domain, Socket, Type};

use crate::harness::{After, Keys, TestBackend, TestProxy, eventually};

/// A port that takes no further connection: those that it would hold are there.
struct Full {
    listener: Socket,
    _waiting: Vec<Socket>,
}

impl Full {
    fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let waiting = (0..4)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                let _ = socket.connect(&address);
                socket
            })
            .collect();
        Self { listener, _waiting: waiting }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap().as_socket().unwrap()
    }
}

fn over(addresses: &[SocketAddr]) -> String {
    let addresses: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
    format!(
        r#"
        workers = 1
        [[listener]]
        address = "127.0.0.1:0"
        [[route]]
        upstream = "u"
        [upstream.u]
        backends = {addresses:?}
        connect_timeout = "200ms"
        "#
    )
}

#[tokio::test]
async fn connecting() {
    let full = Full::new();
    let proxy = TestProxy::with_config(over(&[full.address()])).await;
    let mut client = proxy.client().await;
    for _ in 0..2 {
        let response = client.get("/").await;
        assert_eq!((response.status(), response.header("connection")), (504, None));
        assert_eq!(response.text(), "504 Gateway Timeout: no connection to a backend could be made in time\n");
    }
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;

    // Nothing was sent: another backend may be asked, whatever the method.
    let ok = TestBackend::echo();
    let proxy = TestProxy::with_config(over(&[full.address(), ok.address()])).await;
    assert_eq!(proxy.post("/", "hello").await.json()["body"], "hello");
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!(ok.requests(), 2);
}

/// A GET whose backend accepts and never answers is tried elsewhere; what may not be sent twice is not.
#[tokio::test]
async fn the_head_of_a_response() {
    let silent = TestBackend::raw("", After::Hold);
    let begun = TestBackend::raw("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n", After::Hold);
    let informing = TestBackend::raw("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", After::Hold);
    let route = r#"timeouts = { response_head = "200ms" }"#;
    for backend in [&silent, &begun, &informing] {
        let other = TestBackend::ok("other");
        let proxy = TestProxy::with_keys(&[backend, &other], Keys { route, ..Keys::default() }).await;
        let start = Instant::now();
        let before = backend.requests();
        let mut client = proxy.client().await;
        assert_eq!(client.get("/").await.text(), "other", "elsewhere");
        assert!(start.elapsed() >= Duration::from_millis(200));
        assert_eq!((backend.requests(), other.requests()), (before + 1, 1));
        assert_eq!(client.get("/").await.text(), "other", "by its turn");
        eventually(|| proxy.in_flight() == 0).await;
        let response = proxy.post("/", "hello").await;
        assert_eq!(response.status(), 504);
        assert_eq!(response.text(), "504 Gateway Timeout: the backend did not answer in time\n");
        assert_eq!(other.requests(), 2, "it may still be at work on it");
        let metrics = &proxy.snapshot().upstreams[0].state.metrics;
        assert_eq!(metrics.sum(|metrics| &metrics.retries[RetryCause::Timeout as usize]), 1);
        assert_eq!(proxy.state("u", backend).metrics.sum(|metrics| &metrics.timeouts), 2);
        eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
    }
    // By its own wish, or without a budget, an attempt is the last.
    for upstream in
        ["retries = { on = [\"connect_failure\"] }", "retries = 0", "retry_budget = { percent = 0, per_second = 0 }"]
    {
        let other = TestBackend::ok("other");
        let proxy = TestProxy::with_keys(&[&silent, &other], Keys { route, upstream, ..Keys::default() }).await;
        let mut client = proxy.client().await;
        assert_eq!(client.get("/").await.status(), 504, "{upstream}");
        assert_eq!(other.requests(), 0, "{upstream}");
        assert_eq!(client.get("/").await.text(), "other", "the client's connection goes on");
        eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
    }
}

/// `response_head` is the time of each attempt, `exchange` that of all together.
#[tokio::test]
async fn each_attempt_has_its_time_and_the_exchange_has_one() {
    let silent = || TestBackend::raw("", After::Hold);
    let pool = [silent(), silent(), silent()];
    let ms = Duration::from_millis;
    for (timeouts, least, reason, seen) in [
        ("response_head = \"200ms\"", ms(600), "the backend did not answer in time", [1, 1, 1]),
        ("response_head = \"200ms\", exchange = \"300ms\"", ms(300), "the exchange took longer", [2, 2, 1]),
    ] {
        let route = format!("timeouts = {{ {timeouts} }}");
        let proxy = TestProxy::with_keys(&pool.each_ref(), Keys { route: &route, ..Keys::default() }).await;
        let start = Instant::now();
        let response = proxy.get("/").await;
        assert!(start.elapsed() >= least, "{timeouts}: {:?}", start.elapsed());
        assert!(response.status() == 504 && response.text().contains(reason), "{timeouts}: {}", response.text());
        // Which is second is drawn.
        let mut requests = pool.each_ref().map(TestBackend::requests);
        requests.sort_by(|a, b| b.cmp(a));
        assert_eq!(requests, seen, "{timeouts}");
        eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
    }
}

#[tokio::test]
async fn the_connection_of_a_late_response_is_closed() {
    let backend = TestBackend::scripted(async |peer| {
        if peer.request().await.is_some() {
            peer.gone().await;
        }
    });
    let route = r#"timeouts = { response_head = "200ms" }"#;
    let proxy = TestProxy::with_keys(&[&backend], Keys { route, ..Keys::default() }).await;
    assert_eq!(proxy.get("/").await.status(), 504);
    eventually(|| backend.open() == 0).await;
}

#[tokio::test]
async fn the_whole_exchange() {
    let silent = TestBackend::raw("", After::Hold);
    let route = r#"timeouts = { exchange = "200ms" }"#;
    let proxy = TestProxy::with_keys(&[&silent], Keys { route, ..Keys::default() }).await;
    let response = proxy.get("/").await;
    assert_eq!(response.text(), "504 Gateway Timeout: the exchange took longer than this route allows\n");

    // A body that always moves, and never ends.
    let endless = TestBackend::scripted(async |peer| {
        if peer.request().await.is_some() {
            peer.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            while peer.stream.write("1\r\nx\r\n").await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
    });
    let proxy = TestProxy::with_keys(&[&endless], Keys { route, ..Keys::default() }).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let cut = client.cut().await;
    assert_eq!(cut.head.expect("a head").status(), 200);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0 && endless.open() == 0).await;
}

#[tokio::test]
async fn the_next_piece_of_a_request() {
    let backend = TestBackend::scripted(async |peer| {
        let request = peer.request().await;
        assert!(request.is_none(), "a whole request: {request:?}");
    });
    let route = r#"timeouts = { body_idle = "200ms" }"#;
    let proxy = TestProxy::with_keys(&[&backend], Keys { route, ..Keys::default() }).await;
    for part in [
        "content-length: 10\r\n\r\n",
        "content-length: 10\r\n\r\nhello",
        "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "transfer-encoding: chunked\r\n\r\n5\r\nhe",
    ] {
        let mut client = proxy.client().await;
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\n{part}")).await;
        let response = client.response().await;
        assert_eq!((response.status(), response.header("connection")), (408, Some("close")), "{part:?}");
        client.closed().await;
    }
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0 && backend.open() == 0).await;
}

#[tokio::test]
async fn the_next_piece_of_a_response() {
    let route = r#"timeouts = { body_idle = "200ms" }"#;
    for framing in ["content-length: 10\r\n\r\nhello", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
        let backend = TestBackend::scripted(async move |peer| {
            if peer.request().await.is_some() {
                peer.write(format!("HTTP/1.1 200 OK\r\n{framing}")).await;
                peer.gone().await;
            }
        });
        let proxy = TestProxy::with_keys(&[&backend], Keys { route, ..Keys::default() }).await;
        let mut client = proxy.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let cut = client.cut().await;
        assert_eq!((cut.head.expect("a head").status(), &cut.body[..]), (200, &b"hello"[..]), "{framing:?}");
        eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0 && backend.open() == 0).await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_its_response() {
    let backend = TestBackend::scripted(async |peer| {
        if peer.request().await.is_some() {
            peer.write("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await;
            let piece = vec![b'x'; 1 << 20];
            while peer.stream.write(&piece).await.is_ok() {}
        }
    });
    let route = r#"timeouts = { body_idle = "200ms" }"#;
    let proxy = TestProxy::with_keys(&[&backend], Keys { route, ..Keys::default() }).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| backend.requests() == 1).await;
    eventually(|| proxy.in_flight() == 0 && backend.open() == 0 && proxy.connections() == [0]).await;
}

#[tokio::test]
async fn a_connection_whose_body_outlasted_its_answer_is_idle_for_no_longer_than_others() {
    let backend = TestBackend::scripted(async |peer| {
        while let Some(head) = peer.head().await {
            peer.respond("200 OK", "early").await;
            peer.body(&head).await;
        }
    });
    let keys =
        Keys { listener: r#"idle_timeout = "500ms""#, route: r#"timeouts = { body_idle = "60s" }"#, ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n12345").await;
    assert_eq!(client.response().await.text(), "early");
    client.send("67890").await;
    client.closed().await;
}
