use proptest::prelude::*;

use super::*;
use crate::config::{DnsConfig, Table};

const S: Duration = Duration::from_secs(1);

fn endpoint(last: u8) -> Endpoint {
    Endpoint { host: "u".into(), ip: [10, 0, 0, last].into(), port: 80, priority: 0, weight: 1 }
}

fn six(last: u16) -> Endpoint {
    Endpoint { ip: [0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into(), ..endpoint(0) }
}

fn found(endpoints: impl IntoIterator<Item = Endpoint>, ttl: u32) -> LookedUp {
    LookedUp::Found { endpoints: endpoints.into_iter().collect(), ttl: ttl * S, unknown: Vec::new() }
}

fn known(change: impl FnOnce(&mut DnsHoldConfig)) -> (Known, Instant) {
    let DnsConfig { mut hold, min_ttl, max_ttl, .. } = DnsConfig::of_defaults();
    change(&mut hold);
    let now = Instant::now();
    (Known::new(hold, Pace { min_ttl, max_ttl }, Vec::new(), now), now)
}

fn these(lasts: &[u8]) -> Saying {
    Saying::These(lasts.iter().map(|&it| endpoint(it)).collect())
}

#[test]
fn a_name_is_looked_up_again_when_its_ttl_is_over_within_bounds() {
    let (mut known, now) = known(|_| ());
    let mut due = |ttl, random| known.take(found([endpoint(1)], ttl), now, random).1;
    assert_eq!([due(0, 0), due(1, 0), due(60, 0), due(86_400, 0)], [S, S, 60 * S, 300 * S]);
    // A tenth less at most, so that names that were looked up together part.
    assert!((54 * S..55 * S).contains(&due(60, 1023)));
    assert_eq!(due(0, 1023), S);
}

#[test]
fn an_answer_with_addresses_is_believed_and_its_order_is_not() {
    let (mut known, now) = known(|_| ());
    for (answer, expected) in [([2, 1], [1, 2]), ([1, 2], [1, 2]), ([3, 2], [2, 3])] {
        assert_eq!(known.take(found(answer.map(endpoint), 1), now, 0).0, these(&expected));
    }
}

#[test]
fn silence_and_failures_take_nothing_away() {
    let (mut known, now) = known(|_| ());
    known.take(found([endpoint(1)], 1), now, 0);
    for hours in 1..100 {
        let at = now + hours * 3600 * S;
        let silence = known.take(LookedUp::Silence("timed out".into()), at, 0).0;
        assert_eq!(silence, Saying::Nothing("timed out".into()));
        let failure = known.take(LookedUp::Failure("SERVFAIL".into()), at, 0).0;
        assert_eq!(failure, Saying::Nothing("SERVFAIL".into()));
    }
}

#[test]
fn they_do_where_the_configuration_says_so_once_their_time_is_over() {
    let (mut known, now) = known(|hold| hold.timeout = Some(10 * S));
    let silence = || LookedUp::Silence("timed out".into());
    let nothing = Saying::Nothing("timed out".into());
    // Nothing is known: there is nothing to take away.
    assert_eq!(known.take(silence(), now, 0).0, nothing);
    known.take(found([endpoint(1)], 1), now + S, 0);
    assert_eq!(known.take(silence(), now + 20 * S, 0).0, nothing);
    assert_eq!(known.take(silence(), now + 29 * S, 0).0, nothing);
    assert_eq!(known.take(silence(), now + 30 * S, 0).0, Saying::None { hold: Duration::ZERO });
    assert_eq!(known.take(found([endpoint(1)], 1), now + 31 * S, 0).0, these(&[1]));
    assert_eq!(known.take(silence(), now + 40 * S, 0).0, nothing);
}

#[test]
fn that_there_is_nothing_is_held_back_and_of_a_name_that_never_was_a_failure() {
    let (mut known, now) = known(|hold| hold.empty = None);
    assert!(matches!(known.take(LookedUp::NoSuchName, now, 0).0, Saying::Nothing(_)));
    assert!(matches!(known.take(LookedUp::NoAddress, now, 0).0, Saying::Nothing(_)));
    known.take(found([endpoint(1)], 1), now, 0);
    assert_eq!(known.take(LookedUp::NoSuchName, now, 0), (Saying::None { hold: 300 * S }, AGAIN));
    assert_eq!(known.take(LookedUp::NoAddress, now, 0), (Saying::None { hold: FOREVER }, AGAIN));
}

#[test]
fn what_other_answers_do_not_have_is_let_go_when_its_time_is_over() {
    let (mut known, now) = known(|hold| hold.gone = 30 * S);
    assert_eq!(known.take(found([endpoint(1), endpoint(2)], 60), now, 0).1, 60 * S);
    let (saying, due) = known.take(found([endpoint(2)], 60), now + 10 * S, 0);
    assert_eq!((saying, due), (these(&[1, 2]), 20 * S));
    assert_eq!(known.take(found([endpoint(3)], 60), now + 30 * S, 0), (these(&[2, 3]), 10 * S));
    // One that an answer has again is as new.
    assert_eq!(known.take(found([endpoint(1), endpoint(3)], 60), now + 41 * S, 0), (these(&[1, 3]), 60 * S));
}

#[test]
fn what_an_answer_does_not_say_stays() {
    let (mut known, now) = known(|_| ());
    known.take(found([endpoint(1), six(1)], 1), now, 0);
    let only =
        |ipv6, endpoints: Vec<Endpoint>| LookedUp::Found { endpoints, ttl: S, unknown: vec![Unknown::Family { ipv6 }] };
    let saying = known.take(only(true, vec![endpoint(2)]), now + S, 0).0;
    assert_eq!(saying, Saying::These(vec![endpoint(2), six(1)]));
    let saying = known.take(only(false, vec![six(2)]), now + S, 0).0;
    assert_eq!(saying, Saying::These(vec![endpoint(2), six(2)]));
    let other = Endpoint { host: "v".into(), ..endpoint(9) };
    known.take(found([endpoint(2), other.clone()], 1), now + S, 0);
    let unknown = vec![Unknown::Host("v".into())];
    let saying = known.take(LookedUp::Found { endpoints: vec![endpoint(3)], ttl: S, unknown }, now + S, 0).0;
    assert_eq!(saying, Saying::These(vec![endpoint(3), other]));
}

#[test]
fn what_was_left_by_an_earlier_process_counts_as_known() {
    let DnsConfig { hold, min_ttl, max_ttl, .. } = DnsConfig::of_defaults();
    let now = Instant::now();
    let mut known = Known::new(hold, Pace { min_ttl, max_ttl }, vec![endpoint(1)], now);
    assert_eq!(known.take(LookedUp::NoSuchName, now, 0).0, Saying::None { hold: 300 * S });
}

fn any_look_up() -> impl Strategy<Value = LookedUp> {
    prop_oneof![
        3 => (prop::collection::btree_set(1..6_u8, 1..4), 0..1000_u32).prop_map(|(lasts, ttl)| found(lasts.into_iter().map(endpoint), ttl)),
        1 => Just(LookedUp::NoSuchName),
        1 => Just(LookedUp::NoAddress),
        1 => Just(LookedUp::Failure("SERVFAIL".into())),
        1 => Just(LookedUp::Silence("timed out".into())),
    ]
}

proptest! {
    /// Whatever comes: what is said was said by a name server, what the last answer has is said, nothing outlives its time, and no name is looked
    /// up more often or more rarely than it may be.
    #[test]
    fn nothing_is_made_up_lost_or_kept_too_long(
        steps in prop::collection::vec((any_look_up(), 0..40_u32, any::<u64>()), 1..60),
        gone in 0..60_u32,
    ) {
        let (mut known, begin) = known(|hold| hold.gone = gone * S);
        let (mut now, mut last) = (begin, std::collections::HashMap::new());
        for (looked_up, pause, random) in steps {
            now += pause * S;
            let answered = match &looked_up {
                LookedUp::Found { endpoints, .. } => Some(endpoints.clone()),
                _ => None,
            };
            last.extend(answered.iter().flatten().map(|it| (it.clone(), now)));
            let (saying, due) = known.take(looked_up, now, random);
            prop_assert!((S..=300 * S).contains(&due), "{:?}", due);
            match saying {
                Saying::These(said) => {
                    let answered = answered.unwrap();
                    prop_assert!(answered.iter().all(|it| said.contains(it)));
                    for endpoint in &said {
                        let age = now - last[endpoint];
                        prop_assert!(age.is_zero() || age < gone * S, "{:?}", age);
                    }
                    for (endpoint, at) in &last {
                        prop_assert_eq!(said.contains(endpoint), answered.contains(endpoint) || now - *at < gone * S);
                    }
                }
                Saying::None { hold } => prop_assert!(!last.is_empty() && hold == 300 * S),
                Saying::Nothing(_) => prop_assert!(answered.is_none()),
            }
        }
    }
}
