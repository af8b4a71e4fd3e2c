//! What editors know of `lb.toml`: the schema accepts what is valid, and refuses what a schema can refuse.

use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::Value;

use super::{files, read, root};

struct Schema {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Schema {
    fn new() -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        let location = "http://isobar.example/lb.schema.json";
        compiler.add_resource(location, isobar::config::schema()).expect("a schema");
        let index = compiler.compile(location, &mut schemas).expect("a schema that can be compiled");
        Self { schemas, index }
    }

    fn problem(&self, text: &str) -> Option<String> {
        let file: toml::Table = text.parse().ok()?;
        let file: Value = serde_json::to_value(file).expect("JSON");
        self.schemas.validate(&file, self.index).err().map(|error| format!("{error:#}"))
    }
}

#[test]
fn the_schema_accepts_every_valid_file() {
    let schema = Schema::new();
    let folders = ["examples/configs", "examples/compose/isobar", "tests/config/valid", "tests/config/warned"];
    let mut all = vec!["lb.toml".to_owned(), super::EVERY_KEY.to_owned()];
    all.extend(folders.iter().flat_map(|folder| files(folder, "toml")));
    for path in &all {
        assert_eq!(schema.problem(&read(path)), None, "{path}");
    }
    assert_eq!(schema.problem(&super::uncommented(&read(super::EVERY_KEY))), None);
    assert!(all.len() > 25, "{all:?}");
}

/// Files whose mistake no schema can see, by what would have to be known.
const UNSEEN: &[(&str, &[&str])] = &[
    (
        "what another table says, in one spelling or another",
        &[
            "admin_address_taken",
            "admin_address_taken_by_default",
            "backend_twice",
            "listener_address_twice",
            "registry_that_is_not_there",
            "route_name_twice",
            "routes_that_match_the_same",
            "routes_that_match_the_same_at_a_listener",
            "unknown_listener",
            "unknown_upstream",
        ],
    ),
    (
        "which strategies an embedding program supplies",
        &["strategies_of_other_balancers", "unknown_strategy", "unknown_strategy_unlike_any"],
    ),
    ("the grammar of log filters", &["log_filter"]),
];

#[test]
fn the_schema_refuses_every_invalid_file_that_a_schema_can_refuse() {
    let schema = Schema::new();
    let mut wrong = Vec::new();
    for path in files("tests/config/invalid", "toml") {
        let name = super::file_name(&path).trim_end_matches(".toml").to_owned();
        let bytes = std::fs::read(root().join(&path)).expect("a file");
        // What is not TOML needs no schema to be refused.
        let text = String::from_utf8(bytes).ok().filter(|text| text.parse::<toml::Table>().is_ok());
        let is_refused = text.is_none_or(|text| schema.problem(&text).is_some());
        let is_listed = UNSEEN.iter().any(|(_, names)| names.contains(&&*name));
        match (is_refused, is_listed) {
            (true, false) | (false, true) => {}
            (true, true) => wrong.push(format!("{name} is refused, and listed")),
            (false, false) => wrong.push(format!("{name} is accepted")),
        }
    }
    for name in UNSEEN.iter().flat_map(|(_, names)| *names) {
        assert!(
            root().join(format!("tests/config/invalid/{name}.toml")).exists(),
            "{name} is listed, and is not there"
        );
    }
    assert_eq!(wrong, [] as [String; 0]);
}
