use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};

use crate::config::GrpcStatus;
use crate::exchange::body::Body;

/// The answer of a middleware to a request.
///
/// To a call of gRPC it goes as the proxy's own errors do: as a status of gRPC and nothing else, by HTTP 200. Its header fields stay, but
/// for those that tell of the body. An answer whose `Content-Type` is that of gRPC goes as it is.
#[derive(Debug)]
pub struct Answer {
    response: Response<Body>,
    words: &'static str,
    status: Option<GrpcStatus>,
}

impl Answer {
    /// Refuses the request with this status, and a line of text that says why.
    pub fn refuse(status: StatusCode, why: &'static str) -> Self {
        let reason = status.canonical_reason().unwrap_or("");
        let mut response = Response::new(Body::full(format!("{} {reason}: {why}\n", status.as_u16())));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        Self { response, words: why, status: None }
    }

    /// Answers with a whole response.
    pub fn response(response: Response<Body>) -> Self {
        let words = response.status().canonical_reason().unwrap_or("");
        Self { response, words, status: None }
    }

    /// The status that a client of gRPC is told. Default is what clients conclude from the status of HTTP: 401 is `UNAUTHENTICATED`, 403
    /// is `PERMISSION_DENIED`, 429 and 503 are `UNAVAILABLE`.
    pub fn grpc(mut self, status: GrpcStatus) -> Self {
        self.status = Some(status);
        self
    }

    /// Its header fields.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        self.response.headers_mut()
    }

    /// The response, and what a client of gRPC is told: in words, and by which status.
    pub fn into_parts(self) -> (Response<Body>, &'static str, Option<GrpcStatus>) {
        (self.response, self.words, self.status)
    }
}

impl From<Response<Body>> for Answer {
    fn from(response: Response<Body>) -> Self {
        Self::response(response)
    }
}
