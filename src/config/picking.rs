//! What decides who is picked, beside the strategy: outlier detection, slow start, tiers and zones.

use std::collections::BTreeMap;
use std::sync::Arc;

/// How the backends of an upstream are sorted into tiers, and which of them are preferred.
#[derive(Clone, Debug, PartialEq)]
pub struct TiersConfig {
    /// How much a tier can bear more than it must, in percent of the latter. 140, as Envoy has it; not below 100.
    pub overprovisioning_percent: u32,
    /// Below which part of ready backends a tier is in panic, in percent. 50, as Envoy has it; 0 is never.
    pub panic_percent: u32,
    /// Prefer backends of the proxy's zone. Not by default.
    pub zones: Option<ZonesConfig>,
}

impl Default for TiersConfig {
    fn default() -> Self {
        Self { overprovisioning_percent: 140, panic_percent: 50, zones: None }
    }
}

/// Preference of the proxy's own zone.
#[derive(Clone, Debug, PartialEq)]
pub struct ZonesConfig {
    /// Where this process is.
    pub local: Arc<str>,
    /// The part of all load that arises in each zone, in any unit, where it is known. A zone that is not named brings none. Empty
    /// means: the same in each zone that has backends.
    pub load: BTreeMap<Arc<str>, u32>,
    /// Ready backends of a tier that it takes. 6, as Envoy has it: with fewer, a zone of one or two would go up and down with
    /// each of them.
    pub backends_min: usize,
}

impl ZonesConfig {
    /// Prefers `local`, the load being the same in all zones.
    pub fn new(local: impl Into<Arc<str>>) -> Self {
        Self { local: local.into(), load: BTreeMap::new(), backends_min: 6 }
    }
}

/// Where a backend stands among those of its upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Its tier.
    pub tier: Tier,
    /// Where it is, if known.
    pub zone: Option<Arc<str>>,
}

/// Backends that are asked before others, or after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The lower the number, the earlier.
    Priority(u16),
    /// Behind all priorities.
    Backup,
}

impl Default for Tier {
    fn default() -> Self {
        Self::Priority(0)
    }
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Priority(priority) => priority.fmt(f),
            Self::Backup => f.write_str("backup"),
        }
    }
}
