//! `[upstream.NAME]`; also `retries`, which routes have as well.

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::value::{duration, entries, entry_if, limit_entry, lossy, shown, some, texts};
use super::{Entries, Shown, Switched};
use crate::admin::picking::place_keys;
use crate::config::{
    BackendConfig, BackendLimits, BackendTlsConfig, BodyMatch, GrpcProbe, HealthCheckConfig, HedgeConfig, HttpProbe,
    LimitsConfig, NamedFile, Probe, QueueConfig, QueueOrder, RetryConfig, RetryOn, Table, TiersConfig, UpstreamConfig,
    show_switched,
};

impl Serialize for Shown<&UpstreamConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let UpstreamConfig {
            name: _,
            strategy,
            backends,
            connect_timeout,
            retries,
            retry_budget,
            pool,
            protocol,
            tls,
            health_check,
            limits,
            outlier_detection,
            slow_start,
            tiers: TiersConfig { overprovisioning_percent, panic_percent, zones },
            middleware,
        } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("strategy", strategy.as_str())?;
        map.serialize_entry("backends", &shown(backends))?;
        map.serialize_entry("connect_timeout", &Shown(*connect_timeout))?;
        map.serialize_entry("retries", &Shown(&**retries))?;
        map.serialize_entry("retry_budget", &retry_budget.tree())?;
        map.serialize_entry("pool", &pool.tree())?;
        map.serialize_entry("protocol", protocol.as_str())?;
        map.serialize_entry("tls", &Switched { on: tls.as_deref().map(Shown) })?;
        map.serialize_entry("panic_threshold", panic_percent)?;
        map.serialize_entry("overprovisioning", &(f64::from(*overprovisioning_percent) / 100.0))?;
        map.serialize_entry("health_check", &Switched { on: health_check.as_deref().map(Shown) })?;
        map.serialize_entry("outlier_detection", &show_switched(outlier_detection.as_ref()))?;
        map.serialize_entry("slow_start", &show_switched(slow_start.as_ref()))?;
        map.serialize_entry("zone_preference", &Switched { on: zones.as_ref().map(Shown) })?;
        limits_keys(&mut map, limits, backends)?;
        entry_if(&mut map, "middleware", some(texts(middleware)).as_ref())?;
        map.end()
    }
}

fn limits_keys<M: SerializeMap>(
    map: &mut M,
    limits: &LimitsConfig,
    backends: &[BackendConfig],
) -> Result<(), M::Error> {
    let LimitsConfig { backend, queue, breaker, adaptive } = limits;
    backend_limits_keys(map, backend)?;
    // Where there is no limit nobody waits, and the table is refused.
    let limited = backends.iter().any(|backend| backend.limits != BackendLimits::default());
    if limited || adaptive.is_some() {
        map.serialize_entry("queue", &Shown(queue))?;
    }
    map.serialize_entry("circuit_breaker", &show_switched(breaker.as_ref()))?;
    map.serialize_entry("adaptive_limit", &show_switched(adaptive.as_ref()))
}

fn backend_limits_keys<M: SerializeMap>(map: &mut M, limits: &BackendLimits) -> Result<(), M::Error> {
    let BackendLimits { max_in_flight, max_connections } = limits;
    limit_entry(map, "max_in_flight", *max_in_flight)?;
    limit_entry(map, "max_connections", *max_connections)
}

impl Serialize for Shown<&QueueConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let QueueConfig { length, timeout, order } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("length", length)?;
        map.serialize_entry("timeout", &Shown(*timeout))?;
        match order {
            QueueOrder::Fifo => map.serialize_entry("order", "fifo")?,
            QueueOrder::Adaptive { target, interval } => {
                map.serialize_entry("order", "adaptive")?;
                map.serialize_entry("target", &Shown(*target))?;
                map.serialize_entry("interval", &Shown(*interval))?;
            }
        }
        map.end()
    }
}

impl Serialize for Shown<&RetryConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let RetryConfig {
            max,
            on,
            grpc_statuses,
            attempt_timeout,
            backoff_base,
            backoff_max,
            retry_after_max,
            body_buffer,
            response_buffer,
            hedge,
        } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("max", max)?;
        map.serialize_entry("on", &conditions(on))?;
        map.serialize_entry("grpc_statuses", &grpc_statuses.iter().map(|it| it.as_str()).collect::<Vec<_>>())?;
        map.serialize_entry("attempt_timeout", &attempt_timeout.map_or_else(|| "none".into(), duration))?;
        let (base, max) = (duration(*backoff_base), duration(*backoff_max));
        let backoff = [("base", base), ("max", max), ("retry_after_max", duration(*retry_after_max))];
        map.serialize_entry("backoff", &Entries(backoff.map(|(key, text)| (key.to_owned(), text)).into()))?;
        map.serialize_entry("body_buffer", body_buffer)?;
        map.serialize_entry("response_buffer", response_buffer)?;
        map.serialize_entry("hedge", &Switched { on: hedge.as_ref().map(Shown) })?;
        map.end()
    }
}

#[derive(serde::Serialize)]
#[serde(untagged)]
enum ConditionView {
    Word(&'static str),
    Status(u16),
}

fn conditions(on: &RetryOn) -> Vec<ConditionView> {
    let RetryOn { connect_failure, reset, timeout, statuses } = on;
    let words = [(connect_failure, "connect_failure"), (reset, "reset"), (timeout, "timeout")];
    let words = words.into_iter().filter(|(on, _)| **on).map(|(_, word)| ConditionView::Word(word));
    words.chain(statuses.iter().map(|status| ConditionView::Status(status.as_u16()))).collect()
}

impl Serialize for Shown<&HedgeConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let HedgeConfig { percentile, min_delay, budget_percent } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("enabled", &true)?;
        map.serialize_entry("percentile", percentile)?;
        map.serialize_entry("min_delay", &Shown(*min_delay))?;
        map.serialize_entry("budget_percent", budget_percent)?;
        map.end()
    }
}

impl Serialize for Shown<&HealthCheckConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let HealthCheckConfig {
            probe,
            port,
            interval,
            interval_in_doubt,
            jitter_percent,
            timeout,
            unhealthy_after,
            healthy_after,
            initial,
        } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("enabled", &true)?;
        match probe {
            Probe::Http(probe) => http_probe_keys(&mut map, probe)?,
            Probe::Tcp => map.serialize_entry("type", "tcp")?,
            Probe::Grpc(probe) => grpc_probe_keys(&mut map, probe)?,
        }
        entry_if(&mut map, "port", port.as_ref())?;
        map.serialize_entry("interval", &Shown(*interval))?;
        map.serialize_entry("interval_in_doubt", &Shown(*interval_in_doubt))?;
        map.serialize_entry("jitter_percent", jitter_percent)?;
        map.serialize_entry("timeout", &Shown(*timeout))?;
        map.serialize_entry("unhealthy_after", unhealthy_after)?;
        map.serialize_entry("healthy_after", healthy_after)?;
        map.serialize_entry("initial", initial.as_str())?;
        map.end()
    }
}

fn http_probe_keys<M: SerializeMap>(map: &mut M, probe: &HttpProbe) -> Result<(), M::Error> {
    let HttpProbe { method, target, host, headers, statuses, body } = probe;
    map.serialize_entry("type", "http")?;
    map.serialize_entry("path", target.as_str())?;
    entry_if(map, "host", host.as_ref().map(lossy).as_ref())?;
    map.serialize_entry("method", method.as_str())?;
    let headers = headers.iter().map(|(name, value)| (name.to_string(), lossy(value)));
    entry_if(map, "headers", entries(headers).as_ref())?;
    let statuses = statuses.iter().map(|range| format!("{}-{}", range.start(), range.end()));
    map.serialize_entry("statuses", &statuses.collect::<Vec<_>>())?;
    if let Some(BodyMatch { pattern, limit }) = body {
        map.serialize_entry("body", pattern.as_str())?;
        map.serialize_entry("body_limit", limit)?;
    }
    Ok(())
}

fn grpc_probe_keys<M: SerializeMap>(map: &mut M, probe: &GrpcProbe) -> Result<(), M::Error> {
    let GrpcProbe { service, host, headers } = probe;
    map.serialize_entry("type", "grpc")?;
    map.serialize_entry("service", service)?;
    entry_if(map, "host", host.as_ref().map(lossy).as_ref())?;
    let headers = headers.iter().map(|(name, value)| (name.to_string(), lossy(value)));
    entry_if(map, "headers", entries(headers).as_ref())
}

impl Serialize for Shown<&BackendConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let BackendConfig { address, weight, place, limits } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("address", &address.to_string())?;
        map.serialize_entry("weight", weight)?;
        place_keys(&mut map, place)?;
        backend_limits_keys(&mut map, limits)?;
        map.end()
    }
}

impl Serialize for Shown<&BackendTlsConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let BackendTlsConfig { ca, server_name, client_certificate, insecure_skip_verify, spot: _ } = self.0;
        let path = |file: &NamedFile| file.path.display().to_string();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("enabled", &true)?;
        entry_if(&mut map, "ca", ca.as_ref().map(path).as_ref())?;
        entry_if(&mut map, "server_name", server_name.as_deref().as_ref())?;
        if let Some(shown) = client_certificate {
            // Where they are is no secret; what is in them is not known here.
            let files = [("certificate", path(&shown.certificate)), ("key", path(&shown.key))];
            let files = files.into_iter().map(|(key, path)| (key.to_owned(), path)).collect();
            map.serialize_entry("client_certificate", &Entries(files))?;
        }
        map.serialize_entry("insecure_skip_verify", insecure_skip_verify)?;
        map.end()
    }
}
