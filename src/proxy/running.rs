//! An exchange under way: what it is, what belongs to it until its end, and how that comes.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{self, HeaderValue};
use http::{StatusCode, Version};

use crate::backend::BackendState;
use crate::config::{BodyLimit, MiddlewareName, Misdirected, Timeouts};
use crate::exchange::deadline::{NEVER, Phase, Way};
use crate::exchange::{Exchange, RequestHead};
use crate::route::{Route, RouteAction};
use crate::transport::Connection;

use super::account::{Account, Ended};
use super::exchange_end::ExchangeCut;
use super::grpc::{GrpcCall, GrpcResponseHead, OVER_TIME};
use super::hooks::Hooks;
use super::upload::{Upload, Uploading, Waits};
use super::{Handled, HeldSnapshot, KeptRoute, Proxy, ProxyError, own_response};

mod bodies;
mod call;

/// An exchange under way. It may last for long, and holds what it needs: not the snapshot that it was begun with.
pub(super) struct RunningExchange {
    pub(super) exchange: Exchange,
    proxy: Rc<Proxy>,
    /// What concerns its middleware.
    pub(super) hooks: Hooks,
    /// That of the client.
    version: Version,
    route: OnceCell<KeptRoute>,
    /// The request's body.
    upload: Uploading,
    /// What it has come to.
    account: Account,
    /// Whether the backend broke its response off.
    broke: Cell<bool>,
    /// Whether a middleware broke it off.
    failed: Cell<bool>,
    over: Cell<bool>,
    /// The call of gRPC that it is, if it is one.
    call: Option<Box<GrpcCall>>,
    /// The backend's connection, until the response has been read.
    connection: RefCell<Option<Connection>>,
}

impl RunningExchange {
    /// The request's head has been read.
    pub(super) fn begin(
        proxy: &Rc<Proxy>,
        snapshot: &HeldSnapshot,
        exchange: Exchange,
        call: Option<Box<GrpcCall>>,
        head: &RequestHead,
    ) -> Rc<Self> {
        exchange.client.metrics.of(proxy.worker).requests.add(1);
        let account = Account::open(snapshot, &exchange, head);
        let hooks = Hooks::new(snapshot.chain(&exchange.client), &head.method);
        Rc::new(Self {
            exchange,
            proxy: Rc::clone(proxy),
            hooks,
            version: head.version,
            route: OnceCell::new(),
            upload: Uploading::none(),
            account,
            broke: Cell::new(false),
            failed: Cell::new(false),
            over: Cell::new(false),
            call,
            connection: RefCell::new(None),
        })
    }

    /// Which route was found. Once.
    pub(super) fn routed(&self, route: KeptRoute) -> &Route {
        self.route.get_or_init(|| route)
    }

    /// The request's body may have so many bytes. Whether one of known length, with `left` of them, has more.
    pub(super) fn limit_body(&self, limit: BodyLimit, left: Option<u64>) -> bool {
        let BodyLimit::Bytes(max) = limit else { return false };
        self.upload.limit(max);
        // Of a call the messages count, of which there may be many.
        self.call.is_none() && left.is_some_and(|left| left > max)
    }

    /// The request goes to an upstream, with these limits. `measured`: the length of its body is known.
    ///
    /// # Errors
    /// When a call is to take no time, or its timeout is malformed.
    pub(super) fn forwarded(&self, timeouts: &Timeouts, upload: Upload, measured: bool) -> Result<(), ProxyError> {
        let body_idle = match &self.call {
            None => timeouts.body_idle,
            Some(_) => timeouts.grpc_idle.unwrap_or(NEVER),
        };
        self.upload.begin(upload, measured, Waits { body_idle, response_head: self.head_limit(timeouts) });
        self.bound(timeouts)
    }

    /// The whole exchange may take so long. Said once more, it makes no difference.
    ///
    /// # Errors
    /// As of [`RunningExchange::forwarded`].
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
        if self.call.is_some() { NEVER } else { self.upload.body_idle() }
    }

    /// The request was sent, or is being sent, to a backend: waits for its answer, which has so long to come once all of the
    /// request is sent.
    pub(super) fn await_head(&self, limit: Duration) {
        let limit = self.upload.await_head(limit);
        self.exchange.watch.enter(Phase::Response, limit);
    }

    /// An attempt at a backend begins.
    pub(super) fn attempt(&self, backend: &Arc<BackendState>) {
        backend.metrics.of(self.proxy.worker).picks.add(1);
        self.account.attempt();
        self.serve(backend);
    }

    /// It is this backend whose answer is awaited, or has come.
    pub(super) fn serve(&self, backend: &Arc<BackendState>) {
        self.exchange.watch.serve(Some(backend.id));
        self.account.serve(backend);
    }

    /// What it has come to so far.
    pub(super) fn account(&self) -> &Account {
        &self.account
    }

    /// The head of a backend's response has come.
    pub(super) fn answered(&self, head: GrpcResponseHead) {
        if let Some(call) = &self.call {
            call.answered(head);
        }
        self.account.answered(self.exchange.started);
    }

    /// Keeps a backend's connection until the response on it has been read.
    pub(super) fn lend(&self, connection: Connection) {
        *self.connection.borrow_mut() = Some(connection);
    }

    /// How the request's body goes on.
    pub(super) fn upload(&self) -> Upload {
        self.upload.state()
    }

    /// When the whole request was sent, where the attempt began at `begun`: how long a client takes to send a body is not how
    /// long a backend takes to answer.
    pub(super) fn sent_since(&self, begun: Instant) -> Instant {
        self.upload.sent_since(begun)
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
        self.account.end(error.reason(), Some(error.blame()));
        tracing::debug!(
            error = %ErrorChain(error),
            route = self.found().map(|route| route.name.as_str()),
            client = %self.exchange.client_ip,
            "exchange failed"
        );
        if let ProxyError::Path(refused) = error {
            self.exchange.client.metrics.of(self.proxy.worker).paths_refused[refused.key as usize].add(1);
            self.account.refuse(*refused);
        }
        let mut response = match &self.call {
            None => own_response::error(error),
            Some(call) => {
                call.ends(error.grpc_status());
                let words = if let ProxyError::ExchangeTimeout = error { OVER_TIME } else { error.told() };
                own_response::grpc_error(error.grpc_status(), words)
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
            self.account.end(reason, None);
        }
        self.account.middleware(name);
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
        self.account.answer(handled.head.status);
        match handled.tunnel {
            // The tunnel keeps the account.
            Some(_) => {}
            None => {
                let idle = match self.upload.body_idle() {
                    Duration::ZERO => self.exchange.client.listener.idle_timeout,
                    idle => idle,
                };
                self.exchange.side.body(idle);
                if self.upload.state() != Upload::Over && !self.upload.is_measured() {
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
        self.account.take_in(up);
        self.account.give_out(down);
    }

    pub(super) fn found(&self) -> Option<&Route> {
        self.route.get().map(|route| &***route)
    }

    fn cut(&self, cut: ExchangeCut) {
        if let ExchangeCut::Drained = cut {
            self.exchange.client.metrics.of(self.proxy.worker).cut.add(1);
        }
        self.account.end(cut.reason(), cut.blame());
    }

    /// What cut a response or a tunnel short.
    #[cold]
    fn how_cut(&self) -> ExchangeCut {
        let Exchange { watch, side, .. } = &self.exchange;
        let tunnel = watch.phase() == Phase::Tunnel;
        if self.upload.state() == Upload::TooLarge {
            ExchangeCut::BodyTooLarge
        } else if self.upload.state() == Upload::Failed || self.failed.get() {
            ExchangeCut::MiddlewareFailed
        } else if self.broke.get() {
            ExchangeCut::BackendCutShort
        } else if watch.is_cut() {
            ExchangeCut::Drained
        } else if watch.expired() {
            match (tunnel, watch.is_capped(), side.has_unsent()) {
                _ if watch.is_slow() => {
                    self.slow(if side.has_unsent() { Way::Down } else { Way::Up });
                    ExchangeCut::ClientTooSlow
                }
                (true, _, _) => ExchangeCut::TunnelIdle,
                (false, true, _) => ExchangeCut::OverTime,
                (false, false, true) => ExchangeCut::ClientStalled,
                (false, false, false) => ExchangeCut::BackendStalled,
            }
        } else if tunnel {
            ExchangeCut::TunnelBroken
        } else {
            ExchangeCut::ClientLeft
        }
    }

    /// Writes down what the exchange came to. Once.
    fn close(&self, complete: bool) {
        if self.over.replace(true) {
            return;
        }
        let client = &self.exchange.client;
        // Before the end of the exchange, which begins another wait.
        if !complete && !self.account.has_failed() {
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
        self.account.count(client.metrics.of(worker));
        let class = self.account.class();
        if let Some(route) = self.found() {
            route.metrics.of(worker).responses[class].add(1);
            if let RouteAction::Forward(forward) = &route.action {
                let upstream = forward.upstream.state.metrics.of(worker);
                upstream.responses[class].add(1);
                upstream.durations.observe(took);
                if let Some(call) = &self.call {
                    upstream.grpc[usize::from(self.call_status(call).code())].add(1);
                }
            }
        }
        self.account.log(|| Ended {
            exchange: &self.exchange,
            version: self.version,
            route: self.found(),
            took,
            grpc_status: self.call.as_ref().map(|call| self.call_status(call)),
            access_log: &self.proxy.process.access_log,
        });
    }
}

impl Drop for RunningExchange {
    /// There is no one to answer: the client is gone.
    fn drop(&mut self) {
        if !self.over.get() {
            if !self.account.has_failed() {
                self.cut(if self.exchange.watch.is_cut() { ExchangeCut::Drained } else { ExchangeCut::ClientGone });
            }
            self.close(false);
        }
    }
}

/// An error with what caused it, on one line.
struct ErrorChain<'a>(&'a ProxyError);

impl std::fmt::Display for ErrorChain<'_> {
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
