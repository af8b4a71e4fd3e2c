//! `/metrics`: what the shards hold, added up, as text for Prometheus; and what the process uses.
//!
//! Nothing is registered anywhere: each scrape walks the snapshot, so that a series ends with the listener, route, upstream
//! or backend it is of, and a counter goes on where its state outlives a reload. Labels hold names of the configuration and
//! numbers of workers, never anything that a client sends; how many series there are is decided by `lb.toml`.
//!
//! A new metric has a line in `docs/metrics.md`; a test compares the two.

mod backend;
mod family;
mod limits;
mod listener;
mod load_balancing;
mod process;
mod registry;
mod source;
#[cfg(test)]
mod tests;
mod text_format;
mod upstream;

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::registry::{Registry, Unit};

use self::family::Families;
use super::content_negotiation::Format;
use super::{Control, ProcessStatus};
use crate::listener::Listener;
use crate::proxy::Snapshot;
use crate::registry::RegistryCounts;
use crate::telemetry::logging::Logging;
use crate::telemetry::metrics::{Counter, Sharded};
use crate::telemetry::process::Process;
use crate::telemetry::process_resources::Resources;

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// All metrics of the process, in a format.
pub(super) fn page(control: &dyn Control, format: Format) -> Result<String, fmt::Error> {
    let open = text(control)?;
    Ok(match format {
        Format::OpenMetrics => open,
        Format::Classic => text_format::from_openmetrics(&open),
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
        registry: control.registry(),
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
    status: ProcessStatus,
    snapshot: Arc<Snapshot>,
    process: Arc<Process>,
    listeners: Vec<Arc<Listener>>,
    connections_by_worker: Vec<usize>,
    access_log_dropped: u64,
    registry: Option<RegistryCounts>,
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
        let mut families = Families::new(encoder);
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
        let mut families = Families::new(encoder);
        self.process(&mut families)?;
        self.reloads(&mut families)?;
        self.listeners(&mut families)?;
        self.routes(&mut families)?;
        self.middleware(&mut families)?;
        self.upstreams(&mut families)?;
        self.backends(&mut families)?;
        self.health(&mut families)?;
        self.picking(&mut families)?;
        self.sources(&mut families)?;
        self.registry(&mut families)?;
        limits::metrics(&self.snapshot, &self.process, &mut families)
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
