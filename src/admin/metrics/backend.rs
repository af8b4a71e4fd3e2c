//! What each backend was asked, what came of it, and what its health checks say.

use std::fmt;
use std::sync::Arc;

use super::family::Families;
use super::{Scrape, by_class};
use crate::admin::upstreams::is_ready;
use crate::backend::Backend;
use crate::backend::health::{Health, Verdict};
use crate::telemetry::metrics::{BackendMetrics, Counter};

impl Scrape {
    pub(super) fn backends(&self, families: &mut Families<'_>) -> fmt::Result {
        let rosters: Vec<_> = self.snapshot.upstreams.iter().map(|it| (it.name().as_str(), it.roster())).collect();
        let backends = rosters.iter().flat_map(|(upstream, roster)| {
            roster.backends().iter().map(move |it| (*upstream, it.state.address.to_string(), it, is_ready(it, roster)))
        });
        let backends: Vec<_> = backends.collect();
        let labels: Vec<_> = backends
            .iter()
            .map(|(upstream, address, ..)| [("upstream", *upstream), ("backend", address.as_str())])
            .collect();
        let rows = || labels.iter().zip(&backends).map(|(labels, (.., it, ready))| (&labels[..], *it, *ready));
        let gauges =
            |value: fn(&Backend, bool) -> f64| rows().map(move |(labels, it, ready)| (labels, value(it, ready)));
        let counters = |counter: fn(&BackendMetrics) -> &Counter| {
            rows().map(move |(labels, it, _)| (labels, it.state.metrics.sum(counter)))
        };

        let help = "Times that a strategy picked it, retries included";
        families.counter("backend_picks", help, None, counters(|shard| &shard.picks))?;
        let in_flight = gauges(|it, _| it.state.in_flight().into());
        families.gauge("backend_requests_in_flight", "Leases held on it", None, in_flight)?;
        families.gauge("backend_weight", "Its weight", None, gauges(|it, _| it.weight.into()))?;
        let ready = gauges(|_, ready| if ready { 1.0 } else { 0.0 });
        families.gauge("backend_ready", "Whether it may be picked", None, ready)?;
        let responses = labels.iter().zip(&backends).flat_map(|(&[upstream, backend], (.., it, _))| {
            by_class(&it.state.metrics, |shard| &shard.responses)
                .map(move |(class, count)| ([upstream, backend, ("class", class)], count))
        });
        let responses: Vec<_> = responses.collect();
        let series = responses.iter().map(|(labels, count)| (&labels[..], *count));
        families.counter("backend_responses", "Its responses by the class of their status", None, series)?;
        families.counter("backend_connects", "Connections made to it", None, counters(|shard| &shard.connects))?;
        let handshakes = labels.iter().zip(&backends).flat_map(|(&[upstream, backend], (.., it, _))| {
            let metrics = &it.state.metrics;
            let full = metrics.sum(|shard| &shard.handshakes_full);
            let resumed = metrics.sum(|shard| &shard.handshakes_resumed);
            [("full", full), ("resumed", resumed)].map(|(kind, count)| ([upstream, backend, ("kind", kind)], count))
        });
        let handshakes: Vec<_> = handshakes.collect();
        let series = handshakes.iter().map(|(labels, count)| (&labels[..], *count));
        families.counter("backend_tls_handshakes", "Handshakes with it that made a connection", None, series)?;
        let help = "Connections to it that could not be made, timeouts included";
        families.counter("backend_connect_failures", help, None, counters(|shard| &shard.connect_failures))?;
        let help = "Attempts that were sent to it and brought no response head";
        families.counter("backend_broken", help, None, counters(|shard| &shard.broken))?;
        let help = "Attempts whose response head did not come in time";
        families.counter("backend_timeouts", help, None, counters(|shard| &shard.timeouts))
    }

    /// Of backends that are checked: of others there is nothing to say, and a 1 would say too much.
    pub(super) fn health(&self, families: &mut Families<'_>) -> fmt::Result {
        let checked = self.snapshot.upstreams.iter().filter(|it| it.config.health_check.is_some());
        let states = checked.flat_map(|upstream| {
            let roster = upstream.roster();
            let states: Vec<_> = roster.backends().iter().map(|it| Arc::clone(&it.state)).collect();
            states.into_iter().map(|state| (upstream.name().as_str(), state.address.to_string(), state))
        });
        let states: Vec<_> = states.collect();
        let rows = || {
            let labels = |upstream, backend| [("upstream", upstream), ("backend", backend)];
            states.iter().map(move |(upstream, backend, state)| (labels(*upstream, backend.as_str()), &state.health))
        };

        let healthy = |health: &Health| if health.verdict() == Verdict::Healthy { 1.0 } else { 0.0 };
        let verdicts: Vec<_> = rows().map(|(labels, health)| (labels, healthy(health))).collect();
        let series = verdicts.iter().map(|(labels, value)| (&labels[..], *value));
        families.gauge("backend_healthy", "Whether its health checks say so", None, series)?;
        let checks = rows().flat_map(|([upstream, backend], health)| {
            [("passed", health.passed.get()), ("failed", health.failed.get())]
                .map(move |(result, count)| ([upstream, backend, ("result", result)], count))
        });
        let checks: Vec<_> = checks.collect();
        let series = checks.iter().map(|(labels, count)| (&labels[..], *count));
        families.counter("backend_health_checks", "Health checks of it", None, series)?;
        let changes: Vec<_> = rows().map(|(labels, health)| (labels, health.changes.get())).collect();
        let series = changes.iter().map(|(labels, count)| (&labels[..], *count));
        families.counter("backend_health_changes", "Times that health checks turned the verdict on it", None, series)
    }
}
