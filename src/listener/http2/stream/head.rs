//! The head of a response, made one of HTTP/2.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, response};
use http_body::Body as _;

use crate::exchange::body::Body;
use crate::http1::request::number;

/// Makes the head of a response one of HTTP/2. Whether it has no body.
pub(super) fn frame(parts: &mut response::Parts, body: &Body, head: bool) -> bool {
    strip(&mut parts.headers);
    let never = parts.status == StatusCode::NO_CONTENT;
    let bodiless = never || head || parts.status == StatusCode::NOT_MODIFIED;
    match body.size_hint().exact() {
        _ if never => drop(parts.headers.remove(header::CONTENT_LENGTH)),
        // With no body, it tells of the one that there would be.
        Some(1..) | None if bodiless && parts.headers.contains_key(header::CONTENT_LENGTH) => {}
        Some(0) | None if bodiless => {}
        // Of a call there is only the status, and what follows is no message of no bytes.
        Some(0) if parts.headers.contains_key("grpc-status") => {}
        // Mostly the backend has said so, and nothing has to be made.
        Some(bytes) if says(&parts.headers, bytes) => {}
        Some(bytes) => drop(parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes))),
        None => drop(parts.headers.remove(header::CONTENT_LENGTH)),
    }
    bodiless
}

/// Whether they tell this length, once.
fn says(headers: &HeaderMap, bytes: u64) -> bool {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    lengths.next().and_then(|length| number(length.as_bytes())) == Some(bytes) && lengths.next().is_none()
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Removes the fields that HTTP/2 forbids (RFC 9113 §8.2.2). Hardly ever is there one, so the names are looked over first.
pub(super) fn strip(headers: &mut HeaderMap) {
    let forbidden = |name: &HeaderName| {
        matches!(
            name.as_str(),
            "te" | "upgrade" | "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding"
        )
    };
    if headers.keys().any(forbidden) {
        for name in
            [header::TE, header::UPGRADE, header::CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, header::TRANSFER_ENCODING]
        {
            headers.remove(name);
        }
    }
}
