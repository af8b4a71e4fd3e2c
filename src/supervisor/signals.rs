use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

use super::control::{Command, Trigger};
use super::handle::{Handle, Stop};

/// The signals of the process: SIGHUP reloads, SIGUSR1 opens log files anew, SIGTERM, SIGINT and SIGQUIT stop.
///
/// Others that mean something to other proxies, and would end the process by the system's default, do nothing: SIGUSR2, with which nginx
/// and HAProxy replace themselves, and SIGALRM. SIGPIPE is ignored by Rust's runtime, and SIGWINCH by the system.
#[derive(Debug)]
pub(crate) struct Signals {
    hangup: Signal,
    reopen: Signal,
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    user2: Signal,
    alarm: Signal,
}

impl Signals {
    /// Takes them over from the system's defaults. Inside a runtime only.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub(crate) fn take() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            user2: signal(SignalKind::user_defined2())?,
            alarm: signal(SignalKind::alarm())?,
        })
    }

    /// Passes them on for as long as the process lives.
    pub(crate) async fn forward(mut self, handle: Handle) {
        loop {
            tokio::select! {
                Some(()) = self.hangup.recv() => {
                    // A full queue means that a reload is about to happen anyway. Waiting here would hold up a SIGTERM.
                    let _ = handle.commands.try_send(Command::Reload { trigger: Trigger::Signal, reply: None });
                }
                Some(()) = self.reopen.recv() => handle.reopen_logs(),
                Some(()) = self.terminate.recv() => stop(&handle, SignalKind::terminate()),
                Some(()) = self.interrupt.recv() => stop(&handle, SignalKind::interrupt()),
                Some(()) = self.quit.recv() => stop(&handle, SignalKind::quit()),
                Some(()) = self.user2.recv() => nothing("SIGUSR2"),
                Some(()) = self.alarm.recv() => nothing("SIGALRM"),
                else => return,
            }
        }
    }
}

fn nothing(signal: &str) {
    info!(signal, "a signal that does nothing here");
}

fn stop(handle: &Handle, kind: SignalKind) {
    // When nobody listens any more, the stop is over and the process ends by itself.
    let _ = handle.stops.send(Stop::Signal(kind.as_raw_value()));
}
