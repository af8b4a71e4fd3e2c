//! Instances, services and the node as Consul's API shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde_json::{Map, Value, json};

use crate::config::RegistryConfig;
use crate::registry::ask::Ask;
use crate::registry::catalog::Catalog;
use crate::registry::instance::{CheckKind, CheckSpec, Instance, ProbeTarget, Status, Weights};

/// The version of the API that the answers are like.
const VERSION: &str = "1.8.0";

/// Node of all services, whose number is the same everywhere: there is one.
const NODE_ID: &str = "150ba400-0000-4000-8000-000000000001";

/// What is the same in all answers.
pub(super) struct Shown<'a> {
    config: &'a RegistryConfig,
    address: SocketAddr,
}

impl<'a> Shown<'a> {
    pub(super) fn of(ask: &'a Ask<'_>) -> Self {
        Self { config: &ask.config, address: ask.address }
    }

    pub(super) fn leader(&self) -> String {
        self.address.to_string()
    }

    pub(super) fn agent(&self) -> Value {
        json!({
            "Config": {
                "Datacenter": &*self.config.datacenter,
                "PrimaryDatacenter": &*self.config.datacenter,
                "NodeName": &*self.config.node,
                "NodeID": NODE_ID,
                "Revision": concat!("isobar-", env!("CARGO_PKG_VERSION")),
                "Server": true,
                "Version": VERSION,
            },
            "DebugConfig": {},
            "Coord": { "Vec": [0, 0, 0, 0, 0, 0, 0, 0], "Error": 0, "Adjustment": 0, "Height": 0 },
            "Member": self.member(),
            "Stats": {},
            "Meta": {},
        })
    }

    pub(super) fn member(&self) -> Value {
        json!({
            "Name": &*self.config.node,
            "Addr": self.address.ip().to_string(),
            "Port": self.address.port(),
            "Tags": { "dc": &*self.config.datacenter, "role": "consul", "build": VERSION },
            "Status": 1,
            "ProtocolMin": 1, "ProtocolMax": 2, "ProtocolCur": 2, "DelegateMin": 2, "DelegateMax": 5, "DelegateCur": 4,
        })
    }

    fn node(&self, index: u64) -> Map<String, Value> {
        let ip = self.address.ip().to_string();
        let mut node = Map::new();
        node.insert("ID".into(), NODE_ID.into());
        node.insert("Node".into(), (*self.config.node).into());
        node.insert("Address".into(), ip.as_str().into());
        node.insert("Datacenter".into(), (*self.config.datacenter).into());
        node.insert("TaggedAddresses".into(), json!({ "lan": &ip, "wan": &ip }));
        node.insert("Meta".into(), json!({}));
        node.insert("CreateIndex".into(), 1.into());
        node.insert("ModifyIndex".into(), index.into());
        node
    }

    pub(super) fn catalog_node(&self, index: u64) -> Value {
        self.node(index).into()
    }

    /// An instance as the agent shows its services.
    pub(super) fn service(&self, instance: &Instance) -> Value {
        let said = &instance.said;
        let Weights { passing, warning } = said.weights;
        json!({
            "ID": said.id,
            "Service": service_name(instance),
            "Tags": said.tags,
            "Meta": said.meta,
            "Port": said.port,
            "Address": said.address,
            "TaggedAddresses": tagged(instance),
            "Weights": { "Passing": passing, "Warning": warning },
            "EnableTagOverride": false,
            "CreateIndex": instance.created,
            "ModifyIndex": instance.modified,
            "Proxy": { "MeshGateway": {}, "Expose": {} },
            "Connect": {},
        })
    }

    /// All instances by their ids.
    pub(super) fn agent_services(&self, all: &mut dyn Iterator<Item = &Instance>) -> Value {
        Value::Object(all.map(|instance| (instance.said.id.clone(), self.service(instance))).collect())
    }

    /// All checks by their ids.
    pub(super) fn agent_checks(&self, all: &mut dyn Iterator<Item = &Instance>) -> Value {
        let checks = all.flat_map(|instance| self.own_checks(instance));
        Value::Object(checks.map(|check| (check["CheckID"].as_str().unwrap_or_default().to_owned(), check)).collect())
    }

    pub(super) fn catalog_service(&self, instance: &Instance) -> Value {
        let said = &instance.said;
        let Weights { passing, warning } = said.weights;
        let mut shown = self.node(instance.modified);
        shown.insert("NodeMeta".into(), shown.get("Meta").cloned().unwrap_or_default());
        shown.remove("Meta");
        let of_service = json!({
            "ServiceKind": "",
            "ServiceID": said.id,
            "ServiceName": service_name(instance),
            "ServiceTags": said.tags,
            "ServiceAddress": said.address,
            "ServiceTaggedAddresses": tagged(instance),
            "ServiceWeights": { "Passing": passing, "Warning": warning },
            "ServiceMeta": said.meta,
            "ServicePort": said.port,
            "ServiceEnableTagOverride": false,
            "ServiceProxy": { "MeshGateway": {}, "Expose": {} },
            "ServiceConnect": {},
            "CreateIndex": instance.created,
            "ModifyIndex": instance.modified,
        });
        if let Value::Object(of_service) = of_service {
            shown.extend(of_service);
        }
        shown.into()
    }

    pub(super) fn health_service(&self, instance: &Instance) -> Value {
        let mut checks = vec![self.of_node()];
        checks.extend(self.own_checks(instance));
        json!({ "Node": self.node(instance.modified), "Service": self.service(instance), "Checks": checks })
    }

    /// The checks of an instance, without that of the node.
    pub(super) fn checks(&self, instance: &Instance) -> Vec<Value> {
        self.own_checks(instance)
    }

    pub(super) fn own_checks(&self, instance: &Instance) -> Vec<Value> {
        let stands = instance.checks.iter().zip(&instance.said.checks);
        let mut all: Vec<_> = stands
            .map(|(check, spec)| self.check(instance, spec, check.status, &check.output, kind(&spec.kind)))
            .collect();
        let plain = |id: String, name: &str| CheckSpec {
            id,
            name: name.to_owned(),
            notes: String::new(),
            kind: CheckKind::Ttl(std::time::Duration::ZERO),
            initial: Status::Critical,
            deregister_after: None,
            passes_needed: 1,
            failures_needed: 1,
        };
        if let Some(reason) = &instance.maintenance {
            let spec = plain(format!("_service_maintenance:{}", instance.said.id), "Service Maintenance Mode");
            all.push(self.check(instance, &spec, Status::Critical, reason, "maintenance"));
        }
        if let Some(info) = &instance.said.eureka
            && instance.status() != Status::Passing
        {
            let spec = plain(format!("eureka:{}", instance.said.id), "Eureka status");
            all.push(self.check(instance, &spec, Status::Critical, info.effective().as_str(), ""));
        }
        all
    }

    fn check(&self, instance: &Instance, spec: &CheckSpec, status: Status, output: &str, kind: &str) -> Value {
        json!({
            "Node": &*self.config.node,
            "CheckID": spec.id,
            "Name": spec.name,
            "Status": status.as_str(),
            "Notes": spec.notes,
            "Output": output,
            "ServiceID": instance.said.id,
            "ServiceName": service_name(instance),
            "ServiceTags": instance.said.tags,
            "Type": kind,
            "Definition": definition(spec),
            "CreateIndex": instance.created,
            "ModifyIndex": instance.modified,
        })
    }

    /// Consul shows with each instance that its node is there.
    fn of_node(&self) -> Value {
        json!({
            "Node": &*self.config.node,
            "CheckID": "serfHealth",
            "Name": "Serf Health Status",
            "Status": "passing",
            "Notes": "",
            "Output": "Agent alive and reachable",
            "ServiceID": "",
            "ServiceName": "",
            "ServiceTags": [],
            "Type": "",
            "Definition": {},
            "CreateIndex": 1,
            "ModifyIndex": 1,
        })
    }
}

/// Names with the tags that instances have under them.
pub(super) fn catalog_services(catalog: &Catalog) -> Value {
    let mut shown: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for instance in catalog.all() {
        shown.entry(service_name(instance)).or_default().extend(instance.said.tags.iter().cloned());
    }
    json!(shown)
}

/// Applications have names in capitals in Eureka's API, and in small letters where Spring asks for them in Consul's.
fn service_name(instance: &Instance) -> String {
    if instance.is_of_consul() { instance.said.service.clone() } else { instance.service() }
}

fn tagged(instance: &Instance) -> Value {
    if instance.said.address.parse::<std::net::IpAddr>().is_err() {
        return json!({});
    }
    let family = if instance.said.address.contains(':') { "ipv6" } else { "ipv4" };
    let at = json!({ "Address": instance.said.address, "Port": instance.said.port });
    json!({ format!("lan_{family}"): at, format!("wan_{family}"): at })
}

fn kind(kind: &CheckKind) -> &'static str {
    match kind {
        CheckKind::Ttl(_) | CheckKind::Lease { .. } => "ttl",
        CheckKind::Probe(probe) => match probe.target {
            ProbeTarget::Tcp { .. } => "tcp",
            ProbeTarget::Http(_) => "http",
        },
    }
}

fn definition(spec: &CheckSpec) -> Value {
    let mut definition = Map::new();
    if let Some(after) = spec.deregister_after {
        definition.insert("DeregisterCriticalServiceAfter".into(), format!("{}s", after.as_secs()).into());
    }
    if let CheckKind::Probe(probe) = &spec.kind {
        definition.insert("Interval".into(), format!("{}ms", probe.interval.as_millis()).into());
        definition.insert("Timeout".into(), format!("{}ms", probe.timeout.as_millis()).into());
        let (key, value) = match &probe.target {
            ProbeTarget::Tcp { host, port } => ("TCP", format!("{host}:{port}")),
            ProbeTarget::Http(http) => {
                let scheme = if http.tls { "https" } else { "http" };
                ("HTTP", format!("{scheme}://{}:{}{}", http.host, http.port, http.target))
            }
        };
        definition.insert(key.into(), value.into());
    }
    definition.into()
}
