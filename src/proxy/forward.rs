//! A request at its backends: attempt after attempt, until one answers or no other may be made.

use std::rc::Rc;
use std::time::Instant;

use http::header::{self, HeaderValue};
use http_body::Body as _;

use crate::config::{Expect, Protocol, RetryConfig};
use crate::exchange::RequestHead;
use crate::exchange::body::{BodySource, ExchangeProgress, RequestBody};
use crate::route::{Forward, Route, path, rewrite};

use super::admission::AttemptSlot;
use super::attempt::{Attempt, Failure, Next};
use super::backend_response::answer;
use super::retry::{self, Attempts, RetryStake};
use super::running::RunningExchange;
use super::upload::Upload;
use super::{Handled, Proxy, ProxyError, expect_pass, headers};

/// A request that is to be forwarded.
pub(super) struct Asked<'a> {
    pub(super) route: &'a Route,
    pub(super) forward: &'a Forward,
    pub(super) head: &'a mut RequestHead,
    /// The protocol that the client asks to switch to.
    pub(super) upgrade: Option<HeaderValue>,
}

/// Has a backend of the route's upstream answer. `upload` is the request's body, where it has one.
///
/// # Errors
/// What it comes to where no backend answers.
pub(super) async fn forward(
    proxy: &Proxy,
    running: &Rc<RunningExchange>,
    mut asked: Asked<'_>,
    upload: Option<Rc<dyn BodySource>>,
    handled: &mut Handled,
) -> Result<(), ProxyError> {
    let (mut body, repeatable) = prepare(running, &mut asked, upload)?;
    let mut attempts = Attempts::new(proxy, running, &asked, repeatable);
    let Asked { head: request, upgrade, .. } = asked;
    let (place, waited) = match attempts.first()? {
        Some(place) => (place, running.has_waited()),
        None => (attempts.in_line().await?, true),
    };
    // Where nothing was awaited, the first attempt began when the head was read, which is a moment before and saves a look at the clock.
    let begun = if waited { Instant::now() } else { running.exchange.started };
    attempts.begin(begun);
    let mut attempt = Attempt { place, begun, fresh: false };
    loop {
        let next = match attempt.make(&mut attempts, request, &mut body).await {
            Ok(connection) => {
                let answered = (connection, attempt.place.into_lease());
                return answer(running, attempts.forward, upgrade, answered, body, request, handled);
            }
            Err(Failure::Stale { fresh }) => {
                attempt.fresh = fresh;
                continue;
            }
            Err(Failure::Over(next)) => next,
        };
        // It may have to wait for the next place, and does so without one that others wait for.
        drop(attempt);
        attempt = Attempt::now(next_place(&mut attempts, next, request).await?);
    }
}

/// Where a request goes after an attempt that failed, or else what it comes to. In a box: few need it, and the future of all others
/// is smaller for it.
#[cold]
fn next_place<'a>(
    attempts: &'a mut Attempts<'_>,
    next: Next,
    request: &'a mut RequestHead,
) -> impl Future<Output = Result<AttemptSlot, ProxyError>> {
    Box::pin(async move {
        let place = match next {
            Next::At(place) => place,
            Next::Retry(cause, error) => match attempts.next(cause, None, RetryStake::Nothing).await {
                Some(place) => place,
                None => return Err(attempts.failed(error)),
            },
            Next::Nothing(error) => return Err(error),
        };
        attempts.number(request);
        Ok(place)
    })
}

/// Makes the request what the backend gets: its host, its target, its body, and how long it may take. Whether it may be sent again after a
/// backend has perhaps seen it; then its body is kept, if it is not too large.
///
/// # Errors
/// What the client is answered in place of a backend's response.
#[inline]
fn prepare(
    running: &Rc<RunningExchange>,
    asked: &mut Asked<'_>,
    upload: Option<Rc<dyn BodySource>>,
) -> Result<(RequestBody, bool), ProxyError> {
    let Asked { route, forward, head: request, upgrade } = asked;
    let has_body = upload.is_some();
    // The limit is that of what the client sends, and was set where middleware has made another body of it.
    if let Some(body) = &upload
        && !running.is_wrapped()
        && running.limit_body(forward.max_body.unwrap_or(running.exchange.client.listener.max_body), body.left())
    {
        return Err(ProxyError::BodyTooLarge);
    }
    if upgrade.is_some() && forward.upstream.config.protocol == Protocol::Http2 {
        if !has_body {
            return Err(ProxyError::CannotSwitch);
        }
        // Its client wants an answer in any case.
        request.remove(&header::UPGRADE);
        request.remove(&header::CONNECTION);
        *upgrade = None;
    }
    if let Some(host) = &forward.host {
        request.insert(header::HOST, host.clone());
    } else if headers::host(request.in_map()).is_none() {
        // A client need not say which host it means, in HTTP/1.0 not at all; HTTP/1.1, in which the backend is asked, has to
        // (RFC 9112 §3.2). The upstream's name is what nginx says.
        request.insert(header::HOST, upstream_host(forward));
    }
    if let Some(target) = rewrite::backend_target(&forward.path, &route.config.path, &request.uri) {
        path::put(request, target);
    }
    let measured = upload.as_ref().is_some_and(|body| body.left().is_some());
    running.forwarded(&forward.timeouts, if has_body { Upload::Moving } else { Upload::Over }, measured)?;
    let upload = match upload {
        Some(source) if forward.expect == Expect::Pass => Some(expect_pass::pass(running, forward, request, source)),
        upload => upload,
    };
    let mut body = match upload {
        Some(source) => RequestBody::streamed(source, Rc::clone(running) as Rc<dyn ExchangeProgress>),
        None => RequestBody::empty(),
    };
    let repeatable = upgrade.is_none() && retry::is_repeatable(request);
    // A call that a backend refuses by its status may be sent again too, where the file says so.
    let refusable = running.call().is_some() && !forward.retries.grpc_statuses.is_empty();
    if has_body && (repeatable || refusable) && keeps(&forward.retries, &body) {
        body.keep(forward.retries.body_buffer);
    }
    Ok((body, repeatable))
}

/// Whether a body may be kept to be sent again, going by what is known of its length.
fn keeps(retries: &RetryConfig, body: &RequestBody) -> bool {
    let length = body.size_hint().exact().unwrap_or(0);
    (retries.max > 0 || retries.hedge.is_some()) && retries.body_buffer > 0 && length <= retries.body_buffer as u64
}

fn upstream_host(forward: &Forward) -> HeaderValue {
    HeaderValue::from_str(forward.upstream.name().as_str()).unwrap_or(HeaderValue::from_static("upstream"))
}
