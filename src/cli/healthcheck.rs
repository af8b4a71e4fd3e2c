//! `isobar healthcheck`: asks a running isobar whether it is ready.
//!
//! For a container's health check, so that the image needs no curl. Blocking, with nothing but the standard library: it runs
//! every few seconds beside the process it asks after.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::place::{Place, connect_socket, reachable};

/// From the connection to the end of the answer: below the three seconds that an orchestrator usually waits.
const LIMIT: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Asks `/readyz`. An address may be written as in `lb.toml`: `0.0.0.0:9900` is asked on loopback.
///
/// # Errors
/// When there is no answer within two seconds, or it is not 200.
pub fn run(place: &Place) -> Result<(), NotReady> {
    let unreachable = |error| NotReady::Unreachable { place: place.clone(), error };
    let deadline = Instant::now() + LIMIT;
    let answer = match place {
        Place::Address(address) => connect(address, deadline).and_then(|stream| {
            let host = stream.peer_addr()?.to_string();
            ask(stream, &host, deadline)
        }),
        Place::Socket(path) => connect_socket(path, LIMIT).and_then(|stream| ask(stream, "localhost", deadline)),
    };
    let answer = answer.map_err(unreachable)?;
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
        place: Place,
        /// Why not.
        error: io::Error,
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

impl std::error::Error for NotReady {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreachable { error, .. } => Some(error),
            Self::Says(_) => None,
        }
    }
}

/// A connection whose reads and writes can be given a time.
trait Timed: Read + Write {
    fn give(&self, time: Duration) -> io::Result<()>;
}

impl Timed for TcpStream {
    fn give(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

impl Timed for UnixStream {
    fn give(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

fn ask(mut stream: impl Timed, host: &str, deadline: Instant) -> io::Result<String> {
    stream.give(left(deadline)?)?;
    // In one write: `write!` would send each piece on its own.
    stream.write_all(format!("GET /readyz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 512];
    // A read timeout starts anew with each byte, so each read gets what is left of the whole.
    while (answer.len() as u64) < ANSWER_BYTES_MAX {
        stream.give(left(deadline)?)?;
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

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// Answers one connection with `answer`, then keeps it open for a while.
    fn answering(answer: &'static str, stays: Duration) -> Place {
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
        Place::Address(address)
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
        assert!(run(&Place::parse("not an address")).is_err());
    }

    #[test]
    fn nobody_there() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        assert!(matches!(run(&Place::Address(address)), Err(NotReady::Unreachable { .. })));
    }

    #[test]
    fn a_socket_is_asked_too() {
        let path = std::env::temp_dir().join(format!("isobar-healthcheck-{}.sock", std::process::id()));
        let place = Place::Socket(path.clone());
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
        assert!(begun.elapsed() < LIMIT * 2);
    }
}
