//! `[overload]`: when the process has more to do than it can.

use std::time::Duration;

use super::check::{Check, value};
use super::form::{About, Form, Timeout, Whole};
use super::json_tree::Tree;
use super::report::Place;
use super::table::Table;

/// New requests are answered 503 while the process has more to do than it can; the admin address never is. Enabled by default.
///
/// The defaults are late enough that a busy machine does not come to them, and early enough that refusing still works. Lag is measured in the
/// worker itself: one that saturates its core with ten thousand clients runs its timers a tenth of a second late and serves them all; half a
/// second is a worker that stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Table)]
#[table(enabled = true, is_enabled = Self::is_on, check = Self::check)]
pub struct OverloadConfig {
    /// How late a worker's timers may run, three times in a row, before that worker refuses until it has caught up.
    #[key(Timeout, default = "500ms")]
    pub lag: Option<Duration>,
    /// How many of a hundred file descriptors that the process may open may be open; 100 never refuses. Clients that isobar accepts stay below
    /// it by themselves.
    #[key(PercentBelow100, default = 95)]
    pub descriptors_percent: Option<u8>,
    /// How many hundredths of the memory of the container or machine may be in use; 100 never refuses. To refuse is better than to be killed.
    #[key(PercentBelow100, default = 95)]
    pub memory_percent: Option<u8>,
}

impl OverloadConfig {
    /// Nothing is looked at.
    pub const OFF: Self = Self { lag: None, descriptors_percent: None, memory_percent: None };

    fn is_on(&self) -> bool {
        *self != Self::OFF
    }

    fn check(_: &Check<'_>, _: Place, written: &WrittenOverloadConfig, it: Self) -> Option<Self> {
        Some(if Self::says_enabled(written) { it } else { Self::OFF })
    }
}

impl Default for OverloadConfig {
    fn default() -> Self {
        Self::of_defaults()
    }
}

/// A part of something, which is no limit at 100.
struct PercentBelow100;

impl Form<Option<u8>> for PercentBelow100 {
    type Written = i64;

    fn read(&self, check: &Check<'_>, place: Place, written: &i64) -> Option<Option<u8>> {
        let percent = value::number_in(check, place, *written, 1..=100)?;
        Some(u8::try_from(percent).ok().filter(|percent| *percent < 100))
    }

    fn show(&self, value: &Option<u8>) -> Option<Tree> {
        Some(value.unwrap_or(100).into())
    }

    fn tell(&self, value: &Option<u8>) -> String {
        value.unwrap_or(100).to_string()
    }

    fn about(&self) -> About {
        <Whole as Form<u8>>::about(&Whole(1..=100))
    }
}
