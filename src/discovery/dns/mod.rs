//! A name in DNS: its addresses, or the targets of its SRV records.
//!
//! It is looked up when its TTL is over, and soon again while that fails. What an answer means is decided by `known`, which is pure; `resolver`
//! asks the name servers, and `system` reads what the machine itself knows.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

mod known;
mod resolver;
mod system;

use known::{Endpoint, Known, Pace, Saying};
use resolver::Resolver;

use super::{Answer, Answered, AnyDiscovery, DiscoveryError};
use crate::backend::{BackendSet, Instance};
use crate::config::{Address, BackendPlacement, DnsConfig, DnsRecords, DnsSourceConfig, Tier};

/// The name servers of a configuration, which all of its names share.
#[derive(Debug)]
pub(super) struct Resolvers {
    config: Arc<DnsConfig>,
    /// By the name servers that a source has of its own.
    known: std::sync::Mutex<Vec<(Vec<SocketAddr>, Arc<Resolver>)>>,
}

impl Resolvers {
    pub(super) fn new(config: Arc<DnsConfig>) -> Self {
        Self { config, known: std::sync::Mutex::default() }
    }

    pub(super) fn config(&self) -> &Arc<DnsConfig> {
        &self.config
    }

    fn of(&self, servers: &[SocketAddr]) -> Arc<Resolver> {
        let mut known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, resolver)) = known.iter().find(|(known, _)| known == servers) {
            return Arc::clone(resolver);
        }
        let resolver = Arc::new(Resolver::new(&self.config, servers));
        known.push((servers.to_vec(), Arc::clone(&resolver)));
        resolver
    }
}

/// Looks up a name again and again.
pub(super) struct DnsSource {
    config: Arc<DnsSourceConfig>,
    resolver: Arc<Resolver>,
    known: Known,
    /// When it is looked up next; `None` is at once.
    due: Option<Instant>,
}

impl DnsSource {
    /// `left` is what is known of the name already.
    pub(super) fn new(config: Arc<DnsSourceConfig>, resolvers: &Resolvers, left: Option<&BackendSet>) -> Self {
        let resolver = resolvers.of(&config.nameservers);
        let DnsConfig { hold, min_ttl, max_ttl, .. } = *resolver.config();
        let left = left.into_iter().flat_map(BackendSet::iter).filter_map(|it| endpoint(it)).collect();
        let known = Known::new(hold, Pace { min_ttl, max_ttl }, left, Instant::now().into_std());
        Self { config, resolver, known, due: None }
    }

    async fn look_up(&mut self) -> Result<Answer, DiscoveryError> {
        if let Some(due) = self.due {
            sleep_until(due).await;
        }
        let looked_up = match (self.config.records, self.config.port) {
            (DnsRecords::Address, Some(port)) => self.resolver.addresses(&self.config.name, port).await,
            _ => self.resolver.services(&self.config.name).await,
        };
        let now = Instant::now();
        let (saying, again) = self.known.take(looked_up, now.into_std(), rand::random());
        let mut said = |set, hold| {
            self.due = Some(now + again);
            Ok(Answer { hold, ..Answer::from(set) })
        };
        match saying {
            Saying::These(endpoints) => said(instances(&endpoints), None),
            Saying::None { hold } => said(BackendSet::default(), Some(hold)),
            // It is asked again as any source is that fails.
            Saying::Nothing(error) => {
                self.due = None;
                Err(DiscoveryError::new(error))
            }
        }
    }
}

impl AnyDiscovery for DnsSource {
    fn next(&mut self) -> Answered<'_> {
        Box::pin(self.look_up())
    }

    /// What the machine knows itself is there for the first request. What a name server is asked for is not awaited.
    fn is_at_hand(&self) -> bool {
        self.config.records == DnsRecords::Address && self.resolver.is_at_hand(&self.config.name)
    }
}

/// How long a name is left alone at most after a look-up has failed.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The backends at these endpoints. Of the priorities that there are, each is a tier.
fn instances(endpoints: &[Endpoint]) -> BackendSet {
    let mut priorities: Vec<_> = endpoints.iter().map(|it| it.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let instances = endpoints.iter().map(|it| {
        let tier = priorities.iter().position(|priority| *priority == it.priority).unwrap_or(0).min(TIER_MAX);
        let place = BackendPlacement { tier: Tier::Priority(tier as u16), zone: None };
        let address = Address::Resolved(Arc::clone(&it.host), SocketAddr::new(it.ip, it.port));
        // A weight of 0 takes little (RFC 2782), and with isobar nothing.
        Instance { weight: it.weight.max(1), place, ..Instance::new(address) }
    });
    BackendSet::new(instances)
}

const TIER_MAX: usize = 100;

/// What an instance was made of; `None` of one that was made of something else.
fn endpoint(instance: &Instance) -> Option<Endpoint> {
    let Address::Resolved(host, address) = &instance.address else { return None };
    let priority = match instance.place.tier {
        Tier::Priority(priority) => priority,
        Tier::Backup => 0,
    };
    Some(Endpoint { host: Arc::clone(host), ip: address.ip(), port: address.port(), priority, weight: instance.weight })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_are_tiers_and_weights_are_weights() {
        let endpoint = |last: u8, priority, weight| Endpoint {
            host: format!("u{last}").into(),
            ip: [10, 0, 0, last].into(),
            port: 80,
            priority,
            weight,
        };
        let endpoints = [endpoint(1, 10, 0), endpoint(2, 20, 7), endpoint(3, 10, 60_000)];
        let set = instances(&endpoints);
        let shown: Vec<_> = set.iter().map(|it| (it.address.to_string(), it.place.tier, it.weight)).collect();
        let expected = [
            ("u1@10.0.0.1:80".to_owned(), Tier::Priority(0), 1),
            ("u2@10.0.0.2:80".to_owned(), Tier::Priority(1), 7),
            ("u3@10.0.0.3:80".to_owned(), Tier::Priority(0), 60_000),
        ];
        assert_eq!(shown, expected);
        assert_eq!(instances(&[]), BackendSet::default());
    }
}
