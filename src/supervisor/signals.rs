use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use super::command_loop::{ControlCommand, Trigger};
use super::handle::{Handle, Stop};
use super::successor::{RunningSuccessor, Successor};

/// The signals of the process: SIGHUP reloads, SIGUSR1 opens log files anew, SIGTERM, SIGINT and SIGQUIT stop, SIGUSR2 starts the process that
/// takes the place of this one.
///
/// SIGALRM, which would end the process by the system's default, does nothing. SIGPIPE is ignored by Rust's runtime, and SIGWINCH by the system.
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

/// Those that end no process that serves. They are taken over before the file is read, which may take a while; the others end a process that
/// is still starting, as the system has it.
#[derive(Debug)]
pub(crate) struct Harmless {
    hangup: Signal,
    reopen: Signal,
    user2: Signal,
    alarm: Signal,
}

impl Harmless {
    /// Takes them over; what comes is acted upon by [`Signals::forward`]. Inside a runtime only.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub(crate) fn take() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            alarm: signal(SignalKind::alarm())?,
        })
    }
}

impl Signals {
    /// Takes them over from the system's defaults. Inside a runtime only.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub(crate) fn take(Harmless { hangup, reopen, user2, alarm }: Harmless) -> io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { hangup, reopen, terminate, interrupt, quit: signal(SignalKind::quit())?, user2, alarm })
    }

    /// Passes them on for as long as the process lives; `successor` is what SIGUSR2 starts.
    pub(crate) async fn forward(mut self, handle: Handle, successor: Option<Successor>) {
        let mut successor = successor.map(RunningSuccessor::new);
        loop {
            tokio::select! {
                Some(()) = self.hangup.recv() => {
                    // A full queue means that a reload is about to happen anyway. Waiting here would hold up a SIGTERM.
                    let _ = handle.commands.try_send(ControlCommand::Reload { trigger: Trigger::Signal, reply: None });
                }
                Some(()) = self.user2.recv() => match &mut successor {
                    _ if handle.status().stopping => warn!("SIGUSR2 ignored: this process is stopping"),
                    Some(successor) => successor.start(),
                    None => warn!("SIGUSR2 is for the isobar binary: this program has to start its successor itself"),
                },
                Some(()) = self.reopen.recv() => handle.reopen_logs(),
                Some(()) = self.terminate.recv() => stop(&handle, SignalKind::terminate()),
                Some(()) = self.interrupt.recv() => stop(&handle, SignalKind::interrupt()),
                Some(()) = self.quit.recv() => stop(&handle, SignalKind::quit()),
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
    // When there is no listener any more, the stop is over and the process ends by itself.
    let _ = handle.stops.send(Stop::Signal(kind.as_raw_value()));
}
