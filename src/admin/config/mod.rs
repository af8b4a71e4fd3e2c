//! `/config`: the configuration in force, under the keys that `lb.toml` has for it.
//!
//! A table of `config` says itself how it is shown ([`Table::entries`]); routes and upstreams are written out here. All of it is written
//! ([`Shown`]), and what may be a secret is then hidden by the kind of its key ([`hidden`]): what reads metrics need not know it.

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{ReloadFailed, Status};
use crate::config::{Config, Table};
use crate::proxy::Snapshot;
use crate::telemetry::calendar::rfc3339;

mod middleware;
mod route;
mod upstream;
mod value;
mod hidden;

use hidden::Hidden;
use value::{entries, entry_if, shown};

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

/// A part of the configuration as `lb.toml` has it, secrets too: only [`Hidden`] may be sent. Structs are taken apart as a whole, so
/// that the compiler asks for each new field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown<T>(pub(super) T);

impl Serialize for Shown<&Config> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in self.0.entries() {
            map.serialize_entry(&key, &value)?;
        }
        let Config { routes, upstreams, middleware, .. } = self.0;
        map.serialize_entry("route", &shown(routes.iter().map(|it| &**it)))?;
        let upstreams = upstreams.iter().map(|it| (it.name.to_string(), Shown(&**it)));
        map.serialize_entry("upstream", &Entries(upstreams.collect()))?;
        let middleware = middleware.iter().map(|it| (it.name.to_string(), Shown(&**it)));
        entry_if(&mut map, "middleware", entries(middleware).as_ref())?;
        map.end()
    }
}

/// A table that can be switched off: only then has it `enabled`, and nothing else.
struct Switched<T> {
    on: Option<T>,
}

impl<T: Serialize> Serialize for Switched<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.on {
            Some(on) => on.serialize(serializer),
            None => {
                let mut map = serializer.serialize_map(None)?;
                map.serialize_entry("enabled", &false)?;
                map.end()
            }
        }
    }
}

/// A map in the order it was made in.
pub(super) struct Entries<T>(pub(super) Vec<(String, T)>);

impl<T: Serialize> Serialize for Entries<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

#[cfg(test)]
mod tests;
