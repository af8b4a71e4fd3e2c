use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::Readiness;
use super::last_resort::{LastResort, Signs};
use super::slow_start_weights;
use super::tiers::{self, TierMember, TierPlan, WHOLE};
use crate::backend::slow_start::WeightPercent;
use crate::backend::{Backend, BackendSet};
use crate::config::{BackendPlacement, Tier, UpstreamConfig};
use crate::strategy::{self, Candidates, Cursor, Dice, Factories, Strategy, Tried};

/// What an upstream serves from now: its backends, those of them that are ready, and the strategies built for those.
///
/// A strategy picks within a [`Set`](tiers::Set), and of these there is one in ordinary times: see [`tiers`].
#[derive(Debug)]
pub struct Roster {
    /// What it was built for.
    set: BackendSet,
    layout: Layout,
    backends: Vec<Backend>,
    ready: Vec<Backend>,
    sets: Box<[PickedFrom]>,
    /// In panic, those that are ready: where a retry goes first.
    retry: Option<PickedFrom>,
    /// Where a request goes before it fails.
    last_resort: LastResort,
    panic: Vec<Tier>,
}

/// All that a roster is built from, so that two of them that are equal make the same.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layout {
    backends: Vec<RosterEntry>,
    plan: TierPlan,
    next: Option<Instant>,
}

/// What is known of a backend when a roster is built.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RosterEntry {
    /// Whether it may be picked, and if not, why.
    pub readiness: Readiness,
    /// What it has of its weight.
    pub percent: WeightPercent,
    /// What speaks against it where it is not ready; `None` where it is, and where it is not to be asked in any case.
    pub signs: Option<Signs>,
    weight: u16,
}

/// Backends, and the strategy that picks among them.
#[derive(Debug)]
struct PickedFrom {
    backends: Vec<Backend>,
    strategy: Box<dyn Strategy>,
}

/// Where picks come from: a set of the roster, to look at.
#[derive(Debug)]
pub struct PickSource<'a> {
    /// Its tier and, where zones were told apart, its zone.
    pub place: BackendPlacement,
    /// The part of the load that it gets, from 0 to 1.
    pub share: f64,
    /// Its backends with the weights that its strategy goes by.
    pub backends: &'a [Backend],
}

impl Layout {
    /// Looks at all backends as they are at `now`.
    pub(super) fn of(backends: &[Backend], config: &UpstreamConfig, now: Instant) -> Self {
        let readiness: Vec<_> = backends.iter().map(|backend| Readiness::of(backend, config, now)).collect();
        let any = readiness.contains(&Readiness::Ready);
        let mut next = readiness.iter().filter_map(|readiness| readiness.until()).min();
        let seats = backends.iter().zip(readiness).map(|(backend, readiness)| {
            let mut percent = WeightPercent::FULL;
            if let (Some(settings), Readiness::Ready) = (&config.slow_start, readiness) {
                let start = backend.state.ramp().if_ready(now);
                percent = start.percent(settings, now);
                next = [next, start.next_step(settings, now)].into_iter().flatten().min();
            }
            let signs = Signs::of(backend, readiness, config);
            RosterEntry { readiness, percent, signs, weight: backend.weight }
        });
        let seats: Vec<_> = seats.collect();
        let members = backends.iter().zip(&seats).map(|(backend, seat)| TierMember {
            standing: seat.readiness.standing(config, any),
            weight: if config.strategy.uses_weights() { backend.weight } else { backend.weight.min(1) },
            priority: match backend.instance.place.tier {
                Tier::Priority(priority) => priority,
                Tier::Backup => 0,
            },
            backup: backend.instance.place.tier == Tier::Backup,
            zone: backend.instance.place.zone.clone(),
        });
        let plan = tiers::plan(&members.collect::<Vec<_>>(), &config.tiers());
        Self { backends: seats, plan, next: next.map(|next| next.max(now)) }
    }
}

impl Roster {
    /// Builds the strategies for a layout of these backends, which are those of `set` in its order.
    pub(super) fn build(
        (set, layout): (BackendSet, Layout),
        backends: Vec<Backend>,
        config: &UpstreamConfig,
        cursors: &Cursors,
        factories: &Factories,
    ) -> Self {
        let picked_from = |members: &[usize], cursor: &Arc<Cursor>| {
            let weighed: Vec<_> =
                members.iter().map(|&it| (backends[it].weight, layout.backends[it].percent)).collect();
            let prepared = slow_start_weights::prepare(&config.strategy, &weighed);
            let backends: Vec<_> = members
                .iter()
                .zip(prepared.weights)
                .map(|(&it, weight)| Backend { weight, ..backends[it].clone() })
                .collect();
            let strategy = strategy::build(&prepared.strategy, &backends, cursor, factories);
            PickedFrom { backends, strategy }
        };
        let plan = &layout.plan;
        let sets = plan.sets.iter().map(|set| picked_from(&set.members, &cursors.of(place(set)))).collect();
        let retry = (!plan.ready.is_empty()).then(|| picked_from(&plan.ready, &Arc::default()));
        let panic = plan.panic.iter().map(|&priority| tier(priority)).collect();
        let is_ready = |seat: &RosterEntry| seat.readiness == Readiness::Ready;
        let ready = backends.iter().zip(&layout.backends).filter(|(_, seat)| is_ready(seat));
        let ready = ready.map(|(backend, _)| backend.clone()).collect();
        let others = backends.iter().zip(&layout.backends);
        let last_resort = LastResort::new(others.filter_map(|(backend, seat)| Some((seat.signs?, backend.clone()))));
        Self { set, layout, backends, ready, sets, retry, last_resort, panic }
    }

    /// What was found: the set that it was built for.
    pub fn set(&self) -> &BackendSet {
        &self.set
    }

    /// All backends, in the order of the set.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// Those that are ready, with the weights of the set, or by hand. In panic others may be picked as well.
    pub fn ready(&self) -> &[Backend] {
        &self.ready
    }

    /// Whether one of those was not tried yet.
    pub(super) fn has_untried(&self, tried: &Tried) -> bool {
        self.ready.iter().any(|backend| !tried.contains(backend.state.id))
    }

    /// Where a request goes when all of those were tried.
    pub(super) fn last_resort(&self) -> &LastResort {
        &self.last_resort
    }

    /// What was known of each of [`Roster::backends`], in their order.
    pub fn seats(&self) -> &[RosterEntry] {
        &self.layout.backends
    }

    /// What is picked from, in the order in which a request that finds no backend in one set tries the next.
    pub fn sources(&self) -> impl Iterator<Item = PickSource<'_>> {
        self.layout.plan.sets.iter().zip(&self.sets).map(|(set, from)| PickSource {
            place: place(set),
            share: set.share as f64 / WHOLE as f64,
            backends: &from.backends,
        })
    }

    /// The tiers of which too few are ready, so that others are picked as well.
    pub fn panic(&self) -> &[Tier] {
        &self.panic
    }

    /// When it will be out of date by itself; `None` is never.
    pub fn next(&self) -> Option<Instant> {
        self.layout.next
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Picks a backend that was not tried. In ordinary times that is one strategy, asked once.
    #[inline]
    pub(super) fn pick(&self, hash: Option<u64>, now: Instant, tried: &Tried, dice: &mut Dice) -> Option<&Backend> {
        if tried.is_empty() {
            let first = self.layout.plan.draw(|| dice.bits())?;
            let found = self.sets[first].pick(hash, now, tried, dice);
            if found.is_some() {
                return found;
            }
        }
        self.pick_again(hash, now, tried, dice)
    }

    /// For a retry: in panic first among those that are ready, whatever their part of the load; then where a first attempt
    /// would go, and then in any set with a backend that is left.
    #[cold]
    fn pick_again(&self, hash: Option<u64>, now: Instant, tried: &Tried, dice: &mut Dice) -> Option<&Backend> {
        if let Some(found) = self.retry.as_ref().and_then(|ready| ready.pick(hash, now, tried, dice)) {
            return Some(found);
        }
        let plan = &self.layout.plan;
        let first = plan.draw(|| dice.bits())?;
        let mut order = std::iter::once(first).chain(plan.after(first));
        order.find_map(|set| self.sets[set].pick(hash, now, tried, dice))
    }
}

impl PickedFrom {
    /// Asks the strategy. An index that does not exist, from a strategy of the embedding program, counts as none.
    #[inline]
    fn pick(&self, hash: Option<u64>, now: Instant, tried: &Tried, dice: &mut Dice) -> Option<&Backend> {
        let index = self.strategy.pick(&Candidates { backends: &self.backends, hash, now, tried }, dice)?;
        self.backends.get(index)
    }
}

impl RosterEntry {
    /// What counts of its weight.
    pub fn effective_weight(&self) -> f64 {
        f64::from(self.weight) * f64::from(self.percent.get()) / 100.0
    }
}

fn place(set: &tiers::Set) -> BackendPlacement {
    BackendPlacement { tier: tier(set.tier), zone: set.zone.clone() }
}

fn tier(priority: Option<u16>) -> Tier {
    priority.map_or(Tier::Backup, Tier::Priority)
}

/// The places in the rounds, one for each tier and zone, so that the rounds of sets do not disturb each other. Outlive
/// rosters and reloads.
#[derive(Debug, Default)]
pub struct Cursors {
    /// Of the first tier where zones are not told apart: the only one in ordinary times.
    first: Arc<Cursor>,
    others: Mutex<HashMap<BackendPlacement, Arc<Cursor>>>,
}

impl Cursors {
    fn of(&self, place: BackendPlacement) -> Arc<Cursor> {
        if place == BackendPlacement::default() {
            return Arc::clone(&self.first);
        }
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        // Of places that no roster names any more nothing need be known.
        if others.len() > PLACES_KEPT_MAX {
            others.retain(|_, cursor| Arc::strong_count(cursor) > 1);
        }
        Arc::clone(others.entry(place).or_default())
    }

    /// That of the first tier.
    pub fn first(&self) -> &Arc<Cursor> {
        &self.first
    }
}

const PLACES_KEPT_MAX: usize = 64;
