//! `[upstream.NAME.discovery.http]`

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::file::FileAt;
use super::url::{HttpUrl, Url};
use crate::config::Secret;
use crate::config::check::Check;
use crate::config::error::Problem;
use crate::config::form::{About, Form, Maybe, Timeout};
use crate::config::json_tree::Tree;
use crate::config::report::Place;
use crate::config::table::Table;
use crate::config::visibility::Secret as SecretText;

/// A list of backends that is asked for again and again: JSON in isobar's own form, or as Prometheus has it for `http_sd`. A server that sends an
/// `ETag` need not send the same list twice.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check)]
pub struct HttpSourceConfig {
    /// Where it is.
    #[key(
        Url,
        needed = "a source over HTTP needs a URL",
        expected = "url = \"http://10.0.0.7:8000/users.json\"",
        example = "http://10.0.0.7:8000/users.json"
    )]
    pub url: HttpUrl,
    /// From an answer to the next request, where there is no `wait`.
    #[key(Timeout, default = "10s")]
    pub interval: Duration,
    /// How long the server may hold a request until it has something new: it is asked with `Prefer: wait=SECONDS`, and again at once after an
    /// answer. Without it, the server answers at once.
    #[key(Maybe(Timeout), example = "60s")]
    pub wait: Option<Duration>,
    /// From the first packet to the last byte of the answer, beside `wait`.
    #[key(Timeout, default = "5s")]
    pub timeout: Duration,
    /// What is sent as `Authorization: Bearer`.
    #[key(Maybe(Sent), example = "${ISOBAR_LIST_TOKEN:-an-example-token}")]
    pub token: Option<Secret>,
    /// PEM: the authorities that the server's certificate may be from, in place of those that the system trusts.
    #[key(Maybe(FileAt), example = "/etc/isobar/registry-ca.pem")]
    pub ca: Option<PathBuf>,
}

/// Below this a list would be all that is asked for.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

impl HttpSourceConfig {
    fn check(check: &Check<'_>, _: Place, written: &WrittenHttpSourceConfig, it: Self) -> Option<Self> {
        if let (Some((place, text)), true) = (written.interval.given(), it.interval < INTERVAL_MIN) {
            let problem = Problem::error(format!("{} is too short", check.quote(place, &text.0)));
            check.add(place, problem.expected("at least 100ms"));
        }
        secure(check, &it.url, written.token.place(), written.ca.place());
        Some(it)
    }
}

/// Says what is odd about a token or a certificate authority for this URL.
pub(super) fn secure(check: &Check<'_>, url: &HttpUrl, token: Option<Place>, ca: Option<Place>) {
    if let (Some(place), false, false) = (token, url.tls, url.is_loopback()) {
        check.add(place, Problem::warning("the token is sent in the clear").expected("an https URL"));
    }
    if let (Some(place), false) = (ca, url.tls) {
        check.add(place, Problem::error("there is no certificate to verify").expected("an https URL, or not this key"));
    }
}

/// A token that is sent in a header.
pub(super) struct Sent;

impl Form<Secret> for Sent {
    type Written = SecretText;

    fn read(&self, check: &Check<'_>, place: Place, written: &SecretText) -> Option<Secret> {
        let text = written.reveal();
        if !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic()) {
            return Some(Secret::from(text));
        }
        let what = if text.is_empty() { "the token is empty" } else { "the token cannot be sent in a header" };
        check.add(place, Problem::error(what).expected("letters, digits or signs, without spaces"));
        None
    }

    fn show(&self, value: &Secret) -> Option<Tree> {
        Some(value.reveal().into())
    }

    fn tell(&self, value: &Secret) -> String {
        value.reveal().to_owned()
    }

    fn about(&self) -> About {
        About::new::<SecretText>("a token", json!({ "type": "string", "minLength": 1 }))
    }
}
