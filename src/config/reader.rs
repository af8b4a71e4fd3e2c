//! From parsed TOML to tables as the file has them, without stopping at the first problem.
//!
//! A serde deserializer, because then these are plain structs that derive `Deserialize`, and the keys a table may have are
//! those of the struct. It differs from toml's own in four ways: a value of the wrong type and an unknown key are reported
//! and passed over; a [`Field`](super::field::Field) is given its place; `${NAME}` is filled in; and an enum is a choice by type, its variants
//! being called `string`, `integer` or `table`.

use std::fmt;
use std::ops::Range;

use serde::de::{self, Deserialize, Deserializer, Expected, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use toml::Spanned;
use toml::de::{DeInteger, DeString, DeTable, DeValue};

use super::error::Problem;
use super::interpolate::{self, Unfilled, Why};
use super::report::{Place, Report, quote};
use super::visibility::Kind;

use parts::{FieldParts, Members, Shaped, TableEntries};

mod parts;

/// Among the keys of a table: it has others as well, whose names are not known here.
pub(super) const ANY_KEY: &str = "*";

/// Looks up a variable of the environment.
pub(super) type Env<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Reads a whole file. Always gives something: what was wrong is in the report and left out.
pub(super) fn read<'a, T: Deserialize<'a> + Default>(
    root: &'a Spanned<DeValue<'a>>,
    report: &'a Report<'a>,
    env: &'a Env<'a>,
) -> T {
    let (value, path) = (root.get_ref(), String::new());
    let reader = ValueReader { value, span: 0..0, path, kind: Kind::Table, expected: None, report, env };
    T::deserialize(reader).unwrap_or_else(|given_up| {
        given_up.report(report, Place::FILE);
        T::default()
    })
}

/// Why a value was given up.
#[derive(Debug)]
enum GivenUp {
    /// For a problem that is in the report.
    Reported,
    /// For something that serde says.
    Because(String),
}

impl GivenUp {
    fn report(self, report: &Report<'_>, place: Place) {
        if let Self::Because(message) = self {
            report.add(place, Problem::error(message));
        }
    }
}

impl fmt::Display for GivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reported => f.write_str("reported"),
            Self::Because(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for GivenUp {}

impl de::Error for GivenUp {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Because(message.to_string())
    }

    /// As serde has it, but for the value.
    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::Because(format!("wrong type, expected {expected}"))
    }

    /// As serde has it, but for the value.
    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::Because(format!("wrong value, expected {expected}"))
    }
}

/// Reads one value.
struct ValueReader<'a> {
    value: &'a DeValue<'a>,
    span: Range<usize>,
    path: String,
    /// What of the value may be shown: nothing until its key has said so.
    kind: Kind,
    /// What the type being read says it expects.
    expected: Option<&'static str>,
    report: &'a Report<'a>,
    env: &'a Env<'a>,
}

impl<'a> ValueReader<'a> {
    /// A reader of something inside this value.
    fn inner(&self, path: String, value: &'a Spanned<DeValue<'a>>) -> Self {
        let (kind, expected) = (Kind::Table, None);
        Self { value: value.get_ref(), span: value.span(), path, kind, expected, report: self.report, env: self.env }
    }

    fn place(&self) -> Place {
        let string = match self.value {
            DeValue::String(string) => Some(&**string),
            _ => None,
        };
        self.report.place_of(&self.path, self.span.start, self.kind, string)
    }

    /// The value as the file has it.
    fn text(&self) -> &'a str {
        self.report.text().get(self.span.clone()).unwrap_or_default()
    }

    fn wrong_type(&self, expected: &str) -> GivenUp {
        let place = self.place();
        let problem = Problem::error(format!("wrong type: {}", self.describe(place)));
        self.report.add(place, problem.expected(self.expected.unwrap_or(expected)));
        GivenUp::Reported
    }

    /// Something else where a table with these keys is wanted.
    fn no_table(&self, fields: &[&str]) -> GivenUp {
        match (self.path.rsplit_once('.'), self.value) {
            // `[upstream]` with the keys of one, which has no name then.
            (Some((table, key)), _) if fields.contains(&key) => {
                self.wrong_type(&format!("a table with a name: [{table}.NAME], and this key in it"))
            }
            (_, DeValue::Array(_)) if self.text().starts_with("[[") => {
                self.wrong_type(&format!("only one of them: [{}]", self.path))
            }
            _ => self.wrong_type("a table"),
        }
    }

    /// A value of another type than its key's.
    fn describe(&self, place: Place) -> String {
        let shown = self.kind.shows_other_types();
        match self.value {
            DeValue::String(text) if shown => format!("string {}", self.report.quote(place, text)),
            DeValue::Integer(number) if shown => format!("integer {}", shorten(number)),
            DeValue::Float(number) if shown => format!("float {}", number.as_str()),
            // No secret is one of two.
            DeValue::Boolean(value) => format!("boolean {value}"),
            DeValue::String(_) => "a string".into(),
            DeValue::Integer(_) => "an integer".into(),
            DeValue::Float(_) => "a float".into(),
            DeValue::Datetime(_) => "a date or time".into(),
            DeValue::Array(_) => "an array".into(),
            DeValue::Table(_) => "a table".into(),
        }
    }

    /// The value as a string, its variables filled in; what they made of it, if there were any.
    fn filled(&self, written: &str) -> Result<interpolate::Filled, GivenUp> {
        interpolate::fill(written, self.env).map_err(|unfilled| {
            for unfilled in unfilled {
                self.report_unfilled(&unfilled);
            }
            GivenUp::Reported
        })
    }

    /// Reports a variable where it stands within its string, which is where its text is found: escapes could have moved it.
    fn report_unfilled(&self, unfilled: &Unfilled) {
        let offset = self.span.start + self.text().find(&unfilled.written).unwrap_or(0);
        let problem = match &unfilled.why {
            Why::Unset(name) => Problem::error(format!("the environment does not have {}", quote(name)))
                .expected(format!("it to be set, or a default: ${{{name}:-default}}")),
            Why::Unclosed => {
                Problem::error("a variable's brace is not closed").expected("${NAME}, or $${ for a plain ${")
            }
            Why::BadName(name) => {
                // It may be a part of a secret that has `${` in it.
                let name = if self.kind.shows_other_types() { quote(name) } else { "what is in the braces".into() };
                Problem::error(format!("{name} is not a variable's name"))
                    .expected("letters, digits and underscores, or $${ for a plain ${")
            }
        };
        self.report.add(self.report.place(&self.path, offset), problem);
    }

    /// What a variable was filled in with, where something else than a string is wanted.
    fn filled_as<T: std::str::FromStr>(&self, written: &str, expected: &str) -> Result<T, GivenUp> {
        let filled = self.filled(written)?;
        if !filled.changed {
            return Err(self.wrong_type(expected));
        }
        filled.text.parse().map_err(|_| {
            let place = self.place();
            let what = format!("{} stands for something else", self.report.quote(place, written));
            self.report.add(place, Problem::error(what).expected(self.expected.unwrap_or(expected)));
            GivenUp::Reported
        })
    }

    /// Entries in the order of the file, which toml's tables do not keep.
    fn entries(&self, table: &'a DeTable<'a>) -> Vec<TableEntry<'a>> {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        entries
    }
}

type TableEntry<'a> = (&'a Spanned<DeString<'a>>, &'a Spanned<DeValue<'a>>);

impl<'a> Deserializer<'a> for ValueReader<'a> {
    type Error = GivenUp;

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, GivenUp> {
        match self.value {
            DeValue::String(_) => self.deserialize_string(visitor),
            DeValue::Integer(_) => self.deserialize_i64(visitor),
            DeValue::Boolean(_) => self.deserialize_bool(visitor),
            DeValue::Array(_) => self.deserialize_seq(visitor),
            DeValue::Table(_) => self.deserialize_map(visitor),
            DeValue::Float(_) => self.deserialize_f64(visitor),
            DeValue::Datetime(_) => Err(self.wrong_type("another type")),
        }
    }

    fn deserialize_string<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, GivenUp> {
        match self.value {
            DeValue::String(written) => visitor.visit_string(self.filled(written)?.text),
            _ => Err(self.wrong_type("a string")),
        }
    }

    fn deserialize_str<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, GivenUp> {
        self.deserialize_string(visitor)
    }

    fn deserialize_i64<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, GivenUp> {
        const EXPECTED: &str = "a whole number";
        match self.value {
            DeValue::Integer(written) => match i64::from_str_radix(written.as_str(), written.radix()) {
                Ok(number) => visitor.visit_i64(number),
                Err(_) => {
                    let what = format!("{} is out of range", shorten(written));
                    self.report.add(self.place(), Problem::error(what).expected("a number of at most 64 bits"));
                    Err(GivenUp::Reported)
                }
            },
            DeValue::String(written) => visitor.visit_i64(self.filled_as(written, EXPECTED)?),
            _ => Err(self.wrong_type(EXPECTED)),
        }
    }

    /// Any number, whole or not. What is no number at all (`nan`, `inf`) is refused.
    fn deserialize_f64<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, GivenUp> {
        const EXPECTED: &str = "a number";
        let number: f64 = match self.value {
            DeValue::Float(written) => written.as_str().parse().map_err(|_| self.wrong_type(EXPECTED))?,
            DeValue::Integer(written) => {
                i64::from_str_radix(written.as_str(), written.radix()).map_err(|_| self.wrong_type(EXPECTED))? as f64
            }
            DeValue::String(written) => self.filled_as(written, EXPECTED)?,
            _ => return Err(self.wrong_type(EXPECTED)),
        };
        if number.is_finite() { visitor.visit_f64(number) } else { Err(self.wrong_type(EXPECTED)) }
    }

    fn deserialize_bool<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, GivenUp> {
        const EXPECTED: &str = "true or false";
        match self.value {
            DeValue::Boolean(value) => visitor.visit_bool(*value),
            DeValue::String(written) => visitor.visit_bool(self.filled_as(written, EXPECTED)?),
            _ => Err(self.wrong_type(EXPECTED)),
        }
    }

    fn deserialize_seq<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, GivenUp> {
        match self.value {
            DeValue::Array(array) => visitor.visit_seq(Members { members: array[..].iter(), index: 0, array: self }),
            // `[listener]`, where only the brackets are missing.
            DeValue::Table(_) if self.text().starts_with('[') => {
                Err(self.wrong_type(&format!("several of them: [[{}]]", self.path)))
            }
            _ => Err(self.wrong_type("an array")),
        }
    }

    fn deserialize_map<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, GivenUp> {
        match self.value {
            DeValue::Table(table) => {
                visitor.visit_map(TableEntries { entries: self.entries(table).into_iter(), value: None, table: self })
            }
            // `[[upstream]]`, as `[[listener]]` is.
            DeValue::Array(_) if self.text().starts_with("[[") => {
                Err(self.wrong_type(&format!("a table for each, with its name: [{}.NAME]", self.path)))
            }
            _ => Err(self.wrong_type("a table")),
        }
    }

    fn deserialize_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, GivenUp> {
        let DeValue::Table(table) = self.value else { return Err(self.no_table(fields)) };
        let open = fields.contains(&ANY_KEY);
        let (known, unknown): (Vec<_>, Vec<_>) =
            self.entries(table).into_iter().partition(|(key, _)| open || fields.contains(&&**key.get_ref()));
        for (key, _) in unknown {
            let place = self.report.place(&join(&self.path, key.get_ref()), key.span().start);
            let problem = Problem::error(format!("unknown key {}", quote(key.get_ref())));
            let mut problem = problem.one_of(key.get_ref(), fields.iter().copied());
            if problem.suggestion.is_none() {
                problem.suggestion = elsewhere(key.get_ref(), fields).map(str::to_owned);
            }
            if let Some(meant) = &problem.suggestion {
                self.report.note_meant(&self.path, meant);
            }
            self.report.add(place, problem);
        }
        visitor.visit_map(TableEntries { entries: known.into_iter(), value: None, table: self })
    }

    /// A [`Field`](super::field::Field), whose marker tells its kind: its place, then its value.
    fn deserialize_tuple_struct<V: Visitor<'a>>(
        self,
        marker: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, GivenUp> {
        let kind = Kind::marked(marker);
        debug_assert!(kind.is_some(), "{marker} is no field");
        let reader = ValueReader { kind: kind.unwrap_or(Kind::Table), ..self };
        let at = reader.place();
        visitor.visit_seq(FieldParts { place: Some(at), report: reader.report, at, value: Some(reader) })
    }

    /// A type that says by its name what it expects.
    fn deserialize_newtype_struct<V: Visitor<'a>>(self, name: &'static str, visitor: V) -> Result<V::Value, GivenUp> {
        visitor.visit_newtype_struct(ValueReader { expected: Some(name), ..self })
    }

    /// A choice by type, whose name says what is expected.
    fn deserialize_enum<V: Visitor<'a>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, GivenUp> {
        let shape = match self.value {
            DeValue::String(written) if variants.contains(&"integer") => match interpolate::fill(written, self.env) {
                Ok(filled) if filled.changed && filled.text.parse::<i64>().is_ok() => "integer",
                _ => "string",
            },
            other => other.type_str(),
        };
        let reader = ValueReader { expected: Some(name), ..self };
        match variants.iter().find(|variant| **variant == shape) {
            Some(variant) => visitor.visit_enum(Shaped { variant, reader }),
            None => Err(reader.wrong_type(name)),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, GivenUp> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        <V: Visitor<'a>>
        i8 i16 i32 i128 u8 u16 u32 u64 u128 f32 char bytes byte_buf option unit unit_struct tuple identifier
    }
}

/// The key that is meant by what other programs call it, of those that a table has.
fn elsewhere<'f>(key: &str, fields: &[&'f str]) -> Option<&'f str> {
    let plain = key.to_ascii_lowercase().replace('-', "_");
    let ours: &[&str] = match plain.as_str() {
        "balance" | "algorithm" | "lb_policy" | "policy" | "load_balancing" | "lb" | "method" => &["strategy"],
        "servers" | "server" | "endpoints" | "targets" | "nodes" | "members" | "hosts" | "upstreams" => &["backends"],
        "listen" | "bind" | "addr" | "ip" => &["address"],
        "location" | "prefix" => &["path_prefix"],
        "uri" | "url" => &["path"],
        "hostname" | "hostnames" | "domain" | "domains" | "server_name" | "server_names" | "vhost" => &["hosts"],
        "backend" | "proxy_pass" | "service" | "pool" | "forward" => &["upstream"],
        "routes" | "locations" => &["route"],
        "listeners" => &["listener"],
        "maxconn" | "max_conns" | "max_conn" => &["max_connections"],
        "healthcheck" | "health" | "checks" | "active_health_check" => &["health_check"],
        "logs" | "logging" => &["log"],
        _ => &[],
    };
    fields.iter().copied().find(|field| ours.contains(field))
}

/// The path of a key within a table: quoted where TOML would want it quoted.
fn join(table: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let key = if bare { key.to_owned() } else { quote(key) };
    if table.is_empty() { key } else { format!("{table}.{key}") }
}

fn shorten(number: &DeInteger<'_>) -> String {
    let text = number.to_string();
    if text.len() > 40 { format!("{}…", text.get(..40).unwrap_or_default()) } else { text }
}
