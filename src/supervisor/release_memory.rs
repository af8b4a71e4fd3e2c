//! Memory that a reload took for a moment, given back to the system.
//!
//! An allocator keeps what is freed for what is allocated next, and looks whether there is too much of it when something is. After a reload
//! of a large file little is: what it took would be the process's for good. mimalloc has two such places. What a thread has left behind is
//! taken up by another one that allocates; and what was free for a tenth of a second goes back when a block is asked for that is too large
//! for those it has.

use std::hint::black_box;
use std::thread;
use std::time::Duration;

use tokio::task::JoinHandle;

/// When it is looked for, each from the one before: at the first, workers and requests have let go of what was served, most likely.
const WAITS: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(3)];
/// Longer than mimalloc waits before it gives back what is free.
const FREE_FOR: Duration = Duration::from_millis(150);
/// More than mimalloc has in one piece. It is not touched, and so takes none.
const LARGE_BYTES: usize = 40 * 1024 * 1024;
/// Sizes of blocks, by a factor of two, that are asked for to take up what was left behind.
const SIZES: u32 = 12;

/// Gives back what reloads have left, a while after the last of them.
#[derive(Debug, Default)]
pub(super) struct GivingBack(Option<JoinHandle<()>>);

impl GivingBack {
    /// A reload is over. Does not wait. Inside a runtime only.
    pub(super) fn begin(&mut self) {
        if self.0.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        self.0 = Some(tokio::spawn(async {
            for wait in WAITS {
                tokio::time::sleep(wait).await;
                // Threads of their own: it is with a thread's beginning that it takes up what others have left. Without one nothing is lost.
                let _ = thread::Builder::new().name("isobar-memory".into()).spawn(give_back);
            }
        }));
    }
}

impl Drop for GivingBack {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

fn give_back() {
    let take_up = || {
        let blocks: Vec<Vec<u8>> = (0..SIZES * 8).map(|n| vec![1; 16 << (n % SIZES)]).collect();
        drop(black_box(blocks));
    };
    let taken_up = thread::Builder::new().name("isobar-memory".into()).spawn(take_up);
    // It cannot panic.
    let _ = taken_up.map(thread::JoinHandle::join);
    thread::sleep(FREE_FOR);
    drop(black_box(Vec::<u8>::with_capacity(LARGE_BYTES)));
}
