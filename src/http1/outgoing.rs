//! A message on its way out: its head, and its body piece by piece.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http::header::{self, HeaderName};
use tokio::io::AsyncWrite;

use crate::header_names::{is_spelling_of, tells_client, tells_identity};

use super::Framing;
use super::chunked::{Chunked, ChunkedPiece};

/// Header fields that tell the framing or the client, or that a recipient decides by before it reads a body: never taken from a
/// trailer section (RFC 9110 §6.5.1), since some recipients merge that into the header section.
const NOT_TRAILERS: [HeaderName; 20] = [
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::EXPECT,
    header::FORWARDED,
    header::HOST,
    header::PROXY_AUTHORIZATION,
    header::RANGE,
    header::SET_COOKIE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Whether a field may stand in a trailer section that is passed on.
pub fn may_trail(name: &HeaderName) -> bool {
    let barred = NOT_TRAILERS.iter().any(|barred| is_spelling_of(name, barred));
    is_sayable(name) && !tells_identity(name) && !tells_client(name) && !barred
}

/// Whether HTTP/1.1 can say a name that came by HTTP/2: what reads HTTP/2 takes quotation marks in names, which are no part of a
/// token (RFC 9110 §5.6.2), and all other characters of names are the same.
pub fn is_sayable(name: &HeaderName) -> bool {
    memchr::memchr(b'"', name.as_str().as_bytes()).is_none()
}

/// A piece of a body up to this size is copied behind what is written before it: one plain write costs less than a vectored
/// one.
const COPIED_BYTES: usize = 2048;

/// No further piece is taken while so much waits to be written.
const FULL_BYTES: usize = 16 * 1024;

/// What is to be written.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// What is left of the body.
    pub framing: Framing,
    /// Whether the body goes in chunks.
    chunked: bool,
    /// A head, the framing of chunks, small pieces.
    buffer: Vec<u8>,
    /// So many bytes of `buffer` are written.
    sent: usize,
    piece: Bytes,
    /// What ends the piece.
    tail: &'static [u8],
}

impl Outgoing {
    /// Begins a message with its head, which is in `buffer`.
    pub fn begin(&mut self, buffer: Vec<u8>, framing: Framing) {
        let chunked = framing == Framing::Chunked;
        *self = Self { framing, chunked, buffer, sent: 0, piece: Bytes::new(), tail: b"" };
    }

    /// Takes the next piece of the body, if there is room.
    ///
    /// # Errors
    /// When it goes beyond the length that the head tells.
    pub fn data(&mut self, piece: Bytes) -> Result<(), &'static str> {
        let bytes = piece.len();
        if bytes == 0 {
            return Ok(());
        }
        match &mut self.framing {
            Framing::Length(left) if *left >= bytes as u64 => *left -= bytes as u64,
            Framing::Length(_) | Framing::None => return Err("a body longer than its length"),
            Framing::Close => {}
            Framing::Chunked => {
                // The size in hexadecimal, without leading zeros.
                let digits = (67 - (bytes as u64).leading_zeros() as usize) / 4;
                self.buffer.extend((0..digits).rev().map(|at| b"0123456789abcdef"[bytes >> (4 * at) & 15]));
                self.buffer.extend_from_slice(b"\r\n");
                self.tail = b"\r\n";
            }
        }
        if bytes <= COPIED_BYTES {
            self.buffer.extend_from_slice(&piece);
            self.buffer.extend_from_slice(std::mem::take(&mut self.tail));
        } else {
            self.piece = piece;
        }
        Ok(())
    }

    /// So much of the body goes another way, behind what was taken so far.
    pub fn spliced(&mut self, bytes: usize) {
        if let Framing::Length(left) = &mut self.framing {
            *left = left.saturating_sub(bytes as u64);
        }
    }

    /// The body is over.
    ///
    /// # Errors
    /// When less of it has come than the head tells.
    pub fn end(&mut self, trailers: Option<&HeaderMap>) -> Result<(), &'static str> {
        match self.framing {
            Framing::None | Framing::Close | Framing::Length(0) => {}
            Framing::Length(_) => return Err("a body shorter than its length"),
            Framing::Chunked => {
                let end = match self.piece.is_empty() {
                    true => &mut self.buffer,
                    // The last piece of a body is followed by its end in one write.
                    false if trailers.is_none() => {
                        self.tail = b"\r\n0\r\n\r\n";
                        self.framing = Framing::None;
                        return Ok(());
                    }
                    false => {
                        let piece = std::mem::take(&mut self.piece);
                        self.buffer.extend_from_slice(&piece);
                        self.buffer.extend_from_slice(std::mem::take(&mut self.tail));
                        &mut self.buffer
                    }
                };
                end.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten() {
                    if may_trail(name) {
                        line(end, name, value.as_bytes());
                    }
                }
                end.extend_from_slice(b"\r\n");
            }
        }
        self.framing = Framing::None;
        Ok(())
    }

    /// Whether all that was taken is written.
    pub fn is_written(&self) -> bool {
        self.sent == self.buffer.len() && self.piece.is_empty() && self.tail.is_empty()
    }

    /// Whether there is room for the next piece.
    pub fn has_room(&self) -> bool {
        self.piece.is_empty() && self.tail.is_empty() && self.buffer.len() < FULL_BYTES
    }

    /// Bytes that are to be written.
    pub fn len(&self) -> usize {
        self.buffer.len() - self.sent + self.piece.len() + self.tail.len()
    }

    /// Whether there is nothing to be written.
    pub fn is_empty(&self) -> bool {
        self.is_written()
    }

    /// Writes as much as `io` takes; how much that was.
    ///
    /// # Errors
    /// Those of `io`.
    pub fn poll_write(&mut self, io: &mut (impl AsyncWrite + Unpin), cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let io = Pin::new(io);
        let n = match [&self.buffer[self.sent..], &self.piece, self.tail] {
            [buffer, [], []] => ready!(io.poll_write(cx, buffer))?,
            [[], piece, []] => ready!(io.poll_write(cx, piece))?,
            slices => ready!(io.poll_write_vectored(cx, &slices.map(IoSlice::new)))?,
        };
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(n);
        Poll::Ready(Ok(n))
    }

    fn advance(&mut self, bytes: usize) {
        let first = bytes.min(self.buffer.len() - self.sent);
        self.sent += first;
        if self.sent == self.buffer.len() {
            self.buffer.clear();
            self.sent = 0;
        }
        let piece = (bytes - first).min(self.piece.len());
        self.piece.advance(piece);
        self.tail = &self.tail[bytes - first - piece..];
        if self.piece.is_empty() {
            // It may be the last part of something large.
            self.piece = Bytes::new();
        }
    }

    /// What was taken of a body, of a message of which nothing was written: the first so many bytes of the buffer are its
    /// head.
    pub fn unsent(&mut self, head: usize) -> Bytes {
        let mut taken = self.buffer.split_off(head.min(self.buffer.len()));
        taken.extend_from_slice(&std::mem::take(&mut self.piece));
        taken.extend_from_slice(std::mem::take(&mut self.tail));
        if !self.chunked {
            return taken.into();
        }
        // What frames the chunks is in between, and is written anew.
        let (mut chunks, mut input, mut body) = (Chunked::default(), Bytes::from(taken), Vec::new());
        while let Ok(ChunkedPiece::Data(data)) = chunks.next(&mut input) {
            body.extend_from_slice(&data);
        }
        body.into()
    }

    /// The message is over, or given up: gives the buffer back.
    pub fn rest(&mut self) -> Vec<u8> {
        self.piece = Bytes::new();
        self.tail = b"";
        self.sent = 0;
        std::mem::take(&mut self.buffer)
    }
}

/// Writes a header field.
pub(super) fn line(out: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    let name = name.as_str().as_bytes();
    // One look at the room there is, instead of one for each part.
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes `Content-Length`.
pub(super) fn length(out: &mut Vec<u8>, length: u64) {
    let mut digits = [0; 20];
    let (mut at, mut rest) = (digits.len(), length);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    line(out, &header::CONTENT_LENGTH, &digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Takes so many bytes at a time.
    struct Slow(Vec<u8>, usize);

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let n = buf.len().min(self.1);
            self.0.extend_from_slice(&buf[..n]);
            Poll::Ready(Ok(n))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all = bufs.iter().flat_map(|buf| buf.iter().copied()).take(self.1).collect::<Vec<_>>();
            self.0.extend_from_slice(&all);
            Poll::Ready(Ok(all.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn write(out: &mut Outgoing, to: &mut Slow) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while !out.is_written() {
            assert!(!out.is_empty());
            assert!(out.poll_write(to, &mut cx).is_ready());
        }
        assert_eq!(out.len(), 0);
    }

    fn begun(framing: Framing) -> Outgoing {
        let mut out = Outgoing::default();
        out.begin(Vec::new(), framing);
        out
    }

    #[test]
    fn who_asks_is_not_told_in_trailers() {
        for (name, may) in [
            ("x-client-cert-subject", false),
            ("x_client-cert_sha256", false),
            ("x-client-cert", true),
            ("x-forwarded-for", false),
            ("te", false),
            ("grpc-status", true),
        ] {
            assert_eq!(may_trail(&HeaderName::from_static(name)), may, "{name}");
        }
    }

    #[test]
    fn a_name_that_http1_cannot_say_is_not_said_in_trailers() {
        assert!(!may_trail(&HeaderName::from_lowercase(b"a\"b").unwrap()));
    }

    #[test]
    fn a_body_is_neither_longer_nor_shorter_than_told() {
        let mut out = begun(Framing::Length(4));
        out.data(Bytes::from_static(b"abc")).unwrap();
        assert!(out.end(None).is_err());
        assert!(out.data(Bytes::from_static(b"de")).is_err());
        assert!(begun(Framing::None).data(Bytes::from_static(b"a")).is_err());
    }

    #[test]
    fn trailers_go_behind_the_chunks_except_those_that_frame() {
        let trailers = [(header::ETAG, "x"), (header::CONTENT_LENGTH, "1")];
        let trailers = HeaderMap::from_iter(trailers.map(|(name, value)| (name, value.parse().unwrap())));
        for size in [1, COPIED_BYTES + 1] {
            let (mut out, mut to) = (begun(Framing::Chunked), Slow(Vec::new(), 7));
            out.data(Bytes::from(vec![b'a'; size])).unwrap();
            out.end(Some(&trailers)).unwrap();
            write(&mut out, &mut to);
            let text = String::from_utf8(to.0).unwrap();
            assert!(text.ends_with("a\r\n0\r\netag: x\r\n\r\n"), "{text}");
        }
    }

    #[test]
    fn what_was_not_sent_comes_back() {
        for size in [1, COPIED_BYTES + 1] {
            for framing in [Framing::Length(size as u64 + 1), Framing::Chunked] {
                for ends in [false, true] {
                    let mut out = Outgoing::default();
                    out.begin(b"HEAD".to_vec(), framing);
                    out.data(Bytes::from_static(b"b")).unwrap();
                    out.data(Bytes::from(vec![b'a'; size])).unwrap();
                    if ends {
                        out.end(None).unwrap();
                    }
                    let expected = [&b"b"[..], &vec![b'a'; size]].concat();
                    assert_eq!(out.unsent(4), expected, "{size} {framing:?} {ends}");
                }
            }
        }
    }

    proptest! {
        /// Whatever the pieces and however much the socket takes: the chunks say what went in.
        #[test]
        fn chunks_hold_the_body(
            sizes in proptest::collection::vec(prop_oneof![0usize..40, 2000usize..2100, 10_000usize..20_000], 0..6),
            step in 1usize..5000,
            eager in any::<bool>(),
        ) {
            let (mut out, mut to) = (begun(Framing::Chunked), Slow(Vec::new(), step));
            let mut expected = Vec::new();
            for (i, &size) in sizes.iter().enumerate() {
                if !(eager && out.has_room()) {
                    write(&mut out, &mut to);
                }
                let piece = vec![b'a' + i as u8; size];
                if size > 0 {
                    expected.extend_from_slice(format!("{size:x}\r\n").as_bytes());
                    expected.extend_from_slice(&piece);
                    expected.extend_from_slice(b"\r\n");
                }
                out.data(piece.into()).unwrap();
            }
            out.end(None).unwrap();
            write(&mut out, &mut to);
            expected.extend_from_slice(b"0\r\n\r\n");
            prop_assert!(to.0 == expected);
        }

        #[test]
        fn lengths_are_written_as_numbers(number in any::<u64>()) {
            let mut out = Vec::new();
            length(&mut out, number);
            prop_assert_eq!(out, format!("content-length: {number}\r\n").into_bytes());
        }
    }
}
