//! Any head on its way through: a request by HTTP/1.1 or HTTP/2 to a backend, a response to a client, an informational one. What is
//! for one hop alone does not pass, nobody's word is passed off as the proxy's, and what is written is read as what was decided, by
//! the proxy's own reader and by another.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, Uri};
use isobar::config::{ListenerConfig, Vocabulary, parse};
use isobar::exchange::{Client, RequestHead, RuleLines};
use isobar::header_names::{tells_client, tells_identity};
use isobar::http1::request::Terms;
use isobar::http1::{self, Framing};
use isobar::listener::strict_framing::FramingGuard;
use isobar::proxy::fuzzing as proxy;
use isobar::telemetry::metrics::Sharded;

/// Sees what `data` makes through: its first two bytes say of what kind it is and how the listener is set.
pub fn check(data: &[u8]) {
    let [kind, settings, text @ ..] = data else { return };
    let settings = Settings(*settings);
    match kind % 4 {
        0 => request(text, settings),
        1 => drop(downgraded(text, settings)),
        2 => response(text, settings),
        _ => informational(text),
    }
}

/// A bit each.
#[derive(Clone, Copy)]
struct Settings(u8);

impl Settings {
    fn trusted(self) -> bool {
        self.0 & 1 != 0
    }

    fn via(self) -> bool {
        self.0 & 2 != 0
    }

    fn forwarded(self) -> bool {
        self.0 & 4 != 0
    }

    fn edits(self) -> bool {
        self.0 & 8 != 0
    }

    /// Whether the listener asks for certificates.
    fn asks(self) -> bool {
        self.0 & 16 != 0
    }

    /// Whether pass-through header fields are left as they are.
    fn passes_through(self) -> bool {
        self.0 & 64 != 0
    }

    /// Whether the client has shown one.
    fn shown(self) -> bool {
        self.asks() && self.0 & 32 != 0
    }

    fn listener(self) -> Arc<ListenerConfig> {
        static ALL: [OnceLock<Arc<ListenerConfig>>; 32] = [const { OnceLock::new() }; 32];
        let make = || {
            let tls = "tls = { certificates = [{ certificate = \"a\", key = \"b\" }], \
                       client_certificates = { ca = \"c\", mode = \"optional\" } }\n";
            let text = format!(
                "[[listener]]\naddress = \"127.0.0.1:8080\"\nvia = {}\nforwarded = {}\n{}",
                self.via(),
                self.forwarded(),
                if self.asks() { tls } else { "" },
            );
            let parsed = parse(&text, "lb.toml", &|_| None, &Vocabulary::default());
            Arc::clone(&parsed.unwrap_or_else(|problems| panic!("{problems}")).config.listeners[0])
        };
        Arc::clone(ALL[usize::from(self.0 & 31)].get_or_init(make))
    }

    fn client(self) -> Client {
        let listener = self.listener();
        let identity = match self.shown() {
            true => vec![(HeaderName::from_static("x-client-cert-subject"), HeaderValue::from_static("CN=me"))],
            false => Vec::new(),
        };
        Client {
            peer: ([192, 0, 2, 1], 4711).into(),
            trusted: self.trusted(),
            lines: RefCell::default(),
            peer_text: HeaderValue::from_static("192.0.2.1"),
            port_text: HeaderValue::from_static("8080"),
            scheme: if self.asks() { "https" } else { "http" },
            indicated: None,
            identity,
            name: RefCell::new((0, listener.name.clone())),
            listener,
            metrics: Arc::new(Sharded::new(1)),
            seats: Rc::default(),
        }
    }
}

/// What a client sends as the head of a request in HTTP/1.1.
fn request(text: &[u8], settings: Settings) {
    let listener = settings.listener();
    let mut guard = FramingGuard::new(&listener, false);
    let passed = guard.pass(text);
    if guard.is_http2() || passed.heads == 0 {
        return;
    }
    let mut bytes = Bytes::copy_from_slice(&text[..passed.bytes]);
    let mut slot = None;
    let read = http1::request::read(
        &mut bytes,
        HeaderMap::new(),
        (listener.max_headers, settings.passes_through()),
        &mut slot,
    );
    let Ok(whole) = read else { return };
    assert!(whole, "the guard has seen the end of a head, and the reader has not");
    let http1::request::ReceivedRequest { mut head, framing, terms, .. } = slot.expect("a head");

    // The framing is told once, and by what both have seen.
    let end = passed.bytes - bytes.len();
    let mut space = [httparse::EMPTY_HEADER; 256];
    let mut reference = httparse::Request::new(&mut space);
    let parsed = reference.parse(text).expect("what is taken is a head");
    assert_eq!(parsed, httparse::Status::Complete(end), "another end of the head");
    let count = |name: &str| reference.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).count();
    let (lengths, codings) = (count("content-length"), count("transfer-encoding"));
    assert!(lengths + codings <= 1, "two ways to frame a request");
    match framing {
        Framing::Chunked => assert_eq!(codings, 1),
        Framing::Length(_) => assert_eq!(lengths, 1),
        Framing::None | Framing::Close => assert_eq!(codings, 0),
    }
    assert!(count("host") == 1 || (terms.http10 && count("host") == 0), "not one host");
    if head.uri.authority().is_some() || head.method == Method::CONNECT {
        // What becomes of the host in a target is for the proxy, and looked at by the target `connection`.
        return;
    }
    to_backend(&mut head, framing, settings, !terms.http10);
}

/// What HTTP/2 brings as the head of a request.
fn downgraded(data: &[u8], settings: Settings) -> Result<()> {
    let mut input = Unstructured::new(data);
    let method = *input.choose(&["GET", "POST", "OPTIONS", "CONNECT", "a!"])?;
    let target_bytes = usize::from(input.int_in_range(0..=24_u8)?);
    let target = input.bytes(target_bytes)?;
    let Ok(uri) = Uri::from_maybe_shared(Bytes::copy_from_slice(target)) else { return Ok(()) };
    let mut parts = Request::builder().method(method).uri(uri).body(()).expect("a request").into_parts().0;
    let whole = input.arbitrary()?;
    while !input.is_empty() {
        let name = match input.int_in_range(0..=12)? {
            0 => HeaderName::from_static("host"),
            1 => HeaderName::from_static("content-length"),
            2 => HeaderName::from_static("cookie"),
            3 => HeaderName::from_static("expect"),
            4 => HeaderName::from_static("x-forwarded-for"),
            5 => HeaderName::from_static("x-client-cert-subject"),
            6 => HeaderName::from_static("forwarded"),
            _ => {
                let bytes = usize::from(input.int_in_range(1..=20_u8)?);
                let Ok(name) = HeaderName::from_lowercase(input.bytes(bytes)?) else { continue };
                name
            }
        };
        // The crate h2 resets a stream for these.
        if ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te"]
            .contains(&name.as_str())
        {
            continue;
        }
        let bytes = usize::from(input.int_in_range(0..=16_u8)?);
        let Ok(value) = HeaderValue::from_bytes(input.bytes(bytes.min(input.len()))?) else { continue };
        parts.headers.append(name, value);
    }
    let Ok(length) = isobar::listener::downgrade(&mut parts, whole, 100) else { return Ok(()) };
    if parts.method == Method::CONNECT {
        return Ok(());
    }
    assert!(parts.uri.authority().is_none(), "{parts:?}");
    assert_eq!(parts.headers.get_all("host").iter().count(), 1, "{parts:?}");
    assert!(parts.headers.get_all("cookie").iter().count() <= 1, "{parts:?}");
    let framing = match (whole, length) {
        (true, _) | (false, Some(0)) => Framing::None,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::Chunked,
    };
    to_backend(&mut parts.into(), framing, settings, whole);
    Ok(())
}

const X_FORWARDED: [&str; 4] = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port"];

/// Fields that the proxy decides about, whatever the client says of them.
fn is_ours(name: &str) -> bool {
    let hop = ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade", "expect"];
    hop.contains(&name)
        || HeaderName::from_bytes(name.as_bytes()).is_ok_and(|name| tells_client(&name))
        || ["content-length", "forwarded", "via", "x-edited"].contains(&name)
}

/// Sends a head on, and reads what a backend gets.
fn to_backend(head: &mut RequestHead, framing: Framing, settings: Settings, may_switch: bool) {
    let client = settings.client();
    let asked = head.all_headers();
    let ip = proxy::client_ip(&asked, &client);
    let upgrade = proxy::clean(head, &client, may_switch);
    if settings.edits() {
        // As a route does, which has the last word.
        head.insert(HeaderName::from_static("x-edited"), HeaderValue::from_static("1"));
    }
    if !head.contains(&HOST) {
        head.insert(HOST, HeaderValue::from_static("named"));
    }
    let mut written = Vec::new();
    http1::request::write(&mut written, head, framing);
    let told = || String::from_utf8_lossy(&written).into_owned();

    // Another reader, which has not seen what was read.
    let mut space = [httparse::EMPTY_HEADER; 300];
    let mut reference = httparse::Request::new(&mut space);
    let parsed = reference.parse(&written).unwrap_or_else(|error| panic!("{error}: {}", told()));
    assert_eq!(parsed, httparse::Status::Complete(written.len()), "not one head: {}", told());
    assert_eq!(reference.method, Some(head.method.as_str()));
    let mut got = HeaderMap::new();
    for field in &*reference.headers {
        assert!(!field.name.contains(['\r', '\n', ' ']) && !field.value.contains(&0), "{}", told());
        let name = HeaderName::from_bytes(field.name.as_bytes()).expect("a name");
        got.append(name, HeaderValue::from_bytes(field.value).expect("a value"));
    }
    let all = |map: &HeaderMap, name: &str| -> Vec<Vec<u8>> {
        map.get_all(name).iter().map(|value| value.as_bytes().trim_ascii().to_vec()).collect()
    };
    let sent = |name: &str| all(&got, name);

    // The guard would take what it lets the proxy send, but for the size of what the proxy adds.
    let mut listener = (*settings.listener()).clone();
    (listener.max_headers, listener.max_header_bytes) = (1000, 1 << 24);
    let mut guard = FramingGuard::new(&listener, false);
    let passed = guard.pass(&written);
    assert_eq!((passed.heads, passed.bytes), (1, written.len()), "{:?}: {}", guard.refusal(), told());
    // And the proxy's own reader reads what was decided.
    let mut slot = None;
    let mut bytes = Bytes::copy_from_slice(&written);
    let read = http1::request::read(&mut bytes, HeaderMap::new(), (1000, true), &mut slot);
    assert_eq!(read, Ok(true), "{}", told());
    let mut again = slot.expect("a head");
    assert_eq!((again.framing, &*again.head.headers()), (framing, &got), "{}", told());
    assert_eq!((&again.head.uri, &again.head.method), (&head.uri, &head.method), "{}", told());

    // Framing: once, and what was decided.
    let (lengths, codings) = (sent("content-length"), sent("transfer-encoding"));
    match framing {
        Framing::Chunked => assert_eq!((lengths, codings), (vec![], vec![b"chunked".to_vec()]), "{}", told()),
        Framing::Length(bytes) => {
            assert_eq!((lengths, codings), (vec![bytes.to_string().into_bytes()], vec![]), "{}", told());
        }
        Framing::None | Framing::Close => {
            assert!(codings.is_empty() && lengths.len() <= 1, "{}", told());
            assert!(lengths.iter().flatten().all(|&digit| digit == b'0'), "{}", told());
        }
    }
    assert_eq!(sent("host").len(), 1, "{}", told());
    // What is for one hop.
    for name in ["keep-alive", "proxy-connection", "expect"] {
        assert!(sent(name).is_empty(), "{name} passed: {}", told());
    }
    assert!(sent("te").is_empty() || sent("te") == [b"trailers".to_vec()], "{}", told());
    match &upgrade {
        Some(protocol) => {
            assert!(may_switch);
            assert_eq!(sent("upgrade"), [protocol.as_bytes()], "{}", told());
            assert_eq!(sent("connection"), [b"upgrade".to_vec()], "{}", told());
            assert!(
                !protocol.as_bytes().split(|&byte| byte == b',').any(|protocol| {
                    protocol.trim_ascii().get(..2).is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"h2"))
                }),
                "HTTP/2 past the guard: {}",
                told()
            );
        }
        None => assert!(sent("upgrade").is_empty() && sent("connection").is_empty(), "{}", told()),
    }
    let named: Vec<String> = all(&asked, "connection")
        .iter()
        .flat_map(|value| value.split(|&byte| byte == b','))
        .map(|token| String::from_utf8_lossy(token.trim_ascii()).to_lowercase())
        .collect();
    // What a route sets stands, whatever a client names in `Connection`.
    assert!(!settings.edits() || sent("x-edited") == [b"1".to_vec()], "{}", told());
    for name in &named {
        let stays = is_ours(name) || name == "host" || HeaderName::from_bytes(name.as_bytes()).is_err();
        let ours = client.identity.iter().any(|(ours, _)| ours.as_str() == name);
        assert!(stays || ours || sent(name).is_empty(), "{name} is for one hop, and passed: {}", told());
    }
    // Who asked.
    let peer = b"192.0.2.1".to_vec();
    let before = match all(&asked, "x-forwarded-for") {
        before if !before.is_empty() && settings.trusted() && !named.iter().any(|name| name == "x-forwarded-for") => {
            before
        }
        // Known from elsewhere.
        _ if settings.trusted() && ip != client.peer.ip() => vec![ip.to_string().into_bytes()],
        _ => vec![],
    };
    let chain = before.into_iter().chain([peer]).collect::<Vec<_>>().join(&b", "[..]);
    assert_eq!(sent("x-forwarded-for"), [chain], "{}", told());
    for (name, ours) in [("x-forwarded-proto", client.scheme.as_bytes()), ("x-forwarded-port", b"8080")] {
        assert!(settings.trusted() || sent(name) == [ours], "{name}: {}", told());
        assert!(!sent(name).is_empty(), "{name}: {}", told());
    }
    if !settings.trusted() {
        let host = all(&asked, "host");
        assert_eq!(sent("x-forwarded-host"), host, "{}", told());
        let element = sent("forwarded");
        assert_eq!(element.len(), usize::from(settings.forwarded()), "{}", told());
        assert!(element.iter().all(|element| element.starts_with(b"for=192.0.2.1;")), "{}", told());
        assert_eq!(ip, client.peer.ip());
        let ours = |name: &HeaderName| X_FORWARDED.contains(&name.as_str());
        assert!(!got.keys().any(|name| tells_client(name) && !ours(name)), "{}", told());
    }
    // In no spelling that some backends take for one of these.
    let spelled = |name: &HeaderName| (tells_client(name) || tells_identity(name)) && name.as_str().contains('_');
    let trusted = settings.trusted() && !settings.asks();
    assert!(!got.keys().any(|name| spelled(name) && !(trusted && tells_identity(name))), "{}", told());
    // Of the client's certificate nobody tells but the proxy, or one that is trusted.
    if settings.asks() || !settings.trusted() {
        let told_of: Vec<_> = got.iter().filter(|(name, _)| tells_identity(name)).collect();
        let ours: Vec<_> = client.identity.iter().map(|(name, value)| (name, value)).collect();
        assert_eq!(told_of, ours, "{}", told());
    }
    // All else passes as it came.
    for name in asked.keys().map(HeaderName::as_str) {
        let gone = is_ours(name)
            || named.iter().any(|named| named == name)
            || name == "host"
            || tells_identity(&HeaderName::from_bytes(name.as_bytes()).expect("a name"));
        assert!(gone || sent(name) == all(&asked, name), "{name} was changed: {}", told());
    }
    for name in got.keys().map(HeaderName::as_str) {
        let ours = is_ours(name) || name == "host" || client.identity.iter().any(|(ours, _)| ours.as_str() == name);
        assert!(ours || asked.contains_key(name), "{name} came from nowhere: {}", told());
    }
}

/// What a backend sends as the head of a response.
fn response(text: &[u8], settings: Settings) {
    let [terms, sizes, text @ ..] = text else { return };
    let terms =
        Terms { http10: terms & 1 != 0, head: terms & 2 != 0, keep_alive: terms & 4 != 0, trailers: terms & 8 != 0 };
    let mut head = http1::response::ResponseHead::default();
    head.passes_through = settings.passes_through();
    let Ok(Some(end)) = head.parse(text, terms.head) else { return };
    let bytes = Bytes::copy_from_slice(&text[..end]);
    let (mut parts, ()) = Response::new(()).into_parts();
    let Ok(mut pass_through) = head.response(&bytes, &mut parts) else { return };
    let framed = head.framing;
    let mut came = parts.headers.clone();
    pass_through.copy_to(&mut came);
    let client = settings.client();
    let dated = proxy::to_client(&mut parts.headers, &mut pass_through, &client, parts.status, head.noted);
    let mut left = parts.headers.clone();
    pass_through.copy_to(&mut left);
    assert_eq!(dated, left.contains_key("date"), "a date that is not there, or not known of: {came:?}");
    // What the body says of its length: what the backend said, or of an answer of ours another.
    let bytes = match framed {
        Framing::None => Some(0),
        Framing::Length(length) => Some(length),
        Framing::Chunked | Framing::Close => (sizes & 1 != 0).then_some(u64::from(sizes >> 1)),
    };
    let mut written = Vec::new();
    let (framing, close) =
        http1::response::write(&mut written, (&parts, &pass_through, &RuleLines::default()), terms, bytes, false);
    let told = || String::from_utf8_lossy(&written).into_owned();
    let mut space = [httparse::EMPTY_HEADER; 300];
    let mut reference = httparse::Response::new(&mut space);
    let parsed = reference.parse(&written).unwrap_or_else(|error| panic!("{error}: {}", told()));
    assert_eq!(parsed, httparse::Status::Complete(written.len()), "not one head: {}", told());
    assert_eq!(reference.code, Some(parts.status.as_u16()), "{}", told());
    assert!(!written.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r'), "a lone LF: {}", told());
    let values = |name: &str| -> Vec<&[u8]> {
        let of = |field: &&httparse::Header<'_>| field.name.eq_ignore_ascii_case(name);
        reference.headers.iter().filter(of).map(|field| field.value.trim_ascii()).collect()
    };
    let switches = parts.status == 101;
    for name in ["keep-alive", "proxy-connection"] {
        assert!(values(name).is_empty(), "{name} passed: {}", told());
    }
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1, "two ways to frame a response: {}", told());
    match framing {
        Framing::None => assert!(codings.is_empty(), "{}", told()),
        Framing::Length(length) => assert_eq!(lengths, [length.to_string().as_bytes()], "{}", told()),
        Framing::Chunked => {
            assert!(!terms.http10);
            assert_eq!(codings, [b"chunked"], "{}", told());
        }
        Framing::Close => assert!(close && lengths.is_empty() && codings.is_empty(), "{}", told()),
    }
    if matches!(parts.status.as_u16(), 100..=199 | 204) {
        assert!(lengths.is_empty() && codings.is_empty(), "a length of nothing: {}", told());
    }
    if !switches {
        let mut says: Vec<&[u8]> = match (close, terms.http10) {
            (true, _) => vec![b"close"],
            (false, true) => vec![b"keep-alive"],
            (false, false) => vec![],
        };
        // Which protocol is wanted (RFC 9110 §15.5.22).
        assert!(values("upgrade").is_empty() || parts.status == 426, "{}", told());
        if !values("upgrade").is_empty() {
            says.insert(0, b"upgrade");
        }
        assert_eq!(values("connection"), says, "{}", told());
    }
    // And the proxy's own reader, as if it were a client.
    let mut again = http1::response::ResponseHead::default();
    assert_eq!(again.parse(&written, terms.head), Ok(Some(written.len())), "{}", told());
    assert_eq!(again.framing, framing, "{}", told());
    if !switches {
        assert_eq!(again.keep_alive, !close, "{}", told());
    }
    // What is not for this hop passes as it came.
    let named: Vec<String> = came
        .get_all("connection")
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .map(|token| String::from_utf8_lossy(token.trim_ascii()).to_lowercase())
        .collect();
    let mut now = HeaderMap::new();
    for field in &*reference.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).expect("a name");
        now.append(name, HeaderValue::from_bytes(field.value).expect("a value"));
    }
    for name in came.keys() {
        let hop = [
            "connection",
            "keep-alive",
            "proxy-connection",
            "te",
            "transfer-encoding",
            "upgrade",
            "content-length",
            "via",
        ];
        if hop.contains(&name.as_str()) || named.iter().any(|named| named == name.as_str()) {
            continue;
        }
        let all = |map: &HeaderMap| -> Vec<Vec<u8>> {
            map.get_all(name).iter().map(|value| value.as_bytes().trim_ascii().to_vec()).collect()
        };
        assert_eq!(all(&now), all(&came), "{name}: {}", told());
    }
}

/// What a backend sends ahead of its response.
fn informational(text: &[u8]) {
    let mut head = http1::response::ResponseHead::default();
    let Ok(Some(end)) = head.parse(text, false) else { return };
    if !head.status.is_informational() || head.status == 101 {
        return;
    }
    let Some(written) = proxy::informational(&text[..end]) else { return };
    let told = || format!("{:?}, of {:?}", String::from_utf8_lossy(&written), String::from_utf8_lossy(&text[..end]));
    let mut again = http1::response::ResponseHead::default();
    assert_eq!(again.parse(&written, false), Ok(Some(written.len())), "{}", told());
    assert_eq!(again.status, head.status, "{}", told());
    assert!(again.keep_alive, "{}", told());
    let strict = crate::strict::response(&written, 0, false, false);
    assert!(
        matches!(&strict, Ok(Some(message)) if message.whole && message.end == written.len()),
        "{strict:?}: {}",
        told()
    );
    // Strictly: each line ends with CRLF, there is none but these, and what is for one hop is not there.
    let lines = written.strip_suffix(b"\r\n\r\n").unwrap_or_else(|| panic!("no end: {}", told()));
    for (number, line) in lines.split(|&byte| byte == b'\n').enumerate() {
        let last = number == lines.iter().filter(|&&byte| byte == b'\n').count();
        let line =
            line.strip_suffix(b"\r").unwrap_or_else(|| if last { line } else { panic!("a lone LF: {}", told()) });
        assert!(!line.is_empty() && !line.contains(&b'\r') && !line.contains(&0), "{}", told());
        if number == 0 {
            assert!(line.starts_with(b"HTTP/1.1 "), "{}", told());
            continue;
        }
        let (name, _) =
            line.split_at(line.iter().position(|&byte| byte == b':').unwrap_or_else(|| panic!("no colon: {}", told())));
        assert!(!name.is_empty() && !name.iter().any(u8::is_ascii_whitespace), "{}", told());
        for hop in
            ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade", "content-length"]
        {
            assert!(!name.eq_ignore_ascii_case(hop.as_bytes()), "{hop} passed: {}", told());
        }
    }
}
