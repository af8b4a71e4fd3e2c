//! What decides who is picked, beside the strategy: outlier detection, slow start, tiers and zones.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// `[upstream.NAME.outlier_detection]`: what counts as an outlier, and for how long it is ejected. Handed to the machine with
/// each call, so that a reload with other numbers applies at once and loses no state.
///
/// Where a number of 0 makes no sense as a limit, it switches the rule off.
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierConfig {
    /// Responses 502, 503 and 504 in succession after which a backend is ejected; 0 is off. 5, as Envoy has it.
    pub consecutive_gateway: u32,
    /// Attempts in succession that failed before a response (no connection, reset, too late); 0 is off. 5.
    pub consecutive_local: u32,
    /// Whether any other 5xx counts in that succession as well. No: a 500 is the application's answer to a request, and
    /// another backend would mostly give the same one. Such answers still count against a backend that gives more of
    /// them than the others do.
    pub count_server_errors: bool,

    /// How often the rules below are looked at. 2 s: a slow backend is out in six; Envoy takes 10 s and is that much later.
    pub interval: Duration,
    /// How far back they look for enough traffic. 20 s. What a busy backend does shows in its last interval already.
    pub window: Duration,

    /// The part of the attempts, gateway errors and local ones together, from which on a backend is ejected whatever the
    /// others do; 0 is off. 0.5.
    pub failure_rate: f64,
    /// Attempts that this takes. 50, as Envoy has it.
    pub failure_volume: u64,

    /// How many standard deviations below the others' success rate is an outlier; 0 is off. 4: Envoy's 1.9 ejects one of
    /// 20 identical backends every few intervals.
    pub success_deviations: f64,
    /// How much lower the rate must be besides. 0.1.
    pub success_gap: f64,
    /// Attempts that a backend needs in order to be compared. 50.
    pub success_volume: u64,
    /// Intervals in succession for which it must be so. 2.
    pub success_intervals: u32,

    /// How many (robust) standard deviations above the median of the others' logarithms of latency is an outlier; 0 is
    /// off. 3.5, which is what Iglewicz and Hoaglin recommend for this measure.
    pub latency_deviations: f64,
    /// How many times slower than the median it must be besides. 3: below that, it may be a matter of hardware.
    pub latency_ratio: f64,
    /// How much slower it must be besides. 10 ms: nobody notices less, and noise is below it.
    pub latency_excess: Duration,
    /// Answers that a backend needs in order to be compared. 30.
    pub latency_volume: u64,
    /// Intervals in succession for which it must be so. 3: a pause for collecting garbage is over by then.
    pub latency_intervals: u32,

    /// Backends that a comparison takes, for success rate and latency. 3, and never fewer: of two that differ nobody can
    /// say which one is the outlier.
    pub hosts: usize,

    /// How long the first ejection lasts; the n-th in a row takes n times as long. 30 s.
    pub base: Duration,
    /// The longest. 300 s.
    pub longest: Duration,
    /// By which part an ejection is made shorter or longer at random, so that what was ejected together does not come
    /// back together. 0.1.
    pub jitter: f64,
    /// How long a backend must have served without a fault until one ejection is forgiven. 30 s.
    pub forgive: Duration,
    /// How many of the upstream's backends may be ejected at a time, in percent, but one at least where there are two.
    /// 50. 0 ejects nobody.
    pub max_ejected_percent: u32,
}

impl Default for OutlierConfig {
    fn default() -> Self {
        Self {
            consecutive_gateway: 5,
            consecutive_local: 5,
            count_server_errors: false,
            interval: Duration::from_secs(2),
            window: Duration::from_secs(20),
            failure_rate: 0.5,
            failure_volume: 50,
            success_deviations: 4.0,
            success_gap: 0.1,
            success_volume: 50,
            success_intervals: 2,
            latency_deviations: 3.5,
            latency_ratio: 3.0,
            latency_excess: Duration::from_millis(10),
            latency_volume: 30,
            latency_intervals: 3,
            hosts: 3,
            base: Duration::from_secs(30),
            longest: Duration::from_secs(300),
            jitter: 0.1,
            forgive: Duration::from_secs(30),
            max_ejected_percent: 50,
        }
    }
}

/// `[upstream.NAME.slow_start]`: how a backend that joins or returns starts.
#[derive(Clone, Debug, PartialEq)]
pub struct SlowStartConfig {
    /// How long it takes until it has its full weight. 30 s. 0 is off.
    pub window: Duration,
    /// Above 1 it rises steeply at first, below 1 steeply at last. 1, a straight line, as Envoy has it.
    pub aggression: f64,
    /// The part of its weight that it has at least: with nothing it would never get warm. 0.1, as Envoy has it.
    pub minimum: f64,
}

impl Default for SlowStartConfig {
    fn default() -> Self {
        Self { window: Duration::from_secs(30), aggression: 1.0, minimum: 0.1 }
    }
}

/// How the backends of an upstream are sorted into tiers, and which of them are preferred.
#[derive(Clone, Debug, PartialEq)]
pub struct TiersConfig {
    /// How much a tier can bear more than it must, in percent of the latter. 140, as Envoy has it; not below 100.
    pub overprovisioning_percent: u32,
    /// Below which part of ready backends a tier is in panic, in percent. 50, as Envoy has it; 0 is never.
    pub panic_percent: u32,
    /// Prefer backends of the proxy's zone. Not by default.
    pub zones: Option<ZonesConfig>,
}

impl Default for TiersConfig {
    fn default() -> Self {
        Self { overprovisioning_percent: 140, panic_percent: 50, zones: None }
    }
}

/// Preference of the proxy's own zone.
#[derive(Clone, Debug, PartialEq)]
pub struct ZonesConfig {
    /// Where this process is.
    pub local: Arc<str>,
    /// The part of all load that arises in each zone, in any unit, where it is known. A zone that is not named brings none. Empty
    /// means: the same in each zone that has backends.
    pub load: BTreeMap<Arc<str>, u32>,
    /// Ready backends of a tier that it takes. 6, as Envoy has it: with fewer, a zone of one or two would go up and down with
    /// each of them.
    pub backends_min: usize,
}

impl ZonesConfig {
    /// Prefers `local`, the load being the same in all zones.
    pub fn new(local: impl Into<Arc<str>>) -> Self {
        Self { local: local.into(), load: BTreeMap::new(), backends_min: 6 }
    }
}

/// Where a backend stands among those of its upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Its tier.
    pub tier: Tier,
    /// Where it is, if known.
    pub zone: Option<Arc<str>>,
}

/// Backends that are asked before others, or after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The lower the number, the earlier.
    Priority(u16),
    /// Behind all priorities.
    Backup,
}

impl Default for Tier {
    fn default() -> Self {
        Self::Priority(0)
    }
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Priority(priority) => priority.fmt(f),
            Self::Backup => f.write_str("backup"),
        }
    }
}
