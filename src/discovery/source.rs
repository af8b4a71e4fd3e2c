//! The sources of the configuration.

use std::sync::Arc;
use std::time::Duration;

use super::consul::Consul;
use super::dns::{self, DnsSource, Resolvers};
use super::docker::Docker;
use super::etcd::Etcd;
use super::eureka::Eureka;
use super::file::{FileLook, FileSource};
use super::http::HttpSource;
use super::inbox::InboxSource;
#[cfg(feature = "kubernetes")]
use super::kubernetes::Kubernetes;
use super::nacos::Nacos;
use super::reading::Reading;
use super::registry::RegistrySource;
use super::zookeeper::Zookeeper;
use super::{Answered, AnyDiscovery};
use crate::backend::BackendSet;
use crate::config::{DiscoveryConfig, SourceConfig};
use crate::registry::Registry;
use crate::upstream::UpstreamState;

/// The source that a table of the configuration describes. `left` is what is known of it already, `file_look` a look at its file. Names are
/// looked up by `resolvers`; `registry` is that of this process.
pub(super) fn of(
    config: &DiscoveryConfig,
    state: &Arc<UpstreamState>,
    left: Option<&BackendSet>,
    file_look: Option<FileLook>,
    (resolvers, registry): (&Resolvers, Option<&Arc<Registry>>),
) -> Box<dyn AnyDiscovery> {
    let reading = Reading::new(config);
    match config.source() {
        Some(SourceConfig::File(file)) => Box::new(FileSource::new(Arc::clone(file), reading, file_look)),
        Some(SourceConfig::Http(http)) => Box::new(HttpSource::new(Arc::clone(http), reading)),
        Some(SourceConfig::Push(_)) => Box::new(InboxSource::new(state, left)),
        Some(SourceConfig::Consul(consul)) => Box::new(Consul::new(Arc::clone(consul), reading)),
        Some(SourceConfig::Eureka(eureka)) => Box::new(Eureka::new(Arc::clone(eureka), &reading)),
        Some(SourceConfig::Nacos(nacos)) => Box::new(Nacos::new(Arc::clone(nacos), reading)),
        Some(SourceConfig::Etcd(etcd)) => Box::new(Etcd::new(Arc::clone(etcd), reading)),
        Some(SourceConfig::Zookeeper(zookeeper)) => Box::new(Zookeeper::new(Arc::clone(zookeeper), reading)),
        Some(SourceConfig::Docker(docker)) => {
            Box::new(Docker::new(Arc::clone(docker), &state.name, reading, config.removal_hold))
        }
        Some(SourceConfig::Dns(dns)) => Box::new(DnsSource::new(Arc::clone(dns), resolvers, left)),
        Some(SourceConfig::Registry(config)) => Box::new(RegistrySource::new(Arc::clone(config), reading, registry)),
        #[cfg(feature = "kubernetes")]
        Some(SourceConfig::Kubernetes(kubernetes)) => Box::new(Kubernetes::new(Arc::clone(kubernetes), reading)),
        // The check of the file refuses it.
        #[cfg(not(feature = "kubernetes"))]
        Some(SourceConfig::Kubernetes(_)) => Box::new(Silent),
        None => Box::new(Silent),
    }
}

/// How long a source is left alone at most after it has failed.
pub(super) fn pause_max(config: &DiscoveryConfig) -> Duration {
    const PAUSE_MAX: Duration = Duration::from_secs(30);
    match config.source() {
        // To look at a file costs nothing.
        Some(SourceConfig::File(file)) => file.interval.min(PAUSE_MAX),
        Some(SourceConfig::Dns(_)) => dns::PAUSE_MAX,
        _ => PAUSE_MAX,
    }
}

/// Says nothing: a table that names no source, which the check of the file refuses.
struct Silent;

impl AnyDiscovery for Silent {
    fn next(&mut self) -> Answered<'_> {
        Box::pin(std::future::pending())
    }
}
