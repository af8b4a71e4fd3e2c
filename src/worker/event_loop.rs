//! A worker's thread.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::mpsc::error::SendError;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{AbortHandle, spawn_local};

use crate::backend::BackendId;
use crate::backend::queue::QueueDiscipline;
use crate::exchange::deadline::{Clock, Watch};
use crate::listener::closing::tell;
use crate::listener::connection::{accept, serve};
use crate::listener::refused_log::turned_away;
use crate::listener::{Listener, OpenConnection, StreamTasks, covers, owner};
use crate::overload::Cause;
use crate::proxy::{Proxy, Published, Refusal, Snapshot};
use crate::telemetry::process::Process;
use crate::upstream::Turnover;

use super::accept::{self, Acceptor};
use super::departed_backends::Departed;
use super::{Lent, Peers, WorkerCommand};

/// Idle connections to backends are looked over this often.
const POOL_SWEEP: Duration = Duration::from_secs(1);

/// A connection may wait so long for its next request while others wait to be accepted.
const IDLE_WHILE_SHORT: Duration = Duration::from_secs(1);

/// Connections that may be told at a time that there are too many; further ones are just closed.
const TURNED_AWAY: usize = 256;

/// What the tasks of a worker share.
pub(super) struct Worker {
    pub(super) index: usize,
    pub(super) peers: Peers,
    clock: Rc<Clock>,
    pub(super) proxy: Rc<Proxy>,
    /// Those that serve HTTP/2's streams.
    tasks: Rc<StreamTasks>,
    /// Client connections being served.
    served: Cell<usize>,
    turned_away: Cell<usize>,
    accepting: RefCell<Vec<Accepting>>,
    /// Whether backends that are gone were still serving when that was last looked at: their connections come back late.
    strays: Cell<bool>,
    departed: RefCell<Departed>,
    /// Called when a look at what is served by backends that are gone is due sooner than was known.
    sooner: Notify,
    /// Told when a connection has ended.
    ended: Notify,
}

struct Accepting {
    listener: Arc<Listener>,
    socket: Acceptor,
    task: AbortHandle,
}

/// Runs a worker on this thread until it is told to stop.
pub(super) fn run(
    index: usize,
    peers: &Peers,
    (published, process): (Arc<Published>, Arc<Process>),
    inbox: mpsc::UnboundedReceiver<WorkerCommand>,
    tell: oneshot::Sender<usize>,
    started: std_mpsc::Sender<std::io::Result<()>>,
) {
    let mut builder = Builder::new_current_thread();
    // A connection that moves a large body wakes itself after each piece, so there may always be something to run: others'
    // events are looked for after so many pieces all the same. With 256, every 10 kB upload beside others took 10 ms at p99.
    builder.enable_all().event_interval(31);
    let runtime: LocalRuntime = match builder.build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let _ = started.send(Ok(()));
    let cut = runtime.block_on(async move {
        let clock = Clock::new();
        let worker = Rc::new(Worker {
            index,
            peers: peers.clone(),
            proxy: Proxy::new(index, published, Rc::clone(&clock), process),
            clock,
            tasks: Rc::default(),
            served: Cell::new(0),
            turned_away: Cell::new(0),
            accepting: RefCell::default(),
            strays: Cell::new(false),
            departed: RefCell::default(),
            sooner: Notify::new(),
            ended: Notify::new(),
        });
        worker.adopt(Instant::now());
        worker.ask_for_connections();
        worker.spawn("sweep", sweep(Rc::clone(&worker)));
        worker.spawn("drain limit", cut_strays(Rc::clone(&worker)));
        let vital = worker.proxy.process.events.vital().clone();
        vital.watch(format!("inbox of worker {index}"), worker.obey(inbox)).await
    });
    let _ = tell.send(cut);
}

/// Moves the worker's clock while there is anything to watch, and sleeps while there is not.
async fn sweep(worker: Rc<Worker>) {
    let mut since_pools = Duration::ZERO;
    let (mut since_lag, mut lag) = (Duration::ZERO, Duration::ZERO);
    loop {
        // Nor while new requests are refused: whether that is to end is found out here.
        let refuses = worker.proxy.process.refuses(worker.index) == Some(Cause::Lag);
        if worker.clock.is_idle() && worker.proxy.transport.idle() == 0 && !refuses {
            worker.clock.sleep_until_wanted().await;
        }
        let pause = worker.clock.pause();
        let began = Instant::now();
        tokio::time::sleep(pause).await;
        // Told once a tick, however short the pauses are: what is made of it counts how often in a row it is told.
        lag = lag.max(began.elapsed().saturating_sub(pause));
        since_lag += pause;
        if since_lag >= worker.clock.tick() {
            worker.lagged(std::mem::take(&mut lag));
            since_lag = Duration::ZERO;
        }
        while worker.clock.sweep() {
            tokio::task::yield_now().await;
        }
        if worker.proxy.process.descriptors.is_short() {
            // Those that wait to be accepted have the room of those that do nothing with it.
            worker.clock.end_idle(IDLE_WHILE_SHORT, usize::MAX);
            worker.proxy.transport.space.close_pipes();
        }
        let room = &worker.proxy.transport.room;
        match room.wanted() {
            0 => {}
            wanted => drop(worker.clock.end_idle(IDLE_WHILE_SHORT, wanted)),
        }
        room.tell();
        since_pools += pause;
        if since_pools >= POOL_SWEEP {
            since_pools = Duration::ZERO;
            worker.proxy.transport.sweep();
            if worker.strays.get() {
                worker.let_go();
            }
        }
    }
}

impl Worker {
    /// Does what the inbox says until told to stop, and until every connection has ended. Returns how many were cut.
    async fn obey(self: &Rc<Self>, mut inbox: mpsc::UnboundedReceiver<WorkerCommand>) -> usize {
        let mut stopping = false;
        let mut cut = 0;
        loop {
            let command = if stopping && self.served.get() == 0 {
                match inbox.try_recv() {
                    Ok(command) => Some(command),
                    Err(_) => {
                        self.close(inbox);
                        return cut;
                    }
                }
            } else {
                tokio::select! {
                    command = inbox.recv() => command,
                    () = self.ended.notified() => continue,
                }
            };
            match command {
                Some(WorkerCommand::Listen(listener, socket)) => self.listen(listener, socket),
                Some(WorkerCommand::Adopt(listener)) => self.adopt_sockets(&listener),
                Some(WorkerCommand::Lend(reply)) => drop(reply.send(self.lend())),
                Some(WorkerCommand::Unlisten(listener, limit, others)) => self.unlisten(&listener, limit, &others),
                Some(WorkerCommand::Serve(tcp, peer, listener, open)) => self.serve(tcp, peer, listener, open),
                Some(WorkerCommand::Published(limit)) => {
                    let now = Instant::now();
                    self.adopt(now);
                    self.cut_strays_after(limit, now);
                }
                Some(WorkerCommand::TurnedOver(turnover, limit)) => self.turn_over(&turnover, limit),
                Some(WorkerCommand::Beat) => self.proxy.process.pulse.answer(self.index),
                Some(WorkerCommand::Spare(backend)) => self.proxy.transport.spare(backend),
                Some(WorkerCommand::Stop) => {
                    stopping = true;
                    for accepting in self.accepting.take() {
                        // What is accepted or handed over from now on is to end as well.
                        accepting.listener.draining.store(true, Ordering::Relaxed);
                        accepting.end(self);
                    }
                    self.clock.each(|watch| watch.drain());
                }
                Some(WorkerCommand::Cut) => {
                    // It may be told twice, and have cut them when it is told again.
                    cut = cut.max(self.served.get());
                    self.clock.each(|watch| watch.cut());
                }
                None => return cut,
            }
        }
    }

    /// Takes nothing more. What another worker hands over from now on goes back to it; what it has handed over since the last
    /// look goes on to one that has not ended.
    fn close(&self, mut inbox: mpsc::UnboundedReceiver<WorkerCommand>) {
        inbox.close();
        while let Ok(command) = inbox.try_recv() {
            if let WorkerCommand::Serve(..) = command {
                // Where all others have ended, the client's connection does too.
                let _ = self.peers.inboxes.iter().try_fold(command, |command, inbox| match inbox.send(command) {
                    Ok(()) => Err(()),
                    Err(SendError(command)) => Ok(command),
                });
            }
        }
    }

    /// Runs what the worker cannot do without.
    fn spawn(&self, what: &str, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        let vital = self.proxy.process.events.vital().clone();
        spawn_local(vital.watch(format!("{what} of worker {}", self.index), task)).abort_handle()
    }

    /// The timer ran so late: requests at this worker wait that long for each turn.
    fn lagged(&self, lag: Duration) {
        self.proxy.process.lagged(self.index, lag, &self.proxy.current.get().config.overload);
    }

    /// Has a request that finds all connections to a backend taken, and none of them here, ask the other workers for one.
    fn ask_for_connections(&self) {
        let (index, inboxes) = (self.index, Arc::clone(&self.peers.inboxes));
        self.proxy.transport.when_short(Box::new(move |backend| {
            for (_, inbox) in inboxes.iter().enumerate().filter(|(other, _)| *other != index) {
                let _ = inbox.send(WorkerCommand::Spare(backend));
            }
        }));
    }

    /// Serves a connection on this worker.
    pub(super) fn serve(
        self: &Rc<Self>,
        tcp: TcpStream,
        peer: SocketAddr,
        listener: Arc<Listener>,
        open: OpenConnection,
    ) {
        let open = open.served_by(self.index);
        if self.proxy.transport.room.is_full() {
            self.proxy.transport.make_room();
        }
        let Ok(tcp) = tokio::net::TcpStream::from_std(tcp) else { return };
        self.served.set(self.served.get() + 1);
        let worker = Rc::clone(self);
        // In a box: its eight kilobytes would be moved several times to where the task is, and twice more at its end.
        spawn_local(Box::pin(async move {
            // Counted down by dropping, so that a panic in the connection's task counts too.
            let _served = ServedConnection(Rc::clone(&worker));
            if let Some(stream) = accept((tcp, peer), &listener, &worker.clock, &worker.proxy).await {
                let (tasks, proxy) = (Rc::clone(&worker.tasks), Rc::clone(&worker.proxy));
                pin!(serve(stream, listener, tasks, proxy)).await;
            }
            drop(open);
        }));
    }

    /// Tells a connection why it is not served.
    pub(super) fn turn_away(
        self: &Rc<Self>,
        (tcp, peer): (TcpStream, SocketAddr),
        listener: &Listener,
        refused: OpenConnection,
        refusal: Refusal,
    ) {
        // To tell it by TLS would take the handshake that there is no room for.
        let room = &self.proxy.transport.room;
        let told = self.turned_away.get() < TURNED_AWAY && !room.is_full() && !refused.is_tls();
        turned_away(&self.proxy, (listener, peer), refusal, told);
        if !told {
            return;
        }
        let Ok(tcp) = tokio::net::TcpStream::from_std(tcp) else { return };
        drop(refused);
        let (held, counted) = (room.hold(), TurnedAway::count(self));
        spawn_local(async move {
            tell(tcp, refusal).await;
            drop((held, counted));
        });
    }

    fn listen(self: &Rc<Self>, listener: Arc<Listener>, socket: TcpListener) {
        match Acceptor::new(socket) {
            Ok(socket) => self.accept(listener, socket),
            Err(error) => tracing::error!(%error, listener = %listener.name(), "could not watch a listening socket"),
        }
    }

    fn adopt_sockets(self: &Rc<Self>, listener: &Arc<Listener>) {
        let is_its = |one: &mut Accepting| one.socket.address() == Some(listener.address);
        let moved: Vec<_> = self.accepting.borrow_mut().extract_if(.., is_its).collect();
        for accepting in moved {
            accepting.task.abort();
            self.accept(Arc::clone(listener), accepting.socket);
        }
    }

    fn lend(&self) -> std::io::Result<Vec<Lent>> {
        // Its own address: a socket that came from another listener may have a wider one.
        let address = |it: &Accepting| it.socket.address().unwrap_or(it.listener.address);
        self.accepting.borrow().iter().map(|it| Ok((address(it), it.socket.lend()?))).collect()
    }

    fn accept(self: &Rc<Self>, listener: Arc<Listener>, socket: Acceptor) {
        let accepting = accept::accept(Rc::clone(self), Arc::clone(&listener), socket.clone());
        let task = self.spawn(&format!("accepting at {}", listener.address), accepting);
        self.accepting.borrow_mut().push(Accepting { listener, socket, task });
    }

    fn unlisten(self: &Rc<Self>, listener: &Arc<Listener>, limit: Duration, others: &[Arc<Listener>]) {
        let ended: Vec<_> =
            self.accepting.borrow_mut().extract_if(.., |one| Arc::ptr_eq(&one.listener, listener)).collect();
        for accepting in ended {
            match accepting.socket.address().and_then(|address| heir(address, others)) {
                Some(heir) => {
                    accepting.task.abort();
                    self.accept(Arc::clone(heir), accepting.socket);
                }
                None => accepting.end(self),
            }
        }
        let owner = owner(listener);
        self.clock.each(|watch| {
            if watch.owner() == owner {
                watch.drain();
            }
        });
        let (worker, listener) = (Rc::clone(self), Arc::clone(listener));
        self.spawn("draining", async move {
            tokio::time::sleep(limit).await;
            let mut cut = 0;
            worker.clock.each(|watch| {
                if watch.owner() == owner {
                    watch.cut();
                    cut += 1;
                }
            });
            if cut > 0 {
                tracing::warn!(cut, listener = %listener.name(), "cut connections of a removed listener");
            }
        });
    }

    /// Serves with what is published now.
    fn adopt(&self, now: Instant) {
        let snapshot = self.proxy.current.get();
        self.departed.borrow_mut().publish(backends(&snapshot), now);
        self.clock.set_shortest(shortest_timeout(&snapshot));
        self.let_go();
    }

    /// Takes in that an upstream has other backends.
    fn turn_over(&self, turnover: &Turnover, limit: Duration) {
        let now = Instant::now();
        self.departed.borrow_mut().turn_over(&turnover.came, &turnover.gone, now);
        if turnover.becomes_bounded {
            // Requests may wait in its queue from now on.
            self.clock.set_shortest(shortest_timeout(&self.proxy.current.get()));
        }
        if turnover.gone.is_empty() {
            return;
        }
        turnover.gone.iter().for_each(|&id| self.proxy.transport.let_go(id));
        // Those of requests that are still under way are found by the sweep.
        self.strays.set(true);
        self.cut_strays_after(limit, now);
    }

    /// Closes idle connections to backends that no upstream has any more. Those of requests that are still under way are closed
    /// by a later call.
    fn let_go(&self) {
        self.strays.set(self.strays() > 0);
        let identities = identities(&self.proxy.current.get());
        self.proxy.transport.retain(|id| identities.get(&id).copied());
    }

    /// Exchanges that are served by a backend that is not known.
    fn strays(&self) -> usize {
        let (mut strays, departed) = (0, self.departed.borrow());
        self.clock.each(|watch| strays += usize::from(is_stray(watch, &departed)));
        strays
    }

    /// Has cut, after `limit`, what is then still served by a backend that no upstream has had since `published`.
    fn cut_strays_after(&self, limit: Duration, published: Instant) {
        // Not only what is a stray now: an exchange that goes on with the snapshot of before may have its next attempt there.
        if self.departed.borrow_mut().look_after(limit, published) {
            self.sooner.notify_one();
        }
    }
}

/// Cuts what is still served by backends that have been gone for the whole of `drain_limit`. One task for all changes, of which there may be
/// hundreds a second.
async fn cut_strays(worker: Rc<Worker>) {
    loop {
        let next = worker.departed.borrow().next_look();
        let due = async {
            match next {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = worker.sooner.notified() => continue,
        }
        let mut departed = worker.departed.borrow_mut();
        let Some(published) = departed.take_due(Instant::now()) else { continue };
        let mut cut = 0;
        worker.clock.each(|watch| {
            // What came to a backend that was back meanwhile has the time of a later change.
            if watch.serving().is_some_and(|id| departed.was_gone(id, published)) {
                watch.cut();
                cut += 1;
            }
        });
        departed.forget(published);
        if cut > 0 {
            tracing::warn!(cut, "cut exchanges with backends that were removed");
        }
    }
}

/// Which of these listeners has a socket's address, or else one that it is a part of.
fn heir(address: SocketAddr, others: &[Arc<Listener>]) -> Option<&Arc<Listener>> {
    let same = others.iter().find(|it| it.address == address);
    same.or_else(|| others.iter().find(|it| covers(it.address, address)))
}

fn is_stray(watch: &Watch, departed: &Departed) -> bool {
    watch.serving().is_some_and(|id| !departed.is_known(id))
}

impl Accepting {
    /// Ends accepting once what waits is accepted: those clients have a connection already, as far as they know.
    fn end(self, worker: &Rc<Worker>) {
        self.task.abort();
        accept::accept_the_rest(worker, &self.listener, &self.socket);
    }
}

/// Counted down by dropping, as [`ServedConnection`] is.
struct TurnedAway(Rc<Worker>);

impl TurnedAway {
    fn count(worker: &Rc<Worker>) -> Self {
        worker.turned_away.set(worker.turned_away.get() + 1);
        Self(Rc::clone(worker))
    }
}

impl Drop for TurnedAway {
    fn drop(&mut self) {
        self.0.turned_away.set(self.0.turned_away.get() - 1);
    }
}

struct ServedConnection(Rc<Worker>);

impl Drop for ServedConnection {
    fn drop(&mut self) {
        self.0.served.set(self.0.served.get() - 1);
        self.0.ended.notify_one();
    }
}

fn backends(snapshot: &Snapshot) -> HashSet<BackendId> {
    snapshot
        .upstreams
        .iter()
        .flat_map(|upstream| upstream.roster().backends().iter().map(|backend| backend.state.id).collect::<Vec<_>>())
        .collect()
}

/// With whose TLS each backend is spoken to.
fn identities(snapshot: &Snapshot) -> HashMap<BackendId, u64> {
    let mut identities = HashMap::new();
    for upstream in &snapshot.upstreams {
        let ids =
            upstream.roster().backends().iter().map(|it| (it.state.id, upstream.tls_identity())).collect::<Vec<_>>();
        identities.extend(ids);
    }
    identities
}

fn shortest_timeout(snapshot: &Snapshot) -> Duration {
    let config = &snapshot.config;
    let listeners = config.listeners.iter().flat_map(|listener| [listener.header_timeout, listener.idle_timeout]);
    let upstreams = snapshot.upstreams.iter().flat_map(|upstream| {
        let queue = upstream.is_bounded().then_some(upstream.limits.queue);
        let queue = queue.map(|queue| match queue.order {
            QueueDiscipline::Adaptive { interval, .. } => queue.timeout.min(interval),
            QueueDiscipline::Fifo => queue.timeout,
        });
        [upstream.config.connect_timeout].into_iter().chain(queue)
    });
    let routes = config.routes.iter().filter(|route| route.upstream.is_some()).flat_map(|route| {
        let timeouts = &route.timeouts;
        let attempt = route.retries.attempt_timeout.unwrap_or(Duration::MAX);
        let grpc = timeouts.grpc_idle.unwrap_or(Duration::MAX);
        let exchange = timeouts.exchange.unwrap_or(Duration::MAX);
        [timeouts.response_head, timeouts.body_idle, exchange, attempt, grpc]
    });
    let handshakes = config.listeners.iter().filter_map(|listener| Some(listener.tls.as_ref()?.handshake_timeout));
    let middleware = config.middleware.iter().map(|middleware| middleware.timeout);
    let all = listeners.chain(handshakes).chain(upstreams).chain(routes).chain(middleware);
    all.min().unwrap_or(Duration::MAX)
}
