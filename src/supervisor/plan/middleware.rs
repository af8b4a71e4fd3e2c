//! What differs in a middleware.

use crate::config::{Change, Changes, MiddlewareConfig, MiddlewareKind};

pub(super) fn middleware_changes(old: &MiddlewareConfig, new: &MiddlewareConfig) -> Vec<Change> {
    let mut changes = Changes::of("middleware.*");
    changes.time("timeout", old.timeout, new.timeout);
    match (&old.kind, &new.kind) {
        (
            MiddlewareKind::Headers { request, response },
            MiddlewareKind::Headers { request: new_request, response: new_response },
        ) => {
            changes.other("headers.request", request, new_request);
            changes.other("headers.response", response, new_response);
        }
        (was, is) if was.as_str() == is.as_str() => changes.other(was.as_str(), was, is),
        (was, is) => changes.other("kind", was, is),
    }
    changes.found()
}
