//! What a client still sends of a request that is answered: read and thrown away, for a while.
//!
//! Many clients write all of a request before they read. A socket that is closed with something unread in it sends a reset, and a client
//! that is sent one in the middle of writing mostly never reads the answer that came before it.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::ReadBuf;
use tokio::time::{Instant, sleep_until};

use super::http1::Wire;
use crate::config::LingeringConfig;

/// For clients that nothing is gained by waiting for: what it was before there were keys for it.
pub(super) const SHORT: LingeringConfig =
    LingeringConfig { bytes: 16 << 20, time: Duration::from_secs(1), idle: Duration::from_secs(1) };

/// How long a silent client is waited for at most while the process or the listener is to end.
const DRAINING: Duration = Duration::from_secs(1);

/// Bytes that are read at a time.
const PIECE_BYTES: usize = 64 * 1024;

/// Reads what is left of a request's body that no backend takes. Whether that was all of it: then the next request may come.
pub(super) async fn discard(wire: &Wire, limits: &LingeringConfig) -> bool {
    throw_away(wire, limits, |cx| wire.poll_discard(cx)).await
}

/// Ends what is sent, and throws away what the client still sends until it has read that and closes its own end.
pub(super) async fn linger(wire: &Wire, limits: &LingeringConfig) {
    let ended = tokio::time::timeout(limits.idle, poll_fn(|cx| wire.poll_shutdown(cx)));
    if limits.bytes == 0 || !matches!(ended.await, Ok(Ok(()))) {
        return;
    }
    let mut space = vec![0; PIECE_BYTES];
    throw_away(wire, limits, |cx| {
        let mut piece = ReadBuf::new(&mut space);
        wire.poll_read_raw(cx, &mut piece).map_ok(|()| piece.filled().len())
    })
    .await;
}

/// Has `read` read until it says 0. Whether it did within the limits.
async fn throw_away(
    wire: &Wire,
    limits: &LingeringConfig,
    mut read: impl FnMut(&mut Context<'_>) -> Poll<io::Result<usize>>,
) -> bool {
    let (mut left, last) = (limits.bytes, Instant::now() + limits.time);
    let until = |idle: Duration| last.min(Instant::now() + idle);
    let mut wait = pin!(sleep_until(until(limits.idle)));
    let mut draining = false;
    while left > 0 {
        let piece = poll_fn(|cx| {
            wire.watch.register(cx);
            if let Poll::Ready(piece) = read(cx) {
                return Poll::Ready(piece.ok());
            }
            if wire.watch.draining() && !std::mem::replace(&mut draining, true) {
                wait.as_mut().reset(until(limits.idle.min(DRAINING)));
            }
            if wire.watch.is_cut() || wait.as_mut().poll(cx).is_ready() { Poll::Ready(None) } else { Poll::Pending }
        });
        match piece.await {
            None => return false,
            Some(0) => return true,
            Some(bytes) => left = left.saturating_sub(bytes as u64),
        }
        if Instant::now() >= last {
            return false;
        }
        draining = false;
        wait.as_mut().reset(until(limits.idle));
        tokio::task::consume_budget().await;
    }
    false
}
