//! What of the registry takes other tables of the file: its address beside others, the sources that ask it, and a place for its state.

use std::sync::Arc;

use super::Check;
use super::listener::{CheckedListener, overlap};
use crate::config::error::Problem;
use crate::config::raw;
use crate::config::{Config, UpstreamConfig};

/// Looks at the registry, and says to the sources that ask it where it listens.
pub(super) fn registry(
    check: &Check<'_>,
    file: &raw::File,
    config: &Config,
    listeners: &[CheckedListener],
    upstreams: &mut [UpstreamConfig],
) {
    let Some(registry) = &config.registry else { return refuse_sources(check, file) };
    let written = file.registry.value();
    let place = file.registry.place();
    if let Some(at) = written.and_then(|it| it.address.place()).or(place) {
        let taken = |what: String| {
            check.add(at, Problem::error(what).expected("another port for one of them"));
        };
        if let Some(listener) = listeners.iter().find(|it| overlap(it.config.address, registry.address)) {
            taken(format!("listener {} has this address", listener.quoted_name(check)));
        }
        let admin = config.admin.as_ref().and_then(|admin| admin.address);
        if admin.is_some_and(|admin| overlap(admin, registry.address)) {
            taken("the admin address is the same".into());
        }
    }
    if let (Some(place), None, None) = (place, &config.state_dir, file.state_dir.place()) {
        let problem = Problem::warning("the registry forgets all services when the process ends");
        check.add(place, problem.expected("state_dir = \"/var/lib/isobar\" at the top of the file"));
    }
    let is_local = registry.address.ip().is_loopback();
    let sources = upstreams.iter_mut().flat_map(|upstream| &mut upstream.discovery);
    for source in sources.filter_map(|source| source.registry.as_mut()) {
        Arc::make_mut(source).is_local = is_local;
    }
}

/// A source that asks the registry of a file that has none.
fn refuse_sources(check: &Check<'_>, file: &raw::File) {
    // One that is wrong is reported.
    if file.registry.place().is_some() {
        return;
    }
    let upstreams = file.upstreams.entries().iter().filter_map(|entry| entry.value.value());
    let sources = upstreams.flat_map(|upstream| upstream.discovery.members());
    for place in sources.filter_map(|(_, source)| source.registry.place()) {
        let problem = Problem::error("there is no registry in this process");
        check.add(place, problem.expected("a table [registry] in this file"));
    }
}
