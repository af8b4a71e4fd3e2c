//! The proxy's own code for connections, on a runtime of one thread, between a client and backends that belong to the target.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use isobar::config::{Vocabulary, parse};
use isobar::exchange::deadline::Clock;
use isobar::handover::Inherited;
use isobar::listener::{self, BoundAddresses, Listener, OpenConnection, StreamTasks, connection};
use isobar::proxy::{Proxy, Published, Snapshot};
use isobar::route::RoutingTable;
use isobar::strategy::Factories;
use isobar::telemetry::metrics::Sharded;
use isobar::telemetry::process::Process;
use isobar::upstream::{Upstream, UpstreamState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::task::{JoinHandle, spawn_local};

/// Nothing takes so long: whatever does hangs.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A proxy between what a target plays. Made once for a thread; what is remembered from one input to the next is made anew.
pub struct Inside {
    runtime: LocalRuntime,
    backend: TcpListener,
    listener: Arc<Listener>,
    front: TcpListener,
    snapshot: Arc<Snapshot>,
    tasks: Rc<StreamTasks>,
}

/// What there is while an input is looked at.
pub struct Scene {
    listener: Arc<Listener>,
    front: TcpListener,
    clock: Rc<Clock>,
    tasks: Rc<StreamTasks>,
    proxy: Rc<Proxy>,
    snapshot: Arc<Snapshot>,
    open: Arc<Vec<AtomicUsize>>,
    served: RefCell<Option<JoinHandle<()>>>,
}

impl Inside {
    /// The proxy that the configuration describes, in which `BACKEND` is the address of the one backend.
    pub fn new(text: &str) -> Self {
        let runtime =
            Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).expect("a runtime");
        let backend = TcpListener::bind("127.0.0.1:0").expect("a backend");
        backend.set_nonblocking(true).expect("a backend");
        let text = text.replace("BACKEND", &backend.local_addr().expect("an address").to_string());
        let parsed = parse(&text, "lb.toml", &|_| None, &Vocabulary::default());
        let config = Arc::new(parsed.unwrap_or_else(|problems| panic!("{problems}")).config);
        let build = |config: &Arc<isobar::config::UpstreamConfig>| {
            Upstream::build(Arc::clone(config), UpstreamState::new(config.name.clone(), 1), &Factories::default())
        };
        let upstreams: Vec<_> = config.upstreams.iter().map(build).collect();
        upstreams.iter().for_each(|upstream| upstream.enforce());
        let routes = RoutingTable::build(&config.routes, &upstreams, &[], &mut |_| Arc::new(Sharded::new(1)));
        let known = BoundAddresses { ours: &[], moved: &[], inherited: &mut Inherited::default() };
        let mut bound = listener::bind(&config.listeners[0], 1, known).expect("a listener");
        bound.listen().expect("a listening socket");
        let front = bound.sockets.pop().expect("a socket");
        let snapshot = Snapshot { generation: 1, config, routes, upstreams, middleware: Default::default() };
        let tasks = Rc::default();
        Self { runtime, backend, listener: bound.listener, front, snapshot: Arc::new(snapshot), tasks }
    }

    /// Plays a scene with a client, and each connection to the backend as `backend` has it. When it is over, so is everything, and
    /// nothing is counted any more.
    pub fn play<B, C>(&self, backend: impl Fn(TcpStream) -> B + 'static, client: impl FnOnce(Rc<Scene>) -> C)
    where
        B: Future<Output = ()> + 'static,
        C: Future<Output = ()>,
    {
        self.runtime.block_on(async {
            let clock = Clock::new();
            // It looks for who is gone once a tick, and that is waited for.
            clock.set_shortest(Duration::ZERO);
            let published = Published::new(Arc::clone(&self.snapshot));
            let scene = Rc::new(Scene {
                listener: Arc::clone(&self.listener),
                front: self.front.try_clone().expect("its twin"),
                proxy: Proxy::new(0, published, Rc::clone(&clock), Process::new(1)),
                clock,
                tasks: Rc::clone(&self.tasks),
                snapshot: Arc::clone(&self.snapshot),
                open: Arc::new(vec![AtomicUsize::new(0)]),
                served: RefCell::default(),
            });
            let socket = self.backend.try_clone().expect("its twin");
            let socket = tokio::net::TcpListener::from_std(socket).expect("a socket");
            let busy = Rc::new(Cell::new(0));
            let counted = Rc::clone(&busy);
            let accepting = spawn_local(async move {
                while let Ok((tcp, _)) = socket.accept().await {
                    let counted = Rc::clone(&counted);
                    counted.set(counted.get() + 1);
                    let play = backend(tcp);
                    spawn_local(async move {
                        play.await;
                        counted.set(counted.get() - 1);
                    });
                }
            });
            let over = async {
                client(Rc::clone(&scene)).await;
                scene.ended().await;
                let ended = Rc::downgrade(&scene.proxy);
                scene.counts_are_back().await;
                drop(scene);
                // With the proxy go its pools, and with these the connections to the backend.
                while busy.get() > 0 || ended.strong_count() > 0 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, over).await.expect("it ends");
            accepting.abort();
            let _ = accepting.await;
        });
    }
}

impl Scene {
    /// A client, whose connection is served from now on.
    pub fn connect(&self) -> (OwnedReadHalf, OwnedWriteHalf) {
        let tcp = std::net::TcpStream::connect(self.listener.address).expect("a connection");
        let (accepted, peer) = loop {
            match self.front.accept() {
                Ok(accepted) => break accepted,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}"),
            }
        };
        for socket in [&tcp, &accepted] {
            socket.set_nonblocking(true).expect("nonblocking");
            socket.set_nodelay(true).expect("nodelay");
        }
        let accepted = TcpStream::from_std(accepted).expect("a socket");
        let open =
            OpenConnection::count(&self.listener, &self.open, (0, 0), None).unwrap_or_else(|_| panic!("no room"));
        let (listener, clock) = (Arc::clone(&self.listener), Rc::clone(&self.clock));
        let (tasks, proxy) = (Rc::clone(&self.tasks), Rc::clone(&self.proxy));
        *self.served.borrow_mut() = Some(spawn_local(async move {
            if let Some(stream) = connection::accept((accepted, peer), &listener, &clock, &proxy).await {
                connection::serve(stream, listener, tasks, proxy).await;
            }
            drop(open);
        }));
        TcpStream::from_std(tcp).expect("a socket").into_split()
    }

    /// Waits until the connection has been served.
    async fn ended(&self) {
        let served = self.served.take();
        if let Some(served) = served {
            served.await.expect("no panic");
        }
    }

    /// What was counted up was counted down.
    async fn counts_are_back(&self) {
        let counts = || {
            let of = |upstream: &Arc<Upstream>| -> u32 {
                upstream.roster().backends().iter().map(|backend| backend.state.in_flight()).sum()
            };
            let in_flight: u32 = self.snapshot.upstreams.iter().map(of).sum();
            (in_flight, self.listener.open.load(Ordering::Relaxed), self.open[0].load(Ordering::Relaxed))
        };
        // What is left of an upload, or of a stream, ends in a task of its own; whoever is gone is forgotten by a sweep.
        while counts() != (0, 0, 0) || !self.clock.is_idle() {
            self.clock.sweep();
            tokio::task::yield_now().await;
        }
    }
}

/// Sends `bytes` in pieces that `cuts` tells the lengths of, over and over; whole where it is empty. `false` when the other end does
/// not take them.
pub async fn send(to: &mut OwnedWriteHalf, bytes: &[u8], cuts: &[u8]) -> bool {
    let mut rest = bytes;
    let mut lengths = cuts.iter().cycle();
    while !rest.is_empty() {
        let length = lengths.next().map_or(rest.len(), |&length| usize::from(length) + 1).min(rest.len());
        let (piece, after) = rest.split_at(length);
        if to.write_all(piece).await.is_err() {
            return false;
        }
        rest = after;
        // The others have their turn: the piece is read before the next one comes.
        settle().await;
    }
    true
}

/// Lets all others run until they have nothing more to do but wait, or nearly so.
pub async fn settle() {
    for _ in 0..4 {
        tokio::task::yield_now().await;
    }
}

/// Reads what there is; `false` at the end.
pub async fn read(from: &mut OwnedReadHalf, into: &mut Vec<u8>) -> bool {
    matches!(from.read_buf(into).await, Ok(1..))
}
