//! The description in `openapi.json` says what the server does: each of its operations is asked, each of its statuses is
//! seen, and each answer has exactly the fields that are described.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::tests::{Reply, Running};

/// Requests that come to every status there is: method, path, the path in the description, further header lines, body.
type Case = (&'static str, &'static str, &'static str, &'static str, &'static str);

const BACKEND: &str = "/upstreams/{upstream}/backends/{address}";

fn description() -> Value {
    serde_json::from_str(super::endpoint::OPENAPI).unwrap()
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        ("GET", "/", "/", "", ""),
        ("GET", "/livez", "/livez", "", ""),
        ("GET", "/readyz?verbose", "/readyz", "", ""),
        ("GET", "/metrics", "/metrics", "", ""),
        ("GET", "/metrics", "/metrics", "accept: application/openmetrics-text\r\n", ""),
        ("GET", "/config", "/config", "", ""),
        ("GET", "/upstreams", "/upstreams", "", ""),
        ("GET", "/upstreams/users", "/upstreams/{upstream}", "", ""),
        ("GET", "/upstreams/user", "/upstreams/{upstream}", "", ""),
        ("GET", "/upstreams/users/backends/10.0.0.1:9001", BACKEND, "", ""),
        ("GET", "/upstreams/users/backends/10.0.0.1:1", BACKEND, "", ""),
        ("GET", LISTED, PUSHED, "", ""),
        ("PUT", LISTED, PUSHED, "", LIST),
        ("PUT", LISTED, PUSHED, "if-match: \"another\"\r\n", LIST),
        ("PUT", LISTED, PUSHED, "", "{}"),
        ("PUT", LISTED, PUSHED, "", r#"{"backends": ["169.254.169.254:80", "10.0.0.1"]}"#),
        ("PUT", LISTED, PUSHED, "", LONG),
        ("PUT", "/upstreams/user/backends", PUSHED, "", LIST),
        ("GET", LISTED, PUSHED, "", ""),
        ("POST", "/stats/reset", "/stats/reset", "", ""),
        ("POST", "/stats/reset", "/stats/reset", "", r#"{"upstreams": "users"}"#),
        ("POST", "/stats/reset", "/stats/reset", "", r#"{"upstream": "user"}"#),
        ("POST", "/stats/reset", "/stats/reset", "", LONG),
        ("GET", "/log", "/log", "", ""),
        ("PUT", "/log", "/log", "", r#"{"level": "debug", "for": "5m"}"#),
        ("PUT", "/log", "/log", "", r#"{"level": "debgu"}"#),
        ("PUT", "/log", "/log", "", LONG),
        ("DELETE", "/log", "/log", "", ""),
        ("DELETE", "/log", "/log", "", "{\"x\": 1}"),
        ("DELETE", "/log", "/log", "", LONG),
        ("GET", "/events?kind=helth", "/events", "", ""),
        ("POST", "/reload", "/reload", "", ""),
        ("GET", "/openapi.json", "/openapi.json", "", ""),
        ("PUT", "/upstreams/users/backends/10.0.0.1:9001/weight", WEIGHT, "", r#"{"weight": 5, "for": "1h"}"#),
        ("PUT", "/upstreams/users/backends/10.0.0.1:9001/weight", WEIGHT, "", r#"{"weight": 65536}"#),
        ("PUT", "/upstreams/users/backends/10.0.0.1:9001/weight", WEIGHT, "", LONG),
        ("PUT", "/upstreams/users/backends/10.0.0.1:1/weight", WEIGHT, "", r#"{"weight": 5}"#),
        ("DELETE", "/upstreams/users/backends/10.0.0.1:9001/weight", WEIGHT, "", ""),
        ("DELETE", "/upstreams/users/backends/10.0.0.1:9001/weight", WEIGHT, "", r#"{"weight": 5}"#),
        ("DELETE", "/upstreams/users/backends/10.0.0.1:9001/weight", WEIGHT, "", LONG),
        ("DELETE", "/upstreams/users/backends/10.0.0.1:1/weight", WEIGHT, "", ""),
    ];
    for &(path, described, method) in CHANGES {
        cases.push((method, path, described, "origin: http://evil.example\r\n", ""));
    }
    cases
}

const PUSHED: &str = "/upstreams/{upstream}/backends";
const LISTED: &str = "/upstreams/users/backends";
const LIST: &str =
    r#"{"backends": ["10.0.0.9:9001", {"address": "10.0.0.8:9001", "weight": 2, "labels": {"version": "2"}}]}"#;
const WEIGHT: &str = "/upstreams/{upstream}/backends/{address}/weight";
const LONG: &str = concat!("{\"for\": \"", include_str!("openapi.json"), "\"}");

/// What changes something, beside the levers that have a path of their own.
const CHANGES: &[(&str, &str, &str)] = &[
    ("/stats/reset", "/stats/reset", "POST"),
    ("/log", "/log", "PUT"),
    ("/log", "/log", "DELETE"),
    ("/reload", "/reload", "POST"),
    (LISTED, PUSHED, "PUT"),
    ("/upstreams/users/backends/10.0.0.1:9001/weight", WEIGHT, "PUT"),
    ("/upstreams/users/backends/10.0.0.1:9001/weight", WEIGHT, "DELETE"),
];

#[test]
fn every_operation_and_status_is_as_described() {
    let running = Running::start();
    let document = description();
    let mut seen = BTreeSet::new();
    let mut ask = |method: &str, path: &str, described: &str, lines: &str, body: &str| {
        let reply = running.send(method, path, lines, body);
        hold(&document, &mut seen, (method, described), &reply);
        reply
    };
    for (method, path, described, lines, body) in cases() {
        ask(method, path, described, lines, body);
    }
    for verb in ["drain", "undrain", "disable", "enable", "eject", "uneject"] {
        let described = format!("{BACKEND}/{verb}");
        let path = format!("/upstreams/users/backends/10.0.0.1:9001/{verb}");
        assert_eq!(ask("POST", &path, &described, "", "").status, 200, "{verb}");
        // With something set, so that it is seen how that looks.
        ask("GET", "/upstreams", "/upstreams", "", "");
        ask("POST", &path, &described, "", LONG);
        ask("POST", &path, &described, "", r#"{"fro": "5m"}"#);
        ask("POST", &path, &described, "origin: null\r\n", "");
        ask("POST", &path.replace("9001", "1"), &described, "", "");
        running.with_token(true);
        ask("POST", &path, &described, "", "");
        running.with_token(false);
    }
    running.with_token(true);
    for &(path, described, method) in CHANGES {
        ask(method, path, described, "", "");
    }
    running.with_token(false);
    running.with_logging(true);
    for (method, path, described, lines, body) in cases().into_iter().filter(|case| case.1 == "/log") {
        ask(method, path, described, lines, body);
    }
    running.process.problems.lock().unwrap().push("lb.toml:1:1: no".into());
    ask("POST", "/reload", "/reload", "", "");
    ask("GET", "/config", "/config", "", "");
    running.process.listening.store(false, std::sync::atomic::Ordering::Relaxed);
    ask("GET", "/readyz", "/readyz", "", "");
    for _ in 0..=crate::telemetry::heartbeat::MISSED_MAX {
        running.process.process.pulse.ask(1);
    }
    ask("GET", "/livez", "/livez", "", "");
    let listeners: Vec<_> = (0..super::events::LISTENERS_MAX)
        .map(|_| {
            let (stream, reply) = running.begin("GET", "/events", "");
            hold(&document, &mut seen, ("GET", "/events"), &reply);
            stream
        })
        .collect();
    let reply = running.send("GET", "/events", "", "");
    hold(&document, &mut seen, ("GET", "/events"), &reply);
    drop(listeners);

    running.process.problems.lock().unwrap().clear();
    *running.process.reload_takes.lock().unwrap() = std::time::Duration::from_secs(2);
    let asking: Vec<_> = (0..super::RELOADS_MAX).map(|_| running.asked("POST", "/reload")).collect();
    for _ in 0..3 {
        hold(&document, &mut seen, ("POST", "/reload"), &running.send("POST", "/reload", "", ""));
    }
    drop(asking);

    let all = operations(&document);
    let missed: Vec<_> = all.difference(&seen).collect();
    assert!(missed.is_empty(), "described and never seen: {missed:#?}");
    assert!(all.len() > 80, "{} statuses: is the test blind?", all.len());
}

/// Every method, path and status of the description.
fn operations(document: &Value) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            for status in operation["responses"].as_object().unwrap().keys() {
                all.insert(format!("{} {path} {status}", method.to_uppercase()));
            }
        }
    }
    all
}

/// Holds an answer against the description.
fn hold(document: &Value, seen: &mut BTreeSet<String>, (method, path): (&str, &str), reply: &Reply) {
    let what = format!("{method} {path} {}", reply.status);
    let response = &document["paths"][path][method.to_lowercase()]["responses"][reply.status.to_string()];
    assert!(response.is_object(), "{what} is not described: {}", reply.body);
    let content = response["content"].as_object().unwrap();
    let kind = reply.header("content-type").unwrap().split(';').next().unwrap();
    let media = content.get(kind).unwrap_or_else(|| panic!("{what}: {kind} is not described"));
    if kind == "application/json" {
        let body = reply.json();
        if let Err(why) = fits(document, &media["schema"], &body, "body") {
            panic!("{what}: {why}\n{body:#}");
        }
    }
    seen.insert(what);
}

/// Whether a value is as its schema says, with no field more and none less.
fn fits(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        return fits(document, &document["components"]["schemas"][name], value, at);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let tried: Vec<_> = choices.iter().map(|schema| fits(document, schema, value, at)).collect();
        return if tried.iter().any(Result::is_ok) { Ok(()) } else { tried.into_iter().next().unwrap() };
    }
    let is = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let types = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        Value::String(one) => vec![one.as_str()],
        other => return Err(format!("{at}: no type in the description: {other}")),
    };
    if !(types.contains(&is) || is == "integer" && types.contains(&"number")) {
        return Err(format!("{at} is {is} and described as {types:?}"));
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        return Err(format!("{at} is {value} and none of {words:?}"));
    }
    match value {
        Value::Array(members) => {
            members.iter().try_for_each(|member| fits(document, &schema["items"], member, &format!("{at}[]")))
        }
        Value::Object(fields) => has_the_fields(document, schema, fields, at),
        _ => Ok(()),
    }
}

fn has_the_fields(document: &Value, schema: &Value, fields: &Map<String, Value>, at: &str) -> Result<(), String> {
    let Some(described) = schema["properties"].as_object() else { return Ok(()) };
    for (name, value) in fields {
        let schema = described.get(name).ok_or_else(|| format!("{at}.{name} is not described"))?;
        fits(document, schema, value, &format!("{at}.{name}"))?;
    }
    let required = schema["required"].as_array().unwrap();
    match required.iter().filter_map(Value::as_str).find(|name| !fields.contains_key(*name)) {
        Some(missing) => Err(format!("{at}.{missing} is described and missing")),
        None => Ok(()),
    }
}

#[test]
fn a_difference_is_found() {
    let document = description();
    let error = |text: &str| {
        let schema = serde_json::json!({ "$ref": "#/components/schemas/Error" });
        fits(&document, &schema, &serde_json::from_str(text).unwrap(), "body")
    };
    assert_eq!(error(r#"{"error": "x", "where": "y"}"#), Ok(()));
    assert_eq!(error(r#"{"error": "x"}"#), Err("body.where is described and missing".into()));
    assert_eq!(error(r#"{"error": "x", "where": "y", "z": 1}"#), Err("body.z is not described".into()));
    assert!(error(r#"{"error": 1, "where": "y"}"#).is_err());
}
