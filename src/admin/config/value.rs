//! Values that many keys have: durations, lists, limits.

use std::time::Duration;

use http::header::HeaderValue;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{Entries, Shown};

impl Serialize for Shown<Duration> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&duration(self.0))
    }
}

pub(super) use crate::config::written_duration as duration;

pub(super) fn entries<T>(entries: impl Iterator<Item = (String, T)>) -> Option<Entries<T>> {
    some(entries.collect()).map(Entries)
}

pub(super) fn shown<'a, T: 'a>(items: impl IntoIterator<Item = &'a T>) -> Vec<Shown<&'a T>> {
    items.into_iter().map(Shown).collect()
}

pub(super) fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(T::to_string).collect()
}

/// `None` for an empty list: a key that is left out means the same as one without values.
pub(super) fn some<T>(items: Vec<T>) -> Option<Vec<T>> {
    (!items.is_empty()).then_some(items)
}

pub(super) fn entry_if<M: SerializeMap>(
    map: &mut M,
    key: &str,
    value: Option<&impl Serialize>,
) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| map.serialize_entry(key, value))
}

pub(super) fn lossy(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

pub(super) fn limit_entry<M: SerializeMap>(map: &mut M, key: &str, limit: Option<u32>) -> Result<(), M::Error> {
    match limit {
        Some(limit) => map.serialize_entry(key, &limit),
        None => map.serialize_entry(key, "unlimited"),
    }
}
