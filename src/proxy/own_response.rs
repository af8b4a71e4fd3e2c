//! Responses of the proxy's own. An error's status and words are those of [`ProxyError`](super::error).

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};

use crate::config::{GrpcStatus, Respond};
use crate::exchange::body::Body;
use crate::overload::Cause;

use super::error::ProxyError;
use super::grpc;

/// The response for an error.
pub(super) fn error(error: &ProxyError) -> Response<Body> {
    let status = error.status();
    let mut response = text(status, error.told());
    if matches!(status, StatusCode::BAD_REQUEST | StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE) {
        // What is left of the request is not worth reading.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let seconds = error.retry_after().as_millis().div_ceil(1_000).max(1);
        let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let ProxyError::Overloaded { cause: Cause::Descriptors | Cause::Memory } = error {
        // Its connection is worth more than what it would cost to make another.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The response for an error to a call of gRPC: nothing but the status ("Trailers-Only").
pub(super) fn grpc_error(status: GrpcStatus, words: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    grpc::put_status(response.headers_mut(), status, words);
    response
}

/// The answer of a middleware to a call of gRPC: nothing but the status, and those fields that are not about a body.
pub(super) fn grpc_answer(answer: Response<Body>, status: GrpcStatus, words: &str) -> Response<Body> {
    let mut response = grpc_error(status, words);
    for (name, value) in answer.headers() {
        let of_body =
            [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::TRANSFER_ENCODING];
        if !of_body.contains(name) && !name.as_str().starts_with("grpc-") {
            response.headers_mut().append(name, value.clone());
        }
    }
    response
}

/// A status and a line.
pub(super) fn text(status: StatusCode, line: &str) -> Response<Body> {
    let reason = status.canonical_reason().unwrap_or("");
    let mut response = Response::new(Body::full(format!("{} {reason}: {line}\n", status.as_u16())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// A route's fixed response.
pub(super) fn fixed(respond: &Respond) -> Response<Body> {
    let mut response = Response::new(Body::full(respond.body.clone()));
    *response.status_mut() = respond.status;
    if let Some(content_type) = &respond.content_type {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type.clone());
    }
    response
}

/// A redirect to `location`.
pub(super) fn redirect(status: StatusCode, location: HeaderValue) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(header::LOCATION, location);
    response
}

/// The `Date` of a worker, made anew once a second.
#[derive(Debug, Default)]
pub(super) struct Dates(RefCell<Option<(u64, HeaderValue)>>);

impl Dates {
    /// Dates a response that has no date: a recipient with a clock does so when it passes one on (RFC 9110 §6.6.1).
    pub(super) fn date(&self, headers: &mut HeaderMap) {
        if headers.contains_key(header::DATE) {
            return;
        }
        let now = SystemTime::now();
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut cached = self.0.borrow_mut();
        if cached.as_ref().is_none_or(|(of, _)| *of != second) {
            *cached = HeaderValue::try_from(httpdate::fmt_http_date(now)).ok().map(|value| (second, value));
        }
        if let Some((_, value)) = &*cached {
            headers.insert(header::DATE, value.clone());
        }
    }
}
