//! A service in Consul, by blocking queries.
//!
//! A query names the index of the answer before, and Consul holds it until the index is another or `wait` is over. The rules of its
//! [documentation](https://developer.hashicorp.com/consul/api-docs/features/blocking): an answer need not mean a change; an index that goes
//! backwards is forgotten, and so is one after a failure; an index is 1 at least; and a busy index is not asked for all the time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use super::asked::{Server, TlsFiles, encoded, refusal};
use super::reading::{Reading, beside};
use super::{Answer, Answered, AnyDiscovery, DiscoveryError};
use crate::backend::document::label;
use crate::backend::{BackendSet, Instance};
use crate::config::{Address, ConsulConfig};

/// The shortest time between two queries: a service of which something changes all the time is looked at ten times a second.
const EVERY: Duration = Duration::from_millis(100);

/// Asks Consul for the instances of a service.
pub(super) struct Consul {
    config: Arc<ConsulConfig>,
    reading: Reading,
    server: Server,
    /// Of the last answer; 0 where there is none, or where it means nothing any more.
    index: u64,
    /// When it is asked next; `None` is at once.
    due: Option<Instant>,
    /// Whether it has answered yet.
    has_answered: bool,
}

impl Consul {
    pub(super) fn new(config: Arc<ConsulConfig>, reading: Reading) -> Self {
        let tls = TlsFiles { ca: config.ca.clone(), identity: None };
        let server = Server::new(config.address.clone(), reading.bytes_max, tls);
        Self { config, reading, server, index: 0, due: None, has_answered: false }
    }

    async fn ask(&mut self) -> Result<Answer, DiscoveryError> {
        if let Some(due) = self.due {
            sleep_until(due).await;
        }
        self.due = Some(Instant::now() + EVERY);
        // Until there is an answer. After a failure it may be another Consul, whose index has nothing to do with this one's.
        let index = std::mem::take(&mut self.index);
        let (request, time) = (request(&self.config, index)?, time(&self.config, index));
        let response = self.server.ask(request, time).await?;
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(refusal(head.status, &body));
        }
        let (number, lost) = (index_of(&head.headers)?, is_without_leader(&head.headers));
        let (config, zone_label, text) = (Arc::clone(&self.config), Arc::clone(&self.reading.zone_label), body.clone());
        let answer = beside(body.len(), move || read(&text, &config, &zone_label)).await?;
        // Without a leader nothing changes in Consul, and a server that has just begun may know nothing yet. What it says is better than
        // nothing, and than nothing else.
        if lost && (self.has_answered || answer.set.is_empty()) {
            return Err(DiscoveryError::new("it has no leader"));
        }
        self.index = next_index(index, number);
        self.has_answered = true;
        Ok(Answer { revision: Some(number.to_string().into()), ..answer })
    }
}

impl AnyDiscovery for Consul {
    fn next(&mut self) -> Answered<'_> {
        Box::pin(self.ask())
    }

    fn is_at_hand(&self) -> bool {
        false
    }
}

/// How long an answer may take: Consul adds up to a sixteenth to what it is asked to wait.
fn time(config: &ConsulConfig, index: u64) -> Duration {
    if index == 0 { config.timeout } else { config.wait + config.wait / 16 + config.timeout }
}

fn request(config: &ConsulConfig, index: u64) -> Result<Request<Full<Bytes>>, DiscoveryError> {
    let ConsulConfig { service, address, datacenter, namespace, partition, tags, filter, warning, stale, wait, .. } =
        config;
    let mut target = format!("{}/v1/health/service/{}?", address.base(), encoded(service));
    let mut and = |key: &str, value: &str| {
        target += &format!("{key}={}&", encoded(value));
    };
    if index > 0 {
        and("index", &index.to_string());
        and("wait", &format!("{}s", wait.as_secs().max(1)));
    }
    for (key, value) in [("dc", datacenter), ("ns", namespace), ("partition", partition), ("filter", filter)] {
        if let Some(value) = value {
            and(key, value);
        }
    }
    tags.iter().for_each(|tag| and("tag", tag));
    if !warning {
        and("passing", "1");
    }
    if *stale {
        target += "stale&";
    }
    target.pop();
    let mut request = Request::get(format!("http://{}{target}", address.authority()))
        .header("accept", "application/json")
        .header("user-agent", concat!("isobar/", env!("CARGO_PKG_VERSION")));
    if let Some(token) = &config.token {
        request = request.header("x-consul-token", token.reveal());
    }
    Ok(request.body(Full::default())?)
}

fn index_of(headers: &HeaderMap) -> Result<u64, DiscoveryError> {
    let index = headers.get("x-consul-index").and_then(|value| value.to_str().ok()?.parse().ok());
    index.ok_or_else(|| DiscoveryError::new("it sent no X-Consul-Index: this is not Consul's API"))
}

/// The index to ask with after an answer to a query with index `asked`.
fn next_index(asked: u64, answered: u64) -> u64 {
    // It went backwards: another server, or a restored snapshot.
    if answered < asked { 0 } else { answered.max(1) }
}

fn is_without_leader(headers: &HeaderMap) -> bool {
    headers.get("x-consul-knownleader").is_some_and(|value| value == "false")
}

/// An instance of a service, with its node and its checks.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    node: Node,
    service: Service,
    #[serde(default)]
    checks: Vec<Check>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    #[serde(default)]
    node: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    datacenter: Option<String>,
    #[serde(default)]
    meta: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    address: String,
    port: u32,
    #[serde(default)]
    meta: Option<BTreeMap<String, String>>,
    #[serde(default)]
    weights: Option<Weights>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u32,
    warning: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    #[serde(default)]
    status: String,
}

/// How an instance does: as the worst of its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Status {
    Passing,
    Warning,
    Critical,
}

impl Status {
    fn of(checks: &[Check]) -> Self {
        let of = |check: &Check| match check.status.as_str() {
            "passing" => Self::Passing,
            "warning" => Self::Warning,
            // Critical; maintenance is a critical check.
            _ => Self::Critical,
        };
        checks.iter().map(of).max().unwrap_or(Self::Passing)
    }
}

fn read(body: &[u8], config: &ConsulConfig, zone_label: &str) -> Result<Answer, DiscoveryError> {
    let entries: Vec<Value> = serde_json::from_slice(body)
        .map_err(|error| DiscoveryError::new(format!("its answer is no list of instances: {error}")))?;
    let (mut instances, mut refused) = (Vec::with_capacity(entries.len()), Vec::new());
    for (number, entry) in (1..).zip(entries) {
        let entry = match Entry::deserialize(entry) {
            Ok(entry) => entry,
            Err(error) => {
                refused.push(format!("entry {number}: {error}"));
                continue;
            }
        };
        let status = Status::of(&entry.checks);
        let wanted = status == Status::Passing || (status == Status::Warning && config.warning);
        let tags = entry.service.tags.as_deref().unwrap_or_default();
        // What was asked for, whatever it is that answers.
        if !wanted || !config.tags.iter().all(|tag| tags.iter().any(|it| **it == **tag)) {
            continue;
        }
        let id = entry.service.id.chars().take(60).collect::<String>();
        match instance(entry, status, zone_label) {
            Ok(instance) => instances.push(instance),
            Err(what) => refused.push(format!("entry {number} ({id:?}): {what}")),
        }
    }
    Ok(Answer { set: BackendSet::new(instances), refused, revision: None, hold: None })
}

fn instance(entry: Entry, status: Status, zone_label: &str) -> Result<Instance, String> {
    let Entry { node, service, .. } = entry;
    let host = if service.address.is_empty() { &node.address } else { &service.address };
    let mut instance = Instance::new(address(host, service.port)?);
    if let Some(Weights { passing, warning }) = service.weights {
        let weight = if status == Status::Warning { warning } else { passing };
        instance.weight = u16::try_from(weight).unwrap_or(u16::MAX);
    }
    for (name, value) in service.meta.iter().flatten() {
        label(&mut instance, name, value)?;
    }
    let tags = service.tags.unwrap_or_default().join(",");
    let of_consul =
        [("id", Some(service.id)), ("node", Some(node.node)), ("datacenter", node.datacenter), ("tags", Some(tags))];
    for (name, value) in of_consul {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            label(&mut instance, name, &value)?;
        }
    }
    let of_node = node.meta.as_ref().and_then(|meta| meta.get(zone_label)).map(|zone| zone.as_str().into());
    instance.place.zone = instance.labels.get(zone_label).cloned().or(of_node);
    Ok(instance)
}

fn address(host: &str, port: u32) -> Result<Address, String> {
    // An IPv6 address has no brackets here.
    let text = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    text.parse().map_err(|_| format!("{text:?} is not an address with a port"))
}

#[cfg(test)]
mod tests;
