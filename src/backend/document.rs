//! Backends as documents say them: isobar's own form in JSON or TOML, and Prometheus's in JSON.
//!
//! ```json
//! {"backends": ["10.0.0.1:9001", {"address": "10.0.0.2:9001", "weight": 3, "zone": "eu-1a", "labels": {"version": "2"}}]}
//! [{"targets": ["10.0.0.1:9001"], "labels": {"zone": "eu-1a"}}]
//! ```
//!
//! An entry that makes no sense is left out, with a word on it; a document that is no list of backends is an error.

use std::fmt;

use rustls::pki_types::ServerName;
use serde_json::{Map, Value, json};

use super::{BackendSet, Instance};
use crate::config::{Address, BackendLimits, BackendPlacement, Tier, nearest};

/// What a document says.
#[derive(Debug, Default)]
pub struct Document {
    /// The backends.
    pub instances: Vec<Instance>,
    /// What is wrong with entries that were left out, a word on each.
    pub refused: Vec<String>,
}

/// A text that lists no backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoDocument(String);

impl fmt::Display for NoDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoDocument {}

/// Labels of a backend at most, and bytes of one: they are shown, and kept as long as the backend.
const LABELS_MAX: usize = 64;
const LABEL_BYTES_MAX: usize = 1024;

impl Document {
    /// Reads JSON, of either form. `zone_label` is the label that says where a backend is, if nothing else does.
    ///
    /// # Errors
    /// When it is no JSON, or lists no backends.
    pub fn of_json(bytes: &[u8], zone_label: &str) -> Result<Self, NoDocument> {
        let value = serde_json::from_slice(bytes).map_err(|error| NoDocument(format!("not JSON: {error}")))?;
        Self::of_value(value, zone_label)
    }

    /// Reads TOML.
    ///
    /// # Errors
    /// When it is no TOML, or lists no backends.
    pub fn of_toml(bytes: &[u8], zone_label: &str) -> Result<Self, NoDocument> {
        let text = std::str::from_utf8(bytes).map_err(|_| NoDocument("not UTF-8".into()))?;
        let value = toml::from_str(text).map_err(|error| NoDocument(format!("not TOML: {}", error.message())))?;
        Self::of_value(value, zone_label)
    }

    /// What a piece of JSON says.
    ///
    /// # Errors
    /// When it lists no backends.
    pub fn of_value(value: Value, zone_label: &str) -> Result<Self, NoDocument> {
        let mut document = Self::default();
        match value {
            Value::Object(mut table) => {
                let Some(Value::Array(entries)) = table.remove("backends") else {
                    return Err(NoDocument("it has no list of backends".into()));
                };
                if let Some(key) = table.keys().find(|key| !key.starts_with('$')) {
                    return Err(NoDocument(format!("unknown key {key:?} beside backends")));
                }
                for (index, entry) in entries.into_iter().enumerate() {
                    document.take(index, instance(entry), zone_label);
                }
            }
            Value::Array(groups) => {
                for (index, group) in groups.into_iter().enumerate() {
                    document.group(index, group, zone_label);
                }
            }
            _ => return Err(NoDocument("it is no list of backends".into())),
        }
        Ok(document)
    }

    fn take(&mut self, index: usize, entry: Result<Instance, String>, zone_label: &str) {
        match entry {
            Ok(mut instance) => {
                let zone = instance.labels.get(zone_label);
                instance.place.zone = instance.place.zone.or_else(|| zone.cloned());
                self.instances.push(instance);
            }
            Err(what) => self.refused.push(format!("entry {}: {what}", index + 1)),
        }
    }

    /// A group of targets, as Prometheus has it.
    fn group(&mut self, index: usize, group: Value, zone_label: &str) {
        let Value::Object(mut group) = group else {
            return self.refused.push(format!("entry {}: not {{\"targets\": [..]}}", index + 1));
        };
        let labels = group.remove("labels").unwrap_or(Value::Object(Map::new()));
        let Some(Value::Array(targets)) = group.remove("targets") else {
            return self.refused.push(format!("entry {}: it has no targets", index + 1));
        };
        for target in targets {
            let entry = address(&target).and_then(|address| {
                let mut instance = Instance::new(address);
                add_labels(&mut instance, &labels)?;
                Ok(instance)
            });
            self.take(index, entry, zone_label);
        }
    }
}

fn address(value: &Value) -> Result<Address, String> {
    let Value::String(text) = value else { return Err(format!("{} is not an address with a port", shown(value))) };
    text.parse().map_err(|_| format!("{} is not an address with a port", shown(value)))
}

/// The keys of an entry.
const KEYS: [&str; 9] =
    ["address", "weight", "priority", "backup", "zone", "server_name", "max_in_flight", "max_connections", "labels"];

/// What an entry says, a text or a table.
///
/// # Errors
/// When it makes no sense.
pub fn instance(entry: Value) -> Result<Instance, String> {
    let table = match entry {
        Value::Object(table) => table,
        text => return address(&text).map(Instance::new),
    };
    let mut instance = Instance::new(address(table.get("address").ok_or("it has no address")?)?);
    let of = instance.address.to_string();
    let mut limits = BackendLimits::default();
    for (key, value) in &table {
        let wrong = || format!("{of}: {key} cannot be {}", shown(value));
        match key.as_str() {
            "address" => {}
            "weight" => instance.weight = number(value, 0..=65_535).ok_or_else(wrong)?,
            "priority" if instance.place.tier != Tier::Backup => {
                instance.place.tier = Tier::Priority(number(value, 0..=100).ok_or_else(wrong)?);
            }
            "priority" => {}
            "backup" => {
                if value.as_bool().ok_or_else(wrong)? {
                    instance.place.tier = Tier::Backup;
                }
            }
            "zone" => instance.place.zone = Some(value.as_str().filter(|it| is_word(it)).ok_or_else(wrong)?.into()),
            "server_name" => {
                let name = value.as_str().and_then(|name| ServerName::try_from(name.to_owned()).ok());
                instance.server_name = Some(name.ok_or_else(wrong)?);
            }
            "max_in_flight" => limits.max_in_flight = Some(number(value, 1..=1_000_000).ok_or_else(wrong)?),
            "max_connections" => limits.max_connections = Some(number(value, 1..=1_000_000).ok_or_else(wrong)?),
            "labels" => add_labels(&mut instance, value).map_err(|what| format!("{of}: {what}"))?,
            key => {
                let meant = nearest(key, &KEYS).map_or_else(String::new, |meant| format!("; did you mean {meant:?}?"));
                return Err(format!("{of}: unknown key {key:?}{meant}"));
            }
        }
    }
    instance.limits = (limits != BackendLimits::default()).then_some(limits);
    Ok(instance)
}

fn number<N: TryFrom<u64>>(value: &Value, range: std::ops::RangeInclusive<u64>) -> Option<N> {
    value.as_u64().filter(|number| range.contains(number)).and_then(|number| N::try_from(number).ok())
}

/// Whether a text may be shown as it is, and in metrics.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.len() <= 128 && !text.chars().any(char::is_control)
}

fn add_labels(instance: &mut Instance, labels: &Value) -> Result<(), String> {
    let Value::Object(labels) = labels else { return Err("labels are no table of texts".into()) };
    for (name, value) in labels {
        let value = match value {
            Value::String(text) => text.clone(),
            Value::Bool(_) | Value::Number(_) => value.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => return Err(format!("label {name:?} is no text")),
        };
        label(instance, name, &value)?;
    }
    Ok(())
}

/// Adds a label, unless there is one of that name.
///
/// # Errors
/// When there are too many, or it is too long.
pub fn label(instance: &mut Instance, name: &str, value: &str) -> Result<(), String> {
    if name.len() + value.len() > LABEL_BYTES_MAX {
        return Err(format!("label {} is longer than {LABEL_BYTES_MAX} bytes", shown(&name.into())));
    }
    if instance.labels.len() >= LABELS_MAX {
        return Err(format!("more than {LABELS_MAX} labels"));
    }
    instance.labels.entry(name.into()).or_insert_with(|| value.into());
    Ok(())
}

/// A value in a problem: not all of it where it is long.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        None => text,
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}

/// A set in isobar's own form.
pub fn to_json(set: &BackendSet) -> Value {
    json!({ "backends": set.iter().map(|it| entry(it)).collect::<Vec<_>>() })
}

fn entry(instance: &Instance) -> Value {
    let Instance { address, weight, place: BackendPlacement { tier, zone }, limits, server_name, labels } = instance;
    let mut entry = Map::new();
    entry.insert("address".into(), address.to_string().into());
    entry.insert("weight".into(), (*weight).into());
    match tier {
        Tier::Priority(0) => {}
        Tier::Priority(priority) => drop(entry.insert("priority".into(), (*priority).into())),
        Tier::Backup => drop(entry.insert("backup".into(), true.into())),
    }
    if let Some(zone) = zone {
        entry.insert("zone".into(), (**zone).into());
    }
    if let Some(name) = server_name {
        entry.insert("server_name".into(), name.to_str().into());
    }
    let limits = limits.unwrap_or_default();
    for (key, limit) in [("max_in_flight", limits.max_in_flight), ("max_connections", limits.max_connections)] {
        if let Some(limit) = limit {
            entry.insert(key.into(), limit.into());
        }
    }
    if !labels.is_empty() {
        let labels = labels.iter().map(|(name, value)| (name.to_string(), Value::from(&**value)));
        entry.insert("labels".into(), Value::Object(labels.collect()));
    }
    Value::Object(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Document {
        Document::of_json(text.as_bytes(), "zone").unwrap()
    }

    #[test]
    fn both_forms_and_both_languages_say_the_same() {
        let own = json(
            r#"{"backends": ["10.0.0.1:1", {"address": "10.0.0.2:1", "labels": {"zone": "a", "n": 2}}, "users.internal:1"]}"#,
        );
        let toml = "backends = [\"10.0.0.1:1\", { address = \"10.0.0.2:1\", labels = { zone = \"a\", n = 2 } }, \"users.internal:1\"]";
        let toml = Document::of_toml(toml.as_bytes(), "zone").unwrap();
        let prometheus = json(
            r#"[{"targets": ["10.0.0.1:1"]}, {"targets": ["10.0.0.2:1"], "labels": {"zone": "a", "n": "2"}},
                {"targets": ["users.internal:1"], "labels": {}}]"#,
        );
        for document in [&own, &toml, &prometheus] {
            assert_eq!(document.instances, own.instances);
            assert_eq!(document.refused, [""; 0]);
        }
        assert_eq!(own.instances[1].place.zone.as_deref(), Some("a"));
        assert_eq!(own.instances[1].labels["n"].as_ref(), "2");
    }

    #[test]
    fn a_bad_entry_costs_itself_alone_and_is_told() {
        let document = json(
            r#"{"backends": ["10.0.0.1:1", "10.0.0.2", 7, {"address": "10.0.0.3:1", "weight": 65536}, {"weight": 1},
                {"address": "10.0.0.4:1", "wieght": 2}, {"address": "10.0.0.5:1", "labels": {"a": []}}, "10.0.0.6:1"]}"#,
        );
        let addresses: Vec<_> = document.instances.iter().map(|it| it.address.to_string()).collect();
        assert_eq!(addresses, ["10.0.0.1:1", "10.0.0.6:1"]);
        assert_eq!(
            document.refused,
            [
                "entry 2: \"10.0.0.2\" is not an address with a port",
                "entry 3: 7 is not an address with a port",
                "entry 4: 10.0.0.3:1: weight cannot be 65536",
                "entry 5: it has no address",
                "entry 6: 10.0.0.4:1: unknown key \"wieght\"; did you mean \"weight\"?",
                "entry 7: 10.0.0.5:1: label \"a\" is no text",
            ]
        );
        assert_eq!(json(r#"[{"labels": {}}, 5, {"targets": ["a"]}]"#).refused.len(), 3);
    }

    #[test]
    fn what_is_no_list_is_an_error() {
        for text in
            ["", "<html>", "null", "\"10.0.0.1:1\"", "{}", "{\"backends\": {}}", "{\"backends\": [], \"more\": 1}"]
        {
            assert!(Document::of_json(text.as_bytes(), "zone").is_err(), "{text}");
        }
        let deep = "[".repeat(100_000);
        assert!(Document::of_json(deep.as_bytes(), "zone").is_err());
        assert!(Document::of_toml(b"backends = 5", "zone").is_err());
        assert!(Document::of_toml(b"\xff", "zone").is_err());
    }

    #[test]
    fn a_set_is_written_as_it_is_read() {
        let text = r#"{"backends": [{"address": "10.0.0.1:1", "weight": 0, "priority": 3, "zone": "a", "server_name": "u.internal",
            "max_in_flight": 5, "max_connections": 6, "labels": {"v": "2"}}, {"address": "10.0.0.2:1", "backup": true}]}"#;
        let set = BackendSet::new(json(text).instances);
        let written = to_json(&set).to_string();
        assert_eq!(BackendSet::new(json(&written).instances), set);
    }
}
