//! Where lines end up.
//!
//! A file that was renamed or removed under us (logrotate) is noticed and opened again, so that rotating needs neither a signal
//! nor a lost line. It is opened to append, so that one which was emptied in place (`copytruncate`) goes on at its new end.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::config::AccessLogOutput;

/// An open output of the access log.
#[derive(Debug)]
pub(super) struct Sink {
    output: Output,
    /// Whether what was last written ended in the middle of a line.
    torn: bool,
    /// Whether the last write failed: a streak of failures is logged once.
    failing: bool,
    reopen_failing: bool,
}

#[derive(Debug)]
enum Output {
    Stdout(io::Stdout),
    File { path: PathBuf, file: File },
}

impl Sink {
    /// Opens the output, making the file where there is none.
    pub(super) fn open(output: &AccessLogOutput) -> io::Result<Self> {
        let output = match output {
            AccessLogOutput::Stdout => Output::Stdout(io::stdout()),
            AccessLogOutput::File(path) => Output::File { path: path.clone(), file: append_to(path)? },
        };
        Ok(Self { output, torn: false, failing: false, reopen_failing: false })
    }

    /// Writes whole lines. Returns how many of them were lost.
    pub(super) fn write(&mut self, lines: &[u8]) -> u64 {
        if self.torn && self.write_all(b"\n").0 == 0 {
            return count(lines);
        }
        let (written, result) = self.write_all(lines);
        if written > 0 {
            self.torn = lines[written - 1] != b'\n';
        }
        match result {
            Ok(()) if self.failing => {
                self.failing = false;
                info!("access log is written again");
            }
            Ok(()) => {}
            Err(error) if !self.failing => {
                self.failing = true;
                warn!(%error, output = %self.name(), "could not write the access log; its lines are lost until it can be");
            }
            Err(_) => {}
        }
        count(&lines[written..])
    }

    /// Opens the file again if its path leads elsewhere by now. Where that fails, what is open is written on.
    pub(super) fn reopen_if_moved(&mut self) {
        let Output::File { path, file } = &mut self.output else { return };
        let same = match (std::fs::metadata(&*path), file.metadata()) {
            (Ok(there), Ok(here)) => (there.dev(), there.ino()) == (here.dev(), here.ino()),
            (Err(error), _) => error.kind() != ErrorKind::NotFound,
            (Ok(_), Err(_)) => true,
        };
        if same {
            return;
        }
        match append_to(path) {
            Ok(again) => {
                *file = again;
                (self.torn, self.reopen_failing) = (false, false);
                info!(path = %path.display(), "access log was moved; opened it again");
            }
            Err(error) if !self.reopen_failing => {
                self.reopen_failing = true;
                warn!(%error, path = %path.display(), "access log was moved and cannot be opened again; writing on to the moved file");
            }
            Err(_) => {}
        }
    }

    /// Like [`Write::write_all`], but tells how far it came.
    fn write_all(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        let mut written = 0;
        while written < bytes.len() {
            let result = match &mut self.output {
                Output::Stdout(stdout) => stdout.write(&bytes[written..]),
                Output::File { file, .. } => file.write(&bytes[written..]),
            };
            match result {
                Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
                Ok(n) => written += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return (written, Err(error)),
            }
        }
        let flushed = match &mut self.output {
            Output::Stdout(stdout) => stdout.flush(),
            Output::File { .. } => Ok(()),
        };
        (written, flushed)
    }

    fn name(&self) -> String {
        match &self.output {
            Output::Stdout(_) => "stdout".into(),
            Output::File { path, .. } => path.display().to_string(),
        }
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    // Addresses of clients are personal data: not for everybody on the machine.
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

fn count(lines: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', lines).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::access_log::tests::Directory;

    #[test]
    fn a_renamed_or_removed_file_is_opened_again() {
        let directory = Directory::new();
        let (path, moved) = (directory.join("a.log"), directory.join("a.log.1"));
        let mut sink = Sink::open(&AccessLogOutput::File(path.clone())).unwrap();
        sink.write(b"one\n");
        sink.reopen_if_moved();
        std::fs::rename(&path, &moved).unwrap();
        sink.write(b"two\n");
        sink.reopen_if_moved();
        sink.write(b"three\n");
        assert_eq!(std::fs::read(&moved).unwrap(), b"one\ntwo\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"three\n");

        std::fs::remove_file(&path).unwrap();
        sink.reopen_if_moved();
        sink.write(b"four\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"four\n");
    }

    #[test]
    fn a_file_that_cannot_be_opened_again_is_written_on() {
        let directory = Directory::new();
        let (inner, moved) = (directory.join("in"), directory.join("out"));
        std::fs::create_dir(&inner).unwrap();
        let mut sink = Sink::open(&AccessLogOutput::File(inner.join("a.log"))).unwrap();
        std::fs::rename(&inner, &moved).unwrap();
        sink.reopen_if_moved();
        assert_eq!(sink.write(b"one\n"), 0);
        assert_eq!(std::fs::read(moved.join("a.log")).unwrap(), b"one\n");
    }

    #[test]
    fn a_full_disk_loses_lines_and_counts_them() {
        let full = Path::new("/dev/full");
        if !full.exists() {
            return;
        }
        let mut sink = Sink::open(&AccessLogOutput::File(full.into())).unwrap();
        assert_eq!(sink.write(b"one\ntwo\n"), 2);
        assert_eq!(sink.write(b"three\n"), 1);
        assert!(sink.failing);
    }

    #[test]
    fn a_torn_line_is_ended_before_the_next() {
        let directory = Directory::new();
        let path = directory.join("a.log");
        let mut sink = Sink::open(&AccessLogOutput::File(path.clone())).unwrap();
        sink.write_all(b"hal").1.unwrap();
        sink.torn = true;
        assert_eq!(sink.write(b"whole\n"), 0);
        assert_eq!(std::fs::read(&path).unwrap(), b"hal\nwhole\n");
        assert!(!sink.torn);
    }
}
