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

use crate::harness::{TestProxy, eventually, soon};

mod calls;
mod deadlines;
mod errors;
mod retries;
mod judged;

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

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
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

fn text(backends: &[&Backend], keys: Keys<'_>) -> String {
    let Keys { listener, route, upstream, tables } = keys;
    let backends: Vec<_> = backends.iter().map(|backend| backend.address.to_string()).collect();
    format!(
        "workers = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n{listener}\n[[route]]\nupstream = \"u\"\n{route}\n\
         [upstream.u]\nbackends = {backends:?}\nprotocol = \"http2\"\n{upstream}\n{tables}\n"
    )
}

async fn proxy(backends: &[&Backend], keys: Keys<'_>) -> TestProxy {
    TestProxy::with_config(text(backends, keys)).await
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
