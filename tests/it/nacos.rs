//! The source `nacos`, against scripted servers (a list over HTTP, pushes over gRPC) that fail in each way.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use isobar::{Isobar, Running};
use serde_json::{Value, json};
use tokio::task::spawn_local;

use crate::harness::{Peer, TestBackend, eventually};
use crate::registry::{Load, comes_to, conditions, has, has_now, start};

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Good,
    /// It takes requests and says nothing.
    Hangs,
    Fails,
    Garbage,
    Empty,
    /// It sends 100 MB.
    Huge,
}

struct Known {
    mood: Mood,
    /// `lastRefTime` of its lists.
    time: u64,
    /// That of what it pushes, where it is another.
    pushed_time: Option<u64>,
    backends: Vec<SocketAddr>,
    /// What a login gives. A request with another is refused.
    token: Option<u32>,
    /// Whether the API of version 1 is switched off.
    is_v3: bool,
    /// Goes up where clients are to take another server.
    resets: usize,
    logins: usize,
    lists: usize,
    pushes: usize,
    /// Messages that the stream's clients have sent, by type.
    told: Vec<String>,
}

/// A scripted Nacos, made from its API's description and its gRPC service.
#[derive(Clone)]
struct Nacos(Arc<Mutex<Known>>);

impl Nacos {
    fn with<'b>(backends: impl IntoIterator<Item = &'b TestBackend>) -> Self {
        let known = Known {
            mood: Mood::Good,
            time: 1_000,
            pushed_time: None,
            backends: backends.into_iter().map(TestBackend::address).collect(),
            token: None,
            is_v3: false,
            resets: 0,
            logins: 0,
            lists: 0,
            pushes: 0,
            told: Vec::new(),
        };
        Self(Arc::new(Mutex::new(known)))
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.0.lock().unwrap());
    }

    fn get<T>(&self, get: impl FnOnce(&Known) -> T) -> T {
        get(&self.0.lock().unwrap())
    }

    fn now_has<'b>(&self, backends: impl IntoIterator<Item = &'b TestBackend>) {
        self.change(|known| {
            known.time += 1;
            known.backends = backends.into_iter().map(TestBackend::address).collect();
        });
    }

    fn is(&self, mood: Mood) {
        self.change(|known| known.mood = mood);
    }

    /// Its HTTP port.
    fn serve(&self) -> TestBackend {
        let nacos = self.clone();
        TestBackend::scripted(async move |peer| {
            while let Some(message) = peer.request().await {
                let target = message.head.target().to_owned();
                let (path, query) = target.split_once('?').unwrap_or((&target, ""));
                let (token, is_v3) = nacos.get(|known| (known.token, known.is_v3));
                let may = token.is_none_or(|it| query.ends_with(&format!("&accessToken=t{it}")));
                match path {
                    "/nacos/v1/auth/login" | "/nacos/v3/auth/user/login" if path.contains("v3") == is_v3 => {
                        assert_eq!(message.body, b"username=isobar&password=a%26secret");
                        nacos.change(|known| known.logins += 1);
                        let token = format!("t{}", token.unwrap());
                        let body = json!({ "accessToken": token, "tokenTtl": 18000, "globalAdmin": false });
                        peer.respond("200 OK", body.to_string()).await;
                    }
                    "/nacos/v1/ns/instance/list" | "/nacos/v3/client/ns/instance/list"
                        if path.contains("v3") == is_v3 =>
                    {
                        let asked = if is_v3 { "serviceName=u&" } else { "serviceName=G%40%40u&" };
                        assert!(query.starts_with(&format!("{asked}groupName=G&namespaceId=public&")), "{query}");
                        match may {
                            true => nacos.list(peer).await,
                            false => peer.respond("403 Forbidden", r#"{"message":"token expired!"}"#).await,
                        }
                    }
                    _ => peer.respond("404 Not Found", "").await,
                }
            }
        })
    }

    async fn list(&self, peer: &mut Peer) {
        self.change(|known| known.lists += 1);
        let (mood, is_v3) = self.get(|known| (known.mood, known.is_v3));
        let mut list = self.listing();
        if mood == Mood::Empty {
            list["hosts"] = json!([]);
        }
        if is_v3 {
            list = json!({ "code": 0, "message": "success", "data": list["hosts"] });
        }
        match mood {
            Mood::Good | Mood::Empty => peer.respond("200 OK", list.to_string()).await,
            Mood::Hangs => peer.gone().await,
            Mood::Fails => peer.respond("500 Internal Server Error", "caused: server is DOWN now").await,
            Mood::Garbage => peer.respond("200 OK", "<html>oh</html>").await,
            Mood::Huge => {
                const MEGABYTE: usize = 1024 * 1024;
                peer.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n[", 100 * MEGABYTE)).await;
                while peer.stream.write(&vec![b' '; MEGABYTE]).await.is_ok() {}
            }
        }
    }

    fn listing(&self) -> Value {
        let host = |address: &SocketAddr| {
            json!({ "ip": address.ip(), "port": address.port(), "weight": 1.0, "healthy": true, "enabled": true, "ephemeral": true,
                    "clusterName": "DEFAULT", "serviceName": "G@@u", "metadata": {} })
        };
        self.get(|known| {
            let hosts: Vec<_> = known.backends.iter().map(host).collect();
            json!({ "name": "G@@u", "groupName": "G", "clusters": "", "cacheMillis": 10_000, "hosts": hosts, "lastRefTime": known.time })
        })
    }

    /// Its gRPC port.
    fn pushes(&self) -> TestBackend {
        let nacos = self.clone();
        TestBackend::scripted(async move |peer| {
            let Ok(mut connection) = h2::server::handshake(&mut peer.stream.tcp).await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let nacos = nacos.clone();
                spawn_local(async move {
                    let (head, mut from_client) = request.into_parts();
                    assert_eq!(head.headers["content-type"], "application/grpc");
                    let answer = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                    let mut to_client = respond.send_response(answer, false).unwrap();
                    let mut buffer = BytesMut::new();
                    match head.uri.path() {
                        "/Request/request" => {
                            let (kind, said, headers) = message(&mut from_client, &mut buffer).await.unwrap();
                            if let Some((kind, said)) = nacos.answer(&kind, &said, &headers) {
                                to_client.send_data(framed(kind, &said), false).unwrap();
                                let mut trailers = http::HeaderMap::new();
                                trailers.insert("grpc-status", "0".parse().unwrap());
                                to_client.send_trailers(trailers).unwrap();
                            } else {
                                std::future::pending().await
                            }
                        }
                        "/BiRequestStream/requestBiStream" => nacos.stream(from_client, to_client).await,
                        other => panic!("{other}"),
                    }
                });
            }
        })
    }

    fn answer(&self, kind: &str, said: &Value, headers: &str) -> Option<(&'static str, Value)> {
        let (mood, token) = self.get(|known| (known.mood, known.token));
        self.change(|known| known.told.push(kind.into()));
        if mood == Mood::Hangs {
            return None;
        }
        let done = json!({ "resultCode": 200, "errorCode": 0, "requestId": said["requestId"] });
        Some(match kind {
            "ServerCheckRequest" => ("ServerCheckResponse", done),
            "HealthCheckRequest" => ("HealthCheckResponse", done),
            "SubscribeServiceRequest" => {
                assert_eq!(
                    (&said["serviceName"], &said["groupName"], &said["namespace"]),
                    (&json!("u"), &json!("G"), &json!("public"))
                );
                if token.is_some_and(|it| headers != format!("accessToken=t{it}")) {
                    return Some((
                        "ErrorResponse",
                        json!({ "resultCode": 500, "errorCode": 403, "message": "token expired!" }),
                    ));
                }
                let mut done = done;
                done["serviceInfo"] = self.listing();
                ("SubscribeServiceResponse", done)
            }
            other => panic!("{other}"),
        })
    }

    /// The stream of a client: it is told of each change, until it is asked to go elsewhere.
    async fn stream(&self, mut from_client: h2::RecvStream, mut to_client: h2::SendStream<Bytes>) {
        let mut buffer = BytesMut::new();
        let (kind, said, _) = message(&mut from_client, &mut buffer).await.unwrap();
        assert_eq!(
            (&*kind, &said["labels"]["module"], &said["tenant"]),
            ("ConnectionSetupRequest", &json!("naming"), &json!("public"))
        );
        let (mut at, resets) = self.get(|known| (known.time, known.resets));
        let nacos = self.clone();
        spawn_local(async move {
            while let Some((kind, ..)) = message(&mut from_client, &mut buffer).await {
                nacos.change(|known| known.told.push(kind));
            }
        });
        to_client
            .send_data(framed("ClientDetectionRequest", &json!({ "requestId": "0", "module": "internal" })), false)
            .unwrap();
        loop {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let (mood, time, pushed_time, now) =
                self.get(|known| (known.mood, known.time, known.pushed_time, known.resets));
            if now != resets {
                to_client.send_data(framed("ConnectResetRequest", &json!({ "requestId": "2" })), false).unwrap();
                return std::future::pending().await;
            }
            if (at, mood) == (time, mood) || mood != Mood::Good {
                continue;
            }
            at = time;
            let mut info = self.listing();
            info["lastRefTime"] = pushed_time.unwrap_or(time).into();
            self.change(|known| known.pushes += 1);
            if to_client
                .send_data(framed("NotifySubscriberRequest", &json!({ "requestId": "1", "serviceInfo": info })), false)
                .is_err()
            {
                return;
            }
        }
    }
}

/// A frame of gRPC with a `Payload`.
fn framed(kind: &str, body: &Value) -> Bytes {
    fn field(number: u8, value: &[u8]) -> Vec<u8> {
        let mut length = vec![number << 3 | 2];
        let mut left = value.len();
        while left >= 128 {
            length.push(u8::try_from(left % 128).unwrap() | 128);
            left /= 128;
        }
        length.push(u8::try_from(left).unwrap());
        [&length, value].concat()
    }
    let metadata = field(2, &[field(3, kind.as_bytes()), field(8, b"127.0.0.1")].concat());
    let payload = [metadata, field(3, &field(2, body.to_string().as_bytes()))].concat();
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(payload.len()).unwrap());
    frame.put_slice(&payload);
    frame.freeze()
}

/// The next message of a client: its type, its JSON and its headers.
async fn message(from: &mut h2::RecvStream, buffer: &mut BytesMut) -> Option<(String, Value, String)> {
    fn fields(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut fields = Vec::new();
        while let [tag, rest @ ..] = bytes {
            let (mut length, mut shift, mut at) = (0, 0, 0);
            loop {
                length |= usize::from(rest[at] & 127) << shift;
                (shift, at) = (shift + 7, at + 1);
                if rest[at - 1] < 128 {
                    break;
                }
            }
            fields.push((tag >> 3, rest[at..at + length].to_vec()));
            bytes = &rest[at + length..];
        }
        fields
    }
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    loop {
        if buffer.len() >= 5 {
            let length = usize::try_from(u32::from_be_bytes(buffer[1..5].try_into().unwrap())).unwrap();
            if buffer.len() >= 5 + length {
                let payload = fields(&buffer.split_to(5 + length)[5..]);
                let metadata = fields(&payload[0].1);
                let headers = metadata.iter().filter(|it| it.0 == 7).map(|it| {
                    let pair = fields(&it.1);
                    format!("{}={}", text(&pair[0].1), text(&pair[1].1))
                });
                let body = serde_json::from_slice(&fields(&payload[1].1)[0].1).unwrap();
                return Some((text(&metadata[0].1), body, headers.collect()));
            }
        }
        let data = from.data().await?.ok()?;
        from.flow_control().release_capacity(data.len()).unwrap();
        buffer.extend_from_slice(&data);
    }
}

/// A source of these servers. Where nothing is pushed, there is nothing at the port for it.
fn source(servers: &[&TestBackend], pushes: Option<&TestBackend>, keys: &str, more: &str) -> String {
    let servers: Vec<_> = servers.iter().map(|it| format!("http://{}", it.address())).collect();
    let port = pushes.map_or(1, |it| it.address().port());
    format!(
        "{more}\nnacos = {{ service = \"G@@u\", servers = {servers:?}, push_port = {port}, timeout = \"2s\", {keys} }}"
    )
}

const LOGIN: &str = "username = \"isobar\", password = \"a&secret\"";

fn revision(running: &Running) -> String {
    let looked = running.handle().snapshot().upstream("u").unwrap().state.sources.look();
    looked[1].revision.as_deref().unwrap_or_default().to_owned()
}

/// Each way in which Nacos can be of no use, with requests all the time: none is lost, and each state is told once.
#[tokio::test]
async fn a_bad_day_of_nacos_costs_no_request() {
    let backends: Vec<_> = (0..4).map(|_| TestBackend::ok("ok")).collect();
    let nacos = Nacos::with(&backends);
    let (mut server, mut pushes) = (nacos.serve(), nacos.pushes());
    let keys = "max_bytes = \"64KiB\"\nremoval_hold = \"1h\"";
    let running = start(&source(&[&server], Some(&pushes), "interval = \"200ms\"", keys));
    has(&running, &backends).await;
    let load = Load::begin(&running);
    let mut told = vec!["current"];
    for mood in [Mood::Fails, Mood::Garbage, Mood::Empty, Mood::Huge, Mood::Hangs] {
        nacos.is(mood);
        let state = if mood == Mood::Empty { "holding" } else { "failing" };
        told.extend([state, "current"]);
        comes_to(&running, state).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(has_now(&running, &backends), "{mood:?}");
        nacos.is(Mood::Good);
        comes_to(&running, "current").await;
    }
    server.kill();
    pushes.kill();
    comes_to(&running, "failing").await;
    // Its clock goes backwards, as that of another server, and changes go on from there.
    nacos.change(|known| known.time = 3);
    server.restart();
    pushes.restart();
    comes_to(&running, "current").await;
    told.extend(["failing", "current"]);
    nacos.now_has(&backends[..3]);
    has(&running, &backends[..3]).await;
    assert_eq!(conditions(&running), told);
    let asked = load.end().await;
    assert_eq!(asked, backends.iter().map(TestBackend::requests).sum::<usize>());
    assert!(asked > 1000, "{asked}");
}

#[tokio::test]
async fn a_change_is_pushed_and_each_push_acknowledged() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let nacos = Nacos::with([&a]);
    let (server, pushes) = (nacos.serve(), nacos.pushes());
    let running = start(&source(&[&server], Some(&pushes), "interval = \"5m\"", "max_removed_percent = 100"));
    has(&running, [&a]).await;
    eventually(|| nacos.get(|known| known.told.iter().any(|it| it == "ClientDetectionResponse"))).await;
    eventually(|| revision(&running) == "1000, pushed").await;
    let begun = Instant::now();
    nacos.now_has([&a, &b]);
    has(&running, [&a, &b]).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    nacos.now_has([&b]);
    has(&running, [&b]).await;
    assert_eq!(revision(&running), "1002, pushed");
    let acknowledged = || nacos.get(|known| known.told.iter().filter(|it| *it == "NotifySubscriberResponse").count());
    eventually(|| acknowledged() == 2).await;
    assert_eq!((nacos.get(|known| known.lists), conditions(&running)), (1, vec!["current"]));
    // One that was overtaken by a later one is not believed: it is asked how things are.
    nacos.change(|known| (known.pushed_time, known.time, known.backends) = (Some(5), 2_000, vec![a.address()]));
    has(&running, [&a]).await;
    eventually(|| nacos.get(|known| known.lists) == 2).await;
}

#[tokio::test]
async fn without_pushes_the_list_is_asked_for_all_the_same() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let nacos = Nacos::with([&a]);
    let server = nacos.serve();
    for keys in ["interval = \"300ms\"", "interval = \"300ms\", push = false"] {
        nacos.now_has([&a]);
        let mut text = source(&[&server], None, keys, "max_removed_percent = 100");
        if keys.contains("false") {
            text = text.replace("push_port = 1, ", "");
        }
        let running = start(&text);
        has(&running, [&a]).await;
        let begun = Instant::now();
        nacos.now_has([&a, &b]);
        has(&running, [&a, &b]).await;
        assert!(begun.elapsed() < Duration::from_millis(1300), "{:?}", begun.elapsed());
        let reason =
            if keys.contains("false") { "polled every 300ms" } else { "polled every 300ms, as nothing is pushed: " };
        eventually(|| revision(&running).contains(reason)).await;
        assert_eq!(conditions(&running), ["current"]);
    }
}

#[tokio::test]
async fn a_token_that_has_expired_is_asked_for_again_and_no_failure() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    for is_v3 in [false, true] {
        let nacos = Nacos::with([&a]);
        nacos.change(|known| (known.token, known.is_v3) = (Some(1), is_v3));
        let (server, pushes) = (nacos.serve(), nacos.pushes());
        let keys = format!("interval = \"300ms\", {LOGIN}");
        let running = start(&source(&[&server], Some(&pushes), &keys, "max_removed_percent = 100"));
        has(&running, [&a]).await;
        eventually(|| revision(&running).ends_with("pushed")).await;
        assert_eq!(nacos.get(|known| known.logins), 1, "the list and the stream share one");
        nacos.change(|known| known.token = Some(2));
        eventually(|| nacos.get(|known| known.logins) == 2).await;
        nacos.now_has([&b]);
        has(&running, [&b]).await;
        assert_eq!((conditions(&running), nacos.get(|known| known.logins)), (vec!["current"], 2));
    }
}

#[tokio::test]
async fn another_server_is_asked_when_one_is_gone_and_no_failure() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let nacos = Nacos::with([&a]);
    let (mut first, mut second) = (nacos.serve(), nacos.serve());
    let running = start(&source(&[&first, &second], None, "interval = \"200ms\"", "max_removed_percent = 100"));
    has(&running, [&a]).await;
    first.kill();
    nacos.now_has([&b]);
    has(&running, [&b]).await;
    first.restart();
    second.kill();
    nacos.now_has([&a]);
    has(&running, [&a]).await;
    assert_eq!(conditions(&running), ["current"]);
}

/// Two sources of the same servers have one stream, which begins again where it breaks or the server says so.
#[tokio::test]
async fn sources_share_a_stream_which_begins_again() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let nacos = Nacos::with([&a]);
    let (server, mut pushes) = (nacos.serve(), nacos.pushes());
    let one = source(&[&server], Some(&pushes), "interval = \"5m\"", "max_removed_percent = 100");
    let text = format!(
        "[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n[upstream.u]\n\
         [[upstream.u.discovery]]\n{one}\n[upstream.v]\n[[upstream.v.discovery]]\n{one}\n"
    );
    let running = Isobar::builder().config_text(text).start().unwrap();
    has(&running, [&a]).await;
    eventually(|| revision(&running).ends_with("pushed")).await;
    assert_eq!((pushes.connections(), pushes.open()), (1, 1));
    pushes.kill();
    eventually(|| revision(&running).contains("as nothing is pushed")).await;
    // What is missed meanwhile is told when it is subscribed to again.
    nacos.now_has([&b]);
    pushes.restart();
    has(&running, [&b]).await;
    eventually(|| revision(&running).ends_with("pushed")).await;
    let before = pushes.connections();
    nacos.change(|known| known.resets += 1);
    eventually(|| pushes.connections() == before + 1 && pushes.open() == 1).await;
    nacos.now_has([&a, &b]);
    has(&running, [&a, &b]).await;
    drop(running);
    eventually(|| pushes.open() == 0).await;
}
