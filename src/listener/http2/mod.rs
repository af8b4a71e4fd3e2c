//! A client's connection on which HTTP/2 is spoken: many streams, each with an exchange of its own.
//!
//! The crate `h2` reads and writes frames; what is a request, how long anything may take, and what is too much is decided here.
//! The connection's task reads, hands each new stream to one of the worker's tasks for streams, and writes what all of them have
//! queued with one system call. Tasks for streams, rather than one that polls them all, because each is then woken for what
//! concerns it and no other stream is looked at; the runtime queues them for the cost of a push.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::{self, Connection};

use crate::config::{Http2Config, ListenerConfig};
use crate::exchange::Client;
use crate::exchange::deadline::{NEVER, Phase, Watch};
use crate::proxy::Proxy;
use crate::telemetry::metrics::{FloodKind, ListenerMetrics};

use super::http1::Wire;
use super::refused_log::{self, RefusedRequest, Who};
use flood::{FloodGuard, FloodLimits};
use io::{Flow, Io};

mod flood;
mod io;
mod request;
mod stream;
mod tasks;

pub use tasks::StreamTasks;

/// Opened to the fuzz targets in `fuzz/`: makes a request's head one that HTTP/1.1 can say. Whether it can, and how long its body
/// is said to be.
#[cfg(feature = "fuzzing")]
pub fn downgrade(parts: &mut http::request::Parts, whole: bool, max_headers: usize) -> Result<Option<u64>, ()> {
    match request::check(parts, whole, max_headers) {
        Ok(request::Ask::Response { length, .. }) => Ok(length),
        Ok(request::Ask::WebSocket) => Ok(None),
        Err(_) => Err(()),
    }
}

/// What a client begins with (RFC 9113 §3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long the end of a connection may take once nothing is left to be done on it.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes of a response that may wait in memory for room in the socket, for each stream.
const SEND_BYTES: usize = 64 * 1024;

/// What the streams of a connection share.
#[derive(Debug)]
struct ConnectionState {
    client: Rc<Client>,
    proxy: Rc<Proxy>,
    /// The worker's.
    tasks: Rc<StreamTasks>,
    /// The connection's.
    watch: Rc<Watch>,
    /// Streams that are being served.
    open: Cell<usize>,
    /// Watches of streams that have ended: the next ones take them, which saves making and sweeping one for each.
    watches: RefCell<Vec<Rc<Watch>>>,
}

/// Counts a stream as open until it is dropped.
#[derive(Debug)]
struct OpenStream {
    shared: Rc<ConnectionState>,
    /// The stream's.
    watch: Rc<Watch>,
}

impl ConnectionState {
    fn metrics(&self) -> &ListenerMetrics {
        self.client.metrics.of(self.proxy.worker)
    }

    /// Counts a stream.
    fn open(self: &Rc<Self>) -> OpenStream {
        self.metrics().http2_streams.add(1);
        self.open.set(self.open.get() + 1);
        OpenStream { shared: Rc::clone(self), watch: self.take_watch() }
    }

    /// A watch without a deadline.
    fn take_watch(&self) -> Rc<Watch> {
        // One that the end of an upload still holds on to is let go.
        while let Some(watch) = self.watches.borrow_mut().pop() {
            if Rc::strong_count(&watch) == 1 && !watch.is_cut() {
                watch.uncap();
                watch.enter(Phase::Idle, NEVER);
                return watch;
            }
        }
        Watch::of_stream(&self.watch)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let Self { shared, watch } = self;
        shared.watches.borrow_mut().push(Rc::clone(watch));
        shared.metrics().http2_streams_ended.add(1);
        shared.open.set(shared.open.get() - 1);
        if shared.open.get() == 0 {
            shared.watch.wake();
        }
    }
}

/// Serves HTTP/2 to the end of the connection, and of all its streams. Whether the client may still be sending, so that closing
/// the socket at once would take our last word from it.
pub(super) async fn serve(wire: &Rc<Wire>, client: &Rc<Client>, proxy: &Rc<Proxy>, tasks: &Rc<StreamTasks>) -> bool {
    let config = &client.listener;
    // Where it was switched off no connection gets here.
    let http2 = config.http2.unwrap_or_default();
    let watch = Rc::clone(&wire.watch);
    let guard = FloodGuard::new(limits(config, &http2), watch.clock().now_ms());
    let flow = Flow::new(guard, Rc::clone(&watch), config.idle_timeout);
    let shared = Rc::new(ConnectionState {
        client: Rc::clone(client),
        proxy: Rc::clone(proxy),
        tasks: Rc::clone(tasks),
        watch,
        open: Cell::new(0),
        watches: RefCell::default(),
    });
    shared.metrics().http2_opened.add(1);
    shared.watch.enter(Phase::Head, config.header_timeout);
    let io = Io::new(wire.io(), wire.take_read(), Rc::clone(&flow));
    let mut handshake = std::pin::pin!(builder(config, &http2).handshake::<_, Bytes>(io));
    let shaken = poll_fn(|cx| {
        shared.watch.register(cx);
        match handshake.as_mut().poll(cx) {
            Poll::Ready(Ok(connection)) => Poll::Ready(Ok(connection)),
            // A client that has gone before it has asked for anything is not refused.
            Poll::Ready(Err(error)) => Poll::Ready(Err((!error.is_io()).then_some(refused_log::PREFACE))),
            Poll::Pending if shared.watch.is_cut() => Poll::Ready(Err(None)),
            // Nor is one that has said nothing at all.
            Poll::Pending if shared.watch.expired() => {
                Poll::Ready(Err(flow.guard.borrow().has_begun().then_some(refused_log::LATE)))
            }
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    let mut lingers = false;
    match shaken {
        Ok(connection) => {
            let (shared, idle) = (Rc::clone(&shared), config.idle_timeout);
            let mut serving = Serving { connection, shared, flow, drained: false, head: None, idle, calmed: false };
            poll_fn(|cx| serving.poll(cx)).await;
            lingers = serving.calmed;
        }
        Err(refusal) => {
            shared.metrics().rejected.add(1);
            if let Some(refusal) = refusal {
                refused_log::log(proxy, Who::Client(client), refusal, false, RefusedRequest::http2);
            }
        }
    }
    // With the connection all streams have broken, and are about to end.
    let ended = poll_fn(|cx| {
        shared.watch.register(cx);
        if shared.open.get() == 0 { Poll::Ready(()) } else { Poll::Pending }
    });
    let _ = tokio::time::timeout(LINGER, ended).await;
    shared.metrics().http2_closed.add(1);
    lingers
}

/// New streams that are begun with before others get their turn: each is a request, and a client may begin with a hundred at once.
const STREAMS_A_TURN: usize = 8;

/// Streams that have to be reset for faults of the client, or refused, over the life of a connection.
const LOCAL_RESETS: usize = 4096;

fn limits(config: &ListenerConfig, http2: &Http2Config) -> FloodLimits {
    // As it is sent a block is hardly longer than what it says; `h2` looks at that.
    let block_bytes = config.max_header_bytes.saturating_mul(2);
    FloodLimits { resets: http2.resets_per_second, control: http2.control_frames_per_second, block_bytes }
}

fn builder(config: &ListenerConfig, http2: &Http2Config) -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(http2.max_concurrent_streams)
        .initial_window_size(http2.stream_window)
        .initial_connection_window_size(http2.connection_window)
        .max_header_list_size(u32::try_from(config.max_header_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BYTES)
        // As many as may be open can be reset before they were looked at; the guard counts those of a second.
        .max_pending_accept_reset_streams(http2.max_concurrent_streams as usize)
        // `h2` counts over the whole life of a connection, and what waits for room in the socket too: each holds memory. The guard
        // counts over a second, and what is sent.
        .max_local_error_reset_streams(Some(LOCAL_RESETS))
        .enable_connect_protocol();
    builder
}

/// A connection that is being served.
struct Serving {
    connection: Connection<Io, Bytes>,
    shared: Rc<ConnectionState>,
    flow: Rc<Flow>,
    /// Whether the client was told to ask for nothing more.
    drained: bool,
    /// The header block that is awaited.
    head: Option<u64>,
    /// How long it may be idle, as last written down.
    idle: Duration,
    /// Whether it ends because the client asks for too much.
    calmed: bool,
}

impl Serving {
    /// Ready at its end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.shared.watch.register(cx);
        loop {
            if self.poll_streams(cx).is_ready() {
                return Poll::Ready(());
            }
            if self.shared.watch.is_cut() {
                // What goes now goes; nothing waits for the rest.
                self.connection.abrupt_shutdown(Reason::NO_ERROR);
                let _ = self.connection.poll_closed(cx);
                return Poll::Ready(());
            }
            // Each happens once, and then the connection is looked at again.
            if !self.is_calmed() && !self.drains() {
                break;
            }
        }
        self.wait();
        // Waiting has set the deadline anew, unless it is the one that has passed.
        if !self.shared.watch.expired() {
            return Poll::Pending;
        }
        if !self.calmed && self.head.is_some() {
            self.flow.flood.set(Some(FloodKind::SlowHeaders));
        } else if self.calmed || self.drained {
            return Poll::Ready(());
        } else {
            // A request that crosses this on its way is still served.
            self.flow.idle.set(LINGER);
            self.shared.watch.enter(Phase::Idle, LINGER);
            self.drained = true;
            self.connection.graceful_shutdown();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes new streams, and writes what there is to be written.
    fn poll_streams(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..STREAMS_A_TURN {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    let open = self.shared.open();
                    self.shared.tasks.serve(stream::Begun { open, request, respond });
                }
                Poll::Ready(Some(Err(error))) => {
                    // What `h2` counts by itself.
                    let calmed = error.is_go_away() && error.is_library();
                    if calmed && error.reason() == Some(Reason::ENHANCE_YOUR_CALM) {
                        self.count(FloodKind::Other);
                    }
                    self.calmed |= calmed;
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn count(&self, kind: FloodKind) {
        self.shared.metrics().http2_floods[kind as usize].add(1);
    }

    /// Ends a connection on which there was too much of something. Whether that is so just now.
    fn is_calmed(&mut self) -> bool {
        let Some(kind) = self.flow.flood.get() else { return false };
        if self.calmed {
            return false;
        }
        self.count(kind);
        self.calmed = true;
        self.flow.idle.set(LINGER);
        self.shared.watch.enter(Phase::Idle, LINGER);
        self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        true
    }

    /// Tells the client to ask for nothing more. Whether it was told just now.
    fn drains(&mut self) -> bool {
        if self.drained || !self.shared.watch.draining() {
            return false;
        }
        self.drained = true;
        self.flow.idle.set(LINGER);
        self.connection.graceful_shutdown();
        true
    }

    /// Writes down what the connection itself waits for. Streams have deadlines of their own.
    fn wait(&mut self) {
        let watch = &self.shared.watch;
        if self.calmed {
            return;
        }
        let head = self.flow.guard.borrow().mid_head();
        if let Some(head) = head {
            if self.head != Some(head) {
                watch.enter(Phase::Head, self.shared.client.listener.header_timeout);
            }
        } else if self.shared.open.get() > 0 {
            if watch.phase() != Phase::Body {
                watch.enter(Phase::Body, NEVER);
            }
        } else if watch.phase() != Phase::Idle || self.idle != self.flow.idle.get() {
            self.idle = self.flow.idle.get();
            watch.enter(Phase::Idle, self.idle);
        }
        self.head = head;
    }
}
