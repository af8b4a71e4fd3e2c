//! A request at its backends: attempt after attempt, until one answers or none may be made.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::StatusCode;
use http::header::{self, HeaderValue};
use http_body::Body as _;

use crate::config::{Expect, Protocol, RetryConfig};
use crate::descriptors;
use crate::exchange::RequestHead;
use crate::exchange::body::{Body, Progress, RequestBody, Source};
use crate::exchange::watch::{Phase, Watch, Way};
use crate::route::{Forward, Route, path, rewrite};
use crate::telemetry::metrics::{BackendMetrics, RetryCause};
use crate::transport::connect::{self, Dialling, NoConnection};
use crate::transport::{Connection, Failed};
use crate::upstream::Upstream;

use super::expect;
use super::grpc::{Call, Head};
use super::hedge::{self, Raced};
use super::place::Place;
use super::retry::{self, Attempts, Held};
use super::running::{Running, SWITCHING, Upload};
use super::upgrade::Tunnel;
use super::{Handled, Proxy, ProxyError, headers, outcome};

/// A request that is to be forwarded.
pub(super) struct Asked<'a> {
    pub(super) route: &'a Route,
    pub(super) forward: &'a Forward,
    pub(super) head: &'a mut RequestHead,
    /// The protocol that the client asks to switch to.
    pub(super) upgrade: Option<HeaderValue>,
}

/// Has a backend of the route's upstream answer.
pub(super) async fn forward(
    proxy: &Rc<Proxy>,
    running: &Rc<Running>,
    Asked { route, forward, head: request, mut upgrade }: Asked<'_>,
    upload: Option<Rc<dyn Source>>,
    handled: &mut Handled,
) -> Result<(), ProxyError> {
    let has_body = upload.is_some();
    if let Some(body) = &upload
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
        upgrade = None;
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
        Some(source) if forward.expect == Expect::Pass => Some(expect::pass(running, forward, request, source)),
        upload => upload,
    };
    let mut body = match upload {
        Some(source) => RequestBody::streamed(source, Rc::clone(running) as Rc<dyn Progress>),
        None => RequestBody::empty(),
    };
    let upstream = &*forward.upstream;
    let retries = &*forward.retries;
    // What may be sent again after a backend has perhaps seen it.
    let repeatable = upgrade.is_none() && retry::is_repeatable(request);
    // A call that a backend refuses by its status may be sent again too, where the file says so.
    let refusable = running.call().is_some() && !retries.grpc_statuses.is_empty();
    if has_body && (repeatable || refusable) && keeps(retries, &body) {
        body.keep(retries.body_buffer);
    }
    let mut attempts = Attempts::new((proxy, running), upstream, retries, repeatable);
    let mut place = match attempts.first()? {
        Some(place) => place,
        None => attempts.in_line().await?,
    };
    // Middleware wants to see all of the response too, and HTTP/2 has no lines.
    let lets_pass = route.chain.is_empty() && !running.http2();
    let mut fresh = false;
    // Connections that may turn out to be of no use before it is the backend's fault.
    let mut spare = 4_u8;
    // When the attempt began: for the first one when the head was read, which is a moment before and saves a look at the clock.
    let mut begun = running.exchange.started;
    loop {
        // Before a connection is taken for it: one that is not used would have to be closed.
        if let Some(call) = running.call() {
            call.tell(request.in_map_mut()).map_err(|error| attempts.failed(error))?;
        }
        let idle = if fresh {
            None
        } else {
            proxy.transport.checkout(
                place.backend(),
                upstream.manner(upgrade.is_some()),
                &running.exchange.client.seats,
            )
        };
        let connected = match idle {
            Some(connection) => Ok(connection),
            None => {
                let dialled = dial(proxy, running, (upstream, upgrade.is_some()), &place).await;
                // Of what it takes to answer, connecting is no part.
                begun = Instant::now();
                dialled
            }
        };
        let mut connection = match connected {
            Ok(connection) => connection,
            Err(error) => {
                // That the time of the whole exchange is over says nothing of the backend: a client may have given it none. Nor does what
                // this process has not.
                if !matches!(error, ProxyError::ExchangeTimeout | ProxyError::Exhausted { .. }) {
                    place.failed(proxy, upstream);
                }
                outcome::failed(upstream, place.lease(), proxy.worker, &error, begun);
                // Nothing was sent: any request may try elsewhere. It may have to wait for that, and not with a place that
                // others wait for.
                drop(place);
                if let ProxyError::Exhausted { error: cause, .. } = &error
                    && cause.kind() != std::io::ErrorKind::AddrNotAvailable
                {
                    // It has waited for that already, and there is none of it for another backend either.
                    return Err(attempts.failed(error));
                }
                place = again(&mut attempts, RetryCause::ConnectFailure, request, error).await?;
                begun = Instant::now();
                fresh = false;
                continue;
            }
        };
        let head = running.head_limit(&forward.timeouts);
        let mut limit = attempts.limit(head);
        running.await_head(limit.unwrap_or(head));
        body.rewind();
        if let Some(call) = running.call() {
            call.tell(request.in_map_mut()).map_err(|error| attempts.failed(error))?;
        }
        connection.begin(request, &body, lets_pass);
        let mut ended = match attempts.hedge_delay() {
            None => in_time(&running.exchange.watch, response(&connection, &mut body, running)).await,
            Some(delay) => {
                let first = (&connection, &mut body);
                let raced = hedge::race(proxy, &mut attempts, (&mut *request, lets_pass), first, delay);
                match Box::pin(raced).await {
                    Raced::First(ended) => {
                        running.serve(place.backend());
                        ended
                    }
                    Raced::Second(second) => {
                        upstream.state.metrics.of(proxy.worker).hedges_won.add(1);
                        let status = second.status;
                        (place, connection, body) = (second.place, second.connection, second.body);
                        begun = second.begun;
                        Some(Ok(status))
                    }
                }
            }
        };
        if ended.is_none()
            && let Some(limit) = limit.take()
            && running.upload() == Upload::Over
            && !running.exchange.watch.is_capped()
        {
            // Given up only for another attempt: otherwise it has all the time that the route allows.
            let next = match attempts.may_repeat(&body) {
                true => Box::pin(attempts.next(RetryCause::Timeout, None, Held::Attempt)).await,
                false => None,
            };
            if let Some(next) = next {
                place.backend().metrics.of(proxy.worker).timeouts.add(1);
                place.failed(proxy, upstream);
                outcome::slow(upstream, place.lease(), proxy.worker, begun);
                attempts.number(request);
                place = next;
                begun = Instant::now();
                fresh = false;
                continue;
            }
            running.await_head(head.saturating_sub(limit));
            ended = in_time(&running.exchange.watch, response(&connection, &mut body, running)).await;
        }
        let failed = match ended {
            None => {
                let error = late(running, &place);
                let lost = matches!(error, ProxyError::ResponseTimeout { .. });
                if lost {
                    place.failed(proxy, upstream);
                }
                outcome::late(upstream, place.lease(), running, &error, begun);
                // That is the time of an attempt. What bounds all of them together is the exchange's.
                if !lost || running.upload() != Upload::Over || !attempts.may_repeat(&body) {
                    return Err(attempts.failed(error));
                }
                drop((connection, place));
                place = again(&mut attempts, RetryCause::Timeout, request, error).await?;
                begun = Instant::now();
                fresh = false;
                continue;
            }
            Some(Ok(status)) => {
                let said = running.head(status, &connection);
                if attempts.is_unwanted(status, said)
                    && attempts.may_repeat_after(said, &body)
                    && !(said != Head::Http && Call::pushes_back(&connection))
                {
                    let asked = connection.field("retry-after");
                    if let Some(next) = Box::pin(attempts.next(RetryCause::Status, asked, Held::Attempt)).await {
                        place.backend().metrics.of(proxy.worker).responses[class(status)].add(1);
                        let seen = said.seen(status);
                        place.answered(proxy, upstream, seen);
                        outcome::answered(upstream, place.lease(), proxy.worker, seen, running.sent_since(begun));
                        connection.discard();
                        attempts.number(request);
                        place = next;
                        begun = Instant::now();
                        fresh = false;
                        continue;
                    }
                }
                // A small answer is held back until it is whole: of one that breaks off the client has seen nothing then.
                if retries.max > 0
                    && retries.on.reset
                    && connection.gathers(retries.response_buffer)
                    && attempts.may_repeat(&body)
                    && let Err(error) = Box::pin(gathered(&connection)).await
                {
                    place.backend().metrics.of(proxy.worker).broken.add(1);
                    place.failed(proxy, upstream);
                    let error = ProxyError::Broken { backend: place.backend().address.clone(), error };
                    outcome::failed(upstream, place.lease(), proxy.worker, &error, begun);
                    drop((connection, place));
                    place = again(&mut attempts, RetryCause::Reset, request, error).await?;
                    begun = Instant::now();
                    fresh = false;
                    continue;
                }
                let (seen, sent) = (said.seen(status), running.sent_since(begun));
                place.answered(proxy, upstream, seen);
                match running.call() {
                    Some(call) if said == Head::Open => call.awaits(place.backend(), sent.elapsed()),
                    _ => outcome::answered(upstream, place.lease(), proxy.worker, seen, sent),
                }
                attempts.answered(place.backend(), status, said);
                running.answered(said);
                return answer(running, forward, upgrade, place, connection, body, (request, handled));
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
        let may_repeat = failed.unsent || (attempts.may_repeat(&body) && !answered);
        // A connection that had been idle may have been closed by the backend just before: that says nothing about the
        // backend, and is no attempt.
        let stale = spare > 0 && connection.was_stale(&failed);
        if !stale {
            metrics.broken.add(1);
            place.failed(proxy, upstream);
        }
        let error = ProxyError::Broken { backend: place.backend().address.clone(), error: failed.error };
        if !stale {
            outcome::failed(upstream, place.lease(), proxy.worker, &error, begun);
        }
        if !may_repeat {
            return Err(attempts.failed(error));
        }
        if stale {
            spare -= 1;
            // Where a backend takes no more streams on a connection, there may be room on another that is there.
            fresh = connection.link().is_some() || !failed.unsent;
        } else {
            drop((connection, place));
            let cause = if failed.unsent { RetryCause::ConnectFailure } else { RetryCause::Reset };
            place = again(&mut attempts, cause, request, error).await?;
            begun = Instant::now();
            fresh = false;
        }
    }
}

/// How long a small answer is held back at most: one that trickles is passed on as it comes.
const HELD_BACK: Duration = Duration::from_millis(100);

/// Waits for the rest of a small answer, for a while.
async fn gathered(connection: &Connection) -> std::io::Result<()> {
    let whole = poll_fn(|cx| connection.poll_gather(cx));
    tokio::time::timeout(HELD_BACK, whole).await.unwrap_or(Ok(()))
}

/// The answer at a connection, as it comes.
fn response<'a>(
    connection: &'a Connection,
    body: &'a mut RequestBody,
    running: &'a Running,
) -> impl Future<Output = Result<StatusCode, Failed>> + use<'a> {
    poll_fn(move |cx| connection.poll_response(cx, body, running))
}

/// Whether a body may be kept to be sent again, going by what is known of its length.
fn keeps(retries: &RetryConfig, body: &RequestBody) -> bool {
    let length = body.size_hint().exact().unwrap_or(0);
    (retries.max > 0 || retries.hedge.is_some()) && retries.body_buffer > 0 && length <= retries.body_buffer as u64
}

/// Where a request goes after an attempt that failed, or else what it comes to.
#[cold]
fn again<'a>(
    attempts: &'a mut Attempts<'_>,
    cause: RetryCause,
    request: &'a mut RequestHead,
    error: ProxyError,
) -> impl Future<Output = Result<Place, ProxyError>> {
    Box::pin(async move {
        match attempts.next(cause, None, Held::Nothing).await {
            Some(next) => {
                attempts.number(request);
                Ok(next)
            }
            None => Err(attempts.failed(error)),
        }
    })
}

fn upstream_host(forward: &Forward) -> HeaderValue {
    HeaderValue::from_str(forward.upstream.name().as_str()).unwrap_or(HeaderValue::from_static("upstream"))
}

/// Makes a new connection.
async fn dial(
    proxy: &Rc<Proxy>,
    running: &Running,
    (upstream, switches): (&Upstream, bool),
    place: &Place,
) -> Result<Connection, ProxyError> {
    let watch = &running.exchange.watch;
    watch.enter(Phase::Connect, upstream.config.connect_timeout);
    let backend = place.backend();
    let metrics = backend.metrics.of(proxy.worker);
    let began = running.now();
    let dialling = Dialling::new(&running.exchange.client.seats);
    let dialled = connect::connect(&proxy.transport, backend, upstream.manner(switches), &dialling);
    match in_time(watch, dialled).await {
        Some(Ok(connection)) => {
            metrics.connects.add(1);
            handshakes(metrics, &connection);
            running.connected(began);
            Ok(connection)
        }
        Some(Err(NoConnection::Ours(error))) => Err(ProxyError::Exhausted { backend: backend.address.clone(), error }),
        Some(Err(error)) => {
            metrics.connect_failures.add(1);
            let backend = backend.address.clone();
            Err(match error {
                NoConnection::Tcp(error) | NoConnection::Ours(error) => ProxyError::Connect { backend, error },
                NoConnection::Tls(error) => ProxyError::Handshake { backend, error },
            })
        }
        None if dialling.is_short() => Err(match watch.is_capped() {
            true => ProxyError::ExchangeTimeout,
            false => ProxyError::Exhausted { backend: backend.address.clone(), error: descriptors::no_room() },
        }),
        None => {
            metrics.connect_failures.add(1);
            Err(match watch.is_capped() {
                true => ProxyError::ExchangeTimeout,
                false => ProxyError::ConnectTimeout { backend: backend.address.clone() },
            })
        }
    }
}

/// Counts the handshake of a new connection, where there was one.
pub(super) fn handshakes(metrics: &BackendMetrics, connection: &Connection) {
    if let Some(resumed) = connection.resumed() {
        let counter = if resumed { &metrics.handshakes_resumed } else { &metrics.handshakes_full };
        counter.add(1);
    }
}

/// Who was too slow.
fn late(running: &Running, place: &Place) -> ProxyError {
    let backend = place.backend();
    if running.exchange.watch.is_capped() {
        return ProxyError::ExchangeTimeout;
    }
    if running.upload() == Upload::Waiting {
        if running.exchange.watch.is_slow() {
            running.slow(Way::Up);
        }
        return ProxyError::ClientTooSlow;
    }
    backend.metrics.of(running.worker()).timeouts.add(1);
    ProxyError::ResponseTimeout { backend: backend.address.clone() }
}

/// Where responses of that status are counted.
fn class(status: StatusCode) -> usize {
    usize::from(status.as_u16() / 100 - 1).min(4)
}

/// Makes a backend's response the client's. What is left of the request's `body` goes on beside it.
fn answer(
    running: &Rc<Running>,
    forward: &Forward,
    upgrade: Option<HeaderValue>,
    place: Place,
    connection: Connection,
    body: RequestBody,
    (request, handled): (&mut RequestHead, &mut Handled),
) -> Result<(), ProxyError> {
    let lease = place.into_lease();
    let head = &mut handled.head;
    // The request is sent and not sent again: there is room for its answer.
    std::mem::swap(&mut head.headers, request.in_map_mut());
    handled.pass_through = match connection.response(head) {
        Ok(pass_through) => pass_through,
        Err(error) => return Err(ProxyError::Broken { backend: lease.backend().address.clone(), error }),
    };
    let whole = running.upload() == Upload::Over;
    let closes = connection.uploads() && early(running, &connection, body);
    let status = head.status;
    lease.backend().metrics.of(running.worker()).responses[class(status)].add(1);
    let client = &running.exchange.client;
    handled.dated =
        headers::to_client((&mut head.headers, &mut handled.pass_through), client, status, connection.tells());
    if closes {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if status != SWITCHING {
        handled.body = match connection.whole() {
            Some(bytes) => {
                if running.call().is_none() || !connection.uploads() {
                    connection.release();
                }
                Body::whole(bytes, lease)
            }
            None => {
                let source = connection.source();
                running.lend(connection);
                Body::leased(source, lease)
            }
        };
        return Ok(());
    }
    // What follows a request belongs to another protocol only when all of the request is there.
    let (Some(protocol), Some(link), true) = (upgrade, connection.link(), whole && !connection.uploads()) else {
        return Err(ProxyError::UnaskedUpgrade { backend: lease.backend().address.clone() });
    };
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    head.headers.entry(header::UPGRADE).or_insert(protocol);
    head.extensions.clear();
    let tunnel = Tunnel::new(Rc::clone(link), lease, Rc::clone(running), forward.timeouts.tunnel_idle);
    handled.tunnel = Some(Box::new(tunnel));
    handled.dated = true;
    Ok(())
}

/// The answer has come before all of the request was sent. What is left of that goes on beside it, as long as the backend takes it. Whether
/// the client's connection is to end too: the backend says of its own that it does, so that the rest goes nowhere.
#[cold]
fn early(running: &Running, connection: &Connection, body: RequestBody) -> bool {
    if running.exchange.side.holds() {
        // Nobody has asked for the body, and now nobody wants it. Its client may leave it out or not, and says nowhere which.
        connection.forgo();
        return true;
    }
    connection.upload(body, running.upload_idle());
    connection.closes() && running.upload() != Upload::Over
}

/// Waits for `future`, but not beyond the watch's deadline. Costs a look at a flag.
pub(super) async fn in_time<F: Future>(watch: &Watch, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if watch.expired() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}
