//! What a list says of a container, and the backend that it is.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::backend::Instance;
use crate::backend::document::{instance, label};
use crate::config::DockerConfig;

/// Letters of an ID that are shown, as Docker does.
const ID_SHOWN: usize = 12;

/// What stands before a label of a container that is one of its backend.
const LABEL: &str = "isobar.label.";

/// A container of a list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Container {
    pub(super) id: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    image: String,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    state: String,
    /// In words, as in `Up 5 minutes (healthy)`.
    #[serde(default)]
    status: String,
    #[serde(default)]
    health: Option<Health>,
    #[serde(default)]
    ports: Option<Vec<Port>>,
    #[serde(default)]
    host_config: HostConfig,
    #[serde(default)]
    network_settings: NetworkSettings,
}

/// Later versions of the API say it by itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Health {
    #[serde(default)]
    status: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Port {
    #[serde(rename = "IP", default)]
    ip: String,
    private_port: u16,
    #[serde(default)]
    public_port: Option<u16>,
    #[serde(rename = "Type", default)]
    kind: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    #[serde(default)]
    network_mode: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    #[serde(default)]
    networks: Option<BTreeMap<String, Option<Network>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Network {
    #[serde(rename = "IPAddress", default)]
    ip: String,
    #[serde(rename = "GlobalIPv6Address", default)]
    ipv6: String,
}

impl Container {
    pub(super) fn name(&self) -> &str {
        self.names.first().map_or(&*self.id, |name| name.trim_start_matches('/'))
    }

    /// Whether it is not paused, restarting or ended.
    pub(super) fn runs(&self) -> bool {
        matches!(&*self.state, "running" | "")
    }

    /// Whether it has a label: `KEY=VALUE`, or `KEY`.
    pub(super) fn has(&self, wanted: &str) -> bool {
        match wanted.split_once('=') {
            Some((name, value)) => self.label(name) == Some(value),
            None => self.label(wanted).is_some(),
        }
    }

    /// Whether its own check does not say otherwise, or that it is still starting.
    pub(super) fn may_be_healthy(&self) -> bool {
        match &self.health {
            Some(health) => !matches!(&*health.status, "unhealthy" | "starting"),
            None => !["(unhealthy)", "(health: starting)", "(starting)"].iter().any(|it| self.status.ends_with(it)),
        }
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// The backend that it is.
    pub(super) fn backend(&self, config: &DockerConfig, zone_label: &str) -> Result<Instance, String> {
        let (host, port) = self.address(config)?;
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let mut entry = Map::new();
        entry.insert("address".into(), address.into());
        for key in ["weight", "priority", "max_in_flight", "max_connections"] {
            if let Some(text) = self.label(&format!("isobar.{key}")) {
                let number: u64 =
                    text.parse().map_err(|_| format!("label isobar.{key} is {text:?}, which is no number"))?;
                entry.insert(key.into(), number.into());
            }
        }
        if let Some(text) = self.label("isobar.backup") {
            let backup: bool = text.parse().map_err(|_| format!("label isobar.backup is {text:?}: true or false"))?;
            entry.insert("backup".into(), backup.into());
        }
        for key in ["zone", "server_name"] {
            if let Some(text) = self.label(&format!("isobar.{key}")) {
                entry.insert(key.into(), text.into());
            }
        }
        let mut instance = instance(Value::Object(entry))?;
        for (name, value) in self.labels.iter().flatten() {
            if let Some(name) = name.strip_prefix(LABEL) {
                label(&mut instance, name, value)?;
            }
        }
        let id: String = self.id.chars().take(ID_SHOWN).collect();
        for (name, value) in [("container", self.name()), ("id", &id), ("image", &self.image)] {
            if !value.is_empty() {
                label(&mut instance, name, value)?;
            }
        }
        if instance.place.zone.is_none() {
            instance.place.zone = instance.labels.get(zone_label).cloned();
        }
        Ok(instance)
    }

    fn address(&self, config: &DockerConfig) -> Result<(String, u16), String> {
        let port = self.port(config)?;
        let mode = &*self.host_config.network_mode;
        if mode == "host" {
            return Ok((config.host.to_string(), port));
        }
        if config.published {
            return self.published(port, config);
        }
        if mode.starts_with("container:") {
            return Err("it uses the network of another container: that one needs the labels".into());
        }
        let networks = self.network_settings.networks.iter().flatten();
        let networks: Vec<_> = networks.filter_map(|(name, network)| Some((&**name, network.as_ref()?))).collect();
        let network = self.network(&networks, config)?;
        let ip = if network.1.ip.is_empty() { &network.1.ipv6 } else { &network.1.ip };
        match ip.is_empty() {
            true => Err(format!("it has no address in the network {:?}", network.0)),
            false => Ok((ip.clone(), port)),
        }
    }

    fn port(&self, config: &DockerConfig) -> Result<u16, String> {
        if let Some(text) = self.label("isobar.port") {
            let port = text.parse().ok().filter(|port| *port > 0);
            return port.ok_or_else(|| format!("label isobar.port is {text:?}, which is no port"));
        }
        if let Some(port) = config.port {
            return Ok(port);
        }
        let mut exposed: Vec<_> = self.tcp_ports().map(|port| port.private_port).collect();
        exposed.sort_unstable();
        exposed.dedup();
        match exposed[..] {
            [port] => Ok(port),
            [] => Err("it exposes no port: label isobar.port says which one it has".into()),
            _ => Err(format!("it exposes the ports {}: label isobar.port says which one", listed(&exposed))),
        }
    }

    fn tcp_ports(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter().flatten().filter(|port| matches!(&*port.kind, "tcp" | ""))
    }

    fn published(&self, port: u16, config: &DockerConfig) -> Result<(String, u16), String> {
        let found =
            self.tcp_ports().filter(|it| it.private_port == port).find_map(|it| Some((&it.ip, it.public_port?)));
        let (ip, public) = found.ok_or_else(|| format!("it does not publish its port {port}"))?;
        let is_any = matches!(&**ip, "" | "0.0.0.0" | "::");
        Ok((if is_any { config.host.to_string() } else { ip.clone() }, public))
    }

    /// The network that it is reached in.
    fn network<'n>(
        &self,
        all: &[(&'n str, &'n Network)],
        config: &DockerConfig,
    ) -> Result<(&'n str, &'n Network), String> {
        let names = || listed(&all.iter().map(|(name, _)| format!("{name:?}")).collect::<Vec<_>>());
        let wanted = self.label("isobar.network").or(config.network.as_deref().filter(|_| all.len() > 1));
        let Some(wanted) = wanted else {
            return match all {
                [one] => Ok(*one),
                [] => Err("it is in no network".into()),
                _ => Err(format!("it is in the networks {}: label isobar.network says which one", names())),
            };
        };
        if let Some(found) = all.iter().find(|(name, _)| *name == wanted) {
            return Ok(*found);
        }
        // Compose puts the project's name before it.
        let mut of_compose =
            all.iter().filter(|(name, _)| name.strip_suffix(wanted).is_some_and(|it| it.ends_with('_')));
        match (of_compose.next(), of_compose.next()) {
            (Some(found), None) => Ok(*found),
            _ => Err(format!("it is not in the network {wanted:?}, but in {}", names())),
        }
    }
}

fn listed<T: ToString>(all: &[T]) -> String {
    all.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
