//! `[middleware.NAME]`

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::Shown;
use crate::config::{HeaderEdits, MiddlewareConfig, MiddlewareKind};

impl Serialize for Shown<&MiddlewareConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let MiddlewareConfig { name: _, timeout, kind } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("timeout", &Shown(*timeout))?;
        match kind {
            MiddlewareKind::Headers { request, response } => {
                map.serialize_entry("headers", &HeadersView { request, response })?;
            }
            MiddlewareKind::Custom { kind, table } => map.serialize_entry(&**kind, table)?,
        }
        map.end()
    }
}

struct HeadersView<'a> {
    request: &'a HeaderEdits,
    response: &'a HeaderEdits,
}

impl Serialize for HeadersView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, edits) in [("request", self.request), ("response", self.response)] {
            if !edits.is_empty() {
                map.serialize_entry(key, &Shown(edits))?;
            }
        }
        map.end()
    }
}
