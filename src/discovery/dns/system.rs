//! What the machine knows of names: `/etc/resolv.conf` and `/etc/hosts`, each read again when it is another.
//!
//! Both are small files of the system's own disk, and every program that looks up a name reads them where it stands.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Where name servers are asked.
const PORT: u16 = 53;

/// The system's resolver looks at no more.
const SERVERS_MAX: usize = 3;
const SEARCH_MAX: usize = 32;

/// A file, with what was made of it.
#[derive(Debug)]
pub(super) struct Watched<T> {
    path: PathBuf,
    seen: Option<Stamp>,
    value: T,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

impl<T: Default> Watched<T> {
    /// Nothing yet.
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), seen: None, value: T::default() }
    }

    /// What is in it now, and whether that may be another than before. One that is not there, or cannot be read, is empty.
    pub(super) fn look(&mut self, read: impl FnOnce(&str) -> T) -> (&T, bool) {
        let stamp = fs::metadata(&self.path).ok().map(|data| Stamp {
            file: (data.dev(), data.ino()),
            size: data.size(),
            changed: (data.ctime(), data.ctime_nsec()),
        });
        let changed = stamp.is_none() || stamp != self.seen;
        if changed {
            let text = fs::read(&self.path).unwrap_or_default();
            self.value = read(&String::from_utf8_lossy(&text));
            self.seen = stamp;
        }
        (&self.value, changed)
    }
}

/// What `/etc/resolv.conf` says (resolv.conf(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResolvConf {
    pub(super) servers: Vec<SocketAddr>,
    pub(super) search: Vec<String>,
    /// A name with so many dots is looked up as it is before it is in a domain of the list.
    pub(super) ndots: usize,
}

impl Default for ResolvConf {
    fn default() -> Self {
        Self { servers: Vec::new(), search: Vec::new(), ndots: 1 }
    }
}

impl ResolvConf {
    /// Reads it. What it does not know it passes over, as the system does.
    pub(super) fn read(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split([' ', '\t']).filter(|word| !word.is_empty());
            match words.next() {
                Some("nameserver") => {
                    // An address with a scope (`fe80::1%eth0`) needs what only the system knows.
                    let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                    conf.servers.extend(address.map(|ip| SocketAddr::from((ip, PORT))));
                }
                // The last of both counts.
                Some("search" | "domain") => {
                    let domains = words.map(|word| word.trim_end_matches('.').to_ascii_lowercase());
                    conf.search = domains.filter(|word| !word.is_empty()).take(SEARCH_MAX).collect();
                }
                Some("options") => {
                    let ndots = words.filter_map(|word| word.strip_prefix("ndots:")?.parse().ok()).next_back();
                    conf.ndots = ndots.unwrap_or(conf.ndots).min(15);
                }
                _ => {}
            }
        }
        conf.servers.truncate(SERVERS_MAX);
        if conf.servers.is_empty() {
            conf.servers.push((Ipv4Addr::LOCALHOST, PORT).into());
        }
        conf
    }
}

/// What `/etc/hosts` says (hosts(5)): addresses with their names, in lower case.
#[derive(Debug, Default)]
pub(super) struct Hosts(Vec<(IpAddr, Vec<String>)>);

impl Hosts {
    /// Reads it.
    pub(super) fn read(text: &str) -> Self {
        let entries = text.lines().filter_map(|line| {
            let mut words = line.split('#').next()?.split_ascii_whitespace();
            let ip = words.next()?.parse().ok()?;
            Some((ip, words.map(str::to_ascii_lowercase).collect()))
        });
        Self(entries.collect())
    }

    /// The addresses of a name in lower case, without a dot at its end. What is `localhost` is loopback also where the file does not say so
    /// (RFC 6761 §6.3).
    pub(super) fn of(&self, name: &str) -> Vec<IpAddr> {
        let mut found: Vec<IpAddr> = Vec::new();
        for (ip, _) in self.0.iter().filter(|(_, names)| names.iter().any(|it| it == name)) {
            if !found.contains(ip) {
                found.push(*ip);
            }
        }
        if found.is_empty() && (name == "localhost" || name.ends_with(".localhost")) {
            found = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        }
        found
    }
}

/// The names that a name may mean, in the order in which they are tried.
pub(super) fn candidates(name: &str, search: &[impl AsRef<str>], ndots: usize) -> Vec<String> {
    let bare = name.trim_end_matches('.');
    let whole = format!("{bare}.");
    if name.ends_with('.') {
        return vec![whole];
    }
    let within = search.iter().map(|domain| format!("{bare}.{}.", domain.as_ref()));
    let is_whole_first = bare.bytes().filter(|byte| *byte == b'.').count() >= ndots;
    let mut all: Vec<String> = if is_whole_first {
        std::iter::once(whole).chain(within).collect()
    } else {
        within.chain(std::iter::once(whole)).collect()
    };
    // Longer than any name is.
    all.retain(|name| name.len() <= 254);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_as_the_system_reads_it() {
        let text = "# a comment\n; another\nsortlist 10.0.0.0\nnameserver 10.0.0.1\nnameserver\tfe80::1%eth0\nnameserver x\n\
                    nameserver 2001:db8::1\ndomain old.internal\nsearch A.internal. b.internal\noptions rotate ndots:5 timeout:1\n\
                    nameserver 10.0.0.3\nnameserver 10.0.0.4\n nameserver 10.0.0.5";
        let conf = ResolvConf::read(text);
        let servers = ["10.0.0.1:53", "[2001:db8::1]:53", "10.0.0.3:53"].map(|it| it.parse().unwrap());
        assert_eq!(
            conf,
            ResolvConf { servers: servers.into(), search: vec!["a.internal".into(), "b.internal".into()], ndots: 5 }
        );
        let nothing = ResolvConf::read("");
        assert_eq!((nothing.servers, nothing.ndots), (vec!["127.0.0.1:53".parse().unwrap()], 1));
    }

    #[test]
    fn hosts_are_found_by_each_of_their_names() {
        let hosts = Hosts::read(
            "127.0.0.1 localhost\n::1\tlocalhost ip6-localhost # six\n\n10.0.0.1 Users.Internal users\n10.0.0.2 users\n10.0.0.2 users\nx users\n",
        );
        let of = |name| hosts.of(name).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of("localhost"), ["127.0.0.1", "::1"]);
        assert_eq!(of("users.internal"), ["10.0.0.1"]);
        assert_eq!(of("users"), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(of("six"), [""; 0]);
        assert_eq!(of("a.localhost"), ["127.0.0.1", "::1"]);
    }

    #[test]
    fn short_names_are_looked_for_in_the_domains_first() {
        let search = ["a.internal", "b.internal"];
        assert_eq!(candidates("users", &search, 1), ["users.a.internal.", "users.b.internal.", "users."]);
        assert_eq!(candidates("users.x", &search, 1), ["users.x.", "users.x.a.internal.", "users.x.b.internal."]);
        assert_eq!(candidates("users.x", &search, 5), ["users.x.a.internal.", "users.x.b.internal.", "users.x."]);
        assert_eq!(candidates("users.", &search, 5), ["users."]);
        assert_eq!(candidates("users", &[""; 0], 1), ["users."]);
    }

    #[test]
    fn a_file_that_changes_is_read_again() {
        let path = std::env::temp_dir().join(format!("isobar-watched-{}", std::process::id()));
        let mut watched = Watched::new(&path);
        let mut look = || {
            let (value, changed) = watched.look(str::to_owned);
            (value.clone(), changed)
        };
        assert_eq!(look(), (String::new(), true));
        fs::write(&path, "one").unwrap();
        assert_eq!(look(), ("one".into(), true));
        assert_eq!(look(), ("one".into(), false));
        let other = path.with_extension("new");
        fs::write(&other, "two").unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(look(), ("two".into(), true));
        fs::remove_file(&path).unwrap();
        assert_eq!(look(), (String::new(), true));
    }
}
