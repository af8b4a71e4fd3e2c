//! The EndpointSlices of a Service, and the backends that they are together.
//!
//! A Service has as many slices as its endpoints need, of one family of addresses each. An endpoint that moves from one slice to another is in
//! both for a moment. What the conditions of an endpoint mean is decided here:
//!
//! | ready | serving | terminating | |
//! |---|---|---|---|
//! | yes, or not said | | | a backend |
//! | no | yes, or not said | yes | drains: weight 0, unless no endpoint of the Service is ready |
//! | no | | | no backend |

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::message::{Metadata, version};
use crate::backend::document::label;
use crate::backend::{BackendSet, Instance};
use crate::config::{Address, KubernetesConfig, ServicePort};
use crate::discovery::{Answer, DiscoveryError};

/// The label by which a slice belongs to its Service.
pub(super) const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// All slices of a Service.
#[derive(Debug)]
pub(super) struct Slices {
    wanted: Wanted,
    by_name: BTreeMap<String, Slice>,
    /// Bytes of all, as they came.
    bytes: usize,
    bytes_max: usize,
}

/// What of slices counts.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    service: Arc<str>,
    port: Option<ServicePort>,
    zone_hints: bool,
    prefer_ipv6: bool,
}

#[derive(Debug, Default)]
struct Slice {
    bytes: usize,
    endpoints: Vec<Endpoint>,
    /// What is wrong with it, or with some of its endpoints.
    refused: Vec<String>,
}

#[derive(Clone, Debug)]
struct Endpoint {
    instance: Instance,
    condition: Condition,
    /// The pod that it is, by what identifies it, where it is one.
    pod: Option<Arc<str>>,
    /// The zones that it is meant for.
    meant_for: Vec<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Ready,
    Draining,
}

impl Wanted {
    pub(super) fn of(config: &KubernetesConfig) -> Self {
        let KubernetesConfig { service, port, zone_hints, prefer_ipv6, .. } = config;
        Self { service: Arc::clone(service), port: port.clone(), zone_hints: *zone_hints, prefer_ipv6: *prefer_ipv6 }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSlice {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    address_type: String,
    endpoints: Option<Vec<Value>>,
    ports: Option<Vec<RawPort>>,
}

#[derive(Deserialize)]
struct RawPort {
    name: Option<String>,
    port: Option<u16>,
    protocol: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEndpoint {
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Option<Conditions>,
    target_ref: Option<TargetRef>,
    node_name: Option<String>,
    zone: Option<String>,
    hints: Option<Hints>,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize)]
struct TargetRef {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    uid: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hints {
    for_zones: Option<Vec<ForZone>>,
}

#[derive(Deserialize)]
struct ForZone {
    name: String,
}

impl Slices {
    pub(super) fn new(wanted: Wanted, bytes_max: usize) -> Self {
        Self { wanted, by_name: BTreeMap::new(), bytes: 0, bytes_max }
    }

    /// Nothing yet, by the same rules.
    pub(super) fn emptied(&self) -> Self {
        Self::new(self.wanted.clone(), self.bytes_max)
    }

    /// Takes in slices of a list that is `bytes` long, in the place of nothing.
    pub(super) fn add(&mut self, items: Vec<Value>, bytes: usize) -> Result<(), DiscoveryError> {
        let each = bytes / items.len().max(1);
        for item in items {
            self.put(item, each)?;
        }
        Ok(())
    }

    /// Takes in a slice as it is now, which came as so many bytes. Says the version that it is of.
    pub(super) fn put(&mut self, item: Value, bytes: usize) -> Result<String, DiscoveryError> {
        let (name, version) = named(&item)?;
        self.remove(&name);
        if let Some(slice) = self.read(item, &name, bytes) {
            self.bytes += bytes;
            self.by_name.insert(name, slice);
        }
        match self.bytes > self.bytes_max {
            true => Err(DiscoveryError::new(format!("its EndpointSlices have more than {} bytes", self.bytes_max))),
            false => Ok(version),
        }
    }

    /// Leaves out a slice that is gone. Says the version that it is gone with.
    pub(super) fn take_out(&mut self, item: &Value) -> Result<String, DiscoveryError> {
        let (name, version) = named(item)?;
        self.remove(&name);
        Ok(version)
    }

    fn remove(&mut self, name: &str) {
        if let Some(Slice { bytes, .. }) = self.by_name.remove(name) {
            self.bytes -= bytes;
        }
    }

    /// What a slice says; `None` of one of another Service.
    fn read(&self, item: Value, name: &str, bytes: usize) -> Option<Slice> {
        let refused =
            |what: String| Some(Slice { bytes, refused: vec![format!("{name}: {what}")], ..Slice::default() });
        let raw = match RawSlice::deserialize(item) {
            Ok(raw) => raw,
            Err(error) => return refused(error.to_string()),
        };
        let service = raw.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL)).and_then(Value::as_str);
        if service != Some(&*self.wanted.service) {
            return None;
        }
        let entries = raw.endpoints.unwrap_or_default();
        match raw.address_type.as_str() {
            "IPv4" | "IPv6" => {}
            "FQDN" => return refused("its addresses are names (FQDN), which belong into `backends`".into()),
            other => return refused(format!("addresses of the type {:?}", short(other))),
        }
        // One without endpoints has no ports either.
        if entries.is_empty() {
            return Some(Slice { bytes, ..Slice::default() });
        }
        let port = match port(self.wanted.port.as_ref(), raw.ports.as_deref().unwrap_or_default()) {
            Ok(port) => port,
            Err(what) => return refused(what),
        };
        let mut slice = Slice { bytes, ..Slice::default() };
        for (number, entry) in (1..).zip(entries) {
            match endpoint(entry, port) {
                Ok(endpoint) => slice.endpoints.extend(endpoint),
                Err(what) => slice.refused.push(format!("{name}: endpoint {number}: {what}")),
            }
        }
        Some(slice)
    }

    /// What all of them say together. `revision` is the version of the store that they are of.
    pub(super) fn answer(&self, revision: Option<&str>) -> Answer {
        let mut endpoints = self.of_both_families(self.by_address());
        let none_is_ready = endpoints.iter().all(|it| it.condition == Condition::Draining);
        let mut ready = endpoints.iter().filter(|it| it.condition == Condition::Ready);
        // Some that have no hint would be left alone by all.
        let by_hints = self.wanted.zone_hints && ready.all(|it| !it.meant_for.is_empty());
        for endpoint in &mut endpoints {
            let is_draining = endpoint.condition == Condition::Draining;
            endpoint.instance.weight = u16::from(!is_draining || none_is_ready);
            if is_draining {
                let _ = label(&mut endpoint.instance, "terminating", "true");
            }
            let zone = &mut endpoint.instance.place.zone;
            let is_meant_for_its_own = zone.as_ref().is_some_and(|zone| endpoint.meant_for.contains(zone));
            if let (true, false, Some(first)) = (by_hints, is_meant_for_its_own, endpoint.meant_for.first()) {
                *zone = Some(Arc::clone(first));
            }
        }
        Answer {
            set: BackendSet::new(endpoints.into_iter().map(|it| it.instance)),
            refused: self.by_name.values().flat_map(|slice| slice.refused.iter().cloned()).collect(),
            revision: revision.map(Into::into),
            hold: None,
        }
    }

    /// Each address once, also where an endpoint is in two slices as it moves from one to the other.
    fn by_address(&self) -> Vec<Endpoint> {
        let mut by_address: BTreeMap<&Address, &Endpoint> = BTreeMap::new();
        for endpoint in self.by_name.values().flat_map(|slice| &slice.endpoints) {
            let known = by_address.entry(&endpoint.instance.address).or_insert(endpoint);
            // A pod that terminates does so for good, but its address may be another pod's by now.
            let wins = match (known.pod.is_some() && known.pod == endpoint.pod, endpoint.condition) {
                (true, Condition::Draining) | (false, Condition::Ready) => known.condition != endpoint.condition,
                (true, Condition::Ready) | (false, Condition::Draining) => false,
            };
            if wins {
                *known = endpoint;
            }
        }
        by_address.into_values().cloned().collect()
    }

    /// A pod with addresses of both families once.
    fn of_both_families(&self, mut endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
        let is_preferred = |it: &Endpoint| match &it.instance.address {
            Address::Ip(address) => address.is_ipv6() == self.wanted.prefer_ipv6,
            _ => true,
        };
        let pods: HashSet<_> = endpoints.iter().filter(|it| is_preferred(it)).filter_map(|it| it.pod.clone()).collect();
        endpoints.retain(|it| is_preferred(it) || it.pod.as_ref().is_none_or(|pod| !pods.contains(pod)));
        endpoints
    }
}

/// The name and the version of a slice. Without them nothing is to be made of it.
fn named(item: &Value) -> Result<(String, String), DiscoveryError> {
    let of_metadata = |key: &str| item.get("metadata").and_then(|it| it.get(key)).and_then(Value::as_str);
    let name = of_metadata("name").unwrap_or_default();
    let (name, is_name) = (name.to_owned(), (1..=253).contains(&name.len()));
    let version = version(of_metadata("resourceVersion").unwrap_or_default().to_owned())?;
    match is_name {
        true => Ok((name, version)),
        false => Err(DiscoveryError::new("an EndpointSlice has no name: this is not Kubernetes' API")),
    }
}

/// The port of a slice that is wanted.
fn port(wanted: Option<&ServicePort>, ports: &[RawPort]) -> Result<u16, String> {
    let is_tcp = |port: &&RawPort| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    let tcp: Vec<_> =
        ports.iter().filter(is_tcp).filter_map(|it| Some((it.name.as_deref().unwrap_or(""), it.port?))).collect();
    let found = match wanted {
        Some(ServicePort::Name(name)) => tcp.iter().find(|(it, _)| *it == &**name),
        Some(ServicePort::Number(number)) => tcp.iter().find(|(_, it)| it == number),
        None => tcp.first().filter(|_| tcp.len() == 1),
    };
    // A slice that says of no port, or of none by its number, says that any will do.
    let any_will_do = tcp.is_empty() && ports.iter().all(|it| it.port.is_none());
    match (found, wanted) {
        (Some((_, number)), _) if *number > 0 => Ok(*number),
        (None, Some(ServicePort::Number(number))) if any_will_do => Ok(*number),
        _ => {
            let shown = |(name, number): &(&str, u16)| match *name {
                "" => number.to_string(),
                name => format!("{} ({number})", short(name)),
            };
            let has = match tcp.len() {
                0 => "it has none for TCP".into(),
                _ => format!("it has {}", tcp.iter().take(8).map(shown).collect::<Vec<_>>().join(", ")),
            };
            Err(match wanted {
                Some(wanted) => format!("no port {wanted}: {has}"),
                None => format!("`port` is needed: {has}"),
            })
        }
    }
}

/// What an endpoint is; `None` where it is not to be used.
fn endpoint(entry: Value, port: u16) -> Result<Option<Endpoint>, String> {
    let raw = RawEndpoint::deserialize(entry).map_err(|error| error.to_string())?;
    let Conditions { ready, serving, terminating } = raw.conditions.unwrap_or_default();
    // What is not said of them is to be taken for ready, serving and not terminating.
    let condition = match (ready.unwrap_or(true), serving.unwrap_or(true), terminating.unwrap_or(false)) {
        (true, _, _) => Condition::Ready,
        (false, true, true) => Condition::Draining,
        (false, _, _) => return Ok(None),
    };
    // Further addresses have no meaning.
    let address = raw.addresses.first().ok_or("it has no address")?;
    let ip: IpAddr = address.parse().map_err(|_| format!("{:?} is not an IP address", short(address)))?;
    let mut instance = Instance::new(Address::Ip((ip, port).into()));
    let is_pod = |it: &&TargetRef| it.kind == "Pod";
    let pod = raw.target_ref.as_ref().filter(is_pod);
    let its_zone = raw.zone.as_deref().and_then(zone);
    let zones = raw.hints.and_then(|hints| hints.for_zones).unwrap_or_default();
    // More are never there.
    let meant_for: Vec<Arc<str>> = zones.iter().take(8).filter_map(|it| zone(&it.name)).collect();
    let hinted = meant_for.join(",");
    let labels = [
        ("pod", pod.map(|pod| &*pod.name)),
        ("node", raw.node_name.as_deref()),
        ("zone", its_zone.as_deref()),
        ("hint_zones", Some(&*hinted)),
    ];
    for (name, value) in labels {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            label(&mut instance, name, value)?;
        }
    }
    instance.place.zone = its_zone;
    let pod = pod.filter(|pod| !pod.uid.is_empty()).map(|pod| pod.uid.as_str().into());
    Ok(Some(Endpoint { instance, condition, pod, meant_for }))
}

/// A zone that can be one.
fn zone(text: &str) -> Option<Arc<str>> {
    ((1..=128).contains(&text.len()) && !text.chars().any(char::is_control)).then(|| text.into())
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}
