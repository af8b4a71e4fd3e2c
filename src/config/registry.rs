//! `[registry]`: a registry of services in this process, for those who have none.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::json;

use super::admin::{Secret, Token};
use super::check::Check;
use super::difference::Changes;
use super::error::Problem;
use super::field::Field;
use super::form::{
    About, Form, Inner, List, Literal, Many, Name, OneOf, Size, Span, Switch, Timeout, Whole, Word, part_about,
};
use super::json_tree::Tree;
use super::listener::{ListenAddress, Network};
use super::report::Place;
use super::table::Table;
use super::visibility::Kind;

/// A registry of services that this process keeps: services register by Consul's agent API or by Eureka's REST API, and a source `registry` of an
/// upstream finds them. It is one process's: what needs more than one node uses a real registry.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check, reload = AtOnce)]
pub struct RegistryConfig {
    /// The address that services register at.
    #[key(ListenAddress, default = "127.0.0.1:8500", reload = Restart)]
    pub address: SocketAddr,
    /// What a request may do that brings no token along.
    #[key(OneOf, otherwise = "`\"write\"` on loopback while there is no token, else `\"read\"`")]
    pub anonymous: Option<RegistryAccess>,
    /// Tokens that services bring along: as `X-Consul-Token`, as `Authorization: Bearer`, or as the password of `Authorization: Basic`.
    #[key(Tokens, name = "token", otherwise = "none")]
    pub tokens: Vec<RegistryTokenConfig>,
    /// What clients of Consul are told that the datacenter is called.
    #[key(Name, default = "dc1")]
    pub datacenter: Arc<str>,
    /// What they are told that the node is called.
    #[key(Name, default = "isobar")]
    pub node: Arc<str>,
    /// Registrations that there may be. Further ones are refused.
    #[key(Whole(1..=100_000), default = 10_000)]
    pub max_instances: usize,
    /// Bytes that the body of a request may have.
    #[key(Size("1KiB", "1MiB"), default = "64KiB")]
    pub max_bytes: usize,
    /// Connections to it at a time; further ones wait. A query that waits for a change has one.
    #[key(Whole(1..=65_536), default = 1024, reload = Restart)]
    pub max_connections: usize,
    /// The shortest time that a heartbeat counts for: a service that asks for less gets this.
    #[key(Timeout, default = "1s")]
    pub min_ttl: Duration,
    /// The longest time that a heartbeat may count for: a service that asks for more is refused.
    #[key(Timeout, default = "1d")]
    pub max_ttl: Duration,
    /// How many of a hundred instances may miss their heartbeats within `expiry_hold`. When more would expire, three or more, they are kept until
    /// they are heard of again, or `expiry_hold` is over. 100 keeps none.
    #[key(Whole(0..=100), default = 50)]
    pub max_expired_percent: u32,
    /// How long instances are kept that `max_expired_percent` keeps.
    #[key(Span, default = "5m")]
    pub expiry_hold: Duration,
    /// Whether isobar runs the checks over HTTP and TCP that services ask for. Where it does not, a registration with one is refused.
    #[key(Switch, default = true)]
    pub checks: bool,
    /// Networks whose addresses may be checked although they are refused otherwise: link-local addresses, those of a cloud's metadata service, and
    /// loopback where the registry's own address is not on loopback.
    #[key(List(Network), example = ["127.0.0.0/8"])]
    pub allow: Vec<IpNet>,
}

/// What a request may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Word)]
pub enum RegistryAccess {
    /// Nothing.
    None,
    /// Ask for services.
    Read,
    /// Register services too, and end registrations.
    Write,
}

impl RegistryConfig {
    /// What a request may do that brings no token along.
    pub fn anonymous(&self) -> RegistryAccess {
        self.anonymous.unwrap_or(match self.address.ip().is_loopback() && self.tokens.is_empty() {
            true => RegistryAccess::Write,
            false => RegistryAccess::Read,
        })
    }

    fn check(check: &Check<'_>, place: Place, written: &WrittenRegistryConfig, it: Self) -> Option<Self> {
        if it.min_ttl > it.max_ttl
            && let Some(at) = written.min_ttl.place().or(written.max_ttl.place())
        {
            check.add(at, Problem::error("min_ttl is longer than max_ttl"));
        }
        if it.tokens.is_empty()
            && it.anonymous() != RegistryAccess::Write
            && written.tokens.value().is_none_or(Vec::is_empty)
        {
            let at = written.anonymous.place().or(written.address.place()).unwrap_or(place);
            let problem = Problem::error("nothing may register: there is no token");
            check.add(
                at,
                problem.expected("a table [[registry.token]], or anonymous = \"write\" in a network that is trusted"),
            );
        }
        Some(it)
    }
}

/// A token that a service brings along, and what it may register with that.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
pub struct RegistryTokenConfig {
    /// What logs call it. Unique.
    #[key(Name, needed = "a token needs a name", expected = "name = \"team-users\"", example = "team-users")]
    pub name: Arc<str>,
    /// The token.
    #[key(
        Token,
        needed = "nothing says what the token is",
        expected = "token = \"${USERS_REGISTRY_TOKEN}\"",
        example = "${USERS_REGISTRY_TOKEN:-an-example-token}"
    )]
    pub token: Secret,
    /// What the names of services begin with that it may register; capitals or not. Without any, it may register every service.
    #[key(List(Name), example = ["users"])]
    pub prefixes: Vec<Arc<str>>,
}

impl RegistryTokenConfig {
    /// Whether it may register a service of that name.
    pub fn covers(&self, service: &str) -> bool {
        let begins = |prefix: &Arc<str>| {
            service.get(..prefix.len()).is_some_and(|beginning| beginning.eq_ignore_ascii_case(prefix))
        };
        self.prefixes.is_empty() || self.prefixes.iter().any(begins)
    }
}

/// `token` of the registry, in the order of the file.
pub(crate) struct Tokens;

impl Form<Vec<RegistryTokenConfig>> for Tokens {
    type Written = Vec<Field<WrittenRegistryTokenConfig>>;

    fn read(&self, check: &Check<'_>, _: Place, written: &Self::Written) -> Option<Vec<RegistryTokenConfig>> {
        let (mut tokens, mut names) = (Vec::new(), HashMap::new());
        for (place, written) in written.iter().filter_map(Field::given) {
            let Some(token) = RegistryTokenConfig::read(check, place, written) else { continue };
            let at = written.name.place().unwrap_or(place);
            if let Some(first) = names.insert(Arc::clone(&token.name), at) {
                let problem =
                    format!("{} is the name of {} too", check.quote(at, &token.name), check.report.path(first));
                check.add(at, Problem::error(problem).expected("a name of its own"));
                continue;
            }
            tokens.push(token);
        }
        Some(tokens)
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Vec<RegistryTokenConfig> {
        Vec::new()
    }

    fn show(&self, value: &Vec<RegistryTokenConfig>) -> Option<Tree> {
        Some(Tree::List(value.iter().map(Table::tree).collect()))
    }

    fn tell(&self, value: &Vec<RegistryTokenConfig>) -> String {
        value.len().to_string()
    }

    fn compare(
        &self,
        changes: &mut Changes,
        table: &str,
        words: &str,
        old: &Vec<RegistryTokenConfig>,
        new: &Vec<RegistryTokenConfig>,
    ) {
        let names = |all: &[RegistryTokenConfig]| all.iter().map(|it| it.name.to_string()).collect::<Vec<_>>();
        let (were, are) = (names(old), names(new));
        if were != are {
            changes.told_members(Kind::Plain, &format!("{table}{words}"), &were, &are);
        }
        for token in new {
            if let Some(was) = old.iter().find(|was| was.name == token.name) {
                RegistryTokenConfig::compare(changes, &format!("{table}{words}.{:?}.", token.name), was, token);
            }
        }
    }

    fn about(&self) -> About {
        let one = part_about::<RegistryTokenConfig>();
        let inner = one.inner.map(|inner| Inner { many: Many::Listed, ..inner });
        About { form: "tables".into(), schema: json!({ "type": "array", "items": one.schema }), inner, ..one }
    }
}
