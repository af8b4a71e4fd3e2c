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
use super::listing::{Listed, Listing, ListsServices};
use super::reading::{Reading, beside};
use super::{Answer, Answered, AnyDiscovery, DiscoveryError};
use crate::backend::document::label;
use crate::backend::{BackendSet, Instance};
use crate::config::{Address, ConsulConfig};

/// The shortest time between two queries: a service of which something changes all the time is looked at ten times a second.
const EVERY: Duration = Duration::from_millis(100);

/// Asks Consul for the instances of a service.
pub(super) struct Consul {
    query: BlockingQuery,
    reading: Reading,
}

impl Consul {
    pub(super) fn new(config: Arc<ConsulConfig>, reading: Reading) -> Self {
        Self { query: BlockingQuery::new(config, reading.bytes_max), reading }
    }

    async fn ask(&mut self) -> Result<Answer, DiscoveryError> {
        let QueryAnswer { number, next, lost, body } = self.query.ask(instances_target).await?;
        let (config, zone_label) = (Arc::clone(&self.query.config), Arc::clone(&self.reading.zone_label));
        let answer = beside(body.len(), move || read(&body, &config, &zone_label)).await?;
        self.query.accept(next, lost, answer.set.is_empty())?;
        Ok(Answer { revision: Some(number.to_string().into()), ..answer })
    }
}

/// A query that Consul holds until there is something new.
struct BlockingQuery {
    config: Arc<ConsulConfig>,
    server: Server,
    /// Of the last answer; 0 where there is none, or where it means nothing any more.
    index: u64,
    /// When it is asked next; `None` is at once.
    due: Option<Instant>,
    /// Whether it has answered yet.
    has_answered: bool,
}

struct QueryAnswer {
    /// The index of the answer.
    number: u64,
    /// The index to ask with after it.
    next: u64,
    /// Whether Consul has no leader.
    lost: bool,
    body: Bytes,
}

impl BlockingQuery {
    fn new(config: Arc<ConsulConfig>, bytes_max: usize) -> Self {
        let tls = TlsFiles { ca: config.ca.clone(), identity: None };
        let server = Server::new(config.address.clone(), bytes_max, tls);
        Self { config, server, index: 0, due: None, has_answered: false }
    }

    async fn ask(&mut self, target: fn(&ConsulConfig, u64) -> String) -> Result<QueryAnswer, DiscoveryError> {
        if let Some(due) = self.due {
            sleep_until(due).await;
        }
        self.due = Some(Instant::now() + EVERY);
        // Until there is an answer. After a failure it may be another Consul, whose index has nothing to do with this one's.
        let index = std::mem::take(&mut self.index);
        let (request, time) = (request(&self.config, &target(&self.config, index))?, time(&self.config, index));
        let response = self.server.ask(request, time).await?;
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(refusal(head.status, &body));
        }
        let (number, lost) = (index_of(&head.headers)?, is_without_leader(&head.headers));
        Ok(QueryAnswer { number, next: next_index(index, number), lost, body })
    }

    /// Goes on from an answer that could be read.
    ///
    /// # Errors
    /// When it is not to be believed: without a leader nothing changes in Consul, and a server that has just begun may know nothing yet. What it
    /// says is better than nothing, and than nothing else.
    fn accept(&mut self, next: u64, lost: bool, is_empty: bool) -> Result<(), DiscoveryError> {
        if lost && (self.has_answered || is_empty) {
            return Err(DiscoveryError::new("it has no leader"));
        }
        (self.index, self.has_answered) = (next, true);
        Ok(())
    }
}

/// Lists the services of Consul's catalog, with the tags that any of their instances has.
pub(super) struct ConsulServices {
    query: BlockingQuery,
}

impl ConsulServices {
    pub(super) fn new(config: &Arc<ConsulConfig>, reading: &Reading) -> Self {
        Self { query: BlockingQuery::new(Arc::clone(config), reading.bytes_max) }
    }

    async fn ask(&mut self) -> Result<Listing, DiscoveryError> {
        let QueryAnswer { next, lost, body, .. } = self.query.ask(services_target).await?;
        let config = Arc::clone(&self.query.config);
        let listing = beside(body.len(), move || read_services(&body, &config)).await?;
        self.query.accept(next, lost, listing.services.is_empty())?;
        Ok(listing)
    }
}

impl ListsServices for ConsulServices {
    fn next(&mut self) -> Listed<'_> {
        Box::pin(self.ask())
    }
}

fn read_services(body: &[u8], config: &ConsulConfig) -> Result<Listing, DiscoveryError> {
    let all: BTreeMap<String, Vec<String>> = serde_json::from_slice(body)
        .map_err(|error| DiscoveryError::new(format!("its answer is no list of services: {error}")))?;
    // One without these has no instances that would be taken.
    let has_tags = |tags: &[String]| config.tags.iter().all(|tag| tags.iter().any(|it| **it == **tag));
    Ok(Listing::of(all.into_iter().filter(|(_, tags)| has_tags(tags))))
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

/// The query for the instances of a service.
fn instances_target(config: &ConsulConfig, index: u64) -> String {
    let mut target = Target::new(config, &format!("/v1/health/service/{}", encoded(&config.service)), index);
    if let Some(filter) = &config.filter {
        target.and("filter", filter);
    }
    config.tags.iter().for_each(|tag| target.and("tag", tag));
    if !config.warning {
        target.and("passing", "1");
    }
    target.finish(config)
}

/// The query for the names of all services.
fn services_target(config: &ConsulConfig, index: u64) -> String {
    Target::new(config, "/v1/catalog/services", index).finish(config)
}

/// The target of a query.
struct Target {
    text: String,
    has_query: bool,
}

impl Target {
    /// With what all queries have.
    fn new(config: &ConsulConfig, path: &str, index: u64) -> Self {
        let ConsulConfig { address, datacenter, namespace, partition, wait, .. } = config;
        let mut target = Self { text: format!("{}{path}", address.base()), has_query: false };
        if index > 0 {
            target.and("index", &index.to_string());
            target.and("wait", &format!("{}s", wait.as_secs().max(1)));
        }
        for (key, value) in [("dc", datacenter), ("ns", namespace), ("partition", partition)] {
            if let Some(value) = value {
                target.and(key, value);
            }
        }
        target
    }

    fn and(&mut self, key: &str, value: &str) {
        self.and_word(&format!("{key}={}", encoded(value)));
    }

    fn and_word(&mut self, word: &str) {
        self.text.push(if std::mem::replace(&mut self.has_query, true) { '&' } else { '?' });
        self.text.push_str(word);
    }

    fn finish(mut self, config: &ConsulConfig) -> String {
        if config.stale {
            self.and_word("stale");
        }
        self.text
    }
}

fn request(config: &ConsulConfig, target: &str) -> Result<Request<Full<Bytes>>, DiscoveryError> {
    let mut request = Request::get(format!("http://{}{target}", config.address.authority()))
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
    // Labels are shown: one that is too long for that, or one too many, is left out, and costs the instance nothing.
    let tags = service.tags.unwrap_or_default().join(",");
    let of_consul =
        [("id", Some(service.id)), ("node", Some(node.node)), ("datacenter", node.datacenter), ("tags", Some(tags))];
    for (name, value) in of_consul {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            let _ = label(&mut instance, name, &value);
        }
    }
    for (name, value) in service.meta.iter().flatten() {
        let _ = label(&mut instance, name, value);
    }
    let zone = |meta: &Option<BTreeMap<String, String>>| meta.as_ref().and_then(|meta| meta.get(zone_label)).cloned();
    instance.place.zone = zone(&service.meta).or_else(|| zone(&node.meta)).map(Arc::from);
    Ok(instance)
}

fn address(host: &str, port: u32) -> Result<Address, String> {
    // An IPv6 address has no brackets here.
    let text = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    text.parse().map_err(|_| format!("{text:?} is not an address with a port"))
}

#[cfg(test)]
mod tests;
