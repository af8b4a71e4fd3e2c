//! Accepting connections, and placing each where there is room.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::mpsc::error::SendError;

use crate::listener::refused_log::{FULL, OVERLOADED};
use crate::listener::{Listener, OpenConnection};
use crate::telemetry::log_throttle::LogThrottle;

use super::WorkerCommand;
use super::event_loop::Worker;

/// How often to look whether there is room for more clients, while there is none. What ends a connection may be another worker's.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// How long to wait when the process has no file descriptor left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// A listening socket that the event loop watches.
///
/// tokio's own listener would register each accepted socket with this worker's event loop, also those that another worker is
/// to serve. To wait until a socket is readable takes no more than its descriptor, and a `TcpStream` is the type that waits
/// for any.
#[derive(Clone, Debug)]
pub(super) struct Acceptor(Rc<TcpStream>);

impl Acceptor {
    /// Registers a listening socket with the worker's event loop.
    pub(super) fn new(socket: TcpListener) -> io::Result<Self> {
        TcpStream::from_std(std::net::TcpStream::from(OwnedFd::from(socket))).map(|socket| Self(Rc::new(socket)))
    }

    /// The same socket once more.
    pub(super) fn lend(&self) -> io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }

    /// Where it is bound.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        SockRef::from(&*self.0).local_addr().ok()?.as_socket()
    }

    fn accept(&self) -> io::Result<(std::net::TcpStream, SocketAddr)> {
        let (socket, peer) = SockRef::from(&*self.0).accept()?;
        // A socket of the Internet family has an address of it.
        let peer = peer.as_socket().ok_or(io::ErrorKind::ConnectionAborted)?;
        Ok((socket.into(), peer))
    }
}

/// Connections that are accepted before others get their turn.
const ACCEPTED_A_TURN: u32 = 4;

/// Accepts until this future is dropped.
pub(super) async fn accept(worker: Rc<Worker>, listener: Arc<Listener>, socket: Acceptor) {
    let (exhausted, full) = (LogThrottle::new(1), LogThrottle::new(1));
    loop {
        if socket.0.readable().await.is_err() {
            return;
        }
        let descriptors = &worker.proxy.process.descriptors;
        worker.proxy.transport.room.tell();
        if worker.peers.place(worker.index, descriptors).is_none() {
            if let Some(times) = full.happened() {
                let (connections, limit) = (descriptors.plan.connections, descriptors.plan.limit);
                tracing::warn!(listener = %listener.name(), connections, limit, times, "no file descriptors for more clients; they wait until others end");
            }
            let waiting = descriptors.wait(worker.index);
            while worker.peers.place(worker.index, descriptors).is_none() {
                tokio::time::sleep(FULL_PAUSE).await;
                worker.proxy.transport.room.tell();
            }
            drop(waiting);
        }
        // As many as are there: under a burst, one wake-up then serves for all. But those who are connected get their turn in between.
        for turn in (0..ACCEPTED_A_TURN).rev().cycle() {
            if turn == 0 {
                tokio::task::yield_now().await;
            }
            match socket.0.try_io(Interest::READABLE, || take(&worker, &listener, &socket)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // It says so itself.
                Err(error) if error.kind() == io::ErrorKind::QuotaExceeded => break,
                Err(error) if is_the_peers(&error) => {}
                Err(error) => {
                    // Clients can have it change from one moment to the next.
                    if let Some(times) = exhausted.happened() {
                        tracing::error!(%error, listener = %listener.name(), times, "could not accept; trying again");
                    }
                    worker.proxy.transport.close_one();
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    }
}

/// Accepts one connection and places it.
///
/// # Errors
/// The system's; `QuotaExceeded` where no worker has descriptors for another.
fn take(worker: &Rc<Worker>, listener: &Arc<Listener>, socket: &Acceptor) -> io::Result<()> {
    worker.proxy.transport.room.tell();
    let place = worker.peers.place(worker.index, &worker.proxy.process.descriptors);
    let place = place.ok_or(io::ErrorKind::QuotaExceeded)?;
    let (tcp, peer) = socket.accept()?;
    // TCP_NODELAY comes with the listening socket. A peer that is gone already is noticed when it is served.
    let _ = tcp.set_nonblocking(true);
    // Over a limit of its address it is closed without a word: what is said costs more than to say nothing.
    let Ok(network) = listener.admit(peer.ip(), worker.index) else { return Ok(()) };
    // Each connection takes memory, and a descriptor, of which the admin address wants some too.
    if let Some(cause) = worker.proxy.process.refuses_everywhere() {
        let counted = OpenConnection::count(listener, &worker.peers.open, (worker.index, worker.index), network);
        worker.proxy.process.refused.of(worker.index).of(cause).add(1);
        worker.turn_away((tcp, peer), listener, counted.unwrap_or_else(|refused| refused), OVERLOADED);
        return Ok(());
    }
    match OpenConnection::count(listener, &worker.peers.open, (worker.index, place), network) {
        Ok(open) if place == worker.index => worker.serve(tcp, peer, Arc::clone(listener), open),
        Ok(open) => {
            let handed = worker.peers.inboxes[place].send(WorkerCommand::Serve(tcp, peer, Arc::clone(listener), open));
            // While the process stops, the other may have ended already.
            if let Err(SendError(WorkerCommand::Serve(tcp, peer, listener, open))) = handed {
                worker.serve(tcp, peer, listener, open);
            }
        }
        Err(refused) => worker.turn_away((tcp, peer), listener, refused, FULL),
    }
    Ok(())
}

/// Accepts what waits in the queue and returns.
pub(super) fn accept_the_rest(worker: &Rc<Worker>, listener: &Arc<Listener>, socket: &Acceptor) {
    loop {
        match take(worker, listener, socket) {
            Ok(()) => {}
            Err(error) if is_the_peers(&error) => {}
            Err(_) => return,
        }
    }
}

/// Whether a connection was gone before it was accepted: no fault of ours.
fn is_the_peers(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
