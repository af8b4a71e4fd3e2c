//! Asks name servers.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::time::timeout;

use super::known::{Endpoint, LookedUp, Unknown};
use super::system::{Hosts, ResolvConf, Watched, candidates};
use crate::config::{AddressFamily, DnsConfig};
use crate::file_descriptors::has_route;

/// How long a name that `/etc/hosts` has is not looked for again.
const HOSTS_TTL: Duration = Duration::from_secs(5);

/// Where one family is there, the other is awaited no longer: some name servers never answer for IPv6.
const OTHER_FAMILY: Duration = Duration::from_millis(500);

/// Addresses of a name, and targets of a service. More is nothing that could be balanced over, and each is a backend with all that is known of it.
const ENDPOINTS_MAX: usize = 1_000;

/// Aliases on the way to a name's records. Resolvers give up after as many or fewer.
const ALIASES_MAX: usize = 16;

/// Targets of a service that are looked up side by side: each takes two sockets while it lasts.
const TOGETHER: usize = 32;

/// Bytes of an answer that may come by UDP: what crosses any network whole (DNS Flag Day 2020). A longer one comes by TCP.
const UDP_BYTES_MAX: u16 = 1_232;

/// Asks the name servers of a configuration, or those of the machine.
#[derive(Debug)]
pub(super) struct Resolver {
    config: Arc<DnsConfig>,
    /// In place of those of the configuration.
    servers: Vec<SocketAddr>,
    files: Mutex<Files>,
}

#[derive(Debug)]
struct Files {
    hosts: Watched<Hosts>,
    resolv_conf: Watched<ResolvConf>,
    /// For what `/etc/resolv.conf` says now.
    asking: Option<Asking>,
}

/// What asks, and how names are completed.
#[derive(Clone, Debug)]
struct Asking {
    resolver: TokioResolver,
    search: Arc<[String]>,
    ndots: usize,
}

/// Records of one name and type, or why there are none.
type Answer = Result<Vec<Record>, NoAnswer>;

#[derive(Debug)]
enum NoAnswer {
    NoSuchName,
    NoRecord,
    Failure(String),
    Silence(String),
}

impl From<NoAnswer> for LookedUp {
    fn from(none: NoAnswer) -> Self {
        match none {
            NoAnswer::NoSuchName => Self::NoSuchName,
            NoAnswer::NoRecord => Self::NoAddress,
            NoAnswer::Failure(error) => Self::Failure(error),
            NoAnswer::Silence(error) => Self::Silence(error),
        }
    }
}

/// The addresses of a name, and the families that are not known.
#[derive(Debug, Default)]
struct Addresses {
    found: Vec<IpAddr>,
    ttl: Duration,
    unknown: Vec<Unknown>,
}

impl Resolver {
    /// By a configuration, with these name servers if there are any. `/etc/hosts` and `/etc/resolv.conf` are read when they are needed.
    pub(super) fn new(config: &Arc<DnsConfig>, servers: &[SocketAddr]) -> Self {
        let servers = if servers.is_empty() { &config.nameservers } else { servers };
        let (hosts, resolv_conf) = (Watched::new("/etc/hosts"), Watched::new("/etc/resolv.conf"));
        let files = Mutex::new(Files { hosts, resolv_conf, asking: None });
        Self { config: Arc::clone(config), servers: servers.to_vec(), files }
    }

    pub(super) fn config(&self) -> &DnsConfig {
        &self.config
    }

    /// Whether the machine itself knows the name, so that no name server is asked.
    pub(super) fn is_at_hand(&self, name: &str) -> bool {
        !self.in_hosts(name).is_empty()
    }

    /// The addresses of a name, with a port.
    pub(super) async fn addresses(&self, name: &str, port: u16) -> LookedUp {
        let Addresses { found, ttl, unknown } = match self.addresses_of(name).await {
            Ok(addresses) => addresses,
            Err(none) => return none.into(),
        };
        let host: Arc<str> = name.into();
        let endpoint = |ip| Endpoint { host: Arc::clone(&host), ip, port, priority: 0, weight: 1 };
        LookedUp::Found { endpoints: found.into_iter().map(endpoint).collect(), ttl, unknown }
    }

    /// The targets of a service, with their addresses.
    pub(super) async fn services(&self, name: &str) -> LookedUp {
        let records = match self.records(name).await {
            Ok(records) => records,
            Err(none) => return none.into(),
        };
        let mut ttl = lowest_ttl(&records);
        let services = records.iter().filter_map(|record| match &record.data {
            // A target that is the root: the service is decidedly not there (RFC 2782).
            RData::SRV(service) if !service.target.is_root() => Some(service),
            _ => None,
        });
        let services: Vec<_> = services.take(ENDPOINTS_MAX).collect();
        let targets: BTreeSet<String> = services.iter().map(|it| host(&it.target)).collect();
        let targets: Vec<_> = targets.into_iter().collect();
        let look_up = |target: String| async move { self.addresses_of(&format!("{target}.")).await };
        let mut addresses = Vec::with_capacity(targets.len());
        for some in targets.chunks(TOGETHER) {
            addresses.extend(join(some.iter().cloned().map(look_up)).await);
        }
        let (mut endpoints, mut unknown, mut last) = (Vec::new(), Vec::new(), None);
        for (target, addresses) in targets.iter().zip(addresses) {
            let target: Arc<str> = target.as_str().into();
            match addresses {
                Ok(addresses) => {
                    ttl = ttl.min(addresses.ttl);
                    for service in services.iter().filter(|it| host(&it.target) == *target) {
                        if endpoints.len() >= ENDPOINTS_MAX {
                            break;
                        }
                        let (port, priority, weight) = (service.port, service.priority, service.weight);
                        let endpoint = |&ip| Endpoint { host: Arc::clone(&target), ip, port, priority, weight };
                        endpoints.extend(addresses.found.iter().map(endpoint));
                    }
                }
                Err(none @ (NoAnswer::NoSuchName | NoAnswer::NoRecord)) => last = last.or(Some(none)),
                Err(none) => {
                    unknown.push(Unknown::Host(target));
                    last = Some(none);
                }
            }
        }
        endpoints.retain(|it| it.port != 0);
        endpoints.truncate(ENDPOINTS_MAX);
        match (endpoints.is_empty(), last) {
            (false, _) => LookedUp::Found { endpoints, ttl, unknown },
            (true, Some(none @ (NoAnswer::Failure(_) | NoAnswer::Silence(_)))) => none.into(),
            (true, _) => LookedUp::NoAddress,
        }
    }

    /// The SRV records of a name, or of what it is short for.
    async fn records(&self, name: &str) -> Answer {
        let asking = self.asking();
        let mut none = NoAnswer::NoSuchName;
        for candidate in candidates(name, &asking.search, asking.ndots) {
            match self.ask(&asking, &candidate, RecordType::SRV).await {
                Err(NoAnswer::NoSuchName) => {}
                Err(NoAnswer::NoRecord) => none = NoAnswer::NoRecord,
                // What a name means depends on this answer: another that comes after it may be another machine.
                other => return other,
            }
        }
        Err(none)
    }

    async fn addresses_of(&self, name: &str) -> Result<Addresses, NoAnswer> {
        let found = self.in_hosts(name);
        if !found.is_empty() {
            return Ok(Addresses { found: reachable(found), ttl: HOSTS_TTL, unknown: Vec::new() });
        }
        let asking = self.asking();
        let mut none = NoAnswer::NoSuchName;
        for candidate in candidates(name, &asking.search, asking.ndots) {
            let (four, six) = self.both(&asking, &candidate).await;
            match both_of(four, six) {
                Err(NoAnswer::NoSuchName) => {}
                Err(NoAnswer::NoRecord) => none = NoAnswer::NoRecord,
                Ok(addresses) => {
                    let found = reachable(addresses.found);
                    return Ok(Addresses { found, ..addresses });
                }
                Err(other) => return Err(other),
            }
        }
        Err(none)
    }

    /// The records of each family; `None` where it is not asked for.
    async fn both(&self, asking: &Asking, name: &str) -> (Option<Answer>, Option<Answer>) {
        let family = self.config.family;
        let mut four = (family != AddressFamily::Ipv6).then(|| Box::pin(self.ask(asking, name, RecordType::A)));
        let mut six = (family != AddressFamily::Ipv4).then(|| Box::pin(self.ask(asking, name, RecordType::AAAA)));
        let (Some(four), Some(six)) = (&mut four, &mut six) else {
            let four = match four {
                Some(asked) => Some(asked.await),
                None => None,
            };
            return match six {
                Some(asked) => (four, Some(asked.await)),
                None => (four, None),
            };
        };
        let late = || Err(NoAnswer::Silence(format!("no answer within {OTHER_FAMILY:?} of that for the other family")));
        // The other one may take its time where this one brings nothing.
        tokio::select! {
            first = &mut *four => match &first {
                Ok(_) => (Some(first), Some(timeout(OTHER_FAMILY, six).await.unwrap_or_else(|_| late()))),
                Err(_) => (Some(first), Some(six.await)),
            },
            first = &mut *six => match &first {
                Ok(_) => (Some(timeout(OTHER_FAMILY, four).await.unwrap_or_else(|_| late())), Some(first)),
                Err(_) => (Some(four.await), Some(first)),
            },
        }
    }

    async fn ask(&self, asking: &Asking, name: &str, kind: RecordType) -> Answer {
        let parsed = Name::from_ascii(name).map_err(|error| NoAnswer::Failure(error.to_string()))?;
        // What the library does within an attempt is not known here, so all of them together have an end.
        let longest = self.config.timeout.saturating_mul(self.config.attempts) + Duration::from_millis(100);
        let asked = timeout(longest, asking.resolver.lookup(parsed.clone(), kind)).await;
        let silence = || NoAnswer::Silence(format!("no answer from {}", self.shown_servers()));
        match asked.unwrap_or(Err(NetError::Timeout)) {
            Ok(found) => {
                let records = of_chain(&parsed, found.answers(), kind);
                if records.is_empty() { Err(NoAnswer::NoRecord) } else { Ok(records) }
            }
            Err(error) if error.is_nx_domain() => Err(NoAnswer::NoSuchName),
            Err(error) if error.is_no_records_found() => Err(NoAnswer::NoRecord),
            Err(NetError::Timeout | NetError::NoConnections) => Err(silence()),
            Err(NetError::Io(error)) => {
                Err(NoAnswer::Silence(format!("no answer from {}: {error}", self.shown_servers())))
            }
            Err(NetError::Dns(DnsError::ResponseCode(code))) => {
                Err(NoAnswer::Failure(format!("the name server says {}", word(code))))
            }
            Err(error) => Err(NoAnswer::Failure(format!("what the name server sends is no answer: {error}"))),
        }
    }

    fn in_hosts(&self, name: &str) -> Vec<IpAddr> {
        let mut files = self.files();
        let (hosts, _) = files.hosts.look(Hosts::read);
        let family = self.config.family;
        let mut found = hosts.of(name.trim_end_matches('.'));
        found.retain(|ip| match family {
            AddressFamily::Any => true,
            AddressFamily::Ipv4 => ip.is_ipv4(),
            AddressFamily::Ipv6 => ip.is_ipv6(),
        });
        found
    }

    /// What asks: another one where `/etc/resolv.conf` is another, and matters.
    fn asking(&self) -> Asking {
        let mut files = self.files();
        let Files { resolv_conf, asking, .. } = &mut *files;
        let (conf, changed) = resolv_conf.look(ResolvConf::read);
        if let (Some(asking), false) = (&*asking, changed) {
            return asking.clone();
        }
        let servers = if self.servers.is_empty() { &conf.servers } else { &self.servers };
        let search = match self.config.search.is_empty() {
            false => self.config.search.iter().map(|it| it.trim_end_matches('.').to_owned()).collect(),
            true => conf.search.iter().cloned().collect(),
        };
        asking.insert(Asking { resolver: resolver(&self.config, servers), search, ndots: conf.ndots }).clone()
    }

    fn shown_servers(&self) -> String {
        let mut files = self.files();
        let (conf, _) = files.resolv_conf.look(ResolvConf::read);
        let servers = if self.servers.is_empty() { &conf.servers } else { &self.servers };
        servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The library, with nothing of its own: names are completed and kept here, and the files of the machine are read here.
fn resolver(config: &DnsConfig, servers: &[SocketAddr]) -> TokioResolver {
    let servers = servers.iter().map(|server| {
        let [mut udp, mut tcp] = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
        (udp.port, tcp.port) = (server.port(), server.port());
        NameServerConfig::new(server.ip(), true, vec![udp, tcp])
    });
    let servers = ResolverConfig::from_name_servers(servers.collect());
    let mut builder = TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default());
    let options = builder.options_mut();
    options.timeout = config.timeout;
    options.attempts = config.attempts as usize - 1;
    options.edns0 = true;
    options.edns_payload_len = UDP_BYTES_MAX;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.preserve_intermediates = true;
    builder.build().expect("a resolver without TLS has nothing that could fail")
}

/// A code as everybody writes it.
fn word(code: ResponseCode) -> String {
    match code {
        ResponseCode::ServFail => "SERVFAIL".into(),
        ResponseCode::Refused => "REFUSED".into(),
        ResponseCode::FormErr => "FORMERR".into(),
        ResponseCode::NotImp => "NOTIMP".into(),
        code => code.to_string(),
    }
}

/// A name as hosts are written, without the dot at its end.
fn host(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

/// Of an answer, the records of a type that are the name's, or its alias's, with the aliases on the way: their TTLs count too.
fn of_chain(name: &Name, answers: &[Record], kind: RecordType) -> Vec<Record> {
    let mut chain = vec![name];
    // An answer may have them in any order.
    for _ in 0..ALIASES_MAX {
        let next = answers.iter().find_map(|record| match &record.data {
            RData::CNAME(alias) if chain.contains(&&record.name) && !chain.contains(&&alias.0) => Some(&alias.0),
            _ => None,
        });
        match next {
            Some(alias) => chain.push(alias),
            None => break,
        }
    }
    let of_name = |record: &&Record| chain.contains(&&record.name);
    if !answers.iter().filter(of_name).any(|record| record.record_type() == kind) {
        return Vec::new();
    }
    let wanted = |record: &&Record| record.record_type() == kind || record.record_type() == RecordType::CNAME;
    answers.iter().filter(of_name).filter(wanted).cloned().collect()
}

fn lowest_ttl(records: &[Record]) -> Duration {
    Duration::from_secs(records.iter().map(|it| it.ttl).min().unwrap_or(0).into())
}

/// What both families come to together.
fn both_of(four: Option<Answer>, six: Option<Answer>) -> Result<Addresses, NoAnswer> {
    let mut addresses = Addresses { ttl: Duration::MAX, ..Addresses::default() };
    let mut none = None;
    for (ipv6, answer) in [(false, four), (true, six)] {
        match answer {
            None => {}
            Some(Ok(records)) => {
                addresses.ttl = addresses.ttl.min(lowest_ttl(&records));
                addresses.found.extend(records.iter().filter_map(|record| record.data.ip_addr()));
            }
            Some(Err(error)) => {
                if matches!(error, NoAnswer::Failure(_) | NoAnswer::Silence(_)) {
                    addresses.unknown.push(Unknown::Family { ipv6 });
                }
                none = Some(match (none, error) {
                    (None, error) => error,
                    (Some(first @ (NoAnswer::Failure(_) | NoAnswer::Silence(_))), _) => first,
                    (Some(_), error @ (NoAnswer::Failure(_) | NoAnswer::Silence(_))) => error,
                    // The name is there if it is for one of them.
                    (Some(NoAnswer::NoRecord), _) | (Some(_), NoAnswer::NoRecord) => NoAnswer::NoRecord,
                    (Some(_), _) => NoAnswer::NoSuchName,
                });
            }
        }
    }
    addresses.found.sort_unstable();
    addresses.found.dedup();
    addresses.found.truncate(ENDPOINTS_MAX);
    match none {
        Some(none) if addresses.found.is_empty() => Err(none),
        _ => Ok(addresses),
    }
}

/// Of addresses of both families, those that this machine has a route to: a name with an address of IPv6 is no reason to try that on a machine
/// without. Where it has none to any, all stay.
fn reachable(mut found: Vec<IpAddr>) -> Vec<IpAddr> {
    let both = found.iter().any(IpAddr::is_ipv4) && found.iter().any(IpAddr::is_ipv6);
    if both {
        // The same for all of a family, most often: one of each is asked for.
        let routes = |ipv6: bool| found.iter().any(|ip| ip.is_ipv6() == ipv6 && has_route((*ip, 1).into()));
        let (four, six) = (routes(false), routes(true));
        if four != six {
            found.retain(|ip| ip.is_ipv6() == six);
        }
    }
    found
}

/// Waits for all of them, side by side.
async fn join<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures.map(|it| (Box::pin(it), None)).collect();
    std::future::poll_fn(|cx| {
        let mut all = true;
        for (future, output) in waiting.iter_mut().filter(|(_, output)| output.is_none()) {
            match future.as_mut().poll(cx) {
                Poll::Ready(ready) => *output = Some(ready),
                Poll::Pending => all = false,
            }
        }
        if all { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    waiting.into_iter().filter_map(|(_, output)| output).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use hickory_resolver::proto::rr::rdata::{A, CNAME};

    use super::*;

    fn name(number: usize) -> Name {
        Name::from_ascii(format!("n{number}.example.")).unwrap()
    }

    /// Aliases one behind the other in the order from the last to the first, and the address of the last.
    fn aliases(count: usize) -> Vec<Record> {
        let alias = |number| Record::from_rdata(name(number), 60, RData::CNAME(CNAME(name(number + 1))));
        let address = Record::from_rdata(name(count), 60, RData::A(A::new(10, 0, 0, 1)));
        [address].into_iter().chain((0..count).rev().map(alias)).collect()
    }

    #[test]
    fn aliases_are_followed_as_far_as_is_usual() {
        for (count, records) in [(0, 1), (5, 6), (ALIASES_MAX, ALIASES_MAX + 1), (ALIASES_MAX + 1, 0)] {
            assert_eq!(of_chain(&name(0), &aliases(count), RecordType::A).len(), records, "{count}");
        }
        let begun = Instant::now();
        assert!(of_chain(&name(0), &aliases(3_500), RecordType::A).is_empty());
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}
