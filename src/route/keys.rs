//! Texts of the configuration, found again in what clients send.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Values by text.
#[derive(Debug)]
pub(super) enum Exact<T> {
    /// So few that comparing each is cheaper than hashing: the length already tells most of them apart.
    Few(Box<[(Box<[u8]>, T)]>),
    /// Any number.
    Many(HashMap<Box<[u8]>, T, BuildHasherDefault<KeyHasher>>),
}

const FEW: usize = 4;

impl<T> Exact<T> {
    pub(super) fn get(&self, text: &[u8]) -> Option<&T> {
        match self {
            Self::Few(entries) => entries.iter().find(|(key, _)| **key == *text).map(|(_, value)| value),
            Self::Many(entries) => entries.get(text),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Few(entries) => entries.is_empty(),
            Self::Many(entries) => entries.is_empty(),
        }
    }
}

impl<T> FromIterator<(Box<[u8]>, T)> for Exact<T> {
    fn from_iter<I: IntoIterator<Item = (Box<[u8]>, T)>>(entries: I) -> Self {
        let entries: Vec<_> = entries.into_iter().collect();
        if entries.len() <= FEW { Self::Few(entries.into()) } else { Self::Many(entries.into_iter().collect()) }
    }
}

/// Values by text that begins or ends what is looked for; the longest first.
///
/// Only lengths that some text has are tried, so the work is bounded by the configuration, not by how many slashes or dots
/// a client sends.
#[derive(Debug)]
pub(super) struct Longest<T>(Box<[OfLength<T>]>);

#[derive(Debug)]
struct OfLength<T> {
    length: usize,
    texts: Exact<T>,
}

impl<T> Longest<T> {
    /// The values of the texts that `path` is, or that it continues with a slash. The empty text begins every path, even
    /// `*`.
    pub(super) fn prefixes(&self, path: &[u8]) -> impl Iterator<Item = &T> {
        self.0.iter().filter_map(move |OfLength { length, texts }| {
            let ends = *length == 0 || path.len() == *length || path.get(*length) == Some(&b'/');
            texts.get(path.get(..*length).filter(|_| ends)?)
        })
    }

    /// The values of the texts, each with a dot in front, that `host` ends in and is longer than.
    pub(super) fn suffixes(&self, host: &[u8]) -> impl Iterator<Item = &T> {
        self.0.iter().filter_map(move |OfLength { length, texts }| {
            let start = host.len().checked_sub(*length).filter(|&start| start > 0)?;
            texts.get(host.get(start..).filter(|suffix| suffix.starts_with(b"."))?)
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T> FromIterator<(Box<[u8]>, T)> for Longest<T> {
    fn from_iter<I: IntoIterator<Item = (Box<[u8]>, T)>>(entries: I) -> Self {
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_by_key(|(key, _)| std::cmp::Reverse(key.len()));
        let mut lengths = Vec::new();
        let mut entries = entries.into_iter().peekable();
        while let Some(length) = entries.peek().map(|(key, _)| key.len()) {
            let texts = std::iter::from_fn(|| entries.next_if(|(key, _)| key.len() == length)).collect();
            lengths.push(OfLength { length, texts });
        }
        Self(lengths.into())
    }
}

/// A hash of a few instructions a word. What clients send is looked up and never inserted, so that nobody but the author of
/// the configuration could make keys collide, and the standard hasher's defence buys nothing here.
#[derive(Debug, Default)]
pub(super) struct KeyHasher(u64);

impl KeyHasher {
    /// Both halves of the product: hash maps look at the lowest bits and at the highest.
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        self.mix(rest.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
    }

    fn write_usize(&mut self, length: usize) {
        self.mix(length as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn keyed(texts: &[&str]) -> Vec<(Box<[u8]>, String)> {
        texts.iter().map(|&text| (text.as_bytes().into(), text.to_owned())).collect()
    }

    #[test]
    fn few_and_many_find_the_same() {
        let texts: Vec<_> = (0..FEW * 10).map(|i| format!("/{i}")).collect();
        let texts: Vec<_> = texts.iter().map(String::as_str).collect();
        for count in [0, 1, FEW, FEW + 1, texts.len()] {
            let exact: Exact<String> = keyed(&texts[..count]).into_iter().collect();
            assert_eq!(exact.is_empty(), count == 0);
            for (i, text) in texts.iter().enumerate() {
                assert_eq!(exact.get(text.as_bytes()).is_some(), i < count, "{text} of {count}");
            }
            assert_eq!(exact.get(b""), None);
        }
    }

    #[test]
    fn prefixes_are_whole_segments_longest_first() {
        let prefixes: Longest<String> = keyed(&["", "/a", "/a/b", "/b", "/abc", "/a/b/c"]).into_iter().collect();
        for (path, expected) in [
            ("/", &[""][..]),
            ("", &[""]),
            ("*", &[""]),
            ("/a", &["/a", ""]),
            ("/a/", &["/a", ""]),
            ("/ab", &[""]),
            ("/abc", &["/abc", ""]),
            ("/a/b", &["/a/b", "/a", ""]),
            ("/a/bc", &["/a", ""]),
            ("/a/b/c/d", &["/a/b/c", "/a/b", "/a", ""]),
            ("//a", &[""]),
            ("/a\u{fc}", &[""]),
        ] {
            assert_eq!(prefixes.prefixes(path.as_bytes()).collect::<Vec<_>>(), expected, "{path}");
        }
    }

    #[test]
    fn suffixes_are_whole_labels_longest_first() {
        let suffixes: Longest<String> = keyed(&[".com", ".b.com", ".a.b.com"]).into_iter().collect();
        for (host, expected) in [
            ("", &[][..]),
            ("com", &[]),
            (".com", &[]),
            ("b.com", &[".com"]),
            ("ab.com", &[".com"]),
            ("a.b.com", &[".b.com", ".com"]),
            ("x.y.a.b.com", &[".a.b.com", ".b.com", ".com"]),
            ("xcom", &[]),
        ] {
            assert_eq!(suffixes.suffixes(host.as_bytes()).collect::<Vec<_>>(), expected, "{host}");
        }
    }

    #[test]
    fn hashes_of_similar_texts_differ_where_hash_maps_look() {
        let hashes: Vec<_> = (0..10_000)
            .map(|i| {
                let mut hasher = KeyHasher::default();
                hasher.write(format!("host-{i}.example.com").as_bytes());
                hasher.finish()
            })
            .collect();
        let low: HashSet<_> = hashes.iter().map(|hash| hash & 0x3fff).collect();
        let high: HashSet<_> = hashes.iter().map(|hash| hash >> 57).collect();
        // 10 000 in 16 384 places leave 16 384 × (1 - 1/e^0.61) = 7 484 taken where they fall at random.
        assert!(low.len() > 7_000, "{}", low.len());
        assert_eq!(high.len(), 128);
    }
}
