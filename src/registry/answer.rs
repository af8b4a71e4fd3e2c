//! Answers of the registry.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::Value;

/// A response with its whole body.
pub(super) type RegistryAnswer = Response<Full<Bytes>>;

/// An answer that says no, with a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RegistryRefusal {
    pub(super) status: StatusCode,
    pub(super) text: String,
}

impl RegistryRefusal {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    /// What was sent makes no sense.
    pub(super) fn bad(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    /// This registry does not do that.
    pub(super) fn not_here(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, text)
    }

    pub(super) fn answer(&self) -> RegistryAnswer {
        let mut answer = body(format!("{}\n", self.text), "text/plain; charset=utf-8");
        *answer.status_mut() = self.status;
        if self.status == StatusCode::UNAUTHORIZED {
            answer
                .headers_mut()
                .insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"isobar\""));
        }
        answer
    }
}

/// 200, of that type.
pub(super) fn body(body: impl Into<Bytes>, content_type: &'static str) -> RegistryAnswer {
    let mut answer = RegistryAnswer::new(Full::new(body.into()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// 200 as JSON.
pub(super) fn json(value: &Value) -> RegistryAnswer {
    body(value.to_string(), "application/json")
}

/// No more than a status.
pub(super) fn empty(status: StatusCode) -> RegistryAnswer {
    let mut answer = RegistryAnswer::default();
    *answer.status_mut() = status;
    answer
}
