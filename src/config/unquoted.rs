//! Texts without their quotes: the commonest slip in TOML, of which its own errors say little.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use toml::de::DeTable;

use super::error::Problem;
use super::units;

/// A value that toml has found fault with because it lacks quotes: where it begins, and what to say.
#[derive(Debug)]
pub(super) struct Unquoted {
    pub(super) start: usize,
    pub(super) problem: Problem,
}

/// How the messages begin that toml has for such a value: it reads some for numbers gone wrong.
const FAULTS: [&str; 6] = [
    "string values must be quoted",
    "unexpected key or value",
    "invalid float",
    "invalid boolean",
    "invalid integer",
    "invalid datetime",
];
/// What ends a value.
const ENDS: [char; 6] = [',', ']', '}', '#', ' ', '\t'];
/// Quotes of word processors.
const CURLY: [char; 5] = ['\u{201c}', '\u{201d}', '\u{201e}', '\u{2018}', '\u{2019}'];

/// Looks at what stands where toml has an error with that message.
pub(super) fn look(text: &str, offset: usize, message: &str) -> Option<Unquoted> {
    if !FAULTS.iter().any(|fault| message.starts_with(fault)) {
        return None;
    }
    let start = value_start(text, offset)?;
    let rest = text.get(start..)?.lines().next()?;
    let value = value(rest);
    if value.is_empty() || value.contains(['"', '\'', '=', '{']) || is_toml(value) {
        return None;
    }
    let problem = if value.contains(CURLY) {
        Problem::error("TOML does not know these quotes").expected("plain ones: \"")
    } else if let Some(plain) = ["true", "false"].into_iter().find(|plain| value.eq_ignore_ascii_case(plain)) {
        Problem::error("TOML writes it in small letters").expected(plain)
    } else {
        let quoted = if is_harmless(value) { format!("\"{value}\"") } else { "\"..\"".to_owned() };
        Problem::error("a text needs quotes").expected(quoted)
    };
    Some(Unquoted { start, problem })
}

/// Where the value begins that `offset` is in: behind the last `=`, `[`, `,` of its line that is in no quotes. Without one, it is a member of
/// an array over several lines.
fn value_start(text: &str, offset: usize) -> Option<usize> {
    let line_start = text.get(..offset)?.rfind('\n').map_or(0, |at| at + 1);
    let before = text.get(line_start..offset)?;
    let (mut start, mut quote) = (0, None);
    for (at, c) in before.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '#') => return None,
            (None, '=' | ',' | '{') => start = at + 1,
            (None, '[') if !begins_address(text.get(line_start + at..)?) => start = at + 1,
            (None, _) => {}
        }
    }
    if quote.is_some() {
        return None;
    }
    let start = line_start + start;
    let skipped = text.get(start..)?.chars().take_while(|c| matches!(c, ' ' | '\t')).count();
    Some(start + skipped)
}

/// Whether an address of IPv6 with its port begins here: `[::]:80`.
fn begins_address(text: &str) -> bool {
    let inner = text.strip_prefix('[').and_then(|rest| rest.split_once("]:")).map(|(inner, _)| inner);
    inner.is_some_and(|inner| {
        inner.contains(':') && inner.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, ':' | '.' | '%'))
    })
}

/// The value at the beginning of a line's rest.
fn value(rest: &str) -> &str {
    let bracketed = if begins_address(rest) { rest.find(']').map_or(0, |at| at + 1) } else { 0 };
    let end = rest.get(bracketed..).and_then(|tail| tail.find(ENDS)).map_or(rest.len(), |at| bracketed + at);
    rest.get(..end).unwrap_or(rest)
}

/// Whether there is nothing wrong with it.
fn is_toml(value: &str) -> bool {
    DeTable::parse(&format!("x = {value}")).is_ok()
}

/// Whether it can be repeated: it is no secret whatever its key.
fn is_harmless(value: &str) -> bool {
    value.parse::<SocketAddr>().is_ok()
        || value.parse::<IpAddr>().is_ok()
        || value.parse::<IpNet>().is_ok()
        || units::duration(value).is_some()
        || units::size(value).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a file's first error.
    fn said(text: &str) -> Option<(usize, String)> {
        let (_, errors) = DeTable::parse_recoverable(text);
        let error = errors.first().unwrap();
        look(text, error.span().unwrap().start, error.message()).map(|it| (it.start, it.problem.to_string()))
    }

    #[test]
    fn texts_without_quotes() {
        let needs = |expected: &str| format!(": a text needs quotes; expected {expected}");
        for (text, at, expected) in [
            ("a = 127.0.0.1:80\n", 4, needs("\"127.0.0.1:80\"")),
            ("a = [::]:8080 # all\n", 4, needs("\"[::]:8080\"")),
            ("a = 5s\n", 4, needs("\"5s\"")),
            ("a = 10MiB", 4, needs("\"10MiB\"")),
            ("a = { b = 5s }\n", 10, needs("\"5s\"")),
            ("a = [10.0.0.0/8]\n", 5, needs("\"10.0.0.0/8\"")),
            ("a = [\"x\", 10.0.0.1:80]\n", 10, needs("\"10.0.0.1:80\"")),
            ("a = [::1]:5\n", 4, needs("\"[::1]:5\"")),
            ("a = [\n  10.0.0.1:80,\n]\n", 8, needs("\"10.0.0.1:80\"")),
            ("a = *:80\n", 4, needs("\"..\"")),
            ("a = hunter2\n", 4, needs("\"..\"")),
            ("a = /users\n", 4, needs("\"..\"")),
            ("a = True\n", 4, ": TOML writes it in small letters; expected true".into()),
            ("a = \u{201c}x\u{201d}\n", 4, ": TOML does not know these quotes; expected plain ones: \"".into()),
        ] {
            assert_eq!(said(text), Some((at, expected)), "{text}");
        }
    }

    #[test]
    fn other_slips_are_tomls_to_tell() {
        for text in [
            "a = \"x\n",
            "a = 'x",
            "a = [1",
            "a: \"x\"\n",
            "a 1\n",
            "a = { b: 1 }\n",
            "a = \"x\" \"y\"\n",
            "a =\n",
            "[a\n",
        ] {
            assert_eq!(said(text), None, "{text}");
        }
    }
}
