//! Durations.

use std::time::Duration;

use serde_json::{Value, json};

use super::{About, Form};
use crate::config::check::{Check, value};
use crate::config::json_tree::Tree;
use crate::config::raw;
use crate::config::report::Place;
use crate::config::units;

/// The schema of a duration.
fn span_schema() -> Value {
    json!({ "type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$|\\$\\{" })
}

/// The same of one above zero.
fn timeout_schema() -> Value {
    let (part, parts) = ("[0-9]*[1-9][0-9]*(ms|s|m|h|d)", "([0-9]+(ms|s|m|h|d))*");
    json!({ "type": "string", "pattern": format!("^{parts}{part}{parts}$|\\$\\{{") })
}

/// A duration's `Debug` is how `lb.toml` writes it: `5s`, `1.5s`, `200ms`. Rust writes none in its smallest unit.
fn tell_duration(duration: Duration) -> String {
    if duration.is_zero() { "0s".into() } else { format!("{duration:?}") }
}

/// Forms of a duration that differ in what they let pass.
macro_rules! durations {
    ($($(#[$doc:meta])* $form:ident: $read:path, $words:literal, $schema:path;)+) => {$(
        $(#[$doc])*
        pub(crate) struct $form;

        impl Form<Duration> for $form {
            type Written = raw::Duration;

            fn read(&self, check: &Check<'_>, place: Place, raw::Duration(text): &raw::Duration) -> Option<Duration> {
                $read(check, place, text, value::DURATION)
            }

            fn show(&self, value: &Duration) -> Option<Tree> {
                Some(units::written(*value).into())
            }

            fn tell(&self, value: &Duration) -> String {
                tell_duration(*value)
            }

            fn about(&self) -> About {
                About::new::<raw::Duration>($words, $schema())
            }
        }
    )+};
}

durations! {
    /// A duration that may be zero.
    Span: value::written_duration, "a duration", span_schema;
    /// A duration to wait at most: more than zero. As an `Option` it may be `"none"`, which is any time.
    Timeout: value::written_timeout, "a duration above 0", timeout_schema;
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
