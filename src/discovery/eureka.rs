//! An application in Eureka, by its REST API.
//!
//! The registry is fetched whole once (`GET /apps`), and then by what has changed of late (`GET /apps/delta`). Each delta comes with a hash
//! code: how many instances there are of each state. If the copy has another one, it has missed something and is fetched whole again. These
//! are the rules of Netflix's client (`DiscoveryClient`). A server that has no deltas, or an error of one, means a whole copy too.
//!
//! Sources that ask the same servers share one copy. It is asked for by the source whose turn comes first; the others find it fresh.

use std::sync::Arc;

use ::http::StatusCode;
use tokio::time::{Instant, sleep_until};

use super::listing::{Listed, Listing, ListsServices};
use super::reading::Reading;
use super::{Answer, Answered, AnyDiscovery, DiscoveryError};
use crate::backend::document::label;
use crate::backend::{BackendSet, Instance};
use crate::config::{Address, EurekaConfig};

mod directory;
mod document;

use directory::{Directory, DirectoryCopy};
use document::EurekaInstance;

/// Asks Eureka for the instances of an application.
pub(super) struct Eureka {
    config: Arc<EurekaConfig>,
    zone_label: Arc<str>,
    directory: Arc<Directory>,
    /// When it is asked next; `None` is at once.
    due: Option<Instant>,
}

impl Eureka {
    pub(super) fn new(config: Arc<EurekaConfig>, reading: &Reading) -> Self {
        let directory = Directory::shared(&config, reading.bytes_max);
        Self { config, zone_label: Arc::clone(&reading.zone_label), directory, due: None }
    }

    async fn ask(&mut self) -> Result<Answer, DiscoveryError> {
        if let Some(due) = self.due {
            sleep_until(due).await;
        }
        let (copy, fetched) = self.directory.now(&self.config).await?;
        // As all that have this copy: one of them asks again for the others too.
        self.due = Some(fetched + self.config.interval);
        Ok(self.read(&copy))
    }

    fn read(&self, copy: &DirectoryCopy) -> Answer {
        let (mut instances, mut refused) = (Vec::new(), Vec::new());
        for instance in copy.application(&self.config.application) {
            match self.instance(instance) {
                Ok(instance) => instances.push(instance),
                Err(what) => {
                    let id = instance.id.chars().take(60).collect::<String>();
                    refused.push(format!("instance {id:?}: {what}"));
                }
            }
        }
        Answer { set: BackendSet::new(instances), refused, revision: Some(copy.hash_code().into()), hold: None }
    }

    fn instance(&self, of: &EurekaInstance) -> Result<Instance, String> {
        let port = if self.config.secure_port { of.secure_port } else { of.port };
        let port = port.ok_or(match self.config.secure_port {
            true => "its secure port is not enabled",
            false => "its port is not enabled; secure_port = true takes the secure one",
        })?;
        let host = match self.config.host_names || of.ip.is_empty() {
            true => &of.host_name,
            false => &of.ip,
        };
        let text = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let address: Address = text.parse().map_err(|_| format!("{text:?} is not an address with a port"))?;
        let mut instance = Instance::new(address);
        for (name, value) in &of.metadata {
            label(&mut instance, name, value)?;
        }
        for (name, value) in [("id", &of.id), ("host", &of.host_name)] {
            if !value.is_empty() {
                label(&mut instance, name, value)?;
            }
        }
        if let Some(weight) = of.metadata.get("weight") {
            instance.weight = weight.parse().map_err(|_| format!("weight {weight:?} is no number from 0 to 65535"))?;
        }
        let zone = instance.labels.get(&*self.zone_label).cloned();
        instance.place.zone = zone.or_else(|| of.zone.as_deref().map(Arc::from));
        Ok(instance)
    }
}

impl AnyDiscovery for Eureka {
    fn next(&mut self) -> Answered<'_> {
        Box::pin(self.ask())
    }

    fn is_at_hand(&self) -> bool {
        false
    }
}

/// Lists the applications of Eureka, in lower case: its own spelling of them is in capitals, whatever they call themselves.
pub(super) struct EurekaServices {
    config: Arc<EurekaConfig>,
    directory: Arc<Directory>,
    due: Option<Instant>,
}

impl EurekaServices {
    pub(super) fn new(config: &Arc<EurekaConfig>, reading: &Reading) -> Self {
        Self { config: Arc::clone(config), directory: Directory::shared(config, reading.bytes_max), due: None }
    }

    async fn ask(&mut self) -> Result<Listing, DiscoveryError> {
        if let Some(due) = self.due {
            sleep_until(due).await;
        }
        let (copy, fetched) = self.directory.now(&self.config).await?;
        self.due = Some(fetched + self.config.interval);
        let tags = |(key, value): (&String, &String)| format!("{key}={value}");
        let applications = copy.applications().map(|(name, instances)| {
            let metadata = instances.flat_map(|instance| instance.metadata.iter().map(tags));
            (name.to_lowercase(), metadata.collect::<Vec<_>>())
        });
        Ok(Listing::of(applications))
    }
}

impl ListsServices for EurekaServices {
    fn next(&mut self) -> Listed<'_> {
        Box::pin(self.ask())
    }
}

/// Whether a server has no deltas, by its answer to a request for one.
fn has_no_deltas(status: StatusCode) -> bool {
    matches!(status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::NOT_IMPLEMENTED)
}

#[cfg(test)]
mod tests;
