use http::{HeaderName, Response};
use proptest::prelude::*;

use super::*;

/// With all fields in the map.
fn fill(mut head: ResponseHead, bytes: &Bytes, response: &mut Response<()>) {
    let (mut parts, ()) = std::mem::take(response).into_parts();
    head.response(bytes, &mut parts).unwrap().give_to(&mut parts.headers);
    *response = Response::from_parts(parts, ());
}

fn parse(text: &str) -> Result<Option<(ResponseHead, usize)>, &'static str> {
    let mut head = ResponseHead { passes_through: true, ..ResponseHead::default() };
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
    let mut head = ResponseHead::default();
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
        "A b\r\n",
    ] {
        assert!(framing(fields).is_err(), "{fields:?}");
    }
    for field in ["A: b\0", "A: \x01b", "A: b\rc", "A: b\x7f", "A: b\r", "Server: b\0", "Server: b\rc", "Server: b\r"] {
        let whole = |status: u16| format!("HTTP/1.1 {status} \r\n{field}\r\n\r\n");
        let (text, mut parts) = (Bytes::from(whole(200)), Response::new(()).into_parts().0);
        let (mut head, _) = parse(&whole(200)).unwrap().unwrap();
        assert_eq!(head.response(&text, &mut parts), Err(FORBIDDEN), "{field:?}");
        assert!(matches!(parse(&whole(103)), Err(FORBIDDEN)), "{field:?}");
    }
    assert!(parse("HTTP/1.1 103 Ear\rly\r\n\r\n").is_err());
    assert!(parse("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    for line in [
        "HTTP/2.0 200 OK",
        "HTTP/1.2 200 OK",
        "http/1.1 200 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1 200OK",
        "HTTP/1.1 20",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1",
    ] {
        assert!(parse(&format!("{line}\r\n\r\n")).is_err(), "{line}");
    }
    // Told before there is a line.
    assert!(parse("SSH-2.0").is_err());
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
    fill(head, &bytes, &mut response);
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
    let (framing, close) = write(
        &mut out,
        (&response.body(()).unwrap().into_parts().0, &PassThrough::default(), &RuleLines::default()),
        terms,
        bytes,
        false,
    );
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
    /// An independent parser finds the same in what is taken, and takes nothing that is refused.
    #[test]
    fn reads_what_httparse_reads(
        begin in "(\r\n|\n|\r)?",
        line in "(HTTP/1[.][012] |HTTP/1.1|HTP/1.1 )(200|404|99|1000|a)( |\t)?( ?[a-z\x01\u{e4}]{1,2}){0,2}",
        fields in "((\r|\r\n|\n)([aZ!:\t \x01\u{e4}]{0,3}|Aa: bc|B:\tc \t|C-1:|Vary:[a\t \x01\u{e4}]{0,3}|Set-Cookie: a|age:1))*",
        end in "(\r\n\r\n|\n\n)?",
    ) {
        let text = Bytes::from(format!("{begin}{line}{fields}{end}"));
        let mut parts = Response::new(()).into_parts().0;
        let mut head = ResponseHead { passes_through: true, ..ResponseHead::default() };
        let ours = head.parse(&text, false);
        let ours = ours.and_then(|end| end.map(|end| head.response(&text, &mut parts).map(|mut pass_through| {
            pass_through.give_to(&mut parts.headers);
            end
        })).transpose());
        let mut space = [httparse::EMPTY_HEADER; 64];
        let mut theirs = httparse::Response::new(&mut space);
        match (ours, theirs.parse(&text)) {
            (Ok(Some(end)), Ok(httparse::Status::Complete(their_end))) => {
                prop_assert_eq!(end, their_end);
                prop_assert_eq!(Some(parts.status.as_u16()), theirs.code);
                let mut expected = Response::<()>::default();
                for field in &*theirs.headers {
                    let name = HeaderName::from_bytes(field.name.as_bytes()).unwrap();
                    expected.headers_mut().append(name, HeaderValue::from_bytes(field.value).unwrap());
                }
                prop_assert_eq!(&parts.headers, expected.headers());
            }
            (Ok(None), Ok(httparse::Status::Partial)) => {}
            // What ends no line yet may be found out when it does.
            (Ok(None), Err(_)) => {}
            (ours, theirs) => prop_assert!(ours.is_err() && !matches!(theirs, Ok(httparse::Status::Complete(_))), "{ours:?} {theirs:?}"),
        }
    }

    /// Pass-through headers go out as they came in, and are found by name.
    #[test]
    fn what_nobody_looks_at_passes(
        fields in proptest::collection::vec(
            ("(Server|VARY|set-cookie|content-type|via|x-[ab])", "[!-~]([ -~\u{e4}]{0,20}[!-~])?", "[ \t]?\r?\n"),
            0..12,
        ),
    ) {
        let text: String =
            fields.iter().map(|(name, value, end)| [name, ":", value.as_str(), end].concat()).collect();
        let text = Bytes::from(format!("HTTP/1.1 200 OK\r\n{text}\r\n"));
        let map = |text: &Bytes| {
            let (mut head, mut response) = (ResponseHead::default(), Response::new(()));
            assert!(matches!(head.parse(text, false), Ok(Some(_))), "{text:?}");
            fill(head, text, &mut response);
            response.into_parts().0.headers
        };
        let (mut head, mut parts) = (ResponseHead { passes_through: true, ..ResponseHead::default() }, Response::new(()).into_parts().0);
        prop_assert_eq!(head.parse(&text, false), Ok(Some(text.len())));
        for name in ["server", "vary", "set-cookie", "content-type", "via", "x-a"] {
            let first = fields.iter().find(|(it, _, _)| it.eq_ignore_ascii_case(name)).map(|(_, value, _)| value.as_bytes());
            let found = head.field(&text, name);
            prop_assert_eq!(found.as_deref(), first);
        }
        let pass_through = head.response(&text, &mut parts).unwrap();
        let mut out = Vec::new();
        write(&mut out, (&parts, &pass_through, &RuleLines::default()), KEPT, Some(0), false);
        let mut all = map(&out.into());
        prop_assert_eq!(all.remove("content-length").unwrap(), "0");
        prop_assert_eq!(all, map(&text));
    }

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
        let mut head = ResponseHead::default();
        if let Ok(Some(end)) = head.parse(&text, false) {
            let _ = head.response(&Bytes::copy_from_slice(&text[..end]), &mut Response::new(()).into_parts().0);
        }
    }
}
