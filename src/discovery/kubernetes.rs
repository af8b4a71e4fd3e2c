//! The endpoints of a Service in Kubernetes: its EndpointSlices are listed, and watched from there on.
//!
//! It is [what Kubernetes says of it](https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes): a list is of
//! one version of the store, and a watch goes on from there. It ends after the time that it is asked for, and is opened again where it ended. If
//! that is forgotten (410), all is listed again, and what is known holds meanwhile. The same is done where a watch ends in another way: a server
//! whose store was restored knows nothing of the version that a watch would go on from, and would be silent until it comes to it. A watch that
//! does not end when it should hangs.
//!
//! The client library of Kubernetes (`kube`) is not used: see decision 21.

use std::sync::Arc;
use std::time::Duration;

use http::{Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::{Instant, sleep_until, timeout};

use super::asked::encoded;
use super::lines::Lines;
use super::reading::{Reading, beside};
use super::{Answer, Answered, AnyDiscovery, DiscoveryError};
use crate::config::KubernetesConfig;

mod cluster;
mod described;
mod kubeconfig;
mod login_command;
mod message;
mod slices;

use cluster::Cluster;
use message::{Event, Page, Status};
use slices::{SERVICE_LABEL, Slices, Wanted};

/// Changes that follow each other faster are said together.
const EVERY: Duration = Duration::from_millis(100);

/// All is listed, and a watch opened, no more often than this. If lists are in vain, since each watch has expired when it begins, it takes
/// twice as long from one to the next, up to sixteen times.
const AGAIN_EVERY: Duration = Duration::from_secs(1);
const LISTS_IN_VAIN_MAX: u32 = 4;

/// Slices of a page of a list. Each has a hundred endpoints or so.
const PAGE: usize = 50;
/// Pages of a list.
const PAGES_MAX: usize = 1000;

/// Bytes of an answer that refuses something.
const REFUSAL_BYTES_MAX: usize = 16 * 1024;

/// Lists the EndpointSlices of a Service and watches them.
pub(super) struct Kubernetes {
    config: Arc<KubernetesConfig>,
    reading: Reading,
    cluster: Cluster,
    slices: Slices,
    /// The version that is known, from which a watch goes on; `None`: all is to be listed.
    version: Option<String>,
    watch: Option<Watch>,
    listed: Option<Instant>,
    opened: Option<Instant>,
    lists_in_vain: u32,
    /// When something was said last, and whether there is something new since.
    said: Option<Instant>,
    has_news: bool,
}

/// A watch that is open.
struct Watch {
    lines: Lines,
    /// How long it is to last.
    time: Duration,
    /// When it has ended at the latest.
    ends: Instant,
}

/// Why a watch does not go on.
enum Stopped {
    /// Its time is over: another goes on where it was.
    Over,
    /// Nothing can be gone on from: all is to be listed.
    Broken,
    Failed(DiscoveryError),
}

impl From<DiscoveryError> for Stopped {
    fn from(error: DiscoveryError) -> Self {
        Self::Failed(error)
    }
}

impl Kubernetes {
    pub(super) fn new(config: Arc<KubernetesConfig>, reading: Reading) -> Self {
        Self {
            cluster: Cluster::new(Arc::clone(&config), reading.bytes_max),
            slices: Slices::new(Wanted::of(&config), reading.bytes_max),
            config,
            reading,
            version: None,
            watch: None,
            listed: None,
            opened: None,
            lists_in_vain: 0,
            said: None,
            has_news: false,
        }
    }

    async fn ask(&mut self) -> Result<Answer, DiscoveryError> {
        loop {
            if self.watch.is_some() {
                let stopped = match self.follow().await {
                    Ok(answer) => return Ok(answer),
                    Err(stopped) => stopped,
                };
                self.watch = None;
                self.note(stopped)?;
                if self.has_news {
                    return Ok(self.say());
                }
            }
            if let Err(stopped) = self.begin().await {
                self.note(stopped)?;
            }
            // Also where a list is all there is: it is newer than what was said.
            if self.has_news {
                return Ok(self.say());
            }
        }
    }

    /// Decides where to go on from. What is a failure is one.
    fn note(&mut self, stopped: Stopped) -> Result<(), DiscoveryError> {
        match stopped {
            Stopped::Over => Ok(()),
            Stopped::Broken => {
                self.version = None;
                Ok(())
            }
            Stopped::Failed(error) => {
                self.cluster.forget();
                (self.version, self.has_news) = (None, false);
                Err(error)
            }
        }
    }

    /// Opens a watch, from a list or from where the last one was.
    async fn begin(&mut self) -> Result<(), Stopped> {
        let is_old = self.listed.is_none_or(|listed| listed.elapsed() >= self.config.resync);
        let version = match self.version.clone() {
            Some(version) if !is_old => {
                if let Some(opened) = self.opened {
                    sleep_until(opened + AGAIN_EVERY).await;
                }
                version
            }
            _ => self.list().await?,
        };
        self.watch = Some(self.open_watch(&version).await?);
        Ok(())
    }

    /// Waits until there is something to say.
    async fn follow(&mut self) -> Result<Answer, Stopped> {
        loop {
            let due = self.said.map_or_else(Instant::now, |said| said + EVERY);
            let Some(watch) = &mut self.watch else { return Err(Stopped::Broken) };
            let ends = watch.ends;
            tokio::select! {
                line = watch.lines.next() => match line? {
                    Some(line) => self.take(&line)?,
                    None if self.opened.is_some_and(|opened| opened.elapsed() >= watch.time) => {
                        self.lists_in_vain = 0;
                        return Err(Stopped::Over);
                    }
                    None => return Err(Stopped::Broken),
                },
                () = sleep_until(due), if self.has_news => return Ok(self.say()),
                () = sleep_until(ends) => return Err(Stopped::Broken),
            }
        }
    }

    /// Takes in a line of the watch.
    fn take(&mut self, line: &[u8]) -> Result<(), Stopped> {
        let bytes = line.len();
        let version = match Event::read(line)? {
            Event::Put(slice) => {
                self.has_news = true;
                self.slices.put(slice, bytes)?
            }
            Event::Gone(slice) => {
                self.has_news = true;
                self.slices.take_out(&slice)?
            }
            Event::Bookmark(object) => {
                let version = object.get("metadata").and_then(|it| it.get("resourceVersion")).and_then(Value::as_str);
                message::version(version.unwrap_or_default().to_owned())?
            }
            Event::Expired => return Err(Stopped::Broken),
        };
        (self.version, self.lists_in_vain) = (Some(version), 0);
        Ok(())
    }

    fn say(&mut self) -> Answer {
        (self.said, self.has_news) = (Some(Instant::now()), false);
        self.slices.answer(self.version.as_deref())
    }

    /// Lists all slices, page by page. Says the version that they are of. What is known is replaced at the end.
    async fn list(&mut self) -> Result<String, Stopped> {
        if let Some(listed) = self.listed {
            sleep_until(listed + AGAIN_EVERY * 2_u32.pow(self.lists_in_vain.min(LISTS_IN_VAIN_MAX))).await;
        }
        self.listed = Some(Instant::now());
        let selector = encoded(&format!("{SERVICE_LABEL}={}", self.config.service));
        let (mut slices, mut bytes, mut next) = (self.slices.emptied(), 0, None::<String>);
        let mut has_begun_again = false;
        for _ in 0..PAGES_MAX {
            let page = next.as_deref().map_or_else(String::new, |next| format!("&continue={}", encoded(next)));
            let response = self.cluster.get(&format!("labelSelector={selector}&limit={PAGE}{page}")).await?;
            // Its pages are kept for some minutes only. The token of such an answer goes on with another version: parts would not fit.
            if response.status() == StatusCode::GONE && next.is_some() && !has_begun_again {
                (slices, bytes, next, has_begun_again) = (self.slices.emptied(), 0, None, true);
                continue;
            }
            if response.status() != StatusCode::OK {
                return Err(self.refused("list", response).await.into());
            }
            let body = self.cluster.read(response).await?.into_body();
            bytes += body.len();
            if bytes > self.reading.bytes_max {
                let most = self.reading.bytes_max;
                return Err(DiscoveryError::new(format!("its EndpointSlices have more than {most} bytes")).into());
            }
            let mut known = slices;
            let length = body.len();
            let read = beside(length, move || {
                let page = Page::read(&body)?;
                known.add(page.items, length)?;
                Ok((known, page.version, page.next))
            });
            let (known, version, more) = read.await?;
            (slices, next) = (known, more);
            if next.is_none() {
                self.slices = slices;
                self.lists_in_vain = self.lists_in_vain.saturating_add(1);
                (self.version, self.has_news) = (Some(version.clone()), true);
                return Ok(version);
            }
        }
        Err(DiscoveryError::new(format!("its list has more than {PAGES_MAX} pages")).into())
    }

    async fn open_watch(&mut self, version: &str) -> Result<Watch, Stopped> {
        self.opened = Some(Instant::now());
        let selector = encoded(&format!("{SERVICE_LABEL}={}", self.config.service));
        let (wait, from) = (self.config.wait.min(self.config.resync), encoded(version));
        let query = format!(
            "labelSelector={selector}&watch=true&allowWatchBookmarks=true&resourceVersion={from}&timeoutSeconds={}",
            wait.as_secs()
        );
        let response = self.cluster.get(&query).await?;
        match response.status() {
            StatusCode::OK => {
                let ends = Instant::now() + wait + self.config.timeout;
                // In whole seconds, as it is asked for.
                let time = Duration::from_secs(wait.as_secs());
                Ok(Watch { lines: Lines::new(response, self.reading.bytes_max), time, ends })
            }
            status if message::is_expired(status.as_u16()) => Err(Stopped::Broken),
            _ => Err(self.refused("watch", response).await.into()),
        }
    }

    /// The error that a refusal to list or to watch is.
    async fn refused(&self, verb: &str, response: Response<Incoming>) -> DiscoveryError {
        let status = response.status();
        let body = Limited::new(response.into_body(), REFUSAL_BYTES_MAX).collect();
        let body = timeout(self.config.timeout, body).await.ok().and_then(Result::ok);
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        let said = match Status::of(&body).line() {
            line if line.is_empty() => return super::asked::refusal(status, &body),
            line => line,
        };
        match status {
            StatusCode::FORBIDDEN => {
                let namespace = self.cluster.namespace();
                let needed =
                    format!("a Role in {namespace:?} must allow to list and watch endpointslices of discovery.k8s.io");
                DiscoveryError::new(format!("it may not {verb} EndpointSlices: {needed} ({said})"))
            }
            StatusCode::UNAUTHORIZED => DiscoveryError::new(format!("it does not believe the login: {said}")),
            status => DiscoveryError::new(format!("it answered {}: {said}", status.as_u16())),
        }
    }
}

impl AnyDiscovery for Kubernetes {
    fn next(&mut self) -> Answered<'_> {
        Box::pin(self.ask())
    }

    fn is_at_hand(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
