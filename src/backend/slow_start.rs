//! Slow start: a backend that joins or returns takes its share little by little, so that caches fill, code is compiled and
//! pools grow before it has to bear all of it.
//!
//! The formula is Envoy's: of its weight a backend has `max(minimum, (max(t, 1 s) / window) ^ (1 / aggression))`, t being the
//! time since it came. As HAProxy does it, nothing starts slowly when the process does: all would, and none would be spared.
//!
//! A roster has whole weights and is built anew when one changes, so the curve is followed in [`WeightPercent`] steps: each a tenth of
//! what it has, one percent at least, and taken half-way, which keeps the weight within 5 % of the formula from 10 % of it on
//! (below that, within half a percent of the whole), and the share, which moves less than the weight, closer still. From 10 %
//! to all that takes 29 steps.
//!
//! A backend in slow start is not compared with others by latency (see [`super::outlier`]).

use std::time::{Duration, Instant};

pub use crate::config::SlowStartConfig as Settings;

/// A part of a weight in hundredths, from 1 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WeightPercent(u8);

impl WeightPercent {
    /// All of it.
    pub const FULL: Self = Self(100);

    /// So many hundredths; below 1 it is 1, above 100 it is 100.
    pub fn new(percent: u8) -> Self {
        Self(percent.clamp(1, 100))
    }

    /// How many hundredths.
    pub fn get(self) -> u8 {
        self.0
    }

    /// The next step up.
    fn next(self) -> Self {
        Self::new(self.0 + (self.0 / 10).max(1))
    }
}

impl Settings {
    /// The part of its weight that the formula gives a backend that came so long ago.
    pub fn factor(&self, since: Duration) -> f64 {
        if since >= self.window {
            return 1.0;
        }
        let time = since.as_secs_f64().max(1.0) / self.window.as_secs_f64();
        time.powf(1.0 / self.aggression()).clamp(self.minimum(), 1.0)
    }

    /// The step that stands for [`Settings::factor`] in a roster.
    pub fn percent(&self, since: Duration) -> WeightPercent {
        let factor = self.factor(since) * 100.0;
        let mut percent = self.first();
        while percent < WeightPercent::FULL && factor >= half_way(percent) {
            percent = percent.next();
        }
        percent
    }

    /// When the next step after [`Settings::percent`] at `since` is due, as a time since the backend came; `None` when it has
    /// all of its weight.
    pub fn next_step(&self, since: Duration) -> Option<Duration> {
        let percent = self.percent(since);
        if percent == WeightPercent::FULL {
            return None;
        }
        let due = self.window.mul_f64((half_way(percent) / 100.0).powf(self.aggression()));
        // The way there and back is rounded: later by a millisecond, so that the step has been reached for sure, and never
        // now, or a timer would spin.
        Some((due + Duration::from_millis(1)).max(since + Duration::from_millis(1)).min(self.window.max(since)))
    }

    /// The weights of a slow start from its beginning to its end, each with the time since when it is right.
    pub fn steps(&self) -> impl Iterator<Item = (Duration, WeightPercent)> {
        let mut next = Some(Duration::ZERO);
        std::iter::from_fn(move || {
            let since = next?;
            next = self.next_step(since);
            Some((since, self.percent(since)))
        })
    }

    fn first(&self) -> WeightPercent {
        WeightPercent::new((self.minimum() * 100.0).round() as u8)
    }

    fn minimum(&self) -> f64 {
        self.minimum.clamp(0.01, 1.0)
    }

    fn aggression(&self) -> f64 {
        self.aggression.max(0.01)
    }
}

/// Between a step and the next.
fn half_way(percent: WeightPercent) -> f64 {
    (f64::from(percent.0) + f64::from(percent.next().0)) / 2.0
}

/// Since when a backend starts slowly, if it does. Outlives reloads; a reload with another window applies from its next step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlowStart(Option<Instant>);

impl SlowStart {
    /// A backend that the process has had from its start: it has all of its weight.
    pub fn full() -> Self {
        Self(None)
    }

    /// Begins: the backend has joined, is healthy again, or its ejection is over.
    pub fn begin(&mut self, now: Instant) {
        self.0 = Some(now);
    }

    /// The part of its weight that it has now.
    pub fn percent(&self, settings: &Settings, now: Instant) -> WeightPercent {
        self.0.map_or(WeightPercent::FULL, |began| settings.percent(now.saturating_duration_since(began)))
    }

    /// Whether it has less than all of its weight.
    pub fn is_warming(&self, settings: &Settings, now: Instant) -> bool {
        self.percent(settings, now) < WeightPercent::FULL
    }

    /// When the roster is to be built anew because of it; `None` when it has all of its weight.
    pub fn next_step(&self, settings: &Settings, now: Instant) -> Option<Instant> {
        let began = self.0?;
        settings.next_step(now.saturating_duration_since(began)).map(|since| began + since)
    }
}

/// Follows whether a backend is ready, and begins its slow start when it becomes so: it has joined others, is healthy
/// again, its ejection is over, or it was given a weight. Control plane only; outlives reloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ramp {
    ready: bool,
    start: SlowStart,
}

impl Ramp {
    /// A backend of an upstream that begins: it has all of its weight.
    pub fn full() -> Self {
        Self { ready: true, start: SlowStart::full() }
    }

    /// A backend that joins others: it starts slowly when it is ready for the first time.
    pub fn joining() -> Self {
        Self { ready: false, start: SlowStart::full() }
    }

    /// Its slow start if it is ready at `now`.
    pub fn if_ready(&self, now: Instant) -> SlowStart {
        if self.ready { self.start } else { SlowStart(Some(now)) }
    }

    /// It is ready at `now`, or it is not.
    pub fn note(&mut self, ready: bool, now: Instant) {
        if ready {
            self.start = self.if_ready(now);
        }
        self.ready = ready;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn settings(window: u64, aggression: f64, minimum: f64) -> Settings {
        Settings { window: Duration::from_secs(window), aggression, minimum }
    }

    #[test]
    fn the_formula_is_envoys() {
        let line = settings(60, 1.0, 0.1);
        for (since, factor) in [(0.0, 0.1), (1.0, 0.1), (6.0, 0.1), (15.0, 0.25), (30.0, 0.5), (59.0, 59.0 / 60.0)] {
            assert!((line.factor(seconds(since)) - factor).abs() < 1e-9, "{since} s");
        }
        assert_eq!(line.factor(seconds(60.0)), 1.0);
        assert!((settings(60, 2.0, 0.1).factor(seconds(15.0)) - 0.5).abs() < 1e-9);
        assert!((settings(60, 0.5, 0.01).factor(seconds(30.0)) - 0.25).abs() < 1e-9);
        // The first second counts whole.
        assert!((settings(10, 1.0, 0.01).factor(seconds(0.0)) - 0.1).abs() < 1e-9);
        assert_eq!(settings(0, 1.0, 0.1).factor(seconds(0.0)), 1.0, "off");
        assert_eq!(settings(0, 1.0, 0.1).percent(seconds(0.0)), WeightPercent::FULL);
        assert_eq!(settings(0, 1.0, 0.1).next_step(seconds(0.0)), None);
    }

    #[test]
    fn the_steps_are_few_and_end_with_all() {
        let steps: Vec<_> = Settings::default().steps().map(|(_, percent)| percent.get()).collect();
        let expected = [
            10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 24, 26, 28, 30, 33, 36, 39, 42, 46, 50, 55, 60, 66, 72, 79,
            86, 94, 100,
        ];
        assert_eq!(steps, expected);
    }

    #[test]
    fn nothing_starts_slowly_with_the_process_and_what_comes_later_does() {
        let (now, settings) = (Instant::now(), Settings::default());
        let mut start = SlowStart::full();
        assert_eq!((start.percent(&settings, now), start.next_step(&settings, now)), (WeightPercent::FULL, None));
        start.begin(now);
        assert_eq!(start.percent(&settings, now), WeightPercent::new(10));
        assert!(start.is_warming(&settings, now));
        let mut rebuilt = 0;
        let mut at = now;
        while let Some(next) = start.next_step(&settings, at) {
            assert!(next > at);
            assert!(start.percent(&settings, next) > start.percent(&settings, at), "a step that changes nothing");
            at = next;
            rebuilt += 1;
        }
        assert_eq!(rebuilt, 29);
        assert!(at <= now + settings.window && !start.is_warming(&settings, at));
        assert!(start.is_warming(&Settings { window: Duration::from_secs(600), ..settings }, at));
    }

    #[test]
    fn who_becomes_ready_begins_and_who_stays_ready_goes_on() {
        let (now, settings) = (Instant::now(), Settings::default());
        let at = |s: u64| now + Duration::from_secs(s);
        let percent = |ramp: &Ramp, s| ramp.if_ready(at(s)).percent(&settings, at(s)).get();
        let mut ramp = Ramp::full();
        ramp.note(true, at(0));
        assert_eq!(percent(&ramp, 0), 100, "it was there from the beginning");
        ramp.note(false, at(1));
        assert_eq!(percent(&ramp, 100), 10, "it would begin now");
        ramp.note(true, at(100));
        ramp.note(true, at(110));
        assert_eq!(percent(&ramp, 115), 50, "it began at 100 s");
        ramp.note(false, at(116));
        ramp.note(true, at(117));
        assert_eq!(percent(&ramp, 117), 10, "anew");
        assert_eq!(percent(&Ramp::joining(), 5), 10);
    }

    proptest! {
        #[test]
        fn a_step_is_within_a_twentieth_of_the_formula(
            window in 1u64..3_600, aggression in 0.1f64..10.0, minimum in 0.01f64..1.0, part in 0f64..1.2
        ) {
            let settings = settings(window, aggression, minimum);
            let since = settings.window.mul_f64(part);
            let percent = f64::from(settings.percent(since).get());
            let formula = settings.factor(since) * 100.0;
            prop_assert!((percent - formula).abs() <= (formula * 0.05).max(0.5) + 1e-9, "{percent} for {formula}");
        }

        #[test]
        fn it_never_falls_and_each_step_comes_when_it_is_due(
            window in 1u64..3_600, aggression in 0.1f64..10.0, minimum in 0.01f64..1.0, part in 0f64..1.0
        ) {
            let settings = settings(window, aggression, minimum);
            let since = settings.window.mul_f64(part);
            let before = settings.percent(since);
            match settings.next_step(since) {
                None => prop_assert_eq!(before, WeightPercent::FULL),
                Some(next) => {
                    prop_assert!(next > since && next <= settings.window.max(since));
                    prop_assert!(settings.percent(next) >= before);
                    let almost = next.saturating_sub(Duration::from_millis(3)).max(since);
                    prop_assert_eq!(settings.percent(almost), before, "nothing changes until shortly before");
                }
            }
            prop_assert!(settings.steps().count() <= 60);
            prop_assert_eq!(settings.percent(settings.window), WeightPercent::FULL);
        }
    }
}
