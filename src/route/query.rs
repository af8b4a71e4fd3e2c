//! Query parameters, decoded as they are compared.

use std::borrow::Cow;

/// The values of a parameter, as the client sent them, in its order. A parameter without `=` has the empty value.
pub(super) fn values<'a>(query: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    query
        .split('&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
        .filter_map(move |(sent, value)| equals(sent, name).then_some(value))
}

/// Whether `sent` says `text`.
pub(super) fn equals(sent: &str, text: &str) -> bool {
    if is_plain(sent) { sent == text } else { Decoded(sent.as_bytes()).eq(text.bytes()) }
}

/// What `sent` says; `None` where that is no text. Allocates only where something is encoded.
pub(super) fn decode(sent: &str) -> Option<Cow<'_, str>> {
    if is_plain(sent) {
        return Some(Cow::Borrowed(sent));
    }
    String::from_utf8(Decoded(sent.as_bytes()).collect()).ok().map(Cow::Owned)
}

fn is_plain(sent: &str) -> bool {
    !sent.bytes().any(|byte| matches!(byte, b'%' | b'+'))
}

/// The bytes that are meant: `%41` is `A` and `+` a space, as forms send them. What is not a proper escape is left as it
/// is, as browsers do.
struct Decoded<'a>(&'a [u8]);

impl Iterator for Decoded<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let (byte, rest) = match *self.0 {
            [] => return None,
            [b'%', high, low, ref rest @ ..] => match (digit(high), digit(low)) {
                (Some(high), Some(low)) => (high << 4 | low, rest),
                _ => (b'%', &self.0[1..]),
            },
            [b'+', ref rest @ ..] => (b' ', rest),
            [byte, ref rest @ ..] => (byte, rest),
        };
        self.0 = rest;
        Some(byte)
    }
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_a_parameter() {
        for (query, expected) in [
            ("", &[][..]),
            ("a", &[""]),
            ("a=", &[""]),
            ("a=1", &["1"]),
            ("b=2&a=1&a=3", &["1", "3"]),
            ("&&a=1&", &["1"]),
            ("a=1=2", &["1=2"]),
            ("%61=1", &["1"]),
            ("aa=1&A=2&=3", &[]),
            ("a=%31", &["%31"]),
        ] {
            assert_eq!(values(query, "a").collect::<Vec<_>>(), expected, "{query}");
        }
    }

    #[test]
    fn escapes() {
        for (sent, expected) in [
            ("plain", Some("plain")),
            ("a+b", Some("a b")),
            ("a%20b%2Bc%2bd", Some("a b+c+d")),
            ("%C3%BC", Some("\u{fc}")),
            ("%", Some("%")),
            ("%4", Some("%4")),
            ("%zz%41", Some("%zzA")),
            ("%%41", Some("%A")),
            ("%25", Some("%")),
            ("%2541", Some("%41")),
            ("%ff", None),
        ] {
            assert_eq!(decode(sent).as_deref(), expected, "{sent}");
            if let Some(expected) = expected {
                assert!(equals(sent, expected), "{sent}");
                assert!(!equals(sent, "else"), "{sent}");
            }
        }
    }
}
