//! `[dns]`: how names are looked up.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::address::is_host_name;
use super::check::{Check, value};
use super::error::Problem;
use super::form::{About, Form, List, OneOf, Part, Span, Timeout, Whole, Word};
use super::json_tree::Tree;
use super::raw;
use super::report::Place;
use super::table::Table;
use super::units;
use super::visibility::{Location, Word as Text};

/// How the names of backends are looked up: those in `backends`, those that other sources say, and those of the source `dns`. `/etc/hosts` is
/// looked into first.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check, reload = AtOnce)]
pub struct DnsConfig {
    /// Name servers by their IP addresses, with a port where it is not 53. All are asked, two at a time.
    #[key(List(NameServer), otherwise = "those of `/etc/resolv.conf`, which is read again when it changes", example = ["10.0.0.2", "127.0.0.1:8600"])]
    pub nameservers: Vec<SocketAddr>,
    /// Domains that are added to names with fewer dots than `ndots` in `/etc/resolv.conf` has, one after the other.
    #[key(List(Domain), otherwise = "those of `/etc/resolv.conf`", example = ["svc.cluster.local"])]
    pub search: Vec<Arc<str>>,
    /// How long name servers have to answer a question, each time that it is asked.
    #[key(Timeout, default = "2s")]
    pub timeout: Duration,
    /// How often a question is asked before the look-up has failed.
    #[key(Whole(1..=10), default = 3)]
    pub attempts: u32,
    /// A name is looked up again when the answer's TTL is over, but not sooner than this.
    #[key(Timeout, default = "1s")]
    pub min_ttl: Duration,
    /// And not later than this.
    #[key(Timeout, default = "5m")]
    pub max_ttl: Duration,
    /// Which addresses are asked for. Of a name with addresses of both families, those that this machine has no route to are left out.
    #[key(OneOf, default = "any")]
    pub family: AddressFamily,
    /// How long addresses are kept that an answer does not have.
    #[key(Part)]
    pub hold: DnsHoldConfig,
}

/// Which addresses of a name are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Word)]
pub enum AddressFamily {
    /// IPv4 and IPv6.
    Any,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// How long the addresses of a name are kept that an answer does not have. A good answer with addresses replaces what was known at once; one
/// without any, and none at all, are what a name server says on a bad day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Table)]
#[table(reload = AtOnce)]
pub struct DnsHoldConfig {
    /// When it says that there is no such name (NXDOMAIN). A backend that fails its checks meanwhile is gone at once.
    #[key(Hold, default = "5m")]
    pub nxdomain: Option<Duration>,
    /// When it says that the name has no addresses. A backend that fails its checks meanwhile is gone at once.
    #[key(Hold, default = "5m")]
    pub empty: Option<Duration>,
    /// When it cannot say, or does not want to (SERVFAIL, REFUSED, what is no answer).
    #[key(Hold, default = "forever")]
    pub failure: Option<Duration>,
    /// When no answer comes.
    #[key(Hold, default = "forever")]
    pub timeout: Option<Duration>,
    /// When it says other addresses. More than zero is for names whose answers are a part of what there is.
    #[key(Span, default = "0s")]
    pub gone: Duration,
}

impl DnsConfig {
    fn check(check: &Check<'_>, _: Place, written: &WrittenDnsConfig, mut it: Self) -> Option<Self> {
        match written.max_ttl.given() {
            // A min_ttl above the default is no contradiction by itself.
            None => it.max_ttl = it.max_ttl.max(it.min_ttl),
            Some((place, _)) if it.max_ttl < it.min_ttl => {
                check.add(place, Problem::error("less than min_ttl").expected("min_ttl at least"));
            }
            Some(_) => {}
        }
        Some(it)
    }
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self::of_defaults()
    }
}

/// The address of a name server.
pub(crate) struct NameServer;

/// Where name servers are asked.
const PORT: u16 = 53;

impl Form<SocketAddr> for NameServer {
    type Written = Location;

    fn read(&self, check: &Check<'_>, place: Place, text: &Location) -> Option<SocketAddr> {
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        let address = text.parse().ok().or_else(|| bare.parse::<IpAddr>().ok().map(|ip| (ip, PORT).into()));
        let address = address.filter(|address: &SocketAddr| address.port() != 0);
        if address.is_none() {
            let problem = Problem::error(format!("{} is not the address of a name server", check.quote(place, text)));
            check
                .add(place, problem.expected("an IP address, such as \"10.0.0.2\", or with a port \"127.0.0.1:8600\""));
        }
        address
    }

    fn show(&self, value: &SocketAddr) -> Option<Tree> {
        Some(value.to_string().into())
    }

    fn tell(&self, value: &SocketAddr) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        About::new::<Location>("an IP address, with or without a port", json!({ "type": "string", "minLength": 2 }))
    }
}

/// The name of a domain, or of what is in one.
pub(crate) struct Domain;

impl Form<Arc<str>> for Domain {
    type Written = Text;

    fn read(&self, check: &Check<'_>, place: Place, text: &Text) -> Option<Arc<str>> {
        if is_host_name(text) {
            return Some(text.to_ascii_lowercase().into());
        }
        let problem = Problem::error(format!("{} is not a name of DNS", check.quote(place, text)));
        check.add(place, problem.expected("the like of \"users.internal\""));
        None
    }

    fn show(&self, value: &Arc<str>) -> Option<Tree> {
        Some((**value).into())
    }

    fn tell(&self, value: &Arc<str>) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        About::new::<Text>("a name of DNS", json!({ "type": "string", "minLength": 1, "maxLength": 254 }))
    }
}

/// A duration that may be zero, or for good.
struct Hold;

const FOREVER: &str = "forever";

impl Form<Option<Duration>> for Hold {
    type Written = raw::Duration;

    fn read(&self, check: &Check<'_>, place: Place, raw::Duration(text): &raw::Duration) -> Option<Option<Duration>> {
        if text == FOREVER {
            return Some(None);
        }
        value::written_duration(check, place, text, &format!("\"{FOREVER}\", or {}", value::DURATION)).map(Some)
    }

    fn show(&self, value: &Option<Duration>) -> Option<Tree> {
        Some(value.map_or_else(|| FOREVER.into(), units::written).into())
    }

    fn tell(&self, value: &Option<Duration>) -> String {
        value.map_or_else(|| FOREVER.into(), |held| Span.tell(&held))
    }

    fn about(&self) -> About {
        <Span as Form<Duration>>::about(&Span).or_word(FOREVER)
    }
}
