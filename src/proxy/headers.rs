//! Which headers pass, and which the proxy adds.

use std::fmt::Write;
use std::net::IpAddr;
use std::rc::Rc;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::config::{HeaderEdits, tells_identity};
use crate::exchange::{Client, Untouched};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// The host that is asked for. The field comes first in nearly every request, so looking from there costs less than hashing.
pub(super) fn host(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.iter().find(|(name, _)| *name == header::HOST).map(|(_, host)| host)
}

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
    /// Any of `X-Forwarded-*`.
    x_forwarded: bool,
}

impl HopByHop {
    /// A lookup by name hashes it; most of these are not there, so one pass that tells names apart by length costs less
    /// than eight lookups.
    fn find(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for name in headers.keys() {
            let name = name.as_str().as_bytes();
            // Length and first letter tell nearly all names apart from these without a comparison.
            match (name.len(), name.first()) {
                (2, Some(b't')) => found.te |= name == b"te",
                (6, Some(b'e')) => found.expect |= name == b"expect",
                (7, Some(b'u')) => found.upgrade |= name == b"upgrade",
                (9, Some(b'f')) => found.forwarded |= name == b"forwarded",
                (10, Some(b'c')) => found.connection |= name == b"connection",
                (10, Some(b'k')) => found.keep_alive |= name == b"keep-alive",
                (16, Some(b'p')) => found.proxy_connection |= name == b"proxy-connection",
                (17, Some(b't')) => found.transfer_encoding |= name == b"transfer-encoding",
                (15..=17, Some(b'x')) => {
                    found.x_forwarded |=
                        [&b"x-forwarded-for"[..], b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-proto"]
                            .contains(&name);
                }
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

/// Whether `Connection` names other headers than those that are for this hop in any case.
fn names_others(headers: &HeaderMap) -> bool {
    let tokens =
        headers.get_all(header::CONNECTION).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    tokens.map(<[u8]>::trim_ascii).any(|token| {
        let usual: [&[u8]; 5] = [b"keep-alive", b"close", b"upgrade", b"te", b""];
        !usual.iter().any(|usual| token.eq_ignore_ascii_case(usual))
    })
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

/// Whether HTTP/2 is among the protocols that a client asks to switch to.
#[cold]
fn asks_for_http2(headers: &HeaderMap) -> bool {
    let protocols =
        headers.get_all(header::UPGRADE).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    protocols.map(<[u8]>::trim_ascii).any(|protocol| protocol.len() >= 2 && protocol[..2].eq_ignore_ascii_case(b"h2"))
}

/// What becomes of a client's headers on their way to a backend.
#[derive(Debug)]
pub(super) struct ToBackend {
    /// The protocol that the client asks to switch to, if it does so properly; HTTP/2 is none: it would carry requests past
    /// every check of ours (h2c smuggling).
    pub(super) upgrade: Option<HeaderValue>,
    /// Lines to put in behind the request line.
    pub(super) lines: Option<Rc<[u8]>>,
    /// Whether the client named no host.
    pub(super) unnamed: bool,
}

/// Makes a client's headers the ones that go to a backend. What the route itself says of a header, in `edits`, stands.
/// Without `may_switch`, no wish to switch protocols is passed on.
pub(super) fn to_backend(
    headers: &mut HeaderMap,
    untouched: Option<&mut Untouched>,
    client: &Client,
    edits: &HeaderEdits,
    may_switch: bool,
) -> ToBackend {
    let found = HopByHop::find(headers);
    if found.connection
        && names_others(headers)
        && let Some(untouched) = untouched
    {
        untouched.give_to(headers);
    }
    let upgrade = match found.upgrade && found.connection && may_switch {
        true if has_token(headers, header::CONNECTION, "upgrade") && !asks_for_http2(headers) => {
            headers.get(header::UPGRADE).cloned()
        }
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
    if client.listener.via {
        append_via(headers);
    }
    if client.listener.forwarded || (found.forwarded && !client.trusted) {
        forwarded(headers, client);
    }
    let plain = !client.trusted && edits.is_empty() && !found.x_forwarded;
    let asked = host(headers);
    let unnamed = asked.is_none();
    let lines = match plain {
        true => Some(forwarded_lines(client, asked)),
        false => {
            x_forwarded(headers, client, edits);
            None
        }
    };
    ToBackend { upgrade, lines, unnamed }
}

/// Tells of the client's certificate, and lets nobody else do so: but a trusted proxy, of its own client, at a listener that does
/// not ask for certificates itself.
#[cold]
pub(super) fn identity(headers: &mut HeaderMap, client: &Client) {
    let asks = client.listener.tls.as_ref().is_some_and(|tls| tls.client_certificates.is_some());
    if asks || !client.trusted {
        let forged: Vec<HeaderName> = headers.keys().filter(|name| tells_identity(name)).cloned().collect();
        for name in forged {
            headers.remove(name);
        }
    }
    for (name, value) in &client.identity {
        headers.insert(name, value.clone());
    }
}

/// `X-Forwarded-*` as lines. For a client that is not trusted they depend on nothing but its connection and the host it asks
/// for, so they are made once; putting them into each request's map would cost four hashed inserts, and again their
/// encoding: 1 500 instructions a request.
fn forwarded_lines(client: &Client, host: Option<&HeaderValue>) -> Rc<[u8]> {
    let mut cached = client.lines.borrow_mut();
    if cached.1.is_empty() || cached.0.as_ref() != host {
        let mut lines = Vec::with_capacity(160);
        let mut line = |name: &HeaderName, value: &[u8]| {
            lines.extend_from_slice(name.as_str().as_bytes());
            lines.extend_from_slice(b": ");
            lines.extend_from_slice(value);
            lines.extend_from_slice(b"\r\n");
        };
        line(&X_FORWARDED_FOR, client.peer_text.as_bytes());
        line(&X_FORWARDED_PROTO, client.scheme.as_bytes());
        if let Some(host) = host {
            line(&X_FORWARDED_HOST, host.as_bytes());
        }
        line(&X_FORWARDED_PORT, client.port_text.as_bytes());
        // A copy: the field itself is a part of the block that the request was read into, and the connection may wait long.
        let host = host.and_then(|host| HeaderValue::from_bytes(host.as_bytes()).ok());
        *cached = (host, lines.into());
    }
    Rc::clone(&cached.1)
}

/// `X-Forwarded-*` in the map: added to what a trusted proxy says, in place of what anybody else says, and not where the
/// route says otherwise.
fn x_forwarded(headers: &mut HeaderMap, client: &Client, edits: &HeaderEdits) {
    let edited = |name: &HeaderName| {
        edits.remove.contains(name) || edits.set.iter().chain(&edits.add).any(|(other, _)| other == name)
    };
    let asked = host(headers).cloned();
    let mut put = |name: HeaderName, value: Option<HeaderValue>| {
        if edited(&name) {
            return;
        }
        match value {
            Some(value) if client.trusted => drop(headers.entry(name).or_insert(value)),
            Some(value) => drop(headers.insert(name, value)),
            None => drop(headers.remove(name)),
        }
    };
    put(X_FORWARDED_PROTO, Some(HeaderValue::from_static(client.scheme)));
    put(X_FORWARDED_HOST, asked);
    put(X_FORWARDED_PORT, Some(client.port_text.clone()));
    if edited(&X_FORWARDED_FOR) {
        return;
    }
    let before = if client.trusted { joined(headers, &X_FORWARDED_FOR) } else { None };
    let value = before
        .and_then(|before| HeaderValue::try_from([&before, &b", "[..], client.peer_text.as_bytes()].concat()).ok());
    headers.insert(X_FORWARDED_FOR, value.unwrap_or_else(|| client.peer_text.clone()));
}

/// `Forwarded` (RFC 7239): added to what a trusted proxy says, in place of what anybody else says.
fn forwarded(headers: &mut HeaderMap, client: &Client) {
    if !client.listener.forwarded {
        headers.remove(header::FORWARDED);
        return;
    }
    let element = forwarded_element(client, host(headers));
    let before = if client.trusted { joined(headers, &header::FORWARDED) } else { None };
    let value = match before {
        Some(before) => HeaderValue::try_from([&before, &b", "[..], element.as_bytes()].concat()),
        None => HeaderValue::try_from(element),
    };
    if let Ok(value) = value {
        headers.insert(header::FORWARDED, value);
    }
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
    text.push_str(";proto=");
    text.push_str(client.scheme);
    text
}

/// RFC 9110 §7.6.3, with a pseudonym for the host.
fn append_via(headers: &mut HeaderMap) {
    headers.append(header::VIA, HeaderValue::from_static("1.1 isobar"));
}

/// Makes a backend's headers the ones that go to the client. Whether they hold a date. What is known of them: whether there
/// may be some for this hop alone, and whether there is a date.
pub(super) fn to_client(
    (headers, untouched): (&mut HeaderMap, &mut Untouched),
    client: &Client,
    (hop_by_hop, dated): (bool, bool),
) -> bool {
    let mut named = false;
    if hop_by_hop {
        let found = HopByHop::find(headers);
        named = found.connection && names_others(headers);
        if named {
            untouched.give_to(headers);
        }
        found.remove(headers);
    }
    if client.listener.via {
        append_via(headers);
    }
    // A field that `Connection` names is gone, a date too.
    dated && (!named || headers.contains_key(header::DATE))
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

/// What of an informational response's head goes to the client: all but what is for this hop. Its lines end with CRLF
/// whatever they ended with, so that client and proxy agree where it ends; it begins with its status, whatever empty lines were
/// before that, and with the version of whoever sends it (RFC 9110 §6.2), which is the proxy.
pub(super) fn informational(head: &[u8]) -> Option<Vec<u8>> {
    let lines = head.strip_suffix(b"\n")?.split(|&byte| byte == b'\n');
    let mut lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line)).skip_while(|line| line.is_empty());
    let status = lines.next()?.strip_prefix(b"HTTP/1.")?.get(1..)?;
    let mut clean = Vec::with_capacity(head.len() + 8);
    clean.extend_from_slice(b"HTTP/1.1");
    clean.extend_from_slice(status);
    if status.len() == b" 103".len() {
        // A space stands there also before no reason (RFC 9112 §4).
        clean.push(b' ');
    }
    clean.extend_from_slice(b"\r\n");
    let named = lines.clone().filter_map(|line| field(line, b"connection")).collect::<Vec<_>>().join(&b',');
    for line in lines {
        let name = line.split(|&byte| byte == b':').next().unwrap_or(line);
        let hop: &[&[u8]] = &[
            b"connection",
            b"keep-alive",
            b"proxy-connection",
            b"te",
            b"transfer-encoding",
            b"upgrade",
            b"content-length",
        ];
        let mut hop = hop.iter().copied().chain(named.split(|&byte| byte == b',').map(<[u8]>::trim_ascii));
        if line.is_empty() || !hop.any(|hop| name.eq_ignore_ascii_case(hop)) {
            clean.extend_from_slice(line);
            clean.extend_from_slice(b"\r\n");
        }
    }
    Some(clean)
}

/// The value of `line`, if it is the field `name`.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    value.strip_prefix(b":").filter(|_| start.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::testing::client;
    use bytes::Bytes;

    #[test]
    fn an_informational_head_is_one_of_ours() {
        for (head, expected) in [
            ("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
            ("HTTP/1.0 102 Processing\nA: b\n\n", "HTTP/1.1 102 Processing\r\nA: b\r\n\r\n"),
            ("\r\n\nHTTP/1.1 103 \r\n\r\n", "HTTP/1.1 103 \r\n\r\n"),
            ("HTTP/1.1 103\r\n\r\n", "HTTP/1.1 103 \r\n\r\n"),
            ("HTTP/1.1 103 \r\nConnection: x, A\r\na: b\r\nX-Y: z\r\n\r\n", "HTTP/1.1 103 \r\nX-Y: z\r\n\r\n"),
            ("HTTP/1.1 103 \r\nContent-Length: 5\r\nTE: x\r\n\r\n", "HTTP/1.1 103 \r\n\r\n"),
        ] {
            let clean = informational(head.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(clean).unwrap(), expected, "{head:?}");
        }
    }

    #[test]
    fn what_a_connection_remembers_holds_no_memory_that_others_read_into() {
        let client = client(false, |_| {});
        let block = Bytes::from(b"Host: example.com\r\n".to_vec());
        let host = HeaderValue::from_maybe_shared(block.slice(6..17)).unwrap();
        let lines = forwarded_lines(&client, Some(&host));
        drop(host);
        assert!(block.is_unique(), "the block can be used again");
        let again = forwarded_lines(&client, Some(&HeaderValue::from_static("example.com")));
        assert!(Rc::ptr_eq(&lines, &again), "and the lines are remembered");
    }
}
