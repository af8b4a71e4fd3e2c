//! HTTP/1.1 messages as they are on the wire, read by code that shares nothing with what is tested.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A socket, and what was read from it beyond the last message.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) tcp: TcpStream,
    pub(crate) buffer: Vec<u8>,
}

/// A first line and header fields, in their order and as they were written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) line: String,
    pub(crate) fields: Vec<(String, String)>,
}

/// A head with what follows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
}

/// A final response, and the informational ones before it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Response {
    pub(crate) informational: Vec<Head>,
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
}

/// The connection ended in the middle of a message; this much of it had come.
#[derive(Debug)]
pub(crate) struct Cut {
    pub(crate) head: Option<Head>,
    pub(crate) body: Vec<u8>,
    pub(crate) error: io::Error,
}

impl Head {
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        Self { line, fields: lines.map(field).collect() }
    }

    /// A request's method.
    pub(crate) fn method(&self) -> &str {
        self.line.split(' ').next().unwrap_or_default()
    }

    /// A request's target.
    pub(crate) fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    /// A response's status; 0 where there is none.
    pub(crate) fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    /// The only field of that name, in any case. Panics when there are several.
    #[track_caller]
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        match self.all(name)[..] {
            [] => None,
            [value] => Some(value),
            ref several => panic!("several {name}: {several:?}"),
        }
    }

    /// All fields of that name, in their order.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| &**value).collect()
    }
}

impl Response {
    pub(crate) fn status(&self) -> u16 {
        self.head.status()
    }

    /// The only field of that name. Panics when there are several.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.get(name)
    }

    /// All fields of that name, in their order.
    pub(crate) fn headers(&self, name: &str) -> Vec<&str> {
        self.head.all(name)
    }

    /// The body as text.
    #[track_caller]
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body of text")
    }

    /// The body as JSON: what an echoing backend sends.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.text()))
    }
}

impl Stream {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Self { tcp, buffer: Vec::new() }
    }

    /// Reads some more. `false` at the end.
    pub(crate) async fn more(&mut self) -> io::Result<bool> {
        self.buffer.reserve(64 * 1024);
        Ok(self.tcp.read_buf(&mut self.buffer).await? > 0)
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.tcp.write_all(bytes.as_ref()).await
    }

    /// Reads a head. `None` when the stream ends before its first byte.
    pub(crate) async fn head(&mut self) -> io::Result<Option<Head>> {
        let mut looked = 0;
        loop {
            if let Some(end) = find(&self.buffer[looked..], b"\r\n\r\n") {
                let end = looked + end + 4;
                let head = Head::parse(&self.buffer[..end]);
                self.buffer.drain(..end);
                return Ok(Some(head));
            }
            looked = self.buffer.len().saturating_sub(3);
            if !self.more().await? {
                return if self.buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Reads exactly `n` bytes into `body`; what came before the end is in it after an error too.
    pub(crate) async fn exact(&mut self, mut n: usize, body: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let taken = n.min(self.buffer.len());
            body.extend(self.buffer.drain(..taken));
            n -= taken;
            if n == 0 {
                return Ok(());
            }
            if !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads a line, without its end.
    pub(crate) async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return Ok(line);
            }
            if !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads a chunked body and its trailers.
    pub(crate) async fn chunked(&mut self, body: &mut Vec<u8>, trailers: &mut Vec<(String, String)>) -> io::Result<()> {
        loop {
            let line = self.line().await?;
            let size = usize::from_str_radix(line.split(';').next().unwrap_or_default(), 16)
                .map_err(|error| io::Error::other(format!("chunk size {line:?}: {error}")))?;
            if size == 0 {
                break;
            }
            self.exact(size, body).await?;
            let end = self.line().await?;
            assert_eq!(end, "", "a chunk is longer than its size");
        }
        loop {
            match self.line().await? {
                line if line.is_empty() => return Ok(()),
                line => trailers.push(field(&line)),
            }
        }
    }

    /// Reads to the end into `body`.
    pub(crate) async fn rest(&mut self, body: &mut Vec<u8>) -> io::Result<()> {
        loop {
            body.append(&mut self.buffer);
            if !self.more().await? {
                return Ok(());
            }
        }
    }

    /// Reads the body of a request.
    pub(crate) async fn request_body(&mut self, head: &Head) -> io::Result<Message> {
        let mut message = Message { head: head.clone(), ..Message::default() };
        if head.get("transfer-encoding").is_some() {
            self.chunked(&mut message.body, &mut message.trailers).await?;
        } else if let Some(length) = head.get("content-length") {
            self.exact(length.parse().map_err(io::Error::other)?, &mut message.body).await?;
        }
        Ok(message)
    }

    /// Reads the response to a request with `method`.
    pub(crate) async fn response(&mut self, method: &str) -> Result<Response, Cut> {
        let mut response = Response::default();
        let cut = |head, body, error| Cut { head, body, error };
        loop {
            let head = match self.head().await {
                Ok(Some(head)) => head,
                Ok(None) => return Err(cut(None, Vec::new(), io::ErrorKind::UnexpectedEof.into())),
                Err(error) => return Err(cut(None, std::mem::take(&mut self.buffer), error)),
            };
            match head.status() {
                100 | 102..=199 => response.informational.push(head),
                _ => {
                    response.head = head;
                    break;
                }
            }
        }
        let head = &response.head;
        let status = head.status();
        let read = if method == "HEAD" || matches!(status, 101 | 204 | 304) {
            Ok(())
        } else if head.get("transfer-encoding").is_some() {
            self.chunked(&mut response.body, &mut response.trailers).await
        } else if let Some(length) = head.get("content-length") {
            self.exact(length.parse().expect("a number"), &mut response.body).await
        } else {
            self.rest(&mut response.body).await
        };
        match read {
            Ok(()) => Ok(response),
            Err(error) => Err(cut(Some(response.head), response.body, error)),
        }
    }
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    (name.to_owned(), value.trim().to_owned())
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, what)
}

/// A body of `len` bytes that differ, so that a piece lost or doubled is noticed.
pub(crate) fn body_of(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ (i / 65_521) as u8).collect()
}
