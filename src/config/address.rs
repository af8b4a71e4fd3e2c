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
    /// A host name and a port; looked up again for each new connection.
    Name(Arc<str>, u16),
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

    /// As `lb.toml` writes it: `10.0.0.1:9001`, `[2001:db8::1]:9001` or `users.internal:9001`.
    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        parse_address(text).ok_or(NotAnAddress)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
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
}
