//! Which keys of a table go together, where a JSON schema can say it too. An editor then underlines what the table's check reports.

use serde_json::{Value, json};

/// What a table says of several of its keys. The table's check says the same in words.
#[derive(Debug)]
pub(crate) enum KeyRule {
    /// One of these keys is there, and no other of them.
    OneOf(&'static [&'static str]),
    /// One of these keys is there, or several.
    AnyOf(&'static [&'static str]),
    /// At most one of these keys is there.
    AtMostOneOf(&'static [&'static str]),
    /// These keys mean nothing without the other.
    Need(&'static [&'static str], &'static str),
    /// What takes a schema of its own to say.
    Schema(fn() -> Value),
}

impl KeyRule {
    /// What a table has to match besides.
    pub(crate) fn schema(&self) -> Value {
        match self {
            Self::OneOf(keys) => json!({ "oneOf": each(keys) }),
            Self::AnyOf(keys) => json!({ "anyOf": each(keys) }),
            Self::AtMostOneOf(keys) => {
                let pairs =
                    keys.iter().enumerate().flat_map(|(at, key)| keys[at + 1..].iter().map(move |other| [key, other]));
                let pairs = pairs.map(|pair| json!({ "required": pair })).collect::<Value>();
                json!({ "not": { "anyOf": pairs } })
            }
            Self::Need(keys, other) => {
                let each =
                    keys.iter().map(|key| ((*key).to_owned(), json!([other]))).collect::<serde_json::Map<_, _>>();
                json!({ "dependencies": each })
            }
            Self::Schema(schema) => schema(),
        }
    }
}

/// For each of these keys, that it is there.
fn each(keys: &[&str]) -> Value {
    keys.iter().map(|key| json!({ "required": [key] })).collect()
}
