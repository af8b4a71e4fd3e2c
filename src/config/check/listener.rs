//! Whether listeners get along with each other and with the admin address.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Check, redirect_loop};
use crate::config::error::Problem;
use crate::config::form;
use crate::config::listener::{ListenAddress, NEEDS_AN_ADDRESS};
use crate::config::report::Place;
use crate::config::root::WrittenListeners;
use crate::config::table::Table;
use crate::config::{ListenerConfig, ListenerName};

/// A listener, and where its name and its address stand: what of them problems may have is known there.
#[derive(Debug)]
pub(super) struct CheckedListener {
    pub(super) config: ListenerConfig,
    name: Place,
    address: Place,
}

impl CheckedListener {
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
    field: &WrittenListeners,
    admin: Option<SocketAddr>,
) -> Vec<CheckedListener> {
    let mut listeners: Vec<CheckedListener> = Vec::new();
    let mut redirecting = Vec::new();
    let mut names: HashSet<ListenerName> = HashSet::new();
    for (place, raw) in field.members() {
        let (needed, expected) = NEEDS_AN_ADDRESS;
        let address = form::needed(check, place, "address", &ListenAddress, &raw.address, needed, expected);
        let (Some(address_place), Some(address)) = (raw.address.place(), address) else { continue };
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
        let Some(config) = ListenerConfig::read(check, place, raw) else { continue };
        let name = config.name.clone();
        let own_name = raw.name.given().filter(|(_, text)| text.as_str() == name.as_str());
        let name_place = own_name.map_or(address_place, |(place, _)| place);
        // Of two that are called alike because they have the same address, the address is the problem.
        let named_after_address = raw.name.place().is_none() && address.port() != 0;
        if !names.insert(name.clone()) && !named_after_address {
            let problem =
                Problem::error(format!("another listener is called {}", check.quote(name_place, name.as_str())));
            check.add(name_place, problem.expected("a name of its own"));
        }
        redirecting.push(raw.redirect_to_https.place());
        listeners.push(CheckedListener { config, name: name_place, address: address_place });
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

/// Whether the kernel could not give both: the same, or one is every address of its family. Two free ports are different.
/// Listeners on `[::]` take IPv6 only, so `0.0.0.0` and `[::]` get along.
pub(super) fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
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
