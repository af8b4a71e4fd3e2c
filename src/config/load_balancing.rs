//! What decides which backend is picked, beside the strategy: outlier detection, slow start, tiers and zones.

use std::sync::Arc;

use super::ZonesConfig;

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

/// Where a backend stands among those of its upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendPlacement {
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
