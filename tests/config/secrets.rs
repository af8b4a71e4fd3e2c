//! What may be a secret is told in no problem.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use isobar::config::{Kind, Loaded, Vocabulary, keys, load, parse};
use toml::Value;

use super::{EVERY_KEY, LISTENER, ROUTE, read, uncommented};

/// What no problem may have in it: a text, and a number.
const SECRET: &str = "s3cr3t-0123456789";
const SECRET_NUMBER: i64 = 5_318_008_123;

/// Each key, one after the other, holds something wrong that may be a secret. A new key is among them by itself.
#[test]
fn a_value_that_may_be_a_secret_is_not_told() {
    let reference: toml::Table = uncommented(&read(EVERY_KEY)).parse().unwrap();
    let env = |name: &str| match name {
        "SECRET" => Some(SECRET.to_owned()),
        "SECRET_NUMBER" => Some(SECRET_NUMBER.to_string()),
        _ => None,
    };
    let mut refused = 0;
    for (key, kind) in keys::all() {
        // What a route may say of retries is read as what an upstream says, which is there.
        // The kinds of an embedding program are not in the reference.
        if key.starts_with("route[].retries.") || key == "middleware.*.*" {
            continue;
        }
        for value in secrets(*kind) {
            let mut table = Value::Table(reference.clone());
            if replace("", &mut table, key, &value) == 0 {
                assert_eq!(*kind, Kind::Plain, "{key} is not in {EVERY_KEY}");
                continue;
            }
            let text = toml::to_string(&table).unwrap();
            let told = match parse(&text, "lb.toml", &env, &Vocabulary::default()) {
                // What is good and not hidden is shown, wherever it comes from.
                Ok(Loaded { config, warnings, .. }) if hides(*kind, &value) => format!("{config:?}{warnings:?}"),
                Ok(Loaded { warnings, .. }) => format!("{warnings:?}"),
                Err(problems) => {
                    refused += 1;
                    format!("{problems}{problems:?}")
                }
            };
            let is_told = told.contains(SECRET) || told.contains(&SECRET_NUMBER.to_string());
            assert!(!is_told, "{key} = {value}: {told}");
        }
    }
    assert!(refused > 500, "{refused} were refused: is the test blind?");
}

fn hides(kind: Kind, value: &Value) -> bool {
    match kind {
        Kind::Plain | Kind::File => false,
        Kind::Location => !value.to_string().contains("${"),
        Kind::Sensitive | Kind::Secret | Kind::Table => true,
    }
}

/// Values for a key of that kind that may hold a secret. Any may where it comes from the environment.
fn secrets(kind: Kind) -> Vec<Value> {
    let literal: &[&str] = match kind {
        Kind::Plain => &[],
        Kind::Location => &["http://me:SECRET@host:1/?a=SECRET#SECRET", "/a?b=SECRET", "a?SECRET", "me:SECRET@host:80"],
        Kind::File => &["-----BEGIN PRIVATE KEY-----\nSECRET\n"],
        Kind::Sensitive | Kind::Secret | Kind::Table => {
            &["SECRET", " SECRET", "SECRET\n(", "${SECRET", "$${${SECRET-}"]
        }
    };
    let literal = literal.iter().map(|text| text.replace("SECRET", SECRET));
    let filled = ["${SECRET}", "a${SECRET}b", "${SECRET:-a}${UNSET}", "${SECRET_NUMBER}"].map(str::to_owned);
    let mut values: Vec<_> = literal.chain(filled).map(Value::String).collect();
    if matches!(kind, Kind::Sensitive | Kind::Secret | Kind::Table) {
        values.extend([Value::Integer(SECRET_NUMBER), Value::Float(SECRET_NUMBER as f64 + 0.5)]);
        values.push(Value::Array(vec![Value::String(SECRET.into())]));
    }
    values
}

/// Puts `with` in the place of every value of a key, and says of how many.
fn replace(path: &str, value: &mut Value, key: &str, with: &Value) -> usize {
    if path == key {
        *value = with.clone();
        return 1;
    }
    match value {
        // Some are empty there.
        Value::Array(members) if key.strip_suffix("[]") == Some(path) => {
            *members = vec![with.clone()];
            1
        }
        Value::Array(members) => {
            members.iter_mut().map(|member| replace(&format!("{path}[]"), member, key, with)).sum()
        }
        Value::Table(table) => {
            let entry = |(name, value): (&String, &mut Value)| {
                let named = keys::join(path, name);
                let path = if keys::kind(&named).is_some() { named } else { keys::join(path, "*") };
                replace(&path, value, key, with)
            };
            table.iter_mut().map(|(name, value)| entry((name, value))).sum()
        }
        // A header or query match may be a table or not.
        _ => 0,
    }
}

/// What one key holds is not told in a problem of another either.
#[test]
fn what_the_environment_holds_is_not_told_of_another_key() {
    const UPSTREAM: &str = "[upstream.users]\nbackends = [\"10.0.0.1:80\"]\n";
    let env = |name: &str| match name {
        "ADDRESS" => Some("203.0.113.77:8077".to_owned()),
        "NAME" => Some("hush-hush".to_owned()),
        "LESS" => Some("70077".to_owned()),
        "MORE" => Some("700077".to_owned()),
        "TIME" => Some("77077ms".to_owned()),
        _ => None,
    };
    let held = ["203.0.113.77", "hush-hush", "70077", "700077", "77077", "77.077", "77"];
    let listener = |keys: &str| format!("[[listener]]\naddress = \"${{ADDRESS}}\"\nname = \"${{NAME}}\"\n{keys}");
    let upstream = |keys: &str| format!("{LISTENER}{ROUTE}{UPSTREAM}{keys}");
    for (text, place) in [
        (format!("{}[[listener]]\naddress = \"${{ADDRESS}}\"\n{ROUTE}{UPSTREAM}", listener("")), "listener[1].address"),
        (format!("{}[[listener]]\naddress = \"0.0.0.0:8077\"\n{ROUTE}{UPSTREAM}", listener("")), "listener[1].address"),
        (format!("{0}{0}{ROUTE}{UPSTREAM}", listener("")), "listener[1].name"),
        (format!("{}{ROUTE}listeners = [\"b\"]\n{UPSTREAM}", listener("")), "route[0].listeners[0]"),
        (
            format!(
                "{}max_connections = \"${{LESS}}\"\nmax_connections_per_address = 100000\n[listener.x]\n{ROUTE}{UPSTREAM}",
                listener("")
            ),
            "listener[0].max_connections_per_address",
        ),
        (
            format!(
                "{}http2 = {{ stream_window = \"${{MORE}}\", connection_window = \"${{LESS}}\" }}\n{ROUTE}{UPSTREAM}",
                listener("")
            ),
            "listener[0].http2.connection_window",
        ),
        (format!("{LISTENER}{ROUTE}name = \"${{NAME}}\"\n{ROUTE}{UPSTREAM}"), "route[1]"),
        (
            format!("{LISTENER}{ROUTE}{ROUTE}hosts = [\"${{NAME}}\"]\n{ROUTE}hosts = [\"${{NAME}}\"]\n{UPSTREAM}"),
            "route[2]",
        ),
        (upstream("adaptive_limit = { min = \"${MORE}\", max = \"${LESS}\" }\n"), "upstream.users.adaptive_limit.min"),
        (
            upstream("adaptive_limit = { initial = 5, min = \"${LESS}\", max = \"${MORE}\" }\n"),
            "upstream.users.adaptive_limit.initial",
        ),
        (upstream("max_in_flight = \"${MORE}\"\nmax_connections = \"${LESS}\"\n"), "upstream.users.max_in_flight"),
        (
            upstream("health_check = { interval = \"${TIME}\", timeout = \"80s\" }\n"),
            "upstream.users.health_check.timeout",
        ),
        (
            upstream("retries = { backoff = { base = \"${TIME}\", max = \"1s\" } }\n"),
            "upstream.users.retries.backoff.max",
        ),
        (
            format!(
                "zone = \"a\"\n{LISTENER}{ROUTE}[upstream.users]\nbackends = [{{ address = \"a:1\", zone = \"${{NAME}}\" }}]\nzone_preference = {{ load = {{ b = 1 }} }}\n"
            ),
            "upstream.users.zone_preference.load.b",
        ),
        (
            format!("{}{ROUTE}[upstream.users]\nbackends = [\"${{ADDRESS}}\"]\nretries = -1\n", listener("")),
            "upstream.users.backends[0]",
        ),
        (
            format!("{LISTENER}{ROUTE}[upstream.users]\nbackends = [\"${{ADDRESS}}\", \"${{ADDRESS}}\"]\n"),
            "upstream.users.backends[1]",
        ),
    ] {
        let problems = parse(&text, "lb.toml", &env, &Vocabulary::default()).map(|loaded| loaded.warnings);
        let problems = problems.unwrap_or_else(|problems| problems.into_vec());
        assert!(problems.iter().any(|problem| problem.key == place), "nothing of {place}: {problems:?}");
        for problem in problems {
            let line = problem.to_string();
            assert!(!held.iter().any(|held| line.contains(held)), "{line}");
        }
    }
}

#[test]
fn a_token_in_a_file_that_everybody_can_read_is_warned_of() {
    let folder = std::env::temp_dir().join(format!("isobar-token-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let warned = |token: &str, mode: u32| {
        let path = folder.join("lb.toml");
        let text = format!("[admin]\ntoken = \"{token}\"\n{LISTENER}{ROUTE}[upstream.users]\nbackends = [\"a:80\"]\n");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let warnings = load(&path, &Vocabulary::default()).unwrap().warnings;
        let lines: Vec<_> = warnings.iter().map(|warning| warning.to_string()).collect();
        lines.join("\n").replace(path.to_str().unwrap(), "lb.toml")
    };
    assert_eq!(
        warned("0123456789abcdef", 0o644),
        "lb.toml:2:9: warning: admin.token: the token can be read by everybody: this file has mode 0644; expected it from the \
         environment, \"${ISOBAR_ADMIN_TOKEN}\", or chmod o-rwx lb.toml"
    );
    assert_eq!(warned("0123456789abcdef", 0o640), "");
    assert_eq!(warned("${ISOBAR_TOKEN_OF_NO_TEST:-0123456789abcdef}", 0o644), "");
    fs::remove_dir_all(&folder).unwrap();
}
