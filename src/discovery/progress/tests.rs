use super::*;
use crate::backend::Instance;

const S: Duration = Duration::from_secs(1);

fn address(port: u16) -> Address {
    Address::Ip(([10, 0, 0, 1], port).into())
}

fn set(ports: &[u16]) -> BackendSet {
    ports.iter().map(|&port| Instance::new(address(port))).collect()
}

fn ports(progress: &SourceProgress) -> Vec<u16> {
    let mut ports: Vec<_> = progress.set().unwrap().iter().map(|it| it.address.socket().unwrap().port()).collect();
    ports.sort_unstable();
    ports
}

fn refused() -> DiscoveryError {
    DiscoveryError::new("connection refused")
}

fn none_fails(_: &Address) -> bool {
    false
}

fn believing() -> SourceProgress {
    SourceProgress::new(Rules::believing(), None)
}

/// Half of the backends may vanish within a minute.
fn guarded() -> SourceProgress {
    SourceProgress::new(Rules { removed_percent: 50, hold: 60 * S, ..Rules::believing() }, None)
}

/// What is told of answers that come a second after each other; `None` is an error.
fn told(answers: &[Option<&[u16]>]) -> Vec<(bool, Option<String>)> {
    let (mut progress, begin) = (believing(), Instant::now());
    let steps = answers.iter().zip(0..).map(|(answer, second)| {
        let answer = answer.map(set).ok_or_else(refused);
        let step = progress.take(answer, begin + Duration::from_secs(second), 0, &none_fails);
        (step.news, step.told)
    });
    steps.collect()
}

#[test]
fn each_change_of_state_is_told_once() {
    let told = told(&[Some(&[1, 2]), Some(&[1, 2]), Some(&[1]), None, None, None, Some(&[1]), Some(&[])]);
    let words = |text: &str| Some(text.to_owned());
    let expected = [
        (true, words("2 backends")),
        (false, None),
        (true, None),
        (true, words("connection refused; keeping 1 backend, retry in 0.2 s")),
        (false, None),
        (false, None),
        (true, words("1 backend, after 3 failures in 3.0 s")),
        (true, None),
    ];
    assert_eq!(told, expected);
}

#[test]
fn before_the_first_answer_a_failure_says_that_nothing_is_known() {
    let told = told(&[None, Some(&[1])]);
    assert_eq!(told[0].1.as_deref(), Some("connection refused; no backends are known, retry in 0.2 s"));
    assert_eq!(told[1].1.as_deref(), Some("1 backend, after 1 failures in 1.0 s"));
}

#[test]
fn a_failure_keeps_the_last_set_and_says_another_reason_without_telling_it() {
    let (mut progress, now) = (believing(), Instant::now());
    progress.take(Ok(set(&[1])), now, 0, &none_fails);
    progress.take(Err(DiscoveryError::new("refused")), now, 0, &none_fails);
    let step = progress.take(Err(DiscoveryError::new("timed out")), now, 0, &none_fails);
    assert_eq!((step.news, step.told), (true, None));
    assert_eq!(progress.set(), Some(&set(&[1])));
    assert_eq!(progress.condition(), &SourceCondition::Failing { error: "timed out".into() });
}

#[test]
fn pauses_grow_to_a_bound_and_start_anew_after_a_success() {
    let (mut progress, now) = (believing(), Instant::now());
    let fail = |progress: &mut SourceProgress, random| {
        progress.take(Err(DiscoveryError::new("no")), now, random, &none_fails).pause
    };
    let pauses: Vec<_> = (0..9).map(|_| fail(&mut progress, 1023).as_secs_f64().ceil()).collect();
    assert_eq!(pauses, [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]);
    for _ in 0..100 {
        assert!(fail(&mut progress, u64::MAX) <= PAUSE_MAX && fail(&mut progress, 0) >= PAUSE_MAX / 2);
    }
    progress.take(Ok(set(&[1])), now, 0, &none_fails);
    assert!(fail(&mut progress, u64::MAX) <= PAUSE_FIRST);
    let mut near = SourceProgress::new(Rules { pause_max: S, ..Rules::believing() }, None);
    assert!((0..20).all(|_| fail(&mut near, u64::MAX) <= S));
}

#[test]
fn an_empty_answer_takes_nothing_until_it_has_lasted() {
    let (mut progress, begin) = (guarded(), Instant::now());
    progress.take(Ok(set(&[1, 2, 3])), begin, 0, &none_fails);
    let step = progress.take(Ok(set(&[])), begin + S, 0, &none_fails);
    assert_eq!(
        step.told.as_deref(),
        Some("0 backends, and 3 that are no longer named are kept until they fail or 60s are over")
    );
    assert_eq!((ports(&progress), progress.is_to_be_reviewed()), (vec![1, 2, 3], true));
    // It says so again: that is no news, and puts nothing off.
    let again = progress.take(Ok(set(&[])), begin + 50 * S, 0, &none_fails);
    assert_eq!((again.news, again.told), (false, None));
    assert_eq!(progress.review(begin + 60 * S, &none_fails), None);
    let over = progress.review(begin + 61 * S, &none_fails).unwrap();
    assert!(over.news && over.told.is_some());
    assert_eq!((ports(&progress), progress.condition()), (vec![], &SourceCondition::Current));
}

#[test]
fn what_is_held_back_goes_when_it_fails_and_stays_when_it_is_named_again() {
    let (mut progress, begin) = (guarded(), Instant::now());
    progress.take(Ok(set(&[1, 2, 3, 4])), begin, 0, &none_fails);
    // What is new is served with at once.
    progress.take(Ok(set(&[5])), begin + S, 0, &none_fails);
    assert_eq!(ports(&progress), [1, 2, 3, 4, 5]);
    let one_fails = |it: &Address| *it == address(1);
    let step = progress.review(begin + 2 * S, &one_fails).unwrap();
    assert_eq!((step.news, step.told), (true, None));
    assert_eq!(ports(&progress), [2, 3, 4, 5]);
    assert_eq!(progress.condition(), &SourceCondition::Holding { backends: 3 });
    let step = progress.take(Ok(set(&[2, 3, 4, 5])), begin + 3 * S, 0, &none_fails);
    assert!(step.told.is_some());
    assert_eq!((ports(&progress), progress.condition()), (vec![2, 3, 4, 5], &SourceCondition::Current));
}

#[test]
fn those_that_vanish_one_after_the_other_count_together_for_as_long_as_they_would_be_held() {
    let (mut progress, begin) = (guarded(), Instant::now());
    let at = |second: u32| begin + S * second;
    progress.take(Ok(set(&[1, 2, 3, 4])), begin, 0, &none_fails);
    progress.take(Ok(set(&[2, 3, 4])), at(1), 0, &none_fails);
    progress.take(Ok(set(&[3, 4])), at(2), 0, &none_fails);
    assert_eq!((ports(&progress), progress.is_to_be_reviewed()), (vec![3, 4], false));
    progress.take(Ok(set(&[4])), at(3), 0, &none_fails);
    assert_eq!((ports(&progress), progress.is_to_be_reviewed()), (vec![3, 4], true));
    // What is held back is so for its own time, also when the first are long gone and it is one of two.
    assert_eq!(progress.review(at(62), &none_fails), None);
    progress.review(at(63), &none_fails).unwrap();
    assert_eq!((ports(&progress), progress.is_to_be_reviewed()), (vec![4], false));
}

#[test]
fn a_part_that_may_vanish_does_so_at_once() {
    let (mut progress, begin) = (guarded(), Instant::now());
    progress.take(Ok(set(&[1, 2])), begin, 0, &none_fails);
    progress.take(Ok(set(&[2])), begin, 0, &none_fails);
    assert_eq!((ports(&progress), progress.is_to_be_reviewed()), (vec![2], false));
}

#[test]
fn a_source_that_fails_confirms_nothing() {
    let (mut progress, begin) = (guarded(), Instant::now());
    progress.take(Ok(set(&[1, 2, 3])), begin, 0, &none_fails);
    progress.take(Ok(set(&[])), begin + S, 0, &none_fails);
    progress.take(Err(refused()), begin + 2 * S, 0, &none_fails);
    assert_eq!(progress.review(begin + 600 * S, &none_fails), None);
    assert_eq!(ports(&progress), [1, 2, 3]);
    // It comes back and still says so: the minute goes on where it stopped.
    progress.take(Ok(set(&[])), begin + 602 * S, 0, &none_fails);
    assert_eq!((ports(&progress), progress.is_to_be_reviewed()), (vec![1, 2, 3], true));
    assert_eq!(progress.review(begin + 660 * S, &none_fails), None);
    progress.review(begin + 661 * S, &none_fails).unwrap();
    assert_eq!((ports(&progress), progress.is_to_be_reviewed()), (vec![], false));
}

#[test]
fn what_has_vanished_counts_also_over_a_failure() {
    let (mut progress, begin) = (guarded(), Instant::now());
    progress.take(Ok(set(&[1, 2, 3, 4])), begin, 0, &none_fails);
    progress.take(Ok(set(&[3, 4])), begin + S, 0, &none_fails);
    progress.take(Err(refused()), begin + 2 * S, 0, &none_fails);
    progress.take(Ok(set(&[4])), begin + 600 * S, 0, &none_fails);
    assert_eq!((ports(&progress), progress.is_to_be_reviewed()), (vec![3, 4], true));
}

#[test]
fn what_an_earlier_process_has_left_counts_until_the_first_answer_and_is_guarded() {
    let rules = Rules { removed_percent: 50, hold: 60 * S, ..Rules::believing() };
    let (mut progress, begin) = (SourceProgress::new(rules, Some(set(&[1, 2, 3]))), Instant::now());
    assert_eq!((ports(&progress), progress.condition()), (vec![1, 2, 3], &SourceCondition::Awaited));
    let step = progress.take(Err(refused()), begin, 0, &none_fails);
    assert!(step.told.unwrap().contains("keeping 3 backends"));
    progress.take(Ok(set(&[])), begin + S, 0, &none_fails);
    assert_eq!((ports(&progress), progress.is_to_be_reviewed()), (vec![1, 2, 3], true));
    progress.take(Ok(set(&[1, 2, 3, 4])), begin + 2 * S, 0, &none_fails);
    assert_eq!((ports(&progress), progress.is_to_be_reviewed()), (vec![1, 2, 3, 4], false));
}

#[test]
fn an_answer_may_have_all_held_back_that_it_does_not_have_until_it_fails_or_its_time_is_over() {
    let (mut progress, begin) = (believing(), Instant::now());
    progress.take(Ok(set(&[1, 2])), begin, 0, &none_fails);
    progress.hold_for(Some(10 * S));
    let step = progress.take(Ok(set(&[])), begin + S, 0, &none_fails);
    let words = "0 backends, and 2 that are no longer named are kept until they fail or 10s are over";
    assert_eq!((step.told.as_deref(), ports(&progress)), (Some(words), vec![1, 2]));
    let one_fails = |it: &Address| *it == address(1);
    assert!(progress.review(begin + 2 * S, &one_fails).unwrap().news);
    assert_eq!(ports(&progress), [2]);
    assert_eq!(progress.review(begin + 10 * S, &none_fails), None);
    assert_eq!(progress.review(begin + 11 * S, &none_fails).unwrap().told.as_deref(), Some("0 backends"));
    assert_eq!(ports(&progress), [] as [u16; 0]);
    // For good.
    progress.hold_for(None);
    progress.take(Ok(set(&[3])), begin + 12 * S, 0, &none_fails);
    progress.hold_for(Some(Duration::MAX));
    let step = progress.take(Ok(set(&[])), begin + 13 * S, 0, &none_fails);
    assert_eq!(step.told.as_deref(), Some("0 backends, and 1 that are no longer named are kept until they fail"));
    assert_eq!(progress.review(begin + 1_000_000 * S, &none_fails), None);
    // And what another answer has takes its place at once.
    progress.hold_for(None);
    progress.take(Ok(set(&[4])), begin + 1_000_001 * S, 0, &none_fails);
    assert_eq!(ports(&progress), [4]);
}

/// Answers of a guarded source, a second after each other, and the ports that are served after each.
fn served(progress: &mut SourceProgress, begin: Instant, from: u64, answers: &[&[u16]]) -> Vec<Vec<u16>> {
    let mut all = Vec::new();
    for (answer, second) in answers.iter().zip(from..) {
        progress.take(Ok(set(answer)), begin + Duration::from_secs(second), 0, &none_fails);
        all.push(ports(progress));
    }
    all
}

#[test]
fn a_backend_that_comes_and_goes_is_taken_when_it_has_stayed_longer_each_time() {
    let (mut progress, begin) = (guarded(), Instant::now());
    let (with, without): (&[u16], &[u16]) = (&[1, 2, 3, 4], &[1, 2, 3]);
    let flapping = [with, without, with, without, with, without];
    let seen = served(&mut progress, begin, 0, &flapping);
    assert_eq!(seen, flapping);
    // It has gone three times.
    let step = progress.take(Ok(set(with)), begin + 6 * S, 0, &none_fails);
    assert_eq!(step.told.as_deref(), Some("1 backend that came and went is not taken before it has stayed"));
    assert_eq!((ports(&progress), progress.damped(), progress.is_to_be_reviewed()), (without.to_vec(), 1, true));
    assert_eq!(progress.review(begin + 10 * S, &none_fails), None);
    let step = progress.review(begin + 11 * S, &none_fails).unwrap();
    assert_eq!((step.news, step.told, ports(&progress)), (true, None, with.to_vec()));
    // The next time it takes twice as long, and other changes count meanwhile.
    served(&mut progress, begin, 12, &[without, with, &[1, 2, 3, 4, 5]]);
    assert_eq!(ports(&progress), [1, 2, 3, 5]);
    assert!(progress.review(begin + 22 * S, &none_fails).is_none());
    progress.review(begin + 23 * S, &none_fails).unwrap();
    assert_eq!((ports(&progress), progress.is_to_be_reviewed()), (vec![1, 2, 3, 4, 5], false));
    // After five quiet minutes it is as any other.
    served(&mut progress, begin, 400, &[&[1, 2, 3, 5], &[1, 2, 3, 4, 5]]);
    assert_eq!(ports(&progress), [1, 2, 3, 4, 5]);
}

#[test]
fn where_half_of_all_come_and_go_the_registry_flaps_and_all_are_taken() {
    let (mut progress, begin) = (guarded(), Instant::now());
    for (second, n) in (0..40).zip(0..) {
        let answer: &[u16] = if n % 2 == 0 { &[1, 2, 3, 4] } else { &[1, 2] };
        progress.take(Ok(set(answer)), begin + Duration::from_secs(second), 0, &none_fails);
        assert_eq!(progress.damped(), 0);
        assert!(ports(&progress).len() >= answer.len());
    }
}

#[test]
fn what_is_believed_at_once_is_not_damped_and_what_is_held_back_is_simply_there() {
    let (mut progress, begin) = (believing(), Instant::now());
    for second in 0..20 {
        let answer: &[u16] = if second % 2 == 0 { &[1, 2, 3] } else { &[1, 2] };
        progress.take(Ok(set(answer)), begin + Duration::from_secs(second), 0, &none_fails);
        assert_eq!(ports(&progress), answer);
    }
    // Two of three vanish again and again: they are held back, and have never left.
    let mut progress = guarded();
    for second in 0..20 {
        let answer: &[u16] = if second % 2 == 0 { &[1, 2, 3] } else { &[1] };
        progress.take(Ok(set(answer)), begin + Duration::from_secs(second), 0, &none_fails);
        assert_eq!(ports(&progress), [1, 2, 3]);
    }
}

#[test]
fn what_takes_nothing_may_vanish_however_much_it_is() {
    let (mut progress, now) = (guarded(), Instant::now());
    let drains = |port: u16, weight: u16| Instance { weight, ..Instance::new(address(port)) };
    progress.take(
        Ok([drains(1, 1), drains(2, 1), drains(3, 1), drains(4, 1)].into_iter().collect()),
        now,
        0,
        &none_fails,
    );
    progress.take(
        Ok([drains(1, 0), drains(2, 0), drains(3, 0), drains(4, 1)].into_iter().collect()),
        now,
        0,
        &none_fails,
    );
    progress.take(Ok(set(&[4])), now, 0, &none_fails);
    assert_eq!((ports(&progress), progress.is_to_be_reviewed()), (vec![4], false));
    progress.take(Ok(set(&[])), now, 0, &none_fails);
    assert_eq!((ports(&progress), progress.is_to_be_reviewed()), (vec![4], true));
}

#[test]
fn a_registry_that_comes_back_one_by_one_releases_none_of_those_that_are_held_back() {
    let (mut progress, begin) = (guarded(), Instant::now());
    let answers: [&[u16]; 5] = [&[1, 2, 3, 4], &[], &[1], &[1, 2], &[1, 2, 3]];
    for seen in served(&mut progress, begin, 0, &answers) {
        assert_eq!(seen, [1, 2, 3, 4]);
    }
    assert_eq!(progress.condition(), &SourceCondition::Holding { backends: 1 });
    // The last one has not come back.
    progress.review(begin + 61 * S, &none_fails).unwrap();
    assert_eq!((ports(&progress), progress.condition()), (vec![1, 2, 3], &SourceCondition::Current));
}
