//! From one process to the next: which takes over from which, and what each does about it.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::served_registry::RegistryStopper;
use super::systemd;
use crate::handover::{Offer, Predecessor, Sockets};
use crate::supervisor::Handle;

/// A listening socket with its address.
pub(super) type LentSocket = (SocketAddr, OwnedFd);

/// How long to wait after a process could not be talked to.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the next process may take from the sockets to being ready. Until then it has them too, and what a reload here ceases to listen
/// on would still be connected to.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// How long the admin address may take to accept nothing more.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// How often it is tried to offer what the process before has just ceased to offer, and how long to wait when that was in vain.
const TRIES: u32 = 20;
const LONG_PAUSE: Duration = Duration::from_secs(5);

/// The process that this one takes over from.
pub(super) struct ProcessBefore(Predecessor);

impl ProcessBefore {
    /// Looks for it: one that is stopping, or with `replace` any that serves the file.
    pub(super) async fn find(file: &Path, replace: bool) -> Option<Self> {
        let Some(found) = Predecessor::find(file).await else {
            if replace {
                info!("no process serves this file that could be replaced");
            }
            return None;
        };
        if found.is_stopping() || replace {
            return Some(Self(found));
        }
        // The addresses may be others in spite of that: where they are not, the start fails, and this says why.
        warn!(pid = found.pid(), "another isobar serves this file; start with --replace to take over from it");
        None
    }

    pub(super) async fn take(&mut self) -> std::io::Result<Sockets> {
        self.0.take().await
    }

    /// Has it stop, now that this process serves.
    pub(super) async fn replace(self) {
        let pid = self.0.pid();
        match self.0.ready().await {
            Ok(()) => info!(pid, "took over from the process that served this file"),
            Err(error) => warn!(pid, %error, "took over, and the process before has not said that it stops"),
        }
    }
}

/// Gives what this process listens on to the one that takes its place, and has this one stop then.
pub(super) async fn offer(
    file: PathBuf,
    handle: Handle,
    mut admin: Option<LentSocket>,
    stop_admin: Option<(Arc<Notify>, oneshot::Receiver<()>)>,
    stop_registry: Option<RegistryStopper>,
) {
    let Some(offer) = make(&file).await else { return };
    loop {
        let visitor = match offer.visitor(|| handle.status().stopping).await {
            Ok(visitor) => visitor,
            Err(error) => {
                debug!(%error, "could not talk to another process");
                sleep(PAUSE).await;
                continue;
            }
        };
        let pid = visitor.pid();
        info!(pid, "another process is about to take over");
        let given = async {
            let sockets = Sockets { listeners: handle.lend().await?, admin: admin.take() };
            let given = tokio::time::timeout(READY_LIMIT, visitor.give(&sockets)).await;
            admin = sockets.admin;
            given.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        };
        if let Err(error) = given.await {
            warn!(pid, %error, "the process that was about to take over did not; this one serves on");
            continue;
        }
        systemd::replaced_by(pid);
        handle.replaced();
        if let Some((stop, closed)) = stop_admin {
            stop.notify_one();
            // What asks there when the next process has said that it took over is to be answered by that one.
            let _ = tokio::time::timeout(CLOSE_LIMIT, closed).await;
        }
        // The next process binds its address then, and reads what was written.
        if let Some(stopper) = stop_registry {
            stopper.end().await;
        }
        drop((offer, admin));
        info!(pid, "another process has taken over");
        // It need not be told where it is gone.
        let _ = visitor.released().await;
        return;
    }
}

/// Where another process has the name, it is tried again for as long as this one lives: the process before lets go of it in a moment, and
/// any other one some day.
async fn make(file: &Path) -> Option<Offer> {
    for tries in 0.. {
        match Offer::make(file) {
            Ok(offer) => return Some(offer),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && tries < TRIES => sleep(PAUSE).await,
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                if tries == TRIES {
                    let held_by = crate::handover::holder(file);
                    warn!(
                        held_by,
                        "another process holds the name of this file, so none can take over from this one until it lets go"
                    );
                }
                sleep(LONG_PAUSE).await;
            }
            Err(error) => {
                debug!(%error, "no other process can take over from this one");
                return None;
            }
        }
    }
    None
}
