//! How an attempt gets its place at a backend: past the circuit breaker, and where all are full, through the queue.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::backend::queue::{TimedOut, TurnOutcome};
use crate::backend::{BackendState, Lease};
use crate::exchange::deadline::{Phase, Watch};
use crate::strategy::Tried;
use crate::telemetry::clock::now_ms;
use crate::telemetry::events::EventKind;
use crate::upstream::circuit_breaker::{BreakerChange, BreakerOutcome, BreakerPermit, OpenedBy};
use crate::upstream::{NoLease, Reach, Upstream};

use super::{Proxy, ProxyError};

/// The right to make an attempt at a backend, and what its outcome is to be told to.
#[derive(Debug)]
pub(super) struct AttemptSlot {
    lease: Lease,
    /// `None` where nothing depends on how it ends.
    call: Option<BreakerCall>,
}

#[derive(Debug)]
struct BreakerCall {
    began: Instant,
    /// Of the circuit breaker, where there is one.
    permit: Option<BreakerPermit>,
}

impl AttemptSlot {
    /// Where the attempt goes.
    pub(super) fn backend(&self) -> &Arc<BackendState> {
        self.lease.backend()
    }

    /// The head of a response has come.
    pub(super) fn answered(&mut self, proxy: &Proxy, upstream: &Upstream, status: StatusCode) {
        if let Some(call) = self.call.take() {
            let gateway = [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
            call.ended(proxy, upstream, gateway.contains(&status));
        }
    }

    /// No response has come, and that is not the client's doing.
    pub(super) fn failed(&mut self, proxy: &Proxy, upstream: &Upstream) {
        if let Some(call) = self.call.take() {
            call.ended(proxy, upstream, true);
        }
    }

    /// What is held until the end of the response.
    pub(super) fn into_lease(self) -> Lease {
        self.lease
    }
}

impl BreakerCall {
    /// Nothing is reported of one that is dropped instead: it is unknown how it would have ended.
    #[cold]
    fn ended(self, proxy: &Proxy, upstream: &Upstream, failed: bool) {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.began);
        let now_ms = now_ms(now);
        let state = &*upstream.state;
        if let (Some(permit), Some(settings)) = (self.permit, &upstream.limits.breaker) {
            let bits = proxy.dice.borrow_mut().bits();
            let outcome = BreakerOutcome { failed, took };
            if let Some(change) = state.breaker.record(proxy.worker, permit, outcome, settings, now_ms, bits) {
                tell(proxy, upstream, change);
            }
        }
        if let (Some(settings), Some(adaptive), false) = (&upstream.limits.adaptive, state.adaptive(), failed) {
            let in_flight = state.room.in_flight.in_use();
            let moved = adaptive.observe(proxy.worker, took, in_flight, settings, now_ms);
            if moved.is_some_and(|moved| moved.to > moved.from) {
                state.room.queue.widened();
            }
        }
    }
}

/// Takes a place for the first attempt of what began at `started`, without waiting; `None` where all are full, or others wait already: then [`wait`] for
/// one. What most requests need is so no future of its own.
///
/// # Errors
/// When there is none.
#[inline]
pub(super) fn take(
    proxy: &Proxy,
    started: Instant,
    upstream: &Upstream,
    tried: &Tried,
) -> Result<Option<AttemptSlot>, ProxyError> {
    at_hand(proxy, upstream, || upstream.lease(None, started, tried, &mut proxy.dice.borrow_mut()))
}

/// The same for a further attempt: a place at a backend that was not tried, as far as it may go.
///
/// # Errors
/// When there is none.
#[cold]
pub(super) fn take_further(
    proxy: &Proxy,
    started: Instant,
    upstream: &Upstream,
    where_to: (&Tried, Reach),
) -> Result<Option<AttemptSlot>, ProxyError> {
    at_hand(proxy, upstream, || further(proxy, started, upstream, where_to))
}

#[inline]
fn at_hand(
    proxy: &Proxy,
    upstream: &Upstream,
    lease: impl FnOnce() -> Result<Lease, NoLease>,
) -> Result<Option<AttemptSlot>, ProxyError> {
    let call = admit(proxy, upstream)?;
    // A request that finds others waiting does not pass them.
    if upstream.is_bounded() && !upstream.state.room.queue.is_empty() {
        return Ok(None);
    }
    match lease() {
        Ok(lease) => Ok(Some(AttemptSlot { lease, call })),
        Err(NoLease::NoBackend) => Err(ProxyError::NoBackend),
        Err(NoLease::Full) => Ok(None),
    }
}

/// Waits for a place at a backend that was not tried, within the watch's deadline. In a box: few wait, and the future of all
/// others is smaller for it.
///
/// # Errors
/// When there is none in time, too many wait, or the circuit breaker has opened meanwhile.
#[cold]
pub(super) fn wait<'a>(
    proxy: &'a Proxy,
    (started, watch): (Instant, &'a Watch),
    upstream: &'a Upstream,
    where_to: (&'a Tried, Reach),
) -> Pin<Box<dyn Future<Output = Result<AttemptSlot, ProxyError>> + 'a>> {
    Box::pin(async move {
        let lease = in_line(proxy, (started, watch), upstream, where_to).await?;
        Ok(AttemptSlot { lease, call: admit(proxy, upstream)? })
    })
}

fn further(proxy: &Proxy, started: Instant, upstream: &Upstream, where_to: (&Tried, Reach)) -> Result<Lease, NoLease> {
    upstream.lease_further(None, started, where_to, &mut proxy.dice.borrow_mut())
}

/// Asks the circuit breaker, and begins the account of the attempt where there is to be one.
#[inline]
fn admit(proxy: &Proxy, upstream: &Upstream) -> Result<Option<BreakerCall>, ProxyError> {
    if upstream.limits.breaker.is_none() && upstream.limits.adaptive.is_none() {
        return Ok(None);
    }
    admit_by_breaker(proxy, upstream, Instant::now()).map(Some)
}

#[cold]
fn admit_by_breaker(proxy: &Proxy, upstream: &Upstream, now: Instant) -> Result<BreakerCall, ProxyError> {
    let Some(settings) = &upstream.limits.breaker else { return Ok(BreakerCall { began: now, permit: None }) };
    let (admitted, change) = upstream.state.breaker.admit(settings, now_ms(now));
    if let Some(change) = change {
        tell(proxy, upstream, change);
    }
    match admitted {
        Ok(permit) => Ok(BreakerCall { began: now, permit: Some(permit) }),
        Err(refused) => {
            upstream.state.metrics.of(proxy.worker).breaker_refused.add(1);
            Err(ProxyError::BreakerOpen { retry_after: refused.retry_after })
        }
    }
}

/// Waits in line until there is a backend with room. The client that goes leaves the line, since this is dropped.
async fn in_line(
    proxy: &Proxy,
    (started, watch): (Instant, &Watch),
    upstream: &Upstream,
    where_to: (&Tried, Reach),
) -> Result<Lease, ProxyError> {
    let metrics = upstream.state.metrics.of(proxy.worker);
    let entered = Instant::now();
    let Ok(mut waiter) = upstream.state.room.queue.enter(&upstream.limits.queue, now_ms(entered)) else {
        metrics.queue_full.add(1);
        return Err(ProxyError::QueueFull);
    };
    watch.enter(Phase::Queue, Duration::from_millis(waiter.deadline_ms() - waiter.entered_ms()));
    let waited = poll_fn(|cx| {
        let turn = || match further(proxy, started, upstream, where_to) {
            Ok(lease) => TurnOutcome::Leased(lease),
            // Where this request was already, others may still go.
            Err(_) if !where_to.0.is_empty() && upstream.has_room() => TurnOutcome::NotForMe,
            Err(_) => TurnOutcome::Full,
        };
        match waiter.poll(cx, now_ms(Instant::now()), turn) {
            Poll::Pending if watch.expired() => Poll::Ready(Err(TimedOut)),
            polled => polled,
        }
    })
    .await;
    metrics.queue_waits.observe(entered.elapsed());
    waited.map_err(|TimedOut| {
        if watch.is_capped() {
            return ProxyError::ExchangeTimeout;
        }
        metrics.queue_timeouts.add(1);
        ProxyError::QueueTimeout
    })
}

/// Tells of a change of the circuit breaker. Once per change, of whichever worker made it: the one thing on the way of a
/// request that allocates and takes a lock, every few seconds at most.
#[cold]
fn tell(proxy: &Proxy, upstream: &Upstream, change: BreakerChange) {
    let (to, evidence) = match change {
        BreakerChange::Opened { by, calls, failed, slow, times, open_for } => {
            upstream.state.metrics.of(proxy.worker).breaker_opened.add(1);
            let why = match by {
                OpenedBy::Failures => format!("{failed} of {calls} attempts failed"),
                OpenedBy::SlowCalls => format!("{slow} of {calls} attempts were slow"),
                OpenedBy::Probe => "a probe failed or was slow".into(),
            };
            ("open", format!("{why}; for {} ms, {times} times in a row", open_for.as_millis()))
        }
        BreakerChange::HalfOpened => ("half_open", "its time is over; letting a few attempts through".into()),
        BreakerChange::Closed => ("closed", "all probes were good".into()),
    };
    proxy.process.events.publish(EventKind::Breaker { upstream: upstream.name().clone(), to, evidence });
}
