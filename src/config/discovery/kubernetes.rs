//! `[upstream.NAME.discovery.kubernetes]`

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::file::FileAt;
use crate::config::check::Check;
use crate::config::error::Problem;
use crate::config::form::{About, Form, Maybe, Switch, Timeout};
use crate::config::json_tree::Tree;
use crate::config::raw;
use crate::config::report::Place;
use crate::config::table::Table;
use crate::config::visibility::{OfKind, Word as Text};

/// A Service in Kubernetes: the endpoints of its EndpointSlices, which are listed and then watched, so that a change is known at once. Needs a
/// build with the feature `kubernetes`, which is on by default.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check)]
pub struct KubernetesConfig {
    /// The Service's name.
    #[key(
        ObjectName,
        needed = "a source that is Kubernetes needs a Service",
        expected = "service = \"users\"",
        example = "users"
    )]
    pub service: Arc<str>,
    /// Its namespace.
    #[key(Maybe(ObjectName), otherwise = "that of the pod, or of the kubeconfig's context", example = "shop")]
    pub namespace: Option<Arc<str>>,
    /// Which port of the endpoints: the name that the Service gives it, or its number at the pods (`targetPort`). Endpoints without it are left out.
    #[key(Maybe(Port), otherwise = "the only one", example = "http")]
    pub port: Option<ServicePort>,
    /// A kubeconfig that says where the API server is, and the login. By default isobar is in the cluster, and asks as its pod's ServiceAccount.
    #[key(Maybe(FileAt), example = "/etc/isobar/kubeconfig")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig.
    #[key(Maybe(ContextName), otherwise = "its current one", example = "production")]
    pub context: Option<Arc<str>>,
    /// Whether the zone of an endpoint is the one that it is meant for by the Service's `trafficDistribution` (`hints.forZones`), and not the one it is
    /// in. Only while all endpoints that are ready have such a hint.
    #[key(Switch, default = false)]
    pub zone_hints: bool,
    /// Whether a pod with addresses of both families is a backend at its IPv6 address; otherwise it is one at its IPv4 address.
    #[key(Switch, default = false)]
    pub prefer_ipv6: bool,
    /// How long a watch stays open until it is opened again where it ended. One that does not end then, within `timeout`, is given up: it hangs.
    #[key(Timeout, default = "1m")]
    pub wait: Duration,
    /// How often all is listed again beside the watch: it finds what a restored cluster has under a version that is known already.
    #[key(Timeout, default = "10m")]
    pub resync: Duration,
    /// From the first packet to the last byte of an answer.
    #[key(Timeout, default = "10s")]
    pub timeout: Duration,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServicePort {
    /// By its name.
    Name(Arc<str>),
    /// By its number at the pods.
    Number(u16),
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// It counts in seconds here.
const WAIT_MIN: Duration = Duration::from_secs(1);
/// API servers end a watch of their own after half an hour at least.
const WAIT_MAX: Duration = Duration::from_secs(1800);

impl KubernetesConfig {
    fn check(check: &Check<'_>, place: Place, written: &WrittenKubernetesConfig, it: Self) -> Option<Self> {
        if !cfg!(feature = "kubernetes") {
            let problem = Problem::error("this isobar was built without the feature `kubernetes`");
            check.add(place, problem.expected("a build with it: it is on by default"));
        }
        if let (Some((place, text)), false) = (written.wait.given(), (WAIT_MIN..=WAIT_MAX).contains(&it.wait)) {
            let problem = Problem::error(format!("{} is out of range", check.quote(place, &text.0)));
            check.add(place, problem.expected("1s to 30m"));
        }
        if let (Some((place, text)), true) = (written.resync.given(), it.resync < WAIT_MIN) {
            let problem = Problem::error(format!("{} is too short", check.quote(place, &text.0)));
            check.add(place, problem.expected("at least 1s"));
        }
        if let (Some(place), None) = (written.context.place(), written.kubeconfig.place()) {
            check.add(place, Problem::error("a context of no kubeconfig").expected("kubeconfig beside it"));
        }
        Some(it)
    }

    pub(super) fn asks(&self) -> String {
        let Self { service, namespace, port, kubeconfig, context, .. } = self;
        format!("kubernetes {kubeconfig:?} {context:?} {namespace:?} {service} {port:?}")
    }
}

/// The name of an object in Kubernetes that is a DNS label.
struct ObjectName;

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

impl Form<Arc<str>> for ObjectName {
    type Written = Text;

    fn read(&self, check: &Check<'_>, place: Place, text: &Text) -> Option<Arc<str>> {
        if is_label(text) {
            return Some(text.as_str().into());
        }
        let problem = Problem::error(format!("{} is no name in Kubernetes", check.quote(place, text)));
        check.add(place, problem.expected("1 to 63 lower-case letters, digits and hyphens"));
        None
    }

    fn show(&self, value: &Arc<str>) -> Option<Tree> {
        Some(value.to_string().into())
    }

    fn tell(&self, value: &Arc<str>) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        let schema = json!({ "type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$|\\$\\{", "minLength": 1 });
        About::new::<Text>("a name in Kubernetes", schema)
    }
}

/// The name of a context, which may be nearly any text: clouds put paths there.
struct ContextName;

const CONTEXT_BYTES_MAX: usize = 1024;

impl Form<Arc<str>> for ContextName {
    type Written = Text;

    fn read(&self, check: &Check<'_>, place: Place, text: &Text) -> Option<Arc<str>> {
        if !text.is_empty() && text.len() <= CONTEXT_BYTES_MAX && !text.chars().any(char::is_control) {
            return Some(text.as_str().into());
        }
        let problem = Problem::error(format!("{} is no name of a context", check.quote(place, text)));
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
        About::new::<Text>("the name of a context", json!({ "type": "string", "minLength": 1 }))
    }
}

/// A port by its name or its number.
struct Port;

impl Form<ServicePort> for Port {
    type Written = raw::ServicePort;

    fn read(&self, check: &Check<'_>, place: Place, written: &raw::ServicePort) -> Option<ServicePort> {
        let number = |number: i64| u16::try_from(number).ok().filter(|&number| number > 0);
        let (read, shown) = match written {
            raw::ServicePort::Integer(given) => (number(*given).map(ServicePort::Number), check.show(place, given)),
            raw::ServicePort::String(text) => {
                let by_number = text.parse().ok().and_then(number).map(ServicePort::Number);
                let by_name = || is_label(text).then(|| ServicePort::Name(text.as_str().into()));
                (by_number.or_else(by_name), check.quote(place, text))
            }
        };
        if read.is_none() {
            let problem = Problem::error(format!("{shown} is no port of a Service"));
            check.add(place, problem.expected("its name, such as \"http\", or a number from 1 to 65535"));
        }
        read
    }

    fn show(&self, value: &ServicePort) -> Option<Tree> {
        Some(match value {
            ServicePort::Name(name) => name.to_string().into(),
            ServicePort::Number(number) => u64::from(*number).into(),
        })
    }

    fn tell(&self, value: &ServicePort) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        let schema = json!({ "anyOf": [{ "type": "string", "minLength": 1 }, { "type": "integer", "minimum": 1, "maximum": 65_535 }] });
        About { kind: raw::ServicePort::KIND, ..About::new::<Text>("a name or a number", schema) }
    }
}
