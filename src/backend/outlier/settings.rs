use std::time::Duration;

pub use crate::config::OutlierConfig as Settings;

impl Settings {
    /// Intervals that make up a window: at least one, at most 64.
    pub(super) fn slots(&self) -> usize {
        let slots = self.window.as_secs_f64() / self.interval.as_secs_f64().max(0.001);
        (slots.round() as usize).clamp(1, 64)
    }

    /// How long the `times`-th ejection in a row lasts, before jitter.
    pub(super) fn duration(&self, times: u32) -> Duration {
        self.base.saturating_mul(times).min(self.longest.max(self.base))
    }

    /// The number of ejections from which on they do not get longer: more are not remembered, or a backend that was ill for
    /// a day would take another to be forgiven.
    pub(super) fn most_times(&self) -> u32 {
        let times = self.longest.as_secs_f64() / self.base.as_secs_f64().max(0.001);
        (times.ceil() as u32).max(1)
    }
}
