//! The order of a queue, and which request has its turn.

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::Duration;

use super::{QueueDiscipline, QueueSettings};

/// The line, without its lock. What gives a request its turn returns the waker: `None` also for a request that has a turn but has not
/// been asked yet, and so will see it.
#[derive(Debug, Default)]
pub(super) struct WaitingLine {
    /// Those without a turn, by the number of their ticket, which is the order in which they came.
    waiting: BTreeMap<u64, QueuedWaiter>,
    /// Those with a turn, and what `offers` was when they last knew.
    turns: BTreeMap<u64, u64>,
    next_ticket: u64,
    /// How often room was made.
    offers: u64,
    /// Turns that no request in line could take: for requests that come. [`MANY`] when the number is not known.
    spare: u32,
    /// When the line was last empty.
    empty_ms: u64,
    /// Whether the last to come goes first.
    lifo: bool,
}

/// A request without a turn.
#[derive(Debug, Default)]
struct QueuedWaiter {
    /// `None` until first asked.
    waker: Option<Waker>,
    /// What `offers` was when it found room of no use to it: until more is made it need not be asked again.
    useless: Option<u64>,
}

/// What a try in vain has shown.
#[derive(Clone, Copy, Debug)]
pub(super) enum RoomSeen {
    None,
    ForOthers,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Leaves {
    Served,
    InVain,
}

/// An unknown number. Not used up by turns; ends with the first that finds no room.
const MANY: u32 = u32::MAX;

impl WaitingLine {
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.turns.len()
    }

    /// How many wait, how many have a turn, and how many turns are left over.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize, u32) {
        (self.waiting.len(), self.turns.len(), self.spare)
    }

    /// The ticket of a request that comes, and how long it may wait.
    pub(super) fn enter(&mut self, settings: &QueueSettings, now_ms: u64) -> (u64, Duration) {
        let first = self.len() == 0;
        if first {
            self.empty_ms = now_ms;
        }
        let stood = Duration::from_millis(now_ms.saturating_sub(self.empty_ms));
        let timeout = match settings.order {
            QueueDiscipline::Fifo => {
                self.lifo = false;
                settings.timeout
            }
            QueueDiscipline::Adaptive { target, interval } => {
                self.lifo = stood > interval;
                settings.timeout.min(if self.lifo { target } else { interval })
            }
        };
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        if first {
            // The number of free slots is not known: it tries at once, having said that it is there, and then those behind it, one
            // after the other, until one finds none.
            self.spare = MANY;
        }
        let turn = match self.spare {
            // A request with a turn passes it on.
            MANY => self.turns.is_empty(),
            spare => spare > 0,
        };
        if turn {
            if self.spare != MANY {
                self.spare -= 1;
            }
            self.turns.insert(ticket, self.offers);
        } else {
            self.waiting.insert(ticket, QueuedWaiter::default());
        }
        (ticket, timeout)
    }

    pub(super) fn released(&mut self) -> Option<Waker> {
        self.offers += 1;
        self.pass()
    }

    pub(super) fn widened(&mut self) -> Option<Waker> {
        self.offers += 1;
        self.spare = MANY;
        self.pass()
    }

    /// Whether a request has its turn. If not, its waker is kept.
    pub(super) fn look(&mut self, ticket: u64, waker: &Waker) -> bool {
        if let Some(place) = self.waiting.get_mut(&ticket) {
            match &mut place.waker {
                Some(known) => known.clone_from(waker),
                None => place.waker = Some(waker.clone()),
            }
        }
        self.turns.contains_key(&ticket)
    }

    /// One has tried in vain. Whether it should again, because room was made since its turn began; if not, it is back at its
    /// place.
    pub(super) fn tried(&mut self, ticket: u64, room: RoomSeen, waker: &Waker) -> (bool, Option<Waker>) {
        match self.turns.get_mut(&ticket) {
            None => return (false, None),
            Some(seen) if *seen != self.offers => {
                *seen = self.offers;
                return (true, None);
            }
            Some(_) => {}
        }
        self.turns.remove(&ticket);
        let useless = match room {
            RoomSeen::None => None,
            RoomSeen::ForOthers => Some(self.offers),
        };
        self.waiting.insert(ticket, QueuedWaiter { waker: Some(waker.clone()), useless });
        let next = match room {
            RoomSeen::None => {
                self.spare = 0;
                None
            }
            // It may have seen more than what its turn was given for.
            RoomSeen::ForOthers => {
                self.spare = MANY;
                self.pass()
            }
        };
        (false, next)
    }

    pub(super) fn leave(&mut self, ticket: u64, how: Leaves) -> Option<Waker> {
        self.waiting.remove(&ticket);
        let had_turn = self.turns.remove(&ticket).is_some();
        let more = match how {
            Leaves::Served => self.spare == MANY,
            Leaves::InVain => true,
        };
        let next = if had_turn && more { self.pass() } else { None };
        if self.len() == 0 {
            // A request that comes now tries at once.
            self.spare = 0;
        }
        next
    }

    /// Gives a turn to the next request that has a use for it, or keeps it for one that comes.
    fn pass(&mut self) -> Option<Waker> {
        let mut may = self.waiting.iter().filter(|(_, place)| place.useless != Some(self.offers));
        let next = if self.lifo { may.next_back() } else { may.next() };
        match next.map(|(&ticket, _)| ticket) {
            Some(ticket) => {
                self.turns.insert(ticket, self.offers);
                self.waiting.remove(&ticket).and_then(|place| place.waker)
            }
            None => {
                self.spare = self.spare.saturating_add(1);
                None
            }
        }
    }
}
