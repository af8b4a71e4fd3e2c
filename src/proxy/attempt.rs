//! One attempt at a backend: connect, send, await the head of the response.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::config::RetryConfig;
use crate::descriptors;
use crate::exchange::RequestHead;
use crate::exchange::body::RequestBody;
use crate::exchange::watch::{Phase, Watch};
use crate::telemetry::metrics::RetryCause;
use crate::transport::connect::{self, Dialling, NoConnection};
use crate::transport::{Connection, Failed};

use super::ProxyError;
use super::ending::Ending;
use super::grpc::{Call, Head};
use super::hedge;
use super::place::Place;
use super::retry::{Attempts, Held};
use super::running::{Running, Upload};

/// An attempt that has no connection yet.
pub(super) struct Start {
    pub(super) place: Place,
    pub(super) begun: Instant,
    /// Whether no idle connection will do.
    pub(super) fresh: bool,
}

/// An attempt under way.
pub(super) struct Attempt {
    pub(super) connection: Connection,
    pub(super) place: Place,
    /// When it began, as the time of a backend to answer counts.
    pub(super) begun: Instant,
}

/// Why an attempt came to no response for the client.
pub(super) enum Failure {
    /// Its idle connection was of no use, and it is made once more.
    Stale {
        /// Whether another idle connection would be of no use either.
        fresh: bool,
    },
    /// It is over.
    Over(Next),
}

/// What follows an attempt that failed.
pub(super) enum Next {
    /// An attempt at this place, which was taken before the one that failed was given up.
    At(Place),
    /// Another attempt, if there is a place for it. Otherwise it is this error.
    Retry(RetryCause, ProxyError),
    /// No attempt: it is this error.
    Nothing(ProxyError),
}

impl From<Next> for Failure {
    fn from(next: Next) -> Self {
        Self::Over(next)
    }
}

/// What came of waiting for the head of a response; `None` when the time for it is over.
pub(super) type Heard = Option<Result<StatusCode, Failed>>;

impl Start {
    /// At a place that was just taken.
    pub(super) fn now(place: Place) -> Self {
        Self { place, begun: Instant::now(), fresh: false }
    }

    /// By that connection.
    pub(super) fn with(self, connection: Connection) -> Attempt {
        Attempt { connection, place: self.place, begun: self.begun }
    }

    /// Takes the idle connection used last, or makes a new one.
    ///
    /// # Errors
    /// When there is none in time.
    pub(super) async fn connect(
        &mut self,
        attempts: &Attempts<'_>,
        request: &mut RequestHead,
    ) -> Result<Connection, Next> {
        // Before a connection is taken for it: one that is not used would have to be closed.
        attempts.tell_time_left(request)?;
        if !self.fresh
            && let Some(idle) = attempts.idle(&self.place)
        {
            return Ok(idle);
        }
        let dialled = dial(attempts, &self.place).await;
        // Of what it takes to answer, connecting is no part.
        self.begun = Instant::now();
        dialled.map_err(|error| self.unconnected(attempts, error))
    }

    #[cold]
    fn unconnected(&mut self, attempts: &Attempts<'_>, error: ProxyError) -> Next {
        Ending::NoConnection(&error).report(attempts, &mut self.place, self.begun);
        match &error {
            // It has waited for that already, and there is none of it for another backend either.
            ProxyError::Exhausted { error: cause, .. } if cause.kind() != std::io::ErrorKind::AddrNotAvailable => {
                Next::Nothing(attempts.failed(error))
            }
            // Nothing was sent: any request may try elsewhere.
            _ => Next::Retry(RetryCause::ConnectFailure, error),
        }
    }
}

impl Attempt {
    /// Sends the request, and awaits the head of a response that goes to the client.
    ///
    /// # Errors
    /// What is to be done where none has come.
    pub(super) async fn await_answer(
        &mut self,
        attempts: &mut Attempts<'_>,
        request: &mut RequestHead,
        body: &mut RequestBody,
    ) -> Result<(), Failure> {
        match self.await_head(attempts, request, body).await? {
            Some(Ok(status)) => self.take_or_retry(attempts, body, status).await,
            Some(Err(failed)) => Err(self.broke(attempts, body, failed)),
            None => Err(self.late(attempts, body).into()),
        }
    }

    /// The same attempt once more, without this connection.
    pub(super) fn once_more(self, fresh: bool) -> Start {
        Start { place: self.place, begun: self.begun, fresh }
    }

    async fn await_head(
        &mut self,
        attempts: &mut Attempts<'_>,
        request: &mut RequestHead,
        body: &mut RequestBody,
    ) -> Result<Heard, Next> {
        let running = attempts.running;
        let watch = &running.exchange.watch;
        let most = running.head_limit(&attempts.forward.timeouts);
        let limit = attempts.limit(most);
        running.await_head(limit.unwrap_or(most));
        body.rewind();
        attempts.tell_time_left(request)?;
        self.connection.begin(request, body, attempts.lets_pass);
        let heard = match attempts.hedge_delay() {
            None => in_time(watch, response(&self.connection, body, running)).await,
            Some(delay) => Box::pin(hedge::race(self, attempts, request, body, delay)).await,
        };
        match limit {
            Some(limit) if heard.is_none() && running.upload() == Upload::Over && !watch.is_capped() => {
                // Given up only for another attempt: otherwise it has all the time that the route allows.
                if attempts.may_repeat(body)
                    && let Some(next) = Box::pin(attempts.next(RetryCause::Timeout, None, Held::Attempt)).await
                {
                    Ending::Slow.report(attempts, &mut self.place, self.begun);
                    return Err(Next::At(next));
                }
                running.await_head(most.saturating_sub(limit));
                Ok(in_time(watch, response(&self.connection, body, running)).await)
            }
            _ => Ok(heard),
        }
    }

    /// The head of a response has come: it goes to the client, unless another attempt is made in its place.
    async fn take_or_retry(
        &mut self,
        attempts: &mut Attempts<'_>,
        body: &RequestBody,
        status: StatusCode,
    ) -> Result<(), Failure> {
        let head = attempts.running.head(status, &self.connection);
        if attempts.is_unwanted(status, head)
            && attempts.may_repeat_after(head, body)
            && !(head != Head::Http && Call::pushes_back(&self.connection))
        {
            let asked = self.connection.field("retry-after");
            if let Some(next) = Box::pin(attempts.next(RetryCause::Status, asked, Held::Attempt)).await {
                Ending::Unwanted(status, head).report(attempts, &mut self.place, self.begun);
                self.connection.discard();
                return Err(Next::At(next).into());
            }
        }
        // A small answer is held back until it is whole: of one that breaks off the client has seen nothing then.
        if holds_back(attempts.config, &self.connection)
            && attempts.may_repeat(body)
            && let Err(error) = Box::pin(gathered(&self.connection)).await
        {
            Ending::Broken.report(attempts, &mut self.place, self.begun);
            let error = ProxyError::Broken { backend: self.place.backend().address.clone(), error };
            return Err(Next::Retry(RetryCause::Reset, error).into());
        }
        Ending::Answered(status, head).report(attempts, &mut self.place, self.begun);
        Ok(())
    }

    /// The connection broke before the head of a response had come.
    #[cold]
    fn broke(&mut self, attempts: &mut Attempts<'_>, body: &RequestBody, failed: Failed) -> Failure {
        match attempts.running.upload() {
            Upload::TooLarge => return Next::Nothing(ProxyError::BodyTooLarge).into(),
            Upload::Broken => {
                let why = "the request body is malformed or was cut short";
                return Next::Nothing(ProxyError::BadRequest(why)).into();
            }
            _ => {}
        }
        let may_repeat = failed.unsent || (attempts.may_repeat(body) && !self.connection.answered());
        let stale = attempts.take_for_stale(&self.connection, &failed);
        let ending = if stale { Ending::Stale } else { Ending::Broken };
        ending.report(attempts, &mut self.place, self.begun);
        let unsent = failed.unsent;
        let error = ProxyError::Broken { backend: self.place.backend().address.clone(), error: failed.error };
        match (may_repeat, stale) {
            (false, _) => Next::Nothing(attempts.failed(error)).into(),
            // Where a backend takes no more streams on a connection, there may be room on another that is there.
            (true, true) => Failure::Stale { fresh: self.connection.link().is_some() || !unsent },
            (true, false) => {
                Next::Retry(if unsent { RetryCause::ConnectFailure } else { RetryCause::Reset }, error).into()
            }
        }
    }

    /// The time for the head of a response is over.
    #[cold]
    fn late(&mut self, attempts: &Attempts<'_>, body: &RequestBody) -> Next {
        let running = attempts.running;
        let error = if running.exchange.watch.is_capped() {
            ProxyError::ExchangeTimeout
        } else if running.upload() == Upload::Waiting {
            ProxyError::ClientTooSlow
        } else {
            ProxyError::ResponseTimeout { backend: self.place.backend().address.clone() }
        };
        Ending::Late(&error).report(attempts, &mut self.place, self.begun);
        // That is the time of an attempt. What bounds all of them together is the exchange's.
        let is_attempts = matches!(error, ProxyError::ResponseTimeout { .. });
        if is_attempts && running.upload() == Upload::Over && attempts.may_repeat(body) {
            return Next::Retry(RetryCause::Timeout, error);
        }
        Next::Nothing(attempts.failed(error))
    }
}

/// Makes a new connection, within the time that the upstream allows for it.
async fn dial(attempts: &Attempts<'_>, place: &Place) -> Result<Connection, ProxyError> {
    let Attempts { proxy, running, upstream, .. } = *attempts;
    let watch = &running.exchange.watch;
    watch.enter(Phase::Connect, upstream.config.connect_timeout);
    let began = running.now();
    let dialling = Dialling::new(&running.exchange.client.seats);
    let dialled = connect::connect(&proxy.transport, place.backend(), attempts.manner(), &dialling);
    let dialled = in_time(watch, dialled).await;
    let connection = connected(attempts, place, dialled, &dialling, watch.is_capped())?;
    running.connected(began);
    Ok(connection)
}

/// What came of making a new connection; `dialled` is `None` when the time for it is over, and with `capped` so is that of the exchange.
///
/// # Errors
/// Why there is none.
#[cold]
pub(super) fn connected(
    attempts: &Attempts<'_>,
    place: &Place,
    dialled: Option<Result<Connection, NoConnection>>,
    dialling: &Dialling<'_>,
    capped: bool,
) -> Result<Connection, ProxyError> {
    let metrics = place.backend().metrics.of(attempts.proxy.worker);
    let backend = || place.backend().address.clone();
    let failed = match dialled {
        Some(Ok(connection)) => {
            metrics.connects.add(1);
            if let Some(resumed) = connection.resumed() {
                let counter = if resumed { &metrics.handshakes_resumed } else { &metrics.handshakes_full };
                counter.add(1);
            }
            return Ok(connection);
        }
        Some(Err(NoConnection::Ours(error))) => return Err(ProxyError::Exhausted { backend: backend(), error }),
        None if dialling.is_short() && capped => return Err(ProxyError::ExchangeTimeout),
        None if dialling.is_short() => {
            return Err(ProxyError::Exhausted { backend: backend(), error: descriptors::no_room() });
        }
        Some(Err(NoConnection::Tcp(error))) => ProxyError::Connect { backend: backend(), error },
        Some(Err(NoConnection::Tls(error))) => ProxyError::Handshake { backend: backend(), error },
        None if capped => ProxyError::ExchangeTimeout,
        None => ProxyError::ConnectTimeout { backend: backend() },
    };
    metrics.connect_failures.add(1);
    Err(failed)
}

/// How long a small answer is held back at most: one that trickles is passed on as it comes.
const HELD_BACK: Duration = Duration::from_millis(100);

/// Whether the response at a connection is so small that it is held back until it is whole.
fn holds_back(retries: &RetryConfig, connection: &Connection) -> bool {
    retries.max > 0 && retries.on.reset && connection.gathers(retries.response_buffer)
}

/// Waits for the rest of a small answer, for a while.
async fn gathered(connection: &Connection) -> std::io::Result<()> {
    let whole = poll_fn(|cx| connection.poll_gather(cx));
    tokio::time::timeout(HELD_BACK, whole).await.unwrap_or(Ok(()))
}

/// The answer at a connection, as it comes.
pub(super) fn response<'a>(
    connection: &'a Connection,
    body: &'a mut RequestBody,
    running: &'a Running,
) -> impl Future<Output = Result<StatusCode, Failed>> + use<'a> {
    poll_fn(move |cx| connection.poll_response(cx, body, running))
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
