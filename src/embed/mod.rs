//! An isobar inside a program: the binary is such a program, and so is each test.
//!
//! ```no_run
//! # fn main() -> Result<(), isobar::supervisor::Error> {
//! let running = isobar::Isobar::builder().config_file("lb.toml").start()?;
//! println!("listening on {:?}", running.listener_addresses());
//! running.wait();
//! # Ok(())
//! # }
//! ```
//!
//! It runs on threads of its own: the workers, and one for control, which reloads, watches the file and answers at the
//! admin address. The program around it needs no runtime, and may have any.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::{Notify, oneshot};
use tracing::field::display;
use tracing::{debug, error, info};

use crate::admin::Admin;
use crate::config::{AdminConfig, Loaded, Services};
use crate::discovery::{Discovery, FoundBackends, services_at_start};
use crate::file_descriptors;
use crate::handover::{Inherited, Sockets};
use crate::middleware::{self, Kinds};
use crate::strategy::{Factories, Factory};
use crate::supervisor::file_watch::{self, Stamp};
use crate::supervisor::{
    ConfigSource, ControlTask, Ended, Error, Handle, Harmless, Signals, Successor, Supervisor, vocabulary,
    with_first_services,
};
use crate::telemetry::logging::{self, Logging};

mod admin_view;
mod served_registry;
mod systemd;
mod takeover;

use served_registry::ServedRegistry;
use takeover::{LentSocket, ProcessBefore};

/// A load balancer; see [`Isobar::builder`].
#[derive(Debug)]
pub struct Isobar;

impl Isobar {
    /// A builder with the defaults.
    pub fn builder() -> Builder {
        Builder {
            source: ConfigSource::File("lb.toml".into()),
            factories: Factories::default(),
            found: Vec::new(),
            kinds: Kinds::default(),
            watch: true,
            admin: true,
            signals: false,
            logging: false,
            takeover: None,
            descriptors: false,
        }
    }
}

/// What to start, and how much of the process belongs to it.
#[derive(Debug)]
#[must_use = "nothing runs before `start`"]
pub struct Builder {
    source: ConfigSource,
    factories: Factories,
    found: Vec<FoundBackends>,
    kinds: Kinds,
    watch: bool,
    admin: bool,
    signals: bool,
    logging: bool,
    takeover: Option<Takeover>,
    descriptors: bool,
}

/// How a process takes the place of the one that serves the same file, and gives its own to the next. Both are of one user, in one
/// network namespace. Linux only; elsewhere it does nothing.
#[derive(Clone, Debug)]
pub struct Takeover {
    /// Whether it takes over from a process that serves. Otherwise it does from one that is stopping already, and from no other.
    pub replace: bool,
    /// What SIGUSR2 starts, if [`Builder::signals`] are acted upon: it is to replace.
    pub successor: Option<Successor>,
}

impl Builder {
    /// Reads the configuration from this file and follows its changes. Default is `lb.toml` in the working directory.
    pub fn config_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.source = ConfigSource::File(path.into());
        self
    }

    /// Reads the configuration from this text instead of a file. [`Handle::apply_text`] replaces it.
    pub fn config_text(mut self, text: impl Into<String>) -> Self {
        self.source = ConfigSource::Text(text.into());
        self
    }

    /// Lets the configuration use a strategy of this program's own by `name`.
    pub fn strategy(mut self, name: impl Into<String>, factory: Factory) -> Self {
        self.factories.add(name, factory);
        self
    }

    /// Has `upstream` served by the backends that `discovery` finds too, beside those that the configuration lists for it, which
    /// may be none. `name` is that of the source among those of the upstream, at the admin address and in the log. As long as the
    /// configuration has no upstream of that name, what is found waits for it.
    pub fn discovery(
        mut self,
        upstream: impl AsRef<str>,
        name: impl Into<Arc<str>>,
        discovery: impl Discovery,
    ) -> Self {
        self.found.push(FoundBackends::by(upstream.as_ref().into(), name.into(), discovery));
        self
    }

    /// Lets the configuration use a kind of middleware of this program's own by `name`: `[middleware.NAME.KIND]`.
    pub fn middleware(mut self, kind: impl Into<String>, factory: middleware::MiddlewareFactory) -> Self {
        self.kinds.add(kind, factory);
        self
    }

    /// Whether isobar follows changes of the file. Default is `true`.
    pub fn watch(mut self, watch: bool) -> Self {
        self.watch = watch;
        self
    }

    /// Whether the admin address of the configuration is served. Default is `true`.
    pub fn admin(mut self, admin: bool) -> Self {
        self.admin = admin;
        self
    }

    /// Whether the signals of the process are acted upon: SIGHUP reloads, SIGUSR1 opens log files anew, SIGTERM, SIGINT and
    /// SIGQUIT stop, and a second one of these ends at once; SIGUSR2 starts [`Takeover::successor`]; SIGALRM does nothing. Default is
    /// `false`: signals belong to the program.
    pub fn signals(mut self, signals: bool) -> Self {
        self.signals = signals;
        self
    }

    /// Whether the configuration's `[log]` sets up the logging of the process. Default is `false`: events go
    /// to whatever `tracing` subscriber the program has. It should keep the target `h2` at `error`: clients can have that library
    /// warn as often as they like.
    pub fn logging(mut self, logging: bool) -> Self {
        self.logging = logging;
        self
    }

    /// How it takes over from a running process, and hands over to the next. Default is neither.
    pub fn takeover(mut self, takeover: Takeover) -> Self {
        self.takeover = Some(takeover);
        self
    }

    /// Whether the process may open as many files as the system allows it: its soft limit of file descriptors is raised to the hard one.
    /// Default is `false`: the limit is the program's, and child processes inherit it.
    pub fn all_descriptors(mut self, descriptors: bool) -> Self {
        self.descriptors = descriptors;
        self
    }

    /// Starts isobar. When this returns, isobar accepts connections.
    ///
    /// # Errors
    /// When the configuration is refused, an address cannot be bound or a thread not started. Nothing is left running.
    pub fn start(self) -> Result<Running, Error> {
        let (started, start) = std::sync::mpsc::channel();
        let (end, ended) = oneshot::channel();
        // Everything is made where it is used, and dropped there if the start fails: a runtime may not be dropped inside
        // another one, and the program around may well have one.
        let control = move || match self.launch() {
            Err(error) => drop(started.send(Err(error))),
            Ok(Launched { runtime, control, handle, admin, registry, addresses }) => {
                let (watched, vital) = (handle.clone(), handle.events().vital().clone());
                drop(started.send(Ok((handle, addresses))));
                let run = AssertUnwindSafe(|| runtime.block_on(vital.watch("control".into(), control.run())));
                let outcome = match std::panic::catch_unwind(run) {
                    Ok(outcome) => outcome,
                    Err(panic) => {
                        // The workers would go on without a control plane; and to drop the runtime may wait for a look at a file.
                        watched.abandon();
                        runtime.shutdown_background();
                        std::panic::resume_unwind(panic);
                    }
                };
                // The word goes out before anything is taken down: after a second signal nothing should wait for that.
                let _ = end.send(outcome);
                if matches!(outcome, Ended::Stopped { .. } | Ended::Failed { .. }) {
                    if let Some(registry) = registry {
                        runtime.block_on(registry.end());
                    }
                    if let Some(admin) = admin {
                        runtime.block_on(admin.end());
                    }
                }
                // A look at a file may hang on a dead network mount; the thread that hangs is left behind.
                runtime.shutdown_background();
            }
        };
        let thread = thread::Builder::new().name("isobar-control".into()).spawn(control).map_err(Error::Thread)?;
        match start.recv() {
            Ok(Ok((handle, (admin_address, registry_address)))) => {
                Ok(Running { handle, admin_address, registry_address, ended: Some(ended), thread: Some(thread) })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => match thread.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => Err(Error::Stopping),
            },
        }
    }

    fn launch(self) -> Result<Launched, Error> {
        // Before the file is read, so that a change in between is seen as one.
        let stamp = match &self.source {
            ConfigSource::File(path) => Stamp::of(path).ok(),
            ConfigSource::Text(_) => None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Thread)?;
        // Signals register with the runtime they are made in.
        let inside = runtime.enter();
        let harmless = self.signals.then(Harmless::take).transpose().map_err(Error::Thread)?;
        let vocabulary = vocabulary(&self.factories, &self.kinds);
        let loaded = self.source.load(&vocabulary)?;
        let logging = self.logging.then(|| logging::init(&loaded.config.log)).transpose().map_err(Error::Thread)?;
        let unwritten = Unwritten(logging.clone());
        let services = match loaded.template {
            Some(_) => runtime.block_on(services_at_start(&loaded.config)),
            None => Services::new(),
        };
        let (Loaded { config, warnings, .. }, services) = with_first_services(loaded, &vocabulary, &services);
        if self.descriptors {
            raise_descriptors();
        }
        let (file, takeover) = match (&self.source, self.takeover) {
            (ConfigSource::File(path), Some(takeover)) => (Some(path.clone()), takeover),
            _ => (None, Takeover { replace: false, successor: None }),
        };
        let mut before = file.as_ref().and_then(|file| runtime.block_on(ProcessBefore::find(file, takeover.replace)));
        let inherited = match &mut before {
            Some(before) => runtime.block_on(before.take()).map_err(Error::Takeover)?,
            None => Sockets::default(),
        };

        let admin_config = config.admin.clone().filter(|_| self.admin);
        let bind = |config| bind_admin(config, inherited.admin, before.is_some());
        let mut admin = admin_config.as_ref().map(bind).transpose()?;
        let admin_address = admin.as_ref().and_then(Admin::address);
        let registry = config.registry.as_ref();
        let registry = registry.map(|config| served_registry::bind(config, before.is_some())).transpose()?;
        let registry_address = registry.as_ref().map(|bound| bound.address());
        let signals = harmless.map(Signals::take).transpose().map_err(Error::Thread)?;
        let watched = file_to_watch(&self.source, self.watch);

        let extensions = (self.factories, self.kinds);
        let supervisor = Supervisor::start(config, extensions, self.found, Inherited::new(inherited.listeners))
            .map_err(|error| error.beside(warnings.clone()))?;
        if let Some(AdminConfig { unix_socket, .. }) = &admin_config {
            let (address, socket) =
                (admin_address.map(display), unix_socket.as_ref().map(|path| display(path.display())));
            info!(address, socket, "admin listening");
        }
        let (control, handle) = ControlTask::new(supervisor, self.source, vocabulary, logging, (&warnings, services));
        let vital = handle.events().vital().clone();
        if let Some(signals) = signals {
            runtime.spawn(vital.clone().watch("signals".into(), signals.forward(handle.clone(), takeover.successor)));
        }
        if let (Some(admin), true) = (&mut admin, before.is_some())
            && let Err(error) = admin.place()
        {
            error!(%error, "the Unix socket of the admin address stays that of the process before");
        }
        let lent = admin.as_ref().and_then(|admin| admin.lend().ok()?);
        let most = handle.process().descriptors.plan.admin;
        let mut admin = admin.map(|admin| ServedAdmin::start(&runtime, admin.with_connections(most), &handle));
        let registry = registry.zip(handle.registry());
        let mut registry = registry.map(|(bound, registry)| ServedRegistry::start(&runtime, bound, registry, &handle));
        if let Some(before) = before {
            runtime.block_on(before.replace());
        }
        if let Some(file) = file {
            systemd::ready();
            let stop_admin = admin.as_mut().and_then(ServedAdmin::stopper);
            let stop_registry = registry.as_mut().and_then(ServedRegistry::stopper);
            runtime.spawn(takeover::offer(file, handle.clone(), lent, stop_admin, stop_registry));
        }
        if let Some(path) = watched {
            runtime.spawn(vital.watch("watch over the file".into(), file_watch::run(path, stamp, handle.clone())));
        }
        drop(inside);
        unwritten.leave();
        Ok(Launched { runtime, control, handle, admin, registry, addresses: (admin_address, registry_address) })
    }
}

/// What was logged before the start failed: written before the process ends.
struct Unwritten(Option<Logging>);

impl Unwritten {
    /// It goes on.
    fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        self.0.iter().for_each(Logging::flush);
    }
}

fn file_to_watch(source: &ConfigSource, watch: bool) -> Option<PathBuf> {
    match source {
        ConfigSource::File(path) if watch => Some(path.clone()),
        ConfigSource::File(_) | ConfigSource::Text(_) => None,
    }
}

/// Where that is not possible, what there is has to do.
fn raise_descriptors() {
    match file_descriptors::raise() {
        Ok((before, now)) if before != now => {
            info!(from = before.soft, to = now.soft, "raised the limit of file descriptors")
        }
        Ok(_) => {}
        Err(error) => debug!(%error, "could not raise the limit of file descriptors"),
    }
}

/// At its address: with the socket of the process before, where that had the same.
fn bind_admin(config: &AdminConfig, inherited: Option<LentSocket>, replacing: bool) -> Result<Admin, Error> {
    let bind = |address| {
        let admin = match inherited {
            Some((bound, socket)) if bound == address => Admin::inherited(socket.into()),
            _ => Admin::bind(address),
        };
        admin.map_err(|source| Error::Admin { address, source })
    };
    let admin = config.address.map(bind).transpose()?.unwrap_or_default();
    let Some(path) = &config.unix_socket else { return Ok(admin) };
    // That of the process before stays in its place until this one serves.
    let bound = admin.with_socket(path, replacing).and_then(|mut admin| match replacing {
        true => Ok(admin),
        false => admin.place().map(|()| admin),
    });
    bound.map_err(|source| Error::AdminSocket { path: path.clone(), source })
}

/// What the control thread goes on with.
struct Launched {
    runtime: Runtime,
    control: ControlTask,
    handle: Handle,
    admin: Option<ServedAdmin>,
    registry: Option<ServedRegistry>,
    /// The admin address and that of the registry.
    addresses: (Option<SocketAddr>, Option<SocketAddr>),
}

/// The admin address while it answers. It is the last to stop, unless another process takes it over: until then it says that the
/// process is stopping.
struct ServedAdmin {
    task: tokio::task::JoinHandle<()>,
    stop: Arc<Notify>,
    closed: Option<oneshot::Receiver<()>>,
}

impl ServedAdmin {
    fn start(runtime: &Runtime, admin: Admin, handle: &Handle) -> Self {
        let stop = Arc::new(Notify::new());
        let (closing, closed) = oneshot::channel();
        let admin = admin.telling(closing);
        let (control, stopped) = (Arc::new(handle.clone()), Arc::clone(&stop));
        let vital = handle.events().vital().clone();
        let task = runtime.spawn(vital.watch("admin address".into(), async move {
            if let Err(error) = admin.serve(control, stopped.notified()).await {
                error!(%error, "the admin address is not served");
            }
        }));
        Self { task, stop, closed: Some(closed) }
    }

    /// Ends it when it is told, and is told when it accepts nothing more. Once.
    fn stopper(&mut self) -> Option<(Arc<Notify>, oneshot::Receiver<()>)> {
        Some((Arc::clone(&self.stop), self.closed.take()?))
    }

    async fn end(self) {
        // Kept for it where it does not wait yet.
        self.stop.notify_one();
        // It panicked if this fails; it is over all the same.
        let _ = self.task.await;
    }
}

/// A load balancer that runs. Dropped, it is stopped at once.
#[derive(Debug)]
pub struct Running {
    handle: Handle,
    admin_address: Option<SocketAddr>,
    registry_address: Option<SocketAddr>,
    ended: Option<oneshot::Receiver<Ended>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// A handle to observe and control it; it can be cloned, and outlives this.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The addresses that it listens on now, in the order of the configuration, with the ports that were taken for port 0.
    pub fn listener_addresses(&self) -> Vec<SocketAddr> {
        self.handle.listeners().iter().map(|listener| listener.address).collect()
    }

    /// The admin address; `None` if it is disabled.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// The registry's address; `None` if there is no registry.
    pub fn registry_address(&self) -> Option<SocketAddr> {
        self.registry_address
    }

    /// Blocks until it has ended: because of [`Handle::stop`], or of a signal. Not inside an async function; see
    /// [`Running::ended`].
    pub fn wait(mut self) -> Ended {
        let ended = self.ended.take().and_then(|ended| ended.blocking_recv().ok());
        self.close(ended)
    }

    /// Waits until it has ended.
    pub async fn ended(mut self) -> Ended {
        let ended = match self.ended.take() {
            Some(ended) => ended.await.ok(),
            None => None,
        };
        self.close(ended)
    }

    /// Stops it and waits until it has ended: no new connections, and those that are open may finish within `grace`.
    pub async fn stop(self, grace: Duration) -> Ended {
        self.handle.stop(Some(grace));
        self.ended().await
    }

    fn close(mut self, ended: Option<Ended>) -> Ended {
        let ended = self.joined(ended);
        self.handle.logging().iter().for_each(|logging| logging.flush());
        ended
    }

    fn joined(&mut self, ended: Option<Ended>) -> Ended {
        match (ended, self.thread.take()) {
            // Left running on purpose: the program is to end at once.
            (Some(ended @ Ended::Interrupted { .. }), _) => ended,
            (ended, Some(thread)) => match (thread.join(), ended) {
                (Err(panic), _) => std::panic::resume_unwind(panic),
                (Ok(()), ended) => ended.unwrap_or(Ended::Stopped { cut: 0 }),
            },
            (ended, None) => ended.unwrap_or(Ended::Stopped { cut: 0 }),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.stop(Some(Duration::ZERO));
    }
}

#[cfg(test)]
mod tests;
