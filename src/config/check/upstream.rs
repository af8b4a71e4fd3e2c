//! What of upstreams takes other tables of the file: names, routes that use them, listeners that their backends could be, and the zone.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::Check;
use super::listener::{self, reaches};
use super::value::name;
use crate::config::backend::WrittenBackend;
use crate::config::error::Problem;
use crate::config::field::{Field, NamedEntry};
use crate::config::raw;
use crate::config::report::Place;
use crate::config::table::Table;
use crate::config::upstream::WrittenUpstreamConfig;
use crate::config::zones::WrittenZonesConfig;
use crate::config::{Address, UpstreamConfig, UpstreamName, ZonesConfig};

/// The upstreams, sorted by name.
pub(super) fn upstreams(
    check: &Check<'_>,
    file: &raw::File,
    listeners: &[listener::CheckedListener],
    zone: Option<&Arc<str>>,
) -> Vec<UpstreamConfig> {
    warn_of_unused(check, file);
    let entries = file.upstreams.entries().iter();
    let mut upstreams: Vec<_> = entries.filter_map(|entry| upstream(check, entry, listeners, zone)).collect();
    upstreams.sort_by(|a, b| a.name.cmp(&b.name));
    upstreams
}

/// Warns of upstreams that no route uses, unless a route that has a problem may have been meant to use them.
fn warn_of_unused(check: &Check<'_>, file: &raw::File) {
    if matches!(file.routes, Field::Wrong(_)) {
        return;
    }
    let names: HashSet<&str> = file.upstreams.entries().iter().map(|entry| entry.name.as_str()).collect();
    let mut used = HashSet::new();
    for route in file.routes.value().into_iter().flatten() {
        let Field::Given(_, route) = route else { return };
        match &route.upstream {
            Field::Given(_, name) if names.contains(name.as_str()) => drop(used.insert(name.as_str())),
            Field::Absent if route.redirect.place().or(route.respond.place()).is_some() => {}
            _ => return,
        }
    }
    let is_used = |name: &str| used.contains(name) || check.filling.is_used(name);
    for entry in file.upstreams.entries().iter().filter(|entry| !is_used(&entry.name)) {
        check.add(entry.place, Problem::warning("no route uses this upstream"));
    }
}

fn upstream(
    check: &Check<'_>,
    entry: &NamedEntry<WrittenUpstreamConfig>,
    listeners: &[listener::CheckedListener],
    zone: Option<&Arc<str>>,
) -> Option<UpstreamConfig> {
    let upstream_name = name(check, entry.place, &entry.name).map(UpstreamName::from);
    let written = entry.value.value()?;
    let mut upstream = UpstreamConfig::read(check, entry.place, written)?;
    warn_of_circles(check, written, &upstream, listeners);
    upstream.zone_preference = zones(check, written, &upstream, zone);
    upstream.name = upstream_name?;
    Some(upstream)
}

/// Warns of backends that are listeners of this process.
fn warn_of_circles(
    check: &Check<'_>,
    written: &WrittenUpstreamConfig,
    upstream: &UpstreamConfig,
    listeners: &[listener::CheckedListener],
) {
    let mut known: HashSet<&Address> = upstream.backends.iter().map(|backend| &backend.address).collect();
    for (place, text) in written.backends.members().filter_map(|(place, backend)| backend.address(place)) {
        // Once for an address that is there twice.
        let address = text.parse::<Address>().ok().filter(|address| known.remove(address));
        let Some(address) = address else { continue };
        for listener in listeners.iter().filter(|listener| leads_to(&address, listener.config.address)) {
            let problem = Problem::warning(format!(
                "listener {} has this address: requests would go round in a circle",
                listener.quoted_name(check)
            ));
            check.add(place, problem);
        }
    }
}

fn leads_to(address: &Address, own: SocketAddr) -> bool {
    match address {
        Address::Ip(address) | Address::Resolved(_, address) => reaches(own, *address),
        Address::Name(name, port) => {
            &**name == "localhost"
                && [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
                    .into_iter()
                    .any(|ip| reaches(own, SocketAddr::new(ip, *port)))
        }
    }
}

/// Zones are preferred where the process and backends say where they are: that is what one says it for.
fn zones(
    check: &Check<'_>,
    written: &WrittenUpstreamConfig,
    upstream: &UpstreamConfig,
    local: Option<&Arc<str>>,
) -> Option<ZonesConfig> {
    let known: BTreeSet<&str> = upstream.backends.iter().filter_map(|backend| backend.zone.as_deref()).collect();
    let field = &written.zone_preference;
    // Of those that are found it is not known here in which zones they are.
    let all_are_known = !written.has_sources();
    if let (Some(table), true) = (field.value(), all_are_known) {
        refuse_unknown_zones(check, table, written, &known);
    }
    let is_off = field.value().is_some_and(|table| !ZonesConfig::says_enabled(table));
    if let (Some((place, _)), false) = (field.given(), is_off) {
        if local.is_none() {
            let problem = Problem::error("nothing says in which zone this process is");
            check.add(place, problem.expected("zone = \"..\" at the top of the file"));
        } else if known.is_empty() && all_are_known {
            check.add(place, Problem::error("no backend says in which zone it is").expected("zone on backends"));
        }
    }
    let local = local.filter(|_| !known.is_empty() || !all_are_known)?;
    upstream.zone_preference.clone().map(|zones| ZonesConfig { local: Arc::clone(local), ..zones })
}

fn refuse_unknown_zones(
    check: &Check<'_>,
    table: &WrittenZonesConfig,
    upstream: &WrittenUpstreamConfig,
    known: &BTreeSet<&str>,
) {
    for entry in table.load.entries().iter().filter(|entry| !known.contains(&*entry.name)) {
        let problem = format!("no backend is in zone {}", check.quote(entry.place, &entry.name));
        // As problems may have them.
        let zones = upstream.backends.members().filter_map(|(_, backend): (Place, &WrittenBackend)| backend.zone());
        let zones = zones.filter(|(_, zone)| known.contains(zone));
        let shown: BTreeSet<String> = zones.map(|(place, zone)| check.show(place, zone)).collect();
        check.add(entry.place, Problem::error(problem).one_of(&entry.name, shown.iter().map(String::as_str)));
    }
}
