//! Containers of a Docker daemon, by its HTTP API: they are listed, and its events tell when to list them again.
//!
//! A list is small and says all of it, and the daemon's events come in no order that would be worth a copy of its state: so each event that may
//! concern a container has all listed again, a tenth of a second apart at least. The stream of events is open before the first list is
//! asked for, so that nothing falls between them. It says nothing while nothing changes, so all is listed now and then: a daemon that hangs
//! cannot answer that.
//!
//! A container that is stopped is told of twice: when it is sent its signal to stop, and when it has ended. The first takes its backend away.
//!
//! The daemon knows its containers, so what it says of them is believed at once, also of half of them: an address of a container that is gone may be
//! given to another one at any time. What is missing in a list without an event that told of it is another matter: a daemon that begins, or
//! one in place of another. That is held back as with other sources.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout};

use super::asked::{Server, TlsFiles, encoded, refusal};
use super::lines::Lines;
use super::reading::{Reading, beside};
use super::{Answer, Answered, AnyDiscovery, DiscoveryError};
use crate::backend::BackendSet;
use crate::config::{DockerConfig, DockerEndpoint, UpstreamName};

mod container;
mod event;

use container::Container;
use event::{Event, Happened, StopSignal};

/// Events that follow each other faster are answered by one list.
const EVERY: Duration = Duration::from_millis(100);

/// A stream of events is opened no more often than this.
const OPEN_EVERY: Duration = Duration::from_secs(1);

/// How long a container that was sent its signal to stop may go on before it is a backend again.
const LEAVES_WITHIN: Duration = Duration::from_secs(600);

/// Bytes of an event.
const EVENT_BYTES_MAX: usize = 256 * 1024;

/// Lists containers and follows the daemon's events.
pub(super) struct Docker {
    config: Arc<DockerConfig>,
    /// The labels that a container must have.
    labels: Vec<Arc<str>>,
    reading: Reading,
    /// How long what is missing without a reason is held back.
    hold: Duration,
    daemon: Server,
    /// The path that the daemon's version of the API has.
    version: String,
    events: Option<Lines>,
    /// When the stream of events was opened last, or that was tried.
    opened: Option<Instant>,
    /// When all was listed last.
    listed: Option<Instant>,
    /// Whether something has happened since.
    has_news: bool,
    containers: Known,
}

/// What is known of containers beside the last list.
#[derive(Default)]
struct Known {
    /// Those of the last list, by ID; and those that are missing in it for no reason, and since when.
    listed: HashMap<String, Option<Instant>>,
    /// Those that were sent their signal to stop, and when.
    leaving: HashMap<String, Instant>,
    /// Those that events have told of since.
    told_of: HashSet<String>,
}

impl Known {
    /// Takes in a list. Says whether what is missing in it is to be held back: events have not told of it, and it is more than half, or all.
    fn is_doubtful(&mut self, now_listed: &HashSet<String>, now: Instant, hold: Duration) -> bool {
        let before = self.listed.len();
        self.listed.retain(|id, missing| {
            if now_listed.contains(id) {
                *missing = None;
                return true;
            }
            let since = *missing.get_or_insert(now);
            !self.told_of.contains(id) && !self.leaving.contains_key(id) && now < since + hold
        });
        self.told_of.clear();
        let missing = self.listed.values().filter(|missing| missing.is_some()).count();
        let is_doubtful = missing > 0 && (missing * 2 > before || now_listed.is_empty());
        if !is_doubtful {
            self.listed.retain(|_, missing| missing.is_none());
        }
        self.listed.extend(now_listed.iter().map(|id| (id.clone(), None)));
        is_doubtful
    }
}

impl Docker {
    pub(super) fn new(config: Arc<DockerConfig>, upstream: &UpstreamName, reading: Reading, hold: Duration) -> Self {
        let identity = config.certificate.clone().zip(config.key.clone());
        let daemon = match &config.endpoint {
            DockerEndpoint::Socket(path) => Server::at_socket(path.clone(), reading.bytes_max),
            DockerEndpoint::Http(url) => {
                Server::new(url.clone(), reading.bytes_max, TlsFiles { ca: config.ca.clone(), identity })
            }
        };
        let labels = match config.labels.is_empty() {
            true => vec![format!("isobar.upstream={upstream}").into()],
            false => config.labels.clone(),
        };
        Self {
            config,
            labels,
            reading,
            hold,
            daemon,
            version: String::new(),
            events: None,
            opened: None,
            listed: None,
            has_news: false,
            containers: Known::default(),
        }
    }

    async fn ask(&mut self) -> Result<Answer, DiscoveryError> {
        if self.events.is_some() {
            match self.follow().await {
                Ok(()) => {}
                // Whether it was the stream or the daemon, the next list tells.
                Err(_) => self.events = None,
            }
        }
        if self.events.is_none() {
            if let Some(opened) = self.opened {
                sleep_until(opened + OPEN_EVERY).await;
            }
            self.opened = Some(Instant::now());
            self.version = self.version().await?;
            self.events = Some(self.open_events().await?);
        }
        let listed = self.list().await;
        if listed.is_err() {
            self.events = None;
        }
        listed
    }

    /// Waits until all is to be listed: something has happened, or the time is over.
    async fn follow(&mut self) -> Result<(), DiscoveryError> {
        let listed = self.listed.unwrap_or_else(Instant::now);
        while !self.has_news || listed.elapsed() < EVERY {
            let due = listed + if self.has_news { EVERY } else { self.config.resync };
            let Some(events) = &mut self.events else {
                return Err(DiscoveryError::new("there is no stream of events"));
            };
            tokio::select! {
                line = events.next() => {
                    let line = line?.ok_or_else(|| DiscoveryError::new("its stream of events has ended"))?;
                    if let Some(event) = Event::read(&line) {
                        self.take(event).await;
                    }
                }
                () = sleep_until(due) => return Ok(()),
            }
        }
        Ok(())
    }

    async fn take(&mut self, event: Event) {
        match event.happened {
            Happened::Signalled(signal) => {
                if !self.containers.listed.contains_key(&event.id) || !self.stops_by(&event.id, signal).await {
                    return;
                }
                self.containers.leaving.insert(event.id, Instant::now());
            }
            Happened::Ended => {
                self.containers.leaving.remove(&event.id);
                self.containers.told_of.insert(event.id);
            }
            Happened::Started => drop(self.containers.leaving.remove(&event.id)),
            Happened::Changed => drop(self.containers.told_of.insert(event.id)),
        }
        self.has_news = true;
    }

    /// Whether that signal is the one by which a container stops: other signals have servers read their files again.
    async fn stops_by(&mut self, id: &str, signal: StopSignal) -> bool {
        if signal == StopSignal::KILL {
            return true;
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Inspected {
            config: InspectedConfig,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct InspectedConfig {
            #[serde(default)]
            stop_signal: Option<String>,
        }
        let asked = self.get(&format!("/containers/{}/json", encoded(id))).await;
        let inspected = asked.ok().and_then(|it| serde_json::from_slice::<Inspected>(it.body()).ok());
        let own = inspected.and_then(|it| it.config.stop_signal).and_then(|name| StopSignal::read(&name));
        signal == own.unwrap_or(StopSignal::TERM)
    }

    /// The path of the latest version of the API that the daemon has: each speaks its own, and old ones are refused one day.
    async fn version(&mut self) -> Result<String, DiscoveryError> {
        self.version.clear();
        let ping = self.get("/_ping").await?;
        let version = ping.headers().get("api-version").and_then(|it| it.to_str().ok()).unwrap_or_default();
        let is_version = !version.is_empty() && version.chars().all(|c| c.is_ascii_digit() || c == '.');
        // What stands between may not let it through. Without a version it is the daemon's own too.
        Ok(if is_version { format!("/v{version}") } else { String::new() })
    }

    async fn open_events(&mut self) -> Result<Lines, DiscoveryError> {
        let filters = json!({ "type": ["container", "network"], "event": event::NAMES });
        let request = self.request(&format!("/events?filters={}", encoded(&filters.to_string())))?;
        let time = self.config.timeout;
        let response = self.daemon.begin(request, time).await?;
        if response.status() != StatusCode::OK {
            let (status, body) = (response.status(), response.into_body());
            let body = timeout(time, Limited::new(body, 4096).collect()).await;
            let body = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
            return Err(refused(status, &body));
        }
        Ok(Lines::new(response, EVENT_BYTES_MAX))
    }

    async fn list(&mut self) -> Result<Answer, DiscoveryError> {
        let begun = Instant::now();
        self.has_news = false;
        let labels: Vec<&str> = self.labels.iter().map(|label| &**label).collect();
        let filters = json!({ "label": labels, "status": ["running"] });
        let response = self.get(&format!("/containers/json?filters={}", encoded(&filters.to_string()))).await?;
        if response.status() != StatusCode::OK {
            return Err(refused(response.status(), response.body()));
        }
        let body = response.into_body();
        self.containers.leaving.retain(|_, since| begun - *since < LEAVES_WITHIN);
        let leaving: HashSet<_> = self.containers.leaving.keys().cloned().collect();
        let (config, zone_label, labels) =
            (Arc::clone(&self.config), Arc::clone(&self.reading.zone_label), self.labels.clone());
        let (answer, ids) = beside(body.len(), move || read(&body, &config, &labels, &leaving, &zone_label)).await?;
        self.listed = Some(begun);
        let hold = self.containers.is_doubtful(&ids, begun, self.hold).then_some(self.hold);
        Ok(Answer { hold, ..answer })
    }

    async fn get(&mut self, target: &str) -> Result<Response<Bytes>, DiscoveryError> {
        let (request, time) = (self.request(target)?, self.config.timeout);
        self.daemon.ask(request, time).await
    }

    fn request(&self, target: &str) -> Result<Request<Full<Bytes>>, DiscoveryError> {
        let (authority, base) = match &self.config.endpoint {
            DockerEndpoint::Socket(_) => ("docker".to_owned(), ""),
            DockerEndpoint::Http(url) => (url.authority(), url.base()),
        };
        let request = Request::get(format!("http://{authority}{base}{}{target}", self.version))
            .header("user-agent", concat!("isobar/", env!("CARGO_PKG_VERSION")));
        Ok(request.body(Full::default())?)
    }
}

impl AnyDiscovery for Docker {
    fn next(&mut self) -> Answered<'_> {
        Box::pin(self.ask())
    }

    fn is_at_hand(&self) -> bool {
        false
    }
}

/// An answer with another status than the expected one. The daemon says in JSON what is wrong.
fn refused(status: StatusCode, body: &[u8]) -> DiscoveryError {
    let said = serde_json::from_slice::<Value>(body).ok();
    match said.as_ref().and_then(|it| it.get("message")?.as_str()) {
        Some(message) => refusal(status, message.as_bytes()),
        None => refusal(status, body),
    }
}

/// Reads a list: its backends, and the IDs of its containers.
fn read(
    body: &[u8],
    config: &DockerConfig,
    labels: &[Arc<str>],
    leaving: &HashSet<String>,
    zone_label: &str,
) -> Result<(Answer, HashSet<String>), DiscoveryError> {
    let entries: Vec<Value> = serde_json::from_slice(body)
        .map_err(|error| DiscoveryError::new(format!("its answer is no list of containers: {error}")))?;
    let (mut instances, mut refused, mut ids) = (Vec::with_capacity(entries.len()), Vec::new(), HashSet::new());
    for (number, entry) in (1..).zip(entries) {
        let container = match Container::deserialize(entry) {
            Ok(container) => container,
            Err(error) => {
                refused.push(format!("container {number}: {error}"));
                continue;
            }
        };
        // What was asked for, whatever it is that answers.
        if !container.runs() || !labels.iter().all(|label| container.has(label)) {
            continue;
        }
        ids.insert(container.id.clone());
        if leaving.contains(&container.id) || !container.may_be_healthy() {
            continue;
        }
        let name = container.name().chars().take(60).collect::<String>();
        match container.backend(config, zone_label) {
            Ok(instance) => instances.push(instance),
            Err(what) => refused.push(format!("container {name:?}: {what}")),
        }
    }
    Ok((Answer { set: BackendSet::new(instances), refused, revision: None, hold: None }, ids))
}

#[cfg(test)]
mod tests;
