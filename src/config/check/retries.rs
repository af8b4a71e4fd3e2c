//! `retries` of upstreams and routes.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::Check;
use super::value::{number, optional_timeout, size_in, zero_or_more};
use crate::config::error::Problem;
use crate::config::field::Field;
use crate::config::kind::Word;
use crate::config::raw;
use crate::config::report::Place;
use crate::config::{GrpcStatus, HedgeConfig, RetryConfig, RetryOn};

const CONDITIONS: [&str; 3] = ["connect_failure", "reset", "timeout"];
/// Bodies are kept until the answer has begun, for each request under way.
const BODY_BUFFER_MAX: u64 = 16 * 1024 * 1024;

/// When requests are tried again, where what the file leaves out is as in `before`.
pub(super) fn retries(check: &Check<'_>, field: &Field<raw::Retries>, before: &Arc<RetryConfig>) -> Arc<RetryConfig> {
    let max = |field: &Field<i64>| u8::try_from(number(check, field, before.max.into(), 0..=7)).unwrap_or(before.max);
    match field.given() {
        None => Arc::clone(before),
        Some((place, raw::Retries::Integer(number))) => {
            Arc::new(RetryConfig { max: max(&Field::Given(place, *number)), ..(**before).clone() })
        }
        Some((_, raw::Retries::Table(raw))) => {
            let default = raw::Backoff::default();
            let backoff = raw.backoff.value().unwrap_or(&default);
            let (backoff_base, backoff_max) = backoff_range(check, backoff, before);
            Arc::new(RetryConfig {
                max: max(&raw.max),
                on: on(check, &raw.on, &before.on),
                grpc_statuses: grpc_statuses(check, &raw.grpc_statuses, &before.grpc_statuses),
                attempt_timeout: attempt_timeout(check, &raw.attempt_timeout, before.attempt_timeout),
                backoff_base,
                backoff_max,
                retry_after_max: zero_or_more(check, &backoff.retry_after_max, before.retry_after_max),
                body_buffer: buffer(check, &raw.body_buffer, before.body_buffer),
                response_buffer: buffer(check, &raw.response_buffer, before.response_buffer),
                hedge: hedge(check, &raw.hedge, before.hedge),
            })
        }
    }
}

/// Warns of more further attempts than there are other backends. `backends`: how many there are of the upstream.
pub(super) fn warn_of_too_many(check: &Check<'_>, field: &Field<raw::Retries>, backends: usize) {
    let max = match field.given() {
        Some((place, raw::Retries::Integer(max))) => Some((place, *max)),
        Some((_, raw::Retries::Table(raw))) => raw.max.given().map(|(place, max)| (place, *max)),
        None => None,
    };
    let others = i64::try_from(backends).unwrap_or(i64::MAX) - 1;
    let Some((place, _)) = max.filter(|(_, max)| (1..=7).contains(max) && others >= 0 && *max > others) else { return };
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

/// `["connect_failure", 503]`
fn on(check: &Check<'_>, field: &Field<Vec<Field<raw::Condition>>>, before: &RetryOn) -> RetryOn {
    let Some((place, members)) = field.given() else { return before.clone() };
    if members.is_empty() {
        let problem = Problem::error("an empty array, so that nothing would be tried again");
        check.add(place, problem.expected("one condition at least, or max = 0"));
    }
    let mut on = RetryOn { connect_failure: false, reset: false, timeout: false, statuses: Vec::new() };
    for (place, member) in field.members() {
        match member {
            raw::Condition::String(text) => match text.as_str() {
                "connect_failure" => once(check, place, text, &mut on.connect_failure),
                "reset" => once(check, place, text, &mut on.reset),
                "timeout" => once(check, place, text, &mut on.timeout),
                unknown => {
                    let problem = Problem::error(format!("unknown condition {}", check.quote(place, unknown)));
                    check.add(place, problem.one_of(unknown, CONDITIONS));
                }
            },
            raw::Condition::Integer(number) => {
                let status = u16::try_from(*number).ok().filter(|status| (400..=599).contains(status));
                match status.and_then(|status| StatusCode::from_u16(status).ok()) {
                    Some(status) if on.statuses.contains(&status) => twice(check, place, &check.show(place, number)),
                    Some(status) => on.statuses.push(status),
                    None => {
                        let problem =
                            Problem::error(format!("{} is not the status of a failure", check.show(place, number)));
                        check.add(place, problem.expected("400 to 599"));
                    }
                }
            }
        }
    }
    on.statuses.sort_unstable();
    on
}

/// `["unavailable"]`
fn grpc_statuses(check: &Check<'_>, field: &Field<Vec<Field<Word>>>, before: &[GrpcStatus]) -> Vec<GrpcStatus> {
    if field.given().is_none() {
        return before.to_vec();
    }
    let mut statuses = Vec::new();
    for (place, text) in field.members() {
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
                check.add(place, problem.one_of(&lower, GrpcStatus::ALL.iter().skip(1).map(|status| status.as_str())));
            }
        }
    }
    statuses.sort_unstable();
    statuses
}

fn once(check: &Check<'_>, place: Place, text: &str, on: &mut bool) {
    if std::mem::replace(on, true) {
        twice(check, place, &check.quote(place, text));
    }
}

fn twice(check: &Check<'_>, place: Place, what: &str) {
    check.add(place, Problem::error(format!("{what} is there twice")));
}

fn attempt_timeout(check: &Check<'_>, field: &Field<raw::Duration>, before: Option<Duration>) -> Option<Duration> {
    if field.place().is_some() { optional_timeout(check, field) } else { before }
}

fn backoff_range(check: &Check<'_>, raw: &raw::Backoff, before: &RetryConfig) -> (Duration, Duration) {
    let base = zero_or_more(check, &raw.base, before.backoff_base);
    let max = zero_or_more(check, &raw.max, before.backoff_max.max(base));
    if let Some((place, _)) = raw.max.given()
        && max < base
    {
        let base = check.show_other(raw.base.place(), format_args!("{base:?}"));
        let problem = Problem::error(format!("shorter than the base of {base}"));
        check.add(place, problem.expected("the base at least"));
    }
    (base, max)
}

fn buffer(check: &Check<'_>, field: &Field<raw::Size>, before: usize) -> usize {
    let bytes = size_in(check, field, 0..=BODY_BUFFER_MAX, "0 to \"16MiB\"");
    bytes.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(before)
}

/// The table alone switches it on.
fn hedge(check: &Check<'_>, field: &Field<raw::Hedge>, before: Option<HedgeConfig>) -> Option<HedgeConfig> {
    let Some(raw) = field.value() else { return before };
    let before = before.unwrap_or_default();
    let config = HedgeConfig {
        percentile: u8::try_from(number(check, &raw.percentile, before.percentile.into(), 50..=99)).unwrap_or(95),
        min_delay: zero_or_more(check, &raw.min_delay, before.min_delay),
        budget_percent: percent(check, &raw.budget_percent, before.budget_percent, 1..=100),
    };
    raw.enabled.value().copied().unwrap_or(true).then_some(config)
}

fn percent(check: &Check<'_>, field: &Field<i64>, default: u16, range: std::ops::RangeInclusive<i64>) -> u16 {
    u16::try_from(number(check, field, default.into(), range)).unwrap_or(default)
}
