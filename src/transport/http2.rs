//! Connections to backends that exchanges share: HTTP/2.
//!
//! A worker's exchanges are streams of as few connections as do. One more is made when all have as many streams as they may.
//! Each is driven by a task of its own, and ends when nothing holds it and its last stream is over.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::Ping;
use h2::client::{Builder, SendRequest};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::backend::{BackendId, BackendState, Connected};
use crate::config::Protocol;
use crate::socket::Socket;

use super::connect::{Dialling, NoConnection, reach};
use super::http2_empty_frames::Sifted;
use super::http2_stream::BackendStream;
use super::tls::{self, BackendTls};
use super::wear::Wear;
use super::{Connection, Link, Manner, Transport};

/// Streams of a connection at most, whatever the backend allows: behind one that is lost come this many retries.
const STREAMS_MAX: usize = 100;

/// What a backend may send of one body before it is taken. All streams of a connection together fit into its window, so that
/// clients that do not read delay no others.
const STREAM_WINDOW_BYTES: u32 = 128 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * (STREAMS_MAX as u32 + 28);

/// Header fields of a response, as large as HTTP/1.1 may have them.
const HEAD_BYTES: u32 = 64 * 1024;

/// How long a backend with streams may be silent before it is asked for a sign of life, and how long it has for that.
const PING_AFTER: Duration = Duration::from_secs(15);

/// After so many times as long it is asked again, if it has said nothing else. gRPC servers end the connection of a client that pings more
/// often than every five minutes without having been sent anything (gRPC's proposal A8).
const PING_AGAIN: u32 = 21;

/// A host that is gone is found out by the kernel: when it acknowledges nothing, for so long.
const GONE_AFTER: Duration = Duration::from_secs(30);

/// A connection.
#[derive(Debug)]
pub(super) struct Session {
    sender: SendRequest<Bytes>,
    identity: u64,
    streams: Cell<usize>,
    /// Takes no new stream any more.
    spent: Cell<bool>,
    /// Whether the backend has sent a head or data since the last look.
    heard: Cell<bool>,
    idle_since_ms: Cell<u64>,
    idle_timeout_ms: u64,
    wear: Cell<Wear>,
    keeps: bool,
    secure: bool,
    connected: Weak<Connected>,
    transport: Weak<Transport>,
    id: BackendId,
}

impl Session {
    pub(super) fn sender(&self) -> SendRequest<Bytes> {
        self.sender.clone()
    }

    pub(super) fn secure(&self) -> bool {
        self.secure
    }

    pub(super) fn is_unused(&self) -> bool {
        self.streams.get() == 0
    }

    pub(super) fn opened(&self) {
        self.streams.set(self.streams.get() + 1);
        let mut wear = self.wear.get();
        let is_last = wear.take();
        self.wear.set(wear);
        if is_last {
            self.spend();
        }
    }

    /// The backend has sent something.
    pub(super) fn heard(&self) {
        self.heard.set(true);
    }

    /// No new stream is begun on it.
    pub(super) fn spend(&self) {
        self.spent.set(true);
    }

    pub(super) fn closed(&self) {
        self.streams.set(self.streams.get().saturating_sub(1));
        let Some(transport) = self.transport.upgrade() else { return };
        self.idle_since_ms.set(transport.clock.now_ms());
        let wanted = || self.connected.upgrade().is_some_and(|connected| connected.is_wanted());
        if self.streams.get() == 0 && (!self.keeps || wanted()) {
            self.spend();
        }
        // If the connections are being looked through at this moment, the next sweep does it.
        if self.spent.get()
            && self.streams.get() == 0
            && let Ok(mut sessions) = transport.sessions.try_borrow_mut()
        {
            sessions.forget_spent(self.id);
        }
    }

    fn is_open(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        !self.spent.get() && !matches!(self.sender.clone().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    fn has_room(&self) -> bool {
        self.streams.get() < self.sender.current_max_send_streams().min(STREAMS_MAX) && self.is_open()
    }
}

/// A worker's connections by HTTP/2.
#[derive(Debug, Default)]
pub(super) struct Sessions(HashMap<BackendId, SessionSlot>);

#[derive(Debug, Default)]
struct SessionSlot {
    sessions: Vec<Rc<Session>>,
    turn: Rc<Turn>,
}

/// The exchange that makes a connection. The others wait: it may have room for all of them.
#[derive(Debug, Default)]
struct Turn {
    taken: Cell<bool>,
    /// The backend speaks HTTP/1.1, so that there is nothing to wait for.
    needless: Cell<bool>,
    over: Notify,
}

struct Mine(Rc<Turn>);

impl Drop for Mine {
    fn drop(&mut self) {
        self.0.taken.set(false);
        self.0.over.notify_waiters();
    }
}

impl Sessions {
    /// A stream of a connection that has room and was made with that TLS.
    pub(super) fn take(&mut self, id: BackendId, identity: u64) -> Option<Rc<BackendStream>> {
        let slot = self.0.get(&id)?;
        let fit = slot.sessions.iter().find(|session| session.identity == identity && session.has_room())?;
        Some(BackendStream::new(Rc::clone(fit)))
    }

    /// The same of one that has none: the stream begins when another is over.
    fn squeeze(&mut self, id: BackendId, identity: u64) -> Option<Rc<BackendStream>> {
        let open = self.0.get(&id)?.sessions.iter().filter(|it| it.identity == identity && it.is_open());
        Some(BackendStream::new(Rc::clone(open.min_by_key(|session| session.streams.get())?)))
    }

    fn turn(&mut self, id: BackendId) -> Rc<Turn> {
        Rc::clone(&self.0.entry(id).or_default().turn)
    }

    fn forget_spent(&mut self, id: BackendId) {
        if let Some(slot) = self.0.get_mut(&id) {
            slot.sessions.retain(|session| !session.spent.get());
        }
    }

    /// Closes what is idle for too long, begins no stream any more on what is too old, and forgets what is closed.
    pub(super) fn sweep(&mut self, now_ms: u64) {
        for slot in self.0.values_mut() {
            slot.sessions.retain(|session| {
                let old = now_ms.saturating_sub(session.idle_since_ms.get()) > session.idle_timeout_ms;
                let too_old = session.wear.get().is_old(now_ms);
                session.is_open() && !too_old && !(session.streams.get() == 0 && old)
            });
        }
        self.0.retain(|_, slot| !slot.sessions.is_empty() || Rc::strong_count(&slot.turn) > 1);
    }

    /// Closes one that is idle. Says whether there was one.
    pub(super) fn shed(&mut self) -> bool {
        for slot in self.0.values_mut() {
            if let Some(place) = slot.sessions.iter().position(|session| session.is_unused()) {
                slot.sessions.remove(place).spend();
                return true;
            }
        }
        false
    }

    /// Closes an idle one, if a request waits for it. Says whether there was one.
    pub(super) fn spare(&mut self, id: BackendId) -> bool {
        let Some(slot) = self.0.get_mut(&id) else { return false };
        let missed = |session: &Rc<Session>| {
            session.streams.get() == 0 && session.connected.upgrade().is_some_and(|connected| connected.is_missed())
        };
        let found = slot.sessions.iter().position(missed);
        found.map(|place| slot.sessions.remove(place)).is_some()
    }

    /// Begins no stream any more on the connections to that backend: their streams go on to their end.
    pub(super) fn let_go(&mut self, id: BackendId) {
        if let Some(slot) = self.0.get_mut(&id) {
            slot.sessions.clear();
        }
    }

    /// Begins no stream any more on connections that are not to be kept: their streams go on to their end.
    pub(super) fn retain(&mut self, keep: impl Fn(BackendId) -> Option<u64>) {
        for (id, slot) in &mut self.0 {
            slot.sessions.retain(|session| keep(*id) == Some(session.identity));
        }
    }
}

/// Makes a connection, or takes a stream of one that another exchange makes at this moment.
pub(super) async fn connect(
    transport: &Rc<Transport>,
    backend: &Arc<BackendState>,
    manner: Manner<'_>,
    dialling: &Dialling<'_>,
) -> Result<Connection, NoConnection> {
    let identity = BackendTls::identity(manner.tls);
    let turn = transport.sessions.borrow_mut().turn(backend.id);
    let mut mine = None;
    while !turn.needless.get() {
        if !turn.taken.replace(true) {
            mine = Some(Mine(Rc::clone(&turn)));
            break;
        }
        turn.over.notified().await;
        if let Some(stream) = transport.sessions.borrow_mut().take(backend.id, identity) {
            return Ok(Connection::multiplexed(stream, false, transport, backend, manner.pool));
        }
    }
    let connected = match Connected::try_new(backend) {
        Some(connected) => connected,
        None => {
            if let Some(stream) = transport.sessions.borrow_mut().squeeze(backend.id, identity) {
                return Ok(Connection::multiplexed(stream, true, transport, backend, manner.pool));
            }
            transport.ask_back(backend).await
        }
    };
    let (socket, held) = reach(transport, backend, manner, dialling).await?;
    let resumed = tls::resumed(&socket);
    if manner.tls.is_some() && socket.alpn() != Some(b"h2") {
        turn.needless.set(manner.protocol == Protocol::Auto);
        if manner.protocol != Protocol::Auto {
            return Err(NoConnection::Tcp(io::Error::other("does not speak HTTP/2")));
        }
        let seat = dialling.seat().await;
        let wear = Wear::new(manner.pool, transport.clock.now_ms(), rand::random);
        let space = Rc::clone(&transport.space);
        let link = Link::new(socket, identity, space, (connected, held), Some(seat), wear);
        return Ok(Connection::new(link, false, transport, backend, manner.pool));
    }
    turn.needless.set(false);
    drop(held);
    let session = begin(transport, backend, manner, socket, connected).await?;
    let stream = BackendStream::new(Rc::clone(&session));
    transport.sessions.borrow_mut().0.entry(backend.id).or_default().sessions.push(session);
    drop(mine);
    let mut connection = Connection::multiplexed(stream, false, transport, backend, manner.pool);
    connection.resumed = resumed;
    Ok(connection)
}

/// So many streams are remembered that were given up: what comes late for one that is forgotten counts against the backend.
const RESET_STREAMS: usize = 4096;

/// And so many of them may be the backend's fault over the life of a connection: each holds memory until it is told.
const LOCAL_RESETS: usize = 16 * 1024;

/// Begins to speak HTTP/2 and has it driven.
async fn begin(
    transport: &Rc<Transport>,
    backend: &BackendState,
    manner: Manner<'_>,
    socket: Socket,
    connected: Connected,
) -> Result<Rc<Session>, NoConnection> {
    let mut builder = Builder::new();
    builder.initial_window_size(STREAM_WINDOW_BYTES);
    builder.initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    builder.max_header_list_size(HEAD_BYTES);
    builder.enable_push(false);
    // Small frames of clients that do not read are bounded by the windows. What h2 does besides against a peer that floods it
    // would end a connection that others share.
    builder.data_frame_budget(256 * STREAM_WINDOW_BYTES as usize * 128);
    builder.max_concurrent_reset_streams(RESET_STREAMS);
    builder.max_local_error_reset_streams(Some(LOCAL_RESETS));
    watch_over(socket.tcp());
    let begun = builder.handshake::<_, Bytes>(Sifted::new(socket)).await;
    let (sender, mut connection) = begun.map_err(|error| NoConnection::Tcp(io::Error::other(error)))?;
    let connected = Rc::new(connected);
    let session = Rc::new(Session {
        sender,
        identity: BackendTls::identity(manner.tls),
        streams: Cell::new(0),
        spent: Cell::new(false),
        heard: Cell::new(false),
        idle_since_ms: Cell::new(transport.clock.now_ms()),
        idle_timeout_ms: manner.pool.idle_timeout.as_millis() as u64,
        wear: Cell::new(Wear::new(manner.pool, transport.clock.now_ms(), rand::random)),
        keeps: manner.pool.max_idle > 0,
        secure: manner.tls.is_some(),
        connected: Rc::downgrade(&connected),
        transport: Rc::downgrade(transport),
        id: backend.id,
    });
    let place = transport.room.session();
    let (watched, id, transport) = (Rc::downgrade(&session), backend.id, Rc::downgrade(transport));
    tokio::task::spawn_local(async move {
        let ping = connection.ping_pong();
        tokio::select! {
            _ = &mut connection => {}
            () = silent(ping, &watched) => {}
        }
        // The socket first, then its count.
        drop(connection);
        drop((connected, place));
        if let Some(session) = watched.upgrade() {
            session.spend();
        }
        if let Some(transport) = transport.upgrade() {
            transport.sessions.borrow_mut().forget_spent(id);
        }
    });
    Ok(session)
}

/// Has the kernel see to it that the host at the other end is there.
fn watch_over(tcp: &TcpStream) {
    let socket = SockRef::from(tcp);
    let keepalive = TcpKeepalive::new().with_time(PING_AFTER).with_interval(GONE_AFTER / 6);
    // Where the system knows no such thing, there are the deadlines of exchanges.
    let _ = socket.set_tcp_keepalive(&keepalive);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(GONE_AFTER));
}

/// When a silent backend is asked for a sign of life.
#[derive(Debug, Default)]
struct Silence {
    /// Looks since it was asked, if nothing but the answer has come since.
    asked: Option<u32>,
}

impl Silence {
    /// Whether it is to be asked now: called each [`PING_AFTER`], with whether there are streams and whether it has sent anything for
    /// them meanwhile.
    fn is_due(&mut self, streams: bool, heard: bool) -> bool {
        self.asked = if heard { None } else { self.asked.map(|looks| looks + 1) };
        let due = streams && !heard && self.asked.is_none_or(|looks| looks >= PING_AGAIN);
        if due {
            self.asked = Some(0);
        }
        due
    }
}

/// Ends when the backend gives no sign of life while it has streams. Without any, a dead connection does no harm until
/// it is used, and the connection is not kept up for its own sake.
async fn silent(ping: Option<h2::PingPong>, session: &Weak<Session>) {
    let Some(ping) = ping else { return std::future::pending().await };
    let ping = RefCell::new(ping);
    let mut silence = Silence::default();
    loop {
        tokio::time::sleep(PING_AFTER).await;
        match session.upgrade() {
            // Nothing needs it any more, and it had this long to end: what cannot be sent is not worth its place at the backend.
            None => return,
            Some(session) if !silence.is_due(session.streams.get() > 0, session.heard.take()) => continue,
            Some(_) => {}
        }
        if ping.borrow_mut().send_ping(Ping::opaque()).is_err() {
            continue;
        }
        let pong = poll_fn(|cx| ping.borrow_mut().poll_pong(cx));
        if tokio::time::timeout(PING_AFTER, pong).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_is_asked_and_not_too_often() {
        let mut silence = Silence::default();
        assert!(!silence.is_due(false, false), "without streams nobody is asked");
        assert!(!silence.is_due(true, true), "nor who has just sent something");
        assert!(silence.is_due(true, false));
        // gRPC's proposal A8: three times too early in a row, and the connection is ended.
        for _ in 1..PING_AGAIN {
            assert!(!silence.is_due(true, false));
        }
        assert!(PING_AFTER * PING_AGAIN > Duration::from_secs(300));
        assert!(silence.is_due(true, false));
        // Streams that end and begin make no difference to what the server counts.
        assert!(!silence.is_due(false, false) && !silence.is_due(true, false));
        assert!(!silence.is_due(true, true));
        assert!(silence.is_due(true, false), "who has sent something is asked as at first");
    }
}
