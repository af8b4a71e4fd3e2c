//! `[upstream.NAME.discovery.etcd]`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::file::FileAt;
use super::http::secure;
use super::url::{HttpUrl, Url};
use crate::config::Secret;
use crate::config::check::Check;
use crate::config::error::Problem;
use crate::config::form::{About, Form, List, Maybe, Timeout};
use crate::config::json_tree::Tree;
use crate::config::report::Place;
use crate::config::table::Table;
use crate::config::visibility::{Secret as SecretText, Word};

/// Keys in etcd (3.4 or later) that begin with a prefix: each is a backend, or several. They are read and then watched, so that a change is known
/// at once.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check)]
pub struct EtcdConfig {
    /// What the keys begin with. Without a slash at its end, `/users` would find `/users-old/..` too.
    #[key(
        Prefix,
        needed = "a source that is etcd needs a prefix",
        expected = "prefix = \"/services/users/\"",
        example = "/services/users/"
    )]
    pub prefix: Arc<str>,
    /// The members' client URLs. One is asked at a time, and the next when it fails.
    #[key(List(Url), otherwise = "`[\"http://127.0.0.1:2379\"]`", example = ["https://10.0.0.1:2379", "https://10.0.0.2:2379"])]
    pub endpoints: Vec<HttpUrl>,
    /// The user to log in as, with `password`.
    #[key(Maybe(Line), example = "isobar")]
    pub username: Option<Arc<str>>,
    /// Its password.
    #[key(Maybe(Password), example = "${ETCD_PASSWORD:-an-example-password}")]
    pub password: Option<Secret>,
    /// PEM: the authorities that the members' certificates may be from, in place of those that the system trusts.
    #[key(Maybe(FileAt), example = "/etc/isobar/etcd-ca.pem")]
    pub ca: Option<PathBuf>,
    /// PEM: the certificate that is shown to members that ask for one, with `key`.
    #[key(Maybe(FileAt), example = "/etc/isobar/etcd-client.pem")]
    pub certificate: Option<PathBuf>,
    /// PEM: its private key.
    #[key(Maybe(FileAt), example = "/etc/isobar/etcd-client.key")]
    pub key: Option<PathBuf>,
    /// How often all keys are read again beside the watch: it finds a member that hangs or has lost the others.
    #[key(Timeout, default = "10s")]
    pub resync: Duration,
    /// From the first packet to the last byte of an answer.
    #[key(Timeout, default = "5s")]
    pub timeout: Duration,
}

/// Below this, reading would be all that is done.
const RESYNC_MIN: Duration = Duration::from_secs(1);

impl EtcdConfig {
    fn check(check: &Check<'_>, _: Place, written: &WrittenEtcdConfig, mut it: Self) -> Option<Self> {
        if it.endpoints.is_empty() {
            if let Some(place) = written.endpoints.place() {
                let problem = Problem::error("there is no endpoint to ask");
                check.add(place, problem.expected("[\"http://127.0.0.1:2379\"]"));
            }
            it.endpoints.extend(HttpUrl::parse("http://127.0.0.1:2379"));
        }
        if let (Some((place, text)), true) = (written.resync.given(), it.resync < RESYNC_MIN) {
            let problem = Problem::error(format!("{} is too short", check.quote(place, &text.0)));
            check.add(place, problem.expected("at least 1s"));
        }
        if let (Some(place), None) | (None, Some(place)) = (written.username.place(), written.password.place()) {
            check.add(place, Problem::error("a login takes both").expected("username and password"));
        }
        if let (Some(place), None) | (None, Some(place)) = (written.certificate.place(), written.key.place()) {
            check.add(place, Problem::error("a client certificate takes both files").expected("certificate and key"));
        }
        for url in &it.endpoints {
            secure(check, url, written.password.place(), written.ca.place().or(written.certificate.place()));
        }
        Some(it)
    }

    pub(super) fn asks(&self) -> String {
        let endpoints: Vec<_> = self.endpoints.iter().map(HttpUrl::to_string).collect();
        format!("etcd {} {:?}", endpoints.join(" "), self.prefix)
    }
}

/// What keys begin with.
pub(super) struct Prefix;

const PREFIX_BYTES_MAX: usize = 1024;

impl Form<Arc<str>> for Prefix {
    type Written = Word;

    fn read(&self, check: &Check<'_>, place: Place, text: &Word) -> Option<Arc<str>> {
        if !text.is_empty() && text.len() <= PREFIX_BYTES_MAX && !text.chars().any(char::is_control) {
            return Some(text.as_str().into());
        }
        let problem = Problem::error(format!("{} is no prefix of keys", check.quote(place, text)));
        check.add(place, problem.expected("the like of \"/services/users/\""));
        None
    }

    fn show(&self, value: &Arc<str>) -> Option<Tree> {
        Some(value.to_string().into())
    }

    fn tell(&self, value: &Arc<str>) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        About::new::<Word>("a prefix of keys", json!({ "type": "string", "minLength": 1 }))
    }
}

/// A text of one line.
pub(super) struct Line;

impl Form<Arc<str>> for Line {
    type Written = Word;

    fn read(&self, check: &Check<'_>, place: Place, text: &Word) -> Option<Arc<str>> {
        if !text.is_empty() && text.len() <= PREFIX_BYTES_MAX && !text.chars().any(char::is_control) {
            return Some(text.as_str().into());
        }
        let problem = Problem::error(format!("{} is no name of a user", check.quote(place, text)));
        check.add(place, problem.expected("a text on one line"));
        None
    }

    fn show(&self, value: &Arc<str>) -> Option<Tree> {
        Some(value.to_string().into())
    }

    fn tell(&self, value: &Arc<str>) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        About::new::<Word>("the name of a user", json!({ "type": "string", "minLength": 1 }))
    }
}

/// A password, which may be any text that is not empty.
pub(super) struct Password;

impl Form<Secret> for Password {
    type Written = SecretText;

    fn read(&self, check: &Check<'_>, place: Place, written: &SecretText) -> Option<Secret> {
        let text = written.reveal();
        if !text.is_empty() {
            return Some(Secret::from(text));
        }
        check.add(place, Problem::error("the password is empty").expected("a text"));
        None
    }

    fn show(&self, value: &Secret) -> Option<Tree> {
        Some(value.reveal().into())
    }

    fn tell(&self, value: &Secret) -> String {
        value.reveal().to_owned()
    }

    fn about(&self) -> About {
        About::new::<SecretText>("a password", json!({ "type": "string", "minLength": 1 }))
    }
}
