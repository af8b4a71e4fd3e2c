//! Opened to the fuzz targets in `fuzz/`: what becomes of headers.

use std::net::IpAddr;
use std::rc::Rc;

use http::StatusCode;
use http::header::{HeaderMap, HeaderValue};

use super::headers;
use super::told::{self, Asker};
use crate::exchange::{Client, Untouched};

/// Makes a client's headers those that are true: the protocol to switch to, and lines for behind the request line.
pub fn clean(
    headers: &mut HeaderMap,
    untouched: Option<&mut Untouched>,
    client: &Client,
    may_switch: bool,
) -> (Option<HeaderValue>, Option<Rc<[u8]>>) {
    let asker = Asker::of(headers, client);
    let headers::Clean { upgrade, lines } = headers::clean(headers, untouched, asker, (may_switch, false));
    told::identity(headers, client);
    (upgrade, lines)
}

/// Makes a backend's headers the ones that go to the client. `known`: whether there may be some for this hop alone, and whether
/// there is a date.
pub fn to_client(
    headers: (&mut HeaderMap, &mut Untouched),
    client: &Client,
    status: StatusCode,
    known: (bool, bool),
) -> bool {
    headers::to_client(headers, client, status, known)
}

/// The address of the client.
pub fn client_ip(headers: &HeaderMap, client: &Client) -> IpAddr {
    Asker::of(headers, client).ip
}

/// What of an informational response's head goes to the client.
pub fn informational(head: &[u8]) -> Option<Vec<u8>> {
    headers::informational(head)
}
