//! `/config`: the configuration in force, under the keys that `lb.toml` has for it.
//!
//! Written out by hand, because [`Config`] says what the file means, not what it says: a header match is a key of a map there
//! and a struct here, a duration a text there and a number here. Values that look like credentials are hidden: the file may
//! take them from the environment, and whoever reads metrics need not know them.

use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::picking::place_keys;
use super::{ReloadFailed, Status};
use crate::config::{
    AccessLogConfig, AccessLogFormat, AccessLogOutput, Action, AdaptiveLimitConfig, AdminConfig, BackendConfig,
    BackendLimits, BackendTlsConfig, BodyMatch, BreakerConfig, CertificateConfig, ClientCertificates,
    ClientCertificatesConfig, Config, Forward, GrpcProbe, HeaderEdits, HealthCheckConfig, HedgeConfig, HostPattern,
    Http2Config, HttpProbe, LimitsConfig, ListenerConfig, LocationPart, LogConfig, LogFormat, Misdirected, NamedFile,
    OverloadConfig, PathPattern, PathRewrite, PathsConfig, PoolConfig, Probe, QueueConfig, QueueOrder,
    RetryBudgetConfig, RetryConfig, RetryOn, RouteConfig, TiersConfig, Timeouts, TlsConfig, TlsProfile, UnknownNames,
    UpstreamConfig, ValueMatch,
};
use crate::proxy::Snapshot;
use crate::telemetry::calendar::rfc3339;

/// The whole answer.
#[derive(Debug, serde::Serialize)]
pub(super) struct View<'a> {
    generation: u64,
    file: Option<String>,
    loaded_at: String,
    config: Shown<&'a Config>,
    last_error: Option<LastError<'a>>,
}

#[derive(Debug, serde::Serialize)]
struct LastError<'a> {
    at: String,
    problems: &'a [String],
}

impl<'a> View<'a> {
    /// What a snapshot was built from, and what came of the last attempt to change it.
    pub(super) fn of(snapshot: &'a Snapshot, status: &'a Status) -> Self {
        Self {
            generation: snapshot.generation,
            file: status.file.as_ref().map(|file| file.display().to_string()),
            loaded_at: rfc3339(status.loaded_at),
            config: Shown(&snapshot.config),
            last_error: status.last_error.as_ref().map(LastError::of),
        }
    }
}

impl<'a> LastError<'a> {
    fn of(failed: &'a ReloadFailed) -> Self {
        Self { at: rfc3339(failed.at), problems: &failed.problems }
    }
}

/// A part of the configuration as `lb.toml` has it. Structs are taken apart as a whole, so that the compiler asks for each new
/// field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown<T>(pub(super) T);

impl Serialize for Shown<&Config> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Config {
            workers,
            shutdown_grace,
            drain_limit,
            admin,
            zone,
            log,
            access_log,
            overload,
            listeners,
            tells_identity: _,
            routes,
            upstreams,
        } = self.0;
        let mut map = serializer.serialize_map(None)?;
        match workers {
            Some(workers) => map.serialize_entry("workers", &workers)?,
            None => map.serialize_entry("workers", "auto")?,
        }
        map.serialize_entry("shutdown_grace", &Shown(*shutdown_grace))?;
        map.serialize_entry("drain_limit", &Shown(*drain_limit))?;
        entry_if(&mut map, "zone", zone.as_deref().map(str::to_owned).as_ref())?;
        map.serialize_entry("admin", &Switched { on: admin.as_ref().map(Shown) })?;
        map.serialize_entry("log", &Shown(log))?;
        map.serialize_entry("access_log", &Switched { on: access_log.as_ref().map(Shown) })?;
        map.serialize_entry(
            "overload",
            &Switched { on: (*overload != OverloadConfig::OFF).then_some(Shown(overload)) },
        )?;
        map.serialize_entry("listener", &shown(listeners.iter().map(|it| &**it)))?;
        map.serialize_entry("route", &shown(routes.iter().map(|it| &**it)))?;
        let upstreams = upstreams.iter().map(|it| (it.name.to_string(), Shown(&**it)));
        map.serialize_entry("upstream", &Entries(upstreams.collect()))?;
        map.end()
    }
}

impl Serialize for Shown<Duration> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&duration(self.0))
    }
}

/// A table that can be switched off: only then has it `enabled`, and nothing else.
struct Switched<T> {
    on: Option<T>,
}

impl<T: Serialize> Serialize for Switched<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.on {
            Some(on) => on.serialize(serializer),
            None => {
                let mut map = serializer.serialize_map(None)?;
                map.serialize_entry("enabled", &false)?;
                map.end()
            }
        }
    }
}

impl Serialize for Shown<&AdminConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let AdminConfig { address, token, unix_socket } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("enabled", &true)?;
        map.serialize_entry("address", address)?;
        if token.is_some() {
            map.serialize_entry("token", "(hidden)")?;
        }
        if let Some(path) = unix_socket {
            map.serialize_entry("unix_socket", &path.display().to_string())?;
        }
        map.end()
    }
}

impl Serialize for Shown<&LogConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let LogConfig { level, format } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("level", level)?;
        let format = match format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        map.serialize_entry("format", format)?;
        map.end()
    }
}

impl Serialize for Shown<&AccessLogConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let AccessLogConfig { format, output, buffer } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("enabled", &true)?;
        let format = match format {
            AccessLogFormat::Json => "json",
            AccessLogFormat::Combined => "combined",
        };
        map.serialize_entry("format", format)?;
        match output {
            AccessLogOutput::Stdout => map.serialize_entry("output", "stdout")?,
            AccessLogOutput::File(path) => map.serialize_entry("output", &path.display().to_string())?,
        }
        map.serialize_entry("buffer", buffer)?;
        map.end()
    }
}

impl Serialize for Shown<&ListenerConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ListenerConfig {
            name,
            address,
            backlog,
            max_connections,
            max_connections_per_address,
            max_header_bytes,
            max_headers,
            max_body_bytes,
            header_timeout,
            idle_timeout,
            min_bytes_per_second,
            trusted_proxies,
            forwarded,
            via,
            paths,
            redirect_to_https,
            tls,
            http2,
        } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", name.as_str())?;
        map.serialize_entry("address", address)?;
        map.serialize_entry("backlog", backlog)?;
        map.serialize_entry("max_connections", max_connections)?;
        limit_entry(&mut map, "max_connections_per_address", *max_connections_per_address)?;
        map.serialize_entry("max_header_bytes", max_header_bytes)?;
        map.serialize_entry("max_headers", max_headers)?;
        match max_body_bytes {
            Some(bytes) => map.serialize_entry("max_body", bytes)?,
            None => map.serialize_entry("max_body", "unlimited")?,
        }
        map.serialize_entry("header_timeout", &Shown(*header_timeout))?;
        map.serialize_entry("idle_timeout", &Shown(*idle_timeout))?;
        map.serialize_entry("min_bytes_per_second", min_bytes_per_second)?;
        map.serialize_entry("trusted_proxies", &texts(trusted_proxies))?;
        map.serialize_entry("forwarded", forwarded)?;
        map.serialize_entry("via", via)?;
        map.serialize_entry("paths", &Shown(paths))?;
        map.serialize_entry("redirect_to_https", &redirect_to_https.is_some())?;
        if let Some(redirect) = redirect_to_https {
            let port = redirect.location.iter().find_map(|part| match part {
                LocationPart::Text(text) => text.strip_prefix(':')?.parse::<u16>().ok(),
                _ => None,
            });
            map.serialize_entry("https_port", &port.unwrap_or(443))?;
        }
        entry_if(&mut map, "tls", tls.as_deref().map(Shown).as_ref())?;
        map.serialize_entry("http2", &Shown(http2))?;
        map.end()
    }
}

impl Serialize for Shown<&Option<Http2Config>> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("enabled", &self.0.is_some())?;
        if let Some(http2) = self.0 {
            let Http2Config {
                max_concurrent_streams,
                stream_window,
                connection_window,
                resets_per_second,
                control_frames_per_second,
            } = http2;
            map.serialize_entry("max_concurrent_streams", max_concurrent_streams)?;
            map.serialize_entry("stream_window", stream_window)?;
            map.serialize_entry("connection_window", connection_window)?;
            map.serialize_entry("resets_per_second", resets_per_second)?;
            map.serialize_entry("control_frames_per_second", control_frames_per_second)?;
        }
        map.end()
    }
}

impl Serialize for Shown<&PathsConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let PathsConfig { dot_segments, encoded_slashes, duplicate_slashes, backslashes } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("dot_segments", dot_segments.as_str())?;
        map.serialize_entry("encoded_slashes", encoded_slashes.as_str())?;
        map.serialize_entry("duplicate_slashes", duplicate_slashes.as_str())?;
        map.serialize_entry("backslashes", backslashes.as_str())?;
        map.end()
    }
}

/// Of the files, where they are.
impl Serialize for Shown<&TlsConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let TlsConfig {
            certificates,
            unknown_names,
            misdirected,
            profile,
            handshake_timeout,
            max_handshakes,
            handshakes_per_second_per_address,
            hsts,
            client_certificates,
            http2: _,
        } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("certificates", &shown(certificates.iter()))?;
        let unknown_names = match unknown_names {
            UnknownNames::Default => "default",
            UnknownNames::Refuse => "refuse",
        };
        map.serialize_entry("unknown_names", unknown_names)?;
        let misdirected = match misdirected {
            Misdirected::Refuse => "refuse",
            Misdirected::Close => "close",
            Misdirected::Allow => "allow",
        };
        map.serialize_entry("misdirected", misdirected)?;
        let profile = match profile {
            TlsProfile::Intermediate => "intermediate",
            TlsProfile::Modern => "modern",
        };
        map.serialize_entry("profile", profile)?;
        map.serialize_entry("handshake_timeout", &Shown(*handshake_timeout))?;
        map.serialize_entry("max_handshakes", max_handshakes)?;
        limit_entry(&mut map, "handshakes_per_second_per_address", *handshakes_per_second_per_address)?;
        let age = hsts.as_ref().and_then(|hsts| hsts.to_str().ok()?.strip_prefix("max-age=")?.parse().ok());
        let age = age.map(|seconds| duration(Duration::from_secs(seconds)));
        map.serialize_entry("hsts", age.as_deref().unwrap_or("none"))?;
        entry_if(&mut map, "client_certificates", client_certificates.as_ref().map(Shown).as_ref())?;
        map.end()
    }
}

impl Serialize for Shown<&ClientCertificatesConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ClientCertificatesConfig { ca, mode, crl } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("ca", &ca.path)?;
        let mode = match mode {
            ClientCertificates::Required => "required",
            ClientCertificates::Optional => "optional",
        };
        map.serialize_entry("mode", mode)?;
        map.serialize_entry("crl", &crl.iter().map(|file| &file.path).collect::<Vec<_>>())?;
        map.end()
    }
}

impl Serialize for Shown<&CertificateConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let CertificateConfig { certificate, key, ocsp } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("certificate", &certificate.path)?;
        map.serialize_entry("key", &key.path)?;
        entry_if(&mut map, "ocsp", ocsp.as_ref().map(|file| &file.path).as_ref())?;
        map.end()
    }
}

impl Serialize for Shown<&RouteConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let RouteConfig {
            name,
            listeners,
            hosts,
            path,
            methods,
            headers,
            query,
            action,
            request_headers,
            response_headers,
        } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", name.as_str())?;
        entry_if(&mut map, "listeners", some(texts(listeners)).as_ref())?;
        let hosts = hosts.iter().map(|host| match host {
            HostPattern::Exact(host) => host.clone(),
            HostPattern::Wildcard(suffix) => format!("*{suffix}"),
        });
        entry_if(&mut map, "hosts", some(hosts.collect()).as_ref())?;
        match path {
            PathPattern::Exact(path) => map.serialize_entry("path", path)?,
            PathPattern::Prefix(path) => map.serialize_entry("path_prefix", &format!("{path}/"))?,
            PathPattern::Regex(regex) => map.serialize_entry("path_regex", unanchored(regex))?,
        }
        entry_if(&mut map, "methods", some(texts(methods)).as_ref())?;
        let headers = headers.iter().map(|it| (it.name.to_string(), MatchView::of(it.name.as_str(), &it.value)));
        entry_if(&mut map, "headers", entries(headers).as_ref())?;
        let query = query.iter().map(|it| (it.name.clone(), MatchView::of(&it.name, &it.value)));
        entry_if(&mut map, "query", entries(query).as_ref())?;
        action_keys(&mut map, action)?;
        if !request_headers.is_empty() {
            map.serialize_entry("request_headers", &Shown(request_headers))?;
        }
        if !response_headers.is_empty() {
            map.serialize_entry("response_headers", &Shown(response_headers))?;
        }
        map.end()
    }
}

fn action_keys<M: SerializeMap>(map: &mut M, action: &Action) -> Result<(), M::Error> {
    match action {
        Action::Forward(forward) => forward_keys(map, forward),
        Action::Redirect(redirect) => {
            let to: String = redirect.location.iter().map(location_part).collect();
            map.serialize_entry("redirect", &RedirectView { to, status: redirect.status.as_u16() })
        }
        Action::Respond(respond) => map.serialize_entry(
            "respond",
            &RespondView {
                status: respond.status.as_u16(),
                content_type: respond.content_type.as_ref().map(lossy),
                body: String::from_utf8_lossy(&respond.body).into_owned(),
            },
        ),
    }
}

fn forward_keys<M: SerializeMap>(map: &mut M, forward: &Forward) -> Result<(), M::Error> {
    map.serialize_entry("upstream", forward.upstream.as_str())?;
    match &forward.path {
        PathRewrite::Keep => {}
        PathRewrite::StripPrefix => map.serialize_entry("strip_prefix", &true)?,
        PathRewrite::ReplacePrefix(prefix) => map.serialize_entry("replace_prefix", prefix)?,
    }
    map.serialize_entry("host", &forward.host.as_ref().map_or_else(|| "preserve".into(), lossy))?;
    map.serialize_entry("timeouts", &Shown(&forward.timeouts))?;
    map.serialize_entry("retries", &Shown(&*forward.retries))
}

#[derive(serde::Serialize)]
struct RedirectView {
    to: String,
    status: u16,
}

#[derive(serde::Serialize)]
struct RespondView {
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    body: String,
}

/// What a header or query parameter must be.
#[derive(serde::Serialize)]
#[serde(untagged)]
enum MatchView {
    Exact(String),
    Regex { regex: String },
    Presence { present: bool },
}

impl MatchView {
    fn of(name: &str, value: &ValueMatch) -> Self {
        match value {
            ValueMatch::Present => Self::Presence { present: true },
            ValueMatch::Absent => Self::Presence { present: false },
            ValueMatch::Exact(text) => Self::Exact(hide_secret(name, text.clone())),
            ValueMatch::Regex(regex) => Self::Regex { regex: hide_secret(name, unanchored(regex).to_owned()) },
        }
    }
}

impl Serialize for Shown<&Timeouts> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Timeouts { response_head, body_idle, exchange, tunnel_idle, grpc_idle, grpc_timeout_max } = self.0;
        let or_none = |timeout: &Option<Duration>| timeout.map_or_else(|| "none".into(), duration);
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("response_head", &Shown(*response_head))?;
        map.serialize_entry("body_idle", &Shown(*body_idle))?;
        map.serialize_entry("exchange", &or_none(exchange))?;
        map.serialize_entry("tunnel_idle", &Shown(*tunnel_idle))?;
        map.serialize_entry("grpc_idle", &or_none(grpc_idle))?;
        map.serialize_entry("grpc_timeout_max", &or_none(grpc_timeout_max))?;
        map.end()
    }
}

impl Serialize for Shown<&HeaderEdits> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let values = |edits: &[(HeaderName, HeaderValue)]| {
            entries(edits.iter().map(|(name, value)| (name.to_string(), hide_secret(name.as_str(), lossy(value)))))
        };
        let HeaderEdits { remove, set, add } = self.0;
        let mut map = serializer.serialize_map(None)?;
        entry_if(&mut map, "set", values(set).as_ref())?;
        entry_if(&mut map, "add", values(add).as_ref())?;
        entry_if(&mut map, "remove", some(texts(remove)).as_ref())?;
        map.end()
    }
}

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
        } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("strategy", strategy.as_str())?;
        map.serialize_entry("backends", &shown(backends))?;
        map.serialize_entry("connect_timeout", &Shown(*connect_timeout))?;
        map.serialize_entry("retries", &Shown(&**retries))?;
        map.serialize_entry("retry_budget", &Shown(retry_budget))?;
        map.serialize_entry("pool", &Shown(pool))?;
        map.serialize_entry("protocol", protocol.as_str())?;
        map.serialize_entry("tls", &Switched { on: tls.as_deref().map(Shown) })?;
        map.serialize_entry("panic_threshold", panic_percent)?;
        map.serialize_entry("overprovisioning", &(f64::from(*overprovisioning_percent) / 100.0))?;
        map.serialize_entry("health_check", &Switched { on: health_check.as_deref().map(Shown) })?;
        map.serialize_entry("outlier_detection", &Switched { on: outlier_detection.as_ref().map(Shown) })?;
        map.serialize_entry("slow_start", &Switched { on: slow_start.as_ref().map(Shown) })?;
        map.serialize_entry("zone_preference", &Switched { on: zones.as_ref().map(Shown) })?;
        limits_keys(&mut map, limits, backends)?;
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
    map.serialize_entry("circuit_breaker", &Switched { on: breaker.as_ref().map(Shown) })?;
    map.serialize_entry("adaptive_limit", &Switched { on: adaptive.as_ref().map(Shown) })
}

fn backend_limits_keys<M: SerializeMap>(map: &mut M, limits: &BackendLimits) -> Result<(), M::Error> {
    let BackendLimits { max_in_flight, max_connections } = limits;
    limit_entry(map, "max_in_flight", *max_in_flight)?;
    limit_entry(map, "max_connections", *max_connections)
}

fn limit_entry<M: SerializeMap>(map: &mut M, key: &str, limit: Option<u32>) -> Result<(), M::Error> {
    match limit {
        Some(limit) => map.serialize_entry(key, &limit),
        None => map.serialize_entry(key, "unlimited"),
    }
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

impl Serialize for Shown<&BreakerConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let BreakerConfig { window, min_calls, failure_percent, slow_after, slow_percent, open_for, open_max, probes } =
            self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("enabled", &true)?;
        map.serialize_entry("window", &Shown(*window))?;
        map.serialize_entry("min_calls", min_calls)?;
        map.serialize_entry("failure_percent", failure_percent)?;
        map.serialize_entry("slow_after", &slow_after.map_or_else(|| "none".into(), duration))?;
        map.serialize_entry("slow_percent", slow_percent)?;
        map.serialize_entry("open_for", &Shown(*open_for))?;
        map.serialize_entry("open_max", &Shown(*open_max))?;
        map.serialize_entry("probes", probes)?;
        map.end()
    }
}

impl Serialize for Shown<&AdaptiveLimitConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let AdaptiveLimitConfig {
            initial,
            min,
            max,
            tolerance_percent,
            smoothing_percent,
            headroom,
            long_windows,
            window,
            min_samples,
        } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("enabled", &true)?;
        map.serialize_entry("initial", initial)?;
        map.serialize_entry("min", min)?;
        map.serialize_entry("max", max)?;
        map.serialize_entry("tolerance_percent", tolerance_percent)?;
        map.serialize_entry("smoothing_percent", smoothing_percent)?;
        map.serialize_entry("headroom", headroom)?;
        map.serialize_entry("long_windows", long_windows)?;
        map.serialize_entry("window", &Shown(*window))?;
        map.serialize_entry("min_samples", min_samples)?;
        map.end()
    }
}

impl Serialize for Shown<&OverloadConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let OverloadConfig { lag, descriptors_percent, memory_percent } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("enabled", &true)?;
        map.serialize_entry("lag", &lag.map_or_else(|| "none".into(), duration))?;
        // All of it is no limit, and what the file says for that.
        map.serialize_entry("descriptors_percent", &descriptors_percent.unwrap_or(100))?;
        map.serialize_entry("memory_percent", &memory_percent.unwrap_or(100))?;
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

impl Serialize for Shown<&RetryBudgetConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let RetryBudgetConfig { percent, per_second } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("percent", percent)?;
        map.serialize_entry("per_second", per_second)?;
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
    let headers = headers.iter().map(|(name, value)| (name.to_string(), hide_secret(name.as_str(), lossy(value))));
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
    let headers = headers.iter().map(|(name, value)| (name.to_string(), hide_secret(name.as_str(), lossy(value))));
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

impl Serialize for Shown<&PoolConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let PoolConfig { max_idle, idle_timeout } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("max_idle", max_idle)?;
        map.serialize_entry("idle_timeout", &Shown(*idle_timeout))?;
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

/// A map in the order it was made in.
pub(super) struct Entries<T>(pub(super) Vec<(String, T)>);

impl<T: Serialize> Serialize for Entries<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

fn entries<T>(entries: impl Iterator<Item = (String, T)>) -> Option<Entries<T>> {
    some(entries.collect()).map(Entries)
}

fn shown<'a, T: 'a>(items: impl IntoIterator<Item = &'a T>) -> Vec<Shown<&'a T>> {
    items.into_iter().map(Shown).collect()
}

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(T::to_string).collect()
}

/// `None` for an empty list: a key that is left out means the same as one without values.
fn some<T>(items: Vec<T>) -> Option<Vec<T>> {
    (!items.is_empty()).then_some(items)
}

fn entry_if<M: SerializeMap>(map: &mut M, key: &str, value: Option<&impl Serialize>) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| map.serialize_entry(key, value))
}

fn lossy(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// `1m30s`, in whole milliseconds like all durations of the file.
fn duration(duration: Duration) -> String {
    const UNITS: [(&str, u128); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
    let mut rest = duration.as_millis();
    let mut text = String::new();
    for (unit, length) in UNITS {
        if rest >= length {
            text += &format!("{}{unit}", rest / length);
            rest %= length;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

/// The pattern as the file has it.
fn unanchored(regex: &regex::Regex) -> &str {
    let text = regex.as_str();
    text.strip_prefix("^(?:").and_then(|text| text.strip_suffix(")$")).unwrap_or(text)
}

fn location_part(part: &LocationPart) -> &str {
    match part {
        LocationPart::Text(text) => text,
        LocationPart::Scheme => "{scheme}",
        LocationPart::Host => "{host}",
        LocationPart::Path => "{path}",
        LocationPart::Query => "{query}",
    }
}

fn hide_secret(name: &str, value: String) -> String {
    const TELLING: [&str; 7] = ["auth", "cookie", "token", "secret", "password", "key", "signature"];
    let name = name.to_ascii_lowercase();
    if TELLING.iter().any(|word| name.contains(word)) { "(hidden)".into() } else { value }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::admin::fixture;
    use crate::config::{Vocabulary, parse};

    fn shown(config: &Config) -> serde_json::Value {
        serde_json::to_value(Shown(config)).unwrap()
    }

    #[test]
    fn keys_are_those_of_the_file() {
        let config = shown(&fixture::config());
        assert_eq!(config["workers"], "auto");
        assert_eq!(
            config["admin"],
            json!({
                "enabled": true, "address": "127.0.0.1:9900", "token": "(hidden)", "unix_socket": "/run/isobar.sock"
            })
        );
        assert_eq!(config["access_log"], json!({ "enabled": false }));
        assert_eq!(config["listener"][0]["max_body"], "unlimited");
        assert_eq!(config["listener"][0]["idle_timeout"], "1m15s");
        assert_eq!(
            config["route"][0],
            json!({
                "name": "users",
                "hosts": ["api.example.com", "*.api.example.com"],
                "path_prefix": "/users/",
                "methods": ["GET"],
                "headers": { "x-api-key": "(hidden)", "x-tenant": { "regex": "a|b" } },
                "query": { "debug": { "present": false } },
                "upstream": "users",
                "strip_prefix": true,
                "host": "preserve",
                "timeouts": { "response_head": "30s", "body_idle": "1m", "exchange": "none", "tunnel_idle": "1h",
                    "grpc_idle": "1h", "grpc_timeout_max": "none" },
                "retries": {
                    "max": 2,
                    "on": ["connect_failure", "reset", "timeout", 502, 503, 504],
                    "grpc_statuses": [],
                    "attempt_timeout": "none",
                    "backoff": { "base": "25ms", "max": "250ms", "retry_after_max": "1s" },
                    "body_buffer": 65536,
                    "response_buffer": 16384,
                    "hedge": { "enabled": true, "percentile": 95, "min_delay": "1ms", "budget_percent": 5 },
                },
                "request_headers": {
                    "set": { "authorization": "(hidden)", "x-gateway": "isobar" },
                    "remove": ["x-debug"],
                },
            })
        );
        assert_eq!(
            config["route"][1],
            json!({
                "name": "old",
                "path": "/old",
                "redirect": { "to": "https://{host}/new{query}", "status": 308 },
            })
        );
        assert_eq!(
            config["route"][2],
            json!({
                "name": "ping",
                "path_regex": "/ping[0-9]*",
                "respond": { "status": 200, "content_type": "text/plain", "body": "pong" },
            })
        );
        // Apart, or the macro goes too deep.
        let tls = json!({
            "enabled": true,
            "ca": "ca.pem",
            "server_name": "users.internal",
            "client_certificate": { "certificate": "isobar.pem", "key": "isobar.key" },
            "insecure_skip_verify": false,
        });
        let check = json!({
            "enabled": true,
            "type": "http",
            "path": "/health?deep",
            "method": "GET",
            "headers": { "authorization": "(hidden)" },
            "statuses": ["200-299"],
            "body": "ok",
            "body_limit": 1024,
            "port": 9100,
            "interval": "5s",
            "interval_in_doubt": "1s",
            "jitter_percent": 10,
            "timeout": "2s",
            "unhealthy_after": 3,
            "healthy_after": 2,
            "initial": "first_check",
        });
        let mut upstreams = config["upstream"].clone();
        let protocol = upstreams["users"].as_object_mut().unwrap().remove("protocol");
        assert_eq!(protocol, Some(json!("auto")));
        assert_eq!(
            upstreams,
            json!({
                "users": {
                    "strategy": "least_connections",
                    "backends": [
                        { "address": "10.0.0.1:9001", "weight": 1, "max_in_flight": 4, "max_connections": 8 },
                        { "address": "users-2.internal:9001", "weight": 3, "max_in_flight": 4, "max_connections": 8 },
                        {
                            "address": "10.0.0.3:9001",
                            "weight": 0,
                            "max_in_flight": "unlimited",
                            "max_connections": "unlimited",
                        },
                    ],
                    "connect_timeout": "3s",
                    "retries": {
                        "max": 1,
                        "on": ["connect_failure", "reset", "timeout", 502, 503, 504],
                        "grpc_statuses": [],
                        "attempt_timeout": "2s",
                        "backoff": { "base": "25ms", "max": "250ms", "retry_after_max": "1s" },
                        "body_buffer": 65536,
                        "response_buffer": 16384,
                        "hedge": { "enabled": false },
                    },
                    "retry_budget": { "percent": 20, "per_second": 10 },
                    "pool": { "max_idle": 64, "idle_timeout": "1m" },
                    "tls": tls,
                    "health_check": check,
                    "max_in_flight": 4,
                    "max_connections": 8,
                    "queue": { "length": 1024, "timeout": "1s", "order": "fifo" },
                    "circuit_breaker": {
                        "enabled": true,
                        "window": "10s",
                        "min_calls": 20,
                        "failure_percent": 50,
                        "slow_after": "none",
                        "slow_percent": 80,
                        "open_for": "5s",
                        "open_max": "1m",
                        "probes": 3,
                    },
                    "adaptive_limit": {
                        "enabled": true,
                        "initial": 20,
                        "min": 20,
                        "max": 200,
                        "tolerance_percent": 150,
                        "smoothing_percent": 20,
                        "headroom": 4,
                        "long_windows": 600,
                        "window": "100ms",
                        "min_samples": 10,
                    },
                    "panic_threshold": 50,
                    "overprovisioning": 1.4,
                    "outlier_detection": {
                        "enabled": true,
                        "consecutive_gateway_errors": 5,
                        "consecutive_local_errors": 5,
                        "count_server_errors": false,
                        "interval": "2s",
                        "window": "20s",
                        "failure_percent": 50,
                        "failure_volume": 50,
                        "success_deviations": 4.0,
                        "success_gap_percent": 10,
                        "success_volume": 50,
                        "success_intervals": 2,
                        "latency_deviations": 3.5,
                        "latency_ratio": 3.0,
                        "latency_excess": "10ms",
                        "latency_volume": 30,
                        "latency_intervals": 3,
                        "backends_min": 3,
                        "ejection_time": "30s",
                        "ejection_time_max": "5m",
                        "jitter_percent": 10,
                        "forgive_after": "30s",
                        "max_ejected_percent": 50,
                    },
                    "slow_start": { "enabled": false },
                    "zone_preference": { "enabled": false },
                },
            })
        );
    }

    /// What is shown, written as a file again, means the same: every key is there, under the name that the file has for it.
    #[test]
    fn what_is_shown_can_be_read_again() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = vec![root.join("lb.toml")];
        for directory in ["examples/configs", "tests/config/valid"] {
            files.extend(std::fs::read_dir(root.join(directory)).unwrap().map(|entry| entry.unwrap().path()));
        }
        let vocabulary = Vocabulary { strategies: vec!["mine".into()] };
        let read = |text: &str| parse(text, "lb.toml", &|_| None, &vocabulary).map(|loaded| loaded.config);
        let mut compared = 0;
        for file in files {
            // Those that need variables of the environment are not for us.
            let Ok(config) = read(&std::fs::read_to_string(&file).unwrap()) else { continue };
            let text = toml::to_string(&Shown(&config)).unwrap().replace("${", "$${");
            assert!(!text.contains("(hidden)"), "{}: what is hidden cannot come back", file.display());
            let again = read(&text).unwrap_or_else(|problems| panic!("{}: {problems}\n{text}", file.display()));
            assert_eq!(again, config, "{}", file.display());
            compared += 1;
        }
        assert!(compared > 10, "{compared}");
    }

    #[test]
    fn durations() {
        for (millis, text) in [(0, "0s"), (500, "500ms"), (1_500, "1s500ms"), (75_000, "1m15s"), (86_400_000, "24h")] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }
}
