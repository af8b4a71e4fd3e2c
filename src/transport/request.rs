//! A request as it goes to a backend: its head, and the framing of its body (RFC 9112).

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http::header::{self, HeaderName};
use http::request::Parts;

/// How the end of a request's body is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    #[default]
    None,
    /// So many bytes are still to come.
    Length(u64),
    /// In chunks: its length is not known.
    Chunked,
}

/// Header fields that tell the framing, or that make no sense behind a body: never taken from a trailer section (RFC 9110
/// §6.5.1).
const NOT_TRAILERS: [HeaderName; 12] = [
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What is to be written to a backend. At most one piece of a body at a time: the next is asked for when it is gone.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    pub(super) framing: Framing,
    /// A head, the beginning of a chunk, or the end of the chunks. Its space is used again.
    buffer: Vec<u8>,
    /// So many bytes of `buffer` are written.
    sent: usize,
    piece: Bytes,
    /// What ends the piece.
    tail: &'static [u8],
}

impl Outgoing {
    /// Takes a request's head, with `lines` put in behind the request line.
    pub(super) fn begin(&mut self, parts: &Parts, framing: Framing, lines: Option<&[u8]>) {
        self.framing = framing;
        self.sent = 0;
        self.piece = Bytes::new();
        self.tail = b"";
        let out = &mut self.buffer;
        out.clear();
        out.extend_from_slice(parts.method.as_str().as_bytes());
        out.push(b' ');
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        if !target.starts_with('/') && target != "*" {
            // "?query" alone.
            out.push(b'/');
        }
        out.extend_from_slice(target.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        out.extend_from_slice(lines.unwrap_or_default());
        for (name, value) in &parts.headers {
            // The framing is told below, as it is.
            if framing != Framing::None && (*name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING) {
                continue;
            }
            line(out, name, value.as_bytes());
        }
        match framing {
            Framing::None => {}
            Framing::Length(length) => line(out, &header::CONTENT_LENGTH, length.to_string().as_bytes()),
            Framing::Chunked => line(out, &header::TRANSFER_ENCODING, b"chunked"),
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Takes the next piece of the body. The one before has to be written.
    ///
    /// # Errors
    /// When it goes beyond the length that the head tells.
    pub(super) fn data(&mut self, piece: Bytes) -> Result<(), &'static str> {
        let bytes = piece.len() as u64;
        if bytes == 0 {
            return Ok(());
        }
        self.compact();
        match &mut self.framing {
            Framing::Length(left) if *left >= bytes => *left -= bytes,
            Framing::Length(_) | Framing::None => return Err("the request's body is longer than its length"),
            Framing::Chunked => {
                // The size in hexadecimal, without leading zeros.
                let digits = (67 - bytes.leading_zeros() as usize) / 4;
                let hex = |at: usize| b"0123456789abcdef"[(bytes >> (4 * at)) as usize & 15];
                self.buffer.extend((0..digits).rev().map(hex));
                self.buffer.extend_from_slice(b"\r\n");
                self.tail = b"\r\n";
            }
        }
        self.piece = piece;
        Ok(())
    }

    /// The body is over.
    ///
    /// # Errors
    /// When less of it has come than the head tells.
    pub(super) fn end(&mut self, trailers: Option<&HeaderMap>) -> Result<(), &'static str> {
        match self.framing {
            Framing::None | Framing::Length(0) => {}
            Framing::Length(_) => return Err("the request's body is shorter than its length"),
            Framing::Chunked => {
                self.compact();
                self.buffer.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten() {
                    if !NOT_TRAILERS.contains(name) {
                        line(&mut self.buffer, name, value.as_bytes());
                    }
                }
                self.buffer.extend_from_slice(b"\r\n");
            }
        }
        self.framing = Framing::None;
        Ok(())
    }

    /// Whether all that was taken is written.
    pub(super) fn is_written(&self) -> bool {
        self.sent == self.buffer.len() && self.piece.is_empty() && self.tail.is_empty()
    }

    /// Whether there is room for the next piece.
    pub(super) fn has_room(&self) -> bool {
        self.piece.is_empty() && self.tail.is_empty()
    }

    /// What is to be written, in order.
    pub(super) fn slices(&self) -> [&[u8]; 3] {
        [&self.buffer[self.sent..], &self.piece, self.tail]
    }

    /// So much of it is written.
    pub(super) fn advance(&mut self, bytes: usize) {
        let head = bytes.min(self.buffer.len() - self.sent);
        self.sent += head;
        let piece = (bytes - head).min(self.piece.len());
        self.piece.advance(piece);
        self.tail = &self.tail[bytes - head - piece..];
        if self.piece.is_empty() {
            // The last piece of a body may be part of something large.
            self.piece = Bytes::new();
        }
    }

    /// Takes back the piece, of a request of which nothing was written.
    pub(super) fn unsent(&mut self) -> Bytes {
        std::mem::take(&mut self.piece)
    }

    /// The request is over: keeps no more space than a next one is likely to need.
    pub(super) fn rest(&mut self) {
        const KEPT_BYTES: usize = 4096;
        self.buffer.clear();
        self.sent = 0;
        self.buffer.shrink_to(KEPT_BYTES);
    }

    /// Makes room in front of what is still to be written.
    fn compact(&mut self) {
        self.buffer.drain(..self.sent);
        self.sent = 0;
    }
}

fn line(out: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    let name = name.as_str().as_bytes();
    // One look at the room there is, instead of one for each part.
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use proptest::prelude::*;

    fn parts(target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method("POST").uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn written(out: &mut Outgoing, step: usize) -> String {
        let mut text = Vec::new();
        while !out.is_written() {
            let all = out.slices().concat();
            let n = step.min(all.len());
            text.extend_from_slice(&all[..n]);
            out.advance(n);
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_head_tells_the_framing_as_it_is() {
        let mut out = Outgoing::default();
        let parts = parts("/a?b=c", &[("host", "h"), ("content-length", "99"), ("accept", "*/*")]);
        out.begin(&parts, Framing::Length(5), Some(b"x-forwarded-for: 192.0.2.1\r\n"));
        assert_eq!(
            written(&mut out, 7),
            "POST /a?b=c HTTP/1.1\r\nx-forwarded-for: 192.0.2.1\r\nhost: h\r\naccept: */*\r\ncontent-length: 5\r\n\r\n"
        );
        out.begin(&parts, Framing::Chunked, None);
        assert!(written(&mut out, 100).ends_with("\r\naccept: */*\r\ntransfer-encoding: chunked\r\n\r\n"));
    }

    #[test]
    fn targets_begin_with_a_slash_unless_they_are_the_asterisk() {
        let mut out = Outgoing::default();
        for (target, line) in
            [("*", "POST * H"), ("http://h?q", "POST /?q H"), ("http://h", "POST / H"), ("/", "POST / H")]
        {
            out.begin(&parts(target, &[]), Framing::None, None);
            assert!(written(&mut out, 100).starts_with(line), "{target}");
        }
    }

    #[test]
    fn a_body_is_neither_longer_nor_shorter_than_told() {
        let mut out = Outgoing::default();
        out.begin(&parts("/", &[]), Framing::Length(4), None);
        out.data(Bytes::from_static(b"abc")).unwrap();
        assert!(out.end(None).is_err());
        written(&mut out, 100);
        assert!(out.data(Bytes::from_static(b"de")).is_err());
    }

    #[test]
    fn trailers_go_behind_the_chunks_except_those_that_frame() {
        let mut out = Outgoing::default();
        out.begin(&parts("/", &[]), Framing::Chunked, None);
        written(&mut out, 100);
        let trailers = HeaderMap::from_iter([
            (header::ETAG, "x".parse().unwrap()),
            (header::CONTENT_LENGTH, "1".parse().unwrap()),
        ]);
        out.end(Some(&trailers)).unwrap();
        assert_eq!(written(&mut out, 100), "0\r\netag: x\r\n\r\n");
    }

    proptest! {
        /// Whatever the pieces and however much the socket takes: the chunks say what went in.
        #[test]
        fn chunks_hold_the_body(pieces in proptest::collection::vec("[a-z]{0,300}", 0..8), step in 1usize..400) {
            let mut out = Outgoing::default();
            out.begin(&parts("/", &[]), Framing::Chunked, None);
            let mut text = written(&mut out, step);
            text.clear();
            for piece in &pieces {
                out.data(Bytes::from(piece.clone())).unwrap();
                text += &written(&mut out, step);
            }
            out.end(None).unwrap();
            text += &written(&mut out, step);
            let mut expected = String::new();
            for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
                expected += &format!("{:x}\r\n{piece}\r\n", piece.len());
            }
            prop_assert_eq!(text, expected + "0\r\n\r\n");
        }
    }
}
