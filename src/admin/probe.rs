//! `/readyz`: whether to send requests here.
//!
//! Separate from `/livez`: an orchestrator restarts what is not alive, and only takes traffic from what is not ready. Backends
//! that are down are no reason to be not ready: no other instance would have better ones.

use http::StatusCode;

use super::Control;
use super::endpoint::{Answer, text};

struct Check {
    name: &'static str,
    /// Why not, where it does not hold.
    failure: Option<&'static str>,
}

/// Answers 200 when all checks hold, 503 otherwise.
pub(super) fn readyz(control: &dyn Control, query: &str) -> Answer {
    let checks = [
        Check {
            name: "listening",
            failure: control.listeners().is_empty().then_some("no listener accepts connections"),
        },
        Check { name: "not stopping", failure: control.status().stopping.then_some("the process is stopping") },
    ];
    let ready = checks.iter().all(|check| check.failure.is_none());
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };

    let mut body = String::new();
    if query.split('&').any(|parameter| parameter == "verbose" || parameter.starts_with("verbose=")) {
        for Check { name, failure } in &checks {
            body += &failure.map_or_else(|| format!("[+] {name}\n"), |why| format!("[-] {name}: {why}\n"));
        }
    }
    if ready {
        body += "ok\n";
    } else {
        let failures: Vec<_> = checks.iter().filter_map(|check| check.failure).collect();
        body += &format!("not ready: {}\n", failures.join(", "));
    }
    text(status, body)
}
