//! What is known of a registered instance: what its client said, and how its checks stand.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// By which API an instance registered. Its names and statuses are that API's; the other shows it in its own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Api {
    /// Consul's agent API.
    Consul,
    /// Eureka's REST API.
    Eureka,
}

/// What an instance is found again by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct InstanceKey {
    pub(super) api: Api,
    /// The application in lower case; empty in Consul's API, where an id is one service's alone.
    pub(super) app: String,
    pub(super) id: String,
}

impl InstanceKey {
    pub(super) fn of_consul(id: &str) -> Self {
        Self { api: Api::Consul, app: String::new(), id: id.to_owned() }
    }

    pub(super) fn of_eureka(app: &str, id: &str) -> Self {
        Self { api: Api::Eureka, app: app.to_ascii_lowercase(), id: id.to_owned() }
    }
}

/// What a client says of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registration {
    pub(super) api: Api,
    /// The service's name as the client wrote it.
    pub(super) service: String,
    pub(super) id: String,
    /// An IP address or a name.
    pub(super) address: String,
    /// 0 is none: an instance that takes no requests.
    pub(super) port: u16,
    pub(super) tags: Vec<String>,
    pub(super) meta: BTreeMap<String, String>,
    pub(super) weights: Weights,
    pub(super) checks: Vec<CheckSpec>,
    /// What Eureka's clients say beside that.
    pub(super) eureka: Option<EurekaInfo>,
}

impl Registration {
    pub(super) fn key(&self) -> InstanceKey {
        match self.api {
            Api::Consul => InstanceKey::of_consul(&self.id),
            Api::Eureka => InstanceKey::of_eureka(&self.service, &self.id),
        }
    }

    /// Bytes of all its texts.
    fn text_bytes(&self) -> usize {
        let Self { service, id, address, tags, meta, checks, eureka, .. } = self;
        let named = service.len() + id.len() + address.len();
        let tags = tags.iter().map(String::len).sum::<usize>();
        let checks = checks.iter().map(CheckSpec::text_bytes).sum::<usize>();
        named + tags + text_bytes(meta) + checks + eureka.as_ref().map_or(0, EurekaInfo::text_bytes)
    }
}

fn text_bytes(table: &BTreeMap<String, String>) -> usize {
    table.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// The share of an instance whose checks pass, and of one of which a check warns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Weights {
    pub(super) passing: u16,
    pub(super) warning: u16,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

/// A check that an instance is to pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CheckSpec {
    /// Unique among all checks of Consul's API.
    pub(super) id: String,
    pub(super) name: String,
    pub(super) notes: String,
    pub(super) kind: CheckKind,
    /// Before the first result.
    pub(super) initial: Status,
    /// How long it may be critical before its instance is deregistered; `None` is for good.
    pub(super) deregister_after: Option<Duration>,
    /// Results in a row that make it passing.
    pub(super) passes_needed: u32,
    /// Results in a row that make it critical.
    pub(super) failures_needed: u32,
}

impl CheckSpec {
    fn text_bytes(&self) -> usize {
        let asked = match &self.kind {
            CheckKind::Probe(Probe { target: ProbeTarget::Http(http), .. }) => {
                let headers = http.headers.iter().map(|(name, value)| name.len() + value.len());
                http.host.len() + http.target.len() + http.body.len() + headers.sum::<usize>()
            }
            CheckKind::Probe(Probe { target: ProbeTarget::Tcp { host, .. }, .. }) => host.len(),
            CheckKind::Ttl(_) | CheckKind::Lease { .. } => 0,
        };
        self.id.len() + self.name.len() + self.notes.len() + asked
    }
}

/// How it is found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CheckKind {
    /// The client sends heartbeats: without one for so long, the check is critical.
    Ttl(Duration),
    /// The same in Eureka's API: without one, the instance is gone.
    Lease {
        /// How often the client means to send one.
        renewal: Duration,
        /// How long one counts.
        duration: Duration,
    },
    /// isobar asks, again and again.
    Probe(Probe),
}

impl CheckKind {
    /// How long a heartbeat counts, where it is for the client to send them.
    pub(super) fn ttl(&self) -> Option<Duration> {
        match self {
            Self::Ttl(ttl) => Some(*ttl),
            Self::Lease { duration, .. } => Some(*duration),
            Self::Probe(_) => None,
        }
    }
}

/// A check that isobar runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Probe {
    pub(super) target: ProbeTarget,
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
}

/// What it asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ProbeTarget {
    /// Whether a connection can be made.
    Tcp { host: String, port: u16 },
    /// Whether a request is answered: 2xx is passing, 429 is a warning, anything else critical.
    Http(HttpTarget),
}

/// A request of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HttpTarget {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// Path and query.
    pub(super) target: String,
    pub(super) method: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

/// How a check stands, and an instance by the worst of its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Passing,
    Warning,
    Critical,
}

impl Status {
    /// As Consul's API writes it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    pub(super) fn of(word: &str) -> Option<Self> {
        [Self::Passing, Self::Warning, Self::Critical].into_iter().find(|it| it.as_str() == word)
    }
}

/// How Eureka's clients say that an instance does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum EurekaStatus {
    Up,
    Down,
    Starting,
    OutOfService,
    Unknown,
}

impl EurekaStatus {
    const ALL: [Self; 5] = [Self::Up, Self::Down, Self::Starting, Self::OutOfService, Self::Unknown];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Up => "UP",
            Self::Down => "DOWN",
            Self::Starting => "STARTING",
            Self::OutOfService => "OUT_OF_SERVICE",
            Self::Unknown => "UNKNOWN",
        }
    }

    pub(super) fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.as_str() == word)
    }
}

/// What Eureka's clients say of an instance that has no other place, and are told again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EurekaInfo {
    pub(super) host_name: String,
    pub(super) ip_address: String,
    /// What it says itself.
    pub(super) status: EurekaStatus,
    /// What a client has said from outside, which counts more.
    pub(super) overridden: EurekaStatus,
    pub(super) port: u16,
    pub(super) port_enabled: bool,
    pub(super) secure_port: u16,
    pub(super) secure_port_enabled: bool,
    pub(super) country_id: i64,
    /// The class and the name of its data center.
    pub(super) data_center_class: String,
    pub(super) data_center_name: String,
    /// `metadata` of its data center: on AWS there is some.
    pub(super) data_center_metadata: BTreeMap<String, String>,
    pub(super) home_page_url: Option<String>,
    pub(super) status_page_url: Option<String>,
    pub(super) health_check_url: Option<String>,
    pub(super) secure_health_check_url: Option<String>,
    pub(super) vip_address: Option<String>,
    pub(super) secure_vip_address: Option<String>,
    pub(super) app_group: Option<String>,
    pub(super) asg: Option<String>,
    /// Milliseconds since 1970, as the client has them.
    pub(super) last_dirty_ms: u64,
}

impl EurekaInfo {
    /// Its texts, without those of tables.
    pub(super) fn texts(&self) -> impl Iterator<Item = &String> {
        let texts = [&self.host_name, &self.ip_address, &self.data_center_class, &self.data_center_name];
        let others = [
            &self.home_page_url,
            &self.status_page_url,
            &self.health_check_url,
            &self.secure_health_check_url,
            &self.vip_address,
            &self.secure_vip_address,
            &self.app_group,
            &self.asg,
        ];
        texts.into_iter().chain(others.into_iter().flatten())
    }

    fn text_bytes(&self) -> usize {
        self.texts().map(String::len).sum::<usize>() + text_bytes(&self.data_center_metadata)
    }

    /// The status that counts.
    pub(super) fn effective(&self) -> EurekaStatus {
        if self.overridden == EurekaStatus::Unknown { self.status } else { self.overridden }
    }
}

/// A registered instance.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) said: Registration,
    /// One for each of `said.checks`.
    pub(super) checks: Vec<CheckState>,
    /// Why it is out of service; `None` where it is not.
    pub(super) maintenance: Option<String>,
    /// Of the registry's index.
    pub(super) created: u64,
    pub(super) modified: u64,
    /// Milliseconds since 1970.
    pub(super) registered_ms: u64,
    pub(super) renewed_ms: u64,
    pub(super) changed_ms: u64,
}

/// How a check stands.
#[derive(Clone, Debug)]
pub(super) struct CheckState {
    pub(super) status: Status,
    pub(super) output: String,
    /// When the last heartbeat ceases to count, or the next probe is due.
    pub(super) due: Instant,
    /// Since when it has been critical.
    pub(super) critical_since: Option<Instant>,
    /// Results in a row that speak for another status.
    pub(super) streak: u32,
    /// A probe is under way.
    pub(super) is_running: bool,
}

impl Instance {
    pub(super) fn key(&self) -> InstanceKey {
        self.said.key()
    }

    /// The service's name as it is looked up.
    pub(super) fn service(&self) -> String {
        self.said.service.to_ascii_lowercase()
    }

    /// How it does: as the worst of its checks.
    pub(super) fn status(&self) -> Status {
        let is_up = self.said.eureka.as_ref().is_none_or(|it| it.effective() == EurekaStatus::Up);
        if self.maintenance.is_some() || !is_up {
            return Status::Critical;
        }
        self.checks.iter().map(|check| check.status).max().unwrap_or(Status::Passing)
    }

    /// The same in Eureka's words.
    pub(super) fn eureka_status(&self) -> EurekaStatus {
        match (&self.said.eureka, self.status()) {
            (Some(info), _) if self.maintenance.is_none() => info.effective(),
            _ if self.maintenance.is_some() => EurekaStatus::OutOfService,
            (_, Status::Critical) => EurekaStatus::Down,
            (_, Status::Passing | Status::Warning) => EurekaStatus::Up,
        }
    }

    /// Bytes of all texts that are kept of it.
    pub(super) fn text_bytes(&self) -> usize {
        let outputs = self.checks.iter().map(|check| check.output.len());
        self.said.text_bytes() + outputs.sum::<usize>() + self.maintenance.as_ref().map_or(0, String::len)
    }

    pub(super) fn has_tags<S: AsRef<str>>(&self, tags: &[S]) -> bool {
        tags.iter().all(|tag| self.said.tags.iter().any(|it| it == tag.as_ref()))
    }
}
