//! Which request asks for what.

use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{self, HeaderValue};
use http::{Method, Request, StatusCode, request};
use http_body_util::Either;
use hyper::body::Incoming;

use super::answer::{AdminAnswer, failed, json, text, with_type};
use super::backend_actions::Verb;
use super::connections::Stage;
use super::content_negotiation::{Format, takes_gzip};
use super::params::RequestParams;
use super::refusal::AdminRefusal;
use super::upstreams::{BackendView, UpstreamView};
use super::{
    Context, Control, RELOADS_MAX, authority, backend_actions, config, cross_site, events, log_level, metrics, probe,
    pushed, reload, upstreams,
};
use crate::telemetry::audit;

const INDEX: &str = "\
isobar

GET    /livez         200 as long as the process and each of its workers run, else 503 and why
GET    /readyz        200 when it takes requests, else 503 and why; ?verbose for each check
GET    /metrics       metrics for Prometheus
GET    /config        the configuration in force, and what is wrong with the last one if it was refused
GET    /upstreams     the upstreams and their backends, with all that decides which backend is picked
GET    /upstreams/{upstream}
GET    /upstreams/{upstream}/backends/{address}
PUT    /upstreams/{upstream}/backends   {\"backends\": [..]}: all of them, for a source `push`; GET for what was sent last
POST   /upstreams/{upstream}/backends/{address}/drain, undrain, disable, enable, eject, uneject
PUT    /upstreams/{upstream}/backends/{address}/weight   {\"weight\": 5}; DELETE for the one of the file
POST   /stats/reset   forgets what was learnt from traffic; counters stay
GET    /log           what is logged; PUT {\"level\": \"debug\", \"for\": \"5m\"}; DELETE ends it
GET    /events        what happens, as server-sent events; ?kind=health,by_hand
POST   /reload        applies lb.toml: 200 with what changed, or 422 with what is wrong
GET    /openapi.json  all of this for programs
";

/// The description of all this, by hand: a test holds every answer against it.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Endpoint {
    Index,
    Livez,
    Readyz,
    Metrics,
    Config,
    Upstreams,
    Upstream(String),
    Pushed(String),
    Backend(String, String),
    Lever(String, String, Verb),
    Weight(String, String),
    ResetStats,
    Log,
    Events,
    Reload,
    OpenApi,
}

impl Endpoint {
    fn at(path: &str) -> Option<Self> {
        let parts: Option<Vec<_>> = path.strip_prefix('/')?.split('/').map(decoded).collect();
        let parts = parts?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        Some(match parts[..] {
            [""] => Self::Index,
            ["livez"] => Self::Livez,
            ["readyz"] => Self::Readyz,
            ["metrics"] => Self::Metrics,
            ["config"] => Self::Config,
            ["upstreams"] => Self::Upstreams,
            ["upstreams", upstream] => Self::Upstream(upstream.into()),
            ["upstreams", upstream, "backends"] => Self::Pushed(upstream.into()),
            ["upstreams", upstream, "backends", address] => Self::Backend(upstream.into(), address.into()),
            ["upstreams", upstream, "backends", address, "weight"] => Self::Weight(upstream.into(), address.into()),
            ["upstreams", upstream, "backends", address, lever] => {
                let (_, verb) = *Verb::POSTED.iter().find(|(name, _)| *name == lever)?;
                Self::Lever(upstream.into(), address.into(), verb)
            }
            ["stats", "reset"] => Self::ResetStats,
            ["log"] => Self::Log,
            ["events"] => Self::Events,
            ["reload"] => Self::Reload,
            ["openapi.json"] => Self::OpenApi,
            _ => return None,
        })
    }

    fn allowed(&self) -> &'static str {
        match self {
            Self::Reload | Self::ResetStats | Self::Lever(..) => "POST",
            Self::Weight(..) => "PUT, DELETE",
            Self::Pushed(..) => "GET, HEAD, PUT",
            Self::Log => "GET, HEAD, PUT, DELETE",
            Self::Events => "GET",
            _ => "GET, HEAD",
        }
    }

    fn allows(&self, method: &Method) -> bool {
        self.allowed().split(", ").any(|allowed| allowed == method.as_str())
    }
}

/// A segment of a path without its percents; `None` where they make no text.
fn decoded(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut parts = segment.split('%');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// Answers a request. hyper leaves the body out where the request was a HEAD.
pub(super) async fn answer(request: Request<Incoming>, context: Context) -> Result<AdminAnswer, Infallible> {
    let (head, body) = request.into_parts();
    let progress = Arc::clone(&context.progress);
    progress.set(Stage::Working);
    let mut answer = dispatch(&head, body, context).await.unwrap_or_else(|refusal| refusal.answer());
    progress.set(if matches!(answer.body(), Either::Right(_)) { Stage::Streaming } else { Stage::Answering });
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(answer)
}

async fn dispatch(head: &request::Parts, body: Incoming, context: Context) -> Result<AdminAnswer, AdminRefusal> {
    let Context { site, peer, .. } = &context;
    let path = head.uri.path();
    let reads = head.method == Method::GET || head.method == Method::HEAD;
    if let Err(why) = cross_site::check(head, *site) {
        if !reads {
            context.strangers.refused(&peer.to_string(), &format!("{} {path}", head.method), why);
        }
        return Err(AdminRefusal::new(StatusCode::FORBIDDEN, why, path));
    }
    let Some(endpoint) = Endpoint::at(path) else {
        let names = ["/livez", "/readyz", "/metrics", "/config", "/upstreams", "/log", "/events", "/reload"];
        let names = names.into_iter().chain(["/stats/reset", "/openapi.json"]);
        return Err(
            AdminRefusal::new(StatusCode::NOT_FOUND, "not found; / lists what there is", path).one_of(path, names)
        );
    };
    if !endpoint.allows(&head.method) {
        let what = format!("{} is not for {}", path, head.method);
        let mut answer = AdminRefusal::new(StatusCode::METHOD_NOT_ALLOWED, what, path).answer();
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(endpoint.allowed()));
        return Ok(answer);
    }
    if endpoint == Endpoint::Metrics {
        return Ok(metrics(head, &context).await);
    }
    if reads { read(endpoint, head, &context) } else { change(endpoint, head, body, &context).await }
}

fn read(endpoint: Endpoint, head: &request::Parts, context: &Context) -> Result<AdminAnswer, AdminRefusal> {
    let control = &*context.control;
    let query = head.uri.query().unwrap_or_default();
    Ok(match endpoint {
        Endpoint::Index => text(StatusCode::OK, INDEX),
        Endpoint::Livez => probe::livez(&control.process()),
        Endpoint::Readyz => probe::readyz(control, query),
        Endpoint::Config => {
            let snapshot = control.snapshot();
            json(StatusCode::OK, &config::ConfigView::of(&snapshot, &control.status()))
        }
        Endpoint::Upstreams => json(StatusCode::OK, &upstreams::UpstreamsView::of(&control.snapshot())),
        Endpoint::Upstream(name) => {
            let snapshot = control.snapshot();
            json(StatusCode::OK, &UpstreamView::of(upstreams::find(&snapshot, &name)?))
        }
        Endpoint::Pushed(name) => pushed::show(control, &name)?,
        Endpoint::Backend(name, address) => {
            let snapshot = control.snapshot();
            let upstream = upstreams::find(&snapshot, &name)?;
            let backend = BackendView::find(upstream, &upstreams::find_address(upstream, &address)?);
            json(StatusCode::OK, &backend.ok_or_else(|| upstreams::unknown_backend(upstream, &address))?)
        }
        Endpoint::Log => log_level::show(control)?,
        Endpoint::Events => {
            let stopped = context.stopped.clone();
            events::listen(control, &context.listeners, stopped, query, &head.headers)?
        }
        Endpoint::OpenApi => with_type(StatusCode::OK, OPENAPI, "application/json"),
        // Not for reading, as `allowed` says, or answered before.
        Endpoint::Lever(..) | Endpoint::Weight(..) | Endpoint::ResetStats | Endpoint::Reload | Endpoint::Metrics => {
            return Err(AdminRefusal::new(StatusCode::METHOD_NOT_ALLOWED, "not for reading", head.uri.path()));
        }
    })
}

/// Makes a change, if the client has permission; and sees to it that it is in the audit log.
async fn change(
    endpoint: Endpoint,
    head: &request::Parts,
    body: Incoming,
    context: &Context,
) -> Result<AdminAnswer, AdminRefusal> {
    // Its bodies are larger, and it has a token of its own.
    if let Endpoint::Pushed(name) = &endpoint {
        return pushed::take(name, head, body, context).await;
    }
    let Context { control, site, peer, .. } = context;
    let what = format!("{} {}", head.method, head.uri.path());
    let snapshot = control.snapshot();
    let token = snapshot.config.admin.as_ref().and_then(|admin| admin.token.as_ref());
    let who = match authority::check(head, *site, *peer, token) {
        Ok(who) => who,
        Err(denied) => {
            context.strangers.refused(&peer.to_string(), &what, &denied.to_string());
            return Ok(denied.answer(head.uri.path()));
        }
    };
    drop(snapshot);
    // What comes with a reload was never looked at.
    context.progress.set(Stage::Sending);
    let params =
        if endpoint == Endpoint::Reload { Ok(RequestParams::default()) } else { RequestParams::read(body).await };
    context.progress.set(Stage::Working);
    let _place = match endpoint {
        Endpoint::Reload => Some(context.reloads.try_acquire().map_err(|_| too_many_reloads())?),
        _ => None,
    };
    let changed = match params {
        Ok(params) => pull(endpoint, &head.method, params, control, &who).await,
        Err(refusal) => Err(refusal),
    };
    changed.inspect_err(|refusal| audit::refused(&who, &what, refusal.what()))
}

async fn pull(
    endpoint: Endpoint,
    method: &Method,
    params: RequestParams,
    control: &Arc<dyn Control>,
    who: &str,
) -> Result<AdminAnswer, AdminRefusal> {
    let weight = if method == Method::PUT { Verb::SetWeight } else { Verb::ResetWeight };
    match endpoint {
        Endpoint::Lever(upstream, address, verb) => {
            backend_actions::pull(&**control, (&upstream, &address), verb, params, who)
        }
        Endpoint::Weight(upstream, address) => {
            backend_actions::pull(&**control, (&upstream, &address), weight, params, who)
        }
        Endpoint::ResetStats => backend_actions::reset(&**control, params, who),
        Endpoint::Log if method == Method::PUT => log_level::raise(control, params, who),
        Endpoint::Log => log_level::lower(&**control, params, who),
        Endpoint::Reload => Ok(reload::run(Arc::clone(control), who).await),
        other => Err(AdminRefusal::new(StatusCode::METHOD_NOT_ALLOWED, "only for reading", format!("{other:?}"))),
    }
}

fn too_many_reloads() -> AdminRefusal {
    AdminRefusal::new(StatusCode::SERVICE_UNAVAILABLE, format!("{RELOADS_MAX} are asked for already"), "/reload")
}

/// With many upstreams a page has megabytes: made beside the control thread, which answers probes meanwhile, and one at a time.
async fn metrics(head: &request::Parts, context: &Context) -> AdminAnswer {
    let (format, gzip) = (Format::asked(&head.headers), takes_gzip(&head.headers));
    // One that waits for its turn keeps no other connection out.
    context.progress.set(Stage::Answering);
    let _turn = context.scrapes.acquire().await;
    context.progress.set(Stage::Working);
    let control = Arc::clone(&context.control);
    let made = tokio::task::spawn_blocking(move || {
        let page = metrics::page(&*control, format)?;
        if gzip { zipped(&page).map_err(|_| std::fmt::Error) } else { Ok(page.into()) }
    });
    let page = match made.await {
        Ok(Ok(page)) => page,
        Ok(Err(error)) => return failed(&error),
        Err(error) => return failed(&error),
    };
    let mut answer = with_type(StatusCode::OK, page, format.content_type());
    let headers = answer.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("accept, accept-encoding"));
    if gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    answer
}

fn zipped(page: &str) -> std::io::Result<Bytes> {
    let mut gzip = GzEncoder::new(Vec::with_capacity(page.len() / 8), Compression::fast());
    gzip.write_all(page.as_bytes())?;
    gzip.finish().map(Bytes::from)
}
