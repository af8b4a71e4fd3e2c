//! What of the configuration may be seen: each value is shown as the kind of its key has it, and one without a key not at all.

use serde::ser::{Serialize, Serializer};

use crate::config::{Config, Kind, Table, Tree, keys};

/// The configuration without what may be a secret.
#[derive(Debug)]
pub(super) struct Hidden<'a>(pub(super) &'a Config);

impl Serialize for Hidden<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut whole = self.0.tree();
        hide("", &mut whole);
        whole.serialize(serializer)
    }
}

/// Hides what is under `key`, which is named as [`keys`] names it.
fn hide(key: &str, node: &mut Tree) {
    match node {
        Tree::Leaf(value) => {
            let kind = keys::kind(key).unwrap_or(Kind::Secret);
            match value {
                serde_json::Value::String(text) => *text = kind.show(text).into_owned(),
                _ if kind == Kind::Plain => {}
                _ => *value = Kind::Secret.show("").into(),
            }
        }
        Tree::List(members) => {
            let key = format!("{key}[]");
            members.iter_mut().for_each(|member| hide(&key, member));
        }
        Tree::Table(entries) => {
            for (name, value) in entries {
                let named = keys::join(key, name);
                let key = if keys::kind(&named).is_some() { named } else { keys::join(key, "*") };
                hide(&key, value);
            }
        }
    }
}
