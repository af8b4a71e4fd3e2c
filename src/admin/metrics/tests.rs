use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::*;
use crate::admin::fixture::Process;
use crate::backend::Lease;
use crate::backend::health::{LastCheck, Thresholds};
use crate::overload::Cause;
use crate::upstream::sources::{SourceId, SourceReport};

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
        r#"isobar_backend_requests_in_flight{upstream="users",backend="users-2.internal@10.0.0.2:9001"} 1.0"#,
        r#"isobar_backend_ready{upstream="users",backend="10.0.0.1:9001"} 0.0"#,
        r#"isobar_backend_ready{upstream="users",backend="10.0.0.3:9001"} 0.0"#,
        r#"isobar_backend_weight{upstream="users",backend="users-2.internal@10.0.0.2:9001"} 3.0"#,
        r#"isobar_backend_healthy{upstream="users",backend="10.0.0.1:9001"} 1.0"#,
        r#"isobar_backend_healthy{upstream="users",backend="users-2.internal@10.0.0.2:9001"} 0.0"#,
        r#"isobar_backend_health_checks_total{upstream="users",backend="users-2.internal@10.0.0.2:9001",result="passed"} 1"#,
        r#"isobar_backend_health_checks_total{upstream="users",backend="users-2.internal@10.0.0.2:9001",result="failed"} 2"#,
        r#"isobar_backend_health_changes_total{upstream="users",backend="users-2.internal@10.0.0.2:9001"} 1"#,
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
        "isobar_registry_services 2.0",
        r#"isobar_registry_instances{status="passing"} 3.0"#,
        r#"isobar_registry_instances{status="warning"} 0.0"#,
        "isobar_registry_refused_requests_total 6",
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
    let snapshot = process.snapshot();
    let sources = &snapshot.upstreams[0].state.sources;
    sources.arrange(&[SourceId(1)]);
    sources.report(SourceReport::awaited(SourceId(1), "registry".into()));
    let emitted = emitted(&text(&*process).unwrap());
    let documented = documented(include_str!("../../../docs/metrics.md"));
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
    let rows = page.lines().filter(|line| ["| `isobar_", "| `process_"].iter().any(|start| line.starts_with(start)));
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let labels = cells[3].split(',').map(|label| label.trim().trim_matches('`')).filter(|label| !label.is_empty());
        (cells[1].trim_matches('`').to_owned(), cells[2].to_owned(), labels.map(str::to_owned).collect())
    })
    .collect()
}
