//! `[[upstream.NAME.discovery]]`: a source of backends beside the list of the file. A file for each kind of source.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::json;

use super::check::Check;
use super::difference::Changes;
use super::error::Problem;
use super::field::Field;
use super::form::{About, Form, Inner, List, Literal, Many, Maybe, Name, Part, Size, Span, Whole, part_about};
use super::json_tree::Tree;
use super::listener::Network;
use super::report::Place;
use super::services::SERVICE;
use super::table::Table;
use super::visibility::Kind;

mod url;
mod file;
mod http;
mod push;
mod consul;
mod eureka;
mod nacos;
mod etcd;
mod zookeeper;
mod registry;
mod docker;
mod dns;
mod kubernetes;

pub use self::http::HttpSourceConfig;
pub use consul::ConsulConfig;
pub use dns::{DnsRecords, DnsSourceConfig};
pub use docker::{DockerConfig, DockerEndpoint};
pub use etcd::EtcdConfig;
pub use eureka::EurekaConfig;
pub use file::FileSourceConfig;
pub use kubernetes::{KubernetesConfig, ServicePort};
pub use nacos::NacosConfig;
pub use push::PushConfig;
pub use registry::RegistrySourceConfig;
pub use url::HttpUrl;
pub use zookeeper::ZookeeperConfig;

/// A source of backends: one of the tables `file`, `http`, `push`, `consul`, `eureka`, `nacos`, `etcd`, `zookeeper`, `docker`, `dns`, `registry` and
/// `kubernetes`, and how far it is believed. What several sources say is added up. The last good set holds while a source fails.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check)]
pub struct DiscoveryConfig {
    /// What logs, metrics and the admin address call it. Unique in its upstream.
    #[key(Name, otherwise = "its kind and what it asks for")]
    pub name: Arc<str>,
    /// A file that lists backends, and is watched.
    #[key(Part, otherwise = "none")]
    pub file: Option<Arc<FileSourceConfig>>,
    /// A list of backends that is asked for over HTTP.
    #[key(Part, otherwise = "none")]
    pub http: Option<Arc<HttpSourceConfig>>,
    /// A list of backends that is sent to the admin address. One per upstream.
    #[key(Part, otherwise = "none")]
    pub push: Option<Arc<PushConfig>>,
    /// A service in Consul.
    #[key(Part, otherwise = "none")]
    pub consul: Option<Arc<ConsulConfig>>,
    /// An application in Eureka.
    #[key(Part, otherwise = "none")]
    pub eureka: Option<Arc<EurekaConfig>>,
    /// A service in Nacos.
    #[key(Part, otherwise = "none")]
    pub nacos: Option<Arc<NacosConfig>>,
    /// Keys in etcd.
    #[key(Part, otherwise = "none")]
    pub etcd: Option<Arc<EtcdConfig>>,
    /// Nodes in ZooKeeper.
    #[key(Part, otherwise = "none")]
    pub zookeeper: Option<Arc<ZookeeperConfig>>,
    /// Containers of a Docker daemon.
    #[key(Part, otherwise = "none")]
    pub docker: Option<Arc<DockerConfig>>,
    /// A name in DNS.
    #[key(Part, otherwise = "none")]
    pub dns: Option<Arc<DnsSourceConfig>>,
    /// A service in the registry of this process, which `[registry]` describes.
    #[key(Part, otherwise = "none")]
    pub registry: Option<Arc<RegistrySourceConfig>>,
    /// A Service in Kubernetes.
    #[key(Part, otherwise = "none")]
    pub kubernetes: Option<Arc<KubernetesConfig>>,
    /// How many of a hundred backends may vanish at once, or one after the other within `removal_hold`. When more would, or all, those that
    /// vanish are kept until their checks fail or `removal_hold` is over; what is new is served with at once. 100 holds nothing back.
    #[key(Maybe(Whole(0..=100)), otherwise = "50; 100 for `file` and `push`, which are written on purpose, and `docker`, `dns` and `registry`, which hold back by themselves")]
    pub max_removed_percent: Option<u32>,
    /// How long a source must say that backends are gone that `max_removed_percent` holds back.
    #[key(Span, default = "5m")]
    pub removal_hold: Duration,
    /// Backends that it may say. An answer with more is a failure.
    #[key(Whole(1..=100_000), default = 10_000)]
    pub max_backends: usize,
    /// Bytes that an answer may have. A longer one is a failure.
    #[key(Size("1KiB", "256MiB"), default = "8MiB")]
    pub max_bytes: usize,
    /// Networks of addresses that are believed although they are refused otherwise: link-local addresses, those of a cloud's metadata service,
    /// and loopback from a source that is on another machine.
    #[key(List(Network), example = ["169.254.10.0/24"])]
    pub allow: Vec<IpNet>,
    /// The label that says in which zone a backend is, where the source has no other place for that.
    #[key(Name, default = "zone")]
    pub zone_label: Arc<str>,
}

/// What a source asks.
#[derive(Clone, Copy, Debug)]
pub enum SourceConfig<'a> {
    /// A file.
    File(&'a Arc<FileSourceConfig>),
    /// A list over HTTP.
    Http(&'a Arc<HttpSourceConfig>),
    /// What is sent to the admin address.
    Push(&'a Arc<PushConfig>),
    /// Consul.
    Consul(&'a Arc<ConsulConfig>),
    /// Eureka.
    Eureka(&'a Arc<EurekaConfig>),
    /// Nacos.
    Nacos(&'a Arc<NacosConfig>),
    /// etcd.
    Etcd(&'a Arc<EtcdConfig>),
    /// ZooKeeper.
    Zookeeper(&'a Arc<ZookeeperConfig>),
    /// Docker.
    Docker(&'a Arc<DockerConfig>),
    /// DNS.
    Dns(&'a Arc<DnsSourceConfig>),
    /// The registry of this process.
    Registry(&'a Arc<RegistrySourceConfig>),
    /// Kubernetes.
    Kubernetes(&'a Arc<KubernetesConfig>),
}

/// How many of a hundred backends a registry may take away at once.
const REMOVED_PERCENT: u32 = 50;

impl DiscoveryConfig {
    /// What it asks. `None` of a table that was never checked.
    pub fn source(&self) -> Option<SourceConfig<'_>> {
        let file = self.file.as_ref().map(SourceConfig::File);
        let http = || self.http.as_ref().map(SourceConfig::Http);
        let push = || self.push.as_ref().map(SourceConfig::Push);
        let consul = || self.consul.as_ref().map(SourceConfig::Consul);
        let eureka = || self.eureka.as_ref().map(SourceConfig::Eureka);
        let nacos = || self.nacos.as_ref().map(SourceConfig::Nacos);
        let etcd = || self.etcd.as_ref().map(SourceConfig::Etcd);
        let zookeeper = || self.zookeeper.as_ref().map(SourceConfig::Zookeeper);
        let docker = || self.docker.as_ref().map(SourceConfig::Docker);
        let dns = || self.dns.as_ref().map(SourceConfig::Dns);
        let registry = || self.registry.as_ref().map(SourceConfig::Registry);
        let kubernetes = || self.kubernetes.as_ref().map(SourceConfig::Kubernetes);
        let asked = file.or_else(http).or_else(push).or_else(consul).or_else(eureka).or_else(nacos).or_else(etcd);
        asked.or_else(zookeeper).or_else(docker).or_else(dns).or_else(registry).or_else(kubernetes)
    }

    /// What it asks for, and of whom, in words. Two tables that ask for the same may know the last set of each other.
    pub fn asks(&self) -> String {
        match self.source() {
            Some(SourceConfig::File(file)) => format!("file {}", file.path.display()),
            Some(SourceConfig::Http(http)) => format!("http {}", http.url),
            Some(SourceConfig::Push(_)) => "push".into(),
            Some(SourceConfig::Consul(consul)) => consul.asks(),
            Some(SourceConfig::Eureka(eureka)) => eureka.asks(),
            Some(SourceConfig::Nacos(nacos)) => nacos.asks(),
            Some(SourceConfig::Etcd(etcd)) => etcd.asks(),
            Some(SourceConfig::Zookeeper(zookeeper)) => zookeeper.asks(),
            Some(SourceConfig::Docker(docker)) => docker.asks(),
            Some(SourceConfig::Dns(dns)) => dns.asks(),
            Some(SourceConfig::Registry(registry)) => registry.asks(),
            Some(SourceConfig::Kubernetes(kubernetes)) => kubernetes.asks(),
            None => String::new(),
        }
    }

    /// How many of a hundred backends may vanish at once.
    pub fn removed_percent(&self) -> u32 {
        self.max_removed_percent.unwrap_or(match self.source() {
            Some(
                SourceConfig::File(_)
                | SourceConfig::Push(_)
                | SourceConfig::Docker(_)
                | SourceConfig::Dns(_)
                | SourceConfig::Registry(_),
            )
            | None => 100,
            Some(
                SourceConfig::Http(_)
                | SourceConfig::Consul(_)
                | SourceConfig::Eureka(_)
                | SourceConfig::Nacos(_)
                | SourceConfig::Etcd(_)
                | SourceConfig::Zookeeper(_)
                | SourceConfig::Kubernetes(_),
            ) => REMOVED_PERCENT,
        })
    }

    /// Whether an address of loopback means this machine: what is asked is on it.
    pub fn is_local(&self) -> bool {
        match self.source() {
            Some(SourceConfig::Http(http)) => http.url.is_loopback(),
            Some(SourceConfig::Consul(consul)) => consul.address.is_loopback(),
            Some(SourceConfig::Eureka(eureka)) => eureka.is_local(),
            Some(SourceConfig::Nacos(nacos)) => nacos.servers.iter().all(HttpUrl::is_loopback),
            Some(SourceConfig::Etcd(etcd)) => etcd.endpoints.iter().all(HttpUrl::is_loopback),
            Some(SourceConfig::Zookeeper(zookeeper)) => zookeeper.is_loopback(),
            Some(SourceConfig::Docker(docker)) => docker.is_local(),
            Some(SourceConfig::Registry(registry)) => registry.is_local,
            // Its endpoints are pods and nodes.
            Some(SourceConfig::Kubernetes(_)) => false,
            // Who writes a zone is asked by its name, which stands in the file.
            Some(SourceConfig::File(_) | SourceConfig::Push(_) | SourceConfig::Dns(_)) | None => true,
        }
    }

    /// The kinds of source that list services.
    pub(crate) const LISTING: &str = "consul, eureka, etcd, zookeeper and registry";

    /// Whether what it asks for is a service by its name, which [`SERVICE`] stands for, so that each that is listed is asked for as it is listed;
    /// `None` of a source that lists no services.
    pub(crate) fn names_service(&self) -> Option<bool> {
        match self.source()? {
            SourceConfig::Consul(consul) => Some(*consul.service == *SERVICE),
            SourceConfig::Eureka(eureka) => Some(*eureka.application == *SERVICE),
            SourceConfig::Registry(registry) => Some(*registry.service == *SERVICE),
            // What comes before and behind it ends the name.
            SourceConfig::Etcd(etcd) => {
                let parts = etcd.prefix.split_once(SERVICE);
                Some(parts.is_some_and(|(_, after)| after.is_empty() || after.starts_with('/')))
            }
            // The names are those of nodes.
            SourceConfig::Zookeeper(zookeeper) => Some(zookeeper.path.split('/').skip(2).any(|node| node == SERVICE)),
            SourceConfig::Nacos(_)
            | SourceConfig::Docker(_)
            | SourceConfig::File(_)
            | SourceConfig::Http(_)
            | SourceConfig::Push(_)
            | SourceConfig::Dns(_)
            | SourceConfig::Kubernetes(_) => None,
        }
    }

    /// The kind of source.
    pub fn kind(&self) -> &'static str {
        match self.source() {
            Some(SourceConfig::File(_)) => "file",
            Some(SourceConfig::Http(_)) => "http",
            Some(SourceConfig::Push(_)) => "push",
            Some(SourceConfig::Consul(_)) => "consul",
            Some(SourceConfig::Eureka(_)) => "eureka",
            Some(SourceConfig::Etcd(_)) => "etcd",
            Some(SourceConfig::Zookeeper(_)) => "zookeeper",
            Some(SourceConfig::Nacos(_)) => "nacos",
            Some(SourceConfig::Docker(_)) => "docker",
            Some(SourceConfig::Dns(_)) => "dns",
            Some(SourceConfig::Registry(_)) => "registry",
            Some(SourceConfig::Kubernetes(_)) => "kubernetes",
            None => "none",
        }
    }

    fn check(check: &Check<'_>, place: Place, written: &WrittenDiscoveryConfig, mut it: Self) -> Option<Self> {
        let given = [
            ("file", written.file.place()),
            ("http", written.http.place()),
            ("push", written.push.place()),
            ("consul", written.consul.place()),
            ("eureka", written.eureka.place()),
            ("nacos", written.nacos.place()),
            ("etcd", written.etcd.place()),
            ("zookeeper", written.zookeeper.place()),
            ("docker", written.docker.place()),
            ("dns", written.dns.place()),
            ("registry", written.registry.place()),
            ("kubernetes", written.kubernetes.place()),
        ];
        let mut given = given.into_iter().filter_map(|(kind, place)| Some((kind, place?)));
        let Some((kind, _)) = given.next() else {
            let kinds = [
                "file",
                "http",
                "push",
                "consul",
                "eureka",
                "nacos",
                "etcd",
                "zookeeper",
                "docker",
                "dns",
                "registry",
                "kubernetes",
            ];
            if !kinds.iter().any(|kind| check.report.is_meant(place, kind)) {
                let problem = Problem::error("nothing says where backends are found");
                check.add(
                    place,
                    problem.expected(
                        "one of the tables file, http, push, consul, eureka, nacos, etcd, zookeeper, docker, dns, registry and kubernetes",
                    ),
                );
            }
            return None;
        };
        for (other, place) in given {
            let problem = Problem::error(format!("{other} beside {kind}: a table is one source"));
            check.add(place, problem.expected("a table [[upstream.NAME.discovery]] for each"));
        }
        if written.name.value().is_none() {
            it.name = it.default_name(check, written).into();
        }
        // Without one, what it asks is wrong, which is reported.
        it.source().is_some().then_some(it)
    }

    /// A name that shows nothing that a variable of the environment stands for.
    fn default_name(&self, check: &Check<'_>, written: &WrittenDiscoveryConfig) -> String {
        let shown = |place: Option<Place>, value: String| match place {
            Some(place) => check.show(place, value),
            None => value,
        };
        match self.source() {
            Some(SourceConfig::File(file)) => {
                let place = written.file.value().and_then(|it| it.path.place());
                format!("file {}", shown(place, file.path.display().to_string()))
            }
            Some(SourceConfig::Http(http)) => {
                let place = written.http.value().and_then(|it| it.url.place());
                format!("http {}", shown(place, http.url.shown()))
            }
            Some(SourceConfig::Push(_)) => "push".into(),
            Some(SourceConfig::Consul(consul)) => {
                let place = written.consul.value().and_then(|it| it.service.place());
                format!("consul {}", shown(place, consul.service.to_string()))
            }
            Some(SourceConfig::Registry(registry)) => {
                let place = written.registry.value().and_then(|it| it.service.place());
                format!("registry {}", shown(place, registry.service.to_string()))
            }
            Some(SourceConfig::Eureka(eureka)) => {
                let place = written.eureka.value().and_then(|it| it.application.place());
                format!("eureka {}", shown(place, eureka.application.to_string()))
            }
            Some(SourceConfig::Nacos(nacos)) => {
                let place = written.nacos.value().and_then(|it| it.service.place());
                format!("nacos {}", shown(place, nacos.service.to_string()))
            }
            Some(SourceConfig::Etcd(etcd)) => {
                let place = written.etcd.value().and_then(|it| it.prefix.place());
                format!("etcd {}", shown(place, etcd.prefix.to_string()))
            }
            Some(SourceConfig::Zookeeper(zookeeper)) => {
                let place = written.zookeeper.value().and_then(|it| it.path.place());
                format!("zookeeper {}", shown(place, zookeeper.path.to_string()))
            }
            Some(SourceConfig::Docker(docker)) => match docker.labels.first() {
                Some(label) => {
                    let place = written.docker.value().and_then(|it| it.labels.place());
                    format!("docker {}", shown(place, label.to_string()))
                }
                None => "docker".into(),
            },
            Some(SourceConfig::Dns(dns)) => {
                let place = written.dns.value().and_then(|it| it.name.place());
                format!("dns {}", shown(place, dns.name.to_string()))
            }
            Some(SourceConfig::Kubernetes(kubernetes)) => {
                let place = written.kubernetes.value().and_then(|it| it.service.place());
                format!("kubernetes {}", shown(place, kubernetes.service.to_string()))
            }
            None => String::new(),
        }
    }
}

/// `discovery` of an upstream, in the order of the file.
pub(crate) struct Sources;

impl Form<Vec<DiscoveryConfig>> for Sources {
    type Written = Vec<Field<WrittenDiscoveryConfig>>;

    fn read(&self, check: &Check<'_>, _: Place, written: &Self::Written) -> Option<Vec<DiscoveryConfig>> {
        let (mut sources, mut names, mut push) = (Vec::new(), HashMap::new(), None);
        for (place, written) in written.iter().filter_map(Field::given) {
            let Some(source) = DiscoveryConfig::read(check, place, written) else { continue };
            if let Some(first) = names.insert(Arc::clone(&source.name), place) {
                let first = check.report.path(first);
                let at = written.name.place().unwrap_or(place);
                // A name that the file does not give shows nothing that a variable stands for.
                let name = match written.name.given() {
                    Some((place, name)) => check.quote(place, name),
                    None => format!("{:?}", source.name),
                };
                let problem = Problem::error(format!("{name} is the name of {first} too"));
                check.add(at, problem.expected("a name of its own"));
                continue;
            }
            if let (Some(at), Some(first)) = (written.push.place(), push.or(written.push.place())) {
                if push.is_some() {
                    let first = check.report.path(first);
                    check.add(at, Problem::error(format!("an upstream is pushed to by one source, {first} here")));
                }
                push = Some(first);
            }
            sources.push(source);
        }
        Some(sources)
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Vec<DiscoveryConfig> {
        Vec::new()
    }

    fn show(&self, value: &Vec<DiscoveryConfig>) -> Option<Tree> {
        Some(Tree::List(value.iter().map(Table::tree).collect()))
    }

    fn tell(&self, value: &Vec<DiscoveryConfig>) -> String {
        value.len().to_string()
    }

    fn compare(
        &self,
        changes: &mut Changes,
        table: &str,
        words: &str,
        old: &Vec<DiscoveryConfig>,
        new: &Vec<DiscoveryConfig>,
    ) {
        let names = |all: &[DiscoveryConfig]| all.iter().map(|it| it.name.to_string()).collect::<Vec<_>>();
        let (were, are) = (names(old), names(new));
        if were != are {
            changes.told_members(Kind::Plain, &format!("{table}{words}"), &were, &are);
        }
        for source in new {
            if let Some(was) = old.iter().find(|was| was.name == source.name) {
                let path = format!("{table}{words}.{:?}.", source.name);
                DiscoveryConfig::compare(changes, &path, was, source);
            }
        }
    }

    fn about(&self) -> About {
        let one = part_about::<DiscoveryConfig>();
        let inner = one.inner.map(|inner| Inner { many: Many::Listed, ..inner });
        About { form: "tables".into(), schema: json!({ "type": "array", "items": one.schema }), inner, ..one }
    }
}
