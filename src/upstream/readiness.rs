use std::time::Instant;

use crate::backend::Backend;
use crate::backend::health::Verdict;
use crate::config::UpstreamConfig;

/// Whether a backend may be picked, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It may.
    Ready,
    /// Its weight is 0.
    NoWeight,
    /// It has joined others and its first check is not over.
    Unchecked,
    /// Its checks say so.
    Unhealthy,
}

impl Readiness {
    /// Looks at all that decides it.
    pub fn of(backend: &Backend, config: &UpstreamConfig) -> Self {
        if backend.weight == 0 {
            return Self::NoWeight;
        }
        // Where nothing is checked any more, the last verdict means nothing, whether it is forgotten yet or not.
        match config.health_check.as_ref().map(|_| backend.state.health.verdict()) {
            None | Some(Verdict::Healthy) => Self::Ready,
            Some(Verdict::Unhealthy) => Self::Unhealthy,
            Some(Verdict::Unknown) => Self::Unchecked,
        }
    }

    /// Until when it holds if nothing happens; `None` is for ever. What ends by itself, an ejection for instance, says here
    /// when.
    pub fn until(self) -> Option<Instant> {
        match self {
            Self::Ready | Self::NoWeight | Self::Unchecked | Self::Unhealthy => None,
        }
    }

    /// As the admin address says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::NoWeight => "no weight",
            Self::Unchecked => "not checked yet",
            Self::Unhealthy => "unhealthy",
        }
    }
}
