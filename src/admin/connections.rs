//! Connections to one entrance of the admin address, as many as there is room for; and which of them goes when there is none.
//!
//! A client that is waited for, because it says nothing or takes nothing, keeps no other out: it is the first to go when another comes, and
//! of several the one that has been there longest. So a probe is answered within a moment, however many connections stand still. None goes
//! before it has been there for a moment itself: of a hundred clients that connect at the same time and ask, each is served.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::{AbortHandle, Id};

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stage {
    /// For its client, which has not asked yet.
    Asking,
    /// For its client, which has not sent all of its request's body.
    Sending,
    /// For its client, which has not taken all of its answer.
    Answering,
    /// For what it has asked for.
    Working,
    /// For nothing: its answer goes on for as long as its client likes.
    Streaming,
}

/// How long a connection is there at least, for its request to arrive and to be read.
const AT_LEAST: Duration = Duration::from_millis(100);

/// Those that have to go, the first of these first.
const EVICTED: [Stage; 3] = [Stage::Asking, Stage::Sending, Stage::Answering];

/// The stage of a connection, as its own task and the [`ConnectionRoom`] see it.
#[derive(Debug, Default)]
pub(super) struct ConnectionProgress(AtomicU8);

impl ConnectionProgress {
    /// It has come so far.
    pub(super) fn set(&self, stage: Stage) {
        self.0.store(stage as u8, Relaxed);
    }

    /// Whether it has come so far.
    pub(super) fn is(&self, stage: Stage) -> bool {
        self.0.load(Relaxed) == stage as u8
    }
}

/// Those that are there.
#[derive(Debug)]
pub(super) struct ConnectionRoom {
    places: VecDeque<ConnectionEntry>,
    /// Connections at a time.
    most: usize,
}

#[derive(Debug)]
struct ConnectionEntry {
    task: AbortHandle,
    progress: Arc<ConnectionProgress>,
    since: Instant,
}

impl ConnectionRoom {
    /// Room for so many at a time.
    pub(super) fn new(most: usize) -> Self {
        Self { places: VecDeque::new(), most }
    }

    /// Whether another may come in at `now`, perhaps for one that goes.
    pub(super) fn admits(&self, now: Instant) -> bool {
        self.places.len() < self.most || self.evicted(now).is_some()
    }

    /// Another has come in at `now`, after those that are there. Where they are too many, one goes.
    pub(super) fn enter(&mut self, task: AbortHandle, progress: Arc<ConnectionProgress>, now: Instant) {
        if self.places.len() >= self.most
            && let Some(place) = self.evicted(now).and_then(|index| self.places.remove(index))
        {
            place.task.abort();
        }
        self.places.push_back(ConnectionEntry { task, progress, since: now });
    }

    /// The connection of that task is over.
    pub(super) fn leave(&mut self, id: Id) {
        self.places.retain(|place| place.task.id() != id);
    }

    /// Which is to go.
    fn evicted(&self, now: Instant) -> Option<usize> {
        let may_go = |place: &ConnectionEntry| now.saturating_duration_since(place.since) >= AT_LEAST;
        EVICTED.iter().find_map(|&stage| self.places.iter().position(|it| it.progress.is(stage) && may_go(it)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 64;

    fn enter(room: &mut ConnectionRoom, stage: Stage, now: Instant) -> tokio::task::JoinHandle<()> {
        let progress = Arc::<ConnectionProgress>::default();
        progress.set(stage);
        let task = tokio::spawn(std::future::pending());
        room.enter(task.abort_handle(), progress, now);
        task
    }

    async fn is_gone(task: tokio::task::JoinHandle<()>) -> bool {
        tokio::task::yield_now().await;
        task.is_finished()
    }

    #[tokio::test]
    async fn those_that_are_waited_for_go_first_and_others_stay() {
        let (mut room, begun) = (ConnectionRoom::new(MOST), Instant::now());
        let streams = enter(&mut room, Stage::Streaming, begun);
        let takes = enter(&mut room, Stage::Answering, begun);
        let sends = enter(&mut room, Stage::Sending, begun);
        let (first, second) = (enter(&mut room, Stage::Asking, begun), enter(&mut room, Stage::Asking, begun));
        for _ in 5..MOST {
            enter(&mut room, Stage::Working, begun);
        }
        assert!(!room.admits(begun + AT_LEAST / 2), "they have just come");
        let later = begun + AT_LEAST;
        for task in [first, second, sends, takes] {
            assert!(!task.is_finished() && room.admits(later));
            enter(&mut room, Stage::Working, later);
            assert!(is_gone(task).await);
        }
        assert!(!room.admits(later + AT_LEAST), "all are worked for");
        assert!(!is_gone(streams).await);
    }

    #[tokio::test]
    async fn those_that_are_over_leave_their_place() {
        let (mut room, begun) = (ConnectionRoom::new(MOST), Instant::now());
        let tasks: Vec<_> = (0..MOST).map(|_| enter(&mut room, Stage::Working, begun)).collect();
        assert!(!room.admits(begun));
        room.leave(tasks[7].id());
        assert!(room.admits(begun));
    }
}
