use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::control::{Command, Trigger};
use super::handle::{Handle, Stop};

/// The signals of the process: SIGHUP reloads, SIGTERM and SIGINT stop.
#[derive(Debug)]
pub(crate) struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes them over from the system's defaults. Inside a runtime only.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub(crate) fn take() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
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
                Some(()) = self.terminate.recv() => stop(&handle, SignalKind::terminate()),
                Some(()) = self.interrupt.recv() => stop(&handle, SignalKind::interrupt()),
                else => return,
            }
        }
    }
}

fn stop(handle: &Handle, kind: SignalKind) {
    // When nobody listens any more, the stop is over and the process ends by itself.
    let _ = handle.stops.send(Stop::Signal(kind.as_raw_value()));
}
