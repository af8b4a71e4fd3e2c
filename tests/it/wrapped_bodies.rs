//! Bodies that middleware wraps: piece by piece, with back-pressure both ways, and none where there is none.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use isobar::exchange::body::{Body, BodyError, BoxBody};
use isobar::middleware::{Middleware, MiddlewareFactory, RequestView, ResponseView, Step};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::harness::{After, Keys, Log, TestBackend, TestProxy, eventually, soon};
use crate::middleware::{Letter, at_route, call, http2, kind, letters};

const LARGE: usize = 10 << 20;

/// Wraps both bodies, whose bytes become capitals and are counted; `x-fail` says which one breaks off at its first piece.
#[derive(Clone, Debug, Default)]
pub(super) struct Capitals {
    up: Arc<AtomicUsize>,
    down: Arc<AtomicUsize>,
}

impl Capitals {
    fn kind(&self) -> MiddlewareFactory {
        let capitals = self.clone();
        kind(move |_| capitals.clone())
    }
}

fn capitals(body: BoxBody, count: Arc<AtomicUsize>, fails: bool) -> BoxBody {
    let made = body.map_frame(move |frame| {
        frame.map_data(|data| {
            count.fetch_add(data.len(), SeqCst);
            Bytes::from(data.to_ascii_uppercase())
        })
    });
    if !fails {
        return Box::pin(made);
    }
    drop(made);
    let error = || BodyError::Middleware(std::io::Error::other("as the test wants"));
    Box::pin(Made(move |_: &mut Context<'_>| Poll::Ready(Some(Err(error())))))
}

/// A body of what a function gives.
pub(super) struct Made<F>(pub(super) F);

impl<F> http_body::Body for Made<F>
where
    F: FnMut(&mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> + Unpin,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        (self.0)(cx)
    }
}

impl Middleware for Capitals {
    fn on_request<'a>(&'a self, mut request: RequestView<'a>) -> Step<'a> {
        let fails = request.head.headers().get("x-fail").map(|which| which == "up");
        request.keep(fails == Some(false));
        let count = Arc::clone(&self.up);
        request.wrap_body(move |body| capitals(body, count, fails == Some(true)));
        Step::Continue
    }

    fn on_response(&self, response: &mut ResponseView<'_>) {
        let fails = response.take::<bool>() == Some(true);
        let count = Arc::clone(&self.down);
        response.wrap_body(move |body| capitals(body, count, fails));
    }
}

#[tokio::test]
async fn large_bodies_are_wrapped_piece_by_piece() {
    let backend = TestBackend::scripted(async |peer| {
        while let Some(message) = peer.request().await {
            assert!(message.body.iter().all(|&byte| byte == b'A') && message.trailers.is_empty());
            peer.respond("200 OK", vec![b'b'; message.body.len()]).await;
        }
    });
    let capitals = Capitals::default();
    let proxy =
        TestProxy::with_middleware(at_route(&[&backend], "capitals", ""), &[("capitals", capitals.kind())]).await;
    let response = proxy.post("/", vec![b'a'; LARGE]).await;
    assert!(response.status() == 200 && response.body.len() == LARGE);
    assert!(response.body.iter().all(|&byte| byte == b'B') && response.header("content-length").is_none());
    assert_eq!((capitals.up.load(SeqCst), capitals.down.load(SeqCst)), (LARGE, LARGE));
    assert_eq!(backend.last_head().get("content-length"), None);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;

    // By HTTP/2.
    let mut client = soon(http2(&proxy).await.ready()).await.unwrap();
    let (response, mut stream) = client.send_request(Request::post("http://a/").body(()).unwrap(), false).unwrap();
    let mut left = Bytes::from(vec![b'a'; LARGE]);
    while !left.is_empty() {
        stream.reserve_capacity(left.len());
        let room = soon(poll_fn(|cx| stream.poll_capacity(cx))).await.unwrap().unwrap();
        let piece = left.split_to(room.min(left.len()));
        stream.send_data(piece, left.is_empty()).unwrap();
    }
    let (_, mut body) = soon(response).await.unwrap().into_parts();
    let mut got = 0;
    while let Some(piece) = soon(body.data()).await {
        let piece = piece.unwrap();
        assert!(piece.iter().all(|&byte| byte == b'B'));
        body.flow_control().release_capacity(piece.len()).unwrap();
        got += piece.len();
    }
    assert_eq!(got, LARGE);
}

#[tokio::test]
async fn a_client_that_reads_slowly_slows_what_is_wrapped() {
    // More than the sockets on the way hold.
    const HUGE: usize = 64 << 20;
    let backend = TestBackend::scripted(async |peer| {
        while peer.head().await.is_some() {
            peer.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {HUGE}\r\n\r\n")).await;
            let piece = vec![b'b'; 1 << 20];
            for _ in 0..HUGE >> 20 {
                peer.write(&piece).await;
            }
        }
    });
    let capitals = Capitals::default();
    let proxy =
        TestProxy::with_middleware(at_route(&[&backend], "capitals", ""), &[("capitals", capitals.kind())]).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    // Until nothing moves any more.
    let mut before = usize::MAX;
    while before != capitals.down.load(SeqCst) {
        before = capitals.down.load(SeqCst);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(before > 0 && before < HUGE / 2, "{before} of {HUGE} were taken for a client that takes nothing");
    let response = client.response().await;
    assert!(response.body.len() == HUGE && capitals.down.load(SeqCst) == HUGE);
}

#[tokio::test]
async fn a_backend_that_reads_slowly_slows_what_is_wrapped() {
    const HUGE: usize = 64 << 20;
    let let_go = Arc::new(Semaphore::new(0));
    let reads = Arc::clone(&let_go);
    let backend = TestBackend::scripted(async move |peer| {
        if peer.head().await.is_some() {
            reads.acquire().await.unwrap().forget();
            peer.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
        }
    });
    let capitals = Capitals::default();
    let proxy =
        TestProxy::with_middleware(at_route(&[&backend], "capitals", ""), &[("capitals", capitals.kind())]).await;
    let client = tokio::spawn({
        let mut client = proxy.client().await;
        async move {
            client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {HUGE}\r\n\r\n")).await;
            for _ in 0..HUGE >> 20 {
                client.send(vec![b'a'; 1 << 20]).await;
            }
        }
    });
    // Until nothing moves any more.
    let mut before = usize::MAX;
    while before != capitals.up.load(SeqCst) || before == 0 {
        before = capitals.up.load(SeqCst);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(before < HUGE / 2, "{before} of {HUGE} were taken for a backend that takes nothing");
    client.abort();
    let_go.add_permits(1);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn what_has_no_body_or_is_a_tunnel_stays_so() {
    let backend = TestBackend::scripted(async |peer| {
        while let Some(message) = peer.request().await {
            match (message.head.method(), message.head.target()) {
                ("HEAD", _) => peer.write("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n").await,
                (_, "/204") => peer.write("HTTP/1.1 204 No Content\r\n\r\n").await,
                (_, "/304") => peer.write("HTTP/1.1 304 Not Modified\r\n\r\n").await,
                (_, "/empty") => peer.respond("200 OK", "").await,
                _ => {
                    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                    peer.write(format!("{head}2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n")).await;
                }
            }
        }
    });
    let (log, kinds) = (Log::new(), [("capitals", Capitals::default().kind())]);
    let proxy = TestProxy::with_middleware(at_route(&[&backend], "capitals", "") + &log.table("json"), &kinds).await;
    let mut client = proxy.client().await;
    client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let response = client.response_to("HEAD").await;
    assert_eq!((response.status(), response.header("content-length")), (200, None));
    for (target, status, body) in [("/204", 204, ""), ("/304", 304, ""), ("/empty", 200, "")] {
        let response = client.get(target).await;
        assert_eq!((response.status(), response.text()), (status, body), "{target}");
    }
    client.send("GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!((response.text(), &response.trailers[..]), ("OK", &[("x-sum".to_owned(), "1".to_owned())][..]));
    for line in log.lines(5).await {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["reason"], "complete", "{line}");
    }
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;

    let backend = TestBackend::upgrading();
    let proxy = TestProxy::with_middleware(at_route(&[&backend], "capitals", ""), &kinds).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nping").await;
    let head = b"HTTP/1.1 101 Switching Protocols\r\n";
    assert_eq!(client.exact(head.len()).await, head);
    let mut rest = Vec::new();
    while !rest.ends_with(b"\r\n\r\nping") {
        rest.extend(client.exact(1).await);
    }
}

#[tokio::test]
async fn a_wrapper_that_breaks_off_cuts_short() {
    let (backend, log) = (TestBackend::fixed("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"), Log::new());
    let text = at_route(&[&backend], "capitals", "") + &log.table("json");
    let proxy = TestProxy::with_middleware(text, &[("capitals", Capitals::default().kind())]).await;
    let response = proxy.request("POST", "/", &[("x-fail", "up")], "body").await;
    // The error's own body goes through the same middleware.
    assert_eq!(response.text(), "500 INTERNAL SERVER ERROR: THE REQUEST BODY COULD NOT BE PROCESSED\n");
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nx-fail: down\r\n\r\n").await;
    assert_eq!(client.cut().await.body, b"");
    for line in log.lines(2).await {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&line["reason"], &line["ended_by"]), (&"middleware_failed".into(), &"proxy".into()), "{line}");
    }
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn a_body_that_breaks_off_below_a_wrapper_is_not_made_whole() {
    let backend = TestBackend::raw("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", After::Close);
    let log = Log::new();
    // Without retries nothing of the response is held back.
    let keys = Keys { route: "middleware = [\"m\"]\nretries = 0", tables: "[middleware.m.ends]\n", ..Keys::default() };
    let text = keys.text(&[&backend]) + &log.table("json");
    /// Takes any error for an end.
    #[derive(Debug)]
    struct Ends;

    impl Middleware for Ends {
        fn on_response(&self, response: &mut ResponseView<'_>) {
            response.wrap_body(|mut body| {
                Box::pin(Made(move |cx: &mut Context<'_>| {
                    body.as_mut().poll_frame(cx).map(|piece| piece.filter(Result::is_ok))
                }))
            });
        }
    }

    let proxy = TestProxy::with_middleware(text, &[("ends", kind(|_| Ends))]).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.cut().await.body, b"ok");
    let line: serde_json::Value = serde_json::from_str(&log.lines(1).await[0]).unwrap();
    assert_eq!(line["reason"], "backend_cut_short", "{line}");
}

/// Answers with a body that it makes: `begun`, and then what the target says.
#[derive(Debug)]
struct Streams;

impl Middleware for Streams {
    fn on_request<'a>(&'a self, request: RequestView<'a>) -> Step<'a> {
        let (target, mut begun) = (request.head.uri.path().to_owned(), false);
        let made = Made(move |_: &mut Context<'_>| {
            Poll::Ready(match (std::mem::replace(&mut begun, true), &*target) {
                (false, _) | (true, "/endless") => Some(Ok(Frame::data(Bytes::from_static(b"begun")))),
                (true, "/whole") => None,
                (true, _) => Some(Err(BodyError::Middleware(std::io::Error::other("as the test wants")))),
            })
        });
        let mut response = Response::new(Body::made(Box::pin(made)));
        if request.head.headers().contains_key("te") {
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        }
        Step::Answer(response.into())
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_short_is_logged_as_cut_short() {
    let (backend, log) = (TestBackend::ok("a"), Log::new());
    let text = at_route(&[&backend], "streams", "") + &log.table("json");
    let proxy = TestProxy::with_middleware(text, &[("streams", kind(|_| Streams))]).await;
    let mut client = proxy.client().await;
    assert_eq!(client.get("/whole").await.text(), "begun");
    client.send("GET /broken HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.cut().await.body, b"begun");
    eventually(|| proxy.exchanges() == 0).await;
    let mut client = proxy.client().await;
    client.send("GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.exact(1).await;
    drop(client);
    eventually(|| proxy.exchanges() == 0).await;
    // A call of gRPC is told so, and its status says so in log and metrics.
    let mut body = call(&mut http2(&proxy).await, "").await.into_body();
    while let Some(piece) = soon(body.data()).await {
        assert_eq!(&piece.unwrap()[..], b"begun");
    }
    assert_eq!(soon(body.trailers()).await.unwrap().unwrap()["grpc-status"], "13");
    eventually(|| proxy.exchanges() == 0).await;
    let lines = log.lines(4).await;
    for (line, reason, ended_by) in [
        (&lines[0], "middleware_answered", Value::Null),
        (&lines[1], "middleware_failed", "proxy".into()),
        (&lines[2], "client_left", "client".into()),
        (&lines[3], "middleware_failed", "proxy".into()),
    ] {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&line["reason"], &line["ended_by"]), (&reason.into(), &ended_by), "{line}");
        assert_eq!((&line["status"], &line["detail"]), (&200.into(), &"middleware.m".into()), "{line}");
    }
    let line: Value = serde_json::from_str(&lines[3]).unwrap();
    assert_eq!(line["grpc_status"], 13, "{line}");
    assert_eq!(backend.requests(), 0);
}

/// Makes of each body, up and down, this text, whose length it tells.
#[derive(Clone, Debug)]
struct Instead(&'static str);

impl Instead {
    fn kind(text: &'static str) -> MiddlewareFactory {
        kind(move |_| Instead(text))
    }

    fn body(text: &'static str) -> BoxBody {
        Box::pin(http_body_util::Full::from(text).map_err(|never| match never {}))
    }
}

impl Middleware for Instead {
    fn on_request<'a>(&'a self, mut request: RequestView<'a>) -> Step<'a> {
        let text = self.0;
        request.wrap_body(move |_| Self::body(text));
        Step::Continue
    }

    fn on_response(&self, response: &mut ResponseView<'_>) {
        let text = self.0;
        response.wrap_body(move |_| Self::body(text));
    }
}

#[tokio::test]
async fn a_wrapper_around_nothing_tells_no_length() {
    let backend = TestBackend::ok("a long body of the backend's");
    let proxy =
        TestProxy::with_middleware(at_route(&[&backend], "instead", ""), &[("instead", Instead::kind("made"))]).await;
    let whole = proxy.get("/").await;
    assert_eq!((whole.header("content-length"), whole.text()), (Some("4"), "made"));
    let mut client = proxy.client().await;
    client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let head = client.response_to("HEAD").await;
    assert_eq!((head.status(), head.header("content-length")), (200, None));
    let mut client = soon(http2(&proxy).await.ready()).await.unwrap();
    let head = soon(client.send_request(Request::head("http://a/").body(()).unwrap(), true).unwrap().0).await.unwrap();
    assert!(!head.headers().contains_key("content-length"));
    // A call of gRPC that is over with its head stays so.
    let text = letters(&[&backend], "").replace("[\"a\", \"b\"]", "[\"m\", \"b\"]") + "[middleware.m.instead]\n";
    let proxy =
        TestProxy::with_middleware(text, &[("letter", Letter::kind()), ("instead", Instead::kind("made"))]).await;
    let refused = call(&mut http2(&proxy).await, "c").await;
    assert_eq!(refused.headers()["grpc-status"], "7");
    assert!(refused.body().is_end_stream());
}

#[tokio::test]
async fn the_limit_of_a_body_is_that_of_what_the_client_sends() {
    let backend = TestBackend::ok("a");
    let text =
        at_route(&[&backend], "instead", "").replace("middleware = [\"m\"]", "max_body = 8\nmiddleware = [\"m\"]");
    let proxy = TestProxy::with_middleware(text, &[("instead", Instead::kind("more than eight bytes"))]).await;
    assert_eq!(proxy.request("POST", "/", &[], "small").await.status(), 200);
    assert_eq!(backend.last_head().get("content-length"), Some("21"));
    assert_eq!(proxy.request("POST", "/", &[], "more than eight").await.status(), 413);
    // Where there is nothing to wrap, the request says so as before.
    assert_eq!(proxy.request("POST", "/", &[("content-length", "0")], "").await.status(), 200);
    assert_eq!(backend.last_head().get("content-length"), Some("0"));
}
