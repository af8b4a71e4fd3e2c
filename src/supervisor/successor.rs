use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::Command;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

/// The command that starts the process which takes the place of this one.
#[derive(Clone, Debug)]
pub struct Successor {
    /// The program: its file may be another by then, which is how a new version is started.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// At most one successor at a time.
#[derive(Debug)]
pub(super) struct RunningSuccessor {
    successor: Successor,
    watched: Option<JoinHandle<()>>,
    pid: Option<u32>,
}

impl RunningSuccessor {
    pub(super) fn new(successor: Successor) -> Self {
        Self { successor, watched: None, pid: None }
    }

    /// Starts it, unless one is being started. It takes over by itself, and then this process stops; until then nothing changes here.
    pub(super) fn start(&mut self) {
        if self.watched.as_ref().is_some_and(|watched| !watched.is_finished()) {
            return warn!(pid = self.pid, "a process that is to take over is being started already; SIGUSR2 ignored");
        }
        let Successor { program, arguments } = &self.successor;
        match Command::new(program).args(arguments).stdin(Stdio::null()).spawn() {
            Ok(mut child) => {
                self.pid = child.id();
                info!(pid = self.pid, program = %program.display(), "started a process that is to take over");
                self.watched = Some(tokio::spawn(async move {
                    // Where it takes over, this process stops, and is not told how the other one ends.
                    if let Ok(status) = child.wait().await {
                        error!(%status, "the process that was to take over has ended; this one serves on");
                    }
                }));
            }
            Err(error) => error!(%error, program = %program.display(), "could not start a process that takes over"),
        }
    }
}
