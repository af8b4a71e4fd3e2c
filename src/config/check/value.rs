//! Values that many keys have: numbers in a range, durations, sizes, choices, patterns, names.

use std::ops::RangeInclusive;
use std::time::Duration;

use regex::Regex;

use super::Check;
use crate::config::error::Problem;
use crate::config::raw;
use crate::config::report::Place;
use crate::config::units;
use crate::config::visibility::Word;

/// What a size looks like.
pub(crate) const SIZE: &str = "a size, such as \"64KiB\", \"10MB\" or 1024";
pub(crate) const DURATION: &str =
    "a duration with its unit, such as \"500ms\", \"5s\", \"1m30s\" or \"1h\", of at most 365 days";

/// A whole number, if it is in the range.
pub(crate) fn number_in(check: &Check<'_>, place: Place, number: i64, range: RangeInclusive<i64>) -> Option<i64> {
    if range.contains(&number) {
        return Some(number);
    }
    let problem = Problem::error(format!("{} is out of range", check.show(place, number)));
    check.add(place, problem.expected(format!("{} to {}", range.start(), range.end())));
    None
}

pub(crate) fn written_duration(check: &Check<'_>, place: Place, text: &str, expected: &str) -> Option<Duration> {
    let duration = units::duration(text);
    if duration.is_none() {
        check.add(place, Problem::error(format!("{} is not a duration", check.quote(place, text))).expected(expected));
    }
    duration
}

pub(crate) fn written_timeout(check: &Check<'_>, place: Place, text: &str, expected: &str) -> Option<Duration> {
    let duration = written_duration(check, place, text, expected)?;
    if duration.is_zero() {
        check.add(place, Problem::error("a timeout of zero").expected("more than zero"));
        return None;
    }
    Some(duration)
}

/// A number of bytes.
pub(crate) fn size(check: &Check<'_>, place: Place, size: &raw::Size, expected: &str) -> Option<u64> {
    let (bytes, written) = match size {
        raw::Size::Integer(number) => (u64::try_from(*number).ok(), check.show(place, number)),
        raw::Size::String(text) => (units::size(text), check.quote(place, text)),
    };
    if bytes.is_none() {
        check.add(place, Problem::error(format!("{written} is not a size")).expected(expected));
    }
    bytes
}

/// A number of bytes, if it is in the range.
pub(crate) fn size_within(
    check: &Check<'_>,
    place: Place,
    written: &raw::Size,
    range: RangeInclusive<u64>,
    expected: &str,
) -> Option<u64> {
    let bytes = size(check, place, written, SIZE)?;
    if range.contains(&bytes) {
        return Some(bytes);
    }
    let shown = check.show(place, format_args!("{bytes} bytes"));
    let are = if check.report.is_filled(place) { "is" } else { "are" };
    check.add(place, Problem::error(format!("{shown} {are} out of range")).expected(expected));
    None
}

/// One of some words, if it is one.
pub(crate) fn chosen<T: Copy>(check: &Check<'_>, place: Place, text: &Word, choices: &[(&str, T)]) -> Option<T> {
    let choice = choices.iter().find(|(name, _)| *name == text.as_str());
    if choice.is_none() {
        let problem = Problem::error(format!("unknown value {}", check.quote(place, text)));
        check.add(place, problem.one_of(text, choices.iter().map(|(name, _)| *name)));
    }
    choice.map(|(_, choice)| *choice)
}

/// A pattern that matches a whole text.
pub(crate) fn pattern(check: &Check<'_>, place: Place, text: &str) -> Option<Regex> {
    // Compiled as written too, or `a)|(b` would pass for two halves of something.
    let compiled = Regex::new(text).and_then(|_| Regex::new(&format!("^(?:{text})$")));
    compiled.map_err(|error| not_a_pattern(check, place, text, &error)).ok()
}

/// A pattern that is looked for within bytes.
pub(crate) fn pattern_within(check: &Check<'_>, place: Place, text: &str) -> Option<regex::bytes::Regex> {
    regex::bytes::Regex::new(text).map_err(|error| not_a_pattern(check, place, text, &error)).ok()
}

fn not_a_pattern(check: &Check<'_>, place: Place, text: &str, error: &regex::Error) {
    // The last line says why; those before it draw the pattern, which is in the file.
    let error = error.to_string();
    let why = error.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
    check.add(place, Problem::error(format!("{} is not a regular expression: {why}", check.quote(place, text))));
}

/// A pattern as the file has it.
pub(crate) fn written(pattern: &Regex) -> &str {
    let whole = pattern.as_str();
    whole.strip_prefix("^(?:").and_then(|text| text.strip_suffix(")$")).unwrap_or(whole)
}

/// Whether this could be the path of a file. One of more than a line is what should be in the file.
pub(crate) fn is_file_path(text: &str) -> bool {
    !text.is_empty() && !text.contains(['\0', '\n', '\r'])
}

/// The name of a listener, route or upstream: it appears in logs and metrics.
pub(crate) fn name<'n>(check: &Check<'_>, place: Place, text: &'n str) -> Option<&'n str> {
    const LONGEST: usize = 128;
    if !text.is_empty() && text.len() <= LONGEST && !text.chars().any(char::is_control) {
        return Some(text);
    }
    let problem = Problem::error(format!("{} is not a name", check.quote(place, text)));
    check.add(place, problem.expected(format!("1 to {LONGEST} bytes without control characters")));
    None
}
