//! `[[listener]]`

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::StatusCode;
use ipnet::IpNet;

use super::limits::limit;
use super::tls::tls;
use super::value::{SIZE, choice, name, number, size, size_in, timeout};
use super::{Check, redirect_loop};
use crate::config::error::Problem;
use crate::config::field::Field;
use crate::config::kind::{Location, Word};
use crate::config::raw;
use crate::config::report::Place;
use crate::config::{
    BodyLimit, ForwardedHeader, Http2Config, LingeringConfig, ListenerConfig, ListenerName, LocationPart,
    PathOverrides, PathRule, PathsConfig, Redirect,
};

const MAX_CONNECTIONS: i64 = 10_000;
const HEADER_BYTES: u64 = 64 << 10;
/// Below the lower bound hardly a browser's request would pass.
const HEADER_BYTES_RANGE: std::ops::RangeInclusive<u64> = (8 << 10)..=(16 << 20);

/// A listener, and where its name and its address stand: what of them problems may have is known there.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) config: ListenerConfig,
    name: Place,
    address: Place,
}

impl Checked {
    /// Its name as a problem may have it.
    pub(super) fn name(&self, check: &Check<'_>) -> String {
        check.show(self.name, &self.config.name)
    }

    /// The same in quotes.
    pub(super) fn quoted_name(&self, check: &Check<'_>) -> String {
        check.quote(self.name, self.config.name.as_str())
    }
}

/// The listeners, and whether they get along with each other and with the admin address.
pub(super) fn listeners(
    check: &Check<'_>,
    field: &Field<raw::Tables<raw::Listener>>,
    admin: Option<SocketAddr>,
) -> Vec<Checked> {
    let mut listeners: Vec<Checked> = Vec::new();
    let mut redirecting = Vec::new();
    let mut names = HashSet::new();
    for (place, raw) in field.members() {
        let Some((address_place, address)) = address(check, place, &raw.address) else { continue };
        if let Some(other) = listeners.iter().find(|other| overlap(other.config.address, address)) {
            let (name, others) = (other.quoted_name(check), check.show(other.address, other.config.address));
            let what = if other.config.address == address {
                format!("listener {name} has this address already")
            } else if address.ip().is_unspecified() {
                format!("listener {name} has {others}, which is a part of this")
            } else {
                format!("listener {name} has {others}, of which this is a part")
            };
            check.add(address_place, Problem::error(what).expected("another port"));
        }
        if admin.is_some_and(|admin| overlap(admin, address)) {
            check.add(
                address_place,
                Problem::error("the admin address is the same").expected("another port for one of them"),
            );
        }
        let (name_place, name) = match raw.name.given().and_then(|(at, text)| Some((at, name(check, at, text)?))) {
            Some(given) => given,
            None => (address_place, raw.address.value().map_or("", |address| address)),
        };
        let name = ListenerName::from(name);
        // Of two that are called alike because they have the same address, the address is the problem.
        let named_after_address = raw.name.place().is_none() && address.port() != 0;
        if !names.insert(name.clone()) && !named_after_address {
            let problem =
                Problem::error(format!("another listener is called {}", check.quote(name_place, name.as_str())));
            check.add(name_place, problem.expected("a name of its own"));
        }
        redirecting.push(raw.redirect_to_https.place());
        let config = listener(check, raw, name, address);
        listeners.push(Checked { config, name: name_place, address: address_place });
    }
    redirect_loop::to_https(check, &redirecting, &listeners);
    if field.place().is_none() || field.value().is_some_and(Vec::is_empty) {
        check.report.add_missing(
            Place::FILE,
            "listener",
            Problem::error("there is no listener").expected("[[listener]] with an address, such as \"0.0.0.0:8080\""),
        );
    }
    listeners
}

fn listener(check: &Check<'_>, raw: &raw::Listener, name: ListenerName, address: SocketAddr) -> ListenerConfig {
    let http2 = http2(check, &raw.http2);
    ListenerConfig {
        name,
        address,
        backlog: u32::try_from(number(check, &raw.backlog, 4096, 1..=65_535)).unwrap_or(4096),
        max_connections: count(check, &raw.max_connections, MAX_CONNECTIONS, 1..=10_000_000),
        max_connections_per_address: max_connections_per_address(check, raw),
        max_header_bytes: max_header_bytes(check, &raw.max_header_bytes),
        max_headers: count(check, &raw.max_headers, 100, 1..=1000),
        max_body: max_body(check, &raw.max_body).unwrap_or(BodyLimit::Unlimited),
        lingering: lingering(check, &raw.lingering),
        header_timeout: timeout(check, &raw.header_timeout, "10s"),
        idle_timeout: timeout(check, &raw.idle_timeout, "75s"),
        min_bytes_per_second: u32::try_from(number(check, &raw.min_bytes_per_second, 240, 0..=1_000_000_000))
            .unwrap_or(240),
        trusted_proxies: raw.trusted_proxies.members().filter_map(|(at, text)| network(check, at, text)).collect(),
        forwarded: raw.forwarded.value().copied().unwrap_or(false),
        forwarded_headers: forwarded_headers(check, &raw.forwarded_headers),
        via: raw.via.value().copied().unwrap_or(false),
        paths: paths(check, &raw.paths).over(&PathsConfig::default()),
        redirect_to_https: redirect_to_https(check, raw),
        tls: tls(check, &raw.tls, http2.is_some()).map(Arc::new),
        http2,
    }
}

fn max_connections_per_address(check: &Check<'_>, raw: &raw::Listener) -> Option<u32> {
    let most = limit(check, &raw.max_connections_per_address).flatten()?;
    let all = count(check, &raw.max_connections, MAX_CONNECTIONS, 1..=10_000_000);
    if let Some(place) = raw.max_connections_per_address.place().filter(|_| most as usize > all) {
        let all = check.show_other(raw.max_connections.place(), all);
        let problem = format!("never reached: there are {all} connections at most");
        check.add(place, Problem::warning(problem));
    }
    Some(most)
}

fn forwarded_headers(check: &Check<'_>, field: &Field<Vec<Field<Word>>>) -> Vec<ForwardedHeader> {
    let mut headers = Vec::new();
    for (place, text) in field.members() {
        let named = ForwardedHeader::NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        match named {
            Some((_, header)) if headers.contains(header) => {
                check.add(place, Problem::error(format!("header {} is there twice", check.quote(place, text))));
            }
            Some((_, header)) => headers.push(*header),
            None => {
                let names = ForwardedHeader::NAMES.iter().map(|(name, _)| *name);
                check.add(
                    place,
                    Problem::error(format!("unknown header {}", check.quote(place, text))).one_of(text, names),
                );
            }
        }
    }
    headers
}

/// `paths = { .. }` of a listener or a route.
pub(super) fn paths(check: &Check<'_>, field: &Field<raw::Paths>) -> PathOverrides {
    let Some(paths) = field.value() else { return PathOverrides::default() };
    let rule = |field: &Field<Word>| {
        field.value()?;
        let rules = PathRule::NAMES.map(|(name, rule)| (name, Some(rule)));
        choice(check, field, None, &rules)
    };
    PathOverrides {
        dot_segments: rule(&paths.dot_segments),
        encoded_slashes: rule(&paths.encoded_slashes),
        duplicate_slashes: rule(&paths.duplicate_slashes),
        backslashes: rule(&paths.backslashes),
    }
}

/// To the same host and path by https.
fn redirect_to_https(check: &Check<'_>, raw: &raw::Listener) -> Option<Redirect> {
    let port = number(check, &raw.https_port, 443, 1..=65_535);
    let Some((place, true)) = raw.redirect_to_https.given() else {
        if let (Some(place), true) = (raw.https_port.place(), port != 443) {
            let problem = Problem::warning("says where redirect_to_https leads, which is off");
            check.add(place, problem);
        }
        return None;
    };
    if raw.tls.place().is_some() {
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
    Some(Redirect { status: StatusCode::PERMANENT_REDIRECT, location: location.into() })
}

fn http2(check: &Check<'_>, field: &Field<raw::Http2>) -> Option<Http2Config> {
    let default = Http2Config::default();
    let Some(raw) = field.value() else { return Some(default) };
    let most =
        |field, default: u32, range| u32::try_from(number(check, field, default.into(), range)).unwrap_or(default);
    let config = Http2Config {
        max_concurrent_streams: most(&raw.max_concurrent_streams, default.max_concurrent_streams, 1..=10_000),
        stream_window: window(check, &raw.stream_window, default.stream_window),
        connection_window: window(check, &raw.connection_window, default.connection_window),
        resets_per_second: most(&raw.resets_per_second, default.resets_per_second, 1..=1_000_000),
        control_frames_per_second: most(
            &raw.control_frames_per_second,
            default.control_frames_per_second,
            10..=1_000_000,
        ),
    };
    if let (Some(place), true) = (raw.connection_window.place(), config.connection_window < config.stream_window) {
        let shown = check.show_other(raw.stream_window.place(), config.stream_window);
        let problem = Problem::error(format!("below stream_window, which is {shown}"));
        check.add(place, problem.expected("stream_window at least"));
    }
    raw.enabled.value().copied().unwrap_or(true).then_some(config)
}

/// A window of HTTP/2. Its connections begin with 64 KiB, and a window cannot have more than 31 bits.
fn window(check: &Check<'_>, field: &Field<raw::Size>, default: u32) -> u32 {
    const RANGE: std::ops::RangeInclusive<u64> = (64 << 10)..=(1 << 30);
    let bytes = size_in(check, field, RANGE, "\"64KiB\" to \"1GiB\"");
    bytes.and_then(|bytes| u32::try_from(bytes).ok()).unwrap_or(default)
}

pub(super) fn count(
    check: &Check<'_>,
    field: &Field<i64>,
    default: i64,
    range: std::ops::RangeInclusive<i64>,
) -> usize {
    usize::try_from(number(check, field, default, range)).unwrap_or_default()
}

fn max_header_bytes(check: &Check<'_>, field: &Field<raw::Size>) -> usize {
    let bytes = size_in(check, field, HEADER_BYTES_RANGE, "\"8KiB\" to \"16MiB\"");
    usize::try_from(bytes.unwrap_or(HEADER_BYTES)).unwrap_or(usize::MAX)
}

/// What a listener or a route says of the size of bodies.
pub(super) fn max_body(check: &Check<'_>, field: &Field<raw::Size>) -> Option<BodyLimit> {
    match field.given()? {
        (_, raw::Size::String(text)) if text == "unlimited" => Some(BodyLimit::Unlimited),
        (place, written) => size(check, place, written, &format!("\"unlimited\", or {SIZE}")).map(BodyLimit::Bytes),
    }
}

fn lingering(check: &Check<'_>, field: &Field<raw::Lingering>) -> LingeringConfig {
    let (Some(raw), default) = (field.value(), LingeringConfig::default()) else { return LingeringConfig::default() };
    let bytes = raw.bytes.given().and_then(|(place, written)| size(check, place, written, SIZE));
    let time = timeout(check, &raw.time, "30s");
    let idle = timeout(check, &raw.idle, "5s");
    LingeringConfig { bytes: bytes.unwrap_or(default.bytes), time, idle }
}

fn address(check: &Check<'_>, listener: Place, field: &Field<Location>) -> Option<(Place, SocketAddr)> {
    match field {
        Field::Absent => {
            let problem = Problem::error("a listener needs an address").expected("\"0.0.0.0:8080\" or \"[::]:8080\"");
            check.report.add_missing(listener, "address", problem);
            None
        }
        Field::Wrong(_) => None,
        Field::Given(place, text) => Some((*place, socket_address(check, *place, text)?)),
    }
}

/// An IP address and a port. Names are not looked up: what they stand for can change while the socket stays.
pub(super) fn socket_address(check: &Check<'_>, place: Place, text: &str) -> Option<SocketAddr> {
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

/// Whether the kernel could not give both: the same, or one is every address of its family. Two free ports are different.
/// Listeners on `[::]` take IPv6 only, so `0.0.0.0` and `[::]` get along.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.port() != 0
        && a.is_ipv4() == b.is_ipv4()
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// Whether a connection to `address` would come back to the listener at `own`.
pub(super) fn reaches(own: SocketAddr, address: SocketAddr) -> bool {
    let local = address.ip().is_loopback() || address.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    own.port() == address.port()
        && own.port() != 0
        && (own.ip() == address.ip() || (own.ip().is_unspecified() && local))
}

fn network(check: &Check<'_>, place: Place, text: &str) -> Option<IpNet> {
    let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let Some(network) = network else {
        let problem = Problem::error(format!("{} is not an address or a network", check.quote(place, text)));
        check.add(place, problem.expected("the like of \"10.0.0.0/8\", \"192.0.2.7\" or \"2001:db8::/32\""));
        return None;
    };
    if network.trunc() != network {
        let problem = Problem::warning(format!("{} is read as the network that it is in", check.quote(place, text)));
        check.add(place, problem.suggest(Some(network.trunc().to_string())));
    }
    Some(network.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_overlap() {
        for (a, b, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("0.0.0.0:80", "[::]:80", false),
            ("[::]:80", "[::1]:80", true),
        ] {
            assert_eq!(overlap(a.parse().unwrap(), b.parse().unwrap()), expected, "{a} {b}");
        }
    }
}
