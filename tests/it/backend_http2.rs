//! HTTP/2 to backends: connections are shared, and what they do to each other is nobody's fault but the backend's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use tokio::net::TcpListener;

use crate::harness::{Client, TestProxy, body_of, eventually, soon};

/// A backend that speaks HTTP/2 in the clear, and does with each request what its path says.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    counts: Arc<Counts>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    open: AtomicUsize,
    requests: AtomicUsize,
    refused: AtomicUsize,
    resets: AtomicUsize,
    last: Mutex<Option<Request<()>>>,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Script {
    streams_max: Option<u32>,
    /// The first so many streams are refused.
    refuses: usize,
    /// After so many requests a connection says that it goes away.
    goes_away_after: Option<usize>,
}

impl Backend {
    pub(crate) async fn new(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::<Counts>::default();
        let counted = Arc::clone(&counts);
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let counts = Arc::clone(&counted);
                counts.connections.fetch_add(1, SeqCst);
                counts.open.fetch_add(1, SeqCst);
                tokio::spawn(async move {
                    let mut builder = h2::server::Builder::new();
                    if let Some(max) = script.streams_max {
                        builder.max_concurrent_streams(max);
                    }
                    if let Ok(mut connection) = builder.handshake::<_, Bytes>(tcp).await {
                        let mut taken = 0;
                        while let Some(Ok((request, mut respond))) = connection.accept().await {
                            taken += 1;
                            if counts.refused.load(SeqCst) < script.refuses {
                                counts.refused.fetch_add(1, SeqCst);
                                respond.send_reset(Reason::REFUSED_STREAM);
                                continue;
                            }
                            counts.requests.fetch_add(1, SeqCst);
                            tokio::spawn(answer(request, respond, Arc::clone(&counts)));
                            if script.goes_away_after == Some(taken) {
                                connection.graceful_shutdown();
                            }
                        }
                    }
                    counts.open.fetch_sub(1, SeqCst);
                });
            }
        });
        Self { address, counts, task }
    }

    pub(crate) fn requests(&self) -> usize {
        self.counts.requests.load(SeqCst)
    }

    pub(crate) fn open(&self) -> usize {
        self.counts.open.load(SeqCst)
    }

    pub(crate) fn connections(&self) -> usize {
        self.counts.connections.load(SeqCst)
    }

    pub(crate) async fn proxy(&self, keys: &str) -> TestProxy {
        let (listener, route) = ("[[listener]]\naddress = \"127.0.0.1:0\"", "[[route]]\nupstream = \"u\"");
        let backend = format!("[upstream.u]\nbackends = [\"{}\"]\nprotocol = \"http2\"", self.address);
        TestProxy::with_config(format!("workers = 1\n{listener}\n{route}\n{backend}\n{keys}\n")).await
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, counts: Arc<Counts>) {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path().to_owned();
    *counts.last.lock().unwrap() = Some(Request::from_parts(head, ()));
    match path.as_str() {
        "/reset" => return respond.send_reset(Reason::INTERNAL_ERROR),
        "/held" => {
            std::future::poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
            counts.resets.fetch_add(1, SeqCst);
            return;
        }
        "/late" => {
            // The frame that ends the stream comes a while behind the last byte.
            let length = Response::builder().header("content-length", 5).body(()).unwrap();
            let mut send = respond.send_response(length, false).unwrap();
            send.send_data(Bytes::from_static(b"hello"), false).unwrap();
            let reset = std::future::poll_fn(|cx| send.poll_reset(cx));
            if tokio::time::timeout(Duration::from_millis(50), reset).await.is_ok() {
                counts.resets.fetch_add(1, SeqCst);
            }
            let _ = send.send_data(Bytes::new(), true);
            return;
        }
        "/asked" | "/refused" => {
            assert_eq!(counts.last.lock().unwrap().as_ref().unwrap().headers()["expect"], "100-continue");
            if path == "/refused" {
                let refused = Response::builder().status(417).body(()).unwrap();
                let _ = respond.send_response(refused, true);
                assert!(body.data().await.is_none_or(|data| data.is_err()), "nothing of the body");
                return;
            }
            respond.send_informational(Response::builder().status(100).body(()).unwrap()).unwrap();
        }
        "/slow" => tokio::time::sleep(Duration::from_millis(100)).await,
        "/endless" => {
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            send.send_data(Bytes::from_static(b"begun"), false).unwrap();
            std::future::poll_fn(|cx| send.poll_reset(cx)).await.unwrap();
            counts.resets.fetch_add(1, SeqCst);
            return;
        }
        _ => {}
    }
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let Ok(data) = data else { return };
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    let trailers = body.trailers().await.ok().flatten();
    let mut response = Response::new(());
    if matches!(path.as_str(), "/length" | "/length/trailers") {
        response.headers_mut().insert("content-length", bytes.len().into());
    }
    if path == "/length/trailers" {
        response.headers_mut().insert("trailer", "x-checksum".parse().unwrap());
    }
    if path == "/empty" {
        // Without an end or a byte, as some servers flush.
        let mut send = respond.send_response(response, false).unwrap();
        for _ in 0..60 {
            send.send_data(Bytes::new(), false).unwrap();
        }
        let _ = send.send_data(Bytes::from_static(b"end"), true);
        return;
    }
    if path == "/quoted" {
        let name = http::HeaderName::from_lowercase(b"a\"b").unwrap();
        response.headers_mut().insert(name, "c".parse().unwrap());
    }
    if path == "/hints" {
        for (status, link) in [(100, "none"), (103, "</a.css>"), (103, "</b.css>")] {
            let hint = Response::builder().status(status).header("link", link).header("x-hint", "1").body(()).unwrap();
            respond.send_informational(hint).unwrap();
        }
    }
    let Ok(mut send) = respond.send_response(response, false) else { return };
    let mut left = Bytes::from(bytes);
    while !left.is_empty() {
        send.reserve_capacity(left.len());
        let Some(Ok(room)) = std::future::poll_fn(|cx| send.poll_capacity(cx)).await else { return };
        let _ = send.send_data(left.split_to(room.min(left.len())), false);
    }
    if path.ends_with("/trailers") {
        let mut back = HeaderMap::new();
        back.insert("x-checksum", "abc".parse().unwrap());
        back.extend(trailers.unwrap_or_default());
        let _ = send.send_trailers(back);
    } else {
        let _ = send.send_data(Bytes::new(), true);
    }
}

/// So many requests at a time, each on a connection of its own: how many were answered 200.
async fn at_once(proxy: &TestProxy, count: usize, target: &str) -> usize {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client: Client = proxy.client().await;
        client.send(format!("GET {target} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
        clients.push(client);
    }
    let mut good = 0;
    for mut client in clients {
        good += usize::from(client.response().await.status() == 200);
    }
    good
}

#[tokio::test]
async fn exchanges_share_a_connection() {
    let backend = Backend::new(Script::default()).await;
    let proxy = backend.proxy("").await;
    assert_eq!(at_once(&proxy, 20, "/slow?q").await, 20);
    assert_eq!((backend.connections(), backend.requests()), (1, 20));
    let head = backend.counts.last.lock().unwrap().take().unwrap();
    assert_eq!(head.uri().to_string(), "http://test/slow?q");
    assert_eq!(head.headers().get("x-forwarded-for").unwrap(), "127.0.0.1");
    assert!(!head.headers().contains_key("connection") && !head.headers().contains_key("host"));
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn another_connection_is_made_when_streams_run_out() {
    let backend = Backend::new(Script { streams_max: Some(3), ..Script::default() }).await;
    let proxy = backend.proxy("").await;
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!(at_once(&proxy, 9, "/slow").await, 9);
    assert_eq!(backend.connections(), 3);
}

#[tokio::test]
async fn a_limit_of_connections_has_streams_wait_for_each_other() {
    let backend = Backend::new(Script { streams_max: Some(2), ..Script::default() }).await;
    let proxy = backend.proxy("max_connections = 1").await;
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!(at_once(&proxy, 6, "/slow").await, 6);
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn a_connection_that_goes_away_loses_nothing() {
    let backend = Backend::new(Script { goes_away_after: Some(7), ..Script::default() }).await;
    let proxy = backend.proxy("retries = 0\noutlier_detection = { enabled = false }").await;
    for _ in 0..20 {
        assert_eq!(at_once(&proxy, 10, "/").await, 10);
    }
    assert!(backend.connections() > 10, "{}", backend.connections());
    assert_eq!(backend.requests(), 200);
    eventually(|| proxy.in_flight() == 0 && backend.counts.open.load(SeqCst) <= 1).await;
}

#[tokio::test]
async fn a_refused_stream_is_no_attempt_whatever_it_was() {
    let refusing = Backend::new(Script { refuses: 1, ..Script::default() }).await;
    let proxy = refusing.proxy("retries = 0").await;
    // On a new connection, before the backend has said how many it takes, and on one that was there already.
    for requests in 1..=2 {
        refusing.counts.refused.store(0, SeqCst);
        let response = proxy.post("/", "a body").await;
        assert_eq!((response.status(), response.text()), (200, "a body"));
        assert_eq!(refusing.requests(), requests);
    }
    let roster = proxy.snapshot().upstream("u").unwrap().roster();
    assert_eq!(roster.backends()[0].state.metrics.sum(|metrics| &metrics.broken), 0);
}

#[tokio::test]
async fn a_backend_that_refuses_every_stream_is_not_asked_without_end() {
    let refusing = Backend::new(Script { refuses: 1_000_000, ..Script::default() }).await;
    let proxy = refusing.proxy("retries = 0\nmax_connections = 1").await;
    assert_eq!(proxy.post("/", "a body").await.status(), 502);
    assert!(refusing.counts.refused.load(SeqCst) <= 8, "{:?}", refusing.counts.refused);
    assert_eq!(refusing.requests(), 0);
}

#[tokio::test]
async fn a_reset_is_a_failed_attempt() {
    let backend = Backend::new(Script::default()).await;
    let proxy = backend.proxy("").await;
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!(proxy.post("/reset", "a").await.status(), 502);
    assert_eq!(backend.requests(), 2, "a POST is not sent twice");
    let roster = proxy.snapshot().upstream("u").unwrap().roster();
    assert_eq!(roster.backends()[0].state.metrics.sum(|metrics| &metrics.broken), 1);
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn large_bodies_and_trailers_go_both_ways() {
    let backend = Backend::new(Script::default()).await;
    let proxy = backend.proxy("").await;
    let body = body_of(3_000_000);
    let response = proxy.post("/", &body).await;
    assert!(response.status() == 200 && response.body == body);
    let mut client = proxy.client().await;
    client
        .send("POST /trailers HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 3\r\n\r\n")
        .await;
    let response = client.response().await;
    assert_eq!((response.status(), response.text()), (200, "abc"));
    let trailers = format!("{:?}", response.trailers);
    assert!(trailers.contains("x-checksum") && trailers.contains("x-sum"), "{trailers}");
    let head = backend.counts.last.lock().unwrap().take().unwrap();
    assert_eq!(head.headers().get("te").unwrap(), "trailers");
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn a_client_that_goes_has_its_stream_reset_and_no_other() {
    let backend = Backend::new(Script::default()).await;
    let proxy = backend.proxy("").await;
    for path in ["/held", "/endless"] {
        let before = backend.counts.resets.load(SeqCst);
        let mut client = proxy.client().await;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        let seen = || backend.counts.last.lock().unwrap().as_ref().is_some_and(|head| head.uri().path() == path);
        eventually(seen).await;
        assert_eq!(proxy.in_flight(), 1);
        drop(client);
        eventually(|| proxy.in_flight() == 0 && backend.counts.resets.load(SeqCst) == before + 1).await;
    }
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!(backend.connections(), 1);
    eventually(|| proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn a_length_ends_a_response_before_the_stream_does() {
    let backend = Backend::new(Script::default()).await;
    let proxy = backend.proxy("").await;
    let mut client = proxy.client().await;
    for size in [0, 5, 200_000] {
        let body = body_of(size);
        let head = format!("POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n");
        client.send([head.as_bytes(), &body].concat()).await;
        // One that counts as cut would end the connection.
        let response = client.response().await;
        assert!(response.status() == 200 && response.body == body);
    }
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn trailers_that_are_announced_come_behind_a_known_length() {
    let backend = Backend::new(Script::default()).await;
    let proxy = backend.proxy("").await;
    let mut client = proxy.client().await;
    let head = "POST /length/trailers HTTP/1.1\r\nhost: a\r\nte: trailers\r\ncontent-length: 3\r\n\r\nabc";
    for _ in 0..2 {
        client.send(head).await;
        let response = client.response().await;
        assert_eq!((response.status(), response.text()), (200, "abc"));
        assert!(format!("{:?}", response.trailers).contains("x-checksum"), "{:?}", response.trailers);
    }
    // One that has no body after all.
    let response = proxy.request("POST", "/length/trailers", &[("te", "trailers")], "").await;
    assert_eq!((response.status(), response.text()), (200, ""));
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn a_backend_that_sends_empty_frames_breaks_nothing() {
    // h2 would end the connection at the 101st.
    let backend = Backend::new(Script::default()).await;
    let proxy = backend.proxy("retries = 0").await;
    for requests in 1..=5 {
        assert_eq!(soon(proxy.get("/empty")).await.text(), "end");
        assert_eq!(backend.requests(), requests);
    }
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn early_hints_are_passed_on() {
    let backend = Backend::new(Script::default()).await;
    let proxy = backend.proxy("").await;
    let mut client = proxy.client().await;
    client.send("GET /hints HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    let all = String::from_utf8(client.read_to_end().await).unwrap();
    let heads: Vec<_> = all.split("HTTP/1.1 ").skip(1).collect();
    let hint = |link: &str| format!("103 Early Hints\r\nlink: {link}\r\nx-hint: 1\r\n\r\n");
    assert_eq!(heads[..2], [hint("</a.css>"), hint("</b.css>")]);
    assert!(heads.len() == 3 && heads[2].starts_with("200 "), "{all}");
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn a_name_that_http1_cannot_say_does_not_get_to_the_client() {
    let backend = Backend::new(Script::default()).await;
    let proxy = backend.proxy("retries = { max = 0 }").await;
    assert_eq!(soon(proxy.get("/quoted")).await.status(), 502);
    assert_eq!((soon(proxy.get("/")).await.status(), backend.requests()), (200, 2));
}

#[tokio::test]
async fn nobody_switches_protocols_over_http2() {
    let backend = Backend::new(Script::default()).await;
    let proxy = backend.proxy("").await;
    let headers = [("connection", "upgrade"), ("upgrade", "websocket")];
    let response = soon(proxy.request("GET", "/", &headers, "")).await;
    assert_eq!((response.status(), backend.requests()), (501, 0));
}

#[tokio::test]
async fn health_checks_speak_it_too() {
    let backend = Backend::new(Script::default()).await;
    let proxy = backend.proxy("health_check = { interval = \"20ms\", initial = \"unhealthy\" }").await;
    let roster = || proxy.snapshot().upstream("u").unwrap().roster();
    eventually(|| roster().backends()[0].state.health.verdict().as_str() == "healthy").await;
    assert!(backend.requests() > 0);
}

#[tokio::test]
async fn a_response_that_is_all_there_is_not_reset() {
    let backend = Backend::new(Script::default()).await;
    let proxy = backend.proxy("").await;
    let mut client = proxy.client().await;
    for n in 1..4 {
        assert_eq!(client.get("/late").await.text(), "hello");
        eventually(|| backend.requests() == n).await;
    }
    eventually(|| proxy.in_flight() == 0).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((backend.counts.resets.load(SeqCst), backend.connections()), (0, 1));
}

#[tokio::test]
async fn a_backend_is_asked_whether_a_body_is_to_be_sent() {
    let backend = Backend::new(Script::default()).await;
    let route = "[[route]]\npath_prefix = \"/asks\"\nstrip_prefix = true\nupstream = \"u\"\nexpect = \"pass\"\ntimeouts = { expect = \"1m\" }";
    let proxy = backend.proxy(route).await;
    let ask = |path: &str| {
        format!("POST /asks{path} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
    };
    let mut client = proxy.client().await;
    client.send(ask("/asked")).await;
    assert_eq!(soon(client.stream.head()).await.unwrap().unwrap().status(), 100);
    client.send("hello").await;
    assert_eq!(client.response().await.text(), "hello");
    client.send(ask("/refused")).await;
    let response = client.response().await;
    assert_eq!((response.status(), response.header("connection")), (417, Some("close")));
    assert!(response.informational.is_empty());
    client.closed().await;
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}
