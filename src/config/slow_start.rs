//! `[upstream.NAME.slow_start]`: how a backend that joins or returns starts.

use std::time::Duration;

use super::check::Check;
use super::error::Problem;
use super::form::{Percent, Real, Span};
use super::report::Place;
use super::table::Table;

/// A backend that joins or returns has a part of its weight at first. Enabled by default.
#[derive(Clone, Debug, PartialEq, Table)]
#[table(enabled = true, check = Self::check, reload = Requests)]
pub struct SlowStartConfig {
    /// How long it takes until it has its full weight.
    #[key(Span, default = "30s")]
    pub window: Duration,
    /// Above 1 the weight rises steeply at first, below 1 steeply at last; 1 is a straight line.
    #[key(Real(0.1..=10.0), default = 1.0)]
    pub aggression: f64,
    /// The part of its weight, in hundredths, that it has at least: with nothing it would never get warm.
    #[key(Percent(1..=100), name = "minimum_percent", default = 10)]
    pub minimum: f64,
}

impl SlowStartConfig {
    fn check(check: &Check<'_>, _: Place, written: &WrittenSlowStartConfig, it: Self) -> Option<Self> {
        if let Some((place, _)) = written.window.given()
            && it.window.is_zero()
        {
            check.add(place, Problem::error("a window of zero").expected("more than zero, or enabled = false"));
        }
        Some(it)
    }
}

impl Default for SlowStartConfig {
    fn default() -> Self {
        Self::of_defaults()
    }
}
