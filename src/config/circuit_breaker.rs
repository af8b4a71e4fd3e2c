//! `[upstream.NAME.circuit_breaker]`: whether an upstream is asked at all.

use std::time::Duration;

use super::check::Check;
use super::error::Problem;
use super::form::{Timeout, Whole};
use super::report::Place;
use super::rule::KeyRule;
use super::table::Table;

/// Spares an upstream that fails, and tells clients at once: while the breaker is open, requests are answered 503 without being sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Table)]
#[table(enabled = true, check = Self::check, rules = Self::RULES, reload = Requests)]
pub struct BreakerConfig {
    /// How far back attempts count; `24h` at most.
    #[key(Timeout, default = "10s")]
    pub window: Duration,
    /// Fewer attempts than this say nothing.
    #[key(Whole(1..=1_000_000), default = 20)]
    pub min_calls: u32,
    /// It opens when so many of a hundred attempts have failed.
    #[key(Whole(1..=100), default = 50)]
    pub failure_percent: u8,
    /// An attempt whose response's head takes this long is slow; `none`: none is.
    #[key(Timeout, default = "none")]
    pub slow_after: Option<Duration>,
    /// It opens when so many of a hundred attempts were slow.
    #[key(Whole(1..=100), default = 80)]
    pub slow_percent: u8,
    /// How long it stays open the first time. The next is twice as long, and so on.
    #[key(Timeout, default = "5s")]
    pub open_for: Duration,
    /// The longest that it stays open; not below `open_for`.
    #[key(Timeout, default = "60s")]
    pub open_max: Duration,
    /// Attempts that are let through to find out whether it may close.
    #[key(Whole(1..=1_000), default = 3)]
    pub probes: u16,
}

const WINDOW_MAX: Duration = Duration::from_secs(86_400);

impl BreakerConfig {
    const RULES: &[KeyRule] = &[KeyRule::Need(&["slow_percent"], "slow_after")];

    fn check(check: &Check<'_>, _: Place, written: &WrittenBreakerConfig, mut it: Self) -> Option<Self> {
        if let (Some(place), true) = (written.window.place(), it.window > WINDOW_MAX) {
            check.add(place, Problem::error("a window that is too long").expected("\"24h\" at most"));
        }
        match written.open_max.given() {
            // An open_for above the default is no contradiction by itself.
            None => it.open_max = it.open_max.max(it.open_for),
            Some((place, _)) if it.open_max < it.open_for => {
                check.add(place, Problem::error("less than open_for").expected("open_for at least"));
            }
            Some(_) => {}
        }
        if let (Some((place, _)), None) = (written.slow_percent.given(), written.slow_after.place()) {
            let problem = Problem::error("no attempt is slow without slow_after");
            check.add(place, problem.expected("slow_after = \"2s\" too, or not this key"));
        }
        Some(it)
    }
}
