use http::{HeaderMap, header};

use super::{LooksAt, Middleware, Origin, RequestView, ResponseView, Step};
use crate::config::HeaderEdits;
use crate::exchange::passes_through;
use crate::header_names::{self, has_underscore, is_spelling_of, tells_client};

/// Removes, sets and adds headers, both ways: `[middleware.NAME.headers]`, and the header rules of a route.
#[derive(Debug)]
pub(super) struct Headers {
    request: HeaderEdits,
    response: HeaderEdits,
    /// Whether the rules for requests are about headers that are never lines, so that the others may stay as they are.
    leaves_lines: bool,
    /// Whether the proxy's own errors are left as they are.
    spares_errors: bool,
}

impl Headers {
    /// Changes every response.
    pub(super) fn new(request: HeaderEdits, response: HeaderEdits) -> Self {
        Self { leaves_lines: is_apart(&request), request, response, spares_errors: false }
    }

    /// The rules of a route, which are for what its backends say and not for the proxy's errors.
    pub(super) fn of_route(request: HeaderEdits, response: HeaderEdits) -> Self {
        Self { spares_errors: true, ..Self::new(request, response) }
    }
}

impl Middleware for Headers {
    fn on_request<'a>(&'a self, request: RequestView<'a>) -> Step<'a> {
        if !self.request.is_empty() {
            let head = request.head;
            apply(&self.request, if self.leaves_lines { head.in_map_mut() } else { head.headers() });
        }
        Step::Continue
    }

    fn on_response(&self, response: &mut ResponseView<'_>) {
        if !self.spares_errors || response.origin != Origin::Error {
            apply(&self.response, &mut response.head.headers);
        }
    }

    fn looks_at_responses(&self) -> LooksAt {
        match (self.response.is_empty(), is_apart(&self.response)) {
            (true, _) => LooksAt::Nothing,
            (false, true) => LooksAt::Own,
            (false, false) => LooksAt::All,
        }
    }

    fn on_request_trailers(&self, trailers: &mut HeaderMap) {
        keep_to(&self.request, trailers);
    }

    fn on_response_trailers(&self, trailers: &mut HeaderMap) {
        keep_to(&self.response, trailers);
    }
}

/// Whether rules are about headers that never are lines: neither pass-through headers nor those that tell of the client, in whatever spelling.
fn is_apart(edits: &HeaderEdits) -> bool {
    edits.names().all(|name| {
        let is_line = passes_through(name) || tells_client(name) || *name == header::DATE;
        !is_line && !has_underscore(name)
    })
}

/// Removes the trailers that a rule names, in any spelling: a recipient that puts trailers among the headers would otherwise see there what
/// the rule has removed, or set otherwise.
#[cold]
fn keep_to(edits: &HeaderEdits, trailers: &mut HeaderMap) {
    header_names::remove(trailers, |name| edits.names().any(|it| is_spelling_of(it, name)));
}

fn apply(edits: &HeaderEdits, headers: &mut HeaderMap) {
    // What a rule says of a field holds for each spelling that some backend takes for it.
    let touched = || edits.touched().any(has_underscore);
    if headers.keys().any(has_underscore) || touched() {
        header_names::remove(headers, |name| edits.touched().any(|it| it != name && is_spelling_of(it, name)));
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
    use crate::middleware::Chain;

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

    #[test]
    fn what_may_be_a_line_is_looked_for_among_all_headers() {
        for (name, direct) in [
            ("x-gateway", true),
            ("x-tenant", true),
            // Lines as they came, lines that were made before, and what another spelling of is one of these.
            ("cookie", false),
            ("date", false),
            ("x-forwarded-for", false),
            ("x_forwarded_for", false),
        ] {
            let edits = |name| HeaderEdits { remove: vec![HeaderName::from_static(name)], ..HeaderEdits::default() };
            let on_requests = Headers::new(edits(name), HeaderEdits::default());
            assert_eq!(
                (on_requests.leaves_lines, on_requests.looks_at_responses()),
                (direct, LooksAt::Nothing),
                "{name}"
            );
            let on_responses = Headers::new(HeaderEdits::default(), edits(name));
            let looks_at = if direct { LooksAt::Own } else { LooksAt::All };
            assert_eq!(on_responses.looks_at_responses(), looks_at, "{name}");
        }
        assert_eq!(Chain::default().looks_at(), LooksAt::Nothing);
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
