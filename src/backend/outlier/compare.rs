//! Which backends are worse than the others: by success rate, and by latency.
//!
//! # The rule for latency
//!
//! Of each backend's latencies to first byte the logarithms are summed, so that its mean and the mean's standard error are
//! known (x and e, to the base of 2). Over the backends of a group their median M and the median absolute deviation D are
//! taken. A backend is slower than the others where all of these hold, in several intervals in succession:
//!
//! 1. x - M is at least 3.5 times the root of (1.4826 D)² + e² + the error of M, squared; 1.4826 D is what the standard
//!    deviation would be if nothing were wrong, and is taken to be a quarter (log₂ 1.25) at least;
//! 2. it is 3 times slower than the median, and 10 ms slower;
//! 3. the last interval by itself points the same way, so that one bad moment is not counted as often as the window goes
//!    over it.
//!
//! Why logarithms: slowness multiplies; and one answer in a hundred that takes a thousand times as long, which any service
//! has, shifts their mean by a tenth, where it would multiply a plain mean by ten. A median of the latencies bears that as
//! well, but where half of the requests are of one kind and half of another, the medians of identical backends fall here
//! and there by chance; a mean does not, and its error says how far it may be off. Why the median and its deviation between
//! backends: of three of which one is slow, mean and standard deviation are made by the slow one, which is then 1.4 deviations
//! away and no more. The median is the majority's, so at most a minority can be slow, a fast minority makes no backend slow,
//! and two pairs that differ are no fault (D is half of the distance). Two backends are never compared.
//!
//! Not looked at: errors (often fast), backends in slow start (often slow, and sent back they would only begin again), and
//! backends of other tiers and zones, which may be far away.

use std::time::Duration;

use super::{OutlierSlot, Reason, Settings};

/// A backend to compare: the intervals of its window, the youngest first.
#[derive(Clone, Debug)]
pub(super) struct ComparedBackend {
    pub(super) index: usize,
    pub(super) slots: Vec<OutlierSlot>,
}

/// What a comparison finds of a backend. A backend without a finding did well, or had too little traffic.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Finding {
    pub(super) index: usize,
    /// How bad, among findings of one rule.
    pub(super) severity: f64,
    pub(super) reason: Reason,
    /// What the last interval by itself says.
    pub(super) last: Last,
}

/// Whether the last interval by itself points the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    Confirms,
    Contradicts,
    /// Too little traffic.
    Silent,
}

/// What the last interval must hold to say anything.
const LAST_VOLUME: u64 = 3;

impl Last {
    fn of(volume: u64, confirms: bool) -> Self {
        match (volume < LAST_VOLUME, confirms) {
            (true, _) => Self::Silent,
            (_, true) => Self::Confirms,
            (_, false) => Self::Contradicts,
        }
    }
}

/// Fewer cannot be told apart, whatever the settings say.
const HOSTS_MIN: usize = 3;

/// Compares over the last interval those that have enough traffic in it, then over the last two, and so on, until something
/// is found of a backend: what is plain shows at once, and what takes more traffic to tell from chance a little later. All
/// that are compared are compared over the same time.
///
/// That something was found of a backend that is well again does no harm: then the last interval contradicts.
fn rounds(
    members: &[ComparedBackend],
    settings: &Settings,
    enough: impl Fn(&OutlierSlot) -> bool,
    mut compare: impl FnMut(&[(&ComparedBackend, OutlierSlot)], &mut dyn FnMut(Finding)),
) -> Vec<Finding> {
    let hosts = settings.hosts.max(HOSTS_MIN);
    let mut findings: Vec<Finding> = Vec::new();
    let mut sums = vec![OutlierSlot::default(); members.len()];
    for depth in 0..settings.slots() {
        for (sum, member) in sums.iter_mut().zip(members) {
            if let Some(slot) = member.slots.get(depth) {
                sum.add(slot);
            }
        }
        let compared: Vec<_> = members.iter().zip(sums.iter().copied()).filter(|(_, sum)| enough(sum)).collect();
        if compared.len() >= hosts {
            compare(&compared, &mut |finding| {
                if findings.iter().all(|other| other.index != finding.index) {
                    findings.push(finding);
                }
            });
        }
    }
    findings
}

/// The backends that answer more slowly than the others.
pub(super) fn slower(members: &[ComparedBackend], settings: &Settings) -> Vec<Finding> {
    if settings.latency_deviations <= 0.0 {
        return Vec::new();
    }
    let enough = |slot: &OutlierSlot| slot.timed >= settings.latency_volume.max(2);
    rounds(members, settings, enough, |compared, found| {
        let speeds: Vec<_> = compared.iter().map(|(_, sum)| Speed::of(sum)).collect();
        let reference = Baseline::of(&speeds);
        for ((member, _), speed) in compared.iter().zip(&speeds) {
            reference.finding(member, speed, settings).into_iter().for_each(&mut *found);
        }
    })
}

/// A backend's latencies: logarithms of microseconds to the base of 2.
#[derive(Clone, Copy, Debug)]
struct Speed {
    mean: f64,
    /// The standard error of the mean.
    error: f64,
    answers: u64,
}

impl Speed {
    /// There must be two answers at least.
    fn of(slot: &OutlierSlot) -> Self {
        let n = slot.timed as f64;
        let mean = slot.logs / n;
        let variance = (slot.squares / n - mean * mean).max(0.0) * n / (n - 1.0);
        Self { mean, error: (variance / n).sqrt(), answers: slot.timed }
    }
}

/// What all of a group have in common.
#[derive(Debug)]
struct Baseline {
    median: f64,
    /// The standard deviation that the median absolute deviation stands for.
    deviation: f64,
    /// The standard error of the median.
    error: f64,
}

/// Makes a median absolute deviation of normally distributed values their standard deviation: 1 / Φ⁻¹(3/4).
const MAD_TO_DEVIATION: f64 = 1.4826;

/// The standard error of a median is that much larger than a mean's: √(π/2).
const MEDIAN_TO_MEAN: f64 = 1.2533;

/// Identical machines differ by a quarter: log₂ 1.25.
const DEVIATION_MIN: f64 = 0.3219;

impl Baseline {
    fn of(speeds: &[Speed]) -> Self {
        let middle = median(speeds.iter().map(|speed| speed.mean).collect());
        let spread = median(speeds.iter().map(|speed| (speed.mean - middle).abs()).collect());
        let error = median(speeds.iter().map(|speed| speed.error).collect());
        Self {
            median: middle,
            deviation: (spread * MAD_TO_DEVIATION).max(DEVIATION_MIN),
            error: error * MEDIAN_TO_MEAN / (speeds.len() as f64).sqrt(),
        }
    }

    fn finding(&self, member: &ComparedBackend, speed: &Speed, settings: &Settings) -> Option<Finding> {
        let distance = speed.mean - self.median;
        let doubt = (self.deviation.powi(2) + speed.error.powi(2) + self.error.powi(2)).sqrt();
        let deviations = distance / doubt;
        let ratio = settings.latency_ratio.max(1.0).log2();
        let [typical, middle] = [speed.mean, self.median].map(|log| Duration::from_secs_f64(log.exp2() * 1e-6));
        let apart = deviations >= settings.latency_deviations
            && distance >= ratio
            && typical.saturating_sub(middle) >= settings.latency_excess;
        apart.then(|| {
            let last = member.slots.first().copied().unwrap_or_default();
            let confirms = last.logs >= (self.median + ratio) * last.timed as f64;
            Finding {
                index: member.index,
                severity: deviations,
                reason: Reason::Latency { typical, median: middle, deviations, answers: speed.answers },
                last: Last::of(last.timed, confirms),
            }
        })
    }
}

/// The middle one, or the mean of the middle two. There must be one at least.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 }
}

/// The backends that succeed less often than the others.
///
/// A backend's rate r is compared with the mean m and the standard deviation s of the *others'* rates: with its own among
/// them, it would hide behind itself; of five, none can be more than two deviations off. It is an outlier where r is below m
/// by k times the root of s² and the variance that chance gives it (with p the rate of all, n its attempts and h the others,
/// p (1 - p) / n × (1 + 1/h)), and below m by the gap, in several intervals in succession.
pub(super) fn failing(members: &[ComparedBackend], settings: &Settings) -> Vec<Finding> {
    if settings.success_deviations <= 0.0 {
        return Vec::new();
    }
    let enough = |slot: &OutlierSlot| slot.attempts >= settings.success_volume.max(1);
    rounds(members, settings, enough, |compared, found| {
        let rates: Vec<_> = compared.iter().map(|(_, sum)| rate(sum)).collect();
        let [attempts, errors] = compared
            .iter()
            .fold([0, 0], |[attempts, errors], (_, sum)| [attempts + sum.attempts, errors + sum.errors])
            .map(|count| count as f64);
        let all = 1.0 - errors / attempts;
        let (sum, squares) = rates.iter().fold((0.0, 0.0), |(sum, squares), rate| (sum + rate, squares + rate * rate));
        let others = (rates.len() - 1) as f64;
        for ((member, slot), &rate) in compared.iter().zip(&rates) {
            let mean = (sum - rate) / others;
            let spread = ((squares - rate * rate) / others - mean * mean).max(0.0);
            let chance = all * (1.0 - all) / slot.attempts as f64 * (1.0 + 1.0 / others);
            let bound = mean - settings.success_deviations * (spread + chance).sqrt();
            if rate < bound && rate <= mean - settings.success_gap {
                let last = member.slots.first().copied().unwrap_or_default();
                let confirms = last.attempts > 0 && self::rate(&last) <= mean - settings.success_gap;
                found(Finding {
                    index: member.index,
                    severity: mean - rate,
                    reason: Reason::SuccessRate { rate, others: mean, bound, attempts: slot.attempts },
                    last: Last::of(last.attempts, confirms),
                });
            }
        }
    })
}

/// The part of the attempts that came to something other than a 5xx or nothing.
fn rate(slot: &OutlierSlot) -> f64 {
    1.0 - slot.errors as f64 / slot.attempts as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: [usize; 0] = [];

    /// Backends of which each has answered so often in each interval, with these latencies in turn.
    fn members(latencies_ms: &[&[f64]], answers: u64) -> Vec<ComparedBackend> {
        let member = |(index, latencies): (usize, &&[f64])| {
            let mut slot = OutlierSlot::default();
            for latency in latencies.iter().cycle().take(answers as usize) {
                let log = (latency * 1e3).log2();
                slot.add(&OutlierSlot {
                    attempts: 1,
                    timed: 1,
                    logs: log,
                    squares: log * log,
                    ..OutlierSlot::default()
                });
            }
            ComparedBackend { index, slots: vec![slot] }
        };
        latencies_ms.iter().enumerate().map(member).collect()
    }

    fn slow(latencies_ms: &[&[f64]]) -> Vec<usize> {
        let findings = slower(&members(latencies_ms, 100), &Settings::default());
        assert!(findings.iter().all(|finding| finding.last == Last::Confirms));
        findings.iter().map(|finding| finding.index).collect()
    }

    #[test]
    fn one_of_three_twenty_times_slower_is_slow() {
        assert_eq!(slow(&[&[5.0], &[100.0], &[5.0]]), [1]);
        assert_eq!(slow(&[&[5.0, 4.0, 9.0], &[100.0, 80.0, 180.0], &[5.5, 4.5, 8.0]]), [1]);
        assert_eq!(slow(&[&[1.0], &[1.0], &[1.0], &[1.0], &[20.0]]), [4]);
    }

    #[test]
    fn what_is_uniform_or_of_two_kinds_is_nobodys_fault() {
        assert_eq!(slow(&[&[900.0], &[901.0], &[899.0]]), NOBODY, "all slow");
        assert_eq!(slow(&[&[5.0], &[100.0]]), NOBODY, "of two nobody knows which");
        assert_eq!(slow(&[&[5.0], &[5.0], &[100.0], &[100.0]]), NOBODY, "two and two");
        assert_eq!(slow(&[&[5.0], &[100.0], &[100.0]]), NOBODY, "a fast one makes the others slow");
        assert_eq!(slow(&[&[5.0], &[20.0], &[100.0]]), NOBODY, "all different");
    }

    #[test]
    fn a_minority_is_slow() {
        assert_eq!(slow(&[&[5.0], &[5.0], &[5.0], &[100.0], &[100.0]]), [3, 4]);
    }

    #[test]
    fn microseconds_and_little_differences_do_not_count() {
        assert_eq!(slow(&[&[0.05], &[0.05], &[1.0]]), NOBODY, "twenty times, but below 10 ms");
        assert_eq!(slow(&[&[50.0], &[50.0], &[140.0]]), NOBODY, "below three times");
        assert_eq!(slow(&[&[50.0], &[50.0], &[160.0]]), [2], "and above");
    }

    #[test]
    fn rare_slow_answers_do_not_make_a_backend_slow() {
        let mut latencies = vec![5.0; 20];
        latencies[7] = 5_000.0;
        assert_eq!(slow(&[&[5.0], &[5.0], &latencies]), NOBODY);
        assert_eq!(
            slow(&[&[5.0, 900.0], &[5.0, 900.0], &[5.0, 900.0, 900.0]]),
            NOBODY,
            "a mix of kinds that is a bit off"
        );
    }

    #[test]
    fn too_little_traffic_is_not_compared_and_a_longer_time_is_looked_at() {
        let settings = Settings::default();
        assert_eq!(slower(&members(&[&[5.0], &[5.0], &[100.0]], 29), &settings), []);
        let mut members = members(&[&[5.0], &[5.0], &[100.0]], 10);
        for member in &mut members {
            member.slots = vec![member.slots[0]; 2];
        }
        assert_eq!(slower(&members, &settings), []);
        for member in &mut members {
            member.slots.push(member.slots[0]);
        }
        let found = slower(&members, &settings);
        assert!(
            matches!(found[..], [Finding { index: 2, reason: Reason::Latency { answers: 30, .. }, .. }]),
            "{found:?}"
        );
    }

    #[test]
    fn who_is_well_again_is_told_by_the_last_interval() {
        let mut members = members(&[&[5.0], &[5.0], &[100.0]], 50);
        let good = members[0].slots[0];
        // It was slow before, and is not any more.
        members[2].slots.insert(0, good);
        members[0].slots.push(good);
        members[1].slots.push(good);
        let found = slower(&members, &Settings::default());
        assert!(found.iter().all(|finding| finding.last == Last::Contradicts), "{found:?}");
    }

    #[test]
    fn the_last_interval_must_point_the_same_way() {
        let mut members = members(&[&[5.0], &[5.0], &[1_000.0]], 28);
        let quick = OutlierSlot { attempts: 4, timed: 4, logs: 4.0 * 5_000f64.log2(), ..OutlierSlot::default() };
        for member in &mut members {
            member.slots.insert(0, quick);
        }
        assert_eq!(slower(&members, &Settings::default())[0].last, Last::Contradicts);
        for member in &mut members {
            member.slots[0] = OutlierSlot::default();
            member.slots.push(quick);
        }
        assert_eq!(slower(&members, &Settings::default())[0].last, Last::Silent);
    }

    fn failed(errors: &[u64], attempts: u64) -> Vec<usize> {
        let members: Vec<_> = errors
            .iter()
            .enumerate()
            .map(|(index, &errors)| ComparedBackend {
                index,
                slots: vec![OutlierSlot { attempts, errors, ..OutlierSlot::default() }],
            })
            .collect();
        failing(&members, &Settings::default()).iter().map(|finding| finding.index).collect()
    }

    #[test]
    fn who_fails_more_often_than_the_others_is_found() {
        assert_eq!(failed(&[0, 100, 0], 200), [1], "half of them, among three");
        assert_eq!(failed(&[0, 0, 0, 0, 30], 100), [4]);
        assert_eq!(failed(&[0, 25], 50), NOBODY, "among two");
        assert_eq!(failed(&[0, 24, 0], 49), NOBODY, "too few");
        assert_eq!(failed(&[50, 52, 48], 100), NOBODY, "all alike");
        assert_eq!(failed(&[0, 9, 0], 100), NOBODY, "below the gap");
        assert_eq!(failed(&[10, 45, 10, 50, 12, 48], 100), NOBODY, "of two kinds");
    }

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
