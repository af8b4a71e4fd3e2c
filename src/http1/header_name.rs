//! Names of header fields, found where nearly all messages have them in common.

use std::sync::LazyLock;

use http::header::HeaderName;

/// The name that a field line begins with, in any case, and how long it is, if it is one that messages often have.
///
/// [`HeaderName`] looks at each byte of a name, and allocates for one that is not in its own list, which has been closed since before
/// browsers sent `Sec-Fetch-*`: a third of their fields. Here a name is a few words of eight bytes, which are compared as such.
pub(super) fn known(line: &[u8]) -> Option<(usize, &'static KnownName)> {
    let mut words = Words::default();
    for (at, word) in words.iter_mut().enumerate() {
        let rest = line.get(8 * at..)?;
        let eight = match rest.first_chunk() {
            Some(eight) => u64::from_le_bytes(*eight),
            None => rest.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)),
        };
        // The lowest byte of these that is not 0 is where the first colon is.
        let other = eight ^ every(b':');
        let colon = other.wrapping_sub(every(1)) & !other & every(0x80);
        if colon == 0 {
            *word = eight;
            continue;
        }
        let bytes = colon.trailing_zeros() as usize / 8;
        *word = eight & ((1 << (8 * bytes)) - 1);
        let length = 8 * at + bytes;
        return KNOWN.find(&words, length).map(|name| (length, name));
    }
    None
}

/// Whether a header of that name passes through, where it is looked for by its name alone.
pub fn passes(name: &HeaderName) -> bool {
    PASSING.binary_search(&name.as_str()).is_ok()
}

/// Eight times the same byte.
pub(super) const fn every(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

/// The bytes of a name, and zeros behind them.
type Words = [u64; 4];

static KNOWN: LazyLock<NameTable> = LazyLock::new(|| NameTable::new(&PASSING, &OTHERS));

/// A table of names.
struct NameTable {
    names: Vec<KnownName>,
    /// By [`slot`], which of the names is there.
    slots: Box<[u8; SLOTS]>,
}

/// A name of the table.
#[derive(Debug)]
pub(super) struct KnownName {
    words: Words,
    /// The bit that tells capitals, in each byte that is a letter: no other byte may differ.
    letters: Words,
    length: usize,
    /// The name.
    pub(super) name: HeaderName,
    /// Whether the field is no concern of anybody's here.
    pub(super) passes: bool,
}

/// Four times as many as there are names: the first slot that is looked at is the right one, or empty, most of the time.
const SLOTS: usize = 512;
const EMPTY: u8 = u8::MAX;

impl NameTable {
    fn new(passing: &[&'static str], others: &[&'static str]) -> Self {
        let mut table = Self { names: Vec::new(), slots: Box::new([EMPTY; SLOTS]) };
        for (index, name) in passing.iter().chain(others).enumerate() {
            let (mut words, mut letters) = (Words::default(), Words::default());
            for (at, byte) in name.bytes().enumerate() {
                words[at / 8] |= u64::from(byte) << (at % 8 * 8);
                letters[at / 8] |= u64::from(byte.is_ascii_lowercase()) << (at % 8 * 8 + 5);
            }
            let mut slot = slot(&words);
            while table.slots[slot] != EMPTY {
                slot = (slot + 1) % SLOTS;
            }
            table.slots[slot] = index as u8;
            let (length, passes) = (name.len(), index < passing.len());
            table.names.push(KnownName { words, letters, length, name: HeaderName::from_static(name), passes });
        }
        table
    }

    fn find(&self, words: &Words, length: usize) -> Option<&KnownName> {
        let mut slot = slot(words);
        // There are empty slots, and so it ends.
        while let Some(known) = self.names.get(usize::from(self.slots[slot])) {
            let same = |at: usize| words[at] | known.letters[at] == known.words[at];
            if known.length == length && same(0) && same(1) && same(2) && same(3) {
                return Some(known);
            }
            slot = (slot + 1) % SLOTS;
        }
        None
    }
}

/// The slot that a name is in, or in one of those behind it. Capitals make no difference.
fn slot(words: &Words) -> usize {
    let [first, second, third, fourth] = words.map(|word| word | every(0x20));
    let mixed = first ^ second.rotate_left(17) ^ third.rotate_left(31) ^ fourth.rotate_left(47);
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 55) as usize
}

/// Those of pass-through headers, sorted: no concern of a proxy's in a head of HTTP/1.1 that goes on as one. Only a configuration can ask for one, and the reader of responses,
/// which tells of `date` itself and finds others for who asks by name. Of browsers, of
/// programs, of what stands in front, and of what answers: 31 bytes at most, as all names.
#[rustfmt::skip]
const PASSING: [&str; 99] = [
    "accept", "accept-charset", "accept-encoding", "accept-language", "accept-ranges", "access-control-allow-headers",
    "access-control-allow-methods", "access-control-allow-origin", "access-control-expose-headers", "access-control-max-age",
    "access-control-request-headers", "access-control-request-method", "age", "allow", "alt-svc", "authorization", "b3",
    "baggage", "cache-control", "cf-connecting-ip", "cf-ray", "content-disposition", "content-encoding", "content-language",
    "content-location", "content-range", "content-security-policy", "content-type", "cookie", "cross-origin-embedder-policy",
    "cross-origin-opener-policy", "cross-origin-resource-policy", "date", "dnt", "early-data", "etag", "expires", "from",
    "if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "last-modified", "link", "location",
    "nel", "origin", "permissions-policy", "pragma", "priority", "proxy-authenticate", "range", "ratelimit-limit",
    "ratelimit-remaining", "ratelimit-reset", "referer", "referrer-policy", "report-to", "save-data", "sec-ch-ua",
    "sec-ch-ua-mobile", "sec-ch-ua-platform", "sec-fetch-dest", "sec-fetch-mode", "sec-fetch-site", "sec-fetch-user", "sec-gpc",
    "sec-purpose", "server", "server-timing", "set-cookie", "timing-allow-origin", "traceparent", "tracestate",
    "upgrade-insecure-requests", "user-agent", "vary", "warning", "www-authenticate", "x-amzn-trace-id", "x-api-key",
    "x-b3-parentspanid", "x-b3-sampled", "x-b3-spanid", "x-b3-traceid", "x-cache", "x-content-type-options", "x-correlation-id",
    "x-csrf-token", "x-frame-options", "x-powered-by", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset",
    "x-request-id", "x-requested-with", "x-robots-tag", "x-xss-protection",
];

/// Those that are looked at.
#[rustfmt::skip]
const OTHERS: [&str; 27] = [
    "connection", "content-length", "expect", "forwarded", "host", "idempotency-key", "keep-alive", "max-forwards",
    "proxy-authorization", "proxy-connection", "retry-after", "sec-websocket-accept", "sec-websocket-extensions",
    "sec-websocket-key", "sec-websocket-protocol", "sec-websocket-version", "strict-transport-security", "te", "trailer",
    "transfer-encoding", "upgrade", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto",
    "x-real-ip",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    static NAMES: LazyLock<Vec<&str>> = LazyLock::new(|| PASSING.into_iter().chain(OTHERS).collect());

    fn find(text: &[u8], rest: &str) -> Option<&'static HeaderName> {
        let found = known(&[text, b":", rest.as_bytes()].concat());
        found.map(|(length, known)| (assert_eq!(length, text.len()), &known.name).1)
    }

    #[test]
    fn finds_each_whatever_follows() {
        for &text in &*NAMES {
            for rest in ["", " ", "x", " a value: of words"] {
                assert_eq!(find(text.as_bytes(), rest).unwrap(), text);
                assert_eq!(find(text.to_ascii_uppercase().as_bytes(), rest).unwrap(), text);
            }
            assert!(known(text.as_bytes()).is_none(), "there is no colon");
        }
        assert_eq!(NAMES.len(), NAMES.iter().collect::<std::collections::HashSet<_>>().len(), "each once");
    }

    #[test]
    fn both_ways_of_asking_agree() {
        for known in &KNOWN.names {
            assert_eq!(passes(&known.name), known.passes, "{}", known.name);
        }
        assert!(!passes(&HeaderName::from_static("x-unknown")));
    }

    #[test]
    fn few_share_a_slot() {
        let full = KNOWN.slots.iter().filter(|&&slot| slot != EMPTY).count();
        assert_eq!(full, NAMES.len());
        let elsewhere = |index: usize| usize::from(KNOWN.slots[slot(&KNOWN.names[index].words)]) != index;
        assert!((0..NAMES.len()).filter(|&index| elsewhere(index)).count() < 20);
    }

    #[test]
    fn takes_nothing_else_for_one_of_them() {
        for &text in &*NAMES {
            for at in 0..text.len() {
                for bit in 0..8 {
                    let mut other = text.as_bytes().to_vec();
                    other[at] ^= 1 << bit;
                    let same = other.eq_ignore_ascii_case(text.as_bytes());
                    if same || !NAMES.iter().any(|name| name.as_bytes().eq_ignore_ascii_case(&other)) {
                        assert_eq!(find(&other, " x").is_some(), same, "{:?}", String::from_utf8_lossy(&other));
                    }
                }
            }
            let longer = [text.as_bytes(), b"\0"].concat();
            assert_eq!(find(&longer, " x"), None);
        }
    }

    proptest! {
        #[test]
        fn finds_what_is_listed(text in "[a-zA-Z0-9_. \0\u{e4}-]{0,40}|(sec|x|content|Access)-[a-zA-Z-]{0,20}") {
            let listed = NAMES.iter().find(|name| name.eq_ignore_ascii_case(&text));
            prop_assert_eq!(find(text.as_bytes(), " x").map(HeaderName::as_str), listed.copied());
        }
    }
}
