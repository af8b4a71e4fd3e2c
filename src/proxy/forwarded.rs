//! What a backend is told of the client, and which proxies before this one are believed about it.
//!
//! isobar does not believe a peer that is no trusted proxy of the listener: what it says of addresses, schemes, hosts and ports is removed.
//! Of a trusted one all is believed, and kept, and what it leaves out is derived from what it says, so that the fields, the redirects
//! and the access log agree with each other.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::LazyLock;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::config::ForwardedHeader;
use crate::exchange::{Client, HeaderLines, RequestHead};
use crate::header_names::{self, has_underscore, tells_client, tells_identity};
use crate::target::authority;

use super::headers::host;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const X_FORWARDED_SCHEME: HeaderName = HeaderName::from_static("x-forwarded-scheme");
const X_FORWARDED_SSL: HeaderName = HeaderName::from_static("x-forwarded-ssl");

/// The client, as far as it is known for certain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker<'a> {
    /// The connection.
    pub(super) client: &'a Client,
    /// The client's address.
    pub(super) ip: IpAddr,
    /// By which scheme it has asked the first proxy that is trusted.
    pub(super) scheme: &'static str,
}

impl<'a> Asker<'a> {
    /// The client that has sent a request with these fields.
    pub(super) fn of(headers: &HeaderMap, client: &'a Client) -> Self {
        if !client.trusted {
            return Self { client, ip: client.peer.ip().to_canonical(), scheme: client.scheme };
        }
        Self { client, ip: address(headers, client), scheme: said_scheme(headers).unwrap_or(client.scheme) }
    }
}

/// The authority that the client has asked for, in its canonical form: what a trusted proxy says it was, or else the `Host`. Empty if it
/// is not known.
pub(super) fn public_authority<'a>(headers: &'a HeaderMap, client: &Client) -> Cow<'a, str> {
    let said = if client.trusted { said_authority(headers) } else { None };
    match said {
        Some(authority) => Cow::Owned(authority),
        None => Cow::Borrowed(host(headers).and_then(|host| host.to_str().ok()).unwrap_or_default()),
    }
}

/// Makes the fields tell of the client what is true. `found` is whether there are some that do already, and `in_map` whether they are
/// looked at before they are sent.
///
/// For a client that is not trusted they depend on nothing but its connection and the host it asks for, so they are made once, as lines
/// for behind the request line; putting them into each request's map would cost four hashed inserts, and again their encoding: 1 500
/// instructions a request.
pub(super) fn tell(head: &mut RequestHead, asker: Asker<'_>, found: ForwardedFound, in_map: bool) {
    let client = asker.client;
    let headers = head.in_map_mut();
    if client.listener.forwarded || (found.forwarded && !client.trusted) {
        forwarded(headers, asker);
    }
    if client.trusted {
        tell_beside(headers, asker);
        return;
    }
    if found.client {
        header_names::remove(headers, tells_client);
    }
    let lines = lines(client, host(headers));
    head.set_lines(lines);
    if in_map {
        head.read_lines();
    }
}

/// Which fields that tell of a client a request has come with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ForwardedFound {
    /// `Forwarded`.
    pub(super) forwarded: bool,
    /// One of those that [`tells_client`] knows.
    pub(super) client: bool,
}

/// Tells what the route has taken off the path, where that is asked for, behind what proxies before have taken off.
#[cold]
pub(super) fn tell_prefix(headers: &mut HeaderMap, client: &Client, prefix: &str) {
    let before = if client.trusted { joined(headers, &X_FORWARDED_PREFIX) } else { None };
    let mut value = before.unwrap_or_default();
    while value.last() == Some(&b'/') {
        value.pop();
    }
    value.extend_from_slice(prefix.as_bytes());
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(X_FORWARDED_PREFIX, value);
    }
}

/// Tells of the client's certificate, and lets no other peer do so: but a trusted proxy, of its own client, at a listener that does
/// not ask for certificates itself.
#[cold]
pub(super) fn identity(headers: &mut HeaderMap, client: &Client) {
    let asks = client.listener.tls.as_ref().is_some_and(|tls| tls.client_certificates.is_some());
    let believed = client.trusted && !asks;
    header_names::remove(headers, |name| tells_identity(name) && (!believed || has_underscore(name)));
    for (name, value) in &client.identity {
        headers.insert(name, value.clone());
    }
}

/// What is told of a client that is not trusted, one after the other.
fn each(client: &Client, host: Option<&HeaderValue>, mut put: impl FnMut(&HeaderName, &[u8])) {
    put(&X_FORWARDED_FOR, client.peer_text.as_bytes());
    put(&X_FORWARDED_PROTO, client.scheme.as_bytes());
    if let Some(host) = host {
        put(&X_FORWARDED_HOST, host.as_bytes());
    }
    put(&X_FORWARDED_PORT, client.port_text.as_bytes());
    for header in &client.listener.forwarded_headers {
        if let Some(value) = more(*header, client.scheme, || client.peer_text.clone()) {
            put(&header.name(), value.as_bytes());
        }
    }
}

/// The value of one of `forwarded_headers`; that of the prefix is for the route to say.
fn more(header: ForwardedHeader, scheme: &'static str, ip: impl FnOnce() -> HeaderValue) -> Option<HeaderValue> {
    static SERVER: LazyLock<HeaderValue> = LazyLock::new(|| {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::env::var("HOSTNAME"));
        let name = name.ok().and_then(|name| HeaderValue::try_from(name.trim()).ok());
        name.filter(|name| !name.is_empty()).unwrap_or(HeaderValue::from_static("isobar"))
    });
    Some(match header {
        ForwardedHeader::RealIp => ip(),
        ForwardedHeader::Scheme => HeaderValue::from_static(scheme),
        ForwardedHeader::Ssl => HeaderValue::from_static(if scheme == "https" { "on" } else { "off" }),
        ForwardedHeader::Server => SERVER.clone(),
        ForwardedHeader::Prefix => return None,
    })
}

/// [`each`] as lines. They are those of the connection's last request most of the time.
fn lines(client: &Client, host: Option<&HeaderValue>) -> Rc<HeaderLines> {
    let mut cached = client.lines.borrow_mut();
    if cached.1.is_empty() || cached.0.as_ref() != host {
        let mut lines = Vec::with_capacity(160);
        each(client, host, |name, value| {
            lines.extend_from_slice(name.as_str().as_bytes());
            lines.extend_from_slice(b": ");
            lines.extend_from_slice(value);
            lines.extend_from_slice(b"\r\n");
        });
        // A copy: the field itself is a part of the block that the request was read into, and the connection may wait long.
        let host = host.and_then(|host| HeaderValue::from_bytes(host.as_bytes()).ok());
        *cached = (host, Rc::new(HeaderLines::new(lines)));
    }
    Rc::clone(&cached.1)
}

/// Adds to what a trusted proxy says, and says what it does not, so that it agrees with the rest.
#[cold]
fn tell_beside(headers: &mut HeaderMap, asker: Asker<'_>) {
    let client = asker.client;
    let known = [&X_FORWARDED_PROTO, &X_FORWARDED_HOST, &header::FORWARDED];
    let says = known.iter().any(|name| headers.contains_key(*name));
    // Not its own, or it would be written as everybody writes it.
    header_names::remove(headers, |name| tells_client(name) && has_underscore(name));
    let authority = public_authority(headers, client).into_owned();
    let port = match authority::split(&authority).1 {
        Some(port) if says => HeaderValue::try_from(port).ok(),
        _ if says => Some(HeaderValue::from_static(if asker.scheme == "https" { "443" } else { "80" })),
        _ => None,
    };
    let mut put = |name: HeaderName, value: HeaderValue| {
        headers.entry(name).or_insert(value);
    };
    put(X_FORWARDED_PROTO, HeaderValue::from_static(asker.scheme));
    if let Ok(authority) = HeaderValue::try_from(&authority)
        && !authority.is_empty()
    {
        put(X_FORWARDED_HOST, authority);
    }
    put(X_FORWARDED_PORT, port.unwrap_or_else(|| client.port_text.clone()));
    for header in &client.listener.forwarded_headers {
        if let Some(value) = more(*header, asker.scheme, || text(asker.ip)) {
            put(header.name(), value);
        }
    }
    // Without one, the address may be known from `Forwarded`.
    let before = joined(headers, &X_FORWARDED_FOR)
        .or_else(|| (asker.ip != client.peer.ip().to_canonical()).then(|| asker.ip.to_string().into_bytes()));
    let value = before
        .and_then(|before| HeaderValue::try_from([&before, &b", "[..], client.peer_text.as_bytes()].concat()).ok());
    headers.insert(X_FORWARDED_FOR, value.unwrap_or_else(|| client.peer_text.clone()));
}

fn text(ip: IpAddr) -> HeaderValue {
    HeaderValue::try_from(ip.to_string()).unwrap_or(HeaderValue::from_static("unknown"))
}

/// `Forwarded` (RFC 7239): added to what a trusted proxy says, in place of what another client says.
#[cold]
fn forwarded(headers: &mut HeaderMap, asker: Asker<'_>) {
    let client = asker.client;
    if !client.listener.forwarded {
        headers.remove(header::FORWARDED);
        return;
    }
    let before = if client.trusted { joined(headers, &header::FORWARDED) } else { None };
    let peer = client.peer.ip().to_canonical();
    let asked = host(headers).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let own = element(peer, asked, client.scheme);
    let value = match before {
        Some(before) => HeaderValue::try_from([&before, &b", "[..], own.as_bytes()].concat()),
        // A trusted proxy that says it by `X-Forwarded-*` alone: a reader of `Forwarded` is to read the same (RFC 7239 §7.4).
        None if asker.ip != peer || asker.scheme != client.scheme => {
            let first = element(asker.ip, &public_authority(headers, client), asker.scheme);
            HeaderValue::try_from(format!("{first}, {own}"))
        }
        None => HeaderValue::try_from(own),
    };
    if let Ok(value) = value {
        headers.insert(header::FORWARDED, value);
    }
}

/// RFC 7239 §4. IPv6 addresses are bracketed and, with their colons, quoted; so is a host with a port.
fn element(ip: IpAddr, host: &str, scheme: &str) -> String {
    let mut text = String::with_capacity(64);
    // Writing to a String cannot fail.
    let _ = match ip {
        IpAddr::V4(ip) => write!(text, "for={ip}"),
        IpAddr::V6(ip) => write!(text, "for=\"[{ip}]\""),
    };
    if !host.is_empty() {
        let _ = match host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)) {
            true => write!(text, ";host={host}"),
            // A host in its canonical form holds neither quotes nor backslashes.
            false => write!(text, ";host=\"{host}\""),
        };
    }
    text.push_str(";proto=");
    text.push_str(scheme);
    text
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

/// The client's address: the last one that the trusted proxies before us did not add themselves.
#[cold]
fn address(headers: &HeaderMap, client: &Client) -> IpAddr {
    let mut last = client.peer.ip().to_canonical();
    let named: Vec<Option<IpAddr>> = match joined(headers, &X_FORWARDED_FOR) {
        Some(all) => all.split(|&byte| byte == b',').map(|it| node(std::str::from_utf8(it).ok()?)).collect(),
        None => elements(headers).iter().map(|element| node(parameter(element, "for")?)).collect(),
    };
    for ip in named.into_iter().rev() {
        // What is before a proxy without a name is unknown.
        let Some(ip) = ip else { break };
        last = ip;
        if !client.listener.trusted_proxies.iter().any(|network| network.contains(&last)) {
            break;
        }
    }
    last
}

/// An address as proxies write it: some with a port, in brackets, or in quotes (RFC 7239 §6).
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim().trim_matches('"');
    let is_port =
        |text: &str| text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    let ip = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').filter(|(_, port)| is_port(port))?.0.parse().ok()?,
        None => match text.parse() {
            Ok(ip) => ip,
            Err(_) => {
                let (ip, port) = text.split_at(text.find(':')?);
                IpAddr::V4(ip.parse().ok().filter(|_| is_port(port))?)
            }
        },
    };
    Some(ip.to_canonical())
}

/// By which scheme a trusted proxy says that it was asked. Of several, the first: that is what backends go by.
fn said_scheme(headers: &HeaderMap) -> Option<&'static str> {
    let first = |name: &HeaderName| first(headers, name);
    let scheme = |text: &str| match text {
        text if text.eq_ignore_ascii_case("https") || text.eq_ignore_ascii_case("wss") => Some("https"),
        text if text.eq_ignore_ascii_case("http") || text.eq_ignore_ascii_case("ws") => Some("http"),
        _ => None,
    };
    let by_element = || scheme(parameter(elements(headers).first()?, "proto")?);
    let by_ssl = || first(&X_FORWARDED_SSL).filter(|text| text.eq_ignore_ascii_case("on")).map(|_| "https");
    (first(&X_FORWARDED_PROTO).and_then(scheme))
        .or_else(by_element)
        .or_else(|| first(&X_FORWARDED_SCHEME).and_then(scheme))
        .or_else(by_ssl)
}

/// For which authority a trusted proxy says that it was asked, in its canonical form.
fn said_authority(headers: &HeaderMap) -> Option<String> {
    let by_element = || authority::canonical(parameter(elements(headers).first()?, "host")?.as_bytes());
    first(headers, &X_FORWARDED_HOST).and_then(|text| authority::canonical(text.as_bytes())).or_else(by_element)
}

/// The first member of a list.
fn first<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()?.split(',').next().map(str::trim)
}

/// The elements of `Forwarded`.
fn elements(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all(header::FORWARDED).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| outside_quotes(value, ',')).collect()
}

/// A parameter of an element, without quotes.
fn parameter<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = outside_quotes(element, ';').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| key.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().trim_matches('"'))
}

/// The pieces of a text between separators that are in no quotes.
fn outside_quotes(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |character| {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            _ => return character == separator && !quoted,
        }
        false
    })
}

#[cfg(test)]
mod tests;
