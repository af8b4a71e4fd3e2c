//! `[upstream.NAME.discovery.eureka]`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::etcd::{Line, Password};
use super::file::FileAt;
use super::http::secure;
use super::url::{HttpUrl, Url};
use crate::config::Secret;
use crate::config::check::Check;
use crate::config::error::Problem;
use crate::config::form::{List, Maybe, Name, Switch, Timeout};
use crate::config::report::Place;
use crate::config::table::Table;

/// An application in Eureka: its instances that are `UP`. Sources that name the same servers share one copy of the registry, which is fetched
/// whole once and kept by its deltas from then on.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check)]
pub struct EurekaConfig {
    /// The application's name (`spring.application.name`), in any case.
    #[key(
        Name,
        needed = "a source that is Eureka needs an application",
        expected = "application = \"users\"",
        example = "users"
    )]
    pub application: Arc<str>,
    /// The servers, with the path that clients are given. The first is asked until it fails, then the next.
    #[key(
        List(Url),
        needed = "a source that is Eureka needs servers",
        expected = "servers = [\"http://eureka-1:8761/eureka\"]",
        example = ["http://eureka-1:8761/eureka", "http://eureka-2:8761/eureka"]
    )]
    pub servers: Vec<HttpUrl>,
    /// The user that servers with a login know.
    #[key(Maybe(Line), example = "isobar")]
    pub username: Option<Arc<str>>,
    /// The password of `username`.
    #[key(Maybe(Password), example = "${EUREKA_PASSWORD:-an-example-password}")]
    pub password: Option<Secret>,
    /// From an answer to the next request. Eureka's own answers may be 30 s old, unless its cache is set otherwise.
    #[key(Timeout, default = "10s")]
    pub interval: Duration,
    /// From the first packet to the last byte of an answer.
    #[key(Timeout, default = "5s")]
    pub timeout: Duration,
    /// Whether backends are reached at the secure port of their instances. The upstream's `tls` says how.
    #[key(Switch, default = false)]
    pub secure_port: bool,
    /// Whether backends are reached by the host name of their instances, and not by the IP address.
    #[key(Switch, default = false)]
    pub host_names: bool,
    /// PEM: the authorities that the servers' certificates may be from, in place of those that the system trusts.
    #[key(Maybe(FileAt), example = "/etc/isobar/eureka-ca.pem")]
    pub ca: Option<PathBuf>,
}

/// Below this the registry would be all that its servers do.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

impl EurekaConfig {
    fn check(check: &Check<'_>, _: Place, written: &WrittenEurekaConfig, it: Self) -> Option<Self> {
        if let (Some((place, text)), true) = (written.interval.given(), it.interval < INTERVAL_MIN) {
            let problem = Problem::error(format!("{} is too short", check.quote(place, &text.0)));
            check.add(place, problem.expected("at least 100ms"));
        }
        for (key, other, place) in [
            ("username", "password", written.password.place().is_none().then(|| written.username.place()).flatten()),
            ("password", "username", written.username.place().is_none().then(|| written.password.place()).flatten()),
        ] {
            if let Some(place) = place {
                let problem = Problem::error(format!("{key} without {other}: a login is both"));
                check.add(place, problem.expected(format!("{other} beside it")));
            }
        }
        if let (Some(place), true) = (written.servers.place(), it.servers.is_empty()) {
            // A server that is wrong was told of already.
            if written.servers.value().is_none_or(Vec::is_empty) {
                let problem = Problem::error("there is no server to ask");
                check.add(place, problem.expected("servers = [\"http://eureka-1:8761/eureka\"]"));
            }
            return None;
        }
        let in_the_clear = |server: &&HttpUrl| !server.tls;
        let far = it.servers.iter().filter(in_the_clear).find(|server| !server.is_loopback());
        if let (Some(place), Some(_)) = (written.password.place(), far) {
            let problem = Problem::warning("the password is sent in the clear");
            check.add(place, problem.expected("https URLs of all servers"));
        }
        if let Some(server) = it.servers.iter().find(in_the_clear) {
            secure(check, server, None, written.ca.place());
        }
        Some(it)
    }

    /// Whether all its servers are on this machine.
    pub(super) fn is_local(&self) -> bool {
        self.servers.iter().all(HttpUrl::is_loopback)
    }

    pub(super) fn asks(&self) -> String {
        let Self { application, secure_port, host_names, .. } = self;
        format!("eureka {} {application} {secure_port} {host_names}", self.servers_shown())
    }

    /// Its servers, one behind the other.
    pub fn servers_shown(&self) -> String {
        self.servers.iter().map(HttpUrl::shown).collect::<Vec<_>>().join(" ")
    }
}
