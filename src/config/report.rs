//! Where the problems of one file are gathered, and where in the file things are.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt::Display;

use super::error::{Problem, Problems};
use super::interpolate;
use super::visibility::Kind;

/// A place in the file: a key's path and a position. Cheap to carry about; means something only to its [`Report`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(pub(crate) usize);

impl Place {
    /// The start of the file, and no key.
    pub(crate) const FILE: Self = Self(0);
}

/// What is known of a place.
#[derive(Clone, Debug)]
struct Noted {
    path: String,
    offset: usize,
    kind: Kind,
    /// The value as the file has it, where variables of the environment are in it: what they stand for may be a secret, whatever
    /// the key.
    written: Option<String>,
    /// Whether all of the value may be shown.
    shown: bool,
}

/// The problems found so far.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    file: &'a str,
    text: &'a str,
    line_starts: Vec<usize>,
    places: RefCell<Vec<Noted>>,
    problems: RefCell<Vec<Problem>>,
    /// Keys that others with a mistake in their names were probably meant to be.
    meant: RefCell<HashSet<String>>,
}

impl<'a> Report<'a> {
    /// An empty one about a file.
    pub(crate) fn new(file: &'a str, text: &'a str) -> Self {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(index, _)| index + 1)).collect();
        let (places, problems, meant) = Default::default();
        let report = Self { file, text, line_starts, places, problems, meant };
        report.place("", 0);
        report
    }

    /// Its name.
    pub(crate) fn file(&self) -> &'a str {
        self.file
    }

    /// The whole file.
    pub(crate) fn text(&self) -> &'a str {
        self.text
    }

    /// Notes a place: the path of a key, and a byte offset.
    pub(crate) fn place(&self, path: &str, offset: usize) -> Place {
        self.place_of(path, offset, Kind::Plain, None)
    }

    /// Notes the place of a value: of which kind its key is, and what the file has there if it is a string.
    pub(crate) fn place_of(&self, path: &str, offset: usize, kind: Kind, string: Option<&str>) -> Place {
        let written = string.filter(|string| interpolate::variables(string).next().is_some()).map(str::to_owned);
        let shown = written.is_none() && string.is_none_or(|string| kind.show(string) == string);
        let mut places = self.places.borrow_mut();
        places.push(Noted { path: path.to_owned(), offset, kind, written, shown });
        Place(places.len() - 1)
    }

    fn noted(&self, place: Place) -> Noted {
        let nowhere = || Noted { path: String::new(), offset: 0, kind: Kind::Secret, written: None, shown: false };
        self.places.borrow().get(place.0).cloned().unwrap_or_else(nowhere)
    }

    /// The path of the key at a place.
    pub(crate) fn path(&self, place: Place) -> String {
        self.noted(place).path
    }

    /// Whether variables of the environment are in the value at a place.
    pub(crate) fn is_filled(&self, place: Place) -> bool {
        self.noted(place).written.is_some()
    }

    /// The text that stands at a place, as a problem may have it.
    pub(crate) fn quote(&self, place: Place, text: &str) -> String {
        let Noted { kind, written, .. } = self.noted(place);
        written.map_or_else(|| kind.quote(text), |written| quote_written(kind, &written))
    }

    /// The same of what is no text, or needs no quotes: a number, an address.
    pub(crate) fn show(&self, place: Place, value: impl Display) -> String {
        let Noted { kind, written, .. } = self.noted(place);
        written.map_or_else(|| kind.show(&value.to_string()).into_owned(), |written| quote_written(kind, &written))
    }

    /// Adds a problem.
    pub(crate) fn add(&self, place: Place, problem: Problem) {
        let problem = self.locate(place, problem);
        self.problems.borrow_mut().push(problem);
    }

    /// The same problem with the place in it, and not added.
    pub(crate) fn locate(&self, place: Place, mut problem: Problem) -> Problem {
        let Noted { path, offset, shown, .. } = self.noted(place);
        (problem.line, problem.column) = self.position(offset);
        problem.file = self.file.to_owned();
        problem.key = path;
        // It is near to the value, or made of it.
        problem.suggestion = problem.suggestion.filter(|_| shown);
        problem
    }

    /// Adds a problem of a key that is missing from the table at `place`. What stands there under another name is not missing.
    pub(crate) fn add_missing(&self, place: Place, key: &str, problem: Problem) {
        let Noted { path, offset, .. } = self.noted(place);
        let path = within(&path, key);
        if !self.meant.borrow().contains(&path) {
            self.add(self.place(&path, offset), problem);
        }
    }

    /// Notes that a key of the table at `path` has another name than the one that was meant.
    pub(crate) fn note_meant(&self, path: &str, key: &str) {
        self.meant.borrow_mut().insert(within(path, key));
    }

    /// Whether a key that is missing from the table at `place` stands there under another name.
    pub(crate) fn is_meant(&self, place: Place, key: &str) -> bool {
        self.meant.borrow().contains(&within(&self.path(place), key))
    }

    /// How many problems there are so far.
    pub(crate) fn len(&self) -> usize {
        self.problems.borrow().len()
    }

    /// Everything that was found.
    pub(crate) fn finish(self) -> Problems {
        Problems::new(self.problems.into_inner())
    }

    /// Line and column, from 1, the column in characters.
    fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.line_starts.partition_point(|start| *start <= offset);
        let start = self.line_starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        // toml counts in bytes and never splits a character, but a position is not worth a panic.
        let column = self.text.get(start..offset.min(self.text.len())).map_or(0, |before| before.chars().count());
        (line.max(1), column + 1)
    }
}

fn within(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// A text with variables, as the file has it.
fn quote_written(kind: Kind, written: &str) -> String {
    match kind {
        Kind::Plain | Kind::Location | Kind::File => kind.quote(written),
        // What stands around them may be the secret, and so may a default.
        Kind::Sensitive | Kind::Secret | Kind::Table => {
            let variables: Vec<_> = interpolate::variables(written).map(|name| format!("${{{name}}}")).collect();
            format!("(hidden, from {})", variables.join(" and "))
        }
    }
}

/// A text as it is quoted in a problem: escaped, and not longer than a line bears. Of a key; a value is for [`Report::quote`].
pub(crate) fn quote(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters() {
        let report = Report::new("lb.toml", "a = 1\n\"é\" = 2\n");
        assert_eq!(report.position(0), (1, 1));
        assert_eq!(report.position(6), (2, 1));
        assert_eq!(report.position("a = 1\n\"é\" = ".len()), (2, 7));
        assert_eq!(report.position(1000), (3, 1));
    }

    #[test]
    fn values_are_quoted_as_their_kind_and_their_variables_allow() {
        let report = Report::new("lb.toml", "");
        let quote = |kind, string| report.quote(report.place_of("a", 0, kind, Some(string)), "10.0.0.1:80");
        assert_eq!(quote(Kind::Plain, "10.0.0.1:80"), "\"10.0.0.1:80\"");
        assert_eq!(quote(Kind::Plain, "${A:-10.0.0.1}:80"), "\"${A:-10.0.0.1}:80\"");
        assert_eq!(quote(Kind::Location, "a?b=${C}"), "\"a?b=(hidden)\"");
        assert_eq!(quote(Kind::Sensitive, "10.0.0.1:80"), "(hidden, 11 characters)");
        assert_eq!(quote(Kind::Secret, "${A:-10}.0${B}"), "(hidden, from ${A} and ${B})");
        assert_eq!(quote(Kind::Secret, "$${A}"), "(hidden)");
        assert_eq!(report.show(report.place_of("a", 0, Kind::Plain, None), 5), "5");
        assert_eq!(report.show(report.place_of("a", 0, Kind::Plain, Some("${N}")), 5), "\"${N}\"");
    }

    #[test]
    fn what_is_near_to_a_hidden_value_is_not_suggested() {
        let report = Report::new("lb.toml", "");
        let suggest = |kind, string, suggestion: &str| {
            let problem = Problem::error("").suggest(Some(suggestion.to_owned()));
            report.locate(report.place_of("a", 0, kind, Some(string)), problem).suggestion
        };
        assert_eq!(suggest(Kind::Plain, "fof", "foo").as_deref(), Some("foo"));
        assert_eq!(suggest(Kind::Plain, "${A}", "foo"), None);
        assert_eq!(suggest(Kind::Location, "a", "/a").as_deref(), Some("/a"));
        assert_eq!(suggest(Kind::Location, "a?b=c", "/a?b=c"), None);
        assert_eq!(suggest(Kind::Location, "a:b@c", "/a:b@c"), None);
    }

    #[test]
    fn quotes_are_short_and_escaped() {
        assert_eq!(quote("a\nb"), r#""a\nb""#);
        assert_eq!(quote(&"é".repeat(61)), format!("\"{}\"…", "é".repeat(60)));
    }
}
