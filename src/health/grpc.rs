use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, Parts, PathAndQuery, Scheme, Uri};
use http::{Method, Request, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::{Instant, timeout_at};

use super::http::{AbortOnDrop, USER_AGENT, in_time};
use super::{CheckFailed, HealthCheck, connect};
use crate::config::{Address, GrpcProbe, GrpcStatus};
use crate::transport::tls::BackendTls;

const PATH: PathAndQuery = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Bytes of an answer at most: a good one has seven.
const ANSWER_BYTES: usize = 1024;

/// The answer that a service is served, `ServingStatus.SERVING`.
const SERVING: u64 = 1;

/// Passes where the backend says by gRPC's health checking protocol (`grpc/health/v1/health.proto`) that it serves. Each check has a
/// connection of its own.
#[derive(Debug)]
pub(super) struct Grpc {
    host: Option<HeaderValue>,
    question: Bytes,
}

impl Grpc {
    pub(super) fn new(probe: &GrpcProbe) -> Self {
        Self { host: probe.host.clone(), question: question(&probe.service) }
    }

    fn request(&self, address: &Address, secure: bool) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.question.clone()));
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        let host = self.host.as_ref().and_then(|host| Authority::try_from(host.as_bytes()).ok());
        let host = host.or_else(|| Authority::try_from(address.to_string()).ok());
        let mut parts = Parts::default();
        parts.scheme = Some(if secure { Scheme::HTTPS } else { Scheme::HTTP });
        parts.authority = Some(host.unwrap_or(Authority::from_static("backend")));
        parts.path_and_query = Some(PATH);
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::USER_AGENT, USER_AGENT);
        request
    }
}

impl HealthCheck for Grpc {
    async fn check(&self, address: &Address, tls: Option<&BackendTls>, deadline: Instant) -> Result<(), CheckFailed> {
        let socket = connect(address, tls, deadline).await?;
        let secure = socket.plain().is_none();
        if secure && socket.alpn() != Some(b"h2") {
            return Err(CheckFailed::NoHttp2);
        }
        let begun = http2::handshake(TokioExecutor::new(), TokioIo::new(socket));
        let (mut sender, connection) = in_time(deadline, "connecting", begun).await?;
        let driven = AbortOnDrop(tokio::spawn(connection));
        let sent = sender.send_request(self.request(address, secure));
        let (head, body) = in_time(deadline, "waiting for the response", sent).await?.into_parts();
        if head.status != 200 {
            return Err(CheckFailed::Status(head.status));
        }
        if let Some(status) = told(&head.headers) {
            return Err(CheckFailed::Grpc(status));
        }
        let (answer, trailers) =
            timeout_at(deadline, read(body)).await.unwrap_or(Err(CheckFailed::Timeout("reading the answer")))?;
        drop(driven);
        match told(&trailers) {
            Some(GrpcStatus::Ok) => {}
            status => return Err(CheckFailed::Grpc(status.unwrap_or(GrpcStatus::Unknown))),
        }
        match serving_status(&answer) {
            Some(SERVING) => Ok(()),
            status => Err(CheckFailed::NotServing(status)),
        }
    }
}

fn told(headers: &HeaderMap) -> Option<GrpcStatus> {
    headers.get(STATUS).map(|value| GrpcStatus::of_field(value.as_bytes()))
}

async fn read(mut body: Incoming) -> Result<(Bytes, HeaderMap), CheckFailed> {
    let mut answer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        match frame.map_err(CheckFailed::Broken)?.into_data() {
            Ok(data) if answer.len() + data.len() > ANSWER_BYTES => return Err(CheckFailed::NotServing(None)),
            Ok(data) => answer.extend_from_slice(&data),
            Err(frame) => return Ok((answer.freeze(), frame.into_trailers().unwrap_or_default())),
        }
    }
    Ok((answer.freeze(), HeaderMap::new()))
}

/// `HealthCheckRequest { string service = 1; }`, in the frame of a message: not compressed, and its length.
fn question(service: &str) -> Bytes {
    let mut message = Vec::with_capacity(service.len() + 8);
    if !service.is_empty() {
        // Field 1, of a length that comes first.
        message.push(1 << 3 | 2);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

/// The status in a `HealthCheckResponse { ServingStatus status = 1; }`; `None` where it is no such message, or a compressed one, for which
/// nobody asked. A message without the field has 0, which is `UNKNOWN`.
fn serving_status(answer: &[u8]) -> Option<u64> {
    let (prefix, mut message) = answer.split_at_checked(5)?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    if prefix[0] != 0 || usize::try_from(length) != Ok(message.len()) {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        // Fields that a later version of the protocol may bring are skipped by their wire type.
        match key & 7 {
            0 => {
                let value = varint(&mut message)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn asks_about_a_service() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(question(&"a".repeat(300))[5..8], [0x0a, 0xac, 0x02]);
    }

    #[test]
    fn reads_the_status() {
        let framed = |message: &[u8]| [&[0, 0, 0, 0, message.len() as u8], message].concat();
        for (message, expected) in [
            (&[0x08, 1][..], Some(1)),
            (&[0x08, 2], Some(2)),
            (&[], Some(0)),
            // The last one counts, and others are skipped.
            (&[0x08, 2, 0x08, 1], Some(1)),
            (&[0x12, 2, 1, 1, 0x19, 0, 0, 0, 0, 0, 0, 0, 0, 0x25, 0, 0, 0, 0, 0x08, 1], Some(1)),
            (&[0x08, 0x81, 0x00], Some(1)),
            (&[0x08], None),
            (&[0x12, 9, 1], None),
            (&[0x0b], None),
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], None),
        ] {
            assert_eq!(serving_status(&framed(message)), expected, "{message:?}");
        }
        for answer in
            [&[][..], &[0, 0, 0, 0], &[1, 0, 0, 0, 2, 0x08, 1], &[0, 0, 0, 0, 3, 0x08, 1], &[0, 0, 0, 0, 1, 0x08, 1]]
        {
            assert_eq!(serving_status(answer), None, "{answer:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(answer in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = serving_status(&answer);
        }
    }
}
