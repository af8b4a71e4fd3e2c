//! An answer that comes before all of its request: its client sees it, and the connection goes on where it can.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::harness::{Keys, TestBackend, TestProxy, eventually, soon};

/// More than sockets between the two hold.
const MUCH: usize = 40_000_000;

const LENGTH: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 40000000\r\n\r\n";
const CHUNKED: &str = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2625a00\r\n";

#[tokio::test]
async fn a_client_that_writes_before_it_reads_sees_a_refusal() {
    let backend = TestBackend::echo();
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener: "max_body = 1000", ..Keys::default() }).await;
    for head in [LENGTH, CHUNKED] {
        let mut client = proxy.client().await;
        client.send(head).await;
        assert!(client.try_send(vec![b'x'; MUCH]).await, "all of it is taken: {head}");
        let response = client.response().await;
        assert_eq!((response.status(), response.header("connection")), (413, Some("close")), "{head}");
    }
    eventually(|| proxy.connections() == [0]).await;
}

#[tokio::test]
async fn what_is_thrown_away_is_bounded() {
    let backend = TestBackend::echo();
    for bound in [r#"bytes = "64KiB""#, "bytes = 0", r#"time = "1ms""#] {
        let listener = format!("max_body = 1000\nlingering = {{ {bound} }}");
        let proxy = TestProxy::with_keys(&[&backend], Keys { listener: &listener, ..Keys::default() }).await;
        let mut client = proxy.client().await;
        client.send(LENGTH).await;
        assert!(!client.try_send(vec![b'x'; MUCH]).await, "{bound}");
        eventually(|| proxy.connections() == [0]).await;
    }
    // One that sends nothing more, and does not close its end.
    let listener = "max_body = 1000\nlingering = { idle = \"100ms\" }";
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener, ..Keys::default() }).await;
    let mut client = proxy.client().await;
    client.send(LENGTH).await;
    assert_eq!(client.response().await.status(), 413);
    let begun = Instant::now();
    eventually(|| proxy.connections() == [0]).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

/// Answers a POST at once, and is gone once that was told of; anything else as usual.
fn hasty(head: &'static str, gone: &Arc<Notify>) -> TestBackend {
    let gone = Arc::clone(gone);
    TestBackend::scripted(async move |peer| {
        while let Some(head_of) = peer.head().await {
            if head_of.method() == "POST" {
                peer.respond(head, "no").await;
                gone.notified().await;
                return;
            }
            peer.respond("200 OK", "yes").await;
        }
    })
}

#[tokio::test]
async fn what_no_backend_takes_is_read_and_the_next_request_served() {
    let gone = Arc::new(Notify::new());
    let backend = hasty("403 Forbidden", &gone);
    let proxy = TestProxy::over(&[&backend]).await;
    for (head, end) in [(LENGTH, ""), (CHUNKED, "\r\n0\r\n\r\n")] {
        let mut client = proxy.client().await;
        client.send([head, "x"].concat()).await;
        let response = client.response().await;
        assert_eq!((response.status(), response.header("connection")), (403, None));
        gone.notify_one();
        client.send([&vec![b'x'; MUCH - 1], end.as_bytes()].concat()).await;
        assert_eq!(client.get("/").await.text(), "yes");
    }
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn a_backend_that_closes_behind_its_early_answer_has_the_client_told() {
    let gone = Arc::new(Notify::new());
    let backend = hasty("401 Unauthorized\r\nconnection: close", &gone);
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    client.send([LENGTH, "x"].concat()).await;
    let response = client.response().await;
    assert_eq!((response.status(), response.header("connection")), (401, Some("close")));
    gone.notify_one();
    assert!(client.try_send(vec![b'x'; MUCH - 1]).await, "and what it still sends is taken");
    client.closed().await;
    // It says nothing of one whose request is over.
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").await;
    let response = client.response().await;
    assert_eq!((response.status(), response.header("connection")), (401, None));
    gone.notify_one();
    assert_eq!(client.get("/").await.text(), "yes");
}

#[tokio::test]
async fn small_chunks_go_together() {
    let pieces = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&pieces);
    let backend = TestBackend::scripted(async move |peer| {
        let _ = peer.head().await;
        let mut body = 0;
        loop {
            let line = peer.stream.line().await.unwrap();
            let size = usize::from_str_radix(line.trim(), 16).unwrap();
            let mut piece = Vec::new();
            peer.stream.exact(size, &mut piece).await.unwrap();
            assert!(piece.iter().all(|&byte| byte == b'x'));
            body += size;
            let _ = peer.stream.line().await;
            if size == 0 {
                break;
            }
            counted.fetch_add(1, SeqCst);
        }
        peer.respond("200 OK", body.to_string()).await;
    });
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    // Of one byte and of more, with an extension among them, and where reads cut them.
    let chunks = format!("{}2;a=b\r\nxx\r\n{}", "1\r\nx\r\n".repeat(10_000), "00a\r\nxxxxxxxxxx\r\n".repeat(1000));
    client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")).await;
    assert_eq!(client.response().await.text(), "20002");
    assert!(pieces.load(SeqCst) < 500, "{} pieces", pieces.load(SeqCst));
}

const ASKS: &str = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
const PASS: Keys<'_> = Keys { listener: "", route: "expect = \"pass\"", upstream: "retries = 0", tables: "" };

#[tokio::test]
async fn a_backend_that_is_asked_says_go_on() {
    let go = Arc::new(Notify::new());
    let wait = Arc::clone(&go);
    let backend = TestBackend::scripted(async move |peer| {
        while let Some(head) = peer.head().await {
            assert_eq!(head.get("expect"), Some("100-continue"));
            assert!(peer.stream.buffer.is_empty(), "no body yet");
            wait.notified().await;
            peer.write("HTTP/1.1 100 Continue\r\n\r\n").await;
            let message = peer.body(&head).await.unwrap();
            peer.respond("200 OK", message.body).await;
        }
    });
    let long = "expect = \"pass\"\ntimeouts = { expect = \"1m\" }";
    let proxy = TestProxy::with_keys(&[&backend], Keys { route: long, ..PASS }).await;
    let mut client = proxy.client().await;
    for n in 1..3 {
        client.send(ASKS).await;
        eventually(|| backend.requests() == n).await;
        let early = tokio::time::timeout(Duration::from_millis(50), client.stream.tcp.peek(&mut [0])).await;
        assert!(early.is_err(), "not before the backend says so");
        go.notify_one();
        assert_eq!(soon(client.stream.head()).await.unwrap().unwrap().status(), 100);
        client.send("hello").await;
        let response = client.response().await;
        assert_eq!((response.text(), response.informational.len()), ("hello", 0));
    }
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn a_backend_that_is_asked_refuses_before_the_body() {
    let backend = TestBackend::scripted(async |peer| {
        let _ = peer.head().await;
        peer.respond("417 Expectation Failed", "no").await;
        let more = peer.stream.more().await;
        assert!(!more.unwrap_or(false), "nothing of the body: {:?}", peer.stream.buffer);
    });
    let proxy = TestProxy::with_keys(&[&backend], PASS).await;
    for head in [ASKS, &ASKS.replace("content-length: 5", "transfer-encoding: chunked")] {
        let mut client = proxy.client().await;
        client.send(head).await;
        let response = client.response().await;
        // Whether the body still comes is for the client to say, and it says it nowhere.
        assert_eq!((response.status(), response.header("connection")), (417, Some("close")));
        assert!(response.informational.is_empty());
        client.closed().await;
    }
    eventually(|| proxy.in_flight() == 0 && backend.open() == 0).await;
    drop(backend);
}

#[tokio::test]
async fn a_backend_that_does_not_say_is_not_waited_for_for_ever() {
    let backend = TestBackend::echo();
    let route = "expect = \"pass\"\ntimeouts = { expect = \"100ms\" }";
    let proxy = TestProxy::with_keys(&[&backend], Keys { route, ..PASS }).await;
    let mut client = proxy.client().await;
    client.send(ASKS).await;
    assert_eq!(soon(client.stream.head()).await.unwrap().unwrap().status(), 100);
    client.send("hello").await;
    assert_eq!(client.response().await.json()["body"], "hello");
    // Nor is a client that does not wait.
    client.send([ASKS, "hello"].concat()).await;
    let response = client.response().await;
    assert_eq!((response.json()["body"].as_str(), response.informational.len()), (Some("hello"), 0));
    // One that asks nothing has nothing asked for it.
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello").await;
    assert_eq!(client.response().await.json()["body"], "hello");
    assert_eq!(backend.last_head().get("expect"), None);
}
