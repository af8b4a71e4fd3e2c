//! A registry of services in this process, for those who have none.
//!
//! Services register over HTTP and send heartbeats, or have isobar check them; sources of upstreams find them (`discovery`). It speaks those parts
//! of Consul's agent API (`consul`) and of Eureka's REST API (`eureka`) that ordinary client libraries use; docs/registry.md lists them.
//! An instance that registers by the one is seen by both.
//!
//! What is registered, and for how long, is decided by pure machines: `catalog`, and `expiry_guard` for mass expiry. `store` keeps it on disk.
//! Around them stand a clock, a task that runs checks (`checks`), and an HTTP server (`server`), all on the control plane: no request on
//! its way to a backend waits for any of it. It is one process's: what needs more than one node uses a real registry.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, sleep_until};
use tracing::{error, info, warn};

mod instance;
mod expiry_guard;
mod catalog;
mod store;
mod backends;
mod access;
mod limits;
mod checks;
mod answer;
mod query;
mod ask;
mod consul;
mod eureka;
mod server;

pub use backends::FoundInstances;
pub use server::BoundRegistry;

use answer::RegistryRefusal;
use catalog::{Catalog, CatalogRules, NotRegistered, Now, Ticked};
use expiry_guard::GuardRules;
use store::Saved;

use crate::config::RegistryConfig;

/// Between two writes of the file there is as long at least, and four times as long as a write takes.
const WRITE_EVERY: Duration = Duration::from_millis(100);

/// After a write that failed.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// The clock looks at all instances, and no more often than this.
const TICK_MIN: Duration = Duration::from_millis(100);

/// The registry: what is registered now, and what keeps that up to date.
#[derive(Debug)]
pub struct Registry {
    settings: ArcSwap<RegistryConfig>,
    catalog: Mutex<Catalog>,
    /// The index of the last change.
    index: watch::Sender<u64>,
    /// Where it is kept; `None`: it is forgotten with the process.
    disk: Option<Disk>,
    /// Wakes the clock.
    clock: Notify,
    /// Wakes the task that runs checks.
    checks: Notify,
    /// Requests that were refused.
    refused: AtomicU64,
}

#[derive(Debug)]
struct Disk {
    path: PathBuf,
    wake: Notify,
    written: watch::Sender<DiskProgress>,
}

/// How far the writing has come.
#[derive(Clone, Copy, Debug, Default)]
struct DiskProgress {
    /// The version of the catalog that is on disk.
    saved: u64,
    /// One that could not be written.
    failed: u64,
}

/// How many instances there are, and what has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegistryCounts {
    /// Names with an instance.
    pub services: usize,
    /// Instances whose checks pass.
    pub passing: usize,
    /// Instances of which a check warns.
    pub warning: usize,
    /// Instances of which a check is critical, or that are out of service.
    pub critical: usize,
    /// Instances that are kept although their heartbeats do not come.
    pub kept: usize,
    /// Registrations, repeated ones too.
    pub registrations: u64,
    /// Registrations that were ended, by a client or by `DeregisterCriticalServiceAfter`.
    pub deregistrations: u64,
    /// Instances whose heartbeats have ceased.
    pub expirations: u64,
    /// Heartbeats.
    pub heartbeats: u64,
    /// Requests that were refused: they made no sense, may not be made, were too large, or there was no room. An unknown instance is none of it.
    pub refused: u64,
}

impl Registry {
    /// What was left in `state_dir`, or an empty one. Reads a file.
    pub fn open(config: Arc<RegistryConfig>, state_dir: Option<&Path>) -> Arc<Self> {
        let path = state_dir.map(store::path);
        let catalog = path.as_deref().map_or_else(|| Catalog::new(now()), read);
        let index = watch::channel(catalog.index()).0;
        let disk =
            path.map(|path| Disk { path, wake: Notify::new(), written: watch::channel(DiskProgress::default()).0 });
        Arc::new(Self {
            settings: ArcSwap::new(config),
            catalog: Mutex::new(catalog),
            index,
            disk,
            clock: Notify::new(),
            checks: Notify::new(),
            refused: AtomicU64::new(0),
        })
    }

    /// What it lets pass from now on.
    pub fn set_config(&self, config: Arc<RegistryConfig>) {
        self.settings.store(config);
        // Other rules may have something expire sooner.
        self.clock.notify_one();
    }

    /// How many instances there are, and what has happened.
    pub fn counts(&self) -> RegistryCounts {
        let catalog = self.lock();
        let happened = catalog.counts();
        let mut counts = RegistryCounts {
            services: catalog.services().count(),
            kept: catalog.kept(),
            registrations: happened.registrations,
            deregistrations: happened.deregistrations,
            expirations: happened.expirations,
            heartbeats: happened.heartbeats,
            refused: self.refused.load(Relaxed),
            ..RegistryCounts::default()
        };
        for instance in catalog.all() {
            match instance.status() {
                instance::Status::Passing => counts.passing += 1,
                instance::Status::Warning => counts.warning += 1,
                instance::Status::Critical => counts.critical += 1,
            }
        }
        counts
    }

    /// Reads what another process has left since this one began: when that has ended.
    fn read_again(&self) {
        let Some(disk) = &self.disk else { return };
        let catalog = read(&disk.path);
        let index = {
            let mut known = self.lock();
            *known = catalog;
            known.index()
        };
        self.index.send_replace(index);
    }

    fn settings(&self) -> Arc<RegistryConfig> {
        self.settings.load_full()
    }

    fn rules(&self) -> CatalogRules {
        let config = self.settings.load();
        let guard = GuardRules { expired_percent: config.max_expired_percent, hold: config.expiry_hold };
        CatalogRules { instances_max: config.max_instances, guard }
    }

    fn lock(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the catalog, and tells those that wait for changes.
    fn change<T>(&self, change: impl FnOnce(&mut Catalog, Now, &CatalogRules) -> T) -> T {
        let rules = self.rules();
        let (result, index, is_saved) = {
            let mut catalog = self.lock();
            let version = catalog.version();
            let result = change(&mut catalog, now(), &rules);
            (result, catalog.index(), catalog.version() == version)
        };
        self.index.send_if_modified(|known| std::mem::replace(known, index) != index);
        if let (Some(disk), false) = (&self.disk, is_saved) {
            disk.wake.notify_one();
        }
        result
    }

    /// Registers an instance, for a client that may.
    fn register(&self, said: instance::Registration) -> Result<(), RegistryRefusal> {
        let (service, id) = (said.service.clone(), said.id.clone());
        let (is_new, result) = self.change(|catalog, now, rules| {
            let is_new = catalog.get(&said.key()).is_none();
            (is_new, catalog.register(said, now, rules))
        });
        match result {
            Ok(_) => {
                if is_new {
                    info!(service, instance = id, "registry: registered");
                }
                self.clock.notify_one();
                self.checks.notify_one();
                Ok(())
            }
            Err(NotRegistered::Full(most)) => {
                let text = format!("there are {most} instances, which is max_instances");
                Err(RegistryRefusal::new(http::StatusCode::SERVICE_UNAVAILABLE, text))
            }
            Err(NotRegistered::TooLarge(most)) => Err(too_large(most)),
            Err(NotRegistered::CheckTaken(id)) => {
                Err(RegistryRefusal::bad(format!("check {id:?} belongs to another service")))
            }
        }
    }

    /// Ends a registration, for a client that may.
    fn deregister(&self, key: &instance::InstanceKey) -> Result<(), catalog::Unknown> {
        self.change(|catalog, now, _| catalog.deregister(key, now))?;
        info!(instance = key.id, "registry: deregistered");
        Ok(())
    }

    /// Waits until what is known now is on disk.
    ///
    /// # Errors
    /// When it could not be written. It will be tried again; what was registered is registered.
    async fn saved(&self) -> Result<(), NotSaved> {
        let Some(disk) = &self.disk else { return Ok(()) };
        let version = self.lock().version();
        let mut written = disk.written.subscribe();
        let reached = written.wait_for(|it| it.saved >= version || it.failed >= version).await;
        match reached.map(|it| it.saved >= version) {
            Ok(true) => Ok(()),
            _ => Err(NotSaved),
        }
    }

    /// Lets time pass, until it is dropped.
    async fn keep_time(&self) {
        loop {
            let kept = self.lock().kept();
            let Ticked { expired, deregistered, next } = self.change(|catalog, now, rules| catalog.tick(now, rules));
            self.tell(&expired, &deregistered, kept);
            let wait = async {
                match next {
                    Some(next) => sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                () = self.clock.notified() => {}
            }
            sleep(TICK_MIN).await;
        }
    }

    fn tell(&self, expired: &[instance::InstanceKey], deregistered: &[instance::InstanceKey], kept_before: usize) {
        /// Names in a line.
        const TOLD_MAX: usize = 5;
        let names = |keys: &[instance::InstanceKey]| {
            let names: Vec<_> = keys.iter().take(TOLD_MAX).map(|key| key.id.as_str()).collect();
            names.join(", ")
        };
        if !expired.is_empty() {
            info!(count = expired.len(), instances = names(expired), "registry: heartbeats have ceased");
        }
        if !deregistered.is_empty() {
            info!(
                count = deregistered.len(),
                instances = names(deregistered),
                "registry: critical for too long, deregistered"
            );
        }
        let kept = self.lock().kept();
        if kept_before == 0 && kept > 0 {
            let hold = self.settings.load().expiry_hold;
            warn!(kept, ?hold, "registry: too many heartbeats have ceased at once; keeping those instances");
        } else if kept_before > 0 && kept == 0 {
            info!("registry: no instances are kept without their heartbeats any more");
        }
    }

    /// Writes what changes, until it is dropped.
    async fn write_behind(self: &Arc<Self>) {
        let Some(disk) = &self.disk else { return std::future::pending().await };
        let mut failing = false;
        loop {
            disk.wake.notified().await;
            let began = Instant::now();
            let registry = Arc::clone(self);
            let written = tokio::task::spawn_blocking(move || registry.flush()).await;
            let pause = match written.unwrap_or_else(|error| Err(error.into())) {
                Ok(()) => {
                    if std::mem::take(&mut failing) {
                        info!(file = %disk.path.display(), "registry: written again");
                    }
                    WRITE_EVERY.max(began.elapsed() * 4)
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        error!(file = %disk.path.display(), %error, "registry: could not be written; registrations are refused");
                    }
                    disk.wake.notify_one();
                    WRITE_AGAIN
                }
            };
            sleep(pause).await;
        }
    }

    /// Writes what is not written yet. Blocks.
    fn flush(&self) -> io::Result<()> {
        let Some(disk) = &self.disk else { return Ok(()) };
        let (version, saved) = {
            let catalog = self.lock();
            (catalog.version(), Saved::of(&catalog))
        };
        if disk.written.borrow().saved >= version {
            return Ok(());
        }
        let result = store::write(&disk.path, &saved);
        disk.written.send_modify(|written| match result {
            Ok(()) => written.saved = version,
            Err(_) => written.failed = version,
        });
        result
    }
}

/// What is known is not on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NotSaved;

/// There is no room for what a client says.
fn too_large(most: usize) -> RegistryRefusal {
    let text = format!("all that is registered would be longer than {} MiB", most >> 20);
    RegistryRefusal::new(http::StatusCode::SERVICE_UNAVAILABLE, text)
}

/// What was left, or nothing, with a word on it.
fn read(path: &Path) -> Catalog {
    match store::read(path, now()) {
        Ok(catalog) => {
            let instances = catalog.all().len();
            if instances > 0 {
                info!(file = %path.display(), instances, "registry: what was registered before is known");
            }
            catalog
        }
        Err(error) => {
            let aside =
                store::set_aside(path).map_or_else(|error| error.to_string(), |path| path.display().to_string());
            error!(file = %path.display(), %error, aside, "registry: what was registered before cannot be read; beginning anew");
            Catalog::new(now())
        }
    }
}

fn now() -> Now {
    // The clock of tokio, which tests can stop.
    let at = tokio::time::Instant::now().into_std();
    let ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    Now { at, ms: u64::try_from(ms).unwrap_or(u64::MAX) }
}
