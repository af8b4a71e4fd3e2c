//! Events of a Docker daemon, one a line.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// The events that are asked for.
pub(super) const NAMES: [&str; 12] = [
    "start",
    "kill",
    "stop",
    "die",
    "destroy",
    "pause",
    "unpause",
    "health_status",
    "rename",
    "update",
    "connect",
    "disconnect",
];

/// What has happened to a container.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// The container's ID.
    pub(super) id: String,
    pub(super) happened: Happened,
}

/// What of it matters.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Happened {
    /// It runs anew.
    Started,
    /// It was sent a signal.
    Signalled(StopSignal),
    /// It does not run any more.
    Ended,
    /// Something else is another now: its health, its networks, its name.
    Changed,
}

/// The number of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StopSignal(u8);

impl StopSignal {
    pub(super) const KILL: Self = Self(9);
    /// By which a container stops that says nothing else.
    pub(super) const TERM: Self = Self(15);

    /// As images write it: `SIGQUIT`, `QUIT`, `3` or `SIGRTMIN+3`.
    pub(super) fn read(text: &str) -> Option<Self> {
        /// By number, from 1 on.
        const SIGNALS: [&str; 31] = [
            "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
            "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
            "WINCH", "IO", "PWR", "SYS",
        ];
        /// As glibc has them.
        const RT_MIN: u8 = 34;
        const RT_MAX: u8 = 64;
        if let Ok(number) = text.parse() {
            return Some(Self(number));
        }
        let name = text.strip_prefix("SIG").unwrap_or(text);
        if let Some(place) = SIGNALS.iter().position(|it| *it == name) {
            return u8::try_from(place + 1).ok().map(Self);
        }
        let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
            (Some(""), _) => Some(RT_MIN),
            (_, Some("")) => Some(RT_MAX),
            (Some(above), _) => {
                above.strip_prefix('+').and_then(|it| it.parse().ok()).and_then(|it| RT_MIN.checked_add(it))
            }
            (_, Some(below)) => {
                below.strip_prefix('-').and_then(|it| it.parse().ok()).and_then(|it| RT_MAX.checked_sub(it))
            }
            _ => None,
        };
        real_time.map(Self)
    }
}

#[derive(Deserialize)]
struct Told {
    #[serde(rename = "Type", default)]
    kind: String,
    #[serde(rename = "Action", default)]
    action: String,
    #[serde(rename = "Actor", default)]
    actor: Actor,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Actor {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(default)]
    attributes: BTreeMap<String, Value>,
}

impl Event {
    /// `None` of what is none, or of what changes nothing.
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        let Told { kind, action, actor } = serde_json::from_slice(line).ok()?;
        let attribute = |name: &str| actor.attributes.get(name).and_then(Value::as_str);
        if kind == "network" {
            let id = attribute("container")?.to_owned();
            return matches!(&*action, "connect" | "disconnect").then_some(Self { id, happened: Happened::Changed });
        }
        let happened = match &*action {
            "start" | "unpause" => Happened::Started,
            "kill" => Happened::Signalled(attribute("signal").and_then(StopSignal::read).unwrap_or(StopSignal::KILL)),
            "stop" | "die" | "destroy" | "pause" => Happened::Ended,
            "rename" | "update" => Happened::Changed,
            health if health.starts_with("health_status") => Happened::Changed,
            _ => return None,
        };
        (kind == "container" && !actor.id.is_empty()).then_some(Self { id: actor.id, happened })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: &str, action: &str, attributes: &str) -> Option<Happened> {
        let line = format!(
            r#"{{"status":"x","id":"abc","Type":"{kind}","Action":"{action}","Actor":{{"ID":"abc","Attributes":{{{attributes}}}}},"scope":"local","time":1,"timeNano":1}}"#
        );
        Event::read(line.as_bytes()).map(|event| {
            assert_eq!(event.id, "abc");
            event.happened
        })
    }

    #[test]
    fn events_say_what_has_happened_to_a_container() {
        for (action, attributes, happened) in [
            ("start", "", Happened::Started),
            ("kill", r#""signal":"15","name":"u""#, Happened::Signalled(StopSignal::TERM)),
            ("kill", r#""signal":"1""#, Happened::Signalled(StopSignal(1))),
            ("kill", "", Happened::Signalled(StopSignal::KILL)),
            ("die", r#""exitCode":"0""#, Happened::Ended),
            ("pause", "", Happened::Ended),
            ("unpause", "", Happened::Started),
            ("health_status: healthy", "", Happened::Changed),
            ("health_status: unhealthy", "", Happened::Changed),
            ("rename", r#""oldName":"/a""#, Happened::Changed),
        ] {
            assert_eq!(read("container", action, attributes), Some(happened), "{action}");
        }
        assert_eq!(read("network", "connect", r#""container":"abc","name":"front""#), Some(Happened::Changed));
        for (kind, action) in
            [("network", "connect"), ("network", "create"), ("container", "exec_start: sh"), ("image", "kill")]
        {
            assert_eq!(read(kind, action, ""), None, "{kind} {action}");
        }
        for line in ["", "<html>", "{}", "null", r#"{"Type":"container","Action":"die"}"#] {
            assert_eq!(Event::read(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, number) in [
            ("SIGQUIT", 3),
            ("QUIT", 3),
            ("3", 3),
            ("SIGTERM", 15),
            ("WINCH", 28),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("SIGRTMIN", 34),
        ] {
            assert_eq!(StopSignal::read(text), Some(StopSignal(number)), "{text}");
        }
        for text in ["", "SIG", "SIGX", "300", "SIGRTMIN3", "-1"] {
            assert_eq!(StopSignal::read(text), None, "{text}");
        }
    }
}
