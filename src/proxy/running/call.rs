//! The call of gRPC that an exchange may be: what it is asked about, and how its end is judged.

use std::time::Duration;

use http::StatusCode;

use crate::backend::outlier::AttemptOutcome;
use crate::config::GrpcStatus;
use crate::proxy::grpc::{GrpcCall, GrpcResponseHead};
use crate::route::RouteAction;
use crate::transport::Connection;

use super::RunningExchange;

impl RunningExchange {
    /// The call of gRPC that it is.
    pub(in crate::proxy) fn call(&self) -> Option<&GrpcCall> {
        self.call.as_deref()
    }

    /// What the head of a response says of a call.
    #[inline]
    pub(in crate::proxy) fn head(&self, status: StatusCode, connection: &Connection) -> GrpcResponseHead {
        if self.call.is_some() { GrpcCall::head(status, connection) } else { GrpcResponseHead::Http }
    }

    /// Whether it was for a backend to be done in `waited`. Clients of gRPC choose their deadlines: one that is shorter than what
    /// the route allows for a response says nothing of the backend.
    pub(in crate::proxy) fn is_fair(&self, waited: Duration) -> bool {
        match (&self.call, self.found().map(|route| &route.action)) {
            (Some(call), Some(RouteAction::Forward(forward))) if call.is_bound_by_client() => {
                waited >= forward.timeouts.response_head
            }
            _ => true,
        }
    }

    /// What the call has come to.
    pub(super) fn call_status(&self, call: &GrpcCall) -> GrpcStatus {
        call.outcome(self.account.status(), self.account.is_clients_fault())
    }

    /// Tells outlier detection how the call has ended at the backend whose status was to come.
    pub(super) fn judge(&self, call: &GrpcCall, outcome: AttemptOutcome) {
        if let Some((backend, took)) = call.awaited()
            && let Some(RouteAction::Forward(forward)) = self.found().map(|route| &route.action)
        {
            forward.upstream.note(&backend, self.proxy.worker, outcome, took);
        }
    }

    /// The end of a call. A response that was whole and had no status behind it is the backend's fault; of one that was cut short
    /// by others nothing is known.
    pub(super) fn settle(&self, call: &GrpcCall, complete: bool) {
        if complete {
            self.judge(call, AttemptOutcome::ServerError);
        }
    }
}
