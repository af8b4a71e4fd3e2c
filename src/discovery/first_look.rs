//! What is on disk of sources that are about to begin: the file that one lists its backends in, and the last good set that another has left.
//!
//! It is read before they are served, so that the first request finds those backends. A file on a network mount that is gone lets its reader
//! hang, so threads of their own read, and they are waited for as long as `patience` says: what comes later is not used, and the source begins
//! without it.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::file::FileLook;
use super::reading::Reading;
use super::store::{Key, Left, Store};
use crate::config::{DiscoveryConfig, SourceConfig, UpstreamName};

/// Of each source that is about to begin, by its upstream and its name.
#[derive(Debug, Default)]
pub struct FirstLooks(HashMap<SourceName, FirstLook>);

type SourceName = (UpstreamName, Arc<str>);

/// What was on disk of a source.
#[derive(Debug, Default)]
pub(super) struct FirstLook {
    pub(super) left: Option<Left>,
    pub(super) file: Option<FileLook>,
}

enum Found {
    Left(Left),
    File(FileLook),
}

/// So many files are read at a time. One that hangs keeps a thread; the others go on.
const READERS: usize = 8;

impl FirstLooks {
    /// Reads what is on disk of these sources, within `patience`. Inside a runtime only.
    pub(super) fn read<'c>(
        sources: impl Iterator<Item = (&'c UpstreamName, DiscoveryConfig)>,
        store: Option<&Arc<Store>>,
        patience: Duration,
    ) -> Self {
        let deadline = Instant::now() + patience;
        let mut wanted: Vec<_> = sources.map(|(upstream, config)| (upstream.clone(), config)).collect();
        let is_file = |config: &DiscoveryConfig| matches!(config.source(), Some(SourceConfig::File(_)));
        wanted.retain(|(_, config)| store.is_some() || is_file(config));
        let readers = READERS.min(wanted.len());
        let wanted = Arc::new(Mutex::new(wanted.into_iter()));
        let (send, found) = channel();
        for _ in 0..readers {
            let (wanted, store, send) = (Arc::clone(&wanted), store.map(Arc::clone), send.clone());
            tokio::task::spawn_blocking(move || {
                let next = || wanted.lock().unwrap_or_else(PoisonError::into_inner).next();
                while let Some((upstream, config)) = next() {
                    read_one(&upstream, &config, store.as_deref(), &send);
                }
            });
        }
        drop(send);
        Self::gathered(&found, deadline)
    }

    fn gathered(found: &Receiver<(SourceName, Found)>, deadline: Instant) -> Self {
        let mut looks = Self::default();
        // It ends when all readers have ended, too.
        while let Ok((name, found)) = found.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            let look = looks.0.entry(name).or_default();
            match found {
                Found::Left(left) => look.left = Some(left),
                Found::File(file) => look.file = Some(file),
            }
        }
        looks
    }

    /// What was read of a source in time.
    pub(super) fn take(&mut self, upstream: &UpstreamName, config: &DiscoveryConfig) -> FirstLook {
        self.0.remove(&(upstream.clone(), Arc::clone(&config.name))).unwrap_or_default()
    }
}

fn read_one(
    upstream: &UpstreamName,
    config: &DiscoveryConfig,
    store: Option<&Store>,
    send: &Sender<(SourceName, Found)>,
) {
    let name = (upstream.clone(), Arc::clone(&config.name));
    if let Some(left) = store.and_then(|store| store.read(&Key::new(upstream, config))) {
        let _ = send.send((name.clone(), Found::Left(left)));
    }
    if let Some(SourceConfig::File(file)) = config.source() {
        let look = FileLook::first(file, &Reading::new(config));
        let _ = send.send((name, Found::File(look)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_waited_for_no_longer_than_patience_lasts_and_costs_itself_alone() {
        let (send, found) = channel();
        let hangs = send.clone();
        let of = |name: &str| (UpstreamName::from("u"), Arc::from(name));
        let left = Left { set: Default::default(), revision: None, at: std::time::SystemTime::now() };
        send.send((of("quick"), Found::Left(left))).unwrap();
        drop(send);
        let begun = Instant::now();
        let looks = FirstLooks::gathered(&found, begun + Duration::from_millis(50));
        let took = begun.elapsed();
        assert!(looks.0.contains_key(&of("quick")));
        assert!(took >= Duration::from_millis(50) && took < Duration::from_secs(5), "{took:?}");
        // When all have said what they have to say, nothing is waited for.
        drop(hangs);
        FirstLooks::gathered(&found, Instant::now() + Duration::from_secs(3600));
    }
}
