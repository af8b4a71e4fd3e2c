//! `/config`: the configuration in force, under the keys that `lb.toml` has for it.
//!
//! A table of `config` says itself how it is shown ([`Table::tree`](crate::config)); what may be a secret is then hidden by the kind of its key
//! ([`hidden`]): what reads metrics need not know it.

use super::{ReloadFailed, Status};
use crate::proxy::Snapshot;
use crate::telemetry::calendar::rfc3339;

mod hidden;

use hidden::Hidden;

/// The whole answer.
#[derive(Debug, serde::Serialize)]
pub(super) struct View<'a> {
    generation: u64,
    file: Option<String>,
    loaded_at: String,
    config: Hidden<'a>,
    last_error: Option<LastError<'a>>,
}

#[derive(Debug, serde::Serialize)]
struct LastError<'a> {
    at: String,
    problems: &'a [String],
}

impl<'a> View<'a> {
    /// What a snapshot was built from, and what came of the last attempt to change it.
    pub(super) fn of(snapshot: &'a Snapshot, status: &'a Status) -> Self {
        Self {
            generation: snapshot.generation,
            file: status.file.as_ref().map(|file| file.display().to_string()),
            loaded_at: rfc3339(status.loaded_at),
            config: Hidden(&snapshot.config),
            last_error: status.last_error.as_ref().map(LastError::of),
        }
    }
}

impl<'a> LastError<'a> {
    fn of(failed: &'a ReloadFailed) -> Self {
        Self { at: rfc3339(failed.at), problems: &failed.problems }
    }
}

#[cfg(test)]
mod tests;
