//! One request to the admin address, over TCP or the Unix socket.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;

use crate::cli::place::{Place, reachable};
use crate::config::Secret;

/// From the connection to the head of the answer. A reload may take its time.
const LIMIT: Duration = Duration::from_secs(30);

/// Who is asked, and with what right.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) place: Place,
    pub(super) token: Option<Secret>,
    /// Why it is asked there, where that is a guess.
    pub(super) guess: Option<String>,
}

/// Why there is no good answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// Nobody answers there, or not as isobar does.
    Unreachable {
        /// Where.
        place: Place,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// It says no.
    Refused {
        /// With which status.
        status: StatusCode,
        /// What it says: its JSON, or text.
        says: Value,
    },
    /// What was waited for has not come in time.
    TimedOut(String),
    /// The command cannot be carried out as it is.
    Command(String),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { place, .. } => write!(f, "could not ask isobar at {place}"),
            Self::Refused { status, says } => {
                let text = |key: &str| says[key].as_str();
                if let Some(problems) = says["problems"].as_array() {
                    let lines: Vec<_> = problems.iter().filter_map(Value::as_str).collect();
                    return write!(f, "refused, nothing changed:\n{}", lines.join("\n"));
                }
                match text("error") {
                    Some(error) => f.write_str(error)?,
                    None => write!(f, "refused with {status}")?,
                }
                match text("did_you_mean") {
                    Some(name) => write!(f, "; did you mean {name:?}?"),
                    None => Ok(()),
                }
            }
            Self::TimedOut(what) | Self::Command(what) => f.write_str(what),
        }
    }
}

impl Error for Failed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unreachable { source, .. } => Some(&**source),
            Self::Refused { .. } | Self::TimedOut(_) | Self::Command(_) => None,
        }
    }
}

impl Client {
    /// Asks, and reads the whole answer as JSON; of text, as a text.
    pub(super) async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Failed> {
        let response = self.send(method, path, body, &[]).await?;
        self.read(response).await
    }

    /// Asks for an answer that goes on; one that refuses is read.
    pub(super) async fn listen(
        &self,
        path: &str,
        headers: &[(&'static str, &'static str)],
    ) -> Result<Incoming, Failed> {
        let response = self.send("GET", path, None, headers).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let says = self.read(response).await?;
        Err(self.unreachable(io::Error::other(format!("an answer that is no stream: {says}"))))
    }

    pub(super) fn unreachable(&self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Failed {
        Failed::Unreachable { place: self.place.clone(), source: source.into() }
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Value, Failed> {
        let status = response.status();
        let body = timeout(LIMIT, response.into_body().collect()).await.map_err(|late| self.unreachable(late))?;
        let body = body.map_err(|error| self.unreachable(error))?.to_bytes();
        let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
        let says = serde_json::from_slice(&body).unwrap_or_else(|_| text());
        if status.is_success() { Ok(says) } else { Err(Failed::Refused { status, says }) }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        headers: &[(&'static str, &'static str)],
    ) -> Result<Response<Incoming>, Failed> {
        let asked = async {
            match &self.place {
                Place::Socket(path_of) => {
                    let stream = UnixStream::connect(path_of).await?;
                    exchange(stream, self.request(method, path, "localhost", body, headers)?).await
                }
                Place::Address(address) => {
                    let (stream, peer) = connect(address).await?;
                    exchange(stream, self.request(method, path, &peer.to_string(), body, headers)?).await
                }
            }
        };
        match timeout(LIMIT, asked).await {
            Ok(answer) => answer.map_err(|source| Failed::Unreachable { place: self.place.clone(), source }),
            Err(late) => Err(self.unreachable(late)),
        }
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        host: &str,
        body: Option<&Value>,
        headers: &[(&'static str, &'static str)],
    ) -> Result<Request<Full<Bytes>>, http::Error> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, host);
        if let Some(token) = &self.token {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.reveal()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match body {
            Some(body) => {
                request.header(CONTENT_TYPE, "application/json").body(Full::new(body.to_string().into_bytes().into()))
            }
            None => request.body(Full::default()),
        }
    }
}

/// A connection to the first address of a name that takes one. What listens on every address listens on loopback; and the
/// address is what the admin address wants for a `Host`.
async fn connect(address: &str) -> io::Result<(TcpStream, SocketAddr)> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in lookup_host(address).await? {
        let address = reachable(address);
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok((stream, address)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, Box<dyn Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Drives the connection for as long as the answer lasts; an error ends the answer, where it is seen.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender.send_request(request).await?)
}

/// A part of a path, with percents for what would end it.
pub(super) fn encoded(part: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte);
    part.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_paths() {
        assert_eq!(encoded("10.0.0.1:9001"), "10.0.0.1:9001");
        assert_eq!(encoded("[::1]:80/é"), "%5B::1%5D:80%2F%C3%A9");
    }

    #[test]
    fn refusals_in_words() {
        let says = serde_json::json!({ "error": "unknown upstream \"user\"", "did_you_mean": "users" });
        let failed = Failed::Refused { status: StatusCode::NOT_FOUND, says };
        assert_eq!(failed.to_string(), "unknown upstream \"user\"; did you mean \"users\"?");
        let failed = Failed::Refused { status: StatusCode::BAD_GATEWAY, says: Value::String("<html>".into()) };
        assert_eq!(failed.to_string(), "refused with 502 Bad Gateway");
    }
}
