//! The body of a request with `Expect: 100-continue` that the backend decides about.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use tokio::time::Sleep;

use super::{BodySource, ExchangeProgress};
use crate::exchange::ClientSide;
use crate::http1::splice::Pipe;

/// The body of a request whose client waits to be told that it is wanted. A backend that does not say so in time leaves it to us: many
/// never do, and some clients wait for ever.
pub struct Asking {
    body: Rc<dyn BodySource>,
    side: Rc<dyn ClientSide>,
    patience: RefCell<ExpectPatience>,
}

/// How long the backend still has.
enum ExpectPatience {
    /// All of it: nothing was sent to it yet.
    Whole(Duration),
    Left(Pin<Box<Sleep>>),
    /// The client does not wait any more.
    Over,
}

impl Asking {
    /// The body of a request that a backend is asked about, which has so long to say that it wants it.
    pub fn new(body: Rc<dyn BodySource>, side: Rc<dyn ClientSide>, time: Duration) -> Self {
        Self { body, side, patience: RefCell::new(ExpectPatience::Whole(time)) }
    }

    /// Asks the client once the backend has had its time.
    fn look(&self, cx: &mut Context<'_>) {
        let patience = &mut *self.patience.borrow_mut();
        if let ExpectPatience::Whole(time) = *patience {
            *patience = ExpectPatience::Left(Box::pin(tokio::time::sleep(time)));
        }
        let ExpectPatience::Left(sleep) = patience else { return };
        if !self.side.holds() {
            *patience = ExpectPatience::Over;
        } else if sleep.as_mut().poll(cx).is_ready() {
            self.side.go_on();
            *patience = ExpectPatience::Over;
        }
    }
}

impl BodySource for Asking {
    fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.look(cx);
        self.body.poll_piece(cx)
    }

    fn is_done(&self) -> bool {
        self.body.is_done()
    }

    fn left(&self) -> Option<u64> {
        self.body.left()
    }

    fn want(&self, wanted: bool) {
        self.body.want(wanted);
    }

    fn splices(&self) -> bool {
        // What goes from socket to socket is polled for as well.
        self.body.splices()
    }

    fn poll_pour(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        self.look(cx);
        self.body.poll_pour(cx, pipe)
    }

    fn told(&self, exchange: Rc<dyn ExchangeProgress>) -> Rc<dyn ExchangeProgress> {
        self.body.told(exchange)
    }
}
