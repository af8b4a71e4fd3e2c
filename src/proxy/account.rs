//! The account of an exchange: what it has come to so far, for metrics, the access log and the log at `debug`.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::header::{self, HeaderValue};
use http::{Method, StatusCode, Uri, Version};

use crate::backend::BackendState;
use crate::config::{GrpcStatus, MiddlewareName};
use crate::exchange::{Exchange, RequestHead};
use crate::route::path::RefusedPath;
use crate::route::{Route, RouteAction};
use crate::telemetry::access_log::{InForce, Record};
use crate::telemetry::metrics::ListenerMetrics;

use super::exchange_end;
use super::{Blame, HeldSnapshot};

/// What an exchange has come to so far.
pub(super) struct Account {
    status: Cell<u16>,
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
    attempts: Cell<u8>,
    /// Why it ended as it did, and which side caused that, where it did not go well.
    reason: Cell<Option<(&'static str, Option<Blame>)>>,
    /// What only the logs want to know; `None` while neither does.
    logged: Option<Box<Logged>>,
}

/// What the logs want to know and would otherwise be gone by the end.
struct Logged {
    time: SystemTime,
    method: Method,
    target: Uri,
    host: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    referer: Option<HeaderValue>,
    backend: RefCell<Option<Arc<BackendState>>>,
    /// Which key of `paths` has refused it.
    refused: Cell<Option<RefusedPath>>,
    /// Which middleware has answered it, or was too slow.
    middleware: RefCell<Option<MiddlewareName>>,
    connect: Cell<Option<Duration>>,
    first_byte: Cell<Option<Duration>>,
}

/// What a line of the logs says of an exchange beside its account.
pub(super) struct Ended<'a> {
    pub(super) exchange: &'a Exchange,
    /// That of the client.
    pub(super) version: Version,
    pub(super) route: Option<&'a Route>,
    pub(super) took: Duration,
    pub(super) grpc_status: Option<GrpcStatus>,
    pub(super) access_log: &'a InForce,
}

impl Account {
    /// Of a request whose head has been read.
    pub(super) fn open(snapshot: &HeldSnapshot, exchange: &Exchange, head: &RequestHead) -> Self {
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
        Self {
            // What a client that leaves before the answer is logged with; nginx's number.
            status: Cell::new(499),
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
            attempts: Cell::new(0),
            reason: Cell::new(None),
            logged,
        }
    }

    /// An attempt begins.
    pub(super) fn attempt(&self) {
        self.attempts.set(self.attempts.get() + 1);
        if let Some(logged) = &self.logged {
            // Of the connection to the backend before.
            logged.connect.set(None);
        }
    }

    /// Attempts so far.
    pub(super) fn attempts(&self) -> u8 {
        self.attempts.get()
    }

    /// It is this backend whose answer is awaited, or has come.
    pub(super) fn serve(&self, backend: &Arc<BackendState>) {
        if let Some(logged) = &self.logged {
            *logged.backend.borrow_mut() = Some(Arc::clone(backend));
        }
    }

    /// The time, where the access log wants to know it.
    pub(super) fn now(&self) -> Option<Instant> {
        self.logged.as_ref().map(|_| Instant::now())
    }

    /// A connection was made for it, which began at that [`Account::now`].
    pub(super) fn connected(&self, began: Option<Instant>) {
        if let (Some(logged), Some(began)) = (&self.logged, began) {
            logged.connect.set(Some(began.elapsed()));
        }
    }

    /// The head of a backend's response has come to an exchange that was begun then.
    pub(super) fn answered(&self, started: Instant) {
        if let Some(logged) = &self.logged {
            logged.first_byte.set(Some(started.elapsed()));
        }
    }

    /// A key of `paths` has refused it.
    #[cold]
    pub(super) fn refuse(&self, refused: RefusedPath) {
        if let Some(logged) = &self.logged {
            logged.refused.set(Some(refused));
        }
    }

    /// A middleware has decided about it, or has not in time.
    #[cold]
    pub(super) fn middleware(&self, name: Option<&MiddlewareName>) {
        if let Some(logged) = &self.logged {
            *logged.middleware.borrow_mut() = name.cloned();
        }
    }

    /// So many bytes have come from the client.
    pub(super) fn take_in(&self, bytes: u64) {
        self.bytes_in.set(self.bytes_in.get() + bytes);
    }

    /// Bytes that have come from the client.
    pub(super) fn bytes_in(&self) -> u64 {
        self.bytes_in.get()
    }

    /// So many bytes go to the client.
    pub(super) fn give_out(&self, bytes: u64) {
        self.bytes_out.set(self.bytes_out.get() + bytes);
    }

    /// The client is answered with that status.
    pub(super) fn answer(&self, status: StatusCode) {
        self.status.set(status.as_u16());
    }

    /// The status that the client is answered with.
    pub(super) fn status(&self) -> u16 {
        self.status.get()
    }

    /// Where responses of that status are counted.
    pub(super) fn class(&self) -> usize {
        usize::from(self.status.get() / 100 - 1).min(4)
    }

    /// Notes why it ended as it did, and which side caused that, where that is known.
    pub(super) fn end(&self, reason: &'static str, blame: Option<Blame>) {
        self.reason.set(Some((reason, blame)));
    }

    /// Whether it is known why it did not go well. That a middleware has answered it is no such reason: its answer, too, may be cut short.
    pub(super) fn has_failed(&self) -> bool {
        self.failure().is_some()
    }

    /// Whether it was the client's doing that it did not go well; `None` where it did.
    pub(super) fn is_clients_fault(&self) -> Option<bool> {
        self.failure().map(|blame| blame == Some(Blame::Client))
    }

    /// Which side caused that it did not go well, where that is known; `None` where it did.
    fn failure(&self) -> Option<Option<Blame>> {
        self.reason.get().filter(|(reason, _)| *reason != exchange_end::ANSWERED).map(|(_, blame)| blame)
    }

    /// Counts it at its listener.
    pub(super) fn count(&self, listener: &ListenerMetrics) {
        listener.ended.add(1);
        if self.bytes_in.get() > 0 {
            listener.bytes_in.add(self.bytes_in.get());
        }
        listener.bytes_out.add(self.bytes_out.get());
    }

    /// Writes its lines, where they are wanted.
    pub(super) fn log<'a>(&self, ended: impl FnOnce() -> Ended<'a>) {
        if let Some(logged) = &self.logged {
            self.write(logged, &ended());
        }
    }

    #[cold]
    fn write(&self, logged: &Logged, ended: &Ended<'_>) {
        let Ended { exchange, version, route, took, grpc_status, access_log } = *ended;
        let upstream = route.and_then(|route| match &route.action {
            RouteAction::Forward(forward) => Some(forward.upstream.name().as_str()),
            _ => None,
        });
        let backend = logged.backend.borrow();
        let (reason, blame) = self.reason.get().unwrap_or((exchange_end::COMPLETE, None));
        // Without the query: there are secrets in those, and this log goes to other places than the access log.
        tracing::debug!(
            client = %exchange.client_ip,
            method = %logged.method,
            host = logged.host.as_ref().map(tracing::field::debug),
            path = ?logged.target.path(),
            status = self.status.get(),
            route = route.map(|route| route.name.as_str()),
            upstream,
            backend = backend.as_ref().map(|backend| tracing::field::display(&backend.address)),
            attempts = self.attempts.get(),
            reason,
            took_us = took.as_micros() as u64,
            "request"
        );
        let in_force = access_log.load();
        let Some(log) = &*in_force else { return };
        let detail = logged.refused.get().map(|RefusedPath { key, why }| format!("paths.{}: {why}", key.as_str()));
        let detail = detail.or_else(|| logged.middleware.borrow().as_ref().map(|name| format!("middleware.{name}")));
        log.record(&Record {
            time: logged.time,
            client_ip: exchange.client_ip,
            method: logged.method.as_str(),
            target: logged.target.path_and_query().map_or("*", |target| target.as_str()),
            protocol: match version {
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
            grpc_status: grpc_status.map(GrpcStatus::code),
            reason,
            ended_by: blame.map(Blame::as_str),
            detail: detail.as_deref(),
            left_out: 0,
            route: route.map(|route| route.name.as_str()),
            upstream,
            backend: backend.as_ref().map(|backend| &backend.address),
            listener: exchange.client.last_name().as_str(),
        });
    }
}
