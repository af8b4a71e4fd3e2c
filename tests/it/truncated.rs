//! A response that is cut short behind the proxy is cut short before it: no client takes a part for the whole.

use crate::harness::{After, Keys, TestBackend, TestProxy, body_of, eventually};

#[tokio::test]
async fn the_client_sees_the_cut() {
    for after in [After::Close, After::Reset] {
        for (framed, body) in [
            ("content-length: 10\r\n\r\nhello", "hello"),
            ("content-length: 10\r\n\r\n", ""),
            ("transfer-encoding: chunked\r\n\r\n", ""),
            ("transfer-encoding: chunked\r\n\r\n5\r\nhel", "hel"),
            ("transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "hello"),
            ("transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", "hello"),
            ("transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: y\r\n", "hello"),
            ("transfer-encoding: chunked\r\n\r\n5\r\nhello\r\nnonsense\r\n", "hello"),
        ] {
            let backend = TestBackend::raw(format!("HTTP/1.1 200 OK\r\n{framed}"), after);
            // Small as they are they would be held back.
            let keys = Keys { upstream: "retries = { response_buffer = 0 }", ..Keys::default() };
            let proxy = TestProxy::with_keys(&[&backend], keys).await;
            let mut client = proxy.client().await;
            client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            let cut = client.cut().await;
            // A reset may overtake what was sent before it, and is then no answer at all to the proxy; it is told by 502.
            if let (After::Close, Some(head)) = (after, cut.head) {
                assert_eq!(head.status(), 200);
                assert!(body.as_bytes().starts_with(&cut.body), "{framed:?}: {:?}", cut.body);
            }
            eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
        }
    }
}

#[tokio::test]
async fn what_came_before_the_cut_is_passed_on() {
    let body = body_of(3_000_000);
    let sent = body.clone();
    let backend = TestBackend::scripted(async move |peer| {
        if peer.request().await.is_some() {
            peer.write("HTTP/1.1 200 OK\r\ncontent-length: 4000000\r\n\r\n").await;
            peer.write(&sent).await;
        }
    });
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let cut = client.cut().await;
    assert!(body.starts_with(&cut.body));
    assert!(cut.body.len() > 1_000_000, "{}", cut.body.len());
    eventually(|| proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn more_than_the_length_is_not_passed_on() {
    let backend = TestBackend::raw(
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        After::Hold,
    );
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    for _ in 0..3 {
        assert_eq!(client.get("/").await.text(), "hello", "a response nobody asked for answers nobody");
    }
    assert_eq!(backend.connections(), 3, "a connection that says more than it was asked is not used again");
}

#[tokio::test]
async fn a_client_of_http_1_0_sees_the_cut_too() {
    // Its response ends with the connection, so the end must not look like one.
    let backend = TestBackend::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", After::Close);
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    let cut = client.cut().await;
    assert_eq!(cut.error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_head_that_came_before_the_cut_is_passed_on() {
    // Nothing at all would tell the client of a connection that was used before to send its request once more.
    let backend = TestBackend::raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", After::Close);
    let proxy = TestProxy::over(&[&backend]).await;
    for _ in 0..30 {
        let mut client = proxy.client().await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").await;
        let cut = client.cut().await;
        assert_eq!((cut.head.map(|head| head.status()), &cut.body[..]), (Some(200), &b"hello"[..]));
    }
}
