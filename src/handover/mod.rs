//! Hands the listening sockets of a process to the one that takes its place, so that no client is ever refused.
//!
//! The process that runs offers them on a Unix socket whose name is made from the user and the path of the configuration. The process
//! that starts connects there, is told whether the other one is stopping already, takes the sockets, serves, and says that it is
//! ready; only then the other one stops accepting. Until then both accept from the same queues, and if the new process fails, the old
//! one goes on as if nothing had been. What Envoy's hot restart, `haproxy -x` and nginx's SIGUSR2 are for.
//!
//! The name is in Linux's abstract namespace: it needs no folder, is gone with its process, and is seen by the processes of one
//! network namespace, which are those that can share addresses. Both sides ask the kernel for the user at the other end, and accept
//! their own and root.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

#[cfg(target_os = "linux")]
mod channel;
// Sockets without a name in the file system are Linux's.
#[cfg(not(target_os = "linux"))]
#[path = "unsupported.rs"]
mod channel;

use channel::Channel;

/// How long the other side may take for an answer that needs no work.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked for a process that may just be starting, and how long to wait in between.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);
/// Of what is said. A process that does not understand another one's version starts as if there were none.
const VERSION: u32 = 1;

/// Listening sockets, with the addresses that they are bound to. A listener has one for each worker.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Of the listeners.
    pub listeners: Vec<(SocketAddr, OwnedFd)>,
    /// Of the admin address.
    pub admin: Option<(SocketAddr, OwnedFd)>,
}

/// What the two processes say to each other, in this order.
#[derive(Debug, Deserialize, Serialize)]
enum Message {
    /// The process that runs, as soon as another one has connected.
    Runs { version: u32, stopping: bool },
    /// The process that starts wants the sockets.
    Take,
    /// Some of them: the descriptors come with the message, in this order.
    Sockets { listeners: Vec<SocketAddr>, admin: Option<SocketAddr>, more: bool },
    /// The process that starts serves.
    Ready,
    /// The process that was there before accepts nothing at the admin address any more and offers nothing.
    Released,
}

/// Which process, of which user, has the name that the sockets of `file` are offered under.
pub fn holder(file: &Path) -> Option<String> {
    channel::holder(file)
}

/// Where a process that serves waits for one that takes its place.
#[derive(Debug)]
pub struct Offer(tokio::net::UnixListener);

impl Offer {
    /// Offers the sockets of the process that serves `file`. Inside a runtime only.
    ///
    /// # Errors
    /// When another process of this user offers those of the same file, or the system has no abstract sockets.
    pub fn make(file: &Path) -> io::Result<Self> {
        channel::listen(file).map(Self)
    }

    /// Waits for a process of the same user that may want to take over, and tells it whether this one is `stopping`. A process that
    /// only looks is none.
    ///
    /// # Errors
    /// When no connection can be accepted.
    pub async fn visitor(&self, stopping: impl Fn() -> bool) -> io::Result<Visitor> {
        loop {
            let channel = Channel::accept(&self.0).await?;
            let asked = async {
                channel.send(&Message::Runs { version: VERSION, stopping: stopping() }, &[]).await?;
                channel.receive().await
            };
            if let Ok(Ok((Message::Take, _))) = timeout(PATIENCE, asked).await {
                return Ok(Visitor(channel));
            }
        }
    }
}

/// A process that wants to take the place of this one.
#[derive(Debug)]
pub struct Visitor(Channel);

impl Visitor {
    /// Its number; `None` where it has none here, as in another container.
    pub fn pid(&self) -> Option<u32> {
        self.0.pid()
    }

    /// Gives it the sockets, and waits until it serves. This process goes on meanwhile; how long it waits is for the caller to bound.
    ///
    /// # Errors
    /// When it is gone before.
    pub async fn give(&self, sockets: &Sockets) -> io::Result<()> {
        use std::os::fd::AsFd;
        let mut parts = sockets.listeners.chunks(channel::DESCRIPTORS_MAX).peekable();
        while let Some(part) = parts.next() {
            let (addresses, descriptors): (Vec<_>, Vec<_>) = part.iter().map(|(at, fd)| (*at, fd.as_fd())).unzip();
            let more = parts.peek().is_some() || sockets.admin.is_some();
            let message = Message::Sockets { listeners: addresses, admin: None, more };
            self.0.send(&message, &descriptors).await?;
        }
        if sockets.listeners.is_empty() || sockets.admin.is_some() {
            let (address, descriptor): (Option<_>, Vec<_>) =
                (sockets.admin.as_ref().map(|it| it.0), sockets.admin.iter().map(|it| it.1.as_fd()).collect());
            let message = Message::Sockets { listeners: Vec::new(), admin: address, more: false };
            self.0.send(&message, &descriptor).await?;
        }
        match self.0.receive().await? {
            (Message::Ready, _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Tells it that this process has let go of everything.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn released(self) -> io::Result<()> {
        self.0.send(&Message::Released, &[]).await
    }
}

/// The process that serves the same file, as one that starts sees it.
#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
    stopping: bool,
}

impl Predecessor {
    /// Looks for it; `None` where there is none, or none that is understood. Inside a runtime only.
    pub async fn find(file: &Path) -> Option<Self> {
        for _ in 0..TRIES {
            match Self::look(file).await {
                // One that has just handed over has closed its socket, and the next one is about to open its own.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) => {
                    sleep(PAUSE).await
                }
                found => return found.ok(),
            }
        }
        None
    }

    async fn look(file: &Path) -> io::Result<Self> {
        let asked = async {
            let channel = Channel::connect(file)?;
            match channel.receive().await? {
                (Message::Runs { version: VERSION, stopping }, _) => Ok(Self { channel, stopping }),
                (other, _) => Err(unexpected(&other)),
            }
        };
        match timeout(PATIENCE, asked).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => {
                tracing::debug!(%error, "no process to take over from");
                Err(error)
            }
            Err(_) => {
                tracing::warn!("the process that serves this file does not answer, so nothing is taken over from it");
                Err(ErrorKind::TimedOut.into())
            }
        }
    }

    /// Whether it is stopping already: it accepts nothing new, or will soon not.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Its number; `None` where it has none here, as in another container.
    pub fn pid(&self) -> Option<u32> {
        self.channel.pid()
    }

    /// Takes over what it listens on.
    ///
    /// # Errors
    /// When it is gone, or gives something else.
    pub async fn take(&self) -> io::Result<Sockets> {
        self.channel.send(&Message::Take, &[]).await?;
        let mut sockets = Sockets::default();
        loop {
            let received = timeout(PATIENCE, self.channel.receive()).await.map_err(|_| io::ErrorKind::TimedOut)??;
            let (Message::Sockets { listeners, admin, more }, descriptors) = received else {
                return Err(unexpected(&received.0));
            };
            if descriptors.len() != listeners.len() + usize::from(admin.is_some()) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "not as many sockets as addresses came"));
            }
            let mut descriptors = descriptors.into_iter();
            sockets.listeners.extend(listeners.into_iter().zip(descriptors.by_ref()));
            sockets.admin = admin.zip(descriptors.next()).or(sockets.admin);
            if !more {
                return Ok(sockets);
            }
        }
    }

    /// Tells it that this process serves, and waits until it has let go.
    ///
    /// # Errors
    /// When it does not in time. One that has ended meanwhile has.
    pub async fn ready(self) -> io::Result<()> {
        if self.channel.send(&Message::Ready, &[]).await.is_err() {
            return Ok(());
        }
        match timeout(PATIENCE, self.channel.receive()).await {
            Ok(Ok((Message::Released, _)) | Err(_)) => Ok(()),
            Ok(Ok((other, _))) => Err(unexpected(&other)),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

fn unexpected(message: &Message) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected message {message:?}"))
}

/// Sockets that were taken over, by their address, for the listeners of the configuration to take.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<(SocketAddr, TcpListener)>,
    /// Where the process before listens.
    addresses: Vec<SocketAddr>,
}

impl Inherited {
    /// Those of `listeners`.
    pub fn new(listeners: Vec<(SocketAddr, OwnedFd)>) -> Self {
        let addresses = listeners.iter().map(|(address, _)| *address).collect();
        Self { sockets: listeners.into_iter().map(|(address, socket)| (address, socket.into())).collect(), addresses }
    }

    /// Takes the sockets that are bound to `address`.
    pub fn take(&mut self, address: SocketAddr) -> Vec<TcpListener> {
        self.sockets.extract_if(.., |(bound, _)| *bound == address).map(|(_, socket)| socket).collect()
    }

    /// Takes all that was not taken.
    pub fn rest(&mut self) -> Vec<(SocketAddr, TcpListener)> {
        std::mem::take(&mut self.sockets)
    }

    /// Where the process before listens, taken or not.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;
