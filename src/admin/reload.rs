//! `/reload`: applies the file.

use std::sync::Arc;

use http::StatusCode;
use serde::Serialize;

use super::answer::{AdminAnswer, failed, json};
use super::{Control, Fate, ReloadReport};
use crate::telemetry::audit;
use crate::telemetry::calendar::rfc3339;

#[derive(Debug, Serialize)]
struct AppliedView<'a> {
    generation: u64,
    upstreams: Vec<UpstreamChangeView<'a>>,
    others: &'a [String],
    warnings: &'a [String],
}

#[derive(Debug, Serialize)]
struct UpstreamChangeView<'a> {
    name: &'a str,
    fate: Fate,
    changes: &'a [String],
}

#[derive(Debug, Serialize)]
struct ReloadRefusedView<'a> {
    at: String,
    problems: &'a [String],
}

/// Applies the file and tells what changed, or what is wrong with it.
pub(super) async fn run(control: Arc<dyn Control>, who: &str) -> AdminAnswer {
    let before = format!("generation {}", control.snapshot().generation);
    // In a task of its own: a client that goes away must not leave a reload half done.
    let reload = tokio::spawn(async move { control.reload().await });
    match reload.await {
        Ok(Ok(report)) => {
            let to = format!("generation {}", report.generation);
            let (upstream, backend) = (None, None);
            audit::changed(&audit::AuditEntry { who, what: "reload", upstream, backend, from: &before, to: &to });
            json(StatusCode::OK, &AppliedView::of(&report))
        }
        Ok(Err(failed)) => {
            audit::refused(who, "reload", &failed.problems.join("; "));
            let refused = ReloadRefusedView { at: rfc3339(failed.at), problems: &failed.problems };
            json(StatusCode::UNPROCESSABLE_ENTITY, &refused)
        }
        Err(error) => failed(&error),
    }
}

impl<'a> AppliedView<'a> {
    fn of(report: &'a ReloadReport) -> Self {
        let upstreams = report
            .upstreams
            .iter()
            .map(|it| UpstreamChangeView { name: it.name.as_str(), fate: it.fate, changes: &it.changes })
            .collect();
        Self { generation: report.generation, upstreams, others: &report.others, warnings: &report.warnings }
    }
}
