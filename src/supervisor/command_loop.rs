//! The one task that changes what runs: reloads one after the other, then the stop.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, info, warn};

use super::file_watch::{self, Stamp};
use super::handle::{Handle, LastError, ServedState, Stop};
use super::release_memory::GivingBack;
use super::services::{self, FilledFile, FirstServices, ServedServices, ServicesToFill};
use super::{Applied, Error, Reopen, Supervisor, check_files, report};
use crate::config::{self, Loaded, Problem, RefusedConfig, Vocabulary};
use crate::middleware::Kinds;
use crate::strategy::Factories;
use crate::telemetry::events::EventKind;
use crate::telemetry::logging::Logging;

/// Reloads that may wait for their turn; a further one waits before it is queued.
const COMMANDS_WAITING_MAX: usize = 64;

/// Where the configuration comes from.
#[derive(Clone, Debug)]
pub(crate) enum ConfigSource {
    /// A file, read anew at each reload.
    File(PathBuf),
    /// Text of the embedding program.
    Text(String),
}

/// What is under way has so long to end after a task had panicked, or the file's `shutdown_grace` where that is shorter: what is broken may
/// be what it waits for.
pub const FAILED_GRACE: Duration = Duration::from_secs(5);

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As asked. Connections that were still open when the grace was over were cut.
    Stopped {
        /// How many.
        cut: usize,
    },
    /// Because one of its own tasks had panicked, without which it is not whole: see the log. What was under way had
    /// [`FAILED_GRACE`] to end.
    Failed {
        /// Connections that were cut.
        cut: usize,
    },
    /// By a signal that came while it was stopping. Connections may still be open.
    Interrupted {
        /// The number of the signal.
        signal: i32,
    },
}

/// What is asked of the task.
#[derive(Debug)]
pub(super) enum ControlCommand {
    /// Reads the source again.
    Reload {
        /// Why.
        trigger: Trigger,
        /// Where the result is sent.
        reply: Option<oneshot::Sender<ReloadOutcome>>,
    },
    /// Takes another text.
    Apply {
        /// The text.
        text: String,
        /// Where the result is sent.
        reply: oneshot::Sender<ReloadOutcome>,
    },
}

/// Why a reload happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trigger {
    /// The file is another: this one; `None` where it is another at each look.
    File(Option<Stamp>),
    /// SIGHUP.
    Signal,
    /// A handle: the admin address or the embedding program.
    Asked,
}

/// How a reload went; shared by all requests for it.
pub(super) type ReloadOutcome = Result<Arc<Applied>, Arc<Error>>;

/// The task, before it runs.
#[derive(Debug)]
pub(crate) struct ControlTask {
    supervisor: Supervisor,
    source: ConfigSource,
    vocabulary: Vocabulary,
    logging: Option<Logging>,
    commands: mpsc::Receiver<ControlCommand>,
    stops: mpsc::UnboundedReceiver<Stop>,
    services: ServedServices,
}

impl ConfigSource {
    /// Reads and checks it.
    pub(crate) fn load(&self, vocabulary: &Vocabulary) -> Result<Loaded, Error> {
        let loaded = match self {
            Self::File(path) => file_watch::read_at_rest(path)?.load(vocabulary),
            Self::Text(text) => config::parse_whole(text, "lb.toml", &|name| std::env::var(name).ok(), vocabulary),
        };
        loaded.map_err(refused)
    }

    /// The same for a reload. `None`: what was read may be half of the file.
    fn load_for(&self, trigger: Trigger, vocabulary: &Vocabulary) -> Result<Option<Loaded>, Error> {
        let Self::File(path) = self else { return self.load(vocabulary).map(Some) };
        let read = file_watch::read_whole(path, trigger)?;
        read.map(|read| read.load(vocabulary)).transpose().map_err(refused)
    }
}

/// All that is wrong is told at once.
fn refused(refused: RefusedConfig) -> Error {
    Error::from(refused.problems).beside(check_files(&refused.secured))
}

/// The names that a file may use for what the embedding program supplies.
pub(crate) fn vocabulary(factories: &Factories, kinds: &Kinds) -> Vocabulary {
    Vocabulary {
        strategies: factories.names().map(str::to_owned).collect(),
        middleware: kinds.names().map(str::to_owned).collect(),
    }
}

impl ControlTask {
    /// The task and the handle to it. `warnings` are those of the configuration that `supervisor` was started with,
    /// and `first` is what is known of services.
    pub(crate) fn new(
        supervisor: Supervisor,
        source: ConfigSource,
        vocabulary: Vocabulary,
        logging: Option<Logging>,
        (warnings, first): (&[Problem], FirstServices),
    ) -> (Self, Handle) {
        let warnings = &[warnings, &supervisor.warnings].concat()[..];
        let (command, commands) = mpsc::channel(COMMANDS_WAITING_MAX);
        let (stop, stops) = mpsc::unbounded_channel();
        report::warnings(warnings);
        supervisor.shared().note(|status| {
            status.warnings = warnings.iter().map(ToString::to_string).collect();
            if let ConfigSource::File(path) = &source {
                status.file = Some(path.clone());
            }
        });
        let handle = Handle {
            shared: Arc::clone(supervisor.shared()),
            commands: command,
            stops: stop,
            logging: logging.clone(),
        };
        let services = ServedServices::new(first, supervisor.services_heard());
        (Self { supervisor, source, vocabulary, logging, commands, stops, services }, handle)
    }

    /// Reloads until it is asked to stop, and stops.
    pub(crate) async fn run(self) -> Ended {
        let Self { mut supervisor, source, vocabulary, logging, mut commands, mut stops, services } = self;
        let shared = &Arc::clone(supervisor.shared());
        let vital = supervisor.shared().process.events.vital().clone();
        let giving_back = GivingBack::default();
        let mut reloads = Reloads {
            supervisor: &mut supervisor,
            source,
            vocabulary,
            logging,
            giving_back,
            services,
            services_failed: None,
        };
        // A reload may hang in reading a file from a network; the stop does not wait for it. It is given up only where it
        // waits, which is never between the prepare and the retire.
        let failed = async || {
            let what = vital.failed().await;
            error!(what, "panicked; the process is not whole without it, and stops");
            Stop::Failed
        };
        let stop = tokio::select! {
            biased;
            Some(stop) = stops.recv() => stop,
            stop = failed() => stop,
            () = reloads.serve(&mut commands) => Stop::Asked(None),
        };
        let stop = tokio::select! {
            biased;
            stop = delayed(shared, stop, &mut stops) => stop,
            stop = failed(), if !matches!(stop, Stop::Failed) => Ok(stop),
            () = reloads.serve(&mut commands) => Ok(stop),
        };
        let stop = match stop {
            Ok(stop) => stop,
            Err(signal) => return interrupted(signal),
        };
        drop(commands);
        finish(&supervisor, stop, &mut stops).await
    }
}

/// Waits for `shutdown_delay` where a signal asks to stop, with everything as before but `/readyz`: a balancer in front
/// looks there, and sends new connections until it has seen the answer. A process that takes over ends the wait, and so does a program that asks.
///
/// # Errors
/// The number of a further signal.
async fn delayed(shared: &ServedState, stop: Stop, stops: &mut mpsc::UnboundedReceiver<Stop>) -> Result<Stop, i32> {
    shared.note(|status| status.stopping = true);
    let delay = shared.workers.snapshot().config.shutdown_delay;
    if delay.is_zero() || !matches!(stop, Stop::Signal(_)) {
        return Ok(stop);
    }
    info!(shutdown_delay_s = delay.as_secs_f64(), "asked to stop, serving on for shutdown_delay");
    tokio::select! {
        () = tokio::time::sleep_until(deadline(delay).into()) => Ok(stop),
        Some(further) = stops.recv() => match further {
            Stop::Signal(signal) => Err(signal),
            Stop::Asked(_) | Stop::Replaced | Stop::Failed => Ok(further),
        },
    }
}

fn interrupted(signal: i32) -> Ended {
    warn!(signal, "second signal, ending at once");
    Ended::Interrupted { signal }
}

async fn finish(supervisor: &Supervisor, stop: Stop, stops: &mut mpsc::UnboundedReceiver<Stop>) -> Ended {
    let shared = supervisor.shared();
    let configured = shared.workers.snapshot().config.shutdown_grace;
    let grace = match stop {
        Stop::Asked(Some(grace)) => grace,
        Stop::Asked(None) | Stop::Signal(_) | Stop::Replaced => configured,
        Stop::Failed => configured.min(FAILED_GRACE),
    };
    info!(grace_s = grace.as_secs_f64(), connections = shared.workers.connections().iter().sum::<usize>(), "stopping");

    tokio::select! {
        cut = supervisor.stop(deadline(grace)) => {
            if cut > 0 {
                warn!(cut, "stopped, connections that were still open were cut");
            } else {
                info!("stopped");
            }
            // Also what fails while it stops.
            match shared.process.events.vital().failure() {
                Some(what) => {
                    error!(what, "ends as failed");
                    Ended::Failed { cut }
                }
                None => Ended::Stopped { cut },
            }
        }
        signal = next_signal(stops, matches!(stop, Stop::Signal(_))) => interrupted(signal),
    }
}

/// A time too far away for the clock counts as a year.
fn deadline(grace: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(grace).unwrap_or(now + Duration::from_secs(365 * 24 * 3600))
}

/// A further signal: the second one where none had asked for the stop, `signalled`.
async fn next_signal(stops: &mut mpsc::UnboundedReceiver<Stop>, mut signalled: bool) -> i32 {
    loop {
        match stops.recv().await {
            Some(Stop::Signal(signal)) if signalled => return signal,
            Some(Stop::Signal(_)) => signalled = true,
            Some(Stop::Asked(_) | Stop::Replaced | Stop::Failed) => {}
            None => return std::future::pending().await,
        }
    }
}

/// Reloads, one after the other.
struct Reloads<'a> {
    supervisor: &'a mut Supervisor,
    source: ConfigSource,
    vocabulary: Vocabulary,
    logging: Option<Logging>,
    giving_back: GivingBack,
    services: ServedServices,
    /// Why other services could not be served, the last time that this was tried.
    services_failed: Option<String>,
}

impl Reloads<'_> {
    /// Ends when every handle is gone.
    async fn serve(&mut self, commands: &mut mpsc::Receiver<ControlCommand>) {
        let mut held_back = None;
        loop {
            let command = match held_back.take() {
                Some(command) => Some(command),
                None => tokio::select! {
                    command = commands.recv() => command,
                    () = self.services.due() => {
                        self.look_at_services().await;
                        continue;
                    }
                },
            };
            let Some(command) = command else { return };
            match command {
                ControlCommand::Apply { text, reply } => {
                    let source = ConfigSource::Text(text);
                    let loaded = self.load(source.clone(), Trigger::Asked).await;
                    let Some(loaded) = loaded.transpose() else { continue };
                    let outcome = self.apply(Trigger::Asked, loaded);
                    if outcome.is_ok() && matches!(self.source, ConfigSource::Text(_)) {
                        self.source = source;
                    }
                    answer([reply], &outcome);
                }
                ControlCommand::Reload { trigger, reply } => {
                    let mut batch = Batch { trigger, replies: reply.into_iter().collect() };
                    held_back = batch.join_waiting(commands);
                    debug!(trigger = ?batch.trigger, "reloading");
                    let loaded = self.load(self.source.clone(), batch.trigger).await;
                    let Some(loaded) = loaded.transpose() else {
                        debug!("the file was written while it was read");
                        continue;
                    };
                    let outcome = self.apply(batch.trigger, loaded);
                    answer(batch.replies, &outcome);
                }
            }
        }
    }

    /// Nothing waits in here.
    fn apply(&mut self, trigger: Trigger, loaded: Result<Loaded, Error>) -> ReloadOutcome {
        let reopen = if matches!(trigger, Trigger::File(_)) { Reopen::Changed } else { Reopen::All };
        let outcome = loaded.and_then(|Loaded { config, warnings, template, service_tags: prefixes, left_out }| {
            let applied = self.supervisor.apply(config, warnings, reopen)?;
            let filled = FilledFile { template, prefixes, left_out };
            self.services.applied(filled, &self.supervisor.shared().workers.snapshot());
            Ok(applied)
        });
        self.giving_back.begin();
        match outcome {
            Ok(applied) => Ok(self.note_applied(applied)),
            Err(error) => Err(self.note_refused(trigger, error)),
        }
    }

    /// Reads on a thread that may block: signals and the admin address do not wait for a slow disk. Services that are known are filled in.
    async fn load(&self, source: ConfigSource, trigger: Trigger) -> Result<Option<Loaded>, Error> {
        let (vocabulary, known) = (self.vocabulary.clone(), self.services.known());
        beside(move || {
            let loaded = source.load_for(trigger, &vocabulary)?;
            Ok(loaded.map(|loaded| services::filled(loaded, &vocabulary, &known)))
        })
        .await
    }

    /// Serves the services that are listed now.
    async fn look_at_services(&mut self) {
        let snapshot = self.supervisor.shared().workers.snapshot();
        let Some((template, services)) = self.services.look(&snapshot, Instant::now()) else { return };
        let vocabulary = self.vocabulary.clone();
        let ServicesToFill { settled, others } = services;
        let filled = beside(move || template.fill(&vocabulary, &settled, &others).map_err(refused)).await;
        let outcome = filled.and_then(|Loaded { config, template, service_tags: prefixes, left_out, .. }| {
            let applied = self.supervisor.apply(config, Vec::new(), Reopen::Changed)?;
            let filled = FilledFile { template, prefixes, left_out };
            self.services.applied(filled, &self.supervisor.shared().workers.snapshot());
            Ok(applied)
        });
        self.services.filled(Instant::now());
        self.giving_back.begin();
        match outcome {
            Ok(applied) => self.note_services(&applied),
            Err(error) => self.note_services_failed(&error),
        }
    }

    /// It is tried again each second, and told once. The status is that of the file.
    fn note_services_failed(&mut self, error: &Error) {
        let text = error.to_string().trim_end().to_owned();
        if self.services_failed.as_ref() != Some(&text) {
            error!(problems = %text, "services changed, and could not be served; serving those before");
            self.services_failed = Some(text);
        }
    }

    fn note_services(&mut self, applied: &Applied) {
        self.services_failed = None;
        if applied.plan.is_empty() {
            return;
        }
        let shared = self.supervisor.shared();
        report::services(applied);
        shared.note(|status| status.generation = applied.generation);
        shared.process.events.publish(EventKind::Reloaded { generation: applied.generation, changed: true });
    }

    fn note_applied(&self, applied: Applied) -> Arc<Applied> {
        let shared = self.supervisor.shared();
        if let Some(logging) = &self.logging {
            // The check has refused a level that is none; if it has not, the level stays.
            if let Err(error) = logging.set_level(&shared.workers.snapshot().config.log.level) {
                warn!(%error, "log level not changed");
            }
        }
        report::applied(&applied);
        shared.note(|status| {
            status.generation = applied.generation;
            status.loaded_at = SystemTime::now();
            status.reloads_applied += 1;
            status.warnings = applied.warnings.iter().map(ToString::to_string).collect();
            status.last_error = None;
        });
        let changed = !applied.plan.is_empty();
        shared.process.events.publish(EventKind::Reloaded { generation: applied.generation, changed });
        Arc::new(applied)
    }

    fn note_refused(&self, trigger: Trigger, error: Error) -> Arc<Error> {
        let shared: &ServedState = self.supervisor.shared();
        let status = shared.status();
        let text = error.to_string().trim_end().to_owned();
        // A file that is written again with the same mistake is no news; a request for a reload gets an answer.
        let known = status.last_error.as_ref().is_some_and(|last| last.text == text);
        if known && matches!(trigger, Trigger::File(_)) {
            debug!(problems = %text, "still not applied");
        } else {
            error!(problems = %text, serving_generation = status.generation, "configuration refused, nothing changed");
        }
        shared.note(|status| {
            status.reloads_failed += 1;
            status.last_error = Some(LastError { at: SystemTime::now(), text: text.clone() });
        });
        shared.process.events.publish(EventKind::ReloadFailed { generation: status.generation, problems: text });
        Arc::new(error)
    }
}

/// Does what may block on a thread of its own, with which ends what the allocator has kept of the memory that a large file took.
async fn beside<T: Send + 'static>(read: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    let (tell, told) = oneshot::channel();
    let read = move || drop(tell.send(read()));
    std::thread::Builder::new().name("isobar-reload".into()).spawn(read).map_err(Error::Thread)?;
    let panicked = || Err(Error::Thread(io::Error::other("the one that reads the file has panicked")));
    told.await.unwrap_or_else(|_| panicked())
}

/// Reloads that are done as one: the source is read after all of them were asked for.
struct Batch {
    trigger: Trigger,
    replies: Vec<oneshot::Sender<ReloadOutcome>>,
}

impl Batch {
    /// Takes in the reloads that wait already, up to the first command that is none, which it gives back.
    fn join_waiting(&mut self, commands: &mut mpsc::Receiver<ControlCommand>) -> Option<ControlCommand> {
        while let Ok(command) = commands.try_recv() {
            let ControlCommand::Reload { trigger, reply } = command else { return Some(command) };
            if matches!(self.trigger, Trigger::File(_)) {
                self.trigger = trigger;
            }
            self.replies.extend(reply);
        }
        None
    }
}

fn answer(replies: impl IntoIterator<Item = oneshot::Sender<ReloadOutcome>>, outcome: &ReloadOutcome) {
    for reply in replies {
        // The client that asked may have gone away; the reload is done all the same.
        let _ = reply.send(outcome.clone());
    }
}
