//! The head of a response: read from a backend, written to a client.
//!
//! Reading is stricter than a user agent has to be: what two recipients may frame differently is refused, so that neither a broken nor
//! a taken-over backend can have its bytes read as the response to another client's request (response splitting).

use std::ops::Range;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::response::Parts;
use http::{StatusCode, Version};
use hyper::ext::ReasonPhrase;
use memchr::memchr;

use super::Framing;
use super::field::{self, FieldLine, FieldName};
use super::head::RuleLines;
use super::outgoing::{length, line};
use super::pass_through_headers::{PassThrough, is_value};
use super::request::{Terms, is, number, tokens};

/// Fields of a head at most.
const FIELDS: usize = 256;

/// A head, as places in the bytes that it was read from.
#[derive(Debug, Default)]
pub struct ResponseHead {
    /// Whether pass-through headers are left as lines. Said before it is read.
    pub passes_through: bool,
    /// The status.
    pub status: StatusCode,
    /// How the body is framed.
    pub framing: Framing,
    /// Whether the connection goes on behind the response.
    pub keep_alive: bool,
    /// What was noted of its fields, since each name is looked at anyway.
    pub noted: Noted,
    reason: Range<usize>,
    /// Names and values, without the transfer coding. The space is used again.
    fields: Vec<(FieldName, Range<usize>)>,
    /// The pass-through headers.
    pass_through: PassThrough,
}

/// What is noted of the fields of a response's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Noted {
    /// Whether any may be for this hop alone.
    pub hop_by_hop: bool,
    /// Whether there is a `Date`.
    pub dated: bool,
}

impl ResponseHead {
    /// Reads the head that `bytes` begin with: how long it is, or `None` when its end is not there yet. `bodiless` is that of
    /// the answer to a HEAD.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(&mut self, bytes: &[u8], bodiless: bool) -> Result<Option<usize>, &'static str> {
        let start = field::begin(bytes);
        let text = &bytes[start..];
        let known = text.len().min(PROTOCOL.len());
        if text[..known] != PROTOCOL[..known] {
            return Err("another protocol than HTTP/1");
        }
        let Some(end) = memchr(b'\n', text) else { return Ok(None) };
        let http10 = self.begin(&text[..end], start)?;
        let mut at = start + end + 1;
        self.fields.clear();
        self.pass_through = PassThrough::default();
        let (mut fields, mut room) = (0, self.passes_through);
        let (mut close, mut keep_alive) = (false, false);
        let (mut length, mut chunked) = (None, false);
        self.noted = Noted::default();
        loop {
            let (told, place) = match field::line(bytes, &mut at).map_err(|_| NO_NAME)? {
                FieldLine::Field(name, place) => (name, place),
                FieldLine::End => break,
                FieldLine::Partial => return Ok(None),
            };
            let (name, value) = (&bytes[told.place.clone()], &bytes[place.clone()]);
            // Few names are of such a length.
            match name.len() {
                4 => self.noted.dated |= is(name, b"date"),
                2 | 7 | 16 => self.noted.hop_by_hop = true,
                10 if is(name, b"keep-alive") => self.noted.hop_by_hop = true,
                10 if name.eq_ignore_ascii_case(b"connection") => {
                    self.noted.hop_by_hop = true;
                    for token in tokens(value) {
                        close |= is(token, b"close");
                        keep_alive |= is(token, b"keep-alive");
                    }
                }
                14 if name.eq_ignore_ascii_case(b"content-length") => {
                    let value = number(value).ok_or("a Content-Length that is not a number")?;
                    match length.replace(value) {
                        Some(before) if before != value => return Err("two lengths that differ"),
                        Some(_) => continue,
                        None => {}
                    }
                }
                17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                    if chunked || http10 || !value.eq_ignore_ascii_case(b"chunked") {
                        return Err("a transfer coding other than chunked");
                    }
                    chunked = true;
                    // For this hop alone.
                    continue;
                }
                _ => {}
            }
            if fields == FIELDS {
                return Err("too many header fields");
            }
            fields += 1;
            if room && told.passes() && is_value(value) {
                if self.pass_through.add(bytes, told.place.start, at) {
                    continue;
                }
                // Then it is none or all of them: those of one name keep their order (RFC 9110 §5.3).
                room = false;
                self.fields.extend(std::mem::take(&mut self.pass_through).fields(bytes));
            }
            self.fields.push((told, place));
        }
        // Passed on as it came, without being made a response.
        if self.status.is_informational() && !is_text(&bytes[start..at]) {
            return Err(FORBIDDEN);
        }
        if chunked && length.is_some() {
            return Err("both Transfer-Encoding and Content-Length");
        }
        self.keep_alive = !close && (keep_alive || !http10);
        let none = bodiless || self.status.is_informational() || matches!(self.status.as_u16(), 204 | 304);
        self.framing = match (none, length) {
            (true, _) | (false, Some(0)) => Framing::None,
            (false, Some(length)) => Framing::Length(length),
            (false, None) if chunked => Framing::Chunked,
            (false, None) => Framing::Close,
        };
        Ok(Some(at))
    }

    /// Reads the status line, which begins at `start`. Whether it is of HTTP/1.0.
    #[inline]
    fn begin(&mut self, line: &[u8], start: usize) -> Result<bool, &'static str> {
        let (status, http10, reason) = status_line(line).ok_or("a status line that is none")?;
        self.status = status;
        let usual = reason.is_empty() || Some(&line[reason.clone()]) == status.canonical_reason().map(str::as_bytes);
        if !usual && ReasonPhrase::try_from(&line[reason.clone()]).is_err() {
            return Err("a reason with a forbidden character");
        }
        self.reason = if usual { 0..0 } else { start + reason.start..start + reason.end };
        Ok(http10)
    }

    /// The value of the first field of that name, from the bytes that the head was read from.
    pub fn field(&self, bytes: &Bytes, name: &str) -> Option<Bytes> {
        let of = |place: &Range<usize>| bytes.get(place.clone()).unwrap_or_default();
        let mut fields = self.fields.iter().cloned().chain(self.pass_through.fields(bytes));
        let (_, value) = fields.find(|(it, _)| of(&it.place).eq_ignore_ascii_case(name.as_bytes()))?;
        Some(bytes.slice(value))
    }

    /// Puts the head into `parts`, from the bytes that it was read from, but for pass-through headers, which are given back.
    ///
    /// # Errors
    /// When a field holds what is no text of HTTP.
    pub fn response(&mut self, bytes: &Bytes, parts: &mut Parts) -> Result<PassThrough, &'static str> {
        let headers = &mut parts.headers;
        headers.clear();
        for (name, value) in &self.fields {
            let name = name.read(bytes).map_err(|_| NO_NAME)?;
            let value = HeaderValue::from_maybe_shared(bytes.slice(value.clone()));
            headers.append(name, value.map_err(|_| FORBIDDEN)?);
        }
        parts.status = self.status;
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        if !self.reason.is_empty()
            && let Ok(reason) = ReasonPhrase::try_from(bytes.slice(self.reason.clone()))
        {
            parts.extensions.insert(reason);
        }
        self.pass_through.found_in(bytes);
        Ok(std::mem::take(&mut self.pass_through))
    }
}

/// Writes the head of the answer to a request on these `terms`, with pass-through headers and the lines of rules among its fields, whose
/// body has so many bytes if that is known. How the body is framed; and whether the connection ends with it, as it does if `close` says so,
/// or the head itself.
pub fn write(
    out: &mut Vec<u8>,
    (parts, pass_through, rule_lines): (&Parts, &PassThrough, &RuleLines),
    terms: Terms,
    bytes: Option<u64>,
    close: bool,
) -> (Framing, bool) {
    let status = parts.status;
    out.extend_from_slice(if terms.http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    match parts.extensions.get::<ReasonPhrase>() {
        Some(reason) => out.extend_from_slice(reason.as_bytes()),
        None => out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes()),
    }
    out.extend_from_slice(b"\r\n");
    let switches = status == StatusCode::SWITCHING_PROTOCOLS;
    let never = status.is_informational() || status == StatusCode::NO_CONTENT;
    let bodiless = never || terms.head || status == StatusCode::NOT_MODIFIED;
    let mut close = close || !terms.keep_alive;
    let mut told = false;
    for (name, value) in &parts.headers {
        if *name == header::CONTENT_LENGTH {
            // With no body, it tells of the one that there would be; 204 says that there is none.
            if !bodiless || never {
                continue;
            }
            told = true;
        } else if *name == header::TRANSFER_ENCODING {
            continue;
        } else if *name == header::CONNECTION && !switches {
            close |= tokens(value.as_bytes()).any(|token| is(token, b"close"));
            if status == StatusCode::UPGRADE_REQUIRED && tokens(value.as_bytes()).any(|token| is(token, b"upgrade")) {
                // Behind `Upgrade`, which tells to what (RFC 9110 §7.8).
                line(out, name, b"upgrade");
            }
            continue;
        }
        line(out, name, value.as_bytes());
    }
    for lines in pass_through.lines() {
        out.extend_from_slice(lines);
    }
    out.extend_from_slice(rule_lines.text());
    let framing = match bytes {
        _ if bodiless => {
            if let (true, false, Some(bytes @ 1..)) = (terms.head && !never, told, bytes) {
                length(out, bytes);
            }
            Framing::None
        }
        Some(bytes) => {
            length(out, bytes);
            if bytes == 0 { Framing::None } else { Framing::Length(bytes) }
        }
        None if terms.http10 => {
            close = true;
            Framing::Close
        }
        None => {
            line(out, &header::TRANSFER_ENCODING, b"chunked");
            Framing::Chunked
        }
    };
    if !switches {
        if close {
            line(out, &header::CONNECTION, b"close");
        } else if terms.http10 {
            line(out, &header::CONNECTION, b"keep-alive");
        }
    }
    out.extend_from_slice(b"\r\n");
    (framing, close)
}

/// What every response begins with (RFC 9112 §2.3).
const PROTOCOL: &[u8] = b"HTTP/1.";

const NO_NAME: &str = "a field whose name is none";
const FORBIDDEN: &str = "a field with a forbidden character";

/// Whether a head holds no control characters but those that end its lines, and tabs.
fn is_text(head: &[u8]) -> bool {
    head.iter().enumerate().all(|(at, &byte)| match byte {
        b'\r' => head.get(at + 1) == Some(&b'\n'),
        b'\t' | b'\n' => true,
        byte => byte >= b' ' && byte != 0x7f,
    })
}

/// Takes a status line apart (RFC 9112 §4): the status, whether its version is HTTP/1.0, and where the reason is. The space behind
/// the status may be missing, as many servers without a reason leave it out.
fn status_line(line: &[u8]) -> Option<(StatusCode, bool, Range<usize>)> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let (version, rest) = line.strip_prefix(PROTOCOL)?.split_first()?;
    let http10 = match version {
        b'1' => false,
        b'0' => true,
        _ => return None,
    };
    let (status, reason) = rest.strip_prefix(b" ")?.split_at_checked(3)?;
    let status = StatusCode::from_bytes(status).ok()?;
    let begin = line.len() - reason.len();
    match reason.first() {
        None => Some((status, http10, begin..begin)),
        Some(b' ') => Some((status, http10, begin + 1..line.len())),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests;
