//! `[upstream.NAME.outlier_detection]`: what counts as an outlier, and for how long it is ejected.

use std::time::Duration;

use super::check::Check;
use super::error::Problem;
use super::field::Field;
use super::form::{Percent, Real, Span, Switch, Timeout, Whole};
use super::report::Place;
use super::table::Table;

/// Backends are ejected for a while by what comes of their requests. Enabled by default. Where a number of 0 makes no sense as a limit, it
/// switches the rule off. A reload with other numbers applies at once and loses no state.
#[derive(Clone, Debug, PartialEq, Table)]
#[table(enabled = true, check = Self::check, reload = AtOnce)]
pub struct OutlierConfig {
    /// Responses 502, 503 and 504 in succession after which a backend is ejected; 0 is off.
    #[key(Whole(0..=1000), name = "consecutive_gateway_errors", default = 5)]
    pub consecutive_gateway: u32,
    /// Attempts in succession that failed before a response (no connection, reset, too late); 0 is off.
    #[key(Whole(0..=1000), name = "consecutive_local_errors", default = 5)]
    pub consecutive_local: u32,
    /// Whether any other 5xx counts in that succession as well. A 500 is the application's answer to a request, and another backend would mostly
    /// give the same one; such answers still count against a backend that gives more of them than the others do.
    #[key(Switch, default = false)]
    pub count_server_errors: bool,
    /// How often the rules below are looked at: a slow backend is out in three intervals. `10ms` at least.
    #[key(Timeout, default = "2s")]
    pub interval: Duration,
    /// How far back they look for enough traffic: from one interval to 64. What a busy backend does shows in its last interval already.
    #[key(Timeout, default = "20s")]
    pub window: Duration,
    /// The part of the attempts in hundredths, gateway errors and local ones together, from which on a backend is ejected whatever the others do;
    /// 0 is off.
    #[key(Percent(0..=100), name = "failure_percent", default = 50)]
    pub failure_rate: f64,
    /// Attempts that this takes.
    #[key(Whole(1..=1_000_000), default = 50)]
    pub failure_volume: u64,
    /// How many standard deviations below the others' success rate is an outlier; 0 is off. At 1.9, one of 20 identical backends would be ejected
    /// every few intervals.
    #[key(Real(0.0..=100.0), default = 4.0)]
    pub success_deviations: f64,
    /// How much lower the rate must be besides, in hundredths.
    #[key(Percent(0..=100), name = "success_gap_percent", default = 10)]
    pub success_gap: f64,
    /// Attempts that a backend needs in order to be compared.
    #[key(Whole(1..=1_000_000), default = 50)]
    pub success_volume: u64,
    /// Intervals in succession for which it must be so.
    #[key(Whole(1..=1000), default = 2)]
    pub success_intervals: u32,
    /// How many (robust) standard deviations above the median of the others' logarithms of latency is an outlier; 0 is off. 3.5 is what Iglewicz and
    /// Hoaglin recommend for this measure.
    #[key(Real(0.0..=100.0), default = 3.5)]
    pub latency_deviations: f64,
    /// How many times slower than the median it must be besides: below 3, it may be a matter of hardware.
    #[key(Real(1.0..=1000.0), default = 3.0)]
    pub latency_ratio: f64,
    /// How much slower it must be besides: less is not noticed, and noise is below it.
    #[key(Span, default = "10ms")]
    pub latency_excess: Duration,
    /// Answers that a backend needs in order to be compared.
    #[key(Whole(2..=1_000_000), default = 30)]
    pub latency_volume: u64,
    /// Intervals in succession for which it must be so: a pause for collecting garbage is over by then.
    #[key(Whole(1..=1000), default = 3)]
    pub latency_intervals: u32,
    /// Backends that a comparison takes, for success rate and latency. Never below 3: of two that differ it cannot be said which one is the outlier.
    #[key(Whole(3..=1000), name = "backends_min", default = 3)]
    pub hosts: usize,
    /// How long the first ejection lasts; the n-th in a row takes n times as long.
    #[key(Timeout, name = "ejection_time", default = "30s")]
    pub base: Duration,
    /// The longest; not below `ejection_time`.
    #[key(Timeout, name = "ejection_time_max", default = "300s")]
    pub longest: Duration,
    /// By how many hundredths an ejection is made shorter or longer at random, so that what was ejected together does not come back together.
    #[key(Percent(0..=100), name = "jitter_percent", default = 10)]
    pub jitter: f64,
    /// How long a backend must have served without a fault until one ejection is forgiven.
    #[key(Timeout, name = "forgive_after", default = "30s")]
    pub forgive: Duration,
    /// How many of a hundred of the upstream's backends may be ejected at a time, but one at least where there are two. 0 ejects none.
    #[key(Whole(0..=100), default = 50)]
    pub max_ejected_percent: u32,
}

/// Below this the control plane would be busy with nothing else.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// As many intervals as a window can have.
const INTERVALS_MAX: u32 = 64;

impl OutlierConfig {
    fn check(check: &Check<'_>, _: Place, written: &WrittenOutlierConfig, mut it: Self) -> Option<Self> {
        if let Some((place, text)) = written.interval.given()
            && it.interval < INTERVAL_MIN
        {
            let problem = Problem::error(format!("{} is too short", check.quote(place, &text.0)));
            check.add(place, problem.expected("at least 10ms"));
        }
        it.check_window(check, written);
        match written.longest.given() {
            None => it.longest = it.longest.max(it.base),
            Some((place, _)) if it.longest < it.base => {
                check.add(place, Problem::error("shorter than ejection_time").expected("ejection_time at least"));
            }
            Some(_) => {}
        }
        Some(it)
    }

    /// Where the file does not say how far back is looked, it is as far as the intervals make sensible.
    fn check_window(&mut self, check: &Check<'_>, written: &WrittenOutlierConfig) {
        let longest = self.interval * INTERVALS_MAX;
        let Some((place, _)) = written.window.given() else {
            self.window = self.window.max(self.interval).min(longest);
            return;
        };
        if self.window < self.interval {
            check.add(place, Problem::error("shorter than the interval").expected("the interval at least"));
        } else if self.window > longest {
            let problem = Problem::error(format!("longer than {INTERVALS_MAX} intervals"));
            check.add(place, problem.expected("a shorter window, or a longer interval"));
        }
    }

    /// Warns of detection that can eject nothing, of `backends` that there are.
    pub(crate) fn warn_of_no_ejections(check: &Check<'_>, field: &Field<WrittenOutlierConfig>, backends: usize) {
        let Some((place, written)) = field.given().filter(|(_, written)| Self::says_enabled(written)) else { return };
        let warn = |place, what: &str, expected: &str| check.add(place, Problem::warning(what).expected(expected));
        if backends == 1 {
            let what = "ejects nothing: the last backend that is ready stays, and there is only one";
            return warn(place, what, "another backend");
        }
        if let Some((place, 0)) = written.max_ejected_percent.given() {
            return warn(place, "at 0 nothing is ejected", "1 to 100, or enabled = false");
        }
        let counts = [&written.consecutive_gateway, &written.consecutive_local, &written.failure_rate];
        let deviations = [&written.success_deviations, &written.latency_deviations];
        let is_off =
            counts.iter().all(|it| it.value() == Some(&0)) && deviations.iter().all(|it| it.value() == Some(&0.0));
        if is_off {
            return warn(place, "ejects nothing: each of its rules is off", "one that is not, or enabled = false");
        }
        let least = written.hosts.value().copied().unwrap_or(3);
        let positive = |field: &Field<f64>| field.given().filter(|(_, it)| **it > 0.0).map(|(place, _)| place);
        let compared =
            [written.hosts.place(), positive(&written.success_deviations), positive(&written.latency_deviations)];
        if let Some(place) = compared.into_iter().flatten().next()
            && i64::try_from(backends).is_ok_and(|backends| backends < least)
        {
            let what = format!("backends are not compared with each other: there are {backends}");
            let least = check.show_other(written.hosts.place(), least);
            warn(place, &what, &format!("{least} backends at least"));
        }
    }
}

impl Default for OutlierConfig {
    fn default() -> Self {
        Self::of_defaults()
    }
}
