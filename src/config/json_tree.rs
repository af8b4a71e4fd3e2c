//! A value as `/config` has it: JSON whose keys stay in their order.

use serde::ser::{Serialize, Serializer};
use serde_json::Value;

/// A piece of JSON.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tree {
    /// A text, a number, true or false.
    Leaf(Value),
    /// An array.
    List(Vec<Self>),
    /// A table, in the order of its keys.
    Table(Vec<(String, Self)>),
}

impl<T: Into<Value>> From<T> for Tree {
    fn from(value: T) -> Self {
        Self::Leaf(value.into())
    }
}

impl Serialize for Tree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Leaf(value) => value.serialize(serializer),
            Self::List(members) => members.serialize(serializer),
            Self::Table(entries) => serializer.collect_map(entries.iter().map(|(name, value)| (name, value))),
        }
    }
}
