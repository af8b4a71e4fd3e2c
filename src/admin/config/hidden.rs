//! What of the configuration may be seen: each value is shown as the kind of its key has it, and one without a key not at all.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Error as _, Serialize, Serializer};

use super::Shown;
use crate::config::{Config, Kind, keys};

/// The configuration without what may be a secret.
#[derive(Debug)]
pub(super) struct Hidden<'a>(pub(super) &'a Config);

impl Serialize for Hidden<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let whole = serde_json::to_string(&Shown(self.0)).map_err(S::Error::custom)?;
        let mut whole: Node = serde_json::from_str(&whole).map_err(S::Error::custom)?;
        hide("", &mut whole);
        whole.serialize(serializer)
    }
}

/// A piece of JSON whose keys stay in their order.
enum Node {
    Leaf(serde_json::Value),
    Array(Vec<Node>),
    Table(Vec<(String, Node)>),
}

/// Hides what is under `key`, which is named as [`keys`] names it.
fn hide(key: &str, node: &mut Node) {
    match node {
        Node::Leaf(value) => {
            let kind = keys::kind(key).unwrap_or(Kind::Secret);
            match value {
                serde_json::Value::String(text) => *text = kind.show(text).into_owned(),
                _ if kind == Kind::Plain => {}
                _ => *value = Kind::Secret.show("").into(),
            }
        }
        Node::Array(members) => {
            let key = format!("{key}[]");
            members.iter_mut().for_each(|member| hide(&key, member));
        }
        Node::Table(entries) => {
            for (name, value) in entries {
                let named = keys::join(key, name);
                let key = if keys::kind(&named).is_some() { named } else { keys::join(key, "*") };
                hide(&key, value);
            }
        }
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Leaf(value) => value.serialize(serializer),
            Self::Array(members) => members.serialize(serializer),
            Self::Table(entries) => serializer.collect_map(entries.iter().map(|(name, value)| (name, value))),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Piece;

        impl<'de> Visitor<'de> for Piece {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Leaf(serde_json::Value::Null))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Leaf(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Leaf(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Leaf(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
                Ok(Node::Leaf(value.into()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Leaf(value.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = seq.next_element()? {
                    members.push(member);
                }
                Ok(Node::Array(members))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Node::Table(entries))
            }
        }

        deserializer.deserialize_any(Piece)
    }
}
