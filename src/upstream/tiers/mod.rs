//! Which backends are picked from: tiers by priority with backups as the last, panic, and zones.
//!
//! [`plan`] sorts the backends of an upstream into [`Set`]s, each with its share of the load, when a roster is built. A strategy
//! is built for each set, and a pick first draws a set ([`TierPlan::draw`]): where one set has all of the load, as in ordinary
//! times, that is a look at one field and no random number; otherwise one number and a walk over a few ends.
//!
//! The rules are Envoy's (its documentation on priority levels, panic threshold and zone aware routing), but exact where it
//! rounds to whole percents, and by weight where it counts hosts, which is the same where weights are equal: when the one of
//! weight 10 beside two of weight 1 is gone, a sixth of the capacity is left and not two thirds.
//!
//! 1. Health of a tier = 1.4 × ready weight / weight, at most 1. The factor says that a tier is built with some room: it spills
//!    nothing until less than 71.4 % of it are ready.
//! 2. The first tier takes load up to its health, the next up to its own, and so on. If all healths together are below 1, each
//!    takes its part of their sum.
//! 3. Only then, and only in a tier of which less than half is ready, there is panic: readiness is ignored, for sending all to
//!    the few that are left would take these down as well, and checks err. If nothing is ready in any tier, all are in
//!    panic and the first takes everything. A threshold of 0 disables panic. A backend that checks cannot even connect to is offered
//!    only if there is no other backend at all: panic doubts verdicts, and that one is not in doubt. So when all but one of a few
//!    machines die, requests do not go looking for the dead.
//! 4. Within a tier that is not in panic and has enough ready backends in several zones, requests stay in the proxy's zone:
//!    all of them if the zone's part of the ready weight (u) is at least the part of the load that arises in it (d), else
//!    u / d of them; the rest goes to the other zones by what they have left when they have served their own. Nobody tells
//!    us where other proxies are, so each zone that has backends is taken to bring the same load unless [`Zones::load`] says
//!    more.
//!
//! Beyond Envoy: every ready backend is in a set, if need be in one without a share, in the order in which a retry should try
//! them ([`TierPlan::after`]), so that a retry goes to another zone or a backup before the request fails; and a retry in panic goes
//! to those that are ready ([`TierPlan::ready`]), so that at most the first attempt is lost on a backend known to be bad.
//!
//! A backend in slow start counts whole for the health of its tier: it is there, and what it lacks it gets within the window.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use crate::config::{TiersConfig as Settings, ZonesConfig as Zones};

/// What is to be known of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierMember {
    /// Whether it may be picked at all.
    pub standing: Standing,
    /// What it can bear beside the others: its weight, or 1 under a strategy that ignores weights.
    pub weight: u16,
    /// Its tier: 0 is the first.
    pub priority: u16,
    /// Whether it is behind all priorities.
    pub backup: bool,
    /// Where it is, if known.
    pub zone: Option<Arc<str>>,
}

/// Whether a backend may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Ready.
    Ready,
    /// Unhealthy or ejected: only in panic.
    Unready,
    /// Its checks cannot even connect: only when there is no other backend at all.
    Unreachable,
    /// Weight 0, drained or disabled by hand: never, and its tier is counted without it. An operator wants it so.
    Out,
}

/// What is picked from.
#[derive(Clone, Debug, PartialEq)]
pub struct TierPlan {
    /// The sets in the order in which a request that finds no backend in one tries the next. None is empty. No backend is in two.
    pub sets: Vec<Set>,
    /// The tiers in panic, for a metric and a line in the log: priorities, `None` being the backups.
    pub panic: Vec<Option<u16>>,
    /// In panic those that are ready all the same, if there are any, in the order of the members: where a retry goes first.
    pub ready: Vec<usize>,
    draw: Draw,
}

/// Backends that one strategy picks among.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// Indices into the list that was planned for, rising.
    pub members: Vec<usize>,
    /// The tier: a priority, or `None` for the backups.
    pub tier: Option<u16>,
    /// The zone, where zones were told apart.
    pub zone: Option<Arc<str>>,
    /// The part of the load in 2^-32.
    pub share: u64,
}

/// All of the load.
pub const WHOLE: u64 = 1 << 32;

#[derive(Clone, Debug, PartialEq)]
enum Draw {
    /// One set has everything; the index of it.
    One(usize),
    /// The set of the first end that is above a random number of 32 bits.
    Many(Box<[(u64, usize)]>),
}

impl TierPlan {
    /// The set for a request's first attempt; `None` when there is no backend to pick. `random` gives any number and is called only
    /// where several sets have a share.
    #[inline]
    pub fn draw(&self, random: impl FnOnce() -> u64) -> Option<usize> {
        match &self.draw {
            Draw::One(index) => (*index < self.sets.len()).then_some(*index),
            Draw::Many(ends) => {
                let point = random() >> 32;
                ends.iter().find(|&&(end, _)| point < end).map(|&(_, index)| index)
            }
        }
    }

    /// The other sets, in the order in which to look for a backend when all of `set` were tried.
    pub fn after(&self, set: usize) -> impl Iterator<Item = usize> {
        (0..self.sets.len()).filter(move |&other| other != set)
    }

    fn new(sets: Vec<Set>, panic: Vec<Option<u16>>, ready: Vec<usize>) -> Self {
        let with_share: Vec<_> = sets.iter().enumerate().filter(|(_, set)| set.share > 0).collect();
        let draw = match with_share[..] {
            [] => Draw::One(0),
            [(index, _)] => Draw::One(index),
            _ => {
                let ends = with_share.iter().scan(0, |end, (index, set)| {
                    *end += set.share;
                    Some((*end, *index))
                });
                Draw::Many(ends.collect())
            }
        };
        Self { sets, panic, ready, draw }
    }
}

/// Sorts the backends of an upstream.
pub fn plan(members: &[TierMember], settings: &Settings) -> TierPlan {
    let tiers = tiers(members, settings);
    let healths: Vec<_> = tiers.iter().map(|tier| tier.health).collect();
    let loads = loads(&healths);
    let enough = healths.iter().sum::<u64>() >= WHOLE;
    let nobody = healths.iter().all(|&health| health == 0);
    let (mut sets, mut panic, mut ready) = (Vec::new(), Vec::new(), Vec::new());
    let reachable = |&index: &usize| members[index].standing != Standing::Unreachable;
    let lost = !tiers.iter().flat_map(|tier| &tier.members).any(reachable);
    for (tier, load) in tiers.iter().zip(loads) {
        let in_panic = !enough && tier.ready * 100 < tier.weight * u64::from(settings.panic_percent.min(100));
        if in_panic {
            panic.push(tier.key.priority());
            let offered: Vec<_> = tier.members.iter().copied().filter(|index| lost || reachable(index)).collect();
            if !offered.is_empty() {
                // If no tier has any health, the first of these gets everything.
                let share = if nobody && sets.is_empty() { WHOLE } else { load };
                sets.push(Set { members: offered, tier: tier.key.priority(), zone: None, share });
            }
        } else if tier.ready > 0 {
            sets.extend(split(members, tier, load, settings));
        }
    }
    if !panic.is_empty() {
        ready.extend((0..members.len()).filter(|&index| is_ready(&members[index])));
    }
    TierPlan::new(sets, panic, ready)
}

/// A tier's place in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum TierKey {
    Priority(u16),
    Backup,
}

impl TierKey {
    fn priority(self) -> Option<u16> {
        match self {
            Self::Priority(priority) => Some(priority),
            Self::Backup => None,
        }
    }
}

#[derive(Debug)]
struct TierGroup {
    key: TierKey,
    /// Without those that are out.
    members: Vec<usize>,
    weight: u64,
    /// Of it ready.
    ready: u64,
    health: u64,
}

fn is_ready(member: &TierMember) -> bool {
    member.standing == Standing::Ready && member.weight > 0
}

fn tiers(members: &[TierMember], settings: &Settings) -> Vec<TierGroup> {
    let mut by_key: BTreeMap<TierKey, Vec<usize>> = BTreeMap::new();
    for (index, member) in members.iter().enumerate() {
        if member.standing != Standing::Out && member.weight > 0 {
            let key = if member.backup { TierKey::Backup } else { TierKey::Priority(member.priority) };
            by_key.entry(key).or_default().push(index);
        }
    }
    let factor = u128::from(settings.overprovisioning_percent.max(100));
    let tier = |(key, indices): (TierKey, Vec<usize>)| {
        let weight = |ready: bool| -> u64 {
            let counted = indices.iter().map(|&index| &members[index]).filter(|member| !ready || is_ready(member));
            counted.map(|member| u64::from(member.weight)).sum()
        };
        let (weight, ready) = (weight(false), weight(true));
        // Rounded up: tiers that are together just enough must not fall short by what was rounded off.
        let health = (u128::from(WHOLE) * factor * u128::from(ready)).div_ceil(100 * u128::from(weight));
        TierGroup { key, members: indices, weight, ready, health: health.min(u128::from(WHOLE)) as u64 }
    };
    by_key.into_iter().map(tier).collect()
}

/// What each tier takes of the load: up to its health, or its part of all healths where they are not enough.
fn loads(healths: &[u64]) -> Vec<u64> {
    let sum: u64 = healths.iter().sum();
    if sum < WHOLE {
        return share_out(WHOLE, healths);
    }
    let mut left = WHOLE;
    let take = |&health: &u64| {
        let load = health.min(left);
        left -= load;
        load
    };
    healths.iter().map(take).collect()
}

/// Shares `whole` out by `parts`, exactly: what is rounded off one goes to the next. Nothing where all parts are 0.
fn share_out(whole: u64, parts: &[u64]) -> Vec<u64> {
    let total = parts.iter().map(|&part| u128::from(part)).sum::<u128>().max(1);
    let (mut sum, mut given) = (0, 0);
    let share = |&part: &u64| {
        sum += u128::from(part);
        let until = (u128::from(whole) * sum / total) as u64;
        let share = until - given;
        given = until;
        share
    };
    parts.iter().map(share).collect()
}

/// The sets of a tier that is not in panic: one, or one for each zone, the proxy's own first.
fn split(members: &[TierMember], tier: &TierGroup, load: u64, settings: &Settings) -> Vec<Set> {
    let ready: Vec<_> = tier.members.iter().copied().filter(|&index| is_ready(&members[index])).collect();
    let whole = |ready| vec![Set { members: ready, tier: tier.key.priority(), zone: None, share: load }];
    let Some(zones) = &settings.zones else { return whole(ready) };
    let mut by_zone: BTreeMap<Option<Arc<str>>, (Vec<usize>, u64)> = BTreeMap::new();
    for &index in &ready {
        let (list, weight) = by_zone.entry(members[index].zone.clone()).or_default();
        list.push(index);
        *weight += u64::from(members[index].weight);
    }
    let local = Some(Arc::clone(&zones.local));
    if ready.len() < zones.backends_min || by_zone.len() < 2 || !by_zone.contains_key(&local) {
        return whole(ready);
    }
    // Stable: the others stay in the order of their names.
    let mut sorted: Vec<_> = by_zone.into_iter().collect();
    sorted.sort_by_key(|(zone, _)| *zone != local);
    let shares = zone_shares(&sorted, tier, zones, members, load);
    let sets = sorted.into_iter().zip(shares).map(|((zone, (members, _)), share)| Set {
        members,
        tier: tier.key.priority(),
        zone,
        share,
    });
    sets.collect()
}

/// A zone, and its ready backends with their weight.
type InZone = (Option<Arc<str>>, (Vec<usize>, u64));

/// What each zone gets of the load that this proxy brings; the first is its own.
fn zone_shares(sorted: &[InZone], tier: &TierGroup, zones: &Zones, members: &[TierMember], load: u64) -> Vec<u64> {
    // Zones without a ready backend bring load as well.
    let present: BTreeSet<_> = tier.members.iter().map(|&index| members[index].zone.as_ref()).collect();
    let named = sorted.iter().any(|(zone, _)| demand_named(zones, zone.as_ref()) > 0);
    let demand = |zone: Option<&Arc<str>>| if named { demand_named(zones, zone) } else { 1 };
    let all_demand: u64 =
        if named { zones.load.values().map(|&part| u64::from(part)).sum() } else { present.len() as u64 };
    let all_weight: u64 = sorted.iter().map(|(_, (_, weight))| weight).sum();
    // Parts of the capacity and of the demand over one denominator, so that they compare exactly.
    let capacity: Vec<_> = sorted.iter().map(|(_, (_, weight))| u128::from(*weight) * u128::from(all_demand)).collect();
    let needed: Vec<_> =
        sorted.iter().map(|(zone, _)| u128::from(demand(zone.as_ref())) * u128::from(all_weight)).collect();
    if capacity[0] >= needed[0] {
        return [vec![load], vec![0; sorted.len() - 1]].concat();
    }
    let stays = (u128::from(load) * capacity[0] / needed[0]) as u64;
    let residual: Vec<_> =
        capacity[1..].iter().zip(&needed[1..]).map(|(has, needs)| has.saturating_sub(*needs)).collect();
    // If no zone has capacity left, loads and capacities of zones do not match; then by capacity.
    let residual = if residual.iter().any(|&left| left > 0) { residual } else { capacity[1..].to_vec() };
    let most = residual.iter().copied().max().unwrap_or(1).max(1);
    let parts: Vec<_> = residual.iter().map(|&left| (left * u128::from(WHOLE) / most) as u64).collect();
    [vec![stays], share_out(load - stays, &parts)].concat()
}

fn demand_named(zones: &Zones, zone: Option<&Arc<str>>) -> u64 {
    zone.and_then(|zone| zones.load.get(zone)).map_or(0, |&part| part.into())
}

#[cfg(test)]
mod tests;
