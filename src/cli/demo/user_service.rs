//! The microservice that the balancer is for: users by number, as JSON.
//!
//! `GET /users/{id}`, `GET /users`, `GET /health`. Each response names the instance that made it in `x-instance`.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{HeaderName, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Which instance made a response.
pub const INSTANCE: HeaderName = HeaderName::from_static("x-instance");

/// How long responses may go on once the service is told to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);

const USERS: [User; 2] = [User { id: 1, name: "Alice" }, User { id: 2, name: "Bob" }];

/// An instance of the service, bound.
#[derive(Debug)]
pub struct UserService {
    listener: TcpListener,
    behaviour: Arc<Behaviour>,
}

/// How an instance behaves.
#[derive(Clone, Debug, PartialEq)]
pub struct UserServiceOptions {
    /// Its name, for `x-instance`.
    pub name: String,
    /// Added to each response for users.
    pub latency: Duration,
    /// The share of requests for users that are answered 500: 0 to 1.
    pub fail_rate: f64,
}

#[derive(Debug)]
struct Behaviour {
    instance: HeaderValue,
    latency: Duration,
    fail_rate: f64,
    asked: AtomicU64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct User {
    id: u64,
    name: &'static str,
}

#[derive(Serialize)]
struct FailureBody<'a> {
    error: &'a str,
}

/// Options that no service can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadOptions {
    /// The name cannot stand in a header.
    Name,
    /// The share is not between 0 and 1.
    FailRate,
}

impl fmt::Display for BadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "the name of an instance must be visible ASCII",
            Self::FailRate => "the share of failures must be between 0 and 1",
        })
    }
}

impl std::error::Error for BadOptions {}

impl UserService {
    /// Binds an instance. Inside a runtime only.
    ///
    /// # Errors
    /// When the address cannot be bound, or the options make no sense.
    pub async fn bind(address: SocketAddr, options: UserServiceOptions) -> io::Result<Self> {
        let behaviour = Behaviour::new(options).map_err(|bad| io::Error::new(io::ErrorKind::InvalidInput, bad))?;
        Ok(Self { listener: TcpListener::bind(address).await?, behaviour: Arc::new(behaviour) })
    }

    /// Where it is bound, with the port that was taken for 0.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stop`, then lets the requests under way end and returns.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let (stopping, stopped) = watch::channel(());
        let mut connections = JoinSet::new();
        let mut stop = pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, Arc::clone(&self.behaviour), stopped.clone()));
                }
                // Mostly for want of file descriptors, which come back as connections end.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        drop(self.listener);
        drop(stopping);
        // Whatever is left after the limit is aborted with the set.
        let _ = tokio::time::timeout(STOP_LIMIT, async { while connections.join_next().await.is_some() {} }).await;
    }
}

async fn serve_connection(stream: TcpStream, behaviour: Arc<Behaviour>, mut stopped: watch::Receiver<()>) {
    // Small answers, sent at once; without this the second on a connection may wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| respond(&behaviour, request));
    let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        // The sender is dropped at the stop.
        _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
    }
    // A client that went away is no error of the service's.
    let _ = connection.await;
}

async fn respond<B>(behaviour: &Behaviour, request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path();
    let mut response = if path == "/health" {
        json(StatusCode::OK, &serde_json::json!({ "status": "ok" }))
    } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = failure(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        response
    } else if path == "/users" || path.starts_with("/users/") {
        if !behaviour.latency.is_zero() {
            tokio::time::sleep(behaviour.latency).await;
        }
        if behaviour.fails(behaviour.asked.fetch_add(1, Relaxed)) {
            failure(StatusCode::INTERNAL_SERVER_ERROR, "failing on purpose")
        } else {
            users(path)
        }
    } else {
        failure(StatusCode::NOT_FOUND, "no such page")
    };
    response.headers_mut().insert(INSTANCE, behaviour.instance.clone());
    Ok(response)
}

fn users(path: &str) -> Response<Full<Bytes>> {
    let Some(id) = path.strip_prefix("/users/").filter(|id| !id.is_empty()) else {
        return json(StatusCode::OK, &USERS);
    };
    // `parse` alone would take "+1".
    let number = id.bytes().all(|byte| byte.is_ascii_digit()).then(|| id.parse::<u64>().ok()).flatten();
    let Some(number) = number else {
        return failure(StatusCode::BAD_REQUEST, "a user's id is a number");
    };
    match USERS.iter().find(|user| user.id == number) {
        Some(user) => json(StatusCode::OK, user),
        None => failure(StatusCode::NOT_FOUND, "no such user"),
    }
}

impl Behaviour {
    fn new(options: UserServiceOptions) -> Result<Self, BadOptions> {
        let UserServiceOptions { name, latency, fail_rate } = options;
        let instance = HeaderValue::from_str(&name).map_err(|_| BadOptions::Name)?;
        if !(0.0..=1.0).contains(&fail_rate) {
            return Err(BadOptions::FailRate);
        }
        Ok(Self { instance, latency, fail_rate, asked: AtomicU64::new(0) })
    }

    /// Spread evenly rather than by chance, so that a few requests show the share already.
    fn fails(&self, nth: u64) -> bool {
        let failed_before = |n: u64| (n as f64 * self.fail_rate) as u64;
        failed_before(nth + 1) > failed_before(nth)
    }
}

fn failure(status: StatusCode, error: &str) -> Response<Full<Bytes>> {
    json(status, &FailureBody { error })
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    // These are numbers and texts, which can always be written.
    let body = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    fn options() -> UserServiceOptions {
        UserServiceOptions { name: "one".into(), latency: Duration::ZERO, fail_rate: 0.0 }
    }

    async fn start(options: UserServiceOptions) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
        let service = UserService::bind(([127, 0, 0, 1], 0).into(), options).await.unwrap();
        let address = service.address().unwrap();
        let (stop, stopped) = oneshot::channel();
        (address, stop, tokio::spawn(service.serve(async { drop(stopped.await) })))
    }

    /// The whole of what is answered on a connection of its own.
    async fn ask(address: SocketAddr, line: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nhost: users\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn users_are_found_by_number() {
        let (address, _stop, _) = start(options()).await;
        for (line, status, body) in [
            ("GET /users/1", "200 OK", r#"{"id":1,"name":"Alice"}"#),
            ("GET /users/2", "200 OK", r#"{"id":2,"name":"Bob"}"#),
            ("GET /users/2?verbose=1", "200 OK", r#"{"id":2,"name":"Bob"}"#),
            ("GET /users", "200 OK", r#"[{"id":1,"name":"Alice"},{"id":2,"name":"Bob"}]"#),
            ("GET /users/3", "404 Not Found", r#"{"error":"no such user"}"#),
            ("GET /users/x", "400 Bad Request", r#"{"error":"a user's id is a number"}"#),
            ("GET /users/+1", "400 Bad Request", r#"{"error":"a user's id is a number"}"#),
            ("GET /users/99999999999999999999", "400 Bad Request", r#"{"error":"a user's id is a number"}"#),
            ("GET /health", "200 OK", r#"{"status":"ok"}"#),
            ("GET /", "404 Not Found", r#"{"error":"no such page"}"#),
            ("HEAD /users/1", "200 OK", ""),
            ("DELETE /users/1", "405 Method Not Allowed", r#"{"error":"only GET and HEAD are allowed"}"#),
        ] {
            let answer = ask(address, line).await;
            let (head, found) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{line}: {head}");
            assert!(head.contains("\r\nx-instance: one\r\n"), "{line}: {head}");
            assert!(head.contains("\r\ncontent-type: application/json\r\n"), "{line}: {head}");
            assert_eq!(found, body, "{line}");
        }
    }

    #[tokio::test]
    async fn a_share_fails_and_health_does_not() {
        let (address, _stop, _) = start(UserServiceOptions { fail_rate: 0.25, ..options() }).await;
        let mut failed = Vec::new();
        for n in 0..8 {
            if ask(address, "GET /users/1").await.starts_with("HTTP/1.1 500") {
                failed.push(n);
            }
            assert!(ask(address, "GET /health").await.starts_with("HTTP/1.1 200"));
        }
        assert_eq!(failed, [3, 7]);
    }

    #[tokio::test]
    async fn a_stop_lets_requests_end_and_cuts_idle_connections() {
        let (address, stop, task) =
            start(UserServiceOptions { latency: Duration::from_millis(200), ..options() }).await;
        let _idle = TcpStream::connect(address).await.unwrap();
        let asked = tokio::spawn(async move { ask(address, "GET /users/1").await });
        tokio::time::sleep(Duration::from_millis(80)).await;
        let stopped = Instant::now();
        drop(stop);
        assert!(asked.await.unwrap().ends_with("Alice\"}"));
        task.await.unwrap();
        assert!(stopped.elapsed() < STOP_LIMIT / 2, "{:?}", stopped.elapsed());
        // Asked by binding: a connection would disturb another test that has been given the port in the meantime.
        assert!(TcpListener::bind(address).await.is_ok());
    }

    #[tokio::test]
    async fn options_that_make_no_sense_are_refused() {
        for bad in [
            UserServiceOptions { name: "a\nb".into(), ..options() },
            UserServiceOptions { fail_rate: 1.5, ..options() },
            UserServiceOptions { fail_rate: f64::NAN, ..options() },
        ] {
            assert!(UserService::bind(([127, 0, 0, 1], 0).into(), bad.clone()).await.is_err(), "{bad:?}");
        }
    }
}
