//! `[upstream.NAME.adaptive_limit]`: requests in flight at an upstream, fewer when responses take longer than usual.

use std::time::Duration;

use super::check::Check;
use super::error::Problem;
use super::form::{Timeout, Whole};
use super::report::Place;
use super::table::Table;

/// Requests in flight at all backends together, fewer when responses take longer than usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Table)]
#[table(enabled = true, check = Self::check, reload = Requests)]
pub struct AdaptiveLimitConfig {
    /// Where the limit begins; from `min` to `max`.
    #[key(Whole(1..=1_000_000), default = 20)]
    pub initial: u32,
    /// It never is below.
    #[key(Whole(1..=1_000_000), default = 20)]
    pub min: u32,
    /// It never is above.
    #[key(Whole(1..=1_000_000), default = 200)]
    pub max: u32,
    /// How long responses may take, in hundredths of what is usual, before it goes down.
    #[key(Whole(100..=1_000), default = 150)]
    pub tolerance_percent: u32,
    /// How much of what a window asks for is done at once, in hundredths.
    #[key(Whole(1..=100), default = 20)]
    pub smoothing_percent: u8,
    /// By how many requests it goes up when all is well.
    #[key(Whole(1..=1_000), default = 4)]
    pub headroom: u32,
    /// How many windows back count for what is usual.
    #[key(Whole(10..=1_000_000), default = 600)]
    pub long_windows: u32,
    /// How long responses are gathered before it is looked at.
    #[key(Timeout, default = "100ms")]
    pub window: Duration,
    /// Fewer responses than this say nothing.
    #[key(Whole(1..=1_000_000), default = 10)]
    pub min_samples: u32,
}

impl AdaptiveLimitConfig {
    fn check(check: &Check<'_>, _: Place, written: &WrittenAdaptiveLimitConfig, mut it: Self) -> Option<Self> {
        // What the file does not say, or says wrong, goes by what it says.
        let says = |written: Option<&i64>, value: u32| written.is_some_and(|written| *written == i64::from(value));
        if !says(written.min.value(), it.min) {
            it.min = it.min.min(it.max);
        }
        if !says(written.initial.value(), it.initial) {
            it.initial = it.initial.clamp(it.min.min(it.max), it.max);
        }
        if let (Some(place), true) = (written.min.place(), it.min > it.max) {
            let shown = check.show_other(written.max.place(), it.max);
            check.add(place, Problem::error(format!("above max, which is {shown}")).expected("max at most"));
        } else if let (Some(place), false) = (written.initial.place(), (it.min..=it.max).contains(&it.initial)) {
            let (min, max) =
                (check.show_other(written.min.place(), it.min), check.show_other(written.max.place(), it.max));
            let problem = Problem::error("the limit would not begin here");
            check.add(place, problem.expected(format!("min to max: {min} to {max}")));
        }
        Some(it)
    }
}
