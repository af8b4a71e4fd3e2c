//! Which request asks for what.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Serialize;
use tracing::error;

use super::browser::Site;
use super::{Control, browser, config, exposition, probe, reload, upstreams};

/// A response with its whole body.
pub(super) type Answer = Response<Full<Bytes>>;

const INDEX: &str = "\
isobar

GET  /livez      200 as long as the process answers
GET  /readyz     200 when it takes requests, else 503 and why; ?verbose for each check
GET  /metrics    metrics for Prometheus
GET  /upstreams  the upstreams and their backends, as JSON
GET  /config     the configuration in force, and what is wrong with the last one if it was refused, as JSON
POST /reload     applies lb.toml: 200 with what changed, or 422 with what is wrong
";

#[derive(Clone, Copy)]
enum Endpoint {
    Index,
    Livez,
    Readyz,
    Metrics,
    Upstreams,
    Config,
    Reload,
}

impl Endpoint {
    fn at(path: &str) -> Option<Self> {
        Some(match path {
            "/" => Self::Index,
            "/livez" => Self::Livez,
            "/readyz" => Self::Readyz,
            "/metrics" => Self::Metrics,
            "/upstreams" => Self::Upstreams,
            "/config" => Self::Config,
            "/reload" => Self::Reload,
            _ => return None,
        })
    }

    fn allows(self, method: &Method) -> bool {
        match self {
            Self::Reload => method == Method::POST,
            _ => method == Method::GET || method == Method::HEAD,
        }
    }

    fn allowed(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Reload => "POST",
            _ => "GET, HEAD",
        })
    }
}

/// Answers a request. hyper leaves the body out where the request was a HEAD.
pub(super) async fn answer(
    request: Request<Incoming>,
    control: Arc<dyn Control>,
    site: Site,
) -> Result<Answer, Infallible> {
    let mut answer = dispatch(request, control, site).await;
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(answer)
}

async fn dispatch(request: Request<Incoming>, control: Arc<dyn Control>, site: Site) -> Answer {
    let (head, _) = request.into_parts();
    if let Err(why) = browser::check(&head, site) {
        return text(StatusCode::FORBIDDEN, format!("{why}\n"));
    }
    let Some(endpoint) = Endpoint::at(head.uri.path()) else {
        return text(StatusCode::NOT_FOUND, "not found; / lists what there is\n");
    };
    if !endpoint.allows(&head.method) {
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
        answer.headers_mut().insert(header::ALLOW, endpoint.allowed());
        return answer;
    }
    match endpoint {
        Endpoint::Index => text(StatusCode::OK, INDEX),
        Endpoint::Livez => text(StatusCode::OK, "ok\n"),
        Endpoint::Readyz => probe::readyz(&*control, head.uri.query().unwrap_or_default()),
        Endpoint::Metrics => metrics(&*control),
        Endpoint::Upstreams => json(StatusCode::OK, &upstreams::View::of(&control.snapshot())),
        Endpoint::Config => {
            let snapshot = control.snapshot();
            json(StatusCode::OK, &config::View::of(&snapshot, &control.status()))
        }
        Endpoint::Reload => reload::run(control).await,
    }
}

fn metrics(control: &dyn Control) -> Answer {
    match exposition::text(control) {
        Ok(metrics) => with_type(StatusCode::OK, metrics, exposition::CONTENT_TYPE),
        Err(error) => failed(&error),
    }
}

/// An answer in words.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    with_type(status, body, "text/plain; charset=utf-8")
}

/// An answer as JSON, laid out for people.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    match serde_json::to_vec_pretty(body) {
        Ok(mut json) => {
            json.push(b'\n');
            with_type(status, json, "application/json")
        }
        Err(error) => failed(&error),
    }
}

/// The answer where we have made a mistake.
pub(super) fn failed(error: &dyn std::error::Error) -> Answer {
    error!(%error, "could not answer a request to the admin address");
    text(StatusCode::INTERNAL_SERVER_ERROR, "internal error; the log says more\n")
}

fn with_type(status: StatusCode, body: impl Into<Bytes>, content_type: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
