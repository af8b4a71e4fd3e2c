//! A backend of an upstream, as `backends` has it.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use super::address::AddressWithPort;
use super::check::Check;
use super::difference::Changes;
use super::error::Problem;
use super::field::Field;
use super::form::{About, Form, FromLiteral, Inner, Limit, Literal, Many, Maybe, Name, Switch, Whole, part_about};
use super::json_tree::Tree;
use super::raw;
use super::report::Place;
use super::table::Table;
use super::visibility::{Kind, Location, OfKind};
use super::{Address, BackendLimits, StrategyConfig, Tier, load_balancing};

/// What is said where a backend has no address, and what would be right.
const NEEDS_AN_ADDRESS: (&str, &str) = ("a backend needs an address", "the like of \"10.0.0.1:9001\"");

/// A backend with more than its address.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check, reload = Requests)]
pub struct BackendConfig {
    /// Where it is: an IP address or a name, with its port. Unique in its upstream. Each address that a name has is a backend.
    #[key(AddressWithPort, needed = NEEDS_AN_ADDRESS.0, expected = NEEDS_AN_ADDRESS.1, example = "10.0.0.1:9001")]
    pub address: Address,
    /// How often it is picked, for strategies with weights. With 0 it takes nothing new.
    #[key(Whole(0..=65_535), default = 1)]
    pub weight: u16,
    /// Its tier, 0 first: the next tier is asked when too few backends of those before it are ready.
    #[key(Whole(0..=100), default = 0, shown_if = Self::has_priority)]
    pub priority: u16,
    /// Whether it comes after all priorities.
    #[key(Switch, default = false, shown_if = Self::is_backup)]
    pub backup: bool,
    /// Where it is, for `zone_preference`.
    #[key(Maybe(Name), example = "eu-1a")]
    pub zone: Option<Arc<str>>,
    /// Requests at a time, over all workers.
    #[key(InheritedLimit, otherwise = "as the upstream has it")]
    pub max_in_flight: InheritableLimit,
    /// Connections at a time, over all workers, idle ones included.
    #[key(InheritedLimit, otherwise = "as the upstream has it")]
    pub max_connections: InheritableLimit,
}

impl BackendConfig {
    /// One with the defaults.
    pub fn new(address: Address) -> Self {
        Self { address, ..Self::of_defaults() }
    }

    /// Its own limits, else those of its upstream.
    pub fn limits(&self) -> BackendLimits {
        BackendLimits { max_in_flight: self.max_in_flight.limit, max_connections: self.max_connections.limit }
    }

    /// Gives it limits of its own.
    pub fn limit(&mut self, limits: BackendLimits) {
        self.max_in_flight = InheritableLimit { limit: limits.max_in_flight, is_own: true };
        self.max_connections = InheritableLimit { limit: limits.max_connections, is_own: true };
    }

    /// Its tier and zone.
    pub fn place(&self) -> load_balancing::BackendPlacement {
        let tier = if self.backup { Tier::Backup } else { Tier::Priority(self.priority) };
        load_balancing::BackendPlacement { tier, zone: self.zone.clone() }
    }

    fn has_priority(&self) -> bool {
        self.priority != 0
    }

    fn is_backup(&self) -> bool {
        self.backup
    }

    /// Takes over what it has no own word on, and says what is never reached.
    fn inherit(&mut self, check: &Check<'_>, written: Option<&WrittenBackendConfig>, upstream: BackendLimits) {
        let own = |field: Option<&Field<raw::Limit>>| field.is_some_and(|field| field.given().is_some());
        if !own(written.map(|written| &written.max_in_flight)) {
            self.max_in_flight = InheritableLimit { limit: upstream.max_in_flight, is_own: false };
        }
        if !own(written.map(|written| &written.max_connections)) {
            self.max_connections = InheritableLimit { limit: upstream.max_connections, is_own: false };
        }
        if let Some(written) = written {
            warn_of_unreached(check, &written.max_in_flight, self.limits());
        }
    }

    fn check(check: &Check<'_>, _: Place, written: &WrittenBackendConfig, it: Self) -> Option<Self> {
        if let (true, Some((place, _))) = (it.backup, written.priority.given()) {
            let problem = Problem::error("a backup has no priority: it comes after all of them");
            check.add(place, problem.expected("only one of priority and backup"));
        }
        Some(it)
    }
}

/// A limit of a backend: its own, or that of its upstream.
#[derive(Clone, Copy, Debug)]
pub struct InheritableLimit {
    /// `None` is any number.
    pub limit: Option<u32>,
    /// Whether the backend itself has it.
    pub is_own: bool,
}

/// Where it comes from makes no difference.
impl PartialEq for InheritableLimit {
    fn eq(&self, other: &Self) -> bool {
        self.limit == other.limit
    }
}

impl Eq for InheritableLimit {}

/// A number of things at a time, or that of the upstream.
struct InheritedLimit;

/// What limits can be.
pub(crate) const LIMIT: Limit = Limit(1..=1_000_000);

impl Form<InheritableLimit> for InheritedLimit {
    type Written = raw::Limit;

    fn read(&self, check: &Check<'_>, place: Place, written: &raw::Limit) -> Option<InheritableLimit> {
        LIMIT.read(check, place, written).map(|limit| InheritableLimit { limit, is_own: true })
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> InheritableLimit {
        InheritableLimit { limit: None, is_own: false }
    }

    fn show(&self, value: &InheritableLimit) -> Option<Tree> {
        LIMIT.show(&value.limit)
    }

    fn tell(&self, value: &InheritableLimit) -> String {
        LIMIT.tell(&value.limit)
    }

    fn compare(&self, changes: &mut Changes, table: &str, words: &str, old: &InheritableLimit, new: &InheritableLimit) {
        // That it follows the upstream is told there.
        if old.is_own || new.is_own {
            LIMIT.compare(changes, table, words, &old.limit, &new.limit);
        }
    }

    fn about(&self) -> About {
        LIMIT.about()
    }
}

/// Each request in flight has a connection to itself.
pub(crate) fn warn_of_unreached(check: &Check<'_>, field: &Field<raw::Limit>, limits: BackendLimits) {
    if let (Some(place), Some(in_flight), Some(connections)) =
        (field.place(), limits.max_in_flight, limits.max_connections)
        && in_flight > connections
    {
        let problem = "never reached: each request takes a connection, and max_connections allows fewer";
        check.add(place, Problem::warning(problem));
    }
}

/// A backend as the file has it: its address, or a table with it.
#[derive(Debug, Deserialize)]
#[serde(rename = "an address, or { address = \"..\", weight = 1 }", rename_all = "snake_case")]
pub(crate) enum WrittenBackend {
    String(Location),
    Table(WrittenBackendConfig),
}

impl WrittenBackend {
    /// Its address and where that stands, if it can be read.
    pub(crate) fn address(&self, place: Place) -> Option<(Place, &Location)> {
        match self {
            Self::String(text) => Some((place, text)),
            Self::Table(table) => table.address.given(),
        }
    }

    /// Its zone, as the file has it.
    pub(crate) fn zone(&self) -> Option<(Place, &str)> {
        match self {
            Self::String(_) => None,
            Self::Table(table) => table.zone.given().map(|(place, zone)| (place, zone.as_str())),
        }
    }
}

impl OfKind for WrittenBackend {
    const KIND: Kind = Kind::Location;
}

impl FromLiteral for WrittenBackend {
    fn of(_: Literal) -> Option<Self> {
        None
    }
}

/// `backends` as the file has it.
pub(crate) type WrittenBackends = Vec<Field<WrittenBackend>>;

/// The backends of an upstream, in the order of the file. They are read by its check ([`read_all`]), which knows its strategy and its limits.
pub(crate) struct Backends;

impl Form<Vec<BackendConfig>> for Backends {
    type Written = WrittenBackends;

    fn read(&self, _: &Check<'_>, _: Place, _: &WrittenBackends) -> Option<Vec<BackendConfig>> {
        Some(Vec::new())
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Vec<BackendConfig> {
        Vec::new()
    }

    fn show(&self, value: &Vec<BackendConfig>) -> Option<Tree> {
        Some(Tree::List(value.iter().map(Table::tree).collect()))
    }

    fn tell(&self, value: &Vec<BackendConfig>) -> String {
        value.len().to_string()
    }

    fn compare(
        &self,
        changes: &mut Changes,
        table: &str,
        words: &str,
        old: &Vec<BackendConfig>,
        new: &Vec<BackendConfig>,
    ) {
        let texts = |backends: &[BackendConfig]| backends.iter().map(|it| it.address.to_string()).collect::<Vec<_>>();
        let (were, are) = (texts(old), texts(new));
        if were != are {
            changes.told_members(Kind::Location, &format!("{table}{words}"), &were, &are);
        }
        let known: HashMap<_, _> = old.iter().map(|it| (&it.address, it)).collect();
        for backend in new {
            if let Some(was) = known.get(&backend.address) {
                changes.of_one(&backend.address, |changes| BackendConfig::compare(changes, "", was, backend));
            }
        }
    }

    fn about(&self) -> About {
        let address = AddressWithPort.about();
        let table = part_about::<BackendConfig>();
        let inner = table.inner.map(|inner| Inner { many: Many::Listed, ..inner });
        let schema = json!({ "type": "array", "items": { "anyOf": [address.schema, table.schema] } });
        About { form: "an array, each an address with a port or a table".into(), schema, kind: Kind::Location, inner }
    }
}

/// The backends of an upstream; `limits` are those of the upstream.
pub(crate) fn read_all(
    check: &Check<'_>,
    field: &Field<WrittenBackends>,
    strategy: &StrategyConfig,
    limits: BackendLimits,
) -> Vec<BackendConfig> {
    let mut seen = HashMap::new();
    let mut backends = Vec::new();
    for (place, written) in field.members() {
        let Some((address_place, backend)) = read(check, place, written, strategy, limits) else { continue };
        if let Some(first) = seen.insert(backend.address.clone(), address_place) {
            let problem = Problem::error(format!("{} is there twice", check.show(address_place, &backend.address)));
            let first = check.report.path(first);
            check.add(address_place, problem.expected(format!("one entry, with a weight, in place of {first} too")));
            continue;
        }
        backends.push(backend);
    }
    backends
}

/// Warns where nothing can be picked.
pub(crate) fn warn_of_none(check: &Check<'_>, field: &Field<WrittenBackends>, backends: &[BackendConfig]) {
    let Some((place, members)) = field.given() else { return };
    if members.is_empty() {
        check.add(place, Problem::warning("no backends: every request is answered 503"));
    } else if !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
        check.add(place, Problem::warning("every weight is 0: every request is answered 503"));
    }
}

fn read(
    check: &Check<'_>,
    place: Place,
    written: &WrittenBackend,
    strategy: &StrategyConfig,
    limits: BackendLimits,
) -> Option<(Place, BackendConfig)> {
    let (mut backend, table) = match written {
        WrittenBackend::String(text) => (
            BackendConfig { address: AddressWithPort.read(check, place, text)?, ..BackendConfig::by_default(check) },
            None,
        ),
        WrittenBackend::Table(table) => {
            check_weight(check, &table.weight, strategy);
            (BackendConfig::read(check, place, table)?, Some(table))
        }
    };
    backend.inherit(check, table, limits);
    Some((written.address(place).map_or(place, |(place, _)| place), backend))
}

/// 0 makes sense under every strategy: the backend takes nothing new.
fn check_weight(check: &Check<'_>, field: &Field<i64>, strategy: &StrategyConfig) {
    if let Some((place, weight)) = field.given()
        && (2..=65_535).contains(weight)
        && !strategy.uses_weights()
    {
        let shown = check.show(place, weight);
        let problem = Problem::error(format!("a weight of {shown} under {}, which ignores weights", strategy.as_str()));
        let suggestion = (*strategy == StrategyConfig::Random).then_some("weighted_random");
        let suggestion = suggestion.unwrap_or("weighted_round_robin");
        check.add(
            place,
            problem.expected("a strategy that uses weights, or a weight of 0 or 1").suggest(Some(suggestion.into())),
        );
    }
}
