//! A file that lists backends.
//!
//! It is looked at again and again, as `lb.toml` is, rather than asking the kernel to be told: that works on every file system and for every way
//! of replacing a file.

use std::fs::{Metadata, OpenOptions};
use std::future::pending;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::reading::Reading;
use super::{Answer, Answered, AnyDiscovery, DiscoveryError};
use crate::backend::document::Document;
use crate::config::FileSourceConfig;

/// A file that was just written is looked at once more before it is read: it may be half of what is being written.
const REST: Duration = Duration::from_millis(50);

/// So many times. One that is written all the time is read all the same.
const LOOKS_MAX: u32 = 10;

/// A look at the file takes no longer, or the source fails: a network file system lets it hang.
const LATE: Duration = Duration::from_secs(10);

/// Says what is in a file.
pub(super) struct FileSource {
    config: Arc<FileSourceConfig>,
    reading: Reading,
    /// What was seen before the source began, until it is said: a start serves with it.
    first: Option<FileLook>,
    /// The state that was read last; `None` where that was not possible.
    seen: Option<Stamp>,
    /// When it is looked at next; `None` is at once.
    due: Option<Instant>,
    /// The look that is under way. There are never two: each that hangs keeps a thread.
    looking: Option<JoinHandle<FileLook>>,
}

/// What a look at a file has shown.
#[derive(Debug)]
pub(super) struct FileLook(Result<Seen, DiscoveryError>);

#[derive(Debug)]
enum Seen {
    /// It is as it was.
    Same,
    Other(Stamp, Answer),
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(data: &Metadata) -> Self {
        Self {
            file: (data.dev(), data.ino()),
            size: data.size(),
            written: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        }
    }
}

impl FileLook {
    /// The first look at a file. Blocks.
    pub(super) fn first(config: &FileSourceConfig, reading: &Reading) -> Self {
        Self(stamp(&config.path).map_err(|error| failed(&config.path, &error)).and_then(|stamp| {
            let answer = read(&config.path, reading)?;
            Ok(Seen::Other(stamp, answer))
        }))
    }

    /// A look at a file that was seen as `seen` last. Blocks, for a moment longer where it is another.
    fn again(config: &FileSourceConfig, reading: &Reading, seen: Option<Stamp>) -> Self {
        let look = || stamp(&config.path).map_err(|error| failed(&config.path, &error));
        let looked = || {
            let mut now = look()?;
            if seen == Some(now) {
                return Ok(Seen::Same);
            }
            for _ in 0..LOOKS_MAX {
                std::thread::sleep(REST);
                let before = std::mem::replace(&mut now, look()?);
                if before == now {
                    break;
                }
            }
            Ok(Seen::Other(now, read(&config.path, reading)?))
        };
        Self(looked())
    }
}

impl FileSource {
    pub(super) fn new(config: Arc<FileSourceConfig>, reading: Reading, first: Option<FileLook>) -> Self {
        Self { config, reading, first, seen: None, due: None, looking: None }
    }

    /// What is in the file, once it is another than the one that was read last.
    async fn changed(&mut self) -> Result<Answer, DiscoveryError> {
        loop {
            let look = match self.first.take() {
                Some(first) => first,
                None => self.look().await?,
            };
            self.due = Some(Instant::now() + self.config.interval);
            match look.0 {
                Ok(Seen::Same) => {}
                Ok(Seen::Other(stamp, answer)) => {
                    self.seen = Some(stamp);
                    return Ok(answer);
                }
                Err(error) => {
                    // One that makes no sense is read again, though it is the same, for as long as the source is failing.
                    self.seen = None;
                    return Err(error);
                }
            }
        }
    }

    async fn look(&mut self) -> Result<FileLook, DiscoveryError> {
        if self.looking.is_none() {
            if let Some(due) = self.due {
                sleep_until(due).await;
            }
            let (config, reading, seen) = (Arc::clone(&self.config), self.reading.clone(), self.seen);
            self.looking = Some(tokio::task::spawn_blocking(move || FileLook::again(&config, &reading, seen)));
        }
        let Some(looking) = &mut self.looking else { return pending().await };
        let Ok(looked) = timeout(LATE, looking).await else {
            return Err(failed(&self.config.path, &format!("the file system has not answered within {LATE:?}")));
        };
        self.looking = None;
        Ok(looked?)
    }
}

impl AnyDiscovery for FileSource {
    fn next(&mut self) -> Answered<'_> {
        Box::pin(self.changed())
    }

    fn is_at_hand(&self) -> bool {
        self.first.is_some()
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    std::fs::metadata(path).map(|data| Stamp::from(&data))
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> DiscoveryError {
    DiscoveryError::new(format!("could not read {}: {error}", path.display()))
}

fn read(path: &Path, reading: &Reading) -> Result<Answer, DiscoveryError> {
    let bytes = bytes(path, reading.bytes_max).map_err(|error| failed(path, &error))?;
    let is_toml = path.extension().is_some_and(|it| it.eq_ignore_ascii_case("toml"));
    let read = if is_toml { Document::of_toml } else { Document::of_json };
    let document = read(&bytes, &reading.zone_label);
    document.map(Answer::from).map_err(|error| failed(path, &error))
}

/// What is in a file of so many bytes at most.
pub(super) fn bytes(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    // To open a pipe would wait for a writer.
    let no_wait = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(no_wait).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    match bytes.len() > most {
        true => Err(io::Error::other(format!("it has more than {most} bytes"))),
        false => Ok(bytes),
    }
}
