//! Imports go down only. One package has no walls between its modules, so this reads the paths in `src/` and holds them
//! against the directions below.
//!
//! A new edge is worth a conversation before it is a line here.
//!
//! Inside a folder, too, files may not import each other in a circle: a reader could begin with none of them, and none could be taken
//! out or tested alone. What counts is an import of one sibling by another, also if it goes by way of a `use` of their parent
//! (`super::Item`, where `mod.rs` has `use sibling::Item`). What does not count is the pattern that every folder has: `mod.rs` uses its
//! children, and they use what `mod.rs` itself defines.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use modules::{Modules, circle, circles, sibling_edges};
use sources::{module, production, sources, test_files};

mod modules;
mod sources;

/// What each module may name, itself apart. From the top down; whoever builds a thing may also name what it is made of.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("cli", &["embed", "supervisor", "http_client", "tls", "config"]),
    // A program that embeds the library joins the admin address to the supervisor, and shows one what the other has.
    (
        "embed",
        &[
            "admin",
            "supervisor",
            "handover",
            "discovery",
            "registry",
            "listener",
            "proxy",
            "middleware",
            "strategy",
            "config",
            "telemetry",
            "file_descriptors",
        ],
    ),
    // Shows what there is; it steers through a trait of its own, so that it need not know the supervisor.
    (
        "admin",
        &[
            "listener",
            "proxy",
            "route",
            "middleware",
            "upstream",
            "backend",
            "registry",
            "overload",
            "config",
            "telemetry",
            "file_descriptors",
        ],
    ),
    (
        "supervisor",
        &[
            "worker",
            "handover",
            "discovery",
            "registry",
            "health",
            "listener",
            "proxy",
            "route",
            "middleware",
            "upstream",
            "strategy",
            "transport",
            "tls",
            "overload",
            "config",
            "telemetry",
            "file_descriptors",
        ],
    ),
    // Says what backends there are, and wakes the keeper.
    (
        "discovery",
        &["registry", "upstream", "backend", "http_client", "eureka_xml", "file_descriptors", "config", "telemetry"],
    ),
    // What services register at; upstreams find them by discovery.
    ("registry", &["backend", "http_client", "eureka_xml", "config", "telemetry"]),
    // Changes what is known of backends, and tells the keeper; what is done about it is decided below.
    ("health", &["upstream", "transport", "backend", "socket", "config", "telemetry"]),
    (
        "worker",
        &[
            "listener",
            "proxy",
            "upstream",
            "exchange",
            "backend",
            "overload",
            "config",
            "telemetry",
            "file_descriptors",
        ],
    ),
    (
        "listener",
        &[
            "handover",
            "proxy",
            "exchange",
            "http1",
            "socket",
            "tls",
            "config",
            "telemetry",
            "target",
            "file_descriptors",
        ],
    ),
    // Of the strategies only what a pick takes: dice, and who was tried.
    (
        "proxy",
        &[
            "route",
            "middleware",
            "upstream",
            "strategy",
            "transport",
            "relay",
            "exchange",
            "backend",
            "tls",
            "overload",
            "config",
            "telemetry",
            "target",
            "header_names",
            "file_descriptors",
        ],
    ),
    ("route", &["middleware", "upstream", "exchange", "config", "telemetry", "target", "header_names"]),
    ("middleware", &["exchange", "backend", "config", "telemetry", "header_names"]),
    // Of the transport only what TLS its backends are spoken to with.
    ("upstream", &["strategy", "transport", "backend", "config", "telemetry"]),
    ("strategy", &["backend", "config"]),
    ("transport", &["exchange", "backend", "http1", "socket", "config", "telemetry", "file_descriptors"]),
    // Bytes both ways between two streams.
    ("relay", &["exchange"]),
    ("exchange", &["backend", "http1", "config", "telemetry", "target", "header_names", "file_descriptors"]),
    ("backend", &["config", "telemetry"]),
    // Bytes and messages.
    ("http1", &["socket", "config", "target", "header_names", "file_descriptors"]),
    ("socket", &[]),
    // Listening sockets, from one process to the next.
    ("handover", &[]),
    // Files to what handshakes are made with.
    ("tls", &["config", "header_names"]),
    ("telemetry", &["overload", "config", "file_descriptors"]),
    // Whether there is too much to do: pure, but for what the system says.
    ("overload", &["config"]),
    ("config", &["target", "header_names"]),
    // What a request asks for, in one form, and names of fields, in any spelling: pure.
    ("target", &[]),
    // What isobar asks others by itself.
    ("http_client", &[]),
    // Numbers of the process and of its workers.
    ("file_descriptors", &[]),
    ("header_names", &[]),
    // What Eureka's servers and clients say to each other: pure.
    ("eureka_xml", &[]),
];

/// What `lib.rs` names once more at the top of the crate, and where it comes from.
const AT_THE_TOP: &[(&str, &str)] = &[("Isobar", "embed"), ("Running", "embed")];

/// The circles that there are: the folder, its files, and why they are not mended yet. A new one fails the test, and so does one that
/// is listed here and no longer exists: the list can only become shorter.
const CIRCLES: &[(&str, &[&str], &str)] = &[
    (
        "admin",
        &["answer", "events", "refusal"],
        "an answer may be a stream of events, which is refused as other requests are",
    ),
    (
        "config",
        &[
            "access_log",
            "adaptive_limit",
            "address",
            "admin",
            "answer",
            "backend",
            "backend_tls",
            "body_limit",
            "check",
            "circuit_breaker",
            "difference",
            "discovery",
            "dns",
            "fill",
            "form",
            "forwarded",
            "header",
            "health_check",
            "http2",
            "limits",
            "lingering",
            "listener",
            "load_balancing",
            "log",
            "matches",
            "middleware",
            "outlier_detection",
            "overload",
            "paths",
            "pool",
            "queue",
            "raw",
            "registry",
            "retries",
            "retry_budget",
            "root",
            "route",
            "schema",
            "services",
            "slow_start",
            "strategy",
            "table",
            "timeouts",
            "tls",
            "upstream",
            "zones",
        ],
        "a table names its sub-tables, the difference and the schema name the whole file: see `config::table`",
    ),
    (
        "config",
        &["field", "report", "visibility"],
        "a value, what of it may be shown, and where it stands are read as one",
    ),
    (
        "config::check",
        &["listener", "overlap", "redirect_loop"],
        "checks over several listeners take what the check of one has found",
    ),
    ("listener::http2", &["io", "stream"], "a stream that becomes a tunnel hands itself to its reader and writer"),
    (
        "proxy",
        &[
            "attempt",
            "attempt_end",
            "backend_response",
            "expect_pass",
            "forward",
            "hedge",
            "hooks",
            "retry",
            "running",
            "upgrade",
        ],
        "the loop over attempts: a hedge makes attempts, and all of them work on the exchange under way, which shows its response to hooks",
    ),
    ("proxy", &["forwarded", "headers"], "the host that backends are told is that of the headers"),
    (
        "supervisor",
        &["command_loop", "file_watch", "handle"],
        "a handle and the watch send commands to the control, which hands out handles",
    ),
    (
        "transport",
        &["connect", "http2", "http2_stream"],
        "a session dials as a connection does, and its streams keep it",
    ),
    ("worker", &["accept", "event_loop"], "accepting is a part of a worker's loop"),
];

#[test]
fn files_of_a_folder_do_not_import_each_other_in_a_circle() {
    let found: BTreeSet<String> = circles(&sibling_edges(&Modules::read())).into_iter().collect();
    let listed: BTreeSet<String> = CIRCLES.iter().map(|(folder, files, _)| circle(folder, files)).collect();
    let new: Vec<_> = found.difference(&listed).collect();
    assert!(new.is_empty(), "these files import each other in a circle: {new:#?}");
    let gone: Vec<_> = listed.difference(&found).collect();
    assert!(gone.is_empty(), "mended, so take them off CIRCLES: {gone:#?}");
}

#[test]
fn circles_are_found_behind_a_use_of_the_parent() {
    let modules = Modules::of(&[
        ("src/lib.rs", "mod a;"),
        ("src/a/mod.rs", "mod b;\nmod c;\nmod d;\npub use self::c::{Deep, Other};\nuse d::Side;\npub struct Own;"),
        ("src/a/b.rs", "use super::Deep;\nuse super::Own;"),
        ("src/a/c.rs", "// super::d::X\nfn f() { let _ = super::d::g(); }"),
        (
            "src/a/d.rs",
            "use crate::a::{\n    Own,\n    b::{self, X},\n};\n#[cfg(test)]\nmod tests {\n    use super::super::c;\n}",
        ),
    ]);
    assert_eq!(circles(&sibling_edges(&modules)), ["a: b, c, d"]);
    let broken = Modules::of(&[
        ("src/lib.rs", "mod a;"),
        ("src/a/mod.rs", "mod b;\nmod c;\npub use c::Deep;\npub struct Own;"),
        ("src/a/b.rs", "use super::Deep;"),
        ("src/a/c.rs", "use super::Own;"),
    ]);
    assert_eq!(circles(&sibling_edges(&broken)), [""; 0]);
}

#[test]
fn imports_go_down_only() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_NAME.iter().copied().collect();
    let mut wrong = Vec::new();
    for edge in edges() {
        let may = allowed.get(edge.from.as_str()).is_some_and(|may| may.contains(&edge.to.as_str()));
        if !may && edge.from != edge.to {
            wrong.push(format!("{}:{}: {} names crate::{}", edge.file.display(), edge.line, edge.from, edge.to));
        }
    }
    assert!(wrong.is_empty(), "edges that no line of MAY_NAME allows:\n{}", wrong.join("\n"));
}

#[test]
fn the_directions_have_no_circle() {
    // Each line may only name what stands in a later line: that is what "down" means.
    let place = |name: &str| MAY_NAME.iter().position(|(module, _)| *module == name);
    for (module, may) in MAY_NAME {
        for below in *may {
            assert!(place(below) > place(module), "{module} may name {below}, which stands above it or nowhere");
        }
    }
}

#[test]
fn every_module_has_its_line() {
    let modules: BTreeSet<_> = sources().iter().filter_map(|file| module(file)).collect();
    let lines: BTreeSet<_> = MAY_NAME.iter().map(|(module, _)| (*module).to_owned()).collect();
    assert_eq!(modules, lines);
}

#[test]
fn what_only_tests_name_does_not_count() {
    let text = "\
use crate::{a::x, b};
// crate::comment
fn f() { crate::c::g() }
#[cfg(test)]
mod tests {
    use crate::d;
}
use crate::Isobar;
";
    let names: Vec<_> = named(text).into_iter().map(|(line, name)| format!("{line} {name}")).collect();
    assert_eq!(names, ["1 a", "1 b", "3 c", "8 embed"]);
    assert_eq!(test_files(Path::new("x/mod.rs"), "#[cfg(test)]\nmod tests;\n"), [PathBuf::from("x/tests.rs")]);
}

struct Edge {
    file: PathBuf,
    line: usize,
    from: String,
    to: String,
}

fn edges() -> Vec<Edge> {
    let mut edges = Vec::new();
    for (file, text) in production() {
        let Some(from) = module(&file) else { continue };
        for (line, to) in named(&text) {
            edges.push(Edge { file: file.clone(), line, from: from.clone(), to });
        }
    }
    assert!(edges.len() > 50, "only {} edges found: the reader of the imports is broken", edges.len());
    edges
}

/// The modules that a file's text names by `crate::`, with their lines, without comments and what is for tests only.
fn named(text: &str) -> Vec<(usize, String)> {
    let mut names = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            let indent = &line[..line.len() - line.trim_start().len()];
            // The formatter puts the closing brace of an item where the item began.
            let end = format!("{indent}}}");
            let first = lines.next().map_or("", |(_, line)| line);
            if first.ends_with('{') {
                lines.by_ref().find(|(_, line)| **line == end);
            }
            continue;
        }
        let code = line.split("//").next().unwrap_or_default();
        for (at, _) in code.match_indices("crate::") {
            let path = &code[at + "crate::".len()..];
            let heads: Vec<&str> = match path.strip_prefix('{') {
                Some(group) => group.trim_end_matches(['}', ';', ' ']).split(',').collect(),
                None => vec![path],
            };
            for head in heads {
                let name = head.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
                let top = AT_THE_TOP.iter().find(|(item, _)| *item == name);
                names.push((index + 1, top.map_or(name, |(_, module)| module).to_owned()));
            }
        }
    }
    names
}
