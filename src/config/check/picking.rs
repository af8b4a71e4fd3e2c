//! `zone_preference`, and the tiers of backends.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Check;
use super::value::{name, number};
use crate::config::error::Problem;
use crate::config::field::Field;
use crate::config::form::{self, Real};
use crate::config::kind::Word;
use crate::config::raw;
use crate::config::{BackendConfig, Place, Tier, TiersConfig, ZonesConfig};

/// The name of a zone.
pub(super) fn zone(check: &Check<'_>, field: &Field<Word>) -> Option<Arc<str>> {
    let (place, text) = field.given()?;
    name(check, place, text).map(Arc::from)
}

/// A backend's tier and zone.
pub(super) fn place(check: &Check<'_>, raw: &raw::BackendTable) -> Place {
    let priority = u16::try_from(number(check, &raw.priority, 0, 0..=100)).unwrap_or_default();
    let backup = raw.backup.value().copied().unwrap_or(false);
    if let (true, Some((place, _))) = (backup, raw.priority.given()) {
        let problem = Problem::error("a backup has no priority: it comes after all of them");
        check.add(place, problem.expected("only one of priority and backup"));
    }
    let tier = if backup { Tier::Backup } else { Tier::Priority(priority) };
    Place { tier, zone: zone(check, &raw.zone) }
}

/// Panic, overprovisioning and zones.
pub(super) fn tiers(
    check: &Check<'_>,
    raw: &raw::Upstream,
    backends: &[BackendConfig],
    local: Option<&Arc<str>>,
) -> TiersConfig {
    let default = TiersConfig::default();
    let factor = form::read(check, &Real(1.0..=10.0), &raw.overprovisioning, None, || {
        f64::from(default.overprovisioning_percent) / 100.0
    });
    TiersConfig {
        overprovisioning_percent: (factor * 100.0).round() as u32,
        panic_percent: u32::try_from(number(check, &raw.panic_threshold, 50, 0..=100)).unwrap_or_default(),
        zones: zones(check, raw, backends, local),
    }
}

/// Zones are preferred where the process and backends say where they are: that is what one says it for.
fn zones(
    check: &Check<'_>,
    upstream: &raw::Upstream,
    backends: &[BackendConfig],
    local: Option<&Arc<str>>,
) -> Option<ZonesConfig> {
    let unset = raw::ZonePreference::default();
    let raw = upstream.zone_preference.value().unwrap_or(&unset);
    let known: BTreeSet<&str> = backends.iter().filter_map(|backend| backend.place.zone.as_deref()).collect();
    let load = raw.load.entries().iter().filter_map(|entry| {
        if !known.contains(&*entry.name) {
            let problem = format!("no backend is in zone {}", check.quote(entry.place, &entry.name));
            let shown = shown_zones(check, upstream, &known);
            check.add(entry.place, Problem::error(problem).one_of(&entry.name, shown.iter().map(String::as_str)));
        }
        let part = u32::try_from(number(check, &entry.value, 0, 0..=1_000_000)).unwrap_or_default();
        Some((Arc::from(&*entry.name), part)).filter(|_| entry.value.given().is_some())
    });
    let load = load.collect();
    let backends_min = usize::try_from(number(check, &raw.backends_min, 6, 1..=100_000)).unwrap_or(6);
    let on = raw.enabled.value().copied();
    if let Some((place, _)) = upstream.zone_preference.given()
        && on != Some(false)
    {
        if local.is_none() {
            let problem = Problem::error("nothing says in which zone this process is");
            check.add(place, problem.expected("zone = \"..\" at the top of the file"));
        } else if known.is_empty() {
            check.add(place, Problem::error("no backend says in which zone it is").expected("zone on backends"));
        }
    }
    let local = local.filter(|_| on.unwrap_or(true) && !known.is_empty())?;
    Some(ZonesConfig { local: Arc::clone(local), load, backends_min })
}

/// The known zones of an upstream's backends, as a problem may have them.
fn shown_zones(check: &Check<'_>, upstream: &raw::Upstream, known: &BTreeSet<&str>) -> BTreeSet<String> {
    let zones = upstream.backends.members().filter_map(|(_, backend)| match backend {
        raw::Backend::Table(table) => table.zone.given(),
        raw::Backend::String(_) => None,
    });
    let zones = zones.filter(|(_, zone)| known.contains(zone.as_str()));
    zones.map(|(place, zone)| check.show(place, zone.as_str())).collect()
}
