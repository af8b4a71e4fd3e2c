//! `/config`: the configuration in force, under the keys that `lb.toml` has for it.
//!
//! A table of `config` says itself how it is shown ([`Table::tree`](crate::config)); what may be a secret is then hidden by the kind of its key
//! ([`hidden`]): what reads metrics need not know it.

use super::{ProcessStatus, ReloadFailed};
use crate::proxy::Snapshot;
use crate::telemetry::calendar::rfc3339;

mod hidden_values;

use hidden_values::Hidden;

/// The whole answer.
#[derive(Debug, serde::Serialize)]
pub(super) struct ConfigView<'a> {
    generation: u64,
    file: Option<String>,
    loaded_at: String,
    config: Hidden<'a>,
    last_error: Option<LastErrorView<'a>>,
}

#[derive(Debug, serde::Serialize)]
struct LastErrorView<'a> {
    at: String,
    problems: &'a [String],
}

impl<'a> ConfigView<'a> {
    /// What a snapshot was built from, and what came of the last attempt to change it.
    pub(super) fn of(snapshot: &'a Snapshot, status: &'a ProcessStatus) -> Self {
        Self {
            generation: snapshot.generation,
            file: status.file.as_ref().map(|file| file.display().to_string()),
            loaded_at: rfc3339(status.loaded_at),
            config: Hidden(&snapshot.config),
            last_error: status.last_error.as_ref().map(LastErrorView::of),
        }
    }
}

impl<'a> LastErrorView<'a> {
    fn of(failed: &'a ReloadFailed) -> Self {
        Self { at: rfc3339(failed.at), problems: &failed.problems }
    }
}

#[cfg(test)]
mod tests;
