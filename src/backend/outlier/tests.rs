use std::sync::Arc;
use std::thread;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn note(outlier: &Outlier, outcomes: &[AttemptOutcome]) -> Vec<Option<FailureStreak>> {
    outcomes.iter().map(|&outcome| outlier.note(0, outcome, MS, Instant::now, &Settings::default())).collect()
}

#[test]
fn a_streak_is_told_once_until_it_ends() {
    let outlier = Outlier::new(1);
    let told = note(&outlier, &[AttemptOutcome::Gateway; 12]);
    let expected: Vec<_> = (1..=12).map(|n| (n == 5).then_some(FailureStreak::Gateway)).collect();
    assert_eq!(told, expected);
    note(&outlier, &[AttemptOutcome::Success]);
    assert_eq!(outlier.streaks(), Streaks::default());
    assert_eq!(note(&outlier, &[AttemptOutcome::Gateway; 5])[4], Some(FailureStreak::Gateway));
    outlier.forget_streaks(Instant::now());
    assert_eq!(note(&outlier, &[AttemptOutcome::Gateway; 5])[4], Some(FailureStreak::Gateway));
}

#[test]
fn gateway_and_local_errors_are_counted_apart() {
    use AttemptOutcome::{ClientError, Connect, Gateway, Reset, ServerError, Timeout};
    let after = |outcomes: &[AttemptOutcome]| {
        let outlier = Outlier::new(1);
        note(&outlier, outcomes);
        (outlier.streaks().gateway, outlier.streaks().local)
    };
    assert_eq!(after(&[Connect, Reset, Timeout]), (0, 3), "of whatever kind");
    assert_eq!(after(&[Connect, Connect, Gateway]), (1, 0), "an answer shows that it can be reached");
    assert_eq!(after(&[Gateway, Connect, Gateway]), (2, 0), "no answer is no good one");
    assert_eq!(after(&[Gateway, Connect, ClientError]), (0, 0));
    assert_eq!(after(&[Gateway, Connect, ServerError]), (0, 0), "a 500 is an answer of the application");
    let all = Settings { count_server_errors: true, ..Settings::default() };
    let outlier = Outlier::new(1);
    let told: Vec<_> = (0..5).map(|_| outlier.note(0, ServerError, MS, Instant::now, &all)).collect();
    assert_eq!(told[4], Some(FailureStreak::Gateway));
}

#[test]
fn of_attempts_without_an_answer_it_is_known_how_they_failed() {
    use AttemptOutcome::{Connect, Reset, Success, Timeout};
    let outlier = Outlier::new(1);
    note(&outlier, &[Connect, Reset, Timeout, Reset, Connect, Connect]);
    assert_eq!(outlier.streaks(), Streaks { gateway: 0, local: 6, reset: 2, late: 1 });
    note(&outlier, &[Success]);
    assert_eq!(outlier.streaks(), Streaks::default());
}

#[test]
fn what_began_before_something_was_heard_of_it_extends_no_succession() {
    let (outlier, settings) = (Outlier::new(1), Settings::default());
    let heard = Instant::now() + Duration::from_secs(60);
    outlier.count_from(heard);
    // Never back: what is known is known.
    outlier.count_from(heard - Duration::from_secs(30));
    let ended = heard + Duration::from_secs(10);
    for (outcome, began_s, counts) in [
        (AttemptOutcome::Timeout, 9, true),
        (AttemptOutcome::Timeout, 11, false),
        (AttemptOutcome::Connect, 10, true),
        (AttemptOutcome::Reset, 30, false),
        (AttemptOutcome::Reset, 0, true),
    ] {
        let before = outlier.streaks().local;
        outlier.note(0, outcome, Duration::from_secs(began_s), || ended, &settings);
        assert_eq!(outlier.streaks().local - before, u32::from(counts), "{outcome:?} begun {began_s} s ago");
    }
    // Rates have it all the same.
    assert_eq!(outlier.totals().outcomes[AttemptOutcome::Timeout as usize], 2);
    // An answer is one, however old.
    outlier.note(0, AttemptOutcome::Gateway, Duration::from_secs(50), || ended, &settings);
    assert_eq!(outlier.streaks(), Streaks { gateway: 1, ..Streaks::default() });
}

#[test]
fn a_threshold_of_nothing_is_off() {
    let off = Settings { consecutive_gateway: 0, consecutive_local: 0, ..Settings::default() };
    let outlier = Outlier::new(1);
    for outcome in [AttemptOutcome::Gateway, AttemptOutcome::Connect] {
        assert!((0..20).all(|_| outlier.note(0, outcome, MS, Instant::now, &off).is_none()));
    }
}

#[test]
fn of_many_workers_exactly_one_is_told() {
    for _ in 0..50 {
        let outlier = Arc::new(Outlier::new(4));
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let outlier = Arc::clone(&outlier);
                let failing = move || {
                    outlier.note(worker, AttemptOutcome::Connect, MS, Instant::now, &Settings::default()).is_some()
                };
                thread::spawn(move || (0..25).filter(|_| failing()).count())
            })
            .collect();
        let told: usize = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
        assert_eq!(told, 1);
        assert_eq!(outlier.totals().outcomes[AttemptOutcome::Connect as usize], 100);
    }
}

#[test]
fn statuses_are_sorted() {
    let of = |statuses: &[u16]| statuses.iter().map(|&status| AttemptOutcome::of_status(status)).collect::<Vec<_>>();
    assert_eq!(of(&[101, 200, 304, 399]), [AttemptOutcome::Success; 4]);
    assert_eq!(of(&[400, 404, 429, 499]), [AttemptOutcome::ClientError; 4]);
    assert_eq!(of(&[502, 503, 504]), [AttemptOutcome::Gateway; 3]);
    assert_eq!(of(&[500, 501, 505, 599, 999]), [AttemptOutcome::ServerError; 5]);
}

#[test]
fn what_was_noted_in_between_is_told() {
    let outlier = Outlier::new(2);
    note(&outlier, &[AttemptOutcome::Success, AttemptOutcome::Gateway]);
    let before = outlier.totals();
    let settings = Settings::default();
    outlier.note(0, AttemptOutcome::Success, Duration::from_micros(1 << 10), Instant::now, &settings);
    outlier.note(1, AttemptOutcome::Success, Duration::from_micros(1 << 14), Instant::now, &settings);
    outlier.note(1, AttemptOutcome::Timeout, Duration::from_micros(1 << 15), Instant::now, &settings);
    outlier.note(0, AttemptOutcome::Gateway, MS, Instant::now, &settings);
    outlier.note(0, AttemptOutcome::ServerError, MS, Instant::now, &settings);
    outlier.note(0, AttemptOutcome::ClientError, MS, Instant::now, &settings);
    let slot = outlier.totals().since(&before);
    let squares = 100.0 + 196.0 + 225.0;
    assert_eq!(slot, OutlierSlot { attempts: 6, failed: 2, errors: 3, timed: 3, logs: 39.0, squares });
}
