//! The head of a response: read from a backend, written to a client.
//!
//! Reading is stricter than a user agent has to be: what two recipients may frame differently is refused, so that neither a broken nor
//! a taken-over backend can have its bytes read as the response to somebody else's request (response splitting).

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::response::Parts;
use http::{StatusCode, Version};
use hyper::ext::ReasonPhrase;

use super::Framing;
use super::outgoing::{length, line};
use super::request::{Terms, is, number, tokens};

/// Fields of a head at most.
const FIELDS: usize = 256;

/// A head, as places in the bytes that it was read from.
#[derive(Debug, Default)]
pub struct Head {
    /// The status.
    pub status: StatusCode,
    /// How the body is framed.
    pub framing: Framing,
    /// Whether the connection goes on behind the response.
    pub keep_alive: bool,
    /// Whether any field may be for this hop alone. Told here, where each name is looked at anyway.
    pub hop_by_hop: bool,
    /// Whether there is a `Date`.
    pub dated: bool,
    reason: Range<usize>,
    /// Names and values, without the transfer coding. The space is used again.
    fields: Vec<(Range<usize>, Range<usize>)>,
}

impl Head {
    /// Reads the head that `bytes` begin with: how long it is, or `None` when its end is not there yet. `bodiless` is that of
    /// the answer to a HEAD.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(&mut self, bytes: &[u8], bodiless: bool) -> Result<Option<usize>, &'static str> {
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
        let mut head = httparse::Response::new(&mut []);
        let parsed =
            httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut head, bytes, &mut fields);
        let end = match parsed.map_err(told)? {
            httparse::Status::Complete(end) => end,
            httparse::Status::Partial => return Ok(None),
        };
        let place = |part: &[u8]| {
            let start = part.as_ptr() as usize - bytes.as_ptr() as usize;
            start..start + part.len()
        };
        let status = head.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or("a status that is none")?;
        let http10 = head.version == Some(0);
        let reason = head.reason.unwrap_or_default();
        self.status = status;
        // An empty one need not be a part of `bytes`.
        let usual = reason.is_empty() || Some(reason) == status.canonical_reason();
        self.reason = if usual { 0..0 } else { place(reason.as_bytes()) };
        self.fields.clear();
        let (mut close, mut keep_alive) = (false, false);
        let (mut length, mut chunked) = (None, false);
        (self.hop_by_hop, self.dated) = (false, false);
        for field in &*head.headers {
            let name = field.name.as_bytes();
            // Few names are of such a length.
            match name.len() {
                4 => self.dated |= is(name, b"date"),
                2 | 7 | 16 => self.hop_by_hop = true,
                10 if is(name, b"keep-alive") => self.hop_by_hop = true,
                10 if name.eq_ignore_ascii_case(b"connection") => {
                    self.hop_by_hop = true;
                    for token in tokens(field.value) {
                        close |= is(token, b"close");
                        keep_alive |= is(token, b"keep-alive");
                    }
                }
                14 if name.eq_ignore_ascii_case(b"content-length") => {
                    let value = number(field.value).ok_or("a Content-Length that is not a number")?;
                    match length.replace(value) {
                        Some(before) if before != value => return Err("two lengths that differ"),
                        Some(_) => continue,
                        None => {}
                    }
                }
                17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                    if chunked || http10 || !field.value.eq_ignore_ascii_case(b"chunked") {
                        return Err("a transfer coding other than chunked");
                    }
                    chunked = true;
                    // For this hop alone.
                    continue;
                }
                _ => {}
            }
            self.fields.push((place(name), place(field.value)));
        }
        if chunked && length.is_some() {
            return Err("both Transfer-Encoding and Content-Length");
        }
        self.keep_alive = !close && (keep_alive || !http10);
        let none = bodiless || status.is_informational() || matches!(status.as_u16(), 204 | 304);
        self.framing = match (none, length) {
            (true, _) | (false, Some(0)) => Framing::None,
            (false, Some(length)) => Framing::Length(length),
            (false, None) if chunked => Framing::Chunked,
            (false, None) => Framing::Close,
        };
        Ok(Some(end))
    }

    /// The value of the first field of that name, from the bytes that the head was read from.
    pub fn field(&self, bytes: &Bytes, name: &str) -> Option<Bytes> {
        let of = |place: &Range<usize>| bytes.get(place.clone()).unwrap_or_default();
        let (_, value) = self.fields.iter().find(|(it, _)| of(it).eq_ignore_ascii_case(name.as_bytes()))?;
        Some(bytes.slice(value.clone()))
    }

    /// Puts the head into `parts`, from the bytes that it was read from.
    ///
    /// # Errors
    /// When a field holds what is no text of HTTP.
    pub fn response(&self, bytes: &Bytes, parts: &mut Parts) -> Result<(), &'static str> {
        let headers = &mut parts.headers;
        headers.clear();
        for (name, value) in &self.fields {
            let name = HeaderName::from_bytes(&bytes[name.clone()]).map_err(|_| "a field whose name is none")?;
            let value = HeaderValue::from_maybe_shared(bytes.slice(value.clone()));
            headers.append(name, value.map_err(|_| "a field with a forbidden character")?);
        }
        parts.status = self.status;
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        if !self.reason.is_empty()
            && let Ok(reason) = ReasonPhrase::try_from(bytes.slice(self.reason.clone()))
        {
            parts.extensions.insert(reason);
        }
        Ok(())
    }
}

/// Writes the head of the answer to a request on these `terms`, whose body has so many bytes if that is known. How the body is
/// framed; and whether the connection ends with it, as it does if `close` says so, or the head itself.
pub fn write(out: &mut Vec<u8>, parts: &Parts, terms: Terms, bytes: Option<u64>, close: bool) -> (Framing, bool) {
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
            continue;
        }
        line(out, name, value.as_bytes());
    }
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

fn told(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::TooManyHeaders => "too many header fields",
        httparse::Error::HeaderName => "a field whose name is none",
        httparse::Error::HeaderValue => "a field with a forbidden character",
        httparse::Error::Status => "a status line that is none",
        httparse::Error::Version => "another protocol than HTTP/1",
        _ => "a malformed head",
    }
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    fn fill(head: &Head, bytes: &Bytes, response: &mut Response<()>) {
        let (mut parts, ()) = std::mem::take(response).into_parts();
        head.response(bytes, &mut parts).unwrap();
        *response = Response::from_parts(parts, ());
    }
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Option<(Head, usize)>, &'static str> {
        let mut head = Head::default();
        Ok(head.parse(text.as_bytes(), false)?.map(|end| (head, end)))
    }

    fn framing(fields: &str) -> Result<Framing, &'static str> {
        parse(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).map(|head| head.unwrap().0.framing)
    }

    #[test]
    fn tells_where_the_body_ends() {
        for (fields, expected) in [
            ("", Framing::Close),
            ("Content-Length: 5\r\n", Framing::Length(5)),
            ("content-length: 5\r\nContent-Length: 5\r\n", Framing::Length(5)),
            ("Transfer-Encoding: Chunked\r\n", Framing::Chunked),
        ] {
            assert_eq!(framing(fields), Ok(expected), "{fields:?}");
        }
        for status in [101, 103, 204, 304] {
            let (head, _) = parse(&format!("HTTP/1.1 {status} \r\nContent-Length: 5\r\n\r\n")).unwrap().unwrap();
            assert_eq!(head.framing, Framing::None, "{status}");
        }
        let mut head = Head::default();
        head.parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true).unwrap();
        assert_eq!(head.framing, Framing::None);
    }

    #[test]
    fn refuses_what_may_be_framed_in_two_ways() {
        for fields in [
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: \r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "A: b\r\n c\r\n",
            "A : b\r\n",
            "A: b\0\r\n",
            "A b\r\n",
        ] {
            assert!(framing(fields).is_err(), "{fields:?}");
        }
        assert!(parse("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        assert!(parse("HTTP/2.0 200 OK\r\n\r\n").is_err());
        assert!(parse("SSH-2.0-OpenSSH\r\n\r\n").is_err());
        assert!(parse("HTTP/1.1 99 Low\r\n\r\n").is_err());
    }

    #[test]
    fn tells_whether_the_connection_goes_on() {
        for (version, field, expected) in [
            (1, "", true),
            (1, "Connection: close\r\n", false),
            (1, "Connection: keep-alive, Close\r\n", false),
            (0, "", false),
            (0, "connection: Keep-Alive\r\n", true),
        ] {
            let (head, _) = parse(&format!("HTTP/1.{version} 200 OK\r\n{field}\r\n")).unwrap().unwrap();
            assert_eq!(head.keep_alive, expected, "HTTP/1.{version} {field:?}");
        }
    }

    #[test]
    fn makes_a_response_with_every_field_but_the_framing() {
        let text = "HTTP/1.1 299 Fine By Me\r\nSet-Cookie: a\r\nX: \u{e9}\r\nSet-Cookie: b\r\nContent-Length: 3\r\n\
                    Content-Length: 3\r\n\r\nabc";
        let (head, end) = parse(text).unwrap().unwrap();
        let bytes = Bytes::from(text[..end].to_owned());
        let mut response = Response::default();
        fill(&head, &bytes, &mut response);
        assert_eq!(response.status(), 299);
        assert_eq!(response.extensions().get::<ReasonPhrase>().unwrap().as_bytes(), b"Fine By Me");
        assert_eq!(response.headers().get_all("set-cookie").iter().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(response.headers().get_all("content-length").iter().collect::<Vec<_>>(), ["3"]);
        assert_eq!(response.headers()["x"].as_bytes(), "\u{e9}".as_bytes());
        assert_eq!(&text[end..], "abc");
    }

    /// What is written for `response` on `terms`.
    fn written(status: u16, headers: &[(&str, &str)], terms: Terms, bytes: Option<u64>) -> (String, Framing, bool) {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let mut out = Vec::new();
        let (framing, close) = write(&mut out, &response.body(()).unwrap().into_parts().0, terms, bytes, false);
        (String::from_utf8(out).unwrap(), framing, close)
    }

    const KEPT: Terms = Terms { http10: false, head: false, keep_alive: true, trailers: false };

    #[test]
    fn a_head_tells_how_its_body_ends() {
        let length = [("content-length", "9"), ("a", "b")];
        for (status, terms, bytes, expected, framing) in [
            (200, KEPT, Some(5), "a: b\r\ncontent-length: 5\r\n\r\n", Framing::Length(5)),
            (200, KEPT, Some(0), "a: b\r\ncontent-length: 0\r\n\r\n", Framing::None),
            (200, KEPT, None, "a: b\r\ntransfer-encoding: chunked\r\n\r\n", Framing::Chunked),
            (304, KEPT, Some(0), "content-length: 9\r\na: b\r\n\r\n", Framing::None),
            (204, KEPT, Some(0), "a: b\r\n\r\n", Framing::None),
            (200, Terms { head: true, ..KEPT }, Some(0), "content-length: 9\r\na: b\r\n\r\n", Framing::None),
        ] {
            let (text, got, close) = written(status, &length, terms, bytes);
            let (line, rest) = text.split_once("\r\n").unwrap();
            assert!(line.starts_with(&format!("HTTP/1.1 {status} ")), "{line}");
            assert_eq!((rest, got, close), (expected, framing, false), "{status} {terms:?}");
        }
        // The length of a body of our own, asked for with HEAD.
        let (text, _, _) = written(200, &[], Terms { head: true, ..KEPT }, Some(5));
        assert_eq!(text, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n");
    }

    #[test]
    fn a_head_tells_whether_the_connection_goes_on() {
        let http10 = Terms { http10: true, ..KEPT };
        let ends = |text: &str| text.rsplit("\r\n").nth(2).unwrap().to_owned();
        let (text, _, close) = written(200, &[("connection", "close")], KEPT, Some(0));
        assert_eq!((ends(&text).as_str(), close), ("connection: close", true));
        let (text, _, close) = written(200, &[], Terms { keep_alive: false, ..KEPT }, Some(0));
        assert_eq!((ends(&text).as_str(), close), ("connection: close", true));
        let (text, _, close) = written(200, &[], http10, Some(0));
        assert_eq!((ends(&text).as_str(), close), ("connection: keep-alive", false));
        assert!(text.starts_with("HTTP/1.0 200 OK\r\n"));
        let (text, framing, close) = written(200, &[], http10, None);
        assert_eq!((ends(&text).as_str(), framing, close), ("connection: close", Framing::Close, true));
        let (text, _, _) = written(101, &[("connection", "upgrade"), ("upgrade", "websocket")], KEPT, Some(0));
        assert_eq!(text, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    }

    proptest! {
        /// Never a panic, and a head is found exactly when its last byte is there.
        #[test]
        fn a_head_ends_where_it_ends(fields in proptest::collection::vec("[A-Za-z-]{1,20}: [ -~]{0,20}", 0..10)) {
            let text = format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", fields.join("\r\n")).replace("OK\r\n\r\n\r\n", "OK\r\n\r\n");
            for end in 0..text.len() {
                prop_assert!(!matches!(parse(&text[..end]), Ok(Some(_))));
            }
            if let Ok(parsed) = parse(&text) {
                prop_assert_eq!(parsed.map(|(_, end)| end), Some(text.len()));
            }
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut text = b"HTTP/1.1 200 OK\r\n".to_vec();
            text.extend(bytes);
            let mut head = Head::default();
            if let Ok(Some(end)) = head.parse(&text, false) {
                let _ = head.response(&Bytes::copy_from_slice(&text[..end]), &mut Response::new(()).into_parts().0);
            }
        }
    }
}
