//! `isobar healthcheck`: asks a running isobar whether it is ready.
//!
//! For a container's health check, so that the image needs no curl.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::time::timeout;

use super::admin_address::AdminAddress;
use crate::http_client::{Fetch, FetchError, FetchLimits};

/// From the connection to the end of the answer: below the three seconds that an orchestrator usually waits.
const LIMITS: FetchLimits = FetchLimits { time: Duration::from_secs(2), body: 64 << 10 };

/// Asks `/readyz`. An address may be written as in `lb.toml`: `0.0.0.0:9900` is asked on loopback.
///
/// # Errors
/// When there is no answer within two seconds, or it is not 200.
pub fn run(place: &AdminAddress) -> Result<(), NotReady> {
    let unreachable = |error| NotReady::Unreachable { place: place.clone(), error };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| unreachable(error.into()))?;
    let answer = runtime.block_on(async { timeout(LIMITS.time, ask(place)).await });
    // A look-up of a name that hangs is not waited for.
    runtime.shutdown_background();
    let late = || FetchError::Late(LIMITS.time).into();
    let answer = answer.unwrap_or_else(|_| Err(late())).map_err(unreachable)?;
    match answer.status() {
        StatusCode::OK => Ok(()),
        _ => Err(NotReady::Says(String::from_utf8_lossy(answer.body()).trim().into())),
    }
}

/// Tries each address of a name.
async fn ask(place: &AdminAddress) -> Result<Response<Bytes>, Box<dyn Error + Send + Sync>> {
    let mut last: Box<dyn Error + Send + Sync> = io::Error::from(io::ErrorKind::NotFound).into();
    for (to, host) in place.ways().await? {
        let request = Request::get(format!("http://{host}/readyz")).header(HOST, host).header(CONNECTION, "close");
        match Fetch::new(to, LIMITS).whole(request.body(Full::default())?).await {
            Err(error @ FetchError::Connect(_)) => last = error.into(),
            answer => return Ok(answer?),
        }
    }
    Err(last)
}

/// Why isobar is not ready, as far as can be told.
#[derive(Debug)]
pub enum NotReady {
    /// It did not answer.
    Unreachable {
        /// Where it was asked.
        place: AdminAddress,
        /// Why not.
        error: Box<dyn Error + Send + Sync>,
    },
    /// It says so.
    Says(String),
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { place, .. } => write!(f, "could not ask {place}"),
            // What answers may be anything that listens there.
            Self::Says(why) => write!(f, "{}", why.escape_debug()),
        }
    }
}

impl Error for NotReady {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unreachable { error, .. } => Some(&**error),
            Self::Says(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::thread;
    use std::time::Instant;

    use super::*;

    /// Answers one connection with `answer`, then keeps it open for a while.
    fn answering(answer: &'static str, stays: Duration) -> AdminAddress {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend_from_slice(&byte);
            }
            assert!(request.starts_with(b"GET /readyz HTTP/1.1\r\nhost: 127.0.0.1:"));
            stream.write_all(answer.as_bytes()).unwrap();
            thread::sleep(stays);
        });
        AdminAddress::Address(address)
    }

    #[test]
    fn ready() {
        run(&answering("HTTP/1.1 200 OK\r\n\r\nok\n", Duration::ZERO)).unwrap();
    }

    #[test]
    fn not_ready_says_why() {
        let admin = answering("HTTP/1.1 503 Service Unavailable\r\n\r\nnot ready: stopping\n", Duration::ZERO);
        assert_eq!(run(&admin).unwrap_err().to_string(), "not ready: stopping");
    }

    #[test]
    fn something_else_is_not_ready() {
        assert!(run(&answering("SSH-2.0-OpenSSH\r\n", Duration::ZERO)).is_err());
        assert!(run(&answering("", Duration::ZERO)).is_err());
        assert!(run(&AdminAddress::parse("not an address")).is_err());
    }

    #[test]
    fn nobody_there() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        assert!(matches!(run(&AdminAddress::Address(address)), Err(NotReady::Unreachable { .. })));
    }

    #[test]
    fn a_socket_is_asked_too() {
        let path = std::env::temp_dir().join(format!("isobar-healthcheck-{}.sock", std::process::id()));
        let place = AdminAddress::Socket(path.clone());
        let error = run(&place).unwrap_err();
        assert_eq!(error.to_string(), format!("could not ask unix:{}", path.display()));
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 64];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nok\n").unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        run(&place).unwrap();
        assert!(server.join().unwrap().starts_with("GET /readyz HTTP/1.1\r\nhost: localhost\r\n"));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn silence_is_not_waited_for() {
        let begun = Instant::now();
        assert!(run(&answering("", Duration::from_secs(10))).is_err());
        assert!(begun.elapsed() < LIMITS.time * 2);
    }
}
