//! Which headers pass, and which the proxy adds.

use std::fmt::Write;
use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::exchange::Client;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// The headers of a message that are for this hop alone (RFC 9110 §7.6.1), as one look at all names finds them.
#[derive(Clone, Copy, Debug, Default)]
struct HopByHop {
    connection: bool,
    keep_alive: bool,
    proxy_connection: bool,
    te: bool,
    transfer_encoding: bool,
    upgrade: bool,
    expect: bool,
    forwarded: bool,
}

impl HopByHop {
    /// A lookup by name hashes it; most of these are not there, so one pass that tells names apart by length costs less
    /// than eight lookups.
    fn find(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for name in headers.keys() {
            match name.as_str().len() {
                2 => found.te |= name == header::TE,
                6 => found.expect |= name == header::EXPECT,
                7 => found.upgrade |= name == header::UPGRADE,
                9 => found.forwarded |= name == header::FORWARDED,
                10 => {
                    found.connection |= name == header::CONNECTION;
                    found.keep_alive |= name == KEEP_ALIVE;
                }
                16 => found.proxy_connection |= name == PROXY_CONNECTION,
                17 => found.transfer_encoding |= name == header::TRANSFER_ENCODING,
                _ => {}
            }
        }
        found
    }

    /// Removes what is for this hop alone, and what `Connection` names as such.
    fn remove(self, headers: &mut HeaderMap) {
        if self.connection {
            remove_named(headers);
            headers.remove(header::CONNECTION);
        }
        if self.keep_alive {
            headers.remove(KEEP_ALIVE);
        }
        if self.proxy_connection {
            headers.remove(PROXY_CONNECTION);
        }
        if self.transfer_encoding {
            headers.remove(header::TRANSFER_ENCODING);
        }
        if self.upgrade {
            headers.remove(header::UPGRADE);
        }
    }
}

/// Removes the headers that `Connection` names. Those that frame the message or say where it goes stay: a peer could
/// otherwise have the proxy strip them ("hop-by-hop abuse").
#[cold]
fn remove_named(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
        .filter(|name| {
            ![header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::TE, header::UPGRADE]
                .contains(name)
        })
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// Whether a comma-separated header has a token, in any case.
fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().any(|value| {
        value
            .as_bytes()
            .split(|&byte| byte == b',')
            .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    })
}

/// Makes a client's headers the ones that go to a backend. Returns the protocol that the client asks to switch to, if it does
/// so properly; HTTP/2 is none: it would carry requests past every check of ours (h2c smuggling).
pub(super) fn to_backend(headers: &mut HeaderMap, client: &Client) -> Option<HeaderValue> {
    let found = HopByHop::find(headers);
    let upgrade = match found.upgrade && found.connection {
        true if has_token(headers, header::CONNECTION, "upgrade") => headers
            .get(header::UPGRADE)
            .filter(|protocol| !protocol.as_bytes().to_ascii_lowercase().starts_with(b"h2"))
            .cloned(),
        _ => None,
    };
    let trailers = found.te && has_token(headers, header::TE, "trailers");
    found.remove(headers);
    if found.te {
        headers.remove(header::TE);
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
    if found.expect {
        // The proxy asks the client to go on as soon as the backend's connection takes the body.
        headers.remove(header::EXPECT);
    }
    if let Some(protocol) = &upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
    forwarded(headers, client, found.forwarded);
    upgrade
}

/// Tells the backend who asked, through what.
fn forwarded(headers: &mut HeaderMap, client: &Client, has_forwarded: bool) {
    let host = headers.get(header::HOST).cloned();
    if client.listener.forwarded {
        let element = forwarded_element(client, host.as_ref());
        if client.trusted
            && has_forwarded
            && let Some(before) = joined(headers, &header::FORWARDED)
            && let Ok(value) = HeaderValue::try_from([&before, &b", "[..], element.as_bytes()].concat())
        {
            headers.insert(header::FORWARDED, value);
        } else if let Ok(value) = HeaderValue::try_from(element) {
            headers.insert(header::FORWARDED, value);
        }
    } else if has_forwarded && !client.trusted {
        headers.remove(header::FORWARDED);
    }
    if client.listener.via {
        append_via(headers);
    }
    if client.trusted {
        let value = match joined(headers, &X_FORWARDED_FOR) {
            Some(before) => HeaderValue::try_from([&before, &b", "[..], client.peer_text.as_bytes()].concat()).ok(),
            None => None,
        };
        headers.insert(X_FORWARDED_FOR, value.unwrap_or_else(|| client.peer_text.clone()));
        headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
        if let Some(host) = host {
            headers.entry(X_FORWARDED_HOST).or_insert(host);
        }
        headers.entry(X_FORWARDED_PORT).or_insert_with(|| client.port_text.clone());
        return;
    }
    headers.insert(X_FORWARDED_FOR, client.peer_text.clone());
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    match host {
        Some(host) => headers.insert(X_FORWARDED_HOST, host),
        None => headers.remove(X_FORWARDED_HOST),
    };
    headers.insert(X_FORWARDED_PORT, client.port_text.clone());
}

/// All values of a list header as one.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    let mut values = headers.get_all(name).iter();
    let mut all = values.next()?.as_bytes().to_vec();
    for value in values {
        all.extend_from_slice(b", ");
        all.extend_from_slice(value.as_bytes());
    }
    Some(all)
}

/// RFC 7239 §4. IPv6 addresses are bracketed and, with their colons, quoted; so is a host with a port.
fn forwarded_element(client: &Client, host: Option<&HeaderValue>) -> String {
    let mut text = String::with_capacity(64);
    // Writing to a String cannot fail.
    let _ = match client.peer.ip().to_canonical() {
        IpAddr::V4(ip) => write!(text, "for={ip}"),
        IpAddr::V6(ip) => write!(text, "for=\"[{ip}]\""),
    };
    if let Some(host) = host.and_then(|host| host.to_str().ok()) {
        let _ = match host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)) {
            true => write!(text, ";host={host}"),
            // A checked host holds neither quotes nor backslashes.
            false => write!(text, ";host=\"{host}\""),
        };
    }
    text.push_str(";proto=http");
    text
}

/// RFC 9110 §7.6.3, with a pseudonym for the host.
fn append_via(headers: &mut HeaderMap) {
    headers.append(header::VIA, HeaderValue::from_static("1.1 isobar"));
}

/// Makes a backend's headers the ones that go to the client.
pub(super) fn to_client(headers: &mut HeaderMap, client: &Client) {
    HopByHop::find(headers).remove(headers);
    if client.listener.via {
        append_via(headers);
    }
}

/// The address of the client: the connection's, or the last one that the trusted proxies before us did not add themselves.
pub(super) fn client_ip(headers: &HeaderMap, client: &Client) -> IpAddr {
    let peer = client.peer.ip().to_canonical();
    if !client.trusted {
        return peer;
    }
    let Some(all) = joined(headers, &X_FORWARDED_FOR) else { return peer };
    let mut last = peer;
    for text in all.rsplit(|&byte| byte == b',') {
        let Some(ip) = std::str::from_utf8(text.trim_ascii()).ok().and_then(|text| text.parse::<IpAddr>().ok()) else {
            break;
        };
        last = ip.to_canonical();
        if !client.listener.trusted_proxies.iter().any(|net| net.contains(&last)) {
            break;
        }
    }
    last
}

/// What of an informational response's head goes to the client: all but what is for this hop.
pub(super) fn informational(head: &[u8]) -> Option<Vec<u8>> {
    let mut lines = head.split_inclusive(|&byte| byte == b'\n');
    let mut clean = lines.next()?.to_vec();
    for line in lines {
        let name = line.split(|&byte| byte == b':').next().unwrap_or(line).to_ascii_lowercase();
        let hop: &[&[u8]] = &[
            b"connection",
            b"keep-alive",
            b"proxy-connection",
            b"te",
            b"transfer-encoding",
            b"upgrade",
            b"content-length",
        ];
        if !hop.contains(&&name[..]) {
            clean.extend_from_slice(line);
        }
    }
    Some(clean)
}
