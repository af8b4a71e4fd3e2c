//! One difference, in words, and how differences are found and told.

use std::fmt::{self, Display};
use std::hash::Hash;
use std::time::Duration;

use crate::config::{Kind, keys};

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
    /// Something whose values are too long to print, or may be secrets.
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

/// Collects differences, key by key. What is told of a value is decided by its key.
pub(super) struct Changes {
    /// The table that the keys are in, as [`keys`] names it.
    table: &'static str,
    found: Vec<Change>,
}

impl Changes {
    /// In the keys of this table.
    pub(super) fn of(table: &'static str) -> Self {
        Self { table, found: Vec::new() }
    }

    pub(super) fn found(self) -> Vec<Change> {
        self.found
    }

    pub(super) fn value<T: PartialEq + Display + ?Sized>(&mut self, key: &str, old: &T, new: &T) {
        self.value_of(key, key, old, new);
    }

    /// A key that is told by other words.
    pub(super) fn value_of<T: PartialEq + Display + ?Sized>(&mut self, key: &str, words: &str, old: &T, new: &T) {
        if old != new {
            self.push(key, words, &old.to_string(), &new.to_string());
        }
    }

    pub(super) fn debug<T: PartialEq + fmt::Debug>(&mut self, key: &str, old: &T, new: &T) {
        if old != new {
            self.push(key, key, &format!("{old:?}").to_lowercase(), &format!("{new:?}").to_lowercase());
        }
    }

    fn push(&mut self, key: &str, words: &str, from: &str, to: &str) {
        let kind = self.kind(key);
        let (from, to) = (kind.show(from), kind.show(to));
        self.found.push(match kind {
            Kind::Plain | Kind::Location | Kind::File if from != to => {
                Change::Value { key: words.into(), from: from.into(), to: to.into() }
            }
            _ => Change::Other(words.into()),
        });
    }

    /// One that is not in the file is a slip, and counts as a secret.
    fn kind(&self, key: &str) -> Kind {
        let kind = keys::kind(&keys::join(self.table, key));
        debug_assert!(kind.is_some(), "{}.{key} is no key", self.table);
        kind.unwrap_or(Kind::Secret)
    }

    /// A duration's `Debug` is how `lb.toml` writes it: `5s`, `1.5s`, `200ms`.
    pub(super) fn time(&mut self, key: &str, old: Duration, new: Duration) {
        // Rust writes none in its smallest unit.
        let text = |time: Duration| if time.is_zero() { "0s".to_owned() } else { format!("{time:?}") };
        self.value(key, &text(old), &text(new));
    }

    pub(super) fn other<T: PartialEq>(&mut self, key: &str, old: &T, new: &T) {
        if old != new {
            self.found.push(Change::Other(key.into()));
        }
    }

    /// A table that may be off.
    pub(super) fn switched<T: PartialEq>(&mut self, key: &str, old: &Option<T>, new: &Option<T>) {
        match (old, new) {
            (Some(was), Some(is)) => self.other(key, was, is),
            (was, is) => self.switch(key, was.is_some(), is.is_some()),
        }
    }

    /// Whether a table is on.
    pub(super) fn switch(&mut self, key: &str, was: bool, is: bool) {
        let word = |on| if on { "on" } else { "off" }.to_owned();
        if was != is {
            self.found.push(Change::Value { key: key.into(), from: word(was), to: word(is) });
        }
    }

    /// The same members in another order are a difference as well: strategies number backends by it.
    pub(super) fn members<T: PartialEq + Eq + Hash + Display>(&mut self, key: &str, old: &[T], new: &[T]) {
        self.members_of(key, key, old, new);
    }

    /// A key that is told by other words.
    pub(super) fn members_of<T: PartialEq + Eq + Hash + Display>(
        &mut self,
        key: &str,
        words: &str,
        old: &[T],
        new: &[T],
    ) {
        if old == new {
            return;
        }
        let kind = self.kind(key);
        let without = |these: &[T], those: &[T]| {
            let those: std::collections::HashSet<_> = those.iter().collect();
            let shown = |it: &T| kind.show(&it.to_string()).into_owned();
            these.iter().filter(|it| !those.contains(it)).map(shown).collect::<Vec<_>>()
        };
        let (added, removed) = (without(new, old), without(old, new));
        if added.is_empty() && removed.is_empty() {
            self.found.push(Change::Other(format!("order of {words}")));
        } else {
            self.found.push(Change::Members { key: words.into(), added, removed });
        }
    }
}

/// As `lb.toml` writes it.
pub(super) fn limit(limit: Option<u32>) -> String {
    limit.map_or_else(|| "unlimited".into(), |limit| limit.to_string())
}
