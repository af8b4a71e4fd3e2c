//! Which backends may be picked, and how much of their weight they have.

use std::collections::BTreeSet;
use std::fmt;

use super::Scrape;
use super::family::Families;
use crate::backend::outlier::Reason;
use crate::config::Tier;
use crate::upstream::Readiness;

impl Scrape {
    /// What decides which backend is picked.
    pub(super) fn picking(&self, families: &mut Families<'_>) -> fmt::Result {
        let rosters: Vec<_> = self.snapshot.upstreams.iter().map(|it| (it.name().as_str(), it.roster())).collect();
        let tiers = rosters.iter().flat_map(|(upstream, roster)| {
            let tiers: BTreeSet<_> = roster.backends().iter().map(|backend| backend.instance.place.tier).collect();
            let panics = |tier: &Tier| if roster.panic().contains(tier) { 1.0 } else { 0.0 };
            tiers.into_iter().map(move |tier| (*upstream, tier.to_string(), panics(&tier)))
        });
        let tiers: Vec<_> = tiers.collect();
        let panics: Vec<_> = tiers
            .iter()
            .map(|(upstream, tier, on)| ([("upstream", *upstream), ("tier", tier.as_str())], *on))
            .collect();
        let help = "Whether so few of its backends are ready that others are picked as well";
        families.gauge("upstream_panic", help, None, panics.iter().map(|(labels, value)| (&labels[..], *value)))?;

        let backends = rosters.iter().flat_map(|(upstream, roster)| {
            let both = roster.backends().iter().zip(roster.seats());
            both.map(move |(backend, seat)| (*upstream, backend.state.address.to_string(), &backend.state, seat))
        });
        let backends: Vec<_> = backends.collect();
        let labels: Vec<_> =
            backends.iter().map(|(upstream, address, ..)| [("upstream", *upstream), ("backend", &**address)]).collect();
        let ejected = backends.iter().zip(&labels).map(|((.., seat), labels)| {
            (&labels[..], if matches!(seat.readiness, Readiness::Ejected { .. }) { 1.0 } else { 0.0 })
        });
        families.gauge("backend_ejected", "Whether it is ejected", None, ejected)?;
        let ejections = backends.iter().zip(&labels).flat_map(|((.., state, _), &[upstream, backend])| {
            let counts = Reason::KINDS.into_iter().zip(state.outlier.ejections());
            counts.map(move |(reason, count)| ([upstream, backend, ("reason", reason)], count))
        });
        let ejections: Vec<_> = ejections.collect();
        let series = ejections.iter().map(|(labels, count)| (&labels[..], *count));
        families.counter("backend_ejections", "Times that it was ejected", None, series)?;
        let warm = backends.iter().zip(&labels);
        let warm = warm.map(|((.., seat), labels)| (&labels[..], f64::from(seat.percent.get()) / 100.0));
        families.gauge("backend_slow_start", "What it has of its weight, from 0 to 1", None, warm)
    }
}
