//! Sets that are sent to the admin address.

use std::future::pending;
use std::sync::Arc;

use tokio::sync::watch;

use super::{Answer, Answered, AnyDiscovery};
use crate::backend::BackendSet;
use crate::upstream::UpstreamState;

/// Says what is left in an upstream's inbox.
pub(super) struct InboxSource(watch::Receiver<Option<BackendSet>>);

impl InboxSource {
    /// Of that upstream. What is known already is in the inbox from now on, if nothing else is.
    pub(super) fn new(state: &Arc<UpstreamState>, left: Option<&BackendSet>) -> Self {
        let inbox = state.sources.inbox();
        if let Some(left) = left {
            inbox.put(left.clone(), |there| there.is_none());
        }
        Self(inbox.subscribe())
    }
}

impl AnyDiscovery for InboxSource {
    fn next(&mut self) -> Answered<'_> {
        Box::pin(async {
            loop {
                if self.0.changed().await.is_err() {
                    return pending().await;
                }
                if let Some(set) = &*self.0.borrow_and_update() {
                    return Ok(Answer::from(set.clone()));
                }
            }
        })
    }
}
