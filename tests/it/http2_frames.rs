//! HTTP/2 frame by frame: what no proper client sends. What could be read in two ways by HTTP/1.1 reaches no backend, and a
//! flood ends its connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use isobar::telemetry::metrics::FloodKind;

use crate::harness::{Client, Keys, Log, TestBackend, TestProxy, eventually, soon};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block: literals that are not remembered.
fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    let text = |block: &mut Vec<u8>, text: &[u8]| {
        assert!(text.len() < 127 + 128);
        if text.len() < 127 {
            block.push(text.len() as u8);
        } else {
            block.extend([127, (text.len() - 127) as u8]);
        }
        block.extend_from_slice(text);
    };
    for (name, value) in fields {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

type Fields<'a> = Vec<(&'a [u8], &'a [u8])>;

fn good<'a>() -> Fields<'a> {
    vec![(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/")]
}

struct Raw(Client);

#[derive(Debug)]
struct Frame {
    kind: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The status, where it is one that HPACK has a number for.
    fn status(&self) -> u16 {
        match self.payload[0] {
            0x88 => 200,
            0x8c => 400,
            other => panic!("{other}"),
        }
    }
}

impl Raw {
    async fn connect(proxy: &TestProxy) -> Self {
        let mut client = proxy.client().await;
        client.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        Self(client)
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.0.try_send(frame(kind, flags, stream, payload)).await
    }

    /// The next frame; `None` at the end.
    async fn next(&mut self) -> Option<Frame> {
        let stream = &mut self.0.stream;
        let mut head = Vec::new();
        soon(stream.exact(9, &mut head)).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = Vec::new();
        soon(stream.exact(length, &mut payload)).await.ok()?;
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], stream: id, payload })
    }

    /// The next frame of one of these kinds.
    async fn next_of(&mut self, kinds: &[u8]) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if kinds.contains(&frame.kind) {
                return Some(frame);
            }
        }
    }
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let backend = TestBackend::ok("good");
    let proxy = TestProxy::over(&[&backend]).await;
    let mut all: Vec<(&str, Fields<'_>)> = Vec::new();
    let with = |name: &'static [u8], value: &'static [u8]| {
        let mut fields = good();
        fields.push((name, value));
        fields
    };
    let without = |name: &'static [u8]| good().into_iter().filter(|(other, _)| *other != name).collect::<Fields<'_>>();
    let instead = |name: &'static [u8], value: &'static [u8]| {
        good().into_iter().map(|field| if field.0 == name { (name, value) } else { field }).collect::<Fields<'_>>()
    };
    for name in [&b"connection"[..], b"keep-alive", b"proxy-connection", b"upgrade", b"transfer-encoding"] {
        all.push(("a field of the connection", with(name, b"chunked")));
    }
    all.push(("te", with(b"te", b"gzip")));
    all.push(("te with more", with(b"te", b"trailers, gzip")));
    all.push(("upper case", with(b"X-A", b"b")));
    all.push(("a name with a space", with(b"x y", b"b")));
    all.push(("a name with a colon", with(b"x:y", b"b")));
    all.push(("a name with CR and LF", with(b"x\r\ny", b"b")));
    all.push(("an empty name", with(b"", b"b")));
    all.push(("CR and LF in a value", with(b"x", b"a\r\nb: c")));
    all.push(("LF in a value", with(b"x", b"a\nb")));
    all.push(("NUL in a value", with(b"x", b"a\0b")));
    all.push(("a value that begins with a space", with(b"x", b" b")));
    all.push(("a value that ends with a tab", with(b"x", b"b\t")));
    all.push(("a pseudo-header field behind others", with(b"x", b"b").into_iter().rev().collect()));
    all.push(("a pseudo-header field that nobody knows", with(b":x", b"b")));
    all.push(("one of responses", with(b":status", b"200")));
    all.push((":protocol without CONNECT", with(b":protocol", b"websocket")));
    for name in [&b":method"[..], b":scheme", b":path"] {
        all.push(("a pseudo-header field is missing", without(name)));
    }
    all.push(("no authority and no host", without(b":authority")));
    for name in [&b":method"[..], b":scheme", b":path", b":authority"] {
        all.push(("a pseudo-header field twice", with(name, b"/")));
    }
    all.push(("another host", with(b"host", b"b")));
    let mut two = with(b"host", b"a");
    two.push((b"host", b"a"));
    all.push(("two hosts", two));
    for authority in [&b"u@a"[..], b"u:p@a", b"a b", b"a/b", b"a, b", b"a\r\nx: y", b"", b"a?b", b"a#b", b"a\\b"] {
        all.push(("an authority that is none", instead(b":authority", authority)));
    }
    for scheme in [&b"ftp"[..], b"http\r\n", b"", b"h ttp"] {
        all.push(("a scheme that is none", instead(b":scheme", scheme)));
    }
    for path in [&b""[..], b"a", b"*", b"/a b", b"/a\r\nx: y", b"/\0", b"http://b/", b"/a\tb"] {
        all.push(("a path that is none", instead(b":path", path)));
    }
    for method in [&b""[..], b"G ET", b"GET / HTTP/1.1\r\nx: y\r\n\r\n", b"GET\0", b"G(T"] {
        all.push(("a method that is none", instead(b":method", method)));
    }
    all.push(("a body that does not come", with(b"content-length", b"5")));
    all.push(("a length with a sign", with(b"content-length", b"+0")));
    let mut lengths = with(b"content-length", b"0");
    lengths.push((b"content-length", b"5"));
    all.push(("two lengths", lengths));
    for (why, fields) in all {
        let mut raw = Raw::connect(&proxy).await;
        raw.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(&fields)).await;
        let told = raw.next_of(&[HEADERS, RST_STREAM, GOAWAY]).await;
        // 0x8c is `:status: 400`.
        let refused = told.as_ref().is_none_or(|frame| frame.kind != HEADERS || frame.payload[0] == 0x8c);
        assert!(refused, "{why}: {told:?}");
        assert_eq!(backend.requests(), 0, "{why}");
    }
    let mut raw = Raw::connect(&proxy).await;
    raw.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(&good())).await;
    assert_eq!(raw.next_of(&[HEADERS, RST_STREAM, GOAWAY]).await.unwrap().status(), 200);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn a_body_of_another_length_is_never_completed() {
    let whole = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&whole);
    let backend = TestBackend::scripted(async move |peer| {
        while peer.request().await.is_some() {
            counted.fetch_add(1, SeqCst);
            peer.respond("200 OK", "good").await;
        }
    });
    let proxy = TestProxy::over(&[&backend]).await;
    for (why, pieces) in [
        ("short", &[(&b"hel"[..], true)][..]),
        ("long", &[(b"hello world", true)]),
        ("short later", &[(b"hel", false), (b"", true)]),
        ("long later", &[(b"hel", false), (b"lo world", true)]),
    ] {
        let mut raw = Raw::connect(&proxy).await;
        let mut fields = good();
        fields[0].1 = b"POST";
        fields.push((b"content-length", b"5"));
        raw.send(HEADERS, END_HEADERS, 1, &block(&fields)).await;
        for (piece, end) in pieces {
            raw.send(DATA, u8::from(*end), 1, piece).await;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        let told = raw.next_of(&[HEADERS, RST_STREAM, GOAWAY]).await.unwrap();
        assert_eq!((told.kind, told.stream, told.code()), (RST_STREAM, 1, PROTOCOL_ERROR), "{why}");
        eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
        assert_eq!(whole.load(SeqCst), 0, "{why}");
    }
}

#[tokio::test]
async fn the_preface_may_come_in_pieces_and_only_at_the_beginning() {
    let backend = TestBackend::ok("good");
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    let bytes =
        [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&good()))].concat();
    for byte in bytes.chunks(1) {
        client.send(byte).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut raw = Raw(client);
    assert_eq!(raw.next_of(&[HEADERS]).await.unwrap().status(), 200);

    let mut client = proxy.client().await;
    assert_eq!(client.get("/").await.status(), 200);
    client.send(PREFACE).await;
    assert_eq!(client.response().await.status(), 505);
    // Switched off, and something else behind the first line.
    let off =
        TestProxy::with_keys(&[&backend], Keys { listener: "http2 = { enabled = false }", ..Keys::default() }).await;
    let mut client = off.client().await;
    client.send(PREFACE).await;
    assert_eq!(client.response().await.status(), 505);
    let mut client = proxy.client().await;
    client.send("PRI * HTTP/2.0\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    soon(client.read_to_end()).await;
    assert_eq!(backend.requests(), 2);
    eventually(|| proxy.counted(|it| &it.http2_opened) == proxy.counted(|it| &it.http2_closed) + 1).await;
}

#[tokio::test]
async fn what_is_refused_has_its_line_in_the_access_log() {
    let backend = TestBackend::ok("good");
    let log = Log::new();
    let tables = log.table("json");
    let listener = "name = \"edge\"\nmax_headers = 10\nheader_timeout = \"300ms\"";
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener, tables: &tables, ..Keys::default() }).await;
    let with = |more: &Fields<'static>| [good(), more.clone()].concat();
    let many: Fields<'_> = [(&b"x"[..], &b"y"[..]); 11].to_vec();
    let mut websocket = with(&vec![(b":protocol", b"connect-udp")]);
    websocket[0].1 = b"CONNECT";
    let no_path: Fields<'_> =
        good().into_iter().map(|field| if field.0 == b":path" { (field.0, &b"*"[..]) } else { field }).collect();
    let mut n = 0;
    for (why, fields, answer, reason, method, target) in [
        ("another host", with(&vec![(b"host", b"b")]), Some(400), "bad_request", "GET", "/"),
        ("no target", no_path, Some(400), "bad_request", "GET", "*"),
        ("white space", with(&vec![(b"x", b" y")]), None, "bad_request", "GET", "/"),
        ("many fields", with(&many), Some(431), "header_too_large", "GET", "/"),
        ("another protocol", websocket, Some(501), "upgrade_unsupported", "CONNECT", "/"),
    ] {
        let mut raw = Raw::connect(&proxy).await;
        raw.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(&fields)).await;
        let told = raw.next_of(&[HEADERS, RST_STREAM, GOAWAY]).await.unwrap();
        assert_eq!(told.kind, if answer.is_some() { HEADERS } else { RST_STREAM }, "{why}");
        n += 1;
        let line: serde_json::Value = serde_json::from_str(&log.lines(n).await[n - 1]).unwrap();
        let body = match answer {
            Some(_) => raw.next_of(&[DATA]).await.unwrap().payload.len(),
            None => 0,
        };
        for (key, value) in [
            ("client_ip", serde_json::Value::from("127.0.0.1")),
            ("listener", "edge".into()),
            ("status", answer.unwrap_or(400).into()),
            ("reason", reason.into()),
            ("ended_by", "client".into()),
            ("method", method.into()),
            ("target", target.into()),
            ("protocol", "HTTP/2.0".into()),
            ("host", "a".into()),
            ("bytes_out", body.into()),
            ("route", serde_json::Value::Null),
        ] {
            assert_eq!(line[key], value, "{why}: {key} in {line}");
        }
        assert!(line["detail"].is_string(), "{why}: {line}");
        // The connection goes on.
        raw.send(HEADERS, END_STREAM | END_HEADERS, 3, &block(&good())).await;
        assert_eq!(raw.next_of(&[HEADERS]).await.unwrap().status(), 200, "{why}");
        n += 1;
        assert!(log.lines(n).await[n - 1].contains(r#""reason":"complete""#), "{why}");
    }
    // Those that do not go on as they have begun.
    for (text, status, reason) in
        [("PRI * HTTP/2.0\r\nhost: a\r\n\r\n", 400, "bad_request"), ("PRI * HTTP/2.0\r\n\r\nS", 408, "head_timeout")]
    {
        let mut client = proxy.client().await;
        client.send(text).await;
        client.read_to_end().await;
        n += 1;
        let line: serde_json::Value = serde_json::from_str(&log.lines(n).await[n - 1]).unwrap();
        assert_eq!((&line["status"], &line["reason"]), (&status.into(), &reason.into()), "{line}");
        assert_eq!((&line["protocol"], &line["method"]), (&"HTTP/2.0".into(), &serde_json::Value::Null), "{line}");
    }
    // One that goes is not refused.
    let mut gone = proxy.client().await;
    gone.send("PRI * HTTP/2.0\r\n\r\nS").await;
    drop(gone);
    eventually(|| proxy.connections() == [0]).await;
    log.lines(n).await;
    assert_eq!(proxy.counted(|metrics| &metrics.refusals_left_out), 0);
}

/// Sends until the connection is told to end, and checks how.
async fn flood(proxy: &TestProxy, why: &str, start: &[Vec<u8>], each: impl Fn(u32) -> Vec<u8>) {
    let mut raw = Raw::connect(proxy).await;
    for bytes in start {
        raw.0.try_send(bytes).await;
    }
    for batch in 0..300_u32 {
        let bytes: Vec<u8> = (0..10).flat_map(|n| each(batch * 10 + n)).collect();
        if !raw.0.try_send(bytes).await {
            break;
        }
    }
    let told = raw.next_of(&[GOAWAY]).await;
    assert_eq!(told.unwrap_or_else(|| panic!("{why}: no GOAWAY")).code(), ENHANCE_YOUR_CALM, "{why}");
    drop(raw);
    eventually(|| proxy.connections() == [0]).await;
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn floods_end_their_connection() {
    let backend = TestBackend::slow("good", Duration::from_millis(50));
    let listener = "http2 = { resets_per_second = 50, control_frames_per_second = 100 }";
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener, ..Keys::default() }).await;
    let head = |stream: u32, flags: u8| frame(HEADERS, flags | END_HEADERS, stream, &block(&good()));
    let open = vec![head(1, 0)];
    flood(&proxy, "rapid reset", &[], |n| {
        [head(2 * n + 1, END_STREAM), frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8])].concat()
    })
    .await;
    flood(&proxy, "a window that overflows", &[], |n| {
        [head(2 * n + 1, 0), frame(WINDOW_UPDATE, 0, 2 * n + 1, &[0x7f, 255, 255, 255])].concat()
    })
    .await;
    flood(&proxy, "settings", &[], |_| frame(SETTINGS, 0, 0, &[])).await;
    flood(&proxy, "pings", &[], |_| frame(PING, 0, 0, &[0; 8])).await;
    flood(&proxy, "priorities", &[], |_| frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1])).await;
    flood(&proxy, "empty data", &open, |_| frame(DATA, 0, 1, &[])).await;
    flood(&proxy, "window updates", &open, |_| frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])).await;
    flood(&proxy, "unknown frames", &[], |_| frame(0xfa, 0, 0, b"x")).await;
    let endless = vec![frame(HEADERS, 0, 1, &block(&good()))];
    flood(&proxy, "an endless header block", &endless, |_| frame(CONTINUATION, 0, 1, &[])).await;
    flood(&proxy, "a huge header block", &endless, |_| frame(CONTINUATION, 0, 1, &[0; 16_000])).await;
    let kinds: u64 = FloodKind::ALL.map(|kind| proxy.counted(move |it| &it.http2_floods[kind as usize])).iter().sum();
    assert_eq!(kinds, 10, "each is counted once");
    // The parser ends a connection for the first of these.
    let mut raw = Raw::connect(&proxy).await;
    raw.0.send([open[0].clone(), frame(WINDOW_UPDATE, 0, 1, &[0; 4])].concat()).await;
    assert_eq!(raw.next_of(&[GOAWAY]).await.unwrap().code(), PROTOCOL_ERROR);
    // A connection that asks for no more than it may is not touched.
    let mut raw = Raw::connect(&proxy).await;
    raw.0.send(head(1, END_STREAM)).await;
    assert_eq!(raw.next_of(&[HEADERS, GOAWAY]).await.unwrap().status(), 200);
}

#[tokio::test]
async fn who_floods_may_not_begin_anew_at_once() {
    let backend = TestBackend::ok("good");
    let listener = "http2 = { control_frames_per_second = 100 }";
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener, ..Keys::default() }).await;
    let mut raw = Raw::connect(&proxy).await;
    raw.0.send(frame(PING, 0, 0, &[0; 8]).repeat(200)).await;
    assert_eq!(raw.next_of(&[GOAWAY]).await.unwrap().code(), ENHANCE_YOUR_CALM);
    let told = Instant::now();
    assert!(raw.next().await.is_none(), "nothing follows");
    // It is closed a second after it was told, and the clock of a worker is coarse.
    assert!(told.elapsed() > Duration::from_millis(700), "closed after {:?}", told.elapsed());
}

#[tokio::test]
async fn data_on_streams_that_were_skipped_is_held_for_nobody() {
    // Each such frame has the stream reset, which waits in memory for room in the socket.
    let backend = TestBackend::scripted(async |peer| {
        peer.request().await;
        peer.write("HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n").await;
        peer.write(vec![b'x'; 50_000_000]).await;
        peer.gone().await;
    });
    let proxy = TestProxy::over(&[&backend]).await;
    let mut raw = Raw::connect(&proxy).await;
    let window = frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 255, 255, 255]);
    let more = frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]);
    let head = |stream| frame(HEADERS, END_STREAM | END_HEADERS, stream, &block(&good()));
    raw.0.send([window, more, head(1), head(0x7fff_fffd)].concat()).await;
    eventually(|| backend.requests() > 0).await;
    for batch in 0..20_u32 {
        let frames: Vec<u8> = (1..=500).flat_map(|n| frame(DATA, END_STREAM, 2 * (batch * 500 + n) + 1, &[])).collect();
        if !raw.0.try_send(frames).await {
            break;
        }
    }
    // Not a byte was read.
    eventually(|| proxy.connections() == [0]).await;
    // By what is to be written, or, where some of the resets were written, by their number.
    let floods = |kind: FloodKind| proxy.counted(move |it| &it.http2_floods[kind as usize]);
    assert_eq!(floods(FloodKind::Other) + floods(FloodKind::Error), 1);
    drop(raw);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn streams_that_were_reset_at_once_reach_no_backend() {
    let backend = TestBackend::ok("good");
    let proxy = TestProxy::over(&[&backend]).await;
    let mut raw = Raw::connect(&proxy).await;
    let head = |stream| frame(HEADERS, END_STREAM | END_HEADERS, stream, &block(&good()));
    let reset = |n: u32| [head(2 * n + 1), frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8])].concat();
    // With a connection at hand a request is sent as soon as it is looked at.
    raw.0.send(head(1)).await;
    assert_eq!(raw.next_of(&[HEADERS, GOAWAY]).await.unwrap().status(), 200);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
    raw.0.send((1..50).flat_map(reset).collect::<Vec<u8>>()).await;
    raw.0.send(head(101)).await;
    assert_eq!(raw.next_of(&[HEADERS, GOAWAY]).await.unwrap().status(), 200);
    assert_eq!(backend.requests(), 2);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn a_target_that_is_a_query_or_a_fragment_alone_is_none() {
    let backend = TestBackend::ok("good");
    let proxy = TestProxy::over(&[&backend]).await;
    let mut raw = Raw::connect(&proxy).await;
    for (stream, target) in [(1, &b"?x"[..]), (3, b"#x")] {
        let mut fields = good();
        fields[3] = (b":path", target);
        raw.send(HEADERS, END_STREAM | END_HEADERS, stream, &block(&fields)).await;
        assert_eq!(raw.next_of(&[HEADERS, RST_STREAM, GOAWAY]).await.unwrap().status(), 400);
    }
    assert_eq!(backend.connections(), 0);
}

#[tokio::test]
async fn a_request_that_crosses_the_goodbye_is_served() {
    let backend = TestBackend::slow("good", Duration::from_millis(1500));
    let proxy =
        TestProxy::with_keys(&[&backend], Keys { listener: "idle_timeout = \"200ms\"", ..Keys::default() }).await;
    let mut raw = Raw::connect(&proxy).await;
    assert_eq!(raw.next_of(&[GOAWAY]).await.unwrap().code(), 0);
    // It was on its way; the connection lingers for less than what it takes.
    raw.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(&good())).await;
    assert_eq!(raw.next_of(&[HEADERS, RST_STREAM]).await.unwrap().status(), 200);
    drop(raw);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0 && proxy.connections() == [0]).await;
}

#[tokio::test]
async fn a_header_block_has_to_end_in_time() {
    let backend = TestBackend::slow("good", Duration::from_secs(20));
    let keys = Keys { listener: "header_timeout = \"300ms\"", ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    // While another stream is served.
    let mut raw = Raw::connect(&proxy).await;
    raw.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(&good())).await;
    eventually(|| proxy.in_flight() == 1).await;
    raw.send(HEADERS, 0, 3, &block(&good())).await;
    assert_eq!(raw.next_of(&[GOAWAY]).await.unwrap().code(), ENHANCE_YOUR_CALM);
    drop(raw);
    // The preface, too.
    let mut client = proxy.client().await;
    client.send(&PREFACE[..20]).await;
    soon(client.read_to_end()).await;
    eventually(|| proxy.connections() == [0] && proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn a_removed_listener_says_goaway() {
    let backend = TestBackend::slow("good", Duration::from_millis(300));
    let proxy = TestProxy::over(&[&backend]).await;
    let mut raw = Raw::connect(&proxy).await;
    raw.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(&good())).await;
    eventually(|| proxy.in_flight() == 1).await;
    let stopped = tokio::spawn(proxy.stop(Duration::from_secs(20)));
    let told = raw.next_of(&[GOAWAY]).await.unwrap();
    assert_eq!((told.code(), &told.payload[..4]), (0, &[0x7f, 255, 255, 255][..]));
    // It asks whether that was read, and then says which stream was the last.
    let ping = raw.next_of(&[PING]).await.unwrap();
    raw.send(PING, 1, 0, &ping.payload).await;
    let told = raw.next_of(&[GOAWAY]).await.unwrap();
    assert_eq!((told.code(), &told.payload[..4]), (0, &[0, 0, 0, 1][..]));
    assert_eq!(raw.next_of(&[HEADERS]).await.unwrap().status(), 200);
    soon(stopped).await.unwrap();
}
