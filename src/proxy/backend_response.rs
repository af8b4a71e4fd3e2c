//! A backend's response becomes the client's.

use std::rc::Rc;

use http::header::{self, HeaderValue};

use crate::backend::Lease;
use crate::exchange::RequestHead;
use crate::exchange::body::{Body, RequestBody};
use crate::route::Forward;
use crate::transport::Connection;

use super::running::{RunningExchange, SWITCHING};
use super::upgrade::Tunnel;
use super::upload::Upload;
use super::{Handled, ProxyError, headers};

/// Makes a backend's response the client's. What is left of the request's `body` goes on beside it.
///
/// # Errors
/// When it is none that can be passed on.
pub(super) fn answer(
    running: &Rc<RunningExchange>,
    forward: &Forward,
    upgrade: Option<HeaderValue>,
    (connection, lease): (Connection, Lease),
    body: RequestBody,
    request: &mut RequestHead,
    handled: &mut Handled,
) -> Result<(), ProxyError> {
    let head = &mut handled.head;
    // The request is sent and not sent again: there is room for its answer.
    std::mem::swap(&mut head.headers, request.in_map_mut());
    handled.pass_through = match connection.response(head) {
        Ok(pass_through) => pass_through,
        Err(error) => return Err(ProxyError::Broken { backend: lease.backend().address.clone(), error }),
    };
    let whole = running.upload() == Upload::Over;
    let closes = connection.uploads() && early(running, &connection, body);
    let status = head.status;
    let client = &running.exchange.client;
    handled.dated =
        headers::to_client(&mut head.headers, &mut handled.pass_through, client, status, connection.noted());
    if closes {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if status != SWITCHING {
        handled.body = match connection.whole() {
            Some(bytes) => {
                if running.call().is_none() || !connection.uploads() {
                    connection.release();
                }
                Body::whole(bytes, lease)
            }
            None => {
                let source = connection.source();
                running.lend(connection);
                Body::leased(source, lease)
            }
        };
        return Ok(());
    }
    // What follows a request belongs to another protocol only when all of the request is there.
    let (Some(protocol), Some(link), true) = (upgrade, connection.link(), whole && !connection.uploads()) else {
        return Err(ProxyError::UnaskedUpgrade { backend: lease.backend().address.clone() });
    };
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    head.headers.entry(header::UPGRADE).or_insert(protocol);
    head.extensions.clear();
    let tunnel = Tunnel::new(Rc::clone(link), lease, Rc::clone(running), forward.timeouts.tunnel_idle);
    handled.tunnel = Some(Box::new(tunnel));
    handled.dated = true;
    Ok(())
}

/// The answer has come before all of the request was sent. What is left of that goes on beside it, as long as the backend takes it. Whether
/// the client's connection is to end too: the backend says of its own that it does, so that the rest goes nowhere.
#[cold]
fn early(running: &RunningExchange, connection: &Connection, body: RequestBody) -> bool {
    if running.exchange.side.holds() {
        // The body was not asked for, and now it is not wanted. Its client may leave it out or not, and says nowhere which.
        connection.forgo();
        return true;
    }
    connection.upload(body, running.upload_idle());
    connection.closes() && running.upload() != Upload::Over
}
