//! `[upstream.NAME.outlier_detection]`, `slow_start` and `zone_preference`, and the tiers of backends.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::Check;
use super::value::{duration, name, number, timeout};
use crate::config::error::Problem;
use crate::config::field::Field;
use crate::config::kind::Word;
use crate::config::raw;
use crate::config::{BackendConfig, OutlierConfig, Place, SlowStartConfig, Tier, TiersConfig, ZonesConfig};

/// Below this the control plane would be busy with nothing else.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// As many intervals as a window can have.
const INTERVALS_MAX: u32 = 64;

/// The name of a zone.
pub(super) fn zone(check: &Check<'_>, field: &Field<Word>) -> Option<Arc<str>> {
    let (place, text) = field.given()?;
    name(check, place, text).map(Arc::from)
}

/// Who is ejected; `None` where it is switched off.
pub(super) fn outlier_detection(check: &Check<'_>, field: &Field<raw::OutlierDetection>) -> Option<OutlierConfig> {
    let unset = raw::OutlierDetection::default();
    let raw = field.value().unwrap_or(&unset);
    let default = OutlierConfig::default();
    let count = |field: &Field<i64>, default: u64, least: i64| {
        u64::try_from(number(check, field, default as i64, least..=1_000_000)).unwrap_or_default()
    };
    let small = |field: &Field<i64>, default: u32, least: i64| {
        u32::try_from(number(check, field, default.into(), least..=1000)).unwrap_or_default()
    };
    let percent = |field: &Field<i64>, default: f64| {
        number(check, field, (default * 100.0).round() as i64, 0..=100) as f64 / 100.0
    };
    let interval = timeout(check, &raw.interval, "2s");
    at_least(check, &raw.interval, interval, INTERVAL_MIN, "10ms");
    let window = window(check, &raw.window, default.window, interval);
    let (base, longest) = ejection_times(check, raw, &default);
    let config = OutlierConfig {
        consecutive_gateway: small(&raw.consecutive_gateway_errors, default.consecutive_gateway, 0),
        consecutive_local: small(&raw.consecutive_local_errors, default.consecutive_local, 0),
        count_server_errors: raw.count_server_errors.value().copied().unwrap_or(default.count_server_errors),
        interval,
        window,
        failure_rate: percent(&raw.failure_percent, default.failure_rate),
        failure_volume: count(&raw.failure_volume, default.failure_volume, 1),
        success_deviations: real(check, &raw.success_deviations, default.success_deviations, 0.0..=100.0),
        success_gap: percent(&raw.success_gap_percent, default.success_gap),
        success_volume: count(&raw.success_volume, default.success_volume, 1),
        success_intervals: small(&raw.success_intervals, default.success_intervals, 1),
        latency_deviations: real(check, &raw.latency_deviations, default.latency_deviations, 0.0..=100.0),
        latency_ratio: real(check, &raw.latency_ratio, default.latency_ratio, 1.0..=1000.0),
        latency_excess: duration(check, &raw.latency_excess, "10ms"),
        latency_volume: count(&raw.latency_volume, default.latency_volume, 2),
        latency_intervals: small(&raw.latency_intervals, default.latency_intervals, 1),
        // Of two that differ nobody can say which one is the outlier.
        hosts: usize::try_from(number(check, &raw.backends_min, default.hosts as i64, 3..=1000)).unwrap_or(3),
        base,
        longest,
        jitter: percent(&raw.jitter_percent, default.jitter),
        forgive: timeout(check, &raw.forgive_after, "30s"),
        max_ejected_percent: u32::try_from(number(check, &raw.max_ejected_percent, 50, 0..=100)).unwrap_or_default(),
    };
    raw.enabled.value().copied().unwrap_or(true).then_some(config)
}

/// Warns of detection that can eject nothing, of `backends` that there are.
pub(super) fn warn_of_no_ejections(check: &Check<'_>, field: &Field<raw::OutlierDetection>, backends: usize) {
    let Some((place, raw)) = field.given().filter(|(_, raw)| raw.enabled.value() != Some(&false)) else { return };
    let warn = |place, what: &str, expected: &str| check.add(place, Problem::warning(what).expected(expected));
    if backends == 1 {
        return warn(
            place,
            "ejects nothing: the last backend that is ready stays, and there is only one",
            "another backend",
        );
    }
    if let Some((place, 0)) = raw.max_ejected_percent.given() {
        return warn(place, "at 0 nothing is ejected", "1 to 100, or enabled = false");
    }
    let counts = [&raw.consecutive_gateway_errors, &raw.consecutive_local_errors, &raw.failure_percent];
    let deviations = [&raw.success_deviations, &raw.latency_deviations];
    let is_off = counts.iter().all(|it| it.value() == Some(&0)) && deviations.iter().all(|it| it.value() == Some(&0.0));
    if is_off {
        return warn(place, "ejects nothing: each of its rules is off", "one that is not, or enabled = false");
    }
    let least = raw.backends_min.value().copied().unwrap_or(3);
    let compared =
        [raw.backends_min.place(), raw.success_deviations.given().filter(|(_, it)| **it > 0.0).map(|(place, _)| place)];
    let latency = raw.latency_deviations.given().filter(|(_, it)| **it > 0.0).map(|(place, _)| place);
    if let Some(place) = compared.into_iter().chain([latency]).flatten().next()
        && i64::try_from(backends).is_ok_and(|backends| backends < least)
    {
        let what = format!("backends are not compared with each other: there are {backends}");
        let least = check.show_other(raw.backends_min.place(), least);
        warn(place, &what, &format!("{least} backends at least"));
    }
}

/// How far back is looked; where the file does not say, as far as the intervals make sensible.
fn window(check: &Check<'_>, field: &Field<raw::Duration>, default: Duration, interval: Duration) -> Duration {
    let longest = interval * INTERVALS_MAX;
    let Some((place, _)) = field.given() else { return default.max(interval).min(longest) };
    let window = timeout(check, field, "20s");
    if window < interval {
        check.add(place, Problem::error("shorter than the interval").expected("the interval at least"));
    } else if window > longest {
        let problem = Problem::error(format!("longer than {INTERVALS_MAX} intervals"));
        check.add(place, problem.expected("a shorter window, or a longer interval"));
    }
    window
}

fn ejection_times(check: &Check<'_>, raw: &raw::OutlierDetection, default: &OutlierConfig) -> (Duration, Duration) {
    let base = timeout(check, &raw.ejection_time, "30s");
    let Some((place, _)) = raw.ejection_time_max.given() else { return (base, default.longest.max(base)) };
    let longest = timeout(check, &raw.ejection_time_max, "300s");
    if longest < base && !longest.is_zero() {
        check.add(place, Problem::error("shorter than ejection_time").expected("ejection_time at least"));
    }
    (base, longest)
}

/// How backends start; `None` where it is switched off.
pub(super) fn slow_start(check: &Check<'_>, field: &Field<raw::SlowStart>) -> Option<SlowStartConfig> {
    let unset = raw::SlowStart::default();
    let raw = field.value().unwrap_or(&unset);
    let on = raw.enabled.value().copied().unwrap_or(true);
    let default = SlowStartConfig::default();
    let window = duration(check, &raw.window, "30s");
    if let Some((place, _)) = raw.window.given()
        && window.is_zero()
    {
        check.add(place, Problem::error("a window of zero").expected("more than zero, or enabled = false"));
    }
    let config = SlowStartConfig {
        window,
        aggression: real(check, &raw.aggression, default.aggression, 0.1..=10.0),
        minimum: number(check, &raw.minimum_percent, 10, 1..=100) as f64 / 100.0,
    };
    on.then_some(config)
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
    let factor = real(check, &raw.overprovisioning, f64::from(default.overprovisioning_percent) / 100.0, 1.0..=10.0);
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

/// Any number within a range.
fn real(check: &Check<'_>, field: &Field<f64>, default: f64, range: RangeInclusive<f64>) -> f64 {
    let Some((place, &number)) = field.given() else { return default };
    if range.contains(&number) {
        return number;
    }
    let problem = Problem::error(format!("{} is out of range", check.show(place, number)));
    check.add(place, problem.expected(format!("{} to {}", range.start(), range.end())));
    default
}

fn at_least(check: &Check<'_>, field: &Field<raw::Duration>, value: Duration, least: Duration, written: &str) {
    if let Some((place, raw::Duration(text))) = field.given()
        && value < least
        && !value.is_zero()
    {
        check.add(
            place,
            Problem::error(format!("{} is too short", check.quote(place, text)))
                .expected(format!("at least {written}")),
        );
    }
}
