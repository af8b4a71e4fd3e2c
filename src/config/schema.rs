//! The file as a JSON schema and as a page for people, both made of what the tables say of themselves.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::form::{Inner, Literal, Many, variable};
use super::root::Config;
use super::rule::KeyRule;
use super::table::{Reload, Table};
use super::visibility::Kind;

/// The JSON schema (draft 7) of `lb.toml`, for editors: what they complete, explain and underline. It knows what can be seen of one key alone, and
/// the rules that tables have for several; `isobar check` knows the rest.
pub fn schema() -> Value {
    let mut schema = of_table(&whole());
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("$schema".into(), "http://json-schema.org/draft-07/schema#".into());
        schema.insert("title".into(), "isobar's lb.toml".into());
    }
    schema
}

fn whole() -> Inner {
    Inner { many: Many::One, doc: Config::DOC, enabled: None, keys: Config::keys(), rules: Config::RULES }
}

/// The schema of a table.
pub(crate) fn of_table(table: &Inner) -> Value {
    let mut properties = Map::new();
    if let Some(default) = table.enabled {
        let schema = json!({ "anyOf": [{ "type": "boolean" }, variable()] });
        properties.insert("enabled".into(), described(schema, ENABLED, Literal::Flag(default)));
    }
    for key in &table.keys {
        properties.insert(key.name.into(), described(key.about.schema.clone(), key.doc, key.default));
    }
    let required: Vec<_> = table.keys.iter().filter(|key| key.is_needed).map(|key| key.name).collect();
    let mut schema = Map::new();
    schema.insert("type".into(), "object".into());
    schema.insert("properties".into(), properties.into());
    schema.insert("additionalProperties".into(), false.into());
    if !required.is_empty() {
        schema.insert("required".into(), json!(required));
    }
    if !table.rules.is_empty() {
        schema.insert("allOf".into(), table.rules.iter().map(KeyRule::schema).collect());
    }
    schema.into()
}

/// The sentence of the key `enabled`, which is the same in all tables that have it.
const ENABLED: &str = "Whether the table is in force.";

fn described(schema: Value, doc: &str, default: Literal) -> Value {
    let Value::Object(mut schema) = schema else { return schema };
    schema.insert("description".into(), doc.into());
    if let Some(default) = default.json() {
        schema.insert("default".into(), default);
    }
    Value::Object(schema)
}

impl Literal {
    /// As JSON.
    fn json(self) -> Option<Value> {
        Some(match self {
            Self::Nothing | Self::Words(_) => return None,
            Self::Text(text) => text.into(),
            Self::Number(number) => number.into(),
            Self::Decimal(number) => number.into(),
            Self::Flag(flag) => flag.into(),
            Self::List(members) => members.iter().filter_map(|member| member.json()).collect(),
        })
    }

    /// As the file writes it, or the words that stand for it.
    fn words(self) -> String {
        match self {
            Self::Nothing => "none".into(),
            Self::Words(words) => words.into(),
            literal => format!("`{}`", literal.json().map(|json| json.to_string()).unwrap_or_default()),
        }
    }
}

const HEAD: &str = "\
# Every key of `lb.toml`

Written by `UPDATE_EXPECT=1 cargo test --test config` from what the code says of each key, and checked by the same test. Which keys work together
is told in the pages about them: [forwarding](forwarding.md), [TLS](tls.md), [HTTP/2](http2.md), [limits](limits.md), [load balancing](load-balancing.md),
[health checks](health-checks.md), [backends](backends.md), [gRPC](grpc.md), [operations](operations.md) and [reload](reload.md).

- **Strings** may hold variables of the environment: `\"${NAME}\"` must be set, `\"${NAME:-default}\"` need not be, and `\"$${\"` writes a plain `\"${\"`. A
  variable may stand for a number, or for true or false, too: `weight = \"${WEIGHT:-1}\"`.
- **Durations** are whole numbers with a unit (`ms`, `s`, `m`, `h`, `d`), such as `\"500ms\"` or `\"1m30s\"`, of at most 365 days.
- **Sizes** are bytes, or have a unit (`KB`, `MB`, `GB`; `KiB`, `MiB`, `GiB`), such as `\"64KiB\"`.
- **Unknown keys** are refused, with the name that was probably meant.
- **Takes effect** says what a [reload](reload.md) does with another value.

## In an editor

Editors complete, explain and check the file by its JSON schema. `isobar schema` prints it; [the one of this version](lb.schema.json) is here. [taplo](https://taplo.tamasfe.dev), which is
behind the TOML support of most editors (\"Even Better TOML\" of Visual Studio Code, for example), finds it by the first line of the file:

```text
$ isobar schema > /etc/isobar/lb.schema.json
$ head -1 /etc/isobar/lb.toml
#:schema ./lb.schema.json
```

On a command line, `taplo lint lb.toml` says the same. A schema knows what can be seen of one key, and of some keys of a table together; `isobar check` knows the rest.

";

/// The page of every key: `docs/reference.md`.
pub fn reference() -> String {
    let mut page = HEAD.to_owned();
    section(&mut page, "", &whole(), Reload::AtOnce);
    page.truncate(page.trim_end().len());
    page + "\n"
}

/// A table with a line for each key, and then the tables in it.
fn section(page: &mut String, path: &str, table: &Inner, reload: Reload) {
    let title = match (path, table.many) {
        ("", _) => "At the top of the file".to_owned(),
        (path, Many::One) => format!("`[{path}]`"),
        (path, Many::Named) => format!("`[{path}.NAME]`"),
        (path, Many::Listed) => format!("`[[{path}]]`"),
    };
    let _ = write!(page, "## {title}\n\n{}\n\n", table.doc);
    page.push_str("| Key | Value | Default | Takes effect | |\n|---|---|---|---|---|\n");
    if let Some(default) = table.enabled {
        line(page, "enabled", "true or false", &Literal::Flag(default).words(), reload, ENABLED);
    }
    for key in &table.keys {
        let default = match (key.is_needed, key.about.inner.is_some()) {
            (true, true) => "needed, see below".into(),
            (true, false) => "needed, such as ".to_owned() + &key.example.words(),
            (false, true) => match key.default {
                Literal::Nothing => "see below".into(),
                default => format!("{}; see below", default.words()),
            },
            (false, false) => key.default.words(),
        };
        let hidden = match key.about.kind {
            Kind::Sensitive | Kind::Secret => format!("{} It is [not shown](secrets.md).", key.doc),
            Kind::Plain | Kind::Location | Kind::File | Kind::Table => key.doc.to_owned(),
        };
        line(page, key.name, &key.about.form, &default, key.reload, &hidden);
    }
    page.push('\n');
    for key in &table.keys {
        let path = if table.many == Many::Named { format!("{path}.NAME") } else { path.to_owned() };
        let below = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
        if let Some(inner) = &key.about.inner {
            section(page, &below, inner, key.reload);
        }
    }
}

fn line(page: &mut String, key: &str, form: &str, default: &str, reload: Reload, doc: &str) {
    let doc = doc.replace('|', "\\|");
    let _ = writeln!(page, "| `{key}` | {form} | {default} | {} | {doc} |", reload.as_str());
}

#[cfg(test)]
mod tests {
    use super::super::keys;
    use super::super::table::Key;
    use super::*;

    /// The keys that a schema knows, named as [`keys`] names them.
    fn collect(path: &str, schema: &Value, found: &mut Vec<String>) {
        if let Some(properties) = schema["properties"].as_object() {
            for (name, schema) in properties {
                let path = keys::join(path, name);
                collect(&path, schema, found);
                found.push(path);
            }
        }
        if schema["items"].is_object() {
            let path = format!("{path}[]");
            collect(&path, &schema["items"], found);
            found.push(path);
        }
        if schema["additionalProperties"].is_object() {
            let path = format!("{path}.*");
            collect(&path, &schema["additionalProperties"], found);
            found.push(path);
        }
        for schema in schema["anyOf"].as_array().into_iter().flatten() {
            collect(path, schema, found);
        }
    }

    #[test]
    fn the_schema_has_every_key_and_no_other() {
        let mut found = Vec::new();
        collect("", &schema(), &mut found);
        found.sort();
        found.dedup();
        let mut known: Vec<_> = keys::all().keys().filter(|key| !key.is_empty()).cloned().collect();
        known.sort();
        assert_eq!(found, known);
    }

    #[test]
    fn every_key_has_a_sentence_without_links_of_rustdoc() {
        fn look(path: &str, table: &Inner) {
            assert!(!table.doc.is_empty(), "{path}");
            for Key { name, doc, about, .. } in &table.keys {
                assert!(doc.ends_with('.') && !doc.contains("[`") && !doc.contains("Self::"), "{path}.{name}: {doc}");
                if let Some(inner) = &about.inner {
                    look(&format!("{path}.{name}"), inner);
                }
            }
        }
        look("", &whole());
    }
}
