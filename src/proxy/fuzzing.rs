//! Opened to the fuzz targets in `fuzz/`: what becomes of headers.

use std::net::IpAddr;

use http::StatusCode;
use http::header::{HeaderMap, HeaderValue};

use super::forwarded::{self, Asker};
use super::headers::{self, Cleaning};
use crate::exchange::{Client, PassThrough, RequestHead};
use crate::transport::Noted;

/// Makes a client's headers those that are true. Gives back the protocol to switch to.
pub fn clean(head: &mut RequestHead, client: &Client, may_switch: bool) -> Option<HeaderValue> {
    let asker = Asker::of(head.in_map(), client);
    let upgrade = headers::clean(head, asker, Cleaning { may_switch, looks_at_clients: false });
    forwarded::identity(head.in_map_mut(), client);
    upgrade
}

/// Makes a backend's headers the ones that go to the client. `noted` is what is known of them.
pub fn to_client(
    headers: &mut HeaderMap,
    pass_through: &mut PassThrough,
    client: &Client,
    status: StatusCode,
    noted: Noted,
) -> bool {
    headers::to_client(headers, pass_through, client, status, noted)
}

/// The address of the client.
pub fn client_ip(headers: &HeaderMap, client: &Client) -> IpAddr {
    Asker::of(headers, client).ip
}

/// What of an informational response's head goes to the client.
pub fn informational(head: &[u8]) -> Option<Vec<u8>> {
    headers::informational(head)
}
