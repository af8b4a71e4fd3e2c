//! `/log`: what is logged, and another level for a time.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use serde::Serialize;

use super::Control;
use super::answer::{AdminAnswer, json};
use super::params::RequestParams;
use super::refusal::AdminRefusal;
use crate::telemetry::audit;
use crate::telemetry::calendar::rfc3339;
use crate::telemetry::events::EventKind;
use crate::telemetry::logging::{Levels, Logging, Raised};

/// How long another level holds by default: a level that is forgotten fills disks.
const DEFAULT: Duration = Duration::from_secs(10 * 60);
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

#[derive(Debug, Serialize)]
struct LevelView<'a> {
    level: &'a str,
    configured: &'a str,
    raised: Option<RaisedView<'a>>,
}

#[derive(Debug, Serialize)]
struct RaisedView<'a> {
    level: &'a str,
    by: &'a str,
    since: String,
    until: String,
}

fn shown(levels: &Levels) -> AdminAnswer {
    let raised = levels.raised.as_ref().map(|raised| RaisedView {
        level: &raised.level,
        by: &raised.by,
        since: rfc3339(raised.since),
        until: rfc3339(raised.until),
    });
    json(StatusCode::OK, &LevelView { level: levels.level(), configured: &levels.configured, raised })
}

/// What is logged.
pub(super) fn show(control: &dyn Control) -> Result<AdminAnswer, AdminRefusal> {
    Ok(shown(&logging(control)?.levels()))
}

/// Logs something else for a time.
pub(super) fn raise(control: &Arc<dyn Control>, params: RequestParams, who: &str) -> Result<AdminAnswer, AdminRefusal> {
    let logging = logging(&**control)?;
    let params = params.only(&["level", "for"])?;
    let level = params.text("level")?.ok_or_else(|| AdminRefusal::bad("there is no level", "body.level"))?;
    let duration = params.duration()?.unwrap_or(DEFAULT);
    let before = logging.levels();
    let since = SystemTime::now();
    let raised = logging
        .raise(level, who, since, since + duration)
        .map_err(|error| AdminRefusal::bad(error.to_string(), "body.level").one_of(level, LEVELS))?;
    control.events().publish(told(who, &before, format!("{level} until {}", rfc3339(raised.until))));

    let control = Arc::clone(control);
    let vital = control.events().vital().clone();
    tokio::spawn(vital.watch("end of a log level".into(), async move {
        tokio::time::sleep(duration).await;
        let Some(logging) = control.logging() else { return };
        let before = logging.levels();
        if logging.lower(Some(&raised)).is_some() {
            control.events().publish(told("its time is over", &before, before.configured.clone()));
        }
    }));
    Ok(shown(&logging.levels()))
}

/// Logs again what the configuration says.
pub(super) fn lower(control: &dyn Control, params: RequestParams, who: &str) -> Result<AdminAnswer, AdminRefusal> {
    let logging = logging(control)?;
    params.only(&[])?;
    let before = logging.levels();
    match logging.lower(None) {
        Some(Raised { .. }) => control.events().publish(told(who, &before, before.configured.clone())),
        None => audit::unchanged(&audit::AuditEntry {
            who,
            what: "log",
            upstream: None,
            backend: None,
            from: before.level(),
            to: before.level(),
        }),
    }
    Ok(shown(&logging.levels()))
}

fn told(who: &str, before: &Levels, to: String) -> EventKind {
    let from = before.level().to_owned();
    EventKind::ByHand { who: who.into(), what: "log".into(), upstream: None, backend: None, from, to }
}

fn logging(control: &dyn Control) -> Result<&Logging, AdminRefusal> {
    let ours = control.logging().filter(|logging| logging.decides());
    ours.ok_or_else(|| {
        let what = "the program around isobar logs in a way of its own: its level is not decided here";
        AdminRefusal::new(StatusCode::CONFLICT, what, "/log")
    })
}
