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
use crate::backend::outlier::AttemptOutcome;
use crate::config::{GrpcStatus, Timeouts};
use crate::exchange::RequestHead;
use crate::transport::Connection;

use super::ProxyError;
use super::exchange_end::ExchangeCut;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// What a backend says of further attempts; its client knows what to do with it.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// A call under way.
pub(super) struct GrpcCall {
    /// How long its client wants it to take at most.
    timeout: Result<Option<Duration>, MalformedTimeout>,
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
struct MalformedTimeout;

/// What the head of a backend's response says of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrpcResponseHead {
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

impl GrpcResponseHead {
    /// That of a middleware's answer in gRPC.
    #[cold]
    pub(super) fn of_answer(headers: &HeaderMap) -> Self {
        headers.get(GRPC_STATUS).map_or(Self::Open, |value| Self::Status(GrpcStatus::read(value.as_bytes())))
    }

    /// As circuit breaker and outlier detection see a response with this status of HTTP.
    pub(super) fn seen(self, status: StatusCode) -> StatusCode {
        match self {
            Self::Status(grpc) => seen(grpc),
            Self::Http | Self::Open => status,
        }
    }
}

impl GrpcCall {
    /// The call that a request by HTTP/2 is, if it is one.
    pub(super) fn of(head: &RequestHead) -> Option<Box<Self>> {
        if head.method != Method::POST || !is_grpc(head.get(&header::CONTENT_TYPE)?.as_bytes()) {
            return None;
        }
        let mut timeouts = head.in_map().get_all(GRPC_TIMEOUT).iter();
        let timeout = match (timeouts.next(), timeouts.next()) {
            (None, _) => Ok(None),
            (Some(one), None) => read_timeout(one.as_bytes()).map(Some).ok_or(MalformedTimeout),
            (Some(_), Some(_)) => Err(MalformedTimeout),
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
        let asked = self.timeout.map_err(|MalformedTimeout| ProxyError::BadRequest("the grpc-timeout is malformed"))?;
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
    pub(super) fn head(status: StatusCode, connection: &Connection) -> GrpcResponseHead {
        if status != StatusCode::OK {
            return GrpcResponseHead::Http;
        }
        match connection.field(GRPC_STATUS.as_str()) {
            Some(value) => GrpcResponseHead::Status(GrpcStatus::read(&value)),
            None if connection.field(header::CONTENT_TYPE.as_str()).is_some_and(|kind| is_grpc(&kind)) => {
                GrpcResponseHead::Open
            }
            None => GrpcResponseHead::Http,
        }
    }

    /// Whether the backend itself says what is to be done about further attempts.
    #[cold]
    pub(super) fn pushes_back(connection: &Connection) -> bool {
        connection.field(PUSHBACK).is_some()
    }

    /// The head of its response goes to the client.
    #[cold]
    pub(super) fn answered(&self, head: GrpcResponseHead) {
        self.responds.set(head != GrpcResponseHead::Http);
        if let GrpcResponseHead::Status(status) = head {
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
    pub(super) fn last_words(&self, cut: ExchangeCut) -> Option<HeaderMap> {
        let (status, words) = match cut {
            _ if !self.responds.get() => return None,
            ExchangeCut::OverTime => (GrpcStatus::DeadlineExceeded, OVER_TIME),
            ExchangeCut::BodyTooLarge => (GrpcStatus::ResourceExhausted, "the request is larger than it may be"),
            ExchangeCut::BackendCutShort => (GrpcStatus::Unavailable, "the backend broke off its response"),
            ExchangeCut::MiddlewareFailed => (GrpcStatus::Internal, "the response could not be processed"),
            ExchangeCut::BackendStalled => (GrpcStatus::Unavailable, "nothing moved for too long"),
            ExchangeCut::Drained => (GrpcStatus::Unavailable, "the time to finish is over"),
            ExchangeCut::ClientGone
            | ExchangeCut::ClientLeft
            | ExchangeCut::ClientStalled
            | ExchangeCut::ClientTooSlow
            | ExchangeCut::TunnelIdle
            | ExchangeCut::TunnelBroken => {
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
pub(super) fn is_grpc(kind: &[u8]) -> bool {
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
pub(super) fn concluded(http: u16) -> GrpcStatus {
    match http {
        400 => GrpcStatus::Internal,
        401 => GrpcStatus::Unauthenticated,
        403 => GrpcStatus::PermissionDenied,
        404 => GrpcStatus::Unimplemented,
        429 | 502 | 503 | 504 => GrpcStatus::Unavailable,
        _ => GrpcStatus::Unknown,
    }
}

/// The status of HTTP that stands for it when a backend is judged. That a deadline has passed is not held against it: clients choose
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
pub(super) fn outcome(status: GrpcStatus) -> AttemptOutcome {
    AttemptOutcome::of_status(seen(status).as_u16())
}

#[cfg(test)]
mod tests;
