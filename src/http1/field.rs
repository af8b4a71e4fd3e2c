//! Field lines of a head or a trailer section (RFC 9112 §5), as places in the bytes they are read from.
//!
//! Only the name is looked at byte by byte here, since where it ends decides what everything else means. A value is checked once, when it
//! becomes a [`HeaderValue`](http::HeaderValue), which takes no CR, LF or NUL, or by `pass_through::is_value`.

use std::ops::Range;

use http::header::{HeaderName, InvalidHeaderName};
use memchr::memchr;

use super::header_name::{self, KnownName};

/// What a section goes on with.
#[derive(Debug)]
pub(super) enum FieldLine {
    /// A field: its name, and where its value is, without the white space around it.
    Field(FieldName, Range<usize>),
    /// The empty line that ends the section.
    End,
    /// The end of the line is not there yet.
    Partial,
}

/// The name of a field.
#[derive(Clone, Debug)]
pub(super) struct FieldName {
    /// Where it is.
    pub(super) place: Range<usize>,
    known: Option<&'static KnownName>,
}

impl FieldName {
    /// Whether it is one of a pass-through header.
    pub(super) fn passes(&self) -> bool {
        self.known.is_some_and(|known| known.passes)
    }

    /// Whether it is this one, of those that messages often have.
    pub(super) fn is(&self, name: &HeaderName) -> bool {
        self.known.is_some_and(|known| known.name == *name)
    }

    /// The name itself, from the bytes that it was found in.
    ///
    /// # Errors
    /// It is longer than names can be.
    pub(super) fn read(&self, bytes: &[u8]) -> Result<HeaderName, InvalidHeaderName> {
        match self.known {
            Some(known) => Ok(known.name.clone()),
            None => HeaderName::from_bytes(&bytes[self.place.clone()]),
        }
    }
}

/// What stands before the colon is no name (RFC 9110 §5.1): it is empty, folded (RFC 9112 §5.2), or holds white space, or there is no colon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoName;

/// Reads the line that begins `at` a place in `bytes`, and sets `at` to where the next one begins.
///
/// A lone LF ends a line too (RFC 9112 §2.2); what clients send has been through the guard, which refuses that.
pub(super) fn line(bytes: &[u8], at: &mut usize) -> Result<FieldLine, NoName> {
    let start = *at;
    let rest = bytes.get(start..).unwrap_or_default();
    // Each head has one such line, and to search for its end costs more than this look.
    if rest.starts_with(b"\r\n") {
        *at = start + 2;
        return Ok(FieldLine::End);
    }
    let Some(end) = memchr(b'\n', rest) else { return Ok(FieldLine::Partial) };
    *at = start + end + 1;
    let line = match &rest[..end] {
        [line @ .., b'\r'] => line,
        line => line,
    };
    if line.is_empty() {
        return Ok(FieldLine::End);
    }
    let (colon, known) = match header_name::known(line) {
        Some((length, name)) => (length, Some(name)),
        None => (line.iter().position(|&byte| !TOKEN[usize::from(byte)]).unwrap_or_default(), None),
    };
    if colon == 0 || line[colon] != b':' {
        return Err(NoName);
    }
    let (mut from, mut to) = (colon + 1, line.len());
    while from < to && is_space(line[from]) {
        from += 1;
    }
    while from < to && is_space(line[to - 1]) {
        to -= 1;
    }
    Ok(FieldLine::Field(FieldName { place: start..start + colon, known }, start + from..start + to))
}

/// Where a message begins: behind empty lines (RFC 9112 §2.2).
pub(super) fn begin(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let [b'\n', more @ ..] | [b'\r', b'\n', more @ ..] = rest {
        rest = more;
    }
    bytes.len() - rest.len()
}

fn is_space(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// The bytes of a token (RFC 9110 §5.6.2).
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let marks = b"!#$%&'*+-.^_`|~";
    let mut at = 0;
    while at < marks.len() {
        table[marks[at] as usize] = true;
        at += 1;
    }
    let mut byte = 0;
    while byte < 128u8 {
        if byte.is_ascii_alphanumeric() {
            table[byte as usize] = true;
        }
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Fields<'a> = Vec<(&'a [u8], &'a [u8])>;

    /// The fields of a section, and where it ends.
    fn fields(text: &[u8]) -> Result<Option<(Fields<'_>, usize)>, NoName> {
        let (mut fields, mut at) = (Vec::new(), 0);
        loop {
            match line(text, &mut at)? {
                FieldLine::Field(name, value) => fields.push((&text[name.place], &text[value])),
                FieldLine::End => return Ok(Some((fields, at))),
                FieldLine::Partial => return Ok(None),
            }
        }
    }

    #[test]
    fn takes_lines_apart() {
        for (text, name, value) in [
            ("A: b\r\n\r\n", "A", "b"),
            ("A:b\n\n", "A", "b"),
            ("a-1:\t b c \t\r\n\r\n", "a-1", "b c"),
            ("A:\r\n\r\n", "A", ""),
            ("A: \r\n\r\n", "A", ""),
            ("A: b:c\r\n\r\n", "A", "b:c"),
        ] {
            let expected = vec![(name.as_bytes(), value.as_bytes())];
            assert_eq!(fields(text.as_bytes()), Ok(Some((expected, text.len()))), "{text:?}");
        }
        assert_eq!(fields(b"\r\nA: b"), Ok(Some((vec![], 2))));
        for text in ["", "A", "A: b", "A: b\r", "A: b\r\n", "A: b\r\n\r"] {
            assert_eq!(fields(text.as_bytes()), Ok(None), "{text:?}");
        }
        for text in [
            "A b\r\n\r\n",
            "A : b\r\n\r\n",
            ": b\r\n\r\n",
            " A: b\r\n\r\n",
            "A: b\r\n c\r\n\r\n",
            "A\r\n\r\n",
            "\r\r\n",
            "\u{e4}: b\r\n",
        ] {
            assert_eq!(fields(text.as_bytes()), Err(NoName), "{text:?}");
        }
    }

    proptest! {
        /// An independent parser finds the same, where the values are none that are refused later.
        #[test]
        fn reads_what_httparse_reads(text in "([aZ:!\u{e4}] ?|\r\n|\n|[\t ,;])*\r\n\r\n") {
            let mut space = [httparse::EMPTY_HEADER; 64];
            let theirs = httparse::parse_headers(text.as_bytes(), &mut space);
            match (fields(text.as_bytes()), theirs) {
                (Ok(Some((ours, end))), Ok(httparse::Status::Complete((their_end, theirs)))) => {
                    let theirs: Vec<_> = theirs.iter().map(|field| (field.name.as_bytes(), field.value)).collect();
                    prop_assert_eq!((ours, end), (theirs, their_end));
                }
                (ours, theirs) => prop_assert!(ours.is_err() && theirs.is_err(), "{ours:?} {theirs:?}"),
            }
        }
    }
}
