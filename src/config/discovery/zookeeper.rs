//! `[upstream.NAME.discovery.zookeeper]`

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::etcd::{Line, Password};
use crate::config::check::Check;
use crate::config::error::Problem;
use crate::config::form::{About, Form, List, Maybe, Timeout};
use crate::config::json_tree::Tree;
use crate::config::report::Place;
use crate::config::table::Table;
use crate::config::visibility::Word;
use crate::config::{Address, Secret};

/// Nodes below a node in ZooKeeper: each is a backend, as Curator, Spring Cloud and Dubbo register them. They are read and then watched, so that
/// a change is known at once.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check)]
pub struct ZookeeperConfig {
    /// The node whose children are the backends: `/services/NAME` of Spring Cloud, `/dubbo/INTERFACE/providers` of Dubbo.
    #[key(
        NodePath,
        needed = "a source that is ZooKeeper needs a path",
        expected = "path = \"/services/users\"",
        example = "/services/users"
    )]
    pub path: Arc<str>,
    /// What stands before every path.
    #[key(Maybe(NodePath), otherwise = "none", example = "/production")]
    pub chroot: Option<Arc<str>>,
    /// The servers. One is asked at a time, and the next when it fails.
    #[key(List(HostPort), otherwise = "`[\"127.0.0.1:2181\"]`", example = ["10.0.0.1:2181", "10.0.0.2:2181"])]
    pub servers: Vec<Address>,
    /// The user to log in as by the scheme `digest`, with `password`.
    #[key(Maybe(Line), example = "isobar")]
    pub username: Option<Arc<str>>,
    /// Its password. It is sent in the clear.
    #[key(Maybe(Password), example = "${ZOOKEEPER_PASSWORD:-an-example-password}")]
    pub password: Option<Secret>,
    /// How long a server may say nothing before the next is asked. The server may grant another time.
    #[key(Timeout, default = "10s")]
    pub session_timeout: Duration,
    /// How long a connection or an answer may take.
    #[key(Timeout, default = "5s")]
    pub timeout: Duration,
}

impl ZookeeperConfig {
    fn check(check: &Check<'_>, _: Place, written: &WrittenZookeeperConfig, mut it: Self) -> Option<Self> {
        if it.servers.is_empty() {
            if let Some(place) = written.servers.place() {
                let problem = Problem::error("there is no server to ask");
                check.add(place, problem.expected("[\"127.0.0.1:2181\"]"));
            }
            it.servers.extend("127.0.0.1:2181".parse());
        }
        if let (Some(place), None) | (None, Some(place)) = (written.username.place(), written.password.place()) {
            check.add(place, Problem::error("a login takes both").expected("username and password"));
        }
        Some(it)
    }

    pub(super) fn asks(&self) -> String {
        let servers: Vec<_> = self.servers.iter().map(Address::to_string).collect();
        format!("zookeeper {} {:?} {:?}", servers.join(" "), self.chroot, self.path)
    }

    pub(super) fn is_loopback(&self) -> bool {
        self.servers.iter().all(|server| match server {
            Address::Ip(address) | Address::Resolved(_, address) => address.ip().to_canonical().is_loopback(),
            Address::Name(name, _) => matches!(&**name, "localhost" | "localhost."),
        })
    }
}

/// The path of a node.
struct NodePath;

impl Form<Arc<str>> for NodePath {
    type Written = Word;

    fn read(&self, check: &Check<'_>, place: Place, text: &Word) -> Option<Arc<str>> {
        const BYTES_MAX: usize = 1024;
        let good = |part: &str| !part.is_empty() && part != "." && part != "..";
        let parts = text.strip_prefix('/').filter(|_| text.len() <= BYTES_MAX && !text.chars().any(char::is_control));
        if parts.is_some_and(|parts| parts.split('/').all(good)) {
            return Some(text.as_str().into());
        }
        let problem = Problem::error(format!("{} is no path of a node", check.quote(place, text)));
        check.add(place, problem.expected("the like of \"/services/users\", without a slash at its end"));
        None
    }

    fn show(&self, value: &Arc<str>) -> Option<Tree> {
        Some(value.to_string().into())
    }

    fn tell(&self, value: &Arc<str>) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        About::new::<Word>("the path of a node", json!({ "type": "string", "minLength": 1 }))
    }
}

/// A server's address with its port.
struct HostPort;

impl Form<Address> for HostPort {
    type Written = Word;

    fn read(&self, check: &Check<'_>, place: Place, text: &Word) -> Option<Address> {
        let parsed = text.parse().ok();
        if parsed.is_none() {
            let problem = Problem::error(format!("{} is not an address with a port", check.quote(place, text)));
            check.add(place, problem.expected("the like of \"10.0.0.1:2181\" or \"zookeeper.internal:2181\""));
        }
        parsed
    }

    fn show(&self, value: &Address) -> Option<Tree> {
        Some(value.to_string().into())
    }

    fn tell(&self, value: &Address) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        About::new::<Word>("an address with a port", json!({ "type": "string", "minLength": 1 }))
    }
}
