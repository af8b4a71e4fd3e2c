//! A source that is told what backends there are, by the program around isobar.

use std::future::pending;

use tokio::sync::watch;

use super::{Discovery, DiscoveryError};
use crate::backend::BackendSet;

/// A source, and what tells it.
pub fn pushed() -> (Pusher, Pushed) {
    let (sender, receiver) = watch::channel(None);
    (Pusher(sender), Pushed(receiver))
}

/// Tells what backends there are. Cheap to clone; may be used from any thread.
#[derive(Clone, Debug)]
pub struct Pusher(watch::Sender<Option<BackendSet>>);

impl Pusher {
    /// From now on there are these backends and no others. Does not wait: of sets that follow each other fast, only the last may
    /// be served with.
    pub fn push(&self, set: BackendSet) {
        self.0.send_replace(Some(set));
    }
}

/// Says what is pushed. Without a [`Pusher`], the last set holds for good.
#[derive(Debug)]
pub struct Pushed(watch::Receiver<Option<BackendSet>>);

impl Discovery for Pushed {
    async fn next(&mut self) -> Result<BackendSet, DiscoveryError> {
        loop {
            if self.0.changed().await.is_err() {
                return pending().await;
            }
            if let Some(set) = &*self.0.borrow_and_update() {
                return Ok(set.clone());
            }
        }
    }
}
