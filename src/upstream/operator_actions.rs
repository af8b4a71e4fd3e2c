//! Levers that operators pull, on a backend of an upstream.
//!
//! What is set is kept with the [`UpstreamState`], by address: through reloads, and also while no backend is at the address, or
//! a backend under repair would get traffic again because an edit of the file, or a discovery that stumbled, had left it out
//! for a moment. It is forgotten with the upstream.

use std::sync::Arc;
use std::time::Instant;

use super::{Upstream, UpstreamState};
use crate::backend::operator_state::{Act, ByHand, Lever, LeverChange, Mark, Marks, Moment, Setting};
use crate::backend::outlier::{By, Ejection, Reason};
use crate::backend::{BackendState, Instance};
use crate::config::Address;
use crate::telemetry::events::EventKind;

/// The name for changes that come because a time is over.
const CLOCK: &str = "its time is over";

/// The weight a backend has: by hand, or as its source says.
pub(super) fn weight(instance: &Instance, state: &BackendState) -> u16 {
    state.by_hand.marks().weight().unwrap_or(instance.weight)
}

/// Nothing is known of that address in that upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownBackend;

/// What came of an act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The lever as it was, in words.
    pub from: String,
    /// As it is.
    pub to: String,
    /// Whether that is another.
    pub changed: bool,
}

impl Upstream {
    /// Does to a backend what an operator, `by`, wants. When this returns, picks go by it. Control plane only.
    ///
    /// # Errors
    /// Where the upstream has no such backend, and nothing is set for one either.
    pub fn act_by_hand(&self, address: &Address, act: Act, by: &Arc<str>, now: Moment) -> Result<Done, UnknownBackend> {
        let (by_hand, state) = self.state.find(address).ok_or(UnknownBackend)?;
        let change = by_hand.marks().act(act, by, now);
        let lever = match act {
            Act::Set(setting, _) => setting.lever(),
            Act::Release(lever) => lever,
        };
        let mut done = Done {
            from: as_told(change.from.as_ref(), lever),
            to: as_told(change.to.as_ref(), lever),
            changed: change.is_any(),
        };
        if let Some(by_detection) = state.and_then(|state| self.follow(&state, act, &change, now)) {
            done = Done { from: format!("ejected: {by_detection}"), changed: true, ..done };
        }
        // The keeper's timer; and the roster at once, so that the caller finds it done.
        self.state.changed.notify_one();
        self.refresh(now.instant);
        Ok(done)
    }

    /// Does what a lever does beyond being looked at when the roster is built. Says why detection had ejected the backend,
    /// where that has an end with this.
    fn follow(&self, state: &BackendState, act: Act, change: &LeverChange, now: Moment) -> Option<Reason> {
        match act {
            Act::Set(Setting::Ejected, _) if change.is_any() => {
                let until = change.to.as_ref().and_then(|mark| mark.until).map(|until| until.instant);
                state.outlier.history().eject_by_hand(now.instant, until);
            }
            // By detection or by hand.
            Act::Release(Lever::Eject) => {
                return take_back(state, now.instant).filter(|it| it.by == By::Detection).map(|it| it.reason);
            }
            // It was not checked meanwhile.
            Act::Release(Lever::Disable) if change.is_any() && self.config.health_check.is_some() => {
                state.health.await_check();
            }
            Act::Set(..) | Act::Release(_) => {}
        }
        None
    }
}

impl UpstreamState {
    /// The addresses that something is set for by hand, with what that is.
    pub fn set_by_hand(&self) -> Vec<(Address, Marks)> {
        let backends = self.lock();
        let marks = backends.iter().map(|(address, known)| (address.clone(), known.by_hand.look()));
        let mut set: Vec<_> = marks.filter(|(_, marks)| marks.any()).collect();
        set.sort_by_key(|(address, _)| address.to_string());
        set
    }

    /// When something that was set by hand ends by itself next.
    pub fn next_end_by_hand(&self) -> Option<Instant> {
        self.lock().values().filter_map(|known| known.by_hand.marks().next_end()).min()
    }

    /// Ends what is over at `now`. To be told to those who listen.
    pub(super) fn expire_by_hand(&self, now: Instant) -> Vec<EventKind> {
        let mut ended = Vec::new();
        for (address, known) in &*self.lock() {
            let over = known.by_hand.marks().expire(now);
            for mark in over {
                if let (Setting::Ejected, Some(state)) = (mark.setting, known.state.upgrade()) {
                    take_back(&state, now);
                }
                ended.push(self.told(address, &mark));
            }
        }
        ended
    }

    fn told(&self, address: &Address, ended: &Mark) -> EventKind {
        EventKind::ByHand {
            who: CLOCK.into(),
            what: format!("end {}", ended.setting),
            upstream: Some(self.name.clone()),
            backend: Some(address.clone()),
            from: ended.to_string(),
            to: as_told(None, ended.setting.lever()),
        }
    }

    /// Forgets what was learnt from traffic and guides decisions: what outlier detection has seen, and how often it has
    /// ejected. What runs on, ejections, verdicts, what is set by hand, and every counter of the metrics, stays.
    pub fn reset_learnt(&self, now: Instant) {
        for state in self.lock().values().filter_map(|known| known.state.upgrade()) {
            state.outlier.history().reset();
            state.outlier.forget_streaks(now);
        }
    }

    fn find(&self, address: &Address) -> Option<(Arc<ByHand>, Option<Arc<BackendState>>)> {
        let mut backends = self.lock();
        backends.retain(|_, known| known.is_of_use());
        backends.get(address).map(|known| (Arc::clone(&known.by_hand), known.state.upgrade()))
    }
}

/// A lever's position in words.
pub fn as_told(mark: Option<&Mark>, lever: Lever) -> String {
    match (mark, lever) {
        (Some(mark), _) => mark.to_string(),
        (None, Lever::Drain) => "not drained".into(),
        (None, Lever::Disable) => "not disabled".into(),
        (None, Lever::Weight) => "weight of the file".into(),
        (None, Lever::Eject) => "not ejected".into(),
    }
}

fn take_back(state: &BackendState, now: Instant) -> Option<Ejection> {
    state.outlier.take_back(now)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::backend::health::Verdict;
    use crate::config::{UpstreamConfig, Vocabulary, parse};
    use crate::strategy::{Dice, Factories, Tried};
    use crate::upstream::Readiness;

    fn config(backends: &str, more: &str) -> Arc<UpstreamConfig> {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n\
             [upstream.u]\nbackends = [{backends}]\n{more}"
        );
        let loaded = parse(&text, "lb.toml", &|_| None, &Vocabulary::default()).unwrap();
        Arc::clone(&loaded.config.upstreams[0])
    }

    fn build(state: &Arc<UpstreamState>, backends: &str, more: &str) -> Arc<Upstream> {
        Upstream::build(config(backends, more), Arc::clone(state), &Factories::default())
    }

    fn state() -> Arc<UpstreamState> {
        UpstreamState::new("u".into(), 1)
    }

    fn address(port: u16) -> Address {
        Address::Ip(([10, 0, 0, 1], port).into())
    }

    fn act(upstream: &Upstream, port: u16, act: Act) -> Done {
        upstream.act_by_hand(&address(port), act, &"test".into(), Moment::now()).unwrap()
    }

    /// Ports of the ready ones, with their weights.
    fn ready(upstream: &Upstream) -> Vec<(u16, u16)> {
        let port = |address: &Address| address.socket().unwrap().port();
        upstream.roster().ready().iter().map(|it| (port(&it.state.address), it.weight)).collect()
    }

    const TWO: &str = "\"10.0.0.1:1\", \"10.0.0.1:2\"";

    #[test]
    fn each_lever_takes_effect_at_once_and_is_given_back() {
        let upstream = build(&state(), TWO, "strategy = \"weighted_round_robin\"");
        for (setting, says) in [
            (Setting::Drained, Readiness::Drained),
            (Setting::Disabled, Readiness::Disabled),
            (Setting::Ejected, Readiness::Ejected { until: None, by: crate::backend::outlier::By::Hand }),
            (Setting::Weight(0), Readiness::NoWeight),
        ] {
            assert!(act(&upstream, 1, Act::Set(setting, None)).changed);
            assert_eq!(ready(&upstream), [(2, 1)], "{setting}");
            assert_eq!(Readiness::of(&upstream.roster().backends()[0], &upstream.config, Instant::now()), says);
            let leased = upstream.lease(None, Instant::now(), &Tried::default(), &mut Dice::seeded(1)).unwrap();
            assert_eq!(leased.backend().address, address(2));
            assert!(act(&upstream, 1, Act::Release(setting.lever())).changed);
            assert_eq!(ready(&upstream), [(1, 1), (2, 1)], "{setting}");
        }
        act(&upstream, 2, Act::Set(Setting::Weight(9), None));
        assert_eq!(ready(&upstream), [(1, 1), (2, 9)]);
    }

    #[test]
    fn an_unknown_address_is_refused() {
        let upstream = build(&state(), TWO, "");
        let refused = upstream.act_by_hand(&address(3), Act::Release(Lever::Drain), &"test".into(), Moment::now());
        assert_eq!(refused, Err(UnknownBackend));
        assert!(upstream.state.set_by_hand().is_empty());
    }

    #[test]
    fn what_is_set_survives_a_reload_and_a_while_outside_the_file() {
        let state = state();
        let first = build(&state, TWO, "");
        act(&first, 1, Act::Set(Setting::Drained, None));
        act(&first, 2, Act::Set(Setting::Ejected, None));
        let second = build(&state, TWO, "retries = 2");
        drop(first);
        assert_eq!(ready(&second), []);
        let third = build(&state, "\"10.0.0.1:3\"", "");
        drop(second);
        assert_eq!(state.set_by_hand().len(), 2, "remembered while it is not in the file");
        assert!(act(&third, 2, Act::Release(Lever::Eject)).changed, "and can be given back");
        let fourth = build(&state, TWO, "");
        assert_eq!(ready(&fourth), [(2, 1)]);
        act(&fourth, 1, Act::Release(Lever::Drain));
        act(&fourth, 2, Act::Set(Setting::Ejected, None));
        let fifth = build(&state, "\"10.0.0.1:3\"", "");
        drop((third, fourth));
        assert_eq!(state.set_by_hand().len(), 1);
        let sixth = build(&state, TWO, "");
        drop(fifth);
        assert_eq!(ready(&sixth), [(1, 1)], "an ejection comes back with the backend");
        assert!(sixth.roster().backends()[1].state.outlier.history().is_ejected());
    }

    #[test]
    fn nothing_is_remembered_of_addresses_that_nothing_is_set_for() {
        let state = state();
        for port in 1..100 {
            drop(build(&state, &format!("\"10.0.0.1:{port}\""), ""));
        }
        let last = build(&state, "\"10.0.0.1:1\"", "");
        assert_eq!(state.lock().len(), 1);
        drop(last);
    }

    #[test]
    fn a_time_that_is_over_is_told_and_ends_the_ejection() {
        let state = state();
        let upstream = build(&state, TWO, "");
        let minute = Some(Duration::from_secs(60));
        act(&upstream, 1, Act::Set(Setting::Ejected, minute));
        act(&upstream, 2, Act::Set(Setting::Weight(5), minute));
        let end = state.next_end_by_hand().unwrap();
        assert!(state.expire_by_hand(end - Duration::from_secs(1)).is_empty());
        let mut told: Vec<_> = state
            .expire_by_hand(end + Duration::from_secs(1))
            .into_iter()
            .map(|event| match event {
                EventKind::ByHand { what, to, .. } => format!("{what}: {to}"),
                other => panic!("{other:?}"),
            })
            .collect();
        told.sort();
        assert_eq!(told, ["end ejected: not ejected", "end weight 5: weight of the file"]);
        assert!(upstream.refresh(end));
        assert_eq!((ready(&upstream), state.next_end_by_hand()), (vec![(1, 1), (2, 1)], None));
    }

    #[test]
    fn after_a_repair_the_first_check_decides() {
        let upstream = build(&state(), TWO, "health_check = { path = \"/\" }");
        act(&upstream, 1, Act::Set(Setting::Disabled, None));
        act(&upstream, 1, Act::Release(Lever::Disable));
        let roster = upstream.roster();
        assert_eq!(roster.backends()[0].state.health.verdict(), Verdict::Unknown);
        assert_eq!(ready(&upstream), [(2, 1)]);
    }

    #[test]
    fn a_reset_forgets_what_was_learnt_and_leaves_what_was_decided() {
        let upstream = build(&state(), TWO, "");
        act(&upstream, 1, Act::Set(Setting::Ejected, None));
        upstream.state.reset_learnt(Instant::now());
        upstream.refresh(Instant::now());
        assert_eq!(ready(&upstream), [(2, 1)]);
    }
}
