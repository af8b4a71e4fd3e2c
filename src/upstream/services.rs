//! What the source of an upstream with `services` lists, and what becomes of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::{LeftOut, Service};

/// What is known of the services that upstreams are made for. Control plane only.
#[derive(Debug, Default)]
pub struct ServiceState(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// The source's name, and all that it lists.
    listed: Option<(Arc<str>, Arc<[Service]>)>,
    served: Arc<[ServedService]>,
    left_out: Arc<[LeftOut]>,
}

/// A service that an upstream is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedService {
    /// The service.
    pub service: Service,
    /// Whether it is listed still. One that is not goes when it has no backends left and its grace is over.
    pub is_listed: bool,
}

impl ServiceState {
    /// Notes all that a source lists.
    pub fn list(&self, source: &Arc<str>, services: Arc<[Service]>) {
        self.lock().listed = Some((Arc::clone(source), services));
    }

    /// All that is listed; `None` where nothing is known yet.
    pub fn listed(&self) -> Option<Arc<[Service]>> {
        self.lock().listed.as_ref().map(|(_, services)| Arc::clone(services))
    }

    /// The same where this source has listed it: what another one says that asks for something else is of no use to it.
    pub fn listed_by(&self, source: &str) -> Option<Arc<[Service]>> {
        self.lock().listed.as_ref().filter(|(by, _)| **by == *source).map(|(_, services)| Arc::clone(services))
    }

    /// Notes what is served from now on, and what could not be taken of it.
    pub fn serve(&self, served: Arc<[ServedService]>, left_out: Arc<[LeftOut]>) {
        let mut known = self.lock();
        (known.served, known.left_out) = (served, left_out);
    }

    /// What is served, and what could not be taken of it.
    pub fn served(&self) -> (Arc<[ServedService]>, Arc<[LeftOut]>) {
        let known = self.lock();
        (Arc::clone(&known.served), Arc::clone(&known.left_out))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
