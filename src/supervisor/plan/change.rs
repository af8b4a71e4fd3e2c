//! One difference, in words, and how differences are found and told.

use std::fmt::{self, Display};
use std::hash::Hash;
use std::time::Duration;

/// One difference, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A key has another value.
    Value {
        /// Which key.
        key: String,
        /// Its value until now.
        from: String,
        /// Its value from now on.
        to: String,
    },
    /// A list has other members.
    Members {
        /// Which key.
        key: String,
        /// Not there until now.
        added: Vec<String>,
        /// No longer there.
        removed: Vec<String>,
    },
    /// Something whose values are too long to print.
    Other(String),
}

/// Members of a list that a line of the log names; a longer list ends in a count.
const MEMBERS_SHOWN_MAX: usize = 8;

impl Change {
    /// What differs.
    pub fn key(&self) -> &str {
        match self {
            Self::Value { key, .. } | Self::Members { key, .. } | Self::Other(key) => key,
        }
    }
}

impl Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value { key, from, to } => write!(f, "{key} {from} -> {to}"),
            Self::Members { key, added, removed } => {
                f.write_str(key)?;
                write_members(f, '+', added)?;
                write_members(f, '-', removed)
            }
            Self::Other(key) => f.write_str(key),
        }
    }
}

/// Prints changes with commas between them.
#[derive(Debug)]
pub struct Listed<'a>(pub &'a [Change]);

impl Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, change) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            change.fmt(f)?;
        }
        Ok(())
    }
}

fn write_members(f: &mut fmt::Formatter<'_>, sign: char, members: &[String]) -> fmt::Result {
    for member in members.iter().take(MEMBERS_SHOWN_MAX) {
        write!(f, " {sign}{member}")?;
    }
    match members.len().saturating_sub(MEMBERS_SHOWN_MAX) {
        0 => Ok(()),
        more => write!(f, " ({sign}{more} more)"),
    }
}

/// Collects differences, key by key.
#[derive(Default)]
pub(super) struct Changes(pub(super) Vec<Change>);

impl Changes {
    pub(super) fn push_value(&mut self, key: &str, from: &str, to: &str) {
        self.0.push(Change::Value { key: key.into(), from: from.into(), to: to.into() });
    }

    pub(super) fn value<T: PartialEq + Display + ?Sized>(&mut self, key: &str, old: &T, new: &T) {
        if old != new {
            self.push_value(key, &old.to_string(), &new.to_string());
        }
    }

    pub(super) fn debug<T: PartialEq + fmt::Debug>(&mut self, key: &str, old: &T, new: &T) {
        if old != new {
            self.push_value(key, &format!("{old:?}").to_lowercase(), &format!("{new:?}").to_lowercase());
        }
    }

    /// A duration's `Debug` is how `lb.toml` writes it: `5s`, `1.5s`, `200ms`.
    pub(super) fn time(&mut self, key: &str, old: Duration, new: Duration) {
        self.debug(key, &old, &new);
    }

    pub(super) fn other<T: PartialEq>(&mut self, key: &str, old: &T, new: &T) {
        if old != new {
            self.0.push(Change::Other(key.into()));
        }
    }

    /// A table that may be off.
    pub(super) fn switched<T: PartialEq>(&mut self, key: &str, old: &Option<T>, new: &Option<T>) {
        match (old, new) {
            (None, Some(_)) => self.push_value(key, "off", "on"),
            (Some(_), None) => self.push_value(key, "on", "off"),
            (was, is) => self.other(key, was, is),
        }
    }

    /// The same members in another order are a difference as well: strategies number backends by it.
    pub(super) fn members<T: PartialEq + Eq + Hash + Display>(&mut self, key: &str, old: &[T], new: &[T]) {
        if old == new {
            return;
        }
        let without = |these: &[T], those: &[T]| {
            let those: std::collections::HashSet<_> = those.iter().collect();
            these.iter().filter(|it| !those.contains(it)).map(T::to_string).collect::<Vec<_>>()
        };
        let (added, removed) = (without(new, old), without(old, new));
        if added.is_empty() && removed.is_empty() {
            self.0.push(Change::Other(format!("order of {key}")));
        } else {
            self.0.push(Change::Members { key: key.into(), added, removed });
        }
    }
}

/// As `lb.toml` writes it.
pub(super) fn limit(limit: Option<u32>) -> String {
    limit.map_or_else(|| "unlimited".into(), |limit| limit.to_string())
}
