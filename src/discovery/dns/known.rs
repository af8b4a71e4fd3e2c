//! What is known of a name: a pure machine, which is told what each look-up came to.
//!
//! An answer with addresses is believed as it stands. One without any, and none, take nothing away by themselves: how long what is known holds is
//! for the configuration to say (`hold`), as it is with HAProxy.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::DnsHoldConfig;

/// Where a name leads to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Endpoint {
    /// The host whose address it is: the name, or the target of an SRV record.
    pub(super) host: Arc<str>,
    pub(super) ip: IpAddr,
    pub(super) port: u16,
    /// Of an SRV record; 0 comes first.
    pub(super) priority: u16,
    pub(super) weight: u16,
}

impl Endpoint {
    fn is_at(&self, other: &Self) -> bool {
        (self.ip, self.port, &self.host) == (other.ip, other.port, &other.host)
    }
}

/// What a look-up came to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum LookedUp {
    /// Addresses, for so long.
    Found { endpoints: Vec<Endpoint>, ttl: Duration, unknown: Vec<Unknown> },
    /// There is no such name.
    NoSuchName,
    /// There is, without an address.
    NoAddress,
    /// The name server cannot or does not want to say.
    Failure(String),
    /// There is no answer.
    Silence(String),
}

/// What an answer with addresses does not say: those of it that are known stay.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Unknown {
    /// Addresses of IPv4, or of IPv6.
    Family { ipv6: bool },
    /// Addresses of a target.
    Host(Arc<str>),
}

impl Unknown {
    fn covers(&self, endpoint: &Endpoint) -> bool {
        match self {
            Self::Family { ipv6 } => endpoint.ip.is_ipv6() == *ipv6,
            Self::Host(host) => endpoint.host == *host,
        }
    }
}

/// What is to be said of the name now.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Saying {
    /// There are these, and no others.
    These(Vec<Endpoint>),
    /// There are none any more; those that there were are held back for so long, or until they fail.
    None { hold: Duration },
    /// Nothing: what was said holds.
    Nothing(String),
}

/// How often and how rarely a name is looked up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) min_ttl: Duration,
    pub(super) max_ttl: Duration,
}

/// How soon a name is looked up again that has no addresses.
const AGAIN: Duration = Duration::from_secs(5);

/// So much of a TTL is left out at most, so that names that were looked up together are not for ever.
const JITTER: f64 = 0.1;

/// For good.
pub(super) const FOREVER: Duration = Duration::MAX;

#[derive(Debug)]
pub(super) struct Known {
    hold: DnsHoldConfig,
    pace: Pace,
    /// What was said last, and when an answer last had it.
    said: Vec<(Endpoint, Instant)>,
    /// Since when there have been failures only, or silence.
    failing: Option<Instant>,
    silent: Option<Instant>,
}

impl Known {
    /// `left` is what is known already.
    pub(super) fn new(hold: DnsHoldConfig, pace: Pace, left: Vec<Endpoint>, now: Instant) -> Self {
        Self { hold, pace, said: left.into_iter().map(|it| (it, now)).collect(), failing: None, silent: None }
    }

    /// Takes in what a look-up came to. Says what is to be said, and when to look again; a failure has its own pace. `random` is any number.
    pub(super) fn take(&mut self, looked_up: LookedUp, now: Instant, random: u64) -> (Saying, Duration) {
        let again = AGAIN.clamp(self.pace.min_ttl, self.pace.max_ttl);
        match looked_up {
            LookedUp::Found { endpoints, ttl, unknown } => {
                (self.failing, self.silent) = (None, None);
                let due = self.due(ttl, random).min(self.note(endpoints, &unknown, now));
                (Saying::These(self.said.iter().map(|(it, _)| it.clone()).collect()), due.max(self.pace.min_ttl))
            }
            LookedUp::NoSuchName => (self.nothing("there is no such name (NXDOMAIN)", self.hold.nxdomain), again),
            LookedUp::NoAddress => (self.nothing("the name has no address", self.hold.empty), again),
            LookedUp::Failure(error) => {
                self.silent = None;
                let since = *self.failing.get_or_insert(now);
                (self.failed(error, since, self.hold.failure, now), again)
            }
            LookedUp::Silence(error) => {
                self.failing = None;
                let since = *self.silent.get_or_insert(now);
                (self.failed(error, since, self.hold.timeout, now), again)
            }
        }
    }

    /// Notes what an answer has. Says when something of what it has not is to be let go.
    fn note(&mut self, endpoints: Vec<Endpoint>, unknown: &[Unknown], now: Instant) -> Duration {
        let gone = self.hold.gone;
        let mut next = Duration::MAX;
        let mut said: Vec<_> = endpoints.into_iter().map(|it| (it, now)).collect();
        for (endpoint, at) in self.said.drain(..) {
            if said.iter().any(|(it, _)| it.is_at(&endpoint)) {
                continue;
            }
            if unknown.iter().any(|it| it.covers(&endpoint)) {
                said.push((endpoint, now));
                continue;
            }
            let left = at.checked_add(gone).map_or(FOREVER, |end| end.saturating_duration_since(now));
            if !left.is_zero() {
                next = next.min(left);
                said.push((endpoint, at));
            }
        }
        // In one order, whatever that of the answer is: name servers shuffle.
        said.sort_by(|(one, _), (other, _)| {
            (one.priority, &one.host, one.ip, one.port).cmp(&(other.priority, &other.host, other.ip, other.port))
        });
        self.said = said;
        next
    }

    /// The name server knows the name, or that there is none, and has no addresses.
    fn nothing(&mut self, what: &str, hold: Option<Duration>) -> Saying {
        (self.failing, self.silent) = (None, None);
        // Where none was known, the name may be wrong, or early: that is worth a word.
        match self.said.is_empty() {
            true => Saying::Nothing(what.into()),
            false => Saying::None { hold: hold.unwrap_or(FOREVER) },
        }
    }

    fn failed(&self, error: String, since: Instant, hold: Option<Duration>, now: Instant) -> Saying {
        let over = hold.is_some_and(|hold| now.saturating_duration_since(since) >= hold);
        match over && !self.said.is_empty() {
            true => Saying::None { hold: Duration::ZERO },
            false => Saying::Nothing(error),
        }
    }

    fn due(&self, ttl: Duration, random: u64) -> Duration {
        let part = (random % 1024) as f64 / 1024.0;
        ttl.clamp(self.pace.min_ttl, self.pace.max_ttl).mul_f64(1.0 - JITTER * part)
    }
}

#[cfg(test)]
mod tests;
