//! The head of a request: read from a client, written to a backend.

use std::ops::Range;

use bytes::{Buf, Bytes};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Extensions, Method, Uri, Version};
use memchr::{memchr, memmem};

use super::Framing;
use super::field::{self, FieldLine};
use super::head::{HeaderLines, RequestHead, RuleLines};
use super::outgoing::{length, line};
use super::pass_through_headers::{PassThrough, is_value};
use crate::target::raw_target::{self, AsSent};

/// A request's head, and what it says of the message and of the connection.
#[derive(Debug)]
pub struct ReceivedRequest {
    /// The head.
    pub head: RequestHead,
    /// How its body is framed.
    pub framing: Framing,
    /// What its answer has to respect.
    pub terms: Terms,
    /// Whether the client waits to be asked before it sends the body (RFC 9110 §10.1.1).
    pub expects: bool,
}

/// What the answer to a request has to respect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// The client speaks HTTP/1.0.
    pub http10: bool,
    /// It asked with HEAD.
    pub head: bool,
    /// It wants the connection to go on.
    pub keep_alive: bool,
    /// It takes trailers.
    pub trailers: bool,
}

/// Why a head is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MalformedRequest {
    /// The request line.
    Line,
    /// The target.
    Target,
    /// The target is longer than 64 KiB.
    LongTarget,
    /// The target has a fragment, which is only for the client.
    Fragment,
    /// A header field.
    Field,
}

/// Takes what is behind the head that `bytes` begin with, if it is much, and leaves a copy of the head.
///
/// A head lasts until its answer, and what is made of it shares the bytes it was read into. A body that came with it would be held
/// as long, though it has long been passed on, and the next be read into memory that no near cache has.
// Most requests have no such body.
#[inline(never)]
pub fn part(bytes: &mut Bytes) -> Option<Bytes> {
    let start = field::begin(bytes);
    let end = start + memmem::find(&bytes[start..], b"\r\n\r\n")? + 4;
    if bytes.len() - end < MUCH_BYTES {
        return None;
    }
    let head = Bytes::copy_from_slice(&bytes[..end]);
    let mut behind = std::mem::replace(bytes, head);
    behind.advance(end);
    Some(behind)
}

/// So many bytes are worth a copy of the head.
pub const MUCH_BYTES: usize = 4 * 1024;

/// Reads the head that `bytes` begin with, takes it from there and puts it into `slot`, where it stays: it is large. `false` when
/// its end is not there yet. `headers` is space for its fields, of which there are `max_headers` at most; with `passes_through`, pass-through
/// headers are left as lines.
///
/// # Errors
/// What is wrong with it.
pub fn read(
    bytes: &mut Bytes,
    mut headers: HeaderMap,
    (max_headers, passes_through): (usize, bool),
    slot: &mut Option<ReceivedRequest>,
) -> Result<bool, MalformedRequest> {
    let start = field::begin(bytes);
    let Some(end) = memchr(b'\n', &bytes[start..]) else { return Ok(false) };
    let mut at = start + end + 1;
    let Some((method, target, http10)) = request_line(&bytes[start..start + end]) else {
        return Err(MalformedRequest::Line);
    };
    let method = Method::from_bytes(&bytes[start..start + method]).map_err(|_| MalformedRequest::Line)?;
    let mut extensions = Extensions::new();
    let target = start + target.start..start + target.end;
    let long = target.len() > LONGEST_TARGET;
    // What is made of a head shares the bytes it is read from.
    let uri = match Uri::from_maybe_shared(bytes.slice(target.clone())) {
        Ok(uri) => uri,
        Err(_) if long => return Err(MalformedRequest::LongTarget),
        Err(_) => uncommon(&bytes.slice(target.clone()), &mut extensions)?,
    };
    // `Uri` drops one. Nothing was dropped where the path is as long as the target.
    let whole = uri.path_and_query().is_some_and(|kept| kept.as_str().len() == target.len());
    if !whole && memchr(b'#', &bytes[target]).is_some() {
        return Err(MalformedRequest::Fragment);
    }

    let (mut close, mut keep_alive) = (false, false);
    let (mut expects, mut trailers) = (false, false);
    let mut framing = Framing::None;
    headers.clear();
    let (mut fields, mut pass_through, mut room) = (0, PassThrough::default(), passes_through);
    loop {
        let (name, place) = match field::line(bytes, &mut at).map_err(|_| MalformedRequest::Field)? {
            FieldLine::Field(name, place) => (name, place),
            FieldLine::End => break,
            FieldLine::Partial => return Ok(false),
        };
        if fields == max_headers {
            return Err(MalformedRequest::Field);
        }
        fields += 1;
        let value = &bytes[place.clone()];
        if room && name.passes() && is_value(value) {
            if pass_through.add(bytes, name.place.start, at) {
                continue;
            }
            // Then it is none or all of them: those of one name keep their order (RFC 9110 §5.3).
            room = false;
            pass_through.found_in(bytes);
            pass_through.give_to(&mut headers);
        }
        let name = name.read(bytes).map_err(|_| MalformedRequest::Field)?;
        match name.as_str().len() {
            2 if name == header::TE => trailers |= tokens(value).any(|token| is(token, b"trailers")),
            6 if name == header::EXPECT => expects |= is(value, b"100-continue"),
            10 if name == header::CONNECTION => {
                for token in tokens(value) {
                    close |= is(token, b"close");
                    keep_alive |= is(token, b"keep-alive");
                }
            }
            14 if name == header::CONTENT_LENGTH => {
                let length = number(value).ok_or(MalformedRequest::Field)?;
                framing = if length == 0 { Framing::None } else { Framing::Length(length) };
            }
            17 if name == header::TRANSFER_ENCODING => framing = Framing::Chunked,
            _ => {}
        }
        headers.append(name, HeaderValue::from_maybe_shared(bytes.slice(place)).map_err(|_| MalformedRequest::Field)?);
    }
    pass_through.found_in(bytes);
    let terms = Terms { http10, head: method == Method::HEAD, keep_alive: !close && (keep_alive || !http10), trailers };
    // Not kept where it is at its end: what is left over is nothing, and shares no memory.
    if at < bytes.len() {
        bytes.advance(at);
    } else {
        *bytes = Bytes::new();
    }
    let version = if http10 { Version::HTTP_10 } else { Version::HTTP_11 };
    // Field by field: to make a default one for what is left costs 90 instructions.
    let (lines, rule_lines) = (None, RuleLines::default());
    let head = RequestHead { method, uri, version, extensions, map: headers, pass_through, lines, rule_lines };
    *slot = Some(ReceivedRequest { head, framing, terms, expects: expects && !http10 });
    Ok(true)
}

/// Takes a target with characters that a [`Uri`] has escaped only: the target as it was sent is put beside it.
#[cold]
fn uncommon(target: &Bytes, extensions: &mut Extensions) -> Result<Uri, MalformedRequest> {
    let (escaped, sent) = raw_target::escaped(target).ok_or(MalformedRequest::Target)?;
    if escaped.len() > LONGEST_TARGET {
        return Err(MalformedRequest::LongTarget);
    }
    let uri = Uri::from_maybe_shared(Bytes::from(escaped)).map_err(|_| MalformedRequest::Target)?;
    extensions.insert(sent);
    Ok(uri)
}

/// Takes a request line apart: how long its method is, where its target is, and whether its version is HTTP/1.0. `None` if it is none
/// of HTTP/1.
fn request_line(line: &[u8]) -> Option<(usize, Range<usize>, bool)> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let (rest, http10) = match line.strip_suffix(b" HTTP/1.1") {
        Some(rest) => (rest, false),
        None => (line.strip_suffix(b" HTTP/1.0")?, true),
    };
    let method = rest.iter().position(|&byte| byte == b' ')?;
    let target = method + 1..rest.len();
    // No white space, no control character: the target ends where all other readers think that it does.
    let is_one = !target.is_empty() && rest[target.clone()].iter().all(|&byte| byte > b' ' && byte != 0x7f);
    is_one.then_some((method, target, http10))
}

/// What [`Uri`] takes.
const LONGEST_TARGET: usize = u16::MAX as usize - 1;

/// Writes the head of a request.
pub fn write(out: &mut Vec<u8>, head: &RequestHead, framing: Framing) {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    if !target.starts_with('/') && target != "*" {
        // "?query" alone.
        out.push(b'/');
    }
    match head.extensions.get::<AsSent>() {
        None => out.extend_from_slice(target.as_bytes()),
        Some(sent) => {
            out.extend_from_slice(sent.path.as_deref().unwrap_or(head.uri.path().as_bytes()));
            for piece in sent.query.iter().flat_map(|query| [b"?", &query[..]]) {
                out.extend_from_slice(piece);
            }
        }
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    out.extend_from_slice(head.lines.as_deref().map_or(&[][..], HeaderLines::text));
    for (name, value) in &head.map {
        // The framing is told below, as it is.
        if framing != Framing::None && (*name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING) {
            continue;
        }
        line(out, name, value.as_bytes());
    }
    for lines in head.pass_through.lines() {
        out.extend_from_slice(lines);
    }
    out.extend_from_slice(head.rule_lines.text());
    match framing {
        Framing::None | Framing::Close => {}
        Framing::Length(bytes) => length(out, bytes),
        Framing::Chunked => line(out, &header::TRANSFER_ENCODING, b"chunked"),
    }
    out.extend_from_slice(b"\r\n");
}

/// The members of a list.
pub(super) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

pub(super) fn is(value: &[u8], token: &[u8]) -> bool {
    value.eq_ignore_ascii_case(token)
}

/// What `Content-Length` says: digits alone, and few enough for a sum not to overflow.
pub fn number(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0, |sum: u64, digit| digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use http::{HeaderName, Request};

    use super::*;

    /// With all fields in the map.
    fn read(
        bytes: &mut Bytes,
        headers: HeaderMap,
        max_headers: usize,
    ) -> Result<Option<ReceivedRequest>, MalformedRequest> {
        let mut slot = None;
        super::read(bytes, headers, (max_headers, true), &mut slot)?;
        if let Some(head) = &mut slot {
            head.head.read_lines();
        }
        Ok(slot)
    }
    use proptest::prelude::*;

    fn head(text: &str) -> Result<Option<ReceivedRequest>, MalformedRequest> {
        read(&mut Bytes::from(text.to_owned()), HeaderMap::new(), 100)
    }

    fn request(target: &str, headers: &[(&str, &str)]) -> RequestHead {
        let mut request = Request::builder().method("POST").uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0.into()
    }

    fn written(head: &RequestHead, framing: Framing) -> String {
        let mut out = Vec::new();
        write(&mut out, head, framing);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn reads_a_head_and_leaves_what_follows() {
        let mut bytes =
            Bytes::from("\r\nPOST /a?b HTTP/1.1\r\nHost: h\r\nX: 1\r\nX: 2\r\nContent-Length: 3\r\n\r\nabc");
        let head = read(&mut bytes, HeaderMap::new(), 100).unwrap().unwrap();
        assert_eq!((head.head.method.as_str(), head.head.uri.to_string()), ("POST", "/a?b".to_owned()));
        assert_eq!(head.head.map.get_all("x").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(head.framing, Framing::Length(3));
        assert_eq!(&bytes[..], b"abc");
    }

    #[test]
    fn a_head_does_not_hold_the_large_body_behind_it() {
        let (head, body) = ("\r\nPOST / HTTP/1.1\r\nHost: h\r\n\r\n", "\r\n\r\n".repeat(MUCH_BYTES / 4));
        let block = Bytes::from([head, &body].concat());
        let mut bytes = block.clone();
        assert_eq!(part(&mut bytes).unwrap(), body);
        assert_eq!(bytes, head);
        assert!(block.is_unique(), "the block can be used again");
        // What is small is not worth it.
        assert_eq!(part(&mut block.slice(..block.len() - 1)), None);
        assert_eq!(part(&mut Bytes::from(vec![b'a'; 2 * MUCH_BYTES])), None);
    }

    #[test]
    fn tells_what_the_answer_has_to_respect() {
        let terms = |text: &str| head(&format!("{text}\r\n\r\n")).unwrap().unwrap().terms;
        assert!(terms("GET / HTTP/1.1").keep_alive);
        assert!(!terms("GET / HTTP/1.1\r\nConnection: x, Close").keep_alive);
        assert!(!terms("GET / HTTP/1.0").keep_alive);
        assert!(terms("GET / HTTP/1.0\r\nConnection: Keep-Alive").keep_alive);
        assert!(!terms("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\nConnection: close").keep_alive);
        assert!(terms("HEAD / HTTP/1.1").head);
        assert!(terms("GET / HTTP/1.1\r\nTE: gzip, trailers").trailers);
        assert!(terms("GET / HTTP/1.0").http10);
        let expects = |text: &str| head(&format!("{text}\r\n\r\n")).unwrap().unwrap().expects;
        assert!(expects("POST / HTTP/1.1\r\nExpect: 100-Continue"));
        // RFC 9110 §10.1.1: not from HTTP/1.0.
        assert!(!expects("POST / HTTP/1.0\r\nExpect: 100-continue"));
    }

    #[test]
    fn refuses_what_is_no_head() {
        for (text, expected) in [
            ("GET / HTTP/1.1\r\nA\0: b\r\n\r\n", MalformedRequest::Field),
            ("GET / HTTP/1.1\r\nA: b\0\r\n\r\n", MalformedRequest::Field),
            ("GET / HTTP/1.1\r\nA : b\r\n\r\n", MalformedRequest::Field),
            ("GET / HTTP/1.1\r\n: b\r\n\r\n", MalformedRequest::Field),
            ("G\0T / HTTP/1.1\r\n\r\n", MalformedRequest::Line),
            ("GET  / HTTP/1.1\r\n\r\n", MalformedRequest::Line),
            ("GET http://a:b:c/ HTTP/1.1\r\n\r\n", MalformedRequest::Target),
            ("GET # HTTP/1.1\r\n\r\n", MalformedRequest::Target),
            ("GET #a HTTP/1.1\r\n\r\n", MalformedRequest::Target),
            ("GET /# HTTP/1.1\r\n\r\n", MalformedRequest::Fragment),
            ("GET /a?b#c HTTP/1.1\r\n\r\n", MalformedRequest::Fragment),
            ("GET ?#c HTTP/1.1\r\n\r\n", MalformedRequest::Target),
            ("GET *#c HTTP/1.1\r\n\r\n", MalformedRequest::Target),
            ("GET http://h/a#c HTTP/1.1\r\n\r\n", MalformedRequest::Fragment),
            ("GET http://h#/ HTTP/1.1\r\n\r\n", MalformedRequest::Fragment),
        ] {
            assert_eq!(head(text).map(|head| head.is_some()).unwrap_err(), expected, "{text:?}");
        }
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(70_000));
        assert_eq!(head(&long).map(|head| head.is_some()), Err(MalformedRequest::LongTarget));
    }

    #[test]
    fn takes_as_many_fields_as_it_is_told() {
        let text = |fields: usize| Bytes::from(format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(fields)));
        assert_eq!(read(&mut text(300), HeaderMap::new(), 300).unwrap().unwrap().head.map.len(), 300);
        assert!(read(&mut text(301), HeaderMap::new(), 300).is_err());
    }

    #[test]
    fn a_head_tells_the_framing_as_it_is() {
        let mut head = request("/a?b=c", &[("host", "h"), ("content-length", "99"), ("accept", "*/*")]);
        assert!(written(&head, Framing::Chunked).ends_with("\r\naccept: */*\r\ntransfer-encoding: chunked\r\n\r\n"));
        head.set_lines(Rc::new(HeaderLines::new(b"x-forwarded-for: 192.0.2.1\r\n".to_vec())));
        assert_eq!(
            written(&head, Framing::Length(5)),
            "POST /a?b=c HTTP/1.1\r\nx-forwarded-for: 192.0.2.1\r\nhost: h\r\naccept: */*\r\ncontent-length: 5\r\n\r\n"
        );
    }

    #[test]
    fn targets_begin_with_a_slash_unless_they_are_the_asterisk() {
        for (target, line) in
            [("*", "POST * H"), ("http://h?q", "POST /?q H"), ("http://h", "POST / H"), ("/", "POST / H")]
        {
            assert!(written(&request(target, &[]), Framing::None).starts_with(line), "{target}");
        }
    }

    proptest! {
        /// An independent parser finds the same in what is taken, and takes nothing that is refused.
        #[test]
        fn reads_what_httparse_reads(
            line in "\r?\n?(GET|[A\t\x01!]{1,2})  ?(/|[*]|/[a-z?#<>\"%\u{e4}\x7f\t\x01 ]{0,4}|http://h/)( |\t)(HTTP/1[.][0129]|HTTP/2.0)",
            fields in "(\r?\n([aZ!:\t \x01\u{e4}]{0,3}|Aa: bc|B:\tc \t|C-1:|accept:[a\t \x01\u{e4}]{0,3}|Cookie: a|Host:h))*",
            end in "(\r\n\r\n|\n\n)?",
        ) {
            let text = format!("{line}{fields}{end}");
            let mut bytes = Bytes::from(text.clone());
            let ours = read(&mut bytes, HeaderMap::new(), 64);
            let mut space = [httparse::EMPTY_HEADER; 64];
            let mut theirs = httparse::Request::new(&mut space);
            match (ours, theirs.parse(text.as_bytes())) {
                (Ok(Some(head)), Ok(httparse::Status::Complete(end))) => {
                    prop_assert_eq!(text.len() - bytes.len(), end);
                    prop_assert_eq!(Some(head.head.method.as_str()), theirs.method);
                    let target = theirs.path.unwrap();
                    match target.parse::<Uri>() {
                        Ok(target) => prop_assert_eq!(head.head.uri, target),
                        // With characters that `Uri` has escaped only, it stands beside it as it was sent.
                        Err(_) => {
                            let AsSent { path, query } = head.head.extensions.get().unwrap();
                            let query = query.iter().flat_map(|query| [&b"?"[..], query]);
                            let sent = [&path.as_ref().unwrap()[..]].into_iter().chain(query).collect::<Vec<_>>().concat();
                            prop_assert_eq!(sent, target.as_bytes());
                        }
                    }
                    prop_assert_eq!(head.terms.http10, theirs.version == Some(0));
                    let mut expected = HeaderMap::new();
                    for field in &*theirs.headers {
                        let name = HeaderName::from_bytes(field.name.as_bytes()).unwrap();
                        expected.append(name, HeaderValue::from_bytes(field.value).unwrap());
                    }
                    prop_assert_eq!(head.head.map, expected);
                }
                (Ok(None), _) => prop_assert!(bytes.len() == text.len()),
                (Err(MalformedRequest::Fragment), Ok(httparse::Status::Complete(_))) => prop_assert!(theirs.path.unwrap().contains('#')),
                // A target that is none to `Uri`, or a value that is none to `HeaderValue`.
                (Err(ours), Ok(httparse::Status::Complete(_))) => prop_assert_eq!(ours, MalformedRequest::Target),
                (ours, theirs) => prop_assert!(ours.is_err() && theirs.is_err() || matches!(theirs, Ok(httparse::Status::Partial)), "{ours:?} {theirs:?}"),
            }
        }

        /// What is written is what is read again.
        #[test]
        fn a_head_goes_out_as_it_came_in(
            path in "/[a-z0-9?=&/]{0,30}",
            fields in proptest::collection::vec(("[a-z][a-z-]{0,12}", "[!-~]([ -~]{0,20}[!-~])?"), 0..12),
        ) {
            let fields: Vec<_> = fields
                .iter()
                .filter(|(name, _)| !["content-length", "transfer-encoding"].contains(&name.as_str()))
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect();
            let head = request(&path, &fields);
            let mut bytes = Bytes::from(written(&head, Framing::None));
            let again = read(&mut bytes, HeaderMap::new(), 100).unwrap().unwrap();
            prop_assert_eq!(again.head.map, head.map);
            prop_assert_eq!(again.head.uri, head.uri);
            prop_assert!(bytes.is_empty());
        }

        /// Pass-through headers go out as they came in.
        #[test]
        fn pass_through_headers_pass(
            fields in proptest::collection::vec(
                ("(accept|Cookie|USER-AGENT|sec-fetch-mode|host|te|x-[ab])", "[ \t]{0,2}([!-~]([ -~\u{e4}]{0,20}[!-~])?)?[ \t]?", "\r?\n"),
                0..12,
            ),
        ) {
            let text: String =
                fields.iter().map(|(name, value, end)| [name, ":", value.as_str(), end].concat()).collect();
            let text = format!("GET / HTTP/1.1\r\n{text}\r\n");
            let mut slot = None;
            prop_assert_eq!(super::read(&mut Bytes::from(text.clone()), HeaderMap::new(), (100, true), &mut slot), Ok(true));
            let ReceivedRequest { mut head, .. } = slot.unwrap();
            let mut out = Vec::new();
            write(&mut out, &head, Framing::None);
            let all = read(&mut Bytes::from(text), HeaderMap::new(), 100).unwrap().unwrap().head.map;
            prop_assert_eq!(&read(&mut out.into(), HeaderMap::new(), 100).unwrap().unwrap().head.map, &all);
            prop_assert_eq!(head.headers(), &all);
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut text = b"GET / HTTP/1.1\r\n".to_vec();
            text.extend(bytes);
            let _ = read(&mut text.into(), HeaderMap::new(), 100);
        }
    }
}
