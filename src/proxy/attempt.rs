//! One attempt at a backend: connect, send, await the head of the response.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::config::RetryConfig;
use crate::exchange::RequestHead;
use crate::exchange::body::RequestBody;
use crate::exchange::deadline::{Phase, Watch};
use crate::file_descriptors;
use crate::telemetry::metrics::RetryCause;
use crate::transport::connect::{self, Dialling, NoConnection};
use crate::transport::{Connection, NoResponse};

use super::ProxyError;
use super::admission::AttemptSlot;
use super::attempt_end::Ending;
use super::grpc::{GrpcCall, GrpcResponseHead};
use super::hedge;
use super::retry::{Attempts, RetryStake};
use super::running::RunningExchange;
use super::upload::Upload;

/// An attempt, but for its connection: that goes to the client's side with the answer, and a move of both at each step would cost more
/// than a second name does.
pub(super) struct Attempt {
    pub(super) place: AttemptSlot,
    /// When it began, as the time of a backend to answer counts.
    pub(super) begun: Instant,
    /// Whether no idle connection will do.
    pub(super) fresh: bool,
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
    At(AttemptSlot),
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
pub(super) type Heard = Option<Result<StatusCode, NoResponse>>;

impl Attempt {
    /// At a place that was just taken.
    pub(super) fn now(place: AttemptSlot) -> Self {
        Self { place, begun: Instant::now(), fresh: false }
    }

    /// Sends the request by an idle connection or a new one, and awaits the head of a response that goes to the client. The response is
    /// at the connection then.
    ///
    /// What few attempts need is awaited in a box: the future of all others is smaller for it.
    ///
    /// # Errors
    /// What is to be done where none has come.
    pub(super) async fn make(
        &mut self,
        attempts: &mut Attempts<'_>,
        request: &mut RequestHead,
        body: &mut RequestBody,
    ) -> Result<Connection, Failure> {
        // Before a connection is taken for it: one that is not used would have to be closed.
        attempts.tell_time_left(request)?;
        let mut connection = match self.idle(attempts) {
            Some(idle) => idle,
            None => Box::pin(self.connect(attempts, request)).await?,
        };
        let running = attempts.running;
        let watch = &running.exchange.watch;
        let most = running.head_limit(&attempts.forward.timeouts);
        let limit = attempts.limit(most);
        running.await_head(limit.unwrap_or(most));
        body.rewind();
        connection.begin(request, body, attempts.passes_through);
        let mut heard = match attempts.hedge_delay() {
            None => in_time(watch, response(&connection, body, running)).await,
            Some(delay) => Box::pin(hedge::race((&mut connection, self), attempts, request, body, delay)).await,
        };
        if let (None, Some(limit)) = (&heard, limit) {
            heard = Box::pin(self.replace_or_go_on(&connection, attempts, body, most.saturating_sub(limit))).await?;
        }
        match heard {
            Some(Ok(status)) => {
                let head = running.head(status, &connection);
                let replaced = attempts.is_unwanted(status, head) && attempts.may_repeat_after(head, body)
                    || holds_back(attempts.config, &connection) && attempts.may_repeat(body);
                if replaced {
                    Box::pin(self.replace_or_gather(&mut connection, attempts, body, (status, head))).await?;
                }
                Ending::Answered(status, head).report(attempts, &mut self.place, self.begun);
                Ok(connection)
            }
            Some(Err(failed)) => Err(self.broke(&connection, attempts, body, failed)),
            None => Err(self.late(attempts, body).into()),
        }
    }

    /// The time of this attempt is over: another is made, if there may be one. Otherwise this one has the `rest` of the time that the
    /// route allows.
    #[cold]
    async fn replace_or_go_on(
        &mut self,
        connection: &Connection,
        attempts: &mut Attempts<'_>,
        body: &mut RequestBody,
        rest: Duration,
    ) -> Result<Heard, Next> {
        let running = attempts.running;
        let watch = &running.exchange.watch;
        if running.upload() != Upload::Over || watch.is_capped() {
            return Ok(None);
        }
        if attempts.may_repeat(body)
            && let Some(next) = attempts.next(RetryCause::Timeout, None, RetryStake::Attempt).await
        {
            Ending::Slow.report(attempts, &mut self.place, self.begun);
            return Err(Next::At(next));
        }
        running.await_head(rest);
        Ok(in_time(watch, response(connection, body, running)).await)
    }

    /// The idle connection used last, where one will do.
    #[inline]
    fn idle(&self, attempts: &Attempts<'_>) -> Option<Connection> {
        if self.fresh { None } else { attempts.idle(&self.place) }
    }

    /// Makes a new connection.
    ///
    /// # Errors
    /// When there is none in time.
    #[cold]
    async fn connect(&mut self, attempts: &Attempts<'_>, request: &mut RequestHead) -> Result<Connection, Next> {
        let dialled = dial(attempts, &self.place).await;
        // Of what it takes to answer, connecting is no part.
        self.begun = Instant::now();
        let connection = dialled.map_err(|error| self.unconnected(attempts, error))?;
        // It took some of that.
        attempts.tell_time_left(request)?;
        Ok(connection)
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

    /// The head of a response has come that may not go to the client: another attempt is made in its place, or the rest of it is awaited.
    #[cold]
    async fn replace_or_gather(
        &mut self,
        connection: &mut Connection,
        attempts: &mut Attempts<'_>,
        body: &RequestBody,
        (status, head): (StatusCode, GrpcResponseHead),
    ) -> Result<(), Failure> {
        if attempts.is_unwanted(status, head)
            && attempts.may_repeat_after(head, body)
            && !(head != GrpcResponseHead::Http && GrpcCall::pushes_back(connection))
        {
            let asked = connection.field("retry-after");
            if let Some(next) = attempts.next(RetryCause::Status, asked, RetryStake::Attempt).await {
                Ending::Unwanted(status, head).report(attempts, &mut self.place, self.begun);
                connection.discard();
                return Err(Next::At(next).into());
            }
        }
        // A small answer is held back until it is whole: of one that breaks off the client has seen nothing then.
        if holds_back(attempts.config, connection)
            && attempts.may_repeat(body)
            && let Err(error) = gathered(connection).await
        {
            Ending::Broken.report(attempts, &mut self.place, self.begun);
            let error = ProxyError::Broken { backend: self.place.backend().address.clone(), error };
            return Err(Next::Retry(RetryCause::Reset, error).into());
        }
        Ok(())
    }

    /// The connection broke before the head of a response had come.
    #[cold]
    fn broke(
        &mut self,
        connection: &Connection,
        attempts: &mut Attempts<'_>,
        body: &RequestBody,
        failed: NoResponse,
    ) -> Failure {
        match attempts.running.upload() {
            Upload::TooLarge => return Next::Nothing(ProxyError::BodyTooLarge).into(),
            Upload::Failed => return Next::Nothing(ProxyError::MiddlewareFailed).into(),
            Upload::Broken => {
                let why = "the request body is malformed or was cut short";
                return Next::Nothing(ProxyError::BadRequest(why)).into();
            }
            _ => {}
        }
        let may_repeat = failed.unsent || (attempts.may_repeat(body) && !connection.answered());
        let stale = attempts.take_for_stale(connection, &failed);
        let ending = if stale { Ending::Stale } else { Ending::Broken };
        ending.report(attempts, &mut self.place, self.begun);
        let unsent = failed.unsent;
        let error = ProxyError::Broken { backend: self.place.backend().address.clone(), error: failed.error };
        match (may_repeat, stale) {
            (false, _) => Next::Nothing(attempts.failed(error)).into(),
            // Where a backend takes no more streams on a connection, there may be room on another that is there.
            (true, true) => Failure::Stale { fresh: connection.link().is_some() || !unsent },
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
async fn dial(attempts: &Attempts<'_>, place: &AttemptSlot) -> Result<Connection, ProxyError> {
    let Attempts { proxy, running, upstream, .. } = *attempts;
    let watch = &running.exchange.watch;
    watch.enter(Phase::Connect, upstream.config.connect_timeout);
    let began = running.account().now();
    let dialling = Dialling::new(&running.exchange.client.seats);
    let dialled = connect::connect(&proxy.transport, place.backend(), attempts.manner(), &dialling);
    let dialled = in_time(watch, dialled).await;
    let connection = connected(attempts, place, dialled, &dialling, watch.is_capped())?;
    running.account().connected(began);
    Ok(connection)
}

/// What came of making a new connection; `dialled` is `None` when the time for it is over, and with `capped` so is that of the exchange.
///
/// # Errors
/// Why there is none.
#[cold]
pub(super) fn connected(
    attempts: &Attempts<'_>,
    place: &AttemptSlot,
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
            return Err(ProxyError::Exhausted { backend: backend(), error: file_descriptors::no_room() });
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
    running: &'a RunningExchange,
) -> impl Future<Output = Result<StatusCode, NoResponse>> + use<'a> {
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
