//! Numbers: whole ones, parts of a hundred, limits and sizes.

use std::ops::RangeInclusive;

use serde_json::{Value, json};

use super::{About, Form, or_variable};
use crate::config::check::{Check, value};
use crate::config::error::Problem;
use crate::config::json_tree::Tree;
use crate::config::raw;
use crate::config::report::Place;
use crate::config::units;
use crate::config::visibility::OfKind;

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
