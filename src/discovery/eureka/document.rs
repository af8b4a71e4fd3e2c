//! What Eureka servers send, in JSON and in XML.
//!
//! The two are one form: an element of XML is an object whose attributes are `@NAME` and whose text is `$`. Both are read leniently, as
//! servers and those that are like them differ: one member of a list may stand without the list, and numbers may be texts.

use std::collections::BTreeMap;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use serde_json::{Map, Value};

/// Elements within elements. Eureka has six.
const DEPTH_MAX: usize = 16;

/// The applications that an answer tells of.
#[derive(Debug, Default)]
pub(super) struct Applications {
    /// How many instances there are of each state, as the server has them.
    pub(super) hash_code: String,
    pub(super) instances: Vec<EurekaInstance>,
}

/// An instance of an application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EurekaInstance {
    /// The application's name in capitals.
    pub(super) application: String,
    pub(super) id: String,
    pub(super) host_name: String,
    /// Empty where it is not told.
    pub(super) ip: String,
    /// Where it is enabled.
    pub(super) port: Option<u32>,
    /// Where it is enabled.
    pub(super) secure_port: Option<u32>,
    pub(super) state: State,
    pub(super) metadata: BTreeMap<String, String>,
    /// The availability zone that Amazon has it in.
    pub(super) zone: Option<String>,
    /// Whether a delta says that it is gone.
    pub(super) is_deleted: bool,
}

/// What an instance says of itself, or an operator of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It takes requests.
    Up,
    /// `DOWN`, `STARTING`, `OUT_OF_SERVICE`, `UNKNOWN`, or what a later version has.
    Other(Box<str>),
}

impl State {
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Up => "UP",
            Self::Other(state) => state,
        }
    }
}

impl Applications {
    /// Reads an answer.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(body: &[u8], is_xml: bool) -> Result<Self, String> {
        let root = match is_xml {
            true => xml(body).map_err(|error| format!("its answer is no XML: {error}"))?,
            false => serde_json::from_slice(body).map_err(|error| format!("its answer is no JSON: {error}"))?,
        };
        let all = root.get("applications").ok_or("its answer has no applications: this is not Eureka's API")?;
        let mut read = Self { hash_code: text(all.get("apps__hashcode")).unwrap_or_default(), instances: Vec::new() };
        for application in many(all.get("application")) {
            let name = text(application.get("name")).unwrap_or_default();
            read.instances.extend(many(application.get("instance")).filter_map(|one| EurekaInstance::of(one, &name)));
        }
        Ok(read)
    }
}

impl EurekaInstance {
    /// `None` of what has neither an ID nor a host.
    fn of(value: &Value, application: &str) -> Option<Self> {
        let get = |key: &str| text(value.get(key)).unwrap_or_default();
        let (host_name, ip) = (get("hostName"), get("ipAddr"));
        // Before Eureka 1.3 an instance was known by its host.
        let id = Some(get("instanceId")).filter(|id| !id.is_empty()).unwrap_or_else(|| host_name.clone());
        let state = match get("status").as_str() {
            "UP" => State::Up,
            "" => State::Other("UNKNOWN".into()),
            other => State::Other(other.into()),
        };
        let metadata = value.get("metadata").and_then(Value::as_object).into_iter().flatten();
        let of_datacenter = value.get("dataCenterInfo").and_then(|it| it.get("metadata"));
        (!id.is_empty()).then(|| Self {
            application: application.to_uppercase(),
            id,
            host_name,
            ip,
            port: port(value.get("port")),
            secure_port: port(value.get("securePort")),
            state,
            // The class of an empty map, and attributes of XML.
            metadata: (metadata.filter(|(name, _)| !name.starts_with(['@', '$'])))
                .filter_map(|(name, value)| Some((name.clone(), text(Some(value))?)))
                .collect(),
            zone: of_datacenter.and_then(|it| text(it.get("availability-zone"))).filter(|zone| !zone.is_empty()),
            is_deleted: get("actionType") == "DELETED",
        })
    }
}

/// A port, where it is enabled: `{"$": 8080, "@enabled": "true"}`.
fn port(value: Option<&Value>) -> Option<u32> {
    let value = value?;
    if text(value.get("@enabled")).is_some_and(|enabled| enabled != "true") {
        return None;
    }
    text(value.get("$").or(Some(value)))?.parse().ok()
}

fn text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => value.map(Value::to_string),
        // An empty element.
        Value::Object(object) => match object.get("$") {
            Some(text) => text.as_str().map(str::to_owned),
            None => Some(String::new()),
        },
        Value::Null | Value::Array(_) => None,
    }
}

/// The members of a list, which may be one that stands without it.
fn many(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    let (list, one) = match value {
        Some(Value::Array(list)) => (list.as_slice(), None),
        Some(Value::Null) | None => (&[][..], None),
        one => (&[][..], one),
    };
    list.iter().chain(one)
}

/// A document of XML as a value of JSON.
fn xml(body: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
    let mut reader = Reader::from_str(text);
    // The document, and the elements that are open.
    let mut open = vec![(String::new(), Map::new())];
    loop {
        match reader.read_event().map_err(|error| error.to_string())? {
            Event::Start(start) => {
                if open.len() > DEPTH_MAX {
                    return Err(format!("elements stand in more than {DEPTH_MAX} others"));
                }
                open.push(element(&start)?);
            }
            Event::Empty(start) => {
                let (name, object) = element(&start)?;
                close(&mut open, name, object);
            }
            Event::End(_) => {
                // The reader has seen that it is the one that was opened.
                let Some((name, object)) = open.pop().filter(|_| !open.is_empty()) else {
                    return Err("an element ends that has not begun".into());
                };
                close(&mut open, name, object);
            }
            Event::Text(piece) => add_text(&mut open, &piece),
            Event::CData(piece) => add_text(&mut open, &piece),
            Event::GeneralRef(reference) => {
                let character = match reference.resolve_char_ref().map_err(|error| error.to_string())? {
                    Some(character) => character.to_string(),
                    None => match &*reference {
                        "lt" => "<".into(),
                        "gt" => ">".into(),
                        "amp" => "&".into(),
                        "apos" => "'".into(),
                        "quot" => "\"".into(),
                        other => return Err(format!("there is no entity {other:?}")),
                    },
                };
                add_text(&mut open, &character);
            }
            Event::Decl(_) | Event::PI(_) | Event::DocType(_) | Event::Comment(_) => {}
            Event::Eof => break,
        }
    }
    match open.pop() {
        Some((_, root)) if open.is_empty() => Ok(Value::Object(root)),
        _ => Err("it ends within an element".into()),
    }
}

fn element(start: &BytesStart<'_>) -> Result<(String, Map<String, Value>), String> {
    let name = start.local_name().as_ref().to_owned();
    let mut object = Map::new();
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|error| error.to_string())?;
        let key = attribute.key.local_name();
        object.insert(format!("@{}", key.as_ref()), attribute.value.into_owned().into());
    }
    Ok((name, object))
}

fn add_text(open: &mut [(String, Map<String, Value>)], piece: &str) {
    let Some((_, object)) = open.last_mut() else { return };
    match object.get_mut("$") {
        Some(Value::String(text)) => text.push_str(piece),
        _ => drop(object.insert("$".into(), piece.into())),
    }
}

/// Puts an element that has ended into the one around it: as a text if it is nothing else, as a list with those of the same name.
fn close(open: &mut [(String, Map<String, Value>)], name: String, mut object: Map<String, Value>) {
    let Some((_, parent)) = open.last_mut() else { return };
    let text = object.remove("$").and_then(|text| text.as_str().map(|text| text.trim().to_owned()));
    let value = match text {
        Some(text) if object.is_empty() => text.into(),
        None if object.is_empty() => "".into(),
        text => {
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                object.insert("$".into(), text.into());
            }
            Value::Object(object)
        }
    };
    match parent.get_mut(&name) {
        Some(Value::Array(list)) => list.push(value),
        Some(other) => {
            let first = other.take();
            *other = Value::Array(vec![first, value]);
        }
        None => drop(parent.insert(name, value)),
    }
}
