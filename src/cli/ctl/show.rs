//! Answers of the admin address for people.

use serde_json::Value;

use super::table::TextTable;

/// `isobar ctl upstreams`
pub(super) fn upstreams(answer: &Value) -> String {
    let mut table =
        TextTable::new(&["UPSTREAM", "STRATEGY", ">READY", ">BACKENDS", ">IN FLIGHT", ">RETRIES", ">NO BACKEND"]);
    for upstream in list(&answer["upstreams"]) {
        let backends = list(&upstream["backends"]);
        let ready = backends.iter().filter(|backend| backend["ready"] == true).count();
        let in_flight: u64 = backends.iter().filter_map(|backend| backend["in_flight"].as_u64()).sum();
        table.line(vec![
            text(&upstream["name"]),
            text(&upstream["strategy"]),
            ready.to_string(),
            backends.len().to_string(),
            in_flight.to_string(),
            text(&upstream["retries"]),
            text(&upstream["no_backend"]),
        ]);
    }
    table.to_string()
}

/// Where backends come from: a line for each source but the list of the file.
pub(super) fn sources(answer: &Value) -> String {
    let mut table =
        TextTable::new(&["UPSTREAM", "SOURCE", "CONDITION", ">BACKENDS", ">HELD BACK", ">STALE", "REVISION", "WHAT"]);
    for upstream in list(&answer["upstreams"]) {
        for source in list(&upstream["sources"]).iter().skip(1) {
            let left_out = list(&source["left_out"]).first().map(|first| format!("left out: {}", text(first)));
            let what = source["error"].as_str().map(str::to_owned).or(left_out).unwrap_or_else(|| "-".into());
            table.line(vec![
                text(&upstream["name"]),
                text(&source["name"]),
                text(&source["condition"]),
                text(&source["backends"]),
                text(&source["held_back"]),
                format!("{} s", source["stale_seconds"]),
                source["revision"].as_str().unwrap_or("-").to_owned(),
                what,
            ]);
        }
    }
    table.to_string()
}

/// The services that upstreams are made for: a line for each, and for each of which something is left out.
pub(super) fn services(answer: &Value) -> String {
    let mut table = TextTable::new(&["MADE OF", "SERVICE", "UPSTREAM", "LISTED", ">READY", ">BACKENDS", "LEFT OUT"]);
    let upstreams = list(&answer["upstreams"]);
    for template in upstreams {
        let left_out = list(&template["services"]["left_out"]);
        let why = |service: &Value| left_out.iter().find(|it| it["service"] == *service).map(|it| text(&it["why"]));
        let served = list(&template["services"]["served"]);
        for service in served {
            let made = upstreams.iter().find(|it| it["name"] == service["upstream"]);
            let backends = made.map_or(&[][..], |made| list(&made["backends"]));
            let ready = backends.iter().filter(|backend| backend["ready"] == true).count();
            table.line(vec![
                text(&template["name"]),
                text(&service["service"]),
                text(&service["upstream"]),
                if service["listed"] == true { "yes" } else { "no longer" }.into(),
                ready.to_string(),
                backends.len().to_string(),
                why(&service["service"]).unwrap_or_else(|| "-".into()),
            ]);
        }
    }
    table.to_string()
}

/// `isobar ctl backends`, of these upstreams.
pub(super) fn backends(upstreams: &[Value]) -> String {
    let mut table =
        TextTable::new(&["UPSTREAM", "BACKEND", "STATE", ">WEIGHT", ">IN FLIGHT", ">PICKS", ">FAILED", "BY HAND"]);
    for upstream in upstreams {
        for backend in list(&upstream["backends"]) {
            let counts = ["connect_failures", "broken", "timeouts"].map(|key| backend[key].as_u64().unwrap_or(0));
            let failed = counts.iter().sum::<u64>() + backend["responses"]["5xx"].as_u64().unwrap_or(0);
            table.line(vec![
                text(&upstream["name"]),
                text(&backend["address"]),
                text(&backend["readiness"]),
                text(&backend["weight"]),
                text(&backend["in_flight"]),
                text(&backend["picks"]),
                failed.to_string(),
                by_hand(&backend["by_hand"]),
            ]);
        }
        for absent in list(&upstream["absent"]) {
            let none = || "-".to_owned();
            table.line(vec![
                text(&upstream["name"]),
                text(&absent["address"]),
                "not there".into(),
                none(),
                none(),
                none(),
                none(),
                by_hand(&absent["by_hand"]),
            ]);
        }
    }
    table.to_string()
}

/// `drained by uid 1000 until 2026-03-01T09:05:07.042Z, weight 5 by uid 1000`
fn by_hand(levers: &Value) -> String {
    let words = [("drain", "drained"), ("disable", "disabled"), ("weight", "weight"), ("eject", "ejected")];
    let set = words.iter().filter_map(|(lever, word)| {
        let mark = levers[lever].as_object()?;
        let mut told = (*word).to_owned();
        if let Some(weight) = mark.get("weight") {
            told += &format!(" {weight}");
        }
        told += &format!(" by {}", text(&mark["by"]));
        if let Some(until) = mark["until"].as_str() {
            told += &format!(" until {until}");
        }
        Some(told)
    });
    let set: Vec<_> = set.collect();
    if set.is_empty() { "-".into() } else { set.join(", ") }
}

/// What a lever has changed: a line, and notes.
pub(super) fn pulled(answer: &Value) -> String {
    let backend = format!("{} {}", text(&answer["upstream"]), text(&answer["backend"]));
    let to = text(&answer["to"]);
    let mut lines = match answer["changed"] == true {
        true => format!("{backend}: {} -> {to}\n", text(&answer["from"])),
        false => format!("{backend}: {to}, as before\n"),
    };
    for note in list(&answer["notes"]) {
        lines += &format!("note: {}\n", text(note));
    }
    lines
}

/// What is logged.
pub(super) fn log(answer: &Value) -> String {
    match answer["raised"].as_object() {
        Some(raised) => format!(
            "{} until {}, by {}; then {}\n",
            text(&raised["level"]),
            text(&raised["until"]),
            text(&raised["by"]),
            text(&answer["configured"])
        ),
        None => format!("{}\n", text(&answer["level"])),
    }
}

/// What a reload has changed.
pub(super) fn reloaded(answer: &Value) -> String {
    let mut lines = format!("generation {}\n", answer["generation"]);
    for upstream in list(&answer["upstreams"]) {
        let fate = text(&upstream["fate"]);
        let changes: Vec<_> = list(&upstream["changes"]).iter().map(text).collect();
        let changes = if changes.is_empty() { String::new() } else { format!(": {}", changes.join(", ")) };
        lines += &format!("upstream {} {fate}{changes}\n", text(&upstream["name"]));
    }
    for other in list(&answer["others"]) {
        lines += &format!("{}\n", text(other));
    }
    for warning in list(&answer["warnings"]) {
        lines += &format!("{}\n", text(warning));
    }
    lines
}

/// An event on a line: time, kind, and the rest as `key=value`.
pub(super) fn event(event: &Value) -> String {
    let Some(fields) = event.as_object() else { return event.to_string() };
    let mut line = match event["time"].as_str() {
        Some(time) => format!("{time} {}", text(&event["kind"])),
        None => text(&event["kind"]),
    };
    for (key, value) in
        fields.iter().filter(|(key, value)| !["time", "kind"].contains(&key.as_str()) && !value.is_null())
    {
        let value = text(value);
        let quoted = value.is_empty() || value.contains(|c: char| c.is_whitespace() || c == '"');
        line += &if quoted { format!(" {key}={value:?}") } else { format!(" {key}={value}") };
    }
    line
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Texts without quotes. What answers may be anything, so nothing that steers a terminal gets through.
fn text(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn marks_in_words() {
        let mark = |until: Value| json!({ "by": "uid 0", "since": "s", "until": until });
        assert_eq!(by_hand(&json!({ "drain": null })), "-");
        let both = json!({ "drain": mark(json!("then")), "weight": { "by": "uid 0", "until": null, "weight": 5 } });
        assert_eq!(by_hand(&both), "drained by uid 0 until then, weight 5 by uid 0");
    }

    #[test]
    fn events_on_a_line() {
        let told =
            event(&json!({ "time": "t", "kind": "by_hand", "upstream": null, "to": "not drained", "from": "x" }));
        assert_eq!(told, "t by_hand from=x to=\"not drained\"");
        assert_eq!(event(&json!({ "kind": "gap", "missed": 3 })), "gap missed=3");
        assert!(!event(&json!({ "kind": "a\u{1b}[2J" })).contains('\u{1b}'));
    }

    #[test]
    fn a_lever_on_a_line() {
        let answer = |changed: bool| {
            json!({ "upstream": "u", "backend": "a:1", "changed": changed, "from": "not drained", "to": "drained",
                    "notes": ["n"] })
        };
        assert_eq!(pulled(&answer(true)), "u a:1: not drained -> drained\nnote: n\n");
        assert_eq!(pulled(&answer(false)), "u a:1: drained, as before\nnote: n\n");
    }
}
