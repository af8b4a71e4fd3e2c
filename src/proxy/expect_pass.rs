//! `expect = "pass"`: it is the backend that tells a client to go on which asks before it sends its body.

use std::rc::Rc;

use http::header::{self, HeaderValue};

use crate::exchange::RequestHead;
use crate::exchange::body::{Asking, BodySource};
use crate::route::Forward;

use super::running::RunningExchange;

/// Asks the backend in the client's place, if the client asks.
#[cold]
pub(super) fn pass(
    running: &RunningExchange,
    forward: &Forward,
    head: &mut RequestHead,
    body: Rc<dyn BodySource>,
) -> Rc<dyn BodySource> {
    let side = &running.exchange.side;
    if !side.hold() {
        return body;
    }
    head.in_map_mut().insert(header::EXPECT, HeaderValue::from_static("100-continue"));
    Rc::new(Asking::new(body, Rc::clone(side), forward.timeouts.expect))
}
