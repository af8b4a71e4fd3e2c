//! An answer that goes on: lines, as something changes.

use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::DiscoveryError;

/// The lines of an answer whose head has come.
pub(super) struct Lines {
    body: Incoming,
    /// What has come of the next lines.
    buffer: Vec<u8>,
    bytes_max: usize,
}

impl Lines {
    /// None may have more bytes than `bytes_max`.
    pub(super) fn new(response: Response<Incoming>, bytes_max: usize) -> Self {
        Self { body: response.into_body(), buffer: Vec::new(), bytes_max }
    }

    /// The next line that is not empty; `None` where the answer has ended, or its connection has broken. What has come of it is kept where this
    /// is given up.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, DiscoveryError> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer) {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(Some(line.into()));
            }
            if self.buffer.len() > self.bytes_max {
                return Err(DiscoveryError::new(format!("a line of its watch has more than {} bytes", self.bytes_max)));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Some(Err(_)) => return Ok(None),
                // The last line may do without an end.
                None => {
                    let rest = std::mem::take(&mut self.buffer);
                    return Ok((!rest.iter().all(u8::is_ascii_whitespace)).then(|| rest.into()));
                }
            }
        }
    }
}
