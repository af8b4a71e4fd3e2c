//! What sources that are asked over HTTP have in common.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::DiscoveryError;
use crate::config::HttpUrl;
use crate::http_client::{Fetch, FetchLimits, To, Trust};

/// Bytes of a PEM file.
const PEM_BYTES_MAX: usize = 1024 * 1024;

/// The files that TLS to a server needs.
#[derive(Clone, Debug, Default)]
pub(super) struct TlsFiles {
    /// The authorities; those of the system where there is none.
    pub(super) ca: Option<PathBuf>,
    /// The certificate to be shown, and its key.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
}

/// A server that is asked. Its client is made when it is first needed, and made anew after a failure: the file of its authority may be
/// another by then.
#[derive(Debug)]
pub(super) struct Server {
    at: At,
    bytes_max: usize,
    tls: TlsFiles,
    client: Option<Fetch>,
    /// The authorities while they are read.
    trust: Aside<Trust>,
}

/// Where a server is.
#[derive(Debug)]
enum At {
    Url(HttpUrl),
    Socket(PathBuf),
}

impl Server {
    pub(super) fn new(url: HttpUrl, bytes_max: usize, tls: TlsFiles) -> Self {
        Self { at: At::Url(url), bytes_max, tls, client: None, trust: Aside::new() }
    }

    /// One behind a Unix socket.
    pub(super) fn at_socket(path: PathBuf, bytes_max: usize) -> Self {
        Self { at: At::Socket(path), bytes_max, tls: TlsFiles::default(), client: None, trust: Aside::new() }
    }

    /// Asks, and reads an answer within `time`.
    pub(super) async fn ask(
        &mut self,
        request: Request<Full<Bytes>>,
        time: Duration,
    ) -> Result<Response<Bytes>, DiscoveryError> {
        let client = self.client(time).await?;
        let answer = client.whole_within(request, time).await;
        if answer.is_err() {
            self.client = None;
        }
        Ok(answer?)
    }

    /// Asks, and gives the answer once its head has come, within `time`: it goes on.
    pub(super) async fn begin(
        &mut self,
        request: Request<Full<Bytes>>,
        time: Duration,
    ) -> Result<Response<Incoming>, DiscoveryError> {
        let answer = self.client(time).await?.begin(request).await;
        if answer.is_err() {
            self.client = None;
        }
        Ok(answer?)
    }

    async fn client(&mut self, time: Duration) -> Result<Fetch, DiscoveryError> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let to = self.to(time).await?;
        let limits = FetchLimits { time, body: self.bytes_max };
        Ok(self.client.insert(Fetch::new(to, limits)).clone())
    }

    /// Where it is, for what makes a connection of its own.
    pub(super) async fn to(&mut self, time: Duration) -> Result<To, DiscoveryError> {
        let (host, port, is_tls) = match &self.at {
            At::Url(url) => (Arc::clone(&url.host), url.port, url.tls),
            At::Socket(path) => return Ok(To::Socket(path.clone())),
        };
        let tls = match is_tls {
            true => {
                let files = self.tls.clone();
                Some(self.trust.within(time, move || trust(&files)).await?)
            }
            false => None,
        };
        Ok(To::Server { host, port, tls })
    }

    /// Host and port as a `Host` header has them.
    pub(super) fn authority(&self) -> String {
        match &self.at {
            At::Url(url) => url.authority(),
            At::Socket(_) => "localhost".into(),
        }
    }
}

/// Work that may hang, such as reading files, on a thread of its own, and never twice at a time: what hangs keeps a thread.
#[derive(Debug)]
pub(super) struct Aside<T>(Option<JoinHandle<Result<T, DiscoveryError>>>);

impl<T: Send + 'static> Aside<T> {
    pub(super) fn new() -> Self {
        Self(None)
    }

    /// What the work comes to, if that is within `time`; that of one before which was late, where it is still to come.
    pub(super) async fn within(
        &mut self,
        time: Duration,
        work: impl FnOnce() -> Result<T, DiscoveryError> + Send + 'static,
    ) -> Result<T, DiscoveryError> {
        let running = self.0.get_or_insert_with(|| tokio::task::spawn_blocking(work));
        let late = |_| DiscoveryError::new(format!("its files could not be read within {time:?}"));
        let done = timeout(time, running).await.map_err(late)?;
        self.0 = None;
        done?
    }
}

fn trust(files: &TlsFiles) -> Result<Trust, DiscoveryError> {
    let pem = |path: &Path| {
        super::file::bytes(path, PEM_BYTES_MAX)
            .map_err(|error| DiscoveryError::new(format!("{}: {error}", path.display())))
    };
    let ca = files.ca.as_deref().map(pem).transpose()?;
    let identity = match &files.identity {
        Some((certificate, key)) => Some((pem(certificate)?, pem(key)?)),
        None => None,
    };
    let identity = identity.as_ref().map(|(certificate, key)| (&certificate[..], &key[..]));
    Trust::with_identity(ca.as_deref(), identity).map_err(|error| match &files.ca {
        Some(path) => DiscoveryError::new(format!("{}: {error}", path.display())),
        None => error.into(),
    })
}

/// The error that an answer with another status than the expected ones is.
pub(super) fn refusal(status: StatusCode, body: &[u8]) -> DiscoveryError {
    /// Characters of the body that are told.
    const LONGEST: usize = 120;
    let text = String::from_utf8_lossy(body.get(..4 * LONGEST).unwrap_or(body));
    let line = text.lines().next().unwrap_or_default().trim();
    let shown: String = line.chars().filter(|c| !c.is_control()).take(LONGEST).collect();
    let said = if shown.is_empty() { String::new() } else { format!(": {shown}") };
    DiscoveryError::new(format!("it answered {}{said}", status.as_u16()))
}

/// A text within a URL's path or query.
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_in_a_url_is_one_part_of_it() {
        assert_eq!(encoded("users-1.a_b~"), "users-1.a_b~");
        assert_eq!(encoded("a/b c?d=é&\"%"), "a%2Fb%20c%3Fd%3D%C3%A9%26%22%25");
    }

    #[test]
    fn a_refusal_tells_one_short_line_of_the_body() {
        let told = |body: &str| refusal(StatusCode::FORBIDDEN, body.as_bytes()).to_string();
        assert_eq!(told(""), "it answered 403");
        assert_eq!(told("Permission denied\r\nmore"), "it answered 403: Permission denied");
        assert!(told(&"é".repeat(10_000)).chars().count() < 160);
        assert_eq!(told("\x1b[31mred"), "it answered 403: [31mred");
    }
}
