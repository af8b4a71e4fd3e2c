//! A session with ZooKeeper: frames over TCP, of which this has what it takes to read nodes and to watch them.
//!
//! The [protocol](https://zookeeper.apache.org/doc/current/zookeeperProgrammers.html) is small, and a reader that owns no ephemeral nodes needs a
//! tenth of it: a session that is lost costs its watches, which the next reading sets again. Client libraries resume sessions, and hide from their
//! user what was lost meanwhile.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::config::Address;
use crate::discovery::DiscoveryError;

/// A request of one of these kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Kind {
    Exists = 3,
    Data = 4,
    Children = 8,
}

/// Numbers of requests and answers that have a meaning of their own.
const EVENT: i32 = -1;
const PING: i32 = -2;
const AUTH: i32 = -4;

const PING_KIND: i32 = 11;
const AUTH_KIND: i32 = 100;

/// Changes that are told while an answer is awaited: each node that is watched has one, and a source has 100 000 backends at most.
const EVENTS_MAX: usize = 200_000;

/// What answers say in place of an answer.
const NO_NODE: i32 = -101;
const NO_AUTH: i32 = -102;

/// A session that is open.
pub(super) struct Session {
    stream: TcpStream,
    buffer: BytesMut,
    /// Bytes of a frame, and of all answers to what is asked together.
    bytes_max: usize,
    /// How long an answer may take, and all of those to what is sent together.
    patience: Duration,
    /// How long the server may say nothing before it is believed to be gone.
    silence: Duration,
    heard: Instant,
    pinged: Instant,
    number: i32,
    /// The last change that the server has told of.
    pub(super) change: i64,
    /// Paths of which something has changed.
    events: VecDeque<String>,
}

/// How to begin a session.
pub(super) struct Login<'a> {
    pub(super) session_timeout: Duration,
    pub(super) patience: Duration,
    /// The last change that is known: a server that knows less closes the connection.
    pub(super) change: i64,
    pub(super) digest: Option<String>,
    pub(super) bytes_max: usize,
    pub(super) address: &'a Address,
}

impl Session {
    pub(super) async fn begin(login: Login<'_>) -> Result<Self, DiscoveryError> {
        let Login { session_timeout, patience, change, digest, bytes_max, address } = login;
        let deadline = Instant::now() + patience;
        let connecting = async {
            match address {
                Address::Ip(address) | Address::Resolved(_, address) => TcpStream::connect(address).await,
                Address::Name(name, port) => TcpStream::connect((&**name, *port)).await,
            }
        };
        let stream = timeout_at(deadline, connecting).await.map_err(|_| late(patience))??;
        let _ = stream.set_nodelay(true);
        let now = Instant::now();
        let mut session = Self {
            stream,
            buffer: BytesMut::new(),
            bytes_max,
            patience,
            silence: session_timeout,
            heard: now,
            pinged: now,
            number: 0,
            change,
            events: VecDeque::new(),
        };
        let mut hello = BytesMut::new();
        hello.put_i32(0);
        hello.put_i64(change);
        hello.put_i32(i32::try_from(session_timeout.as_millis()).unwrap_or(i32::MAX));
        // No session that was there before, and so no password.
        hello.put_i64(0);
        put(&mut hello, &[0; 16]);
        hello.put_u8(0);
        session.send(&hello).await?;
        let mut answer = timeout_at(deadline, session.frame()).await.map_err(|_| late(patience))??;
        let (_version, granted) = (int(&mut answer)?, int(&mut answer)?);
        match u64::try_from(granted) {
            Ok(granted @ 1..) => session.silence = Duration::from_millis(granted),
            _ => return Err(DiscoveryError::new("it grants no session")),
        }
        if let Some(digest) = digest {
            let mut auth = BytesMut::new();
            auth.put_i32(AUTH);
            auth.put_i32(AUTH_KIND);
            auth.put_i32(0);
            put(&mut auth, b"digest");
            put(&mut auth, digest.as_bytes());
            session.send(&auth).await?;
            session.answer(AUTH, deadline).await?.map_err(DiscoveryError::new)?;
        }
        Ok(session)
    }

    /// Asks of many paths at a time. Each is watched from then on; the answer is `None` where there is no such node.
    pub(super) async fn ask_all(
        &mut self,
        kind: Kind,
        paths: &[String],
    ) -> Result<Vec<Result<Option<Bytes>, String>>, DiscoveryError> {
        /// So many are on their way at a time.
        const TOGETHER: usize = 256;
        let (mut answers, mut bytes) = (Vec::with_capacity(paths.len()), 0);
        for some in paths.chunks(TOGETHER) {
            let first = if self.number < i32::MAX - 1000 { self.number + 1 } else { 1 };
            let mut requests = BytesMut::new();
            for (number, path) in (first..).zip(some) {
                requests.put_i32(i32::try_from(path.len() + 13).unwrap_or(i32::MAX));
                requests.put_i32(number);
                requests.put_i32(kind as i32);
                put(&mut requests, path.as_bytes());
                // Watched.
                requests.put_u8(1);
                self.number = number;
            }
            let deadline = Instant::now() + self.patience;
            timeout_at(deadline, self.stream.write_all(&requests)).await.map_err(|_| late(self.patience))??;
            for (number, _) in (first..).zip(some) {
                let answer = self.answer(number, deadline).await?;
                bytes += answer.as_ref().map_or(0, |data| data.as_ref().map_or(0, Bytes::len));
                if bytes > self.bytes_max {
                    return Err(too_long(self.bytes_max));
                }
                answers.push(answer);
            }
        }
        Ok(answers)
    }

    pub(super) async fn ask(&mut self, kind: Kind, path: &str) -> Result<Option<Bytes>, DiscoveryError> {
        let answers = self.ask_all(kind, &[path.to_owned()]).await?;
        answers.into_iter().next().unwrap_or(Ok(None)).map_err(DiscoveryError::new)
    }

    /// Waits until something that is watched has changed, and says of which path. The server is asked now and then whether it is there.
    pub(super) async fn event(&mut self) -> Result<String, DiscoveryError> {
        loop {
            if let Some(path) = self.events.pop_front() {
                return Ok(path);
            }
            let gone = self.heard + self.silence;
            // Three times within the silence that ends it.
            let ping = self.pinged + self.silence / 3;
            tokio::select! {
                frame = self.frame() => self.take_unasked(frame?)?,
                () = sleep_until(gone) => {
                    return Err(DiscoveryError::new(format!("it has said nothing for {:?}", self.silence)));
                }
                () = sleep_until(ping) => {
                    self.pinged = Instant::now();
                    let mut ping = BytesMut::new();
                    ping.put_i32(PING);
                    ping.put_i32(PING_KIND);
                    self.send(&ping).await?;
                }
            }
        }
    }

    /// The same of what has come already.
    pub(super) fn event_at_hand(&mut self) -> Option<String> {
        self.events.pop_front()
    }

    /// The answer of that number. What comes before it is an event, or an answer to a ping.
    async fn answer(
        &mut self,
        number: i32,
        deadline: Instant,
    ) -> Result<Result<Option<Bytes>, String>, DiscoveryError> {
        loop {
            let frame = timeout_at(deadline, self.frame()).await.map_err(|_| late(self.patience))??;
            let mut rest = frame.clone();
            if int(&mut rest)? != number {
                self.take_unasked(frame)?;
                continue;
            }
            self.change = self.change.max(long(&mut rest)?);
            return Ok(match int(&mut rest)? {
                0 => Ok(Some(rest)),
                NO_NODE => Ok(None),
                NO_AUTH => Err("it may not be read with this login".into()),
                error if number == AUTH => {
                    return Err(DiscoveryError::new(format!("it refuses the login (error {error})")));
                }
                error => Err(format!("it answered with error {error}")),
            });
        }
    }

    fn take_unasked(&mut self, mut frame: Bytes) -> Result<(), DiscoveryError> {
        match int(&mut frame)? {
            EVENT => {
                let (_change, _error) = (long(&mut frame)?, int(&mut frame)?);
                let (kind, _state) = (int(&mut frame)?, int(&mut frame)?);
                let path = bytes(&mut frame)?;
                if self.events.len() >= EVENTS_MAX {
                    return Err(DiscoveryError::new("it tells of more changes than there are nodes"));
                }
                // Others tell of the session.
                if kind > 0 {
                    self.events.push_back(String::from_utf8_lossy(&path).into_owned());
                }
                Ok(())
            }
            PING => Ok(()),
            _ => Err(no_zookeeper()),
        }
    }

    async fn send(&mut self, body: &[u8]) -> Result<(), DiscoveryError> {
        let mut frame = BytesMut::new();
        put(&mut frame, body);
        let deadline = Instant::now() + self.patience;
        Ok(timeout_at(deadline, self.stream.write_all(&frame)).await.map_err(|_| late(self.patience))??)
    }

    /// The next frame. What has come of it is kept where this is given up.
    async fn frame(&mut self) -> Result<Bytes, DiscoveryError> {
        loop {
            if let Some(mut length) = self.buffer.get(..4) {
                let length = usize::try_from(length.get_i32()).map_err(|_| no_zookeeper())?;
                if length > self.bytes_max {
                    return Err(too_long(self.bytes_max));
                }
                if self.buffer.len() >= 4 + length {
                    self.buffer.advance(4);
                    self.heard = Instant::now();
                    return Ok(self.buffer.split_to(length).freeze());
                }
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(DiscoveryError::new("it has closed the connection"));
            }
        }
    }
}

fn late(patience: Duration) -> DiscoveryError {
    DiscoveryError::new(format!("no answer within {patience:?}"))
}

fn too_long(bytes_max: usize) -> DiscoveryError {
    DiscoveryError::new(format!("its answers have more than {bytes_max} bytes"))
}

fn no_zookeeper() -> DiscoveryError {
    DiscoveryError::new("its answer makes no sense: this is not ZooKeeper")
}

fn put(into: &mut BytesMut, text: &[u8]) {
    into.put_i32(i32::try_from(text.len()).unwrap_or(i32::MAX));
    into.put_slice(text);
}

fn int(from: &mut Bytes) -> Result<i32, DiscoveryError> {
    from.try_get_i32().map_err(|_| no_zookeeper())
}

fn long(from: &mut Bytes) -> Result<i64, DiscoveryError> {
    from.try_get_i64().map_err(|_| no_zookeeper())
}

/// A text or data; empty where there is none, which its length says as -1.
fn bytes(from: &mut Bytes) -> Result<Bytes, DiscoveryError> {
    match usize::try_from(int(from)?) {
        Ok(length) if length <= from.len() => Ok(from.split_to(length)),
        Ok(_) => Err(no_zookeeper()),
        Err(_) => Ok(Bytes::new()),
    }
}

/// The names of children, of an answer.
pub(super) fn names(mut answer: Bytes) -> Result<Vec<String>, DiscoveryError> {
    let count = usize::try_from(int(&mut answer)?).unwrap_or(0);
    // Each has a length at least.
    if count > answer.len() / 4 {
        return Err(no_zookeeper());
    }
    (0..count).map(|_| Ok(String::from_utf8_lossy(&bytes(&mut answer)?).into_owned())).collect()
}

/// The data of a node, of an answer.
pub(super) fn data(mut answer: Bytes) -> Result<Bytes, DiscoveryError> {
    bytes(&mut answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_are_too_short_or_lie_are_errors() {
        let frame = |parts: &[i32]| {
            let mut frame = BytesMut::new();
            parts.iter().for_each(|&part| frame.put_i32(part));
            frame.freeze()
        };
        for lie in [&[][..], &[5], &[i32::MAX, 1], &[1, 9]] {
            assert!(names(frame(lie)).is_err(), "{lie:?}");
        }
        assert!(data(frame(&[])).is_err() && data(frame(&[9, 1])).is_err());
        assert_eq!(names(frame(&[-1])).unwrap(), [""; 0]);
        assert_eq!(names(frame(&[1, 4, i32::from_be_bytes(*b"node")])).unwrap(), ["node"]);
        assert_eq!(data(frame(&[-1])).unwrap(), Bytes::new());
    }
}
