//! What differs in an upstream.

use std::collections::HashMap;
use std::time::Duration;

use crate::config::{
    BackendConfig, BackendLimits, BackendTlsConfig, Change, Changes, HealthCheckConfig, NamedFile, PoolConfig,
    RetryBudgetConfig, RetryConfig, RetryOn, Table, TiersConfig, UpstreamConfig, compare_switched, limit,
};

pub(super) fn upstream_changes(old: &UpstreamConfig, new: &UpstreamConfig) -> Vec<Change> {
    let mut changes = Changes::of("upstream.*");
    changes.value("strategy", old.strategy.as_str(), new.strategy.as_str());
    let addresses = |backends: &[BackendConfig]| backends.iter().map(|it| it.address.clone()).collect::<Vec<_>>();
    changes.members("backends", &addresses(&old.backends), &addresses(&new.backends));
    let known: HashMap<_, _> = old.backends.iter().map(|it| (&it.address, it)).collect();
    for backend in &new.backends {
        if let Some(was) = known.get(&backend.address) {
            let of = |what: &str| format!("{what} of {}", backend.address);
            changes.value_of("backends[].weight", &of("weight"), &was.weight, &backend.weight);
            changes.value_of("backends[].priority", &of("tier"), &was.place.tier, &backend.place.tier);
            let zone = |it: &BackendConfig| it.place.zone.as_deref().unwrap_or("none").to_owned();
            changes.value_of("backends[].zone", &of("zone"), &zone(was), &zone(backend));
        }
    }
    changes.time("connect_timeout", old.connect_timeout, new.connect_timeout);
    retry_changes(&mut changes, &old.retries, &new.retries);
    RetryBudgetConfig::compare(&mut changes, "retry_budget.", &old.retry_budget, &new.retry_budget);
    PoolConfig::compare(&mut changes, "pool.", &old.pool, &new.pool);
    changes.value("protocol", old.protocol.as_str(), new.protocol.as_str());
    backend_tls_changes(&mut changes, old.tls.as_deref(), new.tls.as_deref());
    changes.switch("health_check", old.health_check.is_some(), new.health_check.is_some());
    if let (Some(was), Some(is)) = (&old.health_check, &new.health_check) {
        health_check_changes(&mut changes, was, is);
    }
    changes.members("middleware", &old.middleware, &new.middleware);
    limits_changes(&mut changes, old, new);
    picking_changes(&mut changes, old, new);
    changes.found()
}

fn backend_tls_changes(changes: &mut Changes, old: Option<&BackendTlsConfig>, new: Option<&BackendTlsConfig>) {
    changes.switch("tls", old.is_some(), new.is_some());
    let (Some(was), Some(is)) = (old, new) else { return };
    let path = |file: Option<&NamedFile>| file.map_or_else(|| "none".into(), |file| file.path.display().to_string());
    let ca = |tls: &BackendTlsConfig| tls.ca.as_ref().map_or_else(|| "the system's".into(), |file| path(Some(file)));
    changes.value("tls.ca", &ca(was), &ca(is));
    let name = |tls: &BackendTlsConfig| tls.server_name.as_deref().unwrap_or("the host").to_owned();
    changes.value("tls.server_name", &name(was), &name(is));
    let shown = |tls: &BackendTlsConfig| {
        let shown = tls.client_certificate.as_ref();
        (path(shown.map(|shown| &shown.certificate)), path(shown.map(|shown| &shown.key)))
    };
    let ((certificate, key), (new_certificate, new_key)) = (shown(was), shown(is));
    changes.value("tls.client_certificate.certificate", &certificate, &new_certificate);
    changes.value("tls.client_certificate.key", &key, &new_key);
    changes.value("tls.insecure_skip_verify", &was.insecure_skip_verify, &is.insecure_skip_verify);
}

pub(super) fn retry_changes(changes: &mut Changes, old: &RetryConfig, new: &RetryConfig) {
    changes.value("retries.max", &old.max, &new.max);
    let conditions = |on: &RetryOn| {
        let words = [(on.connect_failure, "connect_failure"), (on.reset, "reset"), (on.timeout, "timeout")];
        let words = words.into_iter().filter(|(on, _)| *on).map(|(_, word)| word.to_owned());
        words.chain(on.statuses.iter().map(|status| status.as_str().to_owned())).collect::<Vec<_>>()
    };
    changes.members("retries.on", &conditions(&old.on), &conditions(&new.on));
    changes.members("retries.grpc_statuses", &old.grpc_statuses, &new.grpc_statuses);
    let timeout = |timeout: Option<Duration>| timeout.map_or_else(|| "none".into(), |timeout| format!("{timeout:?}"));
    changes.value("retries.attempt_timeout", &timeout(old.attempt_timeout), &timeout(new.attempt_timeout));
    changes.time("retries.backoff.base", old.backoff_base, new.backoff_base);
    changes.time("retries.backoff.max", old.backoff_max, new.backoff_max);
    changes.time("retries.backoff.retry_after_max", old.retry_after_max, new.retry_after_max);
    changes.value("retries.body_buffer", &old.body_buffer, &new.body_buffer);
    changes.value("retries.response_buffer", &old.response_buffer, &new.response_buffer);
    changes.switched("retries.hedge", &old.hedge, &new.hedge);
}

fn limits_changes(changes: &mut Changes, old: &UpstreamConfig, new: &UpstreamConfig) {
    let mut backend = |of: &str, was: &BackendLimits, is: &BackendLimits| {
        let (before, after) = (limit(was.max_in_flight), limit(is.max_in_flight));
        changes.value_of("max_in_flight", &format!("max_in_flight{of}"), &before, &after);
        let (before, after) = (limit(was.max_connections), limit(is.max_connections));
        changes.value_of("max_connections", &format!("max_connections{of}"), &before, &after);
    };
    let (was, is) = (&old.limits, &new.limits);
    backend("", &was.backend, &is.backend);
    let known: HashMap<_, _> = old.backends.iter().map(|it| (&it.address, it.limits)).collect();
    for it in &new.backends {
        // That it follows the upstream was told already.
        let follows = |limits: BackendLimits, upstream: &BackendLimits| limits == *upstream;
        if let Some(&before) = known.get(&it.address)
            && !(follows(before, &was.backend) && follows(it.limits, &is.backend))
        {
            backend(&format!(" of {}", it.address), &before, &it.limits);
        }
    }
    changes.value("queue.length", &was.queue.length, &is.queue.length);
    changes.time("queue.timeout", was.queue.timeout, is.queue.timeout);
    changes.other("queue.order", &was.queue.order, &is.queue.order);
    compare_switched(changes, "circuit_breaker", was.breaker.as_ref(), is.breaker.as_ref());
    compare_switched(changes, "adaptive_limit", was.adaptive.as_ref(), is.adaptive.as_ref());
}

fn picking_changes(changes: &mut Changes, old: &UpstreamConfig, new: &UpstreamConfig) {
    changes.value("panic_threshold", &old.tiers.panic_percent, &new.tiers.panic_percent);
    let factor = |tiers: &TiersConfig| f64::from(tiers.overprovisioning_percent) / 100.0;
    changes.value("overprovisioning", &factor(&old.tiers), &factor(&new.tiers));
    changes.switched("zone_preference", &old.tiers.zones, &new.tiers.zones);
    compare_switched(changes, "slow_start", old.slow_start.as_ref(), new.slow_start.as_ref());
    compare_switched(changes, "outlier_detection", old.outlier_detection.as_ref(), new.outlier_detection.as_ref());
}

pub(super) fn health_check_changes(changes: &mut Changes, old: &HealthCheckConfig, new: &HealthCheckConfig) {
    // What it asks may hold credentials.
    changes.other("health_check.request", &old.probe, &new.probe);
    let port = |port: Option<u16>| port.map_or_else(|| "the backend's".into(), |port| port.to_string());
    changes.value("health_check.port", &port(old.port), &port(new.port));
    changes.time("health_check.interval", old.interval, new.interval);
    changes.time("health_check.interval_in_doubt", old.interval_in_doubt, new.interval_in_doubt);
    changes.value("health_check.jitter_percent", &old.jitter_percent, &new.jitter_percent);
    changes.time("health_check.timeout", old.timeout, new.timeout);
    changes.value("health_check.unhealthy_after", &old.unhealthy_after, &new.unhealthy_after);
    changes.value("health_check.healthy_after", &old.healthy_after, &new.healthy_after);
    changes.value("health_check.initial", old.initial.as_str(), new.initial.as_str());
}
