//! A table of `lb.toml`: one struct that is what the table means, and all that is known of its keys.
//!
//! `#[derive(Table)]` (the crate `isobar-derive`) writes the implementations. A key stands in its struct and nowhere else: with its name, its
//! [form](super::form), its default and its sentence. Reading, `/config`, the words of a reload, the schema and the reference are made of that.

use std::fmt::Debug;

pub(crate) use isobar_derive::Table;
use serde::de::DeserializeOwned;

use super::check::{Check, Vocabulary};
use super::difference::Changes;
use super::fill::Filling;
use super::form::{About, Literal};
use super::json_tree::Tree;
use super::report::{Place, Report};
use super::rule::KeyRule;
use super::visibility::OfKind;

/// A table of the file.
pub(crate) trait Table: Clone + PartialEq {
    /// The table as the file has it.
    type Written: DeserializeOwned + Default + OfKind + Debug;

    /// What the table is for.
    const DOC: &'static str;

    /// The default of the key `enabled`, where the table has one.
    const ENABLED: Option<bool>;

    /// Which of its keys go together.
    const RULES: &'static [KeyRule] = &[];

    /// The value of `enabled` that leads to this.
    fn is_enabled(&self) -> bool {
        true
    }

    /// What the file says for `enabled`.
    fn written_enabled(_written: &Self::Written) -> Option<bool> {
        None
    }

    /// What the table means, where a key that is left out is as `before` has it, else its default. `None` where it is off, or where a key is
    /// missing or wrong without which there is no such thing; that is reported.
    fn read_over(check: &Check<'_>, place: Place, written: &Self::Written, before: Option<&Self>) -> Option<Self>;

    /// What the table means without any key. A key that is needed has the value of its example.
    fn by_default(check: &Check<'_>) -> Self;

    /// Its keys with their values, as `/config` has them; secrets too.
    fn entries(&self) -> Vec<(String, Tree)>;

    /// Says in what `new` differs. `table` is the path of the table within what is compared, with a dot at its end.
    fn compare(changes: &mut Changes, table: &str, old: &Self, new: &Self);

    /// Takes over from `old` what a reload cannot change.
    fn keep_what_needs_a_restart(&mut self, old: &Self);

    /// Its keys, but for `enabled`.
    fn keys() -> Vec<Key>;

    /// Whether the table is on.
    fn says_enabled(written: &Self::Written) -> bool {
        Self::written_enabled(written).or(Self::ENABLED).unwrap_or(true)
    }

    /// What the table means.
    fn read(check: &Check<'_>, place: Place, written: &Self::Written) -> Option<Self> {
        Self::read_over(check, place, written, None)
    }

    /// What the table means without any key.
    fn of_defaults() -> Self {
        let (report, vocabulary, filling) = (Report::new("", ""), Vocabulary::default(), Filling::default());
        Self::by_default(&Check { report: &report, vocabulary: &vocabulary, access: None, filling: &filling })
    }

    /// As `/config` has it; secrets too.
    fn tree(&self) -> Tree {
        let enabled = Self::ENABLED.map(|_| ("enabled".to_owned(), Tree::from(self.is_enabled())));
        Tree::Table(enabled.into_iter().chain(self.entries()).collect())
    }
}

/// A key of a table, as the schema and the reference show it.
#[derive(Debug)]
pub(crate) struct Key {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its sentence.
    pub(crate) doc: &'static str,
    /// What it can hold.
    pub(crate) about: About,
    /// Its value where the file does not have it.
    pub(crate) default: Literal,
    /// A value that it may have.
    pub(crate) example: Literal,
    /// Whether the file has to have it.
    pub(crate) is_needed: bool,
    /// When another value takes effect.
    pub(crate) reload: Reload,
}

/// When a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reload {
    /// At once.
    AtOnce,
    /// At once, for requests that begin after.
    Requests,
    /// For connections that come after.
    Connections,
    /// When a process starts; until then the log does not speak of it again.
    NextStart,
    /// After a restart; the log warns at each reload until then.
    Restart,
}

impl Reload {
    /// In words.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::AtOnce => "at once",
            Self::Requests => "for requests that begin after",
            Self::Connections => "for connections that come after",
            Self::NextStart => "at the next start",
            Self::Restart => "after a restart; the log warns until then",
        }
    }
}
