//! A value as `/config` has it: JSON whose keys stay in their order.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
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

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Piece;

        impl<'de> Visitor<'de> for Piece {
            type Value = Tree;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Leaf(Value::Null))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
                Ok(value.into())
            }

            fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
                Ok(value.into())
            }

            fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
                Ok(value.into())
            }

            fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
                Ok(value.into())
            }

            fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
                Ok(value.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = seq.next_element()? {
                    members.push(member);
                }
                Ok(Tree::List(members))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Tree::Table(entries))
            }
        }

        deserializer.deserialize_any(Piece)
    }
}
