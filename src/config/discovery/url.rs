//! URLs of what is asked over HTTP.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::json;

use crate::config::Address;
use crate::config::check::Check;
use crate::config::error::Problem;
use crate::config::form::{About, Form};
use crate::config::json_tree::Tree;
use crate::config::report::Place;
use crate::config::visibility::{Kind, Location};

/// An `http://` or `https://` URL, without a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpUrl {
    /// Whether it is asked by TLS.
    pub tls: bool,
    /// A name or an IP address, the latter without brackets.
    pub host: Arc<str>,
    /// The port, also where the URL leaves it to its scheme.
    pub port: u16,
    /// Path and query: `/` at least.
    pub target: Arc<str>,
}

impl HttpUrl {
    /// Reads one; `None` where it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (tls, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return None,
        };
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(at);
        let has_port = authority.rsplit_once(':').is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']'));
        let port = if tls { 443 } else { 80 };
        let address = if has_port { authority.to_owned() } else { format!("{authority}:{port}") };
        let (host, port) = match address.parse().ok()? {
            Address::Ip(address) => (address.ip().to_string().into(), address.port()),
            Address::Name(host, port) => (host, port),
            // A login is no part of a host.
            Address::Resolved(..) => return None,
        };
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        let is_plain = |c: char| c.is_ascii_graphic() && c != '#';
        target.chars().all(is_plain).then(|| Self { tls, host, port, target: target.into() })
    }

    /// Host and port as a `Host` header has them.
    pub fn authority(&self) -> String {
        match self.host.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, self.port).to_string(),
            Err(_) => format!("{}:{}", self.host, self.port),
        }
    }

    /// The path without a slash at its end, to put others behind it.
    pub fn base(&self) -> &str {
        self.target.split('?').next().unwrap_or_default().trim_end_matches('/')
    }

    /// What may be shown of it: without the values of its query.
    pub fn shown(&self) -> String {
        Kind::Location.show(&self.to_string()).into_owned()
    }

    /// Whether it leads to this machine.
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(ip) => ip.to_canonical().is_loopback(),
            Err(_) => matches!(&*self.host, "localhost" | "localhost."),
        }
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority(), self.target)
    }
}

/// A URL to ask at.
pub(super) struct Url;

impl Form<HttpUrl> for Url {
    type Written = Location;

    fn read(&self, check: &Check<'_>, place: Place, text: &Location) -> Option<HttpUrl> {
        let parsed = HttpUrl::parse(text);
        if parsed.is_none() {
            let with_scheme = format!("http://{}", text.as_str());
            let suggestion = (!text.contains("://") && HttpUrl::parse(&with_scheme).is_some()).then_some(with_scheme);
            let problem = Problem::error(format!("{} is not a URL to ask at", check.quote(place, text)));
            let expected =
                "the like of \"http://registry.internal:8500\" or \"https://10.0.0.7/users\", without a login";
            check.add(place, problem.expected(expected).suggest(suggestion));
        }
        parsed
    }

    fn show(&self, value: &HttpUrl) -> Option<Tree> {
        Some(value.to_string().into())
    }

    fn tell(&self, value: &HttpUrl) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        let schema = json!({ "type": "string", "pattern": "^https?://|\\$\\{" });
        About::new::<Location>("an `http://` or `https://` URL", schema)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_with_what_is_left_to_the_scheme() {
        for (text, shown) in [
            ("http://registry:8500", "http://registry:8500/"),
            ("https://Registry.internal", "https://registry.internal:443/"),
            ("http://10.0.0.1/a/b?c=d", "http://10.0.0.1:80/a/b?c=d"),
            ("http://[2001:db8::1]:80/", "http://[2001:db8::1]:80/"),
            ("https://[2001:db8::1]", "https://[2001:db8::1]:443/"),
            ("http://registry?x", "http://registry:80/?x"),
        ] {
            assert_eq!(HttpUrl::parse(text).unwrap().to_string(), shown, "{text}");
        }
        for text in [
            "",
            "registry:8500",
            "ftp://registry",
            "http://",
            "http://user:pass@registry",
            "http://a b/",
            "http://a/#b",
            "http://a/ b",
        ] {
            assert_eq!(HttpUrl::parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_this_machine() {
        for (text, local) in [
            ("http://127.0.0.1", true),
            ("http://localhost:1", true),
            ("http://[::1]:80", true),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(HttpUrl::parse(text).unwrap().is_loopback(), local, "{text}");
        }
    }
}
