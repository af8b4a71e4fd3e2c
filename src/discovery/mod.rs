//! Finds the backends of upstreams.
//!
//! A [`Discovery`] only says what backends there are: complete sets, one after the other. All else is done here, once for
//! all of them: it is asked again after a failure, later and later; what it last said holds meanwhile; and each change of how it
//! stands with it is told once. Sources of the file (`[[upstream.NAME.discovery]]`) are such as well, one per file of this folder, and are
//! believed less: `progress` holds back what vanishes too fast, and `store` keeps the last good set on disk. What is found is reported to the
//! upstream's [`sources`](crate::upstream::sources), beside the list of the file, and its keeper does the rest.
//!
//! ```no_run
//! use isobar::backend::{BackendSet, Instance};
//! use isobar::discovery::{self, Discovery, DiscoveryError};
//!
//! /// Asks a directory of services.
//! struct Directory;
//!
//! impl Discovery for Directory {
//!     async fn next(&mut self) -> Result<BackendSet, DiscoveryError> {
//!         // Wait here until there is something new.
//!         Ok(BackendSet::new([Instance::new("10.0.0.7:8080".parse()?)]))
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (pusher, pushed) = discovery::pushed();
//! let running = isobar::Isobar::builder()
//!     .config_file("lb.toml")
//!     .discovery("users", "directory", Directory)
//!     .discovery("orders", "deployments", pushed)
//!     .start()?;
//! pusher.push(BackendSet::new([Instance::new("10.0.0.8:8080".parse()?)]));
//! # Ok(())
//! # }
//! ```

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::BackendSet;

mod feeds;
mod feed;
mod progress;
mod store;
mod first_look;
mod push;
mod source;
mod reading;
mod file;
mod inbox;
mod asked;
mod lines;
mod http;
mod consul;
mod eureka;
mod nacos;
mod record;
mod etcd;
mod zookeeper;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod docker;
mod dns;
mod registry;
mod names;
mod listing;
mod services;

pub use feeds::{Feeds, FoundBackends};
pub use first_look::FirstLooks;
pub use push::{Pushed, Pusher, pushed};
pub use services::services_at_start;

/// A way to find out what backends an upstream has.
pub trait Discovery: Send + 'static {
    /// Waits until there is something to say, at first for the first time, and says all of it: a backend that is not in the set
    /// is gone. To say the same again does nothing.
    ///
    /// Cancel-safe: the future may be dropped before it is ready, and what it had learnt is not lost by that; at the start it is
    /// asked for what it can say without waiting. After an error it is called again, later each time; it need not wait, log or
    /// count by itself.
    ///
    /// # Errors
    /// Where nothing could be found out. What was said last still holds.
    fn next(&mut self) -> impl Future<Output = Result<BackendSet, DiscoveryError>> + Send;
}

/// Why nothing could be found out.
pub struct DiscoveryError(Box<dyn Error + Send + Sync>);

impl DiscoveryError {
    /// For that reason: an error, or a text in lower case without a final stop.
    pub fn new(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(reason.into())
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for DiscoveryError {
    fn from(reason: E) -> Self {
        Self::new(reason)
    }
}

impl fmt::Display for DiscoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The whole chain: it is told in one line.
        self.0.fmt(f)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for DiscoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a source has said.
#[derive(Clone, Debug)]
struct Answer {
    set: BackendSet,
    /// What is wrong with entries that were left out, a word on each.
    refused: Vec<String>,
    /// The index or version of what it says.
    revision: Option<Arc<str>>,
    /// How long all that is missing in it is held back, whatever the rules of the source are.
    hold: Option<Duration>,
}

type Answered<'a> = Pin<Box<dyn Future<Output = Result<Answer, DiscoveryError>> + Send + 'a>>;

/// Any source, in a box: a [`Discovery`] of the program around isobar, or a source of the configuration.
trait AnyDiscovery: Send {
    fn next(&mut self) -> Answered<'_>;

    /// Whether it may have something to say without waiting.
    fn is_at_hand(&self) -> bool {
        true
    }
}

impl<D: Discovery> AnyDiscovery for D {
    fn next(&mut self) -> Answered<'_> {
        Box::pin(async { Discovery::next(self).await.map(Answer::from) })
    }
}

#[cfg(test)]
mod tests;
