//! Points in time as text, in UTC.
//!
//! Log lines are compared across machines and sorted as text, so there are no local time zones here, and with that nothing
//! that a library of time zones would be needed for.

use std::time::{SystemTime, UNIX_EPOCH};

/// A date and a time of day, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    /// Of the Gregorian calendar.
    pub year: u64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59: Unix time has no leap seconds.
    pub second: u8,
    /// 0 to 999.
    pub millisecond: u16,
}

impl From<SystemTime> for Civil {
    /// Times before 1970 become the start of 1970: a clock that wrong should not stop a log.
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);

        // Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is the last of its year.
        let days = days + 719_468;
        let era_day = days % 146_097;
        let era_year = (era_day - era_day / 1_460 + era_day / 36_524 - era_day / 146_096) / 365;
        let year_day = era_day - (365 * era_year + era_year / 4 - era_year / 100);
        let march_month = (5 * year_day + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };

        Self {
            year: days / 146_097 * 400 + era_year + u64::from(month <= 2),
            month: month as u8,
            day: (year_day - (153 * march_month + 2) / 5 + 1) as u8,
            hour: (seconds / 3_600) as u8,
            minute: (seconds / 60 % 60) as u8,
            second: (seconds % 60) as u8,
            millisecond: since.subsec_millis() as u16,
        }
    }
}

/// `2026-03-01T09:05:07.042Z` (RFC 3339).
pub fn rfc3339(time: SystemTime) -> String {
    let c = Civil::from(time);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        c.year, c.month, c.day, c.hour, c.minute, c.second, c.millisecond
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn known_times() {
        for (unix_ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
            (1_767_225_599_001, "2025-12-31T23:59:59.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(unix_ms)), text);
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut last = Civil::from(UNIX_EPOCH);
        for day in 1..60_000 {
            let next = Civil::from(UNIX_EPOCH + Duration::from_secs(day * 86_400));
            let same_month = (next.year, next.month, next.day) == (last.year, last.month, last.day + 1);
            let next_month = (next.year, next.month, next.day) == (last.year, last.month + 1, 1) && last.day >= 28;
            let next_year = (next.year, next.month, next.day) == (last.year + 1, 1, 1) && last.day == 31;
            assert!(same_month || next_month || next_year, "{last:?} {next:?}");
            last = next;
        }
    }

    #[test]
    fn a_time_before_1970_is_not_a_panic() {
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
    }
}
