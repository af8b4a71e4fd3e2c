//! Owns everything that runs, and changes it without loss.
//!
//! A reload is: load, check, plan, prepare, commit, retire. Whatever can fail happens before the commit and touches nothing
//! that runs, so there is nothing to roll back: what was prepared is dropped. The commit is a few stores; it takes no lock
//! that a request waits for, does not wait itself and cannot fail. Only then is retired what the new configuration no
//! longer has.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::config::{Config, MiddlewareName, Problem, RouteName, UpstreamName};
use crate::discovery::{Feeds, FirstLooks, FoundBackends};
use crate::file_descriptors;
use crate::handover::Inherited;
use crate::health::Prober;
use crate::listener::{Listener, covers};
use crate::middleware::{self, Kinds};
use crate::overload::sample::{descriptors_max, open_descriptors};
use crate::registry::Registry;
use crate::strategy::Factories;
use crate::telemetry::metrics::{RouteMetrics, Sharded};
use crate::telemetry::process::Process;
use crate::upstream::roster_keeper::{self, Keepers};
use crate::upstream::{Turnover, Upstream, UpstreamState};
use crate::worker::Workers;

mod certificates;
mod command_loop;
mod error;
mod prepare;
mod resource_watch;
mod handle;
mod release_memory;
mod services;
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
pub(crate) use services::first as with_first_services;
pub(crate) use signals::{Harmless, Signals};
pub use successor::Successor;
pub use tls_files::check_files;

use certificates::CertificateWatch;
use prepare::{PreparedReload, ReloadBase, prepare};
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
        let registry = config.registry.clone().map(|it| Registry::open(it, config.state_dir.as_deref()));
        let feeds = Feeds::start(found, upstreams, config.state_dir.as_deref(), registry.clone(), &process.events);
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
        let shared = Arc::new(ServedState::new(workers, process, lasting.listeners.clone(), registry));
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
        if let (Some(registry), Some(config)) = (&self.shared.registry, &snapshot.config.registry) {
            registry.set_config(Arc::clone(config));
        }
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

    /// Is told of each list of services that differs from the one before.
    fn services_heard(&self) -> Arc<Notify> {
        self.feeds.services_heard()
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
