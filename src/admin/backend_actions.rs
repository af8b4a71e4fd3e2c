//! `/upstreams/…/backends/…/drain` and its neighbours: what operators do to a backend by hand; and `/stats/reset`.

use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use serde::Serialize;

use super::answer::{AdminAnswer, json};
use super::params::RequestParams;
use super::refusal::AdminRefusal;
use super::upstreams::BackendView;
use super::{Control, upstreams};
use crate::backend::operator_state::{Act, Lever, Moment, Setting};
use crate::config::Address;
use crate::telemetry::audit;
use crate::telemetry::events::EventKind;
use crate::upstream::{Readiness, Upstream};

/// A lever as the path says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Drain,
    Undrain,
    Disable,
    Enable,
    Eject,
    Uneject,
    SetWeight,
    ResetWeight,
}

impl Verb {
    /// Those that have a path of their own.
    pub(super) const POSTED: [(&'static str, Self); 6] = [
        ("drain", Self::Drain),
        ("undrain", Self::Undrain),
        ("disable", Self::Disable),
        ("enable", Self::Enable),
        ("eject", Self::Eject),
        ("uneject", Self::Uneject),
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Undrain => "undrain",
            Self::Disable => "disable",
            Self::Enable => "enable",
            Self::Eject => "eject",
            Self::Uneject => "uneject",
            Self::SetWeight => "weight",
            Self::ResetWeight => "weight reset",
        }
    }

    fn act(self, params: RequestParams) -> Result<Act, AdminRefusal> {
        let set = |setting, params: RequestParams| Ok(Act::Set(setting, params.only(&["for"])?.duration()?));
        let release = |lever, params: RequestParams| params.only(&[]).map(|_| Act::Release(lever));
        match self {
            Self::Drain => set(Setting::Drained, params),
            Self::Disable => set(Setting::Disabled, params),
            Self::Eject => set(Setting::Ejected, params),
            Self::SetWeight => {
                let params = params.only(&["weight", "for"])?;
                Ok(Act::Set(Setting::Weight(params.weight()?), params.duration()?))
            }
            Self::Undrain => release(Lever::Drain, params),
            Self::Enable => release(Lever::Disable, params),
            Self::Uneject => release(Lever::Eject, params),
            Self::ResetWeight => release(Lever::Weight, params),
        }
    }
}

#[derive(Debug, Serialize)]
struct Pulled<'a> {
    upstream: &'a str,
    backend: String,
    lever: &'static str,
    changed: bool,
    from: String,
    to: String,
    /// What is worth knowing about it.
    notes: Vec<String>,
    /// The backend as it is now; `null` where the file does not have it at present.
    state: Option<BackendView>,
}

/// Pulls a lever for `who`.
pub(super) fn pull(
    control: &dyn Control,
    names: (&str, &str),
    verb: Verb,
    params: RequestParams,
    who: &str,
) -> Result<AdminAnswer, AdminRefusal> {
    let snapshot = control.snapshot();
    let upstream = upstreams::find(&snapshot, names.0)?;
    let address = upstreams::find_address(upstream, names.1)?;
    let act = verb.act(params)?;
    let done = upstream.act_by_hand(&address, act, &who.into(), Moment::now());
    let done = done.map_err(|_| upstreams::unknown_backend(upstream, names.1))?;
    let backend = address.to_string();
    if done.changed {
        control.events().publish(EventKind::ByHand {
            who: who.into(),
            what: verb.as_str().into(),
            upstream: Some(upstream.name().clone()),
            backend: Some(address.clone()),
            from: done.from.clone(),
            to: done.to.clone(),
        });
    } else {
        audit::unchanged(&audit::AuditEntry {
            who,
            what: verb.as_str(),
            upstream: Some(upstream.name().as_str()),
            backend: Some(&backend),
            from: &done.from,
            to: &done.to,
        });
    }
    let pulled = Pulled {
        upstream: upstream.name().as_str(),
        backend,
        lever: verb.as_str(),
        changed: done.changed,
        from: done.from,
        to: done.to,
        notes: notes(upstream, &address, act),
        state: BackendView::find(upstream, &address),
    };
    Ok(json(StatusCode::OK, &pulled))
}

fn notes(upstream: &Upstream, address: &Address, act: Act) -> Vec<String> {
    let mut notes = Vec::new();
    let roster = upstream.roster();
    let backend = roster.backends().iter().find(|backend| backend.state.address == *address);
    match (act, backend) {
        (_, None) => notes.push("the upstream has no such backend at present; this holds when it comes back".into()),
        (Act::Set(Setting::Weight(1..), _), Some(_)) if !upstream.config.strategy.uses_weights() => {
            notes.push(format!("{} ignores weights above 0", upstream.config.strategy.as_str()));
        }
        (Act::Release(_), Some(backend)) => {
            let readiness = Readiness::of(backend, &upstream.config, Instant::now());
            if readiness != Readiness::Ready {
                notes.push(format!("still gets no requests: {}", readiness.as_str()));
            }
        }
        (Act::Set(..), Some(_)) => {}
    }
    if roster.ready().is_empty() {
        notes.push("no backend of the upstream is ready: its requests are answered 503".into());
    }
    notes
}

#[derive(Debug, Serialize)]
struct WasReset {
    /// Whose numbers.
    upstreams: Vec<String>,
}

/// Forgets what was learnt from traffic, of one upstream or of all.
pub(super) fn reset(control: &dyn Control, params: RequestParams, who: &str) -> Result<AdminAnswer, AdminRefusal> {
    let params = params.only(&["upstream"])?;
    let snapshot = control.snapshot();
    let of: Vec<&Arc<Upstream>> = match params.text("upstream")? {
        Some(name) => vec![upstreams::find(&snapshot, name)?],
        None => snapshot.upstreams.iter().collect(),
    };
    for upstream in &of {
        upstream.state.reset_learnt(Instant::now());
    }
    control.events().publish(EventKind::ByHand {
        who: who.into(),
        what: "reset statistics".into(),
        upstream: params.text("upstream")?.map(Into::into),
        backend: None,
        from: "learnt".into(),
        to: "nothing learnt".into(),
    });
    let upstreams = of.iter().map(|upstream| upstream.name().to_string()).collect();
    Ok(json(StatusCode::OK, &WasReset { upstreams }))
}
