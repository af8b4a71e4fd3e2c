//! `[upstream.NAME]`

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::Check;
use super::backend_tls::backend_tls;
use super::health_check::health_check;
use super::limits::{backend_limits, limits, upstream_limits};
use super::listener::{self, reaches};
use super::middleware;
use super::picking;
use super::retries::{retries, warn_of_too_many};
use super::value::{choice, name, number, timeout};
use crate::config::error::Problem;
use crate::config::field::{Entry, Field};
use crate::config::form::{self, OnPart, Part};
use crate::config::kind::Word;
use crate::config::raw;
use crate::config::report::Place;
use crate::config::{
    self, Address, BackendConfig, BackendLimits, OutlierConfig, Protocol, StrategyConfig, UpstreamConfig, UpstreamName,
};

/// The upstreams, sorted by name.
pub(super) fn upstreams(
    check: &Check<'_>,
    file: &raw::File,
    listeners: &[listener::Checked],
    zone: Option<&Arc<str>>,
) -> Vec<UpstreamConfig> {
    warn_of_unused(check, file);
    let entries = file.upstreams.entries().iter();
    let mut upstreams: Vec<_> = entries.filter_map(|entry| upstream(check, entry, file, listeners, zone)).collect();
    upstreams.sort_by(|a, b| a.name.cmp(&b.name));
    upstreams
}

/// Warns of upstreams that no route uses, unless a route that has a problem may have been meant to use them.
fn warn_of_unused(check: &Check<'_>, file: &raw::File) {
    if matches!(file.routes, Field::Wrong(_)) {
        return;
    }
    let names: HashSet<&str> = file.upstreams.entries().iter().map(|entry| entry.name.as_str()).collect();
    let mut used = HashSet::new();
    for route in file.routes.value().into_iter().flatten() {
        let Field::Given(_, route) = route else { return };
        match &route.upstream {
            Field::Given(_, name) if names.contains(name.as_str()) => drop(used.insert(name.as_str())),
            Field::Absent if route.redirect.place().or(route.respond.place()).is_some() => {}
            _ => return,
        }
    }
    for entry in file.upstreams.entries().iter().filter(|entry| !used.contains(entry.name.as_str())) {
        check.add(entry.place, Problem::warning("no route uses this upstream"));
    }
}

fn upstream(
    check: &Check<'_>,
    entry: &Entry<raw::Upstream>,
    file: &raw::File,
    listeners: &[listener::Checked],
    zone: Option<&Arc<str>>,
) -> Option<UpstreamConfig> {
    let upstream_name = name(check, entry.place, &entry.name).map(UpstreamName::from);
    let raw = entry.value.value()?;
    let strategy = strategy(check, &raw.strategy);
    let defaults = upstream_limits(check, raw);
    let backends = backends(check, entry.place, raw, &strategy, defaults, listeners);
    let limits = limits(check, raw, defaults, &backends);
    let tiers = picking::tiers(check, raw, &backends, zone);
    let protocol = protocol(check, &raw.protocol);
    let tls = backend_tls(check, &raw.tls);
    // A health service of gRPC is asked by HTTP/2, as calls are.
    let http2 = protocol == Protocol::Http2 || (protocol == Protocol::Auto && tls.is_some());
    // Those with a problem may be backends as well.
    if raw.backends.value().is_some_and(|members| members.len() == backends.len()) {
        warn_of_too_many(check, &raw.retries, backends.len());
        OutlierConfig::warn_of_no_ejections(check, &raw.outlier_detection, backends.len());
    }
    Some(UpstreamConfig {
        name: upstream_name?,
        strategy,
        backends,
        limits,
        connect_timeout: timeout(check, &raw.connect_timeout, "3s"),
        retries: retries(check, &raw.retries, &Arc::default()),
        retry_budget: form::table(check, &Part, &raw.retry_budget),
        pool: form::table(check, &Part, &raw.pool),
        protocol,
        tls,
        health_check: health_check(check, &raw.health_check, http2),
        outlier_detection: form::table(check, &OnPart, &raw.outlier_detection),
        slow_start: form::table(check, &OnPart, &raw.slow_start),
        tiers,
        middleware: middleware::named(check, &raw.middleware, file),
    })
}

fn protocol(check: &Check<'_>, field: &Field<Word>) -> Protocol {
    let all = [Protocol::Http1, Protocol::Http2, Protocol::Auto];
    choice(check, field, Protocol::Http1, &all.map(|it| (it.as_str(), it)))
}

fn strategy(check: &Check<'_>, field: &Field<Word>) -> StrategyConfig {
    let Some((place, text)) = field.given() else { return StrategyConfig::RoundRobin };
    match text.as_str() {
        "round_robin" => StrategyConfig::RoundRobin,
        "weighted_round_robin" => StrategyConfig::WeightedRoundRobin,
        "random" => StrategyConfig::Random,
        "weighted_random" => StrategyConfig::WeightedRandom,
        "least_connections" => StrategyConfig::LeastConnections,
        "power_of_two" => StrategyConfig::PowerOfTwo,
        name => {
            let custom = &check.vocabulary.strategies;
            if !custom.iter().any(|known| known == name) {
                let names = StrategyConfig::NAMES.into_iter().chain(custom.iter().map(String::as_str));
                let mut what = format!("unknown strategy {}", check.quote(place, name));
                let known = elsewhere(name);
                if known == Some(Elsewhere::ByKey) && !check.report.is_filled(place) {
                    what += ", which picks by what a request has: there is none that does";
                }
                let mut problem = Problem::error(what).one_of(name, names);
                match known {
                    Some(Elsewhere::Ours(ours)) => problem = problem.suggest(Some(ours.into())),
                    Some(Elsewhere::ByKey) => problem = problem.suggest(None),
                    None => {}
                }
                check.add(place, problem);
            }
            // Also for an unknown one: whether its weights would mean anything is not known either.
            StrategyConfig::Custom(Arc::from(name))
        }
    }
}

/// A strategy under the name that it has in another balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Elsewhere {
    /// One of ours.
    Ours(&'static str),
    /// It picks by the client's address, a header or the like, so that what is alike stays together.
    ByKey,
}

/// What nginx, HAProxy, Envoy, Caddy, Traefik, IPVS, linkerd and the clouds call their strategies, where it is not nearly what they are called
/// here.
fn elsewhere(name: &str) -> Option<Elsewhere> {
    use Elsewhere::{ByKey, Ours};

    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    Some(match plain.to_ascii_lowercase().as_str() {
        "rr" | "roundrobin" => Ours("round_robin"),
        "wrr" | "weighted" | "staticrr" | "weightedrr" | "smooth" | "swrr" => Ours("weighted_round_robin"),
        "wrandom" | "weightedrand" => Ours("weighted_random"),
        "rand" => Ours("random"),
        "leastconn"
        | "leastconns"
        | "leastrequest"
        | "leastrequests"
        | "leasttime"
        | "lc"
        | "wlc"
        | "sed"
        | "nq"
        | "least"
        | "leastoutstandingrequests"
        | "leastoutstanding"
        | "leastloaded"
        | "leastpending"
        | "leastsessions"
        | "weightedleastrequest"
        | "weightedleastconnections"
        | "fastest" => Ours("least_connections"),
        "p2c" | "poweroftwochoices" | "twochoices" | "randomtwo" | "random2" | "randomtwoleastconn"
        | "randomchoose" | "randomchoose2" | "ewma" | "peakewma" | "twochoose" | "bestoftwo" => Ours("power_of_two"),
        "iphash" | "clientiphash" | "source" | "sourcehash" | "sourceip" | "uri" | "urihash" | "urlparam" | "hdr"
        | "header" | "cookie" | "query" | "hash" | "maglev" | "ringhash" | "ketama" | "consistent"
        | "consistenthash" | "consistenthashing" | "sticky" | "session" | "sh" | "dh" | "mh" | "rdpcookie"
        | "rendezvous" | "hrw" | "murmur2" | "generichash" => ByKey,
        _ => return None,
    })
}

fn backends(
    check: &Check<'_>,
    upstream: Place,
    raw: &raw::Upstream,
    strategy: &StrategyConfig,
    defaults: BackendLimits,
    listeners: &[listener::Checked],
) -> Vec<BackendConfig> {
    if raw.backends.place().is_none() {
        let problem = Problem::error("an upstream needs backends").expected("backends = [\"10.0.0.1:9001\"]");
        check.report.add_missing(upstream, "backends", problem);
    }
    let mut seen = HashMap::new();
    let mut backends = Vec::new();
    for (place, raw) in raw.backends.members() {
        let Some((address_place, backend)) = backend(check, place, raw, strategy, defaults) else { continue };
        if let Some(first) = seen.insert(backend.address.clone(), address_place) {
            let problem = Problem::error(format!("{} is there twice", check.show(address_place, &backend.address)));
            let first = check.report.path(first);
            check.add(address_place, problem.expected(format!("one entry, with a weight, in place of {first} too")));
            continue;
        }
        for listener in listeners.iter().filter(|listener| leads_to(&backend.address, listener.config.address)) {
            let problem = Problem::warning(format!(
                "listener {} has this address: requests would go round in a circle",
                listener.quoted_name(check)
            ));
            check.add(address_place, problem);
        }
        backends.push(backend);
    }
    if let Some((place, members)) = raw.backends.given() {
        if members.is_empty() {
            check.add(place, Problem::warning("no backends: every request is answered 503"));
        } else if !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
            check.add(place, Problem::warning("every weight is 0: every request is answered 503"));
        }
    }
    backends
}

fn backend(
    check: &Check<'_>,
    place: Place,
    raw: &raw::Backend,
    strategy: &StrategyConfig,
    defaults: BackendLimits,
) -> Option<(Place, BackendConfig)> {
    match raw {
        raw::Backend::String(text) => {
            let address = address(check, place, text)?;
            Some((place, BackendConfig { address, weight: 1, place: config::Place::default(), limits: defaults }))
        }
        raw::Backend::Table(table) => {
            let weight = weight(check, &table.weight, strategy);
            let limits = backend_limits(check, table, defaults);
            if table.address.place().is_none() {
                let problem = Problem::error("a backend needs an address").expected("the like of \"10.0.0.1:9001\"");
                check.report.add_missing(place, "address", problem);
            }
            let stands = picking::place(check, table);
            let (place, text) = table.address.given()?;
            Some((place, BackendConfig { address: address(check, place, text)?, weight, place: stands, limits }))
        }
    }
}

/// A weight. 0 makes sense under every strategy: the backend takes nothing new.
fn weight(check: &Check<'_>, field: &Field<i64>, strategy: &StrategyConfig) -> u16 {
    let weight = u16::try_from(number(check, field, 1, 0..=65_535)).unwrap_or(1);
    if let Some((place, _)) = field.given()
        && weight > 1
        && !strategy.uses_weights()
    {
        let shown = check.show(place, weight);
        let problem = Problem::error(format!("a weight of {shown} under {}, which ignores weights", strategy.as_str()));
        let suggestion = (*strategy == StrategyConfig::Random).then_some("weighted_random");
        let suggestion = suggestion.unwrap_or("weighted_round_robin");
        check.add(
            place,
            problem.expected("a strategy that uses weights, or a weight of 0 or 1").suggest(Some(suggestion.into())),
        );
    }
    weight
}

/// An IP address or a name, with a port.
fn address(check: &Check<'_>, place: Place, text: &str) -> Option<Address> {
    let parsed = parse_address(text);
    if parsed.is_none() {
        let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let with_port = if bare.len() < text.len() { format!("{bare}:80") } else { String::new() };
        let suggestion = [bare, &with_port].into_iter().find(|text| parse_address(text).is_some()).map(str::to_owned);
        let problem = Problem::error(format!("{} is not an address with a port", check.quote(place, text)));
        let expected = "the like of \"10.0.0.1:9001\", \"[2001:db8::1]:9001\" or \"users.internal:9001\"";
        check.add(place, problem.expected(expected).suggest(suggestion));
    }
    parsed
}

/// `10.0.0.1:9001`, `[2001:db8::1]:9001` or `users.internal:9001`.
pub(in crate::config) fn parse_address(text: &str) -> Option<Address> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return (address.port() != 0).then_some(Address::Ip(address));
    }
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok().filter(|port| *port != 0 && !text.contains('+'))?;
    is_host_name(host).then(|| Address::Name(Arc::from(host.to_ascii_lowercase()), port))
}

/// Whether a name could be looked up. A last label of digits is an IP address gone wrong.
pub(super) fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let text = text.strip_suffix('.').unwrap_or(text);
    let digits = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    text.len() <= 253 && text.split('.').all(label) && !text.rsplit('.').next().is_some_and(digits)
}

fn leads_to(address: &Address, own: SocketAddr) -> bool {
    match address {
        Address::Ip(address) => reaches(own, *address),
        Address::Name(name, port) => {
            &**name == "localhost"
                && [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
                    .into_iter()
                    .any(|ip| reaches(own, SocketAddr::new(ip, *port)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_of_other_balancers_are_one_of_ours_or_of_none() {
        for name in [
            "rr",
            "wrr",
            "least_conn",
            "leastconn",
            "LEAST_REQUEST",
            "P2C",
            "random two least_conn",
            "static-rr",
            "peak_ewma",
        ] {
            let Some(Elsewhere::Ours(ours)) = elsewhere(name) else { panic!("{name}") };
            assert!(StrategyConfig::NAMES.contains(&ours), "{name}: {ours}");
        }
        for name in ["ip_hash", "source", "uri", "MAGLEV", "ring_hash", "hdr(host)", "consistent-hash"] {
            let known = elsewhere(name);
            assert_eq!(known, (name != "hdr(host)").then_some(Elsewhere::ByKey), "{name}");
        }
        for name in StrategyConfig::NAMES {
            assert_eq!(elsewhere(name), (name == "round_robin").then_some(Elsewhere::Ours("round_robin")));
        }
        assert_eq!(elsewhere("tides"), None);
    }

    #[test]
    fn addresses_of_backends() {
        for (text, shown) in [
            ("10.0.0.1:9001", "10.0.0.1:9001"),
            ("[2001:db8::1]:9001", "[2001:db8::1]:9001"),
            ("Users.Internal:80", "users.internal:80"),
            ("user_service:80", "user_service:80"),
            ("users.internal.:80", "users.internal.:80"),
        ] {
            assert_eq!(parse_address(text).unwrap().to_string(), shown);
        }
        for text in [
            "",
            ":80",
            "10.0.0.1",
            "10.0.0.300:80",
            "users",
            "users:",
            "users:0",
            "users:65536",
            "users:+80",
            "a b:80",
            "http://a:80",
            "-a:80",
            "2001:db8::1:80",
            "a..b:80",
        ] {
            assert_eq!(parse_address(text), None, "{text}");
        }
    }
}
