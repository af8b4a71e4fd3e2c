//! Calls of gRPC: requests of HTTP/2 whose status comes in a field of its own and whose client sets a deadline.
//!
//! What the protocol says: gRPC's `doc/PROTOCOL-HTTP2.md`.

use std::cell::Cell;
use std::time::{Duration, Instant};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Response};

use crate::config::GrpcStatus;
use crate::exchange::body::Body;

use super::error::ProxyError;

const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The status of a call, in the head of a response without messages or else in the trailers.
pub(super) const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// A call that is under way.
#[derive(Debug, Default)]
pub(super) struct Call {
    /// When the client gives it up; `None` is never.
    pub(super) deadline: Option<Instant>,
    /// How it ended, once that is known.
    pub(super) status: Cell<Option<GrpcStatus>>,
}

/// Whether a request is a call: of gRPC, and not of gRPC-Web, which is plain HTTP.
pub(super) fn is_one(parts: &Parts) -> bool {
    if parts.method != Method::POST {
        return false;
    }
    let kind = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    match kind.split_at_checked(GRPC.len()) {
        Some((start, rest)) => {
            start.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
        }
        None => false,
    }
}

const GRPC: &[u8] = b"application/grpc";

impl Call {
    /// A call whose head came at `started`.
    ///
    /// # Errors
    /// When its time-out is none.
    pub(super) fn begin(parts: &Parts, started: Instant) -> Result<Self, ProxyError> {
        let deadline = match parts.headers.get(TIMEOUT) {
            None => None,
            Some(value) => {
                let timeout = timeout(value.as_bytes()).ok_or(ProxyError::BadRequest("grpc-timeout is not a time"))?;
                started.checked_add(timeout)
            }
        };
        Ok(Self { deadline, status: Cell::new(None) })
    }

    /// Tells a backend how much of the time is left.
    ///
    /// # Errors
    /// When nothing is.
    pub(super) fn pass_on(&self, headers: &mut HeaderMap) -> Result<(), ProxyError> {
        let Some(deadline) = self.deadline else { return Ok(()) };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ProxyError::ExchangeTimeout);
        }
        headers.insert(TIMEOUT, written(left));
        Ok(())
    }

    /// Notes the status that a backend's head or trailers tell.
    pub(super) fn note(&self, headers: &HeaderMap) -> Option<GrpcStatus> {
        let status = headers.get(STATUS).map(|value| GrpcStatus::of_field(value.as_bytes()));
        self.status.set(status.or(self.status.get()));
        status
    }

    /// Ends it with trailers, in place of a response that was not whole.
    pub(super) fn end(&self, status: GrpcStatus, message: &'static str) -> HeaderMap {
        self.status.set(Some(status));
        let mut trailers = HeaderMap::with_capacity(2);
        tell(&mut trailers, status, message);
        trailers
    }

    /// The response for an error: the status alone ("Trailers-Only").
    pub(super) fn failed(&self, error: &ProxyError) -> Response<Body> {
        let status = status(error);
        self.status.set(Some(status));
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        tell(headers, status, error.told());
        response
    }
}

fn tell(headers: &mut HeaderMap, status: GrpcStatus, message: &'static str) {
    headers.insert(STATUS, HeaderValue::from(u16::from(status.code())));
    // What we say of errors is printable ASCII without percent signs: nothing to encode.
    headers.insert(MESSAGE, HeaderValue::from_static(message));
}

/// What an error comes to. Of those with a status of HTTP it is that which clients would take it for (gRPC's
/// `doc/http-grpc-status-mapping.md`), but where gRPC has a word of its own.
pub(super) fn status(error: &ProxyError) -> GrpcStatus {
    match error {
        ProxyError::NoRoute | ProxyError::Method | ProxyError::CannotSwitch => GrpcStatus::Unimplemented,
        ProxyError::BadRequest(_) => GrpcStatus::Internal,
        ProxyError::BodyTooLarge => GrpcStatus::ResourceExhausted,
        ProxyError::ClientTooSlow | ProxyError::ExchangeTimeout => GrpcStatus::DeadlineExceeded,
        ProxyError::NoBackend
        | ProxyError::QueueFull
        | ProxyError::QueueTimeout
        | ProxyError::BreakerOpen { .. }
        | ProxyError::Overloaded { .. }
        | ProxyError::Connect { .. }
        | ProxyError::Handshake { .. }
        | ProxyError::ConnectTimeout { .. }
        | ProxyError::Broken { .. }
        | ProxyError::UnaskedUpgrade { .. }
        | ProxyError::ResponseTimeout { .. } => GrpcStatus::Unavailable,
    }
}

/// What `grpc-timeout` says: up to eight digits and a unit.
fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
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

const DIGITS: usize = 8;

/// The same, written: in the finest unit that eight digits suffice for, rounded down.
fn written(left: Duration) -> HeaderValue {
    const MOST: u128 = 10_u128.pow(DIGITS as u32) - 1;
    let seconds = u128::from(left.as_secs());
    let units = [(left.as_nanos(), 'n'), (left.as_micros(), 'u'), (left.as_millis(), 'm'), (seconds, 'S')];
    let (number, unit) =
        units.into_iter().find(|(number, _)| *number <= MOST).unwrap_or(((seconds / 3600).min(MOST), 'H'));
    HeaderValue::try_from(format!("{number}{unit}")).unwrap_or(HeaderValue::from_static("1S"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(method: &str, kind: &str) -> Parts {
        http::Request::builder().method(method).header("content-type", kind).body(()).unwrap().into_parts().0
    }

    #[test]
    fn calls_are_told_from_other_requests() {
        for kind in ["application/grpc", "application/grpc+proto", "application/grpc;charset=x", "Application/GRPC"] {
            assert!(is_one(&parts("POST", kind)), "{kind}");
            assert!(!is_one(&parts("GET", kind)), "{kind}");
        }
        for kind in ["application/grpc-web", "application/grpc-web+proto", "application/json", "", "application/grp"] {
            assert!(!is_one(&parts("POST", kind)), "{kind}");
        }
    }

    #[test]
    fn reads_times() {
        for (text, expected) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("40m", Duration::from_millis(40)),
            ("500u", Duration::from_micros(500)),
            ("99999999n", Duration::from_nanos(99_999_999)),
            ("0S", Duration::ZERO),
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
        ] {
            assert_eq!(timeout(text.as_bytes()), Some(expected), "{text}");
        }
        for text in ["", "S", "1", "1s", "1h", "-1S", "+1S", "1.5S", " 1S", "1S ", "100000000S", "1 S"] {
            assert_eq!(timeout(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn writes_times_that_are_never_longer() {
        for (left, expected) in [
            (Duration::from_nanos(1), "1n"),
            (Duration::from_millis(99), "99000000n"),
            (Duration::from_millis(100), "100000u"),
            (Duration::from_nanos(100_000_999), "100000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(99_999), "99999000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(100_000_000), "27777H"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(written(left), expected, "{left:?}");
            assert!(timeout(written(left).as_bytes()).unwrap() <= left);
        }
    }

    #[test]
    fn a_call_without_time_is_not_passed_on() {
        let mut head = parts("POST", "application/grpc");
        head.headers.insert(TIMEOUT, HeaderValue::from_static("0n"));
        let call = Call::begin(&head, Instant::now()).unwrap();
        assert!(matches!(call.pass_on(&mut head.headers), Err(ProxyError::ExchangeTimeout)));
        head.headers.insert(TIMEOUT, HeaderValue::from_static("5S"));
        let call = Call::begin(&head, Instant::now()).unwrap();
        call.pass_on(&mut head.headers).unwrap();
        let left = timeout(head.headers[TIMEOUT].as_bytes()).unwrap();
        assert!(left <= Duration::from_secs(5) && left > Duration::from_secs(4), "{left:?}");
        head.headers.insert(TIMEOUT, HeaderValue::from_static("5"));
        assert!(matches!(Call::begin(&head, Instant::now()), Err(ProxyError::BadRequest(_))));
    }
}
