//! Keys with a prefix in etcd, by its JSON gateway: they are read at a revision, and watched from the next one on.
//!
//! The [gateway](https://etcd.io/docs/v3.6/dev-guide/api_grpc_gateway/) is part of each member and speaks HTTP/1.1, so that nothing is needed
//! here that the other sources do not have. A watch always begins where a reading ended. One that breaks, or whose revision was compacted away,
//! begins with a reading again, at the next member where there are several. A watch says nothing while nothing changes, so all is read
//! again now and then: a member that hangs, or that has lost the others, cannot answer that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout};

use super::asked::{Server, TlsFiles, refusal};
use super::lines::Lines;
use super::listing::{Listed, Listing, ListsServices};
use super::reading::{Reading, beside};
use super::{Answer, Answered, AnyDiscovery, DiscoveryError, record};
use crate::backend::{BackendSet, Instance};
use crate::config::{EtcdConfig, SERVICE};

/// Changes that follow each other faster are said together.
const EVERY: Duration = Duration::from_millis(100);

/// All is read no more often than this, however often a watch breaks.
const READ_EVERY: Duration = Duration::from_secs(1);

/// Reads the keys of a prefix and watches them.
pub(super) struct Etcd {
    config: Arc<EtcdConfig>,
    reading: Reading,
    members: Vec<Server>,
    /// The member that is asked.
    current: usize,
    /// Of the login there.
    token: Option<String>,
    records: Records,
    /// What is open of it: lines of JSON, as something changes.
    watch: Option<Lines>,
    /// When all was read last, or that was tried.
    read: Option<Instant>,
    /// When something was said last, and whether there is something new since.
    said: Option<Instant>,
    has_news: bool,
}

/// What is under the prefix.
#[derive(Default)]
struct Records {
    by_key: BTreeMap<String, Record>,
    /// Bytes of all keys and values.
    bytes: usize,
    /// That of the last reading: what is in here goes back to it at least.
    read: u64,
    /// The last one that is known.
    revision: u64,
}

struct Record {
    value: Bytes,
    says: Result<Vec<Instance>, String>,
}

impl Etcd {
    pub(super) fn new(config: Arc<EtcdConfig>, reading: Reading) -> Self {
        let tls = || TlsFiles { ca: config.ca.clone(), identity: config.certificate.clone().zip(config.key.clone()) };
        // In base64, and with the names of fields, a value is longer than it is.
        let bytes = reading.bytes_max.saturating_mul(2);
        let members = config.endpoints.iter().map(|url| Server::new(url.clone(), bytes, tls())).collect();
        Self {
            config,
            reading,
            members,
            current: 0,
            token: None,
            records: Records::default(),
            watch: None,
            read: None,
            said: None,
            has_news: false,
        }
    }

    async fn ask(&mut self) -> Result<Answer, DiscoveryError> {
        if self.watch.is_some() {
            match self.follow().await {
                Ok(answer) => return Ok(answer),
                // Whether it is one member or all of them, the next reading tells.
                Err(_) => self.turn_to_next(),
            }
        }
        self.begin().await
    }

    /// Reads all and begins to watch, at the first member that lets it.
    async fn begin(&mut self) -> Result<Answer, DiscoveryError> {
        if let Some(read) = self.read {
            sleep_until(read + READ_EVERY).await;
        }
        let mut last = None;
        for _ in 0..self.members.len() {
            self.read = Some(Instant::now());
            match self.begin_here().await {
                Ok(()) => return Ok(self.say()),
                Err(error) => last = Some(error),
            }
            self.turn_to_next();
        }
        Err(last.unwrap_or_else(|| DiscoveryError::new("there is no endpoint to ask")))
    }

    async fn begin_here(&mut self) -> Result<(), DiscoveryError> {
        self.read_all().await?;
        let watch = self.open_watch().await?;
        self.watch = Some(watch);
        Ok(())
    }

    /// A token is a member's own where etcd makes simple ones.
    fn turn_to_next(&mut self) {
        self.watch = None;
        self.token = None;
        self.current = (self.current + 1) % self.members.len().max(1);
    }

    /// Waits until there is something to say: a change, or that all was read again.
    async fn follow(&mut self) -> Result<Answer, DiscoveryError> {
        let resync = self.read.map_or_else(Instant::now, |read| read + self.config.resync);
        loop {
            let due = self.said.map_or_else(Instant::now, |said| said + EVERY);
            let Some(watch) = &mut self.watch else { return Err(DiscoveryError::new("there is no watch")) };
            tokio::select! {
                line = watch.next() => {
                    let events = watched(&going_on(line?)?)?;
                    self.has_news |= self.records.apply(events, &self.reading)?;
                }
                () = sleep_until(due), if self.has_news => return Ok(self.say()),
                () = sleep_until(resync) => {
                    self.read = Some(Instant::now());
                    self.read_all().await?;
                    return Ok(self.say());
                }
            }
        }
    }

    fn say(&mut self) -> Answer {
        (self.said, self.has_news) = (Some(Instant::now()), false);
        self.records.answer()
    }

    async fn read_all(&mut self) -> Result<(), DiscoveryError> {
        let body = self.post("/v3/kv/range", &range(&self.config.prefix)).await?;
        let (prefix, reading) = (Arc::clone(&self.config.prefix), self.reading.clone());
        self.records = beside(body.len(), move || Records::read(&body, &prefix, &reading)).await?;
        Ok(())
    }

    async fn open_watch(&mut self) -> Result<Lines, DiscoveryError> {
        let mut create = range(&self.config.prefix);
        create["start_revision"] = (self.records.read + 1).to_string().into();
        let request = self.request("/v3/watch", &json!({ "create_request": create }))?;
        let time = self.config.timeout;
        let response = self.member()?.begin(request, time).await?;
        if response.status() != StatusCode::OK {
            let (head, body) = (response.status(), response.into_body());
            let body = timeout(time, http_body_util::Limited::new(body, 4096).collect()).await;
            let body = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
            return Err(refusal(head, &body));
        }
        let mut watch = Lines::new(response, self.reading.bytes_max.saturating_mul(2));
        // The word that it was created, or why it was not.
        let late = |_| DiscoveryError::new(format!("no word of the watch within {time:?}"));
        let first = timeout(time, watch.next()).await.map_err(late)??;
        let events = watched(&going_on(first)?)?;
        self.has_news |= self.records.apply(events, &self.reading)?;
        Ok(watch)
    }

    /// Asks the member, with a login where there is one to be made. A token that has expired costs another login and no failure.
    async fn post(&mut self, path: &str, body: &Value) -> Result<Bytes, DiscoveryError> {
        let had_token = self.token.is_some();
        self.log_in().await?;
        let mut response = self.send(path, body).await?;
        if had_token && response.status().is_client_error() {
            self.token = None;
            self.log_in().await?;
            response = self.send(path, body).await?;
        }
        match response.status() {
            StatusCode::OK => Ok(response.into_body()),
            status => Err(refusal(status, response.body())),
        }
    }

    async fn log_in(&mut self) -> Result<(), DiscoveryError> {
        let (None, Some(name), Some(password)) = (&self.token, &self.config.username, &self.config.password) else {
            return Ok(());
        };
        let login = json!({ "name": **name, "password": password.reveal() });
        let response = self.send("/v3/auth/authenticate", &login).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response.status(), response.body()));
        }
        #[derive(Deserialize)]
        struct LoggedIn {
            token: String,
        }
        let answer: LoggedIn =
            serde_json::from_slice(response.body()).map_err(|_| not_etcd("its login has no token"))?;
        self.token = Some(answer.token);
        Ok(())
    }

    async fn send(&mut self, path: &str, body: &Value) -> Result<Response<Bytes>, DiscoveryError> {
        let (request, time) = (self.request(path, body)?, self.config.timeout);
        self.member()?.ask(request, time).await
    }

    fn request(&self, path: &str, body: &Value) -> Result<Request<Full<Bytes>>, DiscoveryError> {
        let Some(url) = self.config.endpoints.get(self.current) else { return Err(DiscoveryError::new("no endpoint")) };
        let mut request = Request::post(format!("http://{}{}{path}", url.authority(), url.base()))
            .header("content-type", "application/json")
            .header("user-agent", concat!("isobar/", env!("CARGO_PKG_VERSION")))
            // A member that has lost the others ends its watches instead of saying nothing.
            .header("grpc-metadata-hasleader", "true");
        if let Some(token) = &self.token {
            request = request.header("authorization", token);
        }
        Ok(request.body(Full::from(body.to_string()))?)
    }

    fn member(&mut self) -> Result<&mut Server, DiscoveryError> {
        self.members.get_mut(self.current).ok_or_else(|| DiscoveryError::new("no endpoint"))
    }
}

impl AnyDiscovery for Etcd {
    fn next(&mut self) -> Answered<'_> {
        Box::pin(self.ask())
    }

    fn is_at_hand(&self) -> bool {
        false
    }
}

/// Lists the services that have keys: the names that stand in these where `{service}` stands in the prefix. Metadata are tags.
pub(super) struct EtcdServices {
    etcd: Etcd,
    before: Arc<str>,
    /// What ends a name; `None` where all of the rest is one.
    end: Option<char>,
}

impl EtcdServices {
    pub(super) fn new(config: &EtcdConfig, reading: Reading) -> Option<Self> {
        let (before, after) = config.prefix.split_once(SERVICE)?;
        let (before, end) = (Arc::<str>::from(before), after.chars().next());
        let config = Arc::new(EtcdConfig { prefix: Arc::clone(&before), ..config.clone() });
        Some(Self { etcd: Etcd::new(config, reading), before, end })
    }

    async fn ask(&mut self) -> Result<Listing, DiscoveryError> {
        self.etcd.ask().await?;
        let mut services: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (key, record) in &self.etcd.records.by_key {
            let rest = key.strip_prefix(&*self.before);
            let name = rest.and_then(|rest| match self.end {
                Some(end) => rest.split_once(end).map(|(name, _)| name),
                None => Some(rest),
            });
            let Some(name) = name else { continue };
            let labels = record.says.iter().flatten().flat_map(|instance| instance.labels.iter());
            services.entry(name).or_default().extend(labels.map(|(key, value)| format!("{key}={value}")));
        }
        Ok(Listing::of(services))
    }
}

impl ListsServices for EtcdServices {
    fn next(&mut self) -> Listed<'_> {
        Box::pin(self.ask())
    }
}

/// The keys that begin with a prefix.
fn range(prefix: &str) -> Value {
    json!({ "key": STANDARD.encode(prefix), "range_end": STANDARD.encode(range_end(prefix.as_bytes())) })
}

/// The first key behind all that begin so.
fn range_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    // All keys from the prefix on.
    vec![0]
}

fn not_etcd(what: &str) -> DiscoveryError {
    DiscoveryError::new(format!("{what}: this is not etcd's API"))
}

/// A number, which JSON of protocol buffers has as a text.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(try_from = "Value")]
struct Number(u64);

impl TryFrom<Value> for Number {
    type Error = &'static str;

    fn try_from(value: Value) -> Result<Self, Self::Error> {
        let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
        number.map(Self).ok_or("no number")
    }
}

#[derive(Default, Deserialize)]
struct Header {
    #[serde(default)]
    revision: Number,
}

#[derive(Deserialize)]
struct RangeAnswer {
    header: Header,
    #[serde(default)]
    kvs: Vec<KeyValue>,
    #[serde(default)]
    more: bool,
}

#[derive(Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    mod_revision: Number,
}

#[derive(Deserialize)]
struct WatchLine {
    result: Option<WatchAnswer>,
    error: Option<Value>,
}

#[derive(Default, Deserialize)]
struct WatchAnswer {
    #[serde(default)]
    header: Header,
    #[serde(default)]
    canceled: bool,
    #[serde(default)]
    compact_revision: Number,
    #[serde(default)]
    cancel_reason: String,
    #[serde(default)]
    events: Vec<WatchEvent>,
}

#[derive(Deserialize)]
struct WatchEvent {
    #[serde(rename = "type", default)]
    kind: String,
    kv: KeyValue,
}

/// The line of a watch that has not ended.
fn going_on(line: Option<Bytes>) -> Result<Bytes, DiscoveryError> {
    line.ok_or_else(|| DiscoveryError::new("its watch has ended"))
}

/// What a line of a watch says.
fn watched(line: &[u8]) -> Result<WatchAnswer, DiscoveryError> {
    let line: WatchLine = serde_json::from_slice(line).map_err(|_| not_etcd("a line of its watch makes no sense"))?;
    if let Some(error) = line.error {
        let what = error.get("message").or_else(|| error.get("grpc_status")).unwrap_or(&error).to_string();
        return Err(DiscoveryError::new(format!(
            "its watch has failed: {}",
            what.chars().take(120).collect::<String>()
        )));
    }
    let answer = line.result.unwrap_or_default();
    if answer.canceled {
        let reason: String = match (answer.cancel_reason.as_str(), answer.compact_revision.0) {
            ("", compacted @ 1..) => format!("its history begins at revision {compacted}"),
            (reason, _) => reason.chars().take(120).collect(),
        };
        return Err(DiscoveryError::new(format!("its watch has ended: {reason}")));
    }
    Ok(answer)
}

impl Records {
    fn read(body: &[u8], prefix: &str, reading: &Reading) -> Result<Self, DiscoveryError> {
        let answer: RangeAnswer = serde_json::from_slice(body)
            .map_err(|error| DiscoveryError::new(format!("its answer is no list of keys: {error}")))?;
        if answer.header.revision.0 == 0 {
            return Err(not_etcd("its answer has no revision"));
        }
        if answer.more {
            return Err(DiscoveryError::new("it did not send all keys"));
        }
        let revision = answer.header.revision.0;
        let mut records = Self { read: revision, revision, ..Self::default() };
        for kv in answer.kvs {
            let (key, value) = decoded(&kv)?;
            if key.starts_with(prefix) {
                records.put(key, value, reading)?;
            }
        }
        Ok(records)
    }

    /// Takes in what a watch says. Whether something is different now.
    fn apply(&mut self, answer: WatchAnswer, reading: &Reading) -> Result<bool, DiscoveryError> {
        let mut has_news = false;
        for WatchEvent { kind, kv } in answer.events {
            // What was read again before the watch got round to it. Only a reading tells that: the head of each answer, also of that which
            // says that the watch was created, has the revision of the store, whose events may be still to come.
            if kv.mod_revision.0 <= self.read {
                continue;
            }
            let (key, value) = decoded(&kv)?;
            if kind == "DELETE" {
                self.remove(&key);
            } else {
                self.put(key, value, reading)?;
            }
            has_news = true;
        }
        self.revision = self.revision.max(answer.header.revision.0);
        Ok(has_news)
    }

    fn put(&mut self, key: String, value: Bytes, reading: &Reading) -> Result<(), DiscoveryError> {
        self.remove(&key);
        self.bytes += key.len() + value.len();
        if self.bytes > reading.bytes_max {
            return Err(DiscoveryError::new(format!("its keys have more than {} bytes", reading.bytes_max)));
        }
        let name = key.rsplit('/').next().unwrap_or_default();
        let says = record::read(name, &value, &reading.zone_label);
        self.by_key.insert(key, Record { value, says });
        Ok(())
    }

    fn remove(&mut self, key: &str) {
        if let Some(Record { value, .. }) = self.by_key.remove(key) {
            self.bytes -= key.len() + value.len();
        }
    }

    fn answer(&self) -> Answer {
        let (mut instances, mut refused) = (Vec::with_capacity(self.by_key.len()), Vec::new());
        for (key, record) in &self.by_key {
            match &record.says {
                Ok(says) => instances.extend(says.iter().cloned()),
                Err(what) => refused.push(format!("{:?}: {what}", key.chars().take(120).collect::<String>())),
            }
        }
        Answer {
            set: BackendSet::new(instances),
            refused,
            revision: Some(self.revision.to_string().into()),
            hold: None,
        }
    }
}

fn decoded(kv: &KeyValue) -> Result<(String, Bytes), DiscoveryError> {
    let bytes = |text: &str| STANDARD.decode(text).map_err(|_| not_etcd("a key or value is no base64"));
    let key = bytes(&kv.key)?;
    Ok((String::from_utf8_lossy(&key).into_owned(), bytes(&kv.value)?.into()))
}

#[cfg(test)]
mod tests;
