//! A body in chunks (RFC 9112 §7.1), read.

use bytes::{Buf, Bytes};
use http::header::{HeaderMap, HeaderValue};

use super::field::{self, FieldLine};

/// Bytes of a chunk's extension, and of a trailer section, at most.
const EXTENSION_BYTES: u16 = 1024;
const TRAILER_BYTES: usize = 16 * 1024;

/// Fields of a trailer section at most.
const TRAILERS: usize = 64;

/// Where in the chunks the next byte is.
#[derive(Debug)]
pub struct Chunked {
    state: ChunkState,
    /// The trailer section so far.
    trailers: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum ChunkState {
    /// In a chunk's size, with so many digits read.
    Size { size: u64, digits: u8 },
    /// In a chunk's extension, after so many bytes of it.
    Extension { size: u64, bytes: u16 },
    /// After the CR that ends a chunk's size.
    SizeLf { size: u64 },
    /// In a chunk's data, so many bytes before its end.
    Data(u64),
    /// Before the CR, or (`true`) the LF that ends a chunk's data.
    DataEnd { lf: bool },
    /// In the trailer section.
    Trailers,
}

/// What the chunks come to next.
#[derive(Debug)]
pub enum ChunkedPiece {
    /// A piece of the body.
    Data(Bytes),
    /// The rest is not there yet.
    More,
    /// The end, with the trailer section where there is one.
    End(Option<HeaderMap>),
}

impl Default for Chunked {
    /// Before the first chunk.
    fn default() -> Self {
        Self { state: ChunkState::Size { size: 0, digits: 0 }, trailers: Vec::new() }
    }
}

impl Chunked {
    /// Takes what `input` begins with.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn next(&mut self, input: &mut Bytes) -> Result<ChunkedPiece, &'static str> {
        while let Some(&byte) = input.first() {
            self.state = match self.state {
                ChunkState::Data(left) => {
                    let taken = left.min(input.len() as u64);
                    self.state =
                        if taken == left { ChunkState::DataEnd { lf: false } } else { ChunkState::Data(left - taken) };
                    return Ok(ChunkedPiece::Data(input.split_to(taken as usize)));
                }
                ChunkState::Trailers => {
                    let end = memchr::memchr(b'\n', input).map_or(input.len(), |end| end + 1);
                    self.trailers.extend_from_slice(&input[..end]);
                    input.advance(end);
                    if self.trailers.len() > TRAILER_BYTES {
                        return Err("a trailer section that is too long");
                    }
                    if self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n") {
                        return trailers(&self.trailers).map(ChunkedPiece::End);
                    }
                    continue;
                }
                ChunkState::Size { size, digits } => match (byte as char).to_digit(16) {
                    Some(_) if digits == 15 => return Err("a chunk's size with too many digits"),
                    Some(digit) => ChunkState::Size { size: size << 4 | u64::from(digit), digits: digits + 1 },
                    None if digits == 0 => return Err("a chunk without a size"),
                    None if byte == b'\r' => ChunkState::SizeLf { size },
                    // Some send blanks behind the size.
                    None if matches!(byte, b';' | b' ' | b'\t') => ChunkState::Extension { size, bytes: 0 },
                    None => return Err("a chunk's size that is not a number"),
                },
                ChunkState::Extension { size, bytes } => match byte {
                    b'\r' => ChunkState::SizeLf { size },
                    b'\n' | 0 => return Err("a chunk's extension with a forbidden character"),
                    _ if bytes == EXTENSION_BYTES => return Err("a chunk's extension that is too long"),
                    _ => ChunkState::Extension { size, bytes: bytes + 1 },
                },
                ChunkState::SizeLf { size } => match (byte, size) {
                    (b'\n', 0) => ChunkState::Trailers,
                    (b'\n', size) => ChunkState::Data(size),
                    _ => return Err("a chunk's size that ends without LF"),
                },
                ChunkState::DataEnd { lf: false } if byte == b'\r' => ChunkState::DataEnd { lf: true },
                ChunkState::DataEnd { lf: true } if byte == b'\n' => ChunkState::Size { size: 0, digits: 0 },
                ChunkState::DataEnd { .. } => return Err("a chunk that is longer than its size"),
            };
            input.advance(1);
        }
        Ok(ChunkedPiece::More)
    }

    /// Takes data behind `first` as well, as much of it as is there, from chunks that are whole in `input` and as long as there are fewer
    /// than `most` bytes: a piece for many small chunks. What is anything else, or wrong, is left for [`Chunked::next`].
    pub fn gather(&mut self, first: Bytes, input: &mut Bytes, most: usize) -> Bytes {
        let (mut at, mut end) = (0, matches!(self.state, ChunkState::DataEnd { lf: false }));
        let mut data = Vec::new();
        while end && first.len() + data.len() < most {
            let Some((size, from)) = behind(&input[at..]) else { break };
            let Some(chunk) = input.get(at + from..at + from + size) else { break };
            if data.is_empty() {
                data.reserve(input.len().min(most));
                data.extend_from_slice(&first);
            }
            data.extend_from_slice(chunk);
            at += from + size;
            end = at < input.len();
        }
        if data.is_empty() {
            return first;
        }
        // As behind `first`: at the end of a chunk's data.
        input.advance(at);
        data.into()
    }
}

/// The size of the next chunk, and where its data begins, where `input` begins with the end of one before: CR, LF, some digits, CR and LF.
fn behind(input: &[u8]) -> Option<(usize, usize)> {
    let [b'\r', b'\n', rest @ ..] = input else { return None };
    let digits = rest.iter().take(4).take_while(|byte| byte.is_ascii_hexdigit()).count();
    let size =
        rest[..digits].iter().fold(0, |size, &digit| size << 4 | (digit as char).to_digit(16).unwrap_or(0) as usize);
    // The last one, without data, is followed by what is no chunk.
    (rest[digits..].starts_with(b"\r\n") && size > 0).then_some((size, digits + 4))
}

/// The fields of a trailer section.
fn trailers(section: &[u8]) -> Result<Option<HeaderMap>, &'static str> {
    const MALFORMED: &str = "a malformed trailer section";
    if section == b"\r\n" {
        return Ok(None);
    }
    let (mut map, mut at) = (HeaderMap::new(), 0);
    loop {
        match field::line(section, &mut at).map_err(|_| MALFORMED)? {
            FieldLine::Field(..) if map.len() == TRAILERS => return Err(MALFORMED),
            FieldLine::Field(name, value) => {
                let name = name.read(section).map_err(|_| MALFORMED)?;
                map.append(name, HeaderValue::from_bytes(&section[value]).map_err(|_| MALFORMED)?);
            }
            FieldLine::End => return Ok(Some(map)),
            FieldLine::Partial => return Err(MALFORMED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What comes out of `text` when it arrives in pieces: the data, the trailers, and what is left behind the end.
    fn read(text: &[u8], piece: usize) -> Result<(Vec<u8>, Option<HeaderMap>, usize), &'static str> {
        let (mut chunked, mut data, mut input) = (Chunked::default(), Vec::new(), Bytes::new());
        let mut pieces = text.chunks(piece);
        loop {
            match chunked.next(&mut input)? {
                ChunkedPiece::Data(bytes) => data.extend_from_slice(&bytes),
                ChunkedPiece::More => input = Bytes::copy_from_slice(pieces.next().ok_or("cut short")?),
                ChunkedPiece::End(trailers) => {
                    return Ok((data, trailers, input.len() + pieces.map(<[u8]>::len).sum::<usize>()));
                }
            }
        }
    }

    /// The same where small ones are put together, and the longest piece that came of it.
    fn gathered(text: &[u8], piece: usize, most: usize) -> Result<(Vec<u8>, Option<HeaderMap>, usize), &'static str> {
        let (mut chunked, mut data, mut input) = (Chunked::default(), Vec::new(), Bytes::new());
        let (mut pieces, mut longest) = (text.chunks(piece), 0);
        loop {
            match chunked.next(&mut input)? {
                ChunkedPiece::Data(bytes) => {
                    let bytes = chunked.gather(bytes, &mut input, most);
                    longest = longest.max(bytes.len());
                    data.extend_from_slice(&bytes);
                }
                ChunkedPiece::More => input = Bytes::copy_from_slice(pieces.next().ok_or("cut short")?),
                ChunkedPiece::End(trailers) => return Ok((data, trailers, longest)),
            }
        }
    }

    #[test]
    fn small_chunks_are_put_together() {
        let text =
            [&b"1\r\nx\r\n".repeat(100)[..], b"3;a\r\nyyy\r\n", b"0c\r\nzzzzzzzzzzzz\r\n0\r\nA: b\r\n\r\n"].concat();
        let (data, trailers, longest) = gathered(&text, text.len(), 1000).unwrap();
        assert_eq!((data.len(), trailers.map(|it| it.len()), longest), (115, Some(1), 100));
        // Not without a bound.
        assert_eq!(gathered(&text, text.len(), 10).unwrap().2, 15);
        for wrong in ["1\r\nxx\r\n0\r\n\r\n", "1\r\nx\r\nfffff\r\nx", "1\r\nx\r\n1\nx", "1\r\nx\r\n\r\n"] {
            assert_eq!(
                gathered(wrong.as_bytes(), 100, 1000),
                Err(read(wrong.as_bytes(), 100).unwrap_err()),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn takes_the_chunks_apart() {
        for piece in [1, 2, 3, 7, 100] {
            let (data, trailers, rest) = read(b"5\r\nhello\r\n0a;a=b\r\n, world!!!\r\n0\r\n\r\nHTTP", piece).unwrap();
            assert_eq!((&data[..], trailers, rest), (&b"hello, world!!!"[..], None, 4), "in pieces of {piece}");
            let (data, trailers, _) = read(b"1 \r\nx\r\n0\r\nEtag: y\r\nA: b\r\n\r\n", piece).unwrap();
            let trailers = trailers.unwrap();
            assert_eq!((&data[..], trailers.len(), &trailers["etag"]), (&b"x"[..], 2, &HeaderValue::from_static("y")));
        }
    }

    #[test]
    fn refuses_what_is_no_chunk() {
        for text in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "0x1\r\na\r\n",
            "1\na\r\n",
            "1\r\nab\r\n",
            "1\r\na\n",
            "1000000000000000\r\n",
            "1;a\nb\r\n",
            "0\r\nA b\r\n\r\n",
        ] {
            let refused = read(text.as_bytes(), 1).unwrap_err();
            assert_ne!(refused, "cut short", "{text:?}");
        }
        let long = format!("0\r\nA: {}\r\n\r\n", "b".repeat(TRAILER_BYTES));
        assert!(read(long.as_bytes(), 100).is_err());
        assert!(read(format!("1;{}\r\na\r\n", "b".repeat(2000)).as_bytes(), 100).is_err());
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(bodies in proptest::collection::vec("[a-z\r\n]{1,50}", 0..6), piece in 1usize..80) {
            let mut text: String = bodies.iter().map(|body| format!("{:X}\r\n{body}\r\n", body.len())).collect();
            text += "0\r\n\r\n";
            prop_assert_eq!(read(text.as_bytes(), piece), Ok((bodies.concat().into_bytes(), None, 0)));
            let (data, trailers, _) = gathered(text.as_bytes(), piece, 100).unwrap();
            prop_assert_eq!((data, trailers), (bodies.concat().into_bytes(), None));
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 1..200), piece in 1usize..50) {
            let _ = read(&bytes, piece);
            let _ = gathered(&bytes, piece, 100);
        }
    }
}
