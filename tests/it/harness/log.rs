use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::eventually;

/// An access log of the test's own, gone when the test ends.
pub(crate) struct Log(PathBuf);

impl Log {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("isobar-it-{}-{count}.log", std::process::id())))
    }

    /// The table that has it written.
    pub(crate) fn table(&self, format: &str) -> String {
        format!("[access_log]\nenabled = true\nformat = \"{format}\"\noutput = {:?}", self.0)
    }

    /// Moves its file away, as log rotation does.
    pub(crate) fn rotate(&self) {
        std::fs::rename(&self.0, self.0.with_extension("1")).unwrap();
    }

    /// Its lines, once there are so many.
    #[track_caller]
    pub(crate) fn lines(&self, n: usize) -> impl Future<Output = Vec<String>> {
        // Whole lines: the last one may be under way.
        let read = || {
            let text = std::fs::read_to_string(&self.0).unwrap_or_default();
            text[..text.rfind('\n').map_or(0, |end| end + 1)].to_owned()
        };
        let wait = eventually(move || read().lines().count() >= n);
        async move {
            wait.await;
            let lines: Vec<_> = read().lines().map(str::to_owned).collect();
            assert_eq!(lines.len(), n, "{lines:#?}");
            lines
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        let _ = std::fs::remove_file(self.0.with_extension("1"));
    }
}
