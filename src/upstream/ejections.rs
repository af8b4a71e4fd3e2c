//! The keeper's part in outlier detection: shows the judge all backends of an upstream, and does what it says.

use std::collections::BTreeSet;
use std::time::Instant;

use super::{Readiness, Upstream};
use crate::backend::Backend;
use crate::backend::outlier::{self, By, Ejection, EjectionEnd, Occasion, OutlierAction, Sight, Subject};
use crate::telemetry::events::EventKind;

/// Brings the ejections of an upstream up to `now`, and says what has happened. `random` gives any numbers.
pub(super) fn judge(
    upstream: &Upstream,
    occasion: Occasion,
    now: Instant,
    random: &mut dyn FnMut() -> u64,
) -> Vec<EventKind> {
    let roster = upstream.roster();
    let backends = roster.backends();
    let Some(settings) = &upstream.config.outlier_detection else {
        return backends.iter().filter_map(|backend| end_what_has_ended(backend, now)).collect();
    };

    let peers: BTreeSet<_> = backends.iter().map(|backend| &backend.instance.place).collect();
    let in_service = |backend| Readiness::but_for_ejection(backend, &upstream.config) == Readiness::Ready;
    let warming = |backend: &Backend| {
        let ramp = *backend.state.ramp();
        upstream.config.slow_start.as_ref().is_some_and(|settings| ramp.if_ready(now).is_warming(settings, now))
    };
    // A lock of each backend is held from here to the end of the judgement. No other code takes two of them.
    let mut histories: Vec<_> = backends.iter().map(|backend| backend.state.outlier.history()).collect();
    for (backend, history) in backends.iter().zip(&mut histories) {
        if backend.state.outlier.has_served() {
            history.saw(Sight::Served, now);
        }
    }
    let mut subjects: Vec<_> = backends
        .iter()
        .zip(&mut histories)
        .map(|(backend, history)| Subject {
            history: &mut *history,
            totals: backend.state.outlier.totals(),
            streaks: backend.state.outlier.streaks(),
            in_service: in_service(backend),
            warming: warming(backend),
            peers: peers.iter().position(|place| **place == backend.instance.place).unwrap_or_default() as u64,
        })
        .collect();
    let actions = outlier::judge(&mut subjects, settings, occasion, now, random);
    let times: Vec<_> = histories.iter().map(|history| history.times()).collect();
    for (backend, history) in backends.iter().zip(&histories) {
        if let Some(at) = history.counts_from() {
            backend.state.outlier.count_from(at);
        }
    }
    drop(histories);

    let done = actions.into_iter().filter_map(|action| match action {
        OutlierAction::Eject { index, until, reason } => {
            let backend = &backends[index].state;
            backend.outlier.was_ejected(&reason, now);
            upstream.state.ejections.send_modify(|ejections| *ejections += 1);
            Some(EventKind::Ejected {
                upstream: backend.upstream.clone(),
                backend: backend.address.clone(),
                lasts: Some(until.saturating_duration_since(now)),
                times: times[index],
                by: By::Detection.as_str(),
                reason: reason.as_str(),
                evidence: reason.to_string(),
            })
        }
        OutlierAction::Uneject { index, ejection, end } => {
            backends[index].state.outlier.forget_streaks(now);
            Some(unejected(&backends[index], &ejection, now, end.as_str()))
        }
        OutlierAction::Begin { index } => {
            backends[index].state.outlier.forget_streaks(now);
            None
        }
    });
    done.collect()
}

/// Where nothing is detected (any more), what detection has ejected comes back at once, and what an operator has in its time.
fn end_what_has_ended(backend: &Backend, now: Instant) -> Option<EventKind> {
    let ejection = backend.state.outlier.history().ejection().cloned()?;
    let evidence = match ejection.by {
        By::Detection => "outlier detection is off",
        By::Hand if ejection.until.is_some_and(|until| until <= now) => EjectionEnd::Time.as_str(),
        By::Hand => return None,
    };
    backend.state.outlier.take_back(now);
    Some(unejected(backend, &ejection, now, evidence))
}

fn unejected(backend: &Backend, ejection: &Ejection, now: Instant, evidence: &str) -> EventKind {
    EventKind::Unejected {
        upstream: backend.state.upstream.clone(),
        backend: backend.state.address.clone(),
        after: now.saturating_duration_since(ejection.since),
        by: ejection.by.as_str(),
        reason: ejection.reason.as_str(),
        evidence: evidence.into(),
    }
}
