//! `[upstream.NAME.discovery.dns]`

use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::check::Check;
use crate::config::dns::{Domain, NameServer};
use crate::config::error::Problem;
use crate::config::form::{List, Maybe, OneOf, Whole, Word};
use crate::config::report::Place;
use crate::config::table::Table;

/// A name in DNS: its addresses, or the targets of its SRV records. Names in `backends` are looked up without such a table. How names are looked
/// up is in `[dns]`.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check)]
pub struct DnsSourceConfig {
    /// The name.
    #[key(
        Domain,
        needed = "a source that is DNS needs a name",
        expected = "name = \"users.internal\"",
        example = "_http._tcp.users.internal"
    )]
    pub name: Arc<str>,
    /// Which records are asked for: addresses (`address`, A and AAAA), or services (`srv`), whose priorities are tiers and whose weights are weights.
    #[key(OneOf, default = "address")]
    pub records: DnsRecords,
    /// The port of the backends, where `records` are addresses; SRV records have their own.
    #[key(Maybe(Whole(1..=65_535)), example = 8080)]
    pub port: Option<u16>,
    /// Name servers to ask in place of those of `[dns]`.
    #[key(List(NameServer), otherwise = "those of `[dns]`", example = ["127.0.0.1:8600"])]
    pub nameservers: Vec<SocketAddr>,
}

/// What of a name is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Word)]
pub enum DnsRecords {
    /// A and AAAA.
    Address,
    /// SRV, and the addresses of their targets.
    Srv,
}

impl DnsSourceConfig {
    fn check(check: &Check<'_>, place: Place, written: &WrittenDnsSourceConfig, it: Self) -> Option<Self> {
        match (it.records, it.port, written.port.place()) {
            (DnsRecords::Address, None, None) => {
                let problem = Problem::error("an address is no backend without a port");
                check.report.add_missing(place, "port", problem.expected("port = 8080, or records = \"srv\""));
                return None;
            }
            (DnsRecords::Srv, _, Some(place)) => {
                let problem = Problem::error("SRV records have ports of their own");
                check.add(place, problem.expected("only one of port and records = \"srv\""));
            }
            _ => {}
        }
        Some(it)
    }

    /// What it asks for, in words.
    pub(super) fn asks(&self) -> String {
        let Self { name, records, port, nameservers } = self;
        format!("dns {name} {records:?} {port:?} {nameservers:?}")
    }
}
