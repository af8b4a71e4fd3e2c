//! Owns everything that runs, and changes it without loss.
//!
//! A reload is: load, check, plan, prepare, commit, retire. Whatever can fail happens before the commit and touches nothing
//! that runs, so there is nothing to roll back: what was prepared is dropped. The commit is a few stores; it takes no lock
//! that a request waits for, does not wait itself and cannot fail. Only then is retired what the new configuration no
//! longer has.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::config::{Config, MiddlewareName, Problem, Problems, RouteName, UpstreamName};
use crate::discovery::{Feeds, FirstLooks, FoundBackends};
use crate::file_descriptors;
use crate::handover::Inherited;
use crate::health::Prober;
use crate::listener::{self, Bound, BoundAddresses, Listener, covers};
use crate::middleware::{self, Installed, Kinds};
use crate::overload::sample::{descriptors_max, open_descriptors};
use crate::proxy::Snapshot;
use crate::route::RoutingTable;
use crate::strategy::Factories;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::{RouteMetrics, Sharded};
use crate::telemetry::process::Process;
use crate::tls::Tls;
use crate::transport::tls::BackendTls;
use crate::upstream::roster_keeper::{self, Keepers};
use crate::upstream::{Turnover, Upstream, UpstreamState};
use crate::worker::Workers;

mod certificates;
mod command_loop;
mod error;
mod resource_watch;
mod handle;
mod release_memory;
pub mod reload_plan;
mod watchdog;
mod report;
mod tls_files;
mod signals;
mod successor;
pub mod file_watch;

pub(crate) use command_loop::{ConfigSource, ControlTask, vocabulary};
pub use command_loop::{Ended, FAILED_GRACE};
pub use error::Error;
pub(crate) use handle::ServedState;
pub use handle::{ConfigStatus, Handle, LastError};
pub use reload_plan::ReloadPlan;
pub(crate) use signals::{Harmless, Signals};
pub use successor::Successor;
pub use tls_files::check_files;

use certificates::CertificateWatch;
use reload_plan::PlanStep;
use resource_watch::ResourceMonitor;
use watchdog::PulseMonitor;

/// What runs, and what outlives the configuration it runs with.
#[derive(Debug)]
pub struct Supervisor {
    shared: Arc<ServedState>,
    factories: Factories,
    kinds: Kinds,
    lasting: Lasting,
    keepers: Keepers,
    prober: Arc<Prober>,
    feeds: Feeds,
    /// Of the start.
    warnings: Vec<Problem>,
    _gauge: ResourceMonitor,
    _certificates: CertificateWatch,
    _pulse: PulseMonitor,
}

/// What goes on over a reload, found again by its identity. Dropped once the configuration no longer names it: what comes
/// back later is new.
#[derive(Clone, Debug, Default)]
struct Lasting {
    upstreams: HashMap<UpstreamName, Arc<UpstreamState>>,
    routes: HashMap<RouteName, Arc<Sharded<RouteMetrics>>>,
    middleware: HashMap<MiddlewareName, Arc<middleware::State>>,
    /// In the order of the configuration, so that the places in a plan find them.
    listeners: Vec<Arc<Listener>>,
    /// Addresses of listeners that are gone whose sockets another listener has, which covers them: one that is added there again takes
    /// them, for to bind others beside them would share its connections.
    moved: Vec<SocketAddr>,
}

impl Lasting {
    /// Of the addresses that were moved, those stay whose sockets a listener has.
    fn forget_closed(&mut self) {
        self.moved.sort_unstable();
        self.moved.dedup();
        let listeners = &self.listeners;
        self.moved.retain(|&moved| {
            !listeners.iter().any(|it| it.address == moved) && listeners.iter().any(|it| covers(it.address, moved))
        });
    }
}

/// Everything that a configuration needs and that was not there. Dropping it undoes it.
struct PreparedReload {
    snapshot: Arc<Snapshot>,
    lasting: Lasting,
    log: AccessLogStep,
    bound: Vec<Bound>,
    /// What the listeners make handshakes with, in the order of the configuration.
    tls: TlsOfEach,
    /// What is odd about their files.
    warnings: Vec<Problem>,
}

/// What becomes of the access log.
enum AccessLogStep {
    /// It stays, and so does its file.
    Kept,
    /// Its file is opened anew: log rotation has moved it away.
    Reopened,
    /// This one, or none, takes its place.
    Replaced(Option<Arc<AccessLog>>),
}

/// Of each listener; `None` where it is in the clear.
type TlsOfEach = Vec<Option<Arc<Tls>>>;

/// Whether the files that are written to are opened anew although their configuration is the same, as is expected of a
/// reload on request: log rotation moves files away and says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reopen {
    /// Only where they changed.
    Changed,
    /// All of them.
    All,
}

/// What a reload did.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The generation that is served now; the same as before when nothing differed.
    pub generation: u64,
    /// What differed.
    pub plan: ReloadPlan,
    /// What is legal in the file and probably not meant.
    pub warnings: Vec<Problem>,
    /// How long it took, reading the file not included.
    pub took: Duration,
}

impl Supervisor {
    /// Binds the listeners, builds what they need, starts the workers and accepts. Inside a runtime only: that of the
    /// control plane, on which runs what watches over the upstreams. Addresses that a process before has handed over are `inherited`.
    /// The program around has the discovery `found`, which is followed for as long as this runs.
    ///
    /// # Errors
    /// When an address cannot be bound, a file not opened or a thread not started. Nothing is left running then.
    pub fn start(
        config: Config,
        (factories, kinds): (Factories, Kinds),
        found: Vec<FoundBackends>,
        inherited: Inherited,
    ) -> Result<Self, Error> {
        let workers = workers(&config);
        let config = Arc::new(config);
        let mut plan = reload_plan::plan(&nothing_but_settings(&config), &config);
        let (backend_tls, mut warnings) = tls_files::prepare(&config, &mut plan, &[])?;
        let PreparedReload { snapshot, lasting, log, bound, tls, warnings: mut others } = prepare(
            &plan,
            1,
            &config,
            ReloadBase {
                workers,
                factories: &factories,
                kinds: &kinds,
                lasting: &Lasting::default(),
                before: &[],
                feeds: None,
                installed: &[],
                logs: false,
                inherited,
            },
            backend_tls,
            Reopen::All,
        )?;
        warnings.append(&mut others);
        let plan = file_descriptors::DescriptorPlan::new(
            descriptors_max(),
            open_descriptors().unwrap_or(0),
            workers,
            config.overload.descriptors_percent,
        );
        let process = Process::with_descriptors(workers, plan);
        log.take_effect(&process);
        snapshot.upstreams.iter().for_each(|it| it.state.sources.file_says(it.listed()));
        let upstreams = (&snapshot.upstreams[..], &config.dns);
        let feeds = Feeds::start(found, upstreams, config.state_dir.as_deref(), &process.events);
        for upstream in &snapshot.upstreams {
            // What is found already is served with from the first request on.
            roster_keeper::follow_sources(upstream, Instant::now());
            upstream.enforce();
        }
        let workers = Workers::start(workers, snapshot, &process).map_err(Error::Thread)?;
        for (listener, tls) in lasting.listeners.iter().zip(tls) {
            listener.tls.store(tls);
        }
        for bound in bound {
            workers.listen(bound);
        }
        report::started(&config, &lasting.listeners, workers.count());
        report::descriptors(&config, &process.descriptors.plan);
        let shared = Arc::new(ServedState::new(workers, process, lasting.listeners.clone()));
        let (events, checks) = (&shared.process.events, shared.process.descriptors.plan.checks);
        let prober = Arc::new(Prober::new(events.clone(), checks));
        let keepers = Keepers::new(events.clone(), Arc::new(turning_over(&shared, &prober)));
        let (gauge, certificates) = (ResourceMonitor::start(&shared), CertificateWatch::start(&shared));
        let pulse = PulseMonitor::start(&shared);
        let mut supervisor = Self {
            shared,
            factories,
            kinds,
            lasting,
            keepers,
            prober,
            feeds,
            warnings,
            _gauge: gauge,
            _certificates: certificates,
            _pulse: pulse,
        };
        supervisor.watch_over(&supervisor.shared.workers.snapshot().upstreams);
        Ok(supervisor)
    }

    /// Serves from now on as `config` says, or changes nothing.
    ///
    /// # Errors
    /// When an added listener cannot be bound, a certificate not read or the access log not opened.
    pub fn apply(&mut self, mut config: Config, mut warnings: Vec<Problem>, reopen: Reopen) -> Result<Applied, Error> {
        let started = Instant::now();
        let workers = &self.shared.workers;
        let before = workers.snapshot();
        let mut plan = reload_plan::plan(&before.config, &config);
        config.keep_the_running(&before.config);
        if plan.is_empty() && reopen == Reopen::Changed {
            return Ok(Applied { generation: before.generation, plan, warnings, took: started.elapsed() });
        }

        let config = Arc::new(config);
        let (backend_tls, mut others) = match tls_files::prepare(&config, &mut plan, &before.upstreams) {
            Ok(prepared) => prepared,
            Err(problems) => return Err(Error::from(problems).beside(warnings)),
        };
        warnings.append(&mut others);
        let running = ReloadBase {
            workers: workers.count(),
            factories: &self.factories,
            kinds: &self.kinds,
            lasting: &self.lasting,
            before: &before.upstreams,
            feeds: Some(&self.feeds),
            installed: &before.middleware.installed,
            logs: before.config.access_log.is_some(),
            inherited: Inherited::default(),
        };
        let prepared = prepare(&plan, before.generation + 1, &config, running, backend_tls, reopen);
        let mut prepared = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Err(error.beside(warnings)),
        };
        warnings.append(&mut prepared.warnings);

        let looks = self.feeds.look_ahead(&prepared.snapshot.upstreams);
        let retired = self.commit(prepared, looks);
        for listener in &retired {
            self.lasting.moved.push(listener.address);
            self.shared.workers.unlisten(listener, config.drain_limit, &self.lasting.listeners);
        }
        self.lasting.forget_closed();
        Ok(Applied { generation: before.generation + 1, plan, warnings, took: started.elapsed() })
    }

    /// The point of no return. Gives back the listeners that are no longer wanted.
    fn commit(&mut self, prepared: PreparedReload, looks: FirstLooks) -> Vec<Arc<Listener>> {
        let PreparedReload { snapshot, lasting, log, bound, tls, warnings: _ } = prepared;
        let workers = &self.shared.workers;
        log.take_effect(&self.shared.process);
        // Before they are served: what new sources can say at once is there for the first request.
        let before = workers.snapshot();
        let served: HashSet<_> = before.upstreams.iter().map(Arc::as_ptr).collect();
        snapshot.upstreams.iter().for_each(|it| it.state.sources.file_says(it.listed()));
        self.feeds.follow(&snapshot.upstreams, &snapshot.config.dns, looks);
        for upstream in &snapshot.upstreams {
            // Of one that is served already, the keeper tells what changes.
            if !served.contains(&Arc::as_ptr(upstream)) {
                roster_keeper::follow_sources(upstream, Instant::now());
            }
        }
        // Before the first request that knows of them: a backend never sees more than its limit.
        snapshot.upstreams.iter().for_each(|upstream| upstream.enforce());
        workers.publish(Arc::clone(&snapshot));
        for ((listener, config), tls) in lasting.listeners.iter().zip(&snapshot.config.listeners).zip(tls) {
            listener.config.store(Arc::clone(config));
            listener.tls.store(tls);
        }
        for bound in bound {
            workers.listen(bound);
        }
        self.watch_over(&snapshot.upstreams);
        self.shared.show(lasting.listeners.clone());
        let before = std::mem::replace(&mut self.lasting, lasting);
        let kept = |it: &Arc<Listener>| self.lasting.listeners.iter().any(|kept| Arc::ptr_eq(kept, it));
        before.listeners.into_iter().filter(|it| !kept(it)).collect()
    }

    /// Has these upstreams kept and their backends checked from now on. Does not wait.
    fn watch_over(&mut self, upstreams: &[Arc<Upstream>]) {
        self.keepers.follow(upstreams);
        self.prober.follow(upstreams);
    }

    /// Ends accepting and waits for what runs, at most until `deadline`. Returns how many connections were cut.
    pub async fn stop(&self, deadline: Instant) -> usize {
        let cut = self.shared.workers.stop(deadline).await;
        self.shared.process.access_log.finish().await;
        cut
    }

    pub(crate) fn shared(&self) -> &Arc<ServedState> {
        &self.shared
    }
}

/// Tells workers and health checks of backends that come and go by discovery. A reload tells them itself.
fn turning_over(
    shared: &Arc<ServedState>,
    prober: &Arc<Prober>,
) -> impl Fn(&Arc<Upstream>, &Turnover) + Send + Sync + 'static {
    let (shared, prober) = (Arc::clone(shared), Arc::clone(prober));
    move |upstream, turnover| {
        shared.workers.turn_over(turnover);
        prober.follow_set(upstream);
    }
}

/// What a preparation builds upon and must not touch.
struct ReloadBase<'a> {
    workers: usize,
    factories: &'a Factories,
    kinds: &'a Kinds,
    lasting: &'a Lasting,
    /// The upstreams of the snapshot that is served now.
    before: &'a [Arc<Upstream>],
    /// What is found besides what the file lists; at the start none yet.
    feeds: Option<&'a Feeds>,
    /// Its middleware.
    installed: &'a [Arc<Installed>],
    /// What the process before has handed over: at the start alone.
    inherited: Inherited,
    /// Whether there is an access log.
    logs: bool,
}

impl AccessLogStep {
    /// Before the first exchange that goes by the new configuration.
    fn take_effect(self, process: &Process) {
        match self {
            Self::Kept => {}
            Self::Reopened => {
                if let Some(log) = &*process.access_log.load() {
                    log.reopen();
                }
            }
            Self::Replaced(log) => process.access_log.replace(log),
        }
    }
}

fn prepare(
    plan: &ReloadPlan,
    generation: u64,
    config: &Arc<Config>,
    mut running: ReloadBase<'_>,
    backend_tls: Vec<Option<Arc<BackendTls>>>,
    reopen: Reopen,
) -> Result<PreparedReload, Error> {
    // Files and sockets first: what can fail should do so before work is spent on the rest.
    let log = open_access_log(plan, config, running.logs, reopen)?;
    let (tls, warnings) = load_certificates(plan, config, running.lasting)?;
    let Listening { listeners, bound, moved } = bind_listeners(plan, config, &mut running)?;

    let (installed, kept) = install(plan, config, &running)?;
    let mut states = HashMap::with_capacity(config.upstreams.len());
    let steps = plan.upstreams.next.iter().zip(backend_tls);
    let upstreams = config.upstreams.iter().zip(steps).map(|(config, ((name, step), tls))| {
        let state = running.lasting.upstreams.get(name).cloned();
        let state = state.unwrap_or_else(|| {
            let fresh = UpstreamState::new(name.clone(), running.workers);
            fresh.begin();
            running.feeds.iter().for_each(|feeds| feeds.introduce(&fresh));
            fresh
        });
        states.insert(name.clone(), Arc::clone(&state));
        match step {
            PlanStep::Kept { from } => Arc::clone(&running.before[*from]),
            PlanStep::Changed { .. } | PlanStep::Added => {
                Upstream::build_with(Arc::clone(config), state, running.factories, tls)
            }
        }
    });
    let upstreams: Vec<_> = upstreams.collect();

    let mut metrics = HashMap::with_capacity(config.routes.len());
    let routes = RoutingTable::build(&config.routes, &upstreams, &installed, &mut |name| {
        let known = || running.lasting.routes.get(name).cloned();
        let fresh = || Arc::new(Sharded::new(running.workers));
        Arc::clone(metrics.entry(name.clone()).or_insert_with(|| known().unwrap_or_else(fresh)))
    });

    let middleware = middleware::MiddlewareSet::new(installed, &config.listeners);
    let snapshot = Arc::new(Snapshot { generation, config: Arc::clone(config), routes, upstreams, middleware });
    let lasting = Lasting { upstreams: states, routes: metrics, middleware: kept, listeners, moved };
    Ok(PreparedReload { snapshot, lasting, log, bound, tls, warnings })
}

type States = HashMap<MiddlewareName, Arc<middleware::State>>;

/// Makes the middleware that has changed, each on the state that there is of its name and kind.
fn install(
    plan: &ReloadPlan,
    config: &Config,
    running: &ReloadBase<'_>,
) -> Result<(Vec<Arc<Installed>>, States), Error> {
    let mut states = HashMap::with_capacity(config.middleware.len());
    let steps = config.middleware.iter().zip(&plan.middleware.next);
    let installed = steps.map(|(config, (name, step))| {
        let known = running.lasting.middleware.get(name).filter(|state| state.fits(config)).cloned();
        let state = known.unwrap_or_else(|| middleware::State::new(config, running.workers));
        states.insert(name.clone(), Arc::clone(&state));
        match step {
            PlanStep::Kept { from } => Ok(Arc::clone(&running.installed[*from])),
            PlanStep::Changed { .. } | PlanStep::Added => {
                running.kinds.install(config, state).map_err(Error::Middleware)
            }
        }
    });
    let installed = installed.collect::<Result<_, _>>()?;
    Ok((installed, states))
}

/// Reads the certificates of all listeners, also of those that are kept: the files may be others.
fn load_certificates(
    plan: &ReloadPlan,
    config: &Config,
    lasting: &Lasting,
) -> Result<(TlsOfEach, Vec<Problem>), Error> {
    let (mut all, mut problems) = (Vec::with_capacity(config.listeners.len()), Vec::new());
    for (config, (_, step)) in config.listeners.iter().zip(&plan.listeners.next) {
        let before = match step {
            PlanStep::Kept { from } | PlanStep::Changed { from, .. } => lasting.listeners[*from].tls.load_full(),
            PlanStep::Added => None,
        };
        let load = |tls| Tls::load(tls, before.as_deref(), SystemTime::now(), &mut problems);
        all.push(config.tls.as_ref().and_then(load).map(Arc::new));
    }
    let problems = Problems::new(problems);
    if problems.refuse() { Err(tls_files::refused(config).into()) } else { Ok((all, problems.into_vec())) }
}

/// The listeners of a configuration, and those of them that were bound for it.
struct Listening {
    listeners: Vec<Arc<Listener>>,
    bound: Vec<Bound>,
    /// As in [`Lasting`].
    moved: Vec<SocketAddr>,
}

fn bind_listeners(plan: &ReloadPlan, config: &Config, running: &mut ReloadBase<'_>) -> Result<Listening, Error> {
    let mut moved = running.lasting.moved.clone();
    let mut listeners = Vec::with_capacity(config.listeners.len());
    let mut added: Vec<Bound> = Vec::new();
    let mut ours: Vec<_> = running.lasting.listeners.iter().map(|listener| listener.address).collect();
    for (config, (_, step)) in config.listeners.iter().zip(&plan.listeners.next) {
        match step {
            PlanStep::Kept { from } | PlanStep::Changed { from, .. } => {
                listeners.push(Arc::clone(&running.lasting.listeners[*from]));
            }
            PlanStep::Added => {
                let known = BoundAddresses { ours: &ours, moved: &moved, inherited: &mut running.inherited };
                let bound = listener::bind(config, running.workers, known).map_err(|source| Error::Bind {
                    listener: config.name.clone(),
                    address: config.address,
                    source,
                })?;
                ours.push(bound.listener.address);
                listeners.push(Arc::clone(&bound.listener));
                added.push(bound);
            }
        }
    }
    // What the process before listens on and no listener has as it is: to close it would lose clients that connect meanwhile.
    for (address, socket) in running.inherited.rest() {
        if let Some(heir) = added.iter_mut().find(|it| covers(it.listener.address, address)) {
            heir.sockets.push(socket);
            moved.push(address);
        }
    }
    // Only when all are bound: what is dropped after a failure has taken no connection.
    for bound in &added {
        let config = bound.listener.config.load();
        bound.listen().map_err(|source| Error::Bind {
            listener: config.name.clone(),
            address: config.address,
            source,
        })?;
    }
    Ok(Listening { listeners, bound: added, moved })
}

/// `logs`: there is an access log, of the configuration of before.
fn open_access_log(plan: &ReloadPlan, config: &Config, logs: bool, reopen: Reopen) -> Result<AccessLogStep, Error> {
    let Some(wanted) = &config.access_log else { return Ok(AccessLogStep::Replaced(None)) };
    let refused = |source| Error::AccessLog { output: wanted.output.clone(), source };
    if !logs || plan.access_log_changes() {
        return AccessLog::open(wanted).map(|log| AccessLogStep::Replaced(Some(log))).map_err(refused);
    }
    if reopen == Reopen::Changed {
        return Ok(AccessLogStep::Kept);
    }
    AccessLog::probe(wanted).map(|()| AccessLogStep::Reopened).map_err(refused)
}

/// A start is a reload from here.
fn nothing_but_settings(config: &Config) -> Config {
    Config {
        listeners: Vec::new(),
        routes: Vec::new(),
        upstreams: Vec::new(),
        middleware: Vec::new(),
        ..config.clone()
    }
}

fn workers(config: &Config) -> usize {
    config.workers.or_else(|| std::thread::available_parallelism().ok()).map_or(1, usize::from)
}

#[cfg(test)]
mod tests;
