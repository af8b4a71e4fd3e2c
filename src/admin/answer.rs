//! Answers of the admin address.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{Either, Full};
use serde::Serialize;
use tracing::error;

use super::events::EventStream;

/// A response with its whole body, or with one that goes on.
pub(super) type AdminAnswer = Response<Either<Full<Bytes>, EventStream>>;

/// An answer in plain text.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> AdminAnswer {
    with_type(status, body, "text/plain; charset=utf-8")
}

/// An answer as JSON, laid out for people.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> AdminAnswer {
    match serde_json::to_vec_pretty(body) {
        Ok(mut json) => {
            json.push(b'\n');
            with_type(status, json, "application/json")
        }
        Err(error) => failed(&error),
    }
}

/// The answer to a fault of isobar: 500, and the error in the log.
pub(super) fn failed(error: &dyn std::error::Error) -> AdminAnswer {
    error!(%error, "could not answer a request to the admin address");
    text(StatusCode::INTERNAL_SERVER_ERROR, "internal error; the log says more\n")
}

/// An answer of that type.
pub(super) fn with_type(status: StatusCode, body: impl Into<Bytes>, content_type: &'static str) -> AdminAnswer {
    let mut answer = AdminAnswer::new(Either::Left(Full::new(body.into())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
