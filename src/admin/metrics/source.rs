//! Where backends come from.

use std::fmt;
use std::time::SystemTime;

use prometheus_client::registry::Unit;

use super::Scrape;
use super::family::Families;
use crate::backend::BackendSet;
use crate::upstream::sources::{SourceCondition, SourceId, SourceReport};

impl Scrape {
    /// What sources say, and for how long they have not. Of the file there is nothing to say.
    pub(super) fn sources(&self, families: &mut Families<'_>) -> fmt::Result {
        let now = SystemTime::now();
        let reports = self.snapshot.upstreams.iter().flat_map(|upstream| {
            let reports = upstream.state.sources.look().into_iter().filter(|it| it.id != SourceId::default());
            reports.map(move |report| (upstream.name().as_str(), report))
        });
        let reports: Vec<_> = reports.collect();
        if reports.is_empty() {
            return Ok(());
        }
        let labels: Vec<_> =
            reports.iter().map(|(upstream, it)| [("upstream", *upstream), ("source", &*it.source)]).collect();
        let gauges = |value: fn(&SourceReport, SystemTime) -> f64| {
            labels.iter().zip(&reports).map(move |(labels, (_, it))| (&labels[..], value(it, now)))
        };
        let help = "For how long a source has given no good answer; 0 while it does";
        families.gauge("source_stale", help, Some(&Unit::Seconds), gauges(|it, now| it.stale(now).as_secs_f64()))?;
        let backends = gauges(|it, _| it.set.as_ref().map_or(0, BackendSet::len) as f64);
        families.gauge("source_backends", "Backends that count of a source, with those held back", None, backends)?;
        let held_back = gauges(|it, _| match it.condition {
            SourceCondition::Holding { backends } => backends as f64,
            _ => 0.0,
        });
        let help = "Backends that a source no longer names and that are held back";
        families.gauge("source_held_back_backends", help, None, held_back)?;
        let left_out = gauges(|it, _| it.refused.len() as f64);
        families.gauge("source_left_out_entries", "Entries of its last good answer that were left out", None, left_out)
    }
}
