use std::sync::Arc;

use crate::config::Config;
use crate::route::Table;
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
}

impl Snapshot {
    /// The upstream of that name.
    pub fn upstream(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.upstreams.iter().find(|upstream| upstream.name().as_str() == name)
    }
}
