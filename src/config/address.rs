//! Where a backend is.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::json;

use super::check::Check;
use super::error::Problem;
use super::form::{About, Form};
use super::json_tree::Tree;
use super::report::Place;
use super::visibility::Location;

/// Where a backend is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// A host name and a port. It stands for the addresses that the name has at a time.
    Name(Arc<str>, u16),
    /// One of the addresses of a host name.
    Resolved(Arc<str>, SocketAddr),
}

impl Address {
    /// Where connections go; `None` of a name, which has to be looked up first.
    pub fn socket(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) | Self::Resolved(_, address) => Some(*address),
            Self::Name(..) => None,
        }
    }

    /// The host and the port that it is known by, as a `Host` header has them: those of the name where it has one.
    pub fn authority(&self) -> String {
        match self {
            Self::Ip(address) => address.to_string(),
            Self::Name(host, port) => format!("{host}:{port}"),
            Self::Resolved(host, address) => format!("{host}:{}", address.port()),
        }
    }

    /// The same at another port.
    pub fn at_port(&self, port: u16) -> Self {
        match self {
            Self::Ip(address) => Self::Ip((address.ip(), port).into()),
            Self::Name(host, _) => Self::Name(Arc::clone(host), port),
            Self::Resolved(host, address) => Self::Resolved(Arc::clone(host), (address.ip(), port).into()),
        }
    }
}

/// A text that is no address of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnAddress;

impl fmt::Display for NotAnAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an address with a port")
    }
}

impl std::error::Error for NotAnAddress {}

impl std::str::FromStr for Address {
    type Err = NotAnAddress;

    /// As `lb.toml` writes it: `10.0.0.1:9001`, `[2001:db8::1]:9001` or `users.internal:9001`; and as it is shown of an address of a name:
    /// `users.internal@10.0.0.1:9001`.
    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let parsed = match text.split_once('@') {
            Some((host, address)) => parse_resolved(host, address),
            None => parse_address(text),
        };
        parsed.ok_or(NotAnAddress)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
            Self::Resolved(host, address) => write!(f, "{host}@{address}"),
        }
    }
}

impl serde::Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An IP address or a name, with a port.
pub(crate) struct AddressWithPort;

impl Form<Address> for AddressWithPort {
    type Written = Location;

    fn read(&self, check: &Check<'_>, place: Place, text: &Location) -> Option<Address> {
        let parsed = parse_address(text);
        if parsed.is_none() {
            let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
            let with_port = if bare.len() < text.len() { format!("{bare}:80") } else { String::new() };
            let suggestion =
                [bare, &with_port].into_iter().find(|text| parse_address(text).is_some()).map(str::to_owned);
            let problem = Problem::error(format!("{} is not an address with a port", check.quote(place, text)));
            let expected = "the like of \"10.0.0.1:9001\", \"[2001:db8::1]:9001\" or \"users.internal:9001\"";
            check.add(place, problem.expected(expected).suggest(suggestion));
        }
        parsed
    }

    fn show(&self, value: &Address) -> Option<Tree> {
        Some(value.to_string().into())
    }

    fn tell(&self, value: &Address) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        let schema = json!({ "type": "string", "pattern": "^[^/]*:[0-9]+$|\\$\\{" });
        About::new::<Location>("an address with a port", schema)
    }
}

/// `10.0.0.1:9001`, `[2001:db8::1]:9001` or `users.internal:9001`.
fn parse_address(text: &str) -> Option<Address> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return (address.port() != 0).then_some(Address::Ip(address));
    }
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok().filter(|port| *port != 0 && !text.contains('+'))?;
    is_host_name(host).then(|| Address::Name(Arc::from(host.to_ascii_lowercase()), port))
}

fn parse_resolved(host: &str, address: &str) -> Option<Address> {
    let address = address.parse::<SocketAddr>().ok().filter(|address| address.port() != 0)?;
    is_host_name(host).then(|| Address::Resolved(Arc::from(host.to_ascii_lowercase()), address))
}

/// Whether a name could be looked up. A last label of digits is an IP address gone wrong.
pub(crate) fn is_host_name(text: &str) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn an_address_of_a_name_is_shown_with_both_and_known_by_the_name() {
        for text in ["users.internal@10.0.0.1:9001", "users.internal@[2001:db8::1]:9001"] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(address.authority(), "users.internal:9001");
            assert_eq!(address.at_port(80).socket().unwrap().port(), 80);
            // A file lists names, not what they stand for.
            assert_eq!(parse_address(text), None);
        }
        for text in ["a@b:80", "@10.0.0.1:80", "a@10.0.0.1", "a@10.0.0.1:0", "10.0.0.1@10.0.0.1:80"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
