//! An exchange under way: what it has come to so far, and the account of it when it ends.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri, Version};

use crate::backend::BackendState;
use crate::backend::outlier::Outcome;
use crate::config::{BodyLimit, GrpcStatus, MiddlewareName, Misdirected, Timeouts};
use crate::exchange::body::{BodyError, Progress};
use crate::exchange::watch::{NEVER, Pace, Phase, Way};
use crate::exchange::{Exchange, RequestHead};
use crate::fields::{self, is_spelling_of};
use crate::route::path::Refused;
use crate::route::{Action, Route};
use crate::telemetry::access_log::Record;
use crate::transport::{Connection, Informed};

use super::grpc::{self, Call, Head, OVER_TIME};
use super::hooks::Hooks;
use super::reason::{self, Cut};
use super::{Blame, Handled, Held, KeptRoute, Proxy, ProxyError, headers, respond};

/// An exchange under way. It may last for long, and holds what it needs: not the snapshot that it was begun with.
pub(super) struct Running {
    pub(super) exchange: Exchange,
    proxy: Rc<Proxy>,
    /// What concerns its middleware.
    pub(super) hooks: Hooks,
    /// That of the client.
    version: Version,
    route: OnceCell<KeptRoute>,
    status: Cell<u16>,
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
    attempts: Cell<u8>,
    reason: Cell<Option<(&'static str, Option<Blame>)>>,
    /// Whether the backend broke its response off.
    broke: Cell<bool>,
    /// Whether a middleware broke it off.
    failed: Cell<bool>,
    /// Which piece of the request's body is awaited, and until when.
    upload: Cell<Upload>,
    /// Whether it has told how long it is.
    measured: Cell<bool>,
    /// Bytes that the request's body, or a message of a call, may have.
    max_body: Cell<u64>,
    /// When the last of the request's body was sent.
    sent: Cell<Option<Instant>>,
    body_idle: Cell<Duration>,
    response_head: Cell<Duration>,
    over: Cell<bool>,
    /// The call of gRPC that it is, if it is one.
    call: Option<Box<Call>>,
    /// The backend's connection, until the response has been read.
    connection: RefCell<Option<Connection>>,
    /// What the access log and the log at `debug` want to know; `None` while neither does.
    logged: Option<Box<Logged>>,
}

/// How the request's body goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upload {
    /// The next piece is at the backend's connection.
    Moving,
    /// The next piece is to come from the client.
    Waiting,
    /// It is over, or there was none.
    Over,
    /// It went over the limit.
    TooLarge,
    /// The client's side broke.
    Broken,
    /// A middleware that has wrapped it broke it off.
    Failed,
}

/// What the access log and the log at `debug` want to know and would otherwise be gone by the end.
struct Logged {
    time: SystemTime,
    method: Method,
    target: Uri,
    host: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    referer: Option<HeaderValue>,
    backend: RefCell<Option<Arc<BackendState>>>,
    /// Which key of `paths` has refused it.
    refused: Cell<Option<Refused>>,
    /// Which middleware has answered it, or was too slow.
    middleware: RefCell<Option<MiddlewareName>>,
    connect: Cell<Option<Duration>>,
    first_byte: Cell<Option<Duration>>,
}

impl Running {
    /// The request's head has been read.
    pub(super) fn begin(
        proxy: &Rc<Proxy>,
        snapshot: &Held,
        exchange: Exchange,
        call: Option<Box<Call>>,
        head: &RequestHead,
    ) -> Rc<Self> {
        exchange.client.metrics.of(proxy.worker).requests.add(1);
        let logged = (snapshot.config.access_log.is_some() || tracing::enabled!(tracing::Level::DEBUG)).then(|| {
            // The line has it, and may be written long after that snapshot.
            drop(exchange.client.listener_name(snapshot.generation, &snapshot.config));
            Box::new(Logged {
                time: SystemTime::now(),
                method: head.method.clone(),
                target: head.uri.clone(),
                host: head.get(&header::HOST),
                user_agent: head.get(&header::USER_AGENT),
                referer: head.get(&header::REFERER),
                backend: RefCell::new(None),
                refused: Cell::new(None),
                middleware: RefCell::new(None),
                connect: Cell::new(None),
                first_byte: Cell::new(None),
            })
        });
        let hooks = Hooks::new(snapshot.chain(&exchange.client));
        Rc::new(Self {
            exchange,
            proxy: Rc::clone(proxy),
            hooks,
            version: head.version,
            route: OnceCell::new(),
            // What a client that leaves before the answer is logged with; nginx's number.
            status: Cell::new(499),
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
            attempts: Cell::new(0),
            reason: Cell::new(None),
            broke: Cell::new(false),
            failed: Cell::new(false),
            upload: Cell::new(Upload::Over),
            measured: Cell::new(false),
            max_body: Cell::new(u64::MAX),
            sent: Cell::new(None),
            body_idle: Cell::new(Duration::ZERO),
            response_head: Cell::new(Duration::ZERO),
            over: Cell::new(false),
            call,
            connection: RefCell::new(None),
            logged,
        })
    }

    /// Which route was found. Once.
    pub(super) fn routed(&self, route: KeptRoute) -> &Route {
        self.route.get_or_init(|| route)
    }

    /// The request's body may have so many bytes. Whether one of known length, with `left` of them, has more.
    pub(super) fn limit_body(&self, limit: BodyLimit, left: Option<u64>) -> bool {
        let BodyLimit::Bytes(max) = limit else { return false };
        self.max_body.set(max);
        // Of a call the messages count, of which there may be many.
        self.call.is_none() && left.is_some_and(|left| left > max)
    }

    /// The request goes to an upstream, with these limits. `measured`: the length of its body is known.
    ///
    /// # Errors
    /// When a call is to take no time, or one that nobody understands.
    pub(super) fn forwarded(&self, timeouts: &Timeouts, upload: Upload, measured: bool) -> Result<(), ProxyError> {
        self.measured.set(measured);
        self.upload.set(upload);
        self.body_idle.set(match &self.call {
            None => timeouts.body_idle,
            Some(_) => timeouts.grpc_idle.unwrap_or(NEVER),
        });
        self.response_head.set(self.head_limit(timeouts));
        self.bound(timeouts)
    }

    /// The whole exchange may take so long. Said once more, it makes no difference.
    ///
    /// # Errors
    /// As of [`Running::forwarded`].
    pub(super) fn bound(&self, timeouts: &Timeouts) -> Result<(), ProxyError> {
        let limit = match &self.call {
            None => timeouts.exchange,
            Some(call) => call.bound(timeouts, self.exchange.started)?,
        };
        if let Some(limit) = limit {
            self.exchange.watch.cap(limit);
        }
        if let Some(at) = self.call.as_ref().and_then(|call| call.deadline()) {
            self.exchange.side.alarm(at);
        }
        Ok(())
    }

    /// How long a backend may take for the head of its response. A call may have nothing to say for long, and its client tells
    /// how long it may take.
    pub(super) fn head_limit(&self, timeouts: &Timeouts) -> Duration {
        if self.call.is_some() { timeouts.grpc_idle.unwrap_or(NEVER) } else { timeouts.response_head }
    }

    /// How long what is left of an upload may stand still behind the head of the response. With a call both directions are
    /// looked at together.
    pub(super) fn upload_idle(&self) -> Duration {
        if self.call.is_some() { NEVER } else { self.body_idle.get() }
    }

    /// The call of gRPC that it is.
    pub(super) fn call(&self) -> Option<&Call> {
        self.call.as_deref()
    }

    /// What the head of a response says of a call.
    #[inline]
    pub(super) fn head(&self, status: StatusCode, connection: &Connection) -> Head {
        if self.call.is_some() { Call::head(status, connection) } else { Head::Http }
    }

    /// Whether it was for a backend to be done in `waited`. Clients of gRPC choose their deadlines: one that is shorter than what
    /// the route allows for a response says nothing of the backend.
    pub(super) fn is_fair(&self, waited: Duration) -> bool {
        match (&self.call, self.found().map(|route| &route.action)) {
            (Some(call), Some(Action::Forward(forward))) if call.is_bound_by_client() => {
                waited >= forward.timeouts.response_head
            }
            _ => true,
        }
    }

    /// The request was sent, or is being sent, to a backend: waits for its answer, which has so long to come once all of the
    /// request is sent.
    pub(super) fn await_head(&self, limit: Duration) {
        self.response_head.set(limit);
        self.exchange.watch.enter(Phase::Response, self.head_timeout());
    }

    fn head_timeout(&self) -> Duration {
        match self.upload.get() {
            Upload::Over => self.response_head.get(),
            _ => self.body_idle.get(),
        }
    }

    /// An attempt at a backend begins.
    pub(super) fn attempt(&self, backend: &Arc<BackendState>) {
        self.attempts.set(self.attempts.get() + 1);
        backend.metrics.of(self.proxy.worker).picks.add(1);
        self.serve(backend);
        if let Some(logged) = &self.logged {
            // Of the connection to the one before.
            logged.connect.set(None);
        }
    }

    /// Attempts so far.
    pub(super) fn attempts(&self) -> u8 {
        self.attempts.get()
    }

    /// It is this backend whose answer is awaited, or has come.
    pub(super) fn serve(&self, backend: &Arc<BackendState>) {
        self.exchange.watch.serve(Some(backend.id));
        if let Some(logged) = &self.logged {
            *logged.backend.borrow_mut() = Some(Arc::clone(backend));
        }
    }

    /// The time, where the access log wants to know it.
    pub(super) fn now(&self) -> Option<Instant> {
        self.logged.as_ref().map(|_| Instant::now())
    }

    /// A connection was made for it, which began at that [`Running::now`].
    pub(super) fn connected(&self, began: Option<Instant>) {
        if let (Some(logged), Some(began)) = (&self.logged, began) {
            logged.connect.set(Some(began.elapsed()));
        }
    }

    /// The head of a backend's response has come.
    pub(super) fn answered(&self, head: Head) {
        if let Some(call) = &self.call {
            call.answered(head);
        }
        if let Some(logged) = &self.logged {
            logged.first_byte.set(Some(self.exchange.started.elapsed()));
        }
    }

    /// Keeps a backend's connection until the response on it has been read.
    pub(super) fn lend(&self, connection: Connection) {
        *self.connection.borrow_mut() = Some(connection);
    }

    /// How the request's body goes on.
    pub(super) fn upload(&self) -> Upload {
        self.upload.get()
    }

    /// When the whole request was sent, where the attempt began at `begun`: how long a client takes to send a body is not how
    /// long a backend takes to answer.
    pub(super) fn sent_since(&self, begun: Instant) -> Instant {
        self.sent.get().map_or(begun, |sent| sent.max(begun))
    }

    /// Whether the client speaks HTTP/1.0.
    pub(super) fn http10(&self) -> bool {
        self.version == Version::HTTP_10
    }

    /// Whether the client speaks HTTP/2.
    pub(super) fn http2(&self) -> bool {
        self.version == Version::HTTP_2
    }

    /// The worker's number.
    pub(super) fn worker(&self) -> usize {
        self.proxy.worker
    }

    /// It came to an error.
    #[cold]
    pub(super) fn failed(&self, error: &ProxyError) -> Handled {
        self.reason.set(Some((error.reason(), Some(error.blame()))));
        tracing::debug!(
            error = %Chain(error),
            route = self.found().map(|route| route.name.as_str()),
            client = %self.exchange.client_ip,
            "exchange failed"
        );
        if let ProxyError::Path(refused) = error {
            self.exchange.client.metrics.of(self.proxy.worker).paths_refused[refused.key as usize].add(1);
            if let Some(logged) = &self.logged {
                logged.refused.set(Some(*refused));
            }
        }
        let mut response = match &self.call {
            None => respond::error(error),
            Some(call) => {
                call.ends(error.grpc_status());
                let words = if let ProxyError::ExchangeTimeout = error { OVER_TIME } else { error.told() };
                respond::grpc_error(error.grpc_status(), words)
            }
        };
        let tls = self.exchange.client.listener.tls.as_ref();
        let last =
            matches!(error, ProxyError::Misdirected) && tls.is_some_and(|tls| tls.misdirected == Misdirected::Close);
        if last {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Handled { last, ..response.into() }
    }

    /// A middleware has decided what it comes to, or has not in time.
    #[cold]
    pub(super) fn ended_by_middleware(&self, name: Option<&MiddlewareName>, reason: Option<&'static str>) {
        if let Some(reason) = reason {
            self.reason.set(Some((reason, None)));
        }
        if let Some(logged) = &self.logged {
            *logged.middleware.borrow_mut() = name.cloned();
        }
    }

    /// The head of the answer is known. From here on the account is kept by the response's body, or by the tunnel.
    pub(super) fn respond(self: Rc<Self>, handled: &mut Handled) {
        if !handled.dated {
            self.proxy.dates.date(&mut handled.head.headers);
        }
        if let Some(tls) = &self.exchange.client.listener.tls
            && let Some(hsts) = &tls.hsts
            && self.exchange.scheme == "https"
        {
            // What a route or a backend says of it stands.
            handled.head.headers.entry(header::STRICT_TRANSPORT_SECURITY).or_insert_with(|| hsts.clone());
        }
        self.status.set(handled.head.status.as_u16());
        match handled.tunnel {
            // The tunnel keeps the account.
            Some(_) => {}
            None => {
                let idle = match self.body_idle.get() {
                    Duration::ZERO => self.exchange.client.listener.idle_timeout,
                    idle => idle,
                };
                self.exchange.side.body(idle);
                if self.upload.get() != Upload::Over && !self.measured.get() {
                    // Two bodies without end beside each other are a conversation, which has its pauses.
                    self.exchange.watch.obliged(Way::Up);
                }
                handled.body.observe(self);
            }
        }
    }

    /// The client was too slow with a body.
    #[cold]
    pub(super) fn slow(&self, way: Way) {
        let metrics = self.exchange.client.metrics.of(self.proxy.worker);
        metrics.slow_bodies[usize::from(way == Way::Down)].add(1);
    }

    /// What a tunnel has carried.
    pub(super) fn tunnelled(&self, up: u64, down: u64) {
        self.bytes_in.set(self.bytes_in.get() + up);
        self.bytes_out.set(self.bytes_out.get() + down);
    }

    /// A piece of the request's body has come.
    fn moved(&self, bytes: usize, too_large: bool) -> Result<(), BodyError> {
        self.bytes_in.set(self.bytes_in.get() + bytes as u64);
        if too_large {
            self.upload.set(Upload::TooLarge);
            // Whoever sends the response is to see that it is over.
            self.exchange.watch.wake();
            return Err(BodyError::TooLarge);
        }
        self.exchange.watch.carried(bytes);
        self.exchange.watch.extend(self.body_idle.get());
        Ok(())
    }

    /// Whether the client is to keep a pace with its request. One of unknown length, beside which the response is under way, may be one
    /// side of a conversation, and so may a call.
    fn paces_request(&self) -> bool {
        !self.over.get() && (self.measured.get() || (self.call.is_none() && self.exchange.watch.phase() != Phase::Body))
    }

    fn log(&self, logged: &Logged, took: Duration) {
        let route = self.found();
        let upstream = route.and_then(|route| match &route.action {
            Action::Forward(forward) => Some(forward.upstream.name().as_str()),
            _ => None,
        });
        let backend = logged.backend.borrow();
        // Without the query: there are secrets in those, and this log goes to other places than the access log.
        tracing::debug!(
            client = %self.exchange.client_ip,
            method = %logged.method,
            host = logged.host.as_ref().map(tracing::field::debug),
            path = ?logged.target.path(),
            status = self.status.get(),
            route = route.map(|route| route.name.as_str()),
            upstream,
            backend = backend.as_ref().map(|backend| tracing::field::display(&backend.address)),
            attempts = self.attempts.get(),
            reason = self.reason.get().map_or(reason::COMPLETE, |(reason, _)| reason),
            took_us = took.as_micros() as u64,
            "request"
        );
        let in_force = self.proxy.process.access_log.load();
        let Some(log) = &*in_force else { return };
        let detail = logged.refused.get().map(|Refused { key, why }| format!("paths.{}: {why}", key.as_str()));
        let detail = detail.or_else(|| logged.middleware.borrow().as_ref().map(|name| format!("middleware.{name}")));
        log.record(&Record {
            time: logged.time,
            client_ip: self.exchange.client_ip,
            method: logged.method.as_str(),
            target: logged.target.path_and_query().map_or("*", |target| target.as_str()),
            protocol: match self.version {
                Version::HTTP_10 => "HTTP/1.0",
                Version::HTTP_2 => "HTTP/2.0",
                _ => "HTTP/1.1",
            },
            host: logged.host.as_ref().map(HeaderValue::as_bytes),
            user_agent: logged.user_agent.as_ref().map(HeaderValue::as_bytes),
            referer: logged.referer.as_ref().map(HeaderValue::as_bytes),
            status: self.status.get(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            duration: took,
            connect: logged.connect.get(),
            first_byte: logged.first_byte.get(),
            attempts: u32::from(self.attempts.get()),
            grpc_status: self.call.as_ref().map(|call| self.call_status(call).code()),
            reason: self.reason.get().map_or(reason::COMPLETE, |(reason, _)| reason),
            ended_by: self.reason.get().and_then(|(_, blame)| blame).map(Blame::as_str),
            detail: detail.as_deref(),
            left_out: 0,
            route: route.map(|route| route.name.as_str()),
            upstream,
            backend: backend.as_ref().map(|backend| &backend.address),
            listener: self.exchange.client.last_name().as_str(),
        });
    }

    pub(super) fn found(&self) -> Option<&Route> {
        self.route.get().map(|route| &***route)
    }

    /// What the call has come to.
    fn call_status(&self, call: &Call) -> GrpcStatus {
        let cut_by_client = self.reason.get().map(|(_, blame)| blame == Some(Blame::Client));
        call.outcome(self.status.get(), cut_by_client)
    }

    /// Tells outlier detection how the call has ended at the backend whose status was to come.
    fn judge(&self, call: &Call, outcome: Outcome) {
        if let Some((backend, took)) = call.awaited()
            && let Some(Action::Forward(forward)) = self.found().map(|route| &route.action)
        {
            forward.upstream.note(&backend, self.proxy.worker, outcome, took);
        }
    }

    /// The end of a call. A response that was whole and had no status behind it is the backend's fault; of one that was cut short
    /// by others nothing is known.
    fn settle(&self, call: &Call, complete: bool) {
        if complete {
            self.judge(call, Outcome::ServerError);
        }
    }

    fn cut(&self, cut: Cut) {
        if let Cut::Drained = cut {
            self.exchange.client.metrics.of(self.proxy.worker).cut.add(1);
        }
        self.reason.set(Some((cut.reason(), cut.blame())));
    }

    /// Who cut a response or a tunnel short.
    #[cold]
    fn how_cut(&self) -> Cut {
        let Exchange { watch, side, .. } = &self.exchange;
        let tunnel = watch.phase() == Phase::Tunnel;
        if self.upload.get() == Upload::TooLarge {
            Cut::BodyTooLarge
        } else if self.broke.get() {
            Cut::BackendCutShort
        } else if self.failed.get() {
            Cut::MiddlewareFailed
        } else if watch.is_cut() {
            Cut::Drained
        } else if watch.expired() {
            match (tunnel, watch.is_capped(), side.has_unsent()) {
                _ if watch.is_slow() => {
                    self.slow(if side.has_unsent() { Way::Down } else { Way::Up });
                    Cut::ClientTooSlow
                }
                (true, _, _) => Cut::TunnelIdle,
                (false, true, _) => Cut::OverTime,
                (false, false, true) => Cut::ClientStalled,
                (false, false, false) => Cut::BackendStalled,
            }
        } else if tunnel {
            Cut::TunnelBroken
        } else {
            Cut::ClientLeft
        }
    }

    /// Writes down what the exchange came to. Once.
    fn close(&self, complete: bool) {
        if self.over.replace(true) {
            return;
        }
        let client = &self.exchange.client;
        // Before the end of the exchange, which begins another wait.
        if !complete && self.reason.get().is_none() {
            self.cut(self.how_cut());
        }
        if let Some(call) = &self.call {
            self.settle(call, complete);
        }
        self.exchange.side.end();
        if !complete && self.http10() {
            self.exchange.side.abort();
        }
        // One whose response was not read to its end is of no more use.
        drop(self.connection.take());
        let worker = self.proxy.worker;
        let took = self.exchange.started.elapsed();
        let listener = client.metrics.of(worker);
        listener.ended.add(1);
        if self.bytes_in.get() > 0 {
            listener.bytes_in.add(self.bytes_in.get());
        }
        listener.bytes_out.add(self.bytes_out.get());
        let class = usize::from(self.status.get() / 100 - 1).min(4);
        if let Some(route) = self.found() {
            route.metrics.of(worker).responses[class].add(1);
            if let Action::Forward(forward) = &route.action {
                let upstream = forward.upstream.state.metrics.of(worker);
                upstream.responses[class].add(1);
                upstream.durations.observe(took);
                if let Some(call) = &self.call {
                    upstream.grpc[usize::from(self.call_status(call).code())].add(1);
                }
            }
        }
        if let Some(logged) = &self.logged {
            self.log(logged, took);
        }
    }
}

impl Drop for Running {
    /// Nobody is left to answer: the client is gone.
    fn drop(&mut self) {
        if !self.over.get() {
            if self.reason.get().is_none() {
                self.cut(if self.exchange.watch.is_cut() { Cut::Drained } else { Cut::ClientGone });
            }
            self.close(false);
        }
    }
}

impl Progress for Running {
    fn request_data(&self, data: &[u8]) -> Result<(), BodyError> {
        if let (Some(call), true) = (&self.call, self.max_body.get() < u64::MAX) {
            let too_large = call.exceeds(data, self.max_body.get());
            return self.moved(data.len(), too_large);
        }
        self.request_poured(data.len())
    }

    fn request_poured(&self, bytes: usize) -> Result<(), BodyError> {
        self.moved(bytes, self.bytes_in.get() + bytes as u64 > self.max_body.get())
    }

    fn paces_response(&self) -> bool {
        // How fast a client takes what a stream of gRPC has for it is between the two.
        self.call.is_none()
    }

    fn waits_for_client(&self, waits: bool) {
        if matches!(self.upload.get(), Upload::Moving | Upload::Waiting) {
            self.upload.set(if waits { Upload::Waiting } else { Upload::Moving });
            let watch = &self.exchange.watch;
            if !waits {
                watch.obliged(Way::Up);
            } else if self.paces_request() {
                let bytes = self.exchange.client.listener.min_bytes_per_second;
                watch.await_client(Way::Up, Pace { bytes, over: self.body_idle.get() });
            }
        }
    }

    fn request_ended(&self, complete: bool) {
        if matches!(self.upload.get(), Upload::Moving | Upload::Waiting) {
            self.upload.set(if complete { Upload::Over } else { Upload::Broken });
            if complete && !self.over.get() && self.exchange.watch.phase() == Phase::Response {
                self.exchange.watch.extend(self.response_head.get());
                self.sent.set(Some(Instant::now()));
            }
        }
    }

    fn response_read(&self) {
        if let Some(connection) = self.connection.take() {
            // With its response a call is over: nobody reads what its client has still to say.
            if self.call.is_none() || !connection.uploads() {
                connection.release();
            }
        }
    }

    fn response_data(&self, bytes: usize) {
        self.bytes_out.set(self.bytes_out.get() + bytes as u64);
    }

    fn request_trailers(&self, trailers: &mut HeaderMap) {
        self.show_request_trailers(trailers);
        if let Some(route) = self.found() {
            keep_to(trailers, route.config.headers.iter().map(|asked| &asked.name));
        }
    }

    fn response_trailers(&self, trailers: &mut HeaderMap) {
        self.show_response_trailers(trailers);
        if let Some(call) = &self.call
            && let Some(status) = call.trailed(trailers)
        {
            self.judge(call, grpc::outcome(status));
        }
    }

    fn response_broke(&self) {
        self.broke.set(true);
        if let Some(call) = &self.call {
            self.judge(call, Outcome::Reset);
        }
    }

    fn wrapper_failed(&self, way: Way) {
        match way {
            Way::Up => self.upload.set(Upload::Failed),
            Way::Down => self.failed.set(true),
        }
    }

    fn last_words(&self) -> Option<HeaderMap> {
        let call = self.call.as_ref()?;
        let cut = self.how_cut();
        let words = call.last_words(cut)?;
        self.cut(cut);
        Some(words)
    }

    fn ended(&self, complete: bool) {
        self.close(complete);
    }
}

impl Informed for Running {
    fn informational(&self, head: &[u8]) {
        if !self.http10()
            && !self.over.get()
            && let Some(head) = headers::informational(head)
        {
            self.exchange.side.inform(&head);
        }
    }

    fn go_on(&self) {
        // Where the backend was not asked, the client has been told already.
        if self.exchange.side.holds() {
            self.exchange.side.go_on();
        }
    }
}

/// Removes the trailers that a route asks for as headers, in any spelling: a backend that puts trailers among the headers would otherwise
/// see there what the route was not chosen by.
#[cold]
fn keep_to<'a>(trailers: &mut HeaderMap, named: impl Iterator<Item = &'a HeaderName> + Clone) {
    fields::remove(trailers, |name| named.clone().any(|it| is_spelling_of(it, name)));
}

/// An error with what caused it, on one line.
struct Chain<'a>(&'a ProxyError);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = std::error::Error::source(self.0);
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// The status of a tunnel.
pub(super) const SWITCHING: StatusCode = StatusCode::SWITCHING_PROTOCOLS;
