//! `strategy` of an upstream: how a backend is picked.

use std::sync::Arc;

use serde_json::json;

use super::check::Check;
use super::error::Problem;
use super::form::{About, Form};
use super::json_tree::Tree;
use super::report::Place;
use super::visibility::Word as Text;

/// How a backend is picked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StrategyConfig {
    /// Each in turn.
    RoundRobin,
    /// Each in turn as often as its weight, evenly spread.
    WeightedRoundRobin,
    /// Any, equally likely.
    Random,
    /// Any, as likely as its weight.
    WeightedRandom,
    /// The one with the fewest requests in flight for its weight.
    LeastConnections,
    /// The less loaded of two distinct draws.
    PowerOfTwo,
    /// One that the embedding program supplies under this name.
    Custom(Arc<str>),
}

impl StrategyConfig {
    /// The names of the strategies that isobar has itself, as `lb.toml` writes them.
    pub const NAMES: [&str; 6] =
        ["round_robin", "weighted_round_robin", "random", "weighted_random", "least_connections", "power_of_two"];

    /// As `lb.toml` writes it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::WeightedRoundRobin => "weighted_round_robin",
            Self::Random => "random",
            Self::WeightedRandom => "weighted_random",
            Self::LeastConnections => "least_connections",
            Self::PowerOfTwo => "power_of_two",
            Self::Custom(name) => name,
        }
    }

    /// Those for which a weight other than 0 and 1 makes no difference.
    pub(crate) const WITHOUT_WEIGHTS: [Self; 2] = [Self::RoundRobin, Self::Random];

    /// Whether a weight other than 1 makes a difference (a custom strategy may look at it).
    pub fn uses_weights(&self) -> bool {
        !Self::WITHOUT_WEIGHTS.contains(self)
    }
}

/// The name of a strategy: one of isobar's own, or one that the embedding program supplies.
pub(crate) struct StrategyName;

impl Form<StrategyConfig> for StrategyName {
    type Written = Text;

    fn read(&self, check: &Check<'_>, place: Place, text: &Text) -> Option<StrategyConfig> {
        Some(match text.as_str() {
            "round_robin" => StrategyConfig::RoundRobin,
            "weighted_round_robin" => StrategyConfig::WeightedRoundRobin,
            "random" => StrategyConfig::Random,
            "weighted_random" => StrategyConfig::WeightedRandom,
            "least_connections" => StrategyConfig::LeastConnections,
            "power_of_two" => StrategyConfig::PowerOfTwo,
            name => {
                let custom = &check.vocabulary.strategies;
                if !custom.iter().any(|known| known == name) {
                    refuse_unknown(check, place, name, custom);
                }
                // Also for an unknown one: whether its weights would mean anything is not known either.
                StrategyConfig::Custom(Arc::from(name))
            }
        })
    }

    fn show(&self, value: &StrategyConfig) -> Option<Tree> {
        Some(value.as_str().into())
    }

    fn tell(&self, value: &StrategyConfig) -> String {
        value.as_str().to_owned()
    }

    fn about(&self) -> About {
        let names = StrategyConfig::NAMES.map(|name| format!("`\"{name}\"`")).join(", ");
        let schema = json!({ "anyOf": [{ "enum": StrategyConfig::NAMES }, { "type": "string" }] });
        About::new::<Text>(format!("{names}, or one of the embedding program"), schema)
    }
}

fn refuse_unknown(check: &Check<'_>, place: Place, name: &str, custom: &[String]) {
    let names = StrategyConfig::NAMES.into_iter().chain(custom.iter().map(String::as_str));
    let mut what = format!("unknown strategy {}", check.quote(place, name));
    let known = elsewhere(name);
    if known == Some(Elsewhere::ByKey) && !check.report.is_filled(place) {
        what += ", which picks by what a request has: there is none that does";
    }
    let mut problem = Problem::error(what).one_of(name, names);
    match known {
        Some(Elsewhere::Ours(ours)) => problem = problem.suggest(Some(ours.into())),
        Some(Elsewhere::ByKey) => problem = problem.suggest(None),
        None => {}
    }
    check.add(place, problem);
}

/// A strategy under the name that it has in another balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Elsewhere {
    /// One of ours.
    Ours(&'static str),
    /// It picks by the client's address, a header or the like, so that what is alike stays together.
    ByKey,
}

/// What nginx, HAProxy, Envoy, Caddy, Traefik, IPVS, linkerd and the clouds call their strategies, where it is not nearly what they are called
/// here.
fn elsewhere(name: &str) -> Option<Elsewhere> {
    use Elsewhere::{ByKey, Ours};

    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    Some(match plain.to_ascii_lowercase().as_str() {
        "rr" | "roundrobin" => Ours("round_robin"),
        "wrr" | "weighted" | "staticrr" | "weightedrr" | "smooth" | "swrr" => Ours("weighted_round_robin"),
        "wrandom" | "weightedrand" => Ours("weighted_random"),
        "rand" => Ours("random"),
        "leastconn"
        | "leastconns"
        | "leastrequest"
        | "leastrequests"
        | "leasttime"
        | "lc"
        | "wlc"
        | "sed"
        | "nq"
        | "least"
        | "leastoutstandingrequests"
        | "leastoutstanding"
        | "leastloaded"
        | "leastpending"
        | "leastsessions"
        | "weightedleastrequest"
        | "weightedleastconnections"
        | "fastest" => Ours("least_connections"),
        "p2c" | "poweroftwochoices" | "twochoices" | "randomtwo" | "random2" | "randomtwoleastconn"
        | "randomchoose" | "randomchoose2" | "ewma" | "peakewma" | "twochoose" | "bestoftwo" => Ours("power_of_two"),
        "iphash" | "clientiphash" | "source" | "sourcehash" | "sourceip" | "uri" | "urihash" | "urlparam" | "hdr"
        | "header" | "cookie" | "query" | "hash" | "maglev" | "ringhash" | "ketama" | "consistent"
        | "consistenthash" | "consistenthashing" | "sticky" | "session" | "sh" | "dh" | "mh" | "rdpcookie"
        | "rendezvous" | "hrw" | "murmur2" | "generichash" => ByKey,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_of_other_balancers_are_one_of_ours_or_of_none() {
        for name in [
            "rr",
            "wrr",
            "least_conn",
            "leastconn",
            "LEAST_REQUEST",
            "P2C",
            "random two least_conn",
            "static-rr",
            "peak_ewma",
        ] {
            let Some(Elsewhere::Ours(ours)) = elsewhere(name) else { panic!("{name}") };
            assert!(StrategyConfig::NAMES.contains(&ours), "{name}: {ours}");
        }
        for name in ["ip_hash", "source", "uri", "MAGLEV", "ring_hash", "hdr(host)", "consistent-hash"] {
            let known = elsewhere(name);
            assert_eq!(known, (name != "hdr(host)").then_some(Elsewhere::ByKey), "{name}");
        }
        for name in StrategyConfig::NAMES {
            assert_eq!(elsewhere(name), (name == "round_robin").then_some(Elsewhere::Ours("round_robin")));
        }
        assert_eq!(elsewhere("tides"), None);
    }
}
