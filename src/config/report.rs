//! Where the problems of one file are gathered, and where in the file things are.

use std::cell::RefCell;

use super::error::{Problem, Problems};

/// A place in the file: a key's path and a position. Cheap to carry about; means something only to its [`Report`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(pub(super) usize);

impl Place {
    /// The start of the file, and no key.
    pub(super) const FILE: Self = Self(0);
}

/// The problems found so far.
#[derive(Debug)]
pub(super) struct Report<'a> {
    file: &'a str,
    text: &'a str,
    line_starts: Vec<usize>,
    places: RefCell<Vec<(String, usize)>>,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Report<'a> {
    /// An empty one about a file.
    pub(super) fn new(file: &'a str, text: &'a str) -> Self {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(index, _)| index + 1)).collect();
        let places = RefCell::new(vec![(String::new(), 0)]);
        Self { file, text, line_starts, places, problems: RefCell::default() }
    }

    /// The whole file.
    pub(super) fn text(&self) -> &'a str {
        self.text
    }

    /// Notes a place: the path of a key, and a byte offset.
    pub(super) fn place(&self, path: &str, offset: usize) -> Place {
        let mut places = self.places.borrow_mut();
        places.push((path.to_owned(), offset));
        Place(places.len() - 1)
    }

    /// The path of the key at a place.
    pub(super) fn path(&self, place: Place) -> String {
        self.places.borrow().get(place.0).map(|(path, _)| path.clone()).unwrap_or_default()
    }

    /// Adds a problem.
    pub(super) fn add(&self, place: Place, problem: Problem) {
        let problem = self.located(place, problem);
        self.problems.borrow_mut().push(problem);
    }

    /// A problem that says where it is.
    pub(super) fn located(&self, place: Place, mut problem: Problem) -> Problem {
        let offset = self.places.borrow().get(place.0).map_or(0, |(_, offset)| *offset);
        (problem.line, problem.column) = self.position(offset);
        problem.file = self.file.to_owned();
        problem.key = self.path(place);
        problem
    }

    /// Adds a problem of a key that is missing from the table at `place`.
    pub(super) fn add_missing(&self, place: Place, key: &str, problem: Problem) {
        let path = self.path(place);
        let offset = self.places.borrow().get(place.0).map_or(0, |(_, offset)| *offset);
        let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        self.add(self.place(&path, offset), problem);
    }

    /// How many problems there are so far.
    pub(super) fn len(&self) -> usize {
        self.problems.borrow().len()
    }

    /// Everything that was found.
    pub(super) fn finish(self) -> Problems {
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

/// A text as it is quoted in a problem: escaped, and not longer than a line bears.
pub(super) fn quote(text: &str) -> String {
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
    fn quotes_are_short_and_escaped() {
        assert_eq!(quote("a\nb"), r#""a\nb""#);
        assert_eq!(quote(&"é".repeat(61)), format!("\"{}\"…", "é".repeat(60)));
    }
}
