//! Middleware, of kinds of the test's own: in which order it runs, how it waits, answers and wraps, and what of it outlives a reload.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use isobar::middleware::{Answer, Middleware, MiddlewareFactory, RequestView, ResponseView, Setup, Step};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::harness::{After, Keys, Log, TestBackend, TestProxy, backends, eventually, soon};
use crate::wrapped_bodies::Capitals;

/// A kind that is made by this function.
pub(super) fn kind<M: Middleware + 'static>(
    make: impl Fn(&Setup<'_>) -> M + Send + Sync + 'static,
) -> MiddlewareFactory {
    Arc::new(move |setup| Ok(Box::new(make(setup))))
}

/// Adds its letter to `x-seen` both ways, of trailers too. Answers 403 a request whose `x-answer` is its letter.
#[derive(Debug)]
pub(super) struct Letter(HeaderValue);

impl Letter {
    pub(super) fn kind() -> MiddlewareFactory {
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

/// Middleware at each place: `a` and `b` at the listener, `c` at the route, `d` at the upstream.
pub(super) fn letters(pool: &[&TestBackend], route: &str) -> String {
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
pub(super) fn at_route(pool: &[&TestBackend], kind: &str, more: &str) -> String {
    let tables = format!("[middleware.m]\n{more}\n[middleware.m.{kind}]\n");
    Keys { route: "middleware = [\"m\"]", tables: &tables, ..Keys::default() }.text(pool)
}

pub(super) async fn http2(proxy: &TestProxy) -> SendRequest<Bytes> {
    let tcp = TcpStream::connect(proxy.address()).await.unwrap();
    let (send, connection) = soon(h2::client::handshake(tcp)).await.unwrap();
    tokio::spawn(connection);
    send
}

pub(super) async fn call(client: &mut SendRequest<Bytes>, answer: &str) -> Response<h2::RecvStream> {
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
