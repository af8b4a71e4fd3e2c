use proptest::prelude::{Strategy as _, any, prop, prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::strategy::Dice;

fn member(priority: u16, standing: Standing) -> TierMember {
    TierMember { standing, weight: 1, priority, backup: false, zone: None }
}

/// Tiers of a hundred backends, so many of each ready.
fn percents(ready: &[usize]) -> Vec<TierMember> {
    let tier = |(priority, &ready): (usize, &usize)| {
        (0..100)
            .map(move |index| member(priority as u16, if index < ready { Standing::Ready } else { Standing::Unready }))
    };
    ready.iter().enumerate().flat_map(tier).collect()
}

fn tier_shares(plan: &TierPlan, tiers: usize) -> Vec<f64> {
    let share = |tier: u16| {
        let sets = plan.sets.iter().filter(|set| set.tier == Some(tier));
        sets.map(|set| set.share).sum::<u64>() as f64 * 100.0 / WHOLE as f64
    };
    (0..tiers as u16).map(share).collect()
}

/// The tables of Envoy's pages on priority levels and panic threshold. It rounds to whole percents, down for each health, so
/// one percent of difference is theirs. Its second table of the panic page has 50/50 and 25/75 in two rows where its own
/// formula, and the first table, have 70/30 and 35/65; those are here.
#[test]
fn the_shares_are_those_that_envoy_documents() {
    let table: [(&[usize], &[f64], &[u16]); 20] = [
        (&[100, 100], &[100.0, 0.0], &[]),
        (&[72, 100], &[100.0, 0.0], &[]),
        (&[71, 100], &[99.0, 1.0], &[]),
        (&[50, 100], &[70.0, 30.0], &[]),
        (&[25, 100], &[35.0, 65.0], &[]),
        (&[0, 100], &[0.0, 100.0], &[]),
        (&[72, 72], &[100.0, 0.0], &[]),
        (&[71, 71], &[99.0, 1.0], &[]),
        (&[50, 50], &[70.0, 30.0], &[]),
        (&[50, 60], &[70.0, 30.0], &[]),
        (&[25, 25], &[50.0, 50.0], &[0, 1]),
        (&[5, 65], &[7.0, 93.0], &[0]),
        (&[100, 100, 100], &[100.0, 0.0, 0.0], &[]),
        (&[72, 72, 100], &[100.0, 0.0, 0.0], &[]),
        (&[71, 71, 100], &[99.0, 1.0, 0.0], &[]),
        (&[50, 50, 100], &[70.0, 30.0, 0.0], &[]),
        (&[25, 100, 100], &[35.0, 65.0, 0.0], &[]),
        (&[25, 25, 100], &[35.0, 35.0, 30.0], &[]),
        (&[25, 25, 20], &[36.0, 36.0, 28.0], &[0, 1, 2]),
        (&[0, 0], &[100.0, 0.0], &[0, 1]),
    ];
    for (ready, shares, panic) in table {
        let plan = plan(&percents(ready), &Settings::default());
        for (share, expected) in tier_shares(&plan, ready.len()).iter().zip(shares) {
            assert!((share - expected).abs() <= 1.0, "{ready:?}: {share} instead of {expected}");
        }
        let panic: Vec<_> = panic.iter().map(|&tier| Some(tier)).collect();
        assert_eq!(plan.panic, panic, "{ready:?}");
    }
}

#[test]
fn shares_are_exact() {
    let shares = |ready: &[usize]| tier_shares(&plan(&percents(ready), &Settings::default()), ready.len());
    for (found, expected) in [
        (shares(&[71, 100]), vec![99.4, 0.6]),
        (shares(&[30, 30]), vec![50.0, 50.0]),
        (shares(&[20, 30]), vec![40.0, 60.0]),
        (shares(&[25, 25, 20]), vec![250.0 / 7.0, 250.0 / 7.0, 200.0 / 7.0]),
    ] {
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
        }
    }
}

#[test]
fn in_ordinary_times_one_set_has_everything_and_no_number_is_drawn() {
    let plan = plan(&percents(&[100]), &Settings::default());
    assert_eq!(plan.sets.len(), 1);
    assert_eq!(plan.sets[0].members, (0..100).collect::<Vec<_>>());
    assert_eq!(plan.draw(|| unreachable!("no number is needed")), Some(0));
    assert_eq!(plan.panic, []);
    assert!(plan.ready.is_empty());
}

#[test]
fn a_backup_waits_behind_all_priorities() {
    let mut members = vec![member(9, Standing::Ready), member(0, Standing::Ready), member(0, Standing::Ready)];
    members[1].backup = true;
    let sets = |members: &[TierMember]| {
        let plan = plan(members, &Settings::default());
        let sets = plan.sets.iter().map(|set| (set.tier, set.members.clone(), set.share));
        (sets.collect::<Vec<_>>(), plan.draw(|| unreachable!()))
    };
    let all = vec![(Some(0), vec![2], WHOLE), (Some(9), vec![0], 0), (None, vec![1], 0)];
    assert_eq!(sets(&members), (all, Some(0)));
    members[2].standing = Standing::Unready;
    members[0].standing = Standing::Out;
    assert_eq!(sets(&members), (vec![(None, vec![1], WHOLE)], Some(0)));
}

#[test]
fn in_panic_readiness_is_ignored_and_retries_go_to_the_ready() {
    let mut members = vec![member(0, Standing::Unready); 5];
    members[1].standing = Standing::Ready;
    members[4].standing = Standing::Out;
    members[3].weight = 0;
    let found = plan(&members, &Settings::default());
    assert_eq!((&found.panic[..], &found.ready[..]), (&[Some(0)][..], &[1][..]));
    assert_eq!(found.sets.len(), 1);
    assert_eq!((&found.sets[0].members[..], found.sets[0].share), (&[0, 1, 2][..], WHOLE));
    let never = plan(&members, &Settings { panic_percent: 0, ..Settings::default() });
    assert_eq!((&never.sets[0].members[..], never.sets[0].share), (&[1][..], WHOLE));
    assert_eq!(never.panic, []);
}

#[test]
fn panic_does_not_go_looking_for_the_dead() {
    let mut members = vec![member(0, Standing::Unreachable); 3];
    members[1].standing = Standing::Ready;
    let offered = |members: &[TierMember]| {
        let plan = plan(members, &Settings::default());
        let sets = plan.sets.iter().map(|set| (set.members.clone(), set.share)).collect::<Vec<_>>();
        (sets, !plan.panic.is_empty())
    };
    assert_eq!(offered(&members), (vec![(vec![1], WHOLE)], true), "one of three is left");
    members[1].standing = Standing::Unready;
    assert_eq!(offered(&members), (vec![(vec![1], WHOLE)], true), "who answers wrongly is more than who is gone");
    members[1].standing = Standing::Unreachable;
    assert_eq!(offered(&members), (vec![(vec![0, 1, 2], WHOLE)], true), "nothing else is left");
    members.push(member(1, Standing::Unready));
    assert_eq!(offered(&members), (vec![(vec![3], WHOLE)], true), "in a later tier as well");
}

#[test]
fn half_is_no_panic_yet() {
    let panic = |ready| !plan(&percents(&[ready]), &Settings::default()).panic.is_empty();
    assert_eq!([49, 50, 51].map(panic), [true, false, false]);
}

#[test]
fn capacity_counts_by_weight() {
    let mut members = vec![member(0, Standing::Ready), member(0, Standing::Ready), member(0, Standing::Unready)];
    members[2].weight = 10;
    members.push(member(1, Standing::Ready));
    let shares = tier_shares(&plan(&members, &Settings::default()), 2);
    assert!((shares[0] - 100.0 * 1.4 * 2.0 / 12.0).abs() < 1e-6, "{shares:?}");
}

#[test]
fn with_nobody_ready_or_nobody_at_all() {
    let dead = percents(&[0, 0]);
    let never = Settings { panic_percent: 0, ..Settings::default() };
    assert_eq!(plan(&dead, &never).draw(|| 0), None);
    assert_eq!(plan(&[], &Settings::default()).draw(|| 0), None);
    let panic = plan(&dead, &Settings::default());
    assert_eq!((panic.draw(|| u64::MAX), panic.sets.len(), panic.ready.len()), (Some(0), 2, 0));
    assert_eq!(panic.after(0).collect::<Vec<_>>(), [1], "a retry may try the second tier");
    let out = vec![member(0, Standing::Out); 3];
    assert_eq!(plan(&out, &Settings::default()).draw(|| 0), None, "what is drained stays so in panic");
}

#[test]
fn tiers_that_are_together_just_enough_do_not_panic() {
    let mut members = vec![member(0, Standing::Unready); 3];
    members[0].standing = Standing::Ready;
    members.extend([1, 1, 1].map(|tier| member(tier, Standing::Ready)));
    members[3].standing = Standing::Unready;
    let plan = plan(&members, &Settings { overprovisioning_percent: 100, ..Settings::default() });
    assert_eq!(plan.panic, []);
}

/// Backends by zone: ready ones and others.
fn zoned(zones: &[(&str, usize, usize)]) -> Vec<TierMember> {
    let zone = |&(zone, ready, unready): &(&str, usize, usize)| {
        let standings = [vec![Standing::Ready; ready], vec![Standing::Unready; unready]].concat();
        let name: Arc<str> = zone.into();
        standings.into_iter().map(move |standing| TierMember { zone: Some(Arc::clone(&name)), ..member(0, standing) })
    };
    zones.iter().flat_map(zone).collect()
}

fn zone_percents(members: &[TierMember], zones: Zones) -> Vec<(String, f64)> {
    let plan = plan(members, &Settings { zones: Some(zones), ..Settings::default() });
    let share = |set: &Set| {
        let name = set.zone.as_deref().unwrap_or("all");
        (name.to_owned(), (set.share as f64 * 100.0 / WHOLE as f64 * 1e6).round() / 1e6)
    };
    plan.sets.iter().map(share).collect()
}

fn named(shares: &[(&str, f64)]) -> Vec<(String, f64)> {
    shares.iter().map(|&(name, share)| (name.to_owned(), share)).collect()
}

#[test]
fn requests_stay_in_the_zone_as_far_as_it_can_bear_them() {
    // Half of the capacity for half of the load.
    assert_eq!(zone_percents(&zoned(&[("b", 3, 0), ("a", 3, 0)]), Zones::new("a")), named(&[("a", 100.0), ("b", 0.0)]));
    // A quarter of it for a half: every second request goes.
    assert_eq!(zone_percents(&zoned(&[("a", 2, 1), ("b", 6, 0)]), Zones::new("a")), named(&[("a", 50.0), ("b", 50.0)]));
    // A fifth for a third: 60 % stay; b and c have 2/5 each where they need 1/3: half of the rest each.
    assert_eq!(
        zone_percents(&zoned(&[("a", 2, 0), ("b", 4, 0), ("c", 4, 0)]), Zones::new("a")),
        named(&[("a", 60.0), ("b", 20.0), ("c", 20.0)])
    );
    // c has only what it needs itself: 1/3.
    assert_eq!(
        zone_percents(&zoned(&[("a", 1, 1), ("b", 3, 0), ("c", 2, 0)]), Zones::new("a")),
        named(&[("a", 50.0), ("b", 50.0), ("c", 0.0)])
    );
}

#[test]
fn load_that_is_known_counts() {
    let zones = Zones { load: BTreeMap::from([("a".into(), 1), ("b".into(), 3)]), ..Zones::new("a") };
    assert_eq!(zone_percents(&zoned(&[("a", 2, 0), ("b", 6, 0)]), zones.clone()), named(&[("a", 100.0), ("b", 0.0)]));
    let zones = Zones { load: BTreeMap::from([("a".into(), 3), ("b".into(), 1)]), ..zones };
    assert_eq!(zone_percents(&zoned(&[("a", 4, 0), ("b", 4, 0)]), zones), named(&[("a", 66.666667), ("b", 33.333333)]));
}

#[test]
fn zones_are_not_told_apart_where_it_would_do_harm() {
    let all = named(&[("all", 100.0)]);
    assert_eq!(zone_percents(&zoned(&[("a", 2, 0), ("b", 3, 0)]), Zones::new("a")), all, "too few");
    assert_eq!(zone_percents(&zoned(&[("a", 8, 0)]), Zones::new("a")), all, "one zone");
    assert_eq!(zone_percents(&zoned(&[("a", 4, 0), ("b", 4, 0)]), Zones::new("c")), all, "none of the own zone");
    assert_eq!(zone_percents(&zoned(&[("a", 6, 0), ("b", 1, 20)]), Zones::new("a")), all, "in panic");
    assert_eq!(zone_percents(&zoned(&[("a", 0, 6), ("b", 8, 0)]), Zones::new("a")), all, "the own zone is down");
}

#[test]
fn draws_follow_the_shares() {
    let plan = plan(&percents(&[25, 25, 100]), &Settings::default());
    let mut dice = Dice::seeded(4);
    let mut counts = [0f64; 3];
    for _ in 0..100_000 {
        counts[plan.draw(|| dice.bits()).unwrap()] += 1.0;
    }
    for (count, expected) in counts.iter().zip([35_000.0, 35_000.0, 30_000.0]) {
        assert!((count - expected).abs() < 700.0, "{counts:?}");
    }
    assert_eq!([0, u64::MAX].map(|bits| plan.draw(|| bits)), [Some(0), Some(2)]);
}

fn any_members() -> impl proptest::strategy::Strategy<Value = Vec<TierMember>> {
    use Standing::{Out, Ready, Unreachable, Unready};
    let standing = prop::sample::select(vec![Ready, Ready, Unready, Unreachable, Out]);
    let zone = prop::sample::select(vec![None, Some("a"), Some("b"), Some("c")]);
    let member = (standing, 0u16..20, 0u16..3, prop::bool::weighted(0.2), zone);
    let make = |(standing, weight, priority, backup, zone): (Standing, u16, u16, bool, Option<&str>)| TierMember {
        standing,
        weight,
        priority,
        backup,
        zone: zone.map(Into::into),
    };
    prop::collection::vec(member.prop_map(make), 0..40)
}

fn settings(panic_percent: u32, zones: bool) -> Settings {
    let zones = zones.then(|| Zones { backends_min: 2, ..Zones::new("a") });
    Settings { panic_percent, zones, ..Settings::default() }
}

proptest! {
    /// Shares add up to all, every ready backend is in exactly one set, nobody else but in panic, and who is out nowhere.
    #[test]
    fn nothing_is_lost(members in any_members(), panic in 0u32..=100, zones in prop::bool::ANY) {
        let plan = plan(&members, &settings(panic, zones));
        let counted = |member: &&TierMember| member.standing != Standing::Out && member.weight > 0;
        let lost = members.iter().filter(counted).all(|member| member.standing == Standing::Unreachable);
        let total: u64 = plan.sets.iter().map(|set| set.share).sum();
        prop_assert_eq!(total, if plan.sets.is_empty() { 0 } else { WHOLE });
        for (index, member) in members.iter().enumerate() {
            let sets = plan.sets.iter().filter(|set| set.members.contains(&index)).count();
            let tier = if member.backup { None } else { Some(member.priority) };
            let expected = match member.standing {
                Standing::Out => false,
                _ if member.weight == 0 => false,
                Standing::Ready => true,
                Standing::Unready => plan.panic.contains(&tier),
                Standing::Unreachable => plan.panic.contains(&tier) && lost,
            };
            prop_assert_eq!(sets, usize::from(expected), "backend {} of {:?}", index, plan);
        }
        for set in &plan.sets {
            prop_assert!(!set.members.is_empty() && set.members.is_sorted());
        }
        for bits in [0, 1 << 40, u64::MAX / 2, u64::MAX] {
            let drawn = plan.draw(|| bits);
            prop_assert_eq!(drawn.is_none(), plan.sets.is_empty());
            prop_assert!(drawn.is_none_or(|set| plan.sets[set].share > 0));
        }
        if let Some(first) = plan.draw(|| 0) {
            prop_assert_eq!(plan.after(first).count() + 1, plan.sets.len());
        }
    }

    /// As backends of the first tier go, it gets no more load, and so it does not when others come back.
    #[test]
    fn load_moves_away_from_what_is_ill(members in any_members(), which in any::<prop::sample::Index>()) {
        let (mut before, settings) = (members, settings(0, false));
        let first = |members: &[TierMember]| {
            let plan = plan(members, &settings);
            let key = members.iter().filter(|member| member.standing != Standing::Out && member.weight > 0);
            let tier = key.map(|member| (member.backup, member.priority)).min();
            let sets = plan.sets.iter().filter(|set| tier.is_some_and(|(backup, priority)| {
                set.tier == if backup { None } else { Some(priority) }
            }));
            (tier, sets.map(|set| set.share).sum::<u64>(), plan.sets.is_empty())
        };
        if !before.is_empty() {
            let index = which.index(before.len());
            before[index].standing = Standing::Ready;
            let (tier, share, _) = first(&before);
            let mut after = before.clone();
            after[index].standing = Standing::Unready;
            let (same, less, nobody) = first(&after);
            let hit = tier == Some((before[index].backup, before[index].priority));
            if before[index].weight > 0 && !nobody {
                prop_assert_eq!(tier, same);
                if hit || before[index].backup && tier.is_some_and(|(backup, _)| backup) {
                    prop_assert!(less <= share, "{less} after {share}");
                } else {
                    prop_assert!(less >= share, "{less} after {share}");
                }
            }
        }
    }

    /// A zone keeps the more of its requests the more of the capacity it has, and nobody gets more than all.
    #[test]
    fn the_own_zone_keeps_more_the_more_it_can_bear(a in 1usize..20, b in 1usize..20, c in 1usize..20) {
        let kept = |a| {
            let settings = settings(50, true);
            plan(&zoned(&[("a", a, 0), ("b", b, 0), ("c", c, 0)]), &settings).sets[0].share
        };
        prop_assert!(kept(a + 1) >= kept(a));
        let fair = (3 * a) as f64 / (a + b + c) as f64;
        prop_assert!((kept(a) as f64 / WHOLE as f64 - fair.min(1.0)).abs() < 1e-6);
    }
}

/// However many proxies there are, the same in each zone, each backend gets the same if all follow the plan.
#[test]
fn over_all_zones_the_load_is_even() {
    for sizes in [[6, 6, 6], [2, 4, 6], [1, 1, 10], [5, 4, 3], [1, 8, 9]] {
        let names = ["a", "b", "c"];
        let members = zoned(&[("a", sizes[0], 0), ("b", sizes[1], 0), ("c", sizes[2], 0)]);
        let mut received: BTreeMap<String, f64> = BTreeMap::new();
        for name in names {
            for (zone, percent) in zone_percents(&members, Zones::new(name)) {
                *received.entry(zone).or_default() += percent / 3.0;
            }
        }
        let total: usize = sizes.iter().sum();
        for (name, size) in names.iter().zip(sizes) {
            let expected = 100.0 * size as f64 / total as f64;
            assert!((received[*name] - expected).abs() < 1e-4, "{sizes:?}: {received:?}");
        }
    }
}
