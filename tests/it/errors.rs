//! What goes wrong behind the proxy is told by status and in a sentence that names nothing of what is there.

use crate::harness::{After, Keys, Response, TestBackend, TestProxy, eventually};

#[track_caller]
fn is(response: &Response, status: u16, text: &str) {
    assert_eq!((response.status(), response.text()), (status, text));
    assert_eq!(response.header("content-type"), Some("text/plain; charset=utf-8"));
    assert!(response.header("date").is_some());
    for (name, value) in &response.head.fields {
        assert!(!value.contains("127.0.0.1"), "{name}: {value}");
    }
}

#[tokio::test]
async fn nobody_listens() {
    let backend = TestBackend::refusing();
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    for _ in 0..2 {
        let response = client.get("/").await;
        is(&response, 502, "502 Bad Gateway: no connection to a backend could be made\n");
    }
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn a_backend_breaks_off() {
    for (bytes, after) in [
        ("", After::Close),
        ("", After::Reset),
        ("HTTP/1.1 200 OK\r\ncontent-len", After::Close),
        ("HTTP/1.1 200 OK\r\ncontent-len", After::Reset),
        ("SSH-2.0-OpenSSH_9.2p1\r\n\r\n", After::Hold),
        ("HTTP/1.1 OK\r\n\r\n", After::Hold),
        ("HTTP/1.1 200 OK\r\nx y: z\r\n\r\n", After::Hold),
        ("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", After::Hold),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!", After::Hold),
        ("HTTP/1.1 103 Early Hints\r\n\r\n", After::Close),
    ] {
        let backend = TestBackend::raw(bytes, after);
        let proxy = TestProxy::over(&[&backend]).await;
        let mut client = proxy.client().await;
        for _ in 0..2 {
            let response = client.get("/").await;
            is(&response, 502, "502 Bad Gateway: the backend broke off before it answered\n");
        }
        assert_eq!(backend.requests(), 2, "{bytes:?}");
        eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
    }
}

#[tokio::test]
async fn no_backend_is_ready() {
    let backend = TestBackend::ok("a");
    let proxy = TestProxy::with_config(format!(
        r#"
        [[listener]]
        address = "127.0.0.1:0"
        [[route]]
        upstream = "u"
        [upstream.u]
        strategy = "weighted_round_robin"
        backends = [{{ address = "{}", weight = 0 }}]
        "#,
        backend.address()
    ))
    .await;
    let response = proxy.get("/").await;
    is(&response, 503, "503 Service Unavailable: no backend is ready\n");
    assert_eq!(response.header("retry-after"), Some("1"));
    assert_eq!(backend.connections(), 0);
}

#[tokio::test]
async fn no_route_matches() {
    let backend = TestBackend::ok("a");
    let proxy = TestProxy::with_keys(&[&backend], Keys { route: r#"path_prefix = "/api""#, ..Keys::default() }).await;
    let mut client = proxy.client().await;
    for target in ["/", "/apix", "/ap", "/API", "*"] {
        let method = if target == "*" { "OPTIONS" } else { "GET" };
        client.send(format!("{method} {target} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        is(&client.response().await, 404, "404 Not Found: no route matches this request\n");
    }
    assert_eq!(client.get("/api/x").await.text(), "a");
    assert_eq!(backend.requests(), 1);
}

#[tokio::test]
async fn an_error_answers_head_without_a_body() {
    let backend = TestBackend::refusing();
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    for _ in 0..2 {
        client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(client.response_to("HEAD").await.status(), 502);
    }
}

#[tokio::test]
async fn an_error_before_the_body_was_read() {
    // The connection cannot go on where the rest of the body might be taken for a request; the answer is read all the same.
    let backend = TestBackend::refusing();
    let proxy = TestProxy::over(&[&backend]).await;
    for len in [5, 5_000_000] {
        let mut client = proxy.client().await;
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {len}\r\n\r\n")).await;
        client.try_send("x".repeat(len)).await;
        assert_eq!(client.response().await.status(), 502);
    }
}
