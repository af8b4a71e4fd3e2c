//! Threads that serve requests, each with an event loop of its own.
//!
//! A worker accepts its own connections and keeps its own pools. What it shares with the others on the way of a request is
//! atomics and the published snapshot; everything else reaches it as a `WorkerCommand` through its inbox.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::backend::BackendId;
use crate::file_descriptors::Descriptors;
use crate::listener::{Bound, Listener, OpenConnection};
use crate::proxy::{Published, Snapshot};
use crate::telemetry::heartbeat::Pulse;
use crate::telemetry::process::Process;
use crate::upstream::Turnover;

mod accept;
mod departed_backends;
mod event_loop;

/// What a worker is told.
#[derive(Debug)]
enum WorkerCommand {
    /// Accept on this socket.
    Listen(Arc<Listener>, TcpListener),
    /// Accept for this listener on the sockets on its address, which another one has.
    Adopt(Arc<Listener>),
    /// Give what it listens on, for another process to listen on too.
    Lend(oneshot::Sender<io::Result<Vec<Lent>>>),
    /// Accept what waits, then no more, but where its socket is on an address of these listeners; cut its connections after so long.
    Unlisten(Arc<Listener>, Duration, Arc<[Arc<Listener>]>),
    /// Serve a connection that another worker accepted.
    Serve(TcpStream, SocketAddr, Arc<Listener>, OpenConnection),
    /// Another snapshot was published; let go of what it no longer names, and cut what is still served there after so long.
    Published(Duration),
    /// Backends of an upstream have come or gone otherwise than with a snapshot; let go of those that are gone, and cut what is still
    /// served there after so long.
    TurnedOver(Arc<Turnover>, Duration),
    /// Another worker wants a connection to this backend and there may be no more: close one that is idle.
    Spare(BackendId),
    /// Say that it still runs.
    Beat,
    /// Accept no more, end when the connections have.
    Stop,
    /// End every connection now.
    Cut,
}

/// A listening socket, and the address it is bound to.
pub type Lent = (SocketAddr, OwnedFd);

/// How long a worker has to end once its connections are cut. One that takes longer does not run any more.
const END_LIMIT: Duration = Duration::from_secs(5);

/// Connections open at each worker, and the way to its inbox: what workers know of each other.
#[derive(Clone, Debug)]
struct Peers {
    open: Arc<Vec<AtomicUsize>>,
    inboxes: Arc<Vec<mpsc::UnboundedSender<WorkerCommand>>>,
}

impl Peers {
    /// The worker that should serve a connection that worker `index` has accepted: itself, unless it has clearly more than another. With
    /// few connections every one counts; with many, an eighth of difference is not worth waking another thread. `None` where no worker
    /// has descriptors for another: it may be that one got more by two workers' looking at the same moment, for which some are kept.
    fn place(&self, index: usize, descriptors: &Descriptors) -> Option<usize> {
        let open = self.open.iter().map(|open| open.load(Ordering::Relaxed)).enumerate();
        let least = open.filter(|&(worker, count)| count < descriptors.takes(worker)).min_by_key(|&(_, count)| count);
        let (least, count) = least?;
        let own = self.open[index].load(Ordering::Relaxed);
        let stays = own < descriptors.takes(index) && own <= count + count / 8;
        Some(if stays { index } else { least })
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
            let guard = process.events.vital().guard(format!("worker {index}"));
            let handle = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                let _guard = guard;
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
        self.tell(|| WorkerCommand::Published(limit));
    }

    /// Backends of an upstream that is published have come or gone. Cannot fail and does not wait.
    pub fn turn_over(&self, turnover: &Turnover) {
        if turnover.came.is_empty() && turnover.gone.is_empty() && !turnover.becomes_bounded {
            return;
        }
        let turnover = Arc::new(turnover.clone());
        let limit = self.snapshot().config.drain_limit;
        self.tell(|| WorkerCommand::TurnedOver(Arc::clone(&turnover), limit));
    }

    /// Begins to accept on a bound listener. Cannot fail and does not wait.
    pub fn listen(&self, bound: Bound) {
        if bound.sockets.is_empty() {
            return self.tell(|| WorkerCommand::Adopt(Arc::clone(&bound.listener)));
        }
        // More sockets than workers came from a process that had more: one worker then accepts on several.
        for (inbox, socket) in self.peers.inboxes.iter().cycle().zip(bound.sockets) {
            // A worker that is gone, because the process stops, needs no listener.
            let _ = inbox.send(WorkerCommand::Listen(Arc::clone(&bound.listener), socket));
        }
    }

    /// Ends accepting on a listener, once what waits in its queue is accepted. Its connections end as soon as they are
    /// idle, and are cut after `limit`. A socket on an address that one of `others` has too, or a part of it, is that one's from now on:
    /// to close it would lose clients that connect meanwhile.
    pub fn unlisten(&self, listener: &Arc<Listener>, limit: Duration, others: &[Arc<Listener>]) {
        listener.draining.store(true, Ordering::Relaxed);
        let others: Arc<[_]> = others.into();
        self.tell(|| WorkerCommand::Unlisten(Arc::clone(listener), limit, Arc::clone(&others)));
    }

    /// What all of them listen on, once more: another process may accept there as well. As long as these are open, connections wait
    /// there even if no worker accepts them.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub async fn lend(&self) -> io::Result<Vec<Lent>> {
        let mut all = Vec::new();
        for inbox in self.peers.inboxes.iter() {
            let (reply, lent) = oneshot::channel();
            // A worker that has ended listens on nothing.
            if inbox.send(WorkerCommand::Lend(reply)).is_ok()
                && let Ok(lent) = lent.await
            {
                all.extend(lent?);
            }
        }
        Ok(all)
    }

    /// Ends accepting everywhere and waits until every connection has ended, at most until `deadline`. Returns how many
    /// were cut.
    pub async fn stop(&self, deadline: Instant) -> usize {
        self.tell(|| WorkerCommand::Stop);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let mut cut = 0;
        for Thread { handle, mut ended } in threads {
            let told = match tokio::time::timeout_at(deadline.into(), &mut ended).await {
                Ok(told) => told,
                Err(_) => {
                    self.tell(|| WorkerCommand::Cut);
                    let Ok(told) = tokio::time::timeout(END_LIMIT, ended).await else {
                        tracing::error!("a worker does not end; it is left behind");
                        continue;
                    };
                    told
                }
            };
            cut += told.unwrap_or(0);
            if handle.join().is_err() {
                tracing::error!("a worker had panicked");
            }
        }
        cut
    }

    /// Ends all connections now, without waiting for that.
    pub fn abandon(&self) {
        self.tell(|| WorkerCommand::Stop);
        self.tell(|| WorkerCommand::Cut);
    }

    /// Asks each whether it still runs, unless it has not answered the last time.
    pub fn beat(&self, pulse: &Pulse) {
        for (worker, inbox) in self.peers.inboxes.iter().enumerate() {
            if pulse.ask(worker) {
                let _ = inbox.send(WorkerCommand::Beat);
            }
        }
    }

    /// Client connections open now, by worker.
    pub fn connections(&self) -> Vec<usize> {
        self.peers.open.iter().map(|open| open.load(Ordering::Relaxed)).collect()
    }

    fn tell(&self, command: impl Fn() -> WorkerCommand) {
        for inbox in self.peers.inboxes.iter() {
            let _ = inbox.send(command());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file_descriptors::{DescriptorPlan, DescriptorRoom, DescriptorSeats};

    /// Connections as the kernel might spread them: all at one worker.
    fn spread(workers: usize, connections: usize) -> Vec<usize> {
        let peers =
            Peers { open: Arc::new((0..workers).map(|_| AtomicUsize::new(0)).collect()), inboxes: Arc::default() };
        let descriptors = Descriptors::new(DescriptorPlan::UNLIMITED, workers);
        for _ in 0..connections {
            peers.open[peers.place(0, &descriptors).unwrap()].fetch_add(1, Ordering::Relaxed);
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
    fn none_is_placed_where_there_are_no_descriptors_for_it() {
        let plan = DescriptorPlan::new(Some(100), 20, 2, None);
        let descriptors = Arc::new(Descriptors::new(plan, 2));
        let rooms = [0, 1].map(|worker| DescriptorRoom::new(Arc::clone(&descriptors), worker));
        let peers = Peers { open: Arc::new((0..2).map(|_| AtomicUsize::new(0)).collect()), inboxes: Arc::default() };
        let fill = || {
            let placed = std::iter::from_fn(|| peers.place(0, &descriptors));
            let counted = placed.map(|worker| peers.open[worker].fetch_add(1, Ordering::Relaxed));
            counted.count() as u64
        };
        assert_eq!(fill(), plan.connections);
        // One ends; and where a client has taken more than its part, there is less room.
        peers.open[1].fetch_sub(1, Ordering::Relaxed);
        assert_eq!(fill(), 1);
        for open in peers.open.iter() {
            open.store(0, Ordering::Relaxed);
        }
        let hungry = DescriptorSeats::new(&rooms[0]);
        let taken: Vec<_> = std::iter::from_fn(|| hungry.take()).collect();
        assert!(taken.len() > 3 && fill() < plan.connections, "{}", taken.len());
    }

    #[test]
    fn many_connections_are_spread_within_an_eighth() {
        let spread = spread(2, 1000);
        assert!(spread[0] - spread[1] <= spread[1] / 8 + 1, "{spread:?}");
    }
}
