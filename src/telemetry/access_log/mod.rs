//! A line per exchange, written off the worker threads.
//!
//! A worker formats its line and pushes it into a bounded queue; a thread of its own looks into the queue and writes what is
//! there in large pieces. Formatting on the worker costs least in all: handing the fields over means to copy them first and
//! to format them then. The writer polls instead of being woken, because a wake-up is a system call on the worker; a line may
//! so be a twentieth of a second late. Nothing here waits for the disk: what finds the queue full is dropped and counted.

use std::cell::RefCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use tracing::warn;

use crate::config::{AccessLogConfig, AccessLogFormat};

mod line;
mod sink;

pub use line::Record;
use sink::Sink;

/// How long the writer sleeps when nothing happens.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// How long it sleeps when the queue fills quickly.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// How much is written at a time.
const BATCH_BYTES: usize = 256 * 1024;
/// How often it is looked whether the file was moved.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);
/// How often dropped lines are complained about at most.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);
/// Lines may have this many bytes on average before the queue counts as full for its bytes: what clients send must not decide
/// how much memory it takes.
const LINE_BYTES_MEAN: usize = 1024;
/// How long dropping the log waits for an output that takes nothing.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// Takes records from workers and has a thread of its own write them.
///
/// Dropping it writes what waits and ends the thread, which may take as long as the disk does (five seconds at most): the
/// control plane should hold it longest.
#[derive(Debug)]
pub struct AccessLog {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    format: AccessLogFormat,
    queue: ArrayQueue<Box<[u8]>>,
    queued_bytes: AtomicUsize,
    queued_bytes_max: usize,
    /// Lines that found the queue full.
    overflowed: AtomicU64,
    /// Lines that could not be written.
    unwritten: AtomicU64,
    stop: AtomicBool,
}

thread_local! {
    /// Where a worker formats, so that a line is allocated once and at its final length.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl AccessLog {
    /// Opens the output and starts the writer.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread cannot be made.
    pub fn open(config: &AccessLogConfig) -> io::Result<Arc<Self>> {
        let sink = Sink::open(&config.output)?;
        let lines = config.buffer.max(1);
        let shared = Arc::new(Shared {
            format: config.format,
            queue: ArrayQueue::new(lines),
            queued_bytes: AtomicUsize::new(0),
            queued_bytes_max: lines.saturating_mul(LINE_BYTES_MEAN).max(BATCH_BYTES),
            overflowed: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let writer = thread::Builder::new().name("access-log".into()).spawn({
            let shared = Arc::clone(&shared);
            move || write_whatever_happens(&shared, sink)
        })?;
        Ok(Arc::new(Self { shared, writer: Some(writer) }))
    }

    /// Has a line written. Never waits, locks nothing and wakes nobody; where the writer cannot follow, the line is dropped
    /// and counted.
    pub fn record(&self, record: &Record<'_>) {
        let line = SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            line::write(scratch, self.shared.format, record);
            Box::<[u8]>::from(scratch.as_slice())
        });
        self.shared.push(line);
    }

    /// Lines that were not written: for want of room in the queue, or because the output took none.
    pub fn dropped(&self) -> u64 {
        self.shared.overflowed.load(Ordering::Relaxed) + self.shared.unwritten.load(Ordering::Relaxed)
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        let Some(writer) = self.writer.take() else { return };
        self.shared.stop.store(true, Ordering::Release);
        writer.thread().unpark();
        // Not a bare join: a reader of our stdout that stands still must not keep the process from ending.
        let deadline = Instant::now() + FLUSH_LIMIT;
        while !writer.is_finished() {
            if Instant::now() >= deadline {
                warn!("the access log's output takes nothing; what waits for it is lost");
                return;
            }
            thread::sleep(PAUSE_MIN);
        }
        if writer.join().is_err() {
            warn!("the access log's writer had panicked");
        }
    }
}

impl Shared {
    fn push(&self, line: Box<[u8]>) {
        let bytes = line.len();
        // Added before the push, so that the writer never takes off what is not yet there.
        let before = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > self.queued_bytes_max || self.queue.push(line).is_err() {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.overflowed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Moves lines from the queue to `batch` until that is large enough. Returns how many.
    fn fill(&self, batch: &mut Vec<u8>) -> usize {
        batch.clear();
        let mut lines = 0;
        while batch.len() < BATCH_BYTES {
            let Some(line) = self.queue.pop() else { break };
            batch.extend_from_slice(&line);
            lines += 1;
        }
        self.queued_bytes.fetch_sub(batch.len(), Ordering::Relaxed);
        lines
    }
}

/// A line that the writer panics at.
#[cfg(test)]
const PANICS: &[u8] = b"panic";

/// Begins again after a panic: a line that cannot be written is not worth all that come behind it.
fn write_whatever_happens(shared: &Shared, mut sink: Sink) {
    while catch_unwind(AssertUnwindSafe(|| write_until_stopped(shared, &mut sink))).is_err() {
        warn!("the access log's writer had panicked; it goes on with the next lines");
        thread::sleep(PAUSE_MAX);
    }
}

fn write_until_stopped(shared: &Shared, sink: &mut Sink) {
    let mut batch = Vec::with_capacity(BATCH_BYTES);
    let mut pause = PAUSE_MAX;
    let mut reopen_at = Instant::now() + REOPEN_INTERVAL;
    let mut complaint = Complaint::default();
    loop {
        // Read before the queue is emptied: whatever was recorded before the stop is then seen.
        let stopping = shared.stop.load(Ordering::Acquire);
        let mut lines = 0;
        loop {
            let now = Instant::now();
            if now >= reopen_at {
                reopen_at = now + REOPEN_INTERVAL;
                sink.reopen_if_moved();
            }
            complaint.consider(shared.overflowed.load(Ordering::Relaxed), now);
            let filled = shared.fill(&mut batch);
            if filled == 0 {
                break;
            }
            lines += filled;
            #[cfg(test)]
            assert!(!batch.starts_with(PANICS), "meant");
            shared.unwritten.fetch_add(sink.write(&batch), Ordering::Relaxed);
        }
        if stopping {
            return;
        }
        // A queue that is a quarter full after one pause would overflow after four: look in more often, and less again once
        // there is little.
        pause = if lines > shared.queue.capacity() / 4 { pause / 2 } else { pause * 2 }.clamp(PAUSE_MIN, PAUSE_MAX);
        thread::park_timeout(pause);
    }
}

/// Says that lines are dropped, but not for each of them.
#[derive(Debug, Default)]
struct Complaint {
    reported: u64,
    next: Option<Instant>,
}

impl Complaint {
    /// Returns whether it said something.
    fn consider(&mut self, dropped: u64, now: Instant) -> bool {
        if dropped == self.reported || self.next.is_some_and(|next| now < next) {
            return false;
        }
        warn!(lines = dropped - self.reported, "the access log's writer could not follow; lines were dropped");
        self.reported = dropped;
        self.next = Some(now + COMPLAINT_INTERVAL);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::line::tests::record;
    use super::*;
    use crate::config::AccessLogOutput;

    /// A directory of this test's own, removed afterwards.
    pub(super) struct Directory(PathBuf);

    impl Directory {
        pub(super) fn new() -> Self {
            static NEXT: AtomicU64 = AtomicU64::new(0);
            let name = format!("isobar-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub(super) fn join(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn config(path: &Path, buffer: usize) -> AccessLogConfig {
        AccessLogConfig { format: AccessLogFormat::Json, output: AccessLogOutput::File(path.into()), buffer }
    }

    fn eventually(what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn lines(path: &Path) -> usize {
        std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
    }

    #[test]
    fn all_that_was_recorded_is_written_at_the_end() {
        let directory = Directory::new();
        let path = directory.join("access.log");
        let log = AccessLog::open(&config(&path, 10_000)).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| log.record(&record())));
            }
        });
        assert_eq!(log.dropped(), 0);
        drop(log);
        assert_eq!(lines(&path), 4_000);
    }

    #[test]
    fn a_panic_of_the_writer_costs_the_lines_that_it_had_and_no_more() {
        let directory = Directory::new();
        let path = directory.join("access.log");
        let log = AccessLog::open(&config(&path, 10)).unwrap();
        log.shared.push(Box::from(PANICS));
        eventually("the line is taken", || log.shared.queue.is_empty());
        log.record(&record());
        eventually("the next one is written", || lines(&path) == 1);
    }

    #[test]
    fn lines_are_written_without_a_wake_up() {
        let directory = Directory::new();
        let path = directory.join("access.log");
        let log = AccessLog::open(&config(&path, 10)).unwrap();
        log.record(&record());
        eventually("the line is written", || lines(&path) == 1);
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_counted() {
        let directory = Directory::new();
        let path = directory.join("access.log");
        let log = AccessLog::open(&config(&path, 4)).unwrap();
        (0..10_000).for_each(|_| log.record(&record()));
        let dropped = log.dropped();
        assert!(dropped > 0);
        drop(log);
        assert_eq!(lines(&path) as u64 + dropped, 10_000);
    }

    #[test]
    fn long_lines_do_not_take_all_memory() {
        let shared = Shared {
            format: AccessLogFormat::Json,
            queue: ArrayQueue::new(1_000),
            queued_bytes: AtomicUsize::new(0),
            queued_bytes_max: 10_000,
            overflowed: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        };
        (0..10).for_each(|_| shared.push(vec![b'x'; 4_000].into()));
        assert_eq!(shared.overflowed.load(Ordering::Relaxed), 8);
        let mut batch = Vec::new();
        assert_eq!(shared.fill(&mut batch), 2);
        assert_eq!(shared.queued_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_rotated_file_is_left_behind() {
        let directory = Directory::new();
        let (path, moved) = (directory.join("access.log"), directory.join("access.log.1"));
        let log = AccessLog::open(&config(&path, 100)).unwrap();
        log.record(&record());
        eventually("the line is written", || lines(&path) == 1);
        std::fs::rename(&path, &moved).unwrap();
        eventually("the file is made again", || path.exists());
        log.record(&record());
        drop(log);
        assert_eq!((lines(&moved), lines(&path)), (1, 1));
    }

    #[test]
    fn an_output_that_fails_stops_nothing() {
        let path = Path::new("/dev/full");
        if !path.exists() {
            return;
        }
        let log = AccessLog::open(&config(path, 100)).unwrap();
        (0..3).for_each(|_| log.record(&record()));
        eventually("the lines are given up", || log.dropped() == 3);
    }

    #[test]
    fn an_old_log_and_a_new_one_may_share_a_file() {
        let directory = Directory::new();
        let path = directory.join("access.log");
        let old = AccessLog::open(&config(&path, 100)).unwrap();
        let new = AccessLog::open(&config(&path, 100)).unwrap();
        for _ in 0..50 {
            old.record(&record());
            new.record(&record());
        }
        drop((old, new));
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|line| line.starts_with("{\"time\"") && line.ends_with('}')).count(), 100);
    }

    #[test]
    fn a_path_that_cannot_be_opened_is_an_error() {
        let directory = Directory::new();
        assert!(AccessLog::open(&config(&directory.join("none/access.log"), 1)).is_err());
    }

    #[test]
    fn complaints_come_once_in_a_while() {
        let mut complaint = Complaint::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!complaint.consider(0, at(0)));
        assert!(complaint.consider(1, at(0)));
        assert!(!complaint.consider(2, at(9)));
        assert!(complaint.consider(2, at(10)));
        assert!(!complaint.consider(2, at(30)));
    }
}
