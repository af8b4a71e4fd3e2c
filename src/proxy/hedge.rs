//! A second attempt at another backend while the first is slow: the first answer wins, and the other attempt is given up.
//!
//! Both are polled in the exchange's own task. The loser's connection is closed and its lease returned by dropping them.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::backend::outlier::Outcome;
use crate::exchange::RequestHead;
use crate::exchange::body::RequestBody;
use crate::transport::connect::{self, Dialling, NoConnection};
use crate::transport::{Connection, Failed, Informed};

use super::Proxy;
use super::attempt::{handshakes, in_time};
use super::place::Place;
use super::retry::Attempts;

/// What came of it.
pub(super) enum Raced {
    /// What came of the first attempt; `None` when its time is over.
    First(Option<Result<StatusCode, Failed>>),
    /// The second was answered first.
    Second(Box<Second>),
}

/// A second attempt that was answered.
pub(super) struct Second {
    pub(super) place: Place,
    pub(super) connection: Connection,
    pub(super) body: RequestBody,
    pub(super) status: StatusCode,
    /// When it was sent.
    pub(super) begun: Instant,
}

/// Goes on with the attempt at `connection`, and makes a second one if there is no answer after `delay`.
pub(super) async fn race(
    proxy: &Rc<Proxy>,
    attempts: &mut Attempts<'_>,
    (request, lets_pass): (&mut RequestHead, bool),
    (connection, body): (&Connection, &mut RequestBody),
    delay: Duration,
) -> Raced {
    let running = attempts.running;
    let watch = &running.exchange.watch;
    let mut wait = pin!(tokio::time::sleep(delay));
    let early = poll_fn(|cx| {
        if let Poll::Ready(outcome) = connection.poll_response(cx, body, running) {
            return Poll::Ready(Some(Some(outcome)));
        }
        match watch.expired() {
            true => Poll::Ready(Some(None)),
            false => wait.as_mut().poll(cx).map(|()| None),
        }
    });
    if let Some(outcome) = early.await {
        return Raced::First(outcome);
    }
    let second = body.copy().and_then(|copy| Some((attempts.hedge()?, copy)));
    let Some((place, copy)) = second else {
        return Raced::First(in_time(watch, poll_fn(|cx| connection.poll_response(cx, body, running))).await);
    };
    attempts.number(request);
    if let Some(call) = running.call() {
        // Where no time is left, the watch says so before an answer comes.
        let _ = call.tell(request.in_map_mut());
    }
    let attempts = &*attempts;
    let mut second = pin!(ask(proxy, attempts, place, copy, (request, lets_pass)));
    let mut second_over = false;
    let mut first = None;
    poll_fn(|cx| {
        if first.is_none()
            && let Poll::Ready(outcome) = connection.poll_response(cx, body, running)
        {
            let good = outcome.as_ref().is_ok_and(|status| !attempts.is_unwanted_at(connection, *status));
            if good || second_over {
                return Poll::Ready(Raced::First(Some(outcome)));
            }
            // The second may still save it.
            first = Some(outcome);
        }
        if !second_over && let Poll::Ready(answer) = second.as_mut().poll(cx) {
            if let Some(answer) = answer.filter(|it| !attempts.is_unwanted_at(&it.connection, it.status)) {
                return Poll::Ready(Raced::Second(Box::new(answer)));
            }
            second_over = true;
            if let Some(outcome) = first.take() {
                return Poll::Ready(Raced::First(Some(outcome)));
            }
        }
        if watch.expired() { Poll::Ready(Raced::First(first.take())) } else { Poll::Pending }
    })
    .await
}

/// Makes the second attempt; `None` where it failed.
async fn ask(
    proxy: &Rc<Proxy>,
    attempts: &Attempts<'_>,
    mut place: Place,
    mut body: RequestBody,
    (request, lets_pass): (&RequestHead, bool),
) -> Option<Second> {
    let config = &attempts.upstream.config;
    let backend = Arc::clone(place.backend());
    let metrics = backend.metrics.of(proxy.worker);
    let seats = &attempts.running.exchange.client.seats;
    let connection = match proxy.transport.checkout(place.backend(), attempts.upstream.manner(false), seats) {
        Some(connection) => connection,
        None => {
            let (began, dialling) = (Instant::now(), Dialling::new(seats));
            // The watch has the deadline of the first attempt.
            let dialled =
                connect::connect(&proxy.transport, place.backend(), attempts.upstream.manner(false), &dialling);
            match tokio::time::timeout(config.connect_timeout, dialled).await {
                Ok(Ok(connection)) => {
                    metrics.connects.add(1);
                    handshakes(metrics, &connection);
                    connection
                }
                // It is not the backend that kept it from being made.
                Ok(Err(NoConnection::Ours(_))) => return None,
                Err(_) if dialling.is_short() => return None,
                Ok(Err(_)) | Err(_) => {
                    metrics.connect_failures.add(1);
                    place.failed(proxy, attempts.upstream);
                    attempts.upstream.note(&backend, proxy.worker, Outcome::Connect, began.elapsed());
                    return None;
                }
            }
        }
    };
    connection.begin(request, &body, lets_pass);
    let begun = Instant::now();
    match poll_fn(|cx| connection.poll_response(cx, &mut body, &Silent)).await {
        Ok(status) => Some(Second { place, connection, body, status, begun }),
        Err(failed) => {
            if !connection.was_stale(&failed) {
                metrics.broken.add(1);
                place.failed(proxy, attempts.upstream);
                attempts.upstream.note(&backend, proxy.worker, Outcome::Reset, begun.elapsed());
            }
            None
        }
    }
}

/// The client is told what the first backend says; of two it would get everything twice.
struct Silent;

impl Informed for Silent {
    fn informational(&self, _: &[u8]) {}
    fn go_on(&self) {}
}
