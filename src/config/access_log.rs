//! `[access_log]`: a line per exchange.

use std::path::PathBuf;

use serde_json::json;

use super::check::{Check, value};
use super::error::Problem;
use super::form::{About, Form, OneOf, Whole, Word};
use super::json_tree::Tree;
use super::report::Place;
use super::table::Table;
use super::visibility::FilePath;

/// A line per exchange, and for what is refused before: of those 100 in ten seconds a worker. It is off by default, because a line per
/// request costs more than most of them.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(enabled = false)]
pub struct AccessLogConfig {
    /// How an exchange is written: `json` with timings, route, upstream and backend, or the NCSA format `combined`.
    #[key(OneOf, default = "json")]
    pub format: AccessLogFormat,
    /// `stdout`, or the path of a file, which is appended to and made where there is none.
    #[key(Output, default = "stdout")]
    pub output: AccessLogOutput,
    /// Lines that may wait for the writer. Further lines are dropped and counted; requests never wait.
    #[key(Whole(1..=1_000_000), default = 8192)]
    pub buffer: usize,
}

/// How an exchange is written in the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Word)]
pub enum AccessLogFormat {
    /// An object a line, with timings, route, upstream and backend.
    Json,
    /// The NCSA combined format.
    Combined,
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLogOutput {
    /// Standard output.
    Stdout,
    /// Appended to a file, made where there is none.
    File(PathBuf),
}

/// Standard output or a file.
struct Output;

impl Form<AccessLogOutput> for Output {
    type Written = FilePath;

    fn read(&self, check: &Check<'_>, place: Place, written: &FilePath) -> Option<AccessLogOutput> {
        match written.as_str() {
            "stdout" => Some(AccessLogOutput::Stdout),
            text if value::is_file_path(text) => Some(AccessLogOutput::File(PathBuf::from(text))),
            text => {
                let problem = Problem::error(format!("{} is not a file's path", check.quote(place, text)));
                check.add(place, problem.expected("\"stdout\" or the path of a file"));
                None
            }
        }
    }

    fn show(&self, value: &AccessLogOutput) -> Option<Tree> {
        Some(self.tell(value).into())
    }

    fn tell(&self, value: &AccessLogOutput) -> String {
        match value {
            AccessLogOutput::Stdout => "stdout".into(),
            AccessLogOutput::File(path) => path.display().to_string(),
        }
    }

    fn about(&self) -> About {
        About::new::<FilePath>("`\"stdout\"` or the path of a file", json!({ "type": "string", "minLength": 1 }))
    }
}
