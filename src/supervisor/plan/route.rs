//! What differs in a route.

use super::upstream::retry_changes;
use crate::config::{Action, BodyLimit, Change, Changes, Forward, RouteConfig};

pub(super) fn route_changes(old: &RouteConfig, new: &RouteConfig) -> Vec<Change> {
    let mut changes = Changes::of("route[]");
    changes.members("listeners", &old.listeners, &new.listeners);
    changes.other("hosts", &old.hosts, &new.hosts);
    changes.other("path", &old.path, &new.path);
    changes.members("methods", &old.methods, &new.methods);
    changes.other("headers", &old.headers, &new.headers);
    changes.other("query", &old.query, &new.query);
    changes.other("paths", &old.paths, &new.paths);
    match (&old.action, &new.action) {
        (Action::Forward(was), Action::Forward(is)) => forward_changes(&mut changes, was, is),
        (was, is) => changes.other("action", was, is),
    }
    changes.other("request_headers", &old.request_headers, &new.request_headers);
    changes.other("response_headers", &old.response_headers, &new.response_headers);
    changes.members("middleware", &old.middleware, &new.middleware);
    changes.found()
}

fn forward_changes(changes: &mut Changes, old: &Forward, new: &Forward) {
    changes.value("upstream", &old.upstream, &new.upstream);
    changes.other("path rewrite", &old.path, &new.path);
    changes.other("host", &old.host, &new.host);
    let max_body = |limit: Option<BodyLimit>| limit.map_or_else(|| "as the listener".into(), |limit| limit.to_string());
    changes.value("max_body", &max_body(old.max_body), &max_body(new.max_body));
    changes.value("expect", old.expect.as_str(), new.expect.as_str());
    changes.other("timeouts", &old.timeouts, &new.timeouts);
    retry_changes(changes, &old.retries, &new.retries);
}
