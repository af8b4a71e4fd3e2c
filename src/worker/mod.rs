//! Threads that serve requests, each with an event loop of its own.
//!
//! A worker accepts its own connections and keeps its own pools. What it shares with the others on the way of a request is
//! atomics and the published snapshot; everything else reaches it as a `Command` through its inbox.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::backend::BackendId;
use crate::listener::{Bound, Listener, Open};
use crate::proxy::{Published, Snapshot};
use crate::telemetry::process::Process;

mod accept;
mod departed;
mod event_loop;

/// What a worker is told.
#[derive(Debug)]
enum Command {
    /// Accept on this socket.
    Listen(Arc<Listener>, TcpListener),
    /// Accept what waits, then no more, but where its socket is on an address of these listeners; cut its connections after so long.
    Unlisten(Arc<Listener>, Duration, Arc<[Arc<Listener>]>),
    /// Serve a connection that another worker accepted.
    Serve(TcpStream, SocketAddr, Arc<Listener>, Open),
    /// Another snapshot was published; let go of what it no longer names, and cut what is still served there after so long.
    Published(Duration),
    /// Another worker wants a connection to this backend and there may be no more: close one that is idle.
    Spare(BackendId),
    /// Accept no more, end when the connections have.
    Stop,
    /// End every connection now.
    Cut,
}

/// Connections open at each worker, and the way to its inbox: what workers know of each other.
#[derive(Clone, Debug)]
struct Peers {
    open: Arc<Vec<AtomicUsize>>,
    inboxes: Arc<Vec<mpsc::UnboundedSender<Command>>>,
}

impl Peers {
    /// Who should serve a connection that worker `index` has accepted: itself, unless it has clearly more than another. With
    /// few connections every one counts; with many, an eighth of difference is not worth waking another thread.
    fn place(&self, index: usize) -> usize {
        let own = self.open[index].load(Ordering::Relaxed);
        let (least, count) = self
            .open
            .iter()
            .map(|open| open.load(Ordering::Relaxed))
            .enumerate()
            .min_by_key(|&(_, count)| count)
            .unwrap_or((index, own));
        if own > count + count / 8 { least } else { index }
    }
}

/// The threads that serve requests.
#[derive(Debug)]
pub struct Workers {
    peers: Peers,
    published: Arc<Published>,
    threads: Mutex<Vec<Thread>>,
}

#[derive(Debug)]
struct Thread {
    handle: JoinHandle<()>,
    /// Answered with the number of connections that were cut.
    ended: oneshot::Receiver<usize>,
}

impl Workers {
    /// Starts `count` threads that serve with `snapshot`, on no listener yet.
    ///
    /// # Errors
    /// When a thread or its event loop cannot be made.
    pub fn start(count: usize, snapshot: Arc<Snapshot>, process: &Arc<Process>) -> io::Result<Self> {
        let count = count.max(1);
        let published = Published::new(snapshot);
        let (senders, inboxes): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::unbounded_channel()).unzip();
        let peers =
            Peers { open: Arc::new((0..count).map(|_| AtomicUsize::new(0)).collect()), inboxes: Arc::new(senders) };
        let mut threads = Vec::with_capacity(count);
        for (index, inbox) in inboxes.into_iter().enumerate() {
            let (tell, ended) = oneshot::channel();
            let (started, has_started) = std::sync::mpsc::channel();
            let (peers, shared) = (peers.clone(), (Arc::clone(&published), Arc::clone(process)));
            let handle = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                event_loop::run(index, &peers, shared, inbox, tell, started);
            })?;
            has_started.recv().map_err(io::Error::other)??;
            threads.push(Thread { handle, ended });
        }
        Ok(Self { peers, published, threads: Mutex::new(threads) })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.peers.open.len()
    }

    /// What requests are served with now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.published.load()
    }

    /// Serves with `snapshot` every request that begins after this has returned. Cannot fail and does not wait.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        let limit = snapshot.config.drain_limit;
        self.published.store(snapshot);
        self.tell(|| Command::Published(limit));
    }

    /// Begins to accept on a bound listener. Cannot fail and does not wait.
    pub fn listen(&self, bound: Bound) {
        for (inbox, socket) in self.peers.inboxes.iter().zip(bound.sockets) {
            // A worker that is gone, because the process stops, needs no listener.
            let _ = inbox.send(Command::Listen(Arc::clone(&bound.listener), socket));
        }
    }

    /// Ends accepting on a listener, once what waits in its queue is accepted. Its connections end as soon as they are
    /// idle, and are cut after `limit`. A socket on an address that one of `others` has too, or a part of it, is that one's from now on:
    /// to close it would lose who connects meanwhile.
    pub fn unlisten(&self, listener: &Arc<Listener>, limit: Duration, others: &[Arc<Listener>]) {
        listener.draining.store(true, Ordering::Relaxed);
        let others: Arc<[_]> = others.into();
        self.tell(|| Command::Unlisten(Arc::clone(listener), limit, Arc::clone(&others)));
    }

    /// Ends accepting everywhere and waits until every connection has ended, at most until `deadline`. Returns how many
    /// were cut.
    pub async fn stop(&self, deadline: Instant) -> usize {
        self.tell(|| Command::Stop);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let mut cut = 0;
        for Thread { handle, mut ended } in threads {
            let told = match tokio::time::timeout_at(deadline.into(), &mut ended).await {
                Ok(told) => told,
                Err(_) => {
                    self.tell(|| Command::Cut);
                    ended.await
                }
            };
            cut += told.unwrap_or(0);
            if handle.join().is_err() {
                tracing::error!("a worker had panicked");
            }
        }
        cut
    }

    /// Client connections open now, by worker.
    pub fn connections(&self) -> Vec<usize> {
        self.peers.open.iter().map(|open| open.load(Ordering::Relaxed)).collect()
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for inbox in self.peers.inboxes.iter() {
            let _ = inbox.send(command());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections as the kernel might spread them: all at one worker.
    fn spread(workers: usize, connections: usize) -> Vec<usize> {
        let peers =
            Peers { open: Arc::new((0..workers).map(|_| AtomicUsize::new(0)).collect()), inboxes: Arc::default() };
        for _ in 0..connections {
            peers.open[peers.place(0)].fetch_add(1, Ordering::Relaxed);
        }
        peers.open.iter().map(|open| open.load(Ordering::Relaxed)).collect()
    }

    #[test]
    fn few_connections_are_spread_evenly() {
        assert_eq!(spread(2, 8), [4, 4]);
        assert_eq!(spread(4, 8), [2, 2, 2, 2]);
        assert_eq!(spread(1, 3), [3]);
    }

    #[test]
    fn many_connections_are_spread_within_an_eighth() {
        let spread = spread(2, 1000);
        assert!(spread[0] - spread[1] <= spread[1] / 8 + 1, "{spread:?}");
    }
}
