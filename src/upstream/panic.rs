//! Tells when panic begins and ends.

use super::{Readiness, Roster};
use crate::config::{Tier, UpstreamName};
use crate::telemetry::events::EventKind;

/// What is to be told after the tiers in `before` were in panic and those of `roster` are.
pub(super) fn changes(upstream: &UpstreamName, before: &[Tier], roster: &Roster) -> Vec<EventKind> {
    let told = |tier: &Tier, on| EventKind::Panic {
        upstream: upstream.clone(),
        tier: tier.to_string(),
        on,
        evidence: evidence(*tier, roster),
    };
    let begun = roster.panic().iter().filter(|tier| !before.contains(tier)).map(|tier| told(tier, true));
    let ended = before.iter().filter(|tier| !roster.panic().contains(tier)).map(|tier| told(tier, false));
    begun.chain(ended).collect()
}

/// `1 of 3 backends ready, 2 picked from`.
fn evidence(tier: Tier, roster: &Roster) -> String {
    let of_tier =
        || roster.backends().iter().zip(roster.seats()).filter(|(backend, _)| backend.instance.place.tier == tier);
    let all = of_tier().filter(|(_, seat)| seat.readiness != Readiness::NoWeight).count();
    let ready = of_tier().filter(|(_, seat)| seat.readiness == Readiness::Ready).count();
    let sources = roster.sources().filter(|source| source.place.tier == tier);
    let picked: usize = sources.map(|source| source.backends.len()).sum();
    format!("{ready} of {all} backends ready, {picked} picked from")
}
