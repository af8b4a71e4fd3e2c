//! Whatever stands in a file, it is refused or read, and nothing panics.

use isobar::config::{Loaded, Problems};
use proptest::prelude::*;

use super::{EVERY_KEY, files, parse_here, read, uncommented};

#[test]
fn deep_nesting_is_refused() {
    for text in [
        format!("a = {}", "[".repeat(100_000)),
        format!("a = {}1{}", "[".repeat(10_000), "]".repeat(10_000)),
        format!("a{} = 1", ".a".repeat(10_000)),
        format!("[a{}]", ".a".repeat(10_000)),
        format!("a = {}", "{ a = ".repeat(10_000)),
    ] {
        assert!(parse_here(&text, "lb.toml").is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let _ = shown(parse_here(&text, "lb.toml"));
    }

    /// Syntax that is nearly right.
    #[test]
    fn no_scribble_panics(text in r#"([a-z_.\[\]{}="'$:/*,0-9\n# -]|listener|route|upstream|\[\[|\]\]|\$\{){0,80}"#) {
        let _ = shown(parse_here(&text, "lb.toml"));
    }

    /// A valid file with a piece of it exchanged for something else.
    #[test]
    fn no_mutation_panics(file in 0usize..1000, at in 0usize..10_000, len in 0usize..40, with in mutation()) {
        let mut texts = vec![uncommented(&read(EVERY_KEY))];
        texts.extend(files("tests/config/valid", "toml").iter().map(|path| read(path)));
        let mut text: Vec<char> = texts[file % texts.len()].chars().collect();
        let at = at % text.len();
        let end = (at + len).min(text.len());
        text.splice(at..end, with.chars());
        let _ = shown(parse_here(&text.into_iter().collect::<String>(), "lb.toml"));
    }

    /// A valid file with a value exchanged for one of another type.
    #[test]
    fn no_exchanged_value_panics(line in 0usize..1000, value in value()) {
        let text = uncommented(&read(EVERY_KEY));
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let assignments: Vec<_> = (0..lines.len()).filter(|index| lines[*index].contains(" = ")).collect();
        let index = assignments[line % assignments.len()];
        let key = lines[index].split(" = ").next().unwrap().to_owned();
        lines[index] = format!("{key} = {value}");
        let _ = shown(parse_here(&lines.join("\n"), "lb.toml"));
    }
}

fn mutation() -> impl Strategy<Value = String> {
    prop_oneof![value(), ".{0,8}", Just(String::new()), Just("\n".into()), Just("]".into()), Just("${".into())]
}

fn value() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "-1",
        "0",
        "99999999999999999999999999999999999999999999",
        "0xffffffffffffffff",
        "1e400",
        "nan",
        "true",
        "\"\"",
        "\"\\u0000\"",
        "\"é\"",
        "\"${UNSET}\"",
        "\"${\"",
        "[]",
        "[[]]",
        "[1, \"a\", {}]",
        "{}",
        "{ a = 1 }",
        "1979-05-27T07:32:00Z",
        "07:32:00",
        "\"99999999999999999999s\"",
        "\"(\"",
    ])
    .prop_map(str::to_owned)
}

fn shown(result: Result<Loaded, Problems>) -> String {
    match result {
        Ok(Loaded { config, warnings, .. }) => format!("{config:?}{warnings:?}"),
        Err(problems) => {
            assert!(!problems.is_empty());
            problems.to_string()
        }
    }
}
