//! Follows the files of certificates: a tool that renews them writes new files and does not tell isobar.
//!
//! Looked at as [`file_watch`](super::file_watch) looks at `lb.toml`, and acted upon once two looks in a row agree on all files of a
//! listener. Of a certificate and its key one is written first; should two looks fall in between, that is refused, and the next
//! change is looked at again. Connections that are open are not touched.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

use super::file_watch::Stamp;
use super::{ServedState, report};
use crate::config::{Problem, Problems, TlsConfig};
use crate::listener::Listener;
use crate::telemetry::events::EventKind;
use crate::tls::Tls;

/// Two looks make a change visible, so a new certificate is shown within a second. Some have thousands of files.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// One that is about to expire has a line in the log this often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(24 * 3600);

/// The task that looks. Dropped, it ends.
#[derive(Debug)]
pub(super) struct CertificateWatch(JoinHandle<()>);

/// What is known of a listener's files.
#[derive(Debug)]
struct WatchedCertificates {
    settings: Arc<TlsConfig>,
    /// What was acted upon last. `None` before the first time: the files may have changed after they were read.
    settled: Option<Stamps>,
    /// What the last look saw.
    seen: Stamps,
}

/// Of each file, in the order of the configuration.
type Stamps = Vec<Option<Stamp>>;

/// What became of a change.
enum CertificateReload {
    /// The files say what they said.
    Same,
    /// They can be used.
    Good(Box<Tls>, Vec<Problem>),
    /// They cannot.
    Bad(Problems),
}

impl CertificateWatch {
    /// Begins to look. Inside a runtime only.
    pub(super) fn start(shared: &Arc<ServedState>) -> Self {
        let shared = Arc::clone(shared);
        let vital = shared.process.events.vital().clone();
        Self(tokio::spawn(vital.watch("certificates".into(), async move {
            let mut ticks = tokio::time::interval(LOOK_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let (mut known, mut complained) = (Vec::new(), Instant::now());
            loop {
                ticks.tick().await;
                known = look(&shared, known).await;
                if complained.elapsed() >= COMPLAIN_EVERY {
                    complained = Instant::now();
                    complain(&shared);
                }
            }
        })))
    }
}

impl Drop for CertificateWatch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Looks at the files of all listeners once.
async fn look(shared: &ServedState, mut known: Vec<WatchedCertificates>) -> Vec<WatchedCertificates> {
    let mut next = Vec::new();
    for listener in shared.listeners.load_full().iter() {
        let Some(tls) = listener.tls.load_full() else { continue };
        let files: Vec<_> = tls.settings.files().map(|file| file.path.clone()).collect();
        // A network file system may let a look hang: not on the thread that handles signals.
        let looked = tokio::task::spawn_blocking(move || files.iter().map(|file| Stamp::of(file).ok()).collect());
        let Ok(seen): Result<Stamps, _> = looked.await else { continue };
        // A reload has read them, and made settings of its own.
        let place = known.iter().position(|known| Arc::ptr_eq(&known.settings, &tls.settings));
        let mut now = WatchedCertificates { settings: Arc::clone(&tls.settings), settled: None, seen };
        if let Some(before) = place.map(|place| known.swap_remove(place)) {
            let steady = before.seen == now.seen;
            now.settled = before.settled;
            if steady && now.settled.as_ref() != Some(&now.seen) {
                now.settled = Some(now.seen.clone());
                read(shared, listener, tls).await;
            }
        }
        next.push(now);
    }
    next
}

/// Reads the files of a listener, and takes what they say if that can be used.
async fn read(shared: &ServedState, listener: &Arc<Listener>, tls: Arc<Tls>) {
    let before = Arc::clone(&tls);
    let read = tokio::task::spawn_blocking(move || {
        let mut problems = Vec::new();
        match Tls::load(&tls.settings, Some(&tls), SystemTime::now(), &mut problems) {
            Some(new) if new.is_of_the_same_files(&tls) => CertificateReload::Same,
            Some(new) => CertificateReload::Good(Box::new(new), problems),
            None => CertificateReload::Bad(Problems::new(problems)),
        }
    });
    let (replaced, evidence) = match read.await {
        Ok(CertificateReload::Same) | Err(_) => return,
        Ok(CertificateReload::Good(new, warnings)) => {
            let evidence = until(&new);
            // A reload that came meanwhile has read the files itself.
            let new = Some(Arc::new(*new));
            let found = listener.tls.compare_and_swap(&Some(Arc::clone(&before)), new);
            if !found.as_ref().is_some_and(|found| Arc::ptr_eq(found, &before)) {
                return;
            }
            info!(listener = %listener.name(), certificates = evidence, "certificates replaced");
            report::warnings(&warnings);
            (true, evidence)
        }
        Ok(CertificateReload::Bad(problems)) => {
            listener.certificates_refused.fetch_add(1, Ordering::Relaxed);
            let problems = problems.to_string();
            error!(listener = %listener.name(), %problems, "certificates refused, keeping those before");
            (false, problems)
        }
    };
    shared.process.events.publish(EventKind::Certificates { listener: listener.name(), replaced, evidence });
}

/// Until when the certificates are valid.
fn until(tls: &Tls) -> String {
    let each = tls.certificates.iter().map(|it| {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(it.at).unwrap_or_default());
        format!("{} until {}", it.file.display(), crate::telemetry::calendar::rfc3339(at))
    });
    each.collect::<Vec<_>>().join(", ")
}

/// Warns of certificates that are about to expire.
fn complain(shared: &ServedState) {
    for listener in shared.listeners.load_full().iter() {
        let Some(tls) = listener.tls.load_full() else { continue };
        for certificate in &tls.certificates {
            if let Some(complaint) = certificate.complaint(SystemTime::now()) {
                warn!(listener = %listener.name(), file = %certificate.file.display(), "{complaint}");
            }
        }
    }
}
