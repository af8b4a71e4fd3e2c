//! Which headers pass. What is told of the client is in [`told`].

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::exchange::{Client, PassThrough, RequestHead};
use crate::header_names::tells_client;
use crate::transport::Noted;

use super::forwarded::{self, Asker, ForwardedFound};

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
    /// Those that tell of the client.
    told: ForwardedFound,
}

impl HopByHop {
    /// A lookup by name hashes it; most of these are not there, so one pass that tells names apart by length costs less
    /// than eight lookups.
    fn find(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for field in headers.keys() {
            let name = field.as_str().as_bytes();
            // Length and first letter tell nearly all names apart from these without a comparison.
            match (name.len(), name.first()) {
                (2, Some(b't')) => found.te |= name == b"te",
                (6, Some(b'e')) => found.expect |= name == b"expect",
                (7, Some(b'u')) => found.upgrade |= name == b"upgrade",
                (9, Some(b'f')) => found.told.forwarded |= name == b"forwarded",
                (10, Some(b'c')) => found.connection |= name == b"connection",
                (10, Some(b'k')) => found.keep_alive |= name == b"keep-alive",
                (16, Some(b'p')) => found.proxy_connection |= name == b"proxy-connection",
                (17, Some(b't')) => found.transfer_encoding |= name == b"transfer-encoding",
                (_, Some(b'x')) => found.told.client |= tells_client(field),
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

/// What cleaning a request's headers depends on beside the client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cleaning {
    /// Whether a wish to switch protocols may be passed on.
    pub(super) may_switch: bool,
    /// Whether the headers that tell of the client are looked at before they are sent.
    pub(super) looks_at_clients: bool,
}

/// Makes a client's headers those that are true: what is for this hop alone goes, and so does what only the proxy may say, which is
/// said. Routes, middleware and backends see no others.
///
/// Gives back the protocol that the client asks to switch to, if it does so properly; HTTP/2 is none: it would carry requests past
/// every check of ours (h2c smuggling).
pub(super) fn clean(head: &mut RequestHead, asker: Asker<'_>, cleaning: Cleaning) -> Option<HeaderValue> {
    let found = HopByHop::find(head.in_map());
    if found.connection && names_others(head.in_map()) {
        head.read_lines();
    }
    let headers = head.in_map_mut();
    let upgrade = match found.upgrade && found.connection && cleaning.may_switch {
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
    if asker.client.listener.via {
        append_via(headers);
    }
    forwarded::tell(head, asker, found.told, cleaning.looks_at_clients);
    upgrade
}

/// RFC 9110 §7.6.3, with a pseudonym for the host.
fn append_via(headers: &mut HeaderMap) {
    headers.append(header::VIA, HeaderValue::from_static("1.1 isobar"));
}

/// Makes a backend's headers the ones that go to the client: those in the map, and those that pass through. Whether they hold a date.
/// `noted` is what is known of them.
pub(super) fn to_client(
    headers: &mut HeaderMap,
    pass_through: &mut PassThrough,
    client: &Client,
    status: StatusCode,
    noted: Noted,
) -> bool {
    let mut named = false;
    if noted.hop_by_hop {
        let found = HopByHop::find(headers);
        named = found.connection && names_others(headers);
        if named {
            pass_through.give_to(headers);
        }
        let protocols = match status {
            // Only the backend can tell the client what to switch to (RFC 9110 §15.5.22).
            StatusCode::UPGRADE_REQUIRED if found.upgrade && !asks_for_http2(headers) => {
                headers.get(header::UPGRADE).cloned()
            }
            _ => None,
        };
        found.remove(headers);
        if let Some(protocols) = protocols {
            headers.insert(header::UPGRADE, protocols);
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
    }
    if client.listener.via {
        append_via(headers);
    }
    // A field that `Connection` names is gone, a date too.
    noted.dated && (!named || headers.contains_key(header::DATE))
}

/// What of an informational response's head goes to the client: all but what is for this hop. Its lines end with CRLF
/// whatever they ended with, so that client and proxy agree where it ends; it begins with its status, whatever empty lines were
/// before that, and with the version of its sender (RFC 9110 §6.2), which is the proxy.
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
}
