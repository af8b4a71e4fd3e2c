//! Active health checks of backends, and the lookout for ejected backends.
//!
//! One [`Prober`] per process, on the control plane, with a task for each backend that is to be checked. Backends come and go
//! with reloads and by discovery. A task goes on over both with the pace it has: other settings reach it on the way, so that a file that changes all the time neither starves
//! the checks nor multiplies them. What checks come to is worked out by [`HealthAccount`](crate::backend::health::HealthAccount), when
//! they are made by `pace`; both are pure. Where no check would see that a backend which was ejected for want of an answer is
//! there again, a `lookout` looks.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ::http::StatusCode;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, warn};

use crate::backend::health::{LastCheck, Thresholds, VerdictChange};
use crate::backend::outlier::Sight;
use crate::backend::{BackendId, BackendState};
use crate::config::{Address, GrpcStatus, HealthCheckConfig, ProbeKind, Protocol, UpstreamName};
use crate::socket::Socket;
use crate::telemetry::events::{EventKind, Events};
use crate::telemetry::log_throttle::LogThrottle;
use crate::transport::connect::{self, NoConnection};
use crate::transport::tls::{BackendTls, HandshakeFailed, TlsOf};
use crate::upstream::{Upstream, UpstreamState};

mod schedule;
mod reachability;
mod http;
mod tcp;
mod grpc;

use self::grpc::Grpc;
use self::http::Http;
use self::reachability::Lookout;
use self::tcp::Tcp;

/// A way to find out whether a backend is well.
pub trait HealthCheck {
    /// Asks the backend at `address`, by `tls` where there is one, and gives up at `deadline`.
    fn check(
        &self,
        address: &Address,
        tls: Option<TlsOf<'_>>,
        deadline: Instant,
    ) -> impl Future<Output = Result<(), CheckFailed>> + Send;
}

/// Why a check has failed.
#[derive(Debug)]
pub enum CheckFailed {
    /// No connection could be made.
    Connect(io::Error),
    /// The same, for want of something that this process or machine has only so many of: that says nothing about the backend.
    Ours(io::Error),
    /// A connection was made, and no secure one over it.
    Handshake(HandshakeFailed),
    /// The connection broke, or brought something that is no response.
    Broken(hyper::Error),
    /// A response came, with a status that is not among the good ones.
    Status(StatusCode),
    /// The body has not in it what it should.
    Body {
        /// Bytes that were searched.
        searched: usize,
    },
    /// A call of gRPC has ended with this status.
    Grpc(GrpcStatus),
    /// The health service says that it does not serve, in this word.
    NotServing(&'static str),
    /// What came is not what the protocol has there: in what way.
    Malformed(&'static str),
    /// It took too long: what did.
    Timeout(&'static str),
}

impl fmt::Display for CheckFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) | Self::Ours(error) => f.write_str(&plain(error)),
            Self::Handshake(error) => error.fmt(f),
            Self::Broken(error) => match error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
                Some(source) => write!(f, "{error}: {}", plain(source)),
                None => error.fmt(f),
            },
            Self::Status(status) => write!(f, "status {}", status.as_u16()),
            Self::Body { searched } => write!(f, "pattern not found in {searched} bytes of the body"),
            Self::Grpc(GrpcStatus::Unimplemented) => f.write_str("it has no health service: status unimplemented"),
            Self::Grpc(GrpcStatus::NotFound) => {
                f.write_str("its health service does not know the service: status not_found")
            }
            Self::Grpc(status) => write!(f, "status {status}"),
            Self::NotServing(said) => write!(f, "it says that it is {said}"),
            Self::Malformed(how) => f.write_str(how),
            Self::Timeout(doing) => write!(f, "timed out {doing}"),
        }
    }
}

impl Error for CheckFailed {}

/// What the system says, without its number: `connection refused`.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// Connects as requests do, and speaks TLS where it is to be spoken.
async fn connect(address: &Address, tls: Option<TlsOf<'_>>, deadline: Instant) -> Result<Socket, CheckFailed> {
    let connected = timeout_at(deadline, connect::open(address)).await;
    let tcp = connected.map_err(|_| CheckFailed::Timeout("connecting"))?.map_err(|error| match error {
        NoConnection::Ours(error) => CheckFailed::Ours(error),
        NoConnection::Tcp(error) => CheckFailed::Connect(error),
        NoConnection::Tls(error) => CheckFailed::Handshake(error),
    })?;
    let Some(tls) = tls else { return Ok(Socket::Plain(tcp)) };
    let secured = timeout_at(deadline, tls.handshake(address, tcp, false)).await;
    secured.map_err(|_| CheckFailed::Timeout("in the tls handshake"))?.map_err(CheckFailed::Handshake)
}

/// Checks backends. Dropped, it checks no more.
#[derive(Debug)]
pub struct Prober {
    events: Events,
    turns: Arc<Semaphore>,
    not_asked: Arc<LogThrottle>,
    /// Control plane only.
    tasks: Mutex<CheckTasks>,
}

#[derive(Debug, Default)]
struct CheckTasks {
    /// Tasks begun so far: where in its interval the next one starts.
    begun: u64,
    upstreams: HashMap<UpstreamName, CheckedUpstream>,
    lookouts: HashMap<UpstreamName, Lookout>,
}

/// An upstream whose backends are checked.
#[derive(Debug)]
struct CheckedUpstream {
    settings: watch::Sender<Arc<Settings>>,
    backends: HashMap<BackendId, Task>,
}

/// How the backends of an upstream are checked.
#[derive(Debug)]
struct Settings {
    config: Arc<HealthCheckConfig>,
    /// As requests have it.
    tls: Option<Arc<BackendTls>>,
    protocol: Protocol,
    kind: CheckKind,
}

#[derive(Debug)]
enum CheckKind {
    Http(Box<Http>),
    Tcp,
    Grpc(Box<Grpc>),
}

/// Checks one backend until it is dropped.
#[derive(Debug)]
struct Task {
    backend: Arc<BackendState>,
    handle: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl Prober {
    /// One that checks nothing yet, will tell `events` what it finds, and makes `turns` checks at a time: further ones wait.
    pub fn new(events: Events, turns: usize) -> Self {
        let (turns, not_asked) = (Arc::new(Semaphore::new(turns)), Arc::new(LogThrottle::new(1)));
        Self { events, turns, not_asked, tasks: Mutex::default() }
    }

    /// Checks the backends of these upstreams from now on as their configuration says, and no others. Inside a runtime only.
    /// Does not wait.
    pub fn follow(&self, upstreams: &[Arc<Upstream>]) {
        let tasks = &mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut tasks.upstreams);
        for upstream in upstreams {
            let Some(config) = &upstream.config.health_check else { continue };
            let mut checked = match before.remove(upstream.name()) {
                Some(checked) => checked.under(config, upstream),
                None => {
                    let settings = Arc::new(Settings::new(config, upstream));
                    CheckedUpstream { settings: watch::Sender::new(settings), backends: HashMap::new() }
                }
            };
            self.follow_backends(&mut checked, &mut tasks.begun, upstream);
            tasks.upstreams.insert(upstream.name().clone(), checked);
        }
        // Of upstreams that are checked no more, or are gone.
        for task in before.values().flat_map(|checked| checked.backends.values()) {
            task.backend.health.forget();
        }
        let mut before = std::mem::take(&mut tasks.lookouts);
        tasks.lookouts.extend(upstreams.iter().map(|upstream| {
            let lookout = before
                .remove(upstream.name())
                .unwrap_or_else(|| Lookout::start(upstream, &self.turns, self.events.vital()));
            lookout.follow(upstream);
            (upstream.name().clone(), lookout)
        }));
    }

    /// Checks the backends that an upstream has now, and no others of it. One that [`Prober::follow`] was not told of is left
    /// alone. Inside a runtime only. Does not wait.
    pub fn follow_set(&self, upstream: &Upstream) {
        let tasks = &mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(checked) = tasks.upstreams.get_mut(upstream.name()) {
            self.follow_backends(checked, &mut tasks.begun, upstream);
        }
    }

    /// Begins with backends that are new, goes on with those that are known, and ends with those that are gone.
    fn follow_backends(&self, checked: &mut CheckedUpstream, begun: &mut u64, upstream: &Upstream) {
        let mut before = std::mem::take(&mut checked.backends);
        for backend in upstream.roster().backends() {
            let state = &backend.state;
            let begin = || self.begin(&checked.settings, begun, (&upstream.state, state));
            let task = before.remove(&state.id).unwrap_or_else(begin);
            checked.backends.insert(state.id, task);
        }
    }

    fn begin(
        &self,
        settings: &watch::Sender<Arc<Settings>>,
        begun: &mut u64,
        (upstream, backend): (&Arc<UpstreamState>, &Arc<BackendState>),
    ) -> Task {
        let first = schedule::first(*begun, backend.health.verdict(), settings.borrow().config.interval);
        *begun += 1;
        let checking = Checking {
            backend: Arc::clone(backend),
            upstream: Arc::clone(upstream),
            settings: settings.subscribe(),
            turns: Arc::clone(&self.turns),
            events: self.events.clone(),
            not_asked: Arc::clone(&self.not_asked),
        };
        let what = format!("health checks of {} in upstream {}", backend.address, backend.upstream);
        let checking = self.events.vital().clone().watch(what, checking.run(Instant::now() + first));
        let handle = tokio::spawn(checking);
        Task { backend: Arc::clone(backend), handle }
    }
}

impl CheckedUpstream {
    /// The same under the settings of now. Where these differ, streaks begin anew.
    fn under(self, config: &Arc<HealthCheckConfig>, upstream: &Upstream) -> Self {
        let differs = |settings: &Settings| {
            settings.config != *config
                || settings.protocol != upstream.config.protocol
                || BackendTls::identity(settings.tls.as_deref()) != upstream.tls_identity()
        };
        if differs(&self.settings.borrow()) {
            self.settings.send_replace(Arc::new(Settings::new(config, upstream)));
            self.backends.values().for_each(|task| task.backend.health.restart());
        }
        self
    }
}

impl Settings {
    fn new(config: &Arc<HealthCheckConfig>, upstream: &Upstream) -> Self {
        let kind = match config.kind {
            ProbeKind::Http => CheckKind::Http(Box::new(Http::new(config, upstream.config.protocol))),
            ProbeKind::Tcp => CheckKind::Tcp,
            ProbeKind::Grpc => CheckKind::Grpc(Box::new(Grpc::new(config))),
        };
        let protocol = upstream.config.protocol;
        Self { config: Arc::clone(config), tls: upstream.tls.clone(), protocol, kind }
    }

    fn thresholds(&self) -> Thresholds {
        Thresholds { unhealthy_after: self.config.unhealthy_after, healthy_after: self.config.healthy_after }
    }

    async fn check(&self, backend: &BackendState, deadline: Instant) -> Result<(), CheckFailed> {
        let BackendState { address, server_name, .. } = backend;
        let elsewhere = self.config.port.map(|port| address.at_port(port));
        let address = elsewhere.as_ref().unwrap_or(address);
        let tls = self.tls.as_deref().map(|tls| tls.of(server_name.as_ref()));
        match &self.kind {
            CheckKind::Http(http) => http.check(address, tls, deadline).await,
            CheckKind::Tcp => Tcp.check(address, tls, deadline).await,
            CheckKind::Grpc(grpc) => grpc.check(address, tls, deadline).await,
        }
    }
}

/// What the task of a backend needs.
struct Checking {
    backend: Arc<BackendState>,
    upstream: Arc<UpstreamState>,
    settings: watch::Receiver<Arc<Settings>>,
    turns: Arc<Semaphore>,
    events: Events,
    /// Shared, as what keeps one from being made keeps all.
    not_asked: Arc<LogThrottle>,
}

impl Checking {
    /// Checks again and again, first at `due`. Ends when it is aborted, or when the sender of its settings is gone.
    async fn run(mut self, mut due: Instant) {
        let mut last = None;
        let mut ejections = self.upstream.ejections.subscribe();
        loop {
            tokio::select! {
                () = sleep_until(due) => {
                    if self.backend.by_hand.is_disabled() {
                        // Under repair: what it would answer says nothing. Looked at again as if in doubt, so that the first
                        // check after it comes soon.
                        due = Instant::now() + self.settings.borrow().config.interval_in_doubt;
                        continue;
                    }
                    let Some(started) = self.once().await else { return };
                    last = Some(started);
                    due = started + self.pause();
                }
                // Never an error: the sender is the upstream's, which is held here.
                _ = ejections.changed() => if self.backend.outlier.is_missed() {
                    due = due.min(last.map_or(due, |started| started + self.pause()));
                },
                changed = self.settings.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Counted from the last check and not from now: reloads must not put it off.
                    due = last.map_or(due, |started| started + self.pause());
                }
            }
        }
    }

    fn pause(&self) -> Duration {
        let (account, _) = self.backend.health.look();
        // A backend that is ejected for want of an answer is in doubt too.
        let in_doubt = account.in_doubt() || self.backend.outlier.is_missed();
        schedule::pause(&self.settings.borrow().config, in_doubt, rand::random())
    }

    /// One check, when it is its turn. Says when it began.
    async fn once(&mut self) -> Option<Instant> {
        let turn = self.turns.acquire().await.ok()?;
        let settings = Arc::clone(&self.settings.borrow_and_update());
        let started = Instant::now();
        let outcome = settings.check(&self.backend, started + settings.config.timeout).await;
        let took = started.elapsed();
        drop(turn);
        // What was asked under other settings says nothing about these.
        if let Err(CheckFailed::Ours(error)) = &outcome {
            // No backend was asked. The next check comes at its time.
            self.could_not_ask(error);
        } else if !self.settings.has_changed().ok()? {
            self.note_sight(&outcome, &settings.kind, started);
            self.note(outcome, took, settings.thresholds());
        }
        Some(started)
    }

    fn could_not_ask(&self, error: &io::Error) {
        if let Some(times) = self.not_asked.happened() {
            let BackendState { upstream, address, .. } = &*self.backend;
            warn!(%upstream, backend = %address, %error, times, "could not make a health check, for a reason of our own");
        }
    }

    /// What a check that began at `started` says of a backend that is ejected, beside its verdict.
    fn note_sight(&self, outcome: &Result<(), CheckFailed>, kind: &CheckKind, started: Instant) {
        let (mut history, started) = (self.backend.outlier.history(), started.into_std());
        let news = match outcome {
            // Another port says nothing about the one that requests go to.
            _ if self.settings.borrow().config.port.is_some() => false,
            Ok(()) if matches!(kind, CheckKind::Tcp) => history.saw(Sight::Connected, started),
            Ok(()) => history.saw(Sight::Checked, started),
            Err(CheckFailed::Connect(_)) => history.saw_nobody(started),
            Err(_) => false,
        };
        drop(history);
        if news {
            self.upstream.changed.notify_one();
        }
    }

    fn note(&self, outcome: Result<(), CheckFailed>, took: Duration, thresholds: Thresholds) {
        let BackendState { upstream, address, health, .. } = &*self.backend;
        // Another port says nothing about the one that requests go to.
        let elsewhere = self.settings.borrow().config.port.is_some();
        let unreachable = !elsewhere && matches!(outcome, Err(CheckFailed::Connect(_) | CheckFailed::Handshake(_)));
        if health.note_unreachable(unreachable) {
            self.upstream.changed.notify_one();
        }
        let failure = outcome.err().map(|failed| failed.to_string());
        if let Some(failure) = &failure {
            debug!(%upstream, backend = %address, failure, "health check failed");
        }
        let check = LastCheck { at: SystemTime::now(), took, failure };
        let Some(change) = health.record(check.clone(), thresholds) else { return };
        // The keeper builds the roster anew.
        self.upstream.changed.notify_one();
        self.events.publish(EventKind::Health {
            upstream: upstream.clone(),
            backend: address.clone(),
            from: change.from.as_str(),
            to: change.to.as_str(),
            evidence: evidence(&change, &check),
        });
    }
}

/// What a change rests on: `3 checks in a row failed; the last: connection refused after 0.2 ms`.
fn evidence(change: &VerdictChange, last: &LastCheck) -> String {
    let took = format!("{:.1} ms", last.took.as_secs_f64() * 1e3);
    match (change.streak.length, &last.failure) {
        (..=1, Some(failure)) => format!("a check failed: {failure} after {took}"),
        (..=1, None) => format!("a check passed after {took}"),
        (row, Some(failure)) => format!("{row} checks in a row failed; the last: {failure} after {took}"),
        (row, None) => format!("{row} checks in a row passed; the last after {took}"),
    }
}

#[cfg(test)]
mod tests;
