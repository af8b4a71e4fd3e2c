//! What a source wants to be told of, and what it is told.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

/// What is known of a service by pushes.
pub(super) enum Pushed {
    /// Not subscribed to yet.
    Awaited,
    /// The list, in the message that had it.
    List(Bytes),
    /// Nothing is pushed, for this reason.
    Broken(Arc<str>),
}

/// A service: its group and its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Service {
    pub(super) group: Arc<str>,
    pub(super) name: Arc<str>,
}

/// A source's wish to be told of a service.
pub(super) struct Subscription {
    pub(super) service: Service,
    pub(super) told: watch::Sender<Pushed>,
}
