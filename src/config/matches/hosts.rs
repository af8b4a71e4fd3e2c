//! Hosts of a route.

use std::fmt;
use std::net::Ipv6Addr;

use serde_json::json;

use crate::config::address::is_host_name;
use crate::config::check::Check;
use crate::config::difference::Changes;
use crate::config::error::Problem;
use crate::config::field::Field;
use crate::config::form::{About, Form, Literal};
use crate::config::json_tree::Tree;
use crate::config::report::Place;
use crate::config::visibility::{Kind, Location};
use crate::target::authority;

use super::{refuse_empty, some};

/// Which hosts match. Lower case, without port or final dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// The host itself: `api.example.com`.
    Exact(String),
    /// `*.example.com`, kept as `.example.com`: any host below it, however deep, but not `example.com`.
    Wildcard(String),
}

/// Hosts of which any matches; `"*"` is every host.
pub(crate) struct Hosts;

impl Form<Vec<HostPattern>> for Hosts {
    type Written = Vec<Field<Location>>;

    fn read(&self, check: &Check<'_>, place: Place, written: &Self::Written) -> Option<Vec<HostPattern>> {
        refuse_empty(check, place, written, "hosts");
        let mut hosts = Vec::new();
        let mut every = false;
        for (place, text) in written.iter().filter_map(Field::given) {
            if text.as_str() == "*" {
                every = true;
                if written.len() > 1 {
                    let problem = Problem::error("\"*\" is every host already");
                    check.add(place, problem.expected("\"*\" alone, or no hosts key"));
                }
            } else if let Some(host) = host(check, place, text) {
                if hosts.contains(&host) {
                    check.add(place, Problem::error(format!("host {} is there twice", check.quote(place, text))));
                }
                hosts.push(host);
            }
        }
        Some(if every { Vec::new() } else { hosts })
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Vec<HostPattern> {
        Vec::new()
    }

    fn show(&self, value: &Vec<HostPattern>) -> Option<Tree> {
        some(value.iter().map(|host| host.to_string().into()).collect())
    }

    fn tell(&self, value: &Vec<HostPattern>) -> String {
        value.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    fn compare(&self, changes: &mut Changes, table: &str, words: &str, old: &Vec<HostPattern>, new: &Vec<HostPattern>) {
        let texts = |hosts: &[HostPattern]| hosts.iter().map(ToString::to_string).collect::<Vec<_>>();
        changes.told_members(Kind::Location, &format!("{table}{words}"), &texts(old), &texts(new));
    }

    fn about(&self) -> About {
        let host = json!({ "type": "string", "pattern": "^[^:/ ]+$|^\\[[^/ ]*\\]$|\\$\\{" });
        About::new::<Location>("an array of hosts", json!({ "type": "array", "minItems": 1, "items": host }))
    }
}

/// As the file writes it.
impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Wildcard(suffix) => write!(f, "*{suffix}"),
        }
    }
}

fn host(check: &Check<'_>, place: Place, text: &str) -> Option<HostPattern> {
    let (wildcard, name) = text.strip_prefix("*.").map_or(("", text), |name| ("*.", name));
    // As requests name it: in lower case, without a final dot, other scripts as A-labels.
    let lower = match name.is_ascii() {
        true => text.to_ascii_lowercase(),
        false => authority::name(name).map_or_else(|| text.to_owned(), |name| format!("{wildcard}{name}")),
    };
    let plain = lower.strip_suffix('.').unwrap_or(&lower);
    let parsed = match plain.strip_prefix("*.") {
        Some(suffix) => is_host_name(suffix).then(|| HostPattern::Wildcard(format!(".{suffix}"))),
        None => is_host(plain).then(|| HostPattern::Exact(plain.to_owned())),
    };
    if parsed.is_none() {
        let without_port = plain.split_once("://").map_or(plain, |(_, rest)| rest);
        let without_port = without_port.split(['/', ':']).next().filter(|host| is_host(host)).map(str::to_owned);
        let problem = Problem::error(format!("{} is not a host", check.quote(place, text)));
        let expected = "a name without port, such as \"api.example.com\", \"*.example.com\" or \"*\"";
        check.add(place, problem.expected(expected).suggest(without_port));
    }
    parsed
}

/// A name, or an IP address as a `Host` header has it.
fn is_host(text: &str) -> bool {
    let v6 = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    v6.map_or_else(
        || is_host_name(text) || text.parse::<std::net::Ipv4Addr>().is_ok(),
        |text| text.parse::<Ipv6Addr>().is_ok(),
    )
}
