//! `expect = "pass"`: it is the backend that tells a client to go on which asks before it sends its body.

use std::rc::Rc;

use http::header::{self, HeaderValue};

use crate::exchange::RequestHead;
use crate::exchange::body::{Asking, Source};
use crate::route::Forward;

use super::running::Running;

/// Asks the backend in the client's place, if the client asks.
#[cold]
pub(super) fn pass(
    running: &Running,
    forward: &Forward,
    head: &mut RequestHead,
    body: Rc<dyn Source>,
) -> Rc<dyn Source> {
    let side = &running.exchange.side;
    if !side.hold() {
        return body;
    }
    head.in_map_mut().insert(header::EXPECT, HeaderValue::from_static("100-continue"));
    Rc::new(Asking::new(body, Rc::clone(side), forward.timeouts.expect))
}
