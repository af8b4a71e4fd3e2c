//! `/upstreams/…/backends`: the backends that are sent to an upstream which has a source `push`.
//!
//! What is sent is the whole list, and takes the place of the one before. An answer can say what is wrong with it, so a list with one bad entry is
//! refused as a whole, unlike the answer of a registry. `If-Match` with the `ETag` of the list that was read keeps two that change it from undoing
//! each other's work.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, request};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::answer::{AdminAnswer, json};
use super::connections::Stage;
use super::refusal::AdminRefusal;
use super::{Context, Control, authority, upstreams};
use crate::backend::admission::Admission;
use crate::backend::document::{self, Document};
use crate::backend::{BackendSet, Instance};
use crate::config::{DiscoveryConfig, PushConfig, SourceConfig};
use crate::telemetry::audit;
use crate::telemetry::events::EventKind;
use crate::upstream::Upstream;

/// How long an answer waits for the list to be served with.
const SERVED_WITHIN: Duration = Duration::from_secs(1);

/// What is told of bad entries.
const TOLD_MAX: usize = 20;

#[derive(Debug, Serialize)]
struct Pushed<'a> {
    upstream: &'a str,
    /// How many backends were sent.
    backends: usize,
    /// Whether they are others than before.
    changed: bool,
    /// Whether they are served with by now; they will be in a moment.
    served: bool,
}

/// The source of an upstream that is pushed to.
fn source(upstream: &Upstream) -> Result<(&DiscoveryConfig, &PushConfig), AdminRefusal> {
    let found = upstream.config.discovery.iter().find_map(|config| match config.source() {
        Some(SourceConfig::Push(push)) => Some((config, &**push)),
        _ => None,
    });
    found.ok_or_else(|| {
        let name = upstream.name();
        let what =
            format!("upstream {name} has no source that is pushed to: [[upstream.{name}.discovery]] with push = {{}}");
        AdminRefusal::new(StatusCode::NOT_FOUND, what, format!("/upstreams/{name}/backends"))
    })
}

/// The list that was sent last.
pub(super) fn show(control: &dyn Control, name: &str) -> Result<AdminAnswer, AdminRefusal> {
    let snapshot = control.snapshot();
    let upstream = upstreams::find(&snapshot, name)?;
    source(upstream)?;
    let set = upstream.state.sources.inbox().look().ok_or_else(|| {
        AdminRefusal::new(StatusCode::NOT_FOUND, "nothing was sent yet", format!("/upstreams/{name}/backends"))
    })?;
    Ok(with_etag(json(StatusCode::OK, &document::to_json(&set)), &set))
}

/// Takes a list.
pub(super) async fn take(
    name: &str,
    head: &request::Parts,
    body: Incoming,
    context: &Context,
) -> Result<AdminAnswer, AdminRefusal> {
    let Context { control, site, peer, progress, strangers, .. } = context;
    let what = format!("{} {}", head.method, head.uri.path());
    let snapshot = control.snapshot();
    let found = upstreams::find(&snapshot, name).and_then(|upstream| Ok((upstream, source(upstream)?)));
    let of_source = found.as_ref().ok().and_then(|(_, (_, push))| push.token.as_ref());
    let token = snapshot.config.admin.as_ref().and_then(|admin| admin.token.as_ref());
    let who = match of_source.filter(|token| authority::has_token(&head.headers, token)) {
        Some(_) => format!("push token from {peer}"),
        None => match authority::check(head, *site, *peer, token) {
            Ok(who) => who,
            Err(denied) => {
                strangers.refused(&peer.to_string(), &what, &denied.to_string());
                return Ok(denied.answer(head.uri.path()));
            }
        },
    };
    // What is there is nothing that a stranger need be told.
    let (upstream, (config, _)) = found?;
    progress.set(Stage::Sending);
    let sent = read(body, config).await;
    progress.set(Stage::Working);
    let taken = sent.and_then(|set| put(upstream, set, &head.headers));
    let (set, before) = taken.inspect_err(|refusal| audit::refused(&who, &what, refusal.what()))?;
    let changed = before.as_ref() != Some(&set);
    if changed {
        let count = |set: &BackendSet| format!("{} backends", set.len());
        control.events().publish(EventKind::ByHand {
            who,
            what: "push".into(),
            upstream: Some(upstream.name().clone()),
            backend: None,
            from: before.as_ref().map_or_else(|| "nothing".into(), count),
            to: count(&set),
        });
    }
    let served = is_served(upstream, config, &set).await;
    let pushed = Pushed { upstream: upstream.name().as_str(), backends: set.len(), changed, served };
    Ok(with_etag(json(StatusCode::OK, &pushed), &set))
}

async fn read(body: Incoming, config: &DiscoveryConfig) -> Result<BackendSet, AdminRefusal> {
    let bytes = match Limited::new(body, config.max_bytes).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let what = format!("the body has more than max_bytes, which is {}", config.max_bytes);
            return Err(AdminRefusal::new(StatusCode::PAYLOAD_TOO_LARGE, what, "body"));
        }
        Err(error) => return Err(AdminRefusal::bad(format!("the body ended early: {error}"), "body")),
    };
    let Document { instances, mut refused } = Document::of_json(&bytes, &config.zone_label)
        .map_err(|error| AdminRefusal::bad(format!("the body lists no backends: {error}"), "body"))?;
    let admission = Admission::new(config);
    let count = instances.len();
    if count > admission.backends_max {
        refused.push(format!("{count} backends, and max_backends is {}", admission.backends_max));
    }
    let why = |it: &Instance| admission.refuse(&it.address).map(|why| format!("{}: {why}", it.address));
    refused.extend(instances.iter().filter_map(why));
    let set = BackendSet::new(instances);
    if set.len() < count {
        refused.push("an address is there twice".into());
    }
    if refused.is_empty() {
        return Ok(set);
    }
    let more = refused.len().saturating_sub(TOLD_MAX);
    refused.truncate(TOLD_MAX);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    Err(AdminRefusal::new(StatusCode::UNPROCESSABLE_ENTITY, refused.join("; ") + &more, "body.backends"))
}

/// Leaves a list for the source to find, unless the request is about another than the one that is there. Gives it back with the one before.
fn put(
    upstream: &Upstream,
    set: BackendSet,
    headers: &HeaderMap,
) -> Result<(BackendSet, Option<BackendSet>), AdminRefusal> {
    let (mut before, mut is_other) = (None, false);
    upstream.state.sources.inbox().put(set.clone(), |there| {
        before = there.cloned();
        is_other = !meets(headers, there);
        !is_other && there != Some(&set)
    });
    if is_other {
        let what = "the list is another than the one that the request is about";
        let place = format!("/upstreams/{}/backends", upstream.name());
        return Err(AdminRefusal::new(StatusCode::PRECONDITION_FAILED, what, place));
    }
    Ok((set, before))
}

/// Whether what is there is what `If-Match` and `If-None-Match` want.
fn meets(headers: &HeaderMap, there: Option<&BackendSet>) -> bool {
    let tag = there.map(etag);
    let names = |name: HeaderName| {
        let values = headers.get_all(name).iter();
        let given: Vec<_> = values.filter_map(|it| it.to_str().ok()).flat_map(|it| it.split(',')).collect();
        let matches = given.iter().map(|it| it.trim()).any(|it| match it {
            "*" => tag.is_some(),
            it => tag.as_deref() == Some(it.strip_prefix("W/").unwrap_or(it)),
        });
        (!given.is_empty(), matches)
    };
    let (has_match, matches) = names(header::IF_MATCH);
    let (has_none_match, none_matches) = names(header::IF_NONE_MATCH);
    (!has_match || matches) && !(has_none_match && none_matches)
}

/// What tells one list from another.
fn etag(set: &BackendSet) -> String {
    let mut hasher = DefaultHasher::new();
    document::to_json(set).to_string().hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

fn with_etag(mut answer: AdminAnswer, set: &BackendSet) -> AdminAnswer {
    if let Ok(tag) = HeaderValue::from_str(&etag(set)) {
        answer.headers_mut().insert(header::ETAG, tag);
    }
    answer
}

/// Waits until the upstream serves with what was sent: that of the script which then stops the backends before.
async fn is_served(upstream: &Upstream, config: &DiscoveryConfig, set: &BackendSet) -> bool {
    const LOOK_EVERY: Duration = Duration::from_millis(2);
    let deadline = Instant::now() + SERVED_WITHIN;
    let sources = &upstream.state.sources;
    loop {
        let has_said = sources.look().iter().any(|it| it.source == config.name && it.set.as_ref() == Some(set));
        if has_said && sources.set().is_some_and(|all| *upstream.roster().set() == all) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(LOOK_EVERY).await;
    }
}
