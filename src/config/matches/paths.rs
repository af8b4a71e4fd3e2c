//! Paths of a route: whole ones, prefixes and patterns.

use regex::Regex;
use serde_json::json;

use crate::config::check::{Check, unreachable, value};
use crate::config::error::Problem;
use crate::config::form::{About, Form};
use crate::config::json_tree::Tree;
use crate::config::report::Place;
use crate::config::visibility::{Location, Word as Text};
use crate::target;

/// Which paths match, in the form that paths are matched in (see [`target::path`](crate::target::path)).
#[derive(Clone, Debug)]
pub enum PathPattern {
    /// The whole path.
    Exact(String),
    /// By whole segments: `/api` and `/api/` match `/api` and `/api/x`, not `/apix`. Kept without its final slash;
    /// the empty text matches every path.
    Prefix(String),
    /// A regular expression over the whole path (anchored at both ends).
    Regex(regex::Regex),
}

/// Every path.
impl Default for PathPattern {
    fn default() -> Self {
        Self::Prefix(String::new())
    }
}

impl PartialEq for PathPattern {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) | (Self::Prefix(a), Self::Prefix(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

/// A path in the form that paths of requests are compared in.
pub(crate) struct MatchedPath;

impl Form<String> for MatchedPath {
    type Written = Location;

    fn read(&self, check: &Check<'_>, place: Place, text: &Location) -> Option<String> {
        matched_path(check, place, text)
    }

    fn show(&self, value: &String) -> Option<Tree> {
        Some(value.as_str().into())
    }

    fn tell(&self, value: &String) -> String {
        value.clone()
    }

    fn about(&self) -> About {
        about_path()
    }
}

/// A path by whole segments. Kept without its final slash; empty is every path.
pub(crate) struct Prefix;

impl Form<String> for Prefix {
    type Written = Location;

    fn read(&self, check: &Check<'_>, place: Place, text: &Location) -> Option<String> {
        let path = matched_path(check, place, text)?;
        Some(path.strip_suffix('/').unwrap_or(&path).to_owned())
    }

    fn show(&self, value: &String) -> Option<Tree> {
        Some(self.tell(value).into())
    }

    fn tell(&self, value: &String) -> String {
        format!("{value}/")
    }

    fn about(&self) -> About {
        about_path()
    }
}

/// A path as a request line could have it. Kept without its final slash.
pub(crate) struct PlainPath;

impl Form<String> for PlainPath {
    type Written = Location;

    fn read(&self, check: &Check<'_>, place: Place, text: &Location) -> Option<String> {
        path_text(check, place, text).map(|text| text.strip_suffix('/').unwrap_or(text).to_owned())
    }

    fn show(&self, value: &String) -> Option<Tree> {
        Some(self.tell(value).into())
    }

    fn tell(&self, value: &String) -> String {
        if value.is_empty() { "/".to_owned() } else { value.clone() }
    }

    fn about(&self) -> About {
        about_path()
    }
}

fn about_path() -> About {
    About::new::<Location>("a path", json!({ "type": "string", "pattern": "^/[^ ?#]*$|\\$\\{" }))
}

/// A pattern over a whole path.
pub(crate) struct PathRegex;

impl Form<PathExpression> for PathRegex {
    type Written = Text;

    fn read(&self, check: &Check<'_>, place: Place, text: &Text) -> Option<PathExpression> {
        path_regex(check, place, text).map(PathExpression)
    }

    fn show(&self, value: &PathExpression) -> Option<Tree> {
        Some(value::written(&value.0).into())
    }

    fn tell(&self, value: &PathExpression) -> String {
        value::written(&value.0).to_owned()
    }

    fn about(&self) -> About {
        About::new::<Text>("a regular expression", json!({ "type": "string" }))
    }
}

/// A regular expression over a whole path, anchored at both ends. Two are equal where their texts are.
#[derive(Clone, Debug)]
pub struct PathExpression(pub Regex);

impl PartialEq for PathExpression {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// A pattern over the whole path.
fn path_regex(check: &Check<'_>, place: Place, text: &str) -> Option<Regex> {
    let regex = value::pattern(check, place, text)?;
    if let Some(why) = unreachable::matches_nothing(text) {
        let begins_plainly = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let suggestion = begins_plainly.then(|| format!("/{text}"));
        check.add(place, Problem::warning(why).expected("the slash in the pattern too").suggest(suggestion));
    }
    Some(regex)
}

/// A path in the form that paths of requests are compared in.
fn matched_path(check: &Check<'_>, place: Place, text: &str) -> Option<String> {
    if !text.is_ascii() && text.starts_with('/') {
        let escaped: String = text
            .bytes()
            .map(|byte| if byte.is_ascii() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
            .collect();
        return matched_path(check, place, &escaped);
    }
    let text = path_text(check, place, text)?;
    let problem = match target::path::tidy(text) {
        Ok(tidy) if target::path::has_dots(&tidy) => Problem::error("a path with a dot segment matches no request"),
        Ok(tidy) => {
            let found = target::path::matched(&tidy);
            if found.with_parameters.is_some() {
                let problem = Problem::error("paths are compared without the parameters of their segments (\";\")");
                check.add(place, problem.expected("the path without them, or a path_regex").suggest(Some(found.path)));
                return None;
            }
            if found.path != text {
                let problem = Problem::warning(format!(
                    "{} is read as {}",
                    check.quote(place, text),
                    check.quote(place, &found.path)
                ));
                check.add(place, problem.suggest(Some(found.path.clone())));
            }
            return Some(found.path);
        }
        Err(target::path::Nul) => Problem::error("a path with an escaped NUL matches no request"),
    };
    check.add(place, problem.expected("the path that is meant"));
    None
}

/// A path as a request line could have it.
fn path_text<'t>(check: &Check<'_>, place: Place, text: &'t str) -> Option<&'t str> {
    let legal = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#');
    if text.starts_with('/') && legal(text) {
        return Some(text);
    }
    let problem = Problem::error(format!("{} is not a path", check.quote(place, text)));
    let expected = "a slash first, and no spaces, \"?\", \"#\" or characters that must be percent-encoded";
    let suggestion = (!text.is_empty() && !text.starts_with('/') && legal(text)).then(|| format!("/{text}"));
    check.add(place, problem.expected(expected).suggest(suggestion));
    None
}
