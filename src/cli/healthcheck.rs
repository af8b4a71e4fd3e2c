//! `isobar healthcheck`: asks a running isobar whether it is ready.
//!
//! For a container's health check, so that the image needs no curl. Blocking, with nothing but the standard library: it runs
//! every few seconds beside the process it asks after.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Where isobar is asked unless another address is given.
pub const ADMIN_DEFAULT: &str = "127.0.0.1:9900";

/// From the connection to the end of the answer: below the three seconds that an orchestrator usually waits.
const LIMIT: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Asks `/readyz` at the admin address, which may be written as in `lb.toml`: `0.0.0.0:9900` is asked on loopback.
///
/// # Errors
/// When there is no answer within two seconds, or it is not 200.
pub fn run(admin: &str) -> Result<(), NotReady> {
    let unreachable = |error| NotReady::Unreachable { admin: admin.into(), error };
    let answer = ask(admin).map_err(unreachable)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let mut status_line = head.lines().next().unwrap_or_default().splitn(3, ' ');
    match (status_line.next(), status_line.next()) {
        (Some(version), Some("200")) if version.starts_with("HTTP/1.") => Ok(()),
        (Some(version), Some(_)) if version.starts_with("HTTP/1.") => Err(NotReady::Says(body.trim().into())),
        _ => Err(unreachable(io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"))),
    }
}

/// Why isobar is not ready, as far as can be told.
#[derive(Debug)]
pub enum NotReady {
    /// It did not answer.
    Unreachable {
        /// Where it was asked.
        admin: String,
        /// Why not.
        error: io::Error,
    },
    /// It says so.
    Says(String),
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { admin, .. } => write!(f, "could not ask {admin}"),
            // What answers may be anything that listens there.
            Self::Says(why) => write!(f, "{}", why.escape_debug()),
        }
    }
}

impl std::error::Error for NotReady {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreachable { error, .. } => Some(error),
            Self::Says(_) => None,
        }
    }
}

fn ask(admin: &str) -> io::Result<String> {
    let deadline = Instant::now() + LIMIT;
    let mut stream = connect(admin, deadline)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    let address = stream.peer_addr()?;
    // In one write: `write!` would send each piece on its own.
    stream.write_all(format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 512];
    // A read timeout starts anew with each byte, so each read gets what is left of the whole.
    while (answer.len() as u64) < ANSWER_BYTES_MAX {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut buffer)? {
            0 => break,
            n => answer.extend_from_slice(&buffer[..n]),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Tries each address of a name.
fn connect(admin: &str, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in admin.to_socket_addrs()? {
        match TcpStream::connect_timeout(&reachable(address), left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What listens on every address listens on loopback.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Answers one connection with `answer`, then keeps it open for a while.
    fn answering(answer: &'static str, stays: Duration) -> String {
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
        address
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
        assert!(run("not an address").is_err());
    }

    #[test]
    fn nobody_there() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        assert!(matches!(run(&address), Err(NotReady::Unreachable { .. })));
    }

    #[test]
    fn silence_is_not_waited_for() {
        let begun = Instant::now();
        assert!(run(&answering("", Duration::from_secs(10))).is_err());
        assert!(begun.elapsed() < LIMIT * 2);
    }

    #[test]
    fn an_address_for_all_is_asked_on_loopback() {
        for (written, asked) in
            [("0.0.0.0:9900", "127.0.0.1:9900"), ("[::]:9900", "[::1]:9900"), ("10.0.0.1:1", "10.0.0.1:1")]
        {
            assert_eq!(reachable(written.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
