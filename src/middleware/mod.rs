//! Plug-ins around an exchange.
//!
//! A [`Middleware`] sees the head of a request before a backend is picked, and the head of every response before it goes to the client. It
//! can let the request continue, answer it, or wait for something first.
//!
//! # Which ones, and in which order
//!
//! Requests go from the outside in: through the middleware of the listener, then of the route, then of the upstream, and last through the
//! route's own header rules. Responses go out the opposite way. The answer of a middleware goes out through those outside of it. So do the
//! proxy's own errors: every response goes through the middleware that its request came to, and one that came to no route goes through
//! that of its listener.
//!
//! A route is chosen before any middleware runs, by what the client has sent: no middleware can move a request to another route, so that
//! what was checked for one route is never served by another. A request for which there is no route still comes to the middleware of its
//! listener before it is answered 404. A request that is refused before routes are looked at (400, 405, 421, 503 by overload) does not:
//! only its response does.
//!
//! # How a middleware is made
//!
//! [`Kinds`] has a [`MiddlewareFactory`] for each kind of an embedding program; isobar's own kinds are built here. A table
//! `[middleware.NAME.KIND]` of the file is one [`Installed`] middleware. A reload makes it anew where its keys have changed. What is to
//! survive that lives in its state ([`Setup::state`]), which is found again by name and kind.
//!
//! # How what a gateway needs fits in
//!
//! | Middleware | How |
//! |---|---|
//! | authentication by another server | [`Step::Wait`] for a future that asks it; [`ControlFlow::Break`] with [`Answer::refuse`] if it says no, a header that is [its own](RequestView::own) if it says yes |
//! | rate limit, concurrency limit | counters in the state; [`Step::Answer`] with 429, or [`Step::Wait`] for a turn. A guard that is [kept](RequestView::keep) is dropped with the exchange |
//! | CORS | [`Step::Answer`] to a preflight; the origin is kept, and `on_response` takes it and adds the fields, to errors too |
//! | compression | `on_request` keeps what the client accepts; `on_response` changes the head and [wraps](ResponseView::wrap_body) the body |
//! | cache | [`Step::Answer`] with what the state has; else the key is kept, and `on_response` wraps the body with one that also stores it |
//! | checks of bodies | [`RequestView::wrap_body`] with a body that ends in [`BodyError::Middleware`](crate::exchange::body::BodyError) |
//! | request signing | fields are set in `on_request`, last if it is the innermost |
//! | IP lists, basic authentication, API keys | [`Step::Answer`], without waiting |

use std::any::Any;
use std::cell::{OnceCell, RefCell};
use std::fmt;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, response};
use http_body::Body as _;

use crate::config::{MiddlewareName, RouteConfig};
use crate::exchange::body::{Body, BoxBody, ExchangeProgress, Wrap};
use crate::exchange::{Exchange, RequestHead};
use crate::header_names::{self, is_spelling_of};

mod answer;
mod headers;
mod install;

pub use answer::Answer;
pub use headers::HeaderEditor;
pub use install::{Hook, InstallFailed, Installed, Kinds, MiddlewareFactory, MiddlewareSet, Setup, State};

/// A plug-in around an exchange. Its methods are called on the request path, by several workers at a time: they must not block. What
/// takes time is awaited ([`Step::Wait`]).
pub trait Middleware: fmt::Debug + Send + Sync {
    /// Before a backend is picked. Default is [`Step::Continue`].
    fn on_request<'a>(&'a self, _: RequestView<'a>) -> Step<'a> {
        Step::Continue
    }

    /// Before the head of the response goes to the client. Also for requests that never came to [`Middleware::on_request`], because the
    /// proxy has refused them before. Default is to do nothing.
    fn on_response(&self, _: &mut ResponseView<'_>) {}

    /// What of a response [`Middleware::on_response`] looks at. Asked once, when it is installed. Default is all of it.
    fn looks_at_responses(&self) -> LooksAt {
        LooksAt::All
    }

    /// The trailers of the request go to the backend. Default is to do nothing.
    fn on_request_trailers(&self, _: &mut HeaderMap) {}

    /// The trailers of the backend's response go to the client. Default is to do nothing.
    fn on_response_trailers(&self, _: &mut HeaderMap) {}
}

/// What of a response a middleware looks at. What it does not look at can pass through as it came, which costs less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LooksAt {
    /// Nothing.
    #[default]
    Nothing,
    /// Headers of its own that it sets, adds or removes, none of which [passes through](crate::exchange::passes_through).
    Own,
    /// All of its head, or its body.
    All,
}

/// What becomes of a request at a middleware.
pub enum Step<'a> {
    /// It goes on to the next one, and at last to the backend.
    Continue,
    /// It is answered, and goes no further.
    Answer(Answer),
    /// That is not known yet. The future says it. It runs on the worker that serves the request, and is dropped when the client goes or
    /// when the middleware's `timeout` or a limit of the whole exchange has passed; the client is then answered 504.
    Wait(Waiting<'a>),
}

/// What a middleware waits for. Only this is allocated, and only by a middleware that waits.
pub type Waiting<'a> = Pin<Box<dyn Future<Output = ControlFlow<Answer>> + 'a>>;

impl<'a> Step<'a> {
    /// Waits for `future`.
    pub fn wait(future: impl Future<Output = ControlFlow<Answer>> + 'a) -> Self {
        Self::Wait(Box::pin(future))
    }
}

impl fmt::Debug for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Continue => f.write_str("Continue"),
            Self::Answer(answer) => f.debug_tuple("Answer").field(answer).finish(),
            Self::Wait(_) => f.write_str("Wait"),
        }
    }
}

/// A request as a middleware sees it.
#[derive(Debug)]
pub struct RequestView<'a> {
    /// Its head, in the form in which routes were compared with it. To ask for one header costs less than to have all of them in a map.
    pub head: &'a mut RequestHead,
    /// The client and its connection.
    pub exchange: &'a Exchange,
    notes: &'a Notes,
    place: usize,
}

impl<'a> RequestView<'a> {
    /// The request of an exchange, at the middleware at `place` in its chain.
    pub fn new(head: &'a mut RequestHead, exchange: &'a Exchange, notes: &'a Notes, place: usize) -> Self {
        Self { head, exchange, notes, place }
    }

    /// Has the request's body wrapped on its way to the backend, behind what middleware outside of this one has made of it. It is asked for
    /// pieces as the backend takes them. Where the request has no body, `wrap` is never called.
    ///
    /// A body that is wrapped is read into this process, and has a length only if what `wrap` makes says one.
    pub fn wrap_body(&mut self, wrap: impl FnOnce(BoxBody) -> BoxBody + 'static) {
        self.notes.wrap(Box::new(wrap));
    }

    /// Makes a header this middleware's own: what the client has sent under that name goes, in each spelling that some backend takes for it
    /// (`x_user` for `x-user`) and among the trailers too, and `value` is in its place, if there is one. For what backends believe.
    pub fn own(&mut self, name: HeaderName, value: Option<HeaderValue>) {
        header_names::remove(self.head.headers(), |it| is_spelling_of(it, &name));
        if let Some(value) = value {
            self.head.insert(name.clone(), value);
        }
        self.notes.own(name);
    }

    /// Keeps something of this middleware's until the exchange is over, in place of what it has kept before.
    pub fn keep(&self, kept: impl Any) {
        self.notes.keep(self.place, Box::new(kept));
    }
}

/// A response as a middleware sees it.
pub struct ResponseView<'a> {
    /// Its head.
    pub head: &'a mut response::Parts,
    /// The client and its connection.
    pub exchange: &'a Exchange,
    /// Where it is from.
    pub origin: Origin,
    /// `None` where there is none to wrap: the connection becomes a tunnel, or the request was HEAD.
    body: Option<&'a mut Body>,
    progress: &'a Rc<dyn ExchangeProgress>,
    notes: &'a Notes,
    place: usize,
}

impl<'a> ResponseView<'a> {
    /// The response of an exchange, at the middleware at `place` in its chain.
    pub fn new(
        (head, body): (&'a mut response::Parts, Option<&'a mut Body>),
        (exchange, progress): (&'a Exchange, &'a Rc<dyn ExchangeProgress>),
        origin: Origin,
        (notes, place): (&'a Notes, usize),
    ) -> Self {
        Self { head, exchange, origin, body, progress, notes, place }
    }

    /// Has the response's body wrapped on its way to the client, behind what middleware inside of this one has made of it. It is asked for
    /// pieces as the client takes them, and dropped when the client goes. Nothing of it is asked for where the response has none, as that to
    /// a HEAD request.
    ///
    /// A body that is wrapped is read into this process, and has a length only if what `wrap` makes says one. Its trailers were shown to
    /// [`Middleware::on_response_trailers`] before; those that `wrap` makes itself are not.
    pub fn wrap_body(&mut self, wrap: impl FnOnce(BoxBody) -> BoxBody) {
        // A response without a body tells how long it would be, which is not known any more.
        self.head.headers.remove(header::CONTENT_LENGTH);
        let bodiless = self.is_bodiless();
        if let Some(body) = self.body.as_mut().filter(|_| !bodiless) {
            body.wrap(wrap, Rc::clone(self.progress));
        }
    }

    /// Whether it has no body by its status: a wrapper around nothing would have a length, or an end of its own, where there must be none.
    /// A call of gRPC that ends in its head is one.
    fn is_bodiless(&self) -> bool {
        matches!(self.head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || (self.head.headers.contains_key("grpc-status")
                && self.body.as_ref().is_some_and(|it| it.is_end_stream()))
    }

    /// Takes what this middleware has kept with the request ([`RequestView::keep`]), if it is of that type.
    pub fn take<T: Any>(&self) -> Option<T> {
        self.notes.take(self.place)
    }
}

/// Where a response is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A backend.
    Backend,
    /// The configuration: a redirect, or a fixed response.
    Route,
    /// A middleware further inside.
    Middleware,
    /// The proxy: it is an error.
    Error,
}

/// What the middleware of an exchange keeps until its end. Nothing is allocated for those that keep nothing.
#[derive(Default)]
pub struct Notes(OnceCell<Box<NotesTaken>>);

#[derive(Default)]
struct NotesTaken {
    /// What each keeps, by its place in the chain.
    kept: RefCell<Vec<(usize, Box<dyn Any>)>>,
    /// What the request's body is wrapped by, the outermost first.
    wraps: RefCell<Vec<Wrap>>,
    /// Headers that clients do not send.
    owned: RefCell<Vec<HeaderName>>,
}

impl Notes {
    /// What the request's body is to be wrapped by, the outermost first. Once.
    pub fn take_wraps(&self) -> Vec<Wrap> {
        self.0.get().map_or_else(Vec::new, |noted| noted.wraps.take())
    }

    fn wrap(&self, wrap: Wrap) {
        self.noted().wraps.borrow_mut().push(wrap);
    }

    fn own(&self, name: HeaderName) {
        self.noted().owned.borrow_mut().push(name);
    }

    /// Takes out of trailers what middleware has made its own ([`RequestView::own`]).
    pub fn keep_owned_from(&self, trailers: &mut HeaderMap) {
        if let Some(noted) = self.0.get() {
            let owned = noted.owned.borrow();
            header_names::remove(trailers, |name| owned.iter().any(|it| is_spelling_of(it, name)));
        }
    }

    fn keep(&self, place: usize, kept: Box<dyn Any>) {
        let mut notes = self.noted().kept.borrow_mut();
        match notes.iter_mut().find(|(of, _)| *of == place) {
            Some(note) => note.1 = kept,
            None => notes.push((place, kept)),
        }
    }

    fn take<T: Any>(&self, place: usize) -> Option<T> {
        let mut notes = self.0.get()?.kept.borrow_mut();
        let found = notes.iter().position(|(of, kept)| *of == place && kept.is::<T>())?;
        notes.swap_remove(found).1.downcast().ok().map(|kept| *kept)
    }

    fn noted(&self) -> &NotesTaken {
        self.0.get_or_init(Box::default)
    }
}

impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.0.get().map(|noted| noted.kept.borrow());
        f.debug_list().entries(kept.iter().flat_map(|kept| kept.iter().map(|(place, _)| place))).finish()
    }
}

/// The middleware of a listener, or that of a route with its upstream's; the outermost first.
#[derive(Clone, Debug)]
pub struct Chain {
    links: Box<[Arc<Installed>]>,
    looks_at_requests: bool,
    looks_at: LooksAt,
    /// Whether header rules alone look at responses.
    rules_only: bool,
}

impl Chain {
    /// Whether any of it looks at requests.
    pub fn looks_at_requests(&self) -> bool {
        self.looks_at_requests
    }

    /// What of a response any of it looks at.
    pub fn looks_at(&self) -> LooksAt {
        self.looks_at
    }

    /// Whether of it header rules alone look at responses, so that what they add need not be in the map of a response's head.
    pub fn rules_only(&self) -> bool {
        self.rules_only
    }

    /// All of it, the outermost first.
    pub fn links(&self) -> &[Arc<Installed>] {
        &self.links
    }

    fn of(links: Vec<Arc<Installed>>) -> Self {
        let looks_at = links.iter().map(|link| link.hook.looks_at_responses()).max().unwrap_or_default();
        let is_rule = |link: &Arc<Installed>| matches!(link.hook, Hook::Rules(_));
        let rules_only = links.iter().all(|link| is_rule(link) || link.hook.looks_at_responses() == LooksAt::Nothing);
        let looks_at_requests = links.iter().any(|link| link.hook.looks_at_requests());
        Self { links: links.into(), looks_at_requests, looks_at, rules_only }
    }

    /// That of a route: its own, that of the upstream that it goes to, and its header rules.
    pub fn of_route(config: &RouteConfig, upstream: &[MiddlewareName], installed: &[Arc<Installed>]) -> Self {
        let mut links = named(config.middleware.iter().chain(upstream), installed);
        if !config.request_headers.is_empty() || !config.response_headers.is_empty() {
            let rules = HeaderEditor::of_route(config.request_headers.clone(), config.response_headers.clone());
            links.push(Arc::new(Installed::unnamed(Hook::Rules(rules))));
        }
        Self::of(links)
    }
}

impl Default for Chain {
    fn default() -> Self {
        Self::of(Vec::new())
    }
}

/// Those of these names. A checked configuration names no others.
fn named<'n>(names: impl Iterator<Item = &'n MiddlewareName>, installed: &[Arc<Installed>]) -> Vec<Arc<Installed>> {
    names.filter_map(|name| installed.iter().find(|it| it.name() == Some(name)).cloned()).collect()
}

/// How long a middleware may wait where the file does not say.
pub const TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_middleware_that_does_nothing_lets_requests_continue() {
        #[derive(Debug)]
        struct Nothing;

        impl Middleware for Nothing {}

        let (exchange, notes) = (crate::exchange::testing::exchange(), Notes::default());
        let mut head = RequestHead::default();
        let step = Nothing.on_request(RequestView::new(&mut head, &exchange, &notes, 0));
        assert!(matches!(step, Step::Continue), "{step:?}");
    }

    #[test]
    fn what_a_middleware_owns_no_client_sends_in_any_spelling() {
        let (exchange, notes) = (crate::exchange::testing::exchange(), Notes::default());
        let mut head = RequestHead::default();
        let (user, other) = (HeaderName::from_static("x-user"), HeaderName::from_static("x_user"));
        for name in [&user, &other] {
            head.insert(name.clone(), HeaderValue::from_static("admin"));
        }
        let mut view = RequestView::new(&mut head, &exchange, &notes, 0);
        view.own(user.clone(), Some(HeaderValue::from_static("ali")));
        assert_eq!(
            head.headers().iter().map(|(name, value)| (name, value.as_bytes())).collect::<Vec<_>>(),
            [(&user, &b"ali"[..])]
        );
        let mut trailers = HeaderMap::new();
        for name in [user, other, HeaderName::from_static("x-sum")] {
            trailers.insert(name, HeaderValue::from_static("admin"));
        }
        notes.keep_owned_from(&mut trailers);
        assert_eq!(trailers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-sum"]);
    }

    #[test]
    fn what_is_kept_is_found_by_place_and_type() {
        let notes = Notes::default();
        notes.keep(0, Box::new(1_u8));
        notes.keep(1, Box::new("one"));
        notes.keep(0, Box::new(2_u8));
        assert_eq!(notes.take::<&str>(0), None);
        assert_eq!(notes.take::<u8>(0), Some(2));
        assert_eq!(notes.take::<u8>(0), None);
        assert_eq!(notes.take::<&str>(1), Some("one"));
    }
}
