//! HTTP that isobar speaks by itself, outside of the way of requests: `isobar ctl`, `isobar healthcheck`, and sources of backends do.
//!
//! One client for all of it, hyper-util's, which keeps connections and knows when a request may be sent once more on another. What is
//! added here are bounds on time and size, TLS, and Unix sockets. Health checks of backends have rules of their own
//! ([`health`](crate::health)): each has a connection of its own, in the manner of its upstream.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use tokio::time::{Instant, timeout_at};

mod connect;
mod tls;

pub use connect::{To, open};
pub use tls::{NoTrust, Trust};

use connect::Connector;

/// Asks one server. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Fetch {
    client: legacy::Client<Connector, Full<Bytes>>,
    limits: FetchLimits,
}

/// What an answer may take.
#[derive(Clone, Copy, Debug)]
pub struct FetchLimits {
    /// From the connection to the head of the answer, and for [`Fetch::whole`] to its end.
    pub time: Duration,
    /// Bytes of the body that [`Fetch::whole`] reads.
    pub body: usize,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum FetchError {
    /// No connection could be made: nothing was sent.
    Connect(legacy::Error),
    /// The connection broke, or brought something that is no answer.
    Broken(Box<dyn Error + Send + Sync>),
    /// It took longer than this.
    Late(Duration),
    /// Its body is longer than this.
    Long(usize),
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(_) => f.write_str("could not connect"),
            Self::Broken(_) => f.write_str("no answer"),
            Self::Late(limit) => write!(f, "no answer within {limit:?}"),
            Self::Long(limit) => write!(f, "the answer is longer than {limit} bytes"),
        }
    }
}

impl Error for FetchError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            // What it says itself is said here.
            Self::Connect(error) => error.source(),
            Self::Broken(error) => Some(&**error),
            Self::Late(_) | Self::Long(_) => None,
        }
    }
}

impl Fetch {
    /// Asks `to`, within these limits.
    pub fn new(to: To, limits: FetchLimits) -> Self {
        let client = legacy::Client::builder(TokioExecutor::new()).build(Connector::new(to));
        Self { client, limits }
    }

    /// Asks, and gives the answer when its head has come. Its body is bounded by nothing: it is for answers that go on.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn begin(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, FetchError> {
        self.begin_by(request, Instant::now() + self.limits.time).await
    }

    /// Asks, and reads the whole answer.
    ///
    /// # Errors
    /// When it has not come in time, or is too long.
    pub async fn whole(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, FetchError> {
        self.whole_within(request, self.limits.time).await
    }

    /// The same within another time, for a server that holds requests until it has something to say.
    ///
    /// # Errors
    /// When it has not come in time, or is too long.
    pub async fn whole_within(
        &self,
        request: Request<Full<Bytes>>,
        time: Duration,
    ) -> Result<Response<Bytes>, FetchError> {
        let deadline = Instant::now() + time;
        let late = |error| match error {
            FetchError::Late(_) => FetchError::Late(time),
            error => error,
        };
        let response = self.begin_by(request, deadline).await.map_err(late)?;
        self.read_by(response, deadline).await.map_err(late)
    }

    /// Reads the rest of an answer that has begun.
    ///
    /// # Errors
    /// When it has not come in time, or is too long.
    pub async fn read(&self, response: Response<Incoming>) -> Result<Response<Bytes>, FetchError> {
        self.read_by(response, Instant::now() + self.limits.time).await
    }

    async fn begin_by(
        &self,
        request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Result<Response<Incoming>, FetchError> {
        // A connection that was kept may be closed by the server at the moment that a request goes there (RFC 9110, 9.2.2).
        let again = request.method().is_idempotent().then(|| request.clone());
        let mut answer = timeout_at(deadline, self.client.request(request)).await;
        if let (Ok(Err(error)), Some(again)) = (&answer, again)
            && !error.is_connect()
        {
            answer = timeout_at(deadline, self.client.request(again)).await;
        }
        answer.map_err(|_| FetchError::Late(self.limits.time))?.map_err(|error| match error.is_connect() {
            true => FetchError::Connect(error),
            false => FetchError::Broken(error.into()),
        })
    }

    async fn read_by(&self, response: Response<Incoming>, deadline: Instant) -> Result<Response<Bytes>, FetchError> {
        let (head, body) = response.into_parts();
        let read = timeout_at(deadline, Limited::new(body, self.limits.body).collect()).await;
        let body = read.map_err(|_| FetchError::Late(self.limits.time))?.map_err(|error| {
            match error.is::<LengthLimitError>() {
                true => FetchError::Long(self.limits.body),
                false => FetchError::Broken(error),
            }
        })?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UnixListener};

    use super::*;

    const LIMITS: FetchLimits = FetchLimits { time: Duration::from_secs(5), body: 16 };

    fn get(at: &str) -> Request<Full<Bytes>> {
        Request::get(format!("http://{at}/")).body(Full::default()).unwrap()
    }

    /// Reads a request and writes `answer`, again and again; says how often it was connected to.
    async fn answering(answer: &'static str) -> (To, String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let connected = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connected);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, SeqCst);
                tokio::spawn(async move {
                    let mut buffer = [0; 1024];
                    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        (To::Address(at), at.to_string(), connected)
    }

    #[tokio::test]
    async fn a_connection_serves_more_than_one_request() {
        let (to, at, connected) = answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        let fetch = Fetch::new(to, LIMITS);
        for _ in 0..3 {
            assert_eq!(fetch.whole(get(&at)).await.unwrap().into_body(), "ok");
        }
        assert_eq!(connected.load(SeqCst), 1);
    }

    /// A server that closes each connection after its first answer, when the second request comes.
    #[tokio::test]
    async fn a_kept_connection_that_is_closed_costs_a_get_nothing_and_a_post_its_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 1024];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                let _ = stream.read(&mut buffer).await;
            }
        });
        let fetch = Fetch::new(To::Address(at), LIMITS);
        for _ in 0..4 {
            assert_eq!(fetch.whole(get(&at.to_string())).await.unwrap().into_body(), "ok");
        }
        let post = Request::post(format!("http://{at}/")).body(Full::from("once")).unwrap();
        assert!(matches!(fetch.whole(post).await, Err(FetchError::Broken(_))));
    }

    #[tokio::test]
    async fn an_answer_is_bounded_in_size_and_time() {
        let (to, at, _) = answering("HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n0123456789abcdefg").await;
        let long = Fetch::new(to, LIMITS).whole(get(&at)).await;
        assert_eq!(long.unwrap_err().to_string(), "the answer is longer than 16 bytes");
        for silent in ["", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n01"] {
            let (to, at, _) = answering(silent).await;
            let fetch = Fetch::new(to, FetchLimits { time: Duration::from_millis(50), ..LIMITS });
            assert_eq!(fetch.whole(get(&at)).await.unwrap_err().to_string(), "no answer within 50ms");
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_is_told_apart_from_nobody_there() {
        let (to, at, _) = answering("SSH-2.0-OpenSSH\r\n").await;
        assert!(matches!(Fetch::new(to, LIMITS).whole(get(&at)).await, Err(FetchError::Broken(_))));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        drop(listener);
        let refused = Fetch::new(To::Address(at), LIMITS).whole(get(&at.to_string())).await.unwrap_err();
        assert!(matches!(refused, FetchError::Connect(_)));
        assert!(refused.source().unwrap().to_string().contains("refused"), "{:?}", refused.source());
    }

    #[tokio::test]
    async fn a_unix_socket_is_asked_like_an_address() {
        let path = std::env::temp_dir().join(format!("isobar-fetch-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(buffer[..read].starts_with(b"GET / HTTP/1.1\r\nhost: localhost\r\n"));
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        });
        let fetch = Fetch::new(To::Socket(path.clone()), LIMITS);
        let answer = fetch.whole(get("localhost")).await;
        std::fs::remove_file(path).unwrap();
        assert_eq!(answer.unwrap().into_body(), "ok");
    }
}
