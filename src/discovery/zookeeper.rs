//! Nodes below a node in ZooKeeper: each is a backend, as Curator, Spring Cloud and Dubbo register them.
//!
//! A watch tells once, so each reading sets the next. A session that is lost takes its watches with it, and nothing else: the set stays, the
//! next session reads all again, and only what is then not there is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::listing::{Listed, Listing, ListsServices};
use super::reading::Reading;
use super::{Answer, Answered, AnyDiscovery, DiscoveryError, record};
use crate::backend::{BackendSet, Instance};
use crate::config::{SERVICE, ZookeeperConfig};

mod session;

use session::{Kind, Login, Session};

/// Changes that follow each other faster are read and said together.
const EVERY: Duration = Duration::from_millis(100);

/// A session is begun no more often than this.
const BEGIN_EVERY: Duration = Duration::from_secs(1);

/// Reads the nodes below a node and watches them.
pub(super) struct Zookeeper {
    config: Arc<ZookeeperConfig>,
    reading: Reading,
    /// The node, with the chroot before it.
    parent: String,
    /// The server that is asked.
    current: usize,
    session: Option<Session>,
    /// The last change that is known; 0 where a server may know less.
    change: i64,
    begun: Option<Instant>,
    said: Option<Instant>,
    /// By their names.
    nodes: BTreeMap<String, Node>,
    bytes: usize,
    /// Whether the names of the nodes are all that is asked for, and these.
    names_only: bool,
    names: BTreeSet<String>,
}

struct Node {
    bytes: usize,
    says: Result<Vec<Instance>, String>,
}

impl Zookeeper {
    pub(super) fn new(config: Arc<ZookeeperConfig>, reading: Reading) -> Self {
        let parent = format!("{}{}", config.chroot.as_deref().unwrap_or_default(), config.path);
        let (session, begun, said, nodes) = (None, None, None, BTreeMap::new());
        let (names_only, names) = (false, BTreeSet::new());
        Self {
            config,
            reading,
            parent,
            current: 0,
            session,
            change: 0,
            begun,
            said,
            nodes,
            bytes: 0,
            names_only,
            names,
        }
    }

    async fn ask(&mut self) -> Result<Answer, DiscoveryError> {
        if let Some(session) = self.session.take() {
            match self.follow(session).await {
                Ok(answer) => return Ok(answer),
                // Whether it is one server or all of them, the next session tells.
                Err(_) => self.current = (self.current + 1) % self.config.servers.len().max(1),
            }
        }
        self.begin().await
    }

    /// Begins a session and reads all, at the first server that lets it.
    async fn begin(&mut self) -> Result<Answer, DiscoveryError> {
        if let Some(begun) = self.begun {
            sleep_until(begun + BEGIN_EVERY).await;
        }
        let mut last = None;
        for _ in 0..self.config.servers.len() {
            self.begun = Some(Instant::now());
            match self.begin_here().await {
                Ok(session) => {
                    self.session = Some(session);
                    return Ok(self.say());
                }
                Err(error) => last = Some(error),
            }
            self.current = (self.current + 1) % self.config.servers.len();
        }
        // All may have been set up anew: what they know then has begun at 1 again.
        self.change = 0;
        Err(last.unwrap_or_else(|| DiscoveryError::new("there is no server to ask")))
    }

    async fn begin_here(&mut self) -> Result<Session, DiscoveryError> {
        let config = Arc::clone(&self.config);
        let address = config.servers.get(self.current).ok_or_else(|| DiscoveryError::new("no server"))?;
        let digest = config.username.as_ref().zip(config.password.as_ref());
        let mut session = Session::begin(Login {
            session_timeout: config.session_timeout,
            patience: config.timeout,
            change: self.change,
            digest: digest.map(|(name, password)| format!("{name}:{}", password.reveal())),
            bytes_max: self.reading.bytes_max,
            address,
        })
        .await?;
        let names = self.children(&mut session).await?;
        let all = names.iter().cloned().collect();
        self.read(&mut session, &names, &all).await?;
        self.change = session.change;
        Ok(session)
    }

    /// Waits for a change, reads what has changed, and says all.
    async fn follow(&mut self, mut session: Session) -> Result<Answer, DiscoveryError> {
        let mut paths = BTreeSet::from([session.event().await?]);
        if let Some(said) = self.said {
            sleep_until(said + EVERY).await;
        }
        paths.extend(std::iter::from_fn(|| session.event_at_hand()));
        let mut changed: BTreeSet<String> = BTreeSet::new();
        for path in &paths {
            let name = path.strip_prefix(&self.parent).and_then(|rest| rest.strip_prefix('/'));
            changed.extend(name.map(str::to_owned));
        }
        let names = match paths.contains(&self.parent) {
            true => self.children(&mut session).await?,
            false => self.nodes.keys().cloned().collect(),
        };
        self.read(&mut session, &names, &changed).await?;
        self.change = session.change;
        self.session = Some(session);
        Ok(self.say())
    }

    /// The names of the nodes there are now. Where their parent is not there, it is awaited.
    async fn children(&mut self, session: &mut Session) -> Result<BTreeSet<String>, DiscoveryError> {
        /// It may come and go between two questions.
        const ROUNDS: usize = 10;
        for _ in 0..ROUNDS {
            if let Some(answer) = session.ask(Kind::Children, &self.parent).await? {
                return Ok(session::names(answer)?.into_iter().collect());
            }
            if session.ask(Kind::Exists, &self.parent).await?.is_none() {
                return Ok(BTreeSet::new());
            }
        }
        Err(DiscoveryError::new(format!("{} comes and goes", self.parent)))
    }

    /// Reads those that have changed or are new among `names`, which are all that there are.
    async fn read(
        &mut self,
        session: &mut Session,
        names: &BTreeSet<String>,
        changed: &BTreeSet<String>,
    ) -> Result<(), DiscoveryError> {
        if self.names_only {
            self.names = names.clone();
            return Ok(());
        }
        let gone: Vec<_> = self.nodes.keys().filter(|name| !names.contains(*name)).cloned().collect();
        gone.iter().for_each(|name| self.forget(name));
        let wanted: Vec<_> =
            names.iter().filter(|name| changed.contains(*name) || !self.nodes.contains_key(*name)).cloned().collect();
        let paths: Vec<_> = wanted.iter().map(|name| format!("{}/{name}", self.parent)).collect();
        let answers = session.ask_all(Kind::Data, &paths).await?;
        for (name, answer) in wanted.into_iter().zip(answers) {
            let data = match answer {
                // It is gone since its name was read, of which there will be word.
                Ok(None) => {
                    self.forget(&name);
                    continue;
                }
                Ok(Some(answer)) => Ok(session::data(answer)?),
                Err(what) => Err(what),
            };
            self.take(name, data)?;
        }
        Ok(())
    }

    fn take(&mut self, name: String, data: Result<Bytes, String>) -> Result<(), DiscoveryError> {
        self.forget(&name);
        let bytes = name.len() + data.as_ref().map_or(0, Bytes::len);
        self.bytes += bytes;
        if self.bytes > self.reading.bytes_max {
            return Err(DiscoveryError::new(format!("its nodes have more than {} bytes", self.reading.bytes_max)));
        }
        let says = data.and_then(|data| record::read(&name, &data, &self.reading.zone_label));
        self.nodes.insert(name, Node { bytes, says });
        Ok(())
    }

    fn forget(&mut self, name: &str) {
        if let Some(node) = self.nodes.remove(name) {
            self.bytes -= node.bytes;
        }
    }

    fn say(&mut self) -> Answer {
        self.said = Some(Instant::now());
        let (mut instances, mut refused) = (Vec::with_capacity(self.nodes.len()), Vec::new());
        for (name, node) in &self.nodes {
            match &node.says {
                Ok(says) => instances.extend(says.iter().cloned()),
                Err(what) => refused.push(format!("{:?}: {what}", name.chars().take(120).collect::<String>())),
            }
        }
        Answer { set: BackendSet::new(instances), refused, revision: Some(self.change.to_string().into()), hold: None }
    }
}

/// Lists the nodes that stand where `{service}` stands in the path.
pub(super) struct ZookeeperServices(Zookeeper);

impl ZookeeperServices {
    pub(super) fn new(config: &ZookeeperConfig, reading: Reading) -> Option<Self> {
        let (before, _) = config.path.split_once(SERVICE)?;
        let path = before.strip_suffix('/')?.into();
        let mut zookeeper = Zookeeper::new(Arc::new(ZookeeperConfig { path, ..config.clone() }), reading);
        zookeeper.names_only = true;
        Some(Self(zookeeper))
    }

    async fn ask(&mut self) -> Result<Listing, DiscoveryError> {
        self.0.ask().await?;
        Ok(Listing::of(self.0.names.iter().map(|name| (name, Vec::<String>::new()))))
    }
}

impl ListsServices for ZookeeperServices {
    fn next(&mut self) -> Listed<'_> {
        Box::pin(self.ask())
    }
}

impl AnyDiscovery for Zookeeper {
    fn next(&mut self) -> Answered<'_> {
        Box::pin(self.ask())
    }

    fn is_at_hand(&self) -> bool {
        false
    }
}
