use std::time::Instant;

use crate::backend::Backend;
use crate::backend::by_hand::Lever;
use crate::backend::health::Verdict;
use crate::config::UpstreamConfig;

/// Whether a backend may be picked, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It may.
    Ready,
    /// It is out of order by hand.
    Disabled,
    /// It is drained by hand.
    Drained,
    /// It is ejected, by outlier detection or by hand.
    Ejected,
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
        let by_hand = backend.state.by_hand.marks();
        if by_hand.get(Lever::Disable).is_some() {
            return Self::Disabled;
        }
        if by_hand.get(Lever::Drain).is_some() {
            return Self::Drained;
        }
        drop(by_hand);
        if backend.state.outlier.history().is_ejected() {
            return Self::Ejected;
        }
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
    /// when. What was set by hand ends otherwise: see [`UpstreamState::next_end_by_hand`](super::UpstreamState::next_end_by_hand).
    pub fn until(self) -> Option<Instant> {
        match self {
            Self::Ready
            | Self::Disabled
            | Self::Drained
            | Self::Ejected
            | Self::NoWeight
            | Self::Unchecked
            | Self::Unhealthy => None,
        }
    }

    /// As the admin address says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Disabled => "disabled by hand",
            Self::Drained => "drained by hand",
            Self::Ejected => "ejected",
            Self::NoWeight => "no weight",
            Self::Unchecked => "not checked yet",
            Self::Unhealthy => "unhealthy",
        }
    }
}
