//! `[upstream.NAME.discovery.file]`

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::config::check::{Check, value};
use crate::config::error::Problem;
use crate::config::form::{About, Form, Timeout};
use crate::config::json_tree::Tree;
use crate::config::report::Place;
use crate::config::table::Table;
use crate::config::visibility::FilePath;

/// A file that lists backends: TOML or JSON in isobar's own form, or JSON as Prometheus has it for `file_sd`. It is looked at again and again, and
/// read when it is another.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
pub struct FileSourceConfig {
    /// Its path: relative to the working directory. One that ends in `.toml` is TOML, any other is JSON.
    #[key(
        FileAt,
        needed = "a source that is a file needs a path",
        expected = "path = \"/etc/isobar/users.json\"",
        example = "/etc/isobar/users.json"
    )]
    pub path: PathBuf,
    /// How often it is looked at.
    #[key(Timeout, default = "1s")]
    pub interval: Duration,
}

/// The path of a file, which is read when it is needed and not when the configuration is.
pub(super) struct FileAt;

impl Form<PathBuf> for FileAt {
    type Written = FilePath;

    fn read(&self, check: &Check<'_>, place: Place, text: &FilePath) -> Option<PathBuf> {
        if !text.ends_with('/') && value::is_file_path(text) {
            return Some(PathBuf::from(text.as_str()));
        }
        let problem = Problem::error(format!("{} is not a file's path", check.quote(place, text)));
        check.add(place, problem.expected("the like of \"/etc/isobar/users.json\""));
        None
    }

    fn show(&self, value: &PathBuf) -> Option<Tree> {
        Some(value.display().to_string().into())
    }

    fn tell(&self, value: &PathBuf) -> String {
        value.display().to_string()
    }

    fn about(&self) -> About {
        About::new::<FilePath>("a path", json!({ "type": "string", "minLength": 1 }))
    }
}
