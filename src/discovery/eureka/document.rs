//! What Eureka servers send, in JSON and in XML.
//!
//! The two are one form (`eureka_xml`). Both are read leniently, as servers and those that are like them differ: one member of a list may stand
//! without the list, and numbers may be texts.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::eureka_xml;

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
            true => eureka_xml::read(body).map_err(|error| format!("its answer is no XML: {error}"))?,
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
