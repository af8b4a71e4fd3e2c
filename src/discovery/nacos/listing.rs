//! Lists of instances, as Nacos sends them in answers and pushes.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::backend::document::label;
use crate::backend::{BackendSet, Instance};
use crate::config::{Address, NacosConfig};
use crate::discovery::DiscoveryError;

/// The cluster of instances that name none.
const DEFAULT_CLUSTER: &str = "DEFAULT";

/// `service not exist`, of the API of versions 2 and 3.
const NO_SUCH_SERVICE: i64 = 21_008;

/// What a list says.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) set: BackendSet,
    /// What is wrong with instances that were left out.
    pub(super) refused: Vec<String>,
    /// When it was true, by Nacos's clock in milliseconds; 0 where it does not say so.
    pub(super) time: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NacosInstance {
    ip: String,
    port: u32,
    #[serde(default = "one")]
    weight: f64,
    #[serde(default = "yes")]
    healthy: bool,
    #[serde(default = "yes")]
    enabled: bool,
    #[serde(default = "yes")]
    ephemeral: bool,
    #[serde(default)]
    cluster_name: Option<String>,
    #[serde(default)]
    instance_id: Option<String>,
    #[serde(default)]
    metadata: Option<BTreeMap<String, Value>>,
}

fn one() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

impl Listing {
    /// Reads the list of the service that `config` names. It may stand in the answer of each version's API, or in a push.
    pub(super) fn read(body: &[u8], config: &NacosConfig, zone_label: &str) -> Result<Self, DiscoveryError> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| DiscoveryError::new(format!("its answer is no list of instances: {error}")))?;
        let (hosts, time) = Self::hosts(value, config)?;
        let (mut found, mut refused) = (Vec::with_capacity(hosts.len()), Vec::new());
        for (number, host) in (1..).zip(hosts) {
            match NacosInstance::deserialize(host) {
                Ok(instance) if instance.is_wanted(config) => found.push((number, instance)),
                Ok(_) => {}
                Err(error) => refused.push(format!("instance {number}: {error}")),
            }
        }
        let scale = scale(&found);
        let mut instances = Vec::with_capacity(found.len());
        for (number, instance) in found {
            let id = instance.instance_id.as_deref().unwrap_or(&instance.ip).chars().take(60).collect::<String>();
            match instance.backend(scale, zone_label) {
                Ok(instance) => instances.push(instance),
                Err(what) => refused.push(format!("instance {number} ({id:?}): {what}")),
            }
        }
        Ok(Self { set: BackendSet::new(instances), refused, time })
    }

    fn hosts(mut value: Value, config: &NacosConfig) -> Result<(Vec<Value>, u64), DiscoveryError> {
        // A push, and what a subscription is answered with.
        if let Some(of_push) = value.get_mut("serviceInfo") {
            value = of_push.take();
        } else if let Some(code) = value.get("code").and_then(Value::as_i64) {
            // The API of versions 2 and 3.
            match code {
                0 | 200 => value = value.get_mut("data").map(Value::take).unwrap_or_default(),
                NO_SUCH_SERVICE => return Ok((Vec::new(), 0)),
                _ => {
                    let message = value.get("message").and_then(Value::as_str).unwrap_or_default();
                    let message: String = message.chars().filter(|c| !c.is_control()).take(120).collect();
                    return Err(DiscoveryError::new(format!("it answered code {code}: {message}")));
                }
            }
        }
        if let Value::Array(hosts) = value {
            return Ok((hosts, 0));
        }
        if let Some(name) = value.get("name").and_then(Value::as_str)
            && name.rsplit("@@").next() != Some(&config.service)
        {
            let name: String = name.chars().take(60).collect();
            return Err(DiscoveryError::new(format!("it answered for another service: {name:?}")));
        }
        let time = value.get("lastRefTime").and_then(Value::as_u64).unwrap_or_default();
        match value.get_mut("hosts").map(Value::take) {
            Some(Value::Array(hosts)) => Ok((hosts, time)),
            Some(Value::Null) => Ok((Vec::new(), time)),
            _ => Err(DiscoveryError::new("its answer has no list of instances: this is not Nacos's API")),
        }
    }
}

impl NacosInstance {
    fn cluster(&self) -> &str {
        self.cluster_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(DEFAULT_CLUSTER)
    }

    /// Whether it was asked for: a push has all instances, and so may an answer.
    fn is_wanted(&self, config: &NacosConfig) -> bool {
        let NacosConfig { clusters, unhealthy, ephemeral, .. } = config;
        self.enabled
            && (self.healthy || *unhealthy)
            && ephemeral.is_none_or(|ephemeral| ephemeral == self.ephemeral)
            && (clusters.is_empty() || clusters.iter().any(|name| **name == *self.cluster()))
    }

    fn backend(self, scale: f64, zone_label: &str) -> Result<Instance, String> {
        let Self { ip, port, .. } = &self;
        let text = if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
        let address: Address = text.parse().map_err(|_| format!("{text:?} is not an address with a port"))?;
        let mut instance = Instance::new(address);
        instance.weight = weight(self.weight, scale)?;
        for (name, value) in self.metadata.iter().flatten() {
            match value {
                Value::String(value) => label(&mut instance, name, value)?,
                Value::Null => {}
                value => label(&mut instance, name, &value.to_string())?,
            }
        }
        label(&mut instance, "cluster", self.cluster())?;
        if let Some(id) = self.instance_id.as_deref().filter(|id| !id.is_empty()) {
            label(&mut instance, "id", id)?;
        }
        let of_cluster = (self.cluster() != DEFAULT_CLUSTER).then(|| self.cluster().into());
        instance.place.zone = instance.labels.get(zone_label).cloned().or(of_cluster);
        Ok(instance)
    }
}

/// What weights are multiplied with to be whole numbers: Nacos has decimals, as in 0.5 for half of the requests.
fn scale(found: &[(usize, NacosInstance)]) -> f64 {
    let has_decimals = |weight: f64| weight > 0.0 && weight.fract() != 0.0;
    if found.iter().any(|(_, instance)| has_decimals(instance.weight)) { 100.0 } else { 1.0 }
}

/// A weight as backends have them. Only 0 is 0.
fn weight(weight: f64, scale: f64) -> Result<u16, String> {
    if !weight.is_finite() || weight < 0.0 {
        return Err(format!("{weight} is no weight"));
    }
    let most = f64::from(u16::MAX);
    let scaled = (weight * scale).round().clamp(if weight == 0.0 { 0.0 } else { 1.0 }, most);
    // Within its bounds, and whole.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(scaled as u16)
}

#[cfg(test)]
mod tests;
