//! What a key can hold. A form reads a value of the file and says what is wrong with it; it shows the value in `/config` and in the words of a
//! reload, and describes itself to the reference and the schema.
//!
//! Forms that one table alone has stand beside that table.

pub(crate) use isobar_derive::Word;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::check::Check;
use super::difference::Changes;
use super::error::Problem;
use super::field::{Field, Named};
use super::json_tree::Tree;
use super::raw;
use super::report::Place;
use super::rule::KeyRule;
use super::table::Key;
use super::visibility::{FilePath, Kind, Location, OfKind, Secret, Sensitive, Word as Text};

mod number;
mod time;
mod word;
mod many;
mod table;

pub(crate) use many::{Else, List, Maybe};
pub(crate) use number::{AnySize, Limit, Percent, Real, Size, Whole};
pub(crate) use table::{Listed, NamedTable, OnPart, Part, UnderNames, part_about};
pub(crate) use time::{Span, Timeout};
pub(crate) use word::{Name, Once, OneOf, Reference, Switch, Word, words_about};

/// What a key can hold. `V` is what it means.
pub(crate) trait Form<V> {
    /// The value as the file has it. Its type says what of it may be shown.
    type Written: DeserializeOwned + OfKind + std::fmt::Debug + FromLiteral;

    /// What a value means; `None` where it is wrong, which is reported.
    fn read(&self, check: &Check<'_>, place: Place, written: &Self::Written) -> Option<V>;

    /// The same of a table whose keys may be left out, and are then as `before` has them.
    fn read_over(&self, check: &Check<'_>, place: Place, written: &Self::Written, _before: Option<&V>) -> Option<V> {
        self.read(check, place, written)
    }

    /// What it means that the file does not have the key.
    fn absent(&self, check: &Check<'_>, default: Literal) -> V {
        let read = Self::Written::of(default).and_then(|written| self.read(check, Place::FILE, &written));
        read.expect("a default that its own form refuses")
    }

    /// As `/config` has it; `None` leaves the key out.
    fn show(&self, value: &V) -> Option<Tree>;

    /// As a reload has it in its words.
    fn tell(&self, value: &V) -> String;

    /// Says in what two values differ.
    fn compare(&self, changes: &mut Changes, table: &str, words: &str, old: &V, new: &V) {
        changes.told(Self::Written::KIND, &format!("{table}{words}"), &self.tell(old), &self.tell(new));
    }

    /// What it can hold.
    fn about(&self) -> About;
}

/// What a form can hold, in words and as a JSON schema.
#[derive(Debug)]
pub(crate) struct About {
    /// In words.
    pub(crate) form: String,
    /// As a schema.
    pub(crate) schema: Value,
    /// What of a value may be shown.
    pub(crate) kind: Kind,
    /// The table that it is, or that its members are.
    pub(crate) inner: Option<Inner>,
}

/// A table within a table.
#[derive(Debug)]
pub(crate) struct Inner {
    /// Whether there may be several, and how they are told apart.
    pub(crate) many: Many,
    /// What the table is for.
    pub(crate) doc: &'static str,
    /// The default of its key `enabled`, where it has one.
    pub(crate) enabled: Option<bool>,
    /// Its other keys.
    pub(crate) keys: Vec<Key>,
    /// Which of them go together.
    pub(crate) rules: &'static [KeyRule],
}

/// How many tables there may be under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Many {
    /// One.
    One,
    /// An array of them.
    Listed,
    /// Each under a name that the file chooses.
    Named,
}

impl About {
    /// Of a form that is no table.
    pub(crate) fn new<T: OfKind>(form: impl Into<String>, schema: Value) -> Self {
        Self { form: form.into(), schema, kind: T::KIND, inner: None }
    }

    /// The same where a word stands for no value at all.
    pub(crate) fn or_word(self, word: &str) -> Self {
        let schema = json!({ "anyOf": [{ "enum": [word] }, self.schema] });
        Self { form: format!("{} or `\"{word}\"`", self.form), schema, ..self }
    }
}

/// A value as the file writes it, for defaults and examples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Literal {
    /// There is none.
    Nothing,
    /// What stands for it is told by these words.
    Words(&'static str),
    /// A string.
    Text(&'static str),
    /// A whole number.
    Number(i64),
    /// A number with decimals.
    Decimal(f64),
    /// True or false.
    Flag(bool),
    /// An array.
    List(&'static [Self]),
}

/// A value as it would be read.
pub(crate) trait FromLiteral: Sized {
    /// `None` where it is of another type.
    fn of(literal: Literal) -> Option<Self>;
}

macro_rules! from_literal {
    ($($written:ty: $pattern:pat => $value:expr),+ $(,)?) => {$(
        impl FromLiteral for $written {
            fn of(literal: Literal) -> Option<Self> {
                match literal {
                    $pattern => Some($value),
                    _ => None,
                }
            }
        }
    )+};
}

from_literal! {
    i64: Literal::Number(number) => number,
    bool: Literal::Flag(flag) => flag,
    f64: Literal::Decimal(number) => number,
    Text: Literal::Text(text) | Literal::Words(text) => text.into(),
    Location: Literal::Text(text) => text.into(),
    FilePath: Literal::Text(text) => text.into(),
    Secret: Literal::Text(text) => text.into(),
    Sensitive: Literal::Text(text) => text.into(),
    raw::Duration: Literal::Text(text) => raw::Duration(text.to_owned()),
}

macro_rules! number_or_text {
    ($($written:ident),+) => {$(
        impl FromLiteral for raw::$written {
            fn of(literal: Literal) -> Option<Self> {
                match literal {
                    Literal::Number(number) => Some(Self::Integer(number)),
                    Literal::Text(text) => Some(Self::String(text.to_owned())),
                    _ => None,
                }
            }
        }
    )+};
}

number_or_text!(Size, Limit, Workers, RetryCondition, Statuses, ServicePort);

impl<T: OfKind> FromLiteral for Named<T> {
    fn of(_: Literal) -> Option<Self> {
        None
    }
}

impl<T: FromLiteral> FromLiteral for Vec<Field<T>> {
    fn of(literal: Literal) -> Option<Self> {
        let Literal::List(members) = literal else { return None };
        members.iter().map(|member| Some(Field::Given(Place::FILE, T::of(*member)?))).collect()
    }
}

/// Reads a key; `absent` is what it means that it is not there, or wrong.
pub(crate) fn read<V, F: Form<V>>(
    check: &Check<'_>,
    form: &F,
    field: &Field<F::Written>,
    before: Option<&V>,
    absent: impl FnOnce() -> V,
) -> V {
    let read = field.given().and_then(|(place, written)| form.read_over(check, place, written, before));
    read.unwrap_or_else(absent)
}

/// Reads a key without which its table means nothing.
pub(crate) fn needed<V, F: Form<V>>(
    check: &Check<'_>,
    table: Place,
    key: &str,
    form: &F,
    field: &Field<F::Written>,
    problem: &str,
    expected: &str,
) -> Option<V> {
    if matches!(field, Field::Absent) {
        check.report.add_missing(table, key, Problem::error(problem).expected(expected));
    }
    field.given().and_then(|(place, written)| form.read(check, place, written))
}

/// Where a string holds a variable of the environment, which may stand for anything.
pub(crate) fn variable() -> Value {
    json!({ "type": "string", "pattern": "\\$\\{" })
}

/// A schema, or a variable in its place.
fn or_variable(schema: Value) -> Value {
    json!({ "anyOf": [schema, variable()] })
}
