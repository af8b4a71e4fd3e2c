//! What operators have set by hand for a backend.
//!
//! Four independent levers, each with the user who set it, since when and until when. Their effect is decided elsewhere: which backend is
//! ready by `upstream::Readiness`, the weight when a roster is built. Setting what is set already changes nothing, so that a
//! command may be repeated without harm.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::telemetry::calendar::rfc3339;

/// Something that can be set by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lever {
    /// Takes nothing new and finishes what runs.
    Drain,
    /// Out of order: takes nothing new, and is not checked either.
    Disable,
    /// Has another weight than the file says.
    Weight,
    /// Taken out as outlier detection does it.
    Eject,
}

impl Lever {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Drain, Self::Disable, Self::Weight, Self::Eject];
}

/// What a lever is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// [`Lever::Drain`].
    Drained,
    /// [`Lever::Disable`].
    Disabled,
    /// [`Lever::Weight`], 0 to 65 535.
    Weight(u16),
    /// [`Lever::Eject`].
    Ejected,
}

impl Setting {
    /// The lever it is a setting of.
    pub fn lever(self) -> Lever {
        match self {
            Self::Drained => Lever::Drain,
            Self::Disabled => Lever::Disable,
            Self::Weight(_) => Lever::Weight,
            Self::Ejected => Lever::Eject,
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drained => f.write_str("drained"),
            Self::Disabled => f.write_str("disabled"),
            Self::Weight(weight) => write!(f, "weight {weight}"),
            Self::Ejected => f.write_str("ejected"),
        }
    }
}

/// A time on both clocks: one to wait by, one to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// To wait by.
    pub instant: Instant,
    /// To show.
    pub time: SystemTime,
}

impl Moment {
    /// The present one.
    pub fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }

    /// So much later.
    pub fn after(self, duration: Duration) -> Self {
        Self { instant: self.instant + duration, time: self.time + duration }
    }
}

/// A lever that is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// To what.
    pub setting: Setting,
    /// The user who did it.
    pub by: Arc<str>,
    /// When.
    pub since: SystemTime,
    /// When it ends by itself; `None` if only an operator ends it.
    pub until: Option<Moment>,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.setting)?;
        match self.until {
            Some(until) => write!(f, " until {}", rfc3339(until.time)),
            None => Ok(()),
        }
    }
}

/// What an operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Sets a lever, for a time or until it is released.
    Set(Setting, Option<Duration>),
    /// Gives it back.
    Release(Lever),
}

/// What an act has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeverChange {
    /// The lever as it was; `None` is not set.
    pub from: Option<Mark>,
    /// As it is.
    pub to: Option<Mark>,
}

impl LeverChange {
    /// Whether it is any.
    pub fn is_any(&self) -> bool {
        self.from != self.to
    }
}

/// Every lever of a backend as it stands. Pure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks([Option<Mark>; Lever::ALL.len()]);

impl Marks {
    /// How a lever is set; `None` is not at all.
    pub fn get(&self, lever: Lever) -> Option<&Mark> {
        self.0[lever as usize].as_ref()
    }

    /// Whether any is set.
    pub fn any(&self) -> bool {
        self.iter().next().is_some()
    }

    /// Those that are set.
    pub fn iter(&self) -> impl Iterator<Item = &Mark> {
        self.0.iter().flatten()
    }

    /// The weight set by hand.
    pub fn weight(&self) -> Option<u16> {
        match self.get(Lever::Weight)?.setting {
            Setting::Weight(weight) => Some(weight),
            Setting::Drained | Setting::Disabled | Setting::Ejected => None,
        }
    }

    /// When the next one ends by itself.
    pub fn next_end(&self) -> Option<Instant> {
        self.iter().filter_map(|mark| mark.until).map(|until| until.instant).min()
    }

    /// Does what `by` wants at `now`. A setting that exists, for as long, stays as it was, with the user who made it first.
    pub fn act(&mut self, act: Act, by: &Arc<str>, now: Moment) -> LeverChange {
        let (lever, to) = match act {
            Act::Release(lever) => (lever, None),
            Act::Set(setting, duration) => {
                let until = duration.map(|duration| now.after(duration));
                (setting.lever(), Some(Mark { setting, by: Arc::clone(by), since: now.time, until }))
            }
        };
        let place = &mut self.0[lever as usize];
        let from = place.clone();
        let means = |mark: &Mark| (mark.setting, mark.until);
        if from.as_ref().map(means) != to.as_ref().map(means) {
            *place = to;
        }
        LeverChange { from, to: place.clone() }
    }

    /// Ends what is over at `now`, and says what that was.
    pub fn expire(&mut self, now: Instant) -> Vec<Mark> {
        let over = |mark: &mut Mark| mark.until.is_some_and(|until| until.instant <= now);
        self.0.iter_mut().filter_map(|place| place.take_if(over)).collect()
    }
}

/// The levers of a backend. Outlives rosters, reloads, and the backend's leaving the file for a while. Control plane only.
#[derive(Debug, Default)]
pub struct ByHand(Mutex<Marks>);

impl ByHand {
    /// The levers as they stand.
    pub fn look(&self) -> Marks {
        self.marks().clone()
    }

    /// The levers, to look at or to move.
    pub fn marks(&self) -> MutexGuard<'_, Marks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is out of order.
    pub fn is_disabled(&self) -> bool {
        self.marks().get(Lever::Disable).is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, Strategy, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

    use super::*;

    fn at(start: Moment, seconds: u64) -> Moment {
        start.after(Duration::from_secs(seconds))
    }

    fn name(text: &str) -> Arc<str> {
        text.into()
    }

    #[test]
    fn each_lever_is_for_itself() {
        let (mut marks, now) = (Marks::default(), Moment::now());
        for setting in [Setting::Drained, Setting::Disabled, Setting::Weight(0), Setting::Ejected] {
            assert!(marks.act(Act::Set(setting, None), &name("a"), now).is_any());
        }
        assert_eq!((marks.iter().count(), marks.weight(), marks.next_end()), (4, Some(0), None));
        let change = marks.act(Act::Release(Lever::Drain), &name("a"), now);
        assert!(change.is_any() && change.to.is_none());
        assert!(marks.get(Lever::Drain).is_none() && marks.get(Lever::Disable).is_some());
    }

    #[test]
    fn what_is_so_already_is_no_change_and_keeps_who_did_it() {
        let (mut marks, now) = (Marks::default(), Moment::now());
        assert!(!marks.act(Act::Release(Lever::Eject), &name("a"), now).is_any());
        assert!(marks.act(Act::Set(Setting::Drained, None), &name("a"), now).is_any());
        let again = marks.act(Act::Set(Setting::Drained, None), &name("b"), at(now, 5));
        assert!(!again.is_any());
        assert_eq!(&*marks.get(Lever::Drain).unwrap().by, "a");
        let other = marks.act(Act::Set(Setting::Weight(3), None), &name("b"), now);
        assert!(other.is_any() && marks.act(Act::Set(Setting::Weight(4), None), &name("b"), now).is_any());
        // A time makes it another setting, and so does the want of one.
        assert!(marks.act(Act::Set(Setting::Drained, Some(Duration::from_secs(9))), &name("b"), now).is_any());
        assert!(marks.act(Act::Set(Setting::Drained, None), &name("b"), now).is_any());
    }

    #[test]
    fn a_time_ends_by_itself() {
        let (mut marks, now) = (Marks::default(), Moment::now());
        marks.act(Act::Set(Setting::Ejected, Some(Duration::from_secs(60))), &name("a"), now);
        marks.act(Act::Set(Setting::Weight(7), Some(Duration::from_secs(30))), &name("a"), now);
        marks.act(Act::Set(Setting::Drained, None), &name("a"), now);
        assert_eq!(marks.next_end(), Some(at(now, 30).instant));
        assert_eq!(marks.expire(at(now, 29).instant), []);
        let ended: Vec<_> = marks.expire(at(now, 30).instant).iter().map(|mark| mark.setting).collect();
        assert_eq!(ended, [Setting::Weight(7)]);
        assert_eq!(marks.expire(at(now, 600).instant).len(), 1);
        assert_eq!((marks.iter().count(), marks.next_end()), (1, None), "what has no end stays");
    }

    #[test]
    fn marks_are_told_in_words() {
        let now = Moment { instant: Instant::now(), time: std::time::UNIX_EPOCH };
        let mut marks = Marks::default();
        let told = |change: LeverChange| change.to.unwrap().to_string();
        assert_eq!(told(marks.act(Act::Set(Setting::Weight(5), None), &name("a"), now)), "weight 5");
        let minute = Some(Duration::from_secs(60));
        let until = told(marks.act(Act::Set(Setting::Drained, minute), &name("a"), now));
        assert_eq!(until, "drained until 1970-01-01T00:01:00.000Z");
    }

    fn acts() -> impl Strategy<Value = Act> {
        let setting = prop_oneof![
            Just(Setting::Drained),
            Just(Setting::Disabled),
            (0u16..4).prop_map(Setting::Weight),
            Just(Setting::Ejected)
        ];
        let lever = (0usize..4).prop_map(|index| Lever::ALL[index]);
        prop_oneof![
            (setting, prop::option::of(0u64..50))
                .prop_map(|(setting, seconds)| Act::Set(setting, seconds.map(Duration::from_secs))),
            lever.prop_map(Act::Release)
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_done_the_last_act_holds_and_nothing_outlives_its_end(
            steps in prop::collection::vec((acts(), 0u64..20), 1..60)
        ) {
            let (mut marks, start, mut seconds) = (Marks::default(), Moment::now(), 0);
            for (act, later) in steps {
                seconds += later;
                let now = at(start, seconds);
                marks.expire(now.instant);
                prop_assert!(marks.next_end().is_none_or(|end| end > now.instant));
                let change = marks.act(act, &name("a"), now);
                match act {
                    Act::Release(lever) => prop_assert_eq!(marks.get(lever), None),
                    Act::Set(setting, duration) => {
                        let mark = marks.get(setting.lever()).unwrap();
                        prop_assert_eq!(mark.setting, setting);
                        prop_assert_eq!(mark.until, duration.map(|duration| now.after(duration)));
                    }
                }
                let again = marks.act(act, &name("b"), now);
                prop_assert!(!again.is_any());
                prop_assert_eq!(again.to, change.to);
            }
        }
    }
}
