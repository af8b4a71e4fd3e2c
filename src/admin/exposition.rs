//! `/metrics`: what the shards hold, added up, as text for Prometheus; and what the process uses.
//!
//! Nothing is registered anywhere: each scrape walks the snapshot, so that a series ends with the listener, route, upstream
//! or backend it is of, and a counter goes on where its state outlives a reload. Labels hold names of the configuration and
//! numbers of workers, never anything that a client sends; how many series there are is decided by `lb.toml`.
//!
//! A new metric has a line in `docs/metrics.md`; a test compares the two.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeExemplarValue, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

use super::accept::Format;
use super::upstreams::is_ready;
use super::{Control, Status, classic};
use crate::backend::Backend;
use crate::backend::health::{Health, Verdict};
use crate::backend::outlier::Reason;
use crate::config::{GrpcStatus, ListenerName, PathsKey, Tier};
use crate::listener::Listener;
use crate::proxy::Snapshot;
use crate::telemetry::clock;
use crate::telemetry::logging::Logging;
use crate::telemetry::metrics::{
    AddressLimit, BUCKET_BOUNDS_US, BackendMetrics, Counter, FloodKind, HandshakeFailure, Histogram, MiddlewareMetrics,
    RetryCause, Sharded, UpstreamMetrics, handshake_index,
};
use crate::telemetry::process::Process;
use crate::telemetry::resources::Resources;
use crate::telemetry::vital;
use crate::upstream::Readiness;
use crate::upstream::retry_budget::BudgetSettings;

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// All metrics of the process, in a format.
pub(super) fn page(control: &dyn Control, format: Format) -> Result<String, fmt::Error> {
    let open = text(control)?;
    Ok(match format {
        Format::OpenMetrics => open,
        Format::Classic => classic::from_openmetrics(&open),
    })
}

/// What `prometheus-client` writes is OpenMetrics.
fn text(control: &dyn Control) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("isobar");
    registry.register_collector(Box::new(Scrape {
        status: control.status(),
        snapshot: control.snapshot(),
        process: control.process(),
        listeners: control.listeners(),
        connections_by_worker: control.connections_by_worker(),
        access_log_dropped: control.access_log_dropped(),
        log_dropped: control.logging().map_or(0, Logging::dropped),
    }));
    // Under the names that all programs have for these.
    let mut common = Registry::default();
    common.register_collector(Box::new(Common { started: control.status().started, resources: Resources::now() }));
    let mut text = String::new();
    encode_registry(&mut text, &registry)?;
    encode_registry(&mut text, &common)?;
    encode_eof(&mut text)?;
    Ok(text)
}

/// What one scrape is answered from.
#[derive(Debug)]
struct Scrape {
    status: Status,
    snapshot: Arc<Snapshot>,
    process: Arc<Process>,
    listeners: Vec<Arc<Listener>>,
    connections_by_worker: Vec<usize>,
    access_log_dropped: u64,
    log_dropped: u64,
}

/// What clients of Prometheus tell of every process.
#[derive(Debug)]
struct Common {
    started: SystemTime,
    resources: Resources,
}

impl Collector for Common {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families(encoder);
        let Resources { cpu_seconds, resident_bytes, virtual_bytes, open_descriptors, max_descriptors } =
            self.resources;
        let cpu = [(&[][..], cpu_seconds)];
        families.counter("process_cpu", "Processor time used, the system's included", Some(&Unit::Seconds), cpu)?;
        let started = [(&[][..], unix_seconds(self.started))];
        families.gauge("process_start_time", "When the process started", Some(&Unit::Seconds), started)?;
        let mut gauge = |name, help, unit, value: Option<u64>| {
            value.map_or(Ok(()), |value| families.gauge(name, help, unit, [(&[][..], value as f64)]))
        };
        gauge("process_resident_memory", "Memory that is resident", Some(&Unit::Bytes), resident_bytes)?;
        gauge("process_virtual_memory", "Address space in use", Some(&Unit::Bytes), virtual_bytes)?;
        gauge("process_open_fds", "File descriptors that are open", None, open_descriptors)?;
        gauge("process_max_fds", "File descriptors that may be open", None, max_descriptors)
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families(encoder);
        self.process(&mut families)?;
        self.reloads(&mut families)?;
        self.listeners(&mut families)?;
        self.routes(&mut families)?;
        self.middleware(&mut families)?;
        self.upstreams(&mut families)?;
        self.backends(&mut families)?;
        self.health(&mut families)?;
        self.picking(&mut families)?;
        super::limits::metrics(&self.snapshot, &self.process, &mut families)
    }
}

impl Scrape {
    fn process(&self, families: &mut Families<'_>) -> fmt::Result {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        families.gauge("build_info", "What runs; always 1", None, [(&version[..], 1.0)])?;
        let started = unix_seconds(self.status.started);
        families.gauge("process_start_time", "When the process started", Some(&Unit::Seconds), [(&[][..], started)])?;
        let count = self.connections_by_worker.len() as f64;
        families.gauge("workers", "Threads that serve requests", None, [(&[][..], count)])?;
        let workers: Vec<_> =
            self.connections_by_worker.iter().enumerate().map(|(n, &open)| (n.to_string(), open as f64)).collect();
        let workers: Vec<_> = workers.iter().map(|(n, open)| ([("worker", n.as_str())], *open)).collect();
        let connections = workers.iter().map(|(labels, open)| (&labels[..], *open));
        families.gauge("worker_connections", "Client connections open", None, connections)?;
        let missed: Vec<_> =
            self.process.pulse.missed().enumerate().map(|(n, missed)| (n.to_string(), missed)).collect();
        let missed: Vec<_> = missed.iter().map(|(n, missed)| ([("worker", n.as_str())], *missed as f64)).collect();
        let missed = missed.iter().map(|(labels, missed)| (&labels[..], *missed));
        let help = "For how long a worker has not run";
        families.gauge("worker_unresponsive", help, Some(&Unit::Seconds), missed)?;
        let help = "Panics, each a fault of the program";
        families.counter("panics", help, None, [(&[][..], vital::panics())])?;
        let dropped = [(&[][..], self.access_log_dropped)];
        families.counter("access_log_dropped_lines", "Access log lines that were not written", None, dropped)?;
        let dropped = [(&[][..], self.log_dropped)];
        families.counter("log_dropped_lines", "Lines of the process's own log that were not written", None, dropped)
    }

    fn reloads(&self, families: &mut Families<'_>) -> fmt::Result {
        let generation = self.snapshot.generation as f64;
        families.gauge("config_generation", "Number of the snapshot in force", None, [(&[][..], generation)])?;
        let Status { reloads_applied, reloads_failed, loaded_at, last_error, .. } = &self.status;
        let (applied, failed) = ([("result", "applied")], [("result", "failed")]);
        let reloads = [(&applied[..], *reloads_applied), (&failed[..], *reloads_failed)];
        families.counter("config_reloads", "Attempts to apply a changed file", None, reloads)?;
        let successful = if last_error.is_none() { 1.0 } else { 0.0 };
        let help = "Whether the last attempt to load the file was successful";
        families.gauge("config_last_reload_successful", help, None, [(&[][..], successful)])?;
        let help = "When the configuration in force was last read and found good";
        let loaded_at = [(&[][..], unix_seconds(*loaded_at))];
        families.gauge("config_last_reload_success_timestamp", help, Some(&Unit::Seconds), loaded_at)
    }

    fn listeners(&self, families: &mut Families<'_>) -> fmt::Result {
        let names: Vec<_> = self.listeners.iter().map(|it| it.name()).collect();
        let labels: Vec<_> = names.iter().map(|name| [("listener", name.as_str())]).collect();
        let rows = || labels.iter().zip(&self.listeners).map(|(labels, it)| (&labels[..], it));
        let gauges = |value: fn(&Listener) -> u64| rows().map(move |(labels, it)| (labels, value(it) as f64));
        let counters = |value: fn(&Listener) -> u64| rows().map(move |(labels, it)| (labels, value(it)));

        let open = gauges(|it| it.open.load(Ordering::Relaxed) as u64);
        families.gauge("listener_connections", "Client connections open", None, open)?;
        let accepted = counters(|it| it.metrics.sum(|shard| &shard.accepted));
        families.counter("listener_connections_accepted", "Client connections accepted", None, accepted)?;
        let refused = counters(|it| it.metrics.sum(|shard| &shard.refused));
        let help = "Client connections refused because of max_connections";
        families.counter("listener_connections_refused", help, None, refused)?;
        let limited = rows().flat_map(|(labels, it)| {
            AddressLimit::ALL.map(|limit| {
                let count = it.metrics.sum(|shard| &shard.limited[limit as usize]);
                ([labels[0], ("limit", limit.as_str())], count)
            })
        });
        let limited: Vec<_> = limited.collect();
        let limited = limited.iter().map(|(labels, count)| (&labels[..], *count));
        let help = "Client connections closed at once because of a limit of their address";
        families.counter("listener_connections_limited", help, None, limited)?;
        let requests = counters(|it| it.metrics.sum(|shard| &shard.requests));
        families.counter("listener_requests", "Requests whose head was read", None, requests)?;
        let in_flight = gauges(|it| {
            // The ends first: an exchange that begins and ends in between must not make the difference negative.
            let ended = it.metrics.sum(|shard| &shard.ended);
            it.metrics.sum(|shard| &shard.requests).saturating_sub(ended)
        });
        families.gauge("listener_requests_in_flight", "Exchanges that have not ended", None, in_flight)?;
        let rejected = counters(|it| it.metrics.sum(|shard| &shard.rejected));
        let help = "Requests refused before a route was looked for: malformed, too large, too slow";
        families.counter("listener_requests_rejected", help, None, rejected)?;
        let left_out = counters(|it| it.metrics.sum(|shard| &shard.refusals_left_out));
        let help = "Refusals that the access log has no line for because there were too many";
        families.counter("listener_refusals_left_out", help, None, left_out)?;
        let misdirected = counters(|it| it.metrics.sum(|shard| &shard.misdirected));
        let help = "Requests for another host than the one that was named in the TLS handshake";
        families.counter("listener_requests_misdirected", help, None, misdirected)?;
        let paths = rows().flat_map(|(labels, it)| {
            PathsKey::ALL.map(|key| {
                ([labels[0], ("key", key.as_str())], it.metrics.sum(|shard| &shard.paths_refused[key as usize]))
            })
        });
        let paths: Vec<_> = paths.collect();
        let paths = paths.iter().map(|(labels, count)| (&labels[..], *count));
        let help = "Requests answered 400 because of their path, by the key of paths";
        families.counter("listener_paths_refused", help, None, paths)?;
        let bytes_in = counters(|it| it.metrics.sum(|shard| &shard.bytes_in));
        families.counter("listener_request_body", "Bytes of request bodies", Some(&Unit::Bytes), bytes_in)?;
        let bytes_out = counters(|it| it.metrics.sum(|shard| &shard.bytes_out));
        families.counter("listener_response_body", "Bytes of response bodies", Some(&Unit::Bytes), bytes_out)?;
        let slow = rows().flat_map(|(labels, it)| {
            [("request", 0), ("response", 1)]
                .map(|(body, index)| ([labels[0], ("body", body)], it.metrics.sum(|shard| &shard.slow_bodies[index])))
        });
        let slow: Vec<_> = slow.collect();
        let slow = slow.iter().map(|(labels, count)| (&labels[..], *count));
        let help = "Exchanges ended because the client was slower than min_bytes_per_second";
        families.counter("listener_slow_bodies", help, None, slow)?;
        let tunnels = gauges(|it| {
            let closed = it.metrics.sum(|shard| &shard.tunnels_closed);
            it.metrics.sum(|shard| &shard.tunnels_opened).saturating_sub(closed)
        });
        let help = "Exchanges and tunnels cut because the time to finish was over";
        families.counter("listener_exchanges_cut", help, None, counters(|it| it.metrics.sum(|shard| &shard.cut)))?;
        families.gauge("listener_tunnels", "Upgraded connections (WebSockets) open", None, tunnels)?;
        self.handshakes(families, &names)?;
        self.http2(families)
    }

    /// Of listeners that speak TLS.
    fn handshakes(&self, families: &mut Families<'_>, names: &[ListenerName]) -> fmt::Result {
        let listeners: Vec<_> = names.iter().map(ListenerName::as_str).zip(&self.listeners).collect();
        let all = listeners.iter().filter_map(|(name, it)| Some((*name, *it, it.tls.load_full()?)));
        let all: Vec<_> = all.collect();
        if all.is_empty() {
            return Ok(());
        }
        let mut done = Vec::new();
        for &(name, listener, _) in &all {
            for (new, version) in [(false, "1.2"), (true, "1.3")] {
                for (resumed, word) in [(false, "false"), (true, "true")] {
                    let labels = [("listener", name), ("version", version), ("resumed", word)];
                    done.push((labels, listener.metrics.sum(|it| &it.handshakes[handshake_index(new, resumed)])));
                }
            }
        }
        let done = done.iter().map(|(labels, count)| (&labels[..], *count));
        families.counter("tls_handshakes", "TLS handshakes that succeeded", None, done)?;
        let mut failed = Vec::new();
        for &(name, listener, _) in &all {
            for (index, failure) in HandshakeFailure::ALL.iter().enumerate() {
                let labels = [("listener", name), ("reason", failure.as_str())];
                failed.push((labels, listener.metrics.sum(|it| &it.handshake_failures[index])));
            }
        }
        let failed = failed.iter().map(|(labels, count)| (&labels[..], *count));
        families.counter("tls_handshake_failures", "TLS handshakes that failed, by why", None, failed)?;
        // A file may be named twice, and a series is there once.
        let mut ends = BTreeMap::new();
        for (name, _, tls) in &all {
            ends.extend(tls.certificates.iter().map(|it| ((*name, it.file.display().to_string()), it.at)));
        }
        let ends: Vec<_> = ends.iter().map(|((name, file), at)| ([("listener", *name), ("file", file)], *at)).collect();
        let ends = ends.iter().map(|(labels, at)| (&labels[..], *at as f64));
        let help = "When the certificate expires";
        families.gauge("tls_certificate_expiry_timestamp", help, Some(&Unit::Seconds), ends)?;
        let labels: Vec<_> = all.iter().map(|(name, it, _)| ([("listener", *name)], *it)).collect();
        let refused = labels.iter().map(|(labels, it)| (&labels[..], it.certificates_refused.load(Ordering::Relaxed)));
        families.counter("tls_certificates_refused", "Changed certificates that could not be used", None, refused)
    }

    fn http2(&self, families: &mut Families<'_>) -> fmt::Result {
        let names: Vec<_> = self.listeners.iter().map(|it| it.name()).collect();
        let labels: Vec<_> = names.iter().map(|name| [("listener", name.as_str())]).collect();
        let rows = || labels.iter().zip(&self.listeners).map(|(labels, it)| (labels, &it.metrics));

        let open = rows().map(|(labels, it)| {
            let closed = it.sum(|shard| &shard.http2_closed);
            (&labels[..], it.sum(|shard| &shard.http2_opened).saturating_sub(closed) as f64)
        });
        families.gauge(
            "listener_http2_connections",
            "Client connections open on which HTTP/2 is spoken",
            None,
            open,
        )?;
        let streams = rows().map(|(labels, it)| (&labels[..], it.sum(|shard| &shard.http2_streams)));
        families.counter("listener_http2_streams", "Streams of HTTP/2 begun", None, streams)?;
        let open = rows().map(|(labels, it)| {
            let ended = it.sum(|shard| &shard.http2_streams_ended);
            (&labels[..], it.sum(|shard| &shard.http2_streams).saturating_sub(ended) as f64)
        });
        families.gauge("listener_http2_streams_open", "Streams of HTTP/2 that have not ended", None, open)?;
        let resets = rows().flat_map(|(&[listener], it)| {
            let (client, proxy) =
                (it.sum(|shard| &shard.http2_resets_client), it.sum(|shard| &shard.http2_resets_proxy));
            [("client", client), ("proxy", proxy)].map(|(by, count)| ([listener, ("by", by)], count))
        });
        let resets: Vec<_> = resets.collect();
        let series = resets.iter().map(|(labels, count)| (&labels[..], *count));
        families.counter("listener_http2_resets", "Streams of HTTP/2 that were cut short, by whom", None, series)?;
        let floods = rows().flat_map(|(&[listener], it)| {
            FloodKind::ALL
                .map(|kind| ([listener, ("kind", kind.as_str())], it.sum(|shard| &shard.http2_floods[kind as usize])))
        });
        let floods: Vec<_> = floods.collect();
        let series = floods.iter().map(|(labels, count)| (&labels[..], *count));
        let help = "Connections of HTTP/2 ended because of a flood, by what was too much";
        families.counter("listener_http2_floods", help, None, series)
    }

    fn routes(&self, families: &mut Families<'_>) -> fmt::Result {
        let series = self.snapshot.routes.routes().iter().flat_map(|route| {
            by_class(&route.metrics, |shard| &shard.responses)
                .map(|(class, count)| ([("route", route.name.as_str()), ("class", class)], count))
        });
        let series: Vec<_> = series.collect();
        let help = "Exchanges by the class of the status the client was answered with";
        families.counter("route_responses", help, None, series.iter().map(|(labels, count)| (&labels[..], *count)))
    }

    fn middleware(&self, families: &mut Families<'_>) -> fmt::Result {
        let counted = |counter: fn(&MiddlewareMetrics) -> &Counter| {
            let installed = self.snapshot.middleware.installed.iter();
            let named = installed.filter_map(|it| Some((it.name()?, it.state.as_ref()?)));
            named.map(|(name, state)| ([("middleware", name.as_str())], state.metrics.sum(counter))).collect::<Vec<_>>()
        };
        let mut family = |name, help, counter| {
            let counted = counted(counter);
            families.counter(name, help, None, counted.iter().map(|(labels, count)| (&labels[..], *count)))
        };
        family("middleware_answered", "Requests that it has answered", |it| &it.answered)?;
        family("middleware_waited", "Requests that waited for it", |it| &it.waited)?;
        family("middleware_timeouts", "Requests that waited for it in vain", |it| &it.timeouts)
    }

    fn upstreams(&self, families: &mut Families<'_>) -> fmt::Result {
        let upstreams = &self.snapshot.upstreams;
        let labels: Vec<_> = upstreams.iter().map(|it| [("upstream", it.name().as_str())]).collect();
        let metrics: Vec<&Sharded<UpstreamMetrics>> = upstreams.iter().map(|it| &it.state.metrics).collect();
        let counters = |counter: fn(&UpstreamMetrics) -> &Counter| {
            labels.iter().zip(&metrics).map(move |(labels, metrics)| (&labels[..], metrics.sum(counter)))
        };

        let responses = labels.iter().zip(&metrics).flat_map(|(&[upstream], metrics)| {
            by_class(metrics, |shard| &shard.responses).map(move |(class, count)| ([upstream, ("class", class)], count))
        });
        let responses: Vec<_> = responses.collect();
        let help = "Exchanges by the class of the status the client was answered with";
        let series = responses.iter().map(|(labels, count)| (&labels[..], *count));
        families.counter("upstream_responses", help, None, series)?;
        // Most upstreams never see a call, and each would have as many series as there are statuses.
        let called = labels
            .iter()
            .zip(&metrics)
            .filter(|(_, metrics)| metrics.iter().any(|shard| shard.grpc.iter().any(|counter| counter.get() > 0)));
        let calls = called.flat_map(|(&[upstream], metrics)| {
            GrpcStatus::ALL.map(|status| {
                let count = metrics.sum(|shard| &shard.grpc[usize::from(status.code())]);
                ([upstream, ("status", status.as_str())], count)
            })
        });
        let calls: Vec<_> = calls.collect();
        let help = "Calls of gRPC by the status that they came to";
        families.counter(
            "upstream_grpc_calls",
            help,
            None,
            calls.iter().map(|(labels, count)| (&labels[..], *count)),
        )?;
        let help = "From the request's head to the end of the response";
        let sum = |metrics| Durations::sum(metrics, |shard: &UpstreamMetrics| &shard.durations);
        let durations = labels.iter().zip(&metrics).map(|(labels, metrics)| (&labels[..], sum(metrics)));
        families.histogram("upstream_request_duration", help, Some(&Unit::Seconds), durations)?;
        self.retries(families)?;
        let help = "Requests that found no backend to pick";
        families.counter("upstream_no_backend", help, None, counters(|shard| &shard.no_backend))
    }

    fn retries(&self, families: &mut Families<'_>) -> fmt::Result {
        let upstreams = &self.snapshot.upstreams;
        let metrics = || upstreams.iter().map(|it| (("upstream", it.name().as_str()), &it.state.metrics));

        let retries = metrics().flat_map(|(upstream, metrics)| {
            RetryCause::ALL.into_iter().enumerate().map(move |(index, cause)| {
                ([upstream, ("cause", cause.as_str())], metrics.sum(|shard| &shard.retries[index]))
            })
        });
        let retries: Vec<_> = retries.collect();
        let series = retries.iter().map(|(labels, count)| (&labels[..], *count));
        families.counter("upstream_retries", "Further attempts by what they came after", None, series)?;
        let retried = metrics().flat_map(|(upstream, metrics)| {
            let (well, vain) = (metrics.sum(|it| &it.retried_well), metrics.sum(|it| &it.retried_in_vain));
            [("answered", well), ("failed", vain)].map(|(result, count)| ([upstream, ("result", result)], count))
        });
        let retried: Vec<_> = retried.collect();
        let series = retried.iter().map(|(labels, count)| (&labels[..], *count));
        families.counter("upstream_retried_requests", "Requests tried again, by what came of it", None, series)?;

        let labels: Vec<_> = metrics().map(|(upstream, _)| [upstream]).collect();
        let counters = |counter: fn(&UpstreamMetrics) -> &Counter| {
            labels.iter().zip(upstreams).map(move |(labels, it)| (&labels[..], it.state.metrics.sum(counter)))
        };
        let help = "Further attempts that were not made because the retry budget was spent";
        families.counter("upstream_retry_budget_spent", help, None, counters(|shard| &shard.retry_budget_spent))?;
        let now_ms = clock::now_ms(Instant::now());
        let available = labels.iter().zip(upstreams).map(|(labels, it)| {
            let settings = BudgetSettings::retries(&it.config.retry_budget);
            (&labels[..], it.state.retry_budget.available(&settings, now_ms) as f64)
        });
        let help = "Further attempts that could be made now";
        families.gauge("upstream_retry_budget_available", help, None, available)?;
        let help = "Second attempts while the first was slow";
        families.counter("upstream_hedges", help, None, counters(|shard| &shard.hedges))?;
        let help = "Second attempts that were answered first";
        families.counter("upstream_hedges_won", help, None, counters(|shard| &shard.hedges_won))?;
        let help = "Second attempts that were not made because their budget was spent";
        families.counter("upstream_hedge_budget_spent", help, None, counters(|shard| &shard.hedge_budget_spent))
    }

    fn backends(&self, families: &mut Families<'_>) -> fmt::Result {
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
}

impl Scrape {
    /// Of backends that are checked: of others there is nothing to say, and a 1 would say too much.
    fn health(&self, families: &mut Families<'_>) -> fmt::Result {
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

impl Scrape {
    /// What decides who is picked.
    fn picking(&self, families: &mut Families<'_>) -> fmt::Result {
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

fn by_class<'a, T: 'a>(
    metrics: &'a Sharded<T>,
    responses: impl Fn(&T) -> &[Counter; 5] + 'a,
) -> impl Iterator<Item = (&'static str, u64)> + 'a {
    CLASSES.into_iter().enumerate().map(move |(index, class)| (class, metrics.sum(|shard| &responses(shard)[index])))
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A histogram as the encoder wants it.
pub(super) struct Durations {
    sum: f64,
    count: u64,
    /// Upper bounds in seconds with the counts, not cumulated.
    buckets: [(f64, u64); BUCKET_BOUNDS_US.len() + 1],
}

impl Durations {
    /// What the shards hold of `histogram`, added up.
    pub(super) fn sum<T>(metrics: &Sharded<T>, histogram: impl Fn(&T) -> &Histogram) -> Self {
        let bound = |index: usize| BUCKET_BOUNDS_US.get(index).map_or(f64::INFINITY, |&us| us as f64 / 1e6);
        let mut buckets = std::array::from_fn(|index| (bound(index), 0));
        let mut sum_us = 0;
        for shard in metrics.iter() {
            let histogram = histogram(shard);
            sum_us += histogram.sum_us();
            for (bucket, count) in buckets.iter_mut().zip(histogram.counts()) {
                bucket.1 += count;
            }
        }
        Self { sum: sum_us as f64 / 1e6, count: buckets.iter().map(|(_, count)| count).sum(), buckets }
    }
}

type Labels<'a> = &'a [(&'a str, &'a str)];

/// Writes a metric with all its series at a time.
pub(super) struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    pub(super) fn counter<'l, V: EncodeCounterValue + EncodeExemplarValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl IntoIterator<Item = (Labels<'l>, V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (labels, value) in series {
            with(&mut family, labels, |metric| metric.encode_counter(&value, None::<&Exemplar<Labels<'_>, V>>))?;
        }
        Ok(())
    }

    pub(super) fn gauge<'l>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl IntoIterator<Item = (Labels<'l>, f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in series {
            with(&mut family, labels, |metric| metric.encode_gauge(&value))?;
        }
        Ok(())
    }

    pub(super) fn histogram<'l>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl IntoIterator<Item = (Labels<'l>, Durations)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        for (labels, Durations { sum, count, buckets }) in series {
            with(&mut family, labels, |metric| metric.encode_histogram::<Labels<'_>>(sum, count, &buckets, None))?;
        }
        Ok(())
    }
}

fn with(
    family: &mut MetricEncoder<'_>,
    labels: Labels<'_>,
    write: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    if labels.is_empty() { write(family) } else { write(&mut family.encode_family(&labels)?) }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::admin::fixture::Process;
    use crate::backend::Lease;
    use crate::backend::health::{LastCheck, Thresholds};
    use crate::overload::Cause;

    #[test]
    fn shards_are_added_up() {
        let process = Process::new();
        let upstream = &process.snapshot().upstreams[0];
        for worker in 0..2 {
            let shard = upstream.state.metrics.of(worker);
            shard.responses[1].add(2);
            shard.grpc[14].add(3);
            shard.durations.observe(Duration::from_micros(700));
            let shard = process.listener.metrics.of(worker);
            shard.requests.add(5);
            shard.ended.add(4);
            shard.bytes_out.add(100);
        }
        upstream.state.metrics.of(1).queue_waits.observe(Duration::from_millis(3));
        upstream.state.metrics.of(0).queue_full.add(2);
        process.process.refused.of(1).of(Cause::Memory).add(7);
        upstream.state.metrics.of(1).durations.observe(Duration::from_secs(60));
        let backends = upstream.roster().backends().to_vec();
        backends[0].state.metrics.of(1).picks.add(3);
        let _lease = Lease::take(&backends[1].state);
        process.snapshot().routes.routes()[0].metrics.of(0).responses[4].add(1);
        let thresholds = Thresholds { unhealthy_after: 2, healthy_after: 1 };
        for failure in [None, Some("refused"), Some("refused")] {
            let check = LastCheck { at: UNIX_EPOCH, took: Duration::ZERO, failure: failure.map(str::to_owned) };
            backends[1].state.health.record(check, thresholds);
        }

        backends[0].state.outlier.eject_by_hand(Instant::now(), None);
        upstream.refresh(Instant::now());

        let text = text(&*process).unwrap();
        for line in [
            r#"isobar_upstream_panic{upstream="users",tier="0"} 1.0"#,
            r#"isobar_backend_ejected{upstream="users",backend="10.0.0.1:9001"} 1.0"#,
            r#"isobar_backend_ejected{upstream="users",backend="10.0.0.3:9001"} 0.0"#,
            r#"isobar_backend_ejections_total{upstream="users",backend="10.0.0.1:9001",reason="by_hand"} 1"#,
            r#"isobar_backend_ejections_total{upstream="users",backend="10.0.0.1:9001",reason="latency"} 0"#,
            r#"isobar_backend_slow_start{upstream="users",backend="10.0.0.1:9001"} 1.0"#,
            r#"isobar_upstream_responses_total{upstream="users",class="2xx"} 4"#,
            r#"isobar_upstream_grpc_calls_total{upstream="users",status="unavailable"} 6"#,
            r#"isobar_upstream_grpc_calls_total{upstream="users",status="ok"} 0"#,
            r#"isobar_upstream_request_duration_seconds_bucket{le="0.0005",upstream="users"} 0"#,
            r#"isobar_upstream_request_duration_seconds_bucket{le="0.001",upstream="users"} 2"#,
            r#"isobar_upstream_request_duration_seconds_bucket{le="30.0",upstream="users"} 2"#,
            r#"isobar_upstream_request_duration_seconds_bucket{le="+Inf",upstream="users"} 3"#,
            r#"isobar_upstream_request_duration_seconds_sum{upstream="users"} 60.0014"#,
            r#"isobar_upstream_request_duration_seconds_count{upstream="users"} 3"#,
            r#"isobar_listener_requests_total{listener="main"} 10"#,
            r#"isobar_listener_requests_in_flight{listener="main"} 2.0"#,
            r#"isobar_listener_response_body_bytes_total{listener="main"} 200"#,
            r#"isobar_backend_picks_total{upstream="users",backend="10.0.0.1:9001"} 3"#,
            r#"isobar_backend_requests_in_flight{upstream="users",backend="users-2.internal:9001"} 1.0"#,
            r#"isobar_backend_ready{upstream="users",backend="10.0.0.1:9001"} 0.0"#,
            r#"isobar_backend_ready{upstream="users",backend="10.0.0.3:9001"} 0.0"#,
            r#"isobar_backend_weight{upstream="users",backend="users-2.internal:9001"} 3.0"#,
            r#"isobar_backend_healthy{upstream="users",backend="10.0.0.1:9001"} 1.0"#,
            r#"isobar_backend_healthy{upstream="users",backend="users-2.internal:9001"} 0.0"#,
            r#"isobar_backend_health_checks_total{upstream="users",backend="users-2.internal:9001",result="passed"} 1"#,
            r#"isobar_backend_health_checks_total{upstream="users",backend="users-2.internal:9001",result="failed"} 2"#,
            r#"isobar_backend_health_changes_total{upstream="users",backend="users-2.internal:9001"} 1"#,
            r#"isobar_route_responses_total{route="users",class="5xx"} 1"#,
            r#"isobar_worker_connections{worker="1"} 4.0"#,
            r#"isobar_upstream_queue_wait_seconds_count{upstream="users"} 1"#,
            r#"isobar_upstream_queue_full_total{upstream="users"} 2"#,
            r#"isobar_upstream_queue_length{upstream="users"} 0.0"#,
            r#"isobar_upstream_breaker_state{upstream="users",state="closed"} 1.0"#,
            r#"isobar_upstream_breaker_state{upstream="users",state="open"} 0.0"#,
            r#"isobar_upstream_adaptive_limit{upstream="users"} 20.0"#,
            r#"isobar_backend_in_flight_limit{upstream="users",backend="10.0.0.1:9001"} 4.0"#,
            r#"isobar_backend_connections_limit{upstream="users",backend="10.0.0.1:9001"} 8.0"#,
            r#"isobar_overload_refused_total{cause="memory"} 7"#,
            r#"isobar_overload_refusing_workers{cause="lag"} 0.0"#,
            r#"isobar_config_reloads_total{result="failed"} 2"#,
            "isobar_config_generation 7.0",
            "isobar_config_last_reload_successful 1.0",
            "isobar_process_start_time_seconds 1767225600.0",
            "isobar_access_log_dropped_lines_total 5",
            "process_start_time_seconds 1767225600.0",
            "# TYPE process_cpu_seconds counter",
            "# EOF",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
        }
    }

    /// Name, type and labels of every metric.
    type Metric = (String, String, BTreeSet<String>);

    #[test]
    fn every_metric_is_in_the_table_and_every_line_of_it_is_a_metric() {
        let process = Process::new();
        // Told of from the first call on.
        process.snapshot().upstreams[0].state.metrics.of(0).grpc[0].add(1);
        let emitted = emitted(&text(&*process).unwrap());
        let documented = documented(include_str!("../../docs/metrics.md"));
        let missing: Vec<_> = emitted.difference(&documented).collect();
        let invented: Vec<_> = documented.difference(&emitted).collect();
        assert!(missing.is_empty() && invented.is_empty(), "not in the table: {missing:#?}\nonly there: {invented:#?}");
        assert!(emitted.len() > 25);
    }

    fn emitted(text: &str) -> BTreeSet<Metric> {
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types
            .map(|line| {
                let (family, kind) = line.split_once(' ').unwrap();
                let name = if kind == "counter" { format!("{family}_total") } else { family.to_owned() };
                let sample = if kind == "histogram" { format!("{family}_count") } else { name.clone() };
                let series = text.lines().find_map(|line| line.strip_prefix(sample.as_str())).unwrap();
                let labels = series.strip_prefix('{').map_or("", |rest| rest.split('}').next().unwrap());
                let labels = labels.split(',').filter_map(|label| label.split_once('=')).map(|(key, _)| key.to_owned());
                (name, kind.to_owned(), labels.collect())
            })
            .collect()
    }

    fn documented(page: &str) -> BTreeSet<Metric> {
        let rows =
            page.lines().filter(|line| ["| `isobar_", "| `process_"].iter().any(|start| line.starts_with(start)));
        rows.map(|row| {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let labels =
                cells[3].split(',').map(|label| label.trim().trim_matches('`')).filter(|label| !label.is_empty());
            (cells[1].trim_matches('`').to_owned(), cells[2].to_owned(), labels.map(str::to_owned).collect())
        })
        .collect()
    }
}
