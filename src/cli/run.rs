use std::path::Path;
use std::process::ExitCode;

use super::fail;
use crate::Isobar;
use crate::supervisor::Ended;

/// Serves as the file says until it is told to stop.
pub(super) fn run(file: &Path) -> ExitCode {
    let started = Isobar::builder().config_file(file).signals(true).logging(true).all_descriptors(true).start();
    match started.map(|running| running.wait()) {
        Ok(Ended::Stopped { .. }) => ExitCode::SUCCESS,
        // The log has said what. Whatever runs this is to start it again: `EX_SOFTWARE` of sysexits.h.
        Ok(Ended::Failed { .. }) => std::process::exit(70),
        // As a shell reports a process that a signal ended. No destructor may hold this up.
        Ok(Ended::Interrupted { signal }) => std::process::exit(128 + signal),
        Err(error) => fail(&error),
    }
}
