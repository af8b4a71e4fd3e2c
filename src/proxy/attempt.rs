//! A request at its backends: attempt after attempt, until one answers or none may be made.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use http::Response;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;

use crate::backend::Lease;
use crate::exchange::body::{Body, Progress, RequestBody, Source};
use crate::exchange::watch::{Phase, Watch};
use crate::route::{Forward, Route, rewrite};
use crate::strategy::Tried;
use crate::transport::{Connection, connect};
use crate::upstream::Upstream;

use super::running::{Running, SWITCHING, Upload};
use super::upgrade::Tunnel;
use super::{Handled, Proxy, ProxyError, headers, outcome};

/// Has a backend of the route's upstream answer.
pub(super) async fn forward(
    proxy: &Rc<Proxy>,
    running: &Rc<Running>,
    (route, forward): (&Route, &Forward),
    mut parts: Parts,
    upload: Option<Rc<dyn Source>>,
) -> Result<Handled, ProxyError> {
    let client = &running.exchange.client;
    let has_body = upload.is_some();
    if let (Some(max), Some(length)) = (client.listener.max_body_bytes, upload.as_ref().and_then(|body| body.left()))
        && length > max
    {
        return Err(ProxyError::BodyTooLarge);
    }
    // HTTP/1.0 cannot switch; nor does anybody behind a body, which the guard would not hold the connection for.
    let may_switch = !has_body && !running.http10();
    let headers::ToBackend { upgrade, lines, unnamed } =
        headers::to_backend(&mut parts.headers, client, &route.config.request_headers, may_switch);
    if let Some(host) = &forward.host {
        parts.headers.insert(header::HOST, host.clone());
    } else if unnamed {
        // An HTTP/1.0 client need not say which host it means; HTTP/1.1, in which the backend is asked, has to
        // (RFC 9112 §3.2). The upstream's name is what nginx says.
        parts.headers.insert(header::HOST, upstream_host(forward));
    }
    if let Some(target) = rewrite::backend_target(&forward.path, &route.config.path, &parts.uri) {
        parts.uri = target.into();
    }
    running.forwarded(&forward.timeouts, if has_body { Upload::Moving } else { Upload::Over });
    let mut body = match upload {
        Some(source) => RequestBody::streamed(source, Rc::clone(running) as Rc<dyn Progress>),
        None => RequestBody::empty(),
    };
    // What may be sent again after a backend has perhaps seen it.
    let repeatable = !has_body && upgrade.is_none() && parts.method.is_idempotent();

    let upstream = &*forward.upstream;
    let mut tried = Tried::default();
    let mut place = lease(proxy, running, upstream, &mut tried, None)?;
    let mut fresh = false;
    // When the attempt began: for the first one when the head was read, which is a moment before and saves a look at the clock.
    let mut begun = running.exchange.started;
    loop {
        let idle = if fresh { None } else { proxy.transport.checkout(place.backend(), upstream.config.pool) };
        let connected = match idle {
            Some(connection) => Ok(connection),
            None => {
                let dialled = dial(proxy, running, upstream, &place).await;
                // Of what it takes to answer, connecting is no part.
                begun = Instant::now();
                dialled
            }
        };
        let connection = match connected {
            Ok(connection) => connection,
            Err(error) => {
                outcome::failed(upstream, &place, proxy.worker, &error, begun);
                // Nothing was sent: any request may try elsewhere.
                place = lease(proxy, running, upstream, &mut tried, Some(error))?;
                fresh = false;
                continue;
            }
        };
        running.await_head();
        connection.begin(&parts, &body, lines.as_deref());
        let response = poll_fn(|cx| connection.poll_response(cx, &mut body, &**running));
        let failed = match in_time(&client.watch, response).await {
            None => {
                let error = late(running, &place);
                outcome::late(upstream, &place, running, &error, begun);
                return Err(error);
            }
            Some(Ok(status)) => {
                outcome::answered(upstream, &place, proxy.worker, status, running.sent_since(begun));
                return answer(running, forward, upgrade, place, connection, body, parts.headers);
            }
            Some(Err(failed)) => failed,
        };
        match running.upload() {
            Upload::TooLarge => return Err(ProxyError::BodyTooLarge),
            Upload::Broken => return Err(ProxyError::BadRequest("the request body is malformed or was cut short")),
            _ => {}
        }
        let metrics = place.backend().metrics.of(proxy.worker);
        let answered = connection.answered();
        let again = failed.unsent || (repeatable && !answered);
        // A connection that had been idle may have been closed by the backend just before: that says nothing about the
        // backend, and is no attempt.
        let stale = connection.reused && !answered;
        if !stale {
            metrics.broken.add(1);
        }
        let error = ProxyError::Broken { backend: place.backend().address.clone(), error: failed.error };
        if !stale {
            outcome::failed(upstream, &place, proxy.worker, &error, begun);
        }
        if !again {
            return Err(error);
        }
        if stale {
            fresh = true;
        } else {
            place = lease(proxy, running, upstream, &mut tried, Some(error))?;
            begun = Instant::now();
            fresh = false;
        }
    }
}

fn upstream_host(forward: &Forward) -> HeaderValue {
    HeaderValue::from_str(forward.upstream.name().as_str()).unwrap_or(HeaderValue::from_static("upstream"))
}

/// Leases the next backend to try; `failure` is why the last one was no good, and what it comes to if there is no other.
fn lease(
    proxy: &Proxy,
    running: &Running,
    upstream: &Upstream,
    tried: &mut Tried,
    failure: Option<ProxyError>,
) -> Result<Lease, ProxyError> {
    let metrics = upstream.state.metrics.of(proxy.worker);
    if let Some(failure) = failure {
        if tried.len() > usize::from(upstream.config.retries) || running.exchange.client.watch.is_capped() {
            return Err(failure);
        }
        let next = upstream.lease(None, running.exchange.started, tried, &mut proxy.dice.borrow_mut());
        let next = next.ok_or(failure)?;
        metrics.retries.add(1);
        note(running, tried, &next);
        return Ok(next);
    }
    match upstream.lease(None, running.exchange.started, tried, &mut proxy.dice.borrow_mut()) {
        Some(first) => {
            note(running, tried, &first);
            Ok(first)
        }
        None => {
            metrics.no_backend.add(1);
            Err(ProxyError::NoBackend)
        }
    }
}

fn note(running: &Running, tried: &mut Tried, lease: &Lease) {
    tried.push(lease.backend().id);
    running.attempt(lease.backend());
}

/// Makes a new connection.
async fn dial(
    proxy: &Rc<Proxy>,
    running: &Running,
    upstream: &Upstream,
    lease: &Lease,
) -> Result<Connection, ProxyError> {
    let watch = &running.exchange.client.watch;
    watch.enter(Phase::Connect, upstream.config.connect_timeout);
    let backend = lease.backend();
    let metrics = backend.metrics.of(proxy.worker);
    let dialled = connect::connect(&proxy.transport, backend, upstream.config.pool);
    match in_time(watch, dialled).await {
        Some(Ok(connection)) => {
            metrics.connects.add(1);
            Ok(connection)
        }
        Some(Err(error)) => {
            metrics.connect_failures.add(1);
            Err(ProxyError::Connect { backend: backend.address.clone(), error })
        }
        None => {
            metrics.connect_failures.add(1);
            Err(match watch.is_capped() {
                true => ProxyError::ExchangeTimeout,
                false => ProxyError::ConnectTimeout { backend: backend.address.clone() },
            })
        }
    }
}

/// Who was too slow.
fn late(running: &Running, lease: &Lease) -> ProxyError {
    let backend = lease.backend();
    if running.exchange.client.watch.is_capped() {
        return ProxyError::ExchangeTimeout;
    }
    if running.upload() == Upload::Waiting {
        return ProxyError::ClientTooSlow;
    }
    backend.metrics.of(running.worker()).timeouts.add(1);
    ProxyError::ResponseTimeout { backend: backend.address.clone() }
}

/// Makes a backend's response the client's. What is left of the request's `body` goes on beside it; `space` is for the
/// response's headers.
fn answer(
    running: &Rc<Running>,
    forward: &Forward,
    upgrade: Option<HeaderValue>,
    lease: Lease,
    connection: Connection,
    body: RequestBody,
    space: HeaderMap,
) -> Result<Handled, ProxyError> {
    let response = match connection.response(space) {
        Ok(response) => response,
        Err(error) => return Err(ProxyError::Broken { backend: lease.backend().address.clone(), error }),
    };
    connection.upload(body, forward.timeouts.body_idle);
    let (mut head, ()) = response.into_parts();
    let status = head.status;
    let class = usize::from(status.as_u16() / 100 - 1).min(4);
    lease.backend().metrics.of(running.worker()).responses[class].add(1);
    let dated = headers::to_client(&mut head.headers, &running.exchange.client);
    if status != SWITCHING {
        let body = match connection.whole() {
            Some(bytes) => {
                connection.release();
                Body::whole(bytes, lease)
            }
            None => {
                let source = Rc::clone(connection.link()) as Rc<dyn Source>;
                running.lend(connection);
                Body::leased(source, lease)
            }
        };
        return Ok(Handled { response: Response::from_parts(head, body), tunnel: None, dated });
    }
    let Some(protocol) = upgrade else {
        return Err(ProxyError::UnaskedUpgrade { backend: lease.backend().address.clone() });
    };
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    head.headers.entry(header::UPGRADE).or_insert(protocol);
    head.extensions.clear();
    let tunnel = Tunnel::new(Rc::clone(connection.link()), lease, Rc::clone(running), forward.timeouts.tunnel_idle);
    Ok(Handled { response: Response::from_parts(head, Body::empty()), tunnel: Some(Box::new(tunnel)), dated: true })
}

/// Waits for `future`, but not beyond the watch's deadline. Costs a look at a flag.
async fn in_time<F: Future>(watch: &Watch, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if watch.expired() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}
