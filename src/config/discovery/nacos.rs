//! `[upstream.NAME.discovery.nacos]`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::etcd::{Line, Password};
use super::file::FileAt;
use super::http::secure;
use super::url::{HttpUrl, Url};
use crate::config::Secret;
use crate::config::check::Check;
use crate::config::error::Problem;
use crate::config::form::{About, Form, List, Maybe, Switch, Timeout, Whole};
use crate::config::json_tree::Tree;
use crate::config::report::Place;
use crate::config::table::Table;
use crate::config::visibility::Word;

/// A service in Nacos: its instances that are healthy and enabled. They are asked for over HTTP, and Nacos 2 and 3 push each change over gRPC. Sources
/// of the same servers, namespace and login share one connection for that.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check)]
pub struct NacosConfig {
    /// The service's name. `GROUP@@SERVICE` names its group too.
    #[key(
        NacosName("service"),
        needed = "a source that is Nacos needs a service",
        expected = "service = \"users\"",
        example = "users"
    )]
    pub service: Arc<str>,
    /// The group that it is in.
    #[key(NacosName("group"), default = "DEFAULT_GROUP")]
    pub group: Arc<str>,
    /// The ID of the namespace that it is in.
    #[key(NacosName("namespace"), default = "public")]
    pub namespace: Arc<str>,
    /// The clusters whose instances count; all where there is none.
    #[key(List(NacosName("cluster")), example = ["DEFAULT"])]
    pub clusters: Vec<Arc<str>>,
    /// The servers, with the context path where it is not `/nacos`. One is asked at a time, and the next when it fails.
    #[key(List(Url), otherwise = "`[\"http://127.0.0.1:8848\"]`", example = ["https://10.0.0.1:8848", "https://10.0.0.2:8848"])]
    pub servers: Vec<HttpUrl>,
    /// Whether instances count that Nacos holds to be unhealthy.
    #[key(Switch, default = false)]
    pub unhealthy: bool,
    /// `true`: only instances that are ephemeral count; `false`: only those that are not.
    #[key(Maybe(Switch), otherwise = "both", example = true)]
    pub ephemeral: Option<bool>,
    /// The user to log in as, with `password`.
    #[key(Maybe(Line), example = "isobar")]
    pub username: Option<Arc<str>>,
    /// Its password.
    #[key(Maybe(Password), example = "${NACOS_PASSWORD:-an-example-password}")]
    pub password: Option<Secret>,
    /// PEM: the authorities that the servers' certificates may be from, in place of those that the system trusts.
    #[key(Maybe(FileAt), example = "/etc/isobar/nacos-ca.pem")]
    pub ca: Option<PathBuf>,
    /// Whether changes are pushed. Where they are not, as by Nacos 1 or through a firewall, the list is asked for every `interval` all the same.
    #[key(Switch, default = true)]
    pub push: bool,
    /// The servers' gRPC port.
    #[key(Maybe(Whole(1..=65_535)), otherwise = "1000 above the port of each server", example = 9848)]
    pub push_port: Option<u16>,
    /// From an answer to the next request, also where changes are pushed.
    #[key(Timeout, default = "5s")]
    pub interval: Duration,
    /// From the first packet to the last byte of an answer.
    #[key(Timeout, default = "5s")]
    pub timeout: Duration,
}

/// Below this, the list would be all that Nacos does.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// How far Nacos's gRPC port is above its HTTP port.
const PUSH_PORT_ABOVE: u16 = 1000;

impl NacosConfig {
    fn check(check: &Check<'_>, _: Place, written: &WrittenNacosConfig, mut it: Self) -> Option<Self> {
        if let Some((group, service)) = it.service.split_once("@@") {
            let (group, service): (Arc<str>, Arc<str>) = (group.into(), service.into());
            if let (Some(place), true) = (written.group.place(), it.group != group) {
                let problem = Problem::error("the name of the service has another group");
                check.add(place, problem.expected("one of the two"));
            }
            (it.group, it.service) = (group, service);
        }
        if it.servers.is_empty() {
            if let Some(place) = written.servers.place() {
                let problem = Problem::error("there is no server to ask");
                check.add(place, problem.expected("[\"http://127.0.0.1:8848\"]"));
            }
            it.servers.extend(HttpUrl::parse("http://127.0.0.1:8848"));
        }
        if let (Some((place, text)), true) = (written.interval.given(), it.interval < INTERVAL_MIN) {
            let problem = Problem::error(format!("{} is too short", check.quote(place, &text.0)));
            check.add(place, problem.expected("at least 100ms"));
        }
        if let (Some(place), None) | (None, Some(place)) = (written.username.place(), written.password.place()) {
            check.add(place, Problem::error("a login takes both").expected("username and password"));
        }
        if let (Some(place), true) = (written.push_port.place(), !it.push) {
            check.add(place, Problem::error("nothing is pushed").expected("push = true, or not this key"));
        }
        if let (Some(place), true) = (written.servers.place(), it.push)
            && it.servers.iter().any(|server| it.push_port(server).is_none())
        {
            let problem = Problem::error("there is no port 1000 above that of a server");
            check.add(place, problem.expected("push_port, or push = false"));
        }
        for url in &it.servers {
            secure(check, url, written.password.place(), written.ca.place());
        }
        Some(it)
    }

    /// The gRPC port of one of its servers.
    pub fn push_port(&self, server: &HttpUrl) -> Option<u16> {
        self.push_port.or_else(|| server.port.checked_add(PUSH_PORT_ABOVE))
    }

    /// The service's name with its group, as Nacos writes both.
    pub fn grouped_name(&self) -> String {
        format!("{}@@{}", self.group, self.service)
    }

    pub(super) fn asks(&self) -> String {
        let Self { namespace, clusters, unhealthy, ephemeral, .. } = self;
        let servers = self.servers.iter().map(HttpUrl::shown).collect::<Vec<_>>().join(" ");
        format!("nacos {servers} {namespace} {} {clusters:?} {unhealthy} {ephemeral:?}", self.grouped_name())
    }
}

/// A name as Nacos has them.
struct NacosName(&'static str);

const NAME_BYTES_MAX: usize = 512;

impl Form<Arc<str>> for NacosName {
    type Written = Word;

    fn read(&self, check: &Check<'_>, place: Place, text: &Word) -> Option<Arc<str>> {
        let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic() && c != ',');
        let is_good = match text.split_once("@@") {
            Some((group, service)) => self.0 == "service" && is_name(group) && is_name(service),
            None => is_name(text),
        };
        if is_good && text.len() <= NAME_BYTES_MAX {
            return Some(text.as_str().into());
        }
        let problem = Problem::error(format!("{} is no {} of Nacos", check.quote(place, text), self.0));
        check.add(place, problem.expected("letters, digits and signs, without spaces and commas"));
        None
    }

    fn show(&self, value: &Arc<str>) -> Option<Tree> {
        Some(value.to_string().into())
    }

    fn tell(&self, value: &Arc<str>) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        About::new::<Word>(format!("a {} of Nacos", self.0), json!({ "type": "string", "minLength": 1 }))
    }
}
