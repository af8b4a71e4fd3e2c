//! Opened to the fuzz targets in `fuzz/`: what becomes of headers.

use std::net::IpAddr;
use std::rc::Rc;

use http::header::{HeaderMap, HeaderValue};

use super::headers;
use crate::config::HeaderEdits;
use crate::exchange::{Client, Untouched};

/// Makes a client's headers the ones that go to a backend: the protocol to switch to, and lines for behind the request line.
pub fn to_backend(
    headers: &mut HeaderMap,
    untouched: Option<&mut Untouched>,
    client: &Client,
    edits: &HeaderEdits,
    may_switch: bool,
) -> (Option<HeaderValue>, Option<Rc<[u8]>>) {
    let headers::ToBackend { upgrade, lines, .. } = headers::to_backend(headers, untouched, client, edits, may_switch);
    (upgrade, lines)
}

/// Tells of the client's certificate, and lets nobody else do so.
pub fn identity(headers: &mut HeaderMap, client: &Client) {
    headers::identity(headers, client);
}

/// Makes a backend's headers the ones that go to the client. `known`: whether there may be some for this hop alone, and whether
/// there is a date.
pub fn to_client(headers: (&mut HeaderMap, &mut Untouched), client: &Client, known: (bool, bool)) -> bool {
    headers::to_client(headers, client, known)
}

/// The address of the client.
pub fn client_ip(headers: &HeaderMap, client: &Client) -> IpAddr {
    headers::client_ip(headers, client)
}

/// What of an informational response's head goes to the client.
pub fn informational(head: &[u8]) -> Option<Vec<u8>> {
    headers::informational(head)
}
