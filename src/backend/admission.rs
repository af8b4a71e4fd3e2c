//! Which addresses are believed of a source that is not the file: what answers is not trusted to name any address there is.
//!
//! A registry that is taken over, or that anybody may write to, must not lead requests of clients to what only this machine can reach: the
//! metadata service of its cloud, which hands out credentials, or what listens on its loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::config::{Address, DiscoveryConfig};

/// What a source may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Networks that are believed in any case.
    allow: Vec<IpNet>,
    /// Whether loopback means this machine.
    loopback: bool,
    /// Backends at a time.
    pub backends_max: usize,
}

/// Where clouds hand out credentials: most of them, Alibaba, Azure, AWS by IPv6, Oracle, Google by IPv6. The first is link-local too; its own name says more.
const METADATA: [IpAddr; 6] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// Names of the same.
const METADATA_NAMES: [&str; 5] =
    ["metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"];

impl Admission {
    /// As the configuration of a source has it.
    pub fn new(config: &DiscoveryConfig) -> Self {
        Self { allow: config.allow.clone(), loopback: config.is_local(), backends_max: config.max_backends }
    }

    /// What any number of addresses may be; `loopback` says whether loopback is this machine.
    pub fn of(allow: Vec<IpNet>, loopback: bool) -> Self {
        Self { allow, loopback, backends_max: usize::MAX }
    }

    /// Why an address is not believed; `None` where it is.
    pub fn refuse(&self, address: &Address) -> Option<&'static str> {
        match address {
            Address::Ip(address) => self.refuse_ip(address.ip()),
            Address::Resolved(name, address) => {
                self.refuse_name(name.trim_end_matches('.')).or_else(|| self.refuse_ip(address.ip()))
            }
            Address::Name(name, _) => self.refuse_name(name.trim_end_matches('.')),
        }
    }

    fn refuse_ip(&self, ip: IpAddr) -> Option<&'static str> {
        let ip = within(ip);
        let never = match ip {
            IpAddr::V4(ip) => ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast(),
            IpAddr::V6(ip) => ip.is_unspecified() || ip.is_multicast(),
        };
        if never {
            return Some("no address of one backend");
        }
        if self.allow.iter().any(|network| network.contains(&ip)) {
            return None;
        }
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        if METADATA.contains(&ip) {
            Some("the address of a cloud's metadata service")
        } else if link_local {
            Some("a link-local address")
        } else if ip.is_loopback() && !self.loopback {
            Some("loopback, from a source on another machine")
        } else {
            None
        }
    }

    fn refuse_name(&self, name: &str) -> Option<&'static str> {
        if METADATA_NAMES.contains(&name) {
            return Some("the name of a cloud's metadata service");
        }
        let is_local = name == "localhost" || name.ends_with(".localhost");
        (is_local && !self.loopback).then_some("loopback, from a source on another machine")
    }
}

/// The IPv4 address that is written as an IPv6 address: mapped, or for NAT64.
fn within(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(six) if six.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0] => {
            let [.., a, b, c, d] = six.octets();
            Ipv4Addr::new(a, b, c, d).into()
        }
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(allow: &[&str], loopback: bool) -> Admission {
        Admission { allow: allow.iter().map(|it| it.parse().unwrap()).collect(), loopback, backends_max: 10 }
    }

    fn refused(admission: &Admission, address: &str) -> bool {
        admission.refuse(&address.parse().unwrap()).is_some()
    }

    #[test]
    fn what_only_this_machine_can_reach_is_refused() {
        let strict = admission(&[], false);
        for address in [
            "169.254.169.254:80",
            "[::ffff:169.254.169.254]:80",
            "[64:ff9b::a9fe:a9fe]:80",
            "[fe80::1]:80",
            "100.100.100.200:80",
            "[fd00:ec2::254]:80",
            "127.0.0.1:80",
            "127.8.0.1:80",
            "[::1]:80",
            "0.0.0.0:80",
            "[::]:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "localhost:80",
            "a.localhost:80",
            "metadata.google.internal:80",
            "metadata.google.internal.:80",
        ] {
            assert!(refused(&strict, address), "{address}");
        }
        for address in ["10.0.0.1:80", "192.0.2.1:80", "[2001:db8::1]:80", "users.internal:80"] {
            assert!(!refused(&strict, address), "{address}");
        }
    }

    #[test]
    fn what_is_allowed_is_believed_and_loopback_of_a_source_of_this_machine() {
        let allowed = admission(&["169.254.10.0/24"], true);
        for (address, is_refused) in [
            ("169.254.10.7:80", false),
            ("169.254.11.7:80", true),
            ("127.0.0.1:80", false),
            ("localhost:80", false),
            ("0.0.0.0:80", true),
        ] {
            assert_eq!(refused(&allowed, address), is_refused, "{address}");
        }
    }
}
