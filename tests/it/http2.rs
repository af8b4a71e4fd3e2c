//! HTTP/2 to clients, as a client of HTTP/2 sees it.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::harness::{Keys, Scratch, TestBackend, TestProxy, backends, body_of, eventually, soon};

/// A connection that speaks HTTP/2 from its first byte.
struct Client {
    send: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    async fn connect(proxy: &TestProxy) -> Self {
        Self::with(proxy, &mut h2::client::Builder::new()).await
    }

    async fn with(proxy: &TestProxy, builder: &mut h2::client::Builder) -> Self {
        let tcp = TcpStream::connect(proxy.address()).await.unwrap();
        let (send, connection) = soon(builder.handshake(tcp)).await.unwrap();
        Self { send, driver: tokio::spawn(connection) }
    }

    async fn begin(&mut self, request: Request<()>, end: bool) -> (ResponseFuture, SendStream<Bytes>) {
        let mut ready = soon(self.send.clone().ready()).await.unwrap();
        ready.send_request(request, end).unwrap()
    }

    async fn ask(&mut self, request: Request<()>) -> Response<RecvStream> {
        let (response, _) = self.begin(request, true).await;
        soon(response).await.unwrap()
    }

    async fn get(&mut self, path: &str) -> (u16, String) {
        let response = self.ask(get(path)).await;
        let status = response.status().as_u16();
        (status, String::from_utf8(all(response.into_body()).await.unwrap().0).unwrap())
    }
}

fn get(path: &str) -> Request<()> {
    request("GET", path)
}

fn request(method: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://a.example{path}")).body(()).unwrap()
}

/// All of a body, and its trailers.
async fn all(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(piece) = soon(body.data()).await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len()).unwrap();
        bytes.extend_from_slice(&piece);
    }
    Ok((bytes, soon(body.trailers()).await?))
}

async fn send_all(stream: &mut SendStream<Bytes>, mut bytes: Bytes) {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        while stream.capacity() == 0 {
            soon(poll_fn(|cx| stream.poll_capacity(cx))).await.unwrap().unwrap();
        }
        let piece = bytes.split_to(stream.capacity().min(bytes.len()));
        stream.send_data(piece, false).unwrap();
    }
}

#[tokio::test]
async fn requests_and_responses_pass() {
    let backend = TestBackend::echo();
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = Client::connect(&proxy).await;
    let ask = Request::get("http://a.example/p?q=1").header("cookie", "a=1").header("cookie", "b=2");
    let response = client.ask(ask.header("te", "trailers").body(()).unwrap()).await;
    assert_eq!(response.status(), 200);
    assert!(response.headers().contains_key("date") && !response.headers().contains_key("connection"));
    let (body, _) = all(response.into_body()).await.unwrap();
    let echo: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&echo["line"], &echo["body"]), (&"GET /p?q=1 HTTP/1.1".into(), &"".into()));
    let head = backend.last_head();
    assert_eq!(head.all("host"), ["a.example"]);
    assert_eq!(head.all("cookie"), ["a=1; b=2"]);
    assert_eq!(head.all("te"), ["trailers"]);
    assert_eq!(head.get("x-forwarded-for"), Some("127.0.0.1"));

    // A body of known length, and one of unknown length with trailers.
    for (length, trailers) in [(true, false), (false, false), (false, true)] {
        let mut ask = Request::post("http://a.example/");
        if length {
            ask = ask.header("content-length", 11);
        }
        let (response, mut stream) = client.begin(ask.body(()).unwrap(), false).await;
        stream.send_data("hello ".into(), false).unwrap();
        stream.send_data("world".into(), !trailers).unwrap();
        if trailers {
            stream.send_trailers([("x-sum".parse().unwrap(), "5".parse().unwrap())].into_iter().collect()).unwrap();
        }
        let response = soon(response).await.unwrap();
        let echo: serde_json::Value = serde_json::from_slice(&all(response.into_body()).await.unwrap().0).unwrap();
        assert_eq!(echo["body"], "hello world");
        assert_eq!(echo["trailers"].as_array().unwrap().len(), usize::from(trailers), "{echo}");
        assert_eq!(backend.last_head().get("content-length"), length.then_some("11"));
    }
    assert_eq!(proxy.counted(|it| &it.http2_streams), 4);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
    assert_eq!(backend.connections(), 1, "kept");
}

#[tokio::test]
async fn responses_without_a_body_and_with_trailers() {
    let backend = TestBackend::scripted(async |peer| {
        while let Some(message) = peer.request().await {
            match message.head.target() {
                "/204" => peer.write("HTTP/1.1 204 No Content\r\n\r\n").await,
                "/304" => peer.write("HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n").await,
                "/head" => peer.write("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n").await,
                "/hints" => {
                    peer.write("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await;
                    peer.respond("200 OK", "late").await;
                }
                _ => {
                    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nkeep-alive: 5\r\nServer: a\r\n\r\n";
                    peer.write(format!("{head}5\r\nhello\r\n0\r\nx-sum: 5\r\n\r\n")).await;
                }
            }
        }
    });
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = Client::connect(&proxy).await;
    for (method, path, status, length) in
        [("GET", "/204", 204, None), ("GET", "/304", 304, Some("7")), ("HEAD", "/head", 200, Some("7"))]
    {
        let response = client.ask(request(method, path)).await;
        assert_eq!(response.status(), status, "{path}");
        let told = response.headers().get("content-length").map(|length| length.to_str().unwrap());
        assert_eq!(told, length, "{path}");
        assert!(all(response.into_body()).await.unwrap().0.is_empty());
    }
    let (mut response, _) = client.begin(get("/hints"), true).await;
    let early = soon(poll_fn(|cx| response.poll_informational(cx))).await.unwrap().unwrap();
    assert_eq!((early.status().as_u16(), &early.headers()["link"]), (103, &"</a>".parse().unwrap()));
    assert_eq!(all(soon(response).await.unwrap().into_body()).await.unwrap().0, b"late");
    let response = client.ask(get("/")).await;
    assert!(!response.headers().contains_key("keep-alive") && !response.headers().contains_key("transfer-encoding"));
    assert_eq!(response.headers()["server"], "a");
    let (body, trailers) = all(response.into_body()).await.unwrap();
    assert_eq!((&body[..], &trailers.unwrap()["x-sum"]), (&b"hello"[..], &"5".parse().unwrap()));
}

#[tokio::test]
async fn streams_are_served_beside_each_other() {
    let backend = TestBackend::slow("good", Duration::from_millis(300));
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = Client::connect(&proxy).await;
    let start = std::time::Instant::now();
    let mut responses = Vec::new();
    for _ in 0..20 {
        responses.push(client.begin(get("/"), true).await.0);
    }
    for response in responses {
        assert_eq!(all(soon(response).await.unwrap().into_body()).await.unwrap().0, b"good");
    }
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(proxy.connections(), [1]);
}

#[tokio::test]
async fn more_streams_than_tasks_are_kept_for_come_and_go() {
    let backend = TestBackend::slow("good", Duration::from_millis(300));
    let proxy = TestProxy::over(&[&backend]).await;
    let mut clients = [Client::connect(&proxy).await, Client::connect(&proxy).await, Client::connect(&proxy).await];
    for _ in 0..3 {
        let mut responses = Vec::new();
        for nth in 0..300 {
            let (response, mut stream) = clients[nth % 3].begin(get("/"), true).await;
            match nth % 5 {
                // Some leave, and their tasks serve others.
                0 => stream.send_reset(Reason::CANCEL),
                _ => responses.push(response),
            }
        }
        for response in responses {
            assert_eq!(all(soon(response).await.unwrap().into_body()).await.unwrap().0, b"good");
        }
    }
    assert_eq!(proxy.connections(), [3]);
}

#[tokio::test]
async fn large_bodies_pass_both_ways_at_the_pace_of_who_takes_them() {
    let body = body_of(3_000_000);
    let sent = body.clone();
    let backend = TestBackend::scripted(async move |peer| {
        while let Some(message) = peer.request().await {
            assert!(message.body.is_empty() || message.body == sent);
            peer.respond("200 OK", &sent).await;
        }
    });
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = Client::connect(&proxy).await;
    let (response, mut stream) = client.begin(request("POST", "/"), false).await;
    send_all(&mut stream, body.clone().into()).await;
    stream.send_data(Bytes::new(), true).unwrap();
    let response = soon(response).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let counted = proxy.counted(|it| &it.bytes_out);
    assert_eq!(counted, 0, "counted at the end");
    assert_eq!(proxy.in_flight(), 1, "nobody took the response yet");
    assert!(all(response.into_body()).await.unwrap().0 == body);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn an_upload_that_the_backend_does_not_read_stops() {
    let backend = TestBackend::scripted(async |peer| {
        drop(peer.head().await);
        std::future::pending().await
    });
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = Client::connect(&proxy).await;
    let (_response, mut stream) = client.begin(request("POST", "/"), false).await;
    let mut sent = 0;
    loop {
        stream.reserve_capacity(64 * 1024);
        if stream.capacity() == 0 {
            let waited = tokio::time::timeout(Duration::from_millis(700), poll_fn(|cx| stream.poll_capacity(cx)));
            if waited.await.is_err() {
                break;
            }
        }
        let some = stream.capacity().min(64 * 1024);
        stream.send_data(vec![0; some].into(), false).unwrap();
        sent += some;
        assert!(sent < 32_000_000, "nobody takes it");
    }
    stream.send_reset(Reason::CANCEL);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn a_reset_by_the_client_ends_the_attempt() {
    let backend = TestBackend::scripted(async |peer| while peer.head().await.is_some() {});
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = Client::connect(&proxy).await;
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(client.begin(get("/"), true).await);
    }
    eventually(|| proxy.in_flight() == 10).await;
    for (_, stream) in &mut streams {
        stream.send_reset(Reason::CANCEL);
    }
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0 && backend.open() == 0).await;
    assert_eq!(proxy.counted(|it| &it.http2_resets_client), 10);
    // The connection goes on.
    drop(streams);
    let response = client.begin(get("/"), true).await;
    eventually(|| proxy.in_flight() == 1).await;
    drop((response, client));
    eventually(|| proxy.in_flight() == 0 && proxy.connections() == [0]).await;
}

#[tokio::test]
async fn a_response_that_breaks_off_is_reset_and_not_ended() {
    let backend = TestBackend::scripted(async |peer| {
        drop(peer.head().await);
        peer.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    });
    let keys = Keys { upstream: "retries = 0", ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    let mut client = Client::connect(&proxy).await;
    let response = client.ask(get("/")).await;
    let error = all(response.into_body()).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
    assert_eq!(proxy.counted(|it| &it.http2_resets_proxy), 1);
}

#[tokio::test]
async fn a_client_without_a_window_is_not_waited_for_for_ever() {
    let backend = TestBackend::ok("hello");
    let keys = Keys { route: "timeouts = { body_idle = \"300ms\" }", ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    let mut client = Client::with(&proxy, h2::client::Builder::new().initial_window_size(0)).await;
    let response = client.ask(get("/")).await;
    assert_eq!(proxy.exchanges(), 1);
    let error = all(response.into_body()).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn limits_are_told() {
    let backend = TestBackend::echo();
    let listener = "max_headers = 20\nmax_header_bytes = \"8KiB\"\nmax_body = \"10KiB\"";
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener, ..Keys::default() }).await;
    let mut client = Client::connect(&proxy).await;
    let mut many = Request::get("http://a/");
    for n in 0..21 {
        many = many.header(format!("x-{n}"), "y");
    }
    assert_eq!(client.ask(many.body(()).unwrap()).await.status(), 431);
    let large = Request::get("http://a/").header("x", "y".repeat(9000)).body(()).unwrap();
    assert_eq!(client.ask(large).await.status(), 431);
    for length in [true, false] {
        let mut ask = Request::post("http://a/");
        if length {
            ask = ask.header("content-length", 20_000);
        }
        let (response, mut stream) = client.begin(ask.body(()).unwrap(), false).await;
        let _ = stream.send_data(vec![0; 20_000].into(), true);
        assert_eq!(soon(response).await.unwrap().status(), 413, "{length}");
    }
    assert_eq!(client.ask(Request::builder().method("TRACE").uri("http://a/").body(()).unwrap()).await.status(), 405);
    let connect = Request::builder().method(Method::CONNECT).uri("a:443").body(()).unwrap();
    assert_eq!(client.ask(connect).await.status(), 405);
    assert_eq!(client.get("/").await.0, 200, "the connection goes on");
    assert_eq!(backend.heads().iter().filter(|head| head.method() != "POST").count(), 1);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn a_stream_that_is_answered_early_ends_without_an_error() {
    // It answers, and then neither reads nor goes.
    let backend = TestBackend::scripted(async |peer| {
        let _ = peer.head().await;
        peer.respond("403 Forbidden", "no").await;
        peer.gone().await;
    });
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener: "max_body = 200000", ..Keys::default() }).await;
    let mut client = Client::connect(&proxy).await;
    for (length, expected) in [(Some(100_000), 403), (None, 403), (Some(300_000), 413)] {
        let mut ask = Request::post("http://a/");
        if let Some(length) = length {
            ask = ask.header("content-length", length);
        }
        let (response, mut stream) = client.begin(ask.body(()).unwrap(), false).await;
        stream.send_data(vec![0; 1000].into(), false).unwrap();
        let response = soon(response).await.unwrap();
        assert_eq!(response.status().as_u16(), expected);
        // All of it, and then it is told to stop.
        assert!(!all(response.into_body()).await.unwrap().0.is_empty());
        let reason = soon(poll_fn(|cx| stream.poll_reset(cx))).await.unwrap();
        assert_eq!(reason, Reason::NO_ERROR, "{length:?}");
    }
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn a_backend_that_is_asked_has_its_word_passed_on() {
    let backend = TestBackend::scripted(async |peer| {
        while let Some(head) = peer.head().await {
            assert_eq!(head.get("expect"), Some("100-continue"));
            if head.target() == "/refused" {
                return peer.respond("417 Expectation Failed", "no").await;
            }
            peer.write("HTTP/1.1 100 Continue\r\n\r\n").await;
            let message = peer.body(&head).await.unwrap();
            peer.respond("200 OK", message.body).await;
        }
    });
    let route = "expect = \"pass\"\ntimeouts = { expect = \"1m\" }";
    let proxy = TestProxy::with_keys(&[&backend], Keys { route, ..Keys::default() }).await;
    let mut client = Client::connect(&proxy).await;
    for path in ["/", "/refused"] {
        let ask = Request::post(format!("http://a{path}")).header("expect", "100-continue").body(()).unwrap();
        let (mut response, mut stream) = client.begin(ask, false).await;
        if path == "/" {
            let word = soon(poll_fn(|cx| response.poll_informational(cx))).await.unwrap().unwrap();
            assert_eq!(word.status(), 100);
            stream.send_data("hello".into(), true).unwrap();
            let answer = soon(response).await.unwrap();
            assert_eq!(all(answer.into_body()).await.unwrap().0, b"hello");
            continue;
        }
        assert_eq!(soon(response).await.unwrap().status(), 417);
        assert_eq!(soon(poll_fn(|cx| stream.poll_reset(cx))).await.unwrap(), Reason::NO_ERROR);
    }
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn an_idle_connection_is_told_to_go() {
    let backend = TestBackend::ok("good");
    let keys = Keys { listener: "idle_timeout = \"300ms\"", ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    let mut client = Client::connect(&proxy).await;
    assert_eq!(client.get("/").await.1, "good");
    soon(&mut client.driver).await.unwrap().unwrap();
    eventually(|| proxy.connections() == [0]).await;
}

#[tokio::test]
async fn what_runs_ends_well_when_the_process_stops() {
    let backend = TestBackend::slow("good", Duration::from_millis(400));
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = Client::connect(&proxy).await;
    let (response, _) = client.begin(get("/"), true).await;
    eventually(|| proxy.in_flight() == 1).await;
    let stopped = tokio::spawn(proxy.stop(Duration::from_secs(20)));
    assert_eq!(all(soon(response).await.unwrap().into_body()).await.unwrap().0, b"good");
    soon(stopped).await.unwrap();
    soon(&mut client.driver).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_does_not_end_in_time_is_cut() {
    let backend = TestBackend::scripted(async |peer| while peer.head().await.is_some() {});
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = Client::connect(&proxy).await;
    let (response, _) = client.begin(get("/"), true).await;
    eventually(|| proxy.in_flight() == 1).await;
    proxy.stop(Duration::from_millis(100)).await;
    assert!(soon(response).await.is_err());
}

#[tokio::test]
async fn reloads_lose_nothing() {
    let (a, b) = (TestBackend::ok("good"), TestBackend::ok("good"));
    let text = |n: usize| {
        let pool = if n.is_multiple_of(2) { backends(&[&a, &b]) } else { backends(&[&b]) };
        format!(
            "workers = 2\n[[listener]]\naddress = \"127.0.0.1:0\"\nmax_headers = {}\n[[route]]\nupstream = \"u\"\n\
             [upstream.u]\nbackends = {pool}\n",
            50 + n
        )
    };
    let proxy = TestProxy::with_config(text(0)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut asking = Vec::new();
    for _ in 0..4 {
        let (client, stop) = (Client::connect(&proxy).await, Arc::clone(&stop));
        for _ in 0..4 {
            let (send, stop) = (client.send.clone(), Arc::clone(&stop));
            asking.push(tokio::spawn(async move {
                let mut asked = 0;
                while !stop.load(SeqCst) {
                    let (response, _) = soon(send.clone().ready()).await.unwrap().send_request(get("/"), true).unwrap();
                    let response = soon(response).await.unwrap();
                    assert_eq!(response.status(), 200);
                    assert_eq!(all(response.into_body()).await.unwrap().0, b"good");
                    asked += 1;
                }
                asked
            }));
        }
    }
    for n in 1..20 {
        proxy.apply(text(n)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, SeqCst);
    let mut asked = 0;
    for task in asking {
        asked += soon(task).await.unwrap();
    }
    assert!(asked > 100, "{asked}");
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn counts_come_back_whatever_is_cancelled() {
    let backend = TestBackend::scripted(async |peer| {
        while let Some(message) = peer.request().await {
            tokio::time::sleep(Duration::from_millis(message.head.target().len() as u64 % 7)).await;
            peer.respond("200 OK", body_of(100_000)).await;
        }
    });
    let proxy = TestProxy::over(&[&backend]).await;
    for round in 0..12_usize {
        // Those that nobody reads shall not be in the others' way.
        let mut client = Client::with(&proxy, h2::client::Builder::new().initial_connection_window_size(4 << 20)).await;
        let mut streams = Vec::new();
        for n in 0..12_usize {
            let end = n % 3 != 0;
            let method = if end { "GET" } else { "POST" };
            let (response, mut stream) = client.begin(request(method, &format!("/{}", "x".repeat(n))), end).await;
            if !end {
                let _ = stream.send_data(body_of(1000 * n).into(), n % 2 == 0);
            }
            streams.push((response, stream));
        }
        tokio::time::sleep(Duration::from_millis(round as u64)).await;
        for (n, (response, mut stream)) in streams.into_iter().enumerate() {
            match (n + round) % 4 {
                0 => stream.send_reset(Reason::CANCEL),
                1 => drop(response),
                2 if n % 3 != 0 => drop(all(soon(response).await.unwrap().into_body()).await),
                _ => {}
            }
        }
        if round % 2 == 0 {
            client.driver.abort();
        }
    }
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
    eventually(|| proxy.counted(|it| &it.http2_streams) == proxy.counted(|it| &it.http2_streams_ended)).await;
    eventually(|| proxy.counted(|it| &it.http2_opened) == proxy.counted(|it| &it.http2_closed)).await;
}

fn websocket(protocol: &'static str) -> Request<()> {
    let request = Request::builder().method(Method::CONNECT).uri("http://a.example/chat");
    let request = request.header("sec-websocket-version", "13");
    request.extension(h2::ext::Protocol::from_static(protocol)).body(()).unwrap()
}

#[tokio::test]
async fn a_websocket_is_carried_in_a_stream() {
    let backend = TestBackend::upgrading();
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = Client::connect(&proxy).await;
    // The client has to know that the server takes it, which comes with the settings.
    eventually(|| client.send.is_extended_connect_protocol_enabled()).await;
    let (response, mut stream) = client.begin(websocket("websocket"), false).await;
    let response = soon(response).await.unwrap();
    assert_eq!(response.status(), 200);
    let head = backend.last_head();
    assert_eq!((head.line.as_str(), head.get("upgrade")), ("GET /chat HTTP/1.1", Some("websocket")));
    assert_eq!((head.get("sec-websocket-key").unwrap().len(), head.get("host")), (24, Some("a.example")));
    let mut body = response.into_body();
    for text in ["hello", "world"] {
        stream.send_data(text.into(), false).unwrap();
        let piece = soon(body.data()).await.unwrap().unwrap();
        body.flow_control().release_capacity(piece.len()).unwrap();
        assert_eq!(piece, text);
    }
    assert_eq!((proxy.in_flight(), proxy.exchanges()), (1, 1), "a tunnel is in flight");
    stream.send_data(Bytes::new(), true).unwrap();
    // Its end comes with an empty piece.
    assert!(all(body).await.unwrap().0.is_empty());
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0 && backend.open() == 0).await;

    // One that the client resets, in the middle and after it has ended its direction.
    let (response, mut stream) = client.begin(websocket("websocket"), false).await;
    assert_eq!(soon(response).await.unwrap().status(), 200);
    stream.send_reset(Reason::CANCEL);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0 && backend.open() == 0).await;
    let counted = (proxy.counted(|it| &it.tunnels_opened), proxy.counted(|it| &it.tunnels_closed));
    assert_eq!(counted, (2, 2));

    let (response, _stream) = client.begin(websocket("connect-udp"), false).await;
    assert_eq!(soon(response).await.unwrap().status(), 501);
}

#[tokio::test]
async fn a_backend_that_does_not_switch_is_no_tunnel() {
    let backend = TestBackend::ok("plain");
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = Client::connect(&proxy).await;
    eventually(|| client.send.is_extended_connect_protocol_enabled()).await;
    let (response, _stream) = client.begin(websocket("websocket"), false).await;
    assert_eq!(soon(response).await.unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
    let refusing = TestBackend::fixed("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno");
    let proxy = TestProxy::over(&[&refusing]).await;
    let mut client = Client::connect(&proxy).await;
    eventually(|| client.send.is_extended_connect_protocol_enabled()).await;
    let (response, _stream) = client.begin(websocket("websocket"), false).await;
    assert_eq!(soon(response).await.unwrap().status(), 403);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn the_access_log_and_the_metrics_tell_of_it() {
    let backend = TestBackend::ok("good");
    let scratch = Scratch::new();
    let log = scratch.path("access.log");
    let tables = format!("[access_log]\nenabled = true\nformat = \"json\"\noutput = {log:?}");
    let proxy = TestProxy::with_keys(&[&backend], Keys { tables: &tables, ..Keys::default() }).await;
    let mut client = Client::connect(&proxy).await;
    assert_eq!(client.get("/p").await.1, "good");
    let read = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually(|| read().ends_with('\n')).await;
    let line: serde_json::Value = serde_json::from_str(&read()).unwrap();
    assert_eq!(
        (&line["protocol"], &line["host"], &line["target"]),
        (&"HTTP/2.0".into(), &"a.example".into(), &"/p".into())
    );
    assert_eq!((&line["status"], &line["bytes_out"]), (&200.into(), &4.into()));
    let open = proxy.counted(|it| &it.http2_opened) - proxy.counted(|it| &it.http2_closed);
    assert_eq!((open, proxy.counted(|it| &it.http2_streams)), (1, 1));
}
