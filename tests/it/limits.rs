//! What is too large, too many or too slow is told so, and the connection ends.

use crate::harness::{Client, Keys, TestBackend, TestProxy, eventually};

#[tokio::test]
async fn bodies_up_to_the_limit() {
    let backend = TestBackend::echo();
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener: "max_body = 1000", ..Keys::default() }).await;
    let whole = "x".repeat(1000);
    assert_eq!(proxy.post("/", &whole).await.json()["body"], whole);
    let mut client = proxy.client().await;
    client
        .send(format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3e8\r\n{whole}\r\n0\r\n\r\n"))
        .await;
    assert_eq!(client.response().await.json()["body"], whole);
    assert_eq!(backend.requests(), 2);
}

#[tokio::test]
async fn a_length_over_the_limit_is_413() {
    let backend = TestBackend::echo();
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener: "max_body = 1000", ..Keys::default() }).await;
    for sent in [0, 1001, 3_000_000] {
        let mut client = proxy.client().await;
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", sent.max(1001))).await;
        // The answer may come before all of it is sent, and must be read nevertheless.
        client.try_send("x".repeat(sent)).await;
        let response = client.response().await;
        assert_eq!((response.status(), response.header("connection")), (413, Some("close")), "{sent} sent");
        client.closed().await;
    }
    assert_eq!(backend.connections(), 0);
    eventually(|| proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn chunks_over_the_limit_are_413() {
    let backend = TestBackend::scripted(async |peer| {
        let request = peer.request().await;
        assert!(request.is_none(), "a whole request: {request:?}");
    });
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener: "max_body = 1000", ..Keys::default() }).await;
    for more in [1, 1_000_000] {
        let mut client = proxy.client().await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
        client.send(format!("3e8\r\n{}\r\n", "x".repeat(1000))).await;
        client.try_send(format!("{more:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(more))).await;
        let response = client.response().await;
        assert_eq!((response.status(), response.header("connection")), (413, Some("close")));
        client.closed().await;
    }
    eventually(|| proxy.in_flight() == 0 && backend.open() == 0).await;
}

#[tokio::test]
async fn a_connection_too_many_is_503() {
    let backend = TestBackend::ok("a");
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener: "max_connections = 2", ..Keys::default() }).await;
    let mut kept = [proxy.client().await, proxy.client().await];
    for client in &mut kept {
        assert_eq!(client.get("/").await.status(), 200);
    }
    for _ in 0..3 {
        let mut third = proxy.client().await;
        let response = third.response().await;
        assert_eq!((response.status(), response.header("connection")), (503, Some("close")));
        third.closed().await;
    }
    for client in &mut kept {
        assert_eq!(client.get("/").await.status(), 200, "those that are open go on");
    }
    assert_eq!(proxy.counted(|metrics| &metrics.refused), 3);
    drop(kept);
    eventually(|| proxy.connections() == [0]).await;
    assert_eq!(proxy.get("/").await.status(), 200);
}

#[tokio::test]
async fn a_head_that_does_not_end_is_408() {
    let backend = TestBackend::ok("a");
    let proxy =
        TestProxy::with_keys(&[&backend], Keys { listener: r#"header_timeout = "200ms""#, ..Keys::default() }).await;
    for served in [0, 2] {
        for part in ["G", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nhost: a\r\nx: y"] {
            let mut client = proxy.client().await;
            for _ in 0..served {
                assert_eq!(client.get("/").await.status(), 200);
            }
            client.send(part).await;
            let response = client.response().await;
            assert_eq!((response.status(), response.header("connection")), (408, Some("close")), "{part:?}");
            client.closed().await;
        }
    }
    // A client that trickles does not gain time by it.
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nx: ").await;
    while client.stream.write("y").await.is_ok() {
        if tokio::time::timeout(std::time::Duration::from_millis(20), client.stream.more()).await.is_ok() {
            break;
        }
    }
    assert_eq!(client.response().await.status(), 408);
}

#[tokio::test]
async fn idle_connections_are_closed_without_a_word() {
    let backend = TestBackend::ok("a");
    let keys = Keys { listener: r#"idle_timeout = "200ms""#, ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    let mut fresh = proxy.client().await;
    let mut kept = proxy.client().await;
    kept.get("/").await;
    fresh.closed().await;
    kept.closed().await;
    eventually(|| proxy.connections() == [0]).await;
}

#[tokio::test]
async fn an_exchange_is_not_idle() {
    let backend = TestBackend::slow("a", std::time::Duration::from_millis(600));
    let keys = Keys { listener: "idle_timeout = \"100ms\"\nheader_timeout = \"100ms\"", ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    assert_eq!(proxy.get("/").await.text(), "a");
}

#[tokio::test]
async fn a_client_that_still_takes_a_response_is_not_idle() {
    let backend = TestBackend::scripted(async |peer| {
        let Some(request) = peer.request().await else { return };
        let path = request.head.target();
        let bytes: usize = path[1..].parse().unwrap();
        peer.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n{}", "x".repeat(bytes))).await;
    });
    let keys = Keys { listener: "idle_timeout = \"100ms\"", ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    // Among these is one that fits into the sockets' buffers but for an end that hyper keeps.
    let clients = (24..60).map(|size| {
        let (address, bytes) = (proxy.addresses()[0], size * 100_000);
        tokio::spawn(async move {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(65536).unwrap();
            let mut stream = socket.connect(address).await.unwrap();
            let request = format!("GET /{bytes} HTTP/1.1\r\nhost: a\r\n\r\n");
            tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
            let mut all = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut all).await.unwrap();
            let head = all.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
            assert_eq!(all.len() - head, bytes);
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}

#[tokio::test]
async fn limits_are_those_of_the_listener() {
    let backend = TestBackend::echo();
    let tables = "[[listener]]\nname = \"other\"\naddress = \"127.0.0.1:0\"\nmax_body = 10";
    let proxy = TestProxy::with_keys(&[&backend], Keys { tables, ..Keys::default() }).await;
    let addresses = proxy.addresses();
    for (address, status) in [(addresses[0], 200), (addresses[1], 413)] {
        let mut client = Client::connect(address).await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 11\r\n\r\nhello world").await;
        assert_eq!(client.response().await.status(), status);
    }
}

#[tokio::test]
async fn a_pool_of_none_keeps_none() {
    let backend = TestBackend::ok("a");
    let proxy =
        TestProxy::with_keys(&[&backend], Keys { upstream: "pool = { max_idle = 0 }", ..Keys::default() }).await;
    let mut client = proxy.client().await;
    for _ in 0..3 {
        client.get("/").await;
    }
    assert_eq!(backend.connections(), 3);
    eventually(|| backend.open() == 0).await;
}
