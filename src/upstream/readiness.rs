use std::time::Instant;

use super::tiers::Standing;
use crate::backend::Backend;
use crate::backend::health::{Health, Verdict};
use crate::backend::operator_state::Lever;
use crate::backend::outlier::By;
use crate::config::{InitialHealth, UpstreamConfig};

/// Whether a backend may be picked, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It may.
    Ready,
    /// It is out of order by hand.
    Disabled,
    /// It is drained by hand.
    Drained,
    /// Its weight is 0.
    NoWeight,
    /// It waits for its first check.
    Unchecked,
    /// Its checks say so.
    Unhealthy {
        /// Whether they cannot even connect to where requests go.
        unreachable: bool,
    },
    /// Outlier detection or an operator has thrown it out.
    Ejected {
        /// Until when; `None` until an operator takes it back.
        until: Option<Instant>,
        /// What ejected it.
        by: By,
    },
}

impl Readiness {
    /// Looks at all that decides it, as it is at `now`. Takes the lock of the backend's history.
    pub fn of(backend: &Backend, config: &UpstreamConfig, now: Instant) -> Self {
        match Self::but_for_ejection(backend, config) {
            Self::Ready => Self::by_ejection(backend, config, now),
            other => other,
        }
    }

    /// The same without a look at ejections.
    pub(super) fn but_for_ejection(backend: &Backend, config: &UpstreamConfig) -> Self {
        let by_hand = backend.state.by_hand.marks();
        if by_hand.get(Lever::Disable).is_some() {
            return Self::Disabled;
        }
        if by_hand.get(Lever::Drain).is_some() {
            return Self::Drained;
        }
        drop(by_hand);
        if backend.weight == 0 {
            return Self::NoWeight;
        }
        // Where nothing is checked any more, the last verdict means nothing, whether it is forgotten yet or not.
        let Some(check) = &config.health_check else { return Self::Ready };
        let health = &backend.state.health;
        match health.verdict() {
            Verdict::Healthy => Self::Ready,
            Verdict::Unknown => Self::Unchecked,
            Verdict::Unhealthy if check.initial == InitialHealth::Unhealthy && never_checked(health) => Self::Unchecked,
            Verdict::Unhealthy => Self::Unhealthy { unreachable: health.is_unreachable() },
        }
    }

    fn by_ejection(backend: &Backend, config: &UpstreamConfig, now: Instant) -> Self {
        let history = backend.state.outlier.history();
        match history.ejection() {
            // What detection has decided ends with it.
            Some(ejection) if ejection.by == By::Detection && config.outlier_detection.is_none() => Self::Ready,
            Some(ejection) if ejection.until.is_none_or(|until| until > now) => {
                Self::Ejected { until: ejection.until, by: ejection.by }
            }
            _ => Self::Ready,
        }
    }

    /// Until when it holds if nothing happens; `None` is for ever.
    pub fn until(self) -> Option<Instant> {
        match self {
            Self::Ejected { until, .. } => until,
            // What was set by hand ends otherwise: see `UpstreamState::next_end_by_hand`.
            Self::Disabled | Self::Drained => None,
            Self::Ready | Self::NoWeight | Self::Unchecked | Self::Unhealthy { .. } => None,
        }
    }

    /// What it means among others of which some (`any`) are ready, or none.
    pub(super) fn standing(self, config: &UpstreamConfig, any: bool) -> Standing {
        let by_wish = config.health_check.as_ref().is_some_and(|check| check.initial == InitialHealth::Unhealthy);
        match self {
            Self::Ready => Standing::Ready,
            Self::NoWeight | Self::Disabled | Self::Drained => Standing::Out,
            // Nothing bad is known of it, so it is asked if there is no other backend.
            Self::Unchecked if any || by_wish => Standing::Out,
            Self::Unhealthy { unreachable: true } => Standing::Unreachable,
            // An operator wants it so; panic is about what was found out by machines.
            Self::Ejected { by: By::Hand, .. } => Standing::Out,
            Self::Unchecked | Self::Unhealthy { .. } | Self::Ejected { .. } => Standing::Unready,
        }
    }

    /// As the admin address says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Disabled => "disabled by hand",
            Self::Drained => "drained by hand",
            Self::NoWeight => "no weight",
            Self::Unchecked => "not checked yet",
            Self::Unhealthy { .. } => "unhealthy",
            Self::Ejected { .. } => "ejected",
        }
    }
}

fn never_checked(health: &Health) -> bool {
    let (account, last) = health.look();
    account.streak().length == 0 && last.is_none()
}
