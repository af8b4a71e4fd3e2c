//! What limits came to: queues, circuit breakers, adaptive limits, connections, overload, file descriptors.

use std::fmt;

use prometheus_client::registry::Unit;

use super::family::{Durations, Families};
use crate::admin::limits::{breaker_state, given};
use crate::backend::BackendState;
use crate::file_descriptors::DescriptorPlan;
use crate::overload::Cause;
use crate::overload::sample::open_descriptors;
use crate::proxy::Snapshot;
use crate::telemetry::metrics::{Counter, UpstreamMetrics};
use crate::telemetry::process::Process;
use crate::upstream::Upstream;
use crate::upstream::circuit_breaker::BreakerState;

/// Writes what there is to say of limits, of those upstreams and backends that have some.
pub(super) fn metrics(snapshot: &Snapshot, process: &Process, families: &mut Families<'_>) -> fmt::Result {
    queues(snapshot, families)?;
    breakers(snapshot, families)?;
    adaptive(snapshot, families)?;
    backends(snapshot, families)?;
    overload(process, families)?;
    descriptors(process, families)
}

/// The upstreams that are as `has` says, with their label.
fn those(
    snapshot: &Snapshot,
    has: fn(&Upstream) -> bool,
) -> impl Iterator<Item = ([(&'static str, &str); 1], &Upstream)> {
    let upstreams = snapshot.upstreams.iter().map(|it| &**it).filter(move |it| has(it));
    upstreams.map(|it| ([("upstream", it.name().as_str())], it))
}

fn queues(snapshot: &Snapshot, families: &mut Families<'_>) -> fmt::Result {
    let rows: Vec<_> = those(snapshot, Upstream::is_bounded).collect();
    let waiting = rows.iter().map(|(labels, it)| (&labels[..], it.state.room.queue.len().into()));
    families.gauge("upstream_queue_length", "Requests that wait for a backend with room", None, waiting)?;
    let waits = rows.iter().map(|(labels, it)| (&labels[..], Durations::sum(&it.state.metrics, |it| &it.queue_waits)));
    let help = "How long requests waited for a backend with room, those in vain too";
    families.histogram("upstream_queue_wait", help, Some(&Unit::Seconds), waits)?;
    let counters = |counter: fn(&UpstreamMetrics) -> &Counter| {
        rows.iter().map(move |(labels, it)| (&labels[..], it.state.metrics.sum(counter)))
    };
    let help = "Requests that found every backend full and as many waiting as may";
    families.counter("upstream_queue_full", help, None, counters(|shard| &shard.queue_full))?;
    let help = "Requests that waited too long for a backend with room";
    families.counter("upstream_queue_timeouts", help, None, counters(|shard| &shard.queue_timeouts))
}

fn breakers(snapshot: &Snapshot, families: &mut Families<'_>) -> fmt::Result {
    let rows: Vec<_> = those(snapshot, |it| it.limits.breaker.is_some()).collect();
    let states = rows.iter().flat_map(|&([upstream], it)| {
        let is = it.state.breaker.state();
        [BreakerState::Closed, BreakerState::Open, BreakerState::HalfOpen]
            .map(|state| ([upstream, ("state", breaker_state(state))], if state == is { 1.0 } else { 0.0 }))
    });
    let states: Vec<_> = states.collect();
    let series = states.iter().map(|(labels, value)| (&labels[..], *value));
    families.gauge("upstream_breaker_state", "What its circuit breaker does: 1 for one of the states", None, series)?;
    let counters = |counter: fn(&UpstreamMetrics) -> &Counter| {
        rows.iter().map(move |(labels, it)| (&labels[..], it.state.metrics.sum(counter)))
    };
    let help = "Times that its circuit breaker opened";
    families.counter("upstream_breaker_opened", help, None, counters(|shard| &shard.breaker_opened))?;
    let help = "Attempts that its circuit breaker refused";
    families.counter("upstream_breaker_refused", help, None, counters(|shard| &shard.breaker_refused))
}

fn adaptive(snapshot: &Snapshot, families: &mut Families<'_>) -> fmt::Result {
    let rows: Vec<_> = those(snapshot, |it| it.limits.adaptive.is_some()).collect();
    let limits = rows.iter().map(|(labels, it)| (&labels[..], it.state.adaptive_limit().into()));
    families.gauge("upstream_adaptive_limit", "Requests that may be in flight at all its backends", None, limits)?;
    let in_flight = rows.iter().map(|(labels, it)| (&labels[..], it.state.room.in_flight.in_use().into()));
    let help = "Requests in flight at all its backends, as the adaptive limit counts them";
    families.gauge("upstream_adaptive_in_flight", help, None, in_flight)
}

fn backends(snapshot: &Snapshot, families: &mut Families<'_>) -> fmt::Result {
    let states = snapshot.upstreams.iter().flat_map(|upstream| {
        let roster = upstream.roster();
        let states: Vec<_> = roster.backends().iter().map(|it| it.state.clone()).collect();
        states.into_iter().map(|state| (upstream.name().as_str(), state.address.to_string(), state))
    });
    let states: Vec<_> = states.collect();
    let rows: Vec<_> = states
        .iter()
        .map(|(upstream, address, state)| ([("upstream", *upstream), ("backend", address.as_str())], state))
        .collect();
    let connections = rows.iter().map(|(labels, it)| (&labels[..], it.connections().into()));
    families.gauge("backend_connections", "Connections to it, in use and idle", None, connections)?;
    let limits = |limit: fn(&BackendState) -> u32| {
        let limited = rows.iter().filter_map(move |(labels, it)| Some((labels, given(limit(it))?)));
        limited.map(|(labels, limit)| (&labels[..], limit.into()))
    };
    let help = "Requests that it may be working on";
    families.gauge("backend_in_flight_limit", help, None, limits(BackendState::limit))?;
    let help = "Connections that there may be to it";
    families.gauge("backend_connections_limit", help, None, limits(BackendState::connections_limit))
}

fn overload(process: &Process, families: &mut Families<'_>) -> fmt::Result {
    let labels = Cause::ALL.map(|cause| (cause, [("cause", cause.name())]));
    let refusing = labels.iter().map(|(cause, labels)| (&labels[..], process.refusing(*cause) as f64));
    let help = "Workers that refuse new requests because there is too much to do";
    families.gauge("overload_refusing_workers", help, None, refusing)?;
    let refused = labels.iter().map(|(cause, labels)| (&labels[..], process.refused.sum(|shard| shard.of(*cause))));
    let help = "Requests and connections refused because there was too much to do";
    families.counter("overload_refused", help, None, refused)
}

fn descriptors(process: &Process, families: &mut Families<'_>) -> fmt::Result {
    let descriptors = &process.descriptors;
    // Where the system does not tell, there is nothing to be said of it.
    let of = |value: Option<u64>| value.map(|value| (&[][..], value as f64));
    let DescriptorPlan { limit, connections, .. } = descriptors.plan;
    families.gauge("descriptors_limit", "File descriptors that the process may have open", None, of(limit))?;
    let open = open_descriptors().filter(|_| limit.is_some());
    families.gauge("descriptors_open", "File descriptors that are open", None, of(open))?;
    let help = "Client connections that there are file descriptors for";
    families.gauge("connections_fit", help, None, of(limit.map(|_| connections)))?;
    let waiting = [(&[][..], descriptors.waiting() as f64)];
    let help = "Listening sockets of workers that are not accepted on for want of file descriptors";
    families.gauge("accept_waiting", help, None, waiting)?;
    let counts = descriptors.counts();
    let help = "Times that accepting was put off for want of file descriptors";
    families.counter("accept_waits", help, None, [(&[][..], counts.accept_waits)])?;
    let help = "Requests that waited for a file descriptor before a connection to a backend was made";
    families.counter("connect_waits", help, None, [(&[][..], counts.backend_waits)])?;
    let help = "Times that the system refused a connection to a backend for want of descriptors, memory or ports";
    families.counter("connect_exhausted", help, None, [(&[][..], counts.exhausted)])
}
