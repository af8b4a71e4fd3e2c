//! `[[route]]`

use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::Shown;
use super::value::{duration, entries, entry_if, lossy, some, texts};
use crate::config::{
    Action, Forward, HeaderEdits, HostPattern, PathOverrides, PathPattern, PathRewrite, PathRule, RouteConfig,
    Timeouts, Tree, ValueMatch,
};

impl Serialize for Shown<&RouteConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let RouteConfig {
            name,
            listeners,
            hosts,
            path,
            methods,
            headers,
            query,
            paths,
            action,
            request_headers,
            response_headers,
            middleware,
        } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", name.as_str())?;
        entry_if(&mut map, "listeners", some(texts(listeners)).as_ref())?;
        let hosts = hosts.iter().map(|host| match host {
            HostPattern::Exact(host) => host.clone(),
            HostPattern::Wildcard(suffix) => format!("*{suffix}"),
        });
        entry_if(&mut map, "hosts", some(hosts.collect()).as_ref())?;
        match path {
            PathPattern::Exact(path) => map.serialize_entry("path", path)?,
            PathPattern::Prefix(path) => map.serialize_entry("path_prefix", &format!("{path}/"))?,
            PathPattern::Regex(regex) => map.serialize_entry("path_regex", unanchored(regex))?,
        }
        entry_if(&mut map, "methods", some(texts(methods)).as_ref())?;
        let headers = headers.iter().map(|it| (it.name.to_string(), MatchView::of(&it.value)));
        entry_if(&mut map, "headers", entries(headers).as_ref())?;
        let query = query.iter().map(|it| (it.name.clone(), MatchView::of(&it.value)));
        entry_if(&mut map, "query", entries(query).as_ref())?;
        if *paths != PathOverrides::default() {
            map.serialize_entry("paths", &Shown(paths))?;
        }
        action_keys(&mut map, action)?;
        if !request_headers.is_empty() {
            map.serialize_entry("request_headers", &Shown(request_headers))?;
        }
        if !response_headers.is_empty() {
            map.serialize_entry("response_headers", &Shown(response_headers))?;
        }
        entry_if(&mut map, "middleware", some(texts(middleware)).as_ref())?;
        map.end()
    }
}

fn action_keys<M: SerializeMap>(map: &mut M, action: &Action) -> Result<(), M::Error> {
    match action {
        Action::Forward(forward) => forward_keys(map, forward),
        Action::Redirect(redirect) => {
            let view = RedirectView { to: redirect.target(), status: redirect.status.as_u16() };
            map.serialize_entry("redirect", &view)
        }
        Action::Respond(respond) => map.serialize_entry(
            "respond",
            &RespondView {
                status: respond.status.as_u16(),
                content_type: respond.content_type.as_ref().map(lossy),
                body: String::from_utf8_lossy(&respond.body).into_owned(),
            },
        ),
    }
}

fn forward_keys<M: SerializeMap>(map: &mut M, forward: &Forward) -> Result<(), M::Error> {
    map.serialize_entry("upstream", forward.upstream.as_str())?;
    match &forward.path {
        PathRewrite::Keep => {}
        PathRewrite::StripPrefix => map.serialize_entry("strip_prefix", &true)?,
        PathRewrite::ReplacePrefix(prefix) => map.serialize_entry("replace_prefix", prefix)?,
    }
    map.serialize_entry("host", &forward.host.as_ref().map_or_else(|| "preserve".into(), lossy))?;
    entry_if(map, "max_body", forward.max_body.map(Tree::from).as_ref())?;
    map.serialize_entry("expect", forward.expect.as_str())?;
    map.serialize_entry("timeouts", &Shown(&forward.timeouts))?;
    map.serialize_entry("retries", &Shown(&*forward.retries))
}

#[derive(serde::Serialize)]
struct RedirectView {
    to: String,
    status: u16,
}

#[derive(serde::Serialize)]
struct RespondView {
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    body: String,
}

/// What a header or query parameter must be.
#[derive(serde::Serialize)]
#[serde(untagged)]
enum MatchView {
    Exact(String),
    Regex { regex: String },
    Presence { present: bool },
}

impl MatchView {
    fn of(value: &ValueMatch) -> Self {
        match value {
            ValueMatch::Present => Self::Presence { present: true },
            ValueMatch::Absent => Self::Presence { present: false },
            ValueMatch::Exact(text) => Self::Exact(text.clone()),
            ValueMatch::Regex(regex) => Self::Regex { regex: unanchored(regex).to_owned() },
        }
    }
}

impl Serialize for Shown<&PathOverrides> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let PathOverrides { dot_segments, encoded_slashes, duplicate_slashes, backslashes } = self.0;
        let mut map = serializer.serialize_map(None)?;
        entry_if(&mut map, "dot_segments", dot_segments.map(PathRule::as_str).as_ref())?;
        entry_if(&mut map, "encoded_slashes", encoded_slashes.map(PathRule::as_str).as_ref())?;
        entry_if(&mut map, "duplicate_slashes", duplicate_slashes.map(PathRule::as_str).as_ref())?;
        entry_if(&mut map, "backslashes", backslashes.map(PathRule::as_str).as_ref())?;
        map.end()
    }
}

impl Serialize for Shown<&Timeouts> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Timeouts { response_head, body_idle, expect, exchange, tunnel_idle, grpc_idle, grpc_timeout_max } = self.0;
        let or_none = |timeout: &Option<Duration>| timeout.map_or_else(|| "none".into(), duration);
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("response_head", &Shown(*response_head))?;
        map.serialize_entry("body_idle", &Shown(*body_idle))?;
        map.serialize_entry("expect", &Shown(*expect))?;
        map.serialize_entry("exchange", &or_none(exchange))?;
        map.serialize_entry("tunnel_idle", &Shown(*tunnel_idle))?;
        map.serialize_entry("grpc_idle", &or_none(grpc_idle))?;
        map.serialize_entry("grpc_timeout_max", &or_none(grpc_timeout_max))?;
        map.end()
    }
}

impl Serialize for Shown<&HeaderEdits> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let values = |edits: &[(HeaderName, HeaderValue)]| {
            entries(edits.iter().map(|(name, value)| (name.to_string(), lossy(value))))
        };
        let HeaderEdits { remove, set, add } = self.0;
        let mut map = serializer.serialize_map(None)?;
        entry_if(&mut map, "set", values(set).as_ref())?;
        entry_if(&mut map, "add", values(add).as_ref())?;
        entry_if(&mut map, "remove", some(texts(remove)).as_ref())?;
        map.end()
    }
}

/// The pattern as the file has it.
fn unanchored(regex: &regex::Regex) -> &str {
    let text = regex.as_str();
    text.strip_prefix("^(?:").and_then(|text| text.strip_suffix(")$")).unwrap_or(text)
}
