use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use super::{OutlierSlot, Settings, Totals};

/// What outlier detection has seen of a backend and decided about it. Control plane only; outlives reloads.
#[derive(Debug)]
pub struct History {
    ejection: Option<Ejection>,
    /// Whether it could have been ejected when it was last looked at: it served, and there was a place.
    liable: bool,
    /// Since when, at least, it has answered or begun anew: what began before is not held against it.
    counts_from: Option<Instant>,
    /// When the last interval was closed.
    closed: Option<Instant>,
    /// Ejections that are not forgiven.
    times: u32,
    /// Since when it has served without a fault.
    clean_since: Option<Instant>,
    /// The totals at the last interval; `None` when the next one only begins to count.
    last: Option<Totals>,
    /// The intervals of the window, the youngest first.
    pub(super) window: VecDeque<OutlierSlot>,
    /// For how many intervals in succession it has failed more often than the others.
    pub(super) failing_for: u32,
    /// For how many intervals in succession it has been slower than the others.
    pub(super) slow_for: u32,
}

const SECOND: Duration = Duration::from_secs(1);

/// That a backend takes no requests for a while.
#[derive(Clone, Debug, PartialEq)]
pub struct Ejection {
    /// Since when.
    pub since: Instant,
    /// Until when; `None` until an operator takes it back.
    pub until: Option<Instant>,
    /// The user who did it.
    pub by: By,
    /// Why.
    pub reason: Reason,
    /// Whether a look since has found that no connection can be made.
    pub absent: bool,
    /// How it was seen to be there since, the best of several.
    pub seen: Option<Sight>,
}

/// How a backend that is ejected was seen to be there. The later ones say more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sight {
    /// A connection to it could be made.
    Connected,
    /// It has passed a health check that takes more than that.
    Checked,
    /// It has answered a request as the last resort.
    Served,
}

/// Why an ejection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EjectionEnd {
    /// It has lasted its time.
    Time,
    /// It was for attempts without an answer, and the backend was seen to be there.
    Seen(Sight),
}

impl EjectionEnd {
    /// As events say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Time => "its time is over",
            Self::Seen(Sight::Connected) => "it takes connections",
            Self::Seen(Sight::Checked) => "its health check has passed",
            Self::Seen(Sight::Served) => "it has answered as the last resort",
        }
    }
}

impl Ejection {
    /// Whether it may end before its time when the backend is seen to be there.
    pub fn is_for_silence(&self) -> bool {
        self.by == By::Detection && matches!(self.reason, Reason::Local { .. })
    }

    /// Whether it was gone: no connection could be made all the time, or none since.
    pub fn is_for_absence(&self) -> bool {
        self.is_for_silence() && (self.absent || matches!(self.reason, Reason::Local { reset: 0, late: 0, .. }))
    }

    /// What has to be seen of the backend for it to end before its time, where it is that many in a row; `None` where nothing
    /// will do.
    ///
    /// A backend that was gone is back when it takes connections. One that was there and broke them off, or did not answer, takes
    /// connections all the time: it is believed once, and if it fails again, it stays out for its time. Of one that was silent not
    /// even that: any machine that hangs takes connections, so it is for a health check to say. An answer ends all of these.
    fn wants(&self, times: u32) -> Option<Sight> {
        let Reason::Local { late, .. } = self.reason else { return None };
        Some(match (self.is_for_absence(), times, late) {
            (true, ..) => Sight::Connected,
            (false, 2.., _) => Sight::Served,
            (false, _, 0) => Sight::Connected,
            (false, ..) => Sight::Checked,
        })
    }
}

/// What ejected a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Outlier detection.
    Detection,
    /// An operator.
    Hand,
}

impl By {
    /// As events and the admin address say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Detection => "detection",
            Self::Hand => "hand",
        }
    }
}

/// Why a backend was ejected, with the evidence.
#[derive(Clone, Debug, PartialEq)]
pub enum Reason {
    /// Answers in succession that were gateway errors.
    Gateway {
        /// How many.
        count: u32,
    },
    /// Attempts in succession without a response.
    Local {
        /// How many.
        count: u32,
        /// Of these, connections that ended.
        reset: u32,
        /// Of these, responses that did not begin in time. At the others, no connection could be made.
        late: u32,
    },
    /// Too many of its attempts failed.
    FailureRate {
        /// Gateway errors and local ones.
        failed: u64,
        /// All attempts.
        attempts: u64,
    },
    /// It succeeded less often than the others.
    SuccessRate {
        /// The part of its attempts that did not come to a 5xx or to nothing.
        rate: f64,
        /// The mean of the others' rates.
        others: f64,
        /// Below which rate it is an outlier.
        bound: f64,
        /// Its attempts.
        attempts: u64,
    },
    /// It answered more slowly than the others.
    Latency {
        /// The geometric mean of its latencies.
        typical: Duration,
        /// The median of all backends' geometric means.
        median: Duration,
        /// How many robust standard deviations lie in between.
        deviations: f64,
        /// Its answers.
        answers: u64,
    },
    /// An operator wanted it.
    Hand,
}

impl Reason {
    /// What kinds of them are called in metrics and events.
    pub const KINDS: [&str; 6] =
        ["gateway_errors", "local_errors", "failure_rate", "success_rate", "latency", "by_hand"];

    /// Its kind's place in [`Reason::KINDS`].
    pub fn kind(&self) -> usize {
        match self {
            Self::Gateway { .. } => 0,
            Self::Local { .. } => 1,
            Self::FailureRate { .. } => 2,
            Self::SuccessRate { .. } => 3,
            Self::Latency { .. } => 4,
            Self::Hand => 5,
        }
    }

    /// Its kind's name.
    pub fn as_str(&self) -> &'static str {
        Self::KINDS[self.kind()]
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway { count } => write!(f, "{count} gateway errors in succession"),
            Self::Local { count, reset, late } => {
                write!(f, "{count} attempts in succession without a response: ")?;
                let kinds = [(count - reset - late, "not connected"), (*reset, "reset"), (*late, "too late")];
                let told = kinds.iter().filter(|(count, _)| *count > 0).map(|(count, how)| format!("{count} {how}"));
                f.write_str(&told.collect::<Vec<_>>().join(", "))
            }
            Self::FailureRate { failed, attempts } => write!(f, "{failed} of {attempts} attempts failed"),
            Self::SuccessRate { rate, others, bound, attempts } => {
                let [rate, others, bound] = [rate, others, bound].map(|rate| rate * 100.0);
                write!(f, "{rate:.1}% of {attempts} attempts succeeded, of the others' {others:.1}%, bound {bound:.1}%")
            }
            Self::Latency { typical, median, deviations, answers } => {
                let [typical, median] = [typical, median].map(|latency| latency.as_secs_f64() * 1e3);
                write!(
                    f,
                    "{answers} answers took {typical:.1} ms typically, the median backend {median:.1} ms, \
                     {deviations:.1} deviations apart"
                )
            }
            Self::Hand => f.write_str("ejected by hand"),
        }
    }
}

impl Default for History {
    /// Of a backend that nothing was asked of yet.
    fn default() -> Self {
        Self {
            ejection: None,
            liable: true,
            counts_from: None,
            closed: None,
            times: 0,
            clean_since: None,
            last: Some(Totals::default()),
            window: VecDeque::new(),
            failing_for: 0,
            slow_for: 0,
        }
    }
}

impl History {
    /// The ejection under way.
    pub fn ejection(&self) -> Option<&Ejection> {
        self.ejection.as_ref()
    }

    /// Whether it takes no requests now.
    pub fn is_ejected(&self) -> bool {
        self.ejection.is_some()
    }

    /// Ejections by detection that are not forgiven yet: what the length of the next one depends on.
    pub fn times(&self) -> u32 {
        self.times
    }

    /// The geometric mean of the latencies noted within the window; `None` where there were none.
    pub fn typical_latency(&self) -> Option<Duration> {
        let (timed, logs) =
            self.window.iter().fold((0, 0.0), |(timed, logs), slot| (timed + slot.timed, logs + slot.logs));
        (timed > 0).then(|| Duration::from_secs_f64((logs / timed as f64).exp2() * 1e-6))
    }

    /// Ejects it by hand; an operator may also eject the last one: until `until`, or until [`History::take_back`].
    pub fn eject_by_hand(&mut self, now: Instant, until: Option<Instant>) {
        self.put(now, until, By::Hand, Reason::Hand);
    }

    /// The backend was seen, by a look that began at `looked`. Says whether that is news. Of one that is ejected again and again
    /// looks do not count in the beginning, each time for a second longer: it may go as fast as it comes.
    pub fn saw(&mut self, sight: Sight, looked: Instant) -> bool {
        let patience = SECOND * self.times.saturating_sub(1);
        let Some(ejection) = self.ejection.as_mut().filter(|it| it.is_for_silence()) else { return false };
        if looked < ejection.since + patience || ejection.seen >= Some(sight) {
            return false;
        }
        ejection.seen = Some(sight);
        true
    }

    /// No connection could be made by a look that began at `looked`. Says whether that is news.
    pub fn saw_nobody(&mut self, looked: Instant) -> bool {
        let Some(ejection) = self.ejection.as_mut().filter(|it| it.is_for_silence() && looked >= it.since) else {
            return false;
        };
        // Whatever was seen before: it has gone since.
        ejection.seen = None;
        !std::mem::replace(&mut ejection.absent, true)
    }

    /// Whether the ejection under way is over, and why.
    pub(super) fn end(&self, now: Instant) -> Option<EjectionEnd> {
        let ejection = self.ejection.as_ref()?;
        if ejection.until.is_some_and(|until| until <= now) {
            return Some(EjectionEnd::Time);
        }
        let wanted = ejection.wants(self.times)?;
        ejection.seen.filter(|seen| *seen >= wanted).map(EjectionEnd::Seen)
    }

    /// Ends the ejection, by detection or by hand; returns what it was. What was counted before does not count again.
    pub fn take_back(&mut self) -> Option<Ejection> {
        self.forget();
        self.liable = true;
        self.ejection.take()
    }

    /// What began before this is not held against it.
    pub fn counts_from(&self) -> Option<Instant> {
        self.counts_from
    }

    /// Notes whether it could be ejected now: whether it serves, and there is a place for it. Where that has come about since it was
    /// last looked at, what was seen until then does not count, and it says so: with no other to take over, or while it was not
    /// asked, nothing came of what it did wrong, and now it may long be over.
    pub(super) fn note_liable(&mut self, liable: bool, totals: Totals, now: Instant) -> bool {
        let begins = liable && !self.liable;
        self.liable = liable;
        if begins {
            self.forget_window();
            self.last = Some(totals);
            self.counts_from = Some(now);
        }
        begins
    }

    /// Forgets what was seen and forgives what was decided. An ejection under way goes on.
    pub fn reset(&mut self) {
        self.forget();
        self.times = 0;
    }

    /// Ejects it for as long as the number of times asks for; `random` is any number. Returns until when.
    pub(super) fn eject(&mut self, reason: Reason, settings: &Settings, now: Instant, random: u64) -> Instant {
        self.times = (self.times + 1).min(settings.most_times());
        // From -1 to 1.
        let swing = random as f64 / u64::MAX as f64 * 2.0 - 1.0;
        let until =
            now + settings.duration(self.times).mul_f64((1.0 + swing * settings.jitter.clamp(0.0, 1.0)).max(0.0));
        self.put(now, Some(until), By::Detection, reason);
        until
    }

    fn put(&mut self, since: Instant, until: Option<Instant>, by: By, reason: Reason) {
        self.forget();
        self.ejection = Some(Ejection { since, until, by, reason, absent: false, seen: None });
    }

    fn forget(&mut self) {
        self.forget_window();
        self.last = None;
        self.clean_since = None;
    }

    fn forget_window(&mut self) {
        self.window.clear();
        self.failing_for = 0;
        self.slow_for = 0;
    }

    /// Closes an interval. What an ejected backend still answers to requests of before is not looked at.
    pub(super) fn close_interval(&mut self, totals: Totals, settings: &Settings, now: Instant) {
        let before = self.last.replace(totals);
        let began = self.closed.replace(now);
        if self.is_ejected() {
            self.window.clear();
        } else if let Some(before) = before {
            let slot = totals.since(&before);
            // An answer at some time of the interval is one since its beginning.
            if slot.attempts > slot.errors {
                self.counts_from = self.counts_from.max(began);
            }
            self.window.push_front(slot);
        }
        self.window.truncate(settings.slots());
    }

    /// Forgives an ejection for each stretch of time without a fault.
    pub(super) fn forgive(&mut self, clean: bool, settings: &Settings, now: Instant) {
        if !clean || self.times == 0 {
            self.clean_since = None;
            return;
        }
        let since = *self.clean_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= settings.forgive {
            self.times -= 1;
            self.clean_since = Some(now);
        }
    }
}
