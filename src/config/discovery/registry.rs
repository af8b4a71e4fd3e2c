//! `[upstream.NAME.discovery.registry]`

use std::sync::Arc;

use crate::config::form::{List, Name, Switch};
use crate::config::table::Table;

/// A service in the registry that this process keeps, which `[registry]` describes: its instances that pass their checks. What changes there is
/// served with at once.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
pub struct RegistrySourceConfig {
    /// The service's name, in capitals or not: a name in Consul's API, an application's in Eureka's.
    #[key(
        Name,
        needed = "a source that is the registry needs a service",
        expected = "service = \"users\"",
        example = "users"
    )]
    pub service: Arc<str>,
    /// Tags that an instance must have, all of them.
    #[key(List(Name), example = ["v2"])]
    pub tags: Vec<Arc<str>>,
    /// Whether instances count of which a check warns, with the weight that they have for that.
    #[key(Switch, default = false)]
    pub warning: bool,
    /// Whether an address of loopback means this machine: the registry listens on loopback, so what registers is on it.
    pub is_local: bool,
}

impl RegistrySourceConfig {
    pub(super) fn asks(&self) -> String {
        let Self { service, tags, warning, .. } = self;
        format!("registry {service} {tags:?} {warning}")
    }
}
