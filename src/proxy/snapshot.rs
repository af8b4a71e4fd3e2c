use std::cell::{OnceCell, RefCell};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::config::Config;
use crate::exchange::Client;
use crate::middleware::{Chain, MiddlewareSet};
use crate::route::{Route, RoutingTable};
use crate::upstream::Upstream;

/// What a request is served with: routes and upstreams that fit together. Immutable; a reload makes the next one.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts reloads: 1 at the start, one more with each that was applied.
    pub generation: u64,
    /// What it was built from.
    pub config: Arc<Config>,
    /// Which route a request takes.
    pub routes: RoutingTable,
    /// Sorted by name.
    pub upstreams: Vec<Arc<Upstream>>,
    /// What requests pass through, of all listeners, routes and upstreams.
    pub middleware: MiddlewareSet,
}

impl Snapshot {
    /// Whether a request is asked for fields by whatever name before its route is known.
    pub fn looks_at_headers(&self) -> bool {
        self.config.access_log.is_some() || self.routes.looks_at_headers()
    }

    /// The upstream of that name.
    pub fn upstream(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.upstreams.iter().find(|upstream| upstream.name().as_str() == name)
    }
}

/// The snapshot of the moment, for all workers.
#[derive(Debug)]
pub struct Published {
    snapshot: ArcSwap<Snapshot>,
    /// Counts publications. Read once per request: a worker looks at `snapshot` only when this has changed.
    version: AtomicU64,
}

impl Published {
    /// Begins with `snapshot`.
    pub fn new(snapshot: Arc<Snapshot>) -> Arc<Self> {
        Arc::new(Self { snapshot: ArcSwap::new(snapshot), version: AtomicU64::new(0) })
    }

    /// What requests are served with now.
    pub fn load(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Serves with `snapshot` every request that begins after this has returned.
    pub fn store(&self, snapshot: Arc<Snapshot>) {
        self.snapshot.store(snapshot);
        self.version.fetch_add(1, Ordering::Release);
    }
}

/// A worker's hold on a snapshot, for as long as it looks for what to do with a request. What an exchange keeps until its end, which
/// that of a tunnel may have in a week, is the route alone.
#[derive(Debug)]
pub struct HeldSnapshot {
    snapshot: Arc<Snapshot>,
    /// Those that requests were found for.
    routes: Box<[OnceCell<KeptRoute>]>,
    /// The middleware of listeners that requests came to.
    chains: Box<[OnceCell<Rc<Chain>>]>,
}

/// A worker's hold on a route, and on what that needs.
pub type KeptRoute = Rc<Arc<Route>>;

impl HeldSnapshot {
    fn new(snapshot: Arc<Snapshot>) -> Rc<Self> {
        let routes = snapshot.routes.routes().iter().map(|_| OnceCell::new()).collect();
        let chains = snapshot.middleware.listeners.iter().map(|_| OnceCell::new()).collect();
        Rc::new(Self { snapshot, routes, chains })
    }

    /// The middleware of the listener that a client has come to, if it has some.
    pub fn chain(&self, client: &Client) -> Option<Rc<Chain>> {
        if self.chains.is_empty() && client.listener.middleware.is_empty() { None } else { self.find_chain(client) }
    }

    #[cold]
    fn find_chain(&self, client: &Client) -> Option<Rc<Chain>> {
        let name = client.listener_name(self.generation, &self.config);
        let listeners = &self.middleware.listeners;
        let Some(index) = listeners.iter().position(|(of, _)| *of == *name) else {
            let is_gone = !self.config.listeners.iter().any(|listener| listener.name == *name);
            // The connections of a listener that was removed end soon, but not without its middleware.
            let left = is_gone.then(|| self.middleware.chain(&client.listener))?;
            return (!left.links().is_empty()).then(|| Rc::new(left));
        };
        // A copy for each worker: what all of them count with is not to be written for each request.
        Some(Rc::clone(self.chains[index].get_or_init(|| Rc::new(listeners[index].1.clone()))))
    }

    /// The route that [`RoutingTable::find_index`] gave the index of, to keep.
    pub fn route(&self, index: usize) -> KeptRoute {
        Rc::clone(self.routes[index].get_or_init(|| Rc::new(Arc::clone(&self.snapshot.routes.routes()[index]))))
    }
}

impl Deref for HeldSnapshot {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.snapshot
    }
}

/// A worker's hold on the snapshot of the moment. A request that keeps it counts on an `Rc` of this worker: on an `Arc`, all
/// workers would write the same cache line for each request.
#[derive(Debug)]
pub struct Current {
    published: Arc<Published>,
    held: RefCell<(u64, Rc<HeldSnapshot>)>,
}

impl Current {
    /// A worker's hold on what is published.
    pub fn new(published: Arc<Published>) -> Self {
        let version = published.version.load(Ordering::Acquire);
        let held = RefCell::new((version, HeldSnapshot::new(published.load())));
        Self { published, held }
    }

    /// The snapshot to serve a request with.
    #[inline]
    pub fn get(&self) -> Rc<HeldSnapshot> {
        self.renew();
        Rc::clone(&self.held.borrow().1)
    }

    /// Looks at the snapshot of the moment, without keeping it.
    #[inline]
    pub fn look<T>(&self, at: impl FnOnce(&Snapshot) -> T) -> T {
        self.renew();
        at(&self.held.borrow().1)
    }

    #[inline]
    fn renew(&self) {
        let version = self.published.version.load(Ordering::Acquire);
        if self.held.borrow().0 != version {
            self.hold(version);
        }
    }

    #[cold]
    fn hold(&self, version: u64) {
        let held = HeldSnapshot::new(self.published.load());
        let before = self.held.replace((version, held));
        drop(before);
    }
}
