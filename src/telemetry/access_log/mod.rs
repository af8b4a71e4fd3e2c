//! A line per exchange, written off the worker threads.
//!
//! A worker formats its line and pushes it into the queue of [`LogLines`], which writes it. Formatting on the worker costs least in all:
//! handing the fields over means to copy them first and to format them then. The writer polls instead of being woken, because a wake-up is
//! a system call on the worker; a line may so be a twentieth of a second late.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwapOption, Guard};
use tracing::warn;

use super::line_writer::{LogLines, LogSink, Rest};
use crate::config::{AccessLogConfig, AccessLogFormat, AccessLogOutput};

mod line;

pub use line::Record;

/// Takes records from workers and has them written. Dropped, what waits is still written; to drop it does not wait.
#[derive(Debug)]
pub struct AccessLog {
    format: AccessLogFormat,
    lines: LogLines,
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
        let lines = LogLines::open("access log", output(config), config.buffer)?;
        Ok(Arc::new(Self { format: config.format, lines }))
    }

    /// Whether the output can be opened.
    ///
    /// # Errors
    /// When it cannot.
    pub fn probe(config: &AccessLogConfig) -> io::Result<()> {
        output(config).probe()
    }

    /// Has a line written. Never waits, locks nothing and wakes no thread; where the writer cannot follow, the line is dropped
    /// and counted.
    pub fn record(&self, record: &Record<'_>) {
        let line = SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            line::write(scratch, self.format, record);
            Box::<[u8]>::from(scratch.as_slice())
        });
        self.lines.push(line);
    }

    /// Has the file opened anew, by the writer.
    pub fn reopen(&self) {
        self.lines.reopen();
    }
}

fn output(config: &AccessLogConfig) -> LogSink {
    match &config.output {
        AccessLogOutput::Stdout => LogSink::Stdout,
        AccessLogOutput::File(path) => LogSink::File(path.clone()),
    }
}

/// The access log of the moment, for all workers. No exchange holds one: each has its line written to that of its end, so that one which
/// lasts does not keep the descriptor and the thread of another that was replaced.
#[derive(Debug, Default)]
pub struct InForce {
    log: ArcSwapOption<AccessLog>,
    /// What others before it have still to write.
    former: Mutex<Vec<Rest>>,
    /// Lines that were dropped by those that have ended.
    dropped_before: AtomicU64,
}

impl InForce {
    /// The one of the moment; `None` where there is none.
    pub fn load(&self) -> Guard<Option<Arc<AccessLog>>> {
        self.log.load()
    }

    /// The same, to keep.
    pub fn get(&self) -> Option<Arc<AccessLog>> {
        self.log.load_full()
    }

    /// Has lines go to another from now on, or nowhere. Does not wait.
    pub fn replace(&self, next: Option<Arc<AccessLog>>) {
        let kept = next.as_ref().map(Arc::as_ptr);
        let before = self.log.swap(next).filter(|before| Some(Arc::as_ptr(before)) != kept);
        let mut former = self.former();
        former.retain(|rest| {
            if rest.is_over() {
                self.dropped_before.fetch_add(rest.dropped(), Ordering::Relaxed);
            }
            !rest.is_over()
        });
        former.extend(before.map(|before| before.lines.rest()));
    }

    /// Lines that were not written since the start: for want of room in the queue, or because the output took none.
    pub fn dropped(&self) -> u64 {
        let former = self.former();
        let now = self.log.load().as_ref().map_or(0, |log| log.lines.rest().dropped());
        self.dropped_before.load(Ordering::Relaxed) + former.iter().map(Rest::dropped).sum::<u64>() + now
    }

    /// Writes what waits, and ends it: a second where the output takes nothing, and five in all.
    pub async fn finish(&self) {
        let last = self.get();
        last.iter().for_each(|log| log.lines.close());
        let former = self.former().clone();
        for rest in former.into_iter().chain(last.map(|log| log.lines.rest())) {
            if !rest.over().await {
                warn!("the access log's output takes nothing; what waits for it is lost");
            }
        }
    }

    fn former(&self) -> MutexGuard<'_, Vec<Rest>> {
        self.former.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::thread;

    use super::line::tests::record;
    use super::*;
    use crate::telemetry::line_writer::tests::{Directory, eventually};

    fn config(path: &Path, buffer: usize) -> AccessLogConfig {
        AccessLogConfig { format: AccessLogFormat::Json, output: AccessLogOutput::File(path.into()), buffer }
    }

    fn lines(path: &Path) -> usize {
        std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
    }

    /// Drops it and waits for the end of what it still writes. How many lines were dropped.
    fn finish(log: Arc<AccessLog>) -> u64 {
        let rest = log.lines.rest();
        drop(log);
        eventually("the writer has ended", || rest.is_over());
        rest.dropped()
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
        assert_eq!(finish(log), 0);
        assert_eq!(lines(&path), 4_000);
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
        let dropped = finish(log);
        assert!(dropped > 0);
        assert_eq!(lines(&path) as u64 + dropped, 10_000);
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
        finish(log);
        assert_eq!((lines(&moved), lines(&path)), (1, 1));
    }

    #[test]
    fn a_file_is_opened_again_when_that_is_asked_for() {
        let directory = Directory::new();
        let (path, moved) = (directory.join("access.log"), directory.join("access.log.1"));
        let log = AccessLog::open(&config(&path, 100)).unwrap();
        log.record(&record());
        eventually("the line is written", || lines(&path) == 1);
        // Under its old name, so that nothing is to be noticed.
        std::fs::hard_link(&path, &moved).unwrap();
        let begun = std::time::Instant::now();
        std::fs::remove_file(&path).unwrap();
        log.reopen();
        eventually("the file is made again", || path.exists());
        assert!(begun.elapsed() < std::time::Duration::from_millis(500), "sooner than it would be noticed");
        finish(log);
    }

    #[test]
    fn an_output_that_fails_stops_nothing() {
        let path = Path::new("/dev/full");
        if !path.exists() {
            return;
        }
        let log = AccessLog::open(&config(path, 100)).unwrap();
        (0..3).for_each(|_| log.record(&record()));
        eventually("the lines are given up", || log.lines.rest().dropped() == 3);
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
        assert_eq!((finish(old), finish(new)), (0, 0));
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|line| line.starts_with("{\"time\"") && line.ends_with('}')).count(), 100);
    }

    #[test]
    fn a_path_that_cannot_be_opened_is_an_error() {
        let directory = Directory::new();
        let config = config(&directory.join("none/access.log"), 1);
        assert!(AccessLog::open(&config).is_err());
        assert!(AccessLog::probe(&config).is_err());
    }

    #[tokio::test]
    async fn what_was_replaced_is_written_and_what_it_dropped_is_counted() {
        let directory = Directory::new();
        let (first, second) = (directory.join("first.log"), directory.join("second.log"));
        let logs = InForce::default();
        logs.replace(Some(AccessLog::open(&config(&first, 2)).unwrap()));
        let record = |times| (0..times).for_each(|_| logs.load().as_ref().unwrap().record(&record()));
        record(100);
        logs.replace(Some(AccessLog::open(&config(&second, 10)).unwrap()));
        let dropped = logs.dropped();
        assert!(dropped > 0);
        record(1);
        logs.replace(logs.get());
        record(1);
        logs.finish().await;
        assert_eq!((logs.dropped(), lines(&first) as u64 + dropped, lines(&second)), (dropped, 100, 2));
        logs.replace(None);
        logs.replace(None);
        assert_eq!(logs.dropped(), dropped, "also once they have ended");
    }
}
