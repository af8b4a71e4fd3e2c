//! Keeps web pages away.
//!
//! The admin address asks for no password: on a loopback address, all users of the machine may use it. So may then every web
//! page in a browser on that machine, if nothing is done about it:
//!
//! - A page may send a `POST` anywhere without reading the answer. Browsers put `Origin` on every `POST`, and nothing else
//!   that one would reload with does, so a request to change something that has one is refused, whatever it says. (That it
//!   equals `Host` would prove nothing: under DNS rebinding it does.)
//! - A page may have its own name resolve to 127.0.0.1 (DNS rebinding) and then read what it likes. The browser still sends
//!   that name as `Host`, so on a loopback address `Host` has to be an IP address or `localhost`. On other addresses
//!   any name is taken: metrics are usually scraped by name, and an attacker who can reach such an address need not trick a browser.

use std::net::{IpAddr, SocketAddr};

use http::header::{HOST, HeaderMap, ORIGIN};
use http::{Method, request};

/// Where the admin address can be reached from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Site {
    /// Only this machine.
    Loopback,
    /// A network.
    Network,
    /// One user of this machine, over the Unix socket: no browser can.
    Socket,
}

impl Site {
    /// The site of a bound address.
    pub(super) fn of(address: SocketAddr) -> Self {
        if address.ip().to_canonical().is_loopback() { Self::Loopback } else { Self::Network }
    }
}

/// Refuses what only a browser on behalf of a web page sends.
pub(super) fn check(head: &request::Parts, site: Site) -> Result<(), &'static str> {
    if site == Site::Loopback && !host_is_local(&head.headers) {
        return Err("Host must be an IP address or localhost: this address is for this machine only");
    }
    let changes = head.method != Method::GET && head.method != Method::HEAD;
    if changes && (head.headers.contains_key(ORIGIN) || head.headers.contains_key("sec-fetch-site")) {
        return Err("web pages may not do this: the request has an Origin");
    }
    Ok(())
}

/// No browser leaves `Host` out.
fn host_is_local(headers: &HeaderMap) -> bool {
    headers.get_all(HOST).iter().all(|host| host.to_str().is_ok_and(is_local))
}

fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.parse::<IpAddr>().is_ok() || name.trim_end_matches('.').eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn request(method: &str, headers: &[(&str, &str)]) -> request::Parts {
        let mut request = Request::builder().method(method).uri("/reload");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_loopback_address_is_called_by_address() {
        for (host, good) in [
            ("127.0.0.1:9900", true),
            ("127.0.0.1", true),
            ("[::1]:9900", true),
            ("localhost:9900", true),
            ("LOCALHOST", true),
            ("evil.example:9900", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
        ] {
            assert_eq!(check(&request("GET", &[("host", host)]), Site::Loopback).is_ok(), good, "{host}");
            assert!(check(&request("GET", &[("host", host)]), Site::Network).is_ok(), "{host}");
        }
        assert!(check(&request("GET", &[]), Site::Loopback).is_ok());
    }

    #[test]
    fn a_page_cannot_change_anything() {
        for site in [Site::Loopback, Site::Network] {
            let host = ("host", "127.0.0.1:9900");
            assert!(check(&request("POST", &[host]), site).is_ok());
            assert!(check(&request("POST", &[host, ("origin", "http://127.0.0.1:9900")]), site).is_err());
            assert!(check(&request("POST", &[host, ("origin", "null")]), site).is_err());
            assert!(check(&request("POST", &[host, ("sec-fetch-site", "cross-site")]), site).is_err());
            assert!(check(&request("GET", &[host, ("sec-fetch-site", "none")]), site).is_ok());
        }
    }

    #[test]
    fn sites() {
        for (address, site) in [
            ("127.0.0.1:9900", Site::Loopback),
            ("[::1]:9900", Site::Loopback),
            ("[::ffff:127.0.0.1]:9900", Site::Loopback),
            ("0.0.0.0:9900", Site::Network),
            ("10.0.0.1:9900", Site::Network),
        ] {
            assert_eq!(Site::of(address.parse().unwrap()), site, "{address}");
        }
    }
}
