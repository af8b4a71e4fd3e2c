//! `retries` of upstreams and routes: when a request is tried again.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::GrpcStatus;
use super::check::Check;
use super::difference::Changes;
use super::error::Problem;
use super::field::Field;
use super::form::{About, Form, FromLiteral, Literal, Part, Size, Span, Timeout, Whole, part_about};
use super::json_tree::Tree;
use super::raw;
use super::report::Place;
use super::table::Table;
use super::units;
use super::visibility::{Kind, OfKind, Word as Text};

/// When a request is tried again at another backend: only where it cannot have been processed, or may be repeated, and nothing of an answer went
/// to the client.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(reload = Requests)]
pub struct RetryConfig {
    /// Further attempts of a request, never at a backend where it has been. `retries = 2` is `max` alone.
    #[key(Whole(0..=7), default = 2)]
    pub max: u8,
    /// After what. Of these only `connect_failure` tries again what may not be sent twice (not idempotent, no `Idempotency-Key`). A 500 is the
    /// application's own answer, and most often the same elsewhere.
    #[key(Conditions, default = ["connect_failure", "reset", "timeout", 502, 503, 504])]
    pub on: RetryOn,
    /// gRPC calls that are answered with nothing but one of these statuses, such as `unavailable`, are made again.
    #[key(GrpcStatuses, default = [])]
    pub grpc_statuses: Vec<GrpcStatus>,
    /// From the request sent to the response's head: a slower attempt is given up while another may be made. Below `response_head` of the route.
    #[key(Timeout, default = "none")]
    pub attempt_timeout: Option<Duration>,
    /// Waits before further attempts.
    #[key(Part)]
    pub backoff: BackoffConfig,
    /// Bytes of a request's body that are kept so that it can be sent again; a longer one is sent once.
    #[key(Size("0", "16MiB"), default = "64KiB")]
    pub body_buffer: usize,
    /// A response of known length up to this, to a request that may be sent twice, is held back until it is whole, 100 ms at most: one that breaks
    /// off is tried again and not passed on cut.
    #[key(Size("0", "16MiB"), default = "16KiB")]
    pub response_buffer: usize,
    /// A second attempt while the first is slow; none without the table.
    #[key(Part)]
    pub hedge: Option<HedgeConfig>,
}

/// Waits of random length before further attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check, reload = Requests)]
pub struct BackoffConfig {
    /// The longest wait before the first; it doubles with each.
    #[key(Span, default = "25ms")]
    pub base: Duration,
    /// The longest wait before any; not below `base`.
    #[key(Span, default = "250ms")]
    pub max: Duration,
    /// The longest `Retry-After` that a request is held for; with a longer one the answer stands.
    #[key(Span, default = "1s")]
    pub retry_after_max: Duration,
}

/// A second attempt while the first is slow. The first answer wins. The table alone switches it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Table)]
#[table(enabled = true, reload = Requests)]
pub struct HedgeConfig {
    /// The second attempt is made once so many of a hundred responses would have come.
    #[key(Whole(50..=99), default = 95)]
    pub percentile: u8,
    /// The least delay before a hedge.
    #[key(Span, default = "1ms")]
    pub min_delay: Duration,
    /// Second attempts in a hundred requests at most.
    #[key(Whole(1..=100), default = 5)]
    pub budget_percent: u16,
}

/// After what a request is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryOn {
    /// No connection could be made, or none in time, or it broke before anything was sent: nothing was sent.
    pub connect_failure: bool,
    /// The connection broke before any byte of a response.
    pub reset: bool,
    /// `attempt_timeout` or `response_head` ran out.
    pub timeout: bool,
    /// A response with one of these statuses. In ascending order.
    pub statuses: Vec<StatusCode>,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self::of_defaults()
    }
}

impl Default for HedgeConfig {
    fn default() -> Self {
        Self::of_defaults()
    }
}

impl RetryConfig {
    /// Warns of more further attempts than there are other backends. `backends`: how many there are of the upstream.
    pub(crate) fn warn_of_too_many(check: &Check<'_>, field: &Field<WrittenRetries>, backends: usize) {
        let max = match field.given() {
            Some((place, WrittenRetries::Integer(max))) => Some((place, *max)),
            Some((_, WrittenRetries::Table(written))) => written.max.given().map(|(place, max)| (place, *max)),
            None => None,
        };
        let others = i64::try_from(backends).unwrap_or(i64::MAX) - 1;
        let Some((place, _)) = max.filter(|(_, max)| (1..=7).contains(max) && others >= 0 && *max > others) else {
            return;
        };
        let (what, expected) = match others {
            0 => (
                "no request is sent to a backend twice, and there is only one".to_owned(),
                "0, or another backend".to_owned(),
            ),
            _ => (
                format!("no request is sent to a backend twice, and there are {backends}"),
                format!("{others} at most, or more backends"),
            ),
        };
        check.add(place, Problem::warning(what).expected(expected));
    }
}

impl BackoffConfig {
    fn check(check: &Check<'_>, _: Place, written: &WrittenBackoffConfig, mut it: Self) -> Option<Self> {
        match written.max.given() {
            Some((place, raw::Duration(text))) if it.max < it.base && units::duration(text).is_some() => {
                let base = check.show_other(written.base.place(), format_args!("{:?}", it.base));
                let problem = Problem::error(format!("shorter than the base of {base}"));
                check.add(place, problem.expected("the base at least"));
            }
            // A base above the default is no contradiction by itself.
            _ => it.max = it.max.max(it.base),
        }
        Some(it)
    }
}

impl RetryOn {
    const WORDS: [&str; 3] = ["connect_failure", "reset", "timeout"];

    /// Those of the conditions that are words.
    fn words(&self) -> impl Iterator<Item = &'static str> {
        let on = [self.connect_failure, self.reset, self.timeout];
        Self::WORDS.into_iter().zip(on).filter(|(_, on)| *on).map(|(word, _)| word)
    }

    fn texts(&self) -> Vec<String> {
        self.words().map(str::to_owned).chain(self.statuses.iter().map(|status| status.as_str().to_owned())).collect()
    }
}

/// `["connect_failure", 503]`
struct Conditions;

impl Form<RetryOn> for Conditions {
    type Written = Vec<Field<raw::RetryCondition>>;

    fn read(&self, check: &Check<'_>, place: Place, written: &Self::Written) -> Option<RetryOn> {
        if written.is_empty() {
            let problem = Problem::error("an empty array, so that nothing would be tried again");
            check.add(place, problem.expected("one condition at least, or max = 0"));
        }
        let mut on = RetryOn { connect_failure: false, reset: false, timeout: false, statuses: Vec::new() };
        for (place, member) in written.iter().filter_map(Field::given) {
            match member {
                raw::RetryCondition::String(text) => match text.as_str() {
                    "connect_failure" => once(check, place, text, &mut on.connect_failure),
                    "reset" => once(check, place, text, &mut on.reset),
                    "timeout" => once(check, place, text, &mut on.timeout),
                    unknown => {
                        let problem = Problem::error(format!("unknown condition {}", check.quote(place, unknown)));
                        check.add(place, problem.one_of(unknown, RetryOn::WORDS));
                    }
                },
                raw::RetryCondition::Integer(number) => {
                    let status = u16::try_from(*number).ok().filter(|status| (400..=599).contains(status));
                    match status.and_then(|status| StatusCode::from_u16(status).ok()) {
                        Some(status) if on.statuses.contains(&status) => {
                            twice(check, place, &check.show(place, number))
                        }
                        Some(status) => on.statuses.push(status),
                        None => {
                            let what = format!("{} is not the status of a failure", check.show(place, number));
                            check.add(place, Problem::error(what).expected("400 to 599"));
                        }
                    }
                }
            }
        }
        on.statuses.sort_unstable();
        Some(on)
    }

    fn show(&self, value: &RetryOn) -> Option<Tree> {
        let statuses = value.statuses.iter().map(|status| status.as_u16().into());
        Some(Tree::List(value.words().map(Tree::from).chain(statuses).collect()))
    }

    fn tell(&self, value: &RetryOn) -> String {
        value.texts().join(", ")
    }

    fn compare(&self, changes: &mut Changes, table: &str, words: &str, old: &RetryOn, new: &RetryOn) {
        changes.told_members(Kind::Plain, &format!("{table}{words}"), &old.texts(), &new.texts());
    }

    fn about(&self) -> About {
        let status = json!({ "type": "integer", "minimum": 400, "maximum": 599 });
        let words = json!({ "enum": RetryOn::WORDS });
        let schema =
            json!({ "type": "array", "minItems": 1, "items": { "anyOf": [words, status, super::form::variable()] } });
        let words = RetryOn::WORDS.map(|word| format!("`\"{word}\"`")).join(", ");
        About::new::<raw::RetryCondition>(format!("an array of {words} and statuses, 400 to 599"), schema)
    }
}

/// `["unavailable"]`
struct GrpcStatuses;

impl Form<Vec<GrpcStatus>> for GrpcStatuses {
    type Written = Vec<Field<Text>>;

    fn read(&self, check: &Check<'_>, _: Place, written: &Self::Written) -> Option<Vec<GrpcStatus>> {
        let mut statuses = Vec::new();
        for (place, text) in written.iter().filter_map(Field::given) {
            match GrpcStatus::ALL.into_iter().find(|status| status.as_str() == text.as_str()) {
                Some(GrpcStatus::Ok) => {
                    check.add(place, Problem::error("\"ok\" is not the status of a failure").expected("another one"));
                }
                Some(status) if statuses.contains(&status) => twice(check, place, &check.quote(place, text)),
                Some(status) => statuses.push(status),
                None => {
                    let problem = Problem::error(format!("unknown status {}", check.quote(place, text)));
                    // As other programs write it.
                    let lower = text.to_lowercase();
                    let names = GrpcStatus::ALL.iter().skip(1).map(|status| status.as_str());
                    check.add(place, problem.one_of(&lower, names));
                }
            }
        }
        statuses.sort_unstable();
        Some(statuses)
    }

    fn show(&self, value: &Vec<GrpcStatus>) -> Option<Tree> {
        Some(Tree::List(value.iter().map(|status| status.as_str().into()).collect()))
    }

    fn tell(&self, value: &Vec<GrpcStatus>) -> String {
        value.iter().map(|status| status.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn compare(&self, changes: &mut Changes, table: &str, words: &str, old: &Vec<GrpcStatus>, new: &Vec<GrpcStatus>) {
        let texts = |statuses: &[GrpcStatus]| statuses.iter().map(ToString::to_string).collect::<Vec<_>>();
        changes.told_members(Kind::Plain, &format!("{table}{words}"), &texts(old), &texts(new));
    }

    fn about(&self) -> About {
        let names: Vec<_> = GrpcStatus::ALL.iter().skip(1).map(|status| status.as_str()).collect();
        let schema = json!({ "type": "array", "items": { "anyOf": [{ "enum": names }, super::form::variable()] } });
        About::new::<Text>("an array of statuses of gRPC", schema)
    }
}

fn once(check: &Check<'_>, place: Place, text: &str, on: &mut bool) {
    if std::mem::replace(on, true) {
        twice(check, place, &check.quote(place, text));
    }
}

fn twice(check: &Check<'_>, place: Place, what: &str) {
    check.add(place, Problem::error(format!("{what} is there twice")));
}

/// Further attempts as the file has them: how many, or a table with more.
#[derive(Debug, Deserialize)]
#[serde(rename = "a whole number, or a table such as { max = 2 }", rename_all = "snake_case")]
pub(crate) enum WrittenRetries {
    Integer(i64),
    Table(Box<WrittenRetryConfig>),
}

impl OfKind for WrittenRetries {
    const KIND: Kind = Kind::Plain;
}

impl FromLiteral for WrittenRetries {
    fn of(_: Literal) -> Option<Self> {
        None
    }
}

/// [`RetryConfig`]: how many further attempts, or a table with more.
pub(crate) struct Retries;

impl Form<Arc<RetryConfig>> for Retries {
    type Written = WrittenRetries;

    fn read(&self, check: &Check<'_>, place: Place, written: &WrittenRetries) -> Option<Arc<RetryConfig>> {
        self.read_over(check, place, written, None)
    }

    fn read_over(
        &self,
        check: &Check<'_>,
        place: Place,
        written: &WrittenRetries,
        before: Option<&Arc<RetryConfig>>,
    ) -> Option<Arc<RetryConfig>> {
        let config = match written {
            WrittenRetries::Integer(number) => {
                let max = Whole(0..=7).read(check, place, number)?;
                let before = before.map_or_else(|| RetryConfig::by_default(check), |before| (**before).clone());
                RetryConfig { max, ..before }
            }
            WrittenRetries::Table(written) => {
                RetryConfig::read_over(check, place, written, before.map(|before| &**before))?
            }
        };
        Some(Arc::new(config))
    }

    fn absent(&self, check: &Check<'_>, _: Literal) -> Arc<RetryConfig> {
        Arc::new(RetryConfig::by_default(check))
    }

    fn show(&self, value: &Arc<RetryConfig>) -> Option<Tree> {
        Some(value.tree())
    }

    fn tell(&self, value: &Arc<RetryConfig>) -> String {
        value.max.to_string()
    }

    fn compare(&self, changes: &mut Changes, table: &str, words: &str, old: &Arc<RetryConfig>, new: &Arc<RetryConfig>) {
        RetryConfig::compare(changes, &format!("{table}{words}."), old, new);
    }

    fn about(&self) -> About {
        let number = <Whole as Form<u8>>::about(&Whole(0..=7));
        let table = part_about::<RetryConfig>();
        let schema = json!({ "anyOf": [number.schema, table.schema] });
        About { form: format!("{}, or a table", number.form), schema, kind: Kind::Plain, ..table }
    }
}
