//! What was refused before a route was looked for, in the access log.
//!
//! It is no exchange and has no account: its line is made when it is refused, from what was read.
//! Strangers can have it happen as often as they like, so there are only so many lines, and what is left out is counted.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::Method;
use http::header;
use http::request::Parts;

use crate::config::{Config, ListenerName};
use crate::exchange::Client;
use crate::proxy::{Proxy, Refusal, RefusalKind};
use crate::telemetry::access_log::Record;

use super::Listener;

/// What a client is told that speaks HTTP in the clear where TLS is spoken.
pub(super) const PLAIN: Refusal = Refusal::new(RefusalKind::PlainHttp, "this port speaks TLS: use https");

/// What is said of a connection above `max_connections`.
pub const FULL: Refusal =
    Refusal::new(RefusalKind::ConnectionLimit, "this listener has as many connections as it takes");

/// What is said of a connection that comes while the process has no room for it.
pub const OVERLOADED: Refusal = Refusal::new(RefusalKind::Overloaded, "there is too much to do at the moment");

/// By HTTP/2 a client asks for a protocol that is not carried.
pub(super) const NOT_CARRIED: Refusal =
    Refusal::new(RefusalKind::UpgradeUnsupported, "no protocol but websocket is carried");

/// A request of HTTP/2 that is malformed (RFC 9113 §8.1.1): its client is told by a reset of the stream.
pub(super) const MALFORMED: Refusal = Refusal::bad_request("the request is malformed");

/// A connection that began as one of HTTP/2 and went on as something else.
pub(super) const PREFACE: Refusal = Refusal::bad_request("the preface is not that of HTTP/2");

/// What did not come in time.
pub(super) const LATE: Refusal = Refusal::new(RefusalKind::HeadTimeout, "the request head did not arrive in time");

/// What was refused.
#[derive(Clone, Copy)]
pub(super) enum Who<'a> {
    /// The client of a connection that is served.
    Client(&'a Client),
    /// Somebody whose connection to a listener is not, or not yet.
    Stranger(&'a Listener, SocketAddr),
}

impl Who<'_> {
    fn name(self, generation: u64, config: &Config) -> ListenerName {
        match self {
            Self::Client(client) => client.listener_name(generation, config).clone(),
            Self::Stranger(listener, _) => listener.name(),
        }
    }
}

/// What was asked, as far as it was read: strangers' words, which the access log escapes and shortens. Empty where it is not known.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RefusedRequest {
    method: String,
    target: String,
    protocol: String,
    host: Option<Vec<u8>>,
}

impl RefusedRequest {
    /// From the beginning of a head of HTTP/1.1, which may be anything and end anywhere.
    pub(super) fn read(begun: &[u8]) -> Self {
        // RFC 9112 §2.2: empty lines before a request are skipped.
        let start = begun.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(begun.len());
        let mut lines = begun[start..].split_inclusive(|&byte| byte == b'\n');
        let Some(asked) = lines.next().and_then(Self::line) else { return Self::default() };
        let fields = lines.filter_map(|line| line.strip_suffix(b"\n")).map(<[u8]>::trim_ascii_end);
        let host = fields.take_while(|line| !line.is_empty()).find_map(host);
        Self { host, ..asked }
    }

    /// From a request line, of which the end may be missing.
    fn line(line: &[u8]) -> Option<Self> {
        let ended = line.strip_suffix(b"\n");
        let line = ended.map_or(line, |line| line.strip_suffix(b"\r").unwrap_or(line));
        let method = line.split(|&byte| byte == b' ').next()?;
        let rest = line.get(method.len() + 1..)?;
        // What nobody would take for a request line is none: a handshake of TLS, for one.
        if Method::from_bytes(method).is_err() || !is_text(rest) {
            return None;
        }
        // The version is behind the last blank, where the line has an end. What is before it was meant to be the target.
        let version = rest.iter().rposition(|&byte| byte == b' ').map(|blank| (&rest[..blank], &rest[blank + 1..]));
        let (target, protocol) = match version {
            _ if ended.is_none() => (rest.split(|&byte| byte == b' ').next().unwrap_or_default(), &b""[..]),
            Some((target, version)) if version.starts_with(b"HTTP/") => (target, version),
            _ => (rest, &b""[..]),
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some(Self { method: text(method), target: text(target), protocol: text(protocol), host: None })
    }

    /// From the head of a request of HTTP/2.
    pub(super) fn of(parts: &Parts) -> Self {
        let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
        let host = authority.or_else(|| parts.headers.get(header::HOST).map(header::HeaderValue::as_bytes));
        Self {
            method: parts.method.to_string(),
            target: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            protocol: HTTP2.to_owned(),
            host: host.map(<[u8]>::to_vec),
        }
    }

    /// Nothing but that it was by HTTP/2.
    pub(super) fn http2() -> Self {
        Self { protocol: HTTP2.to_owned(), ..Self::default() }
    }
}

const HTTP2: &str = "HTTP/2.0";

fn host(line: &[u8]) -> Option<Vec<u8>> {
    let (name, value) = line.split_at_checked(b"host:".len())?;
    let value = value.trim_ascii();
    (name.eq_ignore_ascii_case(b"host:") && is_text(value)).then(|| value.to_vec())
}

/// Whether there is no control character in it.
fn is_text(bytes: &[u8]) -> bool {
    !bytes.iter().any(u8::is_ascii_control)
}

/// Has its line written, where there is an access log and not too many were. `answered`: the client is told.
#[cold]
pub(super) fn log(
    proxy: &Proxy,
    who: Who<'_>,
    refusal: Refusal,
    answered: bool,
    known: impl FnOnce() -> RefusedRequest,
) {
    let snapshot = proxy.current.get();
    let log = proxy.process.access_log.load();
    let Some(log) = &*log else { return };
    let (metrics, peer) = match who {
        Who::Client(client) => (client.metrics.of(proxy.worker), client.peer),
        Who::Stranger(listener, peer) => (listener.metrics.of(proxy.worker), peer),
    };
    let Some(times) = proxy.refusals.happened() else { return metrics.refusals_left_out.add(1) };
    let known = known();
    log.record(&Record {
        time: SystemTime::now(),
        client_ip: peer.ip().to_canonical(),
        method: &known.method,
        target: &known.target,
        host: known.host.as_deref(),
        protocol: &known.protocol,
        status: refusal.status().as_u16(),
        bytes_in: 0,
        bytes_out: if answered { refusal.told().len() as u64 } else { 0 },
        duration: Duration::ZERO,
        connect: None,
        first_byte: None,
        route: None,
        upstream: None,
        backend: None,
        attempts: 0,
        listener: who.name(snapshot.generation, &snapshot.config).as_str(),
        user_agent: None,
        referer: None,
        grpc_status: None,
        reason: refusal.reason(),
        ended_by: Some(refusal.blame().as_str()),
        detail: Some(refusal.why),
        left_out: times - 1,
    });
}

/// A connection to `listener` that is not served. `answered`: it is told why.
pub fn turned_away(proxy: &Proxy, (listener, peer): (&Listener, SocketAddr), refusal: Refusal, answered: bool) {
    log(proxy, Who::Stranger(listener, peer), refusal, answered, RefusedRequest::default);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_is_told_as_far_as_it_was_read() {
        let long = format!("GET /{}", "a".repeat(9000));
        for (begun, method, target, protocol, host) in [
            ("GET /a?b HTTP/1.1\r\nHost: h \r\nx: y\r\n", "GET", "/a?b", "HTTP/1.1", Some("h")),
            ("\r\n\nGET / HTTP/1.1\nhost:h\n", "GET", "/", "HTTP/1.1", Some("h")),
            ("GET / HTTP/1.1\r\nx: y\r\n\r\nhost: h\r\n", "GET", "/", "HTTP/1.1", None),
            ("GET / HTTP/1.1\r\nhost: h\r\nhost: i\r\n", "GET", "/", "HTTP/1.1", Some("h")),
            ("GET / HTTP/1.1\r\nhost: h", "GET", "/", "HTTP/1.1", None),
            ("GET / HTTP/1.1\r\nhost: h\0\r\n", "GET", "/", "HTTP/1.1", None),
            ("GET / HTTP/3.0\r\n", "GET", "/", "HTTP/3.0", None),
            ("GET /a b HTTP/1.1\r\n", "GET", "/a b", "HTTP/1.1", None),
            ("GET /\r\n", "GET", "/", "", None),
            ("GET / x\r\n", "GET", "/ x", "", None),
            ("GET /a", "GET", "/a", "", None),
            ("GET /a HTTP/1", "GET", "/a", "", None),
            ("GET ", "GET", "", "", None),
            ("GET  / HTTP/1.1\r\n", "GET", " /", "HTTP/1.1", None),
            (&long, "GET", &long[4..], "", None),
            ("GET /\u{e9} HTTP/1.1\r\n", "GET", "/\u{e9}", "HTTP/1.1", None),
            ("PRI * HTTP/2.0\r\n", "PRI", "*", "HTTP/2.0", None),
            // No request lines.
            ("GET", "", "", "", None),
            ("GET\r\n", "", "", "", None),
            (" / HTTP/1.1\r\n", "", "", "", None),
            ("G(T / HTTP/1.1\r\n", "", "", "", None),
            ("GET /\x1b[2J HTTP/1.1\r\nhost: h\r\n", "", "", "", None),
            ("GET /\t HTTP/1.1\r\n", "", "", "", None),
            ("\x16\x03\x01\x02 \x01\r\n", "", "", "", None),
            ("", "", "", "", None),
            ("\r\n", "", "", "", None),
        ] {
            let asked = RefusedRequest {
                method: method.to_owned(),
                target: target.to_owned(),
                protocol: protocol.to_owned(),
                host: host.map(|host| host.as_bytes().to_vec()),
            };
            assert_eq!(RefusedRequest::read(begun.as_bytes()), asked, "{begun:?}");
        }
        assert_eq!(RefusedRequest::read(b"GET /\xff HTTP/1.1\r\n").target, "/\u{fffd}");
    }
}
