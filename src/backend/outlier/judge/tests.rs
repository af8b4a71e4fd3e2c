use std::time::Duration;

use proptest::prelude::{ProptestConfig, any, prop, prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::backend::outlier::{AttemptOutcome, FailureStreak, Outlier, Sight};
use crate::strategy::Dice;

mod simulation;

const NOBODY: [usize; 0] = [];
const SECOND: Duration = Duration::from_secs(1);

/// Backends that are asked and judged, on a clock of their own.
struct World {
    outliers: Vec<Outlier>,
    in_service: Vec<bool>,
    warming: Vec<bool>,
    peers: Vec<u64>,
    settings: Settings,
    now: Instant,
    dice: Dice,
}

impl World {
    fn new(backends: usize) -> Self {
        Self {
            outliers: (0..backends).map(|_| Outlier::new(2)).collect(),
            in_service: vec![true; backends],
            warming: vec![false; backends],
            peers: vec![0; backends],
            settings: Settings::default(),
            now: Instant::now(),
            dice: Dice::seeded(7),
        }
    }

    fn note(&self, backend: usize, outcome: AttemptOutcome, took: Duration) -> Option<FailureStreak> {
        self.outliers[backend].note(backend % 2, outcome, took, || self.now + took, &self.settings)
    }

    /// So many attempts at a backend that ended so.
    fn ask(&self, backend: usize, attempts: usize, outcome: AttemptOutcome) {
        for _ in 0..attempts {
            self.ask_once(backend, outcome);
        }
    }

    fn ask_once(&self, backend: usize, outcome: AttemptOutcome) -> Option<FailureStreak> {
        self.note(backend, outcome, Duration::from_millis(5))
    }

    fn judge(&mut self, occasion: Occasion) -> Vec<OutlierAction> {
        let mut histories: Vec<_> = self.outliers.iter().map(Outlier::history).collect();
        let mut subjects: Vec<_> = histories
            .iter_mut()
            .enumerate()
            .map(|(index, history)| Subject {
                history,
                totals: self.outliers[index].totals(),
                streaks: self.outliers[index].streaks(),
                in_service: self.in_service[index],
                warming: self.warming[index],
                peers: self.peers[index],
            })
            .collect();
        let actions = judge(&mut subjects, &self.settings, occasion, self.now, &mut || self.dice.bits());
        let counts_from: Vec<_> = histories.iter().map(|history| history.counts_from()).collect();
        for (outlier, at) in self.outliers.iter().zip(counts_from) {
            at.into_iter().for_each(|at| outlier.count_from(at));
        }
        for action in &actions {
            let (OutlierAction::Eject { index, .. }
            | OutlierAction::Uneject { index, .. }
            | OutlierAction::Begin { index }) = action;
            self.outliers[*index].forget_streaks(self.now);
        }
        actions
    }

    fn interval(&mut self) -> Vec<OutlierAction> {
        self.now += self.settings.interval;
        self.judge(Occasion::Interval)
    }

    fn ejected(&self) -> Vec<usize> {
        (0..self.outliers.len()).filter(|&index| self.outliers[index].history().is_ejected()).collect()
    }

    fn until(&self, backend: usize) -> Duration {
        self.outliers[backend].history().ejection().unwrap().until.unwrap() - self.now
    }
}

fn ejected(actions: &[OutlierAction]) -> Vec<usize> {
    let index = |action: &OutlierAction| match action {
        OutlierAction::Eject { index, .. } => Some(*index),
        OutlierAction::Uneject { .. } | OutlierAction::Begin { .. } => None,
    };
    actions.iter().filter_map(index).collect()
}

#[test]
fn a_streak_ejects_at_once_and_the_time_grows_and_has_a_limit() {
    let mut world = World::new(3);
    for (time, expected) in [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300].into_iter().enumerate() {
        world.ask(1, 4, AttemptOutcome::Connect);
        assert_eq!(world.judge(Occasion::Between), [], "one short of a streak, time {time}");
        world.ask(1, 1, AttemptOutcome::Timeout);
        let actions = world.judge(Occasion::Between);
        let reason = Reason::Local { count: 5, reset: 0, late: 1 };
        assert!(
            matches!(&actions[..], [OutlierAction::Eject { index: 1, reason: why, .. }] if *why == reason),
            "{actions:?}"
        );
        let lasts = world.until(1).as_secs_f64() / f64::from(expected);
        assert!((0.9..=1.1).contains(&lasts), "{lasts} of {expected} s");
        let until = world.now + world.until(1);
        assert_eq!(next_end([&*world.outliers[1].history()]), Some(until));
        assert_eq!(world.judge(Occasion::Between), []);
        world.now += world.until(1);
        assert!(matches!(world.judge(Occasion::Between)[..], [OutlierAction::Uneject { index: 1, .. }]));
    }
    assert_eq!(world.outliers[1].history().times(), 10);
}

#[test]
fn times_are_spread_both_ways() {
    let mut world = World::new(3);
    let mut all = Vec::new();
    for _ in 0..200 {
        world.outliers[0] = Outlier::new(2);
        world.ask(0, 5, AttemptOutcome::Gateway);
        world.judge(Occasion::Between);
        all.push(world.until(0).as_secs_f64());
    }
    all.sort_by(f64::total_cmp);
    assert!(all[0] >= 27.0 && all[0] < 27.3 && all[199] <= 33.0 && all[199] > 32.7, "{} to {}", all[0], all[199]);
    assert!((all[100] - 30.0).abs() < 0.7, "median {}", all[100]);
}

#[test]
fn at_most_half_and_never_the_last_one() {
    for (backends, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (20, 10)] {
        let mut world = World::new(backends);
        (0..backends).for_each(|backend| world.ask(backend, 5, AttemptOutcome::Connect));
        world.judge(Occasion::Between);
        assert_eq!(world.ejected().len(), most, "of {backends}");
    }
    let mut world = World::new(4);
    world.in_service = vec![false, true, false, true];
    (0..4).for_each(|backend| world.ask(backend, 5, AttemptOutcome::Connect));
    world.judge(Occasion::Between);
    assert_eq!(world.ejected(), [1], "two are out of service: one is left");
    let mut world = World::new(4);
    world.settings.max_ejected_percent = 0;
    world.ask(0, 5, AttemptOutcome::Connect);
    assert_eq!(world.judge(Occasion::Between), []);
}

/// Of a succession, and of a rate. What it did while no other could have taken over may long be over.
#[test]
fn who_had_no_place_begins_anew_when_there_is_one() {
    let every_second = [AttemptOutcome::Success, AttemptOutcome::Gateway].repeat(60);
    for outcomes in [&[AttemptOutcome::Connect; 54][..], &every_second] {
        let mut world = World::new(3);
        world.ask(0, 5, AttemptOutcome::Connect);
        world.judge(Occasion::Between);
        for &outcome in outcomes {
            world.ask(1, 1, outcome);
        }
        assert_eq!(world.interval(), []);
        world.now += Duration::from_secs(40);
        let actions = world.judge(Occasion::Between);
        assert!(
            matches!(actions[..], [OutlierAction::Uneject { index: 0, .. }, OutlierAction::Begin { index: 1 }]),
            "{actions:?}"
        );
        for _ in 0..20 {
            assert_eq!(world.interval(), [], "without another request");
        }
        world.ask(1, 4, AttemptOutcome::Connect);
        assert_eq!(world.judge(Occasion::Between), []);
        assert_eq!(world.ask_once(1, AttemptOutcome::Connect), Some(FailureStreak::Local));
        assert_eq!(ejected(&world.judge(Occasion::Between)), [1]);
    }
}

/// A check has found it well again, or an operator has given it back: what it failed at before is over.
#[test]
fn who_comes_into_service_begins_anew_and_so_do_those_whom_that_leaves_a_place() {
    let mut world = World::new(2);
    world.ask(0, 20, AttemptOutcome::Connect);
    world.in_service[0] = false;
    assert_eq!(world.judge(Occasion::Between), []);
    world.ask(1, 20, AttemptOutcome::Connect);
    assert_eq!(world.judge(Occasion::Between), [], "the last one");
    world.in_service[0] = true;
    assert_eq!(world.judge(Occasion::Between), [OutlierAction::Begin { index: 0 }, OutlierAction::Begin { index: 1 }]);
    assert_eq!(world.interval(), []);
    world.ask(1, 5, AttemptOutcome::Connect);
    assert_eq!(ejected(&world.judge(Occasion::Between)), [1]);
}

/// Requests that a machine took with it when it went are given up half a minute later, when it has long been back.
#[test]
fn who_has_answered_since_is_not_ejected_for_what_began_before() {
    let mut world = World::new(3);
    world.interval();
    let lost = world.now;
    world.now += 8 * SECOND;
    world.interval();
    world.ask(0, 3, AttemptOutcome::Success);
    world.interval();
    world.now = lost + 30 * SECOND;
    for _ in 0..9 {
        let told = world.outliers[0].note(0, AttemptOutcome::Timeout, 30 * SECOND, || world.now, &world.settings);
        assert_eq!(told, None);
    }
    assert_eq!(world.judge(Occasion::Between), []);
    // Those that began after the answers count, as soon as they are five.
    world.ask(0, 5, AttemptOutcome::Timeout);
    assert_eq!(ejected(&world.judge(Occasion::Between)), [0]);
}

#[test]
fn those_that_fail_go_before_those_that_are_slow() {
    let mut world = World::new(3);
    for _ in 0..2 {
        (0..200).for_each(|_| void(world.note(0, AttemptOutcome::Success, SECOND)));
        (1..3).for_each(|backend| world.ask(backend, 200, AttemptOutcome::Success));
        assert_eq!(world.interval(), []);
    }
    (0..200).for_each(|_| void(world.note(0, AttemptOutcome::Success, SECOND)));
    (1..3).for_each(|backend| world.ask(backend, 200, AttemptOutcome::Success));
    world.ask(2, 5, AttemptOutcome::Gateway);
    assert_eq!(ejected(&world.interval()), [2], "only one may go");
}

#[test]
fn a_lowered_threshold_counts_what_was_there_before() {
    let mut world = World::new(2);
    world.ask(0, 4, AttemptOutcome::Gateway);
    assert_eq!(world.judge(Occasion::Between), []);
    world.settings.consecutive_gateway = 3;
    assert_eq!(ejected(&world.judge(Occasion::Between)), [0]);
}

#[test]
fn a_failure_rate_needs_its_volume() {
    let mut world = World::new(2);
    let flaky = |world: &World, pairs: usize| {
        (0..pairs)
            .for_each(|_| [AttemptOutcome::Gateway, AttemptOutcome::Success].iter().for_each(|&o| world.ask(0, 1, o)));
    };
    flaky(&world, 24);
    assert_eq!(world.interval(), []);
    flaky(&world, 1);
    let actions = world.interval();
    let reason = Reason::FailureRate { failed: 25, attempts: 50 };
    assert!(
        matches!(&actions[..], [OutlierAction::Eject { index: 0, reason: why, .. }] if *why == reason),
        "{actions:?}"
    );
    // What lies further back than the window does not count.
    let mut world = World::new(2);
    flaky(&world, 24);
    (0..10).for_each(|_| assert_eq!(world.interval(), []));
    flaky(&world, 1);
    assert_eq!(world.interval(), []);
}

#[test]
fn one_that_answers_500_to_half_goes_after_two_intervals() {
    let mut world = World::new(3);
    let round = |world: &World| {
        (0..3).for_each(|backend| world.ask(backend, 100, AttemptOutcome::Success));
        (0..100).for_each(|_| {
            [AttemptOutcome::ServerError, AttemptOutcome::Success].iter().for_each(|&o| world.ask(2, 1, o))
        });
    };
    round(&world);
    assert_eq!(world.interval(), []);
    round(&world);
    let actions = world.interval();
    assert!(
        matches!(actions[..], [OutlierAction::Eject { index: 2, reason: Reason::SuccessRate { .. }, .. }]),
        "{actions:?}"
    );
}

#[test]
fn all_that_answer_500_stay() {
    let mut world = World::new(5);
    for _ in 0..20 {
        (0..5).for_each(|backend| world.ask(backend, 100, AttemptOutcome::ServerError));
        assert_eq!(world.interval(), []);
    }
}

#[test]
fn a_backend_in_slow_start_and_one_of_another_tier_may_be_slow() {
    let run = |prepare: fn(&mut World)| {
        let mut world = World::new(4);
        prepare(&mut world);
        for _ in 0..5 {
            (0..3).for_each(|backend| world.ask(backend, 100, AttemptOutcome::Success));
            (0..100).for_each(|_| void(world.note(3, AttemptOutcome::Success, SECOND)));
            world.interval();
        }
        world.ejected()
    };
    assert_eq!(run(|_| {}), [3]);
    assert_eq!(run(|world| world.warming[3] = true), NOBODY);
    assert_eq!(run(|world| world.peers[3] = 1), NOBODY);
}

#[test]
fn fast_errors_make_nobody_slow() {
    let mut world = World::new(3);
    world.settings.success_deviations = 0.0;
    world.settings.consecutive_gateway = 0;
    world.settings.failure_rate = 0.0;
    for _ in 0..10 {
        for backend in 0..2 {
            (0..100).for_each(|_| void(world.note(backend, AttemptOutcome::Gateway, Duration::from_micros(90))));
        }
        (0..100).for_each(|_| void(world.note(2, AttemptOutcome::Success, Duration::from_millis(80))));
        assert_eq!(world.interval(), [], "the only one that works");
    }
}

#[test]
fn a_pause_is_over_before_it_counts() {
    let mut world = World::new(3);
    for round in 0..40 {
        for backend in 0..3 {
            let took = if backend == 1 && round % 4 < 2 { 2_000 } else { 5 };
            (0..100).for_each(|_| void(world.note(backend, AttemptOutcome::Success, Duration::from_millis(took))));
        }
        assert_eq!(world.interval(), []);
    }
}

#[test]
fn intervals_without_traffic_neither_confirm_nor_contradict() {
    let mut world = World::new(3);
    let mut out = Vec::new();
    for round in 0..6 {
        if round % 2 == 0 {
            (0..2).for_each(|backend| world.ask(backend, 40, AttemptOutcome::Success));
            (0..40).for_each(|_| void(world.note(2, AttemptOutcome::Success, SECOND)));
        }
        out.push(ejected(&world.interval()));
    }
    assert_eq!(out, [vec![], vec![], vec![], vec![], vec![2], vec![]]);
}

#[test]
fn ejections_are_forgiven_one_by_one_while_it_serves() {
    let mut world = World::new(3);
    for _ in 0..3 {
        world.ask(0, 5, AttemptOutcome::Connect);
        world.judge(Occasion::Between);
        world.now += world.until(0);
        world.judge(Occasion::Between);
    }
    let times = |world: &World| world.outliers[0].history().times();
    assert_eq!(times(&world), 3);
    world.warming[0] = true;
    (0..60).for_each(|_| void(world.interval()));
    assert_eq!(times(&world), 3, "slow start proves nothing");
    world.warming[0] = false;
    for left in [2, 1, 0, 0] {
        (0..16).for_each(|_| void(world.interval()));
        assert_eq!(times(&world), left);
    }
}

/// What ends an ejection before its time: going by what it was for, how many ejections came in a row, whether a look has found
/// it gone since, and how the backend was seen.
#[test]
fn an_ejection_for_want_of_an_answer_ends_when_the_backend_is_seen() {
    use AttemptOutcome::{Connect, Gateway, Reset, Timeout};
    let sights = [Sight::Connected, Sight::Checked, Sight::Served];
    for (outcomes, times, absent, ends) in [
        ([Connect; 5], 1, false, [true; 3]),
        ([Connect; 5], 3, false, [true; 3]),
        ([Reset, Connect, Connect, Reset, Connect], 1, false, [true; 3]),
        ([Reset; 5], 2, false, [false, false, true]),
        ([Reset; 5], 2, true, [true; 3]),
        ([Reset, Reset, Timeout, Reset, Reset], 1, false, [false, true, true]),
        ([Timeout; 5], 1, true, [true; 3]),
        ([Timeout; 5], 2, false, [false, false, true]),
        ([Gateway; 5], 1, true, [false; 3]),
    ] {
        for (sight, ends) in sights.into_iter().zip(ends) {
            let told = format!("{outcomes:?} for the {times}. time, absent: {absent}, {sight:?}");
            let mut world = World::new(3);
            for time in 1..=times {
                outcomes.iter().for_each(|&outcome| world.ask(0, 1, outcome));
                assert_eq!(ejected(&world.judge(Occasion::Between)), [0], "{told}");
                if time < times {
                    world.now += world.until(0);
                    assert_eq!(world.judge(Occasion::Between).len(), 1);
                }
            }
            let since = world.now;
            if absent {
                world.outliers[0].history().saw_nobody(since);
            }
            // Looks from before do not count, nor, of who comes and goes, those of the first seconds.
            let patience = SECOND * (times - 1);
            for looked in [since - SECOND, (since + patience).checked_sub(SECOND / 2).unwrap()] {
                assert!(!world.outliers[0].history().saw(sight, looked), "{told}");
            }
            world.now = since + patience;
            assert_eq!(world.judge(Occasion::Between), [], "{told}");
            let now = world.now;
            world.outliers[0].history().saw(sight, now);
            let actions = world.judge(Occasion::Between);
            let end = EjectionEnd::Seen(sight);
            let over = matches!(&actions[..], [OutlierAction::Uneject { index: 0, end: why, .. }] if *why == end);
            assert_eq!((over, actions.is_empty()), (ends, !ends), "{told}: {actions:?}");
        }
    }
}

#[test]
fn what_was_seen_counts_for_nothing_when_nobody_is_there_after_it() {
    let mut world = World::new(3);
    world.ask(0, 5, AttemptOutcome::Connect);
    world.judge(Occasion::Between);
    let now = world.now;
    let mut history = world.outliers[0].history();
    assert!(history.saw(Sight::Connected, now) && !history.saw(Sight::Connected, now), "news once");
    assert!(history.saw_nobody(now) && !history.saw_nobody(now));
    drop(history);
    assert_eq!(world.judge(Occasion::Between), []);
    // By hand it is for somebody to end by hand.
    world.outliers[1].history().eject_by_hand(now, None);
    assert!(!world.outliers[1].history().saw(Sight::Served, now));
}

#[test]
fn a_passing_check_ends_no_ejection_for_bad_answers() {
    let mut world = World::new(3);
    world.ask(0, 5, AttemptOutcome::Gateway);
    world.judge(Occasion::Between);
    let now = world.now;
    assert!(!world.outliers[0].history().saw(Sight::Checked, now));
    for _ in 0..12 {
        // Its check fails and passes; it stays ejected for its time.
        world.in_service[0] = !world.in_service[0];
        assert_eq!(world.interval(), []);
    }
    assert_eq!(world.ejected(), [0]);
}

#[test]
fn by_hand_it_lasts_until_it_is_taken_back() {
    let mut world = World::new(2);
    let now = world.now;
    world.outliers[0].history().eject_by_hand(now, None);
    world.now += Duration::from_secs(100_000);
    assert_eq!(world.interval(), []);
    world.ask(1, 5, AttemptOutcome::Connect);
    assert_eq!(world.judge(Occasion::Between), [], "the last one that is left");
    let was = world.outliers[0].history().take_back().unwrap();
    assert_eq!((was.by, was.reason, was.until), (crate::backend::outlier::By::Hand, Reason::Hand, None));
    assert_eq!(world.judge(Occasion::Between), [OutlierAction::Begin { index: 1 }]);
    world.ask(1, 5, AttemptOutcome::Connect);
    assert_eq!(ejected(&world.judge(Occasion::Between)), [1]);
    let until = world.now + SECOND;
    world.outliers[1].history().eject_by_hand(until, Some(until));
    world.now = until;
    assert!(matches!(world.judge(Occasion::Between)[..], [OutlierAction::Uneject { index: 1, .. }]));
    assert_eq!(world.outliers[1].history().times(), 1, "detection's alone");
}

#[test]
fn reasons_say_what_was_seen() {
    let latency = Reason::Latency {
        typical: Duration::from_micros(812_300),
        median: Duration::from_millis(40),
        deviations: 9.12,
        answers: 77,
    };
    let told = "77 answers took 812.3 ms typically, the median backend 40.0 ms, 9.1 deviations apart";
    assert_eq!(latency.to_string(), told);
    let local = Reason::Local { count: 9, reset: 1, late: 5 };
    let told = "9 attempts in succession without a response: 3 not connected, 1 reset, 5 too late";
    assert_eq!(local.to_string(), told);
    let told = "5 attempts in succession without a response: 5 reset";
    assert_eq!(Reason::Local { count: 5, reset: 5, late: 0 }.to_string(), told);
    let success = Reason::SuccessRate { rate: 0.5, others: 0.999, bound: 0.8, attempts: 120 };
    assert_eq!(success.to_string(), "50.0% of 120 attempts succeeded, of the others' 99.9%, bound 80.0%");
}

/// For what is done for its effect.
fn void<T>(_: T) {}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever happens: one that serves is left if one was there, no more than half are ejected, times and ends have
    /// their limits, and what is done is what the histories say.
    #[test]
    fn ejections_keep_their_limits(
        backends in 1usize..9,
        steps in prop::collection::vec((0u8..7, any::<u8>(), 1u64..90), 1..120),
    ) {
        let mut world = World::new(backends);
        for (what, which, seconds) in steps {
            let backend = usize::from(which) % backends;
            match what {
                0 => world.ask(backend, 5, AttemptOutcome::Connect),
                1 => world.ask(backend, 60, AttemptOutcome::Gateway),
                2 => (0..backends).for_each(|backend| world.ask(backend, 60, AttemptOutcome::Success)),
                3 => world.in_service[backend] = !world.in_service[backend],
                4 => (0..60).for_each(|_| void(world.note(backend, AttemptOutcome::Success, 2 * SECOND))),
                5 => world.warming[backend] = !world.warming[backend],
                _ => world.now += Duration::from_secs(seconds),
            }
            let before = world.ejected();
            let serving = |world: &World| {
                let out = world.ejected();
                (0..backends).filter(|index| world.in_service[*index] && !out.contains(index)).count()
            };
            let served = serving(&world);
            let occasion = if what < 2 { Occasion::Between } else { Occasion::Interval };
            let actions = world.judge(occasion);
            let after = world.ejected();
            let mut expected = before;
            for action in &actions {
                match action {
                    OutlierAction::Eject { index, until, .. } => {
                        expected.push(*index);
                        prop_assert!(*until > world.now && *until <= world.now + Duration::from_secs(330));
                    }
                    OutlierAction::Uneject { index, .. } => expected.retain(|other| other != index),
                    OutlierAction::Begin { .. } => {}
                }
            }
            expected.sort_unstable();
            prop_assert_eq!(&after, &expected);
            prop_assert!(served == 0 || serving(&world) > 0);
            prop_assert!(after.len() <= (backends / 2).max(1));
            prop_assert!(world.outliers.iter().all(|outlier| outlier.history().times() <= 10));
        }
        // All come back in the end.
        world.now += Duration::from_secs(331);
        world.outliers.iter().for_each(|outlier| outlier.forget_streaks(world.now));
        world.judge(Occasion::Between);
        prop_assert_eq!(world.ejected(), NOBODY);
    }
}
