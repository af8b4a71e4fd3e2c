//! Imports go down only. One package has no walls between its modules, so this reads the paths in `src/` and holds them
//! against the directions below.
//!
//! A new edge is worth a conversation before it is a line here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each module may name, itself apart. From the top down; whoever builds a thing may also name what it is made of.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("cli", &["embed", "supervisor", "fetch", "tls", "config"]),
    // A program that embeds the library joins the admin address to the supervisor, and shows one what the other has.
    (
        "embed",
        &[
            "admin",
            "supervisor",
            "handover",
            "discovery",
            "listener",
            "proxy",
            "middleware",
            "strategy",
            "config",
            "telemetry",
            "descriptors",
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
            "overload",
            "config",
            "telemetry",
            "descriptors",
        ],
    ),
    (
        "supervisor",
        &[
            "worker",
            "handover",
            "discovery",
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
            "descriptors",
        ],
    ),
    // Says what backends there are, and wakes the keeper.
    ("discovery", &["upstream", "backend", "config", "telemetry"]),
    // Changes what is known of backends, and tells the keeper; what is done about it is decided below.
    ("health", &["upstream", "transport", "backend", "socket", "config", "telemetry"]),
    (
        "worker",
        &["listener", "proxy", "upstream", "exchange", "backend", "overload", "config", "telemetry", "descriptors"],
    ),
    (
        "listener",
        &["handover", "proxy", "exchange", "http1", "socket", "tls", "config", "telemetry", "target", "descriptors"],
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
            "fields",
            "descriptors",
        ],
    ),
    ("route", &["middleware", "upstream", "exchange", "config", "telemetry", "target", "fields"]),
    ("middleware", &["exchange", "backend", "config", "telemetry", "fields"]),
    // Of the transport only what TLS its backends are spoken to with.
    ("upstream", &["strategy", "transport", "backend", "config", "telemetry"]),
    ("strategy", &["backend", "config"]),
    ("transport", &["exchange", "backend", "http1", "socket", "config", "telemetry", "descriptors"]),
    // Bytes both ways between two streams.
    ("relay", &["exchange"]),
    ("exchange", &["backend", "http1", "config", "telemetry", "target", "fields", "descriptors"]),
    ("backend", &["config", "telemetry"]),
    // Bytes and messages.
    ("http1", &["socket", "config", "target", "fields", "descriptors"]),
    ("socket", &[]),
    // Listening sockets, from one process to the next.
    ("handover", &[]),
    // Files to what handshakes are made with.
    ("tls", &["config", "fields"]),
    ("telemetry", &["overload", "config", "descriptors"]),
    // Whether there is too much to do: pure, but for what the system says.
    ("overload", &["config"]),
    ("config", &["target", "fields"]),
    // What a request asks for, in one form, and names of fields, in any spelling: pure.
    ("target", &[]),
    // What isobar asks others by itself.
    ("fetch", &[]),
    // Numbers of the process and of its workers.
    ("descriptors", &[]),
    ("fields", &[]),
];

/// What `lib.rs` names once more at the top of the crate, and where it comes from.
const AT_THE_TOP: &[(&str, &str)] = &[("Isobar", "embed"), ("Running", "embed")];

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
    let files = sources();
    let text = |file: &Path| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let for_tests: BTreeSet<_> = files.iter().flat_map(|file| test_files(file, &text(file))).collect();
    let mut edges = Vec::new();
    for file in files.iter().filter(|file| !for_tests.contains(*file)) {
        let Some(from) = module(file) else { continue };
        for (line, to) in named(&text(file)) {
            edges.push(Edge { file: file.clone(), line, from: from.clone(), to });
        }
    }
    assert!(edges.len() > 50, "only {} edges found: the reader of the imports is broken", edges.len());
    edges
}

/// Every file in `src/`, relative to the package.
fn sources() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut files, mut folders) = (Vec::new(), vec![root.join("src")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

/// The module at the top that a file belongs to; none for the crate's two roots.
fn module(file: &Path) -> Option<String> {
    let top = file.components().nth(1)?.as_os_str().to_str()?;
    let name = top.strip_suffix(".rs").unwrap_or(top);
    (!matches!(name, "lib" | "main")).then(|| name.to_owned())
}

/// Files that a file includes for tests only.
fn test_files(file: &Path, text: &str) -> Vec<PathBuf> {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let mods = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]");
    mods.filter_map(|pair| pair[1].strip_prefix("mod ")?.strip_suffix(';'))
        .map(|name| file.with_file_name(format!("{name}.rs")))
        .collect()
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
