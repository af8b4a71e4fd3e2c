//! Which modules name which, and the circles among those of a folder.

use std::collections::{BTreeMap, BTreeSet};

use super::sources::{production, without_tests};

/// The modules of the crate, each with the paths that its text names, without comments and what is for tests only.
pub(super) struct Modules(BTreeMap<Vec<String>, Vec<Named>>);

/// A path in a module's text: as many modules up (`None`: from the crate's root), then down.
struct Named {
    up: Option<usize>,
    down: Vec<String>,
    /// Whether it stands in a `use`, so that children of the module reach it by its last name.
    imported: bool,
}

impl Modules {
    pub(super) fn read() -> Self {
        let texts: Vec<_> = production().into_iter().map(|(file, text)| (file.display().to_string(), text)).collect();
        Self::of(&texts.iter().map(|(file, text)| (file.as_str(), text.as_str())).collect::<Vec<_>>())
    }

    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        let path = |file: &str| {
            let path = file.trim_start_matches("src/").trim_end_matches(".rs");
            path.split('/')
                .filter(|part| !matches!(*part, "mod" | "lib" | "main"))
                .map(ToOwned::to_owned)
                .collect::<Vec<_>>()
        };
        Self(files.iter().map(|(file, text)| (path(file), paths(&without_tests(text)))).collect())
    }

    /// The module that a path leads to, from the one that names it.
    fn resolve(&self, from: &[String], named: &Named) -> Option<Vec<String>> {
        let mut at = match named.up {
            None => Vec::new(),
            Some(up) => from[..from.len().checked_sub(up)?].to_vec(),
        };
        for name in &named.down {
            at.push(name.clone());
            if !self.0.contains_key(&at) {
                at.pop();
                // An item. What the module there has by a `use` is that of another.
                let imports = self.0.get(&at).into_iter().flatten();
                let import =
                    imports.filter(|it| it.imported && it.down.len() > 1).find(|it| it.down.last() == Some(name));
                return Some(match import {
                    Some(import) if at != from => self.resolve(&at, import)?,
                    _ => at,
                });
            }
        }
        Some(at)
    }
}

/// For each folder, which of its files and folders imports which other.
pub(super) type SiblingEdges = BTreeMap<Vec<String>, BTreeMap<String, BTreeSet<String>>>;

pub(super) fn sibling_edges(modules: &Modules) -> SiblingEdges {
    let mut edges = SiblingEdges::new();
    for (from, paths) in &modules.0 {
        for to in paths.iter().filter_map(|path| modules.resolve(from, path)) {
            let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
            // Those at the top have `MAY_NAME`; parents and children are no siblings.
            if common > 0 && common < from.len() && common < to.len() {
                let folder = edges.entry(from[..common].to_vec()).or_default();
                folder.entry(from[common].clone()).or_default().insert(to[common].clone());
            }
        }
    }
    assert!(!edges.is_empty(), "no edges found: the reader of the imports is broken");
    edges
}

/// Files that reach each other, a line for each group.
pub(super) fn circles(edges: &SiblingEdges) -> Vec<String> {
    let mut circles = BTreeSet::new();
    for (folder, edges) in edges {
        let reach = |from: &String| {
            let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
            while let Some(at) = next.pop() {
                next.extend(edges.get(at).into_iter().flatten().filter(|to| seen.insert((*to).clone())));
            }
            seen
        };
        for file in edges.keys() {
            let mutual: Vec<_> = reach(file).into_iter().filter(|other| reach(other).contains(file)).collect();
            if mutual.len() > 1 {
                circles.insert(circle(&folder.join("::"), &mutual));
            }
        }
    }
    circles.into_iter().collect()
}

pub(super) fn circle<T: AsRef<str>>(folder: &str, files: &[T]) -> String {
    format!("{folder}: {}", files.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", "))
}

/// The paths that begin with `crate`, `super` or `self`, and those of each `use`.
fn paths(text: &str) -> Vec<Named> {
    let mut words: Vec<&str> = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let length = match first {
            ':' if rest.starts_with("::") => 2,
            c if word(c) => rest.find(|c| !word(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        if !first.is_whitespace() {
            words.push(&rest[..length]);
        }
        rest = &rest[length..];
    }
    let mut paths = Vec::new();
    for at in 0..words.len() {
        let in_use = at > 0 && words[at - 1] == "use";
        let begins = matches!(words[at], "crate" | "super" | "self") && words.get(at + 1) == Some(&"::");
        if in_use || (begins && (at == 0 || words[at - 1] != "::") && !inside_a_use(&words, at)) {
            let mut found = Vec::new();
            tree(&words, at, &mut Vec::new(), &mut found);
            paths.extend(found.into_iter().map(|path| named_by(path, in_use)));
        }
    }
    paths
}

/// Whether a path stands in the braces of a `use`, which is read as a whole.
fn inside_a_use(words: &[&str], at: usize) -> bool {
    words[..at].iter().rev().take_while(|word| **word != ";").any(|word| *word == "use")
}

/// Reads `a::b::{c, d::*}` into its paths; returns where it ends.
fn tree<'a>(words: &[&'a str], mut at: usize, before: &mut Vec<&'a str>, paths: &mut Vec<Vec<&'a str>>) -> usize {
    let depth = before.len();
    loop {
        match words.get(at) {
            Some(&"{") => {
                at += 1;
                while words.get(at).is_some_and(|word| *word != "}") {
                    at = tree(words, at, before, paths);
                    at += usize::from(words.get(at) == Some(&","));
                }
                before.truncate(depth);
                return at + 1;
            }
            Some(word) => before.push(word),
            None => return at,
        }
        at += 1;
        if words.get(at) != Some(&"::") {
            paths.push(before.clone());
            before.truncate(depth);
            // `as Name`
            return if words.get(at) == Some(&"as") { at + 2 } else { at };
        }
        at += 1;
    }
}

fn named_by(path: Vec<&str>, imported: bool) -> Named {
    let supers = path.iter().take_while(|word| **word == "super").count();
    let (up, skip) = match path.first() {
        Some(&"crate") => (None, 1),
        Some(&"self") => (Some(0), 1),
        _ => (Some(supers), supers),
    };
    let down =
        path[skip..].iter().filter(|word| !matches!(**word, "self" | "*")).map(|word| (*word).to_owned()).collect();
    Named { up, down, imported }
}
