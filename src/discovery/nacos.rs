//! A service in Nacos: its list of instances over HTTP, and pushes over gRPC.
//!
//! The list is what every version of Nacos has (`/v1/ns/instance/list`, and `/v3/client/ns/instance/list` since version 3), and it needs nothing
//! that the other sources do not have. It says nothing of changes: those are pushed by Nacos 2 and 3 to clients that keep a stream of gRPC
//! open, which `push` does for all sources of the same servers. What is pushed is the list too. A list is asked for at the start, every
//! `interval`, and whenever the stream breaks or a push makes no sense: so nothing depends on the stream but how soon a change is
//! known. Nacos 1 pushes by UDP to the address that it sees of a client, which neither a firewall nor a translated address lets through: it
//! is polled alone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::reading::{Reading, beside};
use super::{Answer, Answered, AnyDiscovery, DiscoveryError};
use crate::config::NacosConfig;

mod listing;
mod servers;
mod subscription;
mod shared;
mod payload;
mod push;

use listing::Listing;
use push::Following;
use servers::Servers;

/// Changes that follow each other faster are said together.
const EVERY: Duration = Duration::from_millis(100);

/// Beside the interval, the list is asked for no more often than this.
const READ_EVERY: Duration = Duration::from_secs(1);

/// Asks Nacos for the instances of a service, and is told of changes.
pub(super) struct Nacos {
    config: Arc<NacosConfig>,
    reading: Reading,
    servers: Servers,
    /// `None` where nothing is to be pushed.
    following: Option<Following>,
    /// When the list was asked for last; `None` until that has worked, and after a failure.
    asked: Option<Instant>,
    said: Option<Instant>,
    /// The time that the last list has, by Nacos's clock in milliseconds.
    time: u64,
}

impl Nacos {
    pub(super) fn new(config: Arc<NacosConfig>, reading: Reading) -> Self {
        let servers = Servers::new(&config, reading.bytes_max);
        Self { config, reading, servers, following: None, asked: None, said: None, time: 0 }
    }

    async fn ask(&mut self) -> Result<Answer, DiscoveryError> {
        if self.config.push && self.following.is_none() {
            self.following = Some(Following::begin(&self.config, self.reading.bytes_max));
        }
        let Some(asked) = self.asked else { return self.read_list().await };
        if let Some(said) = self.said {
            sleep_until(said + EVERY).await;
        }
        let due = asked + self.config.interval;
        let pushed = match &mut self.following {
            None => {
                sleep_until(due).await;
                None
            }
            Some(following) => tokio::select! {
                pushed = following.changed() => Some(pushed),
                () = sleep_until(due) => None,
            },
        };
        if let Some(pushed) = pushed {
            if let Some(pushed) = pushed
                && let Ok(listing) = self.listing(pushed).await
                // What was said before the list was asked for, of which it knows. Another server may have another clock, so all is asked for.
                && listing.time >= self.time
            {
                return Ok(self.say(listing));
            }
            sleep_until((asked + READ_EVERY).min(due)).await;
        }
        self.read_list().await
    }

    async fn read_list(&mut self) -> Result<Answer, DiscoveryError> {
        self.asked = None;
        let begun = Instant::now();
        let body = self.servers.list().await?;
        let listing = self.listing(body).await?;
        self.asked = Some(begun);
        Ok(self.say(listing))
    }

    async fn listing(&self, body: Bytes) -> Result<Listing, DiscoveryError> {
        let (config, zone_label) = (Arc::clone(&self.config), Arc::clone(&self.reading.zone_label));
        beside(body.len(), move || Listing::read(&body, &config, &zone_label)).await
    }

    fn say(&mut self, listing: Listing) -> Answer {
        self.said = Some(Instant::now());
        self.time = listing.time;
        let how = match &self.following {
            Some(following) if following.is_live() => "pushed".into(),
            Some(following) if let Some(why) = following.why_not() => {
                format!("polled every {:?}, as nothing is pushed: {why}", self.config.interval)
            }
            _ => format!("polled every {:?}", self.config.interval),
        };
        let revision = if listing.time == 0 { how } else { format!("{}, {how}", listing.time) };
        Answer { set: listing.set, refused: listing.refused, revision: Some(revision.into()), hold: None }
    }
}

impl AnyDiscovery for Nacos {
    fn next(&mut self) -> Answered<'_> {
        Box::pin(self.ask())
    }

    fn is_at_hand(&self) -> bool {
        false
    }
}
