//! Lines on their way to an output: a bounded queue, and a thread that writes.
//!
//! Those that have something to log push a line and go on. Nothing here waits for an output that takes nothing: a disk that is slow or full,
//! a pipe that is not read, a FIFO without a reader. What finds the queue full is dropped and counted. The thread alone may stand still.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use tracing::warn;

mod sink;

pub use sink::LogSink;
use sink::Sink;

/// How long the writer sleeps when nothing happens.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// How long it sleeps when the queue fills quickly.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// How much is written at a time.
const BATCH_BYTES: usize = 256 * 1024;
/// How often it is looked whether the file was moved, or a FIFO has a reader again.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);
/// How often dropped lines are complained about at most.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);
/// Lines may have this many bytes on average before the queue counts as full for its bytes: what clients send must not decide
/// how much memory it takes.
const LINE_BYTES_MEAN: usize = 1024;
/// How long the end waits for an output in all.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);
/// How long it waits for one that takes nothing.
const STALL_LIMIT: Duration = Duration::from_secs(1);

/// Takes lines from any thread and has one of its own write them. Dropped, what waits is still written, by that thread: to drop it does
/// not wait.
#[derive(Debug)]
pub struct LogLines {
    shared: Arc<LineQueue>,
    writer: Thread,
}

/// What is left to write of [`LogLines`] that may be gone.
#[derive(Clone, Debug)]
pub struct Rest(Arc<LineQueue>);

#[derive(Debug)]
struct LineQueue {
    /// What they are, in words for the log.
    what: &'static str,
    queue: ArrayQueue<Box<[u8]>>,
    /// Those in the queue, and those being written.
    queued_bytes: AtomicUsize,
    queued_bytes_max: usize,
    /// Lines that found the queue full.
    overflowed: AtomicU64,
    /// Lines that could not be written.
    unwritten: AtomicU64,
    /// Grows with every piece that the output takes.
    progress: AtomicU64,
    reopen: AtomicBool,
    stop: AtomicBool,
    ended: AtomicBool,
}

impl LogLines {
    /// Opens the output and starts the writer. `what` is in the log where lines are lost, and names the thread. At most `lines` wait.
    ///
    /// # Errors
    /// When the output cannot be opened or the thread cannot be made. A FIFO without a reader can be: its lines wait for one.
    pub fn open(what: &'static str, output: LogSink, lines: usize) -> io::Result<Self> {
        let sink = Sink::open(what, output)?;
        let shared = Arc::new(LineQueue::new(what, lines.max(1)));
        let writer = thread::Builder::new().name(what.replace(' ', "-")).spawn({
            let shared = Arc::clone(&shared);
            move || {
                write_whatever_happens(&shared, sink);
                shared.ended.store(true, Ordering::Release);
            }
        })?;
        Ok(Self { shared, writer: writer.thread().clone() })
    }

    /// Has a line written, within a twentieth of a second. Never waits, locks nothing and wakes no thread; where the writer cannot
    /// follow, the line is dropped and counted.
    pub fn push(&self, line: Box<[u8]>) {
        self.shared.push(line);
    }

    /// Has a line written now: wakes the writer.
    pub fn push_now(&self, line: Box<[u8]>) {
        self.shared.push(line);
        self.writer.unpark();
    }

    /// Has the output opened anew, where it is a file. What waits is written to the new one.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        self.writer.unpark();
    }

    /// Writes what waits and ends the writer. Does not wait for that. What is pushed from now on is lost.
    pub fn close(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.writer.unpark();
    }

    /// Waits until what waits is written: a second where the output takes nothing, five in all. Whether it is.
    pub fn flush(&self) -> bool {
        self.writer.unpark();
        let mut patience = OutputPatience::new(Instant::now());
        while self.shared.queued_bytes.load(Ordering::Acquire) > 0 {
            if patience.is_over(self.shared.progress.load(Ordering::Relaxed), Instant::now()) {
                return false;
            }
            thread::sleep(PAUSE_MIN);
        }
        true
    }

    /// What is left to write.
    pub fn rest(&self) -> Rest {
        Rest(Arc::clone(&self.shared))
    }
}

impl Drop for LogLines {
    fn drop(&mut self) {
        self.close();
    }
}

impl Rest {
    /// Whether all was written, and the writer has ended.
    pub fn is_over(&self) -> bool {
        self.0.ended.load(Ordering::Acquire)
    }

    /// Lines that were not written: for want of room in the queue, or because the output took none.
    pub fn dropped(&self) -> u64 {
        self.0.overflowed.load(Ordering::Relaxed) + self.0.unwritten.load(Ordering::Relaxed)
    }

    /// Waits for the writer's end, which [`LogLines::close`] has asked for, as long as the output takes something. Whether it came.
    pub async fn over(&self) -> bool {
        let mut patience = OutputPatience::new(Instant::now());
        while !self.is_over() {
            if patience.is_over(self.0.progress.load(Ordering::Relaxed), Instant::now()) {
                return false;
            }
            tokio::time::sleep(PAUSE_MIN).await;
        }
        true
    }
}

impl LineQueue {
    fn new(what: &'static str, lines: usize) -> Self {
        Self {
            what,
            queue: ArrayQueue::new(lines),
            queued_bytes: AtomicUsize::new(0),
            queued_bytes_max: lines.saturating_mul(LINE_BYTES_MEAN).max(BATCH_BYTES),
            overflowed: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
            progress: AtomicU64::new(0),
            reopen: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        }
    }

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
        lines
    }

    /// What was taken from the queue is written, or lost.
    fn emptied(&self, bytes: usize, lost: u64) {
        self.unwritten.fetch_add(lost, Ordering::Relaxed);
        self.queued_bytes.fetch_sub(bytes, Ordering::Release);
    }

    /// What waits is lost.
    fn lose(&self) {
        while let Some(line) = self.queue.pop() {
            self.emptied(line.len(), 1);
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// A line that the writer panics at.
#[cfg(test)]
pub(crate) const PANICS: &[u8] = b"panic";

/// Begins again after a panic: a line that cannot be written is not worth all that come behind it.
fn write_whatever_happens(shared: &LineQueue, mut sink: Sink) {
    let mut batch = Vec::new();
    while catch_unwind(AssertUnwindSafe(|| write_until_stopped(shared, &mut sink, &mut batch))).is_err() {
        shared.emptied(batch.len(), batch.iter().filter(|byte| **byte == b'\n').count().max(1) as u64);
        batch.clear();
        warn!("the {}'s writer had panicked; it goes on with the next lines", shared.what);
        thread::sleep(PAUSE_MAX);
    }
}

fn write_until_stopped(shared: &LineQueue, sink: &mut Sink, batch: &mut Vec<u8>) {
    let mut pause = PAUSE_MAX;
    let mut look_at = Instant::now() + REOPEN_INTERVAL;
    let mut complaint = Complaint::default();
    loop {
        // Read before the queue is emptied: whatever was recorded before the stop is then seen.
        let stopping = shared.is_stopped();
        let mut lines = 0;
        loop {
            let now = Instant::now();
            if shared.reopen.swap(false, Ordering::Acquire) {
                sink.reopen();
            } else if now >= look_at || (stopping && !sink.is_open()) {
                look_at = now + REOPEN_INTERVAL;
                sink.reopen_if_moved();
            }
            // Lines wait for the reader of a FIFO, as long as there is room for them.
            if !sink.is_open() && !stopping {
                break;
            }
            let filled = shared.fill(batch);
            // Behind that: there is room for a complaint then, where these lines are the log it goes to.
            complaint.consider(shared.what, shared.overflowed.load(Ordering::Relaxed), now);
            if filled == 0 {
                break;
            }
            lines += filled;
            #[cfg(test)]
            assert!(!batch.starts_with(PANICS), "meant");
            let lost = sink.write(batch, &shared.progress, &|| shared.is_stopped());
            shared.emptied(batch.len(), lost);
            batch.clear();
            if lost > 0 && shared.is_stopped() {
                return shared.lose();
            }
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

/// How long to wait for an output.
#[derive(Debug)]
struct OutputPatience {
    begun: Instant,
    since: Instant,
    seen: u64,
}

impl OutputPatience {
    fn new(now: Instant) -> Self {
        Self { begun: now, since: now, seen: 0 }
    }

    /// Whether it is over: the output took nothing for too long, or not enough in all that time.
    fn is_over(&mut self, progress: u64, now: Instant) -> bool {
        if progress != self.seen {
            (self.seen, self.since) = (progress, now);
        }
        now - self.since >= STALL_LIMIT || now - self.begun >= FLUSH_LIMIT
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
    fn consider(&mut self, what: &str, dropped: u64, now: Instant) -> bool {
        if dropped == self.reported || self.next.is_some_and(|next| now < next) {
            return false;
        }
        warn!(lines = dropped - self.reported, "the {what}'s writer could not follow; lines were dropped");
        self.reported = dropped;
        self.next = Some(now + COMPLAINT_INTERVAL);
        true
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    /// A directory of this test's own, removed afterwards.
    pub(crate) struct Directory(PathBuf);

    impl Directory {
        pub(crate) fn new() -> Self {
            static NEXT: AtomicU64 = AtomicU64::new(0);
            let name = format!("isobar-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub(crate) fn join(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn fifo(path: &Path) {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    }

    fn to_file(path: &Path, lines: usize) -> LogLines {
        LogLines::open("access log", LogSink::File(path.into()), lines).unwrap()
    }

    #[test]
    fn long_lines_do_not_take_all_memory() {
        let mut shared = LineQueue::new("log", 1_000);
        shared.queued_bytes_max = 10_000;
        (0..10).for_each(|_| shared.push(vec![b'x'; 4_000].into()));
        assert_eq!(shared.overflowed.load(Ordering::Relaxed), 8);
        let mut batch = Vec::new();
        assert_eq!(shared.fill(&mut batch), 2);
        shared.push(vec![b'x'; 4_000].into());
        assert_eq!(shared.overflowed.load(Ordering::Relaxed), 9, "what is being written takes memory too");
        shared.emptied(batch.len(), 0);
        assert_eq!(shared.queued_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_panic_of_the_writer_costs_the_lines_that_it_had_and_no_more() {
        let directory = Directory::new();
        let path = directory.join("log");
        let lines = to_file(&path, 10);
        lines.push(Box::from(PANICS));
        eventually("the line is taken", || lines.shared.queue.is_empty());
        lines.push_now(b"next\n"[..].into());
        eventually("the next one is written", || std::fs::read(&path).unwrap() == b"next\n");
        assert_eq!((lines.rest().dropped(), lines.shared.queued_bytes.load(Ordering::Relaxed)), (1, 0));
    }

    #[test]
    fn a_line_that_is_pushed_now_does_not_wait_for_the_next_look() {
        let directory = Directory::new();
        let path = directory.join("log");
        let lines = to_file(&path, 10);
        thread::sleep(Duration::from_millis(200));
        lines.push_now(b"now\n"[..].into());
        assert!(lines.flush());
        assert_eq!(std::fs::read(&path).unwrap(), b"now\n");
    }

    #[test]
    fn a_fifo_without_a_reader_holds_nothing_up_and_its_lines_wait_for_one() {
        let directory = Directory::new();
        let path = directory.join("fifo");
        fifo(&path);
        let lines = to_file(&path, 2);
        (0..5).for_each(|n| lines.push(format!("line {n}\n").into_bytes().into()));
        assert_eq!(lines.rest().dropped(), 3, "two wait");
        lines.reopen();
        let read = thread::spawn({
            let path = path.clone();
            move || std::fs::read_to_string(path).unwrap()
        });
        eventually("what waited was written", || lines.shared.queued_bytes.load(Ordering::Relaxed) == 0);
        let rest = lines.rest();
        drop(lines);
        assert_eq!(read.join().unwrap(), "line 0\nline 1\n");
        eventually("the writer has ended", || rest.is_over());
    }

    #[test]
    fn a_fifo_that_is_not_read_is_given_up_at_the_end() {
        let directory = Directory::new();
        let path = directory.join("fifo");
        fifo(&path);
        let reader = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let lines = to_file(&path, 1_000);
        (0..1_000).for_each(|_| lines.push([&[b'x'; 999][..], b"\n"].concat().into()));
        let begun = Instant::now();
        assert!(!lines.flush());
        assert!(begun.elapsed() < FLUSH_LIMIT);
        let rest = lines.rest();
        drop(lines);
        eventually("the writer has ended", || rest.is_over());
        assert!(rest.dropped() > 900, "{}", rest.dropped());
        drop(reader);
    }

    #[test]
    fn a_fifo_whose_reader_is_gone_is_opened_again() {
        let directory = Directory::new();
        let path = directory.join("fifo");
        fifo(&path);
        let lines = to_file(&path, 10);
        let read_line = |line: &str| {
            let reader = {
                let path = path.clone();
                thread::spawn(move || {
                    let mut text = String::new();
                    let mut file = io::BufReader::new(std::fs::File::open(path).unwrap());
                    io::BufRead::read_line(&mut file, &mut text).unwrap();
                    text
                })
            };
            // What is written before the loss of a reader is noticed is lost with it.
            while !reader.is_finished() {
                lines.push(format!("{line}\n").into_bytes().into());
                thread::sleep(Duration::from_millis(20));
            }
            reader.join().unwrap()
        };
        assert_eq!(read_line("one"), "one\n");
        assert!(read_line("two").ends_with('\n'));
        assert!(lines.rest().dropped() > 0);
    }

    #[test]
    fn patience_is_with_what_takes_something() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut patience = OutputPatience::new(start);
        assert!(!patience.is_over(0, at(999)));
        assert!(!patience.is_over(1, at(1_500)));
        assert!(!patience.is_over(2, at(2_400)));
        assert!(patience.is_over(2, at(3_400)));
        let mut patience = OutputPatience::new(start);
        assert!((1..10).all(|n| !patience.is_over(n, at(n * 500))));
        assert!(patience.is_over(10, at(5_000)));
    }

    #[test]
    fn complaints_come_once_in_a_while() {
        let mut complaint = Complaint::default();
        let start = Instant::now();
        let mut consider = |dropped, seconds| complaint.consider("log", dropped, start + Duration::from_secs(seconds));
        assert!(!consider(0, 0));
        assert!(consider(1, 0));
        assert!(!consider(2, 9));
        assert!(consider(2, 10));
        assert!(!consider(2, 30));
    }
}
