//! What decides which backend is picked, beside the strategy: as `/upstreams` shows it.

use std::time::{Instant, SystemTime};

use serde::Serialize;

use crate::backend::Backend;
use crate::backend::outlier::Ejection;
use crate::telemetry::calendar::rfc3339;
use crate::upstream::{PickSource, Roster, RosterEntry};

/// Where the requests of an upstream go to.
#[derive(Debug, Serialize)]
pub(super) struct SetView {
    /// A priority, or `backup`.
    tier: String,
    /// `null` where zones are not told apart.
    zone: Option<String>,
    /// The part of the load that it gets, from 0 to 1.
    share: f64,
    backends: Vec<MemberView>,
}

#[derive(Debug, Serialize)]
struct MemberView {
    address: String,
    /// The weight that the strategy goes by; comparable within the set only.
    weight: u16,
}

/// What decides whether and how often a backend is picked.
#[derive(Debug, Serialize)]
pub(super) struct StandingView {
    tier: String,
    zone: Option<String>,
    /// What counts of its weight now.
    effective_weight: f64,
    /// What it has of its weight: 100 but in slow start.
    slow_start_percent: u8,
    /// `null` where it is not ejected.
    ejection: Option<EjectionView>,
    /// Ejections that are not forgiven: the next one lasts longer by each.
    times_ejected: u32,
    /// Failures in succession.
    streaks: StreaksView,
    /// The geometric mean of its latest latencies to first byte; `null` where there were none.
    latency_ms: Option<f64>,
}

#[derive(Debug, Serialize)]
struct EjectionView {
    since: String,
    /// `null` where only an operator ends it.
    until: Option<String>,
    /// `detection` or `hand`.
    by: &'static str,
    reason: &'static str,
    evidence: String,
}

#[derive(Debug, Serialize)]
struct StreaksView {
    gateway_errors: u32,
    local_errors: u32,
}

/// The sets of a roster, in the order in which they are tried.
pub(super) fn sets(roster: &Roster) -> Vec<SetView> {
    let set = |source: PickSource<'_>| {
        let member = |it: &Backend| MemberView { address: it.state.address.to_string(), weight: it.weight };
        SetView {
            tier: source.place.tier.to_string(),
            zone: source.place.zone.as_deref().map(str::to_owned),
            share: source.share,
            backends: source.backends.iter().map(member).collect(),
        }
    };
    roster.sources().map(set).collect()
}

impl StandingView {
    /// A backend as it is at `now`.
    pub(super) fn of(backend: &Backend, seat: &RosterEntry, now: Instant) -> Self {
        let outlier = &backend.state.outlier;
        let streaks = outlier.streaks();
        let history = outlier.history();
        Self {
            tier: backend.instance.place.tier.to_string(),
            zone: backend.instance.place.zone.as_deref().map(str::to_owned),
            effective_weight: seat.effective_weight(),
            slow_start_percent: seat.percent.get(),
            ejection: history.ejection().map(|ejection| EjectionView::of(ejection, now)),
            times_ejected: history.times(),
            streaks: StreaksView { gateway_errors: streaks.gateway, local_errors: streaks.local },
            latency_ms: history.typical_latency().map(|latency| latency.as_micros() as f64 / 1e3),
        }
    }
}

impl EjectionView {
    fn of(ejection: &Ejection, now: Instant) -> Self {
        let clock = SystemTime::now();
        let at = |instant: Instant| {
            let ahead = clock + instant.saturating_duration_since(now);
            rfc3339(ahead - now.saturating_duration_since(instant))
        };
        Self {
            since: at(ejection.since),
            until: ejection.until.map(at),
            by: ejection.by.as_str(),
            reason: ejection.reason.as_str(),
            evidence: ejection.reason.to_string(),
        }
    }
}
