//! What one client address may have: connections at a time, and TLS handshakes in a second.
//!
//! The table is looked into once a connection, and only where a listener has such a limit. All workers share it, as an
//! address's connections are spread over them; its parts have a lock each, which is held for a look and a store.
//!
//! An attacker with many addresses cannot make it grow: an address is remembered while it has a connection open, of which
//! the listener has `max_connections` at most, or while its last handshakes still count, which is a second. Of the latter
//! there is room for `REMEMBERED`. An address that finds none is let in: an attacker with so many addresses is not held by a limit for each, and
//! those that hold for all do so still.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::AddressLimit;

const PARTS: usize = 16;

/// Addresses that are remembered for their handshakes alone, in each part.
const REMEMBERED: usize = 4096;

/// A full part is not looked over more often than this.
const SWEEP_PAUSE: Duration = Duration::from_millis(100);

/// Whose connections are counted together: an IPv4 address, or a /64 of IPv6, which is what one site has at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientNetwork {
    /// A whole address.
    V4(u32),
    /// The first half of one.
    V6(u64),
}

impl From<IpAddr> for ClientNetwork {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.to_bits()),
            IpAddr::V6(ip) => Self::V6((ip.to_bits() >> 64) as u64),
        }
    }
}

/// What each address may have; `None` is any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressLimits {
    /// Connections at a time.
    pub connections: Option<u32>,
    /// Handshakes in a second, and so many at once.
    pub handshakes: Option<u32>,
}

/// The addresses that are remembered.
#[derive(Debug)]
pub struct Addresses {
    parts: Box<[Mutex<AddressShard>]>,
    /// Seeded, so that no client can choose addresses that meet in one shard.
    hasher: RandomState,
    epoch: Instant,
    refused: LogThrottle,
}

#[derive(Debug, Default)]
struct AddressShard {
    known: HashMap<ClientNetwork, AddressUsage>,
    swept: Duration,
}

#[derive(Debug, Default)]
struct AddressUsage {
    open: u32,
    /// When its handshakes so far would be over, had they come one by one at the pace of the limit.
    paid: Duration,
}

impl AddressUsage {
    fn is_forgotten(&self, now: Duration) -> bool {
        self.open == 0 && self.paid <= now
    }

    /// Takes one of `limit` handshakes a second, if there is one.
    fn shake(&mut self, limit: u32, now: Duration) -> bool {
        const SECOND: Duration = Duration::from_secs(1);
        let paid = self.paid.max(now) + SECOND / limit.max(1);
        let fits = paid <= now + SECOND;
        if fits {
            self.paid = paid;
        }
        fits
    }
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            epoch: Instant::now(),
            refused: LogThrottle::new(1),
        }
    }
}

impl Addresses {
    /// Lets a connection of that address in. Where it was counted, what to [`leave`](Self::leave) with when it ends.
    ///
    /// # Errors
    /// Which limit it is over.
    pub fn admit(&self, ip: IpAddr, limits: AddressLimits) -> Result<Option<ClientNetwork>, AddressLimit> {
        if limits == AddressLimits::default() {
            return Ok(None);
        }
        self.admit_at(ip.into(), limits, self.epoch.elapsed())
    }

    fn admit_at(
        &self,
        network: ClientNetwork,
        limits: AddressLimits,
        now: Duration,
    ) -> Result<Option<ClientNetwork>, AddressLimit> {
        let part = &mut *self.part(network);
        if part.known.len() >= REMEMBERED && !part.known.contains_key(&network) {
            part.sweep(now);
            if part.known.len() >= REMEMBERED && limits.connections.is_none() {
                return Ok(None);
            }
        }
        let known = part.known.entry(network).or_default();
        if limits.connections.is_some_and(|most| known.open >= most) {
            return Err(AddressLimit::Connections);
        }
        if limits.handshakes.is_some_and(|most| !known.shake(most, now)) {
            return Err(AddressLimit::Handshakes);
        }
        known.open += u32::from(limits.connections.is_some());
        Ok(limits.connections.map(|_| network))
    }

    /// A connection that was counted has ended.
    pub fn leave(&self, network: ClientNetwork) {
        self.leave_at(network, self.epoch.elapsed());
    }

    fn leave_at(&self, network: ClientNetwork, now: Duration) {
        let part = &mut *self.part(network);
        let crowded = part.known.len() > REMEMBERED;
        if let Entry::Occupied(mut known) = part.known.entry(network) {
            known.get_mut().open = known.get().open.saturating_sub(1);
            if known.get().is_forgotten(now) || (crowded && known.get().open == 0) {
                known.remove();
            }
        }
    }

    /// A connection was refused: how many there were since the log was last told, where it is time to tell it.
    pub fn refused(&self) -> Option<u64> {
        self.refused.happened()
    }

    fn part(&self, network: ClientNetwork) -> MutexGuard<'_, AddressShard> {
        let part = &self.parts[self.hasher.hash_one(network) as usize % PARTS];
        // Nothing in here is half done at any time.
        part.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AddressShard {
    fn sweep(&mut self, now: Duration) {
        if now >= self.swept + SWEEP_PAUSE {
            self.swept = now;
            self.known.retain(|_, known| !known.is_forgotten(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn v6(prefix: u64) -> ClientNetwork {
        ClientNetwork::V6(prefix)
    }

    fn remembered(addresses: &Addresses) -> usize {
        addresses.parts.iter().map(|part| part.lock().unwrap().known.len()).sum()
    }

    #[test]
    fn who_is_counted_together() {
        for (a, b, same) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
        ] {
            let network = |ip: &str| ClientNetwork::from(ip.parse::<IpAddr>().unwrap());
            assert_eq!(network(a) == network(b), same, "{a} {b}");
        }
    }

    #[test]
    fn connections_at_a_time() {
        let addresses = Addresses::default();
        let limits = AddressLimits { connections: Some(2), handshakes: None };
        let (a, b) = (v6(1), v6(2));
        for (network, expected) in
            [(a, Ok(Some(a))), (a, Ok(Some(a))), (a, Err(AddressLimit::Connections)), (b, Ok(Some(b)))]
        {
            assert_eq!(addresses.admit_at(network, limits, ms(0)), expected);
        }
        addresses.leave_at(a, ms(0));
        assert_eq!(addresses.admit_at(a, limits, ms(0)), Ok(Some(a)));
        for network in [a, a, b] {
            addresses.leave_at(network, ms(0));
        }
        assert_eq!(remembered(&addresses), 0);
    }

    #[test]
    fn handshakes_in_a_second() {
        let addresses = Addresses::default();
        let limits = AddressLimits { connections: None, handshakes: Some(4) };
        // So many at once, and then one each quarter of a second.
        for (at, expected) in [(0, 4), (249, 0), (250, 1), (600, 1), (5_000, 4)] {
            let admitted = (0..10).filter(|_| addresses.admit_at(v6(1), limits, ms(at)) == Ok(None)).count();
            assert_eq!(admitted, expected, "at {at}");
        }
        assert_eq!(addresses.admit_at(v6(1), limits, ms(5_000)), Err(AddressLimit::Handshakes));
        assert_eq!(addresses.admit_at(v6(2), limits, ms(5_000)), Ok(None));
    }

    #[test]
    fn a_refused_handshake_is_no_connection() {
        let addresses = Addresses::default();
        let limits = AddressLimits { connections: Some(2), handshakes: Some(1) };
        assert_eq!(addresses.admit_at(v6(1), limits, ms(0)), Ok(Some(v6(1))));
        assert_eq!(addresses.admit_at(v6(1), limits, ms(0)), Err(AddressLimit::Handshakes));
        assert_eq!(addresses.admit_at(v6(1), limits, ms(1_000)), Ok(Some(v6(1))));
        assert_eq!(addresses.admit_at(v6(1), limits, ms(9_000)), Err(AddressLimit::Connections));
    }

    #[test]
    fn an_attacker_with_many_networks_does_not_make_it_grow() {
        let addresses = Addresses::default();
        for limits in [
            AddressLimits { connections: None, handshakes: Some(1) },
            // Each of them is closed again.
            AddressLimits { connections: Some(9), handshakes: Some(1) },
        ] {
            for prefix in 0..300_000 {
                let network = v6(0x2001_0db8_0000_0000 + prefix);
                if let Ok(Some(counted)) = addresses.admit_at(network, limits, ms(prefix / 10_000)) {
                    addresses.leave_at(counted, ms(prefix / 10_000));
                }
            }
            assert!(remembered(&addresses) <= PARTS * REMEMBERED, "{}", remembered(&addresses));
        }
        // Those that are over make room.
        let limits = AddressLimits { connections: None, handshakes: Some(1) };
        assert_eq!(addresses.admit_at(v6(7), limits, ms(10_000)), Ok(None));
        assert_eq!(addresses.admit_at(v6(7), limits, ms(10_000)), Err(AddressLimit::Handshakes));
    }

    #[test]
    fn those_with_connections_are_remembered_however_many_there_are() {
        let addresses = Addresses::default();
        let limits = AddressLimits { connections: Some(1), handshakes: None };
        let all = (PARTS * REMEMBERED * 2) as u64;
        for prefix in 0..all {
            assert_eq!(addresses.admit_at(v6(prefix), limits, ms(0)), Ok(Some(v6(prefix))));
        }
        for prefix in 0..all {
            assert_eq!(addresses.admit_at(v6(prefix), limits, ms(0)), Err(AddressLimit::Connections));
            addresses.leave_at(v6(prefix), ms(0));
        }
        assert_eq!(remembered(&addresses), 0);
    }
}
