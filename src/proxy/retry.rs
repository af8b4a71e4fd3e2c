//! Whether a request is tried again, where, and when.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};

use crate::backend::BackendState;
use crate::config::RetryConfig;
use crate::exchange::RequestHead;
use crate::exchange::body::RequestBody;
use crate::exchange::deadline::{Phase, Watch};
use crate::middleware::LooksAt;
use crate::route::Forward;
use crate::strategy::Tried;
use crate::telemetry::clock;
use crate::telemetry::metrics::RetryCause;
use crate::transport::{Connection, Manner, NoResponse};
use crate::upstream::backoff::{BackoffSettings, retry_after};
use crate::upstream::hedge_delay::HedgingSettings;
use crate::upstream::retry_budget::BudgetSettings;
use crate::upstream::{Reach, Upstream};

use super::admission::{self, AttemptSlot};
use super::attempt::{Next, in_time};
use super::forward::Asked;
use super::grpc::GrpcResponseHead;
use super::running::RunningExchange;
use super::{Proxy, ProxyError};

/// Tells a backend the number of the attempt, from the second on.
const ATTEMPT: HeaderName = HeaderName::from_static("x-isobar-attempt");
/// Says that a request may be repeated whose method is not idempotent.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A wait is seen to its end before a deadline of this much more is.
const SLACK: Duration = Duration::from_secs(1);

/// The attempts of one request.
pub(super) struct Attempts<'a> {
    pub(super) proxy: &'a Proxy,
    pub(super) running: &'a RunningExchange,
    pub(super) forward: &'a Forward,
    pub(super) upstream: &'a Upstream,
    pub(super) config: &'a RetryConfig,
    /// Whether pass-through headers of a response may be left as lines.
    pub(super) passes_through: bool,
    /// Whether the client asks to switch to another protocol.
    switches: bool,
    tried: Tried,
    /// When the first began: behind the queue and what middleware waited for.
    begun: Instant,
    /// Further attempts; hedges are not counted.
    further: u8,
    /// Whether the attempt under way is at a backend that was not ready.
    last_resort: bool,
    /// Whether it may be sent again after a backend has perhaps seen it, as long as its body is kept.
    repeatable: bool,
    /// Connections that may turn out to be of no use before it is the backend's fault.
    spare: u8,
}

/// What whoever asks for a further attempt still has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RetryStake {
    /// An answer, or time for one, and with it a place for which others may wait: that is given up only for a place at hand.
    Attempt,
    /// Nothing that could be lost.
    Nothing,
}

/// Whether a request may be sent twice, going by its head.
pub(super) fn is_repeatable(head: &RequestHead) -> bool {
    head.method.is_idempotent() || head.contains(&IDEMPOTENCY_KEY)
}

impl<'a> Attempts<'a> {
    /// None yet. In place: what is tried is a list that is not worth a move.
    #[inline]
    pub(super) fn new(proxy: &'a Proxy, running: &'a RunningExchange, asked: &Asked<'a>, repeatable: bool) -> Self {
        let forward = asked.forward;
        let (upstream, config) = (&*forward.upstream, &*forward.retries);
        if config.max > 0 {
            // Set when the request came.
            let now_ms = running.exchange.watch.clock().shared_ms();
            upstream.state.retry_budget.deposit(proxy.worker, &BudgetSettings::RETRIES, now_ms);
        }
        Self {
            proxy,
            running,
            forward,
            upstream,
            config,
            // Middleware may want to see all of the response too, and HTTP/2 has no lines.
            passes_through: running.looks_at_response() != LooksAt::All && !running.http2(),
            switches: asked.upgrade.is_some(),
            tried: Tried::default(),
            begun: running.exchange.started,
            further: 0,
            last_resort: false,
            repeatable,
            spare: 4,
        }
    }

    /// The first attempt begins.
    pub(super) fn begin(&mut self, begun: Instant) {
        self.begun = begun;
    }

    /// Where the first attempt goes; `None` where all are full: then [`Attempts::in_line`].
    ///
    /// # Errors
    /// When there is no place for it.
    #[inline]
    pub(super) fn first(&mut self) -> Result<Option<AttemptSlot>, ProxyError> {
        match admission::take(self.proxy, self.started(), self.upstream, &self.tried) {
            Ok(Some(place)) => {
                self.note(&place);
                Ok(Some(place))
            }
            Ok(None) => Ok(None),
            Err(ProxyError::NoBackend) => self.first_of_others(),
            Err(error) => Err(error),
        }
    }

    /// The same where no backend is ready.
    #[cold]
    fn first_of_others(&mut self) -> Result<Option<AttemptSlot>, ProxyError> {
        let place = admission::take_further(self.proxy, self.started(), self.upstream, (&self.tried, Reach::Anybody));
        // Its source is being asked for the first time, or its names are looked up: that takes a moment, and an answer without that would be a
        // 503 at each start, and for each service that has just registered.
        if matches!(place, Err(ProxyError::NoBackend)) && self.upstream.state.sources.awaits_backends() {
            return Ok(None);
        }
        if let Ok(Some(place)) = &place {
            self.note(place);
            self.note_resort(place);
        }
        place.map_err(|error| self.unplaced(error))
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// When there is none in time.
    #[cold]
    pub(super) async fn in_line(&mut self) -> Result<AttemptSlot, ProxyError> {
        match admission::wait(self.proxy, self.waiting(), self.upstream, (&self.tried, Reach::Anybody)).await {
            Ok(place) => {
                self.note(&place);
                self.note_resort(&place);
                Ok(place)
            }
            // What it has waited for was no backend that is full.
            Err(ProxyError::QueueTimeout) if self.upstream.roster().ready().is_empty() => {
                Err(self.unplaced(ProxyError::NoBackend))
            }
            Err(error) => Err(self.unplaced(error)),
        }
    }

    /// When the exchange began: a moment before its first attempt, which saves a look at the clock.
    fn started(&self) -> Instant {
        self.running.exchange.started
    }

    /// What a wait for a place goes by: when the exchange began, and its deadlines.
    fn waiting(&self) -> (Instant, &'a Watch) {
        (self.started(), &self.running.exchange.watch)
    }

    #[cold]
    fn note_resort(&mut self, place: &AttemptSlot) {
        self.last_resort = !self.upstream.is_ready(place.backend().id);
    }

    #[cold]
    fn unplaced(&self, error: ProxyError) -> ProxyError {
        if let ProxyError::NoBackend = error {
            self.upstream.state.metrics.of(self.proxy.worker).no_backend.add(1);
        }
        error
    }

    fn note(&mut self, place: &AttemptSlot) {
        self.tried.push(place.backend().id);
        self.running.attempt(place.backend());
    }

    /// The idle connection to a backend that was used last.
    pub(super) fn idle(&self, place: &AttemptSlot) -> Option<Connection> {
        let seats = &self.running.exchange.client.seats;
        self.proxy.transport.checkout(place.backend(), self.manner(), seats)
    }

    /// How connections to its backends are made.
    pub(super) fn manner(&self) -> Manner<'a> {
        self.upstream.manner(self.switches)
    }

    /// Tells the backend how much time is left, if it is a call of gRPC.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn tell_time_left(&self, head: &mut RequestHead) -> Result<(), Next> {
        match self.running.call() {
            None => Ok(()),
            Some(call) => call.tell(head.in_map_mut()).map_err(|error| Next::Nothing(self.failed(error))),
        }
    }

    /// Whether an idle connection that failed had been closed by the backend just before. So many are taken for that.
    pub(super) fn take_for_stale(&mut self, connection: &Connection, failed: &NoResponse) -> bool {
        let stale = self.spare > 0 && connection.was_stale(failed);
        self.spare -= u8::from(stale);
        stale
    }

    /// Whether the request may be sent again after a backend has perhaps seen it.
    pub(super) fn may_repeat(&self, body: &RequestBody) -> bool {
        self.repeatable && body.is_kept()
    }

    /// How long an attempt has before another is tried; `None` is as long as the route allows.
    pub(super) fn limit(&self, head: Duration) -> Option<Duration> {
        let limit = self.config.attempt_timeout.filter(|limit| *limit < head)?;
        (self.repeatable && self.config.on.timeout && self.further < self.config.max).then_some(limit)
    }

    /// The same after a response with that head. A status of gRPC that stands there says that nothing was sent but the status, and
    /// whether a call may be made again after it is for the file to say, not for the method, which is the same for all calls.
    pub(super) fn may_repeat_after(&self, head: GrpcResponseHead, body: &RequestBody) -> bool {
        (self.repeatable || matches!(head, GrpcResponseHead::Status(_))) && body.is_kept()
    }

    /// Whether a response of that status, or one of gRPC in its head, is one to try again after.
    #[inline]
    pub(super) fn is_unwanted(&self, status: StatusCode, head: GrpcResponseHead) -> bool {
        match head {
            GrpcResponseHead::Status(grpc) => self.config.max > 0 && self.config.grpc_statuses.contains(&grpc),
            _ => status.as_u16() >= 400 && self.config.max > 0 && self.config.on.statuses.contains(&status),
        }
    }

    /// Whether the response at a connection is one to try again after.
    pub(super) fn is_unwanted_at(&self, connection: &Connection, status: StatusCode) -> bool {
        self.is_unwanted(status, self.running.head(status, connection))
    }

    /// Where the next attempt goes, if there may be one: after `cause`, and after a wait. It is charged to the budget. The
    /// caller has made sure that the request may be sent again. Where an attempt is held it does not stand in line for a
    /// place, nor go to a backend that is perhaps gone; where nothing is held, any is tried before the request fails.
    #[cold]
    pub(super) async fn next(
        &mut self,
        cause: RetryCause,
        asked: Option<Bytes>,
        held: RetryStake,
    ) -> Option<AttemptSlot> {
        let Self { running, upstream, config, .. } = *self;
        let on = match cause {
            RetryCause::ConnectFailure => config.on.connect_failure,
            RetryCause::Reset => config.on.reset,
            RetryCause::Timeout => config.on.timeout,
            RetryCause::Status => true,
        };
        let watch = &running.exchange.watch;
        let left = self.further < config.max && self.tried.len() < Tried::CAPACITY;
        let reach = match held {
            RetryStake::Attempt => Reach::Answering,
            RetryStake::Nothing => Reach::Anybody,
        };
        if !on || !left || watch.is_capped() || !upstream.has_untried(&self.tried, reach) {
            return None;
        }
        let wait = self.wait(cause, asked)?;
        let metrics = upstream.state.metrics.of(self.proxy.worker);
        let settings = BudgetSettings::retries(&upstream.config.retry_budget);
        // What never got to a backend is no load there that would have to be kept from growing.
        if cause != RetryCause::ConnectFailure
            && !upstream.state.retry_budget.withdraw(&settings, clock::now_ms(Instant::now()))
        {
            metrics.retry_budget_spent.add(1);
            return None;
        }
        if !wait.is_zero() {
            // Nothing is awaited meanwhile.
            watch.enter(Phase::Connect, wait + SLACK);
            in_time(watch, tokio::time::sleep(wait)).await;
            if watch.is_capped() {
                return None;
            }
        }
        // Meanwhile the last one may have become unready; what was withdrawn is then lost, which is on the safe side.
        let next = match admission::take_further(self.proxy, self.started(), upstream, (&self.tried, reach)).ok()? {
            Some(next) => next,
            None if held == RetryStake::Nothing => {
                admission::wait(self.proxy, self.waiting(), upstream, (&self.tried, reach)).await.ok()?
            }
            None => return None,
        };
        self.note(&next);
        self.further += 1;
        self.note_resort(&next);
        metrics.retries[cause as usize].add(1);
        Some(next)
    }

    /// How long to wait before the next attempt, which goes to another backend. Where nothing was sent, or the time is over
    /// already, a wait spares no backend.
    fn wait(&self, cause: RetryCause, asked: Option<Bytes>) -> Option<Duration> {
        if matches!(cause, RetryCause::ConnectFailure | RetryCause::Timeout) {
            return Some(Duration::ZERO);
        }
        let asked = asked.and_then(|value| retry_after(&value, SystemTime::now()));
        let bits = self.proxy.dice.borrow_mut().bits();
        BackoffSettings::from(self.config).wait(self.further.into(), asked, bits)
    }

    /// Tells the backend the number of the attempt.
    pub(super) fn number(&self, head: &mut RequestHead) {
        head.insert(ATTEMPT, HeaderValue::from(u16::from(self.running.account().attempts())));
    }

    /// It came to an answer of this backend for the client: counts what the further attempts were good for.
    pub(super) fn answered(&self, backend: &BackendState, status: StatusCode, head: GrpcResponseHead) {
        if self.config.hedge.is_some() && self.further == 0 && self.repeatable {
            let now = Instant::now();
            let took = now.saturating_duration_since(self.begun);
            let times = &self.upstream.state.hedging().latencies;
            times.observe(self.proxy.worker, took, clock::now_ms(now));
        }
        if self.further > 0 {
            let metrics = self.upstream.state.metrics.of(self.proxy.worker);
            let counter = if self.is_unwanted(status, head) { &metrics.retried_in_vain } else { &metrics.retried_well };
            counter.add(1);
        }
        // A gateway may answer in the place of a backend that is gone.
        if self.last_resort && !matches!(head.seen(status).as_u16(), 502..=504) {
            self.upstream.note_served(backend);
        }
    }

    /// It came to no answer.
    #[cold]
    pub(super) fn failed(&self, error: ProxyError) -> ProxyError {
        if self.further > 0 {
            self.upstream.state.metrics.of(self.proxy.worker).retried_in_vain.add(1);
        }
        error
    }

    /// How long to wait for a response before a second attempt is made; `None` is for ever.
    pub(super) fn hedge_delay(&self) -> Option<Duration> {
        let hedge = self.config.hedge.as_ref().filter(|_| self.repeatable && self.tried.len() == 1)?;
        let hedging = self.upstream.state.hedging();
        let now_ms = self.running.exchange.watch.clock().shared_ms();
        hedging.budget.deposit(self.proxy.worker, &BudgetSettings::HEDGING, now_ms);
        hedging.latencies.delay(&HedgingSettings::of(hedge), now_ms)
    }

    /// Where a second attempt beside the first goes, if there may be one.
    pub(super) fn hedge(&mut self) -> Option<AttemptSlot> {
        let hedge = self.config.hedge.as_ref()?;
        let metrics = self.upstream.state.metrics.of(self.proxy.worker);
        if self.running.exchange.watch.is_capped() || !self.upstream.has_untried(&self.tried, Reach::Ready) {
            return None;
        }
        let budget = &self.upstream.state.hedging().budget;
        if !budget.withdraw(&BudgetSettings::hedging(hedge), clock::now_ms(Instant::now())) {
            metrics.hedge_budget_spent.add(1);
            return None;
        }
        let where_to = (&self.tried, Reach::Ready);
        let second = admission::take_further(self.proxy, self.started(), self.upstream, where_to).ok()??;
        self.note(&second);
        metrics.hedges.add(1);
        Some(second)
    }
}
