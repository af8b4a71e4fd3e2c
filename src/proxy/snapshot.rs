use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::config::Config;
use crate::route::Table;
use crate::telemetry::access_log::AccessLog;
use crate::upstream::Upstream;

/// What a request is served with: routes and upstreams that fit together. Immutable; a reload makes the next one.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts reloads: 1 at the start, one more with each that was applied.
    pub generation: u64,
    /// What it was built from.
    pub config: Arc<Config>,
    /// Which route a request takes.
    pub routes: Table,
    /// Sorted by name.
    pub upstreams: Vec<Arc<Upstream>>,
    /// Where a line per exchange goes.
    pub access_log: Option<Arc<AccessLog>>,
}

impl Snapshot {
    /// Whether a request is asked for fields by whatever name before its route is known.
    pub fn looks_at_headers(&self) -> bool {
        self.access_log.is_some() || self.routes.looks_at_headers()
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

/// A worker's hold on the snapshot of the moment. A request that keeps it counts on an `Rc` of this worker: on an `Arc`, all
/// workers would write the same cache line for each request.
#[derive(Debug)]
pub struct Current {
    published: Arc<Published>,
    held: RefCell<(u64, Rc<Arc<Snapshot>>)>,
}

impl Current {
    /// A worker's hold on what is published.
    pub fn new(published: Arc<Published>) -> Self {
        let version = published.version.load(Ordering::Acquire);
        let held = RefCell::new((version, Rc::new(published.load())));
        Self { published, held }
    }

    /// The snapshot to serve a request with.
    pub fn get(&self) -> Rc<Arc<Snapshot>> {
        let version = self.published.version.load(Ordering::Acquire);
        let mut held = self.held.borrow_mut();
        if held.0 != version {
            *held = (version, Rc::new(self.published.load()));
        }
        Rc::clone(&held.1)
    }
}
