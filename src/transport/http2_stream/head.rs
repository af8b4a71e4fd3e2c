//! Heads, as HTTP/2 has them and as HTTP/1.1 has them.

use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri, Version};

use crate::http1::head::RequestHead;
use crate::http1::request::number;

/// The request as HTTP/2 has it: the host in `:authority`, and no fields for one hop alone (RFC 9113 §8.2.2).
pub(super) fn request(head: &RequestHead, length: Option<u64>, secure: bool) -> Request<()> {
    let mut headers = head.all_headers();
    let host = headers.remove(header::HOST);
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let alone = [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, header::CONTENT_LENGTH];
    for name in alone {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
    if headers.remove(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers")) {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(if secure { Scheme::HTTPS } else { Scheme::HTTP });
    uri.authority = Some(authority.unwrap_or(Authority::from_static("backend")));
    uri.path_and_query = Some(target(&head.uri));
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
    *request.headers_mut() = headers;
    *request.version_mut() = Version::HTTP_2;
    request
}

/// How long a response says that its body is. `h2` looks at that only where there is a body: where there is none it is passed on, and
/// would be read by HTTP/1.1.
pub(super) fn length(headers: &HeaderMap) -> Result<Option<u64>, ()> {
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter().map(|value| number(value.as_bytes()));
    let Some(first) = values.next() else { return Ok(None) };
    let first = first.ok_or(())?;
    if values.all(|value| value == Some(first)) { Ok(Some(first)) } else { Err(()) }
}

/// What is asked for, which begins with a slash, unless it is the asterisk: `http://host?query` is asked for at the root.
fn target(uri: &Uri) -> PathAndQuery {
    let target = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    if target.as_str().starts_with('/') || target == "*" {
        return target;
    }
    PathAndQuery::try_from(format!("/{target}")).unwrap_or(PathAndQuery::from_static("/"))
}

/// An informational response as HTTP/1.1 has it. 100 is for this hop: the proxy has asked its client to go on itself.
/// HTTP/2 has no 101 (RFC 9113 §8.6), and a client would take it for the answer.
pub(super) fn informational(response: &Response<()>) -> Option<Vec<u8>> {
    if matches!(response.status(), StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS) {
        return None;
    }
    let reason = response.status().canonical_reason().unwrap_or_default();
    let mut head = format!("HTTP/1.1 {} {reason}\r\n", response.status().as_str()).into_bytes();
    for (name, value) in response.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    Some(head)
}
