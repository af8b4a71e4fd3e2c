//! Floods: frames that cost their sender next to nothing and us work, told from the bytes before they are parsed.
//!
//! HTTP/2 lets a client ask for much with little: open streams and reset them at once (CVE-2023-44487, "rapid reset"), have us
//! reset them (CVE-2025-8671, "MadeYouReset"), never end a header block (CVE-2024-27316), or send frames that only have to be
//! answered or looked at (CVE-2019-9511 to 9518). So frames are counted as they come and as they go: per second, and for each
//! header block. Resets of ours are counted on their way out, which sees every kind of fault that leads to one.
//!
//! Pure: bytes and the time in, what is too much out.

use crate::telemetry::metrics::FloodKind;

/// What is too much.
#[derive(Clone, Copy, Debug)]
pub(super) struct FloodLimits {
    /// Resets in a second: those of the client, and as many that it makes us send.
    pub(super) resets: u32,
    /// Frames of each kind that carry nothing, in a second.
    pub(super) control: u32,
    /// Bytes of a header block as it is sent.
    pub(super) block_bytes: usize,
}

/// Follows the frames of one connection, both ways.
#[derive(Debug)]
pub(super) struct FloodGuard {
    limits: FloodLimits,
    /// Bytes of the preface that are still to come.
    preface: usize,
    received: Frames,
    sent: Frames,
    /// The header block that has begun and not ended.
    block: Option<Block>,
    /// Header blocks begun.
    blocks: u64,
    /// When the second that is counted began.
    since_ms: u64,
    counts: [u32; FloodKind::ALL.len()],
    /// DATA frames sent in this second, and in the one before: each may be answered with two WINDOW_UPDATEs.
    data_sent: [u32; 2],
    /// HEADERS received in this second: some clients send a PRIORITY with each.
    heads: u32,
}

#[derive(Debug)]
struct Block {
    bytes: usize,
    frames: u32,
    /// Whether it is over with this frame.
    ends: bool,
}

/// A frame, as its first bytes tell.
#[derive(Clone, Copy, Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    bytes: u32,
    /// The first number of its payload, where that matters.
    word: u32,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The codes of resets that we send for reasons of our own: NO_ERROR, INTERNAL_ERROR, CANCEL. And REFUSED_STREAM, which a client gets
/// that asks for much at once before it knows how much it may.
const OUR_RESETS: [u32; 4] = [0, 2, 7, 8];

/// Bytes of a frame of the length that we take.
const FRAME_BYTES: usize = 16 * 1024;
/// CONTINUATION frames that any header block may have.
const CONTINUATIONS: u32 = 8;
const SECOND_MS: u64 = 1000;

impl FloodGuard {
    /// The guard of a fresh connection, of which nothing was read, the preface neither.
    pub(super) fn new(limits: FloodLimits, now_ms: u64) -> Self {
        Self {
            limits,
            preface: super::PREFACE.len(),
            received: Frames::default(),
            sent: Frames::default(),
            block: None,
            blocks: 0,
            since_ms: now_ms,
            counts: [0; FloodKind::ALL.len()],
            data_sent: [0; 2],
            heads: 0,
        }
    }

    /// Which header block, or (0) the preface, is begun and not ended.
    pub(super) fn mid_head(&self) -> Option<u64> {
        if self.preface > 0 {
            return Some(0);
        }
        self.block.is_some().then_some(self.blocks)
    }

    /// Whether anything has come.
    pub(super) fn has_begun(&self) -> bool {
        self.preface < super::PREFACE.len()
    }

    /// The client has sent these bytes.
    ///
    /// # Errors
    /// What is too much.
    pub(super) fn received(&mut self, bytes: &[u8], now_ms: u64) -> Result<(), FloodKind> {
        let preface = self.preface.min(bytes.len());
        self.preface -= preface;
        let mut rest = &bytes[preface..];
        self.roll(now_ms);
        while let Some(frame) = self.received.next(&mut rest) {
            self.end_block();
            self.look_at(frame)?;
        }
        if self.received.is_between() {
            self.end_block();
        }
        Ok(())
    }

    /// We have sent these bytes.
    ///
    /// # Errors
    /// When we had to reset too many streams.
    pub(super) fn sent(&mut self, bytes: &[u8], now_ms: u64) -> Result<(), FloodKind> {
        let mut rest = bytes;
        self.roll(now_ms);
        while let Some(frame) = self.sent.next(&mut rest) {
            match frame.kind {
                DATA => self.data_sent[0] = self.data_sent[0].saturating_add(1),
                RST_STREAM if !OUR_RESETS.contains(&frame.word) => self.count(FloodKind::Error, self.limits.resets)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn look_at(&mut self, frame: Frame) -> Result<(), FloodKind> {
        let control = self.limits.control;
        match frame.kind {
            DATA if frame.bytes == 0 && frame.flags & END_STREAM == 0 => self.count(FloodKind::EmptyData, control),
            DATA => Ok(()),
            HEADERS => {
                self.heads = self.heads.saturating_add(1);
                self.blocks += 1;
                self.block = Some(Block { bytes: 0, frames: 0, ends: false });
                self.grow(frame)
            }
            CONTINUATION => self.grow(frame),
            PRIORITY => self.count(FloodKind::Priority, control.saturating_add(self.heads.saturating_mul(2))),
            RST_STREAM => self.count(FloodKind::Reset, self.limits.resets),
            SETTINGS if frame.flags & ACK == 0 => self.count(FloodKind::Settings, control),
            PING if frame.flags & ACK == 0 => self.count(FloodKind::Ping, control),
            WINDOW_UPDATE => {
                let data = self.data_sent[0].saturating_add(self.data_sent[1]);
                self.count(FloodKind::WindowUpdate, control.saturating_add(data.saturating_mul(4)))
            }
            // Acknowledgements of what was never sent, and farewells without end, are no better than frames that nobody knows.
            _ => self.count(FloodKind::Unknown, control),
        }
    }

    /// A header block goes on.
    fn grow(&mut self, frame: Frame) -> Result<(), FloodKind> {
        // A CONTINUATION of nothing is an error of the protocol, which the parser sees to.
        let Some(block) = &mut self.block else { return Ok(()) };
        block.bytes += frame.bytes as usize;
        block.ends = frame.flags & END_HEADERS != 0;
        if block.bytes > self.limits.block_bytes {
            return Err(FloodKind::HeaderBlock);
        }
        let most =
            CONTINUATIONS + u32::try_from(self.limits.block_bytes / FRAME_BYTES).unwrap_or(u32::MAX - CONTINUATIONS);
        block.frames += 1;
        if block.frames > most.saturating_add(1) {
            return Err(FloodKind::Continuation);
        }
        Ok(())
    }

    fn end_block(&mut self) {
        if self.block.as_ref().is_some_and(|block| block.ends) {
            self.block = None;
        }
    }

    fn count(&mut self, kind: FloodKind, most: u32) -> Result<(), FloodKind> {
        let count = &mut self.counts[kind as usize];
        *count = count.saturating_add(1);
        if *count > most { Err(kind) } else { Ok(()) }
    }

    /// Begins to count anew once a second.
    fn roll(&mut self, now_ms: u64) {
        let past = now_ms.saturating_sub(self.since_ms);
        if past >= SECOND_MS {
            self.since_ms = now_ms;
            self.counts = [0; FloodKind::ALL.len()];
            self.heads = 0;
            self.data_sent = [0, if past < 2 * SECOND_MS { self.data_sent[0] } else { 0 }];
        }
    }
}

/// Finds the frames in a stream of bytes that comes in pieces.
#[derive(Debug, Default)]
struct Frames {
    /// The head of the frame, and the first number of its payload.
    start: [u8; 13],
    have: usize,
    /// Bytes of the payload that are still to come, behind `start`.
    left: usize,
    /// Whether this frame was handed out.
    told: bool,
}

const HEAD: usize = 9;

impl Frames {
    /// Whether the next byte is the first of a frame.
    fn is_between(&self) -> bool {
        self.have == 0 || (self.told && self.left == 0)
    }

    /// Takes bytes up to where a frame can be told, which it is at once, before its payload.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Frame> {
        if self.told {
            let skipped = self.left.min(bytes.len());
            *bytes = &bytes[skipped..];
            self.left -= skipped;
            if self.left > 0 {
                return None;
            }
            *self = Self::default();
        }
        if !self.take(HEAD, bytes) {
            return None;
        }
        let [a, b, c, kind, flags, ..] = self.start;
        let length = u32::from_be_bytes([0, a, b, c]);
        // Only of these the payload matters.
        let word = if kind == RST_STREAM { (length as usize).min(4) } else { 0 };
        if !self.take(HEAD + word, bytes) {
            return None;
        }
        self.left = length as usize - word;
        self.told = true;
        let [.., w, x, y, z] = self.start;
        Some(Frame { kind, flags, bytes: length, word: u32::from_be_bytes([w, x, y, z]) })
    }

    /// Whether there are as many bytes of the start, once what is there of `bytes` was taken.
    fn take(&mut self, wanted: usize, bytes: &mut &[u8]) -> bool {
        let taken = wanted.saturating_sub(self.have).min(bytes.len());
        self.start[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
        self.have += taken;
        *bytes = &bytes[taken..];
        self.have >= wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FloodLimits = FloodLimits { resets: 5, control: 10, block_bytes: 1000 };

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn guard() -> FloodGuard {
        let mut guard = FloodGuard::new(LIMITS, 0);
        guard.received(crate::listener::http2::PREFACE, 0).unwrap();
        guard
    }

    /// How many times the bytes may be received within a second, and what is said then; in one piece each and byte by byte,
    /// which must come to the same.
    fn most(bytes: &[u8]) -> (usize, Option<FloodKind>) {
        let count = |pieces: usize| {
            let mut guard = guard();
            for n in 0..100 {
                for piece in bytes.chunks(pieces) {
                    if let Err(kind) = guard.received(piece, 10) {
                        return (n, Some(kind));
                    }
                }
            }
            (100, None)
        };
        let whole = count(bytes.len());
        assert_eq!(whole, count(1), "in pieces");
        whole
    }

    #[test]
    fn frames_that_carry_nothing_are_counted() {
        let stream = [frame(HEADERS, 4, b"x"), frame(PRIORITY, 0, &[0; 5])].concat();
        for (what, bytes, expected) in [
            ("resets", frame(RST_STREAM, 0, &[0, 0, 0, 8]), (5, Some(FloodKind::Reset))),
            (
                "rapid resets",
                [frame(HEADERS, 5, b"x"), frame(RST_STREAM, 0, &[0; 4])].concat(),
                (5, Some(FloodKind::Reset)),
            ),
            ("settings", frame(SETTINGS, 0, &[]), (10, Some(FloodKind::Settings))),
            ("acknowledgements", frame(SETTINGS, 1, &[]), (10, Some(FloodKind::Unknown))),
            ("pings", frame(PING, 0, &[0; 8]), (10, Some(FloodKind::Ping))),
            ("answers to pings", frame(PING, ACK, &[0; 8]), (10, Some(FloodKind::Unknown))),
            ("priorities", frame(PRIORITY, 0, &[0; 5]), (10, Some(FloodKind::Priority))),
            ("a priority with each request", stream, (100, None)),
            ("window updates", frame(WINDOW_UPDATE, 0, &[0, 0, 0, 1]), (10, Some(FloodKind::WindowUpdate))),
            ("empty data", frame(DATA, 0, &[]), (10, Some(FloodKind::EmptyData))),
            ("the end of a stream", frame(DATA, 1, &[]), (100, None)),
            ("data", frame(DATA, 0, b"x"), (100, None)),
            ("unknown frames", frame(0xfa, 0, b"x"), (10, Some(FloodKind::Unknown))),
            ("requests", frame(HEADERS, 5, b"x"), (100, None)),
            ("a block without an end", frame(CONTINUATION, 0, b""), (100, None)),
        ] {
            assert_eq!(most(&bytes), expected, "{what}");
        }
    }

    #[test]
    fn a_second_later_it_begins_anew() {
        let mut guard = guard();
        let reset = frame(RST_STREAM, 0, &[0; 4]);
        for second in 0..10 {
            for _ in 0..5 {
                guard.received(&reset, second * 1000).unwrap();
            }
        }
        assert_eq!(guard.received(&reset, 9999), Err(FloodKind::Reset));
    }

    #[test]
    fn a_header_block_is_bounded() {
        let mut endless = guard();
        endless.received(&frame(HEADERS, 0, b"x"), 0).unwrap();
        let kinds = (0..20).find_map(|_| endless.received(&frame(CONTINUATION, 0, b""), 0).err());
        assert_eq!(kinds, Some(FloodKind::Continuation));
        let mut large = guard();
        large.received(&frame(HEADERS, 0, &[0; 900]), 0).unwrap();
        assert_eq!(large.received(&frame(CONTINUATION, 4, &[0; 101]), 0), Err(FloodKind::HeaderBlock));
    }

    #[test]
    fn it_is_known_when_a_block_is_open() {
        let mut guard = FloodGuard::new(LIMITS, 0);
        assert_eq!(guard.mid_head(), Some(0), "the preface");
        guard.received(crate::listener::http2::PREFACE, 0).unwrap();
        assert_eq!(guard.mid_head(), None);
        let whole = frame(HEADERS, 4, b"block");
        guard.received(&whole[..10], 0).unwrap();
        assert_eq!(guard.mid_head(), Some(1), "in the payload");
        guard.received(&whole[10..], 0).unwrap();
        assert_eq!(guard.mid_head(), None);
        guard.received(&frame(HEADERS, 0, b"block"), 0).unwrap();
        assert_eq!(guard.mid_head(), Some(2), "between frames");
        guard.received(&frame(CONTINUATION, 4, b""), 0).unwrap();
        assert_eq!(guard.mid_head(), None);
    }

    #[test]
    fn resets_that_the_client_makes_us_send_are_counted() {
        let mut guard = guard();
        for code in [0_u8, 2, 8] {
            for _ in 0..100 {
                guard.sent(&frame(RST_STREAM, 0, &[0, 0, 0, code]), 0).unwrap();
            }
        }
        let faults = (0..100).take_while(|_| guard.sent(&frame(RST_STREAM, 0, &[0, 0, 0, 1]), 0).is_ok()).count();
        assert_eq!(faults, 5);
    }

    #[test]
    fn data_sent_allows_for_window_updates() {
        let mut guard = guard();
        for _ in 0..10 {
            guard.sent(&frame(DATA, 0, b"hello"), 0).unwrap();
        }
        let update = frame(WINDOW_UPDATE, 0, &[0, 0, 0, 5]);
        assert_eq!((0..100).take_while(|_| guard.received(&update, 1).is_ok()).count(), 50);
    }
}
