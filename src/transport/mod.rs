//! Bytes to a backend and back.
//!
//! A worker has its own [`Transport`], with its own idle connections. HTTP/1.1 is spoken by [`Link`], in the task of the
//! exchange that waits for the answer.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{StatusCode, response};

use crate::backend::{BackendId, BackendState, Connected};
use crate::config::PoolConfig;
use crate::exchange::body::RequestBody;
use crate::exchange::watch::Clock;
use crate::http1::space::Space;

pub mod connect;
pub mod link;
mod pool;
pub mod tls;

pub use link::{Failed, Informed, Link};
use pool::Pools;
use tls::BackendTls;

/// A worker's way to its backends.
pub struct Transport {
    pools: RefCell<Pools>,
    /// What messages need while they are under way.
    pub space: Rc<Space>,
    clock: Rc<Clock>,
    /// Has other workers close an idle connection to a backend.
    short: RefCell<Option<Short>>,
}

/// Told of a backend to which there may be no further connection, and none is here.
pub type Short = Box<dyn Fn(BackendId)>;

/// A connection to a backend, taken out for one attempt.
pub struct Connection {
    link: Rc<Link>,
    /// Whether it has served a request before: then it may turn out to be closed already.
    pub reused: bool,
    transport: Rc<Transport>,
    slot: BackendId,
    pool: PoolConfig,
    released: bool,
}

impl Transport {
    /// No connections yet.
    pub fn new(clock: Rc<Clock>) -> Rc<Self> {
        Rc::new(Self { pools: RefCell::default(), space: Rc::default(), clock, short: RefCell::default() })
    }

    /// An idle connection to `backend` that was made with that TLS, the one used last.
    pub fn checkout(
        self: &Rc<Self>,
        backend: &BackendState,
        pool: PoolConfig,
        tls: Option<&BackendTls>,
    ) -> Option<Connection> {
        let link = self.pools.borrow_mut().take(backend.id, BackendTls::identity(tls))?;
        Some(Connection::new(link, true, self, backend, pool))
    }

    /// Idle connections held now.
    pub fn idle(&self) -> usize {
        self.pools.borrow().len()
    }

    /// Keeps a connection for its next request, if it is fit for one.
    fn keep(&self, slot: BackendId, pool: PoolConfig, link: Rc<Link>) {
        // One that somebody waits for at another worker is worth more closed.
        if link.rest() && !link.connected(Connected::is_wanted) {
            self.pools.borrow_mut().put(slot, pool, pool::Idle { link, since_ms: self.clock.now_ms() });
        }
    }

    /// Calls `ask` when a connection is to be made and there may be no more: other workers may have idle ones.
    pub fn when_short(&self, ask: Short) {
        *self.short.borrow_mut() = Some(ask);
    }

    /// Closes an idle connection to a backend, if somebody misses it.
    pub fn spare(&self, backend: BackendId) {
        self.pools.borrow_mut().spare(backend);
    }

    /// The right to another connection, as soon as there may be one: an idle one is closed for it, here or elsewhere.
    #[cold]
    async fn ask_back(&self, backend: &Arc<BackendState>) -> Connected {
        let ask = || {
            let here = self.pools.borrow_mut().spare(backend.id);
            if let (Some(short), false) = (&*self.short.borrow(), here) {
                short(backend.id);
            }
        };
        Connected::wait(backend, ask).await
    }

    /// Closes what was idle for too long, and what the other side has closed.
    pub fn sweep(&self) {
        self.pools.borrow_mut().sweep(self.clock.now_ms());
    }

    /// Closes the idle connections to backends that `keep` does not know any more, and those that were made with other TLS
    /// than it says.
    pub fn retain(&self, keep: impl Fn(BackendId) -> Option<u64>) {
        self.pools.borrow_mut().retain(keep);
    }
}

impl Connection {
    fn new(link: Rc<Link>, reused: bool, transport: &Rc<Transport>, backend: &BackendState, pool: PoolConfig) -> Self {
        Self { link, reused, transport: Rc::clone(transport), slot: backend.id, pool, released: false }
    }

    /// Takes a request, with `lines` put in behind its request line. It is sent by [`Connection::poll_response`].
    pub fn begin(&self, parts: &Parts, body: &RequestBody, lines: Option<&[u8]>) {
        self.link.begin(parts, body, lines);
    }

    /// Sends the request and waits for the head of the response: its status, with which it may be decided whether it is
    /// wanted. `body` is that of [`Connection::begin`].
    ///
    /// # Errors
    /// When the connection breaks before the head has come, or what comes is no response.
    pub fn poll_response(
        &self,
        cx: &mut Context<'_>,
        body: &mut RequestBody,
        informed: &dyn Informed,
    ) -> Poll<Result<StatusCode, Failed>> {
        self.link.poll_response(cx, body, informed)
    }

    /// Puts the head of the response whose status is known into `parts`.
    ///
    /// # Errors
    /// When a field is malformed.
    pub fn response(&self, parts: &mut response::Parts) -> io::Result<()> {
        self.link.response(parts)
    }

    /// Whether the response's body is of known length, of `limit` bytes at most, and not all there yet.
    pub fn gathers(&self, limit: usize) -> bool {
        self.link.gathers(limit)
    }

    /// Waits until all of such a body is there.
    ///
    /// # Errors
    /// When the connection breaks before.
    pub fn poll_gather(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.link.poll_gather(cx)
    }

    /// Whether the response may have fields for this hop alone, and whether it has a date.
    pub fn tells(&self) -> (bool, bool) {
        self.link.tells()
    }

    /// The body of the response, where all of it has come with its head.
    pub fn whole(&self) -> Option<Bytes> {
        self.link.whole()
    }

    /// A field of the response whose status is known, before [`Connection::response`] takes the head.
    pub fn field(&self, name: &str) -> Option<Bytes> {
        self.link.field(name)
    }

    /// The response whose status is known is not wanted. Where all of it is there, the connection may take its next request;
    /// else it is closed.
    pub fn discard(self) {
        if self.whole().is_some() {
            self.release();
        }
    }

    /// What is left of a request's body whose response has begun is sent on beside it, as long as the backend takes a piece
    /// of it within `idle`.
    pub fn upload(&self, body: RequestBody, idle: Duration) {
        if !self.link.uploading() {
            return;
        }
        let (link, transport, slot, pool) = (Rc::clone(&self.link), Rc::clone(&self.transport), self.slot, self.pool);
        tokio::task::spawn_local(async move {
            link.upload(body, idle).await;
            // The exchange has been over for longer, and left the connection to this task.
            if Rc::strong_count(&link) == 1 {
                transport.keep(slot, pool, link);
            }
        });
    }

    /// Whether any byte of a response has come since the request was sent.
    pub fn answered(&self) -> bool {
        self.link.answered()
    }

    /// Whether its TLS took up an earlier session; `None` in the clear.
    pub fn resumed(&self) -> Option<bool> {
        self.link.resumed()
    }

    /// What the connection is behind.
    pub fn link(&self) -> &Rc<Link> {
        &self.link
    }

    /// The response has been read: the connection may take its next request, once all of this one has been sent.
    pub fn release(mut self) {
        self.released = true;
        if !self.link.uploading() {
            self.transport.keep(self.slot, self.pool, Rc::clone(&self.link));
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.released {
            self.link.abandon();
        }
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("pools", &self.pools).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("reused", &self.reused).finish_non_exhaustive()
    }
}
