//! Strict framing of what a client sends, checked on the raw bytes before they are parsed.
//!
//! A recipient may be lenient (RFC 9112): take a lone LF for a line's end, prefer `Transfer-Encoding` when both lengths are
//! given, fold equal `Content-Length` fields into one. Each is harmless alone and a request smuggled past an access rule when
//! the next hop reads it differently (RFC 9112 §11.2). So the bytes pass through this machine first, which reads them
//! independently of the parser behind it: it follows the framing, lets nothing ambiguous through, and says what was wrong. What
//! it leaves to the parser are names and values with forbidden characters.
//!
//! Pure: bytes in, how many of them may pass out.

use memchr::memchr;

use crate::config::ListenerConfig;
use crate::proxy::{Refusal, RefusalKind};

/// Follows the framing of one client connection.
#[derive(Debug)]
pub struct FramingGuard {
    state: FramingState,
    head: HeadProgress,
    /// The beginning of a line that did not come in one piece.
    partial: Vec<u8>,
    /// Whether it was in a body that something was refused: that of a request which is being served.
    broke_body: bool,
    max_head_bytes: usize,
    max_headers: usize,
    /// Whether the first line may be the beginning of HTTP/2.
    may_be_http2: bool,
    /// Whether the request whose body is under way asks for another protocol: what follows that is held back.
    switches: bool,
}

/// Where in a message the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FramingState {
    /// In a head, or before the first byte of one.
    Head,
    /// In a body of known length, so many bytes before its end.
    Fixed(u64),
    /// In a chunk's size, with so many digits read.
    ChunkSize { size: u64, digits: u8 },
    /// In a chunk's extension, after so many bytes of it.
    ChunkExtension { size: u64, bytes: u16 },
    /// After the CR that ends a chunk's size.
    ChunkSizeLf { size: u64 },
    /// In a chunk's data.
    ChunkData(u64),
    /// Before the CR, or (`true`) the LF that ends a chunk's data.
    ChunkEnd { cr: bool },
    /// In the trailer section.
    Trailers,
    /// After a head that asks for another protocol: what follows is not HTTP, or not yet.
    Held,
    /// After the first line of HTTP/2, which has a guard of its own.
    Http2,
    /// After something that was refused.
    Refused(Refusal),
}

/// What the head told so far.
#[derive(Debug, Default)]
struct HeadProgress {
    bytes: usize,
    lines: usize,
    http10: bool,
    connect: bool,
    upgrade: bool,
    hosts: u8,
    lengths: u8,
    length: u64,
    codings: u8,
}

/// How far a piece may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// So many bytes from its beginning.
    pub bytes: usize,
    /// So many heads end in these.
    pub heads: usize,
    /// Whether a head is begun and not ended.
    pub mid_head: bool,
}

pub(super) const LONG_TARGET: Refusal =
    Refusal::new(RefusalKind::UriTooLong, "the request target is longer than this listener takes");

/// What the first line of HTTP/2's preface comes to where HTTP/2 is not spoken.
const HTTP2: Refusal = Refusal::new(RefusalKind::VersionUnsupported, "this listener speaks HTTP/1.1 here");

/// Something else than HTTP, whose sender would misread an answer in HTTP: as a frame of HTTP/2, for one, with a length
/// of megabytes (RFC 9113 §3.4). The connection ends without one.
pub(super) const NOT_HTTP: Refusal = Refusal::new(RefusalKind::NotHttp, "this is not HTTP");

/// Bytes of a chunk's extension at most: only attackers use them.
const EXTENSION_BYTES: u16 = 1024;

impl FramingGuard {
    /// The guard of a fresh connection, on which HTTP/2 is spoken if both sides have agreed on that.
    pub fn new(config: &ListenerConfig, http2: bool) -> Self {
        Self {
            state: if http2 { FramingState::Http2 } else { FramingState::Head },
            head: HeadProgress::default(),
            partial: Vec::new(),
            broke_body: false,
            max_head_bytes: config.max_header_bytes,
            max_headers: config.max_headers,
            may_be_http2: config.http2.is_some(),
            switches: false,
        }
    }

    /// Whether it is HTTP/2 that the client speaks.
    pub fn is_http2(&self) -> bool {
        self.state == FramingState::Http2
    }

    /// Why nothing passes any more.
    pub fn refusal(&self) -> Option<Refusal> {
        match self.state {
            FramingState::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Whether it was in the body of a request, which is being served and will be answered, that something was refused.
    pub fn broke_body(&self) -> bool {
        self.broke_body
    }

    /// Whether a body is begun and not ended.
    pub fn mid_body(&self) -> bool {
        !matches!(self.state, FramingState::Head | FramingState::Held | FramingState::Http2 | FramingState::Refused(_))
            || self.broke_body
    }

    /// Whether what follows is held back because the request asks for another protocol.
    pub fn is_held(&self) -> bool {
        self.state == FramingState::Held
    }

    /// The request for another protocol was answered without one: HTTP goes on.
    pub fn release(&mut self) {
        self.switches = false;
        if self.state == FramingState::Held {
            self.state = FramingState::Head;
        }
    }

    /// Whether a head is begun and not ended. Empty lines before it (RFC 9112 §2.2) do not begin one.
    pub fn mid_head(&self) -> bool {
        self.state == FramingState::Head && (self.head.lines > 0 || !self.partial.is_empty())
    }

    /// So many bytes left in a body of known length; 0 anywhere else.
    pub fn left(&self) -> u64 {
        if let FramingState::Fixed(left) = self.state { left } else { 0 }
    }

    /// So many bytes of a body of known length, no more than are left, have gone another way.
    pub fn spliced(&mut self, bytes: u64) {
        if let FramingState::Fixed(left) = self.state {
            self.state = if left > bytes { FramingState::Fixed(left - bytes) } else { self.behind() };
        }
    }

    /// Follows the next bytes and says how many of them may pass: all of them, unless a message is refused or held.
    pub fn pass(&mut self, bytes: &[u8]) -> Passed {
        let (mut at, mut heads) = (0, 0);
        while at < bytes.len() {
            let rest = &bytes[at..];
            let step = match self.state {
                FramingState::Head => self.head_lines(rest).inspect(|_| heads += usize::from(self.head.bytes == 0)),
                FramingState::Fixed(left) => {
                    let taken = left.min(rest.len() as u64);
                    self.state = if taken == left { self.behind() } else { FramingState::Fixed(left - taken) };
                    Ok(taken as usize)
                }
                FramingState::Trailers => self.trailer_line(rest),
                FramingState::Held | FramingState::Http2 | FramingState::Refused(_) => break,
                _ => self.chunk(rest),
            };
            match step {
                Ok(taken) => at += taken,
                Err(HTTP2) if self.may_be_http2 => {
                    self.state = FramingState::Http2;
                    at = 0;
                }
                Err(refusal) => {
                    self.broke_body = self.state != FramingState::Head;
                    self.state = FramingState::Refused(refusal);
                    break;
                }
            }
        }
        Passed { bytes: at, heads, mid_head: self.mid_head() }
    }

    /// What follows a body.
    fn behind(&mut self) -> FramingState {
        if std::mem::take(&mut self.switches) { FramingState::Held } else { FramingState::Head }
    }

    /// Takes as many lines of the head as are there, and the beginning of the next.
    fn head_lines(&mut self, rest: &[u8]) -> Result<usize, Refusal> {
        let mut at = 0;
        let mut ended = false;
        while let (false, Some(end)) = (ended, memchr(b'\n', &rest[at..])) {
            let line = &rest[at..=at + end];
            at += end + 1;
            ended = if self.partial.is_empty() {
                self.head.line(line, self.max_headers)?
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.head.line(&whole, self.max_headers)?
            };
            if self.head.lines <= 1 && self.head.bytes + at > self.max_head_bytes {
                return Err(LONG_TARGET);
            }
        }
        if !ended {
            self.partial.extend_from_slice(&rest[at..]);
            at = rest.len();
        }
        self.head.bytes += at;
        if self.head.bytes > self.max_head_bytes {
            return Err(match self.head.lines {
                0 => LONG_TARGET,
                _ => Refusal::new(RefusalKind::HeaderTooLarge, "the header section is larger than this listener takes"),
            });
        }
        if ended {
            self.may_be_http2 = false;
            let head = std::mem::take(&mut self.head);
            let switches = head.upgrade && !head.http10;
            self.state = head.body()?;
            self.switches = switches && self.state != FramingState::Held;
        }
        Ok(at)
    }

    /// Takes a line of the trailer section, or the part of one that is there.
    fn trailer_line(&mut self, rest: &[u8]) -> Result<usize, Refusal> {
        let end = memchr(b'\n', rest);
        let taken = end.map_or(rest.len(), |end| end + 1);
        self.head.bytes += taken;
        if self.head.bytes > self.max_head_bytes {
            return Err(Refusal::new(
                RefusalKind::HeaderTooLarge,
                "the trailer section is larger than this listener takes",
            ));
        }
        self.partial.extend_from_slice(&rest[..taken]);
        if end.is_some() {
            let line = std::mem::take(&mut self.partial);
            if !line.ends_with(b"\r\n") {
                return Err(Refusal::bad_request("a line of the trailer section ends without CR"));
            }
            if line.len() == 2 {
                self.head = HeadProgress::default();
                self.state = self.behind();
            }
        }
        Ok(taken)
    }

    /// Takes what there is of a chunk: a few bytes of its framing, or all of its data that is there.
    fn chunk(&mut self, rest: &[u8]) -> Result<usize, Refusal> {
        let byte = rest[0];
        self.state = match self.state {
            FramingState::ChunkSize { size, digits } => match (byte as char).to_digit(16) {
                // 15 digits are an exabyte: more cannot be meant, and a sum cannot overflow.
                Some(_) if digits == 15 => return Err(Refusal::bad_request("a chunk's size has too many digits")),
                Some(digit) => FramingState::ChunkSize { size: size << 4 | u64::from(digit), digits: digits + 1 },
                None if digits == 0 => return Err(Refusal::bad_request("a chunk has no size")),
                None if byte == b'\r' => FramingState::ChunkSizeLf { size },
                None if byte == b';' => FramingState::ChunkExtension { size, bytes: 0 },
                None => return Err(Refusal::bad_request("a chunk's size is not a hexadecimal number")),
            },
            FramingState::ChunkExtension { size, bytes } => match byte {
                b'\r' => FramingState::ChunkSizeLf { size },
                b'\n' | 0 => return Err(Refusal::bad_request("a chunk's extension holds a forbidden character")),
                _ if bytes == EXTENSION_BYTES => return Err(Refusal::bad_request("a chunk's extension is too long")),
                _ => FramingState::ChunkExtension { size, bytes: bytes + 1 },
            },
            FramingState::ChunkSizeLf { size } => match (byte, size) {
                (b'\n', 0) => FramingState::Trailers,
                (b'\n', size) => FramingState::ChunkData(size),
                _ => return Err(Refusal::bad_request("a chunk's size ends without LF")),
            },
            FramingState::ChunkData(left) => {
                let taken = left.min(rest.len() as u64);
                self.state = if taken == left {
                    FramingState::ChunkEnd { cr: true }
                } else {
                    FramingState::ChunkData(left - taken)
                };
                return Ok(taken as usize);
            }
            FramingState::ChunkEnd { cr: true } if byte == b'\r' => FramingState::ChunkEnd { cr: false },
            FramingState::ChunkEnd { cr: false } if byte == b'\n' => FramingState::ChunkSize { size: 0, digits: 0 },
            FramingState::ChunkEnd { .. } => return Err(Refusal::bad_request("a chunk is longer than its size")),
            state => state,
        };
        Ok(1)
    }
}

impl HeadProgress {
    /// Reads a whole line with its end. `true` at the end of the head.
    fn line(&mut self, line: &[u8], max_headers: usize) -> Result<bool, Refusal> {
        let Some(line) = line.strip_suffix(b"\r\n") else {
            return Err(Refusal::bad_request("a line of the head ends without CR"));
        };
        if self.lines == 0 {
            // RFC 9112 §2.2: empty lines before a request are skipped.
            if !line.is_empty() {
                self.lines = 1;
                self.request_line(line)?;
            }
            return Ok(false);
        }
        if line.is_empty() {
            return Ok(true);
        }
        self.lines += 1;
        if self.lines > max_headers + 1 {
            return Err(Refusal::new(
                RefusalKind::HeaderTooLarge,
                "the request has more header fields than this listener takes",
            ));
        }
        // Told apart by the place of the colon first: of the fields that matter here there is one for each.
        match line[0] | 0x20 {
            b'c' if line.get(14) == Some(&b':') => {
                if let Some(value) = field(line, b"content-length:") {
                    self.content_length(value)?;
                }
            }
            b't' if line.get(17) == Some(&b':') => {
                if let Some(value) = field(line, b"transfer-encoding:") {
                    self.codings = self.codings.saturating_add(1);
                    if self.codings > 1 || !value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Refusal::new(
                            RefusalKind::CodingUnsupported,
                            "no transfer coding but chunked is understood",
                        ));
                    }
                }
            }
            // What it says is looked at with the target's host, by one grammar.
            b'h' if field(line, b"host:").is_some() => self.hosts = self.hosts.saturating_add(1),
            b'u' if line.get(7) == Some(&b':') => self.upgrade |= field(line, b"upgrade:").is_some(),
            // A space, as above, or a tab.
            b' ' | b')' if line[0] == b' ' || line[0] == b'\t' => {
                return Err(Refusal::bad_request("a header field is folded over two lines"));
            }
            _ => {}
        }
        Ok(false)
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Refusal> {
        self.connect = line.starts_with(b"CONNECT ");
        if line.ends_with(b" HTTP/1.0") {
            self.http10 = true;
        } else if !line.ends_with(b" HTTP/1.1") {
            let named = line.rsplit(|&byte| byte == b' ').next().is_some_and(|last| last.starts_with(b"HTTP/"));
            return Err(match named {
                _ if line == b"PRI * HTTP/2.0" => HTTP2,
                true => Refusal::new(RefusalKind::VersionUnsupported, "this listener speaks HTTP/1.1"),
                false if !has_target(line) => NOT_HTTP,
                false => Refusal::bad_request("the request line is not one of HTTP/1.1"),
            });
        }
        Ok(())
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        self.lengths = self.lengths.saturating_add(1);
        // 18 digits cannot overflow, and nothing that long was ever sent.
        if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
            return Err(Refusal::bad_request("the Content-Length field is not a number"));
        }
        self.length = value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        Ok(())
    }

    /// What follows the head, once all of it is known.
    fn body(self) -> Result<FramingState, Refusal> {
        if self.lengths > 1 {
            return Err(Refusal::bad_request("the request has several Content-Length fields"));
        }
        if self.lengths == 1 && self.codings == 1 {
            return Err(Refusal::bad_request("the request has both Content-Length and Transfer-Encoding"));
        }
        if self.codings == 1 && self.http10 {
            return Err(Refusal::bad_request("HTTP/1.0 knows no Transfer-Encoding"));
        }
        if self.hosts > 1 {
            return Err(Refusal::bad_request("the request has several Host fields"));
        }
        if self.hosts == 0 && !self.http10 {
            return Err(Refusal::bad_request("the request has no Host field"));
        }
        Ok(if self.codings == 1 {
            FramingState::ChunkSize { size: 0, digits: 0 }
        } else if self.length > 0 {
            FramingState::Fixed(self.length)
        } else if (self.upgrade && !self.http10) || self.connect {
            FramingState::Held
        } else {
            FramingState::Head
        })
    }
}

/// The value of `line` without the white space around it, if the line is the field `name`, which is lower case and ends with
/// a colon. A name with white space before its colon is none: the parser refuses those.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

/// Whether a line that is none of HTTP/1.1 was meant to be: its second word looks like a target (RFC 9112 §3.2).
fn has_target(line: &[u8]) -> bool {
    let target = line.split(|&byte| byte == b' ').nth(1).unwrap_or_default();
    matches!(target.first(), Some(b'/' | b'*')) || target.contains(&b':')
}

#[cfg(test)]
mod tests;
