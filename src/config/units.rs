//! Durations and sizes as people write them.

use std::time::Duration;

/// The longest duration there is: far enough for any wait, near enough to be added to any clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

const DURATIONS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

const SIZES: [(&str, u64); 8] = [
    ("", 1),
    ("B", 1),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

/// `500ms`, `5s`, `1m30s`: whole numbers, each with its unit, at most a year together.
pub fn duration(text: &str) -> Option<Duration> {
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, after) = number(rest)?;
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        total = total.checked_add(number.checked_mul(factor(&DURATIONS, unit)?)?)?;
        rest = after;
    }
    let total = Duration::from_millis(total);
    (!text.is_empty() && total <= LONGEST).then_some(total)
}

/// `1024`, `64KiB`, `10MB`: a whole number of bytes, or of a unit of them.
pub(crate) fn size(text: &str) -> Option<u64> {
    let (number, unit) = number(text)?;
    number.checked_mul(factor(&SIZES, unit.trim_start())?)
}

/// `1m30s`, in whole milliseconds like all durations of the file.
pub(crate) fn written(duration: Duration) -> String {
    const UNITS: [(&str, u128); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
    let mut rest = duration.as_millis();
    let mut text = String::new();
    for (unit, length) in UNITS {
        if rest >= length {
            text += &format!("{}{unit}", rest / length);
            rest %= length;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

fn factor(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in
            [("0s", 0), ("500ms", 500), ("5s", 5000), ("1m", 60_000), ("1m30s", 90_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "5", "s", "5 s", "-5s", "1.5s", "5sec", "5S", "366d", "99999999999999999999s", "18446744073709551615d"]
        {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn durations_are_written_as_they_are_read() {
        for (millis, text) in [(0, "0s"), (500, "500ms"), (1_500, "1s500ms"), (75_000, "1m15s"), (86_400_000, "24h")] {
            assert_eq!(written(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("0", 0), ("1024", 1024), ("64KiB", 65_536), ("10MB", 10_000_000), ("1 GiB", 1 << 30)] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "KiB", "-1", "1.5MB", "1kb", "1 TB", "99999999999999999999", "99999999999999999GiB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }
}
