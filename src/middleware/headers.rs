//! Header rules: `[middleware.NAME.headers]`, and those of a route.
//!
//! What a rule adds is a line that was written when the configuration was read. Where a head has no header of that name, the line goes
//! out as it is: a header in the map of a head costs twice as much, for it is hashed, copied and written again.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, header};

use super::{LooksAt, Origin};
use crate::config::HeaderEdits;
use crate::exchange::{HeadParts, HeaderLines, RequestHead, RuleLines, passes_through};
use crate::header_names::{self, has_underscore, is_spelling_of, tells_client};

/// Removes, sets and adds headers, both ways.
#[derive(Debug)]
pub struct HeaderEditor {
    request: MessageEdits,
    response: MessageEdits,
    /// Whether the proxy's own errors are left as they are.
    spares_errors: bool,
}

impl HeaderEditor {
    /// Changes every response.
    pub(super) fn new(request: HeaderEdits, response: HeaderEdits) -> Self {
        Self { request: request.into(), response: response.into(), spares_errors: false }
    }

    /// The rules of a route, which are for what its backends say and not for the proxy's errors.
    pub(super) fn of_route(request: HeaderEdits, response: HeaderEdits) -> Self {
        Self { spares_errors: true, ..Self::new(request, response) }
    }

    /// Changes the head of a request.
    #[inline]
    pub fn edit_request(&self, head: &mut RequestHead) {
        let edits = &self.request;
        match &edits.line_edits {
            _ if edits.edits.is_empty() => {}
            Some(_) => edits.apply(head.parts()),
            // It may be one of those that tell of the client.
            None => edit(&edits.edits, head.headers()),
        }
    }

    /// Changes the head of a response.
    #[inline]
    pub fn edit_response(&self, head: HeadParts<'_>, origin: Origin) {
        if !self.response.edits.is_empty() && (!self.spares_errors || origin != Origin::Error) {
            self.response.apply(head);
        }
    }

    /// Whether it changes requests.
    pub(super) fn looks_at_requests(&self) -> bool {
        !self.request.edits.is_empty()
    }

    /// What it looks at of responses.
    pub(super) fn looks_at_responses(&self) -> LooksAt {
        match (self.response.edits.is_empty(), self.response.line_edits.is_some()) {
            (true, _) => LooksAt::Nothing,
            (false, true) => LooksAt::Own,
            (false, false) => LooksAt::All,
        }
    }

    /// Changes the trailers of a request.
    pub(super) fn edit_request_trailers(&self, trailers: &mut HeaderMap) {
        keep_to(&self.request.edits, trailers);
    }

    /// Changes the trailers of a response.
    pub(super) fn edit_response_trailers(&self, trailers: &mut HeaderMap) {
        keep_to(&self.response.edits, trailers);
    }
}

/// Changes to requests, or to responses.
#[derive(Debug)]
struct MessageEdits {
    edits: HeaderEdits,
    /// `None` where a header is concerned that isobar itself looks for in the map.
    line_edits: Option<LineEdits>,
}

/// The same changes, for a head that has none of their headers yet.
#[derive(Debug)]
struct LineEdits {
    /// A bit for each length of a name; the last one is for all that are longer.
    lengths: u64,
    /// Those of their headers that may be pass-through headers.
    passing: Box<[HeaderName]>,
    /// What they add, if they do.
    lines: Option<Arc<HeaderLines>>,
}

impl From<HeaderEdits> for MessageEdits {
    fn from(edits: HeaderEdits) -> Self {
        let line_edits = (!edits.names().any(is_looked_for)).then(|| LineEdits::new(&edits));
        Self { edits, line_edits }
    }
}

impl MessageEdits {
    fn apply(&self, mut head: HeadParts<'_>) {
        let Some(line_edits) = &self.line_edits else { return edit(&self.edits, head.read_lines()) };
        if !self.concerns(&head, line_edits) {
            if let Some(lines) = &line_edits.lines {
                head.add(lines);
            }
        } else if line_edits.passing.is_empty() && head.rule_lines.as_deref().is_none_or(RuleLines::is_empty) {
            edit(&self.edits, head.map);
        } else {
            edit(&self.edits, head.read_lines());
        }
    }

    /// Whether a head has a header that is to be changed, in any spelling.
    fn concerns(&self, head: &HeadParts<'_>, line_edits: &LineEdits) -> bool {
        let names = || self.edits.names();
        let in_map = |name: &HeaderName| line_edits.may_concern(name) && names().any(|it| is_spelling_of(it, name));
        let in_lines = |lines: &RuleLines| !lines.is_empty() && names().any(|name| lines.has(name));
        head.map.keys().any(in_map)
            || line_edits.passing.iter().any(|name| head.pass_through.has(name))
            || head.rule_lines.as_deref().is_some_and(in_lines)
    }
}

impl LineEdits {
    fn new(edits: &HeaderEdits) -> Self {
        let added = edits.set.iter().chain(&edits.add).map(|(name, value)| (name, value.as_bytes()));
        let lines = HeaderLines::of(added);
        Self {
            lengths: edits.names().fold(0, |lengths, name| lengths | length_bit(name)),
            passing: edits.names().filter(|name| passes_through(name)).cloned().collect(),
            lines: (!lines.is_empty()).then(|| Arc::new(lines)),
        }
    }

    /// Most names of other headers have another length.
    fn may_concern(&self, name: &HeaderName) -> bool {
        self.lengths & length_bit(name) != 0
    }
}

fn length_bit(name: &HeaderName) -> u64 {
    1 << name.as_str().len().min(63)
}

/// Whether isobar itself looks for a header in the map of a head after rules were applied, or has made it a line of another kind.
fn is_looked_for(name: &HeaderName) -> bool {
    const LOOKED_FOR: [HeaderName; 5] =
        [header::HOST, header::FORWARDED, header::EXPECT, header::DATE, header::STRICT_TRANSPORT_SECURITY];
    LOOKED_FOR.contains(name) || name.as_str().starts_with("grpc-") || tells_client(name) || has_underscore(name)
}

/// Removes the trailers that a rule names, in any spelling: a recipient that puts trailers among the headers would otherwise see there what
/// the rule has removed, or set otherwise.
#[cold]
fn keep_to(edits: &HeaderEdits, trailers: &mut HeaderMap) {
    header_names::remove(trailers, |name| edits.names().any(|it| is_spelling_of(it, name)));
}

#[inline(never)]
fn edit(edits: &HeaderEdits, headers: &mut HeaderMap) {
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
    use proptest::prelude::*;

    use super::*;
    use crate::http1::Framing;
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
            edit(&edits, &mut headers);
            let found: Vec<_> = headers.into_iter().scan(None, name_each).collect();
            assert_eq!(found, fields(after));
        }
    }

    #[test]
    fn what_is_looked_for_elsewhere_is_never_a_line() {
        for (name, looks_at) in [
            ("x-gateway", LooksAt::Own),
            ("cookie", LooksAt::Own),
            ("cache-control", LooksAt::Own),
            ("date", LooksAt::All),
            ("strict-transport-security", LooksAt::All),
            ("grpc-timeout", LooksAt::All),
            ("x-forwarded-for", LooksAt::All),
            ("x_gateway", LooksAt::All),
        ] {
            let edits = HeaderEdits { set: fields(&[(name, "1")]), ..HeaderEdits::default() };
            let on_requests = HeaderEditor::new(edits.clone(), HeaderEdits::default());
            assert_eq!(on_requests.looks_at_responses(), LooksAt::Nothing, "{name}");
            let on_responses = HeaderEditor::new(HeaderEdits::default(), edits);
            assert_eq!(on_responses.looks_at_responses(), looks_at, "{name}");
        }
        assert_eq!(Chain::default().looks_at(), LooksAt::Nothing);
    }

    #[test]
    fn a_line_is_added_where_no_header_has_the_name() {
        let editor = |set| {
            let edits = HeaderEdits { set: fields(&[set]), ..HeaderEdits::default() };
            HeaderEditor::new(edits, HeaderEdits::default())
        };
        for (set, lines) in
            [(("x-one", "1"), true), (("accept", "2"), true), (("x-two", "2"), false), (("cookie", "2"), false)]
        {
            let mut head = read("X-Two: 1\r\nCookie: a\r\n");
            editor(set).edit_request(&mut head);
            assert_eq!(head.parts().rule_lines.unwrap().is_empty(), !lines, "{set:?}");
            assert_eq!(head.get(&HeaderName::from_static(set.0)).unwrap(), set.1, "{set:?}");
        }
        // Those of several rules are one text.
        let mut head = read("");
        for set in ["x-1", "x-2", "x-3", "x-4", "x-1"] {
            editor((set, "v")).edit_request(&mut head);
        }
        assert_eq!(head.headers().len(), 5, "{head:?}");
    }

    fn read(lines: &str) -> RequestHead {
        let (text, mut slot) = (format!("GET / HTTP/1.1\r\nHost: h\r\n{lines}\r\n"), None);
        crate::http1::request::read(&mut text.into(), HeaderMap::new(), (100, true), &mut slot).unwrap();
        slot.unwrap().head
    }

    /// Names that are pass-through headers, headers of the map, and other spellings of those.
    const NAMES: &str = "(x-one|x_one|x-two|x-six|accept|cookie|cache-control|date|via|x-longer-name)";

    fn any_edits() -> impl Strategy<Value = HeaderEdits> {
        let pairs = || proptest::collection::btree_map(NAMES, "[a-c]", 0..3);
        (proptest::collection::btree_set(NAMES, 0..2), pairs(), pairs()).prop_map(|(remove, set, add)| {
            let name = |name: &String| HeaderName::try_from(name).unwrap();
            let pairs = |pairs: std::collections::BTreeMap<String, String>| {
                pairs.iter().map(|(it, value)| (name(it), HeaderValue::try_from(value).unwrap())).collect()
            };
            HeaderEdits { remove: remove.iter().map(name).collect(), set: pairs(set), add: pairs(add) }
        })
    }

    proptest! {
        /// Rule after rule, a head has the headers that it has where all of them are in a map.
        #[test]
        fn lines_are_as_good_as_a_map(
            lines in proptest::collection::vec((NAMES, "[a-c]"), 0..6),
            rules in proptest::collection::vec(any_edits(), 1..6),
        ) {
            let lines: String = lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let (mut head, mut expected, mut whole) = (read(&lines), read(&lines), read(&lines));
            whole.read_lines();
            for rule in rules {
                edit(&rule, expected.headers());
                let editor = HeaderEditor::new(rule.clone(), rule);
                editor.edit_request(&mut head);
                // As of HTTP/2.
                let parts = HeadParts { rule_lines: None, ..whole.parts() };
                editor.edit_response(parts, Origin::Backend);
            }
            let mut out = Vec::new();
            crate::http1::request::write(&mut out, &head, Framing::None);
            prop_assert_eq!(head.headers(), expected.headers());
            prop_assert_eq!(whole.headers(), expected.headers());
            let mut slot = None;
            prop_assert_eq!(crate::http1::request::read(&mut out.into(), HeaderMap::new(), (100, true), &mut slot), Ok(true));
            let mut sent = slot.unwrap().head;
            prop_assert_eq!(sent.headers(), expected.headers());
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
