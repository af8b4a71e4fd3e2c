//! Whether the process has more to do than it can: then new work is refused early, while refusing is still cheap.
//!
//! Three things are looked at: how late the event loop of a worker runs its timers, how many file descriptors are open, and how
//! much memory is in use. The first says something of one worker, and makes that one refuse; the others of the process. Each has
//! a threshold at which it begins and a lower one at which it ends, and has to be there for several looks in a row, so
//! that neither one long poll nor a level that trembles turns it on and off.
//!
//! This is the pure part; [`sample`] reads what it is told. [`Process`](crate::telemetry::process::Process) has it for all threads.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::config::OverloadConfig;

pub mod sample;

/// When new work is refused. Handed in with each look: the level outlives a reload that changes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OverloadSettings {
    /// How late a worker's timers may run, in milliseconds; `None`: not looked at.
    pub lag_ms: Option<Threshold>,
    /// The part of the descriptors that the process may open, 0 to 1; `None`: not looked at.
    pub descriptors: Option<Threshold>,
    /// The part of the memory that the process may use, 0 to 1; `None`: not looked at.
    pub memory: Option<Threshold>,
}

impl From<&OverloadConfig> for OverloadSettings {
    /// Looks in a row and where it ends are those of the default; it ends well below where it begins.
    fn from(config: &OverloadConfig) -> Self {
        let part = |percent: u8| {
            let above = f64::from(percent) / 100.0;
            // By a twentieth: with the default thresholds, at 0.9.
            Threshold { above, below: above * 0.95, rise: 1, fall: 1 }
        };
        let lag = |lag: Duration| {
            let above = lag.as_secs_f64() * 1_000.0;
            Threshold { above, below: above * 0.4, rise: 3, fall: 10 }
        };
        Self {
            lag_ms: config.lag.map(lag),
            descriptors: config.descriptors_percent.map(part),
            memory: config.memory_percent.map(part),
        }
    }
}

/// Where refusing begins and where it ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// It begins at this or above.
    pub above: f64,
    /// It ends below this.
    pub below: f64,
    /// Looks in a row that it takes to begin.
    pub rise: u32,
    /// Looks in a row that it takes to end.
    pub fall: u32,
}

/// What there is too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The worker's timers are late.
    Lag,
    /// Nearly all file descriptors are open.
    Descriptors,
    /// Nearly all memory is in use.
    Memory,
}

impl Cause {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Lag, Self::Descriptors, Self::Memory];

    /// Its name in metrics, logs and events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lag => "lag",
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
        }
    }
}

/// New work is refused, or no longer, for a cause.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OverloadChange {
    /// The cause.
    pub cause: Cause,
    /// By which worker; `None`: by all.
    pub worker: Option<usize>,
    /// Whether it is refused from now.
    pub refuses: bool,
    /// What was seen: milliseconds for [`Cause::Lag`], else a part of what may be.
    pub seen: f64,
}

/// What the process uses of what it may, 0 to 1 and more. `None` where that is not known: it then changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Open file descriptors.
    pub descriptors: Option<f64>,
    /// Memory.
    pub memory: Option<f64>,
}

/// The level of the process, shared by all workers. Outlives reloads.
#[derive(Debug)]
pub struct Overload {
    descriptors: OverloadLevel,
    memory: OverloadLevel,
    /// One a worker. They share lines: read with every request, but written only while a worker lags.
    lags: Box<[OverloadLevel]>,
}

impl Overload {
    /// Nothing is refused yet.
    pub fn new(workers: usize) -> Self {
        Self {
            descriptors: OverloadLevel::default(),
            memory: OverloadLevel::default(),
            lags: (0..workers.max(1)).map(|_| OverloadLevel::default()).collect(),
        }
    }

    /// Why new work is refused at a worker, if it is. Three loads of lines that are rarely written.
    pub fn refuses(&self, worker: usize) -> Option<Cause> {
        if self.lag(worker).is_over() {
            return Some(Cause::Lag);
        }
        self.refuses_everywhere()
    }

    /// Why new work is refused at all workers, if it is.
    pub fn refuses_everywhere(&self) -> Option<Cause> {
        if self.memory.is_over() {
            Some(Cause::Memory)
        } else if self.descriptors.is_over() {
            Some(Cause::Descriptors)
        } else {
            None
        }
    }

    /// How many workers refuse new work for that cause.
    pub fn refusing(&self, cause: Cause) -> usize {
        let all = |gauge: &OverloadLevel| if gauge.is_over() { self.lags.len() } else { 0 };
        match cause {
            Cause::Lag => self.lags.iter().filter(|gauge| gauge.is_over()).count(),
            Cause::Descriptors => all(&self.descriptors),
            Cause::Memory => all(&self.memory),
        }
    }

    /// Takes in by how much a worker's timer was late. By that worker only.
    pub fn lagged(&self, worker: usize, lag: Duration, settings: &OverloadSettings) -> Option<OverloadChange> {
        let seen = lag.as_secs_f64() * 1_000.0;
        let refuses = self.lag(worker).look(Some(seen), settings.lag_ms.as_ref())?;
        Some(OverloadChange { cause: Cause::Lag, worker: Some(worker), refuses, seen })
    }

    /// Takes in what the process uses. By one thread only.
    pub fn used(&self, usage: Usage, settings: &OverloadSettings) -> [Option<OverloadChange>; 2] {
        let look = |cause, gauge: &OverloadLevel, seen: Option<f64>, threshold: &Option<Threshold>| {
            let refuses = gauge.look(seen, threshold.as_ref())?;
            Some(OverloadChange { cause, worker: None, refuses, seen: seen.unwrap_or_default() })
        };
        [
            look(Cause::Descriptors, &self.descriptors, usage.descriptors, &settings.descriptors),
            look(Cause::Memory, &self.memory, usage.memory, &settings.memory),
        ]
    }

    fn lag(&self, worker: usize) -> &OverloadLevel {
        &self.lags[worker.min(self.lags.len() - 1)]
    }
}

/// A level with hysteresis, which one thread writes and any may read: the lowest bit is whether it is over, the rest how many
/// looks in a row have said otherwise.
#[derive(Debug, Default)]
struct OverloadLevel(AtomicU32);

impl OverloadLevel {
    fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed) & 1 == 1
    }

    /// Whether it is over from now, if that has changed. Without a threshold it is not.
    fn look(&self, seen: Option<f64>, threshold: Option<&Threshold>) -> Option<bool> {
        let word = self.0.load(Ordering::Relaxed);
        let (over, streak) = (word & 1 == 1, word >> 1);
        let (against, needed) = match (threshold, seen) {
            (None, _) => (over, 0),
            (Some(_), None) => return None,
            (Some(threshold), Some(seen)) if over => (seen < threshold.below, threshold.fall),
            (Some(threshold), Some(seen)) => (seen >= threshold.above, threshold.rise),
        };
        let streak = if against { (streak + 1).min(u32::MAX >> 1) } else { 0 };
        let changes = against && streak >= needed;
        let next = if changes { u32::from(!over) } else { u32::from(over) | streak << 1 };
        if next != word {
            self.0.store(next, Ordering::Relaxed);
        }
        changes.then_some(!over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn settings() -> OverloadSettings {
        let config = OverloadConfig { lag: Some(MS(50)), descriptors_percent: Some(95), memory_percent: Some(95) };
        OverloadSettings::from(&config)
    }

    fn lags(overload: &Overload, worker: usize, lags: &[u64]) -> Vec<Option<bool>> {
        let settings = settings();
        let look = |&ms| overload.lagged(worker, MS(ms), &settings).map(|change| change.refuses);
        lags.iter().map(look).collect()
    }

    #[test]
    fn a_worker_that_lags_for_three_looks_refuses_until_it_has_caught_up() {
        let overload = Overload::new(2);
        assert_eq!(lags(&overload, 1, &[50, 500, 49, 50, 50]), [None; 5]);
        assert_eq!(lags(&overload, 1, &[50]), [Some(true)]);
        assert_eq!((overload.refuses(0), overload.refuses(1)), (None, Some(Cause::Lag)));
        assert_eq!(overload.refuses_everywhere(), None);
        assert_eq!(lags(&overload, 1, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 20]), [None; 10]);
        assert_eq!(lags(&overload, 1, &[0; 9]), [None; 9]);
        assert_eq!(lags(&overload, 1, &[19]), [Some(false)]);
        assert_eq!(overload.refuses(1), None);
    }

    #[test]
    fn descriptors_and_memory_make_all_refuse() {
        let (overload, settings) = (Overload::new(2), settings());
        let used = |descriptors, memory| {
            overload.used(Usage { descriptors: Some(descriptors), memory: Some(memory) }, &settings);
            overload.refuses(1)
        };
        assert_eq!(used(0.949, 0.949), None);
        assert_eq!(used(0.95, 0.5), Some(Cause::Descriptors));
        assert_eq!(used(0.90, 0.96), Some(Cause::Memory));
        assert_eq!(used(0.89, 0.91), Some(Cause::Memory));
        assert_eq!(used(0.89, 0.89), None);
    }

    #[test]
    fn a_change_says_what_was_seen() {
        let (overload, settings) = (Overload::new(1), settings());
        let [descriptors, memory] = overload.used(Usage { descriptors: Some(0.97), memory: None }, &settings);
        let expected = OverloadChange { cause: Cause::Descriptors, worker: None, refuses: true, seen: 0.97 };
        assert_eq!((descriptors, memory), (Some(expected), None));
    }

    #[test]
    fn what_is_not_known_changes_nothing_and_what_is_turned_off_ends() {
        let (overload, settings) = (Overload::new(1), settings());
        overload.used(Usage { memory: Some(1.0), ..Usage::default() }, &settings);
        assert_eq!(overload.used(Usage::default(), &settings), [None, None]);
        assert_eq!(overload.refuses(0), Some(Cause::Memory));
        let off = OverloadSettings { memory: None, ..settings };
        let [_, change] = overload.used(Usage::default(), &off);
        assert!(change.is_some_and(|change| !change.refuses));
        assert_eq!(overload.refuses(0), None);
    }

    proptest! {
        #[test]
        fn a_level_changes_only_after_as_many_looks_in_a_row(
            rise in 1_u32..5,
            fall in 1_u32..5,
            looks in prop::collection::vec(0_u32..10, 1..100),
        ) {
            let threshold = Threshold { above: 7.0, below: 3.0, rise, fall };
            let gauge = OverloadLevel::default();
            let (mut over, mut since) = (false, 0);
            for (index, &seen) in looks.iter().enumerate() {
                let changed = gauge.look(Some(f64::from(seen)), Some(&threshold));
                let needed = if over { fall } else { rise } as usize;
                let against = |&seen: &u32| if over { seen < 3 } else { seen >= 7 };
                let run = looks[since..=index].iter().rev().take_while(|seen| against(seen)).count();
                prop_assert_eq!(changed, (run >= needed).then_some(!over));
                if changed.is_some() {
                    (over, since) = (!over, index + 1);
                }
                prop_assert_eq!(gauge.is_over(), over);
            }
        }
    }
}
