//! What a route asks of a request beside host and path.

use http::HeaderValue;

use super::{Reading, query};
use crate::config::{HeaderMatch, ListenerName, QueryMatch, RouteConfig, ValueMatch};
use crate::exchange::RequestHead;
use crate::header_names::is_spelling_of;

/// A request, as far as routes look at it.
#[derive(Clone, Copy, Debug)]
pub(super) struct MatchInput<'a> {
    pub(super) listener: &'a ListenerName,
    pub(super) head: &'a RequestHead,
    pub(super) path: Reading<'a>,
}

/// How many things a route asks for beside host and path: the more, the more specific. A list of which any will do
/// (methods, listeners) is one thing, each header and each query parameter is one.
pub(super) fn constraints(config: &RouteConfig) -> usize {
    usize::from(!config.methods.is_empty())
        + usize::from(!config.listeners.is_empty())
        + config.headers.len()
        + config.query.len()
}

/// Whether the request has all of them.
pub(super) fn matches(config: &RouteConfig, asked: &MatchInput<'_>) -> bool {
    (config.listeners.is_empty() || config.listeners.contains(asked.listener))
        && (config.methods.is_empty() || config.methods.contains(&asked.head.method))
        && config.headers.iter().all(|wanted| has_header(wanted, asked.head))
        && config.query.iter().all(|wanted| has_parameter(wanted, asked.head.uri.query().unwrap_or_default()))
}

fn has_header(wanted: &HeaderMatch, head: &RequestHead) -> bool {
    // In any spelling that some backend takes for it. There are few fields, and names differ in length: a look-up by hash costs as much.
    let any =
        |test: &dyn Fn(&HeaderValue) -> bool| head.any(|name, value| is_spelling_of(name, &wanted.name) && test(value));
    match &wanted.value {
        ValueMatch::Present => any(&|_| true),
        ValueMatch::Absent => !any(&|_| true),
        ValueMatch::Exact(text) => any(&|value| value == text.as_str()),
        // A value that is no text has nothing that a pattern could match.
        ValueMatch::Regex(regex) => {
            any(&|value| str::from_utf8(value.as_bytes()).is_ok_and(|value| regex.is_match(value)))
        }
    }
}

fn has_parameter(wanted: &QueryMatch, query: &str) -> bool {
    let mut values = query::values(query, &wanted.name);
    match &wanted.value {
        ValueMatch::Present => values.next().is_some(),
        ValueMatch::Absent => values.next().is_none(),
        ValueMatch::Exact(text) => values.any(|value| query::equals(value, text)),
        ValueMatch::Regex(regex) => {
            values.any(|value| query::decode(value).is_some_and(|value| regex.is_match(&value)))
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use regex::Regex;

    use super::*;

    fn values() -> [ValueMatch; 4] {
        [
            ValueMatch::Present,
            ValueMatch::Absent,
            ValueMatch::Exact("a b".into()),
            ValueMatch::Regex(Regex::new("^(?:a.*)$").unwrap()),
        ]
    }

    #[test]
    fn headers() {
        for (sent, expected) in [
            (&[][..], [false, true, false, false]),
            (&[&b""[..]], [true, false, false, false]),
            (&[b"a b"], [true, false, true, true]),
            (&[b"A b"], [true, false, false, false]),
            (&[b"ax"], [true, false, false, true]),
            (&[b"xa"], [true, false, false, false]),
            (&[b"x", b"a b"], [true, false, true, true]),
            (&[b"a\xff"], [true, false, false, false]),
        ] {
            let name = HeaderName::from_static("x-a");
            let mut head = RequestHead::default();
            let headers = head.headers();
            headers.insert("x-other", HeaderValue::from_static("a b"));
            for value in sent {
                headers.append(&name, HeaderValue::from_bytes(value).unwrap());
            }
            let found = values().map(|value| has_header(&HeaderMatch { name: name.clone(), value }, &head));
            assert_eq!(found, expected, "{sent:?}");
        }
    }

    #[test]
    fn query_parameters() {
        for (query, expected) in [
            ("", [false, true, false, false]),
            ("b=a+b", [false, true, false, false]),
            ("p", [true, false, false, false]),
            ("p=a+b", [true, false, true, true]),
            ("p=a%20b", [true, false, true, true]),
            ("p=x&p=a%20b", [true, false, true, true]),
            ("p=%61x", [true, false, false, true]),
            ("p=a%ff", [true, false, false, false]),
        ] {
            let found = values().map(|value| has_parameter(&QueryMatch { name: "p".into(), value }, query));
            assert_eq!(found, expected, "{query}");
        }
    }
}
