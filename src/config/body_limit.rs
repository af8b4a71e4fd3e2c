//! `max_body` of listeners and routes.

use std::fmt;

use super::check::{Check, value};
use super::form::{About, AnySize, Form};
use super::json_tree::Tree;
use super::raw;
use super::report::Place;
use super::visibility::OfKind;

/// How large the body of a request may be, and of a gRPC call each of its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLimit {
    /// Of any size.
    Unlimited,
    /// So many bytes, or it is answered 413.
    Bytes(u64),
}

impl fmt::Display for BodyLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.write_str("unlimited"),
            Self::Bytes(bytes) => bytes.fmt(f),
        }
    }
}

impl From<BodyLimit> for serde_json::Value {
    fn from(limit: BodyLimit) -> Self {
        match limit {
            BodyLimit::Unlimited => "unlimited".into(),
            BodyLimit::Bytes(bytes) => bytes.into(),
        }
    }
}

/// A size, or any.
pub(crate) struct BodySize;

impl Form<BodyLimit> for BodySize {
    type Written = raw::Size;

    fn read(&self, check: &Check<'_>, place: Place, written: &raw::Size) -> Option<BodyLimit> {
        match written {
            raw::Size::String(text) if text == "unlimited" => Some(BodyLimit::Unlimited),
            written => {
                let expected = format!("\"unlimited\", or {}", value::SIZE);
                value::size(check, place, written, &expected).map(BodyLimit::Bytes)
            }
        }
    }

    fn show(&self, value: &BodyLimit) -> Option<Tree> {
        Some((*value).into())
    }

    fn tell(&self, value: &BodyLimit) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        let size = <AnySize as Form<u64>>::about(&AnySize);
        About { kind: raw::Size::KIND, ..size.or_word("unlimited") }
    }
}
