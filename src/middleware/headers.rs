use http::HeaderMap;

use super::{Middleware, Origin, RequestView, ResponseView, Step};
use crate::config::HeaderEdits;
use crate::fields::{self, has_underscore, is_spelling_of};

/// Removes, sets and adds headers, both ways: `[middleware.NAME.headers]`, and the header rules of a route.
#[derive(Debug)]
pub(super) struct Headers {
    request: HeaderEdits,
    response: HeaderEdits,
    /// Whether the proxy's own errors are left as they are.
    spares_errors: bool,
}

impl Headers {
    /// Changes every response.
    pub(super) fn new(request: HeaderEdits, response: HeaderEdits) -> Self {
        Self { request, response, spares_errors: false }
    }

    /// The rules of a route, which are for what its backends say and not for the proxy's errors.
    pub(super) fn of_route(request: HeaderEdits, response: HeaderEdits) -> Self {
        Self { request, response, spares_errors: true }
    }
}

impl Middleware for Headers {
    fn on_request<'a>(&'a self, request: RequestView<'a>) -> Step<'a> {
        if !self.request.is_empty() {
            apply(&self.request, request.head.headers());
        }
        Step::Continue
    }

    fn on_response(&self, response: &mut ResponseView<'_>) {
        if !self.spares_errors || response.origin != Origin::Error {
            apply(&self.response, &mut response.head.headers);
        }
    }

    fn on_request_trailers(&self, trailers: &mut HeaderMap) {
        keep_to(&self.request, trailers);
    }

    fn on_response_trailers(&self, trailers: &mut HeaderMap) {
        keep_to(&self.response, trailers);
    }
}

/// Removes the trailers that a rule names, in any spelling: a recipient that puts trailers among the headers would otherwise see there what
/// the rule has removed, or set otherwise.
#[cold]
fn keep_to(edits: &HeaderEdits, trailers: &mut HeaderMap) {
    fields::remove(trailers, |name| edits.names().any(|it| is_spelling_of(it, name)));
}

fn apply(edits: &HeaderEdits, headers: &mut HeaderMap) {
    // What a rule says of a field holds for each spelling that some backend takes for it.
    let touched = || edits.touched().any(has_underscore);
    if headers.keys().any(has_underscore) || touched() {
        fields::remove(headers, |name| edits.touched().any(|it| it != name && is_spelling_of(it, name)));
    }
    for name in &edits.remove {
        headers.remove(name);
    }
    for (name, value) in &edits.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &edits.add {
        headers.append(name, value.clone());
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn fields(pairs: &[(&'static str, &'static str)]) -> Vec<(HeaderName, HeaderValue)> {
        pairs.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn removes_then_sets_then_adds() {
        for (before, remove, set, add, after) in [
            (&[("x-a", "1"), ("x-a", "2"), ("x-b", "3")][..], &["x-a"][..], &[][..], &[][..], &[("x-b", "3")][..]),
            (&[("x-a", "1"), ("x-a", "2")], &[], &[("x-a", "3")], &[], &[("x-a", "3")]),
            (&[("x-a", "1")], &[], &[], &[("x-a", "2")], &[("x-a", "1"), ("x-a", "2")]),
            (&[("x-a", "1")], &["x-a"], &[("x-a", "2")], &[("x-a", "3")], &[("x-a", "2"), ("x-a", "3")]),
            (&[], &["x-a"], &[], &[("x-a", "1"), ("x-a", "2")], &[("x-a", "1"), ("x-a", "2")]),
            // Of any spelling.
            (
                &[("x_a", "1"), ("x_b", "2"), ("x_c", "3")],
                &["x-a"],
                &[("x-b", "4")],
                &[],
                &[("x_c", "3"), ("x-b", "4")],
            ),
            (&[("x-a", "1"), ("x-b", "2")], &["x_a"], &[], &[("x_b", "4")], &[("x-b", "2"), ("x_b", "4")]),
        ] {
            let edits = HeaderEdits {
                remove: remove.iter().map(|&name| HeaderName::from_static(name)).collect(),
                set: fields(set),
                add: fields(add),
            };
            let mut headers = HeaderMap::new();
            for (name, value) in fields(before) {
                headers.append(name, value);
            }
            apply(&edits, &mut headers);
            let found: Vec<_> = headers.into_iter().scan(None, name_each).collect();
            assert_eq!(found, fields(after));
        }
    }

    /// `HeaderMap` names only the first of several values.
    fn name_each(
        last: &mut Option<HeaderName>,
        (name, value): (Option<HeaderName>, HeaderValue),
    ) -> Option<(HeaderName, HeaderValue)> {
        *last = name.or(last.take());
        last.clone().map(|name| (name, value))
    }
}
