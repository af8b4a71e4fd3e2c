//! What is wrong with a configuration, where, and what would be right.

use std::fmt;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The configuration is used all the same.
    Warning,
    /// The configuration is refused.
    Error,
}

/// One thing that is wrong with a configuration.
///
/// Displayed as a line: `lb.toml:14:12: upstream.users.strategy: unknown strategy "rr"; expected one of …; did you mean
/// "round_robin"?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whether the configuration is refused for it.
    pub severity: Severity,
    /// The file as it was named.
    pub file: String,
    /// From 1; 0 where the problem is with the file as a whole.
    pub line: usize,
    /// In characters, from 1; 0 where the problem is with the file as a whole.
    pub column: usize,
    /// The path of the key: `route[2].path_prefix`. Empty where no key is concerned.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub expected: Option<String>,
    /// The valid name that is nearest to the one given.
    pub suggestion: Option<String>,
}

impl Problem {
    /// Something that refuses the configuration. Where it is gets known when it is reported.
    pub(crate) fn error(what: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            file: String::new(),
            line: 0,
            column: 0,
            key: String::new(),
            what: what.into(),
            expected: None,
            suggestion: None,
        }
    }

    /// Something that does not refuse the configuration.
    pub(crate) fn warning(what: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(what) }
    }

    /// Says what would be right.
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    /// Says that one of some names would be right, and which of them is nearest to `given`.
    pub(crate) fn one_of<'n>(self, given: &str, names: impl IntoIterator<Item = &'n str>) -> Self {
        let names: Vec<&str> = names.into_iter().collect();
        let suggestion = nearest(given, &names).map(str::to_owned);
        let expected = match names.as_slice() {
            // A list that nobody would read.
            many if many.len() > 30 => Some(format!("one of {} names", many.len())),
            [] => None,
            [only] => Some((*only).to_owned()),
            several => Some(format!("one of {}", several.join(", "))),
        };
        Self { expected, suggestion, ..self }
    }

    /// Offers a way to write it.
    pub(crate) fn suggest(mut self, suggestion: Option<String>) -> Self {
        self.suggestion = suggestion;
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        f.write_str(": ")?;
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)?;
        if let Some(expected) = &self.expected {
            write!(f, "; expected {expected}")?;
        }
        if let Some(suggestion) = &self.suggestion {
            write!(f, "; did you mean {suggestion:?}?")?;
        }
        Ok(())
    }
}

/// Everything that is wrong with a configuration, warnings included, in the order of the file. Displayed a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl FromIterator<Problem> for Problems {
    fn from_iter<I: IntoIterator<Item = Problem>>(problems: I) -> Self {
        Self::new(problems.into_iter().collect())
    }
}

impl Problems {
    /// Sorts them by where they are.
    pub fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        Self(problems)
    }

    /// In the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them refuses the configuration.
    pub fn refuse(&self) -> bool {
        self.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// As a list.
    pub fn into_vec(self) -> Vec<Problem> {
        self.0
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The name that was probably meant: one that differs in case or separators, by its initials (`rr` for `round_robin`), by
/// its ending, or by a few letters.
pub fn nearest<'n>(given: &str, names: &[&'n str]) -> Option<&'n str> {
    // The edit distance is quadratic; nothing this long was a slip of the fingers.
    if given.is_empty() || given.len() > 64 {
        return None;
    }
    let plain = |name: &str| name.to_lowercase().replace(['-', ' ', '.'], "_");
    let initials = |name: &str| name.split('_').filter_map(|word| word.chars().next()).collect::<String>();
    let given = plain(given);
    let find = |matches: &dyn Fn(&str) -> bool| names.iter().copied().find(|name| matches(&plain(name)));
    find(&|name| name == given)
        .or_else(|| {
            names
                .iter()
                .copied()
                .map(|name| (strsim::damerau_levenshtein(&given, &plain(name)), name))
                .min_by_key(|(distance, _)| *distance)
                .filter(|(distance, name)| *distance <= given.len().max(name.len()).div_ceil(4))
                .map(|(_, name)| name)
        })
        .or_else(|| find(&|name| given.len() > 1 && initials(name) == given))
        .or_else(|| find(&|name| given.len() > 2 && (name.starts_with(&given) || given.starts_with(name))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name() {
        let names = ["round_robin", "weighted_round_robin", "random", "least_connections"];
        for (given, meant) in [
            ("rr", Some("round_robin")),
            ("wrr", Some("weighted_round_robin")),
            ("lc", Some("least_connections")),
            ("Round-Robin", Some("round_robin")),
            ("roundrobin", Some("round_robin")),
            ("radnom", Some("random")),
            ("least_conn", Some("least_connections")),
            ("ip_hash", None),
            ("", None),
        ] {
            assert_eq!(nearest(given, &names), meant, "{given}");
        }
    }

    #[test]
    fn a_problem_is_a_line() {
        let mut problem = Problem::error("unknown strategy \"rr\"").one_of("rr", ["random", "round_robin"]);
        problem.file = "lb.toml".into();
        (problem.line, problem.column, problem.key) = (14, 12, "upstream.users.strategy".into());
        assert_eq!(
            problem.to_string(),
            "lb.toml:14:12: upstream.users.strategy: unknown strategy \"rr\"; expected one of random, round_robin; \
             did you mean \"round_robin\"?"
        );
    }
}
