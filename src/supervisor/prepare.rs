//! The part of a reload that can fail: files, sockets and all that is built, beside what runs and without touching it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::config::{Config, MiddlewareName, Problem, Problems};
use crate::discovery::Feeds;
use crate::handover::Inherited;
use crate::listener::{self, Bound, BoundAddresses, Listener, covers};
use crate::middleware::{self, Installed, Kinds};
use crate::proxy::Snapshot;
use crate::route::RoutingTable;
use crate::strategy::Factories;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::Sharded;
use crate::telemetry::process::Process;
use crate::tls::Tls;
use crate::transport::tls::BackendTls;
use crate::upstream::{Upstream, UpstreamState};

use super::reload_plan::{PlanStep, ReloadPlan};
use super::{Error, Lasting, Reopen, tls_files};

/// Everything that a configuration needs and that was not there. Dropping it undoes it.
pub(super) struct PreparedReload {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) lasting: Lasting,
    pub(super) log: AccessLogStep,
    pub(super) bound: Vec<Bound>,
    /// What the listeners make handshakes with, in the order of the configuration.
    pub(super) tls: TlsOfEach,
    /// What is odd about their files.
    pub(super) warnings: Vec<Problem>,
}

/// What becomes of the access log.
pub(super) enum AccessLogStep {
    /// It stays, and so does its file.
    Kept,
    /// Its file is opened anew: log rotation has moved it away.
    Reopened,
    /// This one, or none, takes its place.
    Replaced(Option<Arc<AccessLog>>),
}

/// Of each listener; `None` where it is in the clear.
pub(super) type TlsOfEach = Vec<Option<Arc<Tls>>>;

/// What a preparation builds upon and must not touch.
pub(super) struct ReloadBase<'a> {
    pub(super) workers: usize,
    pub(super) factories: &'a Factories,
    pub(super) kinds: &'a Kinds,
    pub(super) lasting: &'a Lasting,
    /// The upstreams of the snapshot that is served now.
    pub(super) before: &'a [Arc<Upstream>],
    /// What is found besides what the file lists; at the start none yet.
    pub(super) feeds: Option<&'a Feeds>,
    /// Its middleware.
    pub(super) installed: &'a [Arc<Installed>],
    /// What the process before has handed over: at the start alone.
    pub(super) inherited: Inherited,
    /// Whether there is an access log.
    pub(super) logs: bool,
}

impl AccessLogStep {
    /// Before the first exchange that goes by the new configuration.
    pub(super) fn take_effect(self, process: &Process) {
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

pub(super) fn prepare(
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
