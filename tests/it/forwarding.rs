//! Messages pass as they are: methods, bodies and their framing, trailers, informational responses, versions, targets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::harness::{Keys, TestBackend, TestProxy, body_of, eventually, soon};

#[tokio::test]
async fn methods_and_targets() {
    let backend = TestBackend::echo();
    let keep = r#"paths = { dot_segments = "keep", encoded_slashes = "keep", duplicate_slashes = "keep" }"#;
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener: keep, ..Keys::default() }).await;
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "REPORT", "M-SEARCH"] {
        for target in ["/", "/a/b?c=d&e", "/a%2F../x?%20", "//x//", "/a/../b/./c", "/?", "/a;b=c,d!$&'()*+"] {
            let seen = proxy.request(method, target, &[], "").await.json();
            assert_eq!((&seen["method"], &seen["target"]), (&method.into(), &target.into()));
        }
    }
    let seen = proxy.request("OPTIONS", "*", &[], "").await.json();
    assert_eq!((&seen["method"], &seen["target"]), (&"OPTIONS".into(), &"*".into()));
}

#[tokio::test]
async fn connect_and_trace_are_refused() {
    let backend = TestBackend::echo();
    let proxy = TestProxy::over(&[&backend]).await;
    for line in ["TRACE / HTTP/1.1", "CONNECT example.com:443 HTTP/1.1"] {
        let mut client = proxy.client().await;
        client.send(format!("{line}\r\nhost: example.com:443\r\n\r\n")).await;
        let response = client.response().await;
        assert_eq!(response.status(), 405, "{line}");
        assert!(response.header("allow").is_some(), "{line}");
    }
    assert_eq!(backend.requests(), 0);
    eventually(|| proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let backend = TestBackend::scripted(async |peer| {
        while let Some(request) = peer.request().await {
            let body = if request.head.method() == "HEAD" { "" } else { "hello" };
            peer.write(format!("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx: y\r\n\r\n{body}")).await;
        }
    });
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    for _ in 0..2 {
        client.send("HEAD / HTTP/1.1\r\nhost: test\r\n\r\n").await;
        let response = client.response_to("HEAD").await;
        assert_eq!((response.status(), response.header("content-length")), (200, Some("5")));
        assert_eq!(client.get("/").await.text(), "hello");
    }
    assert_eq!(backend.connections(), 1, "both connections are used again after HEAD");
}

#[tokio::test]
async fn responses_without_a_body() {
    // In a 304 the length is that of the body which is not sent (RFC 9110 §8.6).
    for (head, length) in [
        ("204 No Content", None),
        ("304 Not Modified\r\netag: \"x\"", None),
        ("304 Not Modified\r\netag: \"x\"\r\ncontent-length: 1234", Some("1234")),
        ("200 OK\r\ncontent-length: 0", Some("0")),
    ] {
        let backend = TestBackend::fixed(format!("HTTP/1.1 {head}\r\nx: y\r\n\r\n"));
        let proxy = TestProxy::over(&[&backend]).await;
        let mut client = proxy.client().await;
        for _ in 0..3 {
            let response = client.get("/").await;
            assert!(head.starts_with(&response.status().to_string()), "{head}");
            assert_eq!(response.header("x"), Some("y"), "{head}");
            assert_eq!(response.header("content-length"), length, "{head}");
            assert_eq!(response.header("transfer-encoding"), None, "{head}");
            assert!(response.body.is_empty());
        }
        assert_eq!(backend.connections(), 1, "{head}");
        eventually(|| proxy.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn framings_of_responses() {
    for (framing, sent) in [
        ("content-length: 11", "hello world"),
        ("transfer-encoding: chunked", "5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"),
        ("connection: close", "hello world"),
    ] {
        let response = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n{sent}");
        let backend = match framing {
            "connection: close" => TestBackend::raw(response, crate::harness::After::Close),
            _ => TestBackend::fixed(response),
        };
        let proxy = TestProxy::over(&[&backend]).await;
        let mut client = proxy.client().await;
        for _ in 0..3 {
            let response = client.get("/").await;
            assert_eq!(response.text(), "hello world", "{framing}");
            let chunked = !framing.starts_with("content-length");
            assert_eq!(response.header("transfer-encoding"), chunked.then_some("chunked"), "{framing}");
            assert_eq!(response.header("content-length"), (!chunked).then_some("11"), "{framing}");
            assert_eq!(response.header("connection"), None, "{framing}");
        }
    }
}

#[tokio::test]
async fn framings_of_requests() {
    let backend = TestBackend::echo();
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 11\r\n\r\nhello world").await;
    assert_eq!(client.response().await.json()["body"], "hello world");
    assert_eq!(backend.last_head().get("content-length"), Some("11"));
    assert_eq!(backend.last_head().get("transfer-encoding"), None);

    client.send("POST / HTTP/1.1\r\nhost: test\r\nTransfer-Encoding: Chunked\r\n\r\n").await;
    for piece in ["5;ext=1\r\nhe", "llo\r", "\n6\r\n world\r\n", "0\r\n", "\r\n"] {
        client.send(piece).await;
    }
    assert_eq!(client.response().await.json()["body"], "hello world");
    assert_eq!(backend.last_head().get("transfer-encoding"), Some("chunked"));
    assert_eq!(backend.last_head().get("content-length"), None);

    // A body that is empty, and said to be.
    client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(client.response().await.json()["body"], "");
    assert_eq!(backend.last_head().get("content-length"), Some("0"));
    client.send("POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n").await;
    assert_eq!(client.response().await.json()["body"], "");
    // A GET with a body: odd, and legal.
    client.send("GET / HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\nhi").await;
    assert_eq!(client.response().await.json()["body"], "hi");
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn trailers_both_ways() {
    let backend = TestBackend::scripted(async |peer| {
        while let Some(request) = peer.request().await {
            assert_eq!(request.trailers, [("x-sum".to_owned(), "abc".to_owned())]);
            assert_eq!(request.head.get("te"), Some("trailers"));
            assert_eq!(request.head.get("trailer"), Some("x-sum"));
            peer.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-done\r\n\r\n").await;
            peer.write("2\r\nhi\r\n0\r\nx-done: yes\r\n\r\n").await;
        }
    });
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    for _ in 0..2 {
        client
            .send(
                "POST / HTTP/1.1\r\nhost: test\r\nte: trailers, deflate;q=0.5\r\nconnection: te\r\ntrailer: x-sum\r\n\
                 transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: abc\r\n\r\n",
            )
            .await;
        let response = client.response().await;
        assert_eq!(response.text(), "hi");
        assert_eq!(response.trailers, [("x-done".to_owned(), "yes".to_owned())]);
    }
    assert_eq!(backend.connections(), 1);
}

/// hyper asks for nothing after trailers, and an exchange that waited to be asked was never over.
#[tokio::test]
async fn an_exchange_with_trailers_is_complete() {
    let backend = TestBackend::scripted(async |peer| {
        while peer.request().await.is_some() {
            tokio::time::sleep(Duration::from_millis(500)).await;
            peer.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x\r\n\r\n0\r\nx: y\r\n\r\n").await;
        }
    });
    // The response is not waited for as the next piece of a body is.
    let keys = Keys { route: "timeouts = { body_idle = \"100ms\" }", ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    let mut client = proxy.client().await;
    for _ in 0..2 {
        client.send("POST / HTTP/1.1\r\nhost: test\r\nte: trailers\r\ntransfer-encoding: chunked\r\n").await;
        client.send("trailer: x-sum\r\n\r\n2\r\nhi\r\n0\r\nx-sum: abc\r\n\r\n").await;
        assert_eq!(client.response().await.status(), 200);
    }
    assert_eq!(backend.connections(), 1, "an exchange cut short would have closed the first");
}

/// Sends a body both ways at once, in the framing given, and compares every byte.
async fn large_both_ways(len: usize, chunked: bool) {
    let backend = TestBackend::scripted(async move |peer| {
        while let Some(request) = peer.request().await {
            assert!(request.body == body_of(len), "the body as it was sent");
            if !chunked {
                peer.respond("200 OK", &request.body).await;
                continue;
            }
            peer.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            for chunk in request.body.chunks(70_001) {
                peer.write([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat()).await;
            }
            peer.write("0\r\n\r\n").await;
        }
    });
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener: "max_body = \"20MB\"", ..Keys::default() }).await;
    let mut client = proxy.client().await;
    let body = body_of(len);
    if chunked {
        client.send("POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n").await;
        for chunk in body.chunks(90_001) {
            client.send([format!("{:X}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat()).await;
        }
        client.send("0\r\n\r\n").await;
    } else {
        client.send(format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {len}\r\n\r\n")).await;
        client.send(&body).await;
    }
    let response = client.response().await;
    assert_eq!(response.status(), 200);
    assert!(response.body == body, "the body as it was sent back");
    eventually(|| proxy.in_flight() == 0).await;
    assert_eq!(proxy.counted(|metrics| &metrics.bytes_in), len as u64);
    assert_eq!(proxy.counted(|metrics| &metrics.bytes_out), len as u64);
}

#[tokio::test]
async fn a_megabyte_both_ways() {
    large_both_ways(1_000_000, false).await;
    large_both_ways(1_000_000, true).await;
}

#[tokio::test]
async fn twenty_megabytes_both_ways() {
    large_both_ways(20_000_000, false).await;
    large_both_ways(20_000_000, true).await;
}

/// More than the buffers of all sockets on the way together.
const MUCH: usize = 96 << 20;
/// Sockets' buffers grow to about 10 MiB a connection, and there are two.
const HELD: usize = 40 << 20;

#[tokio::test]
async fn a_backend_that_does_not_read_stops_the_client() {
    let go = Arc::new(Notify::new());
    let told = Arc::clone(&go);
    let backend = TestBackend::scripted(async move |peer| {
        let Some(_) = peer.head().await else { return };
        told.notified().await;
        let mut read = peer.stream.buffer.len();
        while read < MUCH {
            peer.stream.buffer.clear();
            assert!(peer.stream.more().await.unwrap(), "ends after {read}");
            read += peer.stream.buffer.len();
        }
        assert_eq!(read, MUCH);
        peer.respond("200 OK", "all of it").await;
    });
    let proxy =
        TestProxy::with_keys(&[&backend], Keys { listener: "max_body = \"unlimited\"", ..Keys::default() }).await;
    let mut client = proxy.client().await;
    client.send(format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {MUCH}\r\n\r\n")).await;
    let piece = vec![b'x'; 1 << 20];
    let mut sent = 0;
    let mut write = async |until: Option<Duration>, bytes: &[u8]| match until {
        Some(until) => timeout(until, client.stream.tcp.write(bytes)).await.ok().map(Result::unwrap),
        None => Some(soon(client.stream.tcp.write(bytes)).await.unwrap()),
    };
    // A pause that is taken for the end too early fails nothing.
    while let Some(n) = write(Some(Duration::from_millis(300)), &piece[..piece.len().min(MUCH - sent)]).await {
        sent += n;
        assert!(sent < HELD, "the client could send {sent} bytes to a backend that reads none");
    }
    assert_eq!(proxy.in_flight(), 1);
    go.notify_one();
    while sent < MUCH {
        sent += write(None, &piece[..piece.len().min(MUCH - sent)]).await.unwrap();
    }
    assert_eq!(client.response().await.text(), "all of it");
    eventually(|| proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_backend() {
    let sent = Arc::new(AtomicUsize::new(0));
    let stalled = Arc::new(Notify::new());
    let (count, tell) = (Arc::clone(&sent), Arc::clone(&stalled));
    let backend = TestBackend::scripted(async move |peer| {
        let Some(_) = peer.head().await else { return };
        peer.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {MUCH}\r\n\r\n")).await;
        let piece = vec![b'x'; 1 << 20];
        let mut n = 0;
        while n < MUCH {
            let write = peer.stream.tcp.write(&piece[..piece.len().min(MUCH - n)]);
            let mut write = std::pin::pin!(write);
            n += match timeout(Duration::from_millis(300), &mut write).await {
                Ok(written) => written.unwrap(),
                Err(_) => {
                    tell.notify_one();
                    write.await.unwrap()
                }
            };
            count.store(n, SeqCst);
        }
        peer.gone().await;
    });
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    soon(stalled.notified()).await;
    let held = sent.load(SeqCst);
    assert!(held < HELD, "the backend could send {held} bytes to a client that reads none");
    let response = client.response().await;
    assert_eq!(response.body.len(), MUCH);
    eventually(|| proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn early_hints_come_before_the_response() {
    let go = Arc::new(Notify::new());
    let told = Arc::clone(&go);
    let backend = TestBackend::scripted(async move |peer| {
        while peer.request().await.is_some() {
            peer.write("HTTP/1.1 100 Continue\r\n\r\n").await;
            peer.write("HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\nconnection: x\r\n\r\n").await;
            told.notified().await;
            peer.write("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
    });
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
        let hints = soon(client.stream.head()).await.unwrap().unwrap();
        assert_eq!((hints.status(), hints.get("link"), hints.get("connection")), (103, Some("</a.css>"), None));
        go.notify_one();
        let response = client.response().await;
        assert_eq!((response.status(), response.text()), (200, "ok"));
        let further: Vec<_> = response.informational.iter().map(|head| head.status()).collect();
        assert_eq!(further, [102]);
    }
    // HTTP/1.0 does not know them (RFC 9110 §15.2).
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    go.notify_one();
    let response = client.response().await;
    assert_eq!((response.status(), response.informational.len()), (200, 0));
}

#[tokio::test]
async fn expect_100_continue() {
    let backend = TestBackend::echo();
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener: "max_body = 10", ..Keys::default() }).await;
    let mut client = proxy.client().await;
    for _ in 0..2 {
        client.send("POST / HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n").await;
        let go_on = soon(client.stream.head()).await.unwrap().unwrap();
        assert_eq!(go_on.status(), 100);
        client.send("hello").await;
        let response = client.response().await;
        assert_eq!(response.json()["body"], "hello");
        assert!(response.informational.is_empty(), "one 100 is enough");
        assert_eq!(backend.last_head().get("expect"), None);
    }
    // The body is not asked for when it would be refused.
    client.send("POST / HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 11\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!((response.status(), response.informational.len()), (413, 0));
    client.closed().await;
    assert_eq!(backend.requests(), 2);
}

#[tokio::test]
async fn clients_of_http_1_0() {
    let plain = TestBackend::ok("plain");
    let chunked = TestBackend::fixed("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n");
    for (backend, body) in [(&plain, "plain"), (&chunked, "hi")] {
        let proxy = TestProxy::over(&[backend]).await;
        // Without keep-alive the connection ends with the response, and so may the body.
        let mut client = proxy.client().await;
        client.send("GET / HTTP/1.0\r\n\r\n").await;
        let response = client.response().await;
        assert_eq!((response.status(), response.text()), (200, body));
        assert_eq!(response.header("transfer-encoding"), None);
        client.closed().await;
        assert!(backend.last_head().line.ends_with(" HTTP/1.1"), "the proxy speaks its own version");
    }
    let proxy = TestProxy::over(&[&plain]).await;
    let mut client = proxy.client().await;
    for _ in 0..3 {
        client.send("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await;
        let response = client.response().await;
        assert_eq!(response.text(), "plain");
        assert_eq!(response.header("connection").map(str::to_ascii_lowercase).as_deref(), Some("keep-alive"));
    }
    // A body with a length.
    client.send("POST / HTTP/1.0\r\ncontent-length: 2\r\n\r\nhi").await;
    assert_eq!(client.response().await.text(), "plain");
    client.closed().await;
}

#[tokio::test]
async fn a_target_with_a_host_outweighs_the_field() {
    let backend = TestBackend::echo();
    let proxy = TestProxy::over(&[&backend]).await;
    for (target, host, path) in [
        ("http://example.com/x?y", "example.com", "/x?y"),
        ("http://example.com:81", "example.com:81", "/"),
        ("http://example.com?q", "example.com", "/?q"),
    ] {
        let seen = proxy.request("GET", target, &[("host", "other")], "").await.json();
        assert_eq!(seen["target"], path, "{target}");
        let head = backend.last_head();
        assert_eq!((head.get("host"), head.get("x-forwarded-host")), (Some(host), Some(host)), "{target}");
    }
    for target in ["ftp://example.com/", "http://user@example.com/"] {
        assert_eq!(proxy.request("GET", target, &[], "").await.status(), 400, "{target}");
    }
    assert_eq!(backend.requests(), 3);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let backend = TestBackend::echo();
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    let mut all = String::new();
    for i in 0..20 {
        match i % 2 {
            0 => all.push_str(&format!("GET /{i} HTTP/1.1\r\nhost: test\r\n\r\n")),
            _ => all.push_str(&format!("POST /{i} HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\nhi")),
        }
    }
    client.send(all).await;
    for i in 0..20 {
        assert_eq!(client.response().await.json()["target"], format!("/{i}"));
    }
    assert_eq!((backend.requests(), backend.connections()), (20, 1));
}

#[tokio::test]
async fn connection_close_is_obeyed_and_kept_to_this_hop() {
    let backend = TestBackend::ok("a");
    let proxy = TestProxy::over(&[&backend]).await;
    for _ in 0..2 {
        let mut client = proxy.client().await;
        client.send("GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
        let response = client.response().await;
        assert_eq!((response.text(), response.header("connection")), ("a", Some("close")));
        client.closed().await;
    }
    assert_eq!(backend.connections(), 1, "the backend's connection goes on");
}

#[tokio::test]
async fn a_status_without_a_reason() {
    for line in ["HTTP/1.1 200", "HTTP/1.1 299", "HTTP/1.1 200 \u{e9}t\u{e9}"] {
        let backend = TestBackend::fixed(format!("{line}\r\ncontent-length: 2\r\n\r\nok"));
        let proxy = TestProxy::over(&[&backend]).await;
        assert_eq!(proxy.get("/").await.text(), "ok", "{line:?}");
    }
}

#[tokio::test]
async fn an_informational_response_with_bare_line_feeds_ends_where_the_client_sees_it() {
    let backend =
        TestBackend::fixed("HTTP/1.1 103 Early Hints\nlink: </a>\n\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let proxy = TestProxy::over(&[&backend]).await;
    let response = proxy.get("/").await;
    assert_eq!((response.informational.len(), response.status(), response.text()), (1, 200, "ok"));
    assert_eq!(response.informational[0].get("link"), Some("</a>"));
}

#[tokio::test]
async fn a_client_that_is_still_sending_when_its_connection_ends_can_read_the_answer() {
    let backend = TestBackend::scripted(async |peer| {
        peer.head().await.unwrap();
        peer.write("HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno").await;
        peer.gone().await;
    });
    let proxy = TestProxy::over(&[&backend]).await;
    for length in [100_000, 1_000_000] {
        let mut client = proxy.client().await;
        client
            .send(format!("POST / HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"))
            .await;
        assert_eq!(soon(client.stream.head()).await.unwrap().unwrap().status(), 413);
        for _ in 0..10 {
            // A reset here would have thrown away what the client has not read.
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(client.try_send([b'x'; 100]).await, "{length}");
        }
        assert_eq!(client.read_to_end().await, b"no");
        drop(client);
        eventually(|| proxy.in_flight() == 0 && proxy.connections() == [0]).await;
        eventually(|| backend.open() == 0).await;
    }
}
