//! Calls of gRPC, frame by frame; `tests/peers/test_grpc.py` makes them with the real library.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Scratch, TestProxy, eventually, soon};

/// A server that does what the method's name says.
struct Backend {
    address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    calls: AtomicUsize,
    resets: AtomicUsize,
    heads: Mutex<Vec<HeaderMap>>,
}

impl Backend {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Seen>::default();
        let noted = Arc::clone(&seen);
        tokio::spawn(async move {
            loop {
                let Ok((tcp, _)) = listener.accept().await else { return };
                let noted = Arc::clone(&noted);
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(tcp).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(serve(request, respond, Arc::clone(&noted)));
                    }
                });
            }
        });
        Self { address, seen }
    }

    fn calls(&self) -> usize {
        self.seen.calls.load(SeqCst)
    }

    fn timeout(&self, call: usize) -> Duration {
        let heads = self.seen.heads.lock().unwrap();
        let text = heads[call]["grpc-timeout"].to_str().unwrap();
        let (number, unit) = text.split_at(text.len() - 1);
        let number = number.parse().unwrap();
        match unit {
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => panic!("{text}"),
        }
    }
}

async fn serve(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, seen: Arc<Seen>) {
    let (head, mut body) = request.into_parts();
    let call = seen.calls.fetch_add(1, SeqCst);
    seen.heads.lock().unwrap().push(head.headers);
    let response = || Response::builder().header("content-type", "application/grpc");
    let ok = || HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
    match head.uri.path() {
        "/s/Refuse" => {
            let refusal = response().header("grpc-status", "14").header("grpc-message", "not%20now").body(()).unwrap();
            respond.send_response(refusal, true).unwrap();
        }
        "/s/RefuseOnce" if call == 0 => {
            tokio::time::sleep(Duration::from_millis(300)).await;
            respond.send_response(response().header("grpc-status", "14").body(()).unwrap(), true).unwrap();
        }
        "/s/Hang" => {
            std::future::poll_fn(|cx| respond.poll_reset(cx)).await.ok();
            seen.resets.fetch_add(1, SeqCst);
        }
        "/s/Broken" | "/s/Silent" => {
            let mut send = respond.send_response(response().body(()).unwrap(), false).unwrap();
            send.send_data(Bytes::from_static(b"\0\0\0\0\x01a"), false).unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            if head.uri.path() == "/s/Broken" {
                return send.send_reset(Reason::INTERNAL_ERROR);
            }
            std::future::poll_fn(|cx| send.poll_reset(cx)).await.ok();
            seen.resets.fetch_add(1, SeqCst);
        }
        // Each piece is sent back as it comes.
        _ => {
            let mut send = respond.send_response(response().body(()).unwrap(), false).unwrap();
            while let Some(Ok(data)) = body.data().await {
                body.flow_control().release_capacity(data.len()).unwrap();
                send.send_data(data, false).unwrap();
            }
            send.send_trailers(ok()).unwrap();
        }
    }
}

async fn proxy(pool: &[&Backend], keys: &str, route: &str) -> TestProxy {
    let pool: Vec<_> = pool.iter().map(|it| format!("\"{}\"", it.address)).collect();
    TestProxy::with_config(format!(
        "workers = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\npath_prefix = \"/s\"\nupstream = \"u\"\n{route}\n\
         [upstream.u]\nprotocol = \"http2\"\nbackends = [{}]\n{keys}\n",
        pool.join(", ")
    ))
    .await
}

async fn connect(proxy: &TestProxy) -> SendRequest<Bytes> {
    let tcp = TcpStream::connect(proxy.address()).await.unwrap();
    let (send, connection) = soon(h2::client::handshake(tcp)).await.unwrap();
    tokio::spawn(connection);
    send
}

fn call(method: &str, timeout: Option<&str>) -> Request<()> {
    let request =
        Request::post(format!("http://a{method}")).header("content-type", "application/grpc").header("te", "trailers");
    match timeout {
        Some(timeout) => request.header("grpc-timeout", timeout),
        None => request,
    }
    .body(())
    .unwrap()
}

/// Makes a call with a message: the head of the response, its body, and its trailers or how it broke.
async fn made(proxy: &TestProxy, request: Request<()>) -> (HeaderMap, Vec<u8>, Result<Option<HeaderMap>, h2::Error>) {
    let mut send = soon(connect(proxy).await.ready()).await.unwrap();
    let (response, mut stream) = send.send_request(request, false).unwrap();
    stream.send_data(Bytes::from_static(b"\0\0\0\0\x01q"), true).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!(response.status(), 200);
    let (head, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(data) = soon(body.data()).await {
        match data {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(error) => return (head.headers, bytes, Err(error)),
        }
    }
    (head.headers, bytes, soon(body.trailers()).await)
}

fn status(headers: &HeaderMap) -> Option<&str> {
    headers.get("grpc-status").map(|it| it.to_str().unwrap())
}

async fn settled(proxy: &TestProxy) {
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn messages_pass_both_ways_at_once() {
    let backend = Backend::new().await;
    let proxy = proxy(&[&backend], "", "timeouts = { response_head = \"1s\", body_idle = \"200ms\" }").await;
    let mut send = soon(connect(&proxy).await.ready()).await.unwrap();
    let (response, mut up): (_, SendStream<Bytes>) = send.send_request(call("/s/Echo", None), false).unwrap();
    // The head comes before there is any message.
    let mut down = soon(response).await.unwrap().into_body();
    for message in [&b"one"[..], b"two", b"three"] {
        up.send_data(Bytes::from_static(message), false).unwrap();
        assert_eq!(soon(down.data()).await.unwrap().unwrap(), message);
        // Longer than a body may pause.
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    up.send_data(Bytes::new(), true).unwrap();
    assert!(soon(down.data()).await.is_none_or(|data| data.unwrap().is_empty()));
    assert_eq!(status(&soon(down.trailers()).await.unwrap().unwrap()), Some("0"));
    assert_eq!(backend.seen.heads.lock().unwrap()[0]["te"], "trailers");
    settled(&proxy).await;
}

#[tokio::test]
async fn a_deadline_is_passed_on_and_kept() {
    let backend = Backend::new().await;
    let proxy = proxy(&[&backend], "", "timeouts = { exchange = \"2s\", response_head = \"100ms\" }").await;
    let (_, _, trailers) = made(&proxy, call("/s/Echo", Some("30S"))).await;
    assert_eq!(status(&trailers.unwrap().unwrap()), Some("0"));
    let left = backend.timeout(0);
    // The route's own bound is the shorter one.
    assert!(left <= Duration::from_secs(2) && left > Duration::from_secs(1), "{left:?}");
    // Longer than response_head, which does not count beside a time of the client's.
    let began = Instant::now();
    let (head, body, _) = made(&proxy, call("/s/Hang", Some("700m"))).await;
    assert_eq!((status(&head), body.len()), (Some("4"), 0));
    assert!(began.elapsed() >= Duration::from_millis(700), "{:?}", began.elapsed());
    eventually(|| backend.seen.resets.load(SeqCst) == 1).await;
    // The route's own bound is shorter.
    let (head, ..) = made(&proxy, call("/s/Hang", Some("1H"))).await;
    assert_eq!(status(&head), Some("4"));
    // A response that has begun ends in trailers.
    let (head, body, trailers) = made(&proxy, call("/s/Silent", Some("300m"))).await;
    assert_eq!((status(&head), &body[..]), (None, &b"\0\0\0\0\x01a"[..]));
    assert_eq!(status(&trailers.unwrap().unwrap()), Some("4"));
    settled(&proxy).await;
}

#[tokio::test]
async fn a_time_that_is_none_or_over_reaches_nobody() {
    let backend = Backend::new().await;
    let proxy = proxy(&[&backend], "", "").await;
    for (timeout, expected) in [("5", "13"), ("1s", "13"), ("123456789S", "13"), ("0n", "4")] {
        let (head, ..) = made(&proxy, call("/s/Echo", Some(timeout))).await;
        assert_eq!(status(&head), Some(expected), "{timeout}");
        assert_eq!(head["content-type"], "application/grpc");
        assert!(!head.contains_key("content-length") && head.contains_key("grpc-message"));
    }
    assert_eq!(backend.calls(), 0);
    settled(&proxy).await;
}

#[tokio::test]
async fn errors_are_statuses_for_calls_alone() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = Backend { address: gone.local_addr().unwrap(), seen: Arc::default() };
    drop(gone);
    let proxy = proxy(&[&backend], "retries = 0", "").await;
    let (head, ..) = made(&proxy, call("/s/Echo", None)).await;
    assert_eq!(status(&head), Some("14"));
    let (head, ..) = made(&proxy, call("/elsewhere", None)).await;
    assert_eq!(status(&head), Some("12"));
    // gRPC-Web is no gRPC.
    for kind in ["application/grpc-web", "text/plain"] {
        let request = Request::post("http://a/s/Echo").header("content-type", kind).body(()).unwrap();
        let response =
            soon(soon(connect(&proxy).await.ready()).await.unwrap().send_request(request, true).unwrap().0).await;
        let response = response.unwrap();
        assert_eq!((response.status().as_u16(), status(response.headers())), (502, None), "{kind}");
    }
    settled(&proxy).await;
}

#[tokio::test]
async fn a_response_that_is_broken_off_is_not_taken_for_whole() {
    let backend = Backend::new().await;
    let proxy = proxy(&[&backend], "", "").await;
    let (head, body, trailers) = made(&proxy, call("/s/Broken", None)).await;
    assert_eq!((status(&head), &body[..]), (None, &b"\0\0\0\0\x01a"[..]));
    assert_eq!(status(&trailers.unwrap().unwrap()), Some("14"));
    settled(&proxy).await;
}

#[tokio::test]
async fn calls_are_tried_again_where_a_key_says_so() {
    let (a, b) = (Backend::new().await, Backend::new().await);
    let silent = proxy(&[&a, &b], "", "").await;
    let (head, ..) = made(&silent, call("/s/Refuse", None)).await;
    assert_eq!((status(&head), head["grpc-message"].to_str().unwrap()), (Some("14"), "not%20now"));
    assert_eq!(a.calls() + b.calls(), 1);

    let (a, b) = (Backend::new().await, Backend::new().await);
    let proxy = proxy(&[&a, &b], "retries = { grpc_statuses = [\"unavailable\"] }", "").await;
    // Each backend refuses its first call.
    let (head, body, trailers) = made(&proxy, call("/s/RefuseOnce", Some("10S"))).await;
    let ended = trailers.unwrap();
    assert_eq!((status(&head), body.len(), ended.is_none()), (Some("14"), 0, true), "{ended:?}");
    assert_eq!((a.calls(), b.calls()), (1, 1), "both were asked, and nobody twice");
    let second = a.timeout(0).min(b.timeout(0));
    assert!(second < Duration::from_millis(9_700), "what the first took is over: {second:?}");
    let (_, body, trailers) = made(&proxy, call("/s/RefuseOnce", None)).await;
    assert_eq!((&body[..], status(&trailers.unwrap().unwrap())), (&b"\0\0\0\0\x01q"[..], Some("0")));
    settled(&proxy).await;
}

#[tokio::test]
async fn a_client_that_cancels_is_heard_by_the_backend() {
    let backend = Backend::new().await;
    let proxy = proxy(&[&backend], "", "").await;
    let mut send = soon(connect(&proxy).await.ready()).await.unwrap();
    let (_response, mut stream) = send.send_request(call("/s/Hang", None), false).unwrap();
    eventually(|| backend.calls() == 1).await;
    stream.send_reset(Reason::CANCEL);
    eventually(|| backend.seen.resets.load(SeqCst) == 1).await;
    settled(&proxy).await;
}

#[tokio::test]
async fn statuses_are_logged_and_counted() {
    let dir = Scratch::new();
    let path = dir.path("access.log");
    let backend = Backend::new().await;
    let log = format!("[access_log]\nenabled = true\noutput = {path:?}\n");
    let proxy = proxy(&[&backend], &log, "").await;
    for method in ["/s/Echo", "/s/Refuse", "/s/Broken"] {
        let _ = made(&proxy, call(method, None)).await;
        settled(&proxy).await;
    }
    let snapshot = proxy.snapshot();
    let counted = |status: usize| snapshot.upstream("u").unwrap().state.metrics.sum(|it| &it.grpc[status]);
    assert_eq!((counted(0), counted(14)), (1, 2));
    let lines = || std::fs::read_to_string(&path).unwrap_or_default();
    eventually(|| lines().lines().count() == 3).await;
    let statuses: Vec<_> = lines().lines().map(|line| line.contains("\"grpc_status\":14")).collect();
    assert_eq!(statuses, [false, true, true], "{}", lines());
    assert!(lines().lines().next().unwrap().contains("\"grpc_status\":0"));
}
