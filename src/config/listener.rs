//! `[[listener]]`: a bound address and its protocol settings.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use ipnet::IpNet;
use serde_json::json;

use super::check::Check;
use super::error::Problem;
use super::form::{About, Form, Limit, List, Maybe, Name, OnPart, Once, Part, Size, Switch, Timeout, Whole};
use super::json_tree::Tree;
use super::report::Place;
use super::table::Table;
use super::visibility::Location;
use super::{
    BodyLimit, BodySize, ForwardedHeader, Http2Config, LingeringConfig, ListenerName, LocationPart, MiddlewareName,
    PathsConfig, Redirect, TlsConfig,
};

/// What is said where a listener has no address, and what would be right.
pub(crate) const NEEDS_AN_ADDRESS: (&str, &str) = ("a listener needs an address", "\"0.0.0.0:8080\" or \"[::]:8080\"");

/// A bound address and its protocol settings. It is found again at a reload by its address.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check, reload = Connections)]
pub struct ListenerConfig {
    /// What routes, logs and metrics call it. Unique.
    #[key(Name, otherwise = "the address as it is written", reload = AtOnce)]
    pub name: ListenerName,
    /// An IP address and a port. Unique. `[::]:8080` takes IPv6 only, so it goes beside `0.0.0.0:8080`. Port 0 takes a free one.
    #[key(ListenAddress, needed = NEEDS_AN_ADDRESS.0, expected = NEEDS_AN_ADDRESS.1, example = "0.0.0.0:8080")]
    pub address: SocketAddr,
    /// Connections that the kernel holds before they are accepted: room for a burst.
    #[key(Whole(1..=65_535), default = 4096, told = "backlog (of the next start)", reload = NextStart)]
    pub backlog: u32,
    /// Client connections at a time in the whole process; one more is answered 503 and closed. Each takes two of the open files, and more with
    /// many streams or large bodies: the log says at the start how many fit, and further clients wait.
    #[key(Whole(1..=10_000_000), default = 10_000, reload = AtOnce)]
    pub max_connections: usize,
    /// Of these, connections of one client address (of a /64 in IPv6); one more is closed. Behind one address there may be an office, or the
    /// balancer in front of this one.
    #[key(Limit(1..=1_000_000), default = "unlimited", reload = AtOnce)]
    pub max_connections_per_address: Option<u32>,
    /// Bytes of a request's head, or it is answered 431 (414 where the target alone is too long).
    #[key(Size("8KiB", "16MiB"), default = "64KiB")]
    pub max_header_bytes: usize,
    /// Header fields of a request, or it is answered 431. More than 100 cost an allocation.
    #[key(Whole(1..=1000), default = 100)]
    pub max_headers: usize,
    /// How large a request body may be, where the route does not say; a larger one is answered 413. Bodies are streamed and take no memory of
    /// isobar's; what backends bear they know best. Of a gRPC call it bounds each message.
    #[key(BodySize, default = "unlimited")]
    pub max_body: BodyLimit,
    /// How long a client that goes on sending is listened to once it is answered.
    #[key(Part)]
    pub lingering: LingeringConfig,
    /// From the first byte of a head to its last, or it is answered 408: against clients that trickle.
    #[key(Timeout, default = "10s")]
    pub header_timeout: Duration,
    /// How long a kept connection may wait for its next request: above what browsers and CDNs wait.
    #[key(Timeout, default = "75s")]
    pub idle_timeout: Duration,
    /// Bytes of a body that a client has to give or take in a second, over `body_idle` of the route, or it is answered 408, or the response is
    /// cut: against clients that trickle. Old modems do ten times that. 0 is any number. Not of gRPC calls.
    #[key(Whole(0..=1_000_000_000), default = 240)]
    pub min_bytes_per_second: u32,
    /// Addresses and networks whose `X-Forwarded-*` and `Forwarded` headers are believed and added to; all others' are replaced.
    #[key(List(Network), example = ["10.0.0.0/8"])]
    pub trusted_proxies: Vec<IpNet>,
    /// Whether to send `Forwarded` (RFC 7239) beside `X-Forwarded-*`.
    #[key(Switch, default = false)]
    pub forwarded: bool,
    /// What backends are told of clients beyond `X-Forwarded-For`, `-Proto`, `-Host` and `-Port`. Clients never get one of them through.
    #[key(Once("header"), example = ["x-real-ip"])]
    pub forwarded_headers: Vec<ForwardedHeader>,
    /// Whether to send `Via` (RFC 9110 §7.6.3) both ways: it finds loops, and tells what is there.
    #[key(Switch, default = false)]
    pub via: bool,
    /// What is done with paths that servers read differently.
    #[key(Part)]
    pub paths: PathsConfig,
    /// Answers every request 308, to the same host and path by https. For a listener without `tls`.
    #[key(Switch, default = false)]
    pub redirect_to_https: bool,
    /// The port that `redirect_to_https` leads to.
    #[key(Maybe(Whole(1..=65_535)), default = 443)]
    pub https_port: Option<u16>,
    /// How it speaks TLS; in the clear where there is no such table.
    #[key(Part)]
    pub tls: Option<Arc<TlsConfig>>,
    /// HTTP/2, where it is spoken.
    #[key(OnPart)]
    pub http2: Option<Http2Config>,
    /// Names of `[middleware.NAME.KIND]` that its requests go through, from the outside in, before those of their route.
    #[key(List(Name), example = ["safe"], reload = Requests, shown_if = Self::has_middleware)]
    pub middleware: Vec<MiddlewareName>,
    /// The answer of `redirect_to_https`; `None` where routes answer.
    pub redirect: Option<Redirect>,
}

impl ListenerConfig {
    fn has_middleware(&self) -> bool {
        !self.middleware.is_empty()
    }

    /// One with the defaults.
    pub fn new(name: &str, address: impl Into<SocketAddr>) -> Self {
        Self { name: name.into(), address: address.into(), ..Self::of_defaults() }
    }

    /// Whether a peer is one of the trusted proxies.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted_proxies.iter().any(|network| network.contains(&peer))
    }

    fn check(check: &Check<'_>, _: Place, written: &WrittenListenerConfig, mut it: Self) -> Option<Self> {
        if written.name.value().is_none_or(|name| name.as_str() != it.name.as_str()) {
            it.name = ListenerName::from(written.address.value().map_or("", |address| address.as_str()));
        }
        if let (Some(place), Some(most)) = (written.max_connections_per_address.place(), it.max_connections_per_address)
            && most as usize > it.max_connections
        {
            let all = check.show_other(written.max_connections.place(), it.max_connections);
            check.add(place, Problem::warning(format!("never reached: there are {all} connections at most")));
        }
        it.check_redirect(check, written);
        let http2 = it.http2.is_some();
        if let Some(tls) = &mut it.tls {
            Arc::make_mut(tls).http2 = http2;
        }
        Some(it)
    }

    /// To the same host and path by https.
    fn check_redirect(&mut self, check: &Check<'_>, written: &WrittenListenerConfig) {
        let port = self.https_port.unwrap_or(443);
        let Some((place, true)) = written.redirect_to_https.given().map(|(place, on)| (place, *on)) else {
            if let (Some(place), true) = (written.https_port.place(), port != 443) {
                check.add(place, Problem::warning("says where redirect_to_https leads, which is off"));
            }
            self.https_port = None;
            return;
        };
        if written.tls.place().is_some() {
            let problem = Problem::error("this listener speaks TLS itself: the redirect would lead back to it");
            check.add(place, problem.expected("it in a listener without tls"));
        }
        let port = if port == 443 { String::new() } else { format!(":{port}") };
        let location = [
            LocationPart::Text("https://".into()),
            LocationPart::Host,
            LocationPart::Text(port),
            LocationPart::Path,
            LocationPart::Query,
        ];
        self.redirect = Some(Redirect { status: StatusCode::PERMANENT_REDIRECT, location: location.into() });
    }
}

/// An IP address and a port. Names are not looked up: what they stand for can change while the socket stays.
pub(crate) struct ListenAddress;

impl Form<SocketAddr> for ListenAddress {
    type Written = Location;

    fn read(&self, check: &Check<'_>, place: Place, text: &Location) -> Option<SocketAddr> {
        if let Ok(address) = text.parse() {
            return Some(address);
        }
        let with = |host: &str, port: &str| Some(SocketAddr::new(host.parse().ok()?, port.parse().ok()?).to_string());
        let suggestion = match text.rsplit_once(':') {
            Some(("" | "*", port)) => with("0.0.0.0", port),
            Some(("localhost", port)) => with("127.0.0.1", port),
            Some((host, port)) => with(host, port),
            None => with("0.0.0.0", text),
        };
        let problem = Problem::error(format!("{} is not an IP address and a port", check.quote(place, text)));
        check.add(place, problem.expected("the like of \"0.0.0.0:8080\" or \"[::]:8080\"").suggest(suggestion));
        None
    }

    fn show(&self, value: &SocketAddr) -> Option<Tree> {
        Some(value.to_string().into())
    }

    fn tell(&self, value: &SocketAddr) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        let schema = json!({ "type": "string", "pattern": ":[0-9]+$|\\$\\{" });
        About::new::<Location>("an IP address and a port", schema)
    }
}

/// An address or a network of them.
pub(crate) struct Network;

impl Form<IpNet> for Network {
    type Written = Location;

    fn read(&self, check: &Check<'_>, place: Place, text: &Location) -> Option<IpNet> {
        let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        let Some(network) = network else {
            let problem = Problem::error(format!("{} is not an address or a network", check.quote(place, text)));
            check.add(place, problem.expected("the like of \"10.0.0.0/8\", \"192.0.2.7\" or \"2001:db8::/32\""));
            return None;
        };
        if network.trunc() != network {
            let problem =
                Problem::warning(format!("{} is read as the network that it is in", check.quote(place, text)));
            check.add(place, problem.suggest(Some(network.trunc().to_string())));
        }
        Some(network.trunc())
    }

    fn show(&self, value: &IpNet) -> Option<Tree> {
        Some(value.to_string().into())
    }

    fn tell(&self, value: &IpNet) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        let schema = json!({ "type": "string", "pattern": "^[0-9a-fA-F.:]+(/[0-9]{1,3})?$|\\$\\{" });
        About::new::<Location>("an address or a network", schema)
    }
}
