//! A list of backends that is asked for over HTTP.

use std::sync::Arc;
use std::time::Duration;

use ::http::header::{self, HeaderValue};
use ::http::{Request, StatusCode};
use bytes::Bytes;
use http_body_util::Full;
use tokio::time::{Instant, sleep_until};

use super::asked::{Server, TlsFiles, refusal};
use super::reading::{Reading, beside};
use super::{Answer, Answered, AnyDiscovery, DiscoveryError};
use crate::backend::document::Document;
use crate::config::HttpSourceConfig;

/// A server that may hold requests and does not is asked so often, unless its list changes all the time.
const HELD_EVERY: Duration = Duration::from_secs(1);

/// The shortest time between two requests.
const CHANGED_EVERY: Duration = Duration::from_millis(100);

/// Asks for a list again and again.
pub(super) struct HttpSource {
    config: Arc<HttpSourceConfig>,
    reading: Reading,
    server: Server,
    /// When it is asked next; `None` is at once.
    due: Option<Instant>,
    last: Option<Last>,
}

/// The last good answer.
struct Last {
    etag: Option<HeaderValue>,
    body: Bytes,
    answer: Answer,
}

impl HttpSource {
    pub(super) fn new(config: Arc<HttpSourceConfig>, reading: Reading) -> Self {
        let tls = TlsFiles { ca: config.ca.clone(), identity: None };
        let server = Server::new(config.url.clone(), reading.bytes_max, tls);
        Self { config, reading, server, due: None, last: None }
    }

    async fn ask(&mut self) -> Result<Answer, DiscoveryError> {
        if let Some(due) = self.due {
            sleep_until(due).await;
        }
        let begun = Instant::now();
        let (request, time) = self.request()?;
        let response = self.server.ask(request, time).await?;
        let (head, body) = response.into_parts();
        let unchanged = match head.status {
            StatusCode::OK => self.last.as_ref().is_some_and(|last| last.body == body),
            StatusCode::NOT_MODIFIED if self.last.is_some() => true,
            status => return Err(refusal(status, &body)),
        };
        let etag = head.headers.get(header::ETAG).cloned();
        let answer = match &mut self.last {
            Some(last) if unchanged => {
                last.etag = etag.or(last.etag.take());
                last.answer.clone()
            }
            _ => {
                let revision = etag.as_ref().and_then(|etag| etag.to_str().ok()).map(Arc::from);
                let (zone_label, text) = (Arc::clone(&self.reading.zone_label), body.clone());
                let read = move || Document::of_json(&text, &zone_label).map_err(DiscoveryError::from);
                let answer = Answer { revision, ..Answer::from(beside(body.len(), read).await?) };
                self.last = Some(Last { etag, body, answer: answer.clone() });
                answer
            }
        };
        let pause = match self.config.wait {
            None => self.config.interval,
            Some(_) if unchanged => HELD_EVERY,
            Some(_) => CHANGED_EVERY,
        };
        // From answer to request where it is asked at intervals: one that is slow is not asked more often for that.
        self.due = Some(if self.config.wait.is_some() { begun + pause } else { Instant::now() + pause });
        Ok(answer)
    }

    /// What is asked, and how long the answer may take.
    fn request(&self) -> Result<(Request<Full<Bytes>>, Duration), DiscoveryError> {
        let HttpSourceConfig { url, wait, timeout, token, .. } = &*self.config;
        let mut request = Request::get(format!("http://{}{}", url.authority(), url.target))
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("isobar/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.reveal()));
        }
        if let Some(etag) = self.last.as_ref().and_then(|last| last.etag.as_ref()) {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        if let Some(wait) = wait {
            request = request.header("prefer", format!("wait={}", wait.as_secs().max(1)));
        }
        let request = request.body(Full::default()).map_err(DiscoveryError::from)?;
        Ok((request, wait.unwrap_or_default() + *timeout))
    }
}

impl AnyDiscovery for HttpSource {
    fn next(&mut self) -> Answered<'_> {
        Box::pin(self.ask())
    }

    fn is_at_hand(&self) -> bool {
        false
    }
}
