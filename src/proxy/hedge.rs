//! A second attempt at another backend while the first is slow: the first answer wins, and the other attempt is given up.
//!
//! Both are polled in the exchange's own task. The loser's connection is closed and its lease returned by dropping them.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::exchange::RequestHead;
use crate::exchange::body::RequestBody;
use crate::transport::connect::{self, Dialling};
use crate::transport::{Connection, Informed};

use super::attempt::{Attempt, Heard, connected, in_time, response};
use super::attempt_end::Ending;
use super::retry::Attempts;

/// What came of it.
enum Raced {
    /// What came of the first attempt.
    First(Heard),
    /// The second was answered first.
    Second(Box<Second>),
}

/// A second attempt that was answered.
struct Second {
    connection: Connection,
    attempt: Attempt,
    body: RequestBody,
    status: StatusCode,
}

/// Goes on with the `first` attempt, and makes a second one if there is no answer after `delay`. Where the second is answered first, it
/// takes the first one's place.
pub(super) async fn race(
    (connection, first): (&mut Connection, &mut Attempt),
    attempts: &mut Attempts<'_>,
    request: &mut RequestHead,
    body: &mut RequestBody,
    delay: Duration,
) -> Heard {
    match both(connection, attempts, request, body, delay).await {
        Raced::First(heard) => {
            attempts.running.serve(first.place.backend());
            heard
        }
        Raced::Second(second) => {
            attempts.upstream.state.metrics.of(attempts.proxy.worker).hedges_won.add(1);
            let Second { connection: answered, attempt, body: sent, status } = *second;
            (*connection, *first, *body) = (answered, attempt, sent);
            Some(Ok(status))
        }
    }
}

async fn both(
    connection: &Connection,
    attempts: &mut Attempts<'_>,
    request: &mut RequestHead,
    body: &mut RequestBody,
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
    let second = body.copy().and_then(|copy| Some((Attempt::now(attempts.hedge()?), copy)));
    let Some((attempt, copy)) = second else {
        return Raced::First(in_time(watch, response(connection, body, running)).await);
    };
    attempts.number(request);
    // Where no time is left, the watch says so before an answer comes.
    let _ = attempts.tell_time_left(request);
    let attempts = &*attempts;
    let mut second = pin!(ask(attempts, attempt, copy, request));
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
    attempts: &Attempts<'_>,
    mut attempt: Attempt,
    mut body: RequestBody,
    request: &RequestHead,
) -> Option<Second> {
    let connection = match attempts.idle(&attempt.place) {
        Some(connection) => connection,
        None => {
            let dialling = Dialling::new(&attempts.running.exchange.client.seats);
            let transport = &attempts.proxy.transport;
            let dialled = connect::connect(transport, attempt.place.backend(), attempts.manner(), &dialling);
            // The watch has the deadline of the first attempt.
            let dialled = tokio::time::timeout(attempts.upstream.config.connect_timeout, dialled).await.ok();
            match connected(attempts, &attempt.place, dialled, &dialling, false) {
                Ok(connection) => connection,
                Err(error) => {
                    Ending::NoConnection(&error).report(attempts, &mut attempt.place, attempt.begun);
                    return None;
                }
            }
        }
    };
    connection.begin(request, &body, attempts.passes_through);
    attempt.begun = Instant::now();
    match poll_fn(|cx| connection.poll_response(cx, &mut body, &Silent)).await {
        Ok(status) => Some(Second { connection, attempt, body, status }),
        Err(failed) => {
            let ending = if connection.was_stale(&failed) { Ending::Stale } else { Ending::Broken };
            ending.report(attempts, &mut attempt.place, attempt.begun);
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
