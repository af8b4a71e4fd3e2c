//! `/readyz`: whether to send requests here.
//!
//! Separate from `/livez`: an orchestrator restarts what is not alive, and only takes traffic from what is not ready. Backends
//! that are down are no reason to be not ready: no other instance would have better ones.

use std::fmt::Write as _;
use std::time::SystemTime;

use http::StatusCode;

use crate::telemetry::process::Process;
use crate::upstream::sources::{SourceCondition, SourceReport};

use super::Control;
use super::answer::{AdminAnswer, text};

/// Answers 200 as long as the process is whole: 503 once one of its own tasks has panicked, and while a worker does not run.
pub(super) fn livez(process: &Process) -> AdminAnswer {
    let why = match (process.events.vital().failure(), process.pulse.dead()) {
        (Some(what), _) => format!("panicked: {what}\n"),
        (None, Some((worker, seconds))) => format!("worker {worker} has not run for {seconds} s\n"),
        (None, None) => return text(StatusCode::OK, "ok\n".to_owned()),
    };
    text(StatusCode::SERVICE_UNAVAILABLE, why)
}

struct ReadinessCheck {
    name: &'static str,
    /// Why not, where it does not hold.
    failure: Option<&'static str>,
}

/// A line for each source of backends that does not answer as it should. It is no reason to be not ready: what was known last is served with,
/// and another instance would know no more.
fn sources(control: &dyn Control) -> String {
    let (mut lines, now) = (String::new(), SystemTime::now());
    for upstream in &control.snapshot().upstreams {
        for report in upstream.state.sources.look() {
            if let Some(what) = degraded(&report, now) {
                let _ = writeln!(lines, "[!] discovery of {} by {}: {what}", upstream.name(), report.source);
            }
        }
    }
    lines
}

fn degraded(report: &SourceReport, now: SystemTime) -> Option<String> {
    let kept = report.set.as_ref().map_or_else(|| "none known".into(), |set| format!("{} kept", set.len()));
    let stale = report.stale(now).as_secs();
    match &report.condition {
        SourceCondition::Current => None,
        SourceCondition::Awaited => Some(format!("no answer for {stale} s; backends: {kept}")),
        SourceCondition::Holding { backends } => {
            Some(format!("{backends} backends that it no longer names are held back"))
        }
        SourceCondition::Failing { error } => Some(format!("no answer for {stale} s; backends: {kept}; {error}")),
    }
}

/// Answers 200 when all checks hold, 503 otherwise.
pub(super) fn readyz(control: &dyn Control, query: &str) -> AdminAnswer {
    let checks = [
        ReadinessCheck {
            name: "listening",
            failure: control.listeners().is_empty().then_some("no listener accepts connections"),
        },
        ReadinessCheck {
            name: "not stopping",
            failure: control.status().stopping.then_some("the process is stopping"),
        },
    ];
    let ready = checks.iter().all(|check| check.failure.is_none());
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };

    let mut body = String::new();
    if query.split('&').any(|parameter| parameter == "verbose" || parameter.starts_with("verbose=")) {
        for ReadinessCheck { name, failure } in &checks {
            body += &failure.map_or_else(|| format!("[+] {name}\n"), |why| format!("[-] {name}: {why}\n"));
        }
        body += &sources(control);
    }
    if ready {
        body += "ok\n";
    } else {
        let failures: Vec<_> = checks.iter().filter_map(|check| check.failure).collect();
        body += &format!("not ready: {}\n", failures.join(", "));
    }
    text(status, body)
}
