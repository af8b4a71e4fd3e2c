use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Instant;

use super::compare::{self, ComparedBackend, Finding, Last};
use super::{Ejection, EjectionEnd, History, Reason, Settings, Streaks, Totals};

/// A backend of the upstream that is judged.
#[derive(Debug)]
pub struct Subject<'a> {
    /// What was seen and decided so far.
    pub history: &'a mut History,
    /// Everything noted of it until now.
    pub totals: Totals,
    /// Its successions of failures as they stand now.
    pub streaks: Streaks,
    /// Whether it would be ready were it not for an ejection: healthy or not checked, of some weight, not drained.
    pub in_service: bool,
    /// Whether it is in slow start: then its latency is not compared.
    pub warming: bool,
    /// The group that it is compared with: one number for each tier and zone.
    pub peers: u64,
}

/// What gives rise to a judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// An interval ([`Settings::interval`]) is over: all rules are looked at.
    Interval,
    /// Something else, a streak that has become too long or an ejection that ends: rates and latencies are not looked at.
    Between,
}

/// What is to be done. The histories have it already.
#[derive(Clone, Debug, PartialEq)]
pub enum OutlierAction {
    /// Take it out of the roster, forget its streaks, tell.
    Eject {
        /// Which subject.
        index: usize,
        /// Until when.
        until: Instant,
        /// Why.
        reason: Reason,
    },
    /// It is taken back: forget its streaks, begin its slow start, put it into the roster, tell.
    Uneject {
        /// Which subject.
        index: usize,
        /// What has ended.
        ejection: Ejection,
        /// Why.
        end: EjectionEnd,
    },
    /// It can be ejected again, which it could not be before: forget its streaks.
    Begin {
        /// Which subject.
        index: usize,
    },
}

/// Judges all backends of an upstream: which are ejected, and which ejections are over. `random` gives any numbers.
///
/// Never ejects the last one that is ready, nor more than [`Settings::max_ejected_percent`]. Where more deserve it, those that
/// fail come before those that are worse than others, and slow ones last. Of the slow ones only one is ejected at a time:
/// what the others bear without it has to be seen first.
///
/// No backend is ejected for what was before its last success, or before it could have been ejected: when another one comes back and
/// so leaves a place, or it comes back itself, it begins anew.
pub fn judge(
    subjects: &mut [Subject<'_>],
    settings: &Settings,
    occasion: Occasion,
    now: Instant,
    random: &mut dyn FnMut() -> u64,
) -> Vec<OutlierAction> {
    let mut actions = end_ejections(subjects, now);
    note_liable(subjects, settings, now, &mut actions);
    let mut suspects = streaks(subjects, settings);
    if occasion == Occasion::Interval {
        for subject in subjects.iter_mut() {
            subject.history.close_interval(subject.totals, settings, now);
        }
        failure_rates(subjects, settings, &mut suspects);
        compare(subjects, settings, &mut suspects);
    }
    suspects.sort_by(Suspect::worst_first);
    let mut places = Places::of(subjects, settings);
    let mut suspected = vec![false; subjects.len()];
    for suspect in suspects {
        suspected[suspect.index] = true;
        let history = &mut *subjects[suspect.index].history;
        if history.is_ejected() || !places.take(suspect.rule) {
            continue;
        }
        let until = history.eject(suspect.reason.clone(), settings, now, random());
        actions.push(OutlierAction::Eject { index: suspect.index, until, reason: suspect.reason });
    }
    // Backends that cannot be ejected because these were.
    note_liable(subjects, settings, now, &mut actions);
    for (subject, suspected) in subjects.iter_mut().zip(suspected) {
        let clean = serves(subject) && !subject.warming && !suspected;
        let clean = clean && subject.history.failing_for == 0 && subject.history.slow_for == 0;
        subject.history.forgive(clean, settings, now);
    }
    actions
}

/// When the next ejection ends, for the keeper's timer.
pub fn next_end<'a>(histories: impl IntoIterator<Item = &'a History>) -> Option<Instant> {
    histories.into_iter().filter_map(|history| history.ejection()?.until).min()
}

fn serves(subject: &Subject<'_>) -> bool {
    subject.in_service && !subject.history.is_ejected()
}

fn end_ejections(subjects: &mut [Subject<'_>], now: Instant) -> Vec<OutlierAction> {
    let mut actions = Vec::new();
    for (index, subject) in subjects.iter_mut().enumerate() {
        if let Some(end) = subject.history.end(now) {
            actions.extend(subject.history.take_back().map(|ejection| OutlierAction::Uneject { index, ejection, end }));
            // What it failed at before and meanwhile is not held against it; the caller forgets the streak itself.
            subject.streaks = Streaks::default();
        }
    }
    actions
}

/// Looks which backends could be ejected now. A backend that could not be before starts again from zero.
fn note_liable(subjects: &mut [Subject<'_>], settings: &Settings, now: Instant, actions: &mut Vec<OutlierAction>) {
    let places = Places::of(subjects, settings).any();
    for (index, subject) in subjects.iter_mut().enumerate() {
        let liable = places && serves(subject);
        let begins = subject.history.note_liable(liable, subject.totals, now);
        if begins && subject.streaks != Streaks::default() {
            subject.streaks = Streaks::default();
            actions.push(OutlierAction::Begin { index });
        }
    }
}

/// A rule that was broken; the more pressing come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum OutlierRule {
    Streak,
    FailureRate,
    SuccessRate,
    Latency,
}

struct Suspect {
    index: usize,
    rule: OutlierRule,
    severity: f64,
    reason: Reason,
}

impl Suspect {
    fn worst_first(&self, other: &Self) -> Ordering {
        self.rule.cmp(&other.rule).then(other.severity.total_cmp(&self.severity)).then(self.index.cmp(&other.index))
    }
}

/// Those whose failures in succession are too many. By their number and not by the signal of the request path alone: the
/// threshold may have been lowered since, or there was no place to take.
fn streaks(subjects: &[Subject<'_>], settings: &Settings) -> Vec<Suspect> {
    let mut suspects = Vec::new();
    for (index, subject) in subjects.iter().enumerate().filter(|(_, subject)| serves(subject)) {
        let Streaks { gateway, local, reset, late } = subject.streaks;
        let kinds = [
            (Reason::Local { count: local, reset, late }, local, settings.consecutive_local),
            (Reason::Gateway { count: gateway }, gateway, settings.consecutive_gateway),
        ];
        for (reason, count, threshold) in kinds {
            if threshold > 0 && count >= threshold {
                suspects.push(Suspect { index, rule: OutlierRule::Streak, severity: count.into(), reason });
            }
        }
    }
    suspects
}

/// Those of which too large a part of the attempts fails, over the shortest time that has enough of them.
fn failure_rates(subjects: &[Subject<'_>], settings: &Settings, suspects: &mut Vec<Suspect>) {
    if settings.failure_rate <= 0.0 {
        return;
    }
    for (index, subject) in subjects.iter().enumerate().filter(|(_, subject)| serves(subject)) {
        let (mut attempts, mut failed) = (0, 0);
        for slot in &subject.history.window {
            attempts += slot.attempts;
            failed += slot.failed;
            if attempts >= settings.failure_volume.max(1) {
                break;
            }
        }
        let rate = failed as f64 / attempts.max(1) as f64;
        if attempts >= settings.failure_volume.max(1) && rate >= settings.failure_rate {
            let reason = Reason::FailureRate { failed, attempts };
            suspects.push(Suspect { index, rule: OutlierRule::FailureRate, severity: rate, reason });
        }
    }
}

/// Those that have been worse than their peers for long enough.
fn compare(subjects: &mut [Subject<'_>], settings: &Settings, suspects: &mut Vec<Suspect>) {
    let mut groups: BTreeMap<u64, Vec<(bool, ComparedBackend)>> = BTreeMap::new();
    for (index, subject) in subjects.iter().enumerate().filter(|(_, subject)| serves(subject)) {
        let member = ComparedBackend { index, slots: subject.history.window.iter().copied().collect() };
        groups.entry(subject.peers).or_default().push((subject.warming, member));
    }
    let (mut failing, mut slower): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
    for group in groups.into_values() {
        let warm = group.iter().filter(|(warming, _)| !warming).map(|(_, member)| member.clone()).collect::<Vec<_>>();
        let all = group.into_iter().map(|(_, member)| member).collect::<Vec<_>>();
        failing.extend(compare::failing(&all, settings));
        slower.extend(compare::slower(&warm, settings));
    }
    let count = |history: &mut History| std::mem::take(&mut history.failing_for);
    let store = |history: &mut History, intervals| history.failing_for = intervals;
    persistent(subjects, failing, OutlierRule::SuccessRate, settings.success_intervals, count, store, suspects);
    let count = |history: &mut History| std::mem::take(&mut history.slow_for);
    let store = |history: &mut History, intervals| history.slow_for = intervals;
    persistent(subjects, slower, OutlierRule::Latency, settings.latency_intervals, count, store, suspects);
}

/// Counts the intervals in succession that confirm a finding. A backend without a finding starts again from zero.
fn persistent(
    subjects: &mut [Subject<'_>],
    findings: Vec<Finding>,
    rule: OutlierRule,
    intervals: u32,
    count: impl Fn(&mut History) -> u32,
    store: impl Fn(&mut History, u32),
    suspects: &mut Vec<Suspect>,
) {
    let before: Vec<_> = subjects.iter_mut().map(|subject| count(subject.history)).collect();
    for Finding { index, severity, reason, last } in findings {
        let now = match last {
            Last::Confirms => before[index].saturating_add(1),
            Last::Silent => before[index],
            Last::Contradicts => 0,
        };
        store(subjects[index].history, now);
        if last == Last::Confirms && now >= intervals {
            suspects.push(Suspect { index, rule, severity, reason });
        }
    }
}

/// How many more may be ejected now.
struct Places {
    /// Of the upstream's part.
    allowed: usize,
    /// Ready; the last ready backend stays.
    ready: usize,
    /// Whether a slow one may be.
    slow: bool,
}

impl Places {
    fn of(subjects: &[Subject<'_>], settings: &Settings) -> Self {
        let share = subjects.len() * settings.max_ejected_percent.min(100) as usize / 100;
        let most = if settings.max_ejected_percent == 0 { 0 } else { share.max(1) };
        let ejected = subjects.iter().filter(|subject| subject.history.is_ejected()).count();
        let ready = subjects.iter().filter(|subject| serves(subject)).count();
        Self { allowed: most.saturating_sub(ejected), ready, slow: true }
    }

    fn any(&self) -> bool {
        self.allowed > 0 && self.ready > 1
    }

    fn take(&mut self, rule: OutlierRule) -> bool {
        let may = self.any() && (rule != OutlierRule::Latency || self.slow);
        if may {
            self.allowed -= 1;
            self.ready -= 1;
            self.slow = false;
        }
        may
    }
}

#[cfg(test)]
mod tests;
