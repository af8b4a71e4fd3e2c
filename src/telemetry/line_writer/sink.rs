//! Where lines end up.
//!
//! A file that was renamed or removed under us (logrotate) is noticed and opened again, so that rotating needs neither a signal
//! nor a lost line. It is opened to append, so that one which was emptied in place (`copytruncate`) goes on at its new end.
//!
//! To open never waits: a FIFO without a reader is opened once it has one. To write may wait for standard output and standard error, which
//! are shared with other processes and so are left as they are.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use tracing::{info, warn};

/// Where lines are to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogSink {
    /// The process's standard output.
    Stdout,
    /// The process's standard error.
    Stderr,
    /// A file, which is made where there is none.
    File(PathBuf),
}

/// How much is written by one call: what has come of it is seen in between.
const PIECE_BYTES: usize = 64 * 1024;
/// How long to wait where a FIFO is full.
const FULL_PAUSE: Duration = Duration::from_millis(5);
/// How long one that is full is tried after the stop.
const STOP_LIMIT: Duration = Duration::from_secs(1);

impl LogSink {
    /// Opens it and closes it again: whether that can be done.
    ///
    /// # Errors
    /// When it cannot.
    pub fn probe(&self) -> io::Result<()> {
        self.open().map(drop)
    }

    /// `None` for a FIFO that has no reader.
    fn open(&self) -> io::Result<Option<File>> {
        // Copies of the descriptors, and not the locked ones of the library: whatever else is written there does not wait for us.
        match self {
            Self::Stdout => Ok(Some(io::stdout().as_fd().try_clone_to_owned()?.into())),
            Self::Stderr => Ok(Some(io::stderr().as_fd().try_clone_to_owned()?.into())),
            Self::File(path) => append_to(path),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Stdout => "stdout".into(),
            Self::Stderr => "stderr".into(),
            Self::File(path) => path.display().to_string(),
        }
    }
}

/// An open output.
#[derive(Debug)]
pub(super) struct Sink {
    /// What is written, in words.
    what: &'static str,
    output: LogSink,
    /// `None` while it is a FIFO without a reader.
    file: Option<File>,
    /// Whether what was last written ended in the middle of a line.
    torn: bool,
    /// Whether the last write failed: a streak of failures is logged once.
    failing: bool,
    reopen_failing: bool,
    /// Whether it was told that there is no reader.
    unread: bool,
}

impl Sink {
    /// Opens the output, making the file where there is none.
    pub(super) fn open(what: &'static str, output: LogSink) -> io::Result<Self> {
        let file = output.open()?;
        let mut sink = Self { what, output, file, torn: false, failing: false, reopen_failing: false, unread: false };
        if sink.file.is_none() {
            sink.without_reader();
        }
        Ok(sink)
    }

    /// Whether there is something to write to.
    pub(super) fn is_open(&self) -> bool {
        self.file.is_some()
    }

    /// Writes whole lines. Returns how many of them were lost. `progress` grows while some are taken; once `stopped`, one that takes none
    /// is soon given up.
    pub(super) fn write(&mut self, lines: &[u8], progress: &AtomicU64, stopped: &dyn Fn() -> bool) -> u64 {
        if self.torn && self.write_all(b"\n", progress, stopped).0 == 0 {
            return count(lines);
        }
        let (written, result) = self.write_all(lines, progress, stopped);
        if written > 0 {
            self.torn = lines[written - 1] != b'\n';
        }
        match result {
            Ok(()) if self.failing => {
                self.failing = false;
                info!("the {} is written again", self.what);
            }
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe && self.is_fifo() => {
                self.file = None;
                self.torn = false;
                self.without_reader();
            }
            Err(error) if !self.failing => {
                self.failing = true;
                let output = self.output.name();
                warn!(%error, output, "could not write the {}; its lines are lost until it can be", self.what);
            }
            Err(_) => {}
        }
        count(&lines[written..])
    }

    fn is_fifo(&self) -> bool {
        let kind = |file: &File| Some(file.metadata().ok()?.file_type());
        matches!(self.output, LogSink::File(_)) && self.file.as_ref().and_then(kind).is_some_and(|it| it.is_fifo())
    }

    fn without_reader(&mut self) {
        if !self.unread {
            self.unread = true;
            warn!(output = self.output.name(), "the {} is a FIFO without a reader; lines wait for one", self.what);
        }
    }

    /// Opens the file again if its path leads elsewhere by now, or it is a FIFO that had no reader. Where that fails, what is open is
    /// written on.
    pub(super) fn reopen_if_moved(&mut self) {
        let LogSink::File(path) = &self.output else { return };
        let same = match (std::fs::metadata(path), self.file.as_ref().map(File::metadata)) {
            (_, None) => false,
            (Ok(there), Some(Ok(here))) => (there.dev(), there.ino()) == (here.dev(), here.ino()),
            (Err(error), _) => error.kind() != ErrorKind::NotFound,
            (Ok(_), Some(Err(_))) => true,
        };
        if !same {
            self.reopen();
        }
    }

    /// Opens the file again. Where that fails, what is open is written on.
    pub(super) fn reopen(&mut self) {
        let LogSink::File(path) = &self.output else { return };
        match append_to(path) {
            Ok(None) => self.without_reader(),
            Ok(again) => {
                self.file = again;
                (self.torn, self.reopen_failing, self.unread) = (false, false, false);
                info!(path = %path.display(), "opened the {} again", self.what);
            }
            Err(error) if !self.reopen_failing => {
                self.reopen_failing = true;
                let path = path.display();
                warn!(%error, %path, "the {} cannot be opened again; writing on to the former file", self.what);
            }
            Err(_) => {}
        }
    }

    /// Like [`Write::write_all`], but tells how far it came.
    fn write_all(&mut self, bytes: &[u8], progress: &AtomicU64, stopped: &dyn Fn() -> bool) -> (usize, io::Result<()>) {
        let Some(file) = &mut self.file else { return (0, Err(ErrorKind::BrokenPipe.into())) };
        let (mut written, mut full_since) = (0, None);
        while written < bytes.len() {
            let piece = &bytes[written..bytes.len().min(written + PIECE_BYTES)];
            match file.write(piece) {
                Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
                Ok(n) => {
                    written += n;
                    full_since = None;
                    progress.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let since = *full_since.get_or_insert_with(Instant::now);
                    if stopped() && since.elapsed() >= STOP_LIMIT {
                        return (written, Err(error));
                    }
                    thread::sleep(FULL_PAUSE);
                }
                Err(error) => return (written, Err(error)),
            }
        }
        (written, Ok(()))
    }
}

/// Opens a file to append to it, without waiting. `None` for a FIFO that has no reader.
fn append_to(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    // Addresses of clients are personal data: not for all users of the machine.
    options.append(true).create(true).mode(0o640);
    match options.custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if is_of(path, FileType::is_fifo) && has_no_reader(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_of(path: &Path, kind: fn(&FileType) -> bool) -> bool {
    std::fs::metadata(path).is_ok_and(|data| kind(&data.file_type()))
}

fn has_no_reader(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error())
}

fn count(lines: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', lines).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::line_writer::tests::Directory;

    fn open(path: &Path) -> Sink {
        Sink::open("access log", LogSink::File(path.into())).unwrap()
    }

    fn write(sink: &mut Sink, lines: &[u8]) -> u64 {
        sink.write(lines, &AtomicU64::new(0), &|| false)
    }

    #[test]
    fn a_renamed_or_removed_file_is_opened_again() {
        let directory = Directory::new();
        let (path, moved) = (directory.join("a.log"), directory.join("a.log.1"));
        let mut sink = open(&path);
        write(&mut sink, b"one\n");
        sink.reopen_if_moved();
        std::fs::rename(&path, &moved).unwrap();
        write(&mut sink, b"two\n");
        sink.reopen_if_moved();
        write(&mut sink, b"three\n");
        assert_eq!(std::fs::read(&moved).unwrap(), b"one\ntwo\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"three\n");

        std::fs::remove_file(&path).unwrap();
        sink.reopen_if_moved();
        write(&mut sink, b"four\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"four\n");
    }

    #[test]
    fn a_file_that_cannot_be_opened_again_is_written_on() {
        let directory = Directory::new();
        let (inner, moved) = (directory.join("in"), directory.join("out"));
        std::fs::create_dir(&inner).unwrap();
        let mut sink = open(&inner.join("a.log"));
        std::fs::rename(&inner, &moved).unwrap();
        sink.reopen_if_moved();
        assert_eq!(write(&mut sink, b"one\n"), 0);
        assert_eq!(std::fs::read(moved.join("a.log")).unwrap(), b"one\n");
    }

    #[test]
    fn a_full_disk_loses_lines_and_counts_them() {
        let full = Path::new("/dev/full");
        if !full.exists() {
            return;
        }
        let mut sink = open(full);
        assert_eq!(write(&mut sink, b"one\ntwo\n"), 2);
        assert_eq!(write(&mut sink, b"three\n"), 1);
        assert!(sink.failing);
    }

    #[test]
    fn a_torn_line_is_ended_before_the_next() {
        let directory = Directory::new();
        let path = directory.join("a.log");
        let mut sink = open(&path);
        sink.write_all(b"hal", &AtomicU64::new(0), &|| false).1.unwrap();
        sink.torn = true;
        assert_eq!(write(&mut sink, b"whole\n"), 0);
        assert_eq!(std::fs::read(&path).unwrap(), b"hal\nwhole\n");
        assert!(!sink.torn);
    }
}
