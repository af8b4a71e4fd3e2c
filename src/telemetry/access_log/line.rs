//! An exchange as a line of text.
//!
//! Clients choose most of what is written here, and must not be able to end a line, to begin one of their own, or to move the
//! terminal of its reader. JSON escapes control characters (the ones above 0x7f and the Unicode line separators too) and
//! replaces what is not UTF-8; the combined format writes every byte that is not printable ASCII as `\xHH`, as nginx does.

use std::io::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use crate::config::{AccessLogFormat, Address};
use crate::telemetry::calendar::Civil;

/// What there is to say about an exchange that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// When its head had been read.
    pub time: SystemTime,
    /// The client: the connection's, or the one that a trusted proxy reports.
    pub client_ip: IpAddr,
    /// Empty where the head could not be read.
    pub method: &'a str,
    /// As the client sent it. Empty where the head could not be read.
    pub target: &'a str,
    /// The `Host` header.
    pub host: Option<&'a [u8]>,
    /// `HTTP/1.1`. Empty where the head could not be read.
    pub protocol: &'a str,
    /// What the client was answered with, or 499 where it was gone before.
    pub status: u16,
    /// Of the request's body.
    pub bytes_in: u64,
    /// Of the response's body.
    pub bytes_out: u64,
    /// From the request's head to the end of the response.
    pub duration: Duration,
    /// Making the connection that the last attempt went over; `None` where it was there already.
    pub connect: Option<Duration>,
    /// From the request's head to the head of the backend's response.
    pub first_byte: Option<Duration>,
    /// Which route it took.
    pub route: Option<&'a str>,
    /// Which upstream it was for.
    pub upstream: Option<&'a str>,
    /// Where its last attempt went.
    pub backend: Option<&'a Address>,
    /// How often it was sent to a backend.
    pub attempts: u32,
    /// Which listener it came through.
    pub listener: &'a str,
    /// The `User-Agent` header.
    pub user_agent: Option<&'a [u8]>,
    /// The `Referer` header.
    pub referer: Option<&'a [u8]>,
    /// The status that a call of gRPC has come to; `None` where it is none.
    pub grpc_status: Option<u8>,
    /// How it ended, in one word: `complete`, or why it did not go well, such as `connect_timeout`.
    pub reason: &'a str,
    /// Which side ended it where it did not go well and that is known: `client`, `backend` or `proxy`.
    pub ended_by: Option<&'a str>,
    /// What was wrong with it, of what was refused before it came to an exchange.
    pub detail: Option<&'a str>,
    /// How many of those have no line because there were too many, since the last that has.
    pub left_out: u64,
}

/// Bytes of a field that are written; the rest becomes `...`. A client may send far longer ones.
const FIELD_BYTES_MAX: usize = 4096;

/// Appends the line for `record`, its end included.
pub(super) fn write(line: &mut Vec<u8>, format: AccessLogFormat, record: &Record<'_>) {
    match format {
        AccessLogFormat::Json => json(line, record),
        AccessLogFormat::Combined => combined(line, record),
    }
    line.push(b'\n');
}

fn json(line: &mut Vec<u8>, record: &Record<'_>) {
    let c = Civil::from(record.time);
    line.extend_from_slice(b"{\"time\":\"");
    digits(line, c.year, 4);
    line.push(b'-');
    digits(line, c.month.into(), 2);
    line.push(b'-');
    digits(line, c.day.into(), 2);
    line.push(b'T');
    time_of_day(line, &c);
    line.push(b'.');
    digits(line, c.millisecond.into(), 3);
    line.extend_from_slice(b"Z\",\"client_ip\":\"");
    display(line, format_args!("{}", record.client_ip));
    line.push(b'"');
    json_text(line, ",\"method\":", known(record.method));
    json_text(line, ",\"target\":", known(record.target));
    json_text(line, ",\"host\":", record.host);
    json_text(line, ",\"protocol\":", known(record.protocol));
    number(line, ",\"status\":", record.status.into());
    if let Some(status) = record.grpc_status {
        number(line, ",\"grpc_status\":", status.into());
    }
    number(line, ",\"bytes_in\":", record.bytes_in);
    number(line, ",\"bytes_out\":", record.bytes_out);
    milliseconds(line, ",\"connect_ms\":", record.connect);
    milliseconds(line, ",\"first_byte_ms\":", record.first_byte);
    milliseconds(line, ",\"duration_ms\":", Some(record.duration));
    json_text(line, ",\"route\":", record.route.map(str::as_bytes));
    json_text(line, ",\"upstream\":", record.upstream.map(str::as_bytes));
    match record.backend {
        // Addresses come from the configuration, which has checked them: nothing to escape.
        Some(backend) => display(line, format_args!(",\"backend\":\"{backend}\"")),
        None => json_text(line, ",\"backend\":", None),
    }
    number(line, ",\"attempts\":", record.attempts.into());
    json_text(line, ",\"listener\":", Some(record.listener.as_bytes()));
    json_text(line, ",\"user_agent\":", record.user_agent);
    json_text(line, ",\"referer\":", record.referer);
    json_text(line, ",\"reason\":", Some(record.reason.as_bytes()));
    if let Some(ended_by) = record.ended_by {
        json_text(line, ",\"ended_by\":", Some(ended_by.as_bytes()));
    }
    if let Some(detail) = record.detail {
        json_text(line, ",\"detail\":", Some(detail.as_bytes()));
    }
    if record.left_out > 0 {
        number(line, ",\"left_out\":", record.left_out);
    }
    line.push(b'}');
}

fn combined(line: &mut Vec<u8>, record: &Record<'_>) {
    const MONTHS: [&[u8]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    let c = Civil::from(record.time);
    display(line, format_args!("{}", record.client_ip));
    line.extend_from_slice(b" - - [");
    digits(line, c.day.into(), 2);
    line.push(b'/');
    line.extend_from_slice(MONTHS[usize::from(c.month - 1) % 12]);
    line.push(b'/');
    digits(line, c.year, 4);
    line.push(b':');
    time_of_day(line, &c);
    line.extend_from_slice(b" +0000] \"");
    if record.method.is_empty() {
        line.push(b'-');
    } else {
        escape_ascii(line, record.method.as_bytes());
        // Of a head that was refused there may be less.
        for text in [record.target, record.protocol].into_iter().filter(|text| !text.is_empty()) {
            line.push(b' ');
            escape_ascii(line, text.as_bytes());
        }
    }
    line.extend_from_slice(b"\" ");
    digits(line, record.status.into(), 3);
    number(line, " ", record.bytes_out);
    line.extend_from_slice(b" \"");
    escape_ascii(line, record.referer.unwrap_or(b"-"));
    line.extend_from_slice(b"\" \"");
    escape_ascii(line, record.user_agent.unwrap_or(b"-"));
    line.push(b'"');
}

fn known(text: &str) -> Option<&[u8]> {
    (!text.is_empty()).then_some(text.as_bytes())
}

fn json_text(line: &mut Vec<u8>, key: &str, value: Option<&[u8]>) {
    line.extend_from_slice(key.as_bytes());
    match value {
        None => line.extend_from_slice(b"null"),
        Some(value) => {
            line.push(b'"');
            escape_json(line, value);
            line.push(b'"');
        }
    }
}

fn number(line: &mut Vec<u8>, key: &str, value: u64) {
    line.extend_from_slice(key.as_bytes());
    digits(line, value, 1);
}

fn milliseconds(line: &mut Vec<u8>, key: &str, value: Option<Duration>) {
    let Some(value) = value else { return json_text(line, key, None) };
    let us = value.as_micros() as u64;
    number(line, key, us / 1_000);
    line.push(b'.');
    digits(line, us % 1_000, 3);
}

/// Writes `value` with at least `width` digits.
fn digits(line: &mut Vec<u8>, mut value: u64, width: usize) {
    let mut buffer = [b'0'; 20];
    let mut start = buffer.len();
    while value > 0 {
        start -= 1;
        buffer[start] = b'0' + (value % 10) as u8;
        value /= 10;
    }
    line.extend_from_slice(&buffer[start.min(buffer.len() - width)..]);
}

fn time_of_day(line: &mut Vec<u8>, c: &Civil) {
    digits(line, c.hour.into(), 2);
    line.push(b':');
    digits(line, c.minute.into(), 2);
    line.push(b':');
    digits(line, c.second.into(), 2);
}

fn display(line: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    // Writing to a `Vec` cannot fail.
    let _ = line.write_fmt(arguments);
}

/// Splits off what is too long to be written.
fn shorten(text: &[u8]) -> (&[u8], &[u8]) {
    if text.len() > FIELD_BYTES_MAX { (&text[..FIELD_BYTES_MAX], b"...") } else { (text, b"") }
}

fn escape_json(line: &mut Vec<u8>, text: &[u8]) {
    let (text, ellipsis) = shorten(text);
    if text.iter().all(|&byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\') {
        line.extend_from_slice(text);
    } else {
        for chunk in text.utf8_chunks() {
            chunk.valid().chars().for_each(|c| escape_json_char(line, c));
            if !chunk.invalid().is_empty() {
                line.extend_from_slice("\u{fffd}".as_bytes());
            }
        }
    }
    line.extend_from_slice(ellipsis);
}

fn escape_json_char(line: &mut Vec<u8>, c: char) {
    match c {
        '"' => line.extend_from_slice(b"\\\""),
        '\\' => line.extend_from_slice(b"\\\\"),
        // `is_control` covers 0x7f and the C1 controls too; the separators end a line for some readers.
        c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
            display(line, format_args!("\\u{:04x}", u32::from(c)));
        }
        c => line.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

fn escape_ascii(line: &mut Vec<u8>, text: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let (text, ellipsis) = shorten(text);
    for &byte in text {
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f..=0xff => {
                line.extend_from_slice(&[b'\\', b'x', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
            _ => line.push(byte),
        }
    }
    line.extend_from_slice(ellipsis);
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv4Addr;
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    /// An exchange that went well.
    pub(in crate::telemetry::access_log) fn record() -> Record<'static> {
        Record {
            time: UNIX_EPOCH + Duration::from_millis(1_767_225_599_001),
            client_ip: Ipv4Addr::new(192, 0, 2, 7).into(),
            method: "GET",
            target: "/users/1?x=%20",
            host: Some(b"api.example.com"),
            protocol: "HTTP/1.1",
            status: 200,
            bytes_in: 0,
            bytes_out: 27,
            duration: Duration::from_micros(1_042),
            connect: None,
            first_byte: Some(Duration::from_micros(987)),
            route: Some("users"),
            upstream: Some("users"),
            backend: None,
            attempts: 1,
            grpc_status: None,
            listener: "main",
            user_agent: Some(b"curl/8.5.0"),
            referer: None,
            reason: "complete",
            ended_by: None,
            detail: None,
            left_out: 0,
        }
    }

    fn line(format: AccessLogFormat, record: &Record<'_>) -> String {
        let mut line = Vec::new();
        write(&mut line, format, record);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn json_line() {
        let backend = Address::Ip(([10, 0, 0, 1], 9001).into());
        let record = Record { backend: Some(&backend), ..record() };
        assert_eq!(
            line(AccessLogFormat::Json, &record),
            concat!(
                r#"{"time":"2025-12-31T23:59:59.001Z","client_ip":"192.0.2.7","method":"GET","#,
                r#""target":"/users/1?x=%20","host":"api.example.com","protocol":"HTTP/1.1","status":200,"#,
                r#""bytes_in":0,"bytes_out":27,"connect_ms":null,"first_byte_ms":0.987,"duration_ms":1.042,"#,
                r#""route":"users","upstream":"users","#,
                r#""backend":"10.0.0.1:9001","attempts":1,"listener":"main","user_agent":"curl/8.5.0","#,
                r#""referer":null,"reason":"complete"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn json_line_of_a_failure() {
        let record =
            Record { reason: "connect_timeout", ended_by: Some("backend"), status: 504, first_byte: None, ..record() };
        let value: serde_json::Value = serde_json::from_str(&line(AccessLogFormat::Json, &record)).unwrap();
        assert_eq!((&value["reason"], &value["ended_by"]), (&"connect_timeout".into(), &"backend".into()));
        assert!(value["first_byte_ms"].is_null());
        assert_eq!(value["status"], 504);
        assert!(value["backend"].is_null());
    }

    #[test]
    fn lines_of_a_refusal() {
        let refused = Record {
            host: None,
            protocol: "",
            status: 414,
            first_byte: None,
            user_agent: None,
            reason: "uri_too_long",
            ended_by: Some("client"),
            detail: Some("the request target is too long"),
            left_out: 7,
            ..record()
        };
        let json = line(AccessLogFormat::Json, &refused);
        let end = concat!(
            r#""reason":"uri_too_long","ended_by":"client","detail":"the request target is too long","left_out":7}"#,
            "\n"
        );
        assert!(json.contains(r#""host":null,"protocol":null,"#) && json.ends_with(end), "{json}");
        assert!(!line(AccessLogFormat::Json, &Record { left_out: 0, ..refused }).contains("left_out"));
        let combined = line(AccessLogFormat::Combined, &refused);
        assert!(combined.ends_with("] \"GET /users/1?x=%20\" 414 27 \"-\" \"-\"\n"), "{combined}");
        let combined = line(AccessLogFormat::Combined, &Record { target: "", ..refused });
        assert!(combined.contains("] \"GET\" 414"), "{combined}");
    }

    #[test]
    fn json_line_of_a_call() {
        let record = Record { grpc_status: Some(14), ..record() };
        assert!(line(AccessLogFormat::Json, &record).contains(r#""status":200,"grpc_status":14,"bytes_in":0,"#));
    }

    #[test]
    fn combined_line() {
        assert_eq!(
            line(AccessLogFormat::Combined, &record()),
            "192.0.2.7 - - [31/Dec/2025:23:59:59 +0000] \"GET /users/1?x=%20 HTTP/1.1\" 200 27 \"-\" \"curl/8.5.0\"\n"
        );
    }

    #[test]
    fn combined_line_without_a_readable_head() {
        let record = Record { method: "", target: "", protocol: "", status: 400, user_agent: None, ..record() };
        assert_eq!(
            line(AccessLogFormat::Combined, &record),
            "192.0.2.7 - - [31/Dec/2025:23:59:59 +0000] \"-\" 400 27 \"-\" \"-\"\n"
        );
    }

    #[test]
    fn clients_cannot_forge_a_line() {
        let hostile = b"x\" 200 0\r\n1.2.3.4 - - \\ \x1b[2J \x7f \xff\xfe \xc2\x85 \xe2\x80\xa8 \xc3\xa9";
        let record = Record { user_agent: Some(hostile), referer: Some(hostile), host: Some(hostile), ..record() };

        let json = line(AccessLogFormat::Json, &record);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        let seen = value["user_agent"].as_str().unwrap();
        assert_eq!(seen, String::from_utf8_lossy(hostile));
        assert!(json.trim_end_matches('\n').chars().all(|c| !c.is_control() && c != '\u{2028}'), "{json:?}");

        let combined = line(AccessLogFormat::Combined, &record);
        assert!(combined.trim_end_matches('\n').bytes().all(|byte| matches!(byte, b' '..=b'~')), "{combined:?}");
        assert_eq!(combined.matches('"').count(), 6);
        assert!(combined.contains(r"x\x22 200 0\x0D\x0A1.2.3.4 - - \x5C \x1B[2J"));
    }

    #[test]
    fn long_fields_are_cut() {
        let long = vec![b'a'; 60_000];
        let record = Record { user_agent: Some(&long), ..record() };
        for format in [AccessLogFormat::Json, AccessLogFormat::Combined] {
            let line = line(format, &record);
            assert!(line.len() < FIELD_BYTES_MAX + 1_000 && line.contains("a...\""), "{line}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sent_is_one_line(ua in prop::collection::vec(any::<u8>(), 0..200), target in ".{0,50}") {
            let record = Record { user_agent: Some(&ua), target: &target, ..record() };
            let json = line(AccessLogFormat::Json, &record);
            prop_assert_eq!(json.matches('\n').count(), 1);
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(value["user_agent"].as_str().unwrap(), String::from_utf8_lossy(&ua));
            let combined = line(AccessLogFormat::Combined, &record);
            prop_assert_eq!(combined.matches('"').count(), 6);
            prop_assert_eq!(combined.lines().count(), 1);
        }
    }
}
