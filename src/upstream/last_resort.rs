//! Where a request goes before it fails, when all backends that are ready were tried.
//!
//! What keeps a backend from being ready is found out a little late, and so is that it is over. A request that has nowhere else to
//! go loses nothing by asking: first those that little speaks against. What an operator has taken out is never asked.

use std::cmp::Ordering;

use super::Readiness;
use crate::backend::Backend;
use crate::backend::outlier::{By, Ejection};
use crate::config::{InitialHealth, UpstreamConfig};
use crate::strategy::Tried;

/// What speaks against a backend that is not ready. One with fewer signs of death is tried earlier: outlier detection goes by what
/// was, checks by what is, so those that they find unhealthy come last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signs {
    /// It answers: it was ejected for how it does, or how late.
    Answers,
    /// It was ejected because connections to it broke, or no answer came in time.
    Silent,
    /// It was ejected because no connection to it could be made, or a look since has failed.
    Absent,
    /// It waits for its first check.
    Unchecked,
    /// Its checks fail.
    Unhealthy,
    /// Its checks cannot even connect.
    Unreachable,
}

/// How far a further attempt may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// To those that are ready.
    Ready,
    /// Where all of these were tried, to those that answer: something is given up for it, which is more than nothing.
    Answering,
    /// Where all of these were tried, to any backend: otherwise the request fails.
    Anybody,
}

impl Reach {
    fn includes(self, signs: Signs) -> bool {
        match self {
            Self::Ready => false,
            Self::Answering => signs == Signs::Answers,
            Self::Anybody => true,
        }
    }
}

impl Signs {
    /// What speaks against a backend; `None` where nothing does, for it is ready, and where it is not to be asked in any case.
    pub(super) fn of(backend: &Backend, readiness: Readiness, config: &UpstreamConfig) -> Option<Self> {
        let initial = config.health_check.as_ref().map(|check| check.initial);
        match readiness {
            Readiness::Ready | Readiness::NoWeight | Readiness::Disabled | Readiness::Drained => None,
            Readiness::Ejected { by: By::Hand, .. } => None,
            Readiness::Ejected { by: By::Detection, .. } => {
                backend.state.outlier.history().ejection().map(Self::of_ejection)
            }
            // Where panic is switched off, what checks say is final.
            Readiness::Unchecked | Readiness::Unhealthy { .. } if config.panic_threshold == 0 => None,
            Readiness::Unchecked if initial == Some(InitialHealth::Unhealthy) => None,
            Readiness::Unchecked => Some(Self::Unchecked),
            Readiness::Unhealthy { unreachable: false } => Some(Self::Unhealthy),
            Readiness::Unhealthy { unreachable: true } => Some(Self::Unreachable),
        }
    }

    fn of_ejection(ejection: &Ejection) -> Self {
        match ejection.is_for_silence() {
            true if ejection.is_for_absence() => Self::Absent,
            true => Self::Silent,
            false => Self::Answers,
        }
    }
}

/// Those that are not ready and may be asked, in the order in which they are.
#[derive(Debug)]
pub(super) struct LastResort(Box<[(Signs, Backend)]>);

impl LastResort {
    pub(super) fn new(backends: impl Iterator<Item = (Signs, Backend)>) -> Self {
        let mut backends: Box<[_]> = backends.collect();
        // Stable: equals stay in the order of the set.
        backends.sort_by_key(|(signs, _)| *signs);
        Self(backends)
    }

    /// Those left for an exchange.
    pub(super) fn left(&self, reach: Reach, tried: &Tried) -> impl Iterator<Item = &(Signs, Backend)> {
        self.0.iter().filter(move |(signs, backend)| reach.includes(*signs) && !tried.contains(backend.state.id))
    }

    /// Of those that have room, the one that least speaks against; of equals the one with the fewest requests for its weight, so
    /// that not all that fails elsewhere falls upon one.
    pub(super) fn pick(&self, reach: Reach, tried: &Tried) -> Option<&Backend> {
        let with_room = self.left(reach, tried).filter(|(_, backend)| backend.state.has_room());
        let best = with_room.min_by(|(signs, one), (others, other)| signs.cmp(others).then_with(|| busier(one, other)));
        best.map(|(_, backend)| backend)
    }
}

/// Compares what two backends would have in flight for their weight with one request more.
fn busier(one: &Backend, other: &Backend) -> Ordering {
    let load = |it: &Backend, weight: u16| (u64::from(it.state.in_flight()) + 1) * u64::from(weight);
    load(one, other.weight).cmp(&load(other, one.weight))
}
