//! The last good sets on disk, in `state_dir`, so that a start serves while a registry is down.
//!
//! A file for each source of each upstream. It says what was asked: what one has left that asked for something else is not read. Files are written
//! behind the sources, by one task, and take the place of the one before as a whole.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::backend::BackendSet;
use crate::backend::document::{self, Document};
use crate::config::{DiscoveryConfig, Service, UpstreamName};

/// A set that changes again and again is written so often at most.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// What could not be written is tried again after so long.
const WRITE_AGAIN: Duration = Duration::from_secs(10);

/// Bytes of a file that is read: a hundred thousand backends with labels.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The version of what is in a file.
const VERSION: u64 = 1;

/// The files.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    /// What is not written yet, the last of each.
    pending: Mutex<HashMap<PathBuf, Entry>>,
    /// Held while files are written: the last writing, at a stop, waits for one that has begun.
    writing: Mutex<()>,
    wake: Notify,
}

/// A set as it is to be written.
#[derive(Clone, Debug)]
struct Entry {
    key: Arc<Key>,
    said: Said,
    at: SystemTime,
}

/// What a source has said.
#[derive(Clone, Debug)]
enum Said {
    Backends(BackendSet, Option<Arc<str>>),
    Services(Vec<Service>),
    /// It is there no more: its file goes.
    Gone,
}

/// Which source it is, and what it asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) upstream: String,
    pub(super) source: String,
    pub(super) asks: String,
}

impl Key {
    pub(super) fn new(upstream: &UpstreamName, config: &DiscoveryConfig) -> Self {
        Self { upstream: upstream.to_string(), source: config.name.to_string(), asks: config.asks() }
    }
}

/// A set that was left.
#[derive(Debug, PartialEq)]
pub(super) struct Left {
    pub(super) set: BackendSet,
    pub(super) revision: Option<Arc<str>>,
    /// When it was found.
    pub(super) at: SystemTime,
}

impl Store {
    /// In a directory of the state directory, which is made when there is something to write.
    pub(super) fn new(state_dir: &Path) -> Arc<Self> {
        Arc::new(Self {
            dir: state_dir.join("discovery"),
            pending: Mutex::default(),
            writing: Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// What was left for a source; `None` where there is nothing that could be used, which is told if it is odd.
    pub(super) fn read(&self, key: &Key) -> Option<Left> {
        self.read_as(key, parse)
    }

    /// The same of the services that a source has listed.
    pub(super) fn read_services(&self, key: &Key) -> Option<Vec<Service>> {
        self.read_as(key, parse_services)
    }

    fn read_as<T>(&self, key: &Key, parse: fn(&[u8], &Key) -> Option<T>) -> Option<T> {
        let path = self.path(key);
        match read(&path) {
            Ok(text) => {
                let left = parse(&text, key);
                if left.is_none() {
                    info!(file = %path.display(), "not used: it is of another source, or of another version");
                }
                left
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                warn!(file = %path.display(), %error, "could not read the last good set of a source");
                None
            }
        }
    }

    /// Has a set written, soon.
    pub(super) fn save(&self, key: &Arc<Key>, set: &BackendSet, revision: Option<&Arc<str>>) {
        self.put(key, Said::Backends(set.clone(), revision.cloned()));
    }

    /// The same of the services that a source lists.
    pub(super) fn save_services(&self, key: &Arc<Key>, services: &[Service]) {
        self.put(key, Said::Services(services.to_vec()));
    }

    /// Has what is kept of a source removed, soon.
    pub(super) fn forget(&self, key: &Arc<Key>) {
        self.put(key, Said::Gone);
    }

    fn put(&self, key: &Arc<Key>, said: Said) {
        let (key, at) = (Arc::clone(key), SystemTime::now());
        self.lock().insert(self.path(&key), Entry { key, said, at });
        self.wake.notify_one();
    }

    /// Writes what is not written yet. What could not be written is still to be written. Blocks.
    pub(super) fn flush(&self) -> io::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = std::mem::take(&mut *self.lock());
        let mut result = Ok(());
        for (path, entry) in pending {
            if let Err(error) = write(&self.dir, &path, &entry) {
                // Unless there is a newer one by now.
                self.lock().entry(path).or_insert(entry);
                result = Err(error);
            }
        }
        result
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(file_name(&key.upstream, &key.source))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Entry>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what changes, until it is dropped.
pub(super) async fn write_behind(store: Arc<Store>) {
    let mut failing = false;
    loop {
        store.wake.notified().await;
        // What changes meanwhile is written with it.
        tokio::time::sleep(WRITE_EVERY).await;
        let writes = Arc::clone(&store);
        let written =
            tokio::task::spawn_blocking(move || writes.flush()).await.unwrap_or_else(|error| Err(error.into()));
        match written {
            Ok(()) => failing = false,
            Err(error) => {
                if !failing {
                    failing = true;
                    warn!(dir = %store.dir.display(), %error, "could not write the last good set of a source");
                }
                tokio::time::sleep(WRITE_AGAIN).await;
                store.wake.notify_one();
            }
        }
    }
}

/// A name that no two sources share, and that any file system takes.
fn file_name(upstream: &str, source: &str) -> String {
    let plain = |text: &str| {
        let word = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' };
        text.chars().take(48).map(word).collect::<String>()
    };
    // FNV-1a: the same in every version of this program.
    let bytes = upstream.bytes().chain([0]).chain(source.bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{}.{}.{hash:016x}.json", plain(upstream), plain(source))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut bytes = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What is in a file of this source.
fn opened(text: &[u8], key: &Key) -> Option<Value> {
    let value: Value = serde_json::from_slice(text).ok()?;
    let is = |name: &str, expected: &str| value[name].as_str() == Some(expected);
    let same = is("upstream", &key.upstream) && is("source", &key.source) && is("asks", &key.asks);
    (same && value["version"].as_u64() == Some(VERSION)).then_some(value)
}

fn parse_services(text: &[u8], key: &Key) -> Option<Vec<Service>> {
    let value = opened(text, key)?;
    let services = value["services"].as_array()?.iter();
    let services = services.map(|service| {
        let tags = service["tags"].as_array()?.iter().filter_map(Value::as_str);
        Service::new(service["name"].as_str()?, tags).ok()
    });
    services.collect()
}

fn parse(text: &[u8], key: &Key) -> Option<Left> {
    let mut value = opened(text, key)?;
    let at = UNIX_EPOCH + Duration::from_secs(value["at"].as_u64()?);
    let revision = value["revision"].as_str().map(Arc::from);
    let Document { instances, refused } =
        Document::of_value(json!({ "backends": value["backends"].take() }), "").ok()?;
    refused.is_empty().then(|| Left { set: BackendSet::new(instances), revision, at })
}

fn write(dir: &Path, path: &Path, entry: &Entry) -> io::Result<()> {
    let Entry { key, said, at } = entry;
    let mut value = match said {
        Said::Backends(set, revision) => {
            let mut value = document::to_json(set);
            value["revision"] = revision.as_deref().into();
            value
        }
        Said::Gone => {
            return match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        Said::Services(services) => {
            let one =
                |it: &Service| json!({ "name": &*it.name, "tags": it.tags.iter().map(|it| &**it).collect::<Vec<_>>() });
            json!({ "services": services.iter().map(one).collect::<Vec<_>>() })
        }
    };
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    value["version"] = VERSION.into();
    value["upstream"] = key.upstream.clone().into();
    value["source"] = key.source.clone().into();
    value["asks"] = key.asks.clone().into();
    value["at"] = seconds.into();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // Another process may write the same while one takes the place of the other.
    let beside = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = write_beside(&beside, value.to_string().as_bytes())
        .and_then(|()| fs::rename(&beside, path))
        .and_then(|()| File::open(dir)?.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

fn write_beside(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Instance;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("isobar-store-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn key(asks: &str) -> Arc<Key> {
        Arc::new(Key { upstream: "users/å".into(), source: "consul users".into(), asks: asks.into() })
    }

    fn set(ports: &[u16]) -> BackendSet {
        ports.iter().map(|port| Instance::new(format!("10.0.0.1:{port}").parse().unwrap())).collect()
    }

    #[test]
    fn what_is_written_is_read_by_one_that_asks_the_same() {
        let dir = Scratch::new("same");
        let store = Store::new(&dir.0);
        assert_eq!(store.read(&key("a")), None);
        store.save(&key("a"), &set(&[1]), None);
        store.save(&key("a"), &set(&[1, 2]), Some(&"17".into()));
        store.flush().unwrap();
        let left = store.read(&key("a")).unwrap();
        assert_eq!((left.set, left.revision.as_deref()), (set(&[1, 2]), Some("17")));
        assert!(left.at.elapsed().unwrap() < Duration::from_secs(60));
        assert_eq!(store.read(&key("b")), None);
        // Nothing but the one file is left, and no other user may read it.
        let files: Vec<_> = fs::read_dir(dir.0.join("discovery")).unwrap().map(|it| it.unwrap()).collect();
        assert_eq!(files.len(), 1);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn services_are_written_and_read_with_their_tags() {
        let dir = Scratch::new("services");
        let store = Store::new(&dir.0);
        let services = vec![Service::new("orders", []).unwrap(), Service::new("users", ["k=v", "public"]).unwrap()];
        store.save_services(&key("a"), &services);
        store.flush().unwrap();
        assert_eq!(store.read_services(&key("a")), Some(services));
        assert_eq!((store.read_services(&key("b")), store.read(&key("a"))), (None, None));
        for _ in 0..2 {
            store.forget(&key("a"));
            store.flush().unwrap();
        }
        assert_eq!(fs::read_dir(dir.0.join("discovery")).unwrap().count(), 0);
    }

    #[test]
    fn half_a_file_and_what_is_no_file_are_not_used() {
        let dir = Scratch::new("half");
        let store = Store::new(&dir.0);
        store.save(&key("a"), &set(&[1, 2]), None);
        store.flush().unwrap();
        let path = store.path(&key("a"));
        let whole = fs::read(&path).unwrap();
        for length in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(store.read(&key("a")), None, "{length}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(store.read(&key("a")), None);
        store.save(&key("a"), &set(&[1]), None);
        assert!(store.flush().is_err());
        // It is written as soon as that can be done, though nothing has changed since.
        fs::remove_dir(&path).unwrap();
        store.flush().unwrap();
        assert_eq!(store.read(&key("a")).unwrap().set, set(&[1]));
    }

    #[test]
    fn names_of_files_are_short_and_differ() {
        let long = "é".repeat(64);
        let names = [
            file_name("a", "b"),
            file_name("a/b", ""),
            file_name("a_b", ""),
            file_name(&long, &long),
            file_name("..", ".."),
        ];
        for (index, name) in names.iter().enumerate() {
            assert!(name.len() < 200 && !name.contains('/') && !name.starts_with('.'), "{name}");
            assert!(!names[..index].contains(name), "{name}");
        }
    }
}
