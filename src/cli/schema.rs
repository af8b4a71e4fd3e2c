//! `isobar schema`: what the file may hold, for editors.

use std::process::ExitCode;

use crate::config;

/// Prints the JSON schema of the file to standard output.
pub(super) fn run() -> ExitCode {
    println!("{:#}", config::schema());
    ExitCode::SUCCESS
}
