//! The data plane: one request, top to bottom.
//!
//! [`Proxy::handle`] is the page to read first. A worker has one [`Proxy`]; nothing in it is shared with other workers but
//! the published snapshot.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::header::{self, HeaderValue};
use http::{Method, Response, Version, response};

use crate::config::{ForwardedHeader, PathPattern, PathRewrite, Redirect};
use crate::exchange::body::{Body, BodySource};
use crate::exchange::deadline::{Clock, Watch};
use crate::exchange::{Client, ClientSide, Exchange, PassThrough, RequestHead, RuleLines};
use crate::file_descriptors::DescriptorRoom;
use crate::middleware::Origin;
use crate::overload::Cause;
use crate::route::{self, Forward, Reading, Route, RouteAction};
use crate::strategy::Dice;
use crate::target::{self, Host, authority};
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::process::Process;
use crate::transport::Transport;

mod forward;
mod attempt;
mod attempt_end;
mod backend_response;
mod expect_pass;
mod retry;
mod hedge;
mod admission;
mod grpc;
mod headers;
mod ambiguous_path;
mod forwarded;
mod hooks;
mod own_response;
mod running;
mod upload;
mod account;
mod exchange_end;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;

pub mod error;
mod snapshot;
pub mod upgrade;

pub use error::{Blame, ProxyError, Refusal, RefusalKind};
use forwarded::Asker;
use grpc::GrpcCall;
use headers::Cleaning;
use running::RunningExchange;
pub use snapshot::{Current, HeldSnapshot, KeptRoute, Published, Snapshot};
use upgrade::Tunnel;

/// A worker's data plane.
#[derive(Debug)]
pub struct Proxy {
    /// Which shard of the metrics is its own.
    pub worker: usize,
    /// The snapshot of the moment.
    pub current: Current,
    /// The way to the backends.
    pub transport: Rc<Transport>,
    /// What the process tells of itself.
    pub process: Arc<Process>,
    /// When what was refused before it came here has a line in the access log.
    pub refusals: LogThrottle,
    dice: RefCell<Dice>,
    dates: own_response::Dates,
}

/// Lines in ten seconds, of each worker, that the access log has for what is refused before it comes to an exchange: enough to see what it
/// is and who does it, and not enough for an attack to fill a disk.
const REFUSALS: u32 = 100;

/// What a request comes to. It is large, and so has one place that it is put into, and is never moved.
#[derive(Debug)]
pub struct Handled {
    /// The head of what the client is answered, but for what of it are lines.
    pub head: response::Parts,
    /// Pass-through headers.
    pub pass_through: PassThrough,
    /// Headers that rules have added.
    pub rule_lines: RuleLines,
    /// Its body.
    pub body: Body,
    /// What the connection becomes once that is sent.
    pub tunnel: Option<Box<Tunnel>>,
    /// Whether the client is to ask for nothing more on its connection, whatever else is under way there.
    pub last: bool,
    /// Whether the response needs no date of ours.
    dated: bool,
}

impl Default for Handled {
    fn default() -> Self {
        Response::default().into()
    }
}

impl From<Response<Body>> for Handled {
    fn from(response: Response<Body>) -> Self {
        let (head, body) = response.into_parts();
        let (pass_through, rule_lines) = (PassThrough::default(), RuleLines::default());
        Self { head, pass_through, rule_lines, body, tunnel: None, last: false, dated: false }
    }
}

/// What is to be done with a request.
enum Choice<'a> {
    /// Answered already.
    Answer(Response<Body>),
    /// What its route does with it, behind the middleware; the protocol is what the client asks to switch to, if it does.
    Route(&'a Route, Option<HeaderValue>),
}

impl Proxy {
    /// The data plane of worker number `worker`.
    pub fn new(worker: usize, published: Arc<Published>, clock: Rc<Clock>, process: Arc<Process>) -> Rc<Self> {
        let room = DescriptorRoom::new(Arc::clone(&process.descriptors), worker);
        Rc::new(Self {
            worker,
            current: Current::new(published),
            transport: Transport::new(clock, room),
            process,
            refusals: LogThrottle::new(REFUSALS),
            dice: RefCell::default(),
            dates: own_response::Dates::default(),
        })
    }

    /// Serves one request: finds its route, lets middleware look at it, has a backend answer it, and sees the response on
    /// its way. Whatever goes wrong comes to a response. The exchange waits by `watch` and has `side` sent its answer. `upload` is
    /// the request's body, where it has one; what it comes to is put into `handled`. The version of `head` is that of the client's HTTP.
    pub async fn handle(
        self: Rc<Self>,
        (client, watch, side): (Rc<Client>, Rc<Watch>, Rc<dyn ClientSide>),
        head: &mut RequestHead,
        mut upload: Option<Rc<dyn BodySource>>,
        handled: &mut Handled,
    ) {
        let started = Instant::now();
        watch.clock().at(started);
        let Asker { ip, scheme, .. } = Asker::of(head.in_map(), &client);
        let exchange = Exchange { started, client_ip: ip, scheme, client, watch, side };
        let snapshot = self.current.get();
        if snapshot.looks_at_headers() {
            head.read_lines();
        }
        let call = if head.version == Version::HTTP_2 { GrpcCall::of(head) } else { None };
        let running = RunningExchange::begin(&self, &snapshot, exchange, call, head);
        let chosen = match self.process.refuses(self.worker) {
            None => self.choose(&running, &snapshot, head),
            Some(cause) => Err(self.overloaded(cause)),
        };
        // What follows may last: it needs the route alone.
        drop(snapshot);
        let come_to = 'come_to: {
            let (route, upgrade) = match chosen {
                Ok(Choice::Route(route, upgrade)) => (route, upgrade),
                Ok(Choice::Answer(response)) => {
                    *handled = response.into();
                    break 'come_to Ok(Origin::Route);
                }
                Err(ProxyError::NoRoute) if running.is_looked_at() => {
                    break 'come_to Box::pin(nowhere(&running, head, handled)).await;
                }
                Err(error) => break 'come_to Err(error),
            };
            if running.is_looked_at() {
                match hooks::pass(&running, Some(route), head).await {
                    Ok(None) => {
                        if let (RouteAction::Forward(forward), Some(body)) = (&route.action, upload.take()) {
                            upload = match running.wrapped(forward, body, head) {
                                Ok(body) => Some(body),
                                Err(error) => break 'come_to Err(error),
                            };
                        }
                    }
                    Ok(Some(answer)) => {
                        *handled = answer.into();
                        break 'come_to Ok(Origin::Middleware);
                    }
                    Err(error) => break 'come_to Err(error),
                }
            }
            match &route.action {
                RouteAction::Forward(forward) => {
                    let asked = forward::Asked { route, forward, head, upgrade };
                    forward::forward(&self, &running, asked, upload, handled).await.map(|()| Origin::Backend)
                }
                RouteAction::Redirect(redirect) => redirected(&running.exchange, redirect, head).map(|response| {
                    *handled = response.into();
                    Origin::Route
                }),
                RouteAction::Respond(fixed) => {
                    *handled = own_response::fixed(fixed).into();
                    Ok(Origin::Route)
                }
            }
        };
        let origin = come_to.unwrap_or_else(|error| {
            *handled = running.failed(&error);
            Origin::Error
        });
        running.finish(handled, origin);
        running.respond(handled);
    }

    /// Whether pass-through headers of the next request may be left as lines. Advice: a look for one finds it all the same.
    pub fn passes_through(&self) -> bool {
        !self.current.look(Snapshot::looks_at_headers)
    }

    /// There is too much to do: refused while that costs little.
    #[cold]
    fn overloaded(&self, cause: Cause) -> ProxyError {
        self.process.refused.of(self.worker).of(cause).add(1);
        ProxyError::Overloaded { cause }
    }

    /// Makes the request canonical and clean, and finds its route.
    ///
    /// In this order: what is said of the target is decided before anything is compared with it, what only the proxy may say is removed and
    /// said before a route asks for it, and what a route changes comes last.
    fn choose<'a>(
        &self,
        running: &'a RunningExchange,
        snapshot: &HeldSnapshot,
        head: &mut RequestHead,
    ) -> Result<Choice<'a>, ProxyError> {
        let exchange = &running.exchange;
        let client = &*exchange.client;
        if matches!(head.method, Method::CONNECT | Method::TRACE) {
            return Err(ProxyError::Method);
        }
        name_host(head)?;
        agree_on_host(self, running, head)?;
        if let Some(redirect) = &client.listener.redirect
            && exchange.scheme != "https"
        {
            return to_https(redirect, client, head).map(Choice::Answer);
        }
        // HTTP/1.0 cannot switch (RFC 9110 §7.8).
        let may_switch = !running.http10();
        let asker = Asker { client, ip: exchange.client_ip, scheme: exchange.scheme };
        let cleaning = Cleaning { may_switch, looks_at_clients: snapshot.routes.looks_at_clients() };
        let upgrade = headers::clean(head, asker, cleaning);
        // Behind that, or a client could have it removed by naming it in `Connection`.
        if snapshot.config.tells_identity {
            forwarded::identity(head.in_map_mut(), client);
        }
        let route = match target::path::is_plain(head.uri.path().as_bytes()) {
            true => ambiguous_path::find(running, snapshot, Reading::plain(head.uri.path()), head),
            false => ambiguous_path::find_spelled(running, snapshot, head),
        };
        if let Ok(route) = route
            && let RouteAction::Forward(forward) = &route.action
            && !client.listener.forwarded_headers.is_empty()
        {
            prefix_taken_off(route, forward, client, head);
        }
        route.map(|route| Choice::Route(route, upgrade))
    }
}

/// Has a request for which there is no route come to the middleware of its listener, which may answer it all the same.
async fn nowhere(
    running: &RunningExchange,
    head: &mut RequestHead,
    handled: &mut Handled,
) -> Result<Origin, ProxyError> {
    match hooks::pass(running, None, head).await? {
        Some(answer) => {
            *handled = answer.into();
            Ok(Origin::Middleware)
        }
        None => Err(ProxyError::NoRoute),
    }
}

/// The redirect of a route.
fn redirected(exchange: &Exchange, redirect: &Redirect, head: &RequestHead) -> Result<Response<Body>, ProxyError> {
    let host = forwarded::public_authority(head.in_map(), &exchange.client);
    let location = route::rewrite::location(redirect, exchange.scheme, &host, &head.uri)
        .ok_or(ProxyError::BadRequest("no redirect can be made for this target"))?;
    Ok(own_response::redirect(redirect.status, location))
}

/// The host that is asked for, in its canonical form.
fn host(head: &RequestHead) -> Host<'_> {
    headers::host(head.in_map()).and_then(|host| host.to_str().ok()).map_or(Host::NONE, Host::of)
}

/// Tells a backend of the prefix that its route takes off the path, or replaces.
#[cold]
fn prefix_taken_off(route: &Route, forward: &Forward, client: &Client, head: &mut RequestHead) {
    if let PathPattern::Prefix(prefix) = &route.config.path
        && forward.path != PathRewrite::Keep
        && !prefix.is_empty()
        && client.listener.forwarded_headers.contains(&ForwardedHeader::Prefix)
    {
        forwarded::tell_prefix(head.in_map_mut(), client, prefix);
    }
}

/// Where the client has named a host in its handshake, the request is to be for that one, or for one with the same certificate:
/// an attacker in between cannot have a connection to one host end at another, and no client gets past what is asked of it by name.
fn agree_on_host(proxy: &Proxy, running: &RunningExchange, head: &RequestHead) -> Result<(), ProxyError> {
    let client = &running.exchange.client;
    if let Some(indicated) = &client.indicated
        && let Some(host) = headers::host(head.in_map())
        && indicated.is_misdirected(host)
    {
        client.metrics.of(proxy.worker).misdirected.add(1);
        return Err(ProxyError::Misdirected);
    }
    Ok(())
}

/// To the host without its port, which is that of a listener in the clear.
fn to_https(redirect: &Redirect, client: &Client, head: &mut RequestHead) -> Result<Response<Body>, ProxyError> {
    if !target::path::is_plain(head.uri.path().as_bytes()) {
        let path = ambiguous_path::tidy(head)?;
        let path = route::path::settle(&path, &client.listener.paths).map_err(ProxyError::Path)?;
        ambiguous_path::replace(head, &path)?;
    }
    let authority = forwarded::public_authority(head.in_map(), client);
    let host = authority::split(&authority).0;
    let location = route::rewrite::location(redirect, "http", host, &head.uri)
        .ok_or(ProxyError::BadRequest("no redirect can be made for this target"))?;
    Ok(own_response::redirect(redirect.status, location))
}

/// Makes the authority canonical: from here on the `Host` field has it, and the target is a path. A target with a host in it outweighs the
/// field (RFC 9112 §3.2.2). A field that is empty names none, and is as one that is not there.
fn name_host(head: &mut RequestHead) -> Result<(), ProxyError> {
    const NO_HOST: ProxyError = ProxyError::BadRequest("the host is none");
    if let Some(authority) = head.uri.authority() {
        if !matches!(head.uri.scheme_str(), Some("http" | "https")) {
            return Err(ProxyError::BadRequest("the request target is not one of HTTP"));
        }
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| NO_HOST)?;
        head.in_map_mut().insert(header::HOST, host);
        let path = head.uri.path_and_query().cloned();
        head.uri = match path {
            Some(path) => path.into(),
            None => http::Uri::from_static("/"),
        };
    }
    head.version = Version::HTTP_11;
    match headers::host(head.in_map()) {
        None => Ok(()),
        Some(host) if authority::is_canonical(host.as_bytes()) => Ok(()),
        Some(_) => make_canonical(head.in_map_mut()).ok_or(NO_HOST),
    }
}

#[cold]
fn make_canonical(headers: &mut http::HeaderMap) -> Option<()> {
    let host = headers.get(header::HOST)?;
    if host.is_empty() {
        headers.remove(header::HOST);
        return Some(());
    }
    let canonical = authority::canonical(host.as_bytes())?;
    headers.insert(header::HOST, HeaderValue::try_from(canonical).ok()?);
    Some(())
}
