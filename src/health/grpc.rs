use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::{Instant, timeout_at};

use super::http::{AbortOnDrop, USER_AGENT, in_time};
use super::{CheckFailed, HealthCheck, connect};
use crate::config::{Address, GrpcStatus, HealthCheckConfig};
use crate::transport::tls::TlsOf;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const PATH: PathAndQuery = PathAndQuery::from_static("/grpc.health.v1.Health/Check");

/// Bytes of an answer, which has two and what fields somebody has added since.
const ANSWER_BYTES_MAX: usize = 4096;

/// Bytes in front of each message: whether it is compressed, and how long it is.
const PREFIX_BYTES: usize = 5;

/// Passes where the backend's own health service says SERVING. Each check has a connection of its own, as with [`super::http`].
///
/// The protocol is two messages of one field each (`grpc.health.v1`), which are written and read here by hand: a crate for
/// protocol buffers would be larger than everything else about health checks.
#[derive(Debug)]
pub(super) struct Grpc {
    /// All of them, `Host` only where it is given.
    headers: HeaderMap,
    /// The request's message with its prefix.
    question: Bytes,
}

impl Grpc {
    pub(super) fn new(probe: &HealthCheckConfig) -> Self {
        let mut headers = HeaderMap::new();
        headers.extend(probe.host.clone().map(|host| (header::HOST, host)));
        headers.insert(header::USER_AGENT, USER_AGENT);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        for (name, value) in probe.headers.iter() {
            headers.insert(name, value.clone());
        }
        Self { headers, question: question(&probe.service) }
    }

    fn request(&self, address: &Address, secure: bool, deadline: Instant) -> Request<Once> {
        let mut request = Request::new(Once(Some(self.question.clone())));
        *request.method_mut() = Method::POST;
        *request.headers_mut() = self.headers.clone();
        let headers = request.headers_mut();
        let left = deadline.saturating_duration_since(Instant::now());
        // Eight digits are enough for a day.
        let left = format!("{}m", left.as_millis().clamp(1, 99_999_999));
        headers.extend(HeaderValue::try_from(left).ok().map(|left| (GRPC_TIMEOUT, left)));
        let host = headers.remove(header::HOST);
        let authority = match host {
            Some(host) => Authority::try_from(host.as_bytes()).ok(),
            None => Authority::try_from(address.authority()).ok(),
        };
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(if secure { Scheme::HTTPS } else { Scheme::HTTP });
        uri.authority = Some(authority.unwrap_or(Authority::from_static("backend")));
        uri.path_and_query = Some(PATH);
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        request
    }
}

impl HealthCheck for Grpc {
    async fn check(&self, address: &Address, tls: Option<TlsOf<'_>>, deadline: Instant) -> Result<(), CheckFailed> {
        let socket = connect(address, tls, deadline).await?;
        if tls.is_some() && socket.alpn() != Some(b"h2") {
            return Err(CheckFailed::Malformed("it does not speak HTTP/2"));
        }
        let begun = http2::handshake(TokioExecutor::new(), TokioIo::new(socket));
        let (mut sender, connection) = in_time(deadline, "connecting", begun).await?;
        let driven = AbortOnDrop(tokio::spawn(connection));
        let request = self.request(address, tls.is_some(), deadline);
        let response = in_time(deadline, "waiting for the response", sender.send_request(request)).await?;
        let judged = timeout_at(deadline, judge(response)).await;
        drop(driven);
        judged.unwrap_or(Err(CheckFailed::Timeout("reading the answer")))
    }
}

async fn judge(response: Response<Incoming>) -> Result<(), CheckFailed> {
    let (head, mut body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(CheckFailed::Status(head.status));
    }
    let kind = head.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if !kind.starts_with(b"application/grpc") {
        return Err(CheckFailed::Malformed("what answers does not speak gRPC"));
    }
    let (mut answer, mut trailers) = (BytesMut::new(), None);
    while let Some(frame) = body.frame().await {
        match frame.map_err(CheckFailed::Broken)?.into_data() {
            Ok(data) if answer.len() + data.len() > ANSWER_BYTES_MAX => {
                return Err(CheckFailed::Malformed("the answer is too long"));
            }
            Ok(data) => answer.put(data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    // Where there is nothing but the status, it is in the head.
    let status = trailers.as_ref().and_then(|trailers| trailers.get(GRPC_STATUS)).or(head.headers.get(GRPC_STATUS));
    match status.map(|status| GrpcStatus::read(status.as_bytes())) {
        Some(GrpcStatus::Ok) => serving(&answer),
        Some(status) => Err(CheckFailed::Grpc(status)),
        None => Err(CheckFailed::Malformed("the answer ended without a status")),
    }
}

/// `HealthCheckRequest { string service = 1; }` with its prefix.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(1 << 3 | 2);
        put_varint(&mut message, service.len() as u64);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put(message);
    framed.freeze()
}

fn put_varint(message: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        message.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    message.put_u8(value as u8);
}

/// Whether `HealthCheckResponse { ServingStatus status = 1; }` with its prefix says SERVING.
fn serving(framed: &[u8]) -> Result<(), CheckFailed> {
    const MALFORMED: CheckFailed = CheckFailed::Malformed("the answer of the health service is malformed");
    let (prefix, message) = framed.split_at_checked(PREFIX_BYTES).ok_or(MALFORMED)?;
    let &[compressed, a, b, c, d] = prefix else { return Err(MALFORMED) };
    if compressed != 0 {
        return Err(CheckFailed::Malformed("the answer of the health service is compressed"));
    }
    if u32::from_be_bytes([a, b, c, d]) as usize != message.len() {
        return Err(MALFORMED);
    }
    match serving_status(message).ok_or(MALFORMED)? {
        0 => Err(CheckFailed::NotServing("UNKNOWN")),
        1 => Ok(()),
        2 => Err(CheckFailed::NotServing("NOT_SERVING")),
        3 => Err(CheckFailed::NotServing("SERVICE_UNKNOWN")),
        _ => Err(CheckFailed::NotServing("in a state that isobar does not know")),
    }
}

/// The last field 1 that is a number, as protocol buffers have it; 0 where there is none.
fn serving_status(mut message: &[u8]) -> Option<u64> {
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        if key >> 3 == 0 {
            return None;
        }
        let skipped = match key & 7 {
            0 => {
                let value = varint(&mut message)?;
                if key >> 3 == 1 {
                    status = value;
                }
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None,
        };
        message = message.get(skipped..)?;
    }
    Some(status)
}

/// Ten bytes at most.
fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        let bits = u64::from(byte & 0x7f);
        // The tenth has room for one bit.
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// A body of one piece, whose length is not told: servers of gRPC expect none.
struct Once(Option<Bytes>);

impl http_body::Body for Once {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn questions() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = "s".repeat(300);
        assert_eq!(question(&long)[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 0x02]);
        assert!(question(&long).ends_with(long.as_bytes()));
    }

    #[test]
    fn answers() {
        let said = |framed: &[u8]| serving(framed).map_err(|failed| failed.to_string());
        for (framed, expected) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], Ok(())),
            // Other fields beside it, of each kind, and the last one counts.
            (&[0, 0, 0, 0, 9, 8, 2, 18, 1, 9, 24, 5, 8, 1], Ok(())),
            (&[0, 0, 0, 0, 16, 17, 0, 0, 0, 0, 0, 0, 0, 0, 29, 0, 0, 0, 0, 8, 1], Ok(())),
            // A number need not be written in as few bytes as it could be.
            (&[0, 0, 0, 0, 3, 8, 0x81, 0], Ok(())),
            (&[0, 0, 0, 0, 0], Err("it says that it is UNKNOWN")),
            (&[0, 0, 0, 0, 2, 8, 0], Err("it says that it is UNKNOWN")),
            (&[0, 0, 0, 0, 2, 8, 2], Err("it says that it is NOT_SERVING")),
            (&[0, 0, 0, 0, 2, 8, 3], Err("it says that it is SERVICE_UNKNOWN")),
            (&[0, 0, 0, 0, 2, 8, 4], Err("it says that it is in a state that isobar does not know")),
            (&[1, 0, 0, 0, 2, 8, 1], Err("the answer of the health service is compressed")),
        ] {
            assert_eq!(said(framed), expected.map_err(str::to_owned), "{framed:?}");
        }
    }

    #[test]
    fn malformed_answers() {
        for framed in [
            &[][..],
            &[0, 0, 0, 0],
            // Longer and shorter than it says.
            &[0, 0, 0, 0, 2, 8],
            &[0, 0, 0, 0, 1, 8, 1],
            &[0, 255, 255, 255, 255, 8, 1],
            // A field without its value, a number without end, one of 65 bits, field 0, and kinds that there are not.
            &[0, 0, 0, 0, 1, 8],
            &[0, 0, 0, 0, 2, 8, 0x80],
            &[0, 0, 0, 0, 11, 8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2],
            &[0, 0, 0, 0, 12, 8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
            &[0, 0, 0, 0, 2, 0, 1],
            &[0, 0, 0, 0, 2, 11, 1],
            &[0, 0, 0, 0, 2, 15, 1],
            // Texts and fixed numbers longer than what there is.
            &[0, 0, 0, 0, 3, 18, 5, 1],
            &[0, 0, 0, 0, 11, 18, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
            &[0, 0, 0, 0, 2, 17, 1],
            &[0, 0, 0, 0, 2, 29, 1],
        ] {
            assert!(matches!(serving(framed), Err(CheckFailed::Malformed(_))), "{framed:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_to_an_end(framed in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = serving(&framed);
            let _ = serving_status(&framed);
        }
    }
}
