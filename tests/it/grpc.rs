//! gRPC, frame by frame: clients and backends are h2 itself, and each test says what both of them do and when.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response, request};
use isobar::backend::BackendState;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;

use crate::harness::{Scratch, TestBackend, TestProxy, eventually, free_address, soon};

const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// A backend that answers as the test does.
struct Backend {
    address: SocketAddr,
    calls: UnboundedReceiver<Call>,
    asked: Arc<AtomicUsize>,
    /// What its health service answers.
    health: Arc<AtomicU8>,
    task: JoinHandle<()>,
}

/// A call at its backend.
struct Call {
    head: request::Parts,
    body: RecvStream,
    respond: SendResponse<Bytes>,
    connection: tokio::task::AbortHandle,
}

impl Backend {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, calls) = unbounded_channel();
        let (asked, health) = (Arc::<AtomicUsize>::default(), Arc::new(AtomicU8::new(1)));
        let (counted, served) = (Arc::clone(&asked), Arc::clone(&health));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (sender, asked, health) = (sender.clone(), Arc::clone(&counted), Arc::clone(&served));
                let (own, mut given) = tokio::sync::mpsc::channel::<tokio::task::AbortHandle>(1);
                let connection = connections.spawn(async move {
                    let connection = given.recv().await.unwrap();
                    let Ok(mut server) = h2::server::handshake(tcp).await else { return };
                    while let Some(Ok((request, respond))) = server.accept().await {
                        let (head, body) = request.into_parts();
                        if head.uri.path() == HEALTH {
                            tokio::spawn(tell_health(body, respond, health.load(SeqCst)));
                            continue;
                        }
                        asked.fetch_add(1, SeqCst);
                        let _ = sender.send(Call { head, body, respond, connection: connection.clone() });
                    }
                });
                own.try_send(connection).unwrap();
            }
        });
        Self { address, calls, asked, health, task }
    }

    async fn call(&mut self) -> Call {
        soon(self.calls.recv()).await.unwrap()
    }

    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Below 10 a `ServingStatus`, from 20 on a status of gRPC and 20, 10 an answer that is malformed.
async fn tell_health(mut body: RecvStream, mut respond: SendResponse<Bytes>, health: u8) {
    let asked = message(&mut body).await;
    assert_eq!(asked.as_deref(), Some(&[0, 0, 0, 0, 3, 0x0a, 1, b's'][..]));
    if let Some(status @ 1..) = health.checked_sub(20) {
        let _ = respond.send_response(answer(&[("grpc-status", &status.to_string())]), true);
        return;
    }
    let mut send = respond.send_response(answer(&[]), false).unwrap();
    let length = if health == 10 { 200 } else { 2 };
    let _ = send.send_data(Bytes::from(vec![0, 0, 0, 0, length, 8, health]), false);
    let _ = send.send_trailers(headers(&[("grpc-status", "0")]));
}

impl Call {
    /// Begins the response.
    fn answer(&mut self) -> SendStream<Bytes> {
        self.respond.send_response(answer(&[]), false).unwrap()
    }

    /// Answers with a status alone.
    fn refuse(mut self, status: u8) {
        self.respond.send_response(answer(&[("grpc-status", &status.to_string())]), true).unwrap();
    }

    /// Answers with a message and a status.
    fn finish(mut self, status: u8) {
        let mut send = self.answer();
        send.send_data(Bytes::from_static(b"answer"), false).unwrap();
        send.send_trailers(headers(&[("grpc-status", &status.to_string())])).unwrap();
    }

    async fn message(&mut self) -> Option<Bytes> {
        message(&mut self.body).await
    }

    /// Why the proxy gave it up.
    async fn reset(&mut self) -> Reason {
        soon(poll_fn(|cx| self.respond.poll_reset(cx))).await.unwrap()
    }

    fn timeout(&self) -> Option<Duration> {
        let text = self.head.headers.get("grpc-timeout")?.to_str().unwrap();
        let (digits, unit) = text.split_at(text.len() - 1);
        let nanos = match unit {
            "n" => 1,
            "u" => 1_000,
            "m" => 1_000_000,
            "S" => 1_000_000_000,
            unit => panic!("{unit}"),
        };
        Some(Duration::from_nanos(digits.parse::<u64>().unwrap() * nanos))
    }
}

fn answer(fields: &[(&'static str, &str)]) -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().extend(headers(fields));
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    response
}

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

/// The next piece of a body, which is one message of these tests.
async fn message(body: &mut RecvStream) -> Option<Bytes> {
    let data = soon(body.data()).await?.unwrap();
    body.flow_control().release_capacity(data.len()).unwrap();
    Some(data)
}

/// The rest of a body, and the status behind it.
async fn rest(mut body: RecvStream) -> Result<(Vec<u8>, HeaderMap), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(piece) = soon(body.data()).await {
        bytes.extend_from_slice(&piece?);
    }
    Ok((bytes, soon(body.trailers()).await?.unwrap_or_default()))
}

fn status(headers: &HeaderMap) -> u8 {
    headers["grpc-status"].to_str().unwrap().parse().unwrap()
}

struct Client {
    send: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    async fn connect(proxy: &TestProxy) -> Self {
        let tcp = TcpStream::connect(proxy.address()).await.unwrap();
        let (send, connection) = soon(h2::client::handshake(tcp)).await.unwrap();
        Self { send, driver: tokio::spawn(connection) }
    }

    async fn begin(&self, request: Request<()>, end: bool) -> (ResponseFuture, SendStream<Bytes>) {
        let mut ready = soon(self.send.clone().ready()).await.unwrap();
        ready.send_request(request, end).unwrap()
    }

    /// Begins a call with these fields beside its own.
    async fn call(&self, fields: &[(&'static str, &str)]) -> (ResponseFuture, SendStream<Bytes>) {
        self.begin(call("/pkg.Service/Method", fields), false).await
    }

    /// A call with one message, to its end.
    async fn unary(&self, fields: &[(&'static str, &str)]) -> ResponseFuture {
        let (response, mut send) = self.call(fields).await;
        send.send_data(Bytes::from_static(b"question"), true).unwrap();
        response
    }

    /// What a call comes to that is answered with a status alone.
    async fn refused(&self, response: ResponseFuture) -> (u8, String) {
        let response = soon(response).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-type"]),
            (200, &"application/grpc".parse().unwrap())
        );
        assert!(!response.headers().contains_key("content-length"), "{response:?}");
        let head = response.headers().clone();
        let (bytes, trailers) = rest(response.into_body()).await.unwrap();
        assert!(bytes.is_empty() && trailers.is_empty());
        (status(&head), head.get("grpc-message").map_or("", |words| words.to_str().unwrap()).to_owned())
    }
}

fn call(path: &str, fields: &[(&'static str, &str)]) -> Request<()> {
    let request = Request::post(format!("http://a.example{path}"));
    let mut request =
        request.header("content-type", "application/grpc+proto").header("te", "trailers").body(()).unwrap();
    request.headers_mut().extend(headers(fields));
    request
}

/// Further keys of the listener, the route and the upstream, and whole tables.
#[derive(Default)]
struct Keys<'a> {
    listener: &'a str,
    route: &'a str,
    upstream: &'a str,
    tables: &'a str,
}

async fn proxy(backends: &[&Backend], keys: Keys<'_>) -> TestProxy {
    let Keys { listener, route, upstream, tables } = keys;
    let backends: Vec<_> = backends.iter().map(|backend| backend.address.to_string()).collect();
    TestProxy::with_config(format!(
        "workers = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n{listener}\n[[route]]\nupstream = \"u\"\n{route}\n\
         [upstream.u]\nbackends = {backends:?}\nprotocol = \"http2\"\n{upstream}\n{tables}\n"
    ))
    .await
}

async fn over() -> (Backend, TestProxy, Client) {
    with(Keys::default()).await
}

async fn with(keys: Keys<'_>) -> (Backend, TestProxy, Client) {
    let backend = Backend::new().await;
    let proxy = proxy(&[&backend], keys).await;
    let client = Client::connect(&proxy).await;
    (backend, proxy, client)
}

async fn over_with(proxy: &TestProxy) {
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

fn state(proxy: &TestProxy, backend: &Backend) -> Arc<BackendState> {
    let roster = proxy.snapshot().upstream("u").unwrap().roster();
    let states = roster.backends().iter().map(|backend| Arc::clone(&backend.state));
    states.into_iter().find(|state| state.address.to_string() == backend.address.to_string()).unwrap()
}

fn counted(proxy: &TestProxy, status: usize) -> u64 {
    proxy.snapshot().upstream("u").unwrap().state.metrics.sum(|shard| &shard.grpc[status])
}

#[tokio::test]
async fn unary_calls_pass() {
    let (mut backend, proxy, client) = over().await;
    let response = client.unary(&[("x-meta", "data"), ("x-bin", "AAEC")]).await;
    let mut call = backend.call().await;
    let head = &call.head.headers;
    assert_eq!(
        (&head["x-meta"], &head["x-bin"], &head["te"]),
        (&"data".parse().unwrap(), &"AAEC".parse().unwrap(), &"trailers".parse().unwrap())
    );
    assert_eq!(head["content-type"], "application/grpc+proto");
    assert!(!head.contains_key("grpc-timeout") && !head.contains_key("content-length"));
    assert_eq!(call.message().await.as_deref(), Some(&b"question"[..]));
    assert_eq!(proxy.in_flight(), 1);
    call.finish(0);
    let (bytes, trailers) = rest(soon(response).await.unwrap().into_body()).await.unwrap();
    assert_eq!((&bytes[..], status(&trailers)), (&b"answer"[..], 0));
    over_with(&proxy).await;
    assert_eq!(counted(&proxy, 0), 1);
}

#[tokio::test]
async fn both_directions_go_on_at_once_and_end_apart() {
    let (mut backend, proxy, client) = over().await;
    let (response, mut send) = client.call(&[]).await;
    let mut call = backend.call().await;
    // The head comes while nothing was sent yet.
    let mut answers = call.answer();
    let mut body = soon(response).await.unwrap().into_body();
    for round in 0..3 {
        let text = Bytes::from(format!("message {round}"));
        send.send_data(text.clone(), false).unwrap();
        assert_eq!(call.message().await, Some(text.clone()));
        answers.send_data(text.clone(), false).unwrap();
        assert_eq!(message(&mut body).await, Some(text));
        assert_eq!(proxy.in_flight(), 1);
    }
    // The client has said all, the backend has not.
    send.send_data(Bytes::new(), true).unwrap();
    assert_eq!(call.message().await.unwrap_or_default(), Bytes::new());
    assert!(call.body.is_end_stream());
    answers.send_data(Bytes::from_static(b"last"), false).unwrap();
    assert_eq!(message(&mut body).await.as_deref(), Some(&b"last"[..]));
    assert_eq!(proxy.in_flight(), 1);
    answers.send_trailers(headers(&[("grpc-status", "0"), ("x-trailing", "yes")])).unwrap();
    let (_, trailers) = rest(body).await.unwrap();
    assert_eq!((status(&trailers), &trailers["x-trailing"]), (0, &"yes".parse().unwrap()));
    over_with(&proxy).await;
}

#[tokio::test]
async fn a_client_that_streams_gets_its_one_answer() {
    let (mut backend, proxy, client) = over().await;
    let (response, mut send) = client.call(&[]).await;
    let mut call = backend.call().await;
    for text in ["one", "two", "three"] {
        send.send_data(Bytes::from(text), false).unwrap();
        assert_eq!(call.message().await, Some(Bytes::from(text)));
    }
    send.send_data(Bytes::new(), true).unwrap();
    call.finish(0);
    let (bytes, trailers) = rest(soon(response).await.unwrap().into_body()).await.unwrap();
    assert_eq!((&bytes[..], status(&trailers)), (&b"answer"[..], 0));
    over_with(&proxy).await;
}

#[tokio::test]
async fn a_status_alone_passes_as_it_is() {
    let (mut backend, proxy, client) = over().await;
    let response = client.unary(&[]).await;
    let mut call = backend.call().await;
    let fields = [("grpc-status", "5"), ("grpc-message", "no%20such"), ("x-detail", "d")];
    call.respond.send_response(answer(&fields), true).unwrap();
    let response = soon(response).await.unwrap();
    assert!(response.body().is_end_stream());
    let head = response.headers();
    assert_eq!(
        (status(head), &head["grpc-message"], &head["x-detail"]),
        (5, &"no%20such".parse().unwrap(), &"d".parse().unwrap())
    );
    assert!(!head.contains_key("content-length"));
    over_with(&proxy).await;
    assert_eq!(counted(&proxy, 5), 1);
}

#[tokio::test]
async fn a_length_does_not_hide_the_status_behind_it() {
    let (mut backend, proxy, client) = over().await;
    let response = client.unary(&[]).await;
    let mut call = backend.call().await;
    let mut send = call.respond.send_response(answer(&[("content-length", "6")]), false).unwrap();
    send.send_data(Bytes::from_static(b"answer"), false).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    assert_eq!(message(&mut body).await.as_deref(), Some(&b"answer"[..]));
    send.send_trailers(headers(&[("grpc-status", "9")])).unwrap();
    assert_eq!(status(&rest(body).await.unwrap().1), 9);
    over_with(&proxy).await;
    assert_eq!(counted(&proxy, 9), 1);
}

#[tokio::test]
async fn with_its_status_a_call_is_over_whatever_its_client_has_to_say() {
    let (mut backend, proxy, client) = over().await;
    for alone in [true, false] {
        let (response, mut send) = client.call(&[]).await;
        let mut call = backend.call().await;
        send.send_data(Bytes::from_static(b"begun"), false).unwrap();
        assert_eq!(call.message().await.as_deref(), Some(&b"begun"[..]));
        let mut body = call.body;
        let mut respond = call.respond;
        match alone {
            true => drop(respond.send_response(answer(&[("grpc-status", "7")]), true).unwrap()),
            false => {
                let mut answers = respond.send_response(answer(&[]), false).unwrap();
                answers.send_trailers(headers(&[("grpc-status", "7")])).unwrap();
            }
        }
        let response = soon(response).await.unwrap();
        let head = response.headers().clone();
        let (_, trailers) = rest(response.into_body()).await.unwrap();
        assert_eq!(status(if alone { &head } else { &trailers }), 7);
        // The backend need not wait for the rest, and nobody holds anything for it.
        let broken = soon(body.data()).await.unwrap().unwrap_err();
        assert_eq!(broken.reason(), Some(Reason::CANCEL));
        soon(poll_fn(|cx| send.poll_reset(cx))).await.unwrap();
        over_with(&proxy).await;
    }
    assert_eq!(proxy.counted(|it| &it.http2_resets_proxy), 0);
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_its_backend() {
    let (mut backend, proxy, client) = over().await;
    for answered in [false, true] {
        let (response, mut send) = client.call(&[]).await;
        let mut call = backend.call().await;
        let answers = answered.then(|| call.answer());
        let body = match answered {
            true => Some(soon(response).await.unwrap()),
            false => {
                // Kept: dropping it is what cancels.
                tokio::spawn(response);
                None
            }
        };
        assert_eq!(proxy.in_flight(), 1);
        send.send_reset(Reason::CANCEL);
        let reason = match answers {
            Some(mut answers) => soon(poll_fn(|cx| answers.poll_reset(cx))).await.unwrap(),
            None => call.reset().await,
        };
        assert_eq!(reason, Reason::CANCEL);
        over_with(&proxy).await;
        drop(body);
    }
    assert_eq!(counted(&proxy, 1), 2);
    // The connection to the backend lives, and so does the client's.
    let response = client.unary(&[]).await;
    backend.call().await.finish(0);
    assert_eq!(status(&rest(soon(response).await.unwrap().into_body()).await.unwrap().1), 0);
}

#[tokio::test]
async fn a_client_that_vanishes_takes_its_calls_along() {
    let (mut backend, proxy, client) = over().await;
    let (_waiting, mut asks) = client.call(&[]).await;
    let mut waits = backend.call().await;
    let (begun, _sends) = client.call(&[]).await;
    let mut open = backend.call().await;
    let mut answers = open.answer();
    let _begun = soon(begun).await.unwrap();
    asks.send_data(Bytes::from_static(b"half of it"), false).unwrap();
    assert_eq!(waits.message().await.as_deref(), Some(&b"half of it"[..]));
    assert_eq!(proxy.in_flight(), 2);
    drop(client);
    assert_eq!(waits.reset().await, Reason::CANCEL);
    assert_eq!(soon(poll_fn(|cx| answers.poll_reset(cx))).await.unwrap(), Reason::CANCEL);
    over_with(&proxy).await;
    assert_eq!(counted(&proxy, 1), 2);
}

#[tokio::test]
async fn calls_that_are_silent_are_not_cut_when_requests_are() {
    let timeouts = "timeouts = { response_head = \"60ms\", body_idle = \"60ms\" }";
    let (mut backend, proxy, client) = with(Keys { route: timeouts, ..Keys::default() }).await;
    // One whose head does not come, one that has begun; each beside a request that is so too, and begins after it.
    let (waiting, mut asks) = client.call(&[]).await;
    let mut waits = backend.call().await;
    let (begun, mut sends) = client.call(&[]).await;
    let mut open = backend.call().await;
    let mut answers = open.answer();
    let mut body = soon(begun).await.unwrap().into_body();
    for answered in [false, true] {
        let get = Request::get("http://a.example/").body(()).unwrap();
        let (response, _) = client.begin(get, true).await;
        let mut plain = backend.call().await;
        if answered {
            let mut slow = plain.respond.send_response(Response::new(()), false).unwrap();
            slow.send_data(Bytes::from_static(b"x"), false).unwrap();
            let cut = rest(soon(response).await.unwrap().into_body()).await.unwrap_err();
            assert_eq!(cut.reason(), Some(Reason::CANCEL));
        } else {
            assert_eq!(soon(response).await.unwrap().status(), 504);
        }
    }
    assert_eq!(proxy.in_flight(), 2);
    asks.send_data(Bytes::from_static(b"still here"), true).unwrap();
    assert_eq!(waits.message().await.as_deref(), Some(&b"still here"[..]));
    waits.finish(0);
    assert_eq!(status(&rest(soon(waiting).await.unwrap().into_body()).await.unwrap().1), 0);
    sends.send_data(Bytes::from_static(b"here too"), false).unwrap();
    assert_eq!(open.message().await.as_deref(), Some(&b"here too"[..]));
    answers.send_data(Bytes::from_static(b"yes"), false).unwrap();
    assert_eq!(message(&mut body).await.as_deref(), Some(&b"yes"[..]));
    answers.send_trailers(headers(&[("grpc-status", "0")])).unwrap();
    assert_eq!(status(&rest(body).await.unwrap().1), 0);
    over_with(&proxy).await;
}

#[tokio::test]
async fn a_call_that_is_silent_for_too_long_is_unavailable() {
    let (mut backend, proxy, client) =
        with(Keys { route: "timeouts = { grpc_idle = \"100ms\" }", ..Keys::default() }).await;
    let (response, _send) = client.call(&[]).await;
    let mut call = backend.call().await;
    assert_eq!(client.refused(response).await.0, 14);
    assert_eq!(call.reset().await, Reason::CANCEL);
    over_with(&proxy).await;

    let (response, _send) = client.call(&[]).await;
    let mut call = backend.call().await;
    let mut answers = call.answer();
    answers.send_data(Bytes::from_static(b"begun"), false).unwrap();
    let (bytes, trailers) = rest(soon(response).await.unwrap().into_body()).await.unwrap();
    assert_eq!((&bytes[..], status(&trailers)), (&b"begun"[..], 14));
    assert_eq!(soon(poll_fn(|cx| answers.poll_reset(cx))).await.unwrap(), Reason::CANCEL);
    over_with(&proxy).await;
    assert_eq!(counted(&proxy, 14), 2);
}

#[tokio::test]
async fn a_deadline_bounds_the_call_and_its_backend_is_told_less() {
    let (mut backend, proxy, client) = over().await;
    // Before the head.
    let response = client.unary(&[("grpc-timeout", "150m")]).await;
    let mut call = backend.call().await;
    let told = call.timeout().unwrap();
    assert!(told < Duration::from_millis(150) && !told.is_zero(), "{told:?}");
    assert_eq!(client.refused(response).await, (4, "the call took longer than it may".to_owned()));
    assert_eq!(call.reset().await, Reason::CANCEL);
    over_with(&proxy).await;

    // Behind it, however much moves.
    let (response, _send) = client.call(&[("grpc-timeout", "200m")]).await;
    let mut call = backend.call().await;
    let mut answers = call.answer();
    let flood = tokio::spawn(async move {
        while answers.send_data(Bytes::from_static(b"more"), false).is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let mut body = soon(response).await.unwrap().into_body();
    while let Some(_data) = message(&mut body).await {}
    assert_eq!(status(&soon(body.trailers()).await.unwrap().unwrap()), 4);
    soon(flood).await.unwrap();
    over_with(&proxy).await;
    assert_eq!(counted(&proxy, 4), 2);
}

#[tokio::test]
async fn deadlines_are_kept_though_the_file_has_long_timeouts_only() {
    // Its watch alone would look every quarter of a second.
    let (mut backend, proxy, client) = over().await;
    let began = std::time::Instant::now();
    let mut shortest = Duration::MAX;
    for _ in 0..10 {
        let asked = std::time::Instant::now();
        let response = client.unary(&[("grpc-timeout", "20m")]).await;
        let _call = backend.call().await;
        assert_eq!(client.refused(response).await.0, 4);
        shortest = shortest.min(asked.elapsed());
    }
    assert!(shortest >= Duration::from_millis(20) && shortest < Duration::from_millis(100), "{shortest:?}");
    assert!(began.elapsed() >= Duration::from_millis(200));
    over_with(&proxy).await;
}

#[tokio::test]
async fn the_route_limits_deadlines() {
    let route = "timeouts = { exchange = \"30s\", grpc_timeout_max = \"10s\" }";
    let (mut backend, proxy, client) = with(Keys { route, ..Keys::default() }).await;
    for (asked, most, least) in [(Some("20S"), 10, 5), (Some("9S"), 9, 4), (None, 30, 20), (Some("1H"), 10, 5)] {
        let fields: Vec<_> = asked.into_iter().map(|asked| ("grpc-timeout", asked)).collect();
        let response = client.unary(&fields).await;
        let call = backend.call().await;
        let told = call.timeout().unwrap();
        assert!(told < Duration::from_secs(most) && told > Duration::from_secs(least), "{asked:?}: {told:?}");
        call.finish(0);
        assert_eq!(status(&rest(soon(response).await.unwrap().into_body()).await.unwrap().1), 0);
    }
    over_with(&proxy).await;
}

#[tokio::test]
async fn the_longest_deadline_there_is_can_be_given() {
    let (mut backend, proxy, client) = over().await;
    let response = client.unary(&[("grpc-timeout", "99999999H")]).await;
    let call = backend.call().await;
    assert_eq!(call.head.headers["grpc-timeout"], "99999998H");
    call.finish(0);
    assert_eq!(status(&rest(soon(response).await.unwrap().into_body()).await.unwrap().1), 0);
    over_with(&proxy).await;
}

#[tokio::test]
async fn deadlines_that_are_none_reach_no_backend() {
    let (backend, proxy, client) = over().await;
    for (timeouts, status, words) in [
        (&["soon"][..], 13, "the grpc-timeout is malformed"),
        (&["123456789S"], 13, "the grpc-timeout is malformed"),
        (&["1S", "2S"], 13, "the grpc-timeout is malformed"),
        (&["0S"], 4, "the call took longer than it may"),
    ] {
        let mut request = call("/pkg.Service/Method", &[]);
        for timeout in timeouts {
            request.headers_mut().append("grpc-timeout", timeout.parse().unwrap());
        }
        let (response, _send) = client.begin(request, false).await;
        assert_eq!(client.refused(response).await, (status, words.to_owned()), "{timeouts:?}");
    }
    over_with(&proxy).await;
    assert_eq!(backend.asked(), 0);
}

#[tokio::test]
async fn errors_of_the_proxy_are_statuses_for_calls_and_for_nobody_else() {
    let gone = free_address();
    let backend = Backend::new().await;
    let tables = format!(
        "[[route]]\npath_prefix = \"/gone\"\nupstream = \"gone\"\n[[route]]\npath_prefix = \"/none\"\nupstream = \"none\"\n\
         [upstream.gone]\nbackends = [\"{gone}\"]\nprotocol = \"http2\"\nretries = 0\n\
         [upstream.none]\nbackends = [{{ address = \"127.0.0.1:1\", weight = 0 }}]\nprotocol = \"http2\"\nstrategy = \"weighted_random\""
    );
    let (listener, route) = ("max_body = \"8B\"", "path_prefix = \"/pkg.Service\"");
    let proxy = self::proxy(&[&backend], Keys { listener, route, tables: &tables, ..Keys::default() }).await;
    let client = Client::connect(&proxy).await;
    for (path, expected, http, words) in [
        ("/nowhere/M", 12, 404, "no route matches this request"),
        ("/none/M", 14, 503, "no backend is ready"),
        ("/gone/M", 14, 502, "no connection to a backend could be made"),
    ] {
        let (response, _send) = client.begin(call(path, &[]), false).await;
        assert_eq!(client.refused(response).await, (expected, words.to_owned()), "{path}");
        for kind in ["application/grpc-web+proto", "application/json"] {
            let mut plain = call(path, &[]);
            plain.headers_mut().insert("content-type", kind.parse().unwrap());
            let (response, _send) = client.begin(plain, false).await;
            let response = soon(response).await.unwrap();
            assert_eq!((response.status().as_u16(), response.headers().contains_key("grpc-status")), (http, false));
        }
    }
    // A message of nine bytes behind one of eight, in pieces.
    let (response, mut send) = client.call(&[]).await;
    for piece in [&b"\0\0\0\0\x0812345678"[..], b"\0\0\0", b"\0\x09", b"123456789"] {
        let _ = send.send_data(Bytes::from_static(piece), false);
    }
    assert_eq!(client.refused(response).await.0, 8);
    over_with(&proxy).await;
}

#[tokio::test]
async fn a_call_whose_backend_breaks_is_unavailable() {
    let (mut backend, proxy, client) = with(Keys { upstream: "retries = 0", ..Keys::default() }).await;
    let response = client.unary(&[]).await;
    backend.call().await.respond.send_reset(Reason::INTERNAL_ERROR);
    assert_eq!(client.refused(response).await, (14, "the backend broke off before it answered".to_owned()));

    // Behind the head, by a reset and with its connection; never as if it were whole.
    for connection in [false, true] {
        let response = client.unary(&[]).await;
        let mut call = backend.call().await;
        let mut answers = call.answer();
        answers.send_data(Bytes::from_static(b"begun"), false).unwrap();
        let mut body = soon(response).await.unwrap().into_body();
        assert_eq!(message(&mut body).await.as_deref(), Some(&b"begun"[..]));
        match connection {
            true => call.connection.abort(),
            false => answers.send_reset(Reason::INTERNAL_ERROR),
        }
        let (bytes, trailers) = rest(body).await.unwrap();
        assert_eq!((bytes.len(), status(&trailers)), (0, 14));
        assert_eq!(trailers["grpc-message"], "the backend broke off its response");
        over_with(&proxy).await;
    }
    assert_eq!(counted(&proxy, 14), 3);

    // One that is no call is reset.
    let (response, _) = client.begin(Request::get("http://a.example/").body(()).unwrap(), true).await;
    let mut plain = backend.call().await;
    let mut answers = plain.respond.send_response(Response::new(()), false).unwrap();
    answers.send_data(Bytes::from_static(b"begun"), false).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    assert_eq!(message(&mut body).await.as_deref(), Some(&b"begun"[..]));
    answers.send_reset(Reason::INTERNAL_ERROR);
    assert_eq!(rest(body).await.unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
    over_with(&proxy).await;
}

#[tokio::test]
async fn answers_in_plain_http_pass_as_they_are() {
    let (mut backend, proxy, client) = over().await;
    let response = client.unary(&[]).await;
    let mut call = backend.call().await;
    let page = Response::builder().status(503).header("content-type", "text/html").body(()).unwrap();
    let mut send = call.respond.send_response(page, false).unwrap();
    send.send_data(Bytes::from_static(b"<p>busy"), true).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["content-type"]), (503, &"text/html".parse().unwrap()));
    assert!(!response.headers().contains_key("grpc-status"));
    assert_eq!(rest(response.into_body()).await.unwrap().0, b"<p>busy");
    over_with(&proxy).await;
    assert_eq!((backend.asked(), counted(&proxy, 14)), (1, 1));
}

/// Two backends, a proxy that calls again after these, and a client of it.
async fn retrying(upstream: &str) -> ([Backend; 2], TestProxy, Client) {
    let backends = [Backend::new().await, Backend::new().await];
    let keys = format!("outlier_detection = {{ enabled = false }}\n{upstream}");
    let proxy = proxy(&[&backends[0], &backends[1]], Keys { upstream: &keys, ..Keys::default() }).await;
    let client = Client::connect(&proxy).await;
    (backends, proxy, client)
}

/// The next call, at whichever of the two.
async fn either([a, b]: &mut [Backend; 2]) -> Call {
    tokio::select! {
        call = a.call() => call,
        call = b.call() => call,
    }
}

fn retries(proxy: &TestProxy) -> u64 {
    isobar::telemetry::metrics::UpstreamMetrics::all_retries(&proxy.snapshot().upstream("u").unwrap().state.metrics)
}

#[tokio::test]
async fn a_call_is_made_again_after_a_status_that_is_named() {
    let (mut backends, proxy, client) = retrying("retries = { grpc_statuses = [\"unavailable\"] }").await;
    let response = client.unary(&[("grpc-timeout", "20S")]).await;
    let mut first = either(&mut backends).await;
    let told = first.timeout().unwrap();
    assert_eq!(first.message().await.as_deref(), Some(&b"question"[..]));
    first.refuse(14);
    let mut second = either(&mut backends).await;
    assert!(second.timeout().unwrap() < told, "less is left");
    assert_eq!(second.head.headers["x-isobar-attempt"], "2");
    assert_eq!(second.message().await.as_deref(), Some(&b"question"[..]));
    assert_eq!(proxy.in_flight(), 1);
    second.finish(0);
    let (bytes, trailers) = rest(soon(response).await.unwrap().into_body()).await.unwrap();
    assert_eq!((&bytes[..], status(&trailers)), (&b"answer"[..], 0));
    over_with(&proxy).await;
    assert_eq!((backends[0].asked(), backends[1].asked(), retries(&proxy)), (1, 1, 1));
}

#[tokio::test]
async fn the_last_answer_passes_where_all_refuse() {
    let (mut backends, proxy, client) = retrying("retries = { max = 5, grpc_statuses = [\"unavailable\"] }").await;
    let response = client.unary(&[]).await;
    either(&mut backends).await.refuse(14);
    either(&mut backends).await.refuse(14);
    assert_eq!(client.refused(response).await.0, 14);
    over_with(&proxy).await;
    assert_eq!((backends[0].asked(), backends[1].asked()), (1, 1));
}

#[tokio::test]
async fn a_call_is_not_made_again_where_that_may_not_be() {
    for (case, upstream) in [
        ("not named", "retries = { grpc_statuses = [\"aborted\"] }"),
        ("none named", ""),
        ("no retries", "retries = { max = 0, grpc_statuses = [\"unavailable\"] }"),
        ("in trailers", "retries = { grpc_statuses = [\"unavailable\"] }"),
        ("pushed back", "retries = { grpc_statuses = [\"unavailable\"] }"),
        ("not kept", "retries = { body_buffer = 4, grpc_statuses = [\"unavailable\"] }"),
        (
            "no budget",
            "retries = { grpc_statuses = [\"unavailable\"] }\nretry_budget = { percent = 0, per_second = 0 }",
        ),
    ] {
        let (mut backends, proxy, client) = retrying(upstream).await;
        let response = client.unary(&[]).await;
        let mut call = either(&mut backends).await;
        assert_eq!(call.message().await.as_deref(), Some(&b"question"[..]));
        match case {
            "in trailers" => call.finish(14),
            "pushed back" => {
                let fields = [("grpc-status", "14"), ("grpc-retry-pushback-ms", "5000")];
                call.respond.send_response(answer(&fields), true).unwrap();
            }
            _ => call.refuse(14),
        }
        let response = soon(response).await.unwrap();
        let head = response.headers().clone();
        let (_, trailers) = rest(response.into_body()).await.unwrap();
        assert_eq!(status(if case == "in trailers" { &trailers } else { &head }), 14, "{case}");
        over_with(&proxy).await;
        assert_eq!((backends[0].asked() + backends[1].asked(), retries(&proxy)), (1, 0), "{case}");
    }
}

#[tokio::test]
async fn a_route_may_name_other_statuses() {
    let backends = [Backend::new().await, Backend::new().await];
    let (route, upstream) =
        ("retries = { grpc_statuses = [\"aborted\"] }", "retries = { grpc_statuses = [\"unavailable\"] }");
    let proxy = proxy(&[&backends[0], &backends[1]], Keys { route, upstream, ..Keys::default() }).await;
    let (mut backends, client) = (backends, Client::connect(&proxy).await);
    let response = client.unary(&[]).await;
    either(&mut backends).await.refuse(10);
    either(&mut backends).await.refuse(14);
    assert_eq!(client.refused(response).await.0, 14);
    over_with(&proxy).await;
    assert_eq!(retries(&proxy), 1);
}

#[tokio::test]
async fn log_and_metrics_have_the_status_wherever_it_comes_from() {
    let scratch = Scratch::new();
    let log = scratch.path("access.log");
    let tables = format!(
        "[access_log]\nenabled = true\nformat = \"json\"\noutput = {log:?}\n[admin]\naddress = \"127.0.0.1:0\""
    );
    let (mut backend, proxy, client) = with(Keys { upstream: "retries = 0", tables: &tables, ..Keys::default() }).await;
    // In trailers, in the head, of the proxy's own, and none.
    let response = client.unary(&[]).await;
    backend.call().await.finish(9);
    rest(soon(response).await.unwrap().into_body()).await.unwrap();
    let response = client.unary(&[]).await;
    backend.call().await.refuse(5);
    client.refused(response).await;
    let response = client.unary(&[]).await;
    backend.call().await.respond.send_reset(Reason::INTERNAL_ERROR);
    client.refused(response).await;
    let response = client.unary(&[]).await;
    let mut call = backend.call().await;
    call.answer().send_data(Bytes::from_static(b"answer"), true).unwrap();
    rest(soon(response).await.unwrap().into_body()).await.unwrap();
    // A call that is cancelled, and a request that is none.
    let (response, mut send) = client.call(&[]).await;
    let _call = backend.call().await;
    send.send_reset(Reason::CANCEL);
    assert!(soon(response).await.is_err());
    over_with(&proxy).await;
    let (response, _) = client.begin(Request::get("http://a.example/").body(()).unwrap(), true).await;
    backend.call().await.respond.send_response(Response::new(()), true).unwrap();
    soon(response).await.unwrap();
    let read = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually(|| read().lines().count() == 6).await;
    let lines: Vec<serde_json::Value> = read().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> =
        lines.iter().map(|line| (line["status"].as_u64().unwrap(), line["grpc_status"].as_u64())).collect();
    assert_eq!(told, [(200, Some(9)), (200, Some(5)), (200, Some(14)), (200, Some(2)), (499, Some(1)), (200, None)]);
    assert_eq!((&lines[2]["reason"], &lines[4]["reason"]), (&"backend_broke_off".into(), &"client_gone".into()));
    for (code, count) in [(9, 1), (5, 1), (14, 1), (2, 1), (1, 1), (0, 0)] {
        assert_eq!(counted(&proxy, code), count, "{code}");
    }
    let mut admin = crate::harness::Client::connect(proxy.admin_address()).await;
    admin.send("GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let metrics = admin.response().await;
    let series = "isobar_upstream_grpc_calls_total{upstream=\"u\",status=\"failed_precondition\"} 1";
    assert!(metrics.text().lines().any(|line| line == series), "{}", metrics.text());
}

#[tokio::test]
async fn outlier_detection_looks_at_statuses() {
    let keys = "retries = 0\noutlier_detection = { consecutive_gateway_errors = 3, consecutive_local_errors = 3 }";
    for (case, ejects) in [("trailers", true), ("alone", true), ("broken", true), ("deadline", false), ("late", false)]
    {
        let mut backends = [Backend::new().await, Backend::new().await];
        let proxy = proxy(&[&backends[0], &backends[1]], Keys { upstream: keys, ..Keys::default() }).await;
        let client = Client::connect(&proxy).await;
        let address = backends[0].address;
        // Six by turns, three of them there.
        for _ in 0..6 {
            let fields: &[_] = if case == "late" { &[("grpc-timeout", "30m")] } else { &[] };
            let response = client.unary(fields).await;
            let [first, second] = &mut backends;
            let mut call = tokio::select! {
                call = first.call() => (true, call),
                call = second.call() => (false, call),
            };
            match (call.0, case) {
                (false, _) => call.1.finish(0),
                (_, "trailers") => call.1.finish(14),
                (_, "alone") => call.1.refuse(14),
                (_, "deadline") => call.1.refuse(4),
                (_, "late") => {
                    assert_eq!(client.refused(response).await.0, 4);
                    continue;
                }
                (_, _) => call.1.answer().send_reset(Reason::INTERNAL_ERROR),
            }
            let response = soon(response).await.unwrap();
            let _ = rest(response.into_body()).await;
        }
        over_with(&proxy).await;
        let ejected = || state(&proxy, &backends[0]).outlier.history().is_ejected();
        if ejects {
            eventually(ejected).await;
        } else {
            let streaks = state(&proxy, &backends[0]).outlier.streaks();
            assert_eq!((streaks.gateway, streaks.local), (0, 0), "{case} at {address}");
            assert!(!ejected());
        }
    }
}

#[tokio::test]
async fn deadlines_of_clients_open_no_circuit_breaker() {
    // Connects, and never shakes hands.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let breaker = "circuit_breaker = { min_calls = 2, failure_percent = 1, open_for = \"60s\", open_max = \"60s\" }";
    let proxy = TestProxy::with_config(format!(
        "workers = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n[upstream.u]\n\
         backends = [\"{}\"]\nprotocol = \"http2\"\nretries = 0\n{breaker}\ntls = {{ insecure_skip_verify = true }}\n",
        silent.local_addr().unwrap()
    ))
    .await;
    let client = Client::connect(&proxy).await;
    for _ in 0..6 {
        let response = client.unary(&[("grpc-timeout", "20m")]).await;
        assert_eq!(client.refused(response).await.0, 4);
    }
    over_with(&proxy).await;
}

#[tokio::test]
async fn health_checks_ask_the_health_service() {
    let check = "health_check = { type = \"grpc\", service = \"s\", interval = \"20ms\", unhealthy_after = 1, healthy_after = 1 }";
    let (mut backend, proxy, client) = with(Keys { upstream: check, ..Keys::default() }).await;
    let verdict = || state(&proxy, &backend).health.verdict().as_str();
    let failure = || state(&proxy, &backend).health.look().1.and_then(|last| last.failure);
    eventually(|| verdict() == "healthy").await;
    for (said, words) in [
        (2, "it says that it is NOT_SERVING"),
        (3, "it says that it is SERVICE_UNKNOWN"),
        (10, "the answer of the health service is malformed"),
        (25, "its health service does not know the service: status not_found"),
        (32, "it has no health service: status unimplemented"),
        (34, "status unavailable"),
    ] {
        backend.health.store(said, SeqCst);
        eventually(|| verdict() == "unhealthy" && failure().as_deref() == Some(words)).await;
        backend.health.store(1, SeqCst);
        eventually(|| verdict() == "healthy").await;
    }
    let response = client.unary(&[]).await;
    backend.call().await.finish(0);
    assert_eq!(status(&rest(soon(response).await.unwrap().into_body()).await.unwrap().1), 0);
    assert_eq!(backend.asked(), 1, "checks are no calls");
}

#[tokio::test]
async fn a_call_that_outlives_its_backends_drain_is_unavailable() {
    let text = |address: SocketAddr| {
        format!(
            "workers = 1\ndrain_limit = \"100ms\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n\
             [upstream.u]\nbackends = [\"{address}\"]\nprotocol = \"http2\"\n"
        )
    };
    let (mut old, new) = (Backend::new().await, Backend::new().await);
    let proxy = TestProxy::with_config(text(old.address)).await;
    let client = Client::connect(&proxy).await;
    let (response, _send) = client.call(&[]).await;
    let mut call = old.call().await;
    let mut answers = call.answer();
    let mut body = soon(response).await.unwrap().into_body();
    answers.send_data(Bytes::from_static(b"begun"), false).unwrap();
    assert_eq!(message(&mut body).await.as_deref(), Some(&b"begun"[..]));
    proxy.apply(text(new.address)).await.unwrap();
    let (_, trailers) = rest(body).await.unwrap();
    assert_eq!(status(&trailers), 14);
    over_with(&proxy).await;
}

#[tokio::test]
async fn a_stream_may_carry_more_than_a_message_may() {
    let (mut backend, proxy, client) = with(Keys { listener: "max_body = \"1KiB\"", ..Keys::default() }).await;
    let (response, mut send) = client.call(&[]).await;
    let mut call = backend.call().await;
    let message = [&b"\0\0\0\x04\0"[..], &[b'x'; 1024]].concat();
    let all = message.repeat(20);
    // In pieces that begin and end anywhere.
    for piece in all.chunks(1000) {
        send.send_data(Bytes::copy_from_slice(piece), false).unwrap();
    }
    send.send_data(Bytes::new(), true).unwrap();
    let mut got = 0;
    while let Some(piece) = call.message().await {
        got += piece.len();
    }
    assert_eq!(got, all.len());
    call.finish(0);
    let (_, trailers) = rest(soon(response).await.unwrap().into_body()).await.unwrap();
    assert_eq!(status(&trailers), 0);
    over_with(&proxy).await;
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

#[tokio::test]
async fn a_call_that_grows_too_large_behind_its_head_is_told_so() {
    let (mut backend, proxy, client) = with(Keys { listener: "max_body = \"1KiB\"", ..Keys::default() }).await;
    let (response, mut send) = client.call(&[]).await;
    let mut call = backend.call().await;
    let _answers = call.answer();
    let body = soon(response).await.unwrap().into_body();
    for _ in 0..2 {
        send.send_data(Bytes::from(vec![b'x'; 600]), false).unwrap();
    }
    let (_, trailers) = rest(body).await.unwrap();
    assert_eq!(status(&trailers), 8);
    assert_eq!(call.reset().await, Reason::CANCEL, "the backend does not take what it has for all");
    over_with(&proxy).await;
}

#[tokio::test]
async fn an_overdue_call_takes_no_connection() {
    let backend = TestBackend::ok("hello");
    let proxy = TestProxy::over(&[&backend]).await;
    assert_eq!(proxy.get("/").await.status(), 200);
    let client = Client::connect(&proxy).await;
    for _ in 0..5 {
        // Over once it is looked at, and not at once, as 0 is.
        let response = client.unary(&[("grpc-timeout", "1n")]).await;
        assert_eq!(client.refused(response).await.0, 4);
    }
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!((backend.connections(), backend.requests()), (1, 2));
    over_with(&proxy).await;
}
