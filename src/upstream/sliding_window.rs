//! Counts over the last so many seconds: a ring of slots of time.
//!
//! Retry budgets and circuit breakers ask how often something happened lately. Time is cut into slots whose length is a power
//! of two of milliseconds, so that finding the slot is a shift; each slot is one word that holds its number beside its count,
//! so that no reader can take the count of a slot for that of another, and nothing has to be cleared when time goes on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Slots of a ring.
const SLOTS: u32 = 16;

/// Bits of a word that hold the count: 16 million in a slot, where it stops.
const COUNT_BITS: u32 = 24;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;

/// The length of a window, as the slots that it is counted in.
///
/// A window of 10 s is counted in ten slots of 1.024 s: it reaches back between nine slots and ten. Counts that were made
/// under another length are of other slots, and so are forgotten when a reload changes the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSpan {
    shift: u32,
    slots: u32,
}

impl WindowSpan {
    /// The window of this length, at least 1 ms and at most a day: as few and as short slots as cover it.
    pub const fn new(window: Duration) -> Self {
        let ms = window.as_millis();
        let ms = if ms > 86_400_000 { 86_400_000 } else { ms as u64 };
        let ms = if ms == 0 { 1 } else { ms };
        let mut shift = 0;
        while (SLOTS as u64) << shift < ms {
            shift += 1;
        }
        Self { shift, slots: ms.div_ceil(1 << shift) as u32 }
    }

    /// What the slots cover together, in milliseconds: the window asked for, rounded up by less than a slot.
    pub const fn covers_ms(self) -> u64 {
        (self.slots as u64) << self.shift
    }

    /// The slot of a moment, in milliseconds on any clock that does not go back.
    pub const fn slot(self, now_ms: u64) -> TimeSlot {
        TimeSlot { number: (now_ms >> self.shift) as u32, generation: 0 }
    }
}

/// A slot of time, and which of several counts that were begun anew it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeSlot {
    /// Its number on the clock.
    pub number: u32,
    /// To forget at once what was counted, go on to another generation.
    pub generation: u8,
}

impl TimeSlot {
    /// What stands in the word before the count. 40 bits.
    const fn tag(self) -> u64 {
        (self.generation as u64) << 32 | self.number as u64
    }

    const fn index(self) -> usize {
        (self.number % SLOTS) as usize
    }
}

/// A count over a window. 128 bytes.
#[derive(Debug, Default)]
pub struct Window([AtomicU64; SLOTS as usize]);

impl Window {
    /// Counts one: a load and a store. Only the thread that owns the window may call this: two writers lose counts.
    pub fn add(&self, slot: TimeSlot) {
        let word = &self.0[slot.index()];
        word.store(more(word.load(Ordering::Relaxed), slot), Ordering::Relaxed);
    }

    /// Counts one, from any thread. Takes part in the one order of all `SeqCst` operations.
    pub fn add_shared(&self, slot: TimeSlot) {
        let word = &self.0[slot.index()];
        let _ = word.try_update(Ordering::SeqCst, Ordering::Relaxed, |old| Some(more(old, slot)));
    }

    /// Counts one less in a slot that [`Window::add_shared`] has counted in; nothing if time has taken the slot since.
    pub fn take_back(&self, slot: TimeSlot) {
        let word = &self.0[slot.index()];
        let _ = word.try_update(Ordering::SeqCst, Ordering::Relaxed, |old| {
            (old >> COUNT_BITS == slot.tag() && old & COUNT_MAX > 0).then(|| old - 1)
        });
    }

    /// What was counted in the window that ends with `last`. `order` is that of the loads.
    pub fn sum(&self, last: TimeSlot, span: WindowSpan, order: Ordering) -> u64 {
        (0..span.slots)
            .map(|back| TimeSlot { number: last.number.wrapping_sub(back), ..last })
            .map(|slot| (slot, self.0[slot.index()].load(order)))
            .filter(|(slot, word)| word >> COUNT_BITS == slot.tag())
            .map(|(_, word)| word & COUNT_MAX)
            .sum()
    }
}

/// The word with one more counted: begun anew if it was of another slot.
fn more(word: u64, slot: TimeSlot) -> u64 {
    if word >> COUNT_BITS != slot.tag() {
        slot.tag() << COUNT_BITS | 1
    } else if word & COUNT_MAX < COUNT_MAX {
        word + 1
    } else {
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_window_is_covered_by_as_many_slots_as_it_takes() {
        for (ms, shift, slots) in [(0, 0, 1), (1, 0, 1), (16, 0, 16), (17, 1, 9), (1_000, 6, 16), (10_000, 10, 10)] {
            assert_eq!(WindowSpan::new(Duration::from_millis(ms)), WindowSpan { shift, slots }, "{ms} ms");
        }
        assert_eq!(WindowSpan::new(Duration::MAX), WindowSpan::new(Duration::from_secs(86_400)));
    }

    #[test]
    fn another_generation_counts_anew_in_the_same_slot() {
        let (window, span) = (Window::default(), WindowSpan::new(Duration::from_secs(10)));
        let old = span.slot(50_000);
        let new = TimeSlot { generation: 1, ..old };
        window.add(old);
        assert_eq!(window.sum(new, span, Ordering::Relaxed), 0);
        window.add(new);
        window.add(new);
        assert_eq!(window.sum(new, span, Ordering::Relaxed), 2);
    }

    #[test]
    fn a_slot_that_is_full_stays_so() {
        let (window, span) = (Window::default(), WindowSpan::new(Duration::from_secs(10)));
        let slot = span.slot(5_000);
        window.0[slot.index()].store(slot.tag() << COUNT_BITS | (COUNT_MAX - 1), Ordering::Relaxed);
        window.add(slot);
        window.add(slot);
        assert_eq!(window.sum(slot, span, Ordering::Relaxed), COUNT_MAX);
    }

    proptest! {
        #[test]
        fn sums_are_those_of_a_list(
            window_ms in 1_u64..30_000,
            start in 0_u64..100_000,
            events in prop::collection::vec((0_u64..4_000, 0_u8..4), 1..200),
        ) {
            let (window, span) = (Window::default(), WindowSpan::new(Duration::from_millis(window_ms)));
            prop_assert!(span.covers_ms() >= window_ms);
            prop_assert!(span.slots == 1 || span.covers_ms() - window_ms < 1 << span.shift);
            let mut list: Vec<u32> = Vec::new();
            let mut now = start;
            for (pass, what) in events {
                now += pass;
                let slot = span.slot(now);
                match what {
                    0 => { window.add(slot); list.push(slot.number); }
                    1 => { window.add_shared(slot); list.push(slot.number); }
                    2 => {
                        window.take_back(slot);
                        if list.last() == Some(&slot.number) { list.pop(); }
                    }
                    _ => {}
                }
                let expected = list.iter().filter(|&&number| slot.number - number < span.slots).count() as u64;
                prop_assert_eq!(window.sum(slot, span, Ordering::Relaxed), expected);
            }
        }
    }
}
