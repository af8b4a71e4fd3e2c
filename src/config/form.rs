//! What a key can hold. A form reads a value of the file and says what is wrong with it; it shows the value in `/config` and in the words of a
//! reload, and describes itself to the reference and the schema.
//!
//! Forms that one table alone has stand beside that table.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use isobar_derive::Word;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::check::{Check, value};
use super::difference::Changes;
use super::error::Problem;
use super::field::Field;
use super::kind::{FilePath, Kind, Location, OfKind, Secret, Word as Text};
use super::raw;
use super::report::Place;
use super::table::{Key, Table};
use super::tree::Tree;
use super::units;

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
}

/// How many tables there may be under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Many {
    /// One.
    One,
    /// An array of them.
    Listed,
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

number_or_text!(Size, Limit, Workers);

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

/// Reads a table that stands in one that is not read by its form.
pub(crate) fn table<V, F: Form<V>>(check: &Check<'_>, form: &F, field: &Field<F::Written>) -> V {
    read(check, form, field, None, || form.absent(check, Literal::Nothing))
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

/// A whole number type.
pub(crate) trait Number: Copy + PartialEq + std::fmt::Display + Into<Value> {
    /// `None` where it does not fit.
    fn of(number: i64) -> Option<Self>;

    /// The same of a number of bytes.
    fn of_bytes(bytes: u64) -> Option<Self>;
}

macro_rules! numbers {
    ($($number:ty),+) => {$(
        impl Number for $number {
            fn of(number: i64) -> Option<Self> {
                number.try_into().ok()
            }

            fn of_bytes(bytes: u64) -> Option<Self> {
                bytes.try_into().ok()
            }
        }
    )+};
}

numbers!(u8, u16, u32, u64, usize);

/// A whole number within bounds.
pub(crate) struct Whole(pub(crate) RangeInclusive<i64>);

impl<V: Number> Form<V> for Whole {
    type Written = i64;

    fn read(&self, check: &Check<'_>, place: Place, written: &i64) -> Option<V> {
        value::number_in(check, place, *written, self.0.clone()).and_then(V::of)
    }

    fn show(&self, value: &V) -> Option<Tree> {
        Some((*value).into().into())
    }

    fn tell(&self, value: &V) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        let (least, most) = (self.0.start(), self.0.end());
        let schema = or_variable(json!({ "type": "integer", "minimum": least, "maximum": most }));
        About::new::<i64>(format!("a whole number, {least} to {most}"), schema)
    }
}

/// Any number within bounds.
pub(crate) struct Real(pub(crate) RangeInclusive<f64>);

impl Form<f64> for Real {
    type Written = f64;

    fn read(&self, check: &Check<'_>, place: Place, written: &f64) -> Option<f64> {
        if self.0.contains(written) {
            return Some(*written);
        }
        let problem = Problem::error(format!("{} is out of range", check.show(place, written)));
        check.add(place, problem.expected(format!("{} to {}", self.0.start(), self.0.end())));
        None
    }

    fn show(&self, value: &f64) -> Option<Tree> {
        Some((*value).into())
    }

    fn tell(&self, value: &f64) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        let (least, most) = (self.0.start(), self.0.end());
        let schema = or_variable(json!({ "type": "number", "minimum": least, "maximum": most }));
        About::new::<f64>(format!("a number, {least} to {most}"), schema)
    }
}

/// A part of something, which the file has in whole hundredths.
pub(crate) struct Percent(pub(crate) RangeInclusive<i64>);

impl Percent {
    fn of(part: f64) -> u32 {
        (part * 100.0).round() as u32
    }
}

impl Form<f64> for Percent {
    type Written = i64;

    fn read(&self, check: &Check<'_>, place: Place, written: &i64) -> Option<f64> {
        value::number_in(check, place, *written, self.0.clone()).map(|percent| percent as f64 / 100.0)
    }

    fn show(&self, value: &f64) -> Option<Tree> {
        Some(Self::of(*value).into())
    }

    fn tell(&self, value: &f64) -> String {
        Self::of(*value).to_string()
    }

    fn about(&self) -> About {
        <Whole as Form<u32>>::about(&Whole(self.0.clone()))
    }
}

/// A number of things at a time within bounds, or any number: `None`, which is the default.
pub(crate) struct Limit(pub(crate) RangeInclusive<i64>);

impl Form<Option<u32>> for Limit {
    type Written = raw::Limit;

    fn read(&self, check: &Check<'_>, place: Place, written: &raw::Limit) -> Option<Option<u32>> {
        match written {
            raw::Limit::Integer(limit) => {
                Some(u32::try_from(value::number_in(check, place, *limit, self.0.clone())?).ok())
            }
            raw::Limit::String(text) if text == "unlimited" => Some(None),
            raw::Limit::String(text) => {
                let problem = Problem::error(format!("unknown value {}", check.quote(place, text)));
                let suggestion = text.parse::<u32>().is_err().then(|| "unlimited".to_owned());
                check.add(place, problem.expected("a whole number or \"unlimited\"").suggest(suggestion));
                None
            }
        }
    }

    fn show(&self, value: &Option<u32>) -> Option<Tree> {
        Some(value.map_or_else(|| "unlimited".into(), Tree::from))
    }

    fn tell(&self, value: &Option<u32>) -> String {
        value.map_or_else(|| "unlimited".into(), |limit| limit.to_string())
    }

    fn about(&self) -> About {
        let whole = <Whole as Form<u32>>::about(&Whole(self.0.clone()));
        About { kind: raw::Limit::KIND, ..whole.or_word("unlimited") }
    }
}

/// A number of bytes within bounds, as `"64KiB"` or 65536.
pub(crate) struct Size(pub(crate) &'static str, pub(crate) &'static str);

/// The schema of any size.
fn size_schema() -> Value {
    let text = json!({ "type": "string", "pattern": "^[0-9]+ *([KMG]i?B|B)?$|\\$\\{" });
    json!({ "anyOf": [{ "type": "integer", "minimum": 0 }, text] })
}

impl<V: Number> Form<V> for Size {
    type Written = raw::Size;

    fn read(&self, check: &Check<'_>, place: Place, written: &raw::Size) -> Option<V> {
        let bytes = |text| units::size(text).unwrap_or(u64::MAX);
        let quoted = |text: &str| if text.parse::<u64>().is_ok() { text.to_owned() } else { format!("{text:?}") };
        let expected = format!("{} to {}", quoted(self.0), quoted(self.1));
        value::size_within(check, place, written, bytes(self.0)..=bytes(self.1), &expected).and_then(V::of_bytes)
    }

    fn show(&self, value: &V) -> Option<Tree> {
        Some((*value).into().into())
    }

    fn tell(&self, value: &V) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        About::new::<raw::Size>(format!("a size, {} to {}", self.0, self.1), size_schema())
    }
}

/// A number of bytes.
pub(crate) struct AnySize;

impl<V: Number> Form<V> for AnySize {
    type Written = raw::Size;

    fn read(&self, check: &Check<'_>, place: Place, written: &raw::Size) -> Option<V> {
        value::size(check, place, written, value::SIZE).and_then(V::of_bytes)
    }

    fn show(&self, value: &V) -> Option<Tree> {
        Some((*value).into().into())
    }

    fn tell(&self, value: &V) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        About::new::<raw::Size>("a size", size_schema())
    }
}

/// The schema of a duration, and of some words in its place.
fn duration_schema() -> Value {
    json!({ "type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$|\\$\\{" })
}

/// A duration's `Debug` is how `lb.toml` writes it: `5s`, `1.5s`, `200ms`. Rust writes none in its smallest unit.
fn tell_duration(duration: Duration) -> String {
    if duration.is_zero() { "0s".into() } else { format!("{duration:?}") }
}

/// A duration that may be zero.
pub(crate) struct Span;

impl Form<Duration> for Span {
    type Written = raw::Duration;

    fn read(&self, check: &Check<'_>, place: Place, raw::Duration(text): &raw::Duration) -> Option<Duration> {
        value::written_duration(check, place, text, value::DURATION)
    }

    fn show(&self, value: &Duration) -> Option<Tree> {
        Some(units::written(*value).into())
    }

    fn tell(&self, value: &Duration) -> String {
        tell_duration(*value)
    }

    fn about(&self) -> About {
        About::new::<raw::Duration>("a duration", duration_schema())
    }
}

/// A duration to wait at most: more than zero. As an `Option` it may be `"none"`, which is any time.
pub(crate) struct Timeout;

impl Form<Duration> for Timeout {
    type Written = raw::Duration;

    fn read(&self, check: &Check<'_>, place: Place, raw::Duration(text): &raw::Duration) -> Option<Duration> {
        value::written_timeout(check, place, text, value::DURATION)
    }

    fn show(&self, value: &Duration) -> Option<Tree> {
        Some(units::written(*value).into())
    }

    fn tell(&self, value: &Duration) -> String {
        tell_duration(*value)
    }

    fn about(&self) -> About {
        About::new::<raw::Duration>("a duration above 0", duration_schema())
    }
}

impl Form<Option<Duration>> for Timeout {
    type Written = raw::Duration;

    fn read(&self, check: &Check<'_>, place: Place, raw::Duration(text): &raw::Duration) -> Option<Option<Duration>> {
        if text == "none" {
            return Some(None);
        }
        value::written_timeout(check, place, text, &format!("\"none\", or {}", value::DURATION)).map(Some)
    }

    fn show(&self, value: &Option<Duration>) -> Option<Tree> {
        Some(value.map_or_else(|| "none".into(), units::written).into())
    }

    fn tell(&self, value: &Option<Duration>) -> String {
        value.map_or_else(|| "none".into(), tell_duration)
    }

    fn about(&self) -> About {
        <Self as Form<Duration>>::about(self).or_word("none")
    }
}

/// True or false.
pub(crate) struct Switch;

impl Form<bool> for Switch {
    type Written = bool;

    fn read(&self, _: &Check<'_>, _: Place, written: &bool) -> Option<bool> {
        Some(*written)
    }

    fn show(&self, value: &bool) -> Option<Tree> {
        Some((*value).into())
    }

    fn tell(&self, value: &bool) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        About::new::<bool>("true or false", or_variable(json!({ "type": "boolean" })))
    }
}

/// The words that a key may have: `#[derive(Word)]`.
pub(crate) trait Word: Copy + PartialEq + 'static {
    /// Each as the file writes it, what it means, and its sentence.
    const WORDS: &'static [(&'static str, Self, &'static str)];

    /// As the file writes it.
    fn word(self) -> &'static str;
}

/// A word of a closed list.
pub(crate) struct OneOf;

/// The description of a closed list of words.
fn words_about(words: &[&str]) -> About {
    let listed: Vec<_> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
    About::new::<Text>(listed.join(" or "), or_variable(json!({ "enum": words })))
}

impl<V: Word> Form<V> for OneOf {
    type Written = Text;

    fn read(&self, check: &Check<'_>, place: Place, written: &Text) -> Option<V> {
        let choices: Vec<_> = V::WORDS.iter().map(|(word, value, _)| (*word, *value)).collect();
        value::chosen(check, place, written, &choices)
    }

    fn show(&self, value: &V) -> Option<Tree> {
        Some(value.word().into())
    }

    fn tell(&self, value: &V) -> String {
        value.word().to_owned()
    }

    fn about(&self) -> About {
        words_about(&V::WORDS.iter().map(|(word, ..)| *word).collect::<Vec<_>>())
    }
}

/// The same where a word may be left out, and then what is above decides.
impl<V: Word> Form<Option<V>> for OneOf {
    type Written = Text;

    fn read(&self, check: &Check<'_>, place: Place, written: &Text) -> Option<Option<V>> {
        <Self as Form<V>>::read(self, check, place, written).map(Some)
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Option<V> {
        None
    }

    fn show(&self, value: &Option<V>) -> Option<Tree> {
        value.map(|value| value.word().into())
    }

    fn tell(&self, value: &Option<V>) -> String {
        value.map_or("none", Word::word).to_owned()
    }

    fn about(&self) -> About {
        <Self as Form<V>>::about(self)
    }
}

/// A value that may be left out.
pub(crate) struct Maybe<F>(pub(crate) F);

impl<V, F: Form<V>> Form<Option<V>> for Maybe<F> {
    type Written = F::Written;

    fn read(&self, check: &Check<'_>, place: Place, written: &F::Written) -> Option<Option<V>> {
        self.0.read(check, place, written).map(Some)
    }

    fn absent(&self, check: &Check<'_>, default: Literal) -> Option<V> {
        match default {
            Literal::Nothing | Literal::Words(_) => None,
            default => Some(self.0.absent(check, default)),
        }
    }

    fn show(&self, value: &Option<V>) -> Option<Tree> {
        value.as_ref().and_then(|value| self.0.show(value))
    }

    fn tell(&self, value: &Option<V>) -> String {
        value.as_ref().map_or_else(|| "none".into(), |value| self.0.tell(value))
    }

    fn about(&self) -> About {
        self.0.about()
    }
}

/// An array of values of one form. Members that are wrong are left out.
pub(crate) struct List<F>(pub(crate) F);

impl<V, F: Form<V>> Form<Vec<V>> for List<F> {
    type Written = Vec<Field<F::Written>>;

    fn read(&self, check: &Check<'_>, _: Place, written: &Self::Written) -> Option<Vec<V>> {
        let members = written.iter().filter_map(Field::given);
        Some(members.filter_map(|(place, member)| self.0.read(check, place, member)).collect())
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Vec<V> {
        Vec::new()
    }

    fn show(&self, value: &Vec<V>) -> Option<Tree> {
        Some(Tree::List(value.iter().filter_map(|member| self.0.show(member)).collect()))
    }

    fn tell(&self, value: &Vec<V>) -> String {
        value.iter().map(|member| self.0.tell(member)).collect::<Vec<_>>().join(", ")
    }

    fn compare(&self, changes: &mut Changes, table: &str, words: &str, old: &Vec<V>, new: &Vec<V>) {
        let told = |value: &Vec<V>| value.iter().map(|member| self.0.tell(member)).collect::<Vec<_>>();
        changes.told_members(Self::Written::KIND, &format!("{table}{words}"), &told(old), &told(new));
    }

    fn about(&self) -> About {
        let about = self.0.about();
        let form = format!("an array, each {}", about.form);
        let inner = about.inner.map(|inner| Inner { many: Many::Listed, ..inner });
        About { form, schema: json!({ "type": "array", "items": about.schema }), inner, ..about }
    }
}

/// A word of a closed list that is in an array once at most. `what` is what the words are, in problems.
pub(crate) struct Once(pub(crate) &'static str);

impl<V: Word> Form<Vec<V>> for Once {
    type Written = Vec<Field<Text>>;

    fn read(&self, check: &Check<'_>, _: Place, written: &Self::Written) -> Option<Vec<V>> {
        let (what, mut found) = (self.0, Vec::new());
        for (place, text) in written.iter().filter_map(Field::given) {
            match V::WORDS.iter().find(|(word, ..)| word.eq_ignore_ascii_case(text)) {
                Some((_, value, _)) if found.contains(value) => {
                    check.add(place, Problem::error(format!("{what} {} is there twice", check.quote(place, text))));
                }
                Some((_, value, _)) => found.push(*value),
                None => {
                    let problem = Problem::error(format!("unknown {what} {}", check.quote(place, text)));
                    check.add(place, problem.one_of(text, V::WORDS.iter().map(|(word, ..)| *word)));
                }
            }
        }
        Some(found)
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Vec<V> {
        Vec::new()
    }

    fn show(&self, value: &Vec<V>) -> Option<Tree> {
        Some(Tree::List(value.iter().map(|member| member.word().into()).collect()))
    }

    fn tell(&self, value: &Vec<V>) -> String {
        value.iter().map(|member| member.word()).collect::<Vec<_>>().join(", ")
    }

    fn compare(&self, changes: &mut Changes, table: &str, words: &str, old: &Vec<V>, new: &Vec<V>) {
        let told = |value: &Vec<V>| value.iter().map(|member| member.word().to_owned()).collect::<Vec<_>>();
        changes.told_members(Kind::Plain, &format!("{table}{words}"), &told(old), &told(new));
    }

    fn about(&self) -> About {
        let members: HashSet<_> = V::WORDS.iter().map(|(word, ..)| *word).collect();
        debug_assert_eq!(members.len(), V::WORDS.len());
        let one = <OneOf as Form<V>>::about(&OneOf);
        let schema = json!({ "type": "array", "items": one.schema });
        About { form: format!("an array of {}, each once at most", one.form.replace(" or ", ", ")), schema, ..one }
    }
}

/// A table. As an `Option` it is none where the file does not have it, or says that it is off.
pub(crate) struct Part;

pub(crate) fn part_about<T: Table>() -> About {
    let inner = Inner { many: Many::One, doc: T::DOC, enabled: T::ENABLED, keys: T::keys() };
    let schema = super::schema::of_table(&inner);
    About { inner: Some(inner), ..About::new::<T::Written>("a table", schema) }
}

impl<T: Table> Form<T> for Part
where
    T::Written: FromLiteral,
{
    type Written = T::Written;

    fn read(&self, check: &Check<'_>, place: Place, written: &T::Written) -> Option<T> {
        T::read(check, place, written)
    }

    fn read_over(&self, check: &Check<'_>, place: Place, written: &T::Written, before: Option<&T>) -> Option<T> {
        T::read_over(check, place, written, before)
    }

    fn absent(&self, check: &Check<'_>, _: Literal) -> T {
        T::by_default(check)
    }

    fn show(&self, value: &T) -> Option<Tree> {
        Some(value.tree())
    }

    /// By the first of its keys.
    fn tell(&self, value: &T) -> String {
        match value.entries().into_iter().next() {
            Some((_, Tree::Leaf(Value::String(text)))) => text,
            _ => String::new(),
        }
    }

    fn compare(&self, changes: &mut Changes, table: &str, words: &str, old: &T, new: &T) {
        if T::ENABLED.is_some() && old.is_enabled() != new.is_enabled() {
            changes.switch(&format!("{table}{words}"), old.is_enabled(), new.is_enabled());
        } else {
            T::compare(changes, &format!("{table}{words}."), old, new);
        }
    }

    fn about(&self) -> About {
        part_about::<T>()
    }
}

/// Compares tables that may be off.
pub(crate) fn compare_switched<T: Table>(changes: &mut Changes, path: &str, old: Option<&T>, new: Option<&T>) {
    match (old, new) {
        (Some(old), Some(new)) => T::compare(changes, &format!("{path}."), old, new),
        (old, new) => changes.switch(path, old.is_some(), new.is_some()),
    }
}

/// As `/config` has it: one that is off has `enabled` and nothing else.
pub(crate) fn show_switched<T: Table>(value: Option<&T>) -> Option<Tree> {
    let off = || T::ENABLED.map(|_| Tree::Table(vec![("enabled".to_owned(), false.into())]));
    value.map(T::tree).or_else(off)
}

macro_rules! switched {
    ($form:ident, $value:ty, $as_ref:ident, $make:expr, $absent:expr) => {
        impl<T: Table> Form<Option<$value>> for $form
        where
            T::Written: FromLiteral,
        {
            type Written = T::Written;

            fn read(&self, check: &Check<'_>, place: Place, written: &T::Written) -> Option<Option<$value>> {
                Some(T::read(check, place, written).map($make))
            }

            fn read_over(
                &self,
                check: &Check<'_>,
                place: Place,
                written: &T::Written,
                before: Option<&Option<$value>>,
            ) -> Option<Option<$value>> {
                let before = before.and_then(|before| before.$as_ref());
                Some(T::read_over(check, place, written, before).map($make))
            }

            fn absent(&self, check: &Check<'_>, _: Literal) -> Option<$value> {
                let absent: fn(&Check<'_>) -> Option<T> = $absent;
                absent(check).map($make)
            }

            fn show(&self, value: &Option<$value>) -> Option<Tree> {
                show_switched(value.$as_ref())
            }

            fn tell(&self, value: &Option<$value>) -> String {
                if value.is_some() { "on" } else { "off" }.to_owned()
            }

            fn compare(
                &self,
                changes: &mut Changes,
                table: &str,
                words: &str,
                old: &Option<$value>,
                new: &Option<$value>,
            ) {
                compare_switched(changes, &format!("{table}{words}"), old.$as_ref(), new.$as_ref());
            }

            fn about(&self) -> About {
                part_about::<T>()
            }
        }
    };
}

/// A table that is on without being in the file.
pub(crate) struct OnPart;

switched!(Part, T, as_ref, |it| it, |_| None);
switched!(Part, Arc<T>, as_deref, Arc::new, |_| None);
switched!(OnPart, T, as_ref, |it| it, |check| Some(T::by_default(check)));

/// Tables under the same name, such as `[[listener]]`. They are read together by a check, and compared one by one by the plan of a reload.
pub(crate) struct Listed;

impl<T: Table> Form<Vec<Arc<T>>> for Listed
where
    T::Written: FromLiteral,
{
    type Written = Vec<Field<T::Written>>;

    fn read(&self, _: &Check<'_>, _: Place, _: &Self::Written) -> Option<Vec<Arc<T>>> {
        Some(Vec::new())
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Vec<Arc<T>> {
        Vec::new()
    }

    fn show(&self, value: &Vec<Arc<T>>) -> Option<Tree> {
        Some(Tree::List(value.iter().map(|table| table.tree()).collect()))
    }

    fn tell(&self, value: &Vec<Arc<T>>) -> String {
        value.len().to_string()
    }

    fn compare(&self, _: &mut Changes, _: &str, _: &str, _: &Vec<Arc<T>>, _: &Vec<Arc<T>>) {}

    fn about(&self) -> About {
        let one = part_about::<T>();
        let inner = one.inner.map(|inner| Inner { many: Many::Listed, ..inner });
        About { form: "tables".into(), schema: json!({ "type": "array", "items": one.schema }), inner, ..one }
    }
}

/// The name of a listener, route or upstream.
pub(crate) struct Name;

impl<V: for<'a> From<&'a str> + AsRef<str>> Form<V> for Name {
    type Written = Text;

    fn read(&self, check: &Check<'_>, place: Place, written: &Text) -> Option<V> {
        value::name(check, place, written).map(V::from)
    }

    fn show(&self, value: &V) -> Option<Tree> {
        Some(value.as_ref().into())
    }

    fn tell(&self, value: &V) -> String {
        value.as_ref().to_owned()
    }

    fn about(&self) -> About {
        About::new::<Text>("a name", json!({ "type": "string", "minLength": 1, "maxLength": 128 }))
    }
}
