//! One request to the admin address, over TCP or the Unix socket.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::timeout;

use crate::cli::admin_address::AdminAddress;
use crate::config::Secret;
use crate::http_client::{Fetch, FetchError, FetchLimits};

/// A reload may take its time. Of ten thousand backends there are some fifteen megabytes to say.
const LIMITS: FetchLimits = FetchLimits { time: Duration::from_secs(30), body: 64 << 20 };

/// The admin address to ask, and the token for it.
#[derive(Debug)]
pub(super) struct AdminClient {
    pub(super) place: AdminAddress,
    pub(super) token: Option<Secret>,
    /// Why it is asked there, where that is a guess.
    pub(super) guess: Option<String>,
}

/// Why there is no good answer.
#[derive(Debug)]
pub(super) enum AdminCallError {
    /// There is no answer, or not one of isobar.
    Unreachable {
        /// Where.
        place: AdminAddress,
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

impl fmt::Display for AdminCallError {
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

impl Error for AdminCallError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unreachable { source, .. } => Some(&**source),
            Self::Refused { .. } | Self::TimedOut(_) | Self::Command(_) => None,
        }
    }
}

impl AdminClient {
    /// Asks, and reads the whole answer as JSON; of text, as a text.
    pub(super) async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, AdminCallError> {
        let (response, fetch) = self.send(method, path, body, &[]).await?;
        self.read(response, &fetch).await
    }

    /// Asks for an answer that goes on; one that refuses is read.
    pub(super) async fn listen(
        &self,
        path: &str,
        headers: &[(&'static str, &'static str)],
    ) -> Result<Incoming, AdminCallError> {
        let (response, fetch) = self.send("GET", path, None, headers).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let says = self.read(response, &fetch).await?;
        Err(self.unreachable(io::Error::other(format!("an answer that is no stream: {says}"))))
    }

    pub(super) fn unreachable(&self, source: impl Into<Box<dyn Error + Send + Sync>>) -> AdminCallError {
        AdminCallError::Unreachable { place: self.place.clone(), source: source.into() }
    }

    async fn read(&self, response: Response<Incoming>, fetch: &Fetch) -> Result<Value, AdminCallError> {
        let (head, body) = fetch.read(response).await.map_err(|error| self.unreachable(error))?.into_parts();
        let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
        let says = serde_json::from_slice(&body).unwrap_or_else(|_| text());
        let status = head.status;
        if status.is_success() { Ok(says) } else { Err(AdminCallError::Refused { status, says }) }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        headers: &[(&'static str, &'static str)],
    ) -> Result<(Response<Incoming>, Fetch), AdminCallError> {
        let ways = timeout(LIMITS.time, self.place.ways()).await.map_err(|late| self.unreachable(late))?;
        let mut last = None;
        for (to, host) in ways.map_err(|error| self.unreachable(error))? {
            let request = self.request(method, path, &host, body, headers).map_err(|error| self.unreachable(error))?;
            let fetch = Fetch::new(to, LIMITS);
            match fetch.begin(request).await {
                Ok(response) => return Ok((response, fetch)),
                // The next address of the name.
                Err(error @ FetchError::Connect(_)) => last = Some(error),
                Err(error) => return Err(self.unreachable(error)),
            }
        }
        Err(match last {
            Some(error) => self.unreachable(error),
            None => self.unreachable("the name has no address"),
        })
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        host: &str,
        body: Option<&Value>,
        headers: &[(&'static str, &'static str)],
    ) -> Result<Request<Full<Bytes>>, http::Error> {
        let mut request = Request::builder().method(method).uri(format!("http://{host}{path}")).header(HOST, host);
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
        let failed = AdminCallError::Refused { status: StatusCode::NOT_FOUND, says };
        assert_eq!(failed.to_string(), "unknown upstream \"user\"; did you mean \"users\"?");
        let failed = AdminCallError::Refused { status: StatusCode::BAD_GATEWAY, says: Value::String("<html>".into()) };
        assert_eq!(failed.to_string(), "refused with 502 Bad Gateway");
    }
}
