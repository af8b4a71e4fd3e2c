//! gRPC: which exchanges are calls, until when they may go on, and how they end.
//!
//! A call is an ordinary exchange by HTTP/2 but for three things: its client says how long it may take, its status stands behind
//! the body, and it may be silent for long. Nothing here is looked at for other exchanges, and it is kept out of
//! the code that they pass (`cold`).

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use crate::backend::BackendState;
use crate::backend::outlier::Outcome;
use crate::config::{GrpcStatus, Timeouts};
use crate::exchange::RequestHead;
use crate::transport::Connection;

use super::ProxyError;
use super::reason::Cut;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// What a backend says of further attempts; its client knows what to do with it.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// A call under way.
pub(super) struct Call {
    /// How long its client wants it to take at most.
    timeout: Result<Option<Duration>, Malformed>,
    /// When it has to be over.
    deadline: Cell<Option<Instant>>,
    /// Whether that is as its client wants it, and not the route.
    by_client: Cell<bool>,
    /// Whether its response is one of gRPC, which has a place for a status behind its body.
    responds: Cell<bool>,
    /// What it has come to.
    status: Cell<Option<GrpcStatus>>,
    /// Where in the messages of its request the next byte is, where their size is bounded.
    messages: Cell<Messages>,
    /// Whose status is still to come, and how long its response took to begin.
    awaited: RefCell<Option<(Arc<BackendState>, Duration)>>,
}

/// A `grpc-timeout` that is none.
#[derive(Clone, Copy, Debug)]
struct Malformed;

/// What the head of a backend's response says of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// Nothing: it is no call, or answered in plain HTTP.
    Http,
    /// Its status: nothing else comes ("Trailers-Only").
    Status(GrpcStatus),
    /// That a response begins, and a status comes behind it.
    Open,
}

/// Where in the messages of a call the next byte is. Each begins with a byte of flags and four that tell its length.
#[derive(Clone, Copy, Debug, Default)]
struct Messages {
    /// Bytes of a message's beginning that have come.
    begun: u8,
    /// What they tell so far.
    length: u32,
    /// Bytes of a message that are still to come.
    left: u32,
}

impl Messages {
    /// Follows the next bytes. Whether a message that begins in them has more than `max`.
    fn exceed(&mut self, mut data: &[u8], max: u64) -> bool {
        const BEGINNING: u8 = 5;
        loop {
            let taken = data.len().min(self.left as usize);
            self.left -= taken as u32;
            data = &data[taken..];
            let Some((&byte, rest)) = data.split_first() else { return false };
            data = rest;
            // The flags are shifted out.
            self.length = self.length << 8 | u32::from(byte);
            self.begun += 1;
            if self.begun == BEGINNING {
                if u64::from(self.length) > max {
                    return true;
                }
                *self = Self { left: self.length, ..Self::default() };
            }
        }
    }
}

impl Head {
    /// As circuit breaker and outlier detection see a response with this status of HTTP.
    pub(super) fn seen(self, status: StatusCode) -> StatusCode {
        match self {
            Self::Status(grpc) => seen(grpc),
            Self::Http | Self::Open => status,
        }
    }
}

impl Call {
    /// The call that a request by HTTP/2 is, if it is one.
    pub(super) fn of(head: &RequestHead) -> Option<Box<Self>> {
        if head.method != Method::POST || !is_grpc(head.get(&header::CONTENT_TYPE)?.as_bytes()) {
            return None;
        }
        let mut timeouts = head.in_map().get_all(GRPC_TIMEOUT).iter();
        let timeout = match (timeouts.next(), timeouts.next()) {
            (None, _) => Ok(None),
            (Some(one), None) => read_timeout(one.as_bytes()).map(Some).ok_or(Malformed),
            (Some(_), Some(_)) => Err(Malformed),
        };
        Some(Box::new(Self {
            timeout,
            deadline: Cell::new(None),
            by_client: Cell::new(false),
            responds: Cell::new(false),
            status: Cell::new(None),
            messages: Cell::default(),
            awaited: RefCell::new(None),
        }))
    }

    /// The next bytes of its request. Whether they are of a message with more than `max` bytes.
    #[cold]
    pub(super) fn exceeds(&self, data: &[u8], max: u64) -> bool {
        let mut messages = self.messages.get();
        let exceeds = messages.exceed(data, max);
        self.messages.set(messages);
        exceeds
    }

    /// It began at `started` and goes to an upstream: how long it may take there.
    ///
    /// # Errors
    /// When its client does not say properly how long that is, or that it is no time at all.
    #[cold]
    #[inline(never)]
    pub(super) fn bound(&self, timeouts: &Timeouts, started: Instant) -> Result<Option<Duration>, ProxyError> {
        let asked = self.timeout.map_err(|Malformed| ProxyError::BadRequest("the grpc-timeout is malformed"))?;
        let asked = asked.map(|asked| asked.min(timeouts.grpc_timeout_max.unwrap_or(Duration::MAX)));
        let bound = asked.into_iter().chain(timeouts.exchange).min();
        self.by_client.set(asked.is_some() && asked == bound);
        self.deadline.set(bound.map(|bound| started + bound));
        if bound.is_some_and(|bound| bound.is_zero()) { Err(ProxyError::ExchangeTimeout) } else { Ok(bound) }
    }

    /// When it has to be over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline.get()
    }

    /// Whether it has to be over then because its client says so.
    pub(super) fn is_bound_by_client(&self) -> bool {
        self.by_client.get()
    }

    /// Tells a backend how much time is left.
    ///
    /// # Errors
    /// When there is none.
    #[cold]
    pub(super) fn tell(&self, headers: &mut HeaderMap) -> Result<(), ProxyError> {
        let Some(deadline) = self.deadline.get() else { return Ok(()) };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ProxyError::ExchangeTimeout);
        }
        headers.insert(GRPC_TIMEOUT, write_timeout(left));
        Ok(())
    }

    /// What the head of a response says.
    #[cold]
    #[inline(never)]
    pub(super) fn head(status: StatusCode, connection: &Connection) -> Head {
        if status != StatusCode::OK {
            return Head::Http;
        }
        match connection.field(GRPC_STATUS.as_str()) {
            Some(value) => Head::Status(GrpcStatus::read(&value)),
            None if connection.field(header::CONTENT_TYPE.as_str()).is_some_and(|kind| is_grpc(&kind)) => Head::Open,
            None => Head::Http,
        }
    }

    /// Whether the backend itself says what is to be done about further attempts.
    #[cold]
    pub(super) fn pushes_back(connection: &Connection) -> bool {
        connection.field(PUSHBACK).is_some()
    }

    /// The head of its response goes to the client.
    #[cold]
    pub(super) fn answered(&self, head: Head) {
        self.responds.set(head != Head::Http);
        if let Head::Status(status) = head {
            self.status.set(Some(status));
        }
    }

    /// Its status comes behind the response of this backend, which took so long to begin.
    #[cold]
    #[inline(never)]
    pub(super) fn awaits(&self, backend: &Arc<BackendState>, took: Duration) {
        *self.awaited.borrow_mut() = Some((Arc::clone(backend), took));
    }

    /// Whose status was still to come. Once.
    pub(super) fn awaited(&self) -> Option<(Arc<BackendState>, Duration)> {
        self.awaited.take()
    }

    /// What it has come to, as its client is told.
    pub(super) fn ends(&self, status: GrpcStatus) {
        self.status.set(Some(status));
    }

    /// The trailers of the response have come: the status in them.
    pub(super) fn trailed(&self, trailers: &HeaderMap) -> Option<GrpcStatus> {
        if !self.responds.get() {
            return None;
        }
        let status = GrpcStatus::read(trailers.get(GRPC_STATUS)?.as_bytes());
        self.status.set(Some(status));
        Some(status)
    }

    /// What is said in place of the rest of a response that was cut short. `None` where it has no place for that, or nobody
    /// would read it.
    ///
    /// A reset would say less: its reasons mean other things to clients of gRPC, `CANCEL` that they have cancelled it themselves.
    /// A status that is not OK says that the response is not whole, whatever of it has come.
    pub(super) fn last_words(&self, cut: Cut) -> Option<HeaderMap> {
        let (status, words) = match cut {
            _ if !self.responds.get() => return None,
            Cut::OverTime => (GrpcStatus::DeadlineExceeded, OVER_TIME),
            Cut::BodyTooLarge => (GrpcStatus::ResourceExhausted, "the request is larger than it may be"),
            Cut::BackendCutShort => (GrpcStatus::Unavailable, "the backend broke off its response"),
            Cut::BackendStalled => (GrpcStatus::Unavailable, "nothing moved for too long"),
            Cut::Drained => (GrpcStatus::Unavailable, "the time to finish is over"),
            Cut::ClientGone
            | Cut::ClientLeft
            | Cut::ClientStalled
            | Cut::ClientTooSlow
            | Cut::TunnelIdle
            | Cut::TunnelBroken => {
                return None;
            }
        };
        self.status.set(Some(status));
        let mut trailers = HeaderMap::new();
        put_status(&mut trailers, status, words);
        Some(trailers)
    }

    /// What it has come to: what its client was told, or concludes.
    pub(super) fn outcome(&self, http: u16, cut_by_client: Option<bool>) -> GrpcStatus {
        self.status.get().unwrap_or_else(|| match cut_by_client {
            Some(true) => GrpcStatus::Cancelled,
            Some(false) => GrpcStatus::Unavailable,
            None => concluded(http),
        })
    }
}

/// What the client is told where its own deadline or the route's limit has passed.
pub(super) const OVER_TIME: &str = "the call took longer than it may";

/// `application/grpc`, with `+proto` or parameters behind it. That of gRPC-Web is another protocol.
fn is_grpc(kind: &[u8]) -> bool {
    const NAME: &[u8] = b"application/grpc";
    kind.split_at_checked(NAME.len())
        .is_some_and(|(name, rest)| name.eq_ignore_ascii_case(NAME) && matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Up to eight digits and a unit.
fn read_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// In the finest unit in which eight digits are enough, and never more than it is.
fn write_timeout(left: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    const SECOND: u128 = 1_000_000_000;
    let units = [(1, 'n'), (1_000, 'u'), (1_000_000, 'm'), (SECOND, 'S'), (60 * SECOND, 'M'), (3600 * SECOND, 'H')];
    let numbers = units.into_iter().map(|(nanos, unit)| (left.as_nanos() / nanos, unit));
    let (number, unit) = numbers.into_iter().find(|(number, _)| *number <= MOST).unwrap_or((MOST, 'H'));
    HeaderValue::try_from(format!("{number}{unit}")).unwrap_or(HeaderValue::from_static("1n"))
}

/// Puts a status into the head of a response without a body, or into the trailers of one.
pub(super) fn put_status(headers: &mut HeaderMap, status: GrpcStatus, words: &str) {
    headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(status.code())));
    if let Ok(message) = HeaderValue::try_from(percent_encoded(words)) {
        headers.insert(GRPC_MESSAGE, message);
    }
}

/// As `grpc-message` has it: printable ASCII but for the percent sign, and all other bytes as `%XX`.
fn percent_encoded(words: &str) -> String {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    let mut encoded = String::with_capacity(words.len());
    for byte in words.bytes() {
        match byte {
            b'%' | ..b' ' | 0x7f.. => {
                encoded.extend(['%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
            _ => encoded.push(char::from(byte)),
        }
    }
    encoded
}

/// What clients take a response for that has no status of gRPC.
fn concluded(http: u16) -> GrpcStatus {
    match http {
        400 => GrpcStatus::Internal,
        401 => GrpcStatus::Unauthenticated,
        403 => GrpcStatus::PermissionDenied,
        404 => GrpcStatus::Unimplemented,
        429 | 502 | 503 | 504 => GrpcStatus::Unavailable,
        _ => GrpcStatus::Unknown,
    }
}

/// What HTTP would have said, to those who judge a backend. That a deadline has passed is not held against it: clients choose
/// their deadlines, and one that gives none of them a chance must not have backends thrown out. Nor is what a client has asked for
/// wrongly, or too much.
#[cold]
fn seen(status: GrpcStatus) -> StatusCode {
    match status {
        GrpcStatus::Ok => StatusCode::OK,
        GrpcStatus::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        GrpcStatus::Unknown | GrpcStatus::Internal | GrpcStatus::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
        GrpcStatus::Cancelled
        | GrpcStatus::InvalidArgument
        | GrpcStatus::DeadlineExceeded
        | GrpcStatus::NotFound
        | GrpcStatus::AlreadyExists
        | GrpcStatus::PermissionDenied
        | GrpcStatus::ResourceExhausted
        | GrpcStatus::FailedPrecondition
        | GrpcStatus::Aborted
        | GrpcStatus::OutOfRange
        | GrpcStatus::Unimplemented
        | GrpcStatus::Unauthenticated => StatusCode::BAD_REQUEST,
    }
}

/// The same for outlier detection, of a status that has come behind a response.
pub(super) fn outcome(status: GrpcStatus) -> Outcome {
    Outcome::of_status(seen(status).as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, headers: &[(&str, &str)]) -> RequestHead {
        let mut request = http::Request::builder().method(method).uri("/pkg.Service/Method");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0.into()
    }

    fn timeouts() -> Timeouts {
        let s = Duration::from_secs(1);
        Timeouts {
            response_head: s,
            body_idle: s,
            expect: s,
            exchange: None,
            tunnel_idle: s,
            grpc_idle: None,
            grpc_timeout_max: None,
        }
    }

    #[test]
    fn each_message_is_measured_and_not_their_sum() {
        let all =
            [&b"\0\0\0\0\x08"[..], b"12345678", b"\x01\0\0\0\0", b"\0\0\0\x01\0", &[7; 256], b"\0\0\0\0\x01x"].concat();
        for piece in [1, 2, 3, 5, 7, 1000] {
            for (max, exceeds) in [(0, true), (7, true), (8, true), (255, true), (256, false), (u64::MAX, false)] {
                let mut messages = Messages::default();
                let found = all.repeat(3).chunks(piece).any(|piece| messages.exceed(piece, max));
                assert_eq!(found, exceeds, "{max} in pieces of {piece}");
            }
        }
        assert!(Messages::default().exceed(&[0xff; 5], u64::from(u32::MAX) - 1));
        assert!(!Messages::default().exceed(&[0xff; 5], u64::from(u32::MAX)));
    }

    #[test]
    fn calls_are_recognised() {
        for (method, kind, is) in [
            ("POST", "application/grpc", true),
            ("POST", "application/grpc+proto", true),
            ("POST", "application/grpc;charset=utf-8", true),
            ("POST", "Application/GRPC+json", true),
            ("GET", "application/grpc", false),
            ("POST", "application/grpc-web", false),
            ("POST", "application/grpc-web+proto", false),
            ("POST", "application/grp", false),
            ("POST", "application/grpcx", false),
            ("POST", "application/json", false),
            ("POST", "", false),
        ] {
            assert_eq!(Call::of(&request(method, &[("content-type", kind)])).is_some(), is, "{method} {kind}");
        }
        assert!(Call::of(&request("POST", &[])).is_none());
    }

    #[test]
    fn timeouts_are_read_and_written() {
        let (s, ms) = (Duration::from_secs(1), Duration::from_millis(1));
        for (text, read, written) in [
            ("1H", Some(3600 * s), "3600000m"),
            ("2M", Some(120 * s), "120000m"),
            ("30S", Some(30 * s), "30000000u"),
            ("100m", Some(100 * ms), "100000u"),
            ("99m", Some(99 * ms), "99000000n"),
            ("5u", Some(Duration::from_micros(5)), "5000n"),
            ("7n", Some(Duration::from_nanos(7)), "7n"),
            ("0S", Some(Duration::ZERO), "0n"),
            ("99999999S", Some(99_999_999 * s), "99999999S"),
            ("99999999M", Some(Duration::from_secs(60 * 99_999_999)), "99999999M"),
            ("99999999H", Some(Duration::from_secs(3600 * 99_999_999)), "99999999H"),
        ] {
            let timeout = read_timeout(text.as_bytes());
            assert_eq!(timeout, read, "{text}");
            assert_eq!(write_timeout(timeout.unwrap()), written, "{text}");
        }
        for malformed in
            ["", "S", "1", "123456789S", "-1S", "+1S", "1.5S", "1 S", " 1S", "1s", "1h", "1SS", "0x1S", "\u{663}S"]
        {
            assert_eq!(read_timeout(malformed.as_bytes()), None, "{malformed:?}");
        }
        assert_eq!(write_timeout(Duration::MAX), "99999999H");
        // Rounded down: a backend never has more than there is.
        assert_eq!(write_timeout(Duration::from_nanos(100_000_999)), "100000u");
    }

    #[test]
    fn the_smallest_limit_counts() {
        let s = Duration::from_secs(1);
        for (timeout, exchange, max, bound, by_client) in [
            (None, None, None, None, false),
            (Some("5S"), None, None, Some(5 * s), true),
            (None, Some(7 * s), Some(3 * s), Some(7 * s), false),
            (Some("5S"), Some(7 * s), None, Some(5 * s), true),
            (Some("9S"), Some(7 * s), None, Some(7 * s), false),
            (Some("9S"), None, Some(3 * s), Some(3 * s), true),
            (Some("2S"), Some(7 * s), Some(3 * s), Some(2 * s), true),
        ] {
            let mut headers = vec![("content-type", "application/grpc")];
            headers.extend(timeout.map(|timeout| ("grpc-timeout", timeout)));
            let call = Call::of(&request("POST", &headers)).unwrap();
            let timeouts = Timeouts { exchange, grpc_timeout_max: max, ..timeouts() };
            let started = Instant::now();
            assert_eq!(call.bound(&timeouts, started).unwrap(), bound, "{timeout:?} {exchange:?} {max:?}");
            assert_eq!(call.deadline(), bound.map(|bound| started + bound));
            assert_eq!(call.is_bound_by_client(), by_client, "{timeout:?} {exchange:?} {max:?}");
        }
    }

    #[test]
    fn no_time_and_malformed_times_go_nowhere() {
        let call = |timeouts: &[&str]| {
            let headers = timeouts.iter().map(|timeout| ("grpc-timeout", *timeout));
            let headers: Vec<_> = headers.chain([("content-type", "application/grpc")]).collect();
            Call::of(&request("POST", &headers)).unwrap()
        };
        let bound = |timeouts: &[&str]| call(timeouts).bound(&self::timeouts(), Instant::now());
        assert!(matches!(bound(&["0m"]), Err(ProxyError::ExchangeTimeout)));
        assert!(matches!(bound(&["fast"]), Err(ProxyError::BadRequest(_))));
        assert!(matches!(bound(&["1S", "2S"]), Err(ProxyError::BadRequest(_))));
        let late = call(&["1n"]);
        late.bound(&timeouts(), Instant::now()).unwrap();
        assert!(matches!(late.tell(&mut HeaderMap::new()), Err(ProxyError::ExchangeTimeout)));
    }

    #[test]
    fn backends_are_told_less_than_clients_said() {
        let call =
            Call::of(&request("POST", &[("content-type", "application/grpc"), ("grpc-timeout", "20S")])).unwrap();
        call.bound(&timeouts(), Instant::now()).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(GRPC_TIMEOUT, HeaderValue::from_static("20S"));
        call.tell(&mut headers).unwrap();
        let told = read_timeout(headers[GRPC_TIMEOUT].as_bytes()).unwrap();
        assert!(told < Duration::from_secs(20) && told > Duration::from_secs(10), "{told:?}");
    }

    #[test]
    fn messages_are_percent_encoded() {
        for (words, encoded) in [
            ("no backend is ready", "no backend is ready"),
            ("100% of it", "100%25 of it"),
            ("a\nb\t\u{7f}", "a%0Ab%09%7F"),
            ("t\u{e4}glich \u{2603}", "t%C3%A4glich %E2%98%83"),
            ("~!\"", "~!\""),
        ] {
            assert_eq!(percent_encoded(words), encoded);
        }
    }

    #[test]
    fn every_call_comes_to_one_status() {
        let call = || Call::of(&request("POST", &[("content-type", "application/grpc")])).unwrap();
        for (http, cut_by_client, status) in [
            (200, None, GrpcStatus::Unknown),
            (400, None, GrpcStatus::Internal),
            (401, None, GrpcStatus::Unauthenticated),
            (403, None, GrpcStatus::PermissionDenied),
            (404, None, GrpcStatus::Unimplemented),
            (429, None, GrpcStatus::Unavailable),
            (500, None, GrpcStatus::Unknown),
            (503, None, GrpcStatus::Unavailable),
            (499, Some(true), GrpcStatus::Cancelled),
            (200, Some(false), GrpcStatus::Unavailable),
        ] {
            assert_eq!(call().outcome(http, cut_by_client), status, "{http} {cut_by_client:?}");
        }
        let told = call();
        told.ends(GrpcStatus::NotFound);
        assert_eq!(told.outcome(200, None), GrpcStatus::NotFound);
    }

    #[test]
    fn what_is_held_against_a_backend() {
        let held = |outcome| GrpcStatus::ALL.into_iter().filter(|it| self::outcome(*it) == outcome).collect::<Vec<_>>();
        assert_eq!(held(Outcome::Success), [GrpcStatus::Ok]);
        assert_eq!(held(Outcome::Gateway), [GrpcStatus::Unavailable]);
        assert_eq!(held(Outcome::ServerError), [GrpcStatus::Unknown, GrpcStatus::Internal, GrpcStatus::DataLoss]);
        assert_eq!(held(Outcome::ClientError).len(), 12);
    }
}
