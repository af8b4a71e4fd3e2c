//! `[upstream.NAME.zone_preference]`: preference of the zone that the process is in.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use super::check::Check;
use super::field::Named;
use super::form::{About, Form, Literal, Whole};
use super::json_tree::Tree;
use super::report::Place;
use super::table::Table;
use super::visibility::Kind;

/// Keeps requests in this process's zone. Enabled where the process (`zone` at the top of the file) and backends say where they are.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(enabled = true, reload = Requests)]
pub struct ZonesConfig {
    /// Ready backends of a tier that it takes. With fewer, a zone of one or two would go up and down with each of them.
    #[key(Whole(1..=100_000), default = 6)]
    pub backends_min: usize,
    /// The part of all load that arises in each zone, in any unit. A zone that is not named brings none; where no zone is named, each that has
    /// backends brings the same.
    #[key(ZoneLoads, otherwise = "the same in each zone")]
    pub load: BTreeMap<Arc<str>, u32>,
    /// Where this process is.
    pub local: Arc<str>,
}

impl ZonesConfig {
    /// Prefers `local`, the load being the same in all zones.
    pub fn new(local: impl Into<Arc<str>>) -> Self {
        Self { local: local.into(), ..Self::of_defaults() }
    }
}

/// A number for each zone.
struct ZoneLoads;

/// What one of them can be.
const PART: Whole = Whole(0..=1_000_000);

impl Form<BTreeMap<Arc<str>, u32>> for ZoneLoads {
    type Written = Named<i64>;

    fn read(&self, check: &Check<'_>, _: Place, written: &Named<i64>) -> Option<BTreeMap<Arc<str>, u32>> {
        let parts = written.0.iter().filter_map(|entry| {
            let (place, part) = entry.value.given()?;
            Some((Arc::from(&*entry.name), PART.read(check, place, part).unwrap_or(0)))
        });
        Some(parts.collect())
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> BTreeMap<Arc<str>, u32> {
        BTreeMap::new()
    }

    fn show(&self, value: &BTreeMap<Arc<str>, u32>) -> Option<Tree> {
        let parts = value.iter().map(|(zone, part)| (zone.to_string(), Tree::from(*part)));
        (!value.is_empty()).then(|| Tree::Table(parts.collect()))
    }

    fn tell(&self, value: &BTreeMap<Arc<str>, u32>) -> String {
        value.iter().map(|(zone, part)| format!("{zone}={part}")).collect::<Vec<_>>().join(" ")
    }

    fn about(&self) -> About {
        let part = <Whole as Form<u32>>::about(&PART);
        let schema = json!({ "type": "object", "additionalProperties": part.schema });
        About {
            form: format!("a table, each zone with {}", part.form),
            kind: Kind::Plain,
            ..About::new::<i64>("", schema)
        }
    }
}
