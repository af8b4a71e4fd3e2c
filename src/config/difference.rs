//! One difference, in words, and how differences are found and told.

use std::collections::HashSet;
use std::fmt::{self, Display};

use super::table::Reload;
use super::visibility::Kind;

/// One difference, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyChange {
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

impl KeyChange {
    /// What differs.
    pub fn key(&self) -> &str {
        match self {
            Self::Value { key, .. } | Self::Members { key, .. } | Self::Other(key) => key,
        }
    }
}

impl Display for KeyChange {
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
pub struct DifferenceList<'a>(pub &'a [KeyChange]);

impl Display for DifferenceList<'_> {
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
pub(crate) struct Changes {
    found: Vec<KeyChange>,
    /// Those that have no effect before a restart.
    restart: Vec<KeyChange>,
    /// When what is told now takes effect.
    takes_effect: Reload,
}

impl Changes {
    /// None yet.
    pub(crate) fn none() -> Self {
        Self { found: Vec::new(), restart: Vec::new(), takes_effect: Reload::AtOnce }
    }

    pub(crate) fn found(self) -> Vec<KeyChange> {
        self.found
    }

    /// Those that a reload applies, and those that have no effect before a restart.
    pub(crate) fn found_and_restart(self) -> (Vec<KeyChange>, Vec<KeyChange>) {
        (self.found, self.restart)
    }

    /// Says when what is told from here on takes effect.
    pub(crate) fn take_effect(&mut self, when: Reload) {
        self.takes_effect = when;
    }

    /// Says of what is told by `compare` that it is of one thing among several.
    pub(crate) fn of_one(&mut self, thing: &dyn Display, compare: impl FnOnce(&mut Self)) {
        let (found, restart) = (self.found.len(), self.restart.len());
        compare(self);
        for change in self.found.iter_mut().skip(found).chain(self.restart.iter_mut().skip(restart)) {
            match change {
                KeyChange::Value { key, .. } | KeyChange::Members { key, .. } | KeyChange::Other(key) => {
                    *key = format!("{key} of {thing}");
                }
            }
        }
    }

    fn add(&mut self, change: KeyChange) {
        match self.takes_effect {
            Reload::Restart => self.restart.push(change),
            Reload::AtOnce | Reload::Requests | Reload::Connections | Reload::NextStart => self.found.push(change),
        }
    }

    /// Two values of a key, of which may be shown what `kind` allows.
    pub(crate) fn told(&mut self, kind: Kind, words: &str, from: &str, to: &str) {
        let (from, to) = (kind.show(from), kind.show(to));
        self.add(match kind {
            Kind::Plain | Kind::Location | Kind::File if from != to => {
                KeyChange::Value { key: words.into(), from: from.into(), to: to.into() }
            }
            _ => KeyChange::Other(words.into()),
        });
    }

    /// Two lists of a key, likewise. The same members in another order are a difference as well.
    pub(crate) fn told_members(&mut self, kind: Kind, words: &str, old: &[String], new: &[String]) {
        let without = |these: &[String], those: &[String]| {
            let those: HashSet<_> = those.iter().collect();
            these.iter().filter(|it| !those.contains(it)).map(|it| kind.show(it).into_owned()).collect::<Vec<_>>()
        };
        let (added, removed) = (without(new, old), without(old, new));
        self.add(match (added.is_empty() && removed.is_empty(), old == new) {
            // In what cannot be told in a word.
            (true, true) => KeyChange::Other(words.into()),
            (true, false) => KeyChange::Other(format!("order of {words}")),
            (false, _) => KeyChange::Members { key: words.into(), added, removed },
        });
    }

    /// Whether a table is on.
    pub(crate) fn switch(&mut self, key: &str, was: bool, is: bool) {
        let word = |on| if on { "on" } else { "off" }.to_owned();
        if was != is {
            self.add(KeyChange::Value { key: key.into(), from: word(was), to: word(is) });
        }
    }
}
