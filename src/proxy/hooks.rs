//! How an exchange passes its middleware: that of its listener, then that of its route.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

use http::header;
use http::{HeaderMap, Method, Response};

use crate::exchange::body::{Body, BodySource, ExchangeProgress, WrappedSource};
use crate::exchange::deadline::Phase;
use crate::exchange::{HeadParts, RequestHead};
use crate::middleware::{
    Answer, Chain, Hook, Installed, LooksAt, Notes, Origin, RequestView, ResponseView, Step, Waiting,
};
use crate::route::{Forward, Route, RouteAction};

use super::attempt::in_time;
use super::running::RunningExchange;
use super::{Handled, ProxyError, exchange_end, grpc, own_response};

/// What of an exchange concerns its middleware.
#[derive(Debug)]
pub(super) struct Hooks {
    /// That of the listener, where there is some.
    outer: Option<Rc<Chain>>,
    /// Whether the response has no body whatever its head says.
    is_head: bool,
    notes: Notes,
    /// How many of them, counted from the outside, the response goes out through.
    passed: Cell<usize>,
    /// Whether the request has waited for one of them.
    waited: Cell<bool>,
    /// Whether its body is what they have made of it.
    wrapped: Cell<bool>,
}

impl Hooks {
    /// Of a request with that method, which has come to a listener with this middleware.
    pub(super) fn new(outer: Option<Rc<Chain>>, method: &Method) -> Self {
        let is_head = *method == Method::HEAD;
        Self {
            outer,
            is_head,
            notes: Notes::default(),
            passed: Cell::new(usize::MAX),
            waited: Cell::new(false),
            wrapped: Cell::new(false),
        }
    }

    fn outer(&self) -> &[Arc<Installed>] {
        self.outer.as_ref().map_or(&[], |chain| chain.links())
    }
}

impl RunningExchange {
    /// Whether any middleware on its way looks at it, as far as that is known.
    pub(super) fn is_looked_at(&self) -> bool {
        let outer = self.hooks.outer.as_ref().is_some_and(|chain| chain.looks_at_requests());
        outer || self.found().is_some_and(|route| route.chain.looks_at_requests())
    }

    /// What of its response that middleware looks at.
    pub(super) fn looks_at_response(&self) -> LooksAt {
        let outer = self.hooks.outer.as_ref().map_or(LooksAt::Nothing, |chain| chain.looks_at());
        outer.max(self.found().map_or(LooksAt::Nothing, |route| route.chain.looks_at()))
    }

    /// All of the middleware on its way, the outermost first.
    fn links(&self) -> impl DoubleEndedIterator<Item = &Arc<Installed>> {
        let inner = self.found().map_or(&[][..], |route| route.chain.links());
        self.hooks.outer().iter().chain(inner)
    }

    /// Shows a response to the middleware that its request came to, the innermost first.
    pub(super) fn finish(self: &Rc<Self>, handled: &mut Handled, origin: Origin) {
        let looks_at = self.looks_at_response();
        if looks_at == LooksAt::Nothing {
            return;
        }
        let Handled { head, pass_through, rule_lines, body, tunnel, .. } = &mut *handled;
        let writes_lines = self.may_write_lines();
        let mut place = self.links().count();
        for link in self.links().rev() {
            place -= 1;
            if place >= self.hooks.passed.get() {
                continue;
            }
            match &link.hook {
                Hook::Rules(rules) => {
                    let rule_lines = writes_lines.then_some(&mut *rule_lines);
                    rules.edit_response(HeadParts { map: &mut head.headers, pass_through, rule_lines }, origin);
                }
                Hook::Other(hook) => {
                    let progress = Rc::clone(self) as Rc<dyn ExchangeProgress>;
                    let body = (tunnel.is_none() && !self.hooks.is_head).then_some(&mut *body);
                    let (by, notes) = ((&self.exchange, &progress), (&self.hooks.notes, place));
                    hook.on_response(&mut ResponseView::new((head, body), by, origin, notes));
                }
            }
        }
        // One may have taken the date away.
        handled.dated &= looks_at != LooksAt::All;
    }

    /// Whether what header rules add to its response may be lines, which no other middleware sees. HTTP/2 has no lines.
    fn may_write_lines(&self) -> bool {
        let outer = self.hooks.outer.as_ref().is_none_or(|chain| chain.rules_only());
        outer && self.found().is_none_or(|route| route.chain.rules_only()) && !self.http2()
    }

    /// Whether the request has waited for its middleware.
    pub(super) fn has_waited(&self) -> bool {
        self.hooks.waited.get()
    }

    /// Whether its body is what middleware has made of it.
    pub(super) fn is_wrapped(&self) -> bool {
        self.hooks.wrapped.get()
    }

    /// The body of a request that goes to an upstream, wrapped by the middleware that wants to.
    ///
    /// # Errors
    /// When it is known to be larger than it may be.
    pub(super) fn wrapped(
        self: &Rc<Self>,
        forward: &Forward,
        upload: Rc<dyn BodySource>,
        head: &mut RequestHead,
    ) -> Result<Rc<dyn BodySource>, ProxyError> {
        let wraps = self.hooks.notes.take_wraps();
        if wraps.is_empty() {
            return Ok(upload);
        }
        // What is made of it may have no length.
        if self.limit_body(forward.max_body.unwrap_or(self.exchange.client.listener.max_body), upload.left()) {
            return Err(ProxyError::BodyTooLarge);
        }
        head.remove(&header::CONTENT_LENGTH);
        self.hooks.wrapped.set(true);
        Ok(WrappedSource::wrap(upload, Rc::clone(self) as _, wraps))
    }

    /// Shows the trailers of the request to the middleware.
    pub(super) fn show_request_trailers(&self, trailers: &mut HeaderMap) {
        self.links().for_each(|link| link.hook.on_request_trailers(trailers));
        self.hooks.notes.keep_owned_from(trailers);
    }

    /// Shows the trailers of the response to the middleware.
    pub(super) fn show_response_trailers(&self, trailers: &mut HeaderMap) {
        self.links().rev().for_each(|link| link.hook.on_response_trailers(trailers));
    }

    /// The answer of a middleware, as it goes to the client.
    #[cold]
    fn answered_by(&self, link: &Installed, answer: Answer) -> Response<Body> {
        if let Some(state) = &link.state {
            state.metrics.of(self.worker()).answered.add(1);
        }
        self.ended_by_middleware(link.name(), Some(exchange_end::ANSWERED));
        let (response, words, status) = answer.into_parts();
        let Some(call) = self.call() else { return response };
        if response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| grpc::is_grpc(kind.as_bytes())) {
            call.answered(grpc::GrpcResponseHead::of_answer(response.headers()));
            return response;
        }
        let status = status.unwrap_or_else(|| grpc::concluded(response.status().as_u16()));
        call.ends(status);
        own_response::grpc_answer(response, status, words)
    }
}

/// Shows a request to its middleware, the outermost first, until one answers. `route` is `None` where there is none for it.
///
/// # Errors
/// When one of them waits for too long.
pub(super) async fn pass(
    running: &RunningExchange,
    route: Option<&Route>,
    head: &mut RequestHead,
) -> Result<Option<Response<Body>>, ProxyError> {
    for (place, link) in running.links().enumerate() {
        let hook = match &link.hook {
            Hook::Rules(rules) => {
                rules.edit_request(head);
                continue;
            }
            Hook::Other(hook) => hook,
        };
        let view = RequestView::new(head, &running.exchange, &running.hooks.notes, place);
        let decided = match hook.on_request(view) {
            Step::Continue => continue,
            Step::Answer(answer) => Ok(ControlFlow::Break(answer)),
            Step::Wait(waiting) => wait(running, route, link, waiting).await,
        };
        let answer = match decided {
            Ok(ControlFlow::Continue(())) => continue,
            Ok(ControlFlow::Break(answer)) => Ok(Some(running.answered_by(link, answer))),
            Err(error) => Err(error),
        };
        running.hooks.passed.set(place);
        return answer;
    }
    Ok(None)
}

/// Waits for what a middleware waits for, within its time and that of the whole exchange. A client that goes ends the exchange, and this
/// with it.
async fn wait(
    running: &RunningExchange,
    route: Option<&Route>,
    link: &Installed,
    waiting: Waiting<'_>,
) -> Result<ControlFlow<Answer>, ProxyError> {
    running.hooks.waited.set(true);
    let metrics = link.state.as_ref().map(|state| state.metrics.of(running.worker()));
    if let Some(metrics) = metrics {
        metrics.waited.add(1);
    }
    if let Some(RouteAction::Forward(forward)) = route.map(|route| &route.action) {
        running.bound(&forward.timeouts)?;
    }
    let watch = &running.exchange.watch;
    watch.enter(Phase::Middleware, link.timeout());
    match in_time(watch, waiting).await {
        Some(decided) => Ok(decided),
        None if watch.is_capped() => Err(ProxyError::ExchangeTimeout),
        None => {
            if let Some(metrics) = metrics {
                metrics.timeouts.add(1);
            }
            running.ended_by_middleware(link.name(), None);
            Err(ProxyError::MiddlewareTimeout)
        }
    }
}
