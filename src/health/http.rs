use std::convert::Infallible;
use std::future::{Future, pending};
use std::ops::RangeInclusive;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{self, Authority, PathAndQuery, Uri};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::{CheckFailed, HealthCheck, connect};
use crate::config::{Address, BodyPattern, HealthCheckConfig, Protocol};
use crate::socket::Socket;
use crate::transport::tls::TlsOf;

pub(super) const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("isobar/", env!("CARGO_PKG_VERSION"), " health-check"));

/// Bytes of a response's head. Far more than a health page has.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Passes where a request is answered with a good status, and with the right words in the body if it is to have any. Each
/// check has a connection of its own: whether new ones can be made is half of the question.
#[derive(Debug)]
pub(super) struct Http {
    method: Method,
    target: Uri,
    /// All of them, `Host` only where it is given.
    headers: HeaderMap,
    statuses: Vec<RangeInclusive<u16>>,
    /// What the body must have in it, and how many of its bytes are looked at.
    body: Option<(BodyPattern, usize)>,
    /// Whether HTTP/2 is spoken without asking.
    http2: bool,
}

impl Http {
    pub(super) fn new(probe: &HealthCheckConfig, protocol: Protocol) -> Self {
        let mut headers = HeaderMap::new();
        headers.extend(probe.host.clone().map(|host| (header::HOST, host)));
        headers.insert(header::USER_AGENT, USER_AGENT);
        headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        if probe.method == Method::POST {
            // RFC 9110 §8.6: or some servers wait for a body.
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        for (name, value) in probe.headers.iter() {
            headers.insert(name, value.clone());
        }
        let target: PathAndQuery = probe.path.0.clone();
        Self {
            method: probe.method.clone(),
            target: target.into(),
            headers,
            statuses: probe.statuses.clone(),
            body: probe.body.clone().map(|pattern| (pattern, probe.body_limit)),
            http2: protocol == Protocol::Http2,
        }
    }

    fn request(&self, address: &Address) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = self.headers.clone();
        let host = || HeaderValue::try_from(address.authority()).unwrap_or(HeaderValue::from_static("backend"));
        request.headers_mut().entry(header::HOST).or_insert_with(host);
        request
    }

    /// The same by HTTP/2. The connection is driven by a task that ends with the last handle to it.
    async fn check_by_http2(&self, socket: Socket, address: &Address, deadline: Instant) -> Result<(), CheckFailed> {
        let socket_is_plain = socket.plain().is_some();
        let begun = http2::handshake(TokioExecutor::new(), TokioIo::new(socket));
        let (mut sender, connection) = in_time(deadline, "connecting", begun).await?;
        let driven = AbortOnDrop(tokio::spawn(connection));
        let mut request = self.request(address);
        let headers = request.headers_mut();
        headers.remove(header::CONNECTION);
        let host = headers.remove(header::HOST);
        let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
        let mut parts = uri::Parts::from(std::mem::take(request.uri_mut()));
        parts.scheme = Some(if socket_is_plain { uri::Scheme::HTTP } else { uri::Scheme::HTTPS });
        parts.authority = Some(authority.unwrap_or(Authority::from_static("backend")));
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        let response = in_time(deadline, "waiting for the response", sender.send_request(request)).await?;
        let outcome = self.judge(response, deadline).await;
        drop(driven);
        outcome
    }

    async fn judge(&self, response: Response<Incoming>, deadline: Instant) -> Result<(), CheckFailed> {
        let (head, body) = response.into_parts();
        if !self.statuses.iter().any(|good| good.contains(&head.status.as_u16())) {
            return Err(CheckFailed::Status(head.status));
        }
        match &self.body {
            None => Ok(()),
            Some((pattern, limit)) => timeout_at(deadline, look_into(body, pattern, *limit))
                .await
                .unwrap_or(Err(CheckFailed::Timeout("reading the body"))),
        }
    }
}

async fn look_into(mut body: Incoming, BodyPattern(pattern): &BodyPattern, limit: usize) -> Result<(), CheckFailed> {
    let mut bytes = Vec::new();
    while bytes.len() < limit
        && let Some(frame) = body.frame().await
    {
        if let Ok(data) = frame.map_err(CheckFailed::Broken)?.into_data() {
            let room = limit - bytes.len();
            bytes.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    let found = pattern.is_match(&bytes);
    if found { Ok(()) } else { Err(CheckFailed::Body { searched: bytes.len() }) }
}

impl HealthCheck for Http {
    async fn check(&self, address: &Address, tls: Option<TlsOf<'_>>, deadline: Instant) -> Result<(), CheckFailed> {
        let socket = connect(address, tls, deadline).await?;
        if self.http2 || socket.alpn() == Some(b"h2") {
            return self.check_by_http2(socket, address, deadline).await;
        }
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(CheckFailed::Broken)?;
        let asked = async {
            let response = in_time(deadline, "waiting for the response", sender.send_request(self.request(address)));
            self.judge(response.await?, deadline).await
        };
        // The request that waits for a response is told how the connection ends.
        let driven = async {
            let _ = connection.await;
            pending::<Infallible>().await
        };
        tokio::select! {
            outcome = asked => outcome,
            never = driven => match never {},
        }
    }
}

/// A connection that is closed when it is dropped.
pub(super) struct AbortOnDrop(pub(super) JoinHandle<hyper::Result<()>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) async fn in_time<T>(
    deadline: Instant,
    doing: &'static str,
    future: impl Future<Output = hyper::Result<T>>,
) -> Result<T, CheckFailed> {
    timeout_at(deadline, future).await.map_err(|_| CheckFailed::Timeout(doing))?.map_err(CheckFailed::Broken)
}
