//! A copy of what Eureka servers know, shared by all sources that ask the same ones.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use tokio::time::Instant;

use super::document::{Applications, EurekaInstance, State};
use super::has_no_deltas;
use crate::config::EurekaConfig;
use crate::discovery::DiscoveryError;
use crate::discovery::asked::{Server, TlsFiles, refusal};
use crate::discovery::reading::beside;

/// Servers that have failed are left alone for so long by all sources but one.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

/// The directories of this process, by what is asked of whom.
static SHARED: LazyLock<Mutex<HashMap<String, Weak<Directory>>>> = LazyLock::new(Mutex::default);

/// What some servers know.
pub(super) struct Directory {
    key: String,
    /// Held while they are asked: the other sources wait for the answer.
    inner: tokio::sync::Mutex<Inner>,
}

struct Inner {
    servers: Vec<Server>,
    /// The one that has answered last.
    preferred: usize,
    /// `None` until there is one, and when it may have missed something.
    copy: Option<Arc<DirectoryCopy>>,
    /// When `copy` was the servers'. Not before one was asked for.
    fetched: Option<Instant>,
    /// The last failure, and when it was.
    failed: Option<(Instant, String)>,
    /// Whether the servers have said that they have no deltas.
    whole_only: bool,
}

impl Directory {
    /// The directory for these servers, which others may have already.
    pub(super) fn shared(config: &EurekaConfig, bytes_max: usize) -> Arc<Self> {
        let EurekaConfig { servers, username, password, ca, .. } = config;
        let password = password.as_ref().map(|password| password.reveal());
        let key = format!("{servers:?} {username:?} {password:?} {ca:?} {bytes_max}");
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(directory) = shared.get(&key).and_then(Weak::upgrade) {
            return directory;
        }
        let tls = || TlsFiles { ca: ca.clone(), identity: None };
        let servers = config.servers.iter().map(|url| Server::new(url.clone(), bytes_max, tls())).collect();
        let inner = Inner { servers, preferred: 0, copy: None, fetched: None, failed: None, whole_only: false };
        let directory = Arc::new(Self { key: key.clone(), inner: tokio::sync::Mutex::new(inner) });
        shared.insert(key, Arc::downgrade(&directory));
        directory
    }

    /// A copy of now, or nearly, and when it was fetched: the servers are asked unless they were a moment ago.
    pub(super) async fn now(&self, config: &EurekaConfig) -> Result<(Arc<DirectoryCopy>, Instant), DiscoveryError> {
        // A source that waits here while another one asks has its answer.
        let wanted = Instant::now();
        let mut inner = self.inner.lock().await;
        let moment = (config.interval / 10).min(Duration::from_secs(1));
        if let (Some(copy), Some(fetched)) = (&inner.copy, inner.fetched)
            && (fetched >= wanted || wanted - fetched < moment)
        {
            return Ok((Arc::clone(copy), fetched));
        }
        if let Some((when, what)) = &inner.failed
            && (*when >= wanted || wanted - *when < FAILED_PAUSE)
        {
            return Err(DiscoveryError::new(what.clone()));
        }
        let asked = inner.ask(config).await;
        inner.failed = asked.as_ref().err().map(|error| (Instant::now(), error.to_string()));
        let (copy, fetched) = (asked?, Instant::now());
        inner.fetched = Some(fetched);
        Ok((Arc::clone(inner.copy.insert(copy)), fetched))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        // Another may have its place by now.
        if shared.get(&self.key).is_some_and(|it| it.strong_count() == 0) {
            shared.remove(&self.key);
        }
    }
}

impl Inner {
    /// Asks the servers, one after the other, beginning with the one that has answered last.
    async fn ask(&mut self, config: &EurekaConfig) -> Result<Arc<DirectoryCopy>, DiscoveryError> {
        let mut errors = Vec::new();
        for turn in 0..self.servers.len() {
            let server = (self.preferred + turn) % self.servers.len();
            match self.ask_one(config, server).await {
                Ok(copy) => {
                    self.preferred = server;
                    return Ok(copy);
                }
                Err(error) => errors.push(error),
            }
            // Another server may be behind this one: what it changes is not what this one has not told yet.
            self.copy = self.copy.take().filter(|_| self.servers.len() == 1);
        }
        let what: Vec<_> =
            errors.iter().zip(&config.servers).map(|(error, url)| format!("{}: {error}", url.authority())).collect();
        match (errors.len(), errors.pop()) {
            (1, Some(error)) => Err(error),
            _ => Err(DiscoveryError::new(what.join("; "))),
        }
    }

    async fn ask_one(&mut self, config: &EurekaConfig, server: usize) -> Result<Arc<DirectoryCopy>, DiscoveryError> {
        if let (Some(copy), false) = (self.copy.clone(), self.whole_only) {
            let response = self.get(config, server, "/apps/delta").await?;
            match response.status() {
                StatusCode::OK => {
                    let delta = read(response).await?;
                    if let Some(copy) = copy.changed(delta) {
                        return Ok(copy);
                    }
                }
                status if has_no_deltas(status) => self.whole_only = true,
                status => return Err(refusal(status, response.body())),
            }
        }
        let response = self.get(config, server, "/apps").await?;
        match response.status() {
            StatusCode::OK => Ok(Arc::new(DirectoryCopy::of(read(response).await?))),
            status => Err(refusal(status, response.body())),
        }
    }

    async fn get(
        &mut self,
        config: &EurekaConfig,
        server: usize,
        path: &str,
    ) -> Result<Response<Bytes>, DiscoveryError> {
        let url = &config.servers[server];
        let mut request = Request::get(format!("http://{}{}{path}", url.authority(), url.base()))
            .header(header::ACCEPT, "application/json, application/xml;q=0.5")
            .header(header::USER_AGENT, concat!("isobar/", env!("CARGO_PKG_VERSION")));
        if let (Some(username), Some(password)) = (&config.username, &config.password) {
            let login = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{}", password.reveal()));
            request = request.header(header::AUTHORIZATION, format!("Basic {login}"));
        }
        let request = request.body(Full::default())?;
        self.servers[server].ask(request, config.timeout).await
    }
}

async fn read(response: Response<Bytes>) -> Result<Applications, DiscoveryError> {
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let is_xml = kind.is_some_and(|kind| kind.contains("xml"));
    let body = response.into_body();
    beside(body.len(), move || Applications::read(&body, is_xml).map_err(DiscoveryError::new)).await
}

/// What the servers knew at a moment: of each application its instances, by their IDs.
#[derive(Clone, Debug, Default)]
pub(super) struct DirectoryCopy {
    /// By name in capitals.
    applications: BTreeMap<String, BTreeMap<String, EurekaInstance>>,
}

impl DirectoryCopy {
    /// All of what a server has sent.
    pub(super) fn of(all: Applications) -> Self {
        let mut copy = Self::default();
        for instance in all.instances {
            copy.put(instance);
        }
        copy
    }

    fn put(&mut self, instance: EurekaInstance) {
        let application = self.applications.entry(instance.application.clone()).or_default();
        application.insert(instance.id.clone(), instance);
    }

    /// With what has changed of late. `None` where the result is not what the server has: something was missed.
    pub(super) fn changed(self: &Arc<Self>, delta: Applications) -> Option<Arc<Self>> {
        if delta.instances.is_empty() {
            return (self.hash_code() == delta.hash_code).then(|| Arc::clone(self));
        }
        let mut copy = Self::clone(self);
        for instance in delta.instances {
            if instance.is_deleted {
                if let Some(application) = copy.applications.get_mut(&instance.application) {
                    application.remove(&instance.id);
                }
            } else {
                copy.put(instance);
            }
        }
        copy.applications.retain(|_, instances| !instances.is_empty());
        (copy.hash_code() == delta.hash_code).then(|| Arc::new(copy))
    }

    /// How many instances there are of each state, as Eureka writes it: `DOWN_1_UP_3_`.
    pub(super) fn hash_code(&self) -> String {
        let mut counts = BTreeMap::<&str, usize>::new();
        for instance in self.applications.values().flat_map(BTreeMap::values) {
            *counts.entry(instance.state.as_str()).or_default() += 1;
        }
        counts.iter().map(|(state, count)| format!("{state}_{count}_")).collect()
    }

    /// All applications, with their instances in any state.
    pub(super) fn applications(&self) -> impl Iterator<Item = (&str, impl Iterator<Item = &EurekaInstance>)> {
        self.applications.iter().map(|(name, instances)| (name.as_str(), instances.values()))
    }

    /// The instances of an application that take requests.
    pub(super) fn application(&self, name: &str) -> impl Iterator<Item = &EurekaInstance> {
        let found = self.applications.get(&name.to_uppercase());
        found.into_iter().flat_map(BTreeMap::values).filter(|instance| instance.state == State::Up)
    }
}
