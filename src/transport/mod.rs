//! Bytes to a backend and back.
//!
//! A worker has its own [`Transport`], with its own idle connections. The task that drives a connection is spawned on the
//! same thread, so that handing it a request wakes nobody else.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::SendRequest;

use crate::backend::BackendState;
use crate::config::PoolConfig;
use crate::exchange::body::RequestBody;
use crate::exchange::watch::Clock;

pub mod connect;
pub mod link;
mod mute;
mod pool;

pub use link::{Informed, Link};
use pool::Pools;

/// A worker's way to its backends.
#[derive(Debug)]
pub struct Transport {
    pools: RefCell<Pools>,
    clock: Rc<Clock>,
}

/// A connection to a backend, taken out for one attempt.
pub struct Connection {
    sender: SendRequest<RequestBody>,
    link: Rc<Link>,
    /// Whether it has served a request before: then it may turn out to be closed already.
    pub reused: bool,
    transport: Rc<Transport>,
    slot: crate::backend::BackendId,
    pool: PoolConfig,
}

impl Transport {
    /// No connections yet.
    pub fn new(clock: Rc<Clock>) -> Rc<Self> {
        Rc::new(Self { pools: RefCell::default(), clock })
    }

    /// An idle connection to `backend`, the one used last.
    pub fn checkout(self: &Rc<Self>, backend: &BackendState, pool: PoolConfig) -> Option<Connection> {
        let idle = self.pools.borrow_mut().take(backend.id)?;
        Some(Connection {
            sender: idle.sender,
            link: idle.link,
            reused: true,
            transport: Rc::clone(self),
            slot: backend.id,
            pool,
        })
    }

    /// Idle connections held now.
    pub fn idle(&self) -> usize {
        self.pools.borrow().len()
    }

    /// Closes what was idle for too long, and what the other side has closed.
    pub fn sweep(&self) {
        self.pools.borrow_mut().sweep(self.clock.now_ms());
    }

    /// Closes the connections to backends that `keep` does not know any more.
    pub fn retain(&self, keep: impl Fn(crate::backend::BackendId) -> bool) {
        self.pools.borrow_mut().retain(keep);
    }
}

impl Connection {
    /// Sends a request, with `lines` put in behind its request line, and waits for the head of the response. With `keep`,
    /// its head is kept, so that it can be sent again by [`Connection::written`].
    ///
    /// # Errors
    /// When the connection breaks before the head has come. The request comes back if none of it was sent.
    pub fn send(
        &mut self,
        request: Request<RequestBody>,
        keep: bool,
        lines: Bytes,
        informed: Option<Rc<dyn Informed>>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<> {
        self.link.begin(keep, lines, informed);
        self.sender.try_send_request(request)
    }

    /// Whether any byte of a response has come since the request was sent.
    pub fn answered(&self) -> bool {
        self.link.answered()
    }

    /// The request that was sent, with the lines that were put in, if it was to be kept and had no body.
    pub fn written(&self) -> Option<Request<RequestBody>> {
        self.link.written()
    }

    /// The socket behind it.
    pub fn link(&self) -> &Rc<Link> {
        &self.link
    }

    /// A piece of the response's body is about to be taken.
    pub fn taking(&self) {
        self.link.mute(true);
    }

    /// Nothing was there to take (`None`); or it was taken, and there is (`true`) more to come, for which the connection has
    /// to run.
    pub fn taken(&self, more: Option<bool>) {
        self.link.mute(false);
        if more.is_some_and(|more| more || !self.sender.is_ready()) {
            self.link.wake();
        }
    }

    /// The response has been read: the connection may take its next request.
    pub fn release(self) {
        let Self { sender, link, transport, slot, pool, .. } = self;
        let since_ms = transport.clock.now_ms();
        transport.pools.borrow_mut().put(slot, pool, pool::Idle { sender, link, since_ms });
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("reused", &self.reused).finish_non_exhaustive()
    }
}
