//! `[upstream.NAME.discovery.docker]`

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::file::FileAt;
use super::url::HttpUrl;
use crate::config::check::{Check, value};
use crate::config::error::Problem;
use crate::config::form::{About, Form, List, Maybe, Name, Switch, Timeout, Whole};
use crate::config::json_tree::Tree;
use crate::config::report::Place;
use crate::config::table::Table;
use crate::config::visibility::{Location, Word};

/// Containers of a Docker daemon that run and have certain labels. They are listed, and the daemon's events tell at once of what changes.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check)]
pub struct DockerConfig {
    /// The labels that a container must have, all of them: `KEY=VALUE`, or `KEY` with any value.
    #[key(List(LabelName), otherwise = "`isobar.upstream=NAME`, with the name of the upstream", example = ["com.docker.compose.service=users"])]
    pub labels: Vec<Arc<str>>,
    /// Where the daemon is: a Unix socket, or an HTTP address. What may ask a daemon can become root on its machine.
    #[key(EndpointUrl, default = "unix:///var/run/docker.sock")]
    pub endpoint: DockerEndpoint,
    /// The network at whose address containers are reached that are in several and have no label `isobar.network`.
    #[key(Maybe(Name), example = "front")]
    pub network: Option<Arc<str>>,
    /// The port of containers that have no label `isobar.port`.
    #[key(Maybe(Whole(1..=65_535)), otherwise = "the one that the container exposes", example = 8080)]
    pub port: Option<u16>,
    /// Whether containers are reached at the ports that they publish on the daemon's machine, and not at their own addresses.
    #[key(Switch, default = false)]
    pub published: bool,
    /// The daemon's machine, for published ports and for containers that use the network of that machine.
    #[key(Name, default = "127.0.0.1")]
    pub host: Arc<str>,
    /// PEM: the authorities that the daemon's certificate may be from, in place of those that the system trusts.
    #[key(Maybe(FileAt), example = "/etc/isobar/docker-ca.pem")]
    pub ca: Option<PathBuf>,
    /// PEM: the certificate that is shown to a daemon that asks for one, with `key`.
    #[key(Maybe(FileAt), example = "/etc/isobar/docker-client.pem")]
    pub certificate: Option<PathBuf>,
    /// PEM: its private key.
    #[key(Maybe(FileAt), example = "/etc/isobar/docker-client.key")]
    pub key: Option<PathBuf>,
    /// How often all containers are listed again beside the events: it finds a daemon that hangs.
    #[key(Timeout, default = "10s")]
    pub resync: Duration,
    /// From the first packet to the last byte of an answer.
    #[key(Timeout, default = "5s")]
    pub timeout: Duration,
}

/// Below this, listing would be all that is done.
const RESYNC_MIN: Duration = Duration::from_secs(1);

impl DockerConfig {
    fn check(check: &Check<'_>, _: Place, written: &WrittenDockerConfig, it: Self) -> Option<Self> {
        if let (Some((place, text)), true) = (written.resync.given(), it.resync < RESYNC_MIN) {
            let problem = Problem::error(format!("{} is too short", check.quote(place, &text.0)));
            check.add(place, problem.expected("at least 1s"));
        }
        if let (Some(place), None) | (None, Some(place)) = (written.certificate.place(), written.key.place()) {
            check.add(place, Problem::error("a client certificate takes both files").expected("certificate and key"));
        }
        let in_the_clear = !matches!(&it.endpoint, DockerEndpoint::Http(url) if url.tls);
        if let (Some(place), true) = (written.ca.place().or(written.certificate.place()), in_the_clear) {
            let problem = Problem::error("there is no certificate to verify");
            check.add(place, problem.expected("an https endpoint, or not this key"));
        }
        if let (DockerEndpoint::Http(url), Some(place)) = (&it.endpoint, written.endpoint.place())
            && !url.tls
            && !url.is_loopback()
        {
            let problem =
                Problem::warning("a daemon that is asked in the clear makes anyone in between root of its machine");
            check.add(place, problem.expected("an https endpoint"));
        }
        Some(it)
    }

    /// Whether the daemon is on this machine.
    pub(super) fn is_local(&self) -> bool {
        match &self.endpoint {
            DockerEndpoint::Socket(_) => true,
            DockerEndpoint::Http(url) => url.is_loopback(),
        }
    }

    pub(super) fn asks(&self) -> String {
        let Self { labels, endpoint, network, port, published, host, .. } = self;
        format!("docker {endpoint} {labels:?} {network:?} {port:?} {published} {host}")
    }
}

/// Where a Docker daemon is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DockerEndpoint {
    /// A Unix socket.
    Socket(PathBuf),
    /// An HTTP address.
    Http(HttpUrl),
}

impl fmt::Display for DockerEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "unix://{}", path.display()),
            Self::Http(url) => url.fmt(f),
        }
    }
}

/// A Unix socket or an HTTP address.
struct EndpointUrl;

impl Form<DockerEndpoint> for EndpointUrl {
    type Written = Location;

    fn read(&self, check: &Check<'_>, place: Place, text: &Location) -> Option<DockerEndpoint> {
        let parsed = match text.strip_prefix("unix://") {
            Some(path) => (path.starts_with('/') && !path.ends_with('/') && value::is_file_path(path))
                .then(|| DockerEndpoint::Socket(path.into())),
            None => HttpUrl::parse(text).map(DockerEndpoint::Http),
        };
        if parsed.is_none() {
            let problem = Problem::error(format!("{} is no address of a Docker daemon", check.quote(place, text)));
            let expected = "the like of \"unix:///var/run/docker.sock\" or \"https://10.0.0.7:2376\"";
            let suggestion = text
                .strip_prefix("tcp://")
                .map(|rest| format!("{}://{rest}", if rest.ends_with(":2376") { "https" } else { "http" }));
            check.add(place, problem.expected(expected).suggest(suggestion));
        }
        parsed
    }

    fn show(&self, value: &DockerEndpoint) -> Option<Tree> {
        Some(value.to_string().into())
    }

    fn tell(&self, value: &DockerEndpoint) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        let schema = json!({ "type": "string", "pattern": "^(unix|https?)://|\\$\\{" });
        About::new::<Location>("a `unix://`, `http://` or `https://` URL", schema)
    }
}

/// A label, or a label and its value.
struct LabelName;

const LABEL_BYTES_MAX: usize = 1024;

impl Form<Arc<str>> for LabelName {
    type Written = Word;

    fn read(&self, check: &Check<'_>, place: Place, text: &Word) -> Option<Arc<str>> {
        let is_good = !text.is_empty() && !text.starts_with('=') && text.len() <= LABEL_BYTES_MAX;
        if is_good && !text.chars().any(char::is_control) {
            return Some(text.as_str().into());
        }
        let problem = Problem::error(format!("{} is no label", check.quote(place, text)));
        check.add(place, problem.expected("the like of \"com.docker.compose.service=users\""));
        None
    }

    fn show(&self, value: &Arc<str>) -> Option<Tree> {
        Some(value.to_string().into())
    }

    fn tell(&self, value: &Arc<str>) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        About::new::<Word>("a label, or a label and its value", json!({ "type": "string", "minLength": 1 }))
    }
}
