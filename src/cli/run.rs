use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::fail;
use crate::Isobar;
use crate::embed::Takeover;
use crate::supervisor::{Ended, Successor};

/// The flag of a process that takes over from the one that serves the file.
const REPLACE: &str = "--replace";

/// Serves as the file says until it is told to stop.
pub(super) fn run(file: &Path, replace: bool) -> ExitCode {
    let takeover = Takeover { replace, successor: successor() };
    let builder =
        Isobar::builder().config_file(file).signals(true).logging(true).all_descriptors(true).takeover(takeover);
    match builder.start().map(|running| running.wait()) {
        Ok(Ended::Stopped { .. }) => ExitCode::SUCCESS,
        // The log has said what. Whatever runs this is to start it again: `EX_SOFTWARE` of sysexits.h.
        Ok(Ended::Failed { .. }) => std::process::exit(70),
        // As a shell reports a process that a signal ended. No destructor may hold this up.
        Ok(Ended::Interrupted { signal }) => std::process::exit(128 + signal),
        Err(error) => fail(&error),
    }
}

/// The command of this process, to replace it. By then, another version may be where it was started from.
fn successor() -> Option<Successor> {
    let program = program(&std::env::args_os().next()?).or_else(|| std::env::current_exe().ok())?;
    let mut arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if !arguments.iter().any(|argument| argument == REPLACE) {
        arguments.push(REPLACE.into());
    }
    Some(Successor { program, arguments })
}

/// Where the shell has found the program that was called so. Not what that leads to: a link may lead to another version later.
fn program(called: &OsStr) -> Option<PathBuf> {
    if Path::new(called).components().count() > 1 {
        return std::path::absolute(called).ok().filter(|path| path.is_file());
    }
    let folders = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&folders).map(|folder| folder.join(called)).find(|path| path.is_file());
    found.and_then(|path| std::path::absolute(path).ok())
}
