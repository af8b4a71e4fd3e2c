//! `[log]`: what the process says of itself.

use serde_json::json;
use tracing_subscriber::EnvFilter;

use super::check::Check;
use super::error::Problem;
use super::form::{About, Form, OneOf, Word};
use super::json_tree::Tree;
use super::report::Place;
use super::table::Table;
use super::visibility::Word as Text;

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
pub struct LogConfig {
    /// A level (`off`, `error`, `warn`, `info`, `debug` or `trace`), or a filter such as `info,isobar::proxy=debug`. `debug` has a line per
    /// request. A level is that of isobar: its libraries are heard where they are named, `info,h2=warn`.
    #[key(Filter, default = "info")]
    pub level: String,
    /// `text` for people, `json` for machines.
    #[key(OneOf, default = "text", reload = Restart)]
    pub format: LogFormat,
}

/// How a log event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Word)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines, an object a line.
    Json,
}

/// A filter without the white space around its parts, which tracing takes for a part of their names.
pub fn log_filter(text: &str) -> String {
    text.split(',').map(str::trim).collect::<Vec<_>>().join(",")
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A level or a filter.
struct Filter;

impl Form<String> for Filter {
    type Written = Text;

    /// tracing takes a misspelt level for the name of a module to log everything of, so the words that stand alone are looked at here.
    fn read(&self, check: &Check<'_>, place: Place, written: &Text) -> Option<String> {
        let text = log_filter(written);
        let words = text.split(',').filter(|word| !word.contains(['=', '[']));
        for word in words {
            if !LEVELS.contains(&word.to_lowercase().as_str()) {
                let problem = Problem::error(format!("unknown level {}", check.quote(place, word)));
                check.add(place, problem.one_of(word, LEVELS));
                return None;
            }
        }
        if let Err(error) = EnvFilter::try_new(&text) {
            let why = if check.report.is_filled(place) { String::new() } else { format!(": {error}") };
            let problem = Problem::error(format!("{} is not a filter{why}", check.quote(place, &text)));
            check.add(place, problem.expected("a level, or a filter such as \"info,isobar::proxy=debug\""));
            return None;
        }
        Some(text)
    }

    fn show(&self, value: &String) -> Option<Tree> {
        Some(value.as_str().into())
    }

    fn tell(&self, value: &String) -> String {
        value.clone()
    }

    fn about(&self) -> About {
        About::new::<Text>("a level or a filter", json!({ "type": "string" }))
    }
}
