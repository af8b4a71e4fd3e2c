//! The documentation keeps up with the code: links lead somewhere, configurations shown are valid, and every reason for an
//! error is explained.

use std::fs;
use std::path::{Path, PathBuf};

use isobar::config::{Vocabulary, parse};
use isobar::proxy::{Refusal, RefusalKind};

#[test]
fn local_links_lead_somewhere() {
    let mut broken = Vec::new();
    let mut followed = 0;
    for page in pages() {
        let text = read(&page);
        for target in links(&text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            followed += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let to = if path.is_empty() { page.clone() } else { page.parent().expect("a folder").join(path) };
            if !to.exists() || !(anchor.is_empty() || anchors(&read(&to)).iter().any(|it| it == anchor)) {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "broken links: {broken:#?}");
    assert!(followed > 30, "{followed} links seen: is the test blind?");
}

#[test]
fn configurations_shown_are_valid() {
    let mut shown = 0;
    for page in pages() {
        // That page is about those that are not, and has a test of its own.
        if page.ends_with("docs/configuration-errors.md") {
            continue;
        }
        for (index, block) in blocks(&read(&page), "toml").into_iter().enumerate() {
            let file = format!("{}, block {index}", page.display());
            let loaded = parse(&block, &file, &|_| None, &Vocabulary::default());
            let loaded = loaded.unwrap_or_else(|problems| panic!("{problems}"));
            assert_eq!(loaded.warnings, [], "{file}");
            shown += 1;
        }
    }
    assert!(shown >= 3, "{shown} configurations seen: is the test blind?");
}

#[test]
fn the_configuration_in_the_kubernetes_example_is_valid() {
    let path = "examples/kubernetes/20-config.yaml";
    let text = read(&root().join(path));
    let (_, block) = text.split_once("lb.toml: |\n").expect("the file in the ConfigMap");
    let indented = block.lines().take_while(|line| line.is_empty() || line.starts_with("    "));
    let config: String = indented.map(|line| format!("{}\n", line.trim_start())).collect();
    valid(&config, path);
}

#[test]
fn the_configuration_of_the_compose_example_is_valid() {
    let path = "examples/compose/isobar/lb.toml";
    valid(&read(&root().join(path)), path);
}

#[test]
fn every_reason_is_explained() {
    let page = read(&root().join("docs/forwarding.md"));
    let error = read(&root().join("src/proxy/error.rs"));
    let (_, reasons) = error.split_once("fn reason(&self)").expect("ProxyError::reason");
    let (reasons, told) = reasons.split_once("fn told(&self)").expect("ProxyError::told");
    let reasons = quoted(reasons);
    assert!(reasons.len() > 10, "{reasons:?}: is the test blind?");
    let grpc = read(&root().join("docs/grpc.md"));
    for reason in &reasons {
        assert!(page.contains(&format!("| `{reason}` |")), "docs/forwarding.md has no line about {reason}");
        assert!(grpc.contains(&format!("`{reason}`")), "docs/grpc.md does not say which status {reason} is");
    }
    let (told, _) = told.split_once("\n    }\n").expect("the end of ProxyError::told");
    for words in quoted(told) {
        assert!(page.contains(words), "docs/forwarding.md does not say {words:?}");
    }
    // Those that are no `ProxyError`: what went wrong after the response's head.
    let cut = read(&root().join("src/proxy/exchange_end.rs"));
    let (complete, cut) = cut.split_once("fn reason(self)").expect("Cut::reason");
    let (cut, _) = cut.split_once("fn blame(self)").expect("Cut::blame");
    let reasons = [quoted(complete.rsplit_once("COMPLETE").expect("the word for all is well").1), quoted(cut)].concat();
    assert!(reasons.len() > 8, "{reasons:?}: is the test blind?");
    for reason in reasons {
        assert!(page.contains(&format!("| `{reason}` |")), "docs/forwarding.md has no line about {reason}");
    }
    // And those of what never became an exchange.
    for kind in RefusalKind::ALL {
        let word = Refusal::new(kind, "").reason();
        assert!(page.contains(&format!("| `{word}` |")), "docs/forwarding.md has no line about {word}");
    }
}

#[test]
fn every_status_of_a_refusal_is_explained() {
    let page = read(&root().join("docs/forwarding.md"));
    for kind in RefusalKind::ALL {
        let status = Refusal::new(kind, "").status().as_u16();
        assert!(page.contains(&format!("\n| {status} | ")), "docs/forwarding.md has no line about {status}");
    }
}

fn valid(config: &str, file: &str) {
    let loaded = parse(config, file, &|_| None, &Vocabulary::default()).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(loaded.warnings, [], "{file}");
}

/// The pages at the top and everything below `docs`.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    let mut folders = vec![root().join("docs")];
    collect(root(), &mut pages, &mut Vec::new());
    while let Some(folder) = folders.pop() {
        collect(&folder, &mut pages, &mut folders);
    }
    pages.sort();
    assert!(pages.iter().any(|page| page.ends_with("README.md")));
    pages
}

fn collect(folder: &Path, pages: &mut Vec<PathBuf>, folders: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            folders.push(path);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
}

/// The targets of `[text](target)`, code left out.
fn links(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|part| part.split("](").skip(1).filter_map(|rest| rest.split(')').next())).collect()
}

/// The anchors of the headings, as they are made of their words.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

/// The contents of the fenced blocks of a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut block: Option<String> = None;
    for line in text.lines() {
        match &mut block {
            None if line == format!("```{language}") => block = Some(String::new()),
            None => {}
            Some(_) if line == "```" => blocks.extend(block.take()),
            Some(text) => *text += &format!("{line}\n"),
        }
    }
    blocks
}

/// What stands in double quotes.
fn quoted(code: &str) -> Vec<&str> {
    code.split('"').skip(1).step_by(2).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
