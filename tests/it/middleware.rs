//! Middleware, of kinds of the test's own: in which order it runs, how it waits, answers and wraps, and what of it outlives a reload.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use isobar::exchange::body::{BodyError, BoxBody};
use isobar::middleware::{Answer, Middleware, MiddlewareFactory, RequestView, ResponseView, Setup, Step};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::harness::{After, Keys, Log, TestBackend, TestProxy, backends, eventually, soon};

/// A kind that is made by this function.
fn kind<M: Middleware + 'static>(make: impl Fn(&Setup<'_>) -> M + Send + Sync + 'static) -> MiddlewareFactory {
    Arc::new(move |setup| Ok(Box::new(make(setup))))
}

/// Adds its letter to `x-seen` both ways, of trailers too. Answers 403 a request whose `x-answer` is its letter.
#[derive(Debug)]
struct Letter(HeaderValue);

impl Letter {
    fn kind() -> MiddlewareFactory {
        kind(|setup| Letter(setup.table["letter"].as_str().unwrap().parse().unwrap()))
    }
}

impl Middleware for Letter {
    fn on_request<'a>(&'a self, request: RequestView<'a>) -> Step<'a> {
        if request.head.headers().get("x-answer") == Some(&self.0) {
            return Step::Answer(Answer::refuse(StatusCode::FORBIDDEN, "not for you"));
        }
        request.head.headers().append("x-seen", self.0.clone());
        request.keep(self.0.clone());
        Step::Continue
    }

    fn on_response(&self, response: &mut ResponseView<'_>) {
        // What it has kept is its own, wherever it stands in the chain.
        let kept = response.take::<HeaderValue>();
        assert!(kept.is_none_or(|kept| kept == self.0));
        response.head.headers.append("x-seen", self.0.clone());
    }

    fn on_request_trailers(&self, trailers: &mut HeaderMap) {
        trailers.append("x-seen", self.0.clone());
    }

    fn on_response_trailers(&self, trailers: &mut HeaderMap) {
        trailers.append("x-seen", self.0.clone());
    }
}

/// Has each request wait for a permit.
#[derive(Clone, Debug)]
struct Gate {
    permits: Arc<Semaphore>,
    /// Requests that have begun to wait, and waits that are over or were given up.
    counts: Arc<(AtomicUsize, AtomicUsize)>,
}

/// Notes that a wait is over, whatever has ended it.
struct Over<'a>(&'a AtomicUsize);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

impl Gate {
    fn new() -> Self {
        Self { permits: Arc::new(Semaphore::new(0)), counts: Arc::default() }
    }

    fn kind(&self) -> MiddlewareFactory {
        let gate = self.clone();
        kind(move |_| gate.clone())
    }

    fn waiting(&self) -> usize {
        self.counts.0.load(SeqCst) - self.counts.1.load(SeqCst)
    }
}

impl Middleware for Gate {
    fn on_request<'a>(&'a self, request: RequestView<'a>) -> Step<'a> {
        Step::wait(async move {
            self.counts.0.fetch_add(1, SeqCst);
            let _over = Over(&self.counts.1);
            self.permits.acquire().await.unwrap().forget();
            request.head.headers().insert("x-passed", HeaderValue::from_static("yes"));
            ControlFlow::Continue(())
        })
    }
}

/// Wraps both bodies, whose bytes become capitals and are counted; `x-fail` says which one breaks off at its first piece.
#[derive(Clone, Debug, Default)]
struct Capitals {
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
struct Made<F>(F);

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

/// Middleware at each place: `a` and `b` at the listener, `c` at the route, `d` at the upstream.
fn letters(pool: &[&TestBackend], route: &str) -> String {
    let letter = |letter: &str| format!("[middleware.{letter}.letter]\nletter = \"{letter}\"\n");
    Keys {
        listener: "middleware = [\"a\", \"b\"]\nmax_body = 10",
        route: &format!("path_prefix = \"/api\"\nmiddleware = [\"c\"]\n{route}"),
        upstream: "middleware = [\"d\"]",
        tables: &["a", "b", "c", "d"].map(letter).concat(),
    }
    .text(pool)
}

#[tokio::test]
async fn requests_go_in_and_responses_come_out() {
    let backend = TestBackend::scripted(async |peer| {
        while peer.request().await.is_some() {
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n";
            peer.write(format!("{head}2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n")).await;
        }
    });
    let rules =
        "request_headers = { add = { \"x-seen\" = \"e\" } }\nresponse_headers = { add = { \"x-seen\" = \"e\" } }";
    let proxy = TestProxy::with_middleware(letters(&[&backend], rules), &[("letter", Letter::kind())]).await;
    let response = proxy.request("GET", "/api", &[("te", "trailers")], "").await;
    assert_eq!((response.status(), response.text()), (200, "ok"));
    assert_eq!(backend.last_head().all("x-seen"), ["a", "b", "c", "d", "e"]);
    assert_eq!(response.headers("x-seen"), ["e", "d", "c", "b", "a"]);
    let trailers: Vec<_> = response.trailers.iter().filter(|(name, _)| name == "x-seen").map(|(_, it)| &**it).collect();
    assert_eq!(trailers, ["d", "c", "b", "a"], "a rule of the route removes what comes of its name before");
}

#[tokio::test]
async fn answers_and_errors_go_out_through_those_outside() {
    let (backend, refusing) = (TestBackend::ok("a"), TestBackend::refusing());
    let kinds = [("letter", Letter::kind())];
    let rules = "response_headers = { add = { \"x-seen\" = \"e\" } }";
    for (pool, target, answer, body, status, seen) in [
        (&backend, "/api", "a", "", 403, &[][..]),
        (&backend, "/api", "b", "", 403, &["a"]),
        (&backend, "/api", "d", "", 403, &["c", "b", "a"]),
        // No route, and what its listener's say of it.
        (&backend, "/", "", "", 404, &["b", "a"]),
        (&backend, "/", "b", "", 403, &["a"]),
        // Refused before there is a route.
        (&backend, "/%00", "", "", 400, &["b", "a"]),
        (&backend, "/api", "", "more than ten", 413, &["d", "c", "b", "a"]),
        (&refusing, "/api", "", "", 502, &["d", "c", "b", "a"]),
    ] {
        let proxy = TestProxy::with_middleware(letters(&[pool], rules), &kinds).await;
        let response = proxy.request("POST", target, &[("x-answer", answer)], body).await;
        assert_eq!((response.status(), &response.headers("x-seen")[..]), (status, seen), "{target} {answer} {body}");
        assert!(response.header("date").is_some());
    }
    assert_eq!(backend.requests(), 0);

    // Before a backend is picked, at one, and when nothing of a backend comes in time.
    let silent = TestBackend::raw("", After::Hold);
    let text = letters(&[&silent], "timeouts = { response_head = \"50ms\" }");
    let proxy = TestProxy::with_middleware(text.clone(), &kinds).await;
    let response = proxy.request("POST", "/api", &[], "").await;
    assert_eq!((response.status(), &response.headers("x-seen")[..]), (504, &["d", "c", "b", "a"][..]));
    let full = text.replace("middleware = [\"d\"]", "middleware = [\"d\"]\nmax_in_flight = 1\nqueue = { length = 0 }");
    let full = full.replace("50ms", "20s");
    let proxy = TestProxy::with_middleware(full, &kinds).await;
    let mut waiting = proxy.client().await;
    waiting.send("GET /api HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| proxy.in_flight() == 1).await;
    let response = proxy.request("POST", "/api", &[], "").await;
    assert_eq!((response.status(), &response.headers("x-seen")[..]), (503, &["d", "c", "b", "a"][..]));
}

#[tokio::test]
async fn named_header_rules_reach_errors_and_those_of_a_route_do_not() {
    let refusing = TestBackend::refusing();
    let keys = Keys {
        route: "middleware = [\"safe\"]\nresponse_headers = { set = { \"x-route\" = \"1\" } }",
        tables: "[middleware.safe.headers]\nresponse = { set = { \"x-frame-options\" = \"DENY\" } }\n\
                 request = { set = { \"x-safe\" = \"1\" } }",
        ..Keys::default()
    };
    let response = TestProxy::with_keys(&[&refusing], keys).await.get("/").await;
    assert_eq!(response.status(), 502);
    assert_eq!((response.header("x-frame-options"), response.header("x-route")), (Some("DENY"), None));
    let backend = TestBackend::ok("a");
    let response = TestProxy::with_keys(&[&backend], keys).await.get("/").await;
    assert_eq!((response.header("x-frame-options"), response.header("x-route")), (Some("DENY"), Some("1")));
    assert_eq!(backend.last_head().get("x-safe"), Some("1"));
}

/// One middleware of a kind at the route.
fn at_route(pool: &[&TestBackend], kind: &str, more: &str) -> String {
    let tables = format!("[middleware.m]\n{more}\n[middleware.m.{kind}]\n");
    Keys { route: "middleware = [\"m\"]", tables: &tables, ..Keys::default() }.text(pool)
}

async fn http2(proxy: &TestProxy) -> SendRequest<Bytes> {
    let tcp = TcpStream::connect(proxy.address()).await.unwrap();
    let (send, connection) = soon(h2::client::handshake(tcp)).await.unwrap();
    tokio::spawn(connection);
    send
}

async fn call(client: &mut SendRequest<Bytes>, answer: &str) -> Response<h2::RecvStream> {
    let call = Request::post("http://a.example/api").header("content-type", "application/grpc");
    let call = call.header("te", "trailers").header("x-answer", answer).body(()).unwrap();
    let mut client = soon(client.clone().ready()).await.unwrap();
    soon(client.send_request(call, true).unwrap().0).await.unwrap()
}

#[tokio::test]
async fn to_a_call_of_grpc_an_answer_is_a_status() {
    let backend = TestBackend::ok("a");
    let proxy = TestProxy::with_middleware(letters(&[&backend], ""), &[("letter", Letter::kind())]).await;
    let response = call(&mut http2(&proxy).await, "c").await;
    let headers = response.headers();
    assert_eq!(response.status(), 200);
    assert_eq!(headers["grpc-status"], "7");
    assert_eq!(headers["grpc-message"], "not for you");
    assert_eq!(headers["content-type"], "application/grpc");
    assert!(!headers.contains_key("content-length"));
    assert_eq!(headers.get_all("x-seen").iter().collect::<Vec<_>>(), ["b", "a"]);
    assert!(response.body().is_end_stream());
}

#[tokio::test]
async fn requests_that_wait_lose_nothing_by_reloads() {
    let (backend, gate) = (TestBackend::ok("a"), Gate::new());
    let text = |n: usize| at_route(&[&backend], "gate", &format!("timeout = \"{}s\"", 20 + n));
    let proxy = TestProxy::with_middleware(text(0), &[("gate", gate.kind())]).await;
    let address = proxy.address();
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..20 {
        asking.spawn(async move {
            let mut client = crate::harness::Client::connect(address).await;
            for _ in 0..10 {
                assert_eq!(client.get("/").await.status(), 200);
            }
        });
    }
    let mut reloads = 0;
    while !asking.is_empty() {
        reloads += 1;
        proxy.apply(text(reloads)).await.unwrap();
        gate.permits.add_permits(4);
        tokio::time::sleep(Duration::from_millis(2)).await;
        while let Some(ended) = asking.try_join_next() {
            ended.unwrap();
        }
    }
    assert!(reloads >= 50 && backend.requests() == 200, "{reloads} {}", backend.requests());
    assert!(backend.heads().iter().all(|head| head.get("x-passed") == Some("yes")));
    eventually(|| gate.waiting() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn a_client_that_goes_ends_the_wait() {
    let (backend, gate, log) = (TestBackend::ok("a"), Gate::new(), Log::new());
    let text = at_route(&[&backend], "gate", "") + &log.table("json");
    let proxy = TestProxy::with_middleware(text, &[("gate", gate.kind())]).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| gate.waiting() == 1).await;
    drop(client);
    eventually(|| gate.waiting() == 0 && proxy.exchanges() == 0).await;

    let mut client = soon(http2(&proxy).await.ready()).await.unwrap();
    let (response, mut stream) = client.send_request(Request::get("http://a/").body(()).unwrap(), false).unwrap();
    eventually(|| gate.waiting() == 1).await;
    stream.send_reset(h2::Reason::CANCEL);
    drop(response);
    eventually(|| gate.waiting() == 0 && proxy.exchanges() == 0).await;
    assert_eq!(backend.requests(), 0);
    for line in log.lines(2).await {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&line["reason"], &line["status"]), (&"client_gone".into(), &499.into()), "{line}");
    }
}

#[tokio::test]
async fn a_wait_has_its_time_and_that_of_the_exchange() {
    let (backend, gate, log) = (TestBackend::ok("a"), Gate::new(), Log::new());
    let text = at_route(&[&backend], "gate", "timeout = \"50ms\"") + &log.table("json");
    let proxy = TestProxy::with_middleware(text, &[("gate", gate.kind())]).await;
    let response = proxy.get("/").await;
    assert_eq!(response.status(), 504);
    assert_eq!(response.text(), "504 Gateway Timeout: a check of the request took too long\n");
    let response = call(&mut http2(&proxy).await, "").await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "14");
    for line in log.lines(2).await {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&line["reason"], &line["detail"]),
            (&"middleware_timeout".into(), &"middleware.m".into()),
            "{line}"
        );
    }
    let snapshot = proxy.snapshot();
    let metrics = &snapshot.middleware.installed[0].state.as_ref().unwrap().metrics;
    assert_eq!((metrics.sum(|it| &it.waited), metrics.sum(|it| &it.timeouts)), (2, 2));
    assert_eq!((gate.waiting(), backend.requests()), (0, 0));

    // What the whole exchange may take counts from its beginning, waits included.
    let keys = Keys {
        route: "middleware = [\"m\"]\ntimeouts = { exchange = \"50ms\" }",
        tables: "[middleware.m.gate]",
        ..Keys::default()
    };
    let proxy = TestProxy::with_middleware(keys.text(&[&backend]), &[("gate", gate.kind())]).await;
    let response = proxy.get("/").await;
    assert_eq!(response.text(), "504 Gateway Timeout: the exchange took longer than this route allows\n");
}

#[tokio::test]
async fn the_access_log_and_metrics_tell_of_answers() {
    let (backend, log) = (TestBackend::ok("a"), Log::new());
    let text = letters(&[&backend], "") + &log.table("json");
    let proxy = TestProxy::with_middleware(text, &[("letter", Letter::kind())]).await;
    assert_eq!(proxy.request("GET", "/api", &[("x-answer", "c")], "").await.status(), 403);
    let line: serde_json::Value = serde_json::from_str(&log.lines(1).await[0]).unwrap();
    assert_eq!((&line["reason"], &line["detail"]), (&"middleware_answered".into(), &"middleware.c".into()), "{line}");
    assert!(line["ended_by"].is_null(), "{line}");
    let snapshot = proxy.snapshot();
    let answered = |name: &str| {
        let mut all = snapshot.middleware.installed.iter();
        let installed = all.find(|it| it.name().is_some_and(|of| of.as_str() == name)).unwrap();
        installed.state.as_ref().unwrap().metrics.sum(|it| &it.answered)
    };
    assert_eq!(["a", "b", "c", "d"].map(answered), [0, 0, 1, 0]);
}

#[tokio::test]
async fn the_state_outlives_a_hundred_reloads() {
    /// Counts requests in its state.
    #[derive(Debug)]
    struct Count(Arc<AtomicUsize>);

    impl Middleware for Count {
        fn on_response(&self, response: &mut ResponseView<'_>) {
            let count = self.0.fetch_add(1, SeqCst) + 1;
            response.head.headers.insert("x-count", count.into());
        }
    }

    let backend = TestBackend::ok("a");
    let kinds = [("count", kind(|setup| Count(setup.state(AtomicUsize::default)))), ("letter", Letter::kind())];
    let text = |n: usize| at_route(&[&backend], "count", "") + &format!("step = {n}\n");
    let proxy = TestProxy::with_middleware(text(0), &kinds).await;
    let mut client = proxy.client().await;
    for n in 1..=100 {
        proxy.apply(text(n)).await.unwrap();
        assert_eq!(client.get("/").await.header("x-count"), Some(n.to_string().as_str()));
    }
    // Of another kind it is another one, and so it is when it was not there for a while.
    proxy.apply(at_route(&[&backend], "letter", "") + "letter = \"x\"").await.unwrap();
    assert_eq!(client.get("/").await.header("x-seen"), Some("x"));
    proxy.apply(text(1)).await.unwrap();
    assert_eq!(client.get("/").await.header("x-count"), Some("1"));
}

#[tokio::test]
async fn a_table_that_its_kind_refuses_is_not_served() {
    let backend = TestBackend::ok("a");
    let refuse: MiddlewareFactory = Arc::new(|setup| match setup.table.get("wrong") {
        Some(_) => Err("wrong is no key of this kind".into()),
        None => Ok(Box::new(Capitals::default())),
    });
    let text = at_route(&[&backend], "picky", "");
    let proxy = TestProxy::with_middleware(text.clone(), &[("picky", refuse)]).await;
    let error = proxy.apply(text + "wrong = 1").await.unwrap_err().to_string();
    assert_eq!(error, "could not make middleware m: wrong is no key of this kind");
    assert_eq!(proxy.get("/").await.text(), "A");
}

const LARGE: usize = 10 << 20;

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

#[tokio::test]
async fn several_listeners_have_middleware_of_their_own() {
    let backend = TestBackend::ok("a");
    let text = format!(
        r#"
        [[listener]]
        name = "one"
        address = "127.0.0.1:0"
        middleware = ["a"]
        [[listener]]
        name = "two"
        address = "127.0.0.1:0"
        [[route]]
        upstream = "u"
        [upstream.u]
        backends = {}
        [middleware.a.letter]
        letter = "a"
        "#,
        backends(&[&backend])
    );
    let proxy = TestProxy::with_middleware(text, &[("letter", Letter::kind())]).await;
    for (address, seen) in proxy.addresses().into_iter().zip([&["a"][..], &[]]) {
        let response = crate::harness::Client::connect(address).await.get("/").await;
        assert_eq!(response.headers("x-seen"), seen);
    }
}
