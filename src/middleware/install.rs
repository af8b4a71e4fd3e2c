//! From the tables of the file to middleware, and what of it outlives a reload.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, StatusCode};

use crate::config::{
    HeaderRules, ListenerConfig, ListenerName, MiddlewareConfig, MiddlewareKind, MiddlewareName, MiddlewareTable,
};
use crate::telemetry::metrics::{MiddlewareMetrics, Sharded};

use super::{Answer, Chain, HeaderEditor, LooksAt, Middleware, RequestView, Step, TIMEOUT, named};

/// A middleware of the file, ready to be used.
#[derive(Debug)]
pub struct Installed {
    /// What it was built from; `None` for the header rules of a route, which have no name.
    pub config: Option<Arc<MiddlewareConfig>>,
    /// What it does.
    pub hook: Hook,
    /// What outlives it; `None` for header rules of a route.
    pub state: Option<Arc<State>>,
}

impl Installed {
    pub(super) fn unnamed(hook: Hook) -> Self {
        Self { config: None, hook, state: None }
    }

    /// Its name.
    pub fn name(&self) -> Option<&MiddlewareName> {
        self.config.as_ref().map(|config| &config.name)
    }

    /// How long it may wait.
    pub fn timeout(&self) -> Duration {
        self.config.as_ref().map_or(TIMEOUT, |config| config.timeout)
    }
}

/// What a middleware does.
#[derive(Debug)]
pub enum Hook {
    /// It changes headers.
    Rules(HeaderEditor),
    /// Any other.
    Other(Box<dyn Middleware>),
}

impl Hook {
    /// Whether it looks at requests.
    pub fn looks_at_requests(&self) -> bool {
        match self {
            Self::Rules(rules) => rules.looks_at_requests(),
            Self::Other(_) => true,
        }
    }

    /// What of a response it looks at.
    pub fn looks_at_responses(&self) -> LooksAt {
        match self {
            Self::Rules(rules) => rules.looks_at_responses(),
            Self::Other(hook) => hook.looks_at_responses(),
        }
    }

    /// The trailers of the request go to the backend.
    pub fn on_request_trailers(&self, trailers: &mut HeaderMap) {
        match self {
            Self::Rules(rules) => rules.edit_request_trailers(trailers),
            Self::Other(hook) => hook.on_request_trailers(trailers),
        }
    }

    /// The trailers of the backend's response go to the client.
    pub fn on_response_trailers(&self, trailers: &mut HeaderMap) {
        match self {
            Self::Rules(rules) => rules.edit_response_trailers(trailers),
            Self::Other(hook) => hook.on_response_trailers(trailers),
        }
    }
}

/// What goes on over reloads: found again by name and kind.
pub struct State {
    kind: Box<str>,
    /// What was counted.
    pub metrics: Sharded<MiddlewareMetrics>,
    /// What the middleware itself keeps. Control plane only.
    own: Mutex<Option<Arc<dyn Any + Send + Sync>>>,
}

impl State {
    /// That of a middleware which was not there before, for so many workers.
    pub fn new(config: &MiddlewareConfig, workers: usize) -> Arc<Self> {
        Arc::new(Self { kind: config.kind.as_str().into(), metrics: Sharded::new(workers), own: Mutex::default() })
    }

    /// Whether it is that of a middleware of the same kind.
    pub fn fits(&self, config: &MiddlewareConfig) -> bool {
        *self.kind == *config.kind.as_str()
    }

    fn own<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let known = own.clone().and_then(|known| known.downcast().ok());
        known.unwrap_or_else(|| {
            let made = Arc::new(make());
            *own = Some(Arc::clone(&made) as _);
            made
        })
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// What a middleware is made from.
#[derive(Debug)]
pub struct Setup<'a> {
    /// Its name in the file.
    pub name: &'a MiddlewareName,
    /// Its table, with the variables of the environment filled in. What of it may be a secret is not known, so that isobar shows none of
    /// its values anywhere.
    pub table: &'a MiddlewareTable,
    state: &'a State,
}

impl Setup<'_> {
    /// The state of this middleware: what `make` has made the first time, however often its keys have changed since. A middleware that was
    /// not in the file for a while begins anew. What it counts with should be atomic: all workers share it.
    pub fn state<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        self.state.own(make)
    }
}

/// Makes a middleware of a kind of the embedding program's own.
///
/// # Errors
/// When its table says what cannot be: a sentence that the log has behind the middleware's name. The configuration is refused then.
pub type MiddlewareFactory = Arc<dyn Fn(&Setup<'_>) -> Result<Box<dyn Middleware>, String> + Send + Sync>;

/// The kinds of middleware of the embedding program, by the names that `lb.toml` uses.
#[derive(Clone, Default)]
pub struct Kinds(HashMap<String, MiddlewareFactory>);

impl Kinds {
    /// Adds one. The names of isobar's own kinds cannot be taken: those win.
    pub fn add(&mut self, name: impl Into<String>, factory: MiddlewareFactory) {
        self.0.insert(name.into(), factory);
    }

    /// The names, for the check of the configuration.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Makes the middleware that a table of the file asks for.
    ///
    /// # Errors
    /// When its factory refuses the table, or there is none.
    pub fn install(&self, config: &Arc<MiddlewareConfig>, state: Arc<State>) -> Result<Arc<Installed>, InstallFailed> {
        let hook = match &config.kind {
            MiddlewareKind::Headers(HeaderRules { request, response }) => {
                Hook::Rules(HeaderEditor::new(request.clone(), response.clone()))
            }
            MiddlewareKind::Custom { kind, table } => {
                let setup = Setup { name: &config.name, table, state: &state };
                let made = match self.0.get(&**kind) {
                    Some(factory) => factory(&setup),
                    // The check of the configuration refuses such a kind.
                    None => Err(format!("there is no kind {kind:?}")),
                };
                Hook::Other(made.map_err(|why| InstallFailed { name: config.name.clone(), why })?)
            }
        };
        Ok(Arc::new(Installed { config: Some(Arc::clone(config)), hook, state: Some(state) }))
    }
}

impl fmt::Debug for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A middleware that could not be made.
#[derive(Debug)]
pub struct InstallFailed {
    /// Its name.
    pub name: MiddlewareName,
    /// What its factory says.
    pub why: String,
}

/// The middleware of a configuration.
#[derive(Debug, Default)]
pub struct MiddlewareSet {
    /// Sorted by name.
    pub installed: Vec<Arc<Installed>>,
    /// Of the listeners that have some.
    pub listeners: Box<[(ListenerName, Chain)]>,
}

impl MiddlewareSet {
    /// Gives each listener its own of what was installed.
    pub fn new(installed: Vec<Arc<Installed>>, listeners: &[Arc<ListenerConfig>]) -> Self {
        let mut set = Self { installed, listeners: Box::default() };
        let with = listeners.iter().filter(|listener| !listener.middleware.is_empty());
        set.listeners = with.map(|listener| (listener.name.clone(), set.chain(listener))).collect();
        set
    }

    /// The middleware of a listener. Where one of it is not installed any more, since a reload has removed both, the chain refuses what is
    /// still asked on the listener's connections: what that middleware would have checked is not let through unchecked.
    pub fn chain(&self, listener: &ListenerConfig) -> Chain {
        let mut links = named(listener.middleware.iter(), &self.installed);
        if links.len() < listener.middleware.len() {
            links.insert(0, Arc::new(Installed::unnamed(Hook::Other(Box::new(Removed)))));
        }
        Chain::of(links)
    }
}

/// Stands for middleware that a reload has removed.
#[derive(Debug)]
struct Removed;

impl Middleware for Removed {
    fn on_request<'a>(&'a self, _: RequestView<'a>) -> Step<'a> {
        Step::Answer(Answer::refuse(StatusCode::SERVICE_UNAVAILABLE, "the listener was removed"))
    }

    fn looks_at_responses(&self) -> LooksAt {
        LooksAt::Nothing
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::config::Table as _;

    struct Counting(Arc<AtomicU64>);

    impl Middleware for Counting {}

    impl fmt::Debug for Counting {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "Counting({})", self.0.load(Ordering::Relaxed))
        }
    }

    fn config(kind: &str, table: &str) -> Arc<MiddlewareConfig> {
        let kind = MiddlewareKind::Custom { kind: kind.into(), table: table.parse().unwrap() };
        Arc::new(MiddlewareConfig { name: "one".into(), timeout: TIMEOUT, kind })
    }

    fn kinds() -> Kinds {
        let mut kinds = Kinds::default();
        let factory: MiddlewareFactory = Arc::new(|setup| {
            if setup.table.contains_key("wrong") {
                return Err("wrong is no key of this kind".into());
            }
            let counted = setup.state(AtomicU64::default);
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(Counting(counted)))
        });
        kinds.add("counting", Arc::clone(&factory));
        kinds.add("headers", factory);
        kinds
    }

    #[test]
    fn the_state_stays_while_the_keys_change() {
        let first = config("counting", "");
        let state = State::new(&first, 1);
        for (made, table) in ["", "a = 1", "a = 2"].into_iter().enumerate() {
            let config = config("counting", table);
            assert!(state.fits(&config));
            let installed = kinds().install(&config, Arc::clone(&state)).unwrap();
            assert_eq!(format!("{:?}", installed.hook), format!("Other(Counting({}))", made + 1));
        }
        assert!(!state.fits(&config("other", "")));
    }

    #[test]
    fn a_chain_of_which_a_link_was_removed_refuses() {
        let config = config("counting", "");
        let installed = kinds().install(&config, State::new(&config, 1)).unwrap();
        let mut listener = ListenerConfig::of_defaults();
        listener.middleware = vec!["one".into()];
        let set = |installed| MiddlewareSet::new(installed, &[]);
        assert_eq!(set(vec![Arc::clone(&installed)]).chain(&listener).links().len(), 1);
        listener.middleware.push("gone".into());
        let chain = set(vec![installed]).chain(&listener);
        let (exchange, notes) = (crate::exchange::testing::exchange(), crate::middleware::Notes::default());
        let mut head = crate::exchange::RequestHead::default();
        let Hook::Other(hook) = &chain.links()[0].hook else { panic!("{chain:?}") };
        let step = hook.on_request(RequestView::new(&mut head, &exchange, &notes, 0));
        assert!(matches!(step, Step::Answer(_)), "{step:?}");
        assert_eq!(chain.links().len(), 2);
    }

    #[test]
    fn a_table_that_is_refused_is_told_with_its_name() {
        for (kind, table, why) in
            [("counting", "wrong = 1", "wrong is no key of this kind"), ("nothing", "", "there is no kind \"nothing\"")]
        {
            let config = config(kind, table);
            let failed = kinds().install(&config, State::new(&config, 1)).unwrap_err();
            assert_eq!((failed.name.as_str(), failed.why.as_str()), ("one", why));
        }
    }
}
