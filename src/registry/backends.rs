//! What upstreams find in the registry.

use std::sync::Arc;

use tokio::sync::watch;

use super::Registry;
use super::instance::{Instance, Status};
use crate::backend::document::label;
use crate::backend::{self, BackendSet};
use crate::config::{Address, RegistrySourceConfig};

/// The instances of a service as an upstream may have them.
#[derive(Clone, Debug)]
pub struct FoundInstances {
    /// Those that count.
    pub set: BackendSet,
    /// What is wrong with those that cannot be used, a word on each.
    pub refused: Vec<String>,
    /// The index of the service's last change.
    pub index: u64,
}

impl Registry {
    /// Tells of each change, by the index of the registry.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.index.subscribe()
    }

    /// The index of the last change of a service.
    pub fn index_of(&self, service: &str) -> u64 {
        self.lock().index_of(service)
    }

    /// The services by their names in lower case, each with the tags of its instances and with their metadata as `key=value`.
    pub fn services(&self) -> Vec<(String, Vec<String>)> {
        let catalog = self.lock();
        let tags_of = |instance: &Arc<Instance>| {
            let metadata = instance.said.meta.iter().map(|(key, value)| format!("{key}={value}"));
            instance.said.tags.iter().cloned().chain(metadata).collect::<Vec<_>>()
        };
        catalog.services().map(|(name, instances)| (name.to_owned(), instances.flat_map(tags_of).collect())).collect()
    }

    /// The instances that a source asks for. `zone_label` is what of an instance's metadata says in which zone it is.
    pub fn find(&self, source: &RegistrySourceConfig, zone_label: &str) -> FoundInstances {
        let (instances, index) = {
            let catalog = self.lock();
            (catalog.of_service(&source.service).cloned().collect::<Vec<_>>(), catalog.index_of(&source.service))
        };
        let (mut found, mut refused) = (Vec::with_capacity(instances.len()), Vec::new());
        for instance in instances {
            let wanted = match instance.status() {
                Status::Passing => true,
                Status::Warning => source.warning,
                Status::Critical => false,
            };
            if !wanted || !instance.has_tags(&source.tags) {
                continue;
            }
            match backend(&instance, zone_label) {
                Ok(backend) => found.push(backend),
                Err(what) => refused.push(format!("instance {:?}: {what}", instance.said.id)),
            }
        }
        FoundInstances { set: BackendSet::new(found), refused, index }
    }
}

fn backend(instance: &Arc<Instance>, zone_label: &str) -> Result<backend::Instance, String> {
    let said = &instance.said;
    if said.port == 0 {
        return Err("it has no port".into());
    }
    let mut backend = backend::Instance::new(address(&said.address, said.port)?);
    backend.weight = match instance.status() {
        Status::Warning => said.weights.warning,
        Status::Passing | Status::Critical => said.weights.passing,
    };
    for (name, value) in &said.meta {
        label(&mut backend, name, value)?;
    }
    let tags = said.tags.join(",");
    for (name, value) in [("id", said.id.as_str()), ("tags", tags.as_str())] {
        if !value.is_empty() {
            label(&mut backend, name, value)?;
        }
    }
    backend.place.zone = backend.labels.get(zone_label).cloned();
    Ok(backend)
}

/// An address; an IPv6 address has no brackets in a registration.
pub(super) fn address(host: &str, port: u16) -> Result<Address, String> {
    let text = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    text.parse().map_err(|_| format!("{text:?} is not an address with a port"))
}
