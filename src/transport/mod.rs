//! Connections to backends: pools, HTTP/1.1, HTTP/2 and TLS.
//!
//! A worker has its own [`Transport`], with its own idle connections. HTTP/1.1 is spoken by [`Link`], in the task of the
//! exchange that waits for the answer, HTTP/2 by `multiplex`, whose connections exchanges share.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, response};

use crate::backend::{BackendId, BackendState, Connected};
use crate::config::{PoolConfig, Protocol};
use crate::exchange::body::{BodySource, RequestBody};
use crate::exchange::deadline::Clock;
use crate::file_descriptors::{DescriptorRoom, DescriptorSeats};
use crate::http1::buffers::Space;
use crate::http1::head::RequestHead;
use crate::http1::pass_through_headers::PassThrough;
pub use crate::http1::response::Noted;

pub mod connect;
pub mod http1;
mod http2;
mod pool;
mod wear;
mod http2_empty_frames;
mod http2_stream;
pub mod tls;

pub use http1::{Informed, Link, NoResponse};
use http2::Sessions;
use http2_stream::BackendStream;
use pool::{KeptIdle, Pools};
use tls::BackendTls;

/// A worker's way to its backends.
pub struct Transport {
    pools: RefCell<Pools>,
    sessions: RefCell<Sessions>,
    /// What messages need while they are under way.
    pub space: Rc<Space>,
    /// The worker's share of file descriptors.
    pub room: Rc<DescriptorRoom>,
    clock: Rc<Clock>,
    /// Has other workers close an idle connection to a backend.
    short: RefCell<Option<Short>>,
}

/// Told of a backend to which there may be no further connection, and none is here.
pub type Short = Box<dyn Fn(BackendId)>;

/// How connections to the backends of an upstream are made.
#[derive(Clone, Copy, Debug)]
pub struct Manner<'a> {
    /// Which are kept, and for how long.
    pub pool: &'a PoolConfig,
    /// By which they are secure; `None` is in the clear.
    pub tls: Option<&'a BackendTls>,
    /// What is spoken.
    pub protocol: Protocol,
    /// Whether it has to be HTTP/1.1, because the exchange may switch to another protocol and then have it for itself.
    pub alone: bool,
}

impl Manner<'_> {
    /// Whether exchanges may share a connection.
    fn multiplexes(&self) -> bool {
        let by_protocol = match self.protocol {
            Protocol::Http1 => false,
            Protocol::Http2 => true,
            Protocol::Auto => self.tls.is_some(),
        };
        by_protocol && !self.alone
    }
}

/// What an attempt is made on.
enum AttemptConnection {
    /// A connection of its own.
    Http1(Rc<Link>),
    /// A part of one.
    Http2(Rc<BackendStream>),
}

/// A connection to a backend, taken out for one attempt.
pub struct Connection {
    line: AttemptConnection,
    resumed: Option<bool>,
    /// Whether it has served a request before: then it may turn out to be closed already.
    pub reused: bool,
    transport: Rc<Transport>,
    slot: BackendId,
    kept: KeptIdle,
    released: bool,
}

impl Transport {
    /// No connections yet, and so much room for them.
    pub fn new(clock: Rc<Clock>, room: Rc<DescriptorRoom>) -> Rc<Self> {
        Rc::new(Self {
            pools: RefCell::default(),
            sessions: RefCell::default(),
            space: Space::within(&room),
            room,
            clock,
            short: RefCell::default(),
        })
    }

    /// An idle connection to `backend` that was made in that manner, the one used last; or a stream of one that is shared. It takes one
    /// of its client's `seats`.
    pub fn checkout(
        self: &Rc<Self>,
        backend: &BackendState,
        manner: Manner<'_>,
        seats: &Rc<DescriptorSeats>,
    ) -> Option<Connection> {
        let identity = BackendTls::identity(manner.tls);
        if manner.multiplexes() {
            if let Some(stream) = self.sessions.borrow_mut().take(backend.id, identity) {
                return Some(Connection::multiplexed(stream, true, self, backend, manner.pool));
            }
            if manner.protocol == Protocol::Http2 {
                return None;
            }
        }
        // Where there is none for it, the connection is left for an exchange that has one.
        let seat = seats.take()?;
        let link = self.pools.borrow_mut().take(backend.id, identity)?;
        link.seat(Some(seat));
        Some(Connection::new(link, true, self, backend, manner.pool))
    }

    /// Idle connections held now.
    pub fn idle(&self) -> usize {
        self.pools.borrow().len()
    }

    /// Keeps a connection for its next request, if it is fit for one.
    fn keep(&self, slot: BackendId, kept: KeptIdle, link: Rc<Link>) {
        // One that a request at another worker waits for is worth more closed.
        let now_ms = self.clock.now_ms();
        if link.rest(now_ms) && !link.connected(Connected::is_wanted) {
            link.seat(None);
            self.pools.borrow_mut().put(slot, kept, pool::Idle { link, since_ms: now_ms });
        }
    }

    /// Closes one of what is kept for later. Whether there was anything.
    pub fn close_one(&self) -> bool {
        self.space.close_pipes() || self.pools.borrow_mut().shed() || self.sessions.borrow_mut().shed()
    }

    /// Closes what is kept for later, until the worker's share of descriptors has room or nothing is left.
    #[cold]
    pub fn make_room(&self) {
        while self.room.is_full() && self.close_one() {}
    }

    /// Calls `ask` when a connection is to be made and there may be no more: other workers may have idle ones.
    pub fn when_short(&self, ask: Short) {
        *self.short.borrow_mut() = Some(ask);
    }

    /// Closes an idle connection to a backend, if a request waits for it.
    pub fn spare(&self, backend: BackendId) {
        if !self.pools.borrow_mut().spare(backend) {
            self.sessions.borrow_mut().spare(backend);
        }
    }

    /// The right to another connection, as soon as there may be one: an idle one is closed for it, here or elsewhere.
    #[cold]
    async fn ask_back(&self, backend: &Arc<BackendState>) -> Connected {
        let ask = || {
            let here = self.pools.borrow_mut().spare(backend.id) || self.sessions.borrow_mut().spare(backend.id);
            if let (Some(short), false) = (&*self.short.borrow(), here) {
                short(backend.id);
            }
        };
        Connected::wait(backend, ask).await
    }

    /// Closes what was idle for too long, and what the other side has closed.
    pub fn sweep(&self) {
        self.pools.borrow_mut().sweep(self.clock.now_ms());
        self.sessions.borrow_mut().sweep(self.clock.now_ms());
    }

    /// Closes the idle connections to backends that `keep` does not know any more, and those that were made with other TLS
    /// than it says.
    pub fn retain(&self, keep: impl Fn(BackendId) -> Option<u64>) {
        self.pools.borrow_mut().retain(&keep);
        self.sessions.borrow_mut().retain(keep);
    }

    /// Closes the idle connections to a backend that is gone.
    pub fn let_go(&self, id: BackendId) {
        self.pools.borrow_mut().let_go(id);
        self.sessions.borrow_mut().let_go(id);
    }
}

impl Connection {
    fn new(link: Rc<Link>, reused: bool, transport: &Rc<Transport>, backend: &BackendState, pool: &PoolConfig) -> Self {
        let resumed = if reused { None } else { link.resumed() };
        let transport = Rc::clone(transport);
        Self {
            line: AttemptConnection::Http1(link),
            resumed,
            reused,
            transport,
            slot: backend.id,
            kept: KeptIdle::of(pool),
            released: false,
        }
    }

    fn multiplexed(
        stream: Rc<BackendStream>,
        reused: bool,
        transport: &Rc<Transport>,
        backend: &BackendState,
        pool: &PoolConfig,
    ) -> Self {
        let transport = Rc::clone(transport);
        Self {
            line: AttemptConnection::Http2(stream),
            resumed: None,
            reused,
            transport,
            slot: backend.id,
            kept: KeptIdle::of(pool),
            released: false,
        }
    }

    /// Takes a request. It is sent by [`Connection::poll_response`]. With `passes_through`, pass-through headers of the response are
    /// left as lines.
    pub fn begin(&self, head: &RequestHead, body: &RequestBody, passes_through: bool) {
        match &self.line {
            AttemptConnection::Http1(link) => link.begin(head, body, passes_through),
            AttemptConnection::Http2(stream) => stream.begin(head, body),
        }
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
    ) -> Poll<Result<StatusCode, NoResponse>> {
        match &self.line {
            AttemptConnection::Http1(link) => link.poll_response(cx, body, informed),
            AttemptConnection::Http2(stream) => stream.poll_response(cx, body, informed),
        }
    }

    /// Puts the head of the response whose status is known into `parts`, but for pass-through headers, which are given back.
    ///
    /// # Errors
    /// When a field is malformed.
    pub fn response(&self, parts: &mut response::Parts) -> io::Result<PassThrough> {
        match &self.line {
            AttemptConnection::Http1(link) => link.response(parts),
            AttemptConnection::Http2(stream) => stream.response(parts),
        }
    }

    /// Whether the response's body is of known length, of `limit` bytes at most, and not all there yet.
    pub fn gathers(&self, limit: usize) -> bool {
        match &self.line {
            AttemptConnection::Http1(link) => link.gathers(limit),
            AttemptConnection::Http2(stream) => stream.gathers(limit),
        }
    }

    /// Waits until all of such a body is there.
    ///
    /// # Errors
    /// When the connection breaks before.
    pub fn poll_gather(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.line {
            AttemptConnection::Http1(link) => link.poll_gather(cx),
            AttemptConnection::Http2(stream) => stream.poll_gather(cx),
        }
    }

    /// What was noted of the fields of the response whose status is known.
    pub fn noted(&self) -> Noted {
        match &self.line {
            AttemptConnection::Http1(link) => link.noted(),
            AttemptConnection::Http2(stream) => stream.noted(),
        }
    }

    /// The body of the response, where all of it has come with its head.
    pub fn whole(&self) -> Option<Bytes> {
        match &self.line {
            AttemptConnection::Http1(link) => link.whole(),
            AttemptConnection::Http2(stream) => stream.whole(),
        }
    }

    /// A field of the response whose status is known, before [`Connection::response`] takes the head.
    pub fn field(&self, name: &str) -> Option<Bytes> {
        match &self.line {
            AttemptConnection::Http1(link) => link.field(name),
            AttemptConnection::Http2(stream) => stream.field(name),
        }
    }

    /// The response whose status is known is not wanted. Where all of it is there, the connection may take its next request;
    /// else it is closed.
    pub fn discard(&mut self) {
        if self.whole().is_some() {
            self.give_back();
        }
    }

    /// What is left of a request's body whose response has begun is sent on beside it, as long as the backend takes a piece
    /// of it within `idle`.
    pub fn upload(&self, body: RequestBody, idle: Duration) {
        let link = match &self.line {
            AttemptConnection::Http1(link) => Rc::clone(link),
            AttemptConnection::Http2(stream) if stream.uploading() => {
                let stream = Rc::clone(stream);
                tokio::task::spawn_local(async move { stream.upload(body, idle).await });
                return;
            }
            AttemptConnection::Http2(_) => return,
        };
        if !link.uploading() {
            return;
        }
        let (transport, slot, kept) = (Rc::clone(&self.transport), self.slot, self.kept);
        tokio::task::spawn_local(async move {
            link.upload(body, idle).await;
            // The exchange has been over for longer, and left the connection to this task.
            if Rc::strong_count(&link) == 1 {
                transport.keep(slot, kept, link);
            }
        });
    }

    /// The backend has answered without the request's body, which is not sent: its client was never asked for it. The connection, which
    /// is in the middle of a request, takes no other.
    pub fn forgo(&self) {
        match &self.line {
            AttemptConnection::Http1(link) => link.forgo(),
            AttemptConnection::Http2(stream) => stream.forgo(),
        }
    }

    /// Whether the backend has said that it ends the connection behind its response.
    pub fn closes(&self) -> bool {
        match &self.line {
            AttemptConnection::Http1(link) => link.closes(),
            AttemptConnection::Http2(_) => false,
        }
    }

    /// Whether any byte of a response has come since the request was sent.
    pub fn answered(&self) -> bool {
        match &self.line {
            AttemptConnection::Http1(link) => link.answered(),
            AttemptConnection::Http2(stream) => stream.answered(),
        }
    }

    /// Whether its TLS took up an earlier session, where the handshake was made for this attempt.
    pub fn resumed(&self) -> Option<bool> {
        self.resumed
    }

    /// Whether an attempt that has failed in this way says nothing about the backend: the connection was there already, and had
    /// been closed or given up just before.
    pub fn was_stale(&self, failed: &NoResponse) -> bool {
        let stale = match &self.line {
            AttemptConnection::Http1(_) => self.reused,
            // Before a backend has said how many streams it takes, it may refuse some on a new connection too.
            // One that breaks under the streams of others is the backend's failure, and theirs.
            AttemptConnection::Http2(stream) => {
                let closed = self.reused && stream.was_alone() && failed.error.kind() != io::ErrorKind::InvalidData;
                failed.unsent || closed
            }
        };
        stale && !self.answered()
    }

    /// Where the rest of the response's body comes from.
    pub fn source(&self) -> Rc<dyn BodySource> {
        match &self.line {
            AttemptConnection::Http1(link) => Rc::clone(link) as Rc<dyn BodySource>,
            AttemptConnection::Http2(stream) => Rc::clone(stream) as Rc<dyn BodySource>,
        }
    }

    /// The connection itself, where it can become a tunnel.
    pub fn link(&self) -> Option<&Rc<Link>> {
        match &self.line {
            AttemptConnection::Http1(link) => Some(link),
            AttemptConnection::Http2(_) => None,
        }
    }

    /// Whether some of the request's body is still to be sent.
    pub fn uploads(&self) -> bool {
        match &self.line {
            AttemptConnection::Http1(link) => link.uploading(),
            AttemptConnection::Http2(stream) => stream.uploading(),
        }
    }

    /// The response has been read: the connection may take its next request, once all of this one has been sent.
    pub fn release(mut self) {
        self.give_back();
    }

    fn give_back(&mut self) {
        self.released = true;
        if let AttemptConnection::Http1(link) = &self.line
            && !link.uploading()
        {
            self.transport.keep(self.slot, self.kept, Rc::clone(link));
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.released {
            match &self.line {
                AttemptConnection::Http1(link) => link.abandon(),
                AttemptConnection::Http2(stream) => stream.abandon(),
            }
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
