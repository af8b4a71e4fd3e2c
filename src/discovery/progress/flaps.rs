//! Backends that come and go again and again: a process that crashes soon after each start, or a heartbeat at the edge of its time.
//!
//! Each return begins anew (nothing is known of a backend that was gone), takes requests and fails some. So one that has gone often
//! of late is taken only when it has stayed for a while, longer each time. Those of which that is said are fewer than half of the set: where
//! more come and go, it is the registry that flaps, and all are taken.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::backend::BackendSet;
use crate::config::Address;

/// How often a backend may go, and when that is forgotten.
const TIMES: u32 = 3;
const WINDOW: Duration = Duration::from_secs(300);

/// How long it then has to stay: the first time, twice that the next time, and so on.
const STAY_FIRST: Duration = Duration::from_secs(5);
const STAY_MAX: Duration = Duration::from_secs(60);

/// Backends of which this is remembered. A registry that names others all the time has no more of it.
const KNOWN_MAX: usize = 10_000;

/// What a source's backends have done of late.
#[derive(Debug, Default)]
pub(super) struct Flaps {
    /// Those that it named last.
    named: HashSet<Address>,
    known: HashMap<Address, Flap>,
}

#[derive(Debug)]
struct Flap {
    /// How often it has gone.
    times: u32,
    /// When it went last.
    went: Instant,
    /// Until when it has to stay before it is taken.
    until: Option<Instant>,
}

impl Flaps {
    /// Takes in what a source says at `now`, and gives what of it is not taken yet. What is `served` already goes on.
    pub(super) fn take(&mut self, said: &BackendSet, now: Instant, served: Option<&BackendSet>) -> HashSet<Address> {
        let named: HashSet<Address> = said.iter().map(|it| it.address.clone()).collect();
        let before = std::mem::replace(&mut self.named, named);
        self.known.retain(|_, flap| now.saturating_duration_since(flap.went) < WINDOW);
        if self.known.len() > KNOWN_MAX {
            self.known.clear();
        }
        for address in before.difference(&self.named) {
            let flap = self.known.entry(address.clone()).or_insert(Flap { times: 0, went: now, until: None });
            (flap.times, flap.went, flap.until) = (flap.times.saturating_add(1), now, None);
        }
        if self.known.is_empty() {
            return HashSet::new();
        }
        for address in self.named.difference(&before) {
            if let Some(flap) = self.known.get_mut(address).filter(|flap| flap.times >= TIMES) {
                let stay = STAY_FIRST.saturating_mul(1 << (flap.times - TIMES).min(8)).min(STAY_MAX);
                flap.until = Some(now + stay);
            }
        }
        let served: HashSet<&Address> = served.into_iter().flat_map(BackendSet::iter).map(|it| &it.address).collect();
        let waits = |address: &&Address| {
            let until = self.known.get(*address).and_then(|flap| flap.until);
            until.is_some_and(|until| now < until) && !served.contains(*address)
        };
        let waiting: HashSet<Address> = self.named.iter().filter(waits).cloned().collect();
        if waiting.len() * 2 < self.named.len() { waiting } else { HashSet::new() }
    }
}
