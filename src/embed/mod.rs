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
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tracing::field::display;
use tracing::{error, info};

use crate::admin::Admin;
use crate::config::{AdminConfig, Loaded};
use crate::strategy::{Factories, Factory};
use crate::supervisor::watch::{self, Stamp};
use crate::supervisor::{Control, Ended, Error, Handle, Signals, Source, Supervisor, vocabulary};
use crate::telemetry::logging;

mod seen;

/// A load balancer; see [`Isobar::builder`].
#[derive(Debug)]
pub struct Isobar;

impl Isobar {
    /// Begins to describe one.
    pub fn builder() -> Builder {
        Builder {
            source: Source::File("lb.toml".into()),
            factories: Factories::default(),
            watch: true,
            admin: true,
            signals: false,
            logging: false,
        }
    }
}

/// What to start, and how much of the process belongs to it.
#[derive(Debug)]
#[must_use = "nothing runs before `start`"]
pub struct Builder {
    source: Source,
    factories: Factories,
    watch: bool,
    admin: bool,
    signals: bool,
    logging: bool,
}

impl Builder {
    /// Runs as the file says, `lb.toml` where this is not called, and follows its changes.
    pub fn config_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.source = Source::File(path.into());
        self
    }

    /// Runs as the text says. [`Handle::apply_text`] replaces it.
    pub fn config_text(mut self, text: impl Into<String>) -> Self {
        self.source = Source::Text(text.into());
        self
    }

    /// Lets the configuration use a strategy of this program's own by `name`.
    pub fn strategy(mut self, name: impl Into<String>, factory: Factory) -> Self {
        self.factories.add(name, factory);
        self
    }

    /// Whether the file's changes are followed; they are where this is not called.
    pub fn watch(mut self, watch: bool) -> Self {
        self.watch = watch;
        self
    }

    /// Whether the configuration's admin address is served; it is where this is not called.
    pub fn admin(mut self, admin: bool) -> Self {
        self.admin = admin;
        self
    }

    /// Whether the signals of the process are acted upon: SIGHUP reloads, SIGTERM and SIGINT stop, and a further one of
    /// these ends at once. Not where this is not called: they belong to the program.
    pub fn signals(mut self, signals: bool) -> Self {
        self.signals = signals;
        self
    }

    /// Whether the configuration's `[log]` sets up the logging of the process. Not where this is not called: events go
    /// to whatever `tracing` subscriber the program has. It should keep the target `h2` at `error`: clients can have that library
    /// warn as often as they like.
    pub fn logging(mut self, logging: bool) -> Self {
        self.logging = logging;
        self
    }

    /// Starts it. When this returns, it accepts connections.
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
            Ok(Launched { runtime, control, handle, admin, admin_address }) => {
                drop(started.send(Ok((handle, admin_address))));
                let outcome = runtime.block_on(control.run());
                // The word goes out before anything is taken down: after a second signal nobody should wait for that.
                let _ = end.send(outcome);
                if let (Some(admin), Ended::Stopped { .. }) = (admin, outcome) {
                    runtime.block_on(admin.stop());
                }
                // A look at a file may hang on a dead network mount; the thread that hangs is left behind.
                runtime.shutdown_background();
            }
        };
        let thread = thread::Builder::new().name("isobar-control".into()).spawn(control).map_err(Error::Thread)?;
        match start.recv() {
            Ok(Ok((handle, admin_address))) => {
                Ok(Running { handle, admin_address, ended: Some(ended), thread: Some(thread) })
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
            Source::File(path) => Stamp::of(path).ok(),
            Source::Text(_) => None,
        };
        let vocabulary = vocabulary(&self.factories);
        let Loaded { config, warnings } = self.source.load(&vocabulary)?;
        let logging = self.logging.then(|| logging::init(&config.log));
        let admin = config.admin.as_ref().filter(|_| self.admin).map(bind_admin).transpose()?;
        let admin_address = admin.as_ref().and_then(Admin::address);
        let admin_socket = config.admin.as_ref().filter(|_| self.admin).and_then(|admin| admin.unix_socket.clone());

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Thread)?;
        // Signals register with the runtime they are made in.
        let inside = runtime.enter();
        let signals = self.signals.then(Signals::take).transpose().map_err(Error::Thread)?;
        let watched = match &self.source {
            Source::File(path) if self.watch => Some(path.clone()),
            Source::File(_) | Source::Text(_) => None,
        };

        let supervisor = Supervisor::start(config, self.factories).map_err(|error| error.beside(warnings.clone()))?;
        if admin.is_some() {
            let (address, socket) =
                (admin_address.map(display), admin_socket.as_ref().map(|path| display(path.display())));
            info!(address, socket, "admin listening");
        }
        let (control, handle) = Control::new(supervisor, self.source, vocabulary, logging, &warnings);
        if let Some(signals) = signals {
            runtime.spawn(signals.forward(handle.clone()));
        }
        let admin = admin.map(|admin| Served::start(&runtime, admin, &handle));
        if let Some(path) = watched {
            runtime.spawn(watch::run(path, stamp, handle.clone()));
        }
        drop(inside);
        Ok(Launched { runtime, control, handle, admin, admin_address })
    }
}

fn bind_admin(config: &AdminConfig) -> Result<Admin, Error> {
    let bind = |address| Admin::bind(address).map_err(|source| Error::Admin { address, source });
    let admin = config.address.map(bind).transpose()?.unwrap_or_default();
    match &config.unix_socket {
        Some(path) => admin.with_socket(path).map_err(|source| Error::AdminSocket { path: path.clone(), source }),
        None => Ok(admin),
    }
}

/// What the control thread goes on with.
struct Launched {
    runtime: Runtime,
    control: Control,
    handle: Handle,
    admin: Option<Served>,
    admin_address: Option<SocketAddr>,
}

/// The admin address while it answers. It is the last to stop: until then it says that the process is stopping.
struct Served {
    task: tokio::task::JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

impl Served {
    fn start(runtime: &Runtime, admin: Admin, handle: &Handle) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let control = Arc::new(handle.clone());
        let task = runtime.spawn(async move {
            let stopped = async { drop(stopped.await) };
            if let Err(error) = admin.serve(control, stopped).await {
                error!(%error, "the admin address is not served");
            }
        });
        Self { task, stop }
    }

    async fn stop(self) {
        drop(self.stop);
        // It panicked if this fails; it is over all the same.
        let _ = self.task.await;
    }
}

/// A load balancer that runs. Dropped, it is stopped at once.
#[derive(Debug)]
pub struct Running {
    handle: Handle,
    admin_address: Option<SocketAddr>,
    ended: Option<oneshot::Receiver<Ended>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Looks into it and steers it; may be cloned and outlive this.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Where it listens now, in the order of the configuration, with the ports that were taken for 0.
    pub fn listener_addresses(&self) -> Vec<SocketAddr> {
        self.handle.listeners().iter().map(|listener| listener.address).collect()
    }

    /// Where its admin address is served; `None` where it is switched off.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
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
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    const TEXT: &str = r#"
        workers = 1
        [admin]
        address = "127.0.0.1:0"
        [[listener]]
        address = "127.0.0.1:0"
        [[route]]
        upstream = "u"
        [upstream.u]
        backends = ["127.0.0.1:9001"]
    "#;

    fn is_free(address: SocketAddr) -> bool {
        TcpListener::bind(address).is_ok()
    }

    #[test]
    fn the_admin_address_sees_and_steers_it() {
        let running = Isobar::builder().config_text(TEXT).start().unwrap();
        let ask = |line: &str| {
            let mut stream = TcpStream::connect(running.admin_address().unwrap()).unwrap();
            write!(stream, "{line} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        assert!(ask("GET /readyz").starts_with("HTTP/1.1 200"));
        let reloaded = ask("POST /reload");
        assert!(reloaded.starts_with("HTTP/1.1 200") && reloaded.contains(r#""fate": "kept""#), "{reloaded}");
        assert_eq!(running.handle().snapshot().generation, 2);
    }

    #[test]
    fn wait_returns_when_a_handle_stops_it() {
        let running = Isobar::builder().config_text(TEXT).start().unwrap();
        let admin = running.admin_address().unwrap();
        let handle = running.handle().clone();
        let stopper = thread::spawn(move || handle.stop(None));
        assert_eq!(running.wait(), Ended::Stopped { cut: 0 });
        stopper.join().unwrap();
        assert!(is_free(admin), "the admin address is given back");
    }

    #[test]
    fn dropped_it_stops() {
        let running = Isobar::builder().config_text(TEXT).admin(false).start().unwrap();
        assert_eq!(running.admin_address(), None);
        let address = running.listener_addresses()[0];
        assert!(!is_free(address));
        drop(running);
        assert!((0..250).any(|_| {
            thread::sleep(Duration::from_millis(20));
            is_free(address)
        }));
    }

    #[test]
    fn a_refused_configuration_is_told_at_the_start() {
        let refused = Isobar::builder().config_text("nope = 1").start();
        assert!(matches!(refused, Err(Error::Config(_))), "{refused:?}");
    }
}
