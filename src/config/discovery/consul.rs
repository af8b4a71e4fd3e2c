//! `[upstream.NAME.discovery.consul]`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::file::FileAt;
use super::http::{Sent, secure};
use super::url::{HttpUrl, Url};
use crate::config::Secret;
use crate::config::check::Check;
use crate::config::error::Problem;
use crate::config::form::{About, Form, List, Maybe, Name, Switch, Timeout};
use crate::config::json_tree::Tree;
use crate::config::report::Place;
use crate::config::table::Table;
use crate::config::visibility::Word;

/// A service in Consul: its instances that pass their checks, asked for by blocking queries of `/v1/health/service/NAME`, so that a change is
/// known at once.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check)]
pub struct ConsulConfig {
    /// The service's name.
    #[key(
        Name,
        needed = "a source that is Consul needs a service",
        expected = "service = \"users\"",
        example = "users"
    )]
    pub service: Arc<str>,
    /// Where Consul's HTTP API is; the agent of this machine by default.
    #[key(Url, default = "http://127.0.0.1:8500")]
    pub address: HttpUrl,
    /// The ACL token.
    #[key(Maybe(Sent), example = "${CONSUL_HTTP_TOKEN:-an-example-token}")]
    pub token: Option<Secret>,
    /// Of which datacenter; that of the agent where it is left out.
    #[key(Maybe(Name), example = "dc1")]
    pub datacenter: Option<Arc<str>>,
    /// Of which namespace (Consul Enterprise).
    #[key(Maybe(Name), example = "shop")]
    pub namespace: Option<Arc<str>>,
    /// Of which admin partition (Consul Enterprise).
    #[key(Maybe(Name), example = "default")]
    pub partition: Option<Arc<str>>,
    /// Tags that an instance must have, all of them.
    #[key(List(Name), example = ["v2"])]
    pub tags: Vec<Arc<str>>,
    /// An expression in Consul's filter language that an instance must fulfil.
    #[key(Maybe(Expression), example = "Service.Meta.version == \"2\"")]
    pub filter: Option<Arc<str>>,
    /// Whether instances count of which a check warns, with the weight that Consul has for that.
    #[key(Switch, default = false)]
    pub warning: bool,
    /// Whether any server may answer, and not the leader alone: it scales, and goes on while there is no leader.
    #[key(Switch, default = true)]
    pub stale: bool,
    /// How long Consul may hold a query until something changes.
    #[key(Timeout, default = "5m")]
    pub wait: Duration,
    /// From the first packet to the last byte of the answer, beside `wait`.
    #[key(Timeout, default = "10s")]
    pub timeout: Duration,
    /// PEM: the authorities that Consul's certificate may be from, in place of those that the system trusts.
    #[key(Maybe(FileAt), example = "/etc/isobar/consul-ca.pem")]
    pub ca: Option<PathBuf>,
}

/// Consul waits no longer, whatever it is asked.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// It counts in seconds here.
const WAIT_MIN: Duration = Duration::from_secs(1);

impl ConsulConfig {
    fn check(check: &Check<'_>, _: Place, written: &WrittenConsulConfig, it: Self) -> Option<Self> {
        if let (Some((place, text)), false) = (written.wait.given(), (WAIT_MIN..=WAIT_MAX).contains(&it.wait)) {
            let problem = Problem::error(format!("{} is out of range", check.quote(place, &text.0)));
            check.add(place, problem.expected("1s to 10m, which is the longest that Consul waits"));
        }
        secure(check, &it.address, written.token.place(), written.ca.place());
        Some(it)
    }

    pub(super) fn asks(&self) -> String {
        let Self { service, address, datacenter, namespace, partition, tags, filter, warning, .. } = self;
        format!("consul {address} {service} {datacenter:?} {namespace:?} {partition:?} {tags:?} {filter:?} {warning}")
    }
}

/// A text of one line.
struct Expression;

const EXPRESSION_BYTES_MAX: usize = 2048;

impl Form<Arc<str>> for Expression {
    type Written = Word;

    fn read(&self, check: &Check<'_>, place: Place, text: &Word) -> Option<Arc<str>> {
        if !text.is_empty() && text.len() <= EXPRESSION_BYTES_MAX && !text.chars().any(char::is_control) {
            return Some(text.as_str().into());
        }
        let problem = Problem::error(format!("{} is not an expression", check.quote(place, text)));
        check.add(place, problem.expected(format!("1 to {EXPRESSION_BYTES_MAX} bytes on one line")));
        None
    }

    fn show(&self, value: &Arc<str>) -> Option<Tree> {
        Some(value.to_string().into())
    }

    fn tell(&self, value: &Arc<str>) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        About::new::<Word>("an expression", json!({ "type": "string", "minLength": 1 }))
    }
}
