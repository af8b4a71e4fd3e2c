//! Clients that give or take a byte now and then hold a request for a while, and not for ever.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Client, Keys, PATIENCE, TestBackend, TestProxy, eventually, soon};

/// Far below what a byte in 20 ms extends again and again.
const ROUTE: &str = r#"timeouts = { body_idle = "500ms" }"#;

fn keys(listener: &str) -> Keys<'_> {
    Keys { listener, route: ROUTE, ..Keys::default() }
}

/// Sends a byte each 20 ms until there is an answer, or `most` were sent: how many.
async fn trickle(client: &mut Client, byte: &[u8], most: usize) -> usize {
    for sent in 0..most {
        if !client.try_send(byte).await {
            return sent;
        }
        let pause = Duration::from_millis(20);
        if tokio::time::timeout(pause, client.stream.tcp.peek(&mut [0])).await.is_ok() {
            return sent;
        }
    }
    most
}

#[tokio::test]
async fn an_upload_that_trickles_is_408() {
    let backend = TestBackend::echo();
    let proxy = TestProxy::with_keys(&[&backend], keys("")).await;
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n").await;
    assert!(trickle(&mut client, b"x", 5_000).await < 5_000, "for ever");
    let response = client.response().await;
    assert_eq!((response.status(), response.header("connection")), (408, Some("close")));
    assert_eq!(response.text(), "408 Request Timeout: the request body did not arrive in time\n");
    assert_eq!(proxy.counted(|it| &it.slow_bodies[0]), 1);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn uploads_at_any_pace_may_trickle() {
    let backend = TestBackend::echo();
    for (head, piece, end) in
        [("transfer-encoding: chunked", &b"1\r\nx\r\n"[..], "0\r\n\r\n"), ("content-length: 100", &b"x"[..], "")]
    {
        let proxy = TestProxy::with_keys(&[&backend], keys("min_bytes_per_second = 0")).await;
        let mut client = proxy.client().await;
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\n{head}\r\n\r\n")).await;
        // Two seconds, four times as long as the others were given.
        trickle(&mut client, piece, 100).await;
        client.try_send(end).await;
        let response = client.response().await;
        assert_eq!((response.status(), response.json()["body"].as_str().map(str::len)), (200, Some(100)));
        assert_eq!(proxy.counted(|it| &it.slow_bodies[0]), 0);
    }
}

/// Five bytes of framing for each of the body are no pace.
#[tokio::test]
async fn an_upload_that_trickles_in_chunks_is_408() {
    let backend = TestBackend::echo();
    let proxy = TestProxy::with_keys(&[&backend], keys("")).await;
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
    assert!(trickle(&mut client, b"1\r\nx\r\n", 5_000).await < 5_000, "for ever");
    let response = client.response().await;
    assert_eq!((response.status(), response.header("connection")), (408, Some("close")));
    assert_eq!(proxy.counted(|it| &it.slow_bodies[0]), 1);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

/// Both sides of it are without an end, and each waits for the other.
#[tokio::test]
async fn a_conversation_may_trickle() {
    let backend = TestBackend::scripted(async |peer| {
        let _ = peer.head().await;
        peer.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        while let Ok(true) = peer.stream.more().await {
            let over = peer.stream.buffer.ends_with(b"0\r\n\r\n");
            peer.stream.buffer.clear();
            peer.write("1\r\ny\r\n").await;
            if over {
                break;
            }
        }
        peer.write("0\r\n\r\n").await;
    });
    let proxy = TestProxy::with_keys(&[&backend], keys("")).await;
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
    for _ in 0..75 {
        client.send("1\r\nx\r\n").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client.send("0\r\n\r\n").await;
    assert!(!client.response().await.text().is_empty());
    assert_eq!(proxy.counted(|it| &it.slow_bodies[0]), 0);
}

/// Reads some 1.3 MB a second of a response: how much, when it ends.
async fn sip(proxy: &TestProxy) -> usize {
    let mut tcp = soon(TcpStream::connect(proxy.address())).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let (mut piece, mut got) = (vec![0; 64 * 1024], 0);
    loop {
        match soon(tcp.read(&mut piece)).await {
            Ok(0) | Err(_) => return got,
            Ok(bytes) => got += bytes,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_response_that_is_sipped_is_cut() {
    // Above what the kernel holds, so that a while passes before it has room again, and yet the reader never seems to stand still.
    let route = r#"timeouts = { body_idle = "4s" }"#;
    let backend = TestBackend::ok(&"x".repeat(40_000_000));
    let keys = Keys { listener: "min_bytes_per_second = 10000000", route, ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    assert!(sip(&proxy).await < 40_000_000, "all of it");
    assert_eq!(proxy.counted(|it| &it.slow_bodies[1]), 1);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
    // Who is as slow and not asked to be faster gets all of it.
    let backend = TestBackend::ok(&"x".repeat(4_000_000));
    let proxy = TestProxy::with_keys(&[&backend], Keys { route, ..Keys::default() }).await;
    assert!(sip(&proxy).await > 4_000_000);
    assert_eq!(proxy.counted(|it| &it.slow_bodies[1]), 0);
}

#[tokio::test]
async fn streams_of_http2_keep_the_pace_together() {
    let backend = TestBackend::echo();
    let proxy = TestProxy::with_keys(&[&backend], keys("")).await;
    let tcp = soon(TcpStream::connect(proxy.address())).await.unwrap();
    let (send, connection) = soon(h2::client::handshake(tcp)).await.unwrap();
    tokio::spawn(connection);
    let request = |length: Option<usize>| {
        let mut request = http::Request::builder().method("POST").uri("http://a.example/");
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        request.body(()).unwrap()
    };
    // They keep it together or not at all, with a length or without.
    let mut ready = soon(send.clone().ready()).await.unwrap();
    let (unmeasured, mut stream) = ready.send_request(request(None), false).unwrap();
    let (measured, mut slow) = ready.send_request(request(Some(100_000)), false).unwrap();
    let mut measured = Box::pin(measured);
    let mut status = None;
    for _ in 0..5_000 {
        let _ = stream.send_data("x".into(), false);
        // Once it is answered it is reset.
        let _ = slow.send_data("x".into(), false);
        if let Ok(answer) = tokio::time::timeout(Duration::from_millis(20), &mut measured).await {
            status = Some(answer.unwrap().status().as_u16());
            break;
        }
    }
    assert_eq!(status, Some(408));
    assert_eq!(soon(unmeasured).await.unwrap().status(), 408);
}

#[tokio::test]
async fn a_window_that_is_opened_by_a_byte_is_no_reader() {
    let backend = TestBackend::ok(&"x".repeat(100_000));
    let proxy = TestProxy::with_keys(&[&backend], keys("")).await;
    let tcp = soon(TcpStream::connect(proxy.address())).await.unwrap();
    let mut builder = h2::client::Builder::new();
    let (send, connection) = soon(builder.initial_window_size(10).handshake::<_, bytes::Bytes>(tcp)).await.unwrap();
    tokio::spawn(connection);
    let mut ready = soon(send.ready()).await.unwrap();
    let request = http::Request::builder().uri("http://a.example/").body(()).unwrap();
    let response = soon(ready.send_request(request, true).unwrap().0).await.unwrap();
    let mut body = response.into_body();
    let (mut got, start) = (0, std::time::Instant::now());
    let error = loop {
        assert!(start.elapsed() < PATIENCE, "for ever");
        match soon(body.data()).await {
            Some(Ok(data)) => {
                got += data.len();
                tokio::time::sleep(Duration::from_millis(50)).await;
                let _ = body.flow_control().release_capacity(data.len());
            }
            Some(Err(error)) => break error,
            None => panic!("all of it"),
        }
    };
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
    assert!((10..10_000).contains(&got), "{got} bytes");
    assert_eq!(proxy.counted(|it| &it.slow_bodies[1]), 1);
}
