use super::*;
use crate::backend::health::{Streak, Verdict};

fn change(passed: bool, length: u32) -> Change {
    Change { from: Verdict::Healthy, to: Verdict::Unhealthy, streak: Streak { passed, length } }
}

fn last(failure: Option<&str>) -> LastCheck {
    LastCheck { at: SystemTime::UNIX_EPOCH, took: Duration::from_micros(230), failure: failure.map(str::to_owned) }
}

#[test]
fn evidence_in_words() {
    let refused = Some("connection refused");
    for (length, failure, words) in [
        (3, refused, "3 checks in a row failed; the last: connection refused after 0.2 ms"),
        (1, refused, "a check failed: connection refused after 0.2 ms"),
        (2, None, "2 checks in a row passed; the last after 0.2 ms"),
        (1, None, "a check passed after 0.2 ms"),
    ] {
        assert_eq!(evidence(&change(failure.is_none(), length), &last(failure)), words);
    }
}

#[test]
fn failures_in_words() {
    for (failed, words) in [
        (CheckFailed::Connect(io::Error::from_raw_os_error(111)), "connection refused"),
        (CheckFailed::Connect(io::Error::other("Failed to look up")), "failed to look up"),
        (CheckFailed::Status(StatusCode::SERVICE_UNAVAILABLE), "status 503"),
        (CheckFailed::Body { searched: 12 }, "pattern not found in 12 bytes of the body"),
        (CheckFailed::Timeout("connecting"), "timed out connecting"),
    ] {
        assert_eq!(failed.to_string(), words);
    }
}
