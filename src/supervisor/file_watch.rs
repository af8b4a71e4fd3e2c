//! Notices that the file is another.
//!
//! The path is looked up and its file's identity read every [`POLL_EVERY`], rather than asking the kernel to be told:
//! inotify says nothing on network file systems, needs a watch on each link of a chain of symbolic links, and each way of
//! replacing a file makes other events. A look costs a few microseconds and sees them all: an edit in place, a rename
//! over it, and the swap of a link further up by which Kubernetes replaces a ConfigMap. (One thing cannot be seen from inside a
//! container: a rename over a file that is itself mounted. Mount its directory.)
//!
//! A change is acted upon once two looks in a row agree, so that a file is not read while it is written. What is read is the file that was
//! opened, whatever has its name meanwhile; where that one was written while it was read, it may be half, and is read again (`read_whole`).

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::command_loop::{ControlCommand, Trigger};
use super::handle::Handle;
use crate::config::{Problems, ReadFile};

/// Two looks make a change visible, so it is applied within half a second.
pub const POLL_EVERY: Duration = Duration::from_millis(200);

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The file itself: a rename or another target of a link changes it.
    pub file: (u64, u64),
    /// Its size in bytes.
    pub size: u64,
    /// When it was written: seconds and nanoseconds.
    pub written: (i64, i64),
    /// When anything about it changed. Unlike the time of writing, no program can set it back.
    pub changed: (i64, i64),
}

impl Stamp {
    /// The file that `path` leads to now.
    ///
    /// # Errors
    /// When there is none, or it cannot be seen.
    pub fn of(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|data| Self::from(&data))
    }

    /// Whether the one is the other as far as what is in it goes: a rename is no matter.
    fn has_same_content(&self, other: &Self) -> bool {
        (self.file, self.size, self.written) == (other.file, other.size, other.written)
    }
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

/// Times that a file is read which is written each time. One that is to be read all the same is then taken as it is.
const TRIES: u32 = 10;
const TRY_PAUSE: Duration = Duration::from_millis(50);

/// Reads the file that is to be applied. `None`: what was read may be half of it, or it is gone; that it changes once more is noticed too.
/// May block for a while.
pub(super) fn read_whole(path: &Path, trigger: Trigger) -> Result<Option<ReadFile>, Problems> {
    let Trigger::File(seen) = trigger else { return read_at_rest(path).map(Some) };
    let read = match ReadFile::read(path) {
        Err(_) if Stamp::of(path).is_err() => return Ok(None),
        read => read?,
    };
    let now = Stamp::from(read.before());
    match seen {
        // It rested between two looks.
        Some(seen) if seen.has_same_content(&now) => {}
        // It was written in place since.
        Some(seen) if seen.file == now.file => return Ok(None),
        // Another has taken its place, and is likely whole. One that is still being written changes within this time; that the name is
        // another's by the end of it is no matter, or one that is replaced all the time would never be applied.
        _ => std::thread::sleep(POLL_EVERY),
    }
    Ok(read.is_unchanged().then_some(read))
}

/// Reads a file that is to be applied as it is, and once more where it is written meanwhile.
pub(super) fn read_at_rest(path: &Path) -> Result<ReadFile, Problems> {
    for _ in 1..TRIES {
        let read = ReadFile::read(path)?;
        if read.is_unchanged() {
            return Ok(read);
        }
        std::thread::sleep(TRY_PAUSE);
    }
    ReadFile::read(path)
}

/// What is known of the file: the pure part.
#[derive(Clone, Copy, Debug)]
pub struct FileWatch {
    /// What was acted upon last.
    settled: Option<Stamp>,
    /// What the last look saw.
    seen: Option<Stamp>,
    /// So many looks in a row saw something else than the one before.
    unsteady: u32,
}

/// A file that is another at so many looks in a row is not a file that is being written, but one that is replaced or written again and
/// again: it is read all the same.
const PATIENCE: u32 = 4;

/// What a look leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileStep {
    /// Nothing: as it was, or still changing.
    Wait,
    /// The file is another: this one, which two looks have seen.
    Reload(Stamp),
    /// The file is another at each look.
    Restless,
    /// There is no file any more.
    Vanished,
}

impl FileWatch {
    /// Begins with the file that was loaded. Its stamp is to be taken before it is read: a change in between is then seen.
    pub fn new(loaded: Option<Stamp>) -> Self {
        Self { settled: loaded, seen: loaded, unsteady: 0 }
    }

    /// Takes note of what a look saw; `None` is no file.
    pub fn look(&mut self, now: Option<Stamp>) -> FileStep {
        let steady = self.seen == now;
        self.seen = now;
        self.unsteady = if steady { 0 } else { self.unsteady + 1 };
        if self.settled == now || !(steady || (self.unsteady >= PATIENCE && now.is_some())) {
            return FileStep::Wait;
        }
        self.settled = now;
        self.unsteady = 0;
        match now {
            None => FileStep::Vanished,
            Some(now) if steady => FileStep::Reload(now),
            Some(_) => FileStep::Restless,
        }
    }
}

/// Looks at `path` until reloads are no longer taken.
pub(crate) async fn run(path: PathBuf, loaded: Option<Stamp>, handle: Handle) {
    poll(path, FileWatch::new(loaded), handle.commands).await;
}

async fn poll(path: PathBuf, mut watch: FileWatch, commands: mpsc::Sender<ControlCommand>) {
    let mut every = tokio::time::interval(POLL_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let looked = {
            let path = path.clone();
            // A network file system may let a look hang: not on the thread that handles signals.
            tokio::task::spawn_blocking(move || Stamp::of(&path)).await
        };
        let Ok(looked) = looked else { continue };
        let seen = match watch.look(looked.ok()) {
            FileStep::Wait => continue,
            FileStep::Vanished => {
                warn!(file = %path.display(), "file vanished, keeping what runs");
                continue;
            }
            FileStep::Reload(seen) => Some(seen),
            FileStep::Restless => None,
        };
        info!(file = %path.display(), "file changed");
        if commands.send(ControlCommand::Reload { trigger: Trigger::File(seen), reply: None }).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    const fn stamp(n: u64) -> Option<Stamp> {
        Some(Stamp { file: (1, n), size: 10, written: (n as i64, 0), changed: (n as i64, 0) })
    }

    #[test]
    fn a_change_counts_once_it_is_seen_twice() {
        use FileStep::{Restless, Vanished, Wait};
        const GONE: Option<Stamp> = None;
        let (a, b, c) = (stamp(1), stamp(2), stamp(3));
        let reload = |stamp: Option<Stamp>| FileStep::Reload(stamp.unwrap());
        type Look = (Option<Stamp>, FileStep);
        let cases: &[(&str, Option<Stamp>, &[Look])] = &[
            ("nothing happens", a, &[(a, Wait), (a, Wait), (a, Wait)]),
            ("an edit", a, &[(b, Wait), (b, reload(b)), (b, Wait), (b, Wait)]),
            ("a slow writer", a, &[(b, Wait), (c, Wait), (b, Wait), (b, reload(b)), (b, Wait)]),
            (
                "one that never rests",
                a,
                &[
                    (b, Wait),
                    (c, Wait),
                    (b, Wait),
                    (c, Restless),
                    (b, Wait),
                    (c, Wait),
                    (b, Wait),
                    (a, Restless),
                    (a, Wait),
                ],
            ),
            ("an edit and its undoing between looks", a, &[(b, Wait), (a, Wait), (a, Wait)]),
            ("two edits", a, &[(b, Wait), (b, reload(b)), (c, Wait), (c, reload(c))]),
            ("an edit that comes back", a, &[(b, Wait), (b, reload(b)), (a, Wait), (a, reload(a))]),
            ("gone for the moment of a rename", a, &[(GONE, Wait), (b, Wait), (b, reload(b))]),
            ("gone for the moment of a link's swap", a, &[(GONE, Wait), (a, Wait), (a, Wait)]),
            ("gone, said once", a, &[(GONE, Wait), (GONE, Vanished), (GONE, Wait), (GONE, Wait)]),
            ("gone and back", a, &[(GONE, Wait), (GONE, Vanished), (b, Wait), (b, reload(b)), (b, Wait)]),
            ("gone and back, the same", a, &[(GONE, Wait), (GONE, Vanished), (a, Wait), (a, reload(a))]),
            ("not there at first", GONE, &[(GONE, Wait), (GONE, Wait), (a, Wait), (a, reload(a))]),
        ];
        for (case, loaded, looks) in cases {
            let mut watch = FileWatch::new(*loaded);
            for (i, &(seen, expected)) in looks.iter().enumerate() {
                assert_eq!(watch.look(seen), expected, "{case}, look {i}");
            }
        }
    }

    /// A directory of its own, gone with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("isobar-watch-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn each_way_of_editing_is_seen() {
        let dir = Scratch::new("ways");
        let (first, second) = (dir.0.join("first"), dir.0.join("second"));
        for (version, text) in [(&first, "one"), (&second, "two")] {
            fs::create_dir_all(version).unwrap();
            fs::write(version.join("lb.toml"), text).unwrap();
        }
        // The shape of a ConfigMap: lb.toml -> ..data/lb.toml, ..data -> first.
        symlink("first", dir.0.join("..data")).unwrap();
        let path = dir.0.join("lb.toml");
        symlink("..data/lb.toml", &path).unwrap();

        let edit_in_place = || fs::write(&path, "one, and a bit").unwrap();
        let swap_the_link = || {
            symlink("second", dir.0.join("..new")).unwrap();
            fs::rename(dir.0.join("..new"), dir.0.join("..data")).unwrap();
        };
        let rename_over = || {
            fs::write(dir.0.join("lb.toml~"), "two").unwrap();
            fs::rename(dir.0.join("lb.toml~"), &path).unwrap();
        };

        let mut watch = FileWatch::new(Stamp::of(&path).ok());
        let mut look = || watch.look(Stamp::of(&path).ok());
        assert_eq!([look(), look()], [FileStep::Wait, FileStep::Wait]);
        for (way, edit) in
            [("in place", &edit_in_place as &dyn Fn()), ("link", &swap_the_link), ("rename", &rename_over)]
        {
            edit();
            let seen = Stamp::of(&path).unwrap();
            assert_eq!([look(), look(), look()], [FileStep::Wait, FileStep::Reload(seen), FileStep::Wait], "{way}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!([look(), look(), look()], [FileStep::Wait, FileStep::Vanished, FileStep::Wait]);
    }

    #[tokio::test]
    async fn a_change_of_a_real_file_asks_for_one_reload_within_a_second() {
        let dir = Scratch::new("task");
        let path = dir.0.join("lb.toml");
        fs::write(&path, "one").unwrap();
        let (commands, mut asked) = mpsc::channel(8);
        let task = tokio::spawn(poll(path.clone(), FileWatch::new(Stamp::of(&path).ok()), commands));

        fs::write(&path, "two, longer").unwrap();
        let first = tokio::time::timeout(Duration::from_secs(1), asked.recv()).await.unwrap();
        assert!(matches!(first, Some(ControlCommand::Reload { trigger: Trigger::File(_), reply: None })));
        assert!(tokio::time::timeout(3 * POLL_EVERY, asked.recv()).await.is_err(), "one change, one reload");

        drop(asked);
        fs::write(&path, "three, longer still").unwrap();
        tokio::time::timeout(Duration::from_secs(1), task).await.unwrap().unwrap();
    }
}
