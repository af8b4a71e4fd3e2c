use std::sync::Arc;

use super::{Candidates, Cursor, Dice, Strategy, skip_tried};

/// Each in turn.
///
/// The place in the round is shared by all workers, so the order is exact over the whole process, and goes on where it
/// stood when the list is built anew. The round is that of first attempts: a further one takes no place but draws, each of
/// those left as likely. If it took one, two backends of which one fails would have every first attempt go to that one.
/// If it went where the round stands, the neighbour of a dead backend would get all that is tried again.
#[derive(Debug)]
pub(super) struct RoundRobin {
    cursor: Arc<Cursor>,
}

impl RoundRobin {
    pub(super) fn new(cursor: &Arc<Cursor>) -> Self {
        Self { cursor: Arc::clone(cursor) }
    }
}

impl Strategy for RoundRobin {
    fn pick(&self, candidates: &Candidates<'_>, dice: &mut Dice) -> Option<usize> {
        let n = candidates.backends.len() as u64;
        if n == 0 {
            return None;
        }
        if candidates.tried.is_empty() {
            return Some((self.cursor.advance() % n) as usize);
        }
        skip_tried::pick(candidates, None, dice, |_| 1, |dice| dice.below(n as usize))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::Tried;
    use super::super::conformance::{assert_shares, backends};
    use super::*;

    #[test]
    fn goes_round() {
        let backends = backends(&[1, 1, 1]);
        let cursor = Arc::default();
        let strategy = RoundRobin::new(&cursor);
        let tried = Tried::default();
        let candidates = Candidates { backends: &backends, hash: None, now: Instant::now(), tried: &tried };
        let mut dice = Dice::seeded(0);
        let picks: Vec<_> = (0..7).filter_map(|_| strategy.pick(&candidates, &mut dice)).collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(cursor.position(), 7);
    }

    #[test]
    fn a_retry_takes_no_place_and_any_of_the_others() {
        let backends = backends(&[1, 5, 1, 9]);
        let cursor = Arc::default();
        let strategy = RoundRobin::new(&cursor);
        let mut tried = Tried::default();
        tried.push(backends[1].state.id);
        let candidates = Candidates { backends: &backends, hash: None, now: Instant::now(), tried: &tried };
        let mut dice = Dice::seeded(0);
        let mut counts = [0; 4];
        for _ in 0..100_000 {
            counts[strategy.pick(&candidates, &mut dice).unwrap()] += 1;
        }
        assert_shares(&counts, &[1.0, 0.0, 1.0, 1.0], "round robin retry");
        assert_eq!(cursor.position(), 0);
    }

    #[test]
    fn an_empty_list_takes_no_place() {
        let cursor = Arc::default();
        let tried = Tried::default();
        let candidates = Candidates { backends: &[], hash: None, now: Instant::now(), tried: &tried };
        assert_eq!(RoundRobin::new(&cursor).pick(&candidates, &mut Dice::seeded(0)), None);
        assert_eq!(cursor.position(), 0);
    }
}
