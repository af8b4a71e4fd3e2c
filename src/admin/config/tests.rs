use std::path::Path;

use serde_json::json;

use super::*;
use crate::admin::fixture;
use crate::config::{Config, Table, Vocabulary, parse};

fn shown(config: &Config) -> serde_json::Value {
    serde_json::to_value(Hidden(config)).unwrap()
}

#[test]
fn keys_are_those_of_the_file() {
    let config = shown(&fixture::config());
    assert_eq!(config["workers"], "auto");
    let source = json!({
        "name": "push", "push": {}, "removal_hold": "5m", "max_backends": 10_000, "max_bytes": 4096, "allow": [], "zone_label": "zone"
    });
    assert_eq!(
        config["admin"],
        json!({
            "enabled": true, "address": "127.0.0.1:9900", "token": "(hidden)", "unix_socket": "/run/isobar.sock"
        })
    );
    let mut without_address = fixture::config();
    without_address.admin.as_mut().unwrap().address = None;
    assert_eq!(
        shown(&without_address)["admin"],
        json!({ "enabled": false, "token": "(hidden)", "unix_socket": "/run/isobar.sock" })
    );
    assert_eq!(config["access_log"], json!({ "enabled": false }));
    assert_eq!(config["listener"][0]["max_body"], "unlimited");
    assert_eq!(config["listener"][0]["lingering"], json!({ "bytes": 1 << 30, "time": "30s", "idle": "5s" }));
    assert_eq!(config["listener"][0]["idle_timeout"], "1m15s");
    assert_eq!(
        config["route"][0],
        json!({
            "name": "users",
            "hosts": ["api.example.com", "*.api.example.com"],
            "path_prefix": "/users/",
            "methods": ["GET"],
            "headers": { "x-api-key": "(hidden, 6 characters)", "x-tenant": { "regex": "(hidden, 3 characters)" } },
            "query": { "debug": { "present": false } },
            "paths": { "encoded_slashes": "refuse" },
            "upstream": "users",
            "strip_prefix": true,
            "host": "preserve",
            "expect": "answer",
            "timeouts": { "response_head": "1m", "body_idle": "1m", "expect": "1s", "exchange": "none", "tunnel_idle": "1h",
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
                "set": { "authorization": "(hidden, 12 characters)", "x-gateway": "(hidden, 6 characters)" },
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
            "respond": { "status": 200, "content_type": "text/plain", "body": "(hidden, 4 characters)" },
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
        "path": "/health?(hidden)",
        "method": "GET",
        "headers": { "authorization": "(hidden, 12 characters)" },
        "statuses": ["200-299"],
        "body": "(hidden, 2 characters)",
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
    let mut removed = |key: &str| upstreams["users"].as_object_mut().unwrap().remove(key);
    assert_eq!(removed("protocol"), Some(json!("auto")));
    assert_eq!(removed("discovery"), Some(json!([source])));
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
                "pool": { "max_idle": 64, "idle_timeout": "1m", "max_age": "none", "max_requests": "unlimited" },
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
    let mut files = vec![root.join("lb.toml"), root.join("tests/config/every_key.toml")];
    for directory in ["examples/configs", "tests/config/valid"] {
        files.extend(std::fs::read_dir(root.join(directory)).unwrap().map(|entry| entry.unwrap().path()));
    }
    let vocabulary = Vocabulary { strategies: vec!["mine".into()], ..Vocabulary::default() };
    let read = |text: &str| parse(text, "lb.toml", &|_| None, &vocabulary).map(|loaded| loaded.config);
    let mut compared = 0;
    for file in files {
        // Those that need variables of the environment are not for us.
        let Ok(config) = read(&std::fs::read_to_string(&file).unwrap()) else { continue };
        let text = toml::to_string(&config.tree()).unwrap().replace("${", "$${");
        let again = read(&text).unwrap_or_else(|problems| panic!("{}: {problems}\n{text}", file.display()));
        assert_eq!(again, config, "{}", file.display());
        compared += 1;
    }
    assert!(compared > 10, "{compared}");
}
