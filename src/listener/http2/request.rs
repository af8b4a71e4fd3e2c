//! The head of a request in HTTP/2, as HTTP/1.1 can say it without being misread.
//!
//! The crate `h2` refuses what is malformed by itself: pseudo-header fields that are unknown, repeated, missing or behind
//! others, upper case, fields of a connection, `te` but for `trailers`, and a body of another length than `content-length`. Here
//! is what it lets pass and what would mean something else in HTTP/1.1.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Uri};

use crate::http1::outgoing::is_sayable;
use crate::http1::request::number;
use crate::listener::refused_log::NOT_CARRIED;
use crate::proxy::{Refusal, RefusalKind};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// A response. Whether its client waits to be asked for the body, and how long that is to be.
    Response { expects: bool, length: Option<u64> },
    /// A WebSocket (RFC 8441).
    WebSocket,
}

/// Why a request is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is told.
    Refused(Refusal),
    /// It is malformed (RFC 9113 §8.1.1): its stream is reset.
    Malformed,
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

const WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");

/// Makes a request's head one that HTTP/1.1 can say. `whole`: it has no body.
///
/// # Errors
/// Why it is none.
pub(super) fn check(parts: &mut Parts, whole: bool, max_headers: usize) -> Result<Ask, Fault> {
    if parts.headers.len() > max_headers {
        return Err(Refusal::new(
            RefusalKind::HeaderTooLarge,
            "the request has more header fields than this listener takes",
        )
        .into());
    }
    let (mut hosts, mut cookies, mut lengths, mut expects) = (0, 0, 0, false);
    let mut length = None;
    for (name, value) in &parts.headers {
        let bytes = value.as_bytes();
        // RFC 9113 §8.2.1. Other characters that are forbidden have not come so far.
        if let [b' ' | b'\t', ..] | [.., b' ' | b'\t'] = bytes {
            return Err(Fault::Malformed);
        }
        if !is_sayable(name) {
            return Err(Fault::Malformed);
        }
        match name.as_str().len() {
            4 if *name == header::HOST => hosts += 1,
            6 if *name == header::COOKIE => cookies += 1,
            6 if *name == header::EXPECT => expects |= bytes.eq_ignore_ascii_case(b"100-continue"),
            14 if *name == header::CONTENT_LENGTH => {
                lengths += 1;
                length = number(bytes);
            }
            _ => {}
        }
    }
    if lengths > 1 || (lengths == 1 && length.is_none()) {
        return Err(Refusal::bad_request("the Content-Length field is not a number").into());
    }
    if whole && length.is_some_and(|length| length > 0) {
        return Err(Fault::Malformed);
    }
    if cookies > 1 {
        join_cookies(&mut parts.headers);
    }
    let protocol = parts.extensions.remove::<h2::ext::Protocol>();
    if parts.method == Method::CONNECT && protocol.is_none() {
        // Answered like any method that is not taken.
        return Ok(Ask::Response { expects: false, length });
    }
    name_host(parts, hosts)?;
    // Not `path()`, which says "/" where there is only a query.
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let all = target == "*" && parts.method == Method::OPTIONS;
    // "#fragment" alone is read as nothing, which would go on as "/".
    if !all && (!target.starts_with('/') || parts.uri.path().is_empty()) {
        return Err(Refusal::bad_request("the request target is not one of HTTP").into());
    }
    let Some(protocol) = protocol else { return Ok(Ask::Response { expects, length }) };
    if protocol.as_str() != "websocket" {
        return Err(Fault::Refused(NOT_CARRIED));
    }
    parts.method = Method::GET;
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    parts.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    parts.headers.insert(WEBSOCKET_KEY, websocket_key(rand::random()));
    Ok(Ask::WebSocket)
}

/// Has the `Host` field say what `:authority` does, and the target be a path.
fn name_host(parts: &mut Parts, hosts: usize) -> Result<(), Fault> {
    const NO_HOST: Refusal = Refusal::bad_request("the request has no proper host");
    if hosts > 1 {
        return Err(Refusal::bad_request("the request has several Host fields").into());
    }
    let field = parts.headers.get(header::HOST);
    let Some(authority) = parts.uri.authority() else {
        // What it says is looked at with those of HTTP/1.1, by one grammar.
        return if field.is_some() { Ok(()) } else { Err(NO_HOST.into()) };
    };
    if !matches!(parts.uri.scheme_str(), Some("http" | "https")) {
        return Err(Refusal::bad_request("the scheme is not one of HTTP").into());
    }
    let authority = authority.as_str();
    match field {
        Some(field) if field.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) => {}
        Some(_) => return Err(Refusal::bad_request("the Host field and the authority differ").into()),
        None => {
            let host = HeaderValue::from_str(authority).map_err(|_| NO_HOST)?;
            parts.headers.insert(header::HOST, host);
        }
    }
    if parts.uri.path().is_empty() {
        return Err(Fault::Malformed);
    }
    let path = parts.uri.path_and_query().cloned();
    parts.uri = path.map_or_else(Uri::default, Uri::from);
    Ok(())
}

/// RFC 9113 §8.2.3: a cookie may come in crumbs, which HTTP/1.1 does not know.
#[cold]
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(header::COOKIE, cookie);
    }
}

/// Sixteen bytes in base64, which a backend wants in HTTP/1.1 (RFC 6455 §4.1) and a client of HTTP/2 does not send.
fn websocket_key(bytes: [u8; 16]) -> HeaderValue {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = Vec::with_capacity(24);
    for group in bytes.chunks(3) {
        let bits = group.iter().chain([&0, &0]).take(3).fold(0_usize, |bits, &byte| bits << 8 | usize::from(byte));
        for place in 0..4 {
            text.push(if place > group.len() { b'=' } else { DIGITS[bits >> (18 - 6 * place) & 63] });
        }
    }
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn status(method: &str, uri: &str, headers: &[(&str, &str)]) -> u16 {
        match check(&mut parts(method, uri, headers), true, 20) {
            Ok(_) => 200,
            Err(Fault::Refused(refusal)) => refusal.status().as_u16(),
            Err(Fault::Malformed) => 0,
        }
    }

    #[test]
    fn what_http1_would_misread_is_refused() {
        for (method, uri, headers, expected) in [
            ("GET", "http://a/", &[][..], 200),
            ("GET", "https://a:80/", &[("host", "A:80")], 200),
            ("GET", "http://a/", &[("host", "b")], 400),
            ("GET", "http://a/", &[("host", "a"), ("host", "a")], 400),
            ("GET", "ftp://a/", &[], 400),
            ("GET", "/", &[], 400),
            ("GET", "/", &[("host", "a")], 200),
            ("GET", "*", &[("host", "a")], 400),
            ("GET", "http://a#b", &[], 400),
            ("GET", "http://a/#b", &[], 200),
            ("OPTIONS", "*", &[("host", "a")], 200),
            ("POST", "http://a/", &[("content-length", "0")], 200),
            ("POST", "http://a/", &[("content-length", "5")], 0),
            ("POST", "http://a/", &[("content-length", "0"), ("content-length", "5")], 400),
            ("POST", "http://a/", &[("content-length", "+0")], 400),
            ("GET", "http://a/", &[("x", " y")], 0),
            ("GET", "http://a/", &[("x", "y\t")], 0),
        ] {
            assert_eq!(status(method, uri, headers), expected, "{method} {uri} {headers:?}");
        }
    }

    #[test]
    fn a_name_that_http1_cannot_say_is_refused() {
        let mut head = parts("GET", "http://a/", &[]);
        // As h2 reads it.
        head.headers.insert(HeaderName::from_lowercase(b"a\"b").unwrap(), HeaderValue::from_static("c"));
        assert_eq!(check(&mut head, true, 20), Err(Fault::Malformed));
    }

    #[test]
    fn authority_becomes_host_and_crumbs_one_cookie() {
        let mut head = parts("GET", "https://a.example/p?q", &[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")]);
        check(&mut head, true, 20).unwrap();
        assert_eq!(head.headers["host"], "a.example");
        assert_eq!(head.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
        assert_eq!(head.uri, "/p?q");
    }

    #[test]
    fn a_websocket_becomes_an_upgrade() {
        let mut head = parts("CONNECT", "https://a/chat", &[("sec-websocket-version", "13")]);
        head.extensions.insert(h2::ext::Protocol::from_static("websocket"));
        assert_eq!(check(&mut head, false, 20), Ok(Ask::WebSocket));
        assert_eq!((&head.method, head.uri.path()), (&Method::GET, "/chat"));
        assert_eq!(
            (&head.headers["connection"], &head.headers["upgrade"]),
            (&"upgrade".parse().unwrap(), &"websocket".parse().unwrap())
        );
        assert_eq!(head.headers["sec-websocket-key"].len(), 24);
        let mut head = parts("CONNECT", "https://a/chat", &[]);
        head.extensions.insert(h2::ext::Protocol::from_static("connect-udp"));
        assert!(matches!(check(&mut head, false, 20), Err(Fault::Refused(NOT_CARRIED))));
    }

    #[test]
    fn base64() {
        assert_eq!(websocket_key(*b"the sample nonce"), "dGhlIHNhbXBsZSBub25jZQ==");
    }
}
