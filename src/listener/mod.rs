//! Listeners: bound sockets, and the connections of clients with HTTP/1.1, HTTP/2 and TLS.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::{ListenerConfig, ListenerName};
use crate::handover::Inherited;
use crate::telemetry::metrics::{AddressLimit, ListenerMetrics, Sharded};
use crate::tls::Tls;

pub mod client_limits;
pub mod connection;
mod handshake;
mod lingering;
pub mod closing;
pub mod strict_framing;
pub mod refused_log;
mod http2;
pub mod http1;

use client_limits::{AddressLimits, Addresses, ClientNetwork};
pub use http2::StreamTasks;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use http2::downgrade;

/// A bound socket and its protocol settings, shared by the workers that accept on it.
#[derive(Debug)]
pub struct Listener {
    /// Where it is bound: the configured address, with the port that was taken for 0.
    pub address: SocketAddr,
    /// Its settings; new connections take the ones of the moment.
    pub config: ArcSwap<ListenerConfig>,
    /// What its handshakes are made with; new connections take the one of the moment. `None` is in the clear.
    pub tls: ArcSwapOption<Tls>,
    /// Times that changed certificates were read and could not be used.
    pub certificates_refused: AtomicU64,
    /// Client connections open now, over all workers.
    pub open: AtomicUsize,
    /// What client addresses have, where one may not have any number.
    pub addresses: Addresses,
    /// Set when it was removed: its connections end as soon as they are idle.
    pub draining: AtomicBool,
    /// A shard per worker.
    pub metrics: Arc<Sharded<ListenerMetrics>>,
}

impl Listener {
    /// Its name.
    pub fn name(&self) -> ListenerName {
        self.config.load().name.clone()
    }

    /// Lets a connection from `ip` in, which worker number `by` has accepted: where it was counted at that address, as what.
    ///
    /// # Errors
    /// When the address has as much as it may. That is counted, and now and then told to the log.
    pub fn admit(&self, ip: IpAddr, by: usize) -> Result<Option<ClientNetwork>, AddressLimit> {
        let config = self.config.load();
        let limits = AddressLimits {
            connections: config.max_connections_per_address,
            handshakes: config.tls.as_ref().and_then(|tls| tls.handshakes_per_second_per_address),
        };
        // Those of a proxy are many clients'.
        if limits == AddressLimits::default() || config.trusts(ip) {
            return Ok(None);
        }
        let admitted = self.addresses.admit(ip, limits);
        if let Err(limit) = admitted {
            self.metrics.of(by).limited[limit as usize].add(1);
            if let Some(refused) = self.addresses.refused() {
                let (listener, limit) = (&config.name, limit.as_str());
                tracing::warn!(%listener, client = %ip, limit, refused, "closed connections over a limit of their address");
            }
        }
        admitted
    }
}

/// A listener with the sockets that are to be handed to the workers, one each.
#[derive(Debug)]
pub struct Bound {
    /// The shared part.
    pub listener: Arc<Listener>,
    /// At least one socket a worker, on the address or a part of it. None where the workers have them already.
    pub sockets: Vec<TcpListener>,
}

impl Bound {
    /// Has the system take connections, which wait for a worker that accepts them.
    ///
    /// # Errors
    /// When it refuses.
    pub fn listen(&self) -> io::Result<()> {
        let backlog = i32::try_from(self.listener.config.load().backlog).unwrap_or(i32::MAX);
        self.sockets.iter().try_for_each(|socket| SockRef::from(socket).listen(backlog))
    }
}

/// Binds a socket for each of `workers`. None takes connections before [`Bound::listen`]: one with a narrower address than another of ours
/// has would take that one's.
///
/// The sockets share the address by `SO_REUSEPORT`, so that the kernel spreads new connections over the workers and wakes
/// one of them for each. That option would also let a second process of the same user bind the address unnoticed and take
/// half of the connections; so the address is first bound without it, which fails if another process is there, and also where one of `ours`,
/// the addresses of this process, is a part of this one, or the other way round. Those `inherited` at this address from the process before
/// are all kept, however many workers there are: connections may wait in each. None is bound where the workers have sockets on this address
/// for another listener ([`BoundAddresses::moved`]): they are told to take these.
///
/// # Errors
/// When the address cannot be bound, or another process listens there.
pub fn bind(config: &Arc<ListenerConfig>, workers: usize, known: BoundAddresses<'_>) -> io::Result<Bound> {
    let mut address = config.address;
    let mut sockets = known.inherited.take(address);
    let moved = known.moved.contains(&address);
    if sockets.is_empty() && !moved {
        match socket(address, false) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && known.overlaps(address) => {}
            probe => drop(probe?),
        }
    }
    while sockets.len() < workers.max(1) && !moved {
        let socket = socket(address, true)?;
        if address.port() == 0 {
            address = socket.local_addr()?;
        }
        sockets.push(socket);
    }
    let listener = Arc::new(Listener {
        address,
        config: ArcSwap::from(Arc::clone(config)),
        tls: ArcSwapOption::empty(),
        certificates_refused: AtomicU64::new(0),
        open: AtomicUsize::new(0),
        addresses: Addresses::default(),
        draining: AtomicBool::new(false),
        metrics: Arc::new(Sharded::new(workers)),
    });
    Ok(Bound { listener, sockets })
}

/// Whether a socket on `address` takes connections to all that one on `other` does. `[::]` is for IPv6 alone.
pub fn covers(address: SocketAddr, other: SocketAddr) -> bool {
    let same_family = address.is_ipv4() == other.is_ipv4();
    same_family && address.port() == other.port() && (address.ip() == other.ip() || address.ip().is_unspecified())
}

/// What is listened on already, and not by a stranger.
#[derive(Debug)]
pub struct BoundAddresses<'a> {
    /// Addresses of this process's listeners.
    pub ours: &'a [SocketAddr],
    /// Addresses whose sockets another listener of this process has.
    pub moved: &'a [SocketAddr],
    /// What comes from the process before.
    pub inherited: &'a mut Inherited,
}

impl BoundAddresses<'_> {
    /// Whether a part of that address is.
    fn overlaps(&self, address: SocketAddr) -> bool {
        self.ours.iter().chain(self.inherited.addresses()).any(|&it| overlap(it, address))
    }
}

fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    covers(a, b) || covers(b, a)
}

/// Tells connections of one listener from those of another.
pub fn owner(listener: &Arc<Listener>) -> usize {
    Arc::as_ptr(listener).addr()
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` are two listeners: an operator who wants both says so.
        socket.set_only_v6(true)?;
    }
    // A restart must not wait for old connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
        // Accepted sockets take it over, which saves setting it on each.
        socket.set_tcp_nodelay(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Counts a connection as open until it is dropped.
#[derive(Debug)]
pub struct OpenConnection {
    listener: Arc<Listener>,
    worker: Arc<Vec<AtomicUsize>>,
    index: usize,
    /// What it is counted at by its address.
    network: Option<ClientNetwork>,
}

impl OpenConnection {
    /// Counts one more at `listener` and at worker number `index`, which is to serve it. Called by worker number `by`, which
    /// has accepted it: no other worker writes that shard. `network` is what it was admitted as.
    ///
    /// # Errors
    /// The same, but counted at the worker that has accepted it, when the listener has as many as it takes.
    pub fn count(
        listener: &Arc<Listener>,
        worker: &Arc<Vec<AtomicUsize>>,
        (by, index): (usize, usize),
        network: Option<ClientNetwork>,
    ) -> Result<Self, Self> {
        let before = listener.open.fetch_add(1, Ordering::Relaxed);
        let refused = before >= listener.config.load().max_connections;
        let index = if refused { by } else { index };
        worker[index].fetch_add(1, Ordering::Relaxed);
        let metrics = listener.metrics.of(by);
        metrics.accepted.add(1);
        let open = Self { listener: Arc::clone(listener), worker: Arc::clone(worker), index, network };
        if refused {
            metrics.refused.add(1);
            return Err(open);
        }
        Ok(open)
    }

    /// Whether its client speaks TLS, and would not understand an answer in the clear.
    pub fn is_tls(&self) -> bool {
        self.listener.tls.load().is_some()
    }

    /// Counts it at worker number `index`, which serves it and drops this: mostly the one it was meant for.
    pub fn served_by(mut self, index: usize) -> Self {
        if self.index != index {
            self.worker[self.index].fetch_sub(1, Ordering::Relaxed);
            self.worker[index].fetch_add(1, Ordering::Relaxed);
            self.index = index;
        }
        self
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if let Some(network) = self.network {
            self.listener.addresses.leave(network);
        }
        self.listener.open.fetch_sub(1, Ordering::Relaxed);
        self.worker[self.index].fetch_sub(1, Ordering::Relaxed);
        self.listener.metrics.of(self.index).closed.add(1);
    }
}
