//! Pass-through headers: lines of a head that go on as they came.
//!
//! Most of what a browser says of itself is for the backend, most of what a backend says is for the browser, and neither is a
//! concern of a proxy's. To make each such header a name and a value, put it into a map and write it out again costs 970
//! instructions; to let its line pass costs half of that. A line passes if its name is one that only a configuration can
//! ask for. Where one does, the headers are put into the map after all ([`RequestHead::headers`](super::head::RequestHead::headers)).

use std::ops::Range;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::field::{self, FieldLine, FieldName};
use super::header_name::every;

/// Headers that pass through as lines: each a name that is no concern of ours, a value that could stand in a map, and CRLF.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassThrough {
    /// What they were found in.
    bytes: Bytes,
    /// Where they are: lines that follow each other are one run.
    runs: [(u32, u32); RUNS],
    used: usize,
}

/// Browsers send two or three: the fields that are looked at stand in between.
const RUNS: usize = 4;

impl PassThrough {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Adds the line of `bytes` that begins and ends there, if there is room and it ends as lines should. What stands in it is for
    /// the caller to look at.
    pub(super) fn add(&mut self, bytes: &[u8], start: usize, end: usize) -> bool {
        let (Ok(from), Ok(to)) = (u32::try_from(start), u32::try_from(end)) else { return false };
        if !bytes[..end].ends_with(b"\r\n") {
            return false;
        }
        match self.runs[..self.used].last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ if self.used == RUNS => return false,
            _ => {
                self.runs[self.used] = (from, to);
                self.used += 1;
            }
        }
        true
    }

    /// Tells what all of them were found in. Kept only where there are some.
    pub(super) fn found_in(&mut self, bytes: &Bytes) {
        if self.used > 0 {
            self.bytes = bytes.clone();
        }
    }

    /// The lines, several at a time, each with its end.
    pub fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.runs[..self.used].iter().map(|&(from, to)| &self.bytes[from as usize..to as usize])
    }

    /// The fields one by one: their names, and where their values are. `bytes` is what they were found in.
    pub(super) fn fields(&self, bytes: &[u8]) -> impl Iterator<Item = (FieldName, Range<usize>)> {
        self.runs[..self.used].iter().flat_map(move |&(from, to)| {
            let mut at = from as usize;
            std::iter::from_fn(move || {
                // They have been read like this before.
                match field::line(bytes.get(..to as usize).unwrap_or_default(), &mut at) {
                    Ok(FieldLine::Field(name, place)) => Some((name, place)),
                    _ => None,
                }
            })
        })
    }

    /// Whether a header of that name is among them.
    pub fn has(&self, name: &HeaderName) -> bool {
        self.fields(&self.bytes).any(|(it, _)| it.is(name))
    }

    /// Puts the fields into a map, for a look at them, or where they are needed as such.
    pub fn copy_to(&self, headers: &mut HeaderMap) {
        for (name, place) in self.fields(&self.bytes) {
            let value = HeaderValue::from_maybe_shared(self.bytes.slice(place));
            if let (Ok(name), Ok(value)) = (name.read(&self.bytes), value) {
                headers.append(name, value);
            }
        }
    }

    /// Puts the fields into a map, and has none any more.
    pub fn give_to(&mut self, headers: &mut HeaderMap) {
        if !self.is_empty() {
            self.copy_to(headers);
            *self = Self::default();
        }
    }
}

/// Whether a value holds nothing but what values may: what [`HeaderValue`] takes.
///
/// Eight bytes at a time, as long as there is no tab.
pub(super) fn is_value(bytes: &[u8]) -> bool {
    let one_by_one = || bytes.iter().all(|&byte| (byte >= b' ' && byte != 0x7f) || byte == b'\t');
    let Some(last) = bytes.last_chunk() else { return one_by_one() };
    let (words, _) = bytes.as_chunks();
    let marked = words.iter().fold(controls(*last), |marked, word| marked | controls(*word));
    marked & every(0x80) == 0 || one_by_one()
}

/// The highest bit of each byte that is a control character, and perhaps of some behind it.
fn controls(bytes: [u8; 8]) -> u64 {
    let word = u64::from_le_bytes(bytes);
    let (low, delete) = (word.wrapping_sub(every(b' ')), (word ^ every(0x7f)).wrapping_sub(every(1)));
    (low | delete) & !word
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(text: &'static str) -> PassThrough {
        let bytes = Bytes::from_static(text.as_bytes());
        let (mut pass_through, mut at) = (PassThrough::default(), 0);
        while let Ok(FieldLine::Field(name, _)) = field::line(&bytes, &mut { at }) {
            let start = at;
            let _ = field::line(&bytes, &mut at);
            if name.passes() {
                assert!(pass_through.add(&bytes, start, at), "{text:?}");
            }
        }
        pass_through.found_in(&bytes);
        pass_through
    }

    #[test]
    fn lines_that_follow_each_other_are_one_run() {
        let pass_through = found("Accept: a\r\ncookie:b\r\nHost: h\r\nCookie: \tc \r\nTE: x\r\n\r\n");
        let runs: Vec<_> = pass_through.lines().map(|run| str::from_utf8(run).unwrap()).collect();
        assert_eq!(runs, ["Accept: a\r\ncookie:b\r\n", "Cookie: \tc \r\n"]);
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("h"));
        pass_through.clone().give_to(&mut headers);
        assert_eq!(headers.len(), 4);
        assert_eq!(headers["accept"], "a");
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["b", "c"]);
    }

    #[test]
    fn what_does_not_fit_is_not_taken() {
        let mut pass_through = PassThrough::default();
        let bytes = b"accept: a\r\n".repeat(2 * RUNS);
        for run in 0..RUNS {
            assert!(pass_through.add(&bytes, 22 * run, 22 * run + 11));
        }
        assert!(!pass_through.add(&bytes, 22 * RUNS, 22 * RUNS), "no further run");
        assert!(!PassThrough::default().add(b"accept: a\n", 0, 10), "another end");
        assert!(PassThrough::default().is_empty() && PassThrough::default().lines().next().is_none());
        pass_through.give_to(&mut HeaderMap::new());
        assert!(pass_through.is_empty());
    }

    proptest! {
        #[test]
        fn a_value_is_what_a_map_takes(
            text in "[ -~\t\u{e4}]{0,40}", at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut value = text.into_bytes();
            prop_assert_eq!(is_value(&value), HeaderValue::from_bytes(&value).is_ok());
            value.insert(at.index(value.len() + 1), byte);
            prop_assert_eq!(is_value(&value), HeaderValue::from_bytes(&value).is_ok(), "{:?}", value);
        }
    }
}
